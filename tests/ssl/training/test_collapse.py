"""Figures of collapse on cases that are known, and the alarm: what it finds, what it lets pass, when it stops a run."""

import math
from types import SimpleNamespace

import pytest
import torch
import yaml

from headcam.cli import main
from headcam.errors import InputError
from headcam.ssl.dino import DINO
from headcam.ssl.training.collapse import CollapseAlarm, collapse_figures, rankme

LN_K = math.log(512)
HEALTHY = {"loss": 4.0, "teacher_entropy": 2.0, "mean_entropy": 5.0, "rankme": 40.0}


def test_rankme_counts_directions():
    """exp of the entropy of normalised singular values (Garrido et al. 2023, equation 1)."""
    torch.manual_seed(0)
    assert float(rankme(torch.eye(10))) == pytest.approx(10, rel=1e-5)
    assert float(rankme(torch.randn(1, 20).expand(50, -1))) == pytest.approx(1, abs=1e-3)
    basis = torch.linalg.qr(torch.randn(64, 64))[0][:, :3]
    assert float(rankme(basis @ torch.eye(3) @ torch.linalg.qr(torch.randn(16, 16))[0][:3])) == pytest.approx(
        3, rel=1e-4
    )
    x = torch.randn(40, 16)
    p = torch.linalg.svdvals(x.double())
    p = p / p.sum()
    assert float(rankme(x)) == pytest.approx(float(torch.exp(-(p * p.log()).sum())), rel=1e-5)


def test_figures_of_known_cases():
    torch.manual_seed(0)
    features, K = torch.randn(256, 64), 512
    uniform = torch.full((256, K), 1 / K)
    one = torch.zeros(256, K).index_fill(1, torch.tensor([7]), 1.0)
    each = torch.eye(K)[:256]
    for teacher, entropy, mean in ((uniform, LN_K, LN_K), (one, 0, 0), (each, 0, math.log(256))):
        found = collapse_figures(features, teacher)
        assert float(found["teacher_entropy"]) == pytest.approx(entropy, abs=1e-4)
        assert float(found["mean_entropy"]) == pytest.approx(mean, abs=1e-4)
    assert float(found["feature_std"]) == pytest.approx(1, rel=0.05)
    flat = collapse_figures(features[:1].expand(256, -1), uniform)
    assert float(flat["feature_std"]) == pytest.approx(0, abs=1e-4) and float(flat["rankme"]) == pytest.approx(
        1, abs=1e-3
    )


@pytest.mark.parametrize(
    "changes, telling",
    [
        ({"loss": 0.995 * LN_K}, "the loss is within 1% of ln K = 6.24"),
        ({"teacher_entropy": LN_K, "mean_entropy": LN_K}, "the teacher says the same of every picture"),
        ({"teacher_entropy": 0.0, "mean_entropy": 0.001}, "the teacher says the same of every picture"),
        ({"rankme": 1.01}, "along one direction"),
    ],
)
def test_each_sign_is_found_once_it_has_held_long_enough(changes, telling):
    alarm, values = CollapseAlarm(patience=100), HEALTHY | changes
    assert [alarm.due(step, values, LN_K) for step in (50, 100, 140)] == [[], [], []]
    (sign,) = alarm.due(150, values, LN_K)
    assert telling in sign
    assert alarm.due(200, values, LN_K) == []  # said once
    assert alarm.due(250, HEALTHY, LN_K) == [] and alarm.due(300, values, LN_K) == []
    again = CollapseAlarm(patience=100)
    again.load_state_dict(alarm.state_dict())  # a run that goes on from a checkpoint
    assert again.due(390, values, LN_K) == [] and again.due(400, values, LN_K) == [sign]


def test_a_healthy_run_is_left_alone():
    torch.manual_seed(0)
    alarm = CollapseAlarm(patience=1)
    for step in range(0, 100, 10):
        teacher = (torch.randn(64, 512) * 3).softmax(-1)
        figures = {k: float(v) for k, v in collapse_figures(torch.randn(64, 48), teacher).items()}
        assert alarm.due(step, figures | {"loss": 0.9 * LN_K}, LN_K) == []


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(InputError, match="patience is 0"):
        CollapseAlarm(patience=0)
    with pytest.raises(InputError, match="cannot watch SimpleNamespace"):
        CollapseAlarm().on_fit_start(None, SimpleNamespace())


def test_dino_adds_the_alarm_unless_it_was_given_one():
    module = DINO(size="ti", img_size=32, local_crops_size=16, patch_size=8, depth=1, out_dim=16)
    module._trainer = SimpleNamespace(callbacks=[])
    assert [type(c) for c in module.configure_callbacks()] == [CollapseAlarm]
    module._trainer = SimpleNamespace(callbacks=[CollapseAlarm(stop=True)])
    assert module.configure_callbacks() == []


@pytest.mark.parametrize("stop", [False, True])
def test_a_run_with_a_constant_teacher_is_told_and_stops_where_asked(stop, stores, tmp_path, capfd):
    """At a temperature of 100 the teacher prefers nothing, so the student is taught ln K."""
    model = dict(
        size="ti", img_size=32, local_crops_size=16, patch_size=8, embed_dim=48, depth=1, num_heads=4, out_dim=96,
        head_hidden_dim=64, head_bottleneck_dim=32, local_crops_number=1, teacher_temp=100.0, warmup_teacher_temp=100.0,
        optimizer=dict(lr=1e-3, base_lr_per_256=None),
    )  # fmt: skip
    alarm = {"class_path": "headcam.ssl.training.collapse.CollapseAlarm", "init_args": {"stop": stop, "patience": 3}}
    config = {
        "seed_everything": 0,
        "model": {"class_path": "headcam.ssl.dino.DINO", "init_args": model},
        "data": {
            "class_path": "headcam.video.data_module.FrameDataModule",
            "init_args": dict(train=[str(stores[0])], batch_size=4, num_workers=0),
        },
        "trainer": dict(
            max_steps=8, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False, callbacks=[alarm]
        ),
        "checkpoint_every": 8,
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    main(["fit", "--config", str(path), "--out", str(tmp_path / "run")])
    error = capfd.readouterr().err
    told = [line for line in error.splitlines() if "collapse: the teacher says the same of every picture" in line]
    assert len(told) == 1 and "up to step 4" in told[0] and "Fix:" in told[0] and "model.teacher_temp" in told[0]
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == (4 if stop else 8)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == (4 if stop else 8)  # stopped or not, the run ends with its checkpoint
