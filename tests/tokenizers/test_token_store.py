"""Token stores: rows against an independent decode, the same bytes after a kill, hours, whole clips, refusals."""

import csv
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.weights import save_weights
from headcam.tokenizers import token_shards, token_store
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.token_rows import clip_moments
from headcam.tokenizers.token_store import TokenStore, make_token_store
from headcam.video.clip_sources import cut_clip
from headcam.video.clips import clip_times, read_clips
from headcam.video.quarantine import quarantine_path, write_quarantine
from headcam.video.readers import open_reader
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.sampling.manifest import Manifest
from headcam.video.sampling.plan import draw_views
from headcam.video.sampling.units import RecordingFacts, StretchUnits
from headcam.video.sampling.views import ViewLaw
from headcam.video.stores.clip_store import ClipStore, store_clips
from headcam.video.stores.frame_store import FrameStore
from headcam.video.transforms import Box, Cut, center_box, decode_cuts

SIDE, COLOURS = 8, 32


@pytest.fixture(scope="session")
def palette(tmp_path_factory) -> Path:
    """A tokenizer of 8 x 8 pixels and 32 colours."""
    tokenizer = PaletteTokenizer(SIDE, COLOURS)
    tokenizer.quantizer.codebook.copy_(torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (COLOURS, 3))))
    card = {
        "contract": "card",
        "version": 1,
        "objective": "palette",
        "architecture": {"class": "PaletteTokenizer", "arguments": tokenizer.arguments},
    }
    folder = tmp_path_factory.mktemp("palette")
    save_weights(folder, tokenizer, card)
    return folder


class Brightness(PaletteTokenizer):
    """Clips of 4 frames, tubelets of 2, patches of 4 x 4 pixels: a token is their mean brightness in 256 levels."""

    def __init__(self, vocab_size: int = 256):
        super().__init__(SIDE, vocab_size)
        self.grid, self.num_frames, self.tubelet_size = (2, 2, 2), 4, 2

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        self.check(pixels)
        b = pixels.shape[0]
        return pixels.float().view(b, 3, 2, 2, 2, 4, 2, 4).mean((1, 3, 5, 7)).round().long()


@pytest.fixture
def clip_tokenizer(palette, monkeypatch):
    """Let `make_token_store` find a tokenizer of clips, whatever it is asked for."""
    made = Brightness()
    monkeypatch.setattr(token_store, "load_tokenizer", lambda source: (made, load_tokenizer(palette)[1]))
    return made


def store(data, tokenizer, out, **how):
    return make_token_store(data, tokenizer, out, **{"num_workers": 0, "quiet": True} | how)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def nearest(pixels: np.ndarray, palette: Path) -> np.ndarray:
    colours = load_tokenizer(palette)[0].quantizer.codebook.double().numpy()
    return ((pixels[..., None, :].astype(float) - colours) ** 2).sum(-1).argmin(-1)


def test_rows_are_the_nearest_colours_of_the_recorded_crops(stores, palette, tmp_path):
    result = store(stores[0], palette, tmp_path / "t", crops=3, flip=0.5, seed=4)
    tokens, frames = TokenStore(tmp_path / "t"), FrameStore(stores[0])
    assert result.samples == len(tokens) == 120 and tokens.grid == (SIDE, SIDE) and tokens.vocab_size == COLOURS
    assert tokens.sample.tolist() == list(range(120)) and tokens.crop.tolist() == [0, 1, 2] * 40
    law = ViewLaw("image", (SIDE, SIDE), scale=(0.2, 1.0), flip=0.5)
    for i in range(0, 120, 7):
        boxes = [Box(tokens.left[k], tokens.top[k], tokens.width[k], tokens.height[k]) for k in range(120)]
        cuts = [Cut(boxes[k], (SIDE, SIDE), bool(tokens.flip[k])) for k in range(i // 3 * 3, i // 3 * 3 + 3)]
        picture = decode_cuts(frames.jpeg(i // 3), cuts)[i % 3]  # a frame is decoded once for all its crops
        found, box = tokens.tokens(i), boxes[i]
        assert found.dtype == np.int32 and np.array_equal(found, nearest(picture, palette))
        ((view,),) = draw_views([law], 96, 72, 4, i)  # the draws of sample i of a plan with this seed
        assert box == view.crop and bool(tokens.flip[i]) == view.flip
    assert 0.3 < tokens.flip.mean() < 0.7 and len(np.unique(tokens.left)) > 20
    assert [tokens.recordings[k] for k in tokens.recording[::3]] == [frames.recordings[k] for k in frames.recording]


def test_one_crop_is_the_largest_central_one_unless_a_scale_is_given(stores, palette, tmp_path):
    store(stores[1], palette, tmp_path / "central")
    tokens = TokenStore(tmp_path / "central")
    boxes = np.stack([tokens.left, tokens.top, tokens.width, tokens.height], 1)
    assert (boxes == np.array(center_box(96, 72, (SIDE, SIDE)))).all() and not tokens.flip.any()
    store(stores[1], palette, tmp_path / "random", scale=(0.5, 0.9))
    assert len(np.unique(TokenStore(tmp_path / "random").width)) > 3


def test_hours_do_not_depend_on_the_number_of_crops(recordings, palette, tmp_path):
    one = store(recordings[1], palette, tmp_path / "1")
    three = store(recordings[1], palette, tmp_path / "3", crops=3)
    assert one.hours == pytest.approx(6 / 3600) and three.hours == pytest.approx(6 / 3600)
    assert (one.samples, three.samples) == (6, 18)
    tokens = TokenStore(tmp_path / "3")
    assert tokens.time_s[::3].tolist() == [0, 1, 2, 3, 4, 5] and tokens.seconds == pytest.approx(np.full(18, 1 / 3))
    assert tokens.facts["duration_s"].to_pylist() == pytest.approx([6.0])
    assert tokens.metadata["recordings_hash"] == recordings_hash(read_recordings(recordings[1]))


def test_the_tokenizer_goes_with_the_store(stores, palette, tmp_path):
    store(stores[1], palette, tmp_path / "t")
    tokenizer, card = load_tokenizer(tmp_path / "t")
    assert (
        card["weights_hash"] == TokenStore(tmp_path / "t").tokenizer_hash == load_tokenizer(palette)[1]["weights_hash"]
    )
    assert torch.equal(tokenizer.quantizer.codebook, load_tokenizer(palette)[0].quantizer.codebook)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(token_shards, "_PER_SHARD", (8, 8))


def test_workers_and_interruptions_leave_no_trace(stores, palette, tmp_path, small_shards, monkeypatch):
    how = {"crops": 3, "flip": 0.5, "batch_size": 4}
    store(stores[0], palette, tmp_path / "a", **how)
    store(stores[0], palette, tmp_path / "b", num_workers=2, **how)
    whole = contents(tmp_path / "a")
    assert whole == contents(tmp_path / "b") and sum(name.endswith(".npy") for name in whole) == 20
    assert {name for name in whole if not name.endswith(".npy")} == {
        *("tokens.parquet", "recordings.parquet", "skipped.csv", "tokenizer/card.json", "tokenizer/weights.safetensors")
    }
    write, made = token_shards.Shard.write, []

    def stop_at_the_eighth(shard, *rest):
        if len(made) == 7:
            raise KeyboardInterrupt
        made.append(shard.number)
        write(shard, *rest)

    monkeypatch.setattr(token_shards.Shard, "write", stop_at_the_eighth)
    with pytest.raises(KeyboardInterrupt):
        store(stores[0], palette, tmp_path / "c", **how)
    with pytest.raises(InputError, match="holds no token store that is finished"):
        TokenStore(tmp_path / "c")
    made.clear()
    monkeypatch.setattr(
        token_shards.Shard, "write", lambda shard, *rest: made.append(shard.number) or write(shard, *rest)
    )
    store(stores[0], palette, tmp_path / "c", **how)
    assert made == list(range(7, 20)) and contents(tmp_path / "c") == whole
    store(stores[0], palette, tmp_path / "c", **how)
    assert len(made) == 13, "a finished store is left as it is"


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(stores, palette, tmp_path, small_shards):
    code = (
        "import sys, time\n"
        "from headcam.tokenizers import token_shards\n"
        "from headcam.tokenizers.autoencoders.palette import PaletteTokenizer\n"
        "token_shards._PER_SHARD = (8, 8)\n"
        "encode = PaletteTokenizer.encode\n"
        "PaletteTokenizer.encode = lambda self, pixels: time.sleep(0.2) or encode(self, pixels)\n"
        "from headcam.tokenizers.token_store import make_token_store\n"
        "make_token_store(*sys.argv[1:], batch_size=4, num_workers=0, quiet=True)\n"
    )
    words = [sys.executable, "-c", code, str(stores[0]), str(palette), str(tmp_path / "killed")]
    process = subprocess.Popen(words)
    deadline = time.monotonic() + 60
    while not (tmp_path / "killed" / ".tokens-000001.parquet").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "tokens.parquet").exists()
    (tmp_path / "killed" / "tokens-000001.npy").unlink()  # as if the sidecar alone had reached the disk
    store(stores[0], palette, tmp_path / "killed", batch_size=4)
    store(stores[0], palette, tmp_path / "straight", batch_size=4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


@pytest.mark.parametrize(
    "how, telling",
    [
        ({"crops": 2}, "holds a token store with crops 1, not 2"),
        ({"seed": 1}, "with seed 0, not 1"),
        ({"batch_size": 8}, "with batch_size 16, not 8"),
        ({"scale": (0.5, 1.0)}, r"with scale None, not \[0.5, 1.0\]"),
        ({"data": 0}, "of another index"),
        ({"tokenizer": "other"}, "of another tokenizer"),
    ],
)
def test_a_store_of_something_else_is_refused(how, telling, stores, palette, tmp_path, request):
    store(stores[1], palette, tmp_path / "t")
    if how.get("tokenizer"):
        tokenizer, card = load_tokenizer(palette)
        tokenizer.quantizer.codebook[0] += 1
        save_weights(tmp_path / "other", tokenizer, card)
        how = {"tokenizer": tmp_path / "other"}
    if "data" in how:
        how = {"data": stores[0]}
    words = {"data": stores[1], "tokenizer": palette, "out": tmp_path / "t"} | how
    with pytest.raises(InputError, match=telling):
        store(**words)
    (tmp_path / "t" / "tokens.parquet").unlink()  # neither is one of unknown origin added to
    with pytest.raises(InputError, match="shards of unknown origin"):
        store(**words)


@pytest.mark.parametrize(
    "how, telling",
    [
        ({"crops": 0}, "crops is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"scale": (0.0, 2.0)}, "crop scale"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"data": "nowhere"}, "nowhere does not exist"),
        ({"tokenizer": "nowhere"}, "nowhere"),
        ({"device": "abacus"}, "device abacus cannot be used"),
    ],
)
def test_bad_words_are_named(how, telling, stores, palette, tmp_path):
    with pytest.raises(InputError, match=telling):
        store(**{"data": stores[1], "tokenizer": palette, "out": tmp_path / "t"} | how)
    assert not (tmp_path / "t").exists()


def test_other_versions_and_torn_folders_are_refused_by_name(stores, palette, tmp_path):
    store(stores[1], palette, tmp_path / "t")
    tokens = TokenStore(tmp_path / "t")
    (tmp_path / "t" / "tokens-000000.npy").write_bytes((tmp_path / "t" / "tokens-000000.npy").read_bytes()[:200])
    with pytest.raises(InputError, match=r"tokens-000000\.npy is cut short"):
        tokens.tokens(0)
    (tmp_path / "t" / "tokens-000000.npy").unlink()
    with pytest.raises(InputError, match=r"tokens-000000\.npy is missing"):
        tokens.tokens(0)
    table = pq.read_table(tmp_path / "t" / "tokens.parquet")
    newer = table.replace_schema_metadata(table.schema.metadata | {b"headcam.version": b"2"})
    pq.write_table(newer, tmp_path / "t" / "tokens.parquet")
    with pytest.raises(InputError, match="token store table of version 2, this headcam reads version 1"):
        TokenStore(tmp_path / "t")
    with pytest.raises(InputError, match=r"holds no token store \(tokens.parquet is missing\)"):
        TokenStore(stores[0])


def test_what_cannot_be_decoded_is_listed_and_the_others_keep_their_tokens(stores, palette, tmp_path, small_shards):
    torn = shutil.copytree(stores[0], tmp_path / "torn")
    frames = FrameStore(torn)
    for k in (1, 30):
        with open(torn / f"frames-{frames.shard[k]:06d}.tar", "r+b") as file:
            file.seek(int(frames.offset[k]))
            file.write(bytes(int(frames.length[k])))
    whole = store(stores[0], palette, tmp_path / "whole", crops=2)
    result = store(torn, palette, tmp_path / "t", crops=2)
    assert (whole.samples, result.samples, len(result.skipped)) == (80, 76, 2) and not whole.skipped
    assert [skip.recording for skip in result.skipped] == [frames.recordings[frames.recording[k]] for k in (1, 30)]
    assert all("could not be decoded" in skip.reason for skip in result.skipped)
    with open(tmp_path / "t" / "skipped.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 2
    tokens, all_tokens = TokenStore(tmp_path / "t"), TokenStore(tmp_path / "whole")
    assert sorted(set(range(80)) - set(tokens.sample.tolist())) == [2, 3, 60, 61]
    for i, sample in enumerate(tokens.sample):
        assert np.array_equal(tokens.tokens(i), all_tokens.tokens(int(sample)))
    with pytest.raises(InputError, match="none of the data could be decoded: picture"):
        for k in range(40):
            with open(torn / f"frames-{frames.shard[k]:06d}.tar", "r+b") as file:
                file.seek(int(frames.offset[k]))
                file.write(bytes(int(frames.length[k])))
        store(torn, palette, tmp_path / "nothing")


@pytest.mark.parametrize("vocab_size, dtype", [(1 << 16, np.uint16), ((1 << 16) + 1, np.uint32)])
def test_codes_take_two_bytes_while_they_fit(vocab_size, dtype, recordings, palette, tmp_path, clip_tokenizer):
    clip_tokenizer.quantizer.codebook_size = vocab_size
    clip_tokenizer.encode = lambda pixels: torch.full((len(pixels), 2, 2, 2), vocab_size - 1)
    store(recordings[1], palette, tmp_path)
    assert np.load(tmp_path / "tokens-000000.npy").dtype == dtype
    assert TokenStore(tmp_path).tokens(1).tolist() == np.full((2, 2, 2), vocab_size - 1).tolist()


@pytest.mark.parametrize("stored", [False, True], ids=["index", "clip store"])
def test_clips_are_those_of_verified_seconds_one_a_stride(stored, recordings, palette, tmp_path, clip_tokenizer):
    folder = tmp_path / "media"
    shutil.copytree(recordings[0].parent, folder)
    index = folder / recordings[0].name
    table = read_recordings(index)
    names, paths = (table[column].to_pylist() for column in ("recording", "path"))
    bad = {"recording": names[1], "start_s": 8.0, "end_s": 10.0, "reason": "black", "measure": 1.0}
    write_quarantine([bad], quarantine_path(index), recordings_hash(table), {})
    data = index
    if stored:
        store_clips(index, tmp_path / "clips", processes=1, quiet=True)
        data = tmp_path / "clips"
    result = store(data, palette, tmp_path / "t", step_s=0.5, stride_s=1.5)
    tokens = TokenStore(tmp_path / "t")
    assert result.verified and tokens.grid == (2, 2, 2) and (tokens.span_s == 2.0).all()
    at = {tokens.recordings[k]: tokens.time_s[tokens.recording == k].round(9).tolist() for k in range(3)}
    ends = [1.5 * k for k in range(15)]  # 24 s: the last clip of 2 s starts at 21
    assert at[names[0]] == ends
    assert at[names[1]] == [0, 1.5, 3, 4.5, 6, 10, 11.5, 13, 14.5, 16, 17.5, 19, 20.5, 22]
    # Every second from the first clip's start to the last one's end, once.
    assert result.hours * 3600 == pytest.approx(23 + 8 + 14 + 23)
    for i in range(0, len(tokens), 11):
        name = tokens.recordings[tokens.recording[i]]
        if stored:
            found = ClipStore(data).frames_at(name, clip_times(tokens.time_s[i], 4, 0.5))
            images = [frame.image for frame in found]
        else:
            with open_reader(paths[names.index(name)], short_side=SIDE) as reader:  # no larger than is needed
                images = read_clips(reader, [tokens.time_s[i]], 4, 0.5)[0][0]
        box = Box(tokens.left[i], tokens.top[i], tokens.width[i], tokens.height[i])
        (clip,) = cut_clip(images, (96, 72), [Cut(box, (SIDE, SIDE))])
        wanted = clip.reshape(2, 2, 2, 4, 2, 4, 3).astype(float).mean((1, 3, 5, 6))
        assert np.abs(tokens.tokens(i) - wanted).max() <= 0.5


def test_a_manifest_restricts_clips_to_those_that_lie_in_it_whole(recordings, palette, tmp_path, clip_tokenizer):
    table = read_recordings(recordings[0])
    name = table["recording"][2].as_py()
    stretches = ((1.0, 6.5), (9.0, 10.0))
    manifest = Manifest({name: 6.5}, {name: stretches}, recordings_hash=recordings_hash(table))
    manifest.write(tmp_path / "m.json")
    result = store(recordings[0], palette, tmp_path / "t", step_s=0.5, manifest=tmp_path / "m.json")
    tokens = TokenStore(tmp_path / "t")
    assert tokens.recordings == (name,) and tokens.time_s.tolist() == [1.0, 3.0] and result.hours * 3600 == 4
    assert tokens.metadata["manifest_hash"] == manifest.hash
    with pytest.raises(InputError, match="made with a manifest"):
        store(recordings[0], palette, tmp_path / "t", step_s=0.5)


@pytest.mark.parametrize("stride_s", [None, 0.4, 1.0, 3.7, 100.0])
def test_clips_stay_in_their_stretch_and_their_seconds_count_once(stride_s):
    rng = np.random.default_rng(0)
    lasting = np.sort(rng.uniform(2, 30, 40))
    lasting[0] = 2.0  # just as long as a clip
    starts = np.cumsum(rng.uniform(31, 40, 40))
    units = StretchUnits(
        recording=np.zeros(40, np.int32),
        start_s=starts,
        end_s=starts + lasting,
        unit_seconds=1e9,
        width=np.array([96], np.int32),
        height=np.array([72], np.int32),
        row=np.array([0]),
        facts=RecordingFacts.unknown(["r"]),
    )
    source = SimpleNamespace(units=units, num_frames=4, step_s=0.5)
    moments = clip_moments(source, stride_s)
    stride = 2.0 if stride_s is None else stride_s
    for k in range(40):
        own = moments.unit == k
        first = moments.time_s[own]
        assert first == pytest.approx(starts[k] + stride * np.arange(own.sum()))
        assert first[-1] + 2 <= starts[k] + lasting[k] + 1e-5 < first[-1] + stride + 2 + 1e-4
        ends = first + moments.seconds[own]
        assert (ends[:-1] <= first[1:] + 1e-9).all() and ends[-1] <= starts[k] + lasting[k] + 1e-9
        if stride <= 2:
            assert moments.seconds[own].sum() == pytest.approx(first[-1] + 2 - starts[k]), "all that is shown, once"
        # The source turns the time that it is asked for into this very start.
        room = max(0.0, lasting[k] - 2)
        assert starts[k] + (moments.asked_s[own] - starts[k]) * room / lasting[k] == pytest.approx(first, abs=1e-5)


def test_a_stride_of_no_length_is_refused(recordings, palette, tmp_path, clip_tokenizer):
    with pytest.raises(InputError, match=r"stride_s is 0.0. Fix: give seconds above 0, such as 2"):
        store(recordings[1], palette, tmp_path, step_s=0.5, stride_s=0.0)


def test_a_store_is_read_by_several_processes(stores, palette, tmp_path):
    import pickle

    store(stores[1], palette, tmp_path)
    tokens = TokenStore(tmp_path)
    first = tokens.tokens(0)
    again = pickle.loads(pickle.dumps(tokens))
    assert not again._shards and np.array_equal(again.tokens(0), first)
