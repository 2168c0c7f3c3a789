"""The convolutional tokenizer against a plain statement of VQGAN, the published sizes, and one-line errors."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headcam.errors import InputError
from headcam.ssl.attention import set_attention_backend
from headcam.ssl.planning.flops import set_checkpointing
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer

TINY = {"ch": 32, "ch_mult": (1, 2, 2), "z_channels": 24, "embed_dim": 16, "codebook_size": 48}
# The quantizer of the published models: codes as wide as the latents, nothing but them in its state.
PLAIN_VQ = {"code_dim": None, "l2_normalize": False, "kmeans": False, "threshold_ema_dead_code": 0.0}


def tiny(**changes) -> ConvTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = ConvTokenizer(**{"img_size": 32, "attn_resolutions": (16,), "num_res_blocks": 1, **TINY, **changes})
        for parameter in tokenizer.parameters():  # norms and biases too
            parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return tokenizer.eval()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny(quantizer_options=PLAIN_VQ)


def images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(3)) * 2 - 1


# A plain statement of the original, in float64


class Plain:
    """VQGAN's two maps, read off their weights by name: which blocks there are follows from the keys."""

    def __init__(self, state: dict[str, Tensor]):
        self.state = {key: value.double() for key, value in state.items()}

    def conv(self, name: str, x: Tensor, **how) -> Tensor:
        return F.conv2d(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"], **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        groups = x.reshape(B, 32, C // 32 * H * W)
        mean = groups.mean(-1, keepdim=True)
        variance = ((groups - mean) ** 2).mean(-1, keepdim=True)
        x = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(B, C, H, W)
        return x * self.state[f"{name}.weight"].view(C, 1, 1) + self.state[f"{name}.bias"].view(C, 1, 1)

    def swish(self, x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    def residual(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", self.swish(self.norm(f"{name}.norm1", x)), padding=1)
        h = self.conv(f"{name}.conv2", self.swish(self.norm(f"{name}.norm2", h)), padding=1)
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attend(self, name: str, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.norm(f"{name}.norm", x)
        q, k, v = (self.conv(f"{name}.{part}", h).reshape(B, C, H * W) for part in "qkv")
        weights = torch.einsum("bci,bcj->bij", q, k) / math.sqrt(C)
        weights = torch.softmax(weights, dim=2)
        out = torch.einsum("bij,bcj->bci", weights, v).reshape(B, C, H, W)
        return x + self.conv(f"{name}.proj_out", out)

    def level(self, name: str, x: Tensor) -> Tensor:
        block = 0
        while f"{name}.block.{block}.conv1.weight" in self.state:
            x = self.residual(f"{name}.block.{block}", x)
            if f"{name}.attn.{block}.q.weight" in self.state:
                x = self.attend(f"{name}.attn.{block}", x)
            block += 1
        return x

    def middle(self, name: str, x: Tensor) -> Tensor:
        x = self.attend(f"{name}.attn_1", self.residual(f"{name}.block_1", x))
        return self.residual(f"{name}.block_2", x)

    def levels(self, name: str) -> list[int]:
        return sorted({int(key.split(".")[2]) for key in self.state if key.startswith(f"{name}.")})

    def latents(self, x: Tensor) -> Tensor:
        x = self.conv("encoder.conv_in", x.double(), padding=1)
        for k in self.levels("encoder.down"):
            x = self.level(f"encoder.down.{k}", x)
            if k < self.levels("encoder.down")[-1]:
                bordered = torch.zeros(*x.shape[:2], x.shape[2] + 1, x.shape[3] + 1, dtype=x.dtype)
                bordered[:, :, :-1, :-1] = x  # zeros at the right and the bottom
                x = self.conv(f"encoder.down.{k}.downsample.conv", bordered, stride=2)
        x = self.swish(self.norm("encoder.norm_out", self.middle("encoder.mid", x)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x, padding=1))

    def pixels(self, z: Tensor) -> Tensor:
        x = self.conv("decoder.conv_in", self.conv("post_quant_conv", z.double()), padding=1)
        x = self.middle("decoder.mid", x)
        for k in reversed(self.levels("decoder.up")):
            x = self.level(f"decoder.up.{k}", x)
            if k > 0:
                x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
                x = self.conv(f"decoder.up.{k}.upsample.conv", x, padding=1)
        x = self.swish(self.norm("decoder.norm_out", x))
        return self.conv("decoder.conv_out", x, padding=1)


@pytest.mark.parametrize("changes", [{}, {"img_size": (24, 40), "attn_resolutions": (12, 6), "num_res_blocks": 2}])
def test_both_maps_are_those_of_the_plain_statement(changes):
    tokenizer = tiny(**changes)
    plain = Plain(tokenizer.state_dict())
    x = images(2, 3, *tokenizer.img_size)
    z = torch.randn(2, 16, *tokenizer.grid, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(tokenizer.latents(x).double(), plain.latents(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(tokenizer.pixels(z).double(), plain.pixels(z), atol=1e-5, rtol=1e-4)


def test_tokens_are_the_nearest_codes_and_come_back_as_their_pixels(tokenizer):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    tokens = tokenizer.encode(pixels)
    plain = Plain(tokenizer.state_dict())
    latents = plain.latents(pixels.double() / 127.5 - 1)  # (2, 16, 8, 8)
    codebook = tokenizer.quantizer.codebook.detach().double()
    wanted = (latents.permute(0, 2, 3, 1).unsqueeze(-2) - codebook).square().sum(-1).argmin(-1)
    assert tokens.shape == (2, 8, 8) and tokens.dtype == torch.int64 and torch.equal(tokens, wanted)
    wanted = ((plain.pixels(codebook[tokens].permute(0, 3, 1, 2)) + 1) * 127.5).round().clamp(0, 255)
    found = tokenizer.decode(tokens)
    assert found.dtype == torch.uint8 and (found.double() - wanted).abs().max() <= 1  # ties of rounding


def test_the_class_makes_the_same_tokenizer_of_its_arguments(tokenizer):
    again = ConvTokenizer(**tokenizer.arguments)
    again.load_state_dict(tokenizer.state_dict())
    x = images(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.eval()(x)[0], tokenizer(x)[0])
    assert again.arguments == tokenizer.arguments and tokenizer.arguments["img_size"] == [32, 32]


# Sizes


@pytest.mark.parametrize(
    "arguments, parameters, grid",
    [
        ({"quantizer_options": PLAIN_VQ}, 66_890_627, (32, 32)),
        (
            {
                "ch_mult": (1, 1, 2, 2, 4),
                "attn_resolutions": (16,),
                "codebook_size": 16384,
                "quantizer_options": PLAIN_VQ,
            },
            76_073_859,
            (16, 16),
        ),
        ({"quantizer": "gumbel"}, 68_995_971, (32, 32)),
    ],
)
def test_published_sizes(arguments, parameters, grid):
    """66.9 M and 76.1 M of the published models' listing of keys and shapes, losses left out; Gumbel's 69.0 M alike."""
    with torch.device("meta"):
        tokenizer = ConvTokenizer(**arguments)
    assert sum(p.numel() for p in tokenizer.parameters()) == parameters
    assert tokenizer.grid == grid and tokenizer.num_tokens == grid[0] * grid[1]


@pytest.mark.parametrize("quantizer", ["vq", "ema", "fsq", "gumbel"])
def test_a_small_one_for_a_cpu_takes_any_quantizer(quantizer):
    tokenizer = tiny(img_size=64, ch_mult=(1, 2, 2, 4), attn_resolutions=(8,), codebook_size=64, quantizer=quantizer)
    assert tokenizer.grid == (8, 8)
    tokens = tokenizer.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert tokenizer.decode(tokens).shape == (1, 3, 64, 64)


# How it is computed changes no number


def losses(tokenizer: ConvTokenizer, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    tokenizer.zero_grad(set_to_none=True)
    loss = (tokenizer.pixels(tokenizer.latents(x)[:, :16]) - x).square().mean()
    loss.backward()
    return loss.detach(), [
        p.grad.clone() for name, p in tokenizer.named_parameters() if not name.startswith("quantizer")
    ]


def test_checkpointing_changes_no_gradient_and_is_switched_by_part(tokenizer):
    x = images(1, 3, 32, 32)
    loss, gradients = losses(tokenizer, x)
    for part in ("encoder", "decoder", "all"):
        set_checkpointing(tokenizer, part)
        switched = {
            name.split(".")[0] for name, module in tokenizer.named_modules() if getattr(module, "checkpointing", 0)
        }
        assert switched == ({"encoder", "decoder"} if part == "all" else {part})
        again, others = losses(tokenizer, x)
        assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(gradients, others))
    set_checkpointing(tokenizer, "none")


def test_attention_backends_reach_the_convolutional_layers_and_agree(tokenizer):
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        wanted = tokenizer.latents(x)
        set_attention_backend(tokenizer, "math")
        backends = [module.backend for module in tokenizer.modules() if hasattr(module, "backend")]
        found = tokenizer.latents(x)
    set_attention_backend(tokenizer, "sdpa")
    assert backends == ["math"] * 5  # level of 16 places: 1 down, 2 up; one in the middle of each
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_channels_last_stays_so_and_agrees(tokenizer):
    x = images(2, 3, 32, 32)
    with torch.no_grad():
        wanted = tokenizer.latents(x)
        found = (
            tiny(quantizer_options=PLAIN_VQ)
            .to(memory_format=torch.channels_last)
            .latents(x.to(memory_format=torch.channels_last))
        )
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


# One-line errors


@pytest.mark.parametrize(
    "changes, telling",
    [
        (
            {"img_size": 30},
            r"img_size 30 x 30 is not divided by the 4 of 3 levels\. Fix: use sides that are multiples of 4",
        ),
        ({"img_size": (32, 2)}, "img_size 32 x 2 is not divided"),
        (
            {"attn_resolutions": (12,)},
            r"attn_resolutions name 12, which no level has at 32 x 32.*choose among 32, 16, 8",
        ),
        ({"ch": 48}, r"48 channels cannot be normalised in 32 groups\. Fix: choose ch so that"),
        ({"ch_mult": ()}, "ch_mult is empty"),
        ({"quantizer": "vqvae"}, "there is no quantizer 'vqvae'"),
    ],
)
def test_what_does_not_fit_gets_one_line(changes, telling):
    with pytest.raises(InputError, match=telling) as error:
        tiny(**changes)
    assert "\n" not in str(error.value)


def test_widths_below_32_have_a_group_a_channel():
    tokenizer = tiny(ch=16, ch_mult=(1, 2, 4))
    assert {(m.num_channels, m.num_groups) for m in tokenizer.modules() if isinstance(m, torch.nn.GroupNorm)} == {
        (16, 16),
        (32, 32),
        (64, 32),
    }
