"""Embeddings that study moves, and embeddings that are stored, with networks small enough to follow."""

import copy

import jsonargparse
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from headcam.errors import InputError
from headcam.randomness import stream
from headcam.recognition_memory.learners.embedding import EmbeddingChange, EmbeddingStore
from headcam.recognition_memory.learners.learner import Learner
from headcam.recognition_memory.stimuli.variants import parse_variant
from headcam.ssl.dino import DINO
from headcam.ssl.mae import MAE
from headcam.ssl.temporal_classification import TemporalClassification
from headcam.ssl.weights import load_encoder, save_weights
from headcam.tokenizers.autoencoders.conv_tokenizer import ConvTokenizer

VIT = dict(size="ti", img_size=16, patch_size=4, embed_dim=24, depth=1, num_heads=2)
SETTINGS = {
    DINO: VIT | dict(
        local_crops_size=8, out_dim=32, head_hidden_dim=32, head_bottleneck_dim=16, local_crops_number=2,
        momentum_teacher=0.9, warmup_teacher_temp=0.02, warmup_teacher_temp_steps=100, freeze_last_layer_steps=50,
        drop_path_rate=0.1,
    ),
    MAE: VIT | dict(decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
    TemporalClassification: VIT | dict(backbone="vit", num_episodes=3),
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[type, str]:
    """What `headcam fit` leaves, but for the training: config, checkpoint, weights and card."""
    found = {}
    for kind, settings in SETTINGS.items():
        folder = tmp_path_factory.mktemp("runs") / kind.__name__
        (folder / "checkpoints").mkdir(parents=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            objective = kind(**settings)
            objective.configure_model()
        model = {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": settings}
        (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
        state = objective.state_dict()
        if kind is DINO:  # of a trained one, student and teacher differ
            state |= {k: x + 0.02 for k, x in state.items() if k.startswith("network.student")}
        card = objective.card() | {"name": kind.__name__}
        torch.save({"state_dict": state, "headcam_card": card}, folder / "checkpoints" / "last.ckpt")
        save_weights(folder, objective.encoder, card)
        found[kind] = str(folder)
    return found


def pictures(count: int, seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.from_numpy(stream(seed, "test", 0).integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def study(learner: Learner, pixels: torch.Tensor, updates: int = 3, lr: float = 1e-3) -> list[float]:
    optimizer = torch.optim.Adam([p for p in learner.parameters() if p.requires_grad], lr=lr)
    losses = []
    for k in range(updates):
        loss = learner.study_loss(pixels, stream(0, "study", k))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        learner.after_update()
        losses.append(loss.item())
    return losses


def pooled(encoder, pixels: torch.Tensor, card: dict, pool: str) -> torch.Tensor:
    """Written out: normalise, encode, pool."""
    mean, std = (torch.tensor(card[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        tokens = encoder.eval().forward_features((pixels / 255 - mean) / std)
    return tokens[:, 0] if pool == "cls" else tokens[:, 1:].mean(dim=1)


@pytest.mark.parametrize("kind", [DINO, MAE])
@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_the_score_is_minus_the_cosine_distance_to_the_embedding_before_study(runs, kind, pool):
    learner = EmbeddingChange(runs[kind], pool=pool)
    learner.begin(0, pictures(8))
    shown = pictures(5, seed=1)
    assert learner.scores(shown).tolist() == [0.0] * 5
    part = "student_encoder" if kind is DINO else "encoder"
    before = copy.deepcopy(getattr(learner.objective.network, part))
    study(learner, pictures(8))
    embeddings = [pooled(e, shown, learner.card, pool) for e in (getattr(learner.objective.network, part), before)]
    expected = F.cosine_similarity(*embeddings) - 1
    scores = learner.scores(shown)
    assert scores.dtype == torch.float64 and not scores.requires_grad and (scores < 0).all()
    assert torch.allclose(scores.float(), expected, rtol=1e-3, atol=1e-6)
    alone = torch.cat([learner.scores(one) for one in shown.split(1)])
    assert torch.allclose(alone, scores, rtol=1e-4, atol=1e-10)
    assert learner.unit == "minus cosine distance" and learner.bound("") == ""


@pytest.mark.parametrize("kind", [DINO, MAE])
def test_study_follows_from_seed_and_pictures_and_begin_takes_it_back(runs, kind):
    learner = EmbeddingChange(runs[kind])
    shown = pictures(6)
    learner.begin(0, shown)
    start = {k: v.clone() for k, v in learner.state_dict().items()}
    torch.manual_seed(1)
    losses = study(learner, shown)
    scores = learner.scores(shown)
    assert losses[0] != losses[1]  # other views every time
    torch.manual_seed(2)
    learner.begin(0, shown)
    assert all(torch.equal(v, start[k]) for k, v in learner.state_dict().items())
    assert study(learner, shown) == losses and torch.equal(learner.scores(shown), scores)


@pytest.mark.parametrize("kind", [DINO, MAE])
def test_a_reloaded_state_scores_and_goes_on_alike(runs, kind, tmp_path):
    first, second = (EmbeddingChange(runs[kind], weights="random") for _ in range(2))
    shown = pictures(6)
    for learner in (first, second):
        learner.begin(4, shown)
    study(first, shown)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(second.scores(shown), first.scores(shown))
    assert study(second, shown) == study(first, shown)
    assert torch.equal(second.scores(shown), first.scores(shown))


def test_random_weights_follow_from_the_seed(runs):
    learner = EmbeddingChange(runs[MAE], weights="random")
    assert learner.card is None

    def weights(seed):
        torch.manual_seed(seed + 100)  # the global generator has no say
        learner.begin(seed, pictures(2))
        return learner.objective.network.encoder.blocks[0].attn.qkv.weight.detach().clone()

    first, other, again = weights(0), weights(1), weights(0)
    assert torch.equal(first, again) and not torch.equal(first, other)
    trained = EmbeddingChange(runs[MAE]).objective.network.encoder.blocks[0].attn.qkv.weight
    assert not torch.equal(first, trained)
    assert learner.scores(pictures(3)).tolist() == [0.0] * 3


def test_dino_goes_on_where_training_ended(runs):
    """Prototypes learn, the temperature is the final one, teacher and centre follow after every update."""
    learner = EmbeddingChange(runs[DINO])
    shown = pictures(6)
    learner.begin(0, shown)
    objective, network = learner.objective, learner.objective.network
    assert objective.teacher_temperature(0) == objective.teacher_temp == 0.04
    loss = learner.study_loss(shown, stream(0, "study", 0))
    loss.backward()
    assert network.student_head.last_layer.weight_v.grad.abs().sum() > 0
    assert all(p.grad is None for p in [*network.encoder.parameters(), *learner.before.parameters()])
    teacher, student = (e.blocks[0].mlp.fc1.weight for e in (network.encoder, network.student_encoder))
    center, was = network.center.clone(), teacher.clone()
    learner.after_update()
    assert torch.allclose(teacher, 0.9 * was + 0.1 * student, atol=1e-7)
    assert not torch.equal(network.center, center)
    trained = {id(p) for p in learner.parameters() if p.requires_grad}
    assert trained == {id(p) for part in (network.student_encoder, network.student_head) for p in part.parameters()}


def test_views_are_those_of_the_objective_s_laws(runs, monkeypatch):
    learner = EmbeddingChange(runs[DINO])
    batches = []
    monkeypatch.setattr(
        learner.objective,
        "losses",
        lambda batch: batches.append(batch) or {"loss": torch.zeros((), requires_grad=True)},
    )
    learner.study_loss(pictures(4, size=24), stream(0, "study", 0))  # pictures of another size are cut all the same
    wanted = learner.objective.example_batch(4)
    assert {k: (v.shape, v.dtype) for k, v in batches[0].items()} == {k: (v.shape, v.dtype) for k, v in wanted.items()}
    assert not torch.equal(batches[0]["global"][:, 0], batches[0]["global"][:, 1])

    plain = EmbeddingChange(runs[MAE], scale=(1.0, 1.0), flip=1.0)
    monkeypatch.setattr(plain.objective, "losses", lambda batch: batches.append(batch) or {"loss": torch.zeros(())})
    shown = pictures(4)
    plain.study_loss(shown, stream(0, "study", 0))
    assert torch.equal(batches[1]["image"], shown.flip(-1))  # the only box of the whole area, mirrored
    assert batches[1]["noise"].shape == (4, 16)


def test_studied_pictures_move_most_where_study_is_about_little_else(runs):
    """One picture, studied long: its embedding moves farther than those of others, on average over pictures."""
    moved = []
    for k in range(6):
        learner = EmbeddingChange(runs[MAE], scale=(1.0, 1.0), flip=0.0)
        shown = pictures(6, seed=k)
        learner.begin(0, shown)
        study(learner, shown[:1].expand(4, -1, -1, -1), updates=12, lr=3e-3)
        scores = learner.scores(shown)
        moved.append((scores[0] < scores[1:]).double().mean().item())
    assert np.mean(moved) > 0.6


def test_only_objectives_of_single_pictures_can_be_studied_with(runs, tmp_path):
    with pytest.raises(InputError, match="temporal_classification, whose loss needs more than a single picture"):
        EmbeddingChange(runs[TemporalClassification])
    with pytest.raises(InputError, match="does not exist"):
        EmbeddingChange(str(tmp_path / "nothing"))


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_the_store_s_score_is_minus_the_largest_cosine(runs, pool):
    learner = EmbeddingStore(runs[TemporalClassification], pool=pool)
    studied, others = pictures(9), pictures(4, seed=1)
    learner.begin(0, torch.cat([studied, others]))
    assert learner.scores(others).tolist() == [1.0] * 4
    for batch in studied.split(4):
        assert learner.study_loss(batch, stream(0, "study", 0)) is None
    encoder, card = load_encoder(runs[TemporalClassification])
    vectors = [pooled(encoder, pixels, card, pool).double() for pixels in (others, studied)]
    expected = -F.cosine_similarity(vectors[0][:, None], vectors[1], dim=-1).amax(dim=1)
    assert torch.allclose(learner.scores(others), expected, atol=1e-6)
    assert torch.allclose(learner.scores(studied), -torch.ones(9, dtype=torch.float64), atol=1e-6)
    assert not any(p.requires_grad for p in learner.parameters())
    assert learner.bound("") == "upper bound" and learner.bound("noise 40") == ""


def test_degraded_pictures_are_found_by_likeness(runs):
    studied, foils = pictures(10), pictures(10, seed=1)
    learner = EmbeddingStore(runs[MAE])
    learner.begin(0, torch.cat([studied, foils]))
    learner.study_loss(studied, stream(0, "study", 0))
    keys = [f"{k:064x}" for k in range(20)]
    correct = []
    for text in ("noise:10", "noise:500"):
        seen, unseen = parse_variant(text).pictures(studied, foils, keys)
        correct.append((learner.scores(seen) < learner.scores(unseen)).double().mean().item())
    assert correct[0] == 1.0 and correct[1] < 1.0


def test_a_bounded_store_keeps_its_capacity_and_its_state(runs, tmp_path):
    studied = pictures(12)
    learners = [EmbeddingStore(runs[MAE], weights="random", capacity=5) for _ in range(2)]
    for learner in learners:
        learner.begin(2, torch.cat([studied, pictures(3, seed=1)]))
    first, second = learners
    for exposure in range(2):
        for batch in studied.roll(exposure, 0).split(5):
            first.study_loss(batch, stream(0, "study", exposure))
    scores = first.scores(studied)
    assert (scores < -1 + 1e-6).sum() == 5 and first.bound("") == "" and first.card is None
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(second.scores(studied), scores)
    second.begin(2, torch.cat([studied, pictures(3, seed=1)]))
    assert (second.scores(studied) == 1).all()
    weight = first.encoder.blocks[0].attn.qkv.weight.clone()
    first.begin(3, pictures(20))
    assert not torch.equal(first.encoder.blocks[0].attn.qkv.weight, weight)


def test_tokenizers_are_encoders_too(tmp_path):
    settings = {
        "img_size": 16,
        "ch": 8,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "z_channels": 8,
    }
    tokenizer = ConvTokenizer(**settings, embed_dim=8, codebook_size=11)
    card = {"contract": "card", "version": 1, "name": "vq", "objective": "test"}
    card["architecture"] = {"class": "ConvTokenizer", "arguments": tokenizer.arguments}
    save_weights(tmp_path, tokenizer, card)
    studied = pictures(4)
    for weights in ("trained", "random"):
        learner = EmbeddingStore(str(tmp_path), weights=weights, layer="latents", capacity=3)
        assert learner.img_size == (16, 16)
        learner.begin(0, studied)
        learner.study_loss(studied, stream(0, "study", 0))
        assert (learner.scores(studied) < -1 + 1e-6).sum() == 3


@pytest.mark.parametrize(
    ("name", "kind", "arguments"),
    [
        ("EmbeddingChange", DINO, {"pool": "cls"}),
        ("EmbeddingChange", MAE, {"weights": "random", "scale": [0.5, 1.0], "flip": 0.0}),
        ("EmbeddingStore", MAE, {"capacity": 5, "weights": "random"}),
    ],
)
def test_they_are_built_from_a_config(runs, name, kind, arguments):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Learner, "learner")
    instantiate = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes
    spec = {
        "class_path": f"headcam.recognition_memory.learners.embedding.{name}",
        "init_args": {"source": runs[kind], **arguments},
    }
    learner = instantiate(parser.parse_object({"learner": spec})).learner
    assert type(learner).__name__ == name and learner.img_size == (16, 16)
    with pytest.raises((jsonargparse.ArgumentError, SystemExit)):
        parser.parse_object({"learner": {**spec, "init_args": {**spec["init_args"], "pool": "max"}}})
