"""What all quantizers promise (`quantizer.py`): exact round trip, pure eval, float32 inside, any grid and device."""

import pytest
import torch

from headcam.errors import InputError
from headcam.tokenizers.quantizers.table import QUANTIZERS, build_quantizer

K, D = 64, 16


def made(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_quantizer(name, K, D, options)


def latents(*grid, batch=3, seed=0):
    return torch.randn(batch, D, *grid, generator=torch.Generator().manual_seed(seed))


def state(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def trained(name, steps=4, **options):
    """A quantizer after some optimizer steps on random latents."""
    quantizer = made(name, **options).train()
    optimizer = torch.optim.SGD(list(quantizer.parameters()) or [torch.zeros(1)], lr=0.1)
    for step in range(steps):
        train_step(quantizer, optimizer, step)
    return quantizer


def train_step(quantizer, optimizer, step):
    x = latents(4, 4, seed=step).requires_grad_()
    quantizer.set_step(step)
    out = quantizer(x, torch.rand(3, generator=torch.Generator().manual_seed(step)))
    optimizer.zero_grad()
    (out.loss + (out.quantized - x.detach()).square().mean()).backward()
    optimizer.step()
    quantizer.after_step(step)


each = pytest.mark.parametrize("name", QUANTIZERS)


@each
@pytest.mark.parametrize("grid", [(4, 4), (2, 3, 5), (7,)])
@pytest.mark.parametrize("training", [True, False])
def test_tokens_stand_for_exactly_what_the_decoder_got(name, grid, training):
    quantizer = trained(name).train(training)
    out = quantizer(latents(*grid).double(), torch.rand(3))
    assert out.quantized.shape == (3, D, *grid) and out.quantized.dtype == torch.float32
    assert out.indices.shape == (3, *grid) and out.indices.dtype == torch.int64
    assert 0 <= int(out.indices.min()) and int(out.indices.max()) < K
    assert out.loss.shape == () and out.loss.isfinite()
    assert torch.equal(quantizer.dequantize(out.indices), out.quantized)


@each
def test_places_are_quantized_by_themselves_whatever_the_grid(name):
    quantizer = trained(name).eval()
    x = latents(4, 6)
    whole = quantizer(x)
    flat = quantizer(x.flatten(2))
    assert torch.equal(whole.indices.flatten(1), flat.indices)
    assert torch.equal(whole.quantized.flatten(2), flat.quantized)
    corner = quantizer(x[1:2, :, 2:3, 4:5])
    assert torch.equal(corner.indices, whole.indices[1:2, 2:3, 4:5])


@each
def test_the_gradient_reaches_the_latents_and_every_weight(name):
    quantizer = trained(name, steps=2)
    x = latents(4, 4).requires_grad_()
    out = quantizer(x, torch.rand(3))
    (out.quantized.square().mean() + out.loss).backward()
    assert float(x.grad.abs().sum()) > 0
    for key, parameter in quantizer.named_parameters():  # DistributedDataParallel waits for each of them
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@each
def test_eval_changes_no_state(name):
    quantizer = trained(name).eval()
    before = state(quantizer)
    for step in range(4, 7):
        quantizer(latents(4, 4, seed=step))
        quantizer.after_step(step)
    assert before.keys() == quantizer.state_dict().keys()
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


@each
@pytest.mark.parametrize("first", [True, False])
def test_a_skipped_step_changes_no_state(name, first):
    """Also when the latents were no numbers, which is why steps are skipped."""
    quantizer = made(name).train() if first else trained(name)
    before = state(quantizer)
    quantizer(torch.full((3, D, 4, 4), torch.nan), torch.rand(3))
    quantizer.after_step(4, torch.tensor(1.0))
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())
    quantizer(latents(4, 4), torch.rand(3))
    quantizer.after_step(5, torch.tensor(0.0))  # the skipped one has left nothing behind
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


@each
def test_a_resumed_run_ends_with_the_same_state(name):
    whole, half = trained(name, steps=8), trained(name, steps=4)
    resumed = made(name).train()
    resumed.load_state_dict(half.state_dict())
    optimizer = torch.optim.SGD(list(resumed.parameters()) or [torch.zeros(1)], lr=0.1)
    for step in range(4, 8):
        train_step(resumed, optimizer, step)
    assert all(torch.equal(whole.state_dict()[key], value) for key, value in resumed.state_dict().items())


@each
def test_its_arguments_and_state_make_it_again(name):
    quantizer = trained(name).eval()
    again = QUANTIZERS[name](**quantizer.arguments).eval()
    again.load_state_dict(quantizer.state_dict())
    x = latents(4, 4)
    assert torch.equal(again(x).quantized, quantizer(x).quantized)


@each
def test_autocast_does_not_reach_it(name):
    quantizer = trained(name).train()
    x, noise = latents(4, 4).bfloat16(), torch.rand(3)
    plain = quantizer(x, noise)
    with torch.autocast("cpu", torch.bfloat16):
        under = quantizer(x, noise)
        assert torch.equal(quantizer.dequantize(under.indices), plain.quantized)
    assert torch.equal(under.indices, plain.indices) and torch.equal(under.loss, plain.loss)


@each
def test_shapes_follow_on_the_meta_device(name):
    with torch.device("meta"):
        quantizer = build_quantizer(name, K, D).train()
    x = torch.empty(2, D, 2, 4, 4, device="meta", requires_grad=True)
    out = quantizer(x, torch.empty(2, 1, device="meta"))
    (out.quantized.sum() + out.loss).backward()
    quantizer.after_step(0)
    assert out.quantized.shape == x.shape and out.indices.shape == (2, 2, 4, 4) and x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("name", "options", "telling"),
    [
        ("vqvae", {}, "no quantizer 'vqvae'. Fix: take one of vq, ema, fsq, lfq, gumbel"),
        ("fsq", {"level": [8]}, "fsq has no option 'level'. Fix: its options are levels"),
        ("fsq", {"levels": [8, 8, 8]}, "make 512 codes, codebook_size is 64"),
        ("fsq", {"levels": [32, 2]}, "at least 3"),
        ("vq", {"codebook_weight": 0}, "codebook_weight is 0"),
        ("vq", {"code_dim": 0}, "code_dim is 0"),
        ("vq", {"threshold_ema_dead_code": 1.0}, "threshold_ema_dead_code is 1.0"),
        ("ema", {"decay": 1.0}, "decay is 1.0"),
        ("ema", {"commitment_weight": -1}, "commitment_weight is -1"),
        ("lfq", {"inv_temperature": -1}, "inv_temperature is -1"),
        ("gumbel", {"temperature_end": 0.0}, "from 0.9 to 0.0"),
        ("gumbel", {"kl_weight": -1e-3}, "kl_weight is -0.001"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(name, options, telling):
    with pytest.raises(InputError) as error:
        build_quantizer(name, K, D, options)
    assert telling in str(error.value) and "\n" not in str(error.value)


def test_sizes_that_a_scheme_cannot_have():
    with pytest.raises(InputError, match="no power of 2"):
        build_quantizer("lfq", 1000, D)
    with pytest.raises(InputError, match="no product of levels"):
        build_quantizer("fsq", 1009, D)
