"""`online_probe.csv`: whole measurements, exact numbers, what a resumed run keeps and what it refuses."""

from dataclasses import replace

import pytest

from headcam.errors import InputError
from headcam.evaluation.watching.record import COLUMNS, Record, Row, read_online

ROW = Row(
    step=0,
    samples=0,
    hours_seen=0.0,
    hours_lived=0.0,
    protocol="knn-v2",
    protocol_hash="ab",
    data="set@12",
    metric="knn/k20_T0.07/top1",
    value=100 / 3,
    low=0.1 + 0.2,
    high=40.0,
    n=300,
    chance=2.0,
)
ROWS = [replace(ROW, step=step, samples=8 * step, hours_seen=step / 7) for step in (0, 3, 3, 9)]


def test_rows_read_back_exactly_and_the_newest_step_is_known(tmp_path):
    record = Record(tmp_path / "online_probe.csv")
    assert record.step is None
    record.add(ROWS[:1])
    record.add(ROWS[1:3])
    record.add(ROWS[3:])
    assert read_online(record.path) == ROWS and Record(record.path).step == 9
    assert record.path.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_a_resumed_run_keeps_what_its_checkpoint_knows(tmp_path):
    record = Record(tmp_path / "online_probe.csv")
    record.add(ROWS)
    again = Record(record.path)
    again.resume(8, "set@12", ["ab"])
    assert again.step == 3 and read_online(record.path) == ROWS[:3]
    before = record.path.stat().st_mtime_ns
    again.resume(8, "set@12", ["ab"])  # nothing to take out: the file is left alone
    assert record.path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "data, digest, telling",
    [("other@34", "ab", r"other pictures \(set@12, now other@34\)"), ("set@12", "cd", "other settings of knn-v2")],
)
def test_one_curve_does_not_hold_two_kinds_of_numbers(tmp_path, data, digest, telling):
    record = Record(tmp_path / "online_probe.csv")
    record.add(ROWS)
    with pytest.raises(InputError, match=telling):
        Record(record.path).resume(9, data, [digest])
    assert read_online(record.path) == ROWS  # nothing lost


def test_what_is_no_record_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_online(tmp_path / "absent.csv")
    record = Record(tmp_path / "online_probe.csv")
    record.add(ROWS)
    text = record.path.read_text()
    for old, new, telling in (
        ("online/1", "online/9", "line 2 follows contract 'online/9'"),
        (",hours_seen", ",hours", "no column hours_seen"),
        ("set@12,knn", "set@12", "cannot be read"),
        ("300", "many", "cannot be read"),
    ):
        record.path.write_text(text.replace(old, new))
        with pytest.raises(InputError, match=telling):
            read_online(record.path)
