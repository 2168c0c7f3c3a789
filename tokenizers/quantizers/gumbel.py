"""Gumbel-softmax quantization (Jang et al. 2017, "Categorical reparameterization with Gumbel-softmax"; Ramesh et al.
2021, "Zero-shot text-to-image generation"), as the published OpenImages f8 tokenizer of taming-transformers has it.

The encoder gives logits over the codes. In training a code is drawn from them; the gradient is that of the mixture of
codes which a softmax with the same Gumbel noise gives, at a temperature that falls over training. In eval mode the most
likely code is taken. The published divergence from even use, latent by latent, does not keep a small tokenizer from
settling on few codes; the entropy of the mean distribution does (Baevski et al. 2020, "wav2vec 2.0", section 3.2).

The decoder always gets a single code, never the mixture, so that it is trained on what tokens stand for.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.ssl.schedules import cosine_between
from headcam.tokenizers.quantizers.latents import LearnsFromLatents, StepLatents, k_means_places
from headcam.tokenizers.quantizers.projected import full_precision, mean_everywhere
from headcam.tokenizers.quantizers.quantizer import Quantized, Quantizer, places_back, places_last

_SHARPNESS = 6.0  # nats between a code and its next, for a latent that is at the code; from 2 to 6 use is as even
_JITTER = 0.1  # of codes, in units of how far the next one is
_LEAST_APART = 1e-4  # squared, of the squared length of latents: what float32 can tell apart
_TINY = 1e-20  # below any probability that matters; keeps logarithms and quotients finite


class GumbelVQ(LearnsFromLatents, Quantizer):
    """Codes drawn from logits.

    Args:
        codebook_size: K.
        dim: D of the latents and of the codes.
        kl_weight: of the mean divergence of a latent's distribution from even use, in nats (published: 1e-8 for the
            OpenImages tokenizer).
        diversity_weight: of the divergence of the mean distribution from even use, in nats (published: none).
        temperature_start, temperature_end, temperature_steps: half a cosine from one to the other over so many
            optimizer steps (published: 0.9, 1e-6, 1,000,001).
        kmeans: after the first step, place the codes by k-means and let logits be negative squared distances to them
            (published: none of it).

    Attributes:
        proj: latents to logits, a convolution of one place: weights (K, D, 1, 1).
        codebook: (K, D), a parameter.
        temperature: at the step that was set last.
        initialized: int64 buffer, where there is k-means: whether it was done.
    """

    draws = True

    def __init__(
        self,
        codebook_size: int,
        dim: int,
        kl_weight: float = 5e-4,
        diversity_weight: float = 0.1,
        temperature_start: float = 0.9,
        temperature_end: float = 1e-6,
        temperature_steps: int = 1_000_001,
        kmeans: bool = True,
    ):
        if codebook_size < 1:
            raise InputError(f"codebook_size is {codebook_size}", "give a number from 1 on")
        for name, weight in (("kl_weight", kl_weight), ("diversity_weight", diversity_weight)):
            if weight < 0:
                raise InputError(f"{name} is {weight}", "give a number from 0 on")
        if not 0 < temperature_end <= temperature_start < math.inf:
            raise InputError(
                f"temperatures go from {temperature_start} to {temperature_end}", "let them fall, to a number above 0"
            )
        if temperature_steps < 1:
            raise InputError(f"temperature_steps is {temperature_steps}", "give optimizer steps from 1 on")
        super().__init__(
            codebook_size,
            dim,
            kl_weight=kl_weight,
            diversity_weight=diversity_weight,
            temperature_start=temperature_start,
            temperature_end=temperature_end,
            temperature_steps=temperature_steps,
            kmeans=kmeans,
        )
        self.kl_weight, self.diversity_weight = kl_weight, diversity_weight
        self.proj = nn.Conv2d(dim, codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))
        self._keep_latents(kmeans)
        self.set_step(0)

    def set_step(self, step: int) -> None:
        a = self.arguments
        self.temperature = cosine_between(
            step, start=a["temperature_start"], end=a["temperature_end"], total_steps=a["temperature_steps"]
        )

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> Quantized:
        with full_precision(latents):
            rows = places_last(latents)
            logits = nn.functional.linear(rows, self.proj.weight.flatten(1).float(), self.proj.bias.float())
            if self.training:
                if noise is None:
                    raise ValueError("GumbelVQ draws in training: give noise (B,), a uniform number for each sample")
                drawn = logits + gumbel_noise(noise, len(rows) // len(latents), self.codebook_size)
                indices = drawn.argmax(1)
                self._note(rows.detach(), indices)
                mixture = (drawn / self.temperature).softmax(1) @ self.codebook.detach()
                codes = self._rows(indices) + (mixture - mixture.detach())  # x - x is 0: the value is the code's own
            else:
                indices = logits.argmax(1)
                codes = self._rows(indices)
            loss = self._loss(logits.log_softmax(1))
        shape = (latents.shape[0], *latents.shape[2:])
        return Quantized(places_back(codes, latents), indices.view(shape), loss)

    def _place(self, latents: StepLatents) -> None:
        """Where there are fewer latents than codes, several codes share a place but for a little noise."""
        centres, _ = k_means_places(latents, self.codebook_size)
        centres = centres[torch.arange(self.codebook_size, device=centres.device) % len(centres)]
        apart = torch.maximum(_squared_to_next(centres), _LEAST_APART * centres.square().sum(1).mean()) + _TINY
        noise = torch.from_numpy(stream(0, "gumbel places", 0).standard_normal(centres.shape, np.float32))
        codes = centres + _JITTER * (apart / self.dim).sqrt() * noise.to(centres.device)
        sharpness = _SHARPNESS / apart
        self.codebook.copy_(codes)
        self.proj.weight.copy_((2 * sharpness * codes)[:, :, None, None])
        self.proj.bias.copy_(-sharpness * codes.square().sum(1))

    def _loss(self, log_p: Tensor) -> Tensor:
        """Of the log-probabilities (M, K) of all latents."""
        p, log_k = log_p.exp(), math.log(self.codebook_size)
        loss = self.kl_weight * (p * (log_p + log_k)).sum(1).mean()
        if self.diversity_weight:
            mean = mean_everywhere(p.mean(0)) if self.training else p.mean(0)
            loss = loss + self.diversity_weight * (mean * (mean.clamp(min=_TINY).log() + log_k)).sum()
        return loss

    def dequantize(self, indices: Tensor) -> Tensor:
        return self._rows(indices).movedim(-1, 1)

    def _rows(self, indices: Tensor) -> Tensor:
        return nn.functional.embedding(indices, self.codebook.float())


@torch.no_grad()
def gumbel_noise(keys: Tensor, places: int, codes: int) -> Tensor:
    """Standard Gumbel numbers for each place and code of each sample, from one key a sample: (B * places, codes).

    A number depends on its sample's key, its place and its code alone, so that a sample gets the same ones in any batch
    and process. Counters are mixed with the key by the finaliser of SplitMix64 (Steele, Lea and Flood 2014) in integer
    arithmetic, the same on every device.

    Args:
        keys: (B,) or (B, 1), uniform in [0, 1).
    """
    own = _mix((keys.flatten().double() * 2**53).long())[:, None]  # (B, 1)
    parts = []
    for start in range(0, places * codes, _AT_ONCE):  # as many steps for any batch, which planning relies on
        counters = torch.arange(start, min(start + _AT_ONCE, places * codes), device=keys.device)
        bits = _mix(own + counters * _GOLDEN)
        uniform = (_shifted(bits, 41).float() + 0.5) * 2**-23  # 23 bits: exact in float32, never 0 or 1
        parts.append(uniform.log_().neg_().log_().neg_())
    return torch.cat(parts, dim=1).view(-1, codes)


def _squared_to_next(codes: Tensor) -> Tensor:
    """Squared distance from a code to the nearest other place, mean over some of them (K, D); 0 where all are one."""
    places = codes.unique(dim=0)
    if len(places) == 1:
        return codes.new_zeros(())
    some = places[:: math.ceil(len(places) / 1024)]
    return torch.cdist(some, places).topk(2, largest=False).values[:, 1].square().mean()


_AT_ONCE = 1 << 20  # numbers of a sample: their 64-bit counters take memory


_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # as signed 64-bit integers, whose products wrap around
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """A shift to the right that fills with zeros; torch's fills with the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
