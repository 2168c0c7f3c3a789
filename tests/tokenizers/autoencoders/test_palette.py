"""Palette tokens against loops in float64: nearest colours, exact round trips, an honest error, refusals."""

import json
import shutil

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.tokenizers.autoencoders.palette import NearestColour, PaletteTokenizer, fit_palette, nearest_colour
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.video.recordings import read_recordings, recordings_hash
from headcam.video.sampling.manifest import Manifest
from headcam.video.stores.frame_store import FrameStore


@pytest.fixture
def tokenizer() -> PaletteTokenizer:
    """512 random colours."""
    made = PaletteTokenizer(8)
    made.quantizer.codebook.copy_(torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (512, 3))))
    return made.eval()


def test_every_token_is_the_nearest_colour_of_its_pixel(tokenizer):
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8))
    tokens = tokenizer.encode(pixels)
    assert tokens.shape == (2, 8, 8) and tokens.dtype == torch.int64
    palette = tokenizer.quantizer.codebook.double().numpy()
    for b, y, x in np.ndindex(2, 8, 8):
        colour = pixels[b, :, y, x].double().numpy()
        distances = [sum((colour[c] - other[c]) ** 2 for c in range(3)) for other in palette]
        assert int(tokens[b, y, x]) == int(np.argmin(distances))


def test_colours_that_hardly_differ_are_told_apart_where_expanded_squares_are_not():
    palette = torch.tensor([[250.0, 250.0, 250.0], [250.0, 250.0, 250.001]])
    assert nearest_colour(palette, palette).tolist() == [0, 1]


def test_more_rows_than_a_chunk_and_any_batch_give_the_same():
    rng = np.random.default_rng(2)
    colours = torch.from_numpy(rng.integers(0, 256, (10_000, 3)).astype(np.float32))
    palette = torch.from_numpy(rng.uniform(0, 255, (33, 3)).astype(np.float32))
    together = nearest_colour(colours, palette)
    exact = ((colours.double()[:, None] - palette.double()) ** 2).sum(-1).argmin(-1)
    assert torch.equal(together, exact)
    assert torch.equal(together[5000:5001], nearest_colour(colours[5000:5001], palette))


def test_colours_to_tokens_and_back_are_exact(tokenizer):
    codes = torch.randperm(512, generator=torch.Generator().manual_seed(0)).view(8, 8, 8)
    colours = tokenizer.quantizer.dequantize(codes)
    assert torch.equal(colours, tokenizer.quantizer.codebook[codes].movedim(-1, 1))
    assert torch.equal(tokenizer.quantizer(colours).indices, codes)
    whole = PaletteTokenizer(8, 64)  # whole-numbered colours come back through pixels as well
    whole.quantizer.codebook.copy_(torch.from_numpy(np.random.default_rng(3).permutation(256)[:192].reshape(64, 3)))
    codes = codes % 64
    pixels = whole.decode(codes)
    assert torch.equal(pixels.float(), whole.quantizer.codebook[codes].movedim(-1, 1))
    assert torch.equal(whole.encode(pixels), codes)


def test_all_grey_levels_survive_normalisation_whoever_does_it():
    from headcam.video.transforms import normalize

    grey = PaletteTokenizer(16, 256)
    grey.quantizer.codebook.copy_(torch.arange(256.0)[:, None].expand(256, 3))
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(grey.encode(levels)[0].flatten(), torch.arange(256))
    latents = grey.latents(normalize(levels, grey.mean, grey.std))
    assert torch.equal(latents, levels.float()), "exactly, so that ties fall alike"
    elsewhere = grey.quantizer(latents).indices
    assert torch.equal(elsewhere[0].flatten(), torch.arange(256))


def test_the_quantizer_keeps_the_contract():
    quantizer = NearestColour(4)
    quantizer.codebook.copy_(torch.arange(12.0).view(4, 3))
    latents = torch.rand(2, 3, 5, 6, requires_grad=True)
    codes = quantizer(latents)
    assert torch.equal(codes.quantized, quantizer.dequantize(codes.indices)) and codes.loss.item() == 0
    codes.quantized.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_a_fitted_palette_loads_as_a_tokenizer_and_its_error_is_of_frames_it_has_not_seen(stores, tmp_path):
    result = fit_palette(stores[0], tmp_path / "p", codebook_size=32, img_size=16, pixels_per_frame=20, quiet=True)
    assert (result.frames, result.held_out_frames, result.pixels) == (36, 4, 720)
    tokenizer, card = load_tokenizer(tmp_path / "p")
    assert isinstance(tokenizer, PaletteTokenizer) and tokenizer.grid == (16, 16) and tokenizer.vocab_size == 32
    assert card["objective"] == "palette" and card["palette"]["mse"] == result.mse
    assert card["palette"]["recordings_hash"] == FrameStore(stores[0]).metadata["recordings_hash"]
    assert len(tokenizer.quantizer.codebook.unique(dim=0)) == 32
    assert 0 < result.mse < 0.3 * result.mse_one_colour
    other = fit_palette(stores[0], tmp_path / "q", codebook_size=32, img_size=16, pixels_per_frame=20, quiet=True)
    assert (tmp_path / "p/weights.safetensors").read_bytes() == (tmp_path / "q/weights.safetensors").read_bytes()
    assert other.mse == result.mse
    more = fit_palette(stores[0], tmp_path / "r", codebook_size=256, img_size=16, pixels_per_frame=20, quiet=True)
    assert more.mse < result.mse


def test_a_palette_is_found_made_and_others_are_refused(stores, tmp_path):
    how = {"codebook_size": 16, "img_size": 16, "quiet": True}
    first = fit_palette(stores[0], tmp_path, **how)
    before = (tmp_path / "card.json").stat().st_mtime_ns
    assert fit_palette(stores[0], tmp_path, **how) == first
    assert (tmp_path / "card.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="a palette of another codebook_size"):
        fit_palette(stores[0], tmp_path, **how | {"codebook_size": 17})
    with pytest.raises(InputError, match="a palette of another recordings_hash"):
        fit_palette(stores[1], tmp_path, **how)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps({k: v for k, v in card.items() if k != "palette"}))
    with pytest.raises(InputError, match="holds other weights"):
        fit_palette(stores[0], tmp_path, **how)


@pytest.mark.parametrize(
    "how, telling",
    [
        ({"codebook_size": 0}, "codebook_size is 0"),
        ({"pixels_per_frame": 300}, "pixels_per_frame is 300, and a frame has 256 pixels"),
        (
            {"codebook_size": 2000},
            r"1152 pixels of 36 frames have \d+ different colours, too few for codebook_size 2000",
        ),
        ({"data": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_bad_settings_are_named(how, telling, stores, tmp_path):
    with pytest.raises(InputError, match=telling):
        fit_palette(**{"data": stores[0], "out": tmp_path, "img_size": 16, "quiet": True} | how)


def test_a_manifest_restricts_the_frames(recordings, tmp_path):
    table = read_recordings(recordings[0])
    name = table["recording"][1].as_py()
    manifest = Manifest({name: 12.0}, {name: ((4.0, 16.0),)}, recordings_hash=recordings_hash(table))
    manifest.write(tmp_path / "m.json")
    how = {"codebook_size": 8, "img_size": 16, "manifest": tmp_path / "m.json", "quiet": True}
    result = fit_palette(recordings[0], tmp_path / "p", **how)
    assert result.frames + result.held_out_frames == 12
    assert load_tokenizer(tmp_path / "p")[1]["manifest_hash"] == manifest.hash


def test_frames_that_cannot_be_decoded_are_said(stores, tmp_path):
    folder = shutil.copytree(stores[0], tmp_path / "torn")
    frames = FrameStore(folder)
    with open(folder / f"frames-{frames.shard[3]:06d}.tar", "r+b") as file:
        file.seek(int(frames.offset[3]))
        file.write(bytes(int(frames.length[3])))
    result = fit_palette(folder, tmp_path / "p", codebook_size=8, img_size=16, quiet=True)
    (skipped,) = result.skipped
    assert skipped.recording == frames.recordings[frames.recording[3]] and "could not be decoded" in skipped.reason
    assert fit_palette(folder, tmp_path / "p", codebook_size=8, img_size=16, quiet=True) == result
