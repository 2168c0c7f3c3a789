"""Reading of probes: whole, in order, and refused by name where something is wrong."""

import json

import pytest

from headcam.errors import InputError
from headcam.evaluation.comparing.probes import read_probes
from headcam.evaluation.scoring.items import ITEMS
from headcam.files import write_json


def edit(folder, **changes):
    report = json.loads((folder / "probe.json").read_text())
    write_json(folder / "probe.json", {k: v for k, v in (report | changes).items() if v is not None})


def test_probes_come_in_the_order_given(tmp_path, write_probe, world):
    folders = [write_probe(tmp_path / name, name, world, seed=k) for k, name in enumerate("ba")]
    probes = read_probes(folders)
    assert [(p.number, p.model, p.folder) for p in probes] == [(0, "b", folders[0]), (1, "a", folders[1])]
    assert len(probes[0].items.labels) == len(world.test)
    assert not probes[0].alarms and not probes[0].online


def test_skipped_and_leaked_pictures_are_alarms(tmp_path, write_probe, world):
    folder = write_probe(tmp_path / "a", "a", world)
    data = json.loads((folder / "probe.json").read_text())["data"]
    broken = {"picture": "x.png", "reason": "garbage"}
    edit(folder, data=data | {"skipped": [broken, broken], "test_pictures_also_in_train": ["y.png"]})
    assert read_probes([folder])[0].alarms == (
        "2 pictures were skipped, such as x.png (garbage)",
        "1 test picture was also in the training set, such as y.png",
    )


def test_the_same_folder_twice_is_refused_under_any_spelling(tmp_path, write_probe, world):
    folder = write_probe(tmp_path / "a", "a", world)
    with pytest.raises(InputError, match="is given twice"):
        read_probes([folder, tmp_path / "a" / ".." / "a"])


def test_a_folder_without_a_report_is_no_probe(tmp_path):
    with pytest.raises(InputError, match=r"is no folder of a probe: it has no probe\.json"):
        read_probes([tmp_path])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 1}, r"follows contract probe/1, and this version reads probe/2"),
        ({"contract": "memory"}, "is no report of a probe"),
        ({"outcomes": None}, "is damaged: it has no outcomes"),
        ({"data": {"test": 3, "media": "pictures"}}, "probe.json is of 3 test pictures, the items are of 240"),
        ({"model": {"name": "other"}}, "scores.csv has no row of other"),
    ],
)
def test_reports_that_cannot_be_used(tmp_path, write_probe, world, changes, message):
    folder = write_probe(tmp_path / "a", "a", world)
    edit(folder, **changes)
    with pytest.raises(InputError, match=message):
        read_probes([folder])


def test_damaged_files_are_named(tmp_path, write_probe, world):
    folder = write_probe(tmp_path / "a", "a", world)
    whole = (folder / ITEMS).read_bytes()
    (folder / ITEMS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"the items of .*a cannot be read"):
        read_probes([folder])
    (folder / ITEMS).write_bytes(whole)
    (folder / "probe.json").write_text("{")
    with pytest.raises(InputError, match=r"probe\.json is damaged"):
        read_probes([folder])


ONLINE = (
    "contract,step,samples,hours_seen,hours_lived,protocol,protocol_hash,data,metric,value,low,high,n,chance\n"
    "online/1,5,80,0.5,0.5,linear-v2,h,d@1,linear/top1,9.0,8.0,10.0,7,2.0\n"
)


def test_an_online_probe_counts_only_beside_its_own_weights(tmp_path, write_probe, world):
    folder = write_probe(tmp_path / "run" / "probe", "a", world, weights="f" * 64)
    (tmp_path / "run" / "online_probe.csv").write_text(ONLINE)
    assert not read_probes([folder])[0].online
    write_json(tmp_path / "run" / "card.json", {"weights_hash": "e" * 64})
    assert not read_probes([folder])[0].online
    write_json(tmp_path / "run" / "card.json", {"weights_hash": "f" * 64})
    assert [row.value for row in read_probes([folder])[0].online] == [9.0]


def test_an_online_probe_of_another_contract_is_refused(tmp_path, write_probe, world):
    folder = write_probe(tmp_path / "a", "a", world)
    (folder / "online_probe.csv").write_text(ONLINE.replace("online/1", "online/9"))
    with pytest.raises(InputError, match=r"online_probe\.csv line 2 follows contract 'online/9'"):
        read_probes([folder])
