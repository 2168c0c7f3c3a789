"""Gumbel quantization beside torch's gumbel_softmax, and its noise."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from headcam.tokenizers.quantizers.gumbel import GumbelVQ, gumbel_noise
from headcam.tokenizers.quantizers.kmeans import kmeans
from headcam.tokenizers.quantizers.nearest import nearest_code

K, D = 24, 5


def made(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GumbelVQ(K, D, **options)


def test_the_state_is_that_of_the_published_tokenizer():
    shapes = {key: tuple(value.shape) for key, value in made(kmeans=False).state_dict().items()}
    assert shapes == {"proj.weight": (K, D, 1, 1), "proj.bias": (K,), "codebook": (K, D)}


def test_values_and_gradients_are_those_of_the_hard_gumbel_softmax():
    """As taming-transformers states it with torch's gumbel_softmax(hard=True), fed with our noise."""
    quantizer = made(kl_weight=0.3, diversity_weight=0.0).train()
    quantizer.set_step(400_000)
    torch.manual_seed(1)
    x, keys, weights = torch.randn(2, D, 3, 4, requires_grad=True), torch.rand(2), torch.randn(2, D, 3, 4)
    out = quantizer(x, keys)
    ((out.quantized * weights).sum() + out.loss).backward()
    found = [x.grad, *(p.grad for p in (quantizer.codebook, quantizer.proj.weight, quantizer.proj.bias))]

    for tensor in (x, *quantizer.parameters()):
        tensor.grad = None
    logits = F.conv2d(x, quantizer.proj.weight, quantizer.proj.bias)
    noise = gumbel_noise(keys, 12, K).view(2, 3, 4, K).movedim(-1, 1)
    soft = ((logits + noise) / quantizer.temperature).softmax(1)
    hard = F.one_hot(soft.argmax(1), K).movedim(-1, 1) - soft.detach() + soft
    quantized = torch.einsum("bkhw,kd->bdhw", hard, quantizer.codebook)
    p = logits.softmax(1)
    loss = 0.3 * (p * torch.log(p * K + 1e-10)).sum(1).mean()
    ((quantized * weights).sum() + loss).backward()
    assert torch.equal(out.indices, soft.argmax(1))
    torch.testing.assert_close(out.quantized, quantized, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.loss, loss, rtol=1e-5, atol=1e-7)
    wanted = [x.grad, *(p.grad for p in (quantizer.codebook, quantizer.proj.weight, quantizer.proj.bias))]
    for mine, theirs in zip(found, wanted):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_the_diversity_term_is_the_divergence_of_the_mean_distribution():
    quantizer = made(kl_weight=0.0, diversity_weight=0.5).eval()
    x = torch.randn(2, D, 3, 4)
    logits = F.conv2d(x, quantizer.proj.weight, quantizer.proj.bias).double()
    mean = logits.softmax(1).mean((0, 2, 3))
    assert float(quantizer(x).loss.detach()) == pytest.approx(
        0.5 * float((mean * (mean * K).log()).sum().detach()), rel=1e-4
    )


def test_codes_start_among_the_latents_of_the_first_step_that_is_taken():
    """At the centres of k-means, and a token is the code nearest to its latent."""
    torch.manual_seed(0)
    quantizer, keys, latents = made().train(), torch.rand(6), torch.randn(6, D, 8, 9)
    quantizer(latents, keys)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.after_step(0, skip=1.0)
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())

    quantizer(latents[:3], keys[:3]), quantizer(latents[3:], keys[3:])  # two micro-batches of a step
    quantizer.after_step(0)
    rows = latents.movedim(1, -1).reshape(-1, D)
    centres = kmeans(rows, K, start="random").centres
    assert (quantizer.codebook - centres).norm(dim=1).max() < 0.5 * torch.pdist(centres).min()
    indices = quantizer.eval()(latents).indices.flatten()
    assert torch.equal(indices, nearest_code(rows, quantizer.codebook)) and len(indices.unique()) == K

    placed = quantizer.codebook.detach().clone()
    quantizer.train()(latents + 1, keys)
    quantizer.after_step(1)
    assert torch.equal(quantizer.codebook, placed)  # a start is once; also after a restart
    again = made().train()
    again.load_state_dict(quantizer.state_dict())
    again(latents + 1, keys)
    again.after_step(2)
    assert torch.equal(again.codebook, placed)


@pytest.mark.parametrize("places", [1, 7], ids=["all alike", "fewer than codes"])
def test_a_start_from_few_latents_is_finite_and_leaves_no_code_out_of_reach(places):
    torch.manual_seed(0)
    quantizer = made().train()
    latents = torch.randn(1, D, places).repeat(1, 1, 2)
    quantizer(latents, torch.rand(1))
    quantizer.after_step(0)
    assert all(torch.isfinite(value).all() for value in quantizer.state_dict().values())
    logits = F.linear(latents[0].t(), quantizer.proj.weight[..., 0, 0], quantizer.proj.bias)
    near = (logits.amax(0) - logits.amax()).abs()  # of each code, at the latent that is nearest to it
    assert near.max() < 20


def test_the_temperature_falls_by_a_cosine():
    quantizer = made()
    found = []
    for step in (0, 500_000, 1_000_001, 2_000_000):
        quantizer.set_step(step)
        found.append(quantizer.temperature)
    assert found[0] == 0.9 and found[2] == found[3] == 1e-6
    assert found[1] == pytest.approx(1e-6 + 0.5 * (0.9 - 1e-6) * (1 + math.cos(math.pi * 500_000 / 1_000_001)))


def test_noise_is_that_of_the_sample_whatever_the_batch():
    keys = torch.tensor([0.1, 0.7, 0.3])
    together = gumbel_noise(keys, 6, K).view(3, 6, K)
    assert torch.equal(gumbel_noise(keys[1:2], 6, K), together[1])
    assert torch.equal(gumbel_noise(keys.flip(0)[:, None], 6, K).view(3, 6, K).flip(0), together)
    assert not torch.equal(together[0], together[1])

    quantizer = made().train()
    x = torch.randn(3, D, 2, 3)
    assert torch.equal(quantizer(x[1:], keys[1:]).indices, quantizer(x, keys).indices[1:])
    with pytest.raises(ValueError, match="give noise"):
        quantizer(x)
    assert torch.equal(quantizer.eval()(x).indices, quantizer(x, keys).indices)  # nothing is drawn


def test_noise_is_distributed_as_gumbel_and_independent():
    keys = torch.from_numpy(np.random.default_rng(0).random(40, dtype=np.float32))
    found = gumbel_noise(keys, 100, 50).view(40, 5000).double().numpy()
    assert scipy.stats.kstest(found.ravel(), "gumbel_r").pvalue > 0.01
    for a, b in ((found[:-1], found[1:]), (found[:, :-1], found[:, 1:]), (found[:, :-50], found[:, 50:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.01


def test_codes_are_drawn_as_often_as_the_logits_say():
    quantizer = made().train()
    with torch.no_grad():
        quantizer.proj.weight.zero_()
        quantizer.proj.bias.copy_(torch.linspace(-2, 2, K))
    keys = torch.rand(50, generator=torch.Generator().manual_seed(0))
    indices = quantizer(torch.zeros(50, D, 20, 20), keys).indices
    wanted = torch.linspace(-2, 2, K).double().softmax(0).numpy()
    assert scipy.stats.chisquare(np.bincount(indices.flatten(), minlength=K), wanted * 20_000).pvalue > 0.01
