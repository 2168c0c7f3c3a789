"""The context experiment on tiny models: its numbers against loops, going on after a stop, the page, refusals."""

import csv
import json
import math

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.context import HELD_OUT, TRAINING, UNRELATED, context, given_units
from headcam.tokenizers.continuations import closeness, diversity, predictions
from headcam.tokenizers.nearest import nearest
from headcam.tokenizers.token_store import TokenStore, make_token_store


def save(folder, model, **more):
    card = {"contract": "card", "version": 1, "objective": "test", "name": folder.name, **more}
    card["architecture"] = {"class": type(model).__name__, "arguments": model.arguments}
    save_weights(folder, model, card)
    return folder


def save_gpt(folder, store: TokenStore, seed: int, **settings):
    torch.manual_seed(seed)
    gpt = GPT(store.vocab_size, store.grid, embed_dim=16, depth=1, num_heads=2, **settings)
    with torch.no_grad():
        gpt.head.weight.mul_(20)  # otherwise every token is as likely
    return save(folder, gpt, samples_seen=100 * seed, tokenizer={"hash": store.tokenizer_hash})


@pytest.fixture(scope="module")
def pictures(stores, tmp_path_factory):
    """Token stores of 40 training and 10 held-out pictures by a palette, and two models on them."""
    root = tmp_path_factory.mktemp("pictures")
    palette = PaletteTokenizer(img_size=8, codebook_size=16)
    palette.quantizer.codebook.copy_(torch.from_numpy(np.random.default_rng(0).integers(0, 256, (16, 3))))
    save(root / "palette", palette, img_size=[8, 8], mean=[0, 0, 0], std=[1, 1, 1])
    for name, data in zip(("train", "val"), stores):
        make_token_store(data, root / "palette", root / name, num_workers=0, quiet=True)
    for seed in (1, 2):
        save_gpt(root / f"gpt{seed}", TokenStore(root / "train"), seed)
    return root


@pytest.fixture(scope="module")
def done(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("context")
    result = context(pictures / "gpt2", pictures / "train", pictures / "val", out, fractions=(0.25, 0.5), samples=3,
                     num=5, checkpoints=[pictures / "gpt1"], quiet=True)  # fmt: skip
    return out, result


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_number_of_an_item_follows_from_its_samples(pictures, done):
    out, _ = done
    store, tokenizer = TokenStore(pictures / "train"), load_tokenizer(pictures / "palette")[0]
    items = [r for r in rows(out / "items.csv") if r["model"].startswith("gpt2") and r["set"] == TRAINING]
    row = int(items[0]["row"])
    assert items[0]["recording"] == store.recordings[store.recording[row]]
    weights = json.loads((pictures / "gpt2" / "card.json").read_text())["weights_hash"]
    kept = np.load(out / "kept" / f"{weights[:16]}-training-{row}.npz")
    for k, given in enumerate((2, 4)):
        found = {r["metric"]: float(r["value"]) for r in items if int(r["row"]) == row and int(r["given"]) == given}
        truth, samples = store.tokens(row).ravel(), kept["tokens"][k].astype(int)
        assert (samples[:, : given * 8] == truth[: given * 8]).all(), "what is given stays"
        left = samples[:, given * 8 :]
        assert found["accuracy"] == pytest.approx((left == truth[given * 8 :]).mean())
        pairs = [(left[i] != left[j]).mean() for i in range(3) for j in range(i)]
        assert found["diversity_tokens"] == pytest.approx(np.mean(pairs))
        both = torch.from_numpy(np.concatenate([truth[None], samples])).view(4, 8, 8)
        pixels = tokenizer.decode(both).numpy().astype(float)[:, :, given:]
        errors = [np.sqrt(((p - pixels[0]) ** 2).mean()) for p in pixels[1:]]
        assert found["error_pixels"] == pytest.approx(np.mean(errors), rel=1e-5)
        apart = [np.sqrt(((pixels[i] - pixels[j]) ** 2).mean()) for i in (1, 2, 3) for j in range(1, i)]
        assert found["diversity_pixels"] == pytest.approx(np.mean(apart), rel=1e-5)
        # A palette has one pixel a token: colours of cells are pixels.
        every = torch.stack([torch.from_numpy(store.tokens(i)).long() for i in range(len(store))])
        others = tokenizer.decode(every).numpy().astype(float)[:, :, given:]
        near = [np.sqrt(((others - p) ** 2).mean(axis=(1, 2, 3))) for p in pixels[1:]]
        assert found["nearest_training"] == pytest.approx(np.mean([d.min() for d in near]), rel=1e-5)
        assert found["retrieved"] == pytest.approx(np.mean([d.argmin() == row for d in near]))
        assert found["truth_at_cells"] == pytest.approx(np.mean(errors), rel=1e-5)
        of_truth = np.sqrt(((others - pixels[0]) ** 2).mean(axis=(1, 2, 3)))
        assert of_truth[row] == 0
        assert found["truth_nearest_training"] == pytest.approx(np.delete(of_truth, row).min(), rel=1e-5)


def test_means_over_items_with_intervals(done):
    out, result = done
    numbers, items = rows(out / "context.csv"), rows(out / "items.csv")
    assert len(numbers) == len(result.numbers) and {r["contract"] for r in numbers + items} == {"context/1"}
    for number in numbers:
        same = [r for r in items if all(r[c] == number[c] for c in ("model", "set", "given", "metric"))]
        assert len(same) == int(number["n"]) == 5
        value, low, high = (float(number[c]) for c in ("value", "low", "high"))
        assert value == pytest.approx(np.mean([float(r["value"]) for r in same])) and low <= value <= high
    assert {(n.model, n.samples_seen) for n in result.numbers} == {("gpt1", 100), ("gpt2", 200), (UNRELATED, -1)}
    assert {n.metric for n in result.numbers if n.set == HELD_OUT} == {
        n.metric for n in result.numbers if n.set == TRAINING
    } - {"retrieved"}


def test_it_goes_on_where_it_was_and_gives_the_same_numbers(pictures, done, monkeypatch):
    out, _ = done
    before = {name: (out / name).read_bytes() for name in ("context.csv", "items.csv", "context.html")}
    kept = sorted((out / "kept").glob("*-*.npz"))
    assert len(kept) == 2 * 2 * 5
    kept[0].unlink()
    calls = []
    from headcam.tokenizers import context as module

    monkeypatch.setattr(module, "sample", lambda *a, _sample=module.sample, **k: calls.append(1) or _sample(*a, **k))
    again = dict(fractions=(0.25, 0.5), samples=3, num=5, checkpoints=[pictures / "gpt1"], quiet=True)
    context(pictures / "gpt2", pictures / "train", pictures / "val", out, **again)
    assert len(calls) == 2, "one item, two amounts"
    assert {name: (out / name).read_bytes() for name in before} == before
    with pytest.raises(InputError, match="holds an experiment with other settings or data"):
        context(pictures / "gpt2", pictures / "train", pictures / "val", out, **again | {"temperature": 0.5})


def test_the_page_shows_curves_and_pictures_or_none(pictures, done, tmp_path):
    out, result = done
    text = result.page.read_text()
    assert text.count("<svg") == 3 and "With more training" in text and "data:image/png" in text
    assert (out / "context.png").stat().st_size > 10_000
    assert len(list((out / "sheets").glob("*.png"))) == 2 * 4 * 2
    bare = context(pictures / "gpt2", pictures / "train", pictures / "val", tmp_path, fractions=(0.5,), samples=2,
                   num=2, top_k=3, frames=False, quiet=True)  # fmt: skip
    text = bare.page.read_text()
    assert "data:image" not in text and not (tmp_path / "sheets").exists() and "top-k 3" in text


def test_clips_are_continued_from_whole_slots(recordings, tmp_path):
    torch.manual_seed(0)
    tokenizer = VideoTokenizer(img_size=16, num_frames=4, downsample=(2, 8, 8), ch=8, codebook_size=16, embed_dim=8,
                               quantizer="fsq")  # fmt: skip
    save(tmp_path / "video", tokenizer.eval(), img_size=[16, 16], mean=[0.5] * 3, std=[0.5] * 3)
    for name, data in zip(("train", "val"), recordings):
        make_token_store(data, tmp_path / "video", tmp_path / name, step_s=0.2, num_workers=0, quiet=True)
    store = TokenStore(tmp_path / "train")
    save_gpt(tmp_path / "gpt", store, 3, start_token="none")
    result = context(tmp_path / "gpt", tmp_path / "train", tmp_path / "val", tmp_path / "out", samples=2, num=2,
                     quiet=True)  # fmt: skip
    assert {(n.given, n.fraction) for n in result.numbers} == {(1, 0.5)}, "two slots: one can be given"
    assert "no start token" in result.page.read_text()


def test_predictions_are_those_of_the_whole_distribution():
    torch.manual_seed(0)
    gpt = GPT(3, (1, 3), embed_dim=8, depth=1, num_heads=2).eval()
    with torch.no_grad():
        gpt.head.weight.mul_(30)
    tokens = torch.cartesian_prod(*[torch.arange(3)] * 3)  # all 27 sequences
    nats, entropy = predictions(gpt, tokens)
    p = (-nats.sum(dim=1)).exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    joint = -(p * p.log()).sum().item()
    of_steps = (p[:, None] * entropy).sum().item()
    assert of_steps == pytest.approx(joint, abs=1e-4), "entropies of the steps add up to that of the whole"


def test_equal_and_opposite_samples():
    tokens, pixels = torch.tensor([[0, 1, 2, 3]] * 2), torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    same = diversity(tokens, pixels, 1, 2)
    assert same == {"diversity_tokens": 0, "diversity_pixels": 0}
    pixels[1, :, 1] = 200  # the lower row, which was not given
    assert diversity(tokens, pixels, 1, 2)["diversity_pixels"] == 200
    found = closeness(tokens[0], torch.tensor([[0, 1, 2, 0]]), pixels, 1, 2)
    assert found == {"accuracy": 0.5, "error_pixels": 200}


def test_nearest_among_many(monkeypatch):
    from headcam.tokenizers import nearest as module

    rng = np.random.default_rng(0)
    among = rng.integers(0, 256, (50, 6, 3), dtype=np.uint8)
    monkeypatch.setattr(module, "_COMPARED_AT_ONCE", 7)
    wanted = torch.from_numpy(among[[33, 4]]).float()
    wanted[:, :2] = 0  # given: does not count
    distance, which = nearest(wanted, among, 2)
    assert which.tolist() == [33, 4] and distance.tolist() == [0, 0]
    distance, which = nearest(wanted[:1], among, 2, np.arange(50) == 33)
    loop = [math.sqrt(((among[i, 2:].astype(float) - among[33, 2:]) ** 2).mean()) for i in range(50)]
    loop[33] = math.inf
    assert which == np.argmin(loop) and distance.item() == pytest.approx(min(loop), rel=1e-5)


def test_amounts_that_are_given():
    assert given_units((10, 4), (0.5, 0.1, 0.14, 0.99)) == [1, 5, 9]
    assert given_units((4, 8, 8), (0.1, 0.9)) == [1, 3]


def test_bad_input_is_one_line(pictures, tmp_path):
    train, val = pictures / "train", pictures / "val"
    for change, message in (
        ({"fractions": (1.0,)}, "fraction 1 of the tokens cannot be given"),
        ({"fractions": ()}, "0 fractions of 8 rows"),
        ({"samples": 1}, "1 samples of 16 items say nothing of diversity"),
        ({"held_out": train}, "moments of .* are also in"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"run": pictures / "palette"}, "PaletteTokenizer"),
    ):
        arguments = {"run": pictures / "gpt1", "train": train, "held_out": val, "out": tmp_path, "quiet": True}
        with pytest.raises(InputError, match=message) as caught:
            context(**arguments | change)
        assert "\n" not in str(caught.value)
