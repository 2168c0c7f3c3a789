"""Attention of the class token: against the whole attention matrix, at other sizes, on clips."""

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.looking.attention_maps import class_attention
from headcam.ssl.masking import patchify
from headcam.ssl.vit import VisionTransformer


def encoder(**changes) -> VisionTransformer:
    settings = dict(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4)
    torch.manual_seed(0)
    return VisionTransformer(**(settings | changes)).eval()


def whole_matrix(model: VisionTransformer, tokens: torch.Tensor, number: int) -> torch.Tensor:
    """softmax(Q K^T / sqrt(d)) of one block, (B, heads, N, N), written out."""
    for block in model.blocks[:number]:
        tokens = block(tokens)
    attn = model.blocks[number].attn
    B, N, D = tokens.shape
    q, k, _ = attn.qkv(model.blocks[number].norm1(tokens)).chunk(3, dim=-1)
    d = D // attn.num_heads
    q, k = (x.view(B, N, attn.num_heads, d).transpose(1, 2) for x in (q, k))
    return (q @ k.transpose(-1, -2) / d**0.5).softmax(dim=-1)


@pytest.mark.parametrize("block", [0, 2, -1])
def test_it_is_the_class_tokens_row_of_the_matrix(block):
    model, images = encoder(), torch.randn(2, 3, 32, 32)
    maps = class_attention(model, images, block)
    assert maps.shape == (2, 4, 1, 4, 4)
    with torch.no_grad():
        matrix = whole_matrix(model, model.embed_patches(patchify(images, 8)), block % 3)
    torch.testing.assert_close(maps.flatten(2), matrix[:, :, 0, 1:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps.sum((2, 3, 4)) + matrix[:, :, 0, 0], torch.ones(2, 4))


def test_a_larger_and_oblong_picture_has_a_finer_map():
    assert class_attention(encoder(), torch.randn(1, 3, 64, 96)).shape == (1, 4, 1, 8, 12)


def test_clips_have_a_map_for_each_slot_and_stills_are_clips_of_equal_frames():
    model = encoder(num_frames=4, tubelet_size=2, positions="separable")
    still = torch.randn(2, 3, 32, 32)
    maps = class_attention(model, still[:, :, None].expand(-1, -1, 4, -1, -1))
    assert maps.shape == (2, 4, 2, 4, 4)
    torch.testing.assert_close(class_attention(model, still), maps, rtol=1e-4, atol=1e-6)


def test_looking_leaves_the_model_as_it_was():
    model, images = encoder(), torch.randn(1, 3, 32, 32)
    before = model.forward_features(images)
    class_attention(model, images)
    assert torch.equal(model.forward_features(images), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(InputError, match="block 3 is not there: the encoder has 3"):
        class_attention(encoder(), torch.randn(1, 3, 32, 32), block=3)
    with pytest.raises(InputError, match="patch_size 8 does not divide the image side 36"):
        class_attention(encoder(), torch.randn(1, 3, 36, 36))
    with pytest.raises(InputError, match="Linear has no attention to show"):
        class_attention(torch.nn.Linear(1, 1), torch.randn(1, 3, 32, 32))
    with pytest.raises(InputError, match="clips of 2 frames do not fit a model for 4"):
        model = encoder(num_frames=4, tubelet_size=2, positions="separable")
        class_attention(model, torch.randn(1, 3, 2, 32, 32))
