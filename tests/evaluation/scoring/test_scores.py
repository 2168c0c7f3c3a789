"""The scores table: it reads back exactly, in plain pandas too, and tables of other versions are refused by name."""

import pandas as pd
import pytest

from headcam.errors import InputError
from headcam.evaluation.scoring.scores import COLUMNS, CONTRACT, Score, read_scores, write_scores

SCORES = [
    Score("mae, small", "ab" * 32, "set@12", "knn-v1", "cd" * 32, "knn/k20_T0.07/top1", 100 / 3, 30.1, 36.0, 300, 0),
    Score("chance", "", "set@12", "chance-v1", "ef" * 32, "linear/top1", 2.0, 2.0, 2.0, 300, 0),
]


def test_reads_back_exactly(tmp_path):
    write_scores(tmp_path / "scores.csv", SCORES)
    assert read_scores(tmp_path / "scores.csv") == SCORES


def test_plain_pandas_reads_it(tmp_path):
    write_scores(tmp_path / "scores.csv", SCORES)
    table = pd.read_csv(tmp_path / "scores.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["value"].tolist() == [100 / 3, 2.0]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (CONTRACT, "scores/0", f"line 2 follows contract 'scores/0', and this version reads '{CONTRACT}'"),
        ("protocol_hash", "digest", "no column protocol_hash"),
        ("36.0", "many", "line 2 cannot be read: .*'many'"),
    ],
)
def test_other_tables_are_refused(tmp_path, old, new, message):
    path = tmp_path / "scores.csv"
    write_scores(path, SCORES)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        read_scores(path)


def test_no_table(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_scores(tmp_path / "scores.csv")
