"""The plain-ViT tokenizer: shapes, parity with the blocks in a row, learning, arguments, refusals."""

import json

import pytest
import torch
import torch.nn.functional as F

from headcam.errors import InputError
from headcam.ssl.attention import set_attention_backend
from headcam.ssl.vit import SIZES
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoencoders.vit_tokenizer import ViTTokenizer


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small(img_size=(16, 24), **changes) -> ViTTokenizer:
    arguments = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "latent_dim": 8, "codebook_size": 64}
    return ViTTokenizer(img_size, **(arguments | changes))


def pictures(tokenizer: ViTTokenizer, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, *tokenizer.img_size), dtype=torch.uint8)


@pytest.mark.parametrize("name", ["ti", "s", "b", "l"])
def test_every_size_builds(name):
    size = SIZES[name]
    with torch.device("meta"):
        tokenizer = ViTTokenizer(256, 16, size.embed_dim, size.depth, size.num_heads)
        images = torch.zeros(2, 3, 256, 256)
    latents = tokenizer.latents(images)
    assert (tokenizer.grid, tokenizer.num_tokens, tokenizer.tubelet_size) == ((16, 16), 256, 1)
    assert latents.shape == (2, 64, 16, 16) and tokenizer.pixels(latents).shape == images.shape
    blocks = sum(p.numel() for p in tokenizer.encoder.blocks.parameters())
    assert blocks == size.depth * (12 * size.embed_dim**2 + 13 * size.embed_dim)  # those of a ViT


def test_parameters_of_the_original_at_its_size():
    """The TAE of patch 16: width 1,024, 15 blocks a side, 16 channels; 380 M parameters with its own linear maps."""
    with torch.device("meta"):
        tokenizer = ViTTokenizer(256, 16, 1024, 15, 16, latent_dim=16)
    total = sum(p.numel() for part in (tokenizer.encoder, tokenizer.decoder) for p in part.parameters())
    assert total == pytest.approx(380e6, rel=0.005)


def test_it_is_the_blocks_in_a_row():
    """Patches by the convolution that their weights are stored as, blocks one by one, pixels placed by hand."""
    tokenizer = small().double().eval()
    images = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        encoder, decoder = tokenizer.encoder, tokenizer.decoder
        x = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2) + encoder.pos_embed
        for block in encoder.blocks:
            x = block(x)
        x = encoder.head(encoder.norm(x))  # (2, 6, 8): row by row
        latents = tokenizer.latents(images)
        assert latents.shape == (2, 8, 2, 3)
        for row in range(2):
            for column in range(3):
                torch.testing.assert_close(latents[:, :, row, column], x[:, 3 * row + column])
        x = decoder.embed(x) + decoder.pos_embed
        for block in decoder.blocks:
            x = block(x)
        x = decoder.conv_out(decoder.norm(x)).view(2, 6, 8, 8, 3)
        pixels = tokenizer.pixels(latents)
        for row in range(2):
            for column in range(3):
                cut = pixels[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
                torch.testing.assert_close(cut, x[:, 3 * row + column].permute(0, 3, 1, 2))


def test_tokens_and_pixels_go_round():
    tokenizer = small().eval()
    pixels = pictures(tokenizer)
    tokens = tokenizer.encode(pixels)
    assert tokens.shape == (2, 2, 3) and tokens.dtype == torch.int64
    assert 0 <= tokens.min() and tokens.max() < tokenizer.vocab_size
    with torch.no_grad():
        reconstruction, codes = tokenizer(tokenizer.normalize(pixels))
    assert torch.equal(codes.indices, tokens)
    decoded = tokenizer.decode(tokens)
    assert decoded.dtype == torch.uint8 and torch.equal(decoded, tokenizer.to_uint8(reconstruction))


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_it_learns_a_handful_of_pictures(quantizer):
    """Pictures of one colour a quarter: the error falls below a tenth of their variance."""
    tokenizer = small(16, embed_dim=32, codebook_size=256, quantizer=quantizer)
    colours = torch.rand(4, 3, 2, 2)
    pixels = (F.interpolate(colours, scale_factor=8) * 255).byte()
    images = tokenizer.normalize(pixels)
    optimizer, errors = torch.optim.Adam(tokenizer.parameters(), lr=3e-3), []
    for step in range(150):
        tokenizer.quantizer.set_step(step)
        reconstruction, codes = tokenizer(images)
        error = F.mse_loss(reconstruction, images)
        optimizer.zero_grad()
        (error + codes.loss).backward()
        optimizer.step()
        tokenizer.quantizer.after_step(step)
        errors.append(error.item())
    assert errors[0] > images.var() / 2 and errors[-1] < images.var() / 10


def test_every_parameter_is_trained():
    tokenizer = small()
    images = tokenizer.normalize(pictures(tokenizer))
    reconstruction, codes = tokenizer(images)
    (F.mse_loss(reconstruction, images) + codes.loss).backward()
    for part in (tokenizer.encoder, tokenizer.decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_checkpointing_and_attention_backends_change_no_gradient():
    tokenizer = small()
    images, gradients = tokenizer.normalize(pictures(tokenizer)), []
    for checkpointing, backend in ((False, "sdpa"), (True, "sdpa"), (False, "math")):
        tokenizer.encoder.checkpointing = tokenizer.decoder.checkpointing = checkpointing
        set_attention_backend(tokenizer, backend)
        tokenizer.zero_grad()
        tokenizer.pixels(tokenizer.latents(images)).square().mean().backward()
        gradients.append([p.grad for part in (tokenizer.encoder, tokenizer.decoder) for p in part.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-3, atol=1e-6)
    assert (tokenizer.encoder.checkpointing_part, tokenizer.decoder.checkpointing_part) == ("encoder", "decoder")


def test_its_card_makes_it_again(tmp_path):
    tokenizer = small().eval()
    arguments = json.loads(json.dumps(tokenizer.arguments))
    assert ViTTokenizer(**arguments).arguments == tokenizer.arguments
    card = {"contract": "card", "version": 1, "architecture": {"class": "ViTTokenizer", "arguments": arguments}}
    save_weights(tmp_path, tokenizer, card)
    again, _ = load_tokenizer(tmp_path)
    pixels = pictures(tokenizer)
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels)) and again.grid == (2, 3)


@pytest.mark.parametrize(
    "arguments, telling",
    [
        ({"img_size": (16, 20)}, "patch_size 8 does not divide the image side 20"),
        ({"num_heads": 3}, "3 heads do not divide embed_dim 16"),
        ({"num_heads": 0}, "0 heads do not divide"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, telling):
    with pytest.raises(InputError, match=telling):
        small(**arguments)


def test_pictures_of_another_size_are_refused():
    with pytest.raises(InputError, match="pixels of 3 x 24 x 16 do not fit a tokenizer for 3 x 16 x 24"):
        small().encode(torch.zeros(1, 3, 24, 16, dtype=torch.uint8))
