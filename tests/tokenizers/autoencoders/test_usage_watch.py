"""The watch over codes: what is counted between reports, by source, and when it speaks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headcam.errors import InputError
from headcam.ssl.training.health import TrainingHealth
from headcam.ssl.training.run_folder import RunFolder
from headcam.tokenizers.autoencoders.usage_watch import CodebookUsage
from headcam.video.sampling.units import RecordingFacts

CODES = 8


class _Units(SimpleNamespace):
    def __len__(self) -> int:
        return 10


class _Plan:
    """Ten units, of recordings a (units 0 to 3), b (4 to 6) and c; sample i is of unit i % 10."""

    def __init__(self, sources: list[str]):
        facts, names = RecordingFacts.unknown(["a", "b", "c"]), tuple(sorted(set(sources)))
        source = np.array([names.index(one) for one in sources])
        facts = RecordingFacts(facts.ids, source, names, facts.age_days, facts.recorded_on)
        self.units = _Units(facts=facts, recording_of=lambda units: np.searchsorted([3, 6, 9], units))

    def unit(self, i: np.ndarray) -> np.ndarray:
        return i % 10


@pytest.fixture
def run(tmp_path):
    """A trainer and a model of which the watch sees all it asks for; `train(tokens)` is a step of two samples."""

    def make(sources: list[str]):
        plan = _Plan(sources)
        folder = RunFolder(tmp_path, "", TrainingHealth(tmp_path))
        watch, logged = CodebookUsage(), {}
        held_out = SimpleNamespace(source=SimpleNamespace(units=plan.units))
        trainer = SimpleNamespace(
            datamodule=SimpleNamespace(plan=plan, val_data=held_out), accumulate_grad_batches=1, global_step=0,
            callbacks=[folder, watch],
            is_global_zero=True, sanity_checking=False, state=SimpleNamespace(fn="fit"),
        )  # fmt: skip
        module = SimpleNamespace(
            tokens=None, device="cpu", encoder=SimpleNamespace(vocab_size=CODES), samples_per_step=lambda: 2,
            log=lambda name, value: logged.update({name: value}),
        )  # fmt: skip
        watch.on_fit_start(trainer, module)
        watch.on_train_start(trainer, module)

        def train(tokens):
            first = 2 * trainer.global_step
            trainer.global_step += 1
            module.tokens = torch.tensor(tokens)
            batch = {"sample": torch.tensor([first, first + 1])}
            watch.on_train_batch_end(trainer, module, None, batch, trainer.global_step - 1)

        def validate(tokens):
            watch.on_validation_epoch_start(trainer, module)
            module.tokens = torch.tensor(tokens)
            watch.on_validation_batch_end(trainer, module, None, {"unit": torch.arange(len(tokens)) * 3}, 0)
            watch.on_validation_epoch_end(trainer, module)

        return SimpleNamespace(watch=watch, train=train, validate=validate, logged=logged, rows=folder.metrics.rows)

    return make


def test_tokens_are_counted_from_report_to_report_and_held_out_ones_apart(run):
    it = run(["", "", ""])
    it.train([[0, 1], [1, 1]])
    it.train([[2, 2], [2, 2]])
    it.validate([[5, 6, 7, 7]])
    assert it.logged == {"val/usage": 3 / 8, "val/perplexity": pytest.approx(2**1.5), "val/dead": 5}
    it.train([[3, 3], [4, 4]])
    it.validate([[5, 5, 5, 5]])
    assert it.logged["val/usage"] == 1 / 8
    first, second = it.rows()
    assert (first["step"], float(first["train/usage"]), float(first["train/dead"])) == ("2", 3 / 8, 5)
    share = np.array([1, 3, 4]) / 8
    assert float(first["train/perplexity"]) == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert (second["step"], float(second["train/usage"])) == ("3", 2 / 8)  # those before are not counted again
    assert not any(key.count("/") > 1 for key in first)  # one source needs no name


def test_every_pass_over_the_data_ends_with_a_report(run):
    it = run(["", "", ""])
    for _ in range(12):  # of 2 samples; a pass is 10 units
        it.train([[0, 1], [2, 3]])
    assert [row["step"] for row in it.rows()] == ["5", "10"]


def test_sources_are_counted_apart(run):
    """Samples 0 to 3 are of recording a, 4 to 6 of b, 7 to 9 of c; a and c are of one source."""
    it = run(["home", "zoo", "home"])
    for k in range(5):
        it.train([[0, 0], [0, 0]] if k < 2 else [[k, k], [5, 5]])
    (row,) = it.rows()
    # Steps 2, 3, 4 hold samples (4, 5), (6, 7), (8, 9): zoo sees 2, 5, 3; home 0, 5, 4, 5.
    assert {k: float(row[f"train/usage/{k}"]) for k in ("home", "zoo")} == {"home": 3 / 8, "zoo": 3 / 8}
    assert float(row["train/dead/zoo"]) == 5 and float(row["train/usage"]) == 5 / 8
    assert float(row["train/perplexity/home"]) == pytest.approx(
        np.exp(-sum(p * np.log(p) for p in (4 / 7, 1 / 7, 2 / 7)))
    )


def test_held_out_tokens_too_are_counted_by_source(run):
    it = run(["home", "zoo", "home"])
    it.validate([[0, 1], [0, 0], [2, 3], [4, 4]])  # of units 0, 3, 6 and 9, which are of recordings a, a, b and c
    assert it.logged["val/usage"] == 5 / 8 and it.logged["val/dead"] == 3
    assert {k: it.logged[f"val/usage/{k}"] for k in ("home", "zoo")} == {"home": 3 / 8, "zoo": 2 / 8}
    assert it.logged["val/perplexity/zoo"] == pytest.approx(2)


def test_the_alarm_speaks_once_and_when_it_lasts(run, capsys):
    it = run(["", "", ""])
    collapsed, healthy = np.zeros((2, 32), int).tolist(), (np.arange(64).reshape(2, 32) % CODES).tolist()
    for tokens in (collapsed, healthy, collapsed, collapsed, collapsed):
        it.train(tokens)
        it.validate([[0]])
    assert len(it.watch.alarms) == 1 and it.watch.alarms[0].startswith("step 4: 1 of 8 codes in use")
    assert "Fix: " in it.watch.alarms[0] and capsys.readouterr().err == f"headcam: codes: {it.watch.alarms[0]}\n"
    again = CodebookUsage()
    again.load_state_dict(it.watch.state_dict())
    assert again.alarms == it.watch.alarms and again._row == 3


def test_a_codebook_that_recovers_raises_no_alarm(run):
    it = run(["", "", ""])
    for used in (1, 1, 2, 3, 4):  # more codes from report to report, though few for so many tokens
        it.train((np.arange(2000).reshape(2, 1000) % used).tolist())
        it.validate([[0]])
        assert not it.watch.alarms


def test_what_makes_no_tokens_cannot_be_watched():
    with pytest.raises(InputError, match="CodebookUsage cannot watch SimpleNamespace"):
        CodebookUsage().on_fit_start(None, SimpleNamespace())
