"""VQ beside vector-quantize-pytorch and beside loops in float64; start, revival, records."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from vector_quantize_pytorch import VectorQuantize

from headcam.randomness import stream
from headcam.tokenizers.quantizers.vq import EMAVQ, GradientVQ

K, D = 32, 6
PLAIN = {"code_dim": None, "l2_normalize": False, "kmeans": False, "threshold_ema_dead_code": 0.0}


def latents(seed=0, batch=4, side=5):
    return torch.randn(batch, D, side, side, generator=torch.Generator().manual_seed(seed))


def rows_of(x):
    return x.movedim(1, -1).reshape(-1, D)


def peer_of(ours, **options):
    """vector-quantize-pytorch with our codebook; its own is (1, K, D)."""
    peer = VectorQuantize(
        dim=D,
        codebook_size=K,
        accept_image_fmap=True,
        **{"rotation_trick": False, "commitment_weight": 0.25, **options},
    ).train()
    with torch.no_grad():
        peer._codebook.embed.copy_(ours.codes()[None])
        peer._codebook.embed_avg.copy_(ours.codes()[None])
    return peer


@pytest.mark.parametrize("l2_normalize", [False, True])
def test_moving_averages_are_those_of_vector_quantize_pytorch(l2_normalize):
    torch.manual_seed(0)
    ours = EMAVQ(K, D, **PLAIN | {"l2_normalize": l2_normalize}, decay=0.9).train()
    ours.codebook.copy_(F.normalize(torch.randn(K, D), dim=1))  # apart enough for codes to be told
    ours.embed_avg.copy_(ours.codebook)
    peer = peer_of(ours, decay=0.9, use_cosine_sim=l2_normalize)
    for step in range(5):
        x, y = latents(step).requires_grad_(), latents(step).requires_grad_()
        mine, (quantized, indices, loss) = ours(x), peer(y)
        assert torch.equal(mine.indices, indices)
        torch.testing.assert_close(mine.quantized, quantized, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine.loss, loss.squeeze(), rtol=1e-5, atol=1e-7)
        weights = torch.randn_like(x)
        ((mine.quantized * weights).sum() + mine.loss).backward()
        ((quantized * weights).sum() + loss.sum()).backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5)
        ours.after_step(step)
        torch.testing.assert_close(ours.cluster_size, peer._codebook.cluster_size[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.embed_avg, peer._codebook.embed_avg[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.codebook, peer._codebook.embed[0], rtol=1e-4, atol=1e-5)


def test_the_rotated_gradient_is_that_of_vector_quantize_pytorch_and_the_codes_are_exact():
    torch.manual_seed(0)
    ours = EMAVQ(K, D, **PLAIN, rotation_trick=True).train()
    ours.codebook.copy_(torch.randn(K, D))
    peer = peer_of(ours, rotation_trick=True, commitment_weight=0.0)
    x, y = latents().requires_grad_(), latents().requires_grad_()
    mine, theirs = ours(x), peer(y)
    weights = torch.randn_like(x)
    (mine.quantized * weights).sum().backward()
    (theirs[0] * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    assert torch.equal(rows_of(mine.quantized), ours.codebook[mine.indices.flatten()])  # theirs is off by roundings


def test_the_rotation_against_its_matrices_in_float64():
    """Fifty et al. 2024, equation 4: the Jacobian is |q| / |e| R with R = I - 2 w w^T + 2 q e^T of unit vectors."""
    torch.manual_seed(0)
    quantizer = GradientVQ(K, D, **PLAIN, rotation_trick=True).train()
    with torch.no_grad():
        quantizer.codebook.copy_(torch.randn(K, D))
    x = latents(batch=1, side=2).requires_grad_()
    weights = torch.randn_like(x)
    out = quantizer(x)
    (out.quantized * weights).sum().backward()
    for e, q, g, found in zip(*(rows_of(t.detach()).double() for t in (x, out.quantized, weights, x.grad))):
        e1, q1 = e / e.norm(), q / q.norm()
        w = (e1 + q1) / (e1 + q1).norm()
        rotation = torch.eye(D) - 2 * torch.outer(w, w) + 2 * torch.outer(q1, e1)
        torch.testing.assert_close(q.norm() / e.norm() * rotation @ e, q, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found, q.norm() / e.norm() * rotation.T @ g, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_codebook_against_loops_in_float64():
    torch.manual_seed(0)
    quantizer = GradientVQ(K, D, **PLAIN, commitment_weight=0.25, codebook_weight=2.0).train()
    with torch.no_grad():
        quantizer.codebook.copy_(torch.randn(K, D))
    x = latents().requires_grad_()
    out = quantizer(x)
    out.loss.backward()
    rows, codes = rows_of(x.detach()).double(), quantizer.codebook.detach().double()
    total, of_codes, of_rows = 0.0, torch.zeros_like(codes), torch.zeros_like(rows)
    for i, row in enumerate(rows):
        distances = [float((row - code).square().sum()) for code in codes]
        k = int(np.argmin(distances))
        assert k == int(out.indices.flatten()[i])
        total += (0.25 + 2.0) * distances[k] / rows.numel()
        of_codes[k] += 2.0 * 2 * (codes[k] - row) / rows.numel()
        of_rows[i] = 0.25 * 2 * (row - codes[k]) / rows.numel()
    assert float(out.loss.detach()) == pytest.approx(total, rel=1e-5)
    torch.testing.assert_close(quantizer.codebook.grad.double(), of_codes, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(rows_of(x.grad).double(), of_rows, rtol=1e-5, atol=1e-7)


def test_normalised_codes_are_of_length_one_and_found_by_direction():
    quantizer = GradientVQ(K, D, code_dim=4, kmeans=False).eval()
    x = latents()
    codes = quantizer.codes()
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(K))
    cosines = F.normalize(quantizer.project_in(rows_of(x)), dim=1) @ codes.T
    assert torch.equal(quantizer(x).indices.flatten(), cosines.argmax(1))
    with torch.no_grad():
        quantizer.codebook.mul_(torch.rand(K, 1) + 0.5)  # their lengths are of no account
    assert torch.equal(quantizer(x).indices.flatten(), cosines.argmax(1))


@pytest.mark.parametrize("scheme", [GradientVQ, EMAVQ])
def test_codes_start_as_the_means_of_the_first_steps_latents_once(scheme):
    quantizer = scheme(K, D, **PLAIN | {"kmeans": True}).train()
    centres = 10 * torch.randn(K, D, generator=torch.Generator().manual_seed(1))
    x = (centres.repeat(4, 1) + 0.01 * torch.randn(4 * K, D)).view(4, K, D).movedim(-1, 1)[..., None]
    before = quantizer.codebook.detach().clone()
    first = quantizer(x[:2])  # two micro-batches
    quantizer(x[2:])
    assert torch.equal(quantizer.codebook, before) and not quantizer.initialized
    error = (first.quantized - x[:2]).square().mean()
    quantizer.after_step(0)
    assert quantizer.initialized
    assert (quantizer(x).quantized - x).square().mean() < 0.1 * error
    nearest = quantizer(x).indices.flatten()
    for k in nearest.unique():  # clusters lie apart, so Lloyd's iterations have come to rest
        torch.testing.assert_close(quantizer.codebook.detach()[k], rows_of(x)[nearest == k].mean(0))

    again = scheme(K, D, **PLAIN | {"kmeans": True}).train()
    again.load_state_dict(quantizer.state_dict())
    again(1000 + x)
    again.after_step(1)
    assert float(again.codebook.detach().max()) < 200  # it did not start once more


@pytest.mark.parametrize("scheme", [GradientVQ, EMAVQ])
def test_fewer_latents_than_codes_at_the_start_are_made_up_for_by_revival(scheme):
    quantizer = scheme(K, D, **PLAIN | {"kmeans": True, "threshold_ema_dead_code": 0.1}).train()
    for step in range(4):
        quantizer(latents(step, batch=1, side=4))
        quantizer.after_step(step)
        placed = int((quantizer.codebook.detach().norm(dim=1) > 0.5).sum())  # they begin within 1 / K of 0
        assert placed == min(K, 16 * (step + 1))


@pytest.mark.parametrize("scheme", [GradientVQ, EMAVQ])
def test_a_collapsed_codebook_revives(scheme):
    options = PLAIN | {"threshold_ema_dead_code": 0.1} | ({"decay": 0.8} if scheme is EMAVQ else {})
    quantizer, without = scheme(K, D, **options).train(), scheme(K, D, **options | {"threshold_ema_dead_code": 0.0})
    for each in (quantizer, without.train()):
        with torch.no_grad():
            each.codebook.fill_(100.0)
            each.codebook[0] = 0.0  # all others are out of reach
            if scheme is EMAVQ:
                each.embed_avg.copy_(each.codebook)
        for step in range(30 if scheme is EMAVQ else 260):  # until what was never used counts as dead
            each(latents(step))
            each.after_step(step)
        each.eval()
    x = latents(1000, batch=32)
    assert len(quantizer(x).indices.unique()) == K
    assert len(without(x).indices.unique()) == 1


def test_revived_codes_are_different_latents_of_the_step_drawn_by_its_number():
    quantizer = GradientVQ(K, D, **PLAIN | {"threshold_ema_dead_code": 0.1}).train()
    quantizer.usage.zero_()
    quantizer.usage[3] = 50.0
    kept = quantizer.codebook.detach()[3].clone()
    x = latents(batch=2)  # 50 rows for 31 codes
    quantizer(x)
    quantizer.after_step(7)
    order = stream(0, "code revival", 7).permutation(50)
    dead = [k for k in range(K) if k != 3]
    used = quantizer.codebook.detach()
    assert torch.equal(used[3], kept)
    assert torch.equal(used[dead], rows_of(x)[torch.from_numpy(order[: K - 1])])
    assert torch.equal(quantizer.usage[dead], torch.ones(K - 1))


def test_published_weights_need_no_records():
    """A codebook alone is a whole state with all options off, and is enough with them on."""
    assert list(GradientVQ(K, D, **PLAIN).state_dict()) == ["codebook"]
    codebook = torch.randn(K, D)
    for scheme in (GradientVQ, EMAVQ):
        quantizer = scheme(K, D, code_dim=None, l2_normalize=False).train()
        quantizer.load_state_dict({"codebook": codebook})
        quantizer(latents())
        quantizer.after_step(0)
        assert int(quantizer.initialized) == 1
        assert float((quantizer.codebook.detach() - codebook).abs().max()) < 0.1  # it goes on from there
    with pytest.raises(RuntimeError, match="project_in"):
        GradientVQ(K, D, code_dim=3).load_state_dict({"codebook": torch.randn(K, 3)})
