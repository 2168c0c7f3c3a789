"""Reconstruction error as familiarity: masked autoencoders, and tokenizers that encode and decode.

    MAELearner   hidden patches predicted from visible ones: the mean error under a fixed set of masks
    VQLearner    a picture through encoder, codes and decoder: the mean error of its pixels

What a model has learned of a picture, it reconstructs better: the error, which is the score, is lower. Study lowers the
same error by gradient, the masked autoencoder's under random masks (the test's are never singled out), the tokenizer's
together with what its quantizer adds.

Shapes: N pictures, B of a batch, L patches of P values, M of them hidden; pixels uint8 (N, 3, H, W).
"""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.recognition_memory.learners.gpt import check_rows
from headcam.recognition_memory.learners.learner import Learner
from headcam.ssl.mae import MAE, MaskedAutoencoder, normalize_patches
from headcam.ssl.masking import Mask, patchify, unpatchify
from headcam.ssl.restore import load_objective
from headcam.ssl.weights import state_hash
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import Tokenizer, load_tokenizer
from headcam.tokenizers.published.zoo import open_source
from headcam.tokenizers.quantizers.projected import full_precision
from headcam.video.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize


class MAELearner(Learner):
    """A masked autoencoder of pictures (He et al. 2022), encoder and decoder.

    Args:
        source: Run folder of a trained one, or a .ckpt of it; weights alone will not do, they hold the encoder only.
            Null: random weights, which follow from the run's seed; only then the arguments up to `norm_pix_loss` are
            looked at.
        img_size: Pixels, one side or [height, width]; `patch_size` must divide both.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of the encoder.
        depth: Blocks of the encoder.
        num_heads: Attention heads of the encoder.
        decoder_embed_dim: Width of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_num_heads: Attention heads of the decoder.
        mask_ratio: Fraction of patches hidden from the encoder.
        norm_pix_loss: Predict patches normalised by their own mean and deviation. Off here: in pictures of objects on a
            plain ground it makes the noise of compression weigh as much as the object.
        num_masks: Of the test, the same for every picture; see `fixed_masks`.
    Raises:
        InputError: no run there, one of another objective, sizes that do not fit.
    """

    unit = "squared error per patch value"

    def __init__(
        self,
        source: str | None = None,
        img_size: int | tuple[int, int] = 64,
        patch_size: int = 8,
        embed_dim: int = 192,
        depth: int = 4,
        num_heads: int = 3,
        decoder_embed_dim: int = 96,
        decoder_depth: int = 2,
        decoder_num_heads: int = 3,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        num_masks: int = 8,
    ):
        super().__init__()
        if num_masks < 1:
            raise InputError(f"num_masks is {num_masks}", "give at least 1")
        self._source = source
        self._build = partial(
            MaskedAutoencoder,
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            decoder_embed_dim=decoder_embed_dim,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_num_heads,
            mask_ratio=mask_ratio,
            norm_pix_loss=norm_pix_loss,
        )
        self._mean, self._std = IMAGENET_MEAN, IMAGENET_STD
        if source is None:
            self.network = self._unstudied(seed=0)
        else:
            objective, self.card = _trained(source)
            self.network, self._mean, self._std = objective.network, objective.mean, objective.std
            self.origins = {"source": state_hash(self.network)}
        encoder = self.network.encoder
        self.img_size = encoder.img_size
        masks = fixed_masks(encoder.num_patches, self.network.num_visible(encoder.num_patches), num_masks)
        self.register_buffer("masks", masks, persistent=False)  # (num_masks, L)

    def _unstudied(self, seed: int) -> MaskedAutoencoder:
        """The network before study."""
        if self._source is not None:
            return _trained(self._source)[0].network
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._build()

    def begin(self, seed: int, pictures: Tensor) -> None:
        self._check(pictures)
        self.network.load_state_dict(self._unstudied(seed).state_dict())

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """The published loss, under masks drawn from `rng`."""
        noise = rng.random((len(pixels), self.masks.shape[1]), dtype=np.float32)
        return self.network(self._normalized(pixels), torch.from_numpy(noise).to(pixels.device))["loss"]

    @torch.no_grad()
    def scores(self, pixels: Tensor) -> Tensor:
        """Mean squared error of what is hidden, over the fixed masks: (N,) float64.

        Of normalised pixels or, with `norm_pix_loss`, of patches normalised by their own mean and deviation.
        """
        images = self._normalized(pixels)
        patches = patchify(images, self.network.patch_size)  # (N, L, P)
        errors = torch.zeros(len(pixels), dtype=torch.float64)
        with full_precision(pixels):
            for mask in self.masks:
                out = self.network(images, mask.expand(len(pixels), -1))
                target = self.network.target(patches, out["mask"])  # (N, M, P)
                if self.network.norm_pix_loss:
                    target = normalize_patches(target)
                errors += (out["prediction"] - target).square().mean(dim=(1, 2)).double().cpu()
        return errors / len(self.masks)

    @torch.no_grad()
    def complete(
        self, pixels: Tensor, rows: int, rng: np.random.Generator, temperature: float = 1.0, top_k: int | None = 128
    ) -> Tensor:
        """Lower rows predicted from the upper ones, all at once: nothing is drawn, and the last three arguments unused.

        Hiding one side is unlike the scattered masks of training, so expect blurred completions. With `norm_pix_loss`
        the network predicts structure, not brightness. The true mean and deviation of a hidden patch would give away
        what is asked for, so all hidden patches get those that are usual in the given part of the picture.

        Raises:
            InputError: rows that end within a patch, or that give nothing or everything.
        """
        network, p = self.network, self.network.patch_size
        check_rows(rows, self.img_size[0], p, "patches")
        images, grid = self._normalized(pixels), network.encoder.grid
        patches, given = patchify(images, p), rows // p * grid[1]
        ids = torch.arange(patches.shape[1], device=pixels.device).expand(len(pixels), -1)
        mask = Mask(ids[:, :given], ids[:, given:])
        with full_precision(pixels):
            made = network.forward_decoder(network.encoder.forward_patches(patches, mask.ids_keep), mask)
        seen = patches[:, :given]
        if network.norm_pix_loss:
            deviation = (seen.var(dim=-1).mean(dim=1) + 1e-6).sqrt()
            made = made * deviation[:, None, None] + seen.mean(dim=(1, 2))[:, None, None]
        mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (self._mean, self._std))
        completed = unpatchify(torch.cat([seen, made], dim=1), p, grid) * std + mean
        completed = (completed * 255).round().clamp(0, 255).byte()
        completed[:, :, :rows] = pixels[:, :, :rows]
        return completed.cpu()

    def _normalized(self, pixels: Tensor) -> Tensor:
        self._check(pixels)
        return normalize(pixels, self._mean, self._std)

    def _check(self, pixels: Tensor) -> None:
        # The network itself would take any size that patches divide.
        found, wanted = tuple(pixels.shape[1:]), (3, *self.img_size)
        if found != wanted:
            raise InputError(
                f"pixels of {' x '.join(map(str, found))} do not fit a masked autoencoder for "
                f"{' x '.join(map(str, wanted))}",
                "cut and resize to its size",
            )


def fixed_masks(num_patches: int, num_visible: int, num_masks: int) -> Tensor:
    """Masks of a test: (num_masks, L) float32 noise for `random_mask`, 0 where a patch is visible and 1 where not.

    Masks share out the patches: those that are next to each other in the list show different ones, until all have been
    shown, so that a picture is tested on all its parts alike. They follow from the three numbers alone.
    """
    per_round = num_patches // num_visible
    masks = torch.ones(num_masks, num_patches)
    for k in range(num_masks):
        order = stream(0, "memory masks", k // per_round).permutation(num_patches)
        first = k % per_round * num_visible
        masks[k, torch.from_numpy(order[first : first + num_visible])] = 0
    return masks


def _trained(source: str) -> tuple[MAE, dict]:
    if Path(source).suffix == ".safetensors":
        raise InputError(f"{source} holds an encoder without its decoder", "give the run folder or a .ckpt of it")
    objective, card = load_objective(source)
    if not isinstance(objective, MAE):
        raise InputError(
            f"{source} is a run of {objective.name}, not of a masked autoencoder of pictures",
            "give a run of mae; for other encoders, the change of their embedding is a score",
        )
    return objective, card


class VQLearner(Learner):
    """A trained tokenizer of pictures, from pixels through its codes to pixels.

    Studied by pixel error and the quantizer's own loss; the perceptual and adversarial losses that tokenizers are
    trained with are left out, since they would bring networks that have seen other pictures. Only weights that have a
    gradient learn: codebooks that follow averages of latents (`ema`), the revival of codes and running figures stay as
    they were. Where codes are drawn in training (`gumbel`), they are in study too, at the last temperature of the
    schedule.

    Args:
        source: Run folder of a tokenizer of pictures, weights.safetensors with its card, .ckpt, or zoo:NAME.
        pixel_loss: `l2`, that of the score, or `l1`; of pixels normalised as the tokenizer has them.
    Raises:
        InputError: no tokenizer there, one of clips, or a palette, which has nothing that could learn.
    """

    unit = "squared error of pixels in 0..1"

    def __init__(self, source: str, pixel_loss: Literal["l1", "l2"] = "l2"):
        super().__init__()
        if pixel_loss not in ("l1", "l2"):
            raise InputError(f"pixel_loss is {pixel_loss!r}", "give l1 or l2")
        self._source, self.pixel_loss = source, pixel_loss
        self.tokenizer, self.card = self._open()
        self.origins = {"source": state_hash(self.tokenizer)}
        self.img_size = self.tokenizer.img_size

    def _open(self) -> tuple[Tokenizer, dict]:
        tokenizer, card = open_source(self._source, load_tokenizer)
        if isinstance(tokenizer, PaletteTokenizer):
            raise InputError(
                f"{self._source} is a palette, in which nothing learns", "study its tokens with GPTLearner instead"
            )
        if not isinstance(tokenizer, Tokenizer) or tokenizer.num_frames > 1:
            raise InputError(f"{self._source} is no tokenizer of pictures", "give a run of vqgan or vit_vq")
        # Of quantizers that draw: the end of the schedule of temperatures.
        tokenizer.quantizer.set_step(tokenizer.quantizer.arguments.get("temperature_steps", 0))
        return tokenizer, card

    def begin(self, seed: int, pictures: Tensor) -> None:
        self.tokenizer.check(pictures)
        self.tokenizer.load_state_dict(self._open()[0].state_dict())

    def study_loss(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """Pixel error and the quantizer's loss, under numbers from `rng` where codes are drawn."""
        self.tokenizer.check(pixels)
        images = self.tokenizer.normalize(pixels)
        noise = torch.from_numpy(rng.random(len(pixels), dtype=np.float32)).to(pixels.device)
        out, codes = self.tokenizer.train()(images, noise)
        difference = out.float() - images
        return (difference.abs() if self.pixel_loss == "l1" else difference.square()).mean() + codes.loss

    def after_update(self) -> None:
        # To skip the step is to let go of what the quantizer has kept of the latents, and to learn nothing from it.
        self.tokenizer.quantizer.after_step(0, skip=1.0)

    @torch.no_grad()
    def scores(self, pixels: Tensor) -> Tensor:
        """Mean squared error of the reconstruction, neither rounded nor clipped: (N,) float64."""
        self.tokenizer.check(pixels)
        images = self.tokenizer.eval().normalize(pixels)
        with full_precision(pixels):
            out, _ = self.tokenizer(images)
        std = torch.tensor(self.tokenizer.std, device=pixels.device).view(3, 1, 1)
        return ((out - images) * std).square().flatten(1).mean(dim=1).double().cpu()
