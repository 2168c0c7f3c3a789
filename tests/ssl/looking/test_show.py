"""`headcam show`: the pictures that it writes, looked at as numbers."""

import numpy as np
import pytest
from PIL import Image

from headcam.cli import main


@pytest.fixture(scope="module")
def runs(stores, recordings, tmp_path_factory):
    """A run of each masked autoencoder, some steps long."""
    root = tmp_path_factory.mktemp("runs")
    small = ["--model.embed_dim=64", "--model.depth=2", "--model.num_heads=4", "--model.decoder_embed_dim=32",
             "--model.decoder_depth=1", "--model.decoder_num_heads=4", "--model.img_size=32", "--model.patch_size=8",
             "--data.batch_size=4", "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.max_steps=2",
             "--trainer.enable_progress_bar=false", "--trainer.precision=32-true"]  # fmt: skip
    image = ["--model=headcam.ssl.mae.MAE", f"--data.train=[{stores[0]}]"]
    clip = [
        "--model=headcam.ssl.stmae.STMAE",
        "--model.num_frames=4",
        f"--data.train=[{recordings[0]}]",
        "--data.step_s=0.1",
    ]
    data = ["--data=headcam.video.data_module.FrameDataModule"]
    for name, own in (("image", image), ("clip", clip)):
        assert main(["fit", own[0], *data, *small, *own[1:], "--out", str(root / name)]) == 0
    return root


def tiles(path, size: int, columns: int, rows: int, label: int = 0) -> np.ndarray:
    """The pixels of a picture as (rows, columns, size, size, 3), frames of white cut off."""
    picture = np.asarray(Image.open(path))
    assert picture.shape == (rows * (size + 4 + label), columns * (size + 4), 3)
    picture = picture.reshape(rows, size + 4 + label, columns, size + 4, 3).transpose(0, 2, 1, 3, 4)
    return picture[:, :, 2 + label : -2, 2:-2]


def test_completions_of_images(runs, stores, tmp_path, capsys):
    command = [
        "show",
        "completions",
        str(runs / "image"),
        "--data",
        str(stores[1]),
        "--out",
        str(tmp_path),
        "--num",
        "3",
    ]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / f"completions-{k}.png") for k in ("random", "centre")
    ]
    truth, shown, made = tiles(tmp_path / "completions-centre.png", 32, columns=3, rows=3)
    hidden = np.zeros((32, 32), bool)
    hidden[8:24, 8:24] = True  # the inner 2 x 2 of 4 x 4 patches are among the 12 hidden ones
    visible = np.abs(shown.astype(int) - truth).max(axis=-1) <= 1  # a hidden pixel may have the mean colour by chance
    assert (visible.reshape(3, 4, 8, 4, 8).all(axis=(2, 4)).sum(axis=(1, 2)) == 4).all()
    assert visible[:, hidden].mean() < 0.05
    patches = visible.reshape(3, 4, 8, 4, 8).all(axis=(2, 4), keepdims=True)
    seen = np.broadcast_to(patches, (3, 4, 8, 4, 8)).reshape(3, 32, 32)
    assert np.abs(made.astype(int) - truth)[seen].max() <= 1  # what was shown stays as it is


def test_completions_of_clips_show_a_frame_of_each_slot(runs, recordings, tmp_path):
    command = ["show", "completions", str(runs / "clip"), "--data", str(recordings[1]), "--out", str(tmp_path)]
    assert main([*command, "--num", "2", "--masks", "[temporal]", "--mask_ratio", "0.5", "--step_s", "0.1"]) == 0
    found = tiles(tmp_path / "completions-temporal.png", 32, columns=2, rows=6)
    assert np.array_equal(found[0, 0], found[1, 0]) and not np.array_equal(found[0, 1], found[1, 1])


def test_attention_of_images_at_another_resolution_and_of_clips(runs, stores, recordings, tmp_path):
    show = ["show", "attention", "--num", "2", "--out"]
    assert main([*show, str(tmp_path / "a"), str(runs / "image"), "--data", str(stores[1]), "--img_size", "64"]) == 0
    found = tiles(tmp_path / "a" / "attention.png", 64, columns=2 + 4, rows=2, label=15)
    assert all(found[0, k].std() > 0 for k in range(6)) and not np.array_equal(found[0, 2], found[0, 3])
    clip = [*show, str(tmp_path / "c"), str(runs / "clip"), "--data", str(recordings[1]), "--step_s", "0.1"]
    assert main(clip) == 0
    tiles(tmp_path / "c" / "attention.png", 32, columns=2 + 4, rows=4, label=15)


def test_bad_input_is_one_line(runs, stores, tmp_path, capsys):
    image = ["show", "completions", str(runs / "image"), "--data", str(stores[1]), "--out", str(tmp_path)]
    for command, message in (
        ([*image, "--masks", "[temporal]"], "a temporal mask needs a model for clips"),
        ([*image, "--num", "0"], "0 items of "),
        ([*image, "--mask_ratio", "1.5"], "mask_ratio must be in [0, 1), got 1.5"),
        ([*image[:2], str(tmp_path), *image[3:]], "config.yaml does not exist"),
        (["show", "attention", *image[2:], "--img_size", "33"], "patch_size 8 does not divide the image side 33"),
    ):
        assert main(command) == 2
        assert message in capsys.readouterr().err
