"""The chunked loss: equal to the plain one with its gradients, whatever the number of chunks, at bounded memory."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from headcam.tokenizers.autoregression import likelihood
from headcam.tokenizers.autoregression.likelihood import mean_nats, nats_of

B, P, D, K = 3, 10, 8, 50


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(B, P, D, generator=generator).requires_grad_()
    weight = torch.randn(K, D, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(0, K, (B, P), generator=generator)


def plain(hidden, weight, targets):
    return F.cross_entropy((hidden.double() @ weight.double().T).transpose(1, 2), targets.long(), reduction="none")


@pytest.mark.parametrize("positions", [1, 3, 10, 1000])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_value_and_gradients_are_those_of_plain_cross_entropy(inputs, monkeypatch, positions, dtype):
    monkeypatch.setattr(likelihood, "_SCORES", positions * K)
    hidden, weight, targets = inputs
    targets = targets.to(dtype)
    expected = plain(hidden, weight, targets)
    wanted = torch.autograd.grad(expected.mean(), (hidden, weight), retain_graph=True)
    loss = mean_nats(hidden, weight, targets)
    torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-6, atol=1e-6)
    for a, b in zip(torch.autograd.grad(3 * loss, (hidden, weight)), wanted):
        torch.testing.assert_close(a / 3, b, rtol=1e-5, atol=1e-6)

    nats = nats_of(hidden, weight, targets)
    torch.testing.assert_close(nats.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn(B, P, generator=torch.Generator().manual_seed(1))
    wanted = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    for a, b in zip(torch.autograd.grad((nats * upstream).sum(), (hidden, weight)), wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(mean_nats(hidden, weight, targets), nats_of(hidden, weight, targets).mean())


def test_under_bf16_the_gradients_are_those_of_plain_autocast(inputs):
    hidden, weight, targets = inputs
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.cross_entropy(F.linear(hidden, weight).float().transpose(1, 2), targets)
        loss = mean_nats(hidden, weight, targets)
    assert loss.dtype == torch.float32 and abs(loss - expected) < 1e-5
    wanted, found = (torch.autograd.grad(x, (hidden, weight)) for x in (expected, loss))
    for a, b in zip(found, wanted):
        assert a.dtype == torch.float32 and (a - b).abs().max() < 0.02 * b.abs().max()


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, in numbers."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.most = max(self.most, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.parametrize("score", [mean_nats, nats_of])
def test_scores_of_all_tokens_are_never_there_at_once(inputs, monkeypatch, score):
    monkeypatch.setattr(likelihood, "_SCORES", 2 * K)
    hidden, weight, targets = inputs
    with Largest() as seen:
        score(hidden, weight, targets).sum().backward()
    assert seen.most == max(B * 2 * K, K * D) < B * P * K
