"""ImageNet as users have it: every layout is read as the same set, and labels that do not match are named."""

import tarfile
from pathlib import Path

import pytest

from headcam.errors import InputError
from headcam.evaluation.labelled.classes import imagenet_classes
from headcam.evaluation.labelled.sets import read_labelled

SHARED = Path(__file__).resolve().parents[3].parent / "shared/data/labelled"


@pytest.mark.parametrize(
    ("layout", "arguments", "called"),
    [
        ("flat", {"kit": "folder"}, "imagenet, development kit"),
        ("flat", {"kit": "archive"}, "imagenet, development kit"),
        ("kaggle", {}, "imagenet, Kaggle's labels"),
        ("archives", {}, "imagenet, development kit"),
        ("tiny", {}, "tiny imagenet"),
    ],
)
def test_every_layout_is_the_same_set(tmp_path, layouts, layout, arguments, called):
    plain = read_labelled(layouts.folders(tmp_path / "plain"))
    root = getattr(layouts, layout)(tmp_path / "other", **arguments)
    data = read_labelled(root)
    assert data.hash == plain.hash
    assert data.classes == plain.classes == ("n01440764", "n02012849", "n03126707")
    assert data.titles == ("tench", "crane", "crane")
    assert (data.layout, data.skipped) == (called, ())
    for ours, theirs in ((data.train, plain.train), (data.test, plain.test)):
        assert [(p.label, p.sha256) for p in ours] == [(p.label, p.sha256) for p in theirs]
        for picture, other in zip(ours, theirs):
            with picture.open() as one, other.open() as two:
                assert one.read() == two.read()
    for picture in data.train + data.test:
        assert picture.root is data.train[0].root and picture.path.is_file()
        assert picture.name.startswith(picture.path.relative_to(root).as_posix())


def test_folder_and_archive_may_be_mixed(tmp_path, layouts):
    expected = read_labelled(layouts.folders(tmp_path / "plain")).hash
    both = layouts.archives(tmp_path / "both")
    (both / "ILSVRC2012_img_train.tar").unlink()
    layouts.training_folders(both / "train")
    assert read_labelled(both).hash == expected
    other = layouts.archives(tmp_path / "other")
    (other / "ILSVRC2012_img_val.tar").unlink()
    layouts.folders(tmp_path / "sorted").joinpath("val").rename(other / "val")
    assert read_labelled(other).hash == expected


def test_kaggle_folder_given_at_any_depth(tmp_path, layouts):
    root = layouts.kaggle(tmp_path / "kaggle")
    assert len({read_labelled(root / below).hash for below in ("", "ILSVRC", "ILSVRC/Data/CLS-LOC")}) == 1


def test_kaggle_with_val_in_class_folders(tmp_path, layouts):
    root = layouts.kaggle(tmp_path / "kaggle")
    base = root / "ILSVRC/Data/CLS-LOC"
    (base / "val").rename(tmp_path / "flat")
    layouts.folders(tmp_path / "sorted").joinpath("val").rename(base / "val")
    data = read_labelled(root)
    assert data.hash == read_labelled(layouts.folders(tmp_path / "plain")).hash
    assert data.train[0].name.startswith("ILSVRC/Data/CLS-LOC/train/")


def test_a_picture_beside_the_class_folders_is_of_no_class(tmp_path, layouts):
    root = layouts.folders(tmp_path / "plain")
    before = read_labelled(root).hash
    (root / "val/overview.png").write_bytes(b"contact sheet")
    assert read_labelled(root).hash == before


def test_archives_beside_their_folders_are_not_looked_at(tmp_path, layouts):
    root = layouts.folders(layouts.archives(tmp_path / "both"))
    assert read_labelled(root).layout == "folders"


def test_another_number_of_pictures_than_lines(tmp_path, layouts):
    root = layouts.flat(tmp_path / "flat")
    (root / "val/ILSVRC2012_val_00000003.JPEG").unlink()
    with pytest.raises(InputError, match=r"devkit_t12 has 5 lines, and .*val has 4 pictures"):
        read_labelled(root)


def test_a_picture_that_the_labels_do_not_name(tmp_path, layouts):
    root = layouts.kaggle(tmp_path / "kaggle")
    (root / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000099.JPEG").write_bytes(b"?")
    with pytest.raises(InputError, match=r"LOC_val_solution\.csv does not say .*ILSVRC2012_val_00000099\.JPEG"):
        read_labelled(root)


def test_labels_without_a_picture_are_counted(tmp_path, layouts):
    root = layouts.tiny(tmp_path / "tiny")
    gone = next((root / "val/images").iterdir()).rename(tmp_path / "gone")
    with open(root / "val/val_annotations.txt", "a") as file:
        file.write("val_7.JPEG\tn09999999\t0\t0\t1\t1\n")  # a class of which nothing is there: a cut set
    data = read_labelled(root)
    assert gone.is_file() and len(data.test) == 4
    assert ("val_7", "listed in val_annotations.txt, not there") in data.skipped and len(data.skipped) == 2


def test_a_labelled_class_without_a_training_folder(tmp_path, layouts):
    root = layouts.flat(tmp_path / "flat")
    (root / "train/n03126707").rename(tmp_path / "gone")
    with pytest.raises(
        InputError, match=r"train and .*val \(labels of .*devkit_t12\) differ: 1 only in val/ \(n03126707\)"
    ):
        read_labelled(root)


@pytest.mark.parametrize(
    ("lines", "message"),
    [("3\n2\n1\n1\n1001\n", "names class 1001, which meta.mat does not have"), ("a\n", "cannot be used as the dev")],
)
def test_a_ground_truth_that_is_none(tmp_path, layouts, lines, message):
    root = layouts.flat(tmp_path / "flat")
    layouts.kit(root, lines=lines)
    with pytest.raises(InputError, match=message):
        read_labelled(root)


def test_a_kit_that_is_none(tmp_path, layouts):
    root = layouts.flat(tmp_path / "flat", kit="none")
    kit = root / "ILSVRC2012_devkit_t12.tar.gz"
    kit.write_bytes(b"half a download")
    with pytest.raises(InputError, match=r"devkit_t12\.tar\.gz cannot be read"):
        read_labelled(root)
    with tarfile.open(kit, "w:gz"):
        pass
    with pytest.raises(InputError, match=r"holds no data/meta\.mat"):
        read_labelled(root)


def test_flat_pictures_without_labels(tmp_path, layouts):
    with pytest.raises(InputError, match=r"5 pictures of .*val lie in no class folders.*LOC_val_solution"):
        read_labelled(layouts.flat(tmp_path / "flat", kit="none"))


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("ILSVRC2012_img_val.tar", r"img_train\.tar but neither ILSVRC2012_img_val\.tar nor"),
        ("ILSVRC2012_img_train.tar", r"img_val\.tar but no training pictures"),
    ],
)
def test_one_archive_of_two(tmp_path, layouts, gone, message):
    root = layouts.archives(tmp_path / "archives")
    (root / gone).unlink()
    with pytest.raises(InputError, match=message):
        read_labelled(root)


def test_a_cut_archive_is_named(tmp_path, layouts):
    root = layouts.archives(tmp_path / "archives")
    train = root / "ILSVRC2012_img_train.tar"
    with tarfile.open(train) as tar:
        last = tar.getmembers()[-1]
    train.write_bytes(train.read_bytes()[: last.offset_data + last.size - 10240])  # within the last class's tar
    with pytest.raises(InputError, match=r"img_train\.tar cannot be used: it is .* ends too early"):
        read_labelled(root)
    for content in (b"no tar", b""):
        train.write_bytes(content)
        with pytest.raises(InputError, match=r"img_train\.tar cannot be used: .*; 0 pictures"):
            read_labelled(root)


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "imagenet_one_each").is_dir(), reason="no shared/data")
def test_class_order_of_one_picture_for_each_class(tmp_path):
    (tmp_path / "val").symlink_to(SHARED / "imagenet_one_each")
    (tmp_path / "train").symlink_to(SHARED / "imagenet_one_each")
    data = read_labelled(tmp_path)
    assert data.classes == tuple(known.wnid for known in imagenet_classes())
    assert [p.label for p in data.test] == list(range(1000))
    assert all(p.name.split("/")[1] == imagenet_classes()[p.label].wnid for p in data.test)


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "tiny_imagenet_50").is_dir(), reason="no shared/data")
def test_tiny_imagenet_50():
    data = read_labelled(SHARED / "tiny_imagenet_50")
    assert (data.layout, len(data.classes), len(data.train), len(data.test)) == ("folders", 50, 20_000, 2_500)
    assert data.skipped == data.leaked == () and len(data.titles) == 50
    with open(SHARED / "tiny_imagenet_50/words.csv") as file:
        wnids = [line.split(",")[1] for line in file.read().splitlines()[1:]]
    assert list(data.classes) == wnids
