"""The memory table: what is read is what was written, and what cannot be scored is refused by name."""

import gzip

import numpy as np
import pandas as pd
import pytest

from headcam.errors import InputError
from headcam.recognition_memory.scoring.table import COLUMNS, groups, read_losses, write_losses

HEADER = ",".join(COLUMNS)


def table(sets=("1", "2"), seeds=(0, 1), conditions=("novel", "state"), exposures=(0, 1), pairs=4, **columns):
    """A complete table of one model; losses of pictures keep from set to set, roles exchanged."""
    index = pd.MultiIndex.from_product(
        [["m"], ["none"], sets, seeds, conditions, exposures, range(pairs)], names=COLUMNS[:7]
    )
    frame = index.to_frame(index=False)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, len(conditions), pairs))
    c, p = pd.Categorical(frame.condition, conditions).codes, frame.pair.to_numpy()
    first = frame.study_set.to_numpy() == sets[0]
    frame["loss_seen"] = np.where(first, a[c, p], b[c, p]) - 0.1 * frame.exposures
    frame["loss_unseen"] = np.where(first, b[c, p], a[c, p])
    return frame.assign(test="").assign(**columns)


@pytest.mark.parametrize("name", ["losses.csv", "losses.csv.gz"])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, name):
    frame = table()
    frame["loss_seen"] = np.random.default_rng(1).normal(size=len(frame)) * 10.0 ** np.arange(len(frame)) / 1e20
    write_losses(tmp_path / name, frame)
    read = read_losses(tmp_path / name)
    keys = list(COLUMNS[:7])
    both = frame.merge(read, on=keys, suffixes=("_written", "_read"))
    assert len(both) == len(frame) == len(read)
    assert (both.loss_seen_written == both.loss_seen_read).all()
    assert (both.loss_unseen_written == both.loss_unseen_read).all()
    assert set(read.pretraining) == {"none"}  # no missing value
    assert set(read.study_set) == {"1", "2"}  # no integer
    assert list(pd.unique(read.condition)) == ["novel", "state"]  # as in the file, not by the alphabet
    once = (tmp_path / name).read_bytes()
    write_losses(tmp_path / name, frame)
    assert (tmp_path / name).read_bytes() == once


def test_the_column_test_is_written_only_where_a_row_has_one(tmp_path):
    write_losses(tmp_path / "plain.csv", table())
    write_losses(tmp_path / "tests.csv", pd.concat([table(), table(test="noise 25")]))
    assert (tmp_path / "plain.csv").read_text().splitlines()[0] == HEADER
    assert (tmp_path / "tests.csv").read_text().splitlines()[0] == HEADER + ",test"
    assert [group.test for group in groups(read_losses(tmp_path / "tests.csv"))] == ["", "noise 25"]


GOOD = "m,none,1,0,novel,1,0,0.5,0.6"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "could not be read"),
        (HEADER + "\n", "no rows"),
        ("model,pretraining\nm,none\n", "lacks the columns study_set, seed"),
        (HEADER + ",tests\n" + GOOD + ",\n", "mean nothing here, or come twice: tests"),
        (HEADER + ",pair\n" + GOOD + ",0\n", "come twice: pair"),
        (HEADER + "\n" + GOOD.replace("0.5", "much") + "\n", "column 8: Row #2.*'much'"),
        (HEADER + "\n" + GOOD.replace("0.5", "") + "\n", "column 8: Row #2"),
        (HEADER + "\n" + GOOD.replace("novel,1", "novel,1.5") + "\n", "column 6: Row #2.*'1.5'"),
        (
            HEADER + "\n" + GOOD + "\n" + GOOD.replace("1,0,0.5", "1,1,nan") + "\n",
            "loss_seen is not finite in .*pair 1",
        ),
        (HEADER + "\n" + GOOD.replace("0.6", "inf") + "\n", "loss_unseen is not finite"),
        (HEADER + "\n" + GOOD + "\n" + GOOD.replace("0.5", "0.4") + "\n", "pair 0 occurs more than once"),
        (HEADER + "\n" + GOOD.replace("novel,1", "novel,-1") + "\n", "exposures is negative"),
        (HEADER + "\n" + GOOD.replace("novel", "pooled") + "\n", "stands for all conditions together"),
        (HEADER + "\n" + GOOD.replace("novel", "") + "\n", "condition is empty"),
        (HEADER + "\nm,none,1\n", "Expected 9 columns, got 3"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_place(tmp_path, text, message):
    (tmp_path / "losses.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_losses(tmp_path / "losses.csv")


def test_what_is_no_table_at_all_is_refused(tmp_path):
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress((HEADER + "\n" + GOOD).encode())[:-12])
    for name in ("picture.csv", "cut.csv.gz"):
        with pytest.raises(InputError, match="could not be read"):
            read_losses(tmp_path / name)
    with pytest.raises(InputError, match="was not found"):
        read_losses(tmp_path / "absent.csv")


def test_losses_stand_where_the_axes_say(tmp_path):
    frame = table(sets=("2", "10"), seeds=(3, 7), exposures=(1, 2, 5)).sample(frac=1, random_state=0)
    (group,) = groups(frame)
    assert group.study_sets == ("2", "10")
    assert (group.seeds, group.exposures) == ((3, 7), (1, 2, 5))
    for row in frame.sample(20, random_state=1).itertuples():
        place = group.study_sets.index(row.study_set), group.seeds.index(row.seed), group.exposures.index(row.exposures)
        assert (group.losses[row.condition][place][row.pair] == [row.loss_seen, row.loss_unseen]).all()


def test_a_missing_row_is_named():
    frame = table()
    gone = (frame.study_set == "2") & (frame.seed == 1) & (frame.condition == "state") & (frame.exposures == 1)
    with pytest.raises(
        InputError, match="study_set 2, seed 1, condition state, exposures 1, pair 2 \\(1 rows are missing\\)"
    ):
        groups(frame[~(gone & (frame.pair == 2))])
    with pytest.raises(InputError, match="no exposure in common"):
        groups(pd.concat([table(seeds=(0,), exposures=(0, 1)), table(seeds=(1,), exposures=(2, 3))]))
    whole = (frame.study_set == "1") & (frame.seed == 1) & (frame.condition == "state")
    with pytest.raises(InputError, match=r"seed 1, condition state.*8 rows are missing"):
        groups(frame[~whole])


def test_runs_of_unequal_length_are_cut_to_what_they_share_and_it_is_said():
    frame = table(exposures=range(6))
    frame = frame[(frame.seed == 0) | (frame.study_set == "1") | (frame.exposures < 4)]
    (group,) = groups(frame)
    assert group.exposures == (0, 1, 2, 3)
    assert "2 are left out (from 4 to 5)" in group.notes[0]


def test_pairs_that_a_set_lacks_are_left_out_and_it_is_said():
    frame = table()
    (group,) = groups(frame[(frame.study_set == "1") | (frame.condition == "state") | (frame.pair != 1)])
    assert group.pairs["novel"].tolist() == [0, 2, 3]
    assert group.pairs["state"].tolist() == [0, 1, 2, 3]
    assert group.notes == ("1 of 4 pairs of novel are not in every study set and are left out",)
    with pytest.raises(InputError, match="no pair of condition novel in common"):
        groups(frame[(frame.condition == "state") | ((frame.study_set == "1") == (frame.pair < 2))])


def test_sets_may_have_runs_of_other_seeds():
    frame = table(seeds=(0, 1, 2))
    (group,) = groups(frame[(frame.study_set == "1") == (frame.seed < 2)])
    assert group.runs.tolist() == [[True, True, False], [False, False, True]]
    assert any("runs of different seeds" in note for note in group.notes)


def test_role_swapped_sets_are_told_from_others_by_their_losses():
    assert groups(table())[0].role_swapped
    assert not groups(table(sets=("1",)))[0].role_swapped
    assert not groups(table(sets=("1", "2", "3")))[0].role_swapped
    frame = table(pairs=30)
    other = frame.copy()
    second = other.study_set == "2"  # the same pictures in the same roles, as in a faulty pair of sets
    other.loc[second, ["loss_seen", "loss_unseen"]] = other.loc[second, ["loss_unseen", "loss_seen"]].to_numpy()
    assert not groups(other)[0].role_swapped
    other.loc[second, "loss_seen"] = np.random.default_rng(0).normal(size=second.sum())  # other pictures
    other.loc[second, "loss_unseen"] = np.random.default_rng(1).normal(size=second.sum())
    assert not groups(other)[0].role_swapped
    assert groups(other, role_swapped=True)[0].role_swapped  # who made the sets knows
    assert not groups(frame, role_swapped=False)[0].role_swapped
    # Foils that are made from the studied picture are not in the other set, whatever the sets are.
    assert not groups(frame.assign(test="foil mirror"), role_swapped=True)[0].role_swapped


def test_choices_of_people_are_told_from_losses():
    frame = table(exposures=(1,))
    right = np.random.default_rng(0).random(len(frame)) < 0.8
    choices = frame.assign(loss_seen=np.where(right, 0.0, 1.0), loss_unseen=np.where(right, 1.0, 0.0))
    assert groups(choices)[0].choices
    assert not groups(frame)[0].choices
