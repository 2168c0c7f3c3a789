"""Protocols: YAML files, names, hashes, and refusals."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import yaml

from headcam.errors import InputError
from headcam.evaluation import protocols
from headcam.evaluation.protocols import KNN, Clips, Finetune, LabelCurve, Labels, LinearProbe, PixelFeatures

SHIPPED = sorted(protocols.shipped())


def write(path: Path, **values) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_protocols_read_and_are_named_after_their_files(name):
    found = protocols.protocol(name)
    assert found.name == name and protocols.label(found) == f"{name}-v{type(found).VERSION}"
    assert protocols.from_settings(protocols.settings(found)) == found
    text = protocols.shipped()[name].read_text()
    assert text.startswith("# ")  # says what it is and where it comes from


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_protocols_spell_out_what_they_do(name):
    """A default of the code that changes must not change what a shipped protocol means without its file changing."""
    written = yaml.safe_load(protocols.shipped()[name].read_text())
    rules = {"similarity", "selection", "schedule", "start", "head", "rule"}  # texts that say how, not settings
    kind = protocols.KINDS[written["kind"]]
    silent = {f.name for f in fields(kind)} - set(written) - rules
    assert not silent, f"{name}.yaml leaves {sorted(silent)} to the code"


def test_the_default_probe_is_the_shipped_one():
    assert protocols.protocol("knn") == KNN() and protocols.protocol("linear") == LinearProbe()
    assert KNN().metric == "knn/k20_T0.07" and protocols.protocol("knn-sweep").metric == "knn-sweep"


def test_hashes_follow_settings():
    assert protocols.protocol_hash(LinearProbe()) == protocols.protocol_hash(LinearProbe())
    assert protocols.protocol_hash(LinearProbe(epochs=51)) != protocols.protocol_hash(LinearProbe())
    cls = protocols.with_features(LinearProbe(), pool="cls")
    assert cls.features.pool == "cls" and protocols.protocol_hash(cls) != protocols.protocol_hash(LinearProbe())
    assert protocols.with_features(LabelCurve(), pool="cls").probe.features.pool == "cls"
    assert protocols.with_features(Finetune(), pool="avg").pool == "avg"


def test_the_published_fraction_is_13_000_and_25_623_of_imagenet():
    for name, count in (("fewshot-1pct-unstratified", 13_000), ("fewshot-2pct-unstratified", 25_623)):
        assert int(protocols.protocol(name).labels.fraction * 1_281_167) == count
    assert protocols.protocol("fewshot-1pct").labels == Labels(per_class=13, draws=10)


def test_on_pixels():
    assert protocols.on_pixels(KNN()).features == PixelFeatures()
    assert protocols.on_pixels(LabelCurve()).probe.features == PixelFeatures()
    for needs_network in (Finetune(), LinearProbe(augmentation="crop and flip"), LinearProbe(layers="all")):
        assert protocols.on_pixels(needs_network) is None


def test_videos_say_how_clips_are_cut():
    linear = protocols.on_media(LinearProbe(), "videos")
    assert linear.features.clips == Clips() and protocols.on_media(linear, "videos") == linear
    assert protocols.on_pixels(linear).features.clips == Clips()
    assert protocols.on_media(LabelCurve(), "videos").probe.features.clips == Clips()
    assert protocols.on_media(LinearProbe(), "pictures") == LinearProbe()


@pytest.mark.parametrize(
    ("name", "media", "kind"),
    [
        ("fewshot-1pct", "videos", "pictures"),
        ("video-10shot", "pictures", "videos"),
        ("linear-aug", "videos", "pictures"),
        ("linear-layers", "videos", "pictures"),
    ],
)
def test_a_protocol_of_the_other_kind(name, media, kind):
    with pytest.raises(InputError, match=f"protocol {name} is for {kind}, and the set is of {media}"):
        protocols.on_media(protocols.protocol(name), media)


def test_own_protocols(tmp_path):
    path = write(tmp_path / "mine.yaml", kind="LinearProbe", name="mine", version=2, epochs=3, base_lr_per_256=["1e-3"])
    assert protocols.protocol(path) == replace(LinearProbe(), name="mine", epochs=3, base_lr_per_256=(1e-3,))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "LinearProbe", "name": "linear", "version": 2, "epochs": 3}, "other settings than the shipped"),
        ({"kind": "LinearProbe", "name": "x", "version": 1}, "version 1 of LinearProbe, and this headcam knows"),
        ({"kind": "LinearProbe", "name": "x"}, "no version"),
        ({"kind": "Linear", "name": "x", "version": 1}, "kind Linear is unknown"),
        ({"name": "x", "version": 1}, "has no kind"),
        ({"kind": "KNN", "name": "x", "version": 2, "neighbours": 3}, "setting neighbours is unknown"),
        ({"kind": "KNN", "name": "x", "version": 2, "k": 20}, "write a list"),
        ({"kind": "KNN", "name": "x", "version": 2, "k": [2.5]}, "value of type int"),
        ({"kind": "KNN", "name": "x", "version": 2, "features": {"pool": "max"}}, "use one of avg, cls"),
        ({"kind": "LinearProbe", "name": "x", "version": 2, "epochs": "many"}, "epochs is 'many'"),
        ({"kind": "Finetune", "name": "x", "version": 1, "betas": [0.9]}, "betas has 1 values"),
        ({"kind": "Finetune", "name": "x", "version": 1, "labels": 13}, "write a mapping"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, values, message):
    with pytest.raises(InputError, match=message):
        protocols.protocol(write(tmp_path / "p.yaml", **values))


def test_names_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"protocol lineal is unknown.*linear"):
        protocols.protocol("lineal")
    with pytest.raises(InputError, match="does not exist"):
        protocols.protocol(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("kind: [")
    with pytest.raises(InputError, match="is no YAML"):
        protocols.protocol(tmp_path / "broken.yaml")
