"""Generated labelled folders and a small checkpoint, for all tests of the evaluation."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headcam.files import sha256_file
from headcam.randomness import stream
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoregression.gpt import GPT

_SIDE = 24


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The matrices here are small: a second thread waits more than it works, most of all beside other processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write_pictures() -> Callable[[Path, dict[str, int]], Path]:
    """Writes `count` noisy PNG pictures of each class, whose mean colour tells the class; no two files are equal."""

    def write(folder: Path, classes: dict[str, int], first: int = 0) -> Path:
        for label, (name, count) in enumerate(classes.items()):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                rng = stream(0, f"picture {label}", first + i)
                colour = 60 + 50 * np.array([label % 3, label // 3 % 3, label // 9])
                pixels = np.clip(colour + rng.normal(0, 40, (_SIDE, _SIDE, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{first + i}.png")
        return folder

    return write


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A run folder with the weights of a small ViT (32 pixels, patch 8), and its card."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        encoder = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    folder = tmp_path / "run"
    card = {
        "contract": "card",
        "version": 1,
        "name": "small",
        "architecture": {"class": "VisionTransformer", "arguments": encoder.arguments},
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "img_size": [32, 32],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "hours": 0.5,
        "samples_seen": 1000,
    }
    folder.mkdir()
    save_weights(folder, encoder, card)
    return folder


@pytest.fixture
def gpt_run(tmp_path: Path) -> Path:
    """A run folder with a small GPT of 3 blocks on 8 x 8 palette tokens, and its tokenizer as it lies in one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        gpt = GPT(27, (8, 8), embed_dim=16, depth=3, num_heads=2)
    tokenizer = PaletteTokenizer(8, 27)
    levels = torch.tensor([40.0, 128.0, 215.0])
    tokenizer.quantizer.codebook.copy_(torch.cartesian_prod(levels, levels, levels))
    folder = tmp_path / "gpt"
    for place, model, more in ((folder / "tokenizer", tokenizer, {}), (folder, gpt, {"img_size": [8, 8]})):
        card = {
            "contract": "card",
            "version": 1,
            "name": "tiny",
            "architecture": {"class": type(model).__name__, "arguments": model.arguments},
            **more,
        }
        save_weights(place, model, card)
    hash_of_tokenizer = sha256_file(folder / "tokenizer" / "weights.safetensors")
    save_weights(folder, gpt, {**card, "tokenizer": {"hash": hash_of_tokenizer}})
    return folder
