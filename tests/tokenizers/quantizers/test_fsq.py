"""FSQ beside vector-quantize-pytorch and the paper's table."""

import math

import pytest
import torch
from vector_quantize_pytorch import FSQ as PeerFSQ

from headcam.tokenizers.quantizers.fsq import FSQ, default_levels


@pytest.mark.parametrize("levels", [(8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (3, 4), (16,), (8, 8, 4, 4)])
def test_codes_indices_and_gradients_are_those_of_vector_quantize_pytorch(levels):
    dim = len(levels)
    ours, peer = (
        FSQ(math.prod(levels), dim, levels, diversity_weight=0.0, whiten=False).train(),
        PeerFSQ(list(levels)).train(),
    )
    torch.manual_seed(0)
    x = (3 * torch.randn(4, dim, 6, 6)).requires_grad_()
    y = x.detach().clone().requires_grad_()
    mine, (quantized, indices) = ours(x), peer(y)
    assert torch.equal(mine.indices, indices.long())
    torch.testing.assert_close(mine.quantized, quantized, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(x)
    (mine.quantized * weights).sum().backward()
    (quantized * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-6)
    assert float(mine.loss) == 0


@pytest.mark.parametrize(
    ("codebook_size", "levels"),
    [
        (240, (8, 6, 5)),  # Mentzer et al. 2023, table 1
        (1000, (8, 5, 5, 5)),
        (4375, (7, 5, 5, 5, 5)),
        (15360, (8, 8, 8, 6, 5)),
        (64000, (8, 8, 8, 5, 5, 5)),
        (1024, (8, 8, 4, 4)),
        (8192, (8, 8, 8, 4, 4)),
        (16384, (8, 8, 8, 8, 4)),
    ],
)
def test_default_levels(codebook_size, levels):
    assert default_levels(codebook_size) == levels
    assert FSQ(codebook_size, 8).levels == levels


@pytest.mark.parametrize("levels", [(3,), (4,), (8, 5), (7, 6, 3)])
def test_every_code_stands_for_itself_and_can_be_reached(levels):
    quantizer = FSQ(math.prod(levels), len(levels), levels, whiten=False)
    indices = torch.arange(math.prod(levels))[None]
    codes = quantizer.dequantize(indices)
    assert len(codes[0].T.unique(dim=0)) == math.prod(levels)
    bounded = (codes[0].T * quantizer._center + quantizer._offset) / quantizer._half
    x = torch.atanh(bounded.clamp(-1 + 1e-4, 1 - 1e-4)) - quantizer._shift
    assert torch.equal(quantizer(x.T[None]).indices, indices)
    assert torch.equal(quantizer(torch.zeros(1, len(levels), 1)).quantized, torch.zeros(1, len(levels), 1))


def test_the_diversity_term_is_the_divergence_of_the_mean_distribution():
    """Against all probabilities of all codes in float64."""
    levels = (5, 4, 3)
    quantizer = FSQ(60, 3, levels, diversity_weight=0.5, whiten=False).eval()
    rows = 2 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    half, offset = quantizer._half.double(), quantizer._offset.double()
    bounded = torch.tanh(rows.double() + quantizer._shift.double()) * half - offset
    codes = quantizer.lookup(torch.arange(60)).double() * quantizer._center  # in units of levels
    p = (-4 * (bounded[:, None] - codes).square().sum(2)).softmax(1).mean(0)
    found = quantizer(rows[:, :, None]).loss
    assert float(found) == pytest.approx(0.5 * float((p * (60 * p).log()).sum()), rel=1e-4)


def test_the_diversity_term_spreads_latents_over_all_codes():
    torch.manual_seed(0)
    start = 0.1 * torch.randn(2048, 3, 1)
    used = {}
    for weight in (0.0, 1.0):
        x = start.clone().requires_grad_()
        quantizer = FSQ(125, 3, diversity_weight=weight, whiten=False).train()
        optimizer = torch.optim.Adam([x], lr=0.05)
        for _ in range(100 if weight else 0):
            optimizer.zero_grad()
            quantizer(x).loss.backward()
            optimizer.step()
        used[weight] = len(quantizer(x).indices.unique())
    assert used[0.0] < 30 and used[1.0] == 125
