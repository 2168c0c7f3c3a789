"""What a trained GPT draws and what surprises it, as files to look at (`headcam sample`).

    free          samples out of nothing                      free.png            (clips: also .gif and .mp4)
    half          picture, its upper half, completions        half.png
    continuation  true clip beside continuations of its start continue.gif, .mp4, continue.png (a film strip)
    surprise      photo beside bits per token                 surprise.png

Pictures come from the user's own data and stay where `out` says. Which ones are shown, and what is drawn, follows from
the seed alone.

The upper half of a picture is the upper rows of its tokens. Tokens of most tokenizers see beyond their own square, so
those of the rows just above the middle know something of what is below them (a tokenizer with attention: of all of it).
Clips are clean of that: only the given frames are encoded, and no token of a causal tokenizer sees later frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.files import atomic_file
from headcam.progress import Progress
from headcam.ssl.looking.tiles import save_png
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.autoregression.pictures import (
    animation,
    save_figure,
    sheet,
    surprise_figure,
    write_gif,
    write_mp4,
)
from headcam.tokenizers.autoregression.sampling import Sampling, sample
from headcam.tokenizers.autoregression.scoring import Scorer
from headcam.video.items import open_items

_HIDDEN = 128  # grey level of what is not given


@dataclass(frozen=True)
class Shown:
    """What was written.

    Attributes:
        files: the last is the one to open.
        tokens: (num, *grid) of free samples, (num, completions, *grid) of completions and continuations, (num, *grid)
            of the pictures that surprise was looked at; int64.
        notes: what has to be said about them, a line each.
    """

    files: tuple[Path, ...]
    tokens: np.ndarray
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn; see `headcam.tokenizers.autoregression.sampling.sample`."""

    settings: Sampling
    label: int | None = None
    seed: int = 0
    batch_size: int = 16
    quiet: bool = False

    def draw(self, gpt: GPT, num: int, prompts: Sequence[Tensor | None]) -> Tensor:
        """`num` samples of each prompt: (prompts, num, *grid). Sample k of prompt i is drawn as number i * num + k."""
        given = [0 if prompt is None else prompt.numel() for prompt in prompts]
        steps = num * sum(gpt.num_tokens - n for n in given)
        with Progress("sampling", steps, "tokens", self.quiet) as progress:
            made = [
                sample(
                    gpt,
                    num,
                    prompt=prompt,
                    label=self.label,
                    settings=self.settings,
                    seed=self.seed,
                    batch_size=self.batch_size,
                    first=i * num,
                    progress=progress,
                )
                for i, prompt in enumerate(prompts)
            ]
        return torch.stack(made)


def free(gpt: GPT, tokenizer: Tokenizer, out: str | Path, drawing: Drawing, *, num: int = 16, step_s: float) -> Shown:
    """Write `num` samples of nothing given: a sheet, and of clips an animation and a film strip a row.

    Args:
        gpt, tokenizer: see `load_gpt_and_tokenizer`.
        out: folder.
        num: samples.
        step_s: seconds between the frames of a clip, for the speed of animations.
    """
    tokens = drawing.draw(gpt, num, [None])[0]
    pixels = decoded(tokenizer, tokens, drawing.batch_size)
    notes = (
        () if gpt.start != "none" else ("the model has no start token: the first token of each was drawn uniformly",)
    )
    if tokenizer.num_frames == 1:
        path = Path(out) / "free.png"
        columns = int(np.ceil(np.sqrt(num)))
        save_png(path, sheet([list(pixels[k : k + columns]) for k in range(0, num, columns)]))
        return Shown((path,), tokens.numpy(), notes)
    named = [f"sample {k + 1}" for k in range(num)]
    files = _write_clips(Path(out) / "free", [list(pixels)], [named] * tokenizer.num_frames, named, step_s)
    return Shown(files, tokens.numpy(), notes)


def half(
    gpt: GPT,
    tokenizer: Tokenizer,
    data: str | Path,
    out: str | Path,
    drawing: Drawing,
    *,
    num: int = 4,
    completions: int = 4,
    given: int | None = None,
) -> Shown:
    """Write pictures completed from their upper rows: picture, what its tokens keep, what was given, completions.

    Args:
        gpt, tokenizer: of pictures.
        data: frame store, file of `headcam index`, or folder of pictures.
        out: folder.
        num: pictures.
        completions: of each.
        given: rows of tokens; None: half of them.
    Raises:
        InputError: a model of clips, rows that leave nothing given or to be completed.
    """
    if tokenizer.num_frames > 1:
        raise InputError("half completes pictures, and this is a model of clips", "use headcam sample continue")
    rows = tokenizer.grid[0] // 2 if given is None else given
    if not 0 < rows < tokenizer.grid[0]:
        raise InputError(
            f"{rows} of {tokenizer.grid[0]} rows of tokens cannot be given", f"give 1 to {tokenizer.grid[0] - 1}"
        )
    pixels = open_items(data, tokenizer.img_size, num=num, seed=drawing.seed).stacked()
    tokens = encoded(tokenizer, pixels, drawing.batch_size)
    made = drawing.draw(gpt, completions, [one[:rows].flatten() for one in tokens])
    pictures = pixels.permute(0, 2, 3, 1).numpy()
    shown = pictures.copy()
    shown[:, rows * tokenizer.img_size[0] // tokenizer.grid[0] :] = _HIDDEN
    drawn = decoded(tokenizer, made.flatten(0, 1), drawing.batch_size).reshape(len(made), completions, *shown.shape[1:])
    kept = decoded(tokenizer, tokens, drawing.batch_size)  # the best that a completion could be
    path = Path(out) / "half.png"
    labels = ["picture", "its tokens", "given", *(f"completion {k + 1}" for k in range(completions))]
    save_png(path, sheet([[*some, *more] for *some, more in zip(pictures, kept, shown, drawn)], labels))
    return Shown((path,), made.numpy())


def continuation(
    gpt: GPT,
    tokenizer: Tokenizer,
    data: str | Path,
    out: str | Path,
    drawing: Drawing,
    *,
    num: int = 4,
    completions: int = 4,
    given: int | None = None,
    step_s: float,
) -> Shown:
    """Write clips continued from their first frames, beside the true clips, as animations and a film strip.

    Args:
        gpt, tokenizer: of clips.
        data: clip store or file of `headcam index`.
        out: folder.
        num: clips.
        completions: of each.
        given: frames, whole time slots of the tokenizer; None: half of the clip, rounded down to whole slots.
        step_s: seconds between two frames, as the model was trained on.
    Raises:
        InputError: a model of pictures, frames that are no whole slots, or that leave nothing to be continued.
    """
    frames, slot = tokenizer.num_frames, tokenizer.tubelet_size
    if frames == 1:
        raise InputError("continue continues clips, and this is a model of pictures", "use headcam sample half")
    given = max(1, tokenizer.grid[0] // 2) * slot if given is None else given
    if given % slot or not 0 < given < frames:
        raise InputError(
            f"{given} of {frames} frames cannot be given",
            f"give a multiple of {slot} (a token's frames), {slot} to {frames - slot}",
        )
    pixels = open_items(data, tokenizer.img_size, frames, num=num, step_s=step_s, seed=drawing.seed).stacked()
    prompts = encoded(tokenizer, pixels[:, :, :given], drawing.batch_size)  # these frames only
    made = drawing.draw(gpt, completions, [one.flatten() for one in prompts])
    true = pixels.permute(0, 2, 3, 4, 1).numpy()
    drawn = decoded(tokenizer, made.flatten(0, 1), drawing.batch_size).reshape(len(made), completions, *true.shape[1:])
    labels = [
        ["true clip", *(f"{k + 1}: {'given' if frame < given else 'continued'}" for k in range(completions))]
        for frame in range(frames)
    ]
    rows = [[truth, *some] for truth, some in zip(true, drawn)]
    names = [
        f"clip {i + 1}, {'true' if not k else f'sample {k}'}" for i in range(len(rows)) for k in range(len(rows[i]))
    ]
    return Shown(_write_clips(Path(out) / "continue", rows, labels, names, step_s, given), made.numpy())


def surprise(
    gpt: GPT,
    tokenizer: Tokenizer,
    data: str | Path,
    out: str | Path,
    *,
    num: int = 4,
    label: int | None = None,
    seed: int = 0,
    step_s: float,
) -> Shown:
    """Write pictures or clips beside their maps of surprise, in bits per token.

    Args:
        data: frame store, clip store, file of `headcam index`, or folder of pictures.
        label: class that all of them are scored under, for models with a class token.
    """
    scorer = Scorer(gpt, tokenizer)
    pixels = open_items(data, tokenizer.img_size, tokenizer.num_frames, num=num, step_s=step_s, seed=seed).stacked()
    labels = None if label is None else torch.full((len(pixels),), label)
    nats = scorer.surprise(pixels, labels)
    path = Path(out) / "surprise.png"
    save_figure(path, surprise_figure(pixels.movedim(1, -1).numpy(), nats.numpy()))
    return Shown((path,), scorer.tokens(pixels).numpy(), () if scorer.omitted is None else (scorer.omitted,))


def encoded(tokenizer: Tokenizer, pixels: Tensor, batch_size: int) -> Tensor:
    """uint8 (B, 3, ...) -> int64 (B, *grid) on the CPU, some at a time."""
    device = next(tokenizer.parameters(), next(tokenizer.buffers(), torch.empty(0))).device
    return torch.cat([tokenizer.encode(some.to(device)).cpu() for some in pixels.split(batch_size)])


def decoded(tokenizer: Tokenizer, tokens: Tensor, batch_size: int) -> np.ndarray:
    """int64 (B, *grid) -> uint8 (B, H, W, 3) or (B, T, H, W, 3), some at a time."""
    device = next(tokenizer.parameters(), next(tokenizer.buffers(), torch.empty(0))).device
    pixels = torch.cat([tokenizer.decode(some.to(device)).cpu() for some in tokens.split(batch_size)])
    return pixels.movedim(1, -1).numpy()


def save_tokens(path: str | Path, tokens: np.ndarray) -> None:
    """Write tokens as .npy, in the smallest unsigned type that a token store would use; whole or not at all."""
    with atomic_file(path) as file:
        np.save(file, tokens.astype(np.uint16 if tokens.max(initial=0) < 1 << 16 else np.uint32))


def _write_clips(
    stem: Path, rows: list[list[np.ndarray]], labels: list[list[str]], names: list[str], step_s: float, given: int = 0
) -> tuple[Path, ...]:
    """`stem`.mp4, .gif and .png: an animation of all clips, and a film strip with a row for each clip.

    `labels` are those of the columns of the animation at each frame, `names` those of the clips.
    """
    moving = animation(rows, labels)
    files = tuple(stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "mp4", "gif"))
    strip = [list(clip) for row in rows for clip in row]
    times = [f"{k * step_s:.2f} s{' given' if k < given else ''}" for k in range(len(labels))]
    save_png(files[0], sheet(strip, times, names))
    write_mp4(files[1], moving, step_s)
    write_gif(files[2], moving, step_s)
    return files
