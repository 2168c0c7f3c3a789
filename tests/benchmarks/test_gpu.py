"""The GPU benchmark where there is none, and its measuring function on a CPU; no test asserts a time."""

import json
import time

import pytest
import torch

from headcam.ssl.mae import MAE


@pytest.fixture
def gpu(monkeypatch):
    import gpu as module
    import harness

    monkeypatch.setattr(harness, "_set_threads", lambda threads: threads or 1)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no CUDA device")
def test_without_a_device_every_figure_is_not_applicable(gpu, capsys):
    figures = {"mae_vitl16": gpu.mae_vitl16, "stmae_vith14": gpu.stmae_vith14, "mae_1792": gpu.mae_1792}
    figures["gpt_gimel"] = gpu.gpt_gimel
    gpu.main("gpu", figures, arguments=[])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["benchmark"] == "gpu"
    assert {name: ratio["not_applicable"] for name, ratio in report["ratios"].items()} == dict.fromkeys(
        figures, "no CUDA device here"
    )
    assert report["ratios"]["mae_vitl16"]["bar"] == 0.45


def test_steps_train_and_are_counted(gpu):
    small = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "decoder_embed_dim": 32, "decoder_depth": 1}
    objective = MAE(**small, decoder_num_heads=2)
    objective.configure_model()
    before = [p.clone() for p in objective.network.parameters() if p.requires_grad]
    steps = gpu.training_steps(objective, 2, torch.device("cpu"), deadline=time.monotonic(), least=4)
    assert len(steps.seconds) == 4 and min(steps.seconds) > 0 and steps.peak_bytes == 0
    assert any(not torch.equal(a, b) for a, b in zip(before, (p for p in objective.parameters() if p.requires_grad)))

    figure = gpu.against(gpu.Steps([2.0, 1.0, 4.0], 0), 8, peer_s=0.1, bar=0.45, unit="image", device_name="a card")
    assert figure.ratios == [0.4, 0.8, 0.2] and figure.median == 0.4 and not figure.holds
    assert figure.as_json()["fidelity"]["rate on a card"]["value"] == 4.0
