"""Causal blocks: parity with plain loops, what each output depends on, the order in memory."""

import pytest
import torch
import torch.nn.functional as F

from headcam.tokenizers.autoencoders.causal import (
    Downsample,
    FrameConv,
    FrameNorm,
    ResidualBlock,
    TimeConv,
    Upsample,
    as_clips,
    as_frames,
)


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def reached(block, x: torch.Tensor) -> torch.Tensor:
    """(T', T) bool: whether output frame i depends on input frame j, by gradients."""
    x = x.clone().requires_grad_()
    rows = []
    for frame in block(x).unbind(2):
        (gradient,) = torch.autograd.grad(frame.square().sum(), x, retain_graph=True)
        rows.append(gradient.abs().sum(dim=(0, 1, 3, 4)) > 0)
    return torch.stack(rows)


@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (4, 2), (2, 2), (1, 1), (5, 1), (4, 4)])
def test_a_time_convolution_is_the_plain_loop(kernel, stride):
    conv, x = TimeConv(3, 5, kernel, stride).double(), torch.randn(2, 3, 8, 2, 3, dtype=torch.float64)
    slots = []
    for j in range(8 // stride):
        last = stride * (j + 1) - 1  # of the frames of slot j
        total = conv.bias.view(1, 5, 1, 1).expand(2, 5, 2, 3)
        for k in range(kernel):
            frame = x[:, :, max(0, last - k)]  # before the first frame there is the first frame
            total = total + torch.einsum("oi,bihw->bohw", conv.weight[:, :, kernel - 1 - k, 0], frame)
        slots.append(total)
    torch.testing.assert_close(conv(x), torch.stack(slots, dim=2))


def test_frames_are_convolved_one_by_one():
    conv, x = FrameConv(3, 4, 3, stride=2, padding=1).double(), torch.randn(2, 3, 5, 6, 8, dtype=torch.float64)
    wanted = torch.stack([F.conv2d(frame, conv.weight, conv.bias, 2, 1) for frame in x.unbind(2)], dim=2)
    torch.testing.assert_close(conv(x), wanted)


@pytest.mark.parametrize("channels, groups", [(16, 4), (32, 8), (128, 32), (512, 32), (18, 2), (3, 1)])
def test_frames_are_normalised_one_by_one(channels, groups):
    norm, x = FrameNorm(channels).double(), 3 + torch.randn(2, channels, 3, 4, 5, dtype=torch.float64)
    wanted = torch.empty_like(x)
    for b in range(2):
        for t in range(3):
            for part in torch.arange(channels).chunk(groups):
                values = x[b, part, t]
                wanted[b, part, t] = (values - values.mean()) / (values.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), wanted)


def test_a_residual_block_starts_from_its_input():
    block, x = ResidualBlock(8), torch.randn(1, 8, 4, 3, 3)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    assert torch.equal(block(x), x)


def test_an_output_depends_on_its_frame_and_the_two_before():
    seen = reached(ResidualBlock(4), torch.randn(1, 4, 6, 3, 3))
    frames = torch.arange(6)
    distance = frames[:, None] - frames
    assert torch.equal(seen, (distance >= 0) & (distance <= 2))


def test_strides_in_a_row_keep_slots_apart():
    """Slot j after a reduction by 4 sees frames < 4 (j + 1), its own last one among them, and nothing of the next."""
    blocks = torch.nn.Sequential(Downsample(2, 4, (2, 2, 2)), Downsample(4, 8, (2, 1, 2)))
    x = torch.randn(1, 2, 12, 4, 4)
    assert blocks(x).shape == (1, 8, 3, 2, 1)
    seen = reached(blocks, x)
    for j, row in enumerate(seen):
        assert row[4 * j : 4 * (j + 1)].all() and not row[4 * (j + 1) :].any(), j


def test_a_frame_is_made_of_its_slot_and_earlier_ones():
    blocks = torch.nn.Sequential(Upsample(4, 4, (2, 2, 2)), Upsample(4, 2, (2, 1, 2)))
    x = torch.randn(1, 4, 3, 2, 2)
    assert blocks(x).shape == (1, 2, 12, 4, 8)
    seen = reached(blocks, x)  # (12, 3)
    for frame, row in enumerate(seen):
        assert row[frame // 4] and not row[frame // 4 + 1 :].any(), frame


def test_a_slot_lays_its_frames_out_in_order():
    """Of 2 x C channels the first C are a slot's first frame: by hand, slot j becomes the frames 10 j and 10 j + 1."""
    block = Upsample(2, 2, (2, 1, 1))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        for c in range(2):
            block.time.weight[[c, 2 + c], c, -1, 0] = 10
            block.time.bias[2 + c] = 1
            block.conv.weight[c, c, 1, 1] = 1
    slots = torch.tensor([[0.0, 1, 2], [7, 8, 9]]).view(1, 2, 3, 1, 1).expand(1, 2, 3, 2, 2)
    frames = block(slots)[0, :, :, 1, 1].tolist()
    assert frames == [[0, 1, 10, 11, 20, 21], [70, 71, 80, 81, 90, 91]]


def test_rows_and_columns_are_repeated_before_the_convolution():
    block = Upsample(1, 1, (1, 2, 1))
    with torch.no_grad():
        block.conv.weight.zero_()[0, 0, 1, 1] = 1
        block.conv.bias.zero_()
    x = torch.randn(1, 1, 2, 3, 2)
    assert torch.equal(block(x), x.repeat_interleave(2, dim=3))


def test_channels_stay_last_in_memory():
    """Frames are a view then, and no block falls back to copying."""
    x = torch.randn(2, 8, 4, 6, 6).contiguous(memory_format=torch.channels_last_3d)
    assert as_frames(x).data_ptr() == x.data_ptr() and torch.equal(as_clips(as_frames(x), 4), x)
    for block in (ResidualBlock(8), Downsample(8, 16, (2, 2, 2)), Upsample(8, 4, (2, 2, 2))):
        assert block(x).is_contiguous(memory_format=torch.channels_last_3d), block
