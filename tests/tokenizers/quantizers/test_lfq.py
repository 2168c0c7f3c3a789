"""LFQ beside vector-quantize-pytorch and beside the full table of probabilities in float64."""

import pytest
import torch
from vector_quantize_pytorch import LFQ as PeerLFQ

from headcam.tokenizers.quantizers.lfq import LFQ


def test_indices_quantized_and_loss_are_those_of_vector_quantize_pytorch():
    options = {"entropy_loss_weight": 0.1, "diversity_gamma": 2.0}
    ours = LFQ(64, 6, **options, inv_temperature=0.7, commitment_weight=0.25, whiten=False).train()
    peer = PeerLFQ(codebook_size=64, dim=6, **options, commitment_loss_weight=0.25).train()
    torch.manual_seed(0)
    x = torch.randn(4, 6, 5, 5).requires_grad_()
    y = x.detach().clone().requires_grad_()
    mine, theirs = ours(x), peer(y, inv_temperature=0.7)
    assert torch.equal(mine.indices, theirs.indices.long())
    torch.testing.assert_close(mine.quantized, theirs.quantized, rtol=0, atol=1e-6)
    torch.testing.assert_close(mine.loss, theirs.entropy_aux_loss, rtol=1e-3, atol=1e-4)  # theirs cuts logs at 1e-5
    weights = torch.randn_like(x)
    ((mine.quantized * weights).sum() + mine.loss).backward()
    ((theirs.quantized * weights).sum() + theirs.entropy_aux_loss).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("bits", "inv_temperature"), [(1, 1.0), (2, 0.1), (5, 1.0), (6, 20.0)])
def test_entropies_against_all_probabilities_in_float64(bits, inv_temperature):
    quantizer = LFQ(2**bits, bits, inv_temperature=inv_temperature)
    rows = torch.randn(50, bits, generator=torch.Generator().manual_seed(0))
    codes = quantizer.lookup(torch.arange(2**bits)).double()
    p = (2 * inv_temperature * rows.double() @ codes.T).softmax(1)
    each, together = quantizer.entropies(rows)
    torch.testing.assert_close(each.double(), torch.special.entr(p).sum(1).mean(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(together.double(), torch.special.entr(p.mean(0)).sum(), rtol=1e-5, atol=1e-7)


def test_bits_are_signs_the_first_one_the_highest():
    quantizer = LFQ(8, 3)
    out = quantizer(torch.tensor([[0.2, -3.0, 0.1], [-1.0, -1.0, 5.0], [0.0, 0.0, 0.0]])[:, :, None])
    assert out.indices.flatten().tolist() == [0b101, 0b001, 0b000]
    assert out.quantized[0, :, 0].tolist() == [1.0, -1.0, 1.0]


def test_the_entropy_term_spreads_latents_over_all_codes():
    torch.manual_seed(0)
    start = 1 + 0.1 * torch.randn(512, 4, 1)
    used = {}
    for weight in (0.0, 1.0):
        x = start.clone().requires_grad_()
        quantizer, optimizer = (
            LFQ(16, 4, entropy_loss_weight=weight, whiten=False).train(),
            torch.optim.Adam([x], lr=0.05),
        )
        for _ in range(150):
            optimizer.zero_grad()
            quantizer(x).loss.backward()
            optimizer.step()
        used[weight] = len(quantizer(x).indices.unique())
    assert used == {0.0: 1, 1.0: 16}


def test_many_codes_cost_no_table_of_probabilities():
    quantizer = LFQ(2**18, 18).train()
    out = quantizer(torch.randn(2, 18, 8, 8, requires_grad=True))  # a table of 128 x 2^18 would be 134 MB a copy
    out.loss.backward()
    assert out.loss.isfinite()
