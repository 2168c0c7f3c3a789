"""Looking inside a trained model: pictures of what it completes and of what it attends to (`headcam show`).

Pictures come from the user's own data and stay where `out` says. Which frames are shown follows from the seed alone.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.ssl.looking.attention_maps import class_attention
from headcam.ssl.looking.masks import MASK_KINDS, MaskKind, directed_noise
from headcam.ssl.looking.tiles import attention_tiles, comparison, save_png
from headcam.ssl.restore import load_objective
from headcam.ssl.weights import load_encoder
from headcam.video.items import open_items
from headcam.video.transforms import normalize

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def completions(
    run: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    masks: Sequence[MaskKind] = ("random", "centre"),
    mask_ratio: float | None = None,
    num: int = 8,
    step_s: float = 8 / 30,
    seed: int = 0,
) -> list[Path]:
    """Write a picture of completions for each kind of mask: `OUT/completions-KIND.png`.

    Args:
        run: run folder or checkpoint of a masked autoencoder, for images or for clips.
        data: frame store, clip store, file of `headcam index`, or (images only) a folder of pictures.
        out: folder.
        masks: see `headcam.ssl.looking.masks`.
        mask_ratio: another one than the model was trained with.
        num: samples.
        step_s: seconds between the frames of a clip.
        seed: of the choice of samples and of random masks.
    Raises:
        InputError: a model that completes nothing, data that cannot be used, an unknown mask.
    """
    for kind in masks:
        if kind not in MASK_KINDS:
            raise InputError(f"mask {kind!r} is unknown", f"use of {', '.join(MASK_KINDS)}")
    objective, card = load_objective(run)
    if not hasattr(objective, "reconstruct"):
        raise InputError(f"{run} is a run of {objective.name}, which completes nothing", "give one of mae or stmae")
    encoder = objective.encoder
    images = open_items(data, encoder.img_size, encoder.num_frames, num=num, step_s=step_s, seed=seed).stacked()
    noise = torch.from_numpy(
        np.stack([stream(seed, "show", i).random(encoder.num_patches, dtype=np.float32) for i in range(len(images))])
    )
    if mask_ratio is not None:
        objective.network.set_mask_ratio(mask_ratio)
    files = []
    for kind in masks:
        batch = {objective.views[0].name: images, "noise": directed_noise(kind, noise, encoder.grid)}
        with torch.no_grad():
            pictures = objective.reconstruct(batch)
        files.append(Path(out) / f"completions-{kind}.png")
        save_png(files[-1], comparison(pictures, card["mean"], card["std"], encoder.tubelet_size))
    return files


def attention(
    source: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    img_size: int | None = None,
    block: int = -1,
    num: int = 4,
    step_s: float = 8 / 30,
    seed: int = 0,
) -> Path:
    """Write a picture of the class token's attention, head by head: `OUT/attention.png`.

    Args:
        source: run folder, weights with their card, or checkpoint, of a Vision Transformer.
        data: as in `completions`.
        out: folder.
        img_size: side in pixels to look at, such as 896; None: the model's own.
        block: number of the block, negative from the last.
        num, step_s, seed: as in `completions`.
    Raises:
        InputError: an encoder without attention, data that cannot be used, a size that the patch does not divide.
    """
    encoder, card = load_encoder(source)
    size = tuple(card["img_size"]) if img_size is None else (img_size, img_size)
    num_frames = getattr(encoder, "num_frames", 1)
    images = open_items(data, size, num_frames, num=num, step_s=step_s, seed=seed).stacked()
    pixels = normalize(images, card["mean"], card["std"])
    maps = torch.cat([class_attention(encoder, one[None], block) for one in pixels])
    path = Path(out) / "attention.png"
    tubelet_size = getattr(encoder, "tubelet_size", 1)
    save_png(path, attention_tiles(pixels, maps, card["mean"], card["std"], tubelet_size))
    return path
