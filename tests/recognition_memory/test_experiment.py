"""Settings: read, overridden, refused in one line, and written so that they read back."""

import pytest
import yaml

from headcam.errors import InputError
from headcam.recognition_memory import experiment as module
from headcam.recognition_memory.experiment import (
    Experiment,
    RetentionSettings,
    StudySettings,
    build_learner,
    experiment_yaml,
    read_experiment,
)
from headcam.recognition_memory.learners.bounds import PixelStore

PIXELS = {"class_path": "headcam.recognition_memory.learners.bounds.PixelStore", "init_args": {"img_size": 8}}


@pytest.fixture
def config(tmp_path):
    def write(text: str = "", **settings) -> str:
        path = tmp_path / "experiment.yaml"
        path.write_text(text or yaml.safe_dump({"model": "pixels", "learner": PIXELS} | settings))
        return str(path)

    return write


def test_a_short_file_gives_the_published_protocol(config):
    found = read_experiment(config())
    assert found.study == StudySettings()
    assert (found.study.optimizer, found.study.lr, found.study.batch_size) == ("adam", 5e-4, 32)
    assert found.study.betas == (0.9, 0.999) and found.study.weight_decay == 0
    assert found.pretraining == "none" and found.seeds == [0, 1]
    assert found.selection is found.retention is found.recall is found.sweep is None
    assert found.learner["init_args"] == {"img_size": 8, "capacity": None}  # complete
    learner = build_learner(found.learner)
    assert isinstance(learner, PixelStore) and tuple(learner.img_size) == (8, 8)


def test_overrides_win_over_the_file(config):
    path = config(
        "model: a\nlearner: {class_path: headcam.recognition_memory.learners.bounds.PixelStore}\n"
        "study: {lr: 1e-3, augmentation: {flip: 0.5}}\nretention: {data: frames}\nsweep: {lr: [1e-4, 1e-3]}\n"
    )
    words = ["--study.lr=2e-3", "--study.augmentation.scale=[0.5,1]", "--learner.init_args.img_size=16"]
    found = read_experiment(path, [*words, "--retention.updates=7", "--test.variants=[noise:25]", "--seeds=[3]"])
    assert found.study.lr == 2e-3
    assert found.study.augmentation.flip == 0.5 and found.study.augmentation.scale == (0.5, 1.0)
    assert found.learner["init_args"]["img_size"] == 16
    assert found.retention == RetentionSettings("frames", updates=7)
    assert found.sweep.lr == [1e-4, 1e-3]
    assert found.test.variants == ["noise:25"] and found.seeds == [3]


def test_what_is_written_reads_back(config, tmp_path):
    words = ["--study.augmentation.scale=[0.5,1]", "--recall.num=3", "--selection.pictures=x", "--selection.lrs=[1e-5]"]
    found = read_experiment(config(manifest="stimuli", study_sets=["1"]), words)
    (tmp_path / "again.yaml").write_text(experiment_yaml(found))
    assert read_experiment(tmp_path / "again.yaml") == found


@pytest.mark.parametrize(
    "word, message",
    [
        ("--study.lr=-1", "study.lr is -1.0. Fix: give a number above 0"),
        ("--study.lr=.nan", "study.lr is nan"),
        ("--study.exposures=0", "study.exposures is 0"),
        ("--study.micro_batch_size=0", "study.micro_batch_size is 0"),
        ("--study.betas=[0.9,1.0]", "study.betas holds 1.0"),
        ("--study.weight_decay=-1", "study.weight_decay is -1"),
        ("--study.optimizer=lion", "study.optimizer"),
        ("--study.augmentation.flip=2", "augmentation.flip is 2"),
        ("--test.flagged=drop", "test.flagged"),
        ("--test.variants=[smell:3]", "there is no test 'smell:3'. Fix: use one of noise:25"),
        ("--test.variants=[noise:25,'noise 25']", "test.variants holds noise 25 more than once"),
        ("--seeds=[]", "seeds is empty"),
        ("--seeds=[1,1]", "seeds holds 1 more than once"),
        ("--seeds=[-1]", "seeds is -1"),
        ("--recall.temperature=0", "recall.temperature is 0"),
        ("--sweep.lr=[0]", "sweep.lr is 0"),
        ("--nonsense=1", "nonsense"),
        ("--learner.init_args.depth=1", "depth"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(config, word, message):
    with pytest.raises(InputError) as raised:
        read_experiment(config(), [word])
    assert message in str(raised.value)
    assert "\n" not in str(raised.value) and "Fix: " in str(raised.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"retention": {"data": "x", "updates": 4, "tests": [1, 8]}}, "retention.tests holds 8"),
        ({"selection": {"pictures": "x", "lrs": []}}, "selection.lrs is empty"),
        ({"selection": {"pictures": "x", "lrs": [1e-3, -1.0]}}, "selection.lrs is -1.0"),
        ({"learner": {"class_path": "headcam.no.such.Thing"}}, "Thing"),
        ({"learner": {"class_path": "torch.nn.Linear"}}, "Linear"),
        ({"model": " "}, "model is empty"),
    ],
)
def test_files_that_cannot_be_are_refused_in_one_line(config, settings, message):
    with pytest.raises(InputError) as raised:
        read_experiment(config(**settings))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_missing_or_broken_file(config, tmp_path):
    with pytest.raises(InputError, match=r"config .*absent.yaml does not exist"):
        read_experiment(tmp_path / "absent.yaml")
    with pytest.raises(InputError, match="describes no experiment"):
        read_experiment(config("model: [unclosed"))
    with pytest.raises(InputError, match=r"learner"):
        read_experiment(config("model: a\n"))


def test_a_learners_own_error_comes_through():
    with pytest.raises(InputError, match="capacity is 0"):
        build_learner({**PIXELS, "init_args": {"img_size": 8, "capacity": 0}})


def test_every_setting_is_documented():
    for kind in vars(module).values():
        if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__") and kind.__module__ == module.__name__:
            described = kind.__doc__.split("Attributes:")[1]
            assert all(f"\n        {name}: " in described for name in kind.__dataclass_fields__), kind


def test_an_experiment_made_in_python_is_checked_as_well():
    with pytest.raises(InputError, match="seeds"):
        Experiment("a", PIXELS, seeds=[])
