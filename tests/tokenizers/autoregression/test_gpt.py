"""The GPT: equal to an independent minGPT, causal, an exact likelihood, the same with a cache and without."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headcam.errors import InputError
from headcam.ssl.attention import set_attention_backend
from headcam.ssl.objective import parameter_groups
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoregression.gpt import GPT, PRESETS, load_gpt

K = 11
SMALL = {"vocab_size": K, "embed_dim": 24, "depth": 2, "num_heads": 2}
GRIDS = ((3, 4), (2, 2, 3))
STARTS = {"learned": {}, "class": {"num_classes": 3}, "none": {}}


def small(grid=(3, 4), start_token="learned", positions="learned", seed=0, **more) -> GPT:
    """A model with weights large enough that every part shows in its output."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {**SMALL, "start_token": start_token, "positions": positions, **STARTS[start_token], **more}
        model = GPT(grid=grid, **settings)
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch(model: GPT, size: int = 2, seed: int = 1) -> tuple[Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, model.vocab_size, (size, *model.grid), generator=generator)
    labels = torch.arange(size) % model.num_classes if model.num_classes else None
    return tokens, labels


everything = pytest.mark.parametrize(
    ("grid", "start_token", "positions"), list(itertools.product(GRIDS, STARTS, ("learned", "rotary")))
)


class MinGPT(nn.Module):
    """minGPT as its papers and names say it: three projections, a mask of -inf, one head at a time, in float64."""

    def __init__(self, model: GPT):
        super().__init__()
        self.state = {name: nn.Parameter(p.detach().double().clone()) for name, p in model.named_parameters()}
        self.depth, self.heads = model.depth, model.num_heads

    def norm(self, x: Tensor, name: str) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return x * self.state[f"{name}.weight"] + self.state[f"{name}.bias"]

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def attention(self, x: Tensor, name: str) -> Tensor:
        D = x.shape[-1]
        outputs = []
        q, k, v = self.linear(x, f"{name}.qkv").split(D, dim=-1)
        for head in range(self.heads):
            part = slice(head * D // self.heads, (head + 1) * D // self.heads)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(D // self.heads)
            hidden = torch.ones_like(scores).triu(1).bool()
            outputs.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[..., part])
        return self.linear(torch.cat(outputs, -1), f"{name}.proj")

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.state["tok_embed.weight"][tokens]
        if "start_token" in self.state:
            x = torch.cat([self.state["start_token"].expand(len(x), 1, -1), x], 1)
        if labels is not None:
            x = torch.cat([self.state["class_embed.weight"][labels][:, None], x], 1)
        x = x + self.state["pos_embed"][:, : x.shape[1]]
        for k in range(self.depth):
            x = x + self.attention(self.norm(x, f"blocks.{k}.norm1"), f"blocks.{k}.attn")
            hidden = self.linear(self.norm(x, f"blocks.{k}.norm2"), f"blocks.{k}.mlp.fc1")
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            x = x + self.linear(hidden, f"blocks.{k}.mlp.fc2")
        return self.norm(x, "norm") @ self.state["head.weight"].T


@pytest.mark.parametrize("start_token", STARTS)
def test_scores_loss_and_gradients_are_those_of_mingpt(start_token):
    model = small(start_token=start_token)
    peer = MinGPT(model)
    tokens, labels = batch(model)
    flat = tokens.flatten(1)
    expected = peer(flat[:, :-1], labels)  # (B, P, K)
    torch.testing.assert_close(model(flat[:, :-1], labels).double(), expected, rtol=1e-4, atol=1e-4)

    targets = flat[:, -model.num_positions :]
    nats = F.cross_entropy(expected.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    torch.testing.assert_close(model.nats(tokens, labels).double(), nats, rtol=1e-4, atol=1e-4)
    loss = model.loss(tokens, labels)
    torch.testing.assert_close(loss.double(), nats.mean(), rtol=1e-5, atol=1e-5)
    loss.backward()
    nats.mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), peer.state[name].grad, rtol=2e-3, atol=2e-5, msg=name)


@everything
def test_with_a_cache_every_position_has_the_scores_that_it_has_without(grid, start_token, positions):
    model = small(grid, start_token, positions)
    tokens, labels = batch(model, 3)
    flat = tokens.flatten(1)
    with torch.no_grad():
        whole = model(flat[:, :-1], labels)  # (B, P, K)
    started = start_token != "none"
    for prompt in (0, 1, 5):  # taken in at once; the rest one by one
        if not prompt and not started:
            continue
        cache = model.new_cache(3)
        at = prompt - 1 + started
        found = [model.advance(flat[:, :prompt], cache, labels)]
        assert cache.length == at + 1
        for k in range(prompt, model.num_tokens - 1):
            found.append(model.advance(flat[:, k : k + 1], cache, labels if cache.length == 0 else None))
        torch.testing.assert_close(torch.stack(found, 1), whole[:, at:], rtol=1e-4, atol=1e-5)
    cache = model.new_cache(3)
    model.advance(flat[:, :2], cache, labels)
    chunk = model.advance(flat[:, 2:7], cache)  # several at once onto a cache that is not empty
    torch.testing.assert_close(chunk, whole[:, 6 + started], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_samples_that_share_a_prefix_go_their_own_ways_from_there(positions):
    model = small(positions=positions)
    tokens, _ = batch(model, 4)
    flat = tokens.flatten(1)
    flat[:, :5] = flat[0, :5]
    shared = model.new_cache(1)
    first = model.advance(flat[:1, :5], shared)
    kept = shared.keys_values.clone()
    cache = shared.expand(4)
    for k in (5, 6):
        found = model.advance(flat[:, k : k + 1], cache)
    with torch.no_grad():
        whole = model(flat[:, :7])
    torch.testing.assert_close(first, whole[:1, 5], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, whole[:, 7], rtol=1e-4, atol=1e-5)
    assert torch.equal(shared.keys_values[..., : shared.length, :], kept[..., : shared.length, :])
    with pytest.raises(ValueError, match="holds 4"):
        cache.expand(2)
    with pytest.raises(ValueError, match="cache of 4"):
        model.advance(flat[:1, :1], cache)  # would be written for all four


@everything
def test_no_token_has_a_say_in_the_scores_of_those_before_it(grid, start_token, positions):
    model = small(grid, start_token, positions)
    tokens, labels = batch(model)
    flat = tokens.flatten(1)
    with torch.no_grad():
        scores = model(flat[:, :-1], labels)
    started = int(start_token != "none")
    for j in (0, 3, model.num_tokens - 2):
        other = flat.clone()
        other[:, j] = (other[:, j] + 1) % K
        with torch.no_grad():
            changed = model(other[:, :-1], labels)
        at = j + started  # the first position that has seen token j
        assert torch.equal(changed[:, :at], scores[:, :at])
        assert (changed[:, at:] - scores[:, at:]).abs().amax((0, 2)).min() > 1e-4


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("start_token", STARTS)
def test_the_probabilities_of_all_pictures_sum_to_one(start_token, positions):
    model = small((2, 2), start_token, positions, vocab_size=3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))  # (81, 4)
    for label in range(max(1, model.num_classes)):
        labels = torch.full((81,), label) if model.num_classes else None
        with torch.no_grad():
            nats = model.nats(every, labels)
        assert nats.shape == (81, model.num_positions) and nats.dtype == torch.float32
        p = torch.exp(-nats.double().sum(1))
        assert 1e-5 < p.min() and p.max() < 0.9  # no trivial distribution
        if start_token == "none":  # given the first token
            torch.testing.assert_close(p.view(3, 27).sum(1), torch.ones(3, dtype=torch.float64), rtol=1e-5, atol=0)
        else:
            assert p.sum().item() == pytest.approx(1, abs=1e-5)


def test_a_class_changes_what_is_likely():
    model = small(start_token="class")
    tokens, _ = batch(model, 1)
    with torch.no_grad():
        nats = [model.nats(tokens, torch.tensor([label])) for label in range(3)]
    assert all((a - b).abs().min() > 1e-5 for a, b in itertools.combinations(nats, 2))


def test_features_are_the_states_behind_a_block():
    model = small(depth=3)
    tokens, _ = batch(model)
    flat = tokens.flatten(1)
    with torch.no_grad():
        last = model.features(tokens, 3)
        assert last.shape == (2, 12, 24)
        torch.testing.assert_close(model.head(last), model(flat[:, :-1]))
        seen = {}
        handle = model.blocks[1].register_forward_hook(lambda module, args, out: seen.update(out=out))
        model(flat[:, :-1])
        handle.remove()
        assert torch.equal(model.features(tokens, 2), seen["out"])
        assert torch.equal(model.features(tokens, -1), last) and torch.equal(
            model.features(flat, -3), model.features(flat, 1)
        )
    for layer in (0, 4, -4):
        with pytest.raises(InputError, match=f"no layer {layer} in a model of 3 blocks"):
            model.features(tokens, layer)


@pytest.mark.parametrize("start", ["learned", "class"])
def test_one_pass_gives_the_features_of_all_layers(start):
    model = small(depth=3, start_token=start, num_classes=3 * (start == "class"))
    tokens, _ = batch(model)
    labels = torch.tensor([2, 0]) if start == "class" else None
    with torch.no_grad():
        outputs = list(model.block_outputs(tokens, labels))
        assert len(outputs) == 3
        assert all(torch.equal(x, model.features(tokens, k, labels)) for k, x in enumerate(outputs, start=1))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_the_backends_of_attention_agree(positions):
    model = small((2, 2, 3), positions=positions)
    tokens, _ = batch(model)
    found = []
    for backend in ("sdpa", "math"):
        set_attention_backend(model, backend)
        cache = model.new_cache(2)
        model.advance(tokens.flatten(1)[:, :5], cache)
        found.append((model.nats(tokens).detach(), model.advance(tokens.flatten(1)[:, 5:6], cache)))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_in_bf16_the_numbers_are_close_and_the_cache_is_in_it_too(positions):
    model = small(positions=positions)
    tokens, _ = batch(model)
    with torch.inference_mode():
        exact = model.nats(tokens)
        scale = exact.std()
        with torch.autocast("cpu", torch.bfloat16):
            assert (model.nats(tokens) - exact).abs().mean() < 0.02 * scale
            cache = model.new_cache(2, dtype=torch.bfloat16)
            found = model.advance(tokens.flatten(1)[:, :6], cache).float()
        whole = model(tokens.flatten(1)[:, :6])[:, -1]
        assert (found - whole).abs().mean() < 0.02 * whole.std()
        low = small(positions=positions).bfloat16()
        cache = low.new_cache(2)
        assert cache.keys_values.dtype == torch.bfloat16
        found = low.advance(tokens.flatten(1)[:, :6], cache).float()
        assert (found - whole).abs().mean() < 0.05 * whole.std()


def test_checkpointing_changes_no_gradient():
    gradients = []
    for on in (False, True):
        model = small(positions="rotary")
        model.checkpointing = on
        model.loss(batch(model)[0]).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


# From the tables of parameters in the papers' code (the project's notes on the originals, section 1.5).
PUBLISHED = {
    ("alef", 8192, (32, 32)): 98_424_576,
    ("alef", 16384, (16, 16)): 110_417_664,
    ("bet", 8192, (32, 32)): 320_136_192,
    ("bet", 16384, (16, 16)): 336_126_976,
    ("gimel", 8192, (32, 32)): 730_671_360,
    ("gimel", 16384, (16, 16)): 750_659_840,
    ("dalet", 8192, (32, 32)): 1_503_412_800,
    ("dalet", 16384, (16, 16)): 1_528_398_400,
    ("igpt_s", 512, (64, 64)): 78_279_168,
    ("igpt_mini", 512, (64, 64)): 21_536_256,
}


@pytest.mark.parametrize(("preset", "vocab_size", "grid"), PUBLISHED)
def test_presets_have_the_parameters_of_the_published_models(preset, vocab_size, grid):
    size = PRESETS[preset]
    with torch.device("meta"):
        model = GPT(vocab_size, grid, size.embed_dim, size.depth, size.num_heads, start_token="none")
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[preset, vocab_size, grid]


def test_every_preset_takes_rotary_positions_of_a_clip():
    for size in PRESETS.values():
        with torch.device("meta"):
            GPT(16, (2, 2, 2), size.embed_dim, size.depth, size.num_heads, positions="rotary")


def test_weights_begin_as_minGPT_s_do():
    torch.manual_seed(0)
    model = GPT(512, (8, 8), 128, 8, 4, start_token="class", num_classes=40)
    deviations = {name: p.std().item() for name, p in model.named_parameters()}
    for name, deviation in deviations.items():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            assert deviation == pytest.approx(0.02 / 4, rel=0.05), name  # 16 branches
        elif name.endswith(".bias") or "norm" in name:
            assert deviation == 0, name
        else:
            assert deviation == pytest.approx(0.02, rel=0.05), name
    assert torch.equal(model.norm.weight, torch.ones(128)) and not model.norm.bias.any()
    assert abs(model.loss(torch.randint(0, 512, (4, 64)), torch.arange(4)).item() - math.log(512)) < 0.2


def test_tables_do_not_decay():
    model = small(start_token="class")
    decay, free = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for p in decay["params"]}
    assert {"tok_embed.weight", "class_embed.weight", "pos_embed"} <= {names[id(p)] for p in free["params"]}
    assert "head.weight" in decayed and all(name.endswith("weight") and "norm" not in name for name in decayed)


def test_a_saved_model_is_the_same_again(tmp_path):
    model = small((2, 2, 3), "class", "rotary")
    card = {"contract": "card", "version": 1, "name": "x", "objective": "gpt"}
    card["architecture"] = {"class": "GPT", "arguments": model.arguments}
    save_weights(tmp_path, model, card)
    again, found = load_gpt(tmp_path)
    tokens, labels = batch(model)
    assert torch.equal(again.nats(tokens, labels), model.nats(tokens, labels)) and not again.training
    assert found["architecture"]["arguments"]["grid"] == [2, 2, 3] and again.grid == (2, 2, 3)


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        ({"num_heads": 5}, "5 heads do not divide embed_dim 24"),
        ({"grid": (4,)}, r"grid \[4\] is none of a picture or clip"),
        ({"grid": (0, 4)}, r"grid \[0, 4\]"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"start_token": "bos"}, "no start_token 'bos'"),
        ({"positions": "sincos"}, "with positions 'sincos'"),
        ({"num_classes": 4}, "start_token learned does not go with 4 classes"),
        ({"num_heads": 8, "grid": (2, 2, 3), "positions": "rotary"}, "heads of 3 channels are too narrow .* on 3 axes"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_on_one_line(settings, telling):
    with pytest.raises(InputError, match=telling) as error:
        GPT(**{**SMALL, "grid": (3, 4), **settings})
    assert "\n" not in str(error.value)


def test_tokens_and_labels_that_do_not_fit_are_refused():
    model, plain = small(start_token="class"), small(start_token="none")
    tokens, labels = batch(model)
    flat = tokens.flatten(1)
    with pytest.raises(InputError, match="tokens of 4 x 3 do not fit a model of 3 x 4"):
        plain.nats(tokens.transpose(1, 2))
    with pytest.raises(InputError, match=r"13 tokens are longer than the context .* takes 11"):
        model(torch.cat([flat, flat[:, :1]], 1), labels)
    with pytest.raises(InputError, match=r"12 tokens are longer than the context .* takes 11"):
        plain(flat)
    cache = plain.new_cache(2)
    plain.advance(flat[:, :8], cache)
    with pytest.raises(InputError, match="12 tokens are longer"):
        plain.advance(flat[:, 8:], cache)
    with pytest.raises(InputError, match="no token was given to a model without a start token"):
        plain.advance(flat[:, :0], plain.new_cache(2))
    with pytest.raises(InputError, match=r"no label given .* give labels from 0 to 2"):
        model.nats(tokens)
    with pytest.raises(InputError, match="labels given to a model that is not conditioned"):
        plain.nats(tokens, labels)
    # What `check` alone looks at: numbers.
    model.check(tokens, labels)
    model.check(flat[:, :3], labels)
    with pytest.raises(InputError, match="token 11 is outside the vocabulary of 11"):
        model.check(tokens + 1 + (10 - tokens.max()), labels)
    with pytest.raises(InputError, match="label 3 is none of the 3 classes"):
        model.check(tokens, labels + 2)
    with pytest.raises(InputError, match="13 tokens are longer"):
        model.check(torch.zeros(1, 13, dtype=torch.long), labels)
