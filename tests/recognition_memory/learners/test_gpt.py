"""GPTs that study pictures: scores, what study changes and what it leaves, completions, sources, refusals."""

import math

import pytest
import torch

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.recognition_memory.learners.gpt import GPTLearner
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.video_tokenizer import VideoTokenizer
from headcam.tokenizers.autoregression.gpt import GPT
from headcam.tokenizers.published.layouts import gpt_shapes

SMALL = {"img_size": 8, "colours": 6, "embed_dim": 32, "depth": 2, "num_heads": 2}
CONV = {"img_size": 16, "ch": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "attn_resolutions": (), "z_channels": 8}


def pictures(count, size=8, seed=0):
    return torch.from_numpy(stream(seed, "test pictures", 0).integers(0, 256, (count, 3, size, size), dtype="uint8"))


def begun(seed=0, shown=None, **changes) -> GPTLearner:
    learner = GPTLearner(**(SMALL | changes))
    learner.begin(seed, pictures(24) if shown is None else shown)
    return learner


def study(learner, shown, updates, lr=3e-3):
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=lr)
    for k in range(updates):
        optimizer.zero_grad()
        learner.study_loss(shown, stream(0, "test study", k)).backward()
        optimizer.step()


def state(learner):
    return {name: value.clone() for name, value in learner.state_dict().items()}


def save(folder, model, **card):
    facts = {"contract": "card", "version": 1, "name": folder.name, "objective": "test", "hours": 1.5}
    save_weights(
        folder, model, facts | {"architecture": {"class": type(model).__name__, "arguments": model.arguments}} | card
    )
    return folder


@pytest.fixture
def run(tmp_path):
    """What a run of a GPT leaves: weights, card and a copy of its tokenizer (7 colours, 4 x 6 pixels)."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        gpt, palette = GPT(7, (4, 6), 24, 2, 2, start_token="none"), PaletteTokenizer((4, 6), 7)
        palette.quantizer.codebook.random_(0, 256)
        torch.nn.init.normal_(gpt.head.weight, std=0.5)
    save(tmp_path / "gpt", gpt)
    save(tmp_path / "gpt" / "tokenizer", palette)
    return tmp_path / "gpt"


@pytest.fixture
def conv(tmp_path) -> GPTLearner:
    """On tokens of a VQGAN, each of which depends on a part of the picture that is larger than its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(tmp_path / "conv", ConvTokenizer(**CONV, embed_dim=8, codebook_size=64))
    learner = GPTLearner(tokenizer=str(tmp_path / "conv"), embed_dim=32, depth=1, num_heads=2)
    learner.begin(0, pictures(4, 16))
    return learner


def test_a_score_is_the_mean_cross_entropy_of_the_tokens():
    for start, positions in (("learned", "learned"), ("none", "rotary")):
        learner, shown = begun(start_token=start, positions=positions), pictures(3, seed=1)
        study(learner, shown, 2)
        scores, own = learner.scores(shown), learner.tokenizer.encode(shown).flatten(1)
        logits = learner.gpt(own[:, :-1]).double().detach()
        wanted = own if start == "learned" else own[:, 1:]
        expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(1)
        assert scores.dtype == torch.float64 and learner.predictions == wanted.shape[1]
        torch.testing.assert_close(scores, expected, rtol=1e-6, atol=0)
        loss = learner.study_loss(shown, stream(0, "test", 0))
        torch.testing.assert_close(loss.double(), expected.mean(), rtol=1e-5, atol=0)


def test_what_was_studied_is_more_familiar_and_the_colours_stay():
    learner, shown, others = begun(), pictures(8, seed=1), pictures(8, seed=2)
    colours = learner.tokenizer.quantizer.codebook.clone()
    before = learner.scores(shown), learner.scores(others)
    study(learner, shown, 60)
    after = learner.scores(shown), learner.scores(others)
    assert (after[0] < before[0] - 0.1).all() and (after[0].mean() - before[0].mean()) < (after[1] - before[1]).mean()
    assert torch.equal(learner.tokenizer.quantizer.codebook, colours)


def test_only_the_gpt_learns_and_the_tokenizer_never_trains(conv):
    learner = conv
    assert learner.img_size == (16, 16) and learner.gpt.grid == (4, 4) and learner.gpt.vocab_size == 64
    assert {id(p) for p in learner.parameters() if p.requires_grad} == {id(p) for p in learner.gpt.parameters()}
    assert not learner.train().tokenizer.training and learner.gpt.training
    before = {k: v for k, v in state(learner).items() if k.startswith("tokenizer")}
    study(learner, pictures(4, 16), 3)
    assert len(before) > 10 and all(torch.equal(v, learner.state_dict()[k]) for k, v in before.items())


def test_a_score_does_not_depend_on_the_batch_nor_on_what_came_before():
    learner, shown = begun(), pictures(9, seed=1)
    study(learner, shown, 20)
    fresh = begun()
    fresh.load_state_dict(learner.state_dict())
    alone = torch.cat([fresh.scores(one[None]) for one in shown.flip(0)]).flip(0)
    torch.testing.assert_close(learner.scores(shown), alone, rtol=1e-6, atol=0)


def test_tokens_are_made_once_and_one_picture_at_a_time(monkeypatch):
    learner, shown = begun(), pictures(5, seed=1)
    calls, encode = [], learner.tokenizer.encode
    monkeypatch.setattr(learner.tokenizer, "encode", lambda pixels: calls.append(len(pixels)) or encode(pixels))
    for _ in range(2):
        learner.scores(shown)
        learner.study_loss(shown.flip(0), stream(0, "test", 0))
    assert calls == [1] * 5
    learner.begin(0, pictures(24, seed=4))  # other colours: other tokens
    assert torch.equal(learner._tokens(shown), encode(shown)) and len(calls) == 10


def test_a_full_store_changes_no_token(monkeypatch):
    learner, shown = begun(), pictures(5, seed=1)
    monkeypatch.setattr("headcam.recognition_memory.learners.gpt._KEPT_TOKENS", 3 * 64)
    for _ in range(2):
        assert torch.equal(learner._tokens(shown), learner.tokenizer.encode(shown))
    assert len(learner._kept) == 3


def test_the_state_before_study_follows_from_seed_and_pictures():
    learner = begun(seed=1)
    first = state(learner)
    study(learner, pictures(8), 3)
    learner.begin(1, pictures(24))
    assert all(torch.equal(value, first[name]) for name, value in state(learner).items())
    other = state(begun(seed=2))
    assert torch.equal(other["tokenizer.quantizer.codebook"], first["tokenizer.quantizer.codebook"])
    assert not torch.equal(other["gpt.head.weight"], first["gpt.head.weight"])
    shown = begun(seed=1, shown=pictures(24, seed=5)).tokenizer.quantizer.codebook
    assert not torch.equal(shown, first["tokenizer.quantizer.codebook"])


def test_a_state_goes_on_bit_for_bit():
    straight, shown = begun(), pictures(8, seed=1)
    study(straight, shown, 3)
    kept, torch_state = state(straight), torch.get_rng_state()
    again = begun(seed=9)
    again.load_state_dict(kept)
    assert torch.equal(again.scores(shown), straight.scores(shown))
    assert torch.equal(torch.get_rng_state(), torch_state)  # weights are drawn beside the global generator


def test_a_palette_has_the_colours_that_there_are():
    colours = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 250]], dtype=torch.uint8)
    which = torch.from_numpy(stream(0, "test colours", 0).integers(0, 4, (6, 8, 8)))
    learner = begun(shown=colours[which].permute(0, 3, 1, 2), colours=4)
    found = learner.tokenizer.quantizer.codebook
    assert {tuple(c) for c in found.round().int().tolist()} == {tuple(c) for c in colours.int().tolist()}
    with pytest.raises(InputError, match="have 4 different colours, too few for a palette of 6"):
        learner = begun(shown=colours[which].permute(0, 3, 1, 2))


def test_from_a_run_with_its_tokenizer_and_card(run):
    learner = GPTLearner(str(run))
    assert learner.img_size == (4, 6) and learner.predictions == 23 and learner.card["hours"] == 1.5
    shown = pictures(3, 6)[:, :, :4]
    learner.begin(0, shown)
    scores = learner.scores(shown)
    study(learner, shown, 2)
    assert not torch.equal(learner.scores(shown), scores)
    learner.begin(7, shown)  # trained weights do not depend on the seed
    assert torch.equal(learner.scores(shown), scores)


def test_from_a_published_file_with_its_colours(tmp_path):
    """An iGPT in its author's layout, whose file holds the palette too."""
    generator = torch.Generator().manual_seed(0)
    shapes = gpt_shapes(depth=1, width=64, vocab_size=6, positions=15)
    weights = {name: torch.randn(shape, generator=generator) / 10 for name, shape in shapes.items()}
    weights["blocks.0.attn.mask"] = torch.ones(15, 15).tril().view(1, 1, 15, 15)
    colours = torch.rand(6, 3, generator=generator) * 255
    torch.save({"model_state_dict": weights, "clusters": colours}, tmp_path / "igpt.pt")
    for source in (str(tmp_path / "igpt.pt"), f"zoo:{tmp_path / 'igpt.pt'}"):
        learner = GPTLearner(source)
        assert learner.predictions == 15 and torch.equal(learner.tokenizer.quantizer.codebook, colours)
        learner.begin(3, pictures(2, 4))
        assert torch.equal(learner.gpt.head.weight, weights["head.weight"])
        assert torch.isfinite(learner.scores(pictures(2, 4))).all()


def test_colours_of_a_fitted_palette_serve_any_size(run):
    learner = begun(palette=str(run / "tokenizer"))
    fitted = GPTLearner(str(run)).tokenizer.quantizer.codebook
    assert learner.img_size == (8, 8) and torch.equal(learner.tokenizer.quantizer.codebook, fitted)


def test_a_preset_replaces_the_sizes():
    learner = GPTLearner(img_size=4, colours=4, preset="tiny")
    assert (learner.gpt.embed_dim, learner.gpt.depth, learner.gpt.num_heads) == (192, 6, 3)


def test_completions_keep_the_given_rows_and_know_nothing_of_the_others():
    learner, shown = begun(), pictures(3, seed=1)
    study(learner, shown, 5)
    made = learner.complete(shown, 4, stream(0, "test", 0))
    assert made.dtype == torch.uint8 and made.shape == shown.shape
    assert torch.equal(made[:, :, :4], shown[:, :, :4])
    colours = learner.tokenizer.quantizer.codebook.round().byte().tolist()
    assert all(pixel in colours for pixel in made[:, :, 4:].permute(0, 2, 3, 1).reshape(-1, 3).tolist())
    changed = shown.clone()
    changed[:, :, 4:] = 0
    assert torch.equal(learner.complete(changed, 4, stream(0, "test", 0)), made)
    assert not torch.equal(learner.complete(shown, 4, stream(0, "test", 1)), made)


def test_a_picture_that_is_known_by_heart_is_recalled():
    learner, shown = begun(), pictures(9, seed=1)  # more than are completed at a time
    study(learner, shown, 150, lr=1e-2)
    assert learner.scores(shown).max() < 0.2
    made = learner.complete(shown, 4, stream(0, "test", 0), temperature=0)
    kept = learner.tokenizer.decode(learner.tokenizer.encode(shown))
    assert torch.equal(made[:, :, 4:], kept[:, :, 4:])


def test_the_picture_below_is_hidden_from_a_tokenizer_that_looks_far(conv):
    learner, shown = conv, pictures(2, 16)
    changed = shown.clone()
    changed[:, :, 8:] = 255 - shown[:, :, 8:]
    one, other = (learner.complete(some, 8, stream(0, "test", 0)) for some in (shown, changed))
    assert torch.equal(one[:, :, 8:], other[:, :, 8:]) and torch.equal(one[:, :, :8], shown[:, :, :8])
    with pytest.raises(InputError, match="6 of 16 rows of pixels cannot be given to a model whose tokens are 4 high"):
        learner.complete(shown, 6, stream(0, "test", 0))


def test_16_bit_study_makes_the_same_tokens(conv):
    learner, shown = conv, pictures(8, 16, seed=1)
    tokens = learner._tokens(shown)
    learner._kept.clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learner._tokens(shown), tokens)
        scores = learner.scores(shown)
    assert torch.equal(scores, learner.scores(shown))


def test_sources_that_do_not_fit_are_refused(run, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(tmp_path / "classes", GPT(7, (4, 6), 24, 1, 2, start_token="class", num_classes=2))
        save(tmp_path / "clips", GPT(7, (2, 4, 6), 24, 1, 2))
        clips = VideoTokenizer(16, 4, (2, 4, 4), ch=8, num_res_blocks=1, codebook_size=7, embed_dim=8)
        save(tmp_path / "video", clips)
        save(tmp_path / "conv", ConvTokenizer(**CONV, embed_dim=8, codebook_size=7))
    palette = str(run / "tokenizer")
    for arguments, message in (
        ({"source": str(tmp_path / "nowhere")}, "nowhere.* does not exist"),
        ({"source": str(tmp_path / "classes"), "tokenizer": palette}, "classes is a GPT with classes"),
        ({"source": str(tmp_path / "clips"), "tokenizer": palette}, "clips is a model of clips"),
        ({"source": str(run), "tokenizer": str(tmp_path / "conv")}, "does not fit the model"),
        ({"source": palette}, "PaletteTokenizer .* where one of GPT is wanted"),
        ({"tokenizer": str(tmp_path / "video")}, "video is a model of clips"),
        ({"palette": str(tmp_path / "conv")}, "conv is a ConvTokenizer"),
        ({"source": str(run), "palette": palette}, "is given beside .*gpt, which has tokens of its own"),
        ({"img_size": 8, "embed_dim": 30, "num_heads": 4}, "4 heads do not divide embed_dim 30"),
    ):
        with pytest.raises(InputError, match=message):
            GPTLearner(**arguments)
    with pytest.raises(InputError, match="pixels of 3 x 9 x 9 do not fit a tokenizer for 3 x 8 x 8"):
        begun(shown=pictures(3, 9))
    for rows in (0, 8):
        with pytest.raises(InputError, match=f"{rows} of 8 rows .* give a multiple of 1, 1 to 7"):
            begun().complete(pictures(1), rows, stream(0, "test", 0))


def test_a_uniform_start_scores_the_logarithm_of_the_vocabulary():
    """Before study a GPT of random weights knows next to nothing: ln K nats per token, as in the published losses."""
    assert begun(start_token="none").scores(pictures(4)).mean() == pytest.approx(math.log(6), abs=0.05)
