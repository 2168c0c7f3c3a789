"""The table of published models: names and counts as published, files by three ways, and what gets an error."""

import argparse

import huggingface_hub
import pytest
import torch

from headcam.errors import InputError
from headcam.ssl import zoo
from headcam.ssl.resnet import ResNet
from headcam.ssl.vit import VisionTransformer
from headcam.ssl.zoo import Published, find, load, load_with_head, published

# original_ssl.md 1.8 and 1.13
HUMANLIKE = {
    "vits14": (21_619_584, 22_004_584),
    "vitb14": (85_706_496, 86_475_496),
    "vitl14": (303_178_752, 304_203_752),
    "vith14": (630_764_800, 632_045_800),
    "vith14@448": (631_747_840, 633_028_840),
    "vith14@476": (631_916_800, 633_197_800),
}
MENAGERIE = {"vits16": 21_665_664, "vitb16": 85_798_656, "vitl16": 303_301_632, "vitb14": 85_706_496}
VIDEO = {"224": 631_527_680, "448": 632_510_720}
VIDEO_CLASSIFIERS = {174: 631_750_574, 700: 632_424_380, 1000: 632_808_680}  # at 224 pixels
RESNETS = {"resnext50_32x4d": 25_028_904, "resnext101_32x8d": 88_791_336}  # with 1000 outputs


def test_all_published_names_are_there():
    groups: dict[str, set[str]] = {}
    for name in published():
        group, model = name.split("/")
        groups.setdefault(group, set()).add(model)
    assert {group: len(models) for group, models in groups.items()} == {
        "humanlike-vits": 2 * 78,
        "silicon-menagerie": 51,
        "video-models": 24,
        "hvm-1": 21,
        "baby-vision": 6,
        "human-ssl": 2,
    }
    assert {"vits14_0.0001_3", "finetuned_vith14@448_1.0_1"} <= groups["humanlike-vits"]
    assert "vits14_1.0_2" not in groups["humanlike-vits"]
    assert {"dino_sfp_vitb14", "dino_sfp_resnext50", "dino_ego4d-200h_vitb14"} <= groups["silicon-menagerie"]
    assert {"mugs_say_vitl16", "mae_y_vits16"} <= groups["silicon-menagerie"]
    assert "mugs_say_vitb14" not in groups["silicon-menagerie"]
    assert {"mae_kinetics-200h_none", "vit_s_ssv2-10shot"} <= groups["video-models"]
    assert {"vit_hvm1@448_imagenet-2pt", "mae_kinetics_none"} <= groups["hvm-1"]


def test_files_are_named_as_published():
    places = {name: (model.repo_id, model.filename) for name, model in published().items()}
    humanlike = "eminorhan/humanlike-vits"
    assert places["humanlike-vits/vith14@476_1.0_1"] == (humanlike, "vith14@476/vith14@476_1.0_1.pth")
    assert places["humanlike-vits/finetuned_vits14_0.01_2"] == (humanlike, "finetuned_vits14/vits14_0.01_2.pth")
    assert places["silicon-menagerie/dino_say_vitb14"] == ("eminorhan/dino_say_vitb14", "dino_say_vitb14.pth")
    assert places["video-models/mae_say_none"] == places["video-models/vit_say_none"]
    assert places["hvm-1/vit_hvm1@448_ssv2-10shot"] == ("eminorhan/hvm-1", "hvm1@448_ssv2-10shot.pth")
    files = {place for place in places.values() if place[0] in ("eminorhan/video-models", "eminorhan/hvm-1")}
    assert len(files) == 20 + 18
    assert places["baby-vision/TC-SAY-resnext"] == (None, "TC-SAY-resnext.tar")


def classifier_parameters(model: Published) -> int:
    width = model.arguments.get("embed_dim", 2048)
    return model.classes * (width + 1) if model.classes else 0


def test_parameters_are_the_published_numbers():
    for name, model in published().items():
        group, short = name.split("/")
        total = model.parameters + classifier_parameters(model)
        if group == "humanlike-vits":
            bare, with_head = HUMANLIKE[short.removeprefix("finetuned_").split("_")[0]]
            assert (model.parameters, total) == (bare, with_head if model.classes else bare), name
        elif group == "silicon-menagerie":
            arch = short.split("_")[-1]
            wanted = RESNETS["resnext50_32x4d"] - 1000 * 2049 if arch == "resnext50" else MENAGERIE[arch]
            assert total == wanted, name
        elif group in ("video-models", "hvm-1"):
            size = "448" if "@448" in short else "224"
            assert model.parameters == VIDEO[size], name
            if model.classes and size == "224":
                assert total == VIDEO_CLASSIFIERS[model.classes], name
        else:
            assert model.parameters + 1000 * 2049 == RESNETS[model.arguments["name"]], name


def test_every_architecture_has_the_parameters_that_are_promised():
    """Built on the meta device, each once."""
    seen = set()
    for model in published().values():
        arguments = dict(model.arguments)
        key = str(arguments)
        if key in seen:
            continue
        seen.add(key)
        with torch.device("meta"):
            if "name" in arguments:
                encoder = ResNet(**arguments)
            else:
                arguments["img_size"] = tuple(arguments["img_size"])
                encoder = VisionTransformer(**{"positions": "learned", **arguments})
        assert sum(p.numel() for p in encoder.parameters()) == model.parameters, model.name
    assert len(seen) > 12


def test_a_name_s_last_part_is_enough_where_only_one_has_it():
    assert find("vith14@476_1.0_1") is find("humanlike-vits/vith14@476_1.0_1")
    assert find("dino_say_vitb14").family == "dino"
    with pytest.raises(InputError, match=r"'vit_kinetics_none' is the name of 2 .*video-models/vit_kin.* or hvm-1/"):
        find("vit_kinetics_none")


def test_an_unknown_name_gets_the_nearest_ones():
    with pytest.raises(InputError, match=r"'dino_say_vitb15' is neither .* did you mean .*dino_say_vitb16") as error:
        load("dino_say_vitb15")
    assert "\n" not in str(error.value) and "headcam zoo" in error.value.fix
    with pytest.raises(InputError, match=r"'humanlike-vits/vith14_1.0_2' .*humanlike-vits/vith14_1.0_1"):
        load("humanlike-vits/vith14_1.0_2")
    with pytest.raises(InputError, match="Fix: headcam zoo lists all names"):
        load("???")


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory):
    """The file of `silicon-menagerie/mae_say_vits16` at its full size, weights drawn at random."""
    folder = tmp_path_factory.mktemp("zoo")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = VisionTransformer().state_dict()  # ViT-S/16: its names are those of the layout
    for name, table in (("mae_say_vits16", state["pos_embed"]), ("dino_say_vits16", state["pos_embed"] + 0.5)):
        path = folder / f"eminorhan/{name}/{name}.pth"
        path.parent.mkdir(parents=True)
        wrapper = {"model": state} if name.startswith("mae") else {"teacher": {**state, "pos_embed": table}}
        torch.save({**wrapper, "args": argparse.Namespace(lr=3e-4)}, path)
    return folder


def file_of(folder, name: str):
    return folder / f"eminorhan/{name}/{name}.pth"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(**_):
        raise ConnectionError("the network is unreachable\nand more")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.delenv("HEADCAM_ZOO", raising=False)


def test_a_model_is_loaded_from_a_given_file(tiny_files, no_network):
    encoder, card = load("mae_say_vits16", file=file_of(tiny_files, "mae_say_vits16"))
    assert card["name"] == "silicon-menagerie/mae_say_vits16" and card["parameters"] == MENAGERIE["vits16"]
    assert card["source"]["family"] == "mae" and card["source"]["args"] == {"lr": 3e-4}
    with torch.no_grad():
        assert encoder.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 197, 384)
    assert load_with_head(file_of(tiny_files, "mae_say_vits16")).head is None  # any path will do


def test_a_model_is_loaded_from_the_folder_of_the_environment(tiny_files, no_network, monkeypatch):
    monkeypatch.setenv("HEADCAM_ZOO", str(tiny_files))
    encoder, card = load("silicon-menagerie/dino_say_vits16")
    assert encoder.positions == "learned" and card["objective"] == "dino"


def test_a_model_is_downloaded_through_huggingface_hub(tiny_files, monkeypatch):
    asked = {}

    def download(**what):
        asked.update(what)
        return str(file_of(tiny_files, "mae_say_vits16"))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setenv("HEADCAM_ZOO", str(tiny_files / "empty"))
    load("mae_say_vits16")
    assert asked == {"repo_id": "eminorhan/mae_say_vits16", "filename": "mae_say_vits16.pth"}


def test_without_a_network_it_says_what_to_get_and_where_to_put_it(no_network, monkeypatch, tmp_path):
    with pytest.raises(InputError) as error:
        load("vith14@476_1.0_1")
    text = str(error.value)
    assert "could not be downloaded: the network is unreachable. Fix: get vith14@476/vith14@476_1.0_1.pth" in text
    assert "eminorhan/humanlike-vits" in text and "HEADCAM_ZOO" in text and "\n" not in text
    monkeypatch.setenv("HEADCAM_ZOO", str(tmp_path))
    with pytest.raises(InputError) as error:
        load("vith14@476_1.0_1")
    assert str(tmp_path / "eminorhan/humanlike-vits/vith14@476/vith14@476_1.0_1.pth") in str(error.value)
    with pytest.raises(InputError, match=r"is in no public repository. Fix: ask its authors for TC-S-resnext\.tar"):
        load("TC-S-resnext")


def test_a_file_must_be_what_its_name_promises(tiny_files, monkeypatch):
    file = file_of(tiny_files, "mae_say_vits16")
    with pytest.raises(InputError, match="holds mae where dino is wanted"):
        load("dino_say_vits16", file=file)
    with pytest.raises(InputError, match="holds mae where mae-finetuned is wanted"):
        load("finetuned_vits14_1.0_1", file=file)
    with pytest.raises(InputError, match=r"is not silicon-menagerie/mae_say_vitb16: embed_dim 384 \(published: 768\)"):
        load("mae_say_vitb16", file=file)
    with pytest.raises(InputError, match=r"patch_size 16 \(published: 14\)"):
        load("vits14_1.0_1", file=file)
    with pytest.raises(InputError, match="does not exist"):
        load("mae_say_vits16", file=tiny_files / "absent.pth")


def test_a_wrong_parameter_count_is_found(tiny_files, monkeypatch):
    model = find("mae_say_vits16")
    other = Published(**{**vars(model), "parameters": model.parameters + 1})
    monkeypatch.setattr(zoo, "find", lambda _: other)
    with pytest.raises(InputError, match=r"parameters 21665664 \(published: 21665665\)"):
        load("mae_say_vits16", file=file_of(tiny_files, "mae_say_vits16"))
