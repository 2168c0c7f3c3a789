"""ResNet and ResNeXt trunks behind the encoder interface of the Vision Transformer (He et al. 2016; Xie et al. 2017).

Temporal classification of the headcam originals and one arm of their DINO runs train a ResNeXt. The network is
torchvision's without its classifier: state-dict names are torchvision's (318 keys for ResNeXt-50), so published weights
load with strict checking. It takes pictures of any size, whatever it was trained on; features of a place of the last
map are its tokens, in row-major order, and there is no class token: whoever wants one vector a picture takes their
mean, which is what torchvision's own pooling gives.

Shapes: B batch, H x W pixels, L = ceil(H / 32) ceil(W / 32) places, D = 2048 channels of the last map.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.resnet import Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet

from headcam.errors import InputError

# Blocks of the four stages, groups of the 3 x 3 convolution, its channels a group in the first stage.
TRUNKS = {
    "resnet50": ((3, 4, 6, 3), 1, 64),
    "resnext50_32x4d": ((3, 4, 6, 3), 32, 4),
    "resnext101_32x8d": ((3, 4, 23, 3), 32, 8),
}


class ResNet(TorchvisionResNet):
    """A trunk at torchvision's random initialisation.

    Args:
        name: one of `TRUNKS`.
        img_size: pixels, one side or (height, width), of the pictures it is meant for; others work as well.
    Raises:
        InputError: an unknown name, an image without pixels.
    """

    num_prefix_tokens = 0
    embed_dim = 2048
    checkpointing_part = "encoder"

    def __init__(self, name: str = "resnext50_32x4d", img_size: int | tuple[int, int] = 224):
        if name not in TRUNKS:
            raise InputError(f"there is no trunk {name!r}", f"choose {', '.join(TRUNKS)}")
        blocks, groups, width = TRUNKS[name]
        super().__init__(Bottleneck, list(blocks), num_classes=1, groups=groups, width_per_group=width)
        del self.avgpool, self.fc
        self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if min(self.img_size) < 1:
            raise InputError(f"img_size is {img_size}", "give pixels from 1 on, such as 224")
        # Enough to build the same encoder again; it goes into the card of saved weights.
        self.arguments: dict[str, Any] = {"name": name, "img_size": list(self.img_size)}
        self.checkpointing = False  # keep no block's inner activations for backward, compute them again

    def forward_features(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> (B, L, 2048), places of the last map in row-major order."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (B, 64, H / 4, W / 4)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                if self.checkpointing and torch.is_grad_enabled():
                    again = partial(_contexts, block)
                    x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, context_fn=again)
                else:
                    x = block(x)
        return x.flatten(2).transpose(1, 2)

    forward = forward_features


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Around a block's first pass, and around the second that backward makes of it.

    The second sees the same batch: its statistics must not enter the running ones again.
    """
    return nullcontext(), _running_statistics_kept(block)


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before):
            norm.momentum = momentum
            if norm.training:
                norm.num_batches_tracked.sub_(1)
