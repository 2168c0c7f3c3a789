"""From images to clips and back, and to another resolution: encoders made of encoders, with what is exact and what not.

`inflate` (Carreira and Zisserman 2017, for convolutions; here for the patch embedding, the only place that sees time)
spreads the kernel evenly over a tube, gives every time slot the image's positions, and starts time positions at zero.
`deflate` sums the kernel over the tube and folds one time position, or their mean, into the spatial ones.

Exact, up to the rounding of sums and tested:

- `deflate(inflate(e))` has the weights of `e` (bit for bit where `tubelet_size` is a power of two).
- An inflated model's patches of a clip of equal frames are embedded as the image model embeds the still, in every slot.
- A model of one time slot sees a clip of equal frames as the deflated model sees the still: the features are equal.

Not exact: the features of an inflated model of several slots. Its class token attends to each patch once a slot and
to itself once, so it weighs less than in the image model. Where stills go into a video model, prefer the model itself
(`VisionTransformer.forward_features` takes stills, exactly as clips of equal frames): `deflate` makes a smaller, faster
model that has seen no second slot.

Positions: a fixed sin-cos table becomes the values of the learned spatial positions (clips have no fixed ones), and
stays learned when deflated. All functions return new encoders on the device, in the dtype and in the mode (train or
eval) of the given one, share no memory with it, and draw no random numbers.
"""

from typing import Any

import torch
from torch import Tensor

from headcam.errors import InputError
from headcam.ssl.positions import resample
from headcam.ssl.vit import VisionTransformer, patch_grid

_KERNEL = "patch_embed.proj.weight"


def inflate(image_encoder: VisionTransformer, num_frames: int, tubelet_size: int) -> VisionTransformer:
    """An encoder for clips of `num_frames` that starts from one for images.

    Raises:
        InputError: the encoder is for clips already, fewer than two frames, a tube that does not divide the clip.
    """
    if image_encoder.num_frames > 1:
        raise InputError(
            f"an encoder for {image_encoder.num_frames} frames cannot be inflated", "give one for images (num_frames 1)"
        )
    if num_frames < 2:
        raise InputError(f"num_frames is {num_frames}", "inflate to clips of two frames or more")
    state = image_encoder.state_dict()
    if tubelet_size > 1:
        kernel = state[_KERNEL] / tubelet_size
        state[_KERNEL] = kernel.unsqueeze(2).expand(-1, -1, tubelet_size, -1, -1)
    table = state.pop("pos_embed")
    state["pos_embed_class"], state["pos_embed_spatial"] = table[:, :1], table[:, 1:]
    slots = num_frames // max(1, tubelet_size)
    state["pos_embed_temporal"] = table.new_zeros(1, slots, table.shape[-1])
    changes = {"num_frames": num_frames, "tubelet_size": tubelet_size, "positions": "separable"}
    return _built(image_encoder, state, changes | {"position_field": None})


def deflate(video_encoder: VisionTransformer, slot: int | None = None) -> VisionTransformer:
    """An encoder for images of one for clips.

    Args:
        slot: the time slot, 0 to t - 1, whose position stills get; None: the mean of all.
    Raises:
        InputError: the encoder is for images already, no such slot.
    """
    if video_encoder.num_frames == 1:
        raise InputError("an encoder for images cannot be deflated", "give one for clips (num_frames above 1)")
    if slot is not None and not 0 <= slot < video_encoder.slots:
        raise InputError(
            f"time slot {slot} is not there", f"give 0 to {video_encoder.slots - 1}, or nothing for the mean of all"
        )
    state = video_encoder.state_dict()
    if video_encoder.tubelet_size > 1:
        state[_KERNEL] = state[_KERNEL].sum(dim=2)
    temporal = state.pop("pos_embed_temporal")
    time = temporal.mean(dim=1, keepdim=True) if slot is None else temporal[:, slot : slot + 1]
    state["pos_embed"] = torch.cat([state.pop("pos_embed_class"), state.pop("pos_embed_spatial") + time], dim=1)
    return _built(video_encoder, state, {"num_frames": 1, "tubelet_size": 1, "positions": "learned"})


def resize(encoder: VisionTransformer, img_size: int | tuple[int, int]) -> VisionTransformer:
    """The encoder for pictures of another size (pixels, one side or (height, width)) that show the same field of view.

    Learned positions are interpolated. Sin-cos ones are evaluated at the new patches' places in the units of the old
    ones, and remember those units (`position_field`), so that going there and back gives the first encoder again.

    Raises:
        InputError: sides that the patch does not divide.
    """
    img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    grid = patch_grid(img_size, encoder.patch_size)
    state = encoder.state_dict()
    changes: dict[str, Any] = {"img_size": img_size}
    if encoder.positions == "separable":
        state["pos_embed_spatial"] = resample(encoder.pos_embed_spatial, encoder.grid, grid)
    else:
        state["pos_embed"] = encoder.position_table(grid)
    if encoder.positions == "sincos":
        changes["position_field"] = encoder.position_field
    return _built(encoder, state, changes)


def _built(source: VisionTransformer, state: dict[str, Tensor], changes: dict[str, Any]) -> VisionTransformer:
    """A model with the arguments of `source` but for `changes`, holding copies of `state`."""
    arguments = {**source.arguments, "drop_path_rate": max(source.drop_path_rates, default=0.0), **changes}
    with torch.device("meta"):  # takes no memory and no random numbers
        model = VisionTransformer(**arguments)
    model.load_state_dict({name: value.detach().clone() for name, value in state.items()}, assign=True)
    model.checkpointing = source.checkpointing
    for ours, theirs in zip(model.blocks, source.blocks):
        ours.attn.backend = theirs.attn.backend
    return model.train(source.training)
