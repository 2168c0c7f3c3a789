"""FSQ beside vector-quantize-pytorch and the paper's table."""

import math

import pytest
import torch
from vector_quantize_pytorch import FSQ as PeerFSQ

from headcam.tokenizers.quantizers.fsq import FSQ, default_levels


@pytest.mark.parametrize("levels", [(8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (3, 4), (16,), (8, 8, 4, 4)])
def test_codes_indices_and_gradients_are_those_of_vector_quantize_pytorch(levels):
    dim = len(levels)
    ours, peer = FSQ(math.prod(levels), dim, levels, whiten=False).train(), PeerFSQ(list(levels)).train()
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
