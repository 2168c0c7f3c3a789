"""What the bytes of a packet tell of its picture: whether others refer to it, and whether decoding can start there.

`packet_rule` gives the rule for a stream. Containers do not say which pictures are disposable, but the first bytes of
a slice do: in H.264 (ITU-T H.264 7.4.1) by `nal_ref_idc` 0; in HEVC (ITU-T H.265 7.4.2.2) as sub-layer non-reference
pictures, which only in the highest temporal layer are referred to by none. So headers of NAL units are read, and of
parameter sets as much as is needed to trust them; nothing is decoded. Whatever cannot be read counts as needed.
"""

from collections.abc import Iterator
from typing import Protocol


class PacketRule(Protocol):
    """What the bytes of a packet tell. It remembers parameter sets: show it every packet in decode order."""

    def disposable(self, data: bytes) -> bool:
        """Whether no other picture depends on this one."""

    def can_start(self, data: bytes) -> bool:
        """Whether decoding can start at this packet, if its container calls it a key frame."""


def packet_rule(codec: str, extradata: bytes | None) -> PacketRule | None:
    """The rule for a stream's packets; None for a codec whose packets do not tell.

    Args:
        codec: `h264` or `hevc`; any other gives None.
        extradata: the codec's configuration as the container holds it: an `avcC` or `hvcC` record (ISO/IEC 14496-15,
            packets are NAL units behind their length) or parameter sets behind start codes (Annex B, as packets).
    """
    rules = {"h264": _H264Rule, "hevc": _HEVCRule}
    return rules[codec](extradata or b"") if codec in rules else None


class _H264Rule:
    """ITU-T H.264 7.4.1: a picture whose slices have `nal_ref_idc` 0 is referred to by none.

    Only where every picture is a frame (`frame_mbs_only_flag`, 7.4.2.1.1): of two fields that share a frame, in
    packets of their own, the second must not go missing.
    """

    def __init__(self, extradata: bytes):
        self._frames_only: bool | None = None
        self._length_size = 0
        sets: Iterator[bytes] = iter(())
        if extradata[:1] == b"\x01" and len(extradata) > 6:
            self._length_size = (extradata[4] & 3) + 1
            sets = _sets_of_avcc(extradata)
        elif extradata:
            sets = _nal_units(extradata, 0)
        for unit in sets:
            self._note(unit)

    def disposable(self, data: bytes) -> bool:
        slices = False
        disposable = True
        for unit in _nal_units(data, self._length_size):
            kind = unit[0] & 0x1F
            if 1 <= kind <= 5:
                slices = True
                disposable &= unit[0] & 0x60 == 0
            else:
                self._note(unit)
        return slices and disposable and self._frames_only is True

    def can_start(self, data: bytes) -> bool:
        return True  # FFmpeg's decoder keeps back what it could not decode cleanly, until a point of recovery

    def _note(self, unit: bytes) -> None:
        if unit and unit[0] & 0x1F == 7:
            self._frames_only = self._frames_only is not False and _frames_only(unit)


class _HEVCRule:
    """ITU-T H.265 7.4.2.2: sub-layer non-reference pictures are not referred to within their temporal layer, so in
    the highest layer, as the parameter sets have it, they are not referred to at all."""

    def __init__(self, extradata: bytes):
        self._highest = -1  # TemporalId of the highest layer; none is that high while it is unknown
        self._length_size = 0
        sets: Iterator[bytes] = iter(())
        if len(extradata) > 23 and extradata[0] == 1:
            self._length_size = (extradata[21] & 3) + 1
            sets = _sets_of_hvcc(extradata)
        elif extradata:
            sets = _nal_units(extradata, 0)
        for unit in sets:
            self._note(unit)

    def disposable(self, data: bytes) -> bool:
        slices = False
        disposable = True
        for unit in _nal_units(data, self._length_size):
            kind, layer, temporal = _hevc_header(unit)
            if layer:
                continue  # of another view or resolution: not decoded
            if kind < 32:
                slices = True
                disposable &= kind < 16 and kind % 2 == 0 and temporal == self._highest
            else:
                self._note(unit)
        return slices and disposable

    def can_start(self, data: bytes) -> bool:
        """Whether it is an intra random access point (7.4.2.2); elsewhere FFmpeg 7 makes up references."""
        headers = map(_hevc_header, _nal_units(data, self._length_size))
        return all(16 <= kind < 24 for kind, layer, _ in headers if kind < 32 and layer == 0)

    def _note(self, unit: bytes) -> None:
        kind, layer, _ = _hevc_header(unit)
        if layer == 0 and kind in (32, 33) and len(unit) > 3:
            # vps_max_sub_layers_minus1 and sps_max_sub_layers_minus1 (7.3.2.1, 7.3.2.2)
            self._highest = max(self._highest, (unit[3] if kind == 32 else unit[2]) >> 1 & 7)


def _hevc_header(unit: bytes) -> tuple[int, int, int]:
    """nal_unit_type, nuh_layer_id and TemporalId (7.3.1.2); a unit too short for a header counts as a slice that is
    needed."""
    if len(unit) < 2:
        return 1, 0, 0
    return unit[0] >> 1 & 0x3F, (unit[0] & 1) << 5 | unit[1] >> 3, (unit[1] & 7) - 1


def _nal_units(data: bytes, length_size: int) -> Iterator[bytes]:
    """The beginnings (16 bytes, more of parameter sets) of the NAL units of a packet, empty ones left out."""
    most = 512  # no parameter set of a camera is longer
    if length_size:
        at = 0
        while at + length_size < len(data):
            size = int.from_bytes(data[at : at + length_size], "big")
            at += length_size
            if size:
                yield data[at : at + min(size, most)]
            at += size
        return
    at = data.find(b"\0\0\1")
    while at >= 0:
        following = data.find(b"\0\0\1", at + 3)
        end = len(data) if following < 0 else following
        if end > at + 3:
            yield data[at + 3 : min(end, at + 3 + most)]
        at = following


def _sets_of_avcc(record: bytes) -> Iterator[bytes]:
    """Sequence parameter sets of an AVCDecoderConfigurationRecord (ISO/IEC 14496-15, 5.3.3.1)."""
    at = 6
    for _ in range(record[5] & 0x1F):
        size = int.from_bytes(record[at : at + 2], "big")
        yield record[at + 2 : at + 2 + size]
        at += 2 + size


def _sets_of_hvcc(record: bytes) -> Iterator[bytes]:
    """Parameter sets of an HEVCDecoderConfigurationRecord (ISO/IEC 14496-15, 8.3.3.1)."""
    at = 23
    for _ in range(record[22]):
        count = int.from_bytes(record[at + 1 : at + 3], "big")
        at += 3
        for _ in range(count if at < len(record) else 0):
            size = int.from_bytes(record[at : at + 2], "big")
            yield record[at + 2 : at + 2 + size]
            at += 2 + size


def _frames_only(unit: bytes) -> bool:
    """`frame_mbs_only_flag` of an H.264 sequence parameter set (7.3.2.1.1); false where it cannot be read."""
    try:
        bits = _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))  # without emulation prevention (7.3.1)
        profile = bits.take(8)
        bits.take(16)
        bits.golomb()
        if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
            chroma = bits.golomb()
            if chroma == 3:
                bits.take(1)
            bits.golomb(), bits.golomb(), bits.take(1)
            if bits.take(1):
                for k in range(8 if chroma != 3 else 12):
                    if bits.take(1):
                        bits.skip_scaling_list(16 if k < 6 else 64)
        bits.golomb()
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.take(1), bits.golomb(), bits.golomb()
            for _ in range(bits.golomb()):
                bits.golomb()
        bits.golomb(), bits.take(1), bits.golomb(), bits.golomb()
        return bits.take(1) == 1
    except EOFError:
        return False


class _Bits:
    """Fixed-length and Exp-Golomb codes (ITU-T H.264 9.1) from the front of `data`; EOFError behind its end."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise EOFError
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        zeros = 0
        while not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)

    def skip_scaling_list(self, size: int) -> None:
        """Pass over scaling_list( ) (7.3.2.1.1.1)."""
        last = following = 8
        for _ in range(size):
            if following:
                code = self.golomb()
                following = (last + (code + 1 >> 1 if code % 2 else -(code >> 1))) % 256
            last = following or last
