"""What the bytes of packets tell: against the standards' tables, and the share of B-frames that encoders were told."""

import av
import numpy as np

from headcam.video.decoding.bitstreams import packet_rule


def test_interlaced_and_intra_refreshed_streams_lose_no_packet(files):
    for name in ("interlaced.mp4", "no_b.mp4"):
        with av.open(str(files[name])) as container:
            stream = container.streams.video[0]
            rule = packet_rule("h264", stream.codec_context.extradata)
            assert not any(rule.disposable(bytes(packet)) for packet in container.demux(stream) if packet.size)
    assert packet_rule("vp9", b"") is None


def hevc_unit(kind, temporal, layer=0, rest=b"\x80\x80"):
    """A NAL unit behind its start code (H.265 7.3.1.2)."""
    return b"\0\0\1" + bytes([kind << 1 | layer >> 5, (layer & 31) << 3 | temporal + 1]) + rest


def test_hevc_pictures_are_disposable_in_the_highest_layer_only():
    """H.265 table 7-1: even types below 16 are sub-layer non-reference pictures; a lower layer serves higher ones."""
    three_layers = hevc_unit(33, 0, rest=bytes([2 << 1, 0]))  # sps_max_sub_layers_minus1 is 2
    rule = packet_rule("hevc", None)
    assert not rule.disposable(hevc_unit(0, 0))  # nothing is known of layers yet
    assert not rule.disposable(three_layers + hevc_unit(19, 0)) and rule.can_start(three_layers + hevc_unit(19, 0))
    for kind in range(32):
        for temporal in range(3):
            expected = temporal == 2 and kind in (0, 2, 4, 6, 8, 10, 12, 14)
            assert rule.disposable(hevc_unit(kind, temporal)) == expected, (kind, temporal)
        assert rule.can_start(hevc_unit(kind, 0)) == (16 <= kind <= 23)
    assert not rule.disposable(hevc_unit(0, 2) + hevc_unit(1, 2)), "one slice of the picture is a reference"
    assert rule.disposable(hevc_unit(0, 2) + hevc_unit(1, 2, layer=1)), "another view is not decoded"
    assert not rule.disposable(hevc_unit(39, 2)), "no picture at all"


def test_h264_pictures_are_disposable_by_nal_ref_idc(files):
    with av.open(str(files["pyramid.mp4"])) as container:
        record = container.streams.video[0].codec_context.extradata
    rule = packet_rule("h264", record)
    assert record[0] == 1 and record[4] & 3 == 3, "four bytes of length before each unit"

    def packet(*headers):
        return b"".join((3).to_bytes(4, "big") + bytes([header, 0x80, 0x80]) for header in headers)

    assert rule.disposable(packet(0x01)) and rule.disposable(packet(0x06, 0x01, 0x01))
    assert not rule.disposable(packet(0x21)) and not rule.disposable(packet(0x01, 0x41))
    assert not rule.disposable(packet(0x65)) and not rule.disposable(packet(0x06))
    assert not rule.disposable(b"") and not rule.disposable(packet(0x01)[:3])
    assert not packet_rule("h264", b"").disposable(b"\0\0\1\x01\x80"), "whether fields may come is not known"
    for cut in range(len(record)):  # a record that is cut short is no crash
        packet_rule("h264", record[:cut]).disposable(packet(0x01))


def test_the_rule_agrees_with_the_encoders_own_account(files):
    """x264 and x265 give unreferenced B-frames away by their share: 2 of 4 frames in a pyramid of three B-frames."""
    for name in ("pyramid.mp4", "one_key.mkv", "annex_b.ts", "hevc_layers.mkv"):
        if name not in files:
            continue
        with av.open(str(files[name])) as container:
            stream = container.streams.video[0]
            rule = packet_rule(stream.codec_context.name, stream.codec_context.extradata)
            flags = {packet.pts: rule.disposable(bytes(packet)) for packet in container.demux(stream) if packet.size}
        share = np.mean(list(flags.values()))
        assert 0.4 < share <= 0.51, (name, share)
