"""The Vision Transformer: encoding a part of the patches, shapes, initialisation, refusals."""

import math

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.attention import Attention
from headcam.ssl.masking import patchify
from headcam.ssl.vit import Block, VisionTransformer, patch_grid


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer((32, 48), 8, embed_dim=32, depth=3, num_heads=4).eval()


def test_all_patches_named_in_order_are_the_whole_image(model):
    images = torch.randn(2, 3, 32, 48)
    patches = patchify(images, 8)
    everything = torch.arange(24).expand(2, -1)
    torch.testing.assert_close(model.forward_patches(patches, everything), model(images))


def test_the_order_of_visible_patches_does_not_matter(model):
    """Positions go by index, and attention is a set operation."""
    patches = torch.randn(2, 24, 192)
    ids = torch.stack([torch.randperm(24)[:6] for _ in range(2)])
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    a, b = model.forward_patches(patches, ids), model.forward_patches(patches, ids[:, order])
    torch.testing.assert_close(a[:, 0], b[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a[:, 1:][:, order], b[:, 1:], rtol=1e-4, atol=1e-5)


def test_attention_is_the_published_formula():
    torch.manual_seed(0)
    layer, x = Attention(12, 3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = (x @ w.T + b for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)))
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        heads.append(torch.softmax(scores, dim=-1) @ v[..., part])
    wanted = torch.cat(heads, dim=-1) @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("queries", [1, 3, 5])
def test_the_last_tokens_alone_are_those_of_the_whole_block(queries):
    torch.manual_seed(0)
    block, x = Block(16, 4).double(), torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block(x, queries), block(x)[:, -queries:])


def test_initialisation_is_mae_s():
    torch.manual_seed(0)
    model = VisionTransformer(64, 16, embed_dim=128, depth=1, num_heads=4)
    for name, weight, fans in (
        ("patch embedding, as a linear map", model.patch_embed.proj.weight, 128 + 3 * 16 * 16),
        ("fc1", model.blocks[0].mlp.fc1.weight, 128 + 512),
        ("qkv, as one matrix", model.blocks[0].attn.qkv.weight, 128 + 384),
    ):
        bound = math.sqrt(6 / fans)  # Glorot and Bengio 2010, equation 16
        assert weight.detach().abs().max() <= bound, name
        assert weight.detach().std() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    assert model.cls_token.detach().std() == pytest.approx(0.02, rel=0.3)
    assert not model.pos_embed.requires_grad and (model.pos_embed[:, 0] == 0).all()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_images_of_another_size_are_refused(model):
    with pytest.raises(InputError, match="images of 48 x 32 pixels do not fit a model for 32 x 48"):
        model(torch.zeros(1, 3, 48, 32))


@pytest.mark.parametrize(
    "img_size, patch, grid", [((224, 224), 14, (16, 16)), ((48, 80), 16, (3, 5)), ((8, 8), 8, (1, 1))]
)
def test_patch_grid(img_size, patch, grid):
    assert patch_grid(img_size, patch) == grid


@pytest.mark.parametrize("img_size, patch", [((224, 220), 16), ((8, 8), 16), ((224, 224), 0), ((224, 224), -14)])
def test_a_patch_that_does_not_divide_is_refused_with_one_that_does(img_size, patch):
    with pytest.raises(InputError, match=f"patch_size {patch} does not divide the image side .*use a patch_size of"):
        patch_grid(img_size, patch)


@pytest.mark.parametrize(
    "changes, telling",
    [({"num_heads": 5}, "5 heads do not divide"), ({"num_heads": 0}, "0 heads"), ({"embed_dim": 30}, "multiple of 4")],
)
def test_widths_that_do_not_fit_are_refused(changes, telling):
    with pytest.raises(InputError, match=telling):
        VisionTransformer(**({"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2} | changes))
