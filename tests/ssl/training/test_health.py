"""A step that must not be taken is not taken, is named, is counted over restarts, and too many of them stop the run."""

import csv
import math
import os
from dataclasses import astuple
from pathlib import Path

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from headcam.cli import main
from headcam.errors import InputError
from headcam.ssl.mae import MAE
from headcam.ssl.objective import parameter_groups
from headcam.ssl.training.health import HealthSettings, Skipped, StepCheck, TrainingHealth, skip_where

LR = 0.001
CONSTANT = {"optimizer": {"lr": LR, "base_lr_per_256": None, "schedule": "constant"}}


class InfiniteGradient(torch.autograd.Function):
    """Zero, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx, x):
        return torch.zeros(())

    @staticmethod
    def backward(ctx, gradient):
        return torch.full((1, 1, 192), math.inf)


@pytest.fixture
def sick(monkeypatch):
    """Function that makes the loss of given (optimizer step, micro-batch) no number, or only its gradient.

    It returns the lists of batches, of losses, and of weights and optimizer after each step, filled in as the run goes.
    """

    def break_at(bad: set[tuple[int, int]], how: str = "loss"):
        batches, losses, states = [], [], []
        healthy, taken = MAE.losses, MAE.after_optimizer_step

        def broken(self, batch):
            values = healthy(self, batch)
            if self.training and not values["loss"].is_meta:  # not where work is counted
                batches.append(batch)
                losses.append(float(values["loss"].detach()))
                if (self.global_step + 1, (len(batches) - 1) % self.trainer.accumulate_grad_batches) in bad:
                    extra = InfiniteGradient.apply(self.network.encoder.cls_token)
                    values = {"loss": values["loss"] * math.nan if how == "loss" else values["loss"] + extra}
            return values

        def after(self):
            taken(self)
            weights = {k: v.clone() for k, v in self.network.state_dict().items()}
            moments = [{k: v.clone() for k, v in s.items()} for s in self.trainer.optimizers[0].state.values()]
            states.append((weights, moments))

        monkeypatch.setattr(MAE, "losses", broken)
        monkeypatch.setattr(MAE, "after_optimizer_step", after)
        return batches, losses, states

    return break_at


def fit(config: Path, out: Path, *more: str) -> int:
    return main(["fit", "--config", str(config), "--out", str(out), "--trainer.enable_progress_bar=false", *more])


def skipped(run: Path) -> list[dict[str, str]]:
    with open(run / "skipped.csv", newline="") as file:
        return list(csv.DictReader(file))


def column(run: Path, name: str) -> list[str]:
    with open(run / "metrics.csv", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


@pytest.mark.parametrize("how, clip", [("loss", "norm"), ("gradient", "norm"), ("gradient", "value")])
def test_a_skipped_step_leaves_weights_moments_and_counters_bit_for_bit(fit_config, tmp_path, sick, capsys, how, clip):
    _, _, states = sick({(3, 0)}, how)
    trainer = {"max_steps": 5, "gradient_clip_algorithm": clip, "val_check_interval": 5}
    assert fit(fit_config(model=CONSTANT, trainer=trainer), tmp_path / "a") == 1
    assert "1 steps were skipped" in capsys.readouterr().err

    (weights, moments), (after, moments_after), (later, _) = states[1:4]
    assert all(torch.equal(weights[k], after[k]) for k in weights)
    assert all(torch.equal(a[k], b[k]) for a, b in zip(moments, moments_after) for k in a)
    assert any(not torch.equal(after[k], later[k]) for k in after)  # the run goes on
    row = skipped(tmp_path / "a")
    assert [(r["step"], r["first_sample"], r["samples"]) for r in row] == [("3", "16", "8")]
    assert math.isnan(float(row[0]["loss"])) == (how == "loss")
    assert not math.isfinite(float(row[0]["gradient_norm"]))
    assert column(tmp_path / "a", "skipped") == ["0", "0", "1", "1", "1"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_run_equals_one_in_plain_torch_that_never_saw_the_gradient(fit_config, tmp_path, sick, accumulate):
    """The bad one of two micro-batches is the second; the sound first one goes with it."""
    batches, losses, states = sick({(3, accumulate - 1)})
    trainer = {"max_steps": 6, "accumulate_grad_batches": accumulate, "val_check_interval": 12}
    config = fit_config(model=CONSTANT, data={"batch_size": 8 // accumulate}, trainer=trainer)
    assert fit(config, tmp_path / "a") == 1

    torch.manual_seed(0)
    module = MAE("ti", img_size=32, patch_size=8, depth=2, decoder_embed_dim=32, decoder_depth=2, decoder_num_heads=4)
    module.configure_model()
    network = module.network.train()
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.05), lr=LR, betas=(0.9, 0.95), foreach=False)
    expected = []
    for step in range(6):
        optimizer.zero_grad()
        for k in range(accumulate):
            batch = batches[step * accumulate + k]
            loss = network(module.normalize(batch["image"]), batch["noise"])["loss"]
            (loss / accumulate).backward()
            expected.append(float(loss.detach()))
        if step != 2:
            clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, weight in network.state_dict().items():
        if name.endswith("qkv.bias"):  # its part for the keys moves no output: AdamW blows up what is rounding error
            continue
        torch.testing.assert_close(states[-1][0][name], weight, rtol=1e-4, atol=1e-6)


def test_a_logged_loss_is_the_mean_over_micro_batches(fit_config, tmp_path, sick):
    _, losses, _ = sick(set())
    trainer = {"max_steps": 2, "accumulate_grad_batches": 3, "val_check_interval": 6}
    assert fit(fit_config(data={"batch_size": 4}, trainer=trainer), tmp_path / "a") == 0
    means = [sum(losses[:3]) / 3, sum(losses[3:]) / 3]
    assert [float(v) for v in column(tmp_path / "a", "train/loss")] == pytest.approx(means, rel=1e-6)


def test_the_count_survives_a_restart(fit_config, tmp_path, sick):
    sick({(2, 0), (5, 0), (9, 0)})
    config = fit_config(model=CONSTANT)
    assert fit(config, tmp_path / "straight") == 1
    assert fit(fit_config("part", model=CONSTANT, trainer={"max_steps": 6}), tmp_path / "part") == 1
    last = str(tmp_path / "part" / "checkpoints" / "last.ckpt")
    assert fit(config, tmp_path / "resumed", "--ckpt_path", last) == 1
    assert [r["step"] for r in skipped(tmp_path / "resumed")] == ["2", "5", "9"]
    text = [(tmp_path / name / "skipped.csv").read_text() for name in ("straight", "resumed")]
    assert text[0] == text[1]
    assert column(tmp_path / "resumed", "skipped") == column(tmp_path / "straight", "skipped")[6:]
    assert column(tmp_path / "resumed", "train/loss")[0] == column(tmp_path / "straight", "train/loss")[6]


@pytest.mark.parametrize(
    "bad, option, telling",
    [
        (range(4, 99), "max_skipped_in_a_row=3", "4 steps in a row up to step 7"),
        (range(1, 99, 2), "max_skipped=2", "3 steps up to step 5"),
        ([1], "max_skipped=0", "1 steps up to step 1"),
    ],
)
def test_too_many_skipped_steps_stop_the_run_on_one_line(fit_config, tmp_path, sick, capsys, bad, option, telling):
    sick({(step, 0) for step in bad})
    config = fit_config(model=CONSTANT, trainer={"val_check_interval": 50})
    assert fit(config, tmp_path / "a", f"--health.{option}", "--checkpoint_every=2") == 2
    error = capsys.readouterr().err
    assert telling in error and "learning rate" in error and error.count("\n") == 1
    assert (tmp_path / "a" / "checkpoints" / "last.ckpt").exists() == (bad != [1])
    assert len(skipped(tmp_path / "a")) > 0


def test_weights_that_are_no_numbers_do_not_replace_a_checkpoint(fit_config, tmp_path, monkeypatch, capsys):
    def poison(self):
        if self.global_step == 7:
            with torch.no_grad():
                self.network.mask_token[0, 0, 0] = math.nan

    monkeypatch.setattr(MAE, "after_optimizer_step", poison)
    trainer = {"val_check_interval": 50}
    assert fit(fit_config(model=CONSTANT, trainer=trainer), tmp_path / "a", "--health.max_skipped=50") == 2
    error = capsys.readouterr().err
    assert "no numbers any more at step 12" in error and error.count("\n") == 1
    saved = torch.load(tmp_path / "a" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6 and (tmp_path / "a" / "checkpoints" / "step-00000006.ckpt").exists()
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values())


@pytest.mark.parametrize("fused", [True, False])
def test_the_verdict_reaches_both_kinds_of_optimizer(fused):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    seen = []
    for bad in (0.0, 1.0, 0.0):
        weight.grad = torch.full((3,), math.nan if bad else 1.0)
        skip_where(torch.tensor(bad), optimizer)
        optimizer.step()
        seen.append((weight.detach().clone(), float(optimizer.state[weight]["step"])))
    assert torch.equal(seen[0][0], seen[1][0]) and [count for _, count in seen] == [1, 1, 2]
    assert (seen[2][0] < seen[1][0]).all()


def test_a_verdict_forgets_the_step_before():
    check = StepCheck()
    check.add({"loss": torch.tensor(math.inf)}, 0.5)
    check.add({"loss": torch.tensor(1.0)}, 0.5)
    assert check.close(torch.tensor(1.0)) == 1.0
    check.add({"loss": torch.tensor(3.0), "other": torch.tensor(2.0)}, 1.0)
    assert check.close(torch.tensor(1.0)) == 0.0 and check.values["other"] == 2.0
    check.add({"loss": torch.tensor(3.0)}, 1.0)
    assert check.close(torch.tensor(math.nan)) == 1.0 and check.verdict.tolist()[:2] == [1.0, 3.0]


def test_overflows_of_a_loss_scaler_are_no_faulty_samples(tmp_path):
    """fp16: a finite loss whose scaled gradient overflows is how a scale is found; in a row they count all the same."""
    from types import SimpleNamespace

    module = SimpleNamespace(scales_gradients=True, samples_per_step=lambda: 8)
    trainer = SimpleNamespace(is_global_zero=True, optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])])
    health = TrainingHealth(tmp_path, HealthSettings(max_skipped=1, max_skipped_in_a_row=4))
    health._pending = [(k, torch.tensor([1.0, 0.5, math.inf])) for k in (1, 2, 3)]
    health.look(trainer, module)
    assert health.skipped == []
    health._pending = [(4, torch.tensor([1.0, math.nan, math.nan]))]
    health.look(trainer, module)
    assert [astuple(one)[:3] for one in health.skipped] == [(4, 24, 8)]
    health._pending = [(5, torch.tensor([1.0, 0.5, math.inf]))]
    with pytest.raises(InputError, match="5 steps in a row up to step 5"):
        health.look(trainer, module)


def test_waiting_for_data_is_said_once_and_with_a_remedy(tmp_path, capsys):
    health = TrainingHealth(tmp_path, HealthSettings(max_data_wait=0.4))
    health.watch_wait(waited=50, passed=59, num_workers=2)  # not a whole window yet
    health.watch_wait(waited=0, passed=61, num_workers=2)  # 42 % of the first
    assert capsys.readouterr().err == ""
    health.watch_wait(waited=10, passed=60, num_workers=2)  # a good one between
    health.watch_wait(waited=30, passed=60, num_workers=2)
    assert capsys.readouterr().err == ""
    health.watch_wait(waited=45, passed=60, num_workers=2)
    error = capsys.readouterr().err
    assert "75% of the time" in error and "data.num_workers (now 2" in error and error.count("\n") == 1
    for _ in range(5):
        health.watch_wait(waited=60, passed=60, num_workers=2)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "settings, telling",
    [({"max_skipped": -1}, "health.max_skipped is -1"), ({"max_data_wait": 0}, "health.max_data_wait is 0")],
)
def test_settings_that_cannot_work_are_refused(settings, telling):
    with pytest.raises(InputError, match=telling):
        HealthSettings(**settings)


def test_the_list_is_written_as_it_grows(tmp_path):
    health = TrainingHealth(tmp_path)
    health._list([Skipped(3, 16, 8, math.nan, 1.0)])
    health._list([Skipped(4, 24, 8, 1.0, math.inf)])
    assert [r["step"] for r in skipped(tmp_path)] == ["3", "4"] and os.listdir(tmp_path) == ["skipped.csv"]
