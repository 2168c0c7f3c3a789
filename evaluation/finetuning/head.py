"""An encoder with a linear head on it, as one network that is trained as a whole.

    pictures (B, 3, H, W) ─┐                              ┌─▶ batch norm ─▶ linear ─▶ logits (B, K)
    clips (B, 3, T, H, W) ─┴▶ encoder ─▶ class token or   ┘   (no affine)
                                         mean of patches (B, D)

The head is that of the headcam originals: batch normalisation without affine parameters, then a linear layer. What
does not fit the encoder by its form is made to: frames of a clip go through an image encoder one by one and their
logits are averaged; a still goes through a video encoder as a clip of equal frames (`VisionTransformer`).

Several processes train one network: `SyncedBatchNorm` takes its statistics over the batch of all of them, so that
they compute what one process does.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.masking import patchify
from headcam.ssl.resnet import ResNet
from headcam.ssl.training.distributed import many
from headcam.ssl.vit import VisionTransformer

_HEAD_STD = 0.01  # of the linear layer's first weights: He et al. (2022) on this very head (their linear probe)


def check_encoder(encoder: nn.Module, pool: str, drop_path: float) -> None:
    """Raise `InputError` where an encoder cannot be finetuned, or not with these settings."""
    if not isinstance(encoder, VisionTransformer | ResNet):
        raise InputError(
            f"a {type(encoder).__name__} cannot be finetuned here", "use protocols on frozen features, such as knn"
        )
    if isinstance(encoder, ResNet) and (pool == "cls" or drop_path):
        what = "pool cls" if pool == "cls" else f"drop_path {drop_path}"
        raise InputError(f"{what} does not fit a ResNet", "use pool: avg (--pool avg) and drop_path: 0")


class Classifier(nn.Module):
    """Encoder and head.

    Args:
        encoder: a `VisionTransformer` or `ResNet`, trained further in place; see `check_encoder`.
        num_classes: K.
        pool: "cls", the class token, or "avg", the mean of the patch tokens; both after the encoder's last norm.
        drop_path: stochastic depth at the last block of a Vision Transformer, rising linearly from 0.
        generator: that the head's first weights are drawn from.
    """

    def __init__(self, encoder: nn.Module, num_classes: int, pool: str, drop_path: float, generator: torch.Generator):
        super().__init__()
        self.encoder, self.pool = encoder, pool
        if isinstance(encoder, VisionTransformer):
            depth = len(encoder.blocks)
            encoder.drop_path_rates = [drop_path * k / max(1, depth - 1) for k in range(depth)]
        self.norm = nn.BatchNorm1d(encoder.embed_dim, eps=1e-6, affine=False)
        self.linear = nn.Linear(encoder.embed_dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=_HEAD_STD, generator=generator)
        nn.init.zeros_(self.linear.bias)

    @property
    def drop_noise_shape(self) -> tuple[int, int] | None:
        """Of the random numbers that one picture needs in training, see `VisionTransformer.forward_patches`."""
        depth = len(self.encoder.blocks) if isinstance(self.encoder, VisionTransformer) else 0
        return (depth, 2) if depth and any(self.encoder.drop_path_rates) else None

    def forward(self, images: Tensor, drop_noise: Tensor | None = None) -> Tensor:
        """Normalised pictures (B, 3, H, W) or clips (B, 3, T, H, W) to logits (B, K), float32.

        Args:
            drop_noise: (B, depth, 2) uniform in [0, 1); None: no branch is dropped.
        """
        frames = 1
        if images.ndim == 5 and getattr(self.encoder, "num_frames", 1) == 1:
            frames = images.shape[2]
            images = images.transpose(1, 2).flatten(0, 1)  # (B * T, 3, H, W)
            drop_noise = None if drop_noise is None else drop_noise.repeat_interleave(frames, dim=0)
        pooled = self._features(images, drop_noise)
        # The head is small and its statistics are sums over the batch: never in lower precision.
        with torch.autocast(images.device.type, enabled=False):
            logits = self.linear(self.norm(pooled.float()))
        return logits.unflatten(0, (-1, frames)).mean(dim=1) if frames > 1 else logits

    def _features(self, images: Tensor, drop_noise: Tensor | None) -> Tensor:
        """(B, D)."""
        encoder = self.encoder
        if isinstance(encoder, VisionTransformer):
            patches = patchify(images, encoder.patch_size, encoder.tubelet_size if images.ndim == 5 else 1)
            tokens = encoder.forward_patches(patches, drop_noise=drop_noise)
        else:
            tokens = encoder.forward_features(images)
        return tokens[:, 0] if self.pool == "cls" else tokens[:, encoder.num_prefix_tokens :].mean(dim=1)


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the batch of all processes; torch's `SyncBatchNorm` does it on GPUs only.

    The gradient is that of the sum of all processes' losses.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # (B, D) and (B, D, H, W) are both welcome

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and many()):
            return super().forward(x)
        dims = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        count = _SumOverProcesses.apply(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = _SumOverProcesses.apply(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count  # two passes: exact where mean >> std
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        out = centred * torch.rsqrt(variance + self.eps).view(shape)
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


class _SumOverProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def sync_batch_norms(module: nn.Module) -> None:
    """Replace each batch normalisation below `module` by a `SyncedBatchNorm` with its weights and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            synced = SyncedBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
            synced.load_state_dict(child.state_dict())
            setattr(module, name, synced.to(next(child.buffers()).device))
        else:
            sync_batch_norms(child)
