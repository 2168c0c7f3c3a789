"""Attention: three backends against the formula, masks against loops and xformers, what gets a line or an error."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from headcam.errors import InputError
from headcam.ssl import attention
from headcam.ssl.attention import (
    Attention,
    BlockDiagonal,
    attend,
    dense_mask,
    resolve_backend,
    set_attention_backend,
)
from headcam.ssl.vit import VisionTransformer

MASKS = {
    "none": None,
    "causal": "causal",
    "one block": BlockDiagonal((9,)),
    "equal blocks": BlockDiagonal((3, 3, 3)),
    "blocks": BlockDiagonal((2, 2, 4, 1)),
    "causal blocks": BlockDiagonal((4, 2, 2, 1), causal=True),
}


def tokens(queries: int = 9, keys: int = 9, batch: int = 1, heads: int = 2, head_dim: int = 8, dtype=torch.float32):
    """Queries of the last tokens, keys and values, laid out as a joint projection leaves them."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, keys, 3, heads, head_dim, generator=generator).to(dtype)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return tuple(x.detach().requires_grad_() for x in (q[:, :, keys - queries :], k, v))


def looped(q, k, v, mask):
    """Attention of each query as a sentence: which keys it sees, their softmax, the mean of their values."""
    q, k, v = (x.detach().double() for x in (q, k, v))
    shift = k.shape[2] - q.shape[2]
    block = [number for number, n in enumerate(getattr(mask, "lengths", [k.shape[2]])) for _ in range(n)]
    causal = mask == "causal" or getattr(mask, "causal", False)
    out = torch.zeros(q.shape, dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = [j for j in range(k.shape[2]) if block[j] == block[i + shift] and not (causal and j > i + shift)]
                weights = [math.exp(float(q[b, h, i] @ k[b, h, j]) / math.sqrt(q.shape[-1])) for j in seen]
                out[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, seen)) / sum(weights)
    return out


@pytest.mark.parametrize("backend", ["math", "sdpa"])
@pytest.mark.parametrize("name", MASKS)
def test_backends_are_the_published_formula(name, backend):
    q, k, v = tokens(batch=1, dtype=torch.float64)
    torch.testing.assert_close(attend(q, k, v, MASKS[name], backend), looped(q, k, v, MASKS[name]))


@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("queries", [1, 2, 5, 9])
@pytest.mark.parametrize("backend", ["math", "sdpa"])
def test_fewer_queries_are_those_of_the_last_tokens(backend, queries, mask):
    q, k, v = tokens(queries, 9, batch=2)
    wanted = looped(q, k, v, mask)
    torch.testing.assert_close(attend(q, k, v, mask, backend).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    "name, shape",
    [(name, dict(queries=9, keys=9)) for name in MASKS]
    + [("none", dict(queries=3, keys=17, batch=3)), ("causal", dict(queries=3, keys=17, batch=3, head_dim=5))]
    + [("causal", dict(queries=64, keys=64, batch=2, heads=3, head_dim=64))],
)
def test_sdpa_equals_math_in_values_and_gradients(name, shape, dtype, tolerance):
    outcomes = []
    for backend in ("sdpa", "math"):
        q, k, v = tokens(**shape, dtype=dtype)
        out = attend(q, k, v, MASKS[name], backend)
        assert out.dtype == dtype and out.shape == q.shape
        (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        outcomes.append([out, q.grad, k.grad, v.grad])
    for ours, reference in zip(*outcomes):
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["math", "sdpa"])
def test_packed_sequences_are_those_attended_one_by_one(backend):
    torch.manual_seed(0)
    layer = Attention(16, 4)
    layer.backend = backend
    sequences = [torch.randn(1, n, 16) for n in (5, 5, 3, 7, 3)]
    lengths = tuple(x.shape[1] for x in sequences)
    for causal in (False, True):
        packed = layer(torch.cat(sequences, dim=1), mask=BlockDiagonal(lengths, causal)).split(lengths, dim=1)
        for alone, together in zip(sequences, packed):
            torch.testing.assert_close(together, layer(alone, mask="causal" if causal else None))


@pytest.mark.parametrize("queries", [None, 4])
def test_a_causal_output_ignores_what_comes_after(queries):
    torch.manual_seed(0)
    layer, x = Attention(16, 4), torch.randn(2, 9, 16)
    changed = torch.cat([x[:, :7], torch.randn(2, 2, 16)], dim=1)  # tokens 7 and 8 are others
    a, b = layer(x, queries, "causal"), layer(changed, queries, "causal")
    torch.testing.assert_close(a[:, :-2], b[:, :-2])
    assert not torch.allclose(a[:, -2:], b[:, -2:])


@pytest.mark.parametrize(
    "mask, queries", [(BlockDiagonal((4, 4)), 9), (BlockDiagonal((4, 5)), 3)], ids=["tokens left over", "cut queries"]
)
def test_lengths_that_are_not_those_of_the_tokens_are_a_bug(mask, queries):
    with pytest.raises(ValueError, match="packs 1 x"):
        attend(*tokens(queries, 9), mask)
    with pytest.raises(ValueError, match=r"packs 1 x 9 tokens, got queries \(2, 2, 9, 8\)"):
        attend(*tokens(9, 9, batch=2), BlockDiagonal((4, 5)))


def test_no_dense_map_on_the_way(monkeypatch):
    """Masks reach PyTorch as None or `is_causal`, so that its flash kernels can serve them."""
    seen = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, **kwargs):
        seen.append(kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", spy)
    for mask in MASKS.values():
        attend(*tokens(), mask)
    attend(*tokens(1, 9), "causal")
    assert not any("attn_mask" in how for how in seen)
    assert len(seen) == 1 + 1 + 1 + 1 + 3 + 3 + 1  # a call for each run of equal lengths


@pytest.mark.parametrize(
    "mask, queries", [(None, None), ("causal", None), ("causal", 4), (BlockDiagonal((5, 4)), None)]
)
def test_torch_compile_traces_it_as_one_graph(mask, queries):
    torch.manual_seed(0)
    layer, x = Attention(16, 2), torch.randn(1, 9, 16)
    traced = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x, queries, mask), layer(x, queries, mask))


# --- xformers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fmha():
    module = pytest.importorskip("xformers.ops.fmha", reason="xformers is not installed")
    attention._fmha.cache_clear()
    attention._xformers_bias.cache_clear()
    yield module
    attention._fmha.cache_clear()
    attention._xformers_bias.cache_clear()


@pytest.mark.parametrize("name, queries", [*((name, 9) for name in MASKS), ("none", 4), ("causal", 4), ("causal", 1)])
def test_our_masks_are_those_of_xformers(fmha, name, queries):
    bias = attention._xformers_bias(MASKS[name], queries, 9, torch.device("cpu"))
    theirs = torch.zeros(queries, 9) if bias is None else bias.materialize((queries, 9))
    assert set(theirs.unique().tolist()) <= {0.0, -math.inf}
    assert torch.equal(dense_mask(MASKS[name], queries, 9), theirs == 0)


@pytest.mark.parametrize("name", MASKS)
def test_layout_for_xformers(fmha, monkeypatch, name):
    """Its masks and its layout (B, tokens, heads, head_dim), with a plain kernel in place of the one for CUDA."""

    def plain(query, key, value, attn_bias):
        q, k, v = (x.permute(0, 2, 1, 3) for x in (query, key, value))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        if attn_bias is not None:
            scores = scores + attn_bias.materialize(scores.shape[-2:])
        return (scores.softmax(-1) @ v).permute(0, 2, 1, 3)

    module = SimpleNamespace(memory_efficient_attention=plain, attn_bias=fmha.attn_bias)
    monkeypatch.setattr(attention, "_fmha", lambda: module)
    q, k, v = tokens()
    torch.testing.assert_close(
        attention._attend_xformers(q, k, v, MASKS[name]).double(), looped(q, k, v, MASKS[name]), rtol=1e-5, atol=1e-6
    )


def test_the_xformers_backend_computes_on_a_cpu_and_on_meta_tensors_too():
    q, k, v = tokens()
    assert torch.equal(attend(q, k, v, "causal", "xformers"), attend(q, k, v, "causal", "sdpa"))
    on_meta = [x.detach().to("meta") for x in tokens(4, 9)]
    assert attend(*on_meta, "causal", "xformers").shape == (1, 2, 4, 8)


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdpa", "math"])
@pytest.mark.parametrize("device", ["cpu", "cuda", torch.device("cuda", 1)])
def test_backends_of_torch_are_there_everywhere(name, device):
    assert resolve_backend(name, device) == (name, "")


def test_xformers_on_a_cpu_is_sdpa_with_one_line():
    name, why = resolve_backend("xformers", "cpu")
    assert name == "sdpa"
    assert "CUDA only and this is cpu" in why and "scaled_dot_product_attention" in why and "\n" not in why


def broken(error: Exception, *_):
    raise error


def test_a_missing_package_is_sdpa_with_what_to_install(monkeypatch):
    monkeypatch.setattr(attention, "_fmha", partial(broken, ModuleNotFoundError("No module named 'xformers'")))
    name, why = resolve_backend("xformers", "cuda")
    assert name == "sdpa"
    assert "No module named 'xformers'" in why and "pip install 'headcam[xformers]'" in why


def test_missing_kernels_are_sdpa_with_what_to_install(monkeypatch):
    monkeypatch.setattr(attention, "_fmha", lambda: None)
    monkeypatch.setattr(attention, "_try_kernels", partial(broken, NotImplementedError("No operator found\nfor ...")))
    name, why = resolve_backend("xformers", "cuda:0")
    assert name == "sdpa"
    assert "No operator found)" in why and f"for torch {torch.__version__}" in why and "\n" not in why


def test_working_kernels_are_used(monkeypatch):
    monkeypatch.setattr(attention, "_fmha", lambda: None)
    monkeypatch.setattr(attention, "_try_kernels", lambda device: None)
    assert resolve_backend("xformers", "cuda") == ("xformers", "")


@pytest.mark.parametrize("first", ["mslk", "xformers"])
def test_the_package_is_mslk_where_it_is_installed_and_xformers_else(monkeypatch, first):
    attention._fmha.cache_clear()

    def imported(name):
        if name.startswith("mslk") and first != "mslk":
            raise ImportError("No module named 'mslk'")
        return SimpleNamespace(__name__=name, memory_efficient_attention=None)

    monkeypatch.setattr(attention, "import_module", imported)
    assert attention._fmha().__name__ == {"mslk": "mslk.attention.fmha", "xformers": "xformers.ops.fmha"}[first]
    attention._fmha.cache_clear()


def test_xformers_without_attention_is_named(monkeypatch):
    attention._fmha.cache_clear()

    def imported(name):
        if name.startswith("mslk"):
            raise ImportError
        return SimpleNamespace(__name__=name)

    monkeypatch.setattr(attention, "import_module", imported)
    assert "mslk is missing" in resolve_backend("xformers", "cuda")[1]


def test_the_backend_is_set_in_every_layer_and_changes_nothing():
    torch.manual_seed(0)
    model, images = VisionTransformer(16, 8, embed_dim=16, depth=3, num_heads=2).eval(), torch.randn(2, 3, 16, 16)
    wanted = model(images)
    set_attention_backend(model, "math")
    assert [block.attn.backend for block in model.blocks] == ["math"] * 3
    torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)


def test_unknown_backends_are_refused():
    for call in (
        partial(resolve_backend, "flash", "cpu"),
        partial(set_attention_backend, torch.nn.Identity(), "flash"),
    ):
        with pytest.raises(InputError, match=r"no attention backend 'flash'.*use one of sdpa, xformers, math"):
            call()
