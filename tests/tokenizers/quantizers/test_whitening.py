"""Whitening beside numpy's covariance: what comes out is spread evenly; running figures; no look at the batch."""

import numpy as np
import torch

from headcam.tokenizers.quantizers.fsq import FSQ
from headcam.tokenizers.quantizers.whitening import Whitening


def rows(seed=0, n=500):
    """Dimensions that say nearly the same, small beside a constant: as an encoder's at the start of training."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, 3, generator=generator) @ torch.tensor([[0.1, 0.1, 0.1], [0.0, 0.01, 0.0], [0.0, 0.0, 0.03]])
    return 2 + mixed


def test_the_first_step_sets_the_figures_and_later_ones_move_them():
    whitening = Whitening(3).train()
    whitening(rows()[:200])  # two micro-batches
    whitening(rows()[200:])
    whitening.update(0.0)
    mean, covariance = rows().double().mean(0), torch.from_numpy(np.cov(rows().double().T.numpy(), bias=True))
    torch.testing.assert_close(whitening.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(whitening.covariance.double(), covariance, rtol=1e-2, atol=1e-5)
    out = whitening.eval()(rows()).double()
    torch.testing.assert_close(out.mean(0), torch.zeros(3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(out.T @ out / 500, torch.eye(3).double(), rtol=0, atol=0.05)

    whitening.train()(rows(1) + 1)
    whitening.update(1.0)
    torch.testing.assert_close(whitening.mean.double(), mean, rtol=1e-5, atol=1e-6)
    whitening(rows(1) + 1)
    whitening.update(0.0)
    moved = 0.99 * mean + 0.01 * (rows(1).double().mean(0) + 1)
    torch.testing.assert_close(whitening.mean.double(), moved, rtol=1e-6, atol=0)


def test_a_row_comes_out_the_same_whatever_the_batch():
    whitening = Whitening(3).train()
    whitening(rows())
    whitening.update(0.0)
    torch.testing.assert_close(whitening(rows()[7:8]), whitening(rows())[7:8])


def test_rows_that_hardly_differ_use_all_codes_of_fsq():
    used = {}
    for whiten in (False, True):
        quantizer = FSQ(125, 3, whiten=whiten).train()
        for step in range(2):
            quantizer(rows(step, 4000).t()[None])
            quantizer.after_step(step)
        used[whiten] = len(quantizer.eval()(rows(2, 4000).t()[None]).indices.unique())
    assert used[False] < 5 and used[True] > 115
