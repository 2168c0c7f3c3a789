"""bf16 where the processor computes in it, fp32 with one line where it would crawl."""

import pytest
import torch

from headcam.ssl.training import precision
from headcam.ssl.training.precision import cpu_bf16, resolve_precision


@pytest.mark.parametrize("wanted", ["bf16", "bf16-mixed", "bf16-true"])
def test_a_cpu_without_bf16_units_runs_fp32_and_says_so(monkeypatch, wanted):
    monkeypatch.setattr(precision, "cpu_bf16", lambda: None)
    resolved, reason = resolve_precision(wanted, on_cpu=True)
    assert resolved == "32-true" and wanted in reason and "\n" not in reason
    assert resolve_precision(wanted, on_cpu=False) == (wanted, "")


def test_a_cpu_with_bf16_units_keeps_it(monkeypatch):
    monkeypatch.setattr(precision, "cpu_bf16", lambda: "AMX-BF16")
    assert resolve_precision("bf16-mixed", on_cpu=True) == ("bf16-mixed", "")


@pytest.mark.parametrize("wanted", [None, 32, "32-true", "16-mixed", 64])
def test_other_formats_are_left_alone(monkeypatch, wanted):
    monkeypatch.setattr(precision, "cpu_bf16", lambda: None)
    assert resolve_precision(wanted, on_cpu=True) == (wanted, "")


def test_the_capability_is_torch_s_and_absent_where_torch_cannot_say(monkeypatch):
    for amx, avx, wanted in ((True, True, "AMX-BF16"), (False, True, "AVX512-BF16"), (False, False, None)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx, raising=False)
        assert cpu_bf16() == wanted
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert cpu_bf16() is None
