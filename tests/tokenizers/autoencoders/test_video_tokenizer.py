"""The video tokenizer: layouts, the arrow of time, learning, arguments, refusals."""

import json

import pytest
import torch
import torch.nn.functional as F

from headcam.errors import InputError
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer, level_strides

# The layouts that clip models of headcam video were trained with: pixels, frames, downsample, grid, tokens.
LAYOUTS = [
    (256, 16, (4, 16, 16), (4, 16, 16), 1024),
    (256, 16, (2, 16, 16), (8, 16, 16), 2048),
    (256, 32, (2, 16, 16), (16, 16, 16), 4096),
    (256, 16, (4, 8, 8), (4, 32, 32), 4096),
    (192, 16, (2, 8, 8), (8, 24, 24), 4608),
    (128, 16, (2, 8, 8), (8, 16, 16), 2048),
]
# The same reductions, and some that are not square, on small pictures.
SMALL = [
    (32, 16, (4, 16, 16)),
    (32, 16, (2, 16, 16)),
    (32, 32, (2, 16, 16)),
    (16, 16, (4, 8, 8)),
    (16, 16, (2, 8, 8)),
    ((8, 12), 8, (8, 4, 2)),
    ((16, 8), 4, (1, 8, 8)),
]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def small(img_size=16, num_frames=8, downsample=(4, 8, 8), **changes) -> VideoTokenizer:
    arguments = {"ch": 4, "num_res_blocks": 1, "codebook_size": 32, "embed_dim": 8} | changes
    return VideoTokenizer(img_size, num_frames, downsample, **arguments)


def clips(tokenizer: VideoTokenizer, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, tokenizer.num_frames, *tokenizer.img_size), dtype=torch.uint8)


def trained(tokenizer: VideoTokenizer, pixels: torch.Tensor, steps: int, lr: float = 3e-3) -> list[float]:
    """Some steps of a plain reconstruction loss; leaves the model in eval mode, returns the errors."""
    optimizer, images, errors = torch.optim.Adam(tokenizer.parameters(), lr=lr), tokenizer.normalize(pixels), []
    noise = torch.linspace(0, 0.9, len(pixels))
    tokenizer.train()
    for step in range(steps):
        tokenizer.quantizer.set_step(step)
        reconstruction, codes = tokenizer(images, noise)
        error = F.mse_loss(reconstruction, images)
        optimizer.zero_grad()
        (error + codes.loss).backward()
        optimizer.step()
        tokenizer.quantizer.after_step(step)
        errors.append(error.item())
    tokenizer.eval()
    return errors


@pytest.mark.parametrize("img_size, num_frames, downsample, grid, tokens", LAYOUTS)
def test_the_published_layouts_at_their_own_size(img_size, num_frames, downsample, grid, tokens):
    """On the meta device: all shapes, no memory, no work."""
    with torch.device("meta"):
        tokenizer = VideoTokenizer(img_size, num_frames, downsample)
        clip = torch.zeros(1, 3, num_frames, img_size, img_size)
    assert (tokenizer.grid, tokenizer.num_tokens) == (grid, tokens)
    assert (tokenizer.tubelet_size, tokenizer.vocab_size) == (downsample[0], 16384)
    latents = tokenizer.latents(clip)
    assert latents.shape == (1, 256, *grid)
    assert tokenizer.pixels(latents).shape == clip.shape


def test_levels_halve_until_a_factor_is_used_up():
    assert level_strides((4, 16, 16)) == [(2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)]
    assert level_strides((8, 4, 2)) == [(2, 2, 2), (2, 2, 1), (2, 1, 1)]
    assert level_strides((1, 1, 1)) == []
    tokenizer = VideoTokenizer(16, 4, (4, 16, 16), ch=8, codebook_size=8, embed_dim=4)
    assert tokenizer.encoder.conv_out.in_channels == tokenizer.decoder.conv_in.out_channels == 8 * 2**4


@pytest.mark.parametrize("layout", SMALL)
@pytest.mark.parametrize("steps", [0, 2])
def test_no_frame_influences_an_earlier_token(layout, steps):
    tokenizer = small(*layout)
    pixels = clips(tokenizer)
    trained(tokenizer, pixels, steps)
    u, T = tokenizer.tubelet_size, tokenizer.num_frames
    with torch.no_grad():
        latents, tokens = tokenizer.latents(tokenizer.normalize(pixels)), tokenizer.encode(pixels)
        for frame in {u - 1, u % T, T // 2, T - 1}:
            other = pixels.clone()
            other[:, :, frame] = 255 - other[:, :, frame]
            changed, slot = tokenizer.latents(tokenizer.normalize(other)), frame // u
            assert torch.equal(tokenizer.encode(other)[:, :slot], tokens[:, :slot])
            assert torch.equal(changed[:, :, :slot], latents[:, :, :slot]), f"frame {frame}"
            # Else the model would be causal by being blind.
            assert not torch.allclose(changed[:, :, slot], latents[:, :, slot], atol=1e-3), f"frame {frame}"


@pytest.mark.parametrize("layout", SMALL)
def test_no_slot_influences_an_earlier_frame(layout):
    tokenizer = small(*layout).eval()
    u = tokenizer.tubelet_size
    latents = torch.randn(1, 8, *tokenizer.grid)
    with torch.no_grad():
        pixels = tokenizer.pixels(latents)
        for slot in range(tokenizer.grid[0]):
            other = latents.clone()
            other[:, :, slot] += torch.randn(8, *tokenizer.grid[1:])
            changed = tokenizer.pixels(other)
            assert torch.equal(changed[:, :, : slot * u], pixels[:, :, : slot * u])
            for frame in range(slot * u, (slot + 1) * u):  # every frame of the slot is made of it
                assert not torch.allclose(changed[:, :, frame], pixels[:, :, frame], atol=1e-4)


@pytest.mark.parametrize("layout", SMALL)
def test_the_first_frames_alone_give_the_same_tokens_and_the_first_tokens_the_same_frames(layout):
    tokenizer = small(*layout)
    pixels = clips(tokenizer)
    trained(tokenizer, pixels, steps=2)
    tokens, u = tokenizer.encode(pixels), tokenizer.tubelet_size
    frames = tokenizer.decode(tokens)
    assert tokens.shape == (2, *tokenizer.grid) and frames.shape == pixels.shape
    with torch.no_grad():
        latents = tokenizer.latents(tokenizer.normalize(pixels))
        for k in range(1, tokenizer.grid[0]):
            first = pixels[:, :, : k * u]
            assert torch.equal(tokenizer.encode(first), tokens[:, :k])
            # Another number of frames may take other kernels: a rounding, no more.
            torch.testing.assert_close(
                tokenizer.latents(tokenizer.normalize(first)), latents[:, :, :k], rtol=1e-4, atol=1e-5
            )
            assert (tokenizer.decode(tokens[:, :k]).int() - frames[:, :, : k * u].int()).abs().max() <= 1


def test_every_parameter_is_trained():
    tokenizer = small(downsample=(4, 8, 4))
    images = tokenizer.normalize(clips(tokenizer))
    reconstruction, codes = tokenizer(images, torch.rand(2))
    (F.mse_loss(reconstruction, images) + codes.loss).backward()
    for part in (tokenizer.encoder, tokenizer.decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_it_learns_a_handful_of_clips():
    """Bright squares that move over a gradient: the error falls below a tenth of their variance."""
    tokenizer = small(16, 4, (2, 4, 4), ch=8, embed_dim=16, codebook_size=64)
    pixels = torch.zeros(3, 3, 4, 16, 16, dtype=torch.uint8)
    for b in range(3):
        pixels[b, b] += torch.arange(16, dtype=torch.uint8) * 8
        for t in range(4):
            pixels[b, :, t, 2 * t + b : 2 * t + b + 5, 4 * b : 4 * b + 6] = 230
    variance = tokenizer.normalize(pixels).var().item()
    errors = trained(tokenizer, pixels, steps=150)
    assert errors[0] > variance / 2 and errors[-1] < variance / 10
    decoded = tokenizer.decode(tokenizer.encode(pixels))
    assert (decoded.float() - pixels.float()).div(127.5).square().mean() < variance / 10


def test_checkpointing_changes_no_gradient():
    tokenizer = small()
    images, gradients = tokenizer.normalize(clips(tokenizer)), []
    for on in (False, True):
        tokenizer.encoder.checkpointing = tokenizer.decoder.checkpointing = on
        tokenizer.zero_grad()
        tokenizer.pixels(tokenizer.latents(images)).square().mean().backward()
        gradients.append([p.grad for part in (tokenizer.encoder, tokenizer.decoder) for p in part.parameters()])
    torch.testing.assert_close(*gradients)
    assert (tokenizer.encoder.checkpointing_part, tokenizer.decoder.checkpointing_part) == ("encoder", "decoder")


def test_its_card_makes_it_again(tmp_path):
    tokenizer = small((16, 24), 8, (4, 8, 4), quantizer="vq").eval()
    arguments = json.loads(json.dumps(tokenizer.arguments))
    assert VideoTokenizer(**arguments).arguments == tokenizer.arguments
    card = {"contract": "card", "version": 1, "architecture": {"class": "VideoTokenizer", "arguments": arguments}}
    save_weights(tmp_path, tokenizer, card)
    again, _ = load_tokenizer(tmp_path)
    pixels = clips(tokenizer)
    assert torch.equal(again.encode(pixels), tokenizer.encode(pixels)) and again.grid == (2, 2, 6)


@pytest.mark.parametrize(
    "arguments, telling",
    [
        ({"downsample": (3, 16, 16)}, r"downsample of time is 3, no power of two\. Fix: use for example 2"),
        ({"downsample": (4, 12, 16)}, r"downsample of height is 12, no power of two\. Fix: use for example 8"),
        ({"downsample": (4, 16, 0)}, r"downsample of width is 0, no power of two\. Fix: use for example 1"),
        ({"downsample": (4, 16)}, "downsample is .*give three factors"),
        ({"num_frames": 18}, r"downsample of time 4 does not divide 18 frames\. Fix: use 16 frames"),
        ({"num_frames": 2}, r"downsample of time 4 does not divide 2 frames\. Fix: use 4 frames"),
        ({"img_size": (256, 250)}, r"downsample of width 16 does not divide 250 pixels\. Fix: use 256 pixels"),
        ({"num_frames": 1, "downsample": (1, 16, 16)}, r"num_frames is 1\. Fix: .*for pictures"),
        ({"ch": 0}, "ch is 0"),
        ({"num_res_blocks": 0}, "num_res_blocks 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(arguments, telling):
    with pytest.raises(InputError, match=telling) as caught:
        VideoTokenizer(**arguments)
    assert "\n" not in str(caught.value)


def test_clips_of_another_length_or_size_are_refused():
    tokenizer = small()
    for shape in ((1, 3, 6, 16, 16), (1, 3, 12, 16, 16), (1, 3, 8, 16, 8), (1, 3, 16, 16)):
        with pytest.raises(InputError, match="do not fit a tokenizer for 3 x 8 x 16 x 16"):
            tokenizer.encode(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(InputError, match="token 32 is outside the vocabulary of 32"):
        tokenizer.decode(torch.full((1, 2, 2, 2), 32))
