"""Who, when and where: real names of each data set, odd names left unknown, the CSV's rules and its errors."""

from datetime import date
from pathlib import Path

import pytest

from headcam.errors import InputError
from headcam.video.provenance import COLUMNS, NAMES, Provenance

FOLDER = Path("/data/films")
UID = "f42ae9c2-d43e-45af-8adb-02d0b16b2ef7"


def facts_of(names: str, *files: str, metadata=None, recordings=None) -> list[dict]:
    provenance = Provenance([f"{FOLDER}/{file}" for file in files], FOLDER, names, metadata)
    return provenance.facts(recordings or [f"{k:016x}" for k in range(len(files))])[0]


def known(facts: dict) -> dict:
    assert tuple(facts) == COLUMNS
    return {k: v for k, v in facts.items() if v is not None}


@pytest.mark.parametrize(
    "names, file, expected",
    [
        ("folders", "kitchen/monday/a.mp4", {"source": "kitchen"}),
        ("folders", "a.mp4", {"source": "films"}),
        ("folders", "caf\udce9/a.mp4", {"source": "caf\ufffd"}),
        (  # ages of S from Sullivan et al. 2021: six months at the first recording; the day is 2012-10-17 + age
            "saycam",
            "S/S_20130417_0600_01.mp4",
            {
                "source": "saycam",
                "wearer": "S",
                "age_days": (date(2013, 4, 17) - date(2012, 10, 17)).days,
                "recorded_on": date(2013, 4, 17),
                "session": "S_20130417",
            },
        ),
        (
            "saycam",
            "S_20141206_2519_04_segment20.mp4",
            {
                "source": "saycam",
                "wearer": "S",
                "age_days": (date(2014, 12, 6) - date(2012, 10, 17)).days,
                "recorded_on": date(2014, 12, 6),
                "session": "S_20141206",
            },
        ),
        (
            "saycam",
            "Y_20190117_1103_02.mp4",
            {
                "source": "saycam",
                "wearer": "Y",
                "age_days": (date(2019, 1, 17) - date(2018, 2, 14)).days,
                "recorded_on": date(2019, 1, 17),
                "session": "Y_20190117",
            },
        ),
        ("ego4d", f"full_scale/{UID}.mp4", {"source": "ego4d", "session": UID}),
        ("ego4d", f"{UID}-12.mp4", {"source": "ego4d", "session": UID}),
        ("epic-kitchens", "P01/P01_01.MP4", {"source": "epic-kitchens", "wearer": "P01", "session": "P01_01"}),
        ("epic-kitchens", "P30_101.MP4", {"source": "epic-kitchens", "wearer": "P30", "session": "P30_101"}),
        (
            "babyview",
            "00240001_2023-11-05_1_recAb12.mp4",
            {
                "source": "babyview",
                "wearer": "00240001",
                "recorded_on": date(2023, 11, 5),
                "session": "00240001_2023-11-05",
            },
        ),
        (
            "babyview",
            "00400001_GX010024_2_06.26.2023-07.02.2023_06.30.2023-8:00am.MP4",
            {
                "source": "babyview",
                "wearer": "00400001",
                "recorded_on": date(2023, 6, 30),
                "session": "00400001_2023-06-30",
                "camera": "GoPro",
            },
        ),
        (
            "babyview",
            "00400001_GX010128_01.01.2024-01.07.2024_2024-01-09-00:41:58.MP4",
            {
                "source": "babyview",
                "wearer": "00400001",
                "recorded_on": date(2024, 1, 9),
                "session": "00400001_2024-01-09",
                "camera": "GoPro",
            },
        ),
        (
            "babyview",
            "00400001_GX010087_10.02.2023-10.08.2023_NA-NA.MP4",
            {"source": "babyview", "wearer": "00400001", "camera": "GoPro"},
        ),
    ],
)
def test_names_of_the_data_sets(names, file, expected):
    assert known(facts_of(names, file)[0]) == expected


@pytest.mark.parametrize(
    "names, file",
    [
        ("saycam", "B_20130417_0600_01.mp4"),
        ("saycam", "S_20130231_0600_01.mp4"),
        ("saycam", "S_20130417_0645_01.mp4"),
        ("saycam", "S_20130417_0600_01_copy.mp4"),
        ("saycam", "P01_01.MP4"),
        ("ego4d", "f42ae9c2.mp4"),
        ("ego4d", f"x{UID}.mp4"),
        ("epic-kitchens", "P01_1.MP4"),
        ("epic-kitchens", "P001_01.MP4"),
        ("babyview", "00240001_2023-13-05_1_rec.mp4"),
        ("babyview", "00240001_GX010024.mp4"),
    ],
)
def test_what_does_not_follow_is_left_unknown(names, file):
    assert known(facts_of(names, file)[0]) == {}
    matches = Provenance([f"{FOLDER}/{file}"], FOLDER, names).facts([""])[1]
    assert (matches.files, matches.named) == (1, 0)


def test_every_convention_is_reachable_and_others_are_refused():
    assert set(NAMES) == {"folders", "saycam", "ego4d", "epic-kitchens", "babyview"}
    with pytest.raises(InputError, match=r"names 'kinetics' is no convention .*Fix: use one of folders, saycam"):
        facts_of("kinetics", "a.mp4")


def write(tmp_path, text: str) -> Path:
    path = tmp_path / "meta.csv"
    path.write_text(text, "utf-8")
    return path


def test_the_csv_wins_and_what_it_leaves_empty_stays(tmp_path):
    csv = write(
        tmp_path,
        "\ufeffpath,wearer,recorded_on,birth_date,source,camera\n"
        "S_20130417_0600_01.mp4,Sam,,2012-10-20,,\n\n"
        '"b/walk, long.mp4",Ann,2020-03-01,2020-02-28,home,"GoPro, old"\n',
    )
    sam, ann = facts_of("saycam", "S_20130417_0600_01.mp4", "b/walk, long.mp4", metadata=csv)
    assert (sam["wearer"], sam["source"], sam["recorded_on"]) == ("Sam", "saycam", date(2013, 4, 17))
    assert sam["age_days"] == (date(2013, 4, 17) - date(2012, 10, 20)).days
    assert known(ann) == {
        "wearer": "Ann",
        "recorded_on": date(2020, 3, 1),
        "age_days": 2.0,  # 2020 has a 29 February
        "source": "home",
        "camera": "GoPro, old",
    }


def test_rows_are_matched_by_trailing_path_or_by_id_and_counted(tmp_path):
    csv = write(tmp_path, "recording,path,wearer\n,x/a.mp4,1\n,y/a.mp4,2\nffff,,3\n,gone.mp4,4\neeee,,5\n")
    files = [f"{FOLDER}/{name}" for name in ("x/a.mp4", "y/a.mp4", "b.mp4", "c.mp4", "b_again.mp4")]
    facts, matches = Provenance(files, FOLDER, "folders", csv).facts(["0", "1", "ffff", "", "ffff"])
    assert [f["wearer"] for f in facts] == ["1", "2", "3", None, "3"]
    assert matches.rows_without_file == ("gone.mp4", "eeee") and matches.files_without_row == 1


@pytest.mark.parametrize(
    "text, telling",
    [
        ("", "is empty"),
        ("wearer\nS\n", "line 1: no column says which file a row is for. Fix: add path, or recording"),
        ("path,weaer\n", "line 1, column 2: 'weaer' is unknown. Fix: use each of these at most once: path, recording"),
        ("path,wearer,path\n", "line 1, column 1: 'path' stands twice"),
        ("path;wearer\n", "line 1, column 1: 'path;wearer' is unknown"),
        ("path,age_days\na.mp4,old\n", "line 2, column age_days: 'old' is no age in days"),
        ("path,age_days\na.mp4,-1\n", "line 2, column age_days: '-1' is no age"),
        ("path,age_days\na.mp4,inf\n", "line 2, column age_days: 'inf' is no age"),
        ("path,recorded_on\n\na.mp4,9.5.2013\n", "line 3, column recorded_on: '9.5.2013' is no date"),
        ("path,birth_date\na.mp4,2013-02-30\n", "line 2, column birth_date: '2013-02-30' is no date"),
        ("path,birth_date\na.mp4,2013-02-20\n", "line 2, column birth_date: the day of the recording is unknown"),
        (
            "path,birth_date,recorded_on\na.mp4,2013-02-20,2013-01-01\n",
            "line 2, column birth_date: 2013-02-20 is after the recording of 2013-01-01",
        ),
        ("path,wearer\na.mp4,S,T\n", "line 2: 3 values for 2 columns"),
        ("path,wearer\n,S\n", "line 2: neither path nor recording is filled"),
        ('path,wearer\n"a.mp4,S\n', "cannot be read as CSV"),
        ("path,wearer\na.mp4,S\na.mp4,T\n", "lines 2 and 3 are both for /data/films/a.mp4"),
        ("path,recording,wearer\na.mp4,,S\n,00,T\n", "lines 2 and 3 are both for /data/films/a.mp4"),
        ("path,wearer\nb.mp4,S\n", "line 2, column path: 'b.mp4' fits 2 files, such as /data/films/x/b.mp4 and"),
    ],
)
def test_what_is_wrong_in_a_csv_is_one_line_with_its_place(tmp_path, text, telling):
    csv = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        facts_of("folders", "a.mp4", "x/b.mp4", "y/b.mp4", metadata=csv, recordings=["00", "01", "02"])
    assert telling in str(error.value) and str(csv) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_csv_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"none.csv cannot be read as CSV: .*No such file"):
        facts_of("folders", "a.mp4", metadata=tmp_path / "none.csv")
