"""Training a GPT on a token store: the step, `headcam fit`, what a run leaves behind, resume, plans, refusals."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from headcam.cli import main
from headcam.errors import InputError
from headcam.files import sha256_file
from headcam.ssl.objective import ComputeSettings
from headcam.ssl.planning.flops import count_flops
from headcam.ssl.planning.memory_plan import plan_memory, trace_step
from headcam.ssl.restore import objective_from_config
from headcam.ssl.weights import save_weights
from headcam.tokenizers.autoencoders.palette import PaletteTokenizer
from headcam.tokenizers.autoencoders.tokenizer import load_tokenizer
from headcam.tokenizers.autoregression import likelihood
from headcam.tokenizers.autoregression.gpt import load_gpt
from headcam.tokenizers.autoregression.training import TokenGPT
from headcam.tokenizers.token_store import TokenStore, make_token_store

ROOT = Path(__file__).resolve().parents[3]
RECIPES = sorted((ROOT / "configs" / "tokenizers").glob("*gpt_*.yaml"))
K, GRID = 16, (4, 6)
SMALL = {"vocab_size": K, "grid": list(GRID), "embed_dim": 24, "depth": 2, "num_heads": 2}
EXACT = ("step", "train/loss", "lr", "samples", "hours", "val/loss")  # the other columns are times


def small(**more) -> TokenGPT:
    return TokenGPT(**({**SMALL, "grid": GRID} | more))


def built(objective: TokenGPT) -> TokenGPT:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        objective.configure_model()
    return objective


def rows(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k in EXACT} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def token_stores(stores, tmp_path_factory) -> tuple[Path, Path]:
    """Colours, 4 x 6 of 16, of the 40 training pictures (two crops each) and the 10 held out."""
    root = tmp_path_factory.mktemp("tokens")
    tokenizer = PaletteTokenizer(GRID, K)
    generator = torch.Generator().manual_seed(0)
    tokenizer.quantizer.codebook.copy_(torch.randint(0, 256, (K, 3), generator=generator))
    card = {"contract": "card", "version": 1, "name": "palette", "objective": "palette", "img_size": list(GRID)}
    card["architecture"] = {"class": "PaletteTokenizer", "arguments": tokenizer.arguments}
    save_weights(root / "palette", tokenizer, card | {"mean": list(tokenizer.mean), "std": list(tokenizer.std)})
    for name, data, crops in (("train", stores[0], 2), ("val", stores[1], 1)):
        make_token_store(data, root / "palette", root / name, crops=crops, num_workers=0, quiet=True)
    return root / "train", root / "val"


@pytest.fixture
def config(token_stores, tmp_path):
    """Function that writes a config of a small run and returns its path; keyword arguments change it."""

    def write(name: str = "run", model: dict | None = None, data: dict | None = None, **trainer) -> Path:
        data_path = "headcam.tokenizers.token_data.TokenDataModule"
        train, val = ([str(store)] for store in token_stores)
        settings = {
            "seed_everything": 0,
            "model": {
                "class_path": "headcam.tokenizers.autoregression.training.TokenGPT",
                "init_args": SMALL
                | {"optimizer": {"lr": 0.01, "base_lr_per_256": None, "warmup_steps": 2}}
                | (model or {}),
            },
            "data": {
                "class_path": data_path,
                "init_args": {"train": train, "val": val, "batch_size": 8, "num_workers": 0} | (data or {}),
            },
            "trainer": {"max_steps": 12, "val_check_interval": 6, "log_every_n_steps": 1, "accelerator": "cpu"}
            | trainer,
            "checkpoint_every": 6,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def test_the_loss_is_the_mean_of_all_nats_and_bits_follow():
    module = built(small())
    batch = module.example_batch(3, "cpu")
    batch["tokens"].random_(0, K, generator=torch.Generator().manual_seed(0))
    assert batch["tokens"].shape == (3, 1, *GRID) and batch["tokens"].dtype == torch.int32
    values = module.losses(batch)
    nats = module(batch["tokens"][:, 0])
    assert nats.shape == (3, 24) and module.tokens_per_sample == 24
    torch.testing.assert_close(values["loss"], nats.mean())
    assert values["bits_per_token"].item() == pytest.approx(values["loss"].item() / math.log(2))
    assert set(values) == {"loss", "bits_per_token"}  # pixels are not known without data


def test_a_model_with_classes_asks_for_labels():
    module = built(small(start_token="class", classes=["alice", "sam"]))
    batch = module.example_batch(2, "cpu")
    assert batch["label"].dtype == torch.int64
    torch.nn.init.normal_(module.encoder.class_embed.weight)
    losses = [module.losses(batch | {"label": torch.full((2,), label)})["loss"].item() for label in (0, 1)]
    assert losses[0] != losses[1]
    assert module.card()["classes"] == ["alice", "sam"]


def test_it_learns_what_is_there_to_learn():
    """Sequences that count up from a random start: after the first token, nothing is left to chance."""
    module = built(small(embed_dim=48))
    optimizer = torch.optim.AdamW(module.network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        first = torch.randint(0, K, (16, 1), generator=generator)
        tokens = (first + torch.arange(24)) % K
        loss = module.losses({"tokens": tokens.view(16, 1, *GRID)})["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    nats = module((torch.arange(K)[:, None] + torch.arange(24)).remainder(K)).detach()
    assert nats[:, 1:].max() < 0.1
    assert nats[:, 0].mean().item() == pytest.approx(math.log(K), abs=0.15)  # which no model can beat


def test_a_run_leaves_everything_that_its_numbers_need(config, token_stores, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["fit", "--config", str(config()), "--out", str(run)]) == 0
    found = rows(run)
    assert [int(r["step"]) for r in found] == list(range(1, 13))
    assert [r["step"] for r in found if r["val/loss"]] == ["6", "12"]
    assert float(found[-1]["train/loss"]) < float(found[0]["train/loss"])
    with open(run / "metrics.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    loss, bits = float(last["val/loss"]), float(last["val/bits_per_token"])
    assert bits == pytest.approx(loss / math.log(2), rel=1e-5)
    assert float(last["val/bits_per_pixel"]) == pytest.approx(bits, rel=1e-5)  # a token is a pixel here
    assert float(last["tokens_per_second"]) == pytest.approx(24 * float(last["images_per_second"]))

    # The tokenizer goes along, and the card names it.
    store = TokenStore(token_stores[0])
    tokenizer, tokenizer_card = load_tokenizer(run)
    card = json.loads((run / "card.json").read_text())
    assert tokenizer.grid == GRID and tokenizer_card["weights_hash"] == store.tokenizer_hash
    facts = {"class": "PaletteTokenizer", "img_size": list(GRID), "num_frames": 1, "step_s": None}
    assert card["tokenizer"] == {"hash": store.tokenizer_hash, **facts}
    assert card["objective"] == "gpt" and card["parameters"] == card["parameters_total"] and "mean" not in card

    # Held-out loss by hand, from the weights and the store alone.
    model, _ = load_gpt(run)
    held = TokenStore(token_stores[1])
    tokens = torch.from_numpy(np.stack([held.tokens(k) for k in range(len(held))]))
    with torch.no_grad():
        assert loss == pytest.approx(model.nats(tokens).double().mean().item(), rel=1e-5)

    # Baselines: those of the same tokens, recounted.
    baselines = json.loads((run / "baselines.json").read_text())
    assert baselines["samples"] == {"train": 80, "held_out": 10}
    train = np.stack([store.tokens(k) for k in range(len(store))])
    p = (np.bincount(train.ravel(), minlength=K) + 1) / (train.size + K)
    assert baselines["nats_per_token"]["unigram"] == pytest.approx(-np.log(p[tokens.numpy()]).mean())
    assert baselines["nats_per_token"]["uniform"] == math.log(K)
    assert baselines["bits_per_token"]["bigram"] == pytest.approx(baselines["nats_per_token"]["bigram"] / math.log(2))


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_a_run_that_goes_on_equals_one_that_never_stopped(config, tmp_path, positions):
    model = {"positions": positions, "optimizer": {"lr": 0.01, "base_lr_per_256": None, "schedule": "constant"}}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(["fit", "--config", str(config("a", model)), "--out", str(straight)]) == 0
    # Stopped after 6 steps: the same run with another length, which alone is changed back in its config.
    assert main(["fit", "--config", str(config("b", model, max_steps=6)), "--out", str(stopped)]) == 0
    text = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(text.replace("max_steps: 6", "max_steps: 12"))
    baselines = (stopped / "baselines.json").stat().st_mtime_ns
    assert main(["fit", "--config", str(config("b", model)), "--out", str(stopped)]) == 0
    assert rows(stopped) == rows(straight)
    assert sha256_file(stopped / "weights.safetensors") == sha256_file(straight / "weights.safetensors")
    assert (stopped / "baselines.json").stat().st_mtime_ns == baselines


def test_a_run_starts_from_another_s_weights_and_refuses_those_that_do_not_fit(config, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(["fit", "--config", str(config("a", max_steps=1)), "--out", str(first)]) == 0
    still = {"optimizer": {"lr": 0.0, "base_lr_per_256": None}}
    options = ["--config", str(config("b", still, max_steps=1)), "--init", str(first), "--out", str(second)]
    assert main(["fit", *options]) == 0
    assert sha256_file(second / "weights.safetensors") == sha256_file(first / "weights.safetensors")
    record = json.loads((second / "card.json").read_text())["init"]
    assert record["hash"] == sha256_file(first / "weights.safetensors") and record["steps"] == ["copied"]

    capsys.readouterr()
    deeper = config("c", {"depth": 3}, max_steps=1)
    assert main(["fit", "--config", str(deeper), "--init", str(first), "--out", str(tmp_path / "refused")]) == 2
    assert "its depth is" in capsys.readouterr().err.splitlines()[-1]

    card = json.loads((first / "card.json").read_text())
    card["tokenizer"]["hash"] = "0" * 64
    (first / "card.json").write_text(json.dumps(card))
    assert main(["fit", *options[:-1], str(tmp_path / "refused")]) == 2
    assert "tokens of another tokenizer" in capsys.readouterr().err.splitlines()[-1]


def test_data_of_another_kind_are_refused_on_one_line(config, stores, token_stores, tmp_path, capsys):
    frames = tmp_path / "frames.yaml"
    settings = yaml.safe_load(config().read_text())
    settings["data"] = {
        "class_path": "headcam.video.data_module.FrameDataModule",
        "init_args": {"train": [str(stores[0])], "num_workers": 0},
    }
    frames.write_text(yaml.safe_dump(settings))
    cases = (
        (frames, "a GPT learns from tokens, which FrameDataModule does not give"),
        (config("vocab", {"vocab_size": 8}), "vocab_size"),
        (config("grid", {"grid": [6, 4]}), "grid"),
    )
    for path, telling in cases:
        assert main(["fit", "--config", str(path), "--out", str(tmp_path / "refused")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert telling in lines[-1] and lines[-1].startswith("headcam: "), lines
        assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(("scores", "checkpointing"), [(1 << 21, "all"), (5 * K, "none")])  # one chunk, several
def test_the_plan_of_memory_is_what_a_step_takes(monkeypatch, scores, checkpointing):
    monkeypatch.setattr(likelihood, "_SCORES", scores)
    module = built(small(positions="rotary", compute=ComputeSettings(checkpointing=checkpointing)))
    plan = plan_memory(module, "32-true")
    trained = sum(p.numel() for p in module.network.parameters())
    for batch_size in (2, 7):
        ledger = trace_step(module, module.example_batch(batch_size, "cpu"))
        real = max(sum(moment.values()) for moment in ledger.moments)
        assert plan.peak_bytes(batch_size) == real + 8 * trained  # the optimizer's two moments, not made by a step


def test_a_large_vocabulary_takes_no_more_memory_than_its_chunks():
    module = TokenGPT(vocab_size=65_536, grid=(32, 32), embed_dim=64, depth=1, num_heads=2)
    plan = plan_memory(module, "32-true")
    a_sample = plan.peak_bytes(9) - plan.peak_bytes(8)
    chunk, everything = 4 * likelihood._SCORES, 4 * 65_536 * 1024  # bytes
    assert a_sample < 3 * chunk < everything / 10  # scores and their softmax, beside what the blocks keep


def test_a_step_is_counted_as_three_times_its_products():
    module = small(vocab_size=64)
    flops = count_flops(module)
    D, N = 24, 24
    # The maps of two blocks and of the last layer; two products of attention, of which a token needs half.
    products = 2 * N * (2 * 12 * D * D + 64 * D) + 2 * (4 * N * N * D) // 2
    assert flops.training == 3 * products and flops.recomputed == 0


def test_torch_compile_traces_a_step_as_one_graph():
    module = built(small(positions="rotary"))
    batch = module.example_batch(2, "cpu")
    batch["tokens"].random_(0, K, generator=torch.Generator().manual_seed(0))
    plain = module.losses(batch)["loss"]
    plain.backward()
    gradients = [p.grad.clone() for p in module.network.parameters()]
    module.network.zero_grad()
    traced = torch.compile(module.network, backend="eager", fullgraph=True)(batch["tokens"][:, 0])
    traced.backward()
    torch.testing.assert_close(traced, plain)
    for gradient, parameter in zip(gradients, module.network.parameters()):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.slow
def test_two_processes_with_sharded_weights_train_as_one(config, tmp_path):
    """FSDP2: the same losses and weights up to the order of sums."""
    alone, sharded = tmp_path / "alone", tmp_path / "sharded"
    command = [sys.executable, "-m", "headcam", "fit", "--config"]
    strategy = {
        "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
        "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1, "save_distributed_checkpoint": False},
    }
    two = config("two", data={"batch_size": 4}, max_steps=4, val_check_interval=4, devices=2, strategy=strategy)
    one = config("one", max_steps=4, val_check_interval=4)
    assert main(["fit", "--config", str(one), "--out", str(alone)]) == 0
    subprocess.run([*command, str(two), "--out", str(sharded)], check=True, capture_output=True, timeout=300)
    for a, b in zip(rows(alone), rows(sharded), strict=True):
        assert float(a["train/loss"]) == pytest.approx(float(b["train/loss"]), rel=1e-4)
        assert a["samples"] == b["samples"]
    ours, theirs = (load_gpt(run)[0] for run in (alone, sharded))
    tokens = torch.randint(0, K, (2, *GRID), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.nats(tokens), theirs.nats(tokens), rtol=1e-3, atol=1e-3)


def test_there_are_recipes():
    names = {path.stem for path in RECIPES}
    assert {"gpt_tiny_image", "gpt_tiny_video", "igpt_tiny", "igpt_s", "gpt_gimel_f8_saycam"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_the_model_that_its_header_states(path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(path), "--print_config"])
    assert stop.value.code in (0, None)
    model = objective_from_config(yaml.safe_load(capsys.readouterr().out)["model"])
    text = path.read_text("utf-8")
    stated = re.search(r"^# encoder parameters: (\d+)", text, re.MULTILINE)
    assert model.card()["parameters"] == int(stated[1])
    assert "# paper: " in text and "# effective batch: " in text


def test_classes_go_with_a_start_token_of_their_own():
    with pytest.raises(InputError, match="start_token learned does not go with 2 classes"):
        small(classes=["alice", "sam"])
