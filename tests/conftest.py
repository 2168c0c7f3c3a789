"""What several tests share: a small frame store and a config for runs of some seconds."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml


def smooth_picture(rng: np.random.Generator, height: int = 72, width: int = 96) -> np.ndarray:
    """A colourful blurred picture, (height, width, 3) uint8: compresses well and is easy to tell apart."""
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def write_pictures(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        cv2.imwrite(str(folder / f"{k:03d}.png"), smooth_picture(rng))
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small operations on several threads of a busy machine are slower by far than on one."""
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


@pytest.fixture(scope="session")
def stores(tmp_path_factory) -> tuple[Path, Path]:
    """Frame stores of 40 pictures to train on and 10 held out."""
    from headcam.video.index import index
    from headcam.video.stores.frame_store import store

    root = tmp_path_factory.mktemp("stores")
    for name, count, seed in (("train", 40, 0), ("val", 10, 1)):
        write_pictures(root / "pictures" / name, count, seed)
        index(root / "pictures" / name, root / f"{name}.parquet", processes=1)
        store(root / f"{name}.parquet", root / f"store_{name}", processes=1)
    return root / "store_train", root / "store_val"


def write_clip(path: Path, seconds: int, seed: int, rate: int = 10) -> Path:
    """A video in which a colourful picture drifts to the left: every frame differs, and so does every video."""
    import av

    wide = smooth_picture(np.random.default_rng(seed), height=72, width=96 + 2 * seconds * rate)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "28"})
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for k in range(seconds * rate):
            picture = np.ascontiguousarray(wide[:, 2 * k : 2 * k + 96])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> tuple[Path, Path]:
    """Indexes of three videos to train on (24 s each) and one held out (6 s)."""
    from headcam.video.index import index

    root = tmp_path_factory.mktemp("recordings")
    for name, seeds in (("train", (0, 1, 2)), ("val", (3,))):
        (root / name).mkdir()
        seconds = 24 if name == "train" else 6
        for seed in seeds:
            write_clip(root / name / f"{seed}.mp4", seconds, seed)
        index(root / name, root / f"{name}.parquet", processes=1)
    return root / "train.parquet", root / "val.parquet"


@pytest.fixture
def fit_config(stores, tmp_path):
    """Function that writes a config of a small run and returns its path; keyword arguments change it."""

    def write(
        name: str = "run", model: dict | None = None, data: dict | None = None, trainer: dict | None = None
    ) -> Path:
        config = {
            "seed_everything": 0,
            "model": {
                "class_path": "headcam.ssl.mae.MAE",
                "init_args": {
                    "size": "ti",
                    "img_size": 32,
                    "patch_size": 8,
                    "depth": 2,
                    "decoder_embed_dim": 32,
                    "decoder_depth": 2,
                    "decoder_num_heads": 4,
                    "optimizer": {"lr": 0.002, "base_lr_per_256": None, "warmup_steps": 5},
                }
                | (model or {}),
            },
            "data": {
                "class_path": "headcam.video.data_module.FrameDataModule",
                "init_args": {"train": [str(stores[0])], "val": [str(stores[1])], "batch_size": 8, "num_workers": 0}
                | (data or {}),
            },
            "trainer": {
                "max_steps": 12,
                "val_check_interval": 6,
                "log_every_n_steps": 1,
                "accelerator": "cpu",
                "gradient_clip_val": 1.0,
            }
            | (trainer or {}),
            "checkpoint_every": 6,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture(scope="session")
def headcam():
    """Function that runs the `headcam` command in a process of its own, as a user would, and returns what it did."""

    def run(*arguments: str | Path, cwd: Path | None = None, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [sys.executable, "-m", "headcam", *map(str, arguments)],
            cwd=cwd,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
