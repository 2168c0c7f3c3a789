"""The plan alone: streams as lists of pictures that say what they refer to. With files and a decoder: test_pyav.py."""

import random
from fractions import Fraction

import numpy as np
import pytest

from headcam.video.decoding.planning import PacketFacts, Plan, Unplannable, pts_at


def make_stream(rng, gops=4, open_gop=False):
    """Pictures in decode order: (pts, keyframe, disposable, pts of what it refers to); and the key frames' pts."""
    pictures, keys, pts, anchor = [], [], 0, None
    for _ in range(gops):
        last_key = None
        for k in range(rng.randint(1, 5)):
            between = rng.choice([0, 1, 2, 3]) if k or (open_gop and anchor is not None) else 0
            here = pts + between * 10
            key = k == 0
            pictures.append((here, key, False, () if key else (anchor,)))
            if between:  # a pyramid: the middle one is referred to by those around it
                ends = (anchor, here)
                middle = pts + between // 2 * 10
                pictures.append((middle, False, between == 1, ends))
                for b in range(between):
                    if pts + b * 10 != middle:
                        pictures.append((pts + b * 10, False, True, (*ends, middle)))
            last_key = here if key else last_key
            anchor, pts = here, here + 10
        keys.append(last_key)
    return pictures, keys


def carry_out(plan, pictures, jumps=True):
    """Packets let through, as (pts, restart); `pictures` are demuxed from the start, or from where the plan jumps."""
    let_through, at = [], 0
    while not plan.done:
        if at < len(pictures):
            pts, key, disposable, _ = pictures[at]
            plan.add(PacketFacts(None, pts, key, disposable))
            at += 1
        else:
            plan.finish()
        let_through += [(facts.pts, restart) for facts, restart in plan.ready()]
        target = plan.jump() if jumps else None
        if target is not None:
            at = next(k for k, picture in enumerate(pictures) if picture[0] == target)
    return let_through


@pytest.mark.parametrize("open_gop", [False, True])
@pytest.mark.parametrize("table", [False, True])
def test_what_is_let_through_suffices_and_is_little(open_gop, table):
    dropped = total = 0
    for seed in range(400):
        rng = random.Random(seed)
        pictures, keys = make_stream(rng, open_gop=open_gop)
        shown = sorted(p[0] for p in pictures)
        wanted = sorted({rng.randrange(shown[-1] + 15) for _ in range(rng.choice([1, 2, 5, 40]))})
        plan = Plan(wanted, keys if table else None)
        let_through = carry_out(plan, pictures, jumps=rng.random() < 0.5)

        answers = [max(p for p in shown if p <= w) for w in wanted]
        assert plan.answers == answers
        refers = {pts: references for pts, _, _, references in pictures}
        disposable = {pts for pts, _, is_disposable, _ in pictures if is_disposable}
        have, decoded = set(), set()
        for pts, restart in let_through:
            have = set() if restart else have
            if all(r in have for r in refers[pts]):
                have.add(pts)
                decoded.add(pts)
            assert pts not in disposable or pts in answers, "a disposable picture that nobody wants"
        assert decoded.issuperset(answers), (seed, wanted, let_through)
        order = [picture[0] for picture in pictures]
        last = max(order.index(a) for a in answers)
        assert all(pts < max(answers) for pts, _ in let_through if order.index(pts) > last), "more than is wanted"
        dropped, total = dropped + len(pictures) - len(let_through), total + len(pictures)
    assert dropped > (0.45 if table else 0.3) * total


def test_groups_of_pictures_without_a_wanted_frame_are_jumped_over():
    pictures = [(k * 10, k % 10 == 0, False, ()) for k in range(100)]
    plan = Plan([5, 712], list(range(0, 1000, 100)))
    assert carry_out(plan, pictures) == [(0, True), (700, True), (710, False)]


def test_every_frame_wanted_is_one_run_without_restart():
    pictures, keys = make_stream(random.Random(3), gops=6, open_gop=True)
    let_through = carry_out(Plan(sorted(p[0] for p in pictures), keys), pictures)
    assert [pts for pts, _ in let_through] == [p[0] for p in pictures]
    assert sum(restart for _, restart in let_through) == 1


def test_a_frame_may_come_sixteen_packets_late():
    """The most that H.264 and HEVC allow: 16 frames that are shown after it come before it."""
    pictures = [(0, True, False, ()), *((k, False, False, ()) for k in range(10, 26)), (4, False, False, ())]
    plan = Plan([5], None)
    carry_out(plan, pictures)
    assert plan.answers == [4]


@pytest.mark.parametrize(
    "packets, reason",
    [
        ([(0, True), (None, False)], "without a time stamp"),
        ([(0, True), (10, False), (10, False)], "two packets with one time stamp"),
        ([(0, True), *((k, False) for k in range(50, 80)), (20, False)], "later than they can"),
        ([(50, True), *((k, False) for k in range(60, 80))], "no frame at or before"),
        ([(0, False), (1, False)], "no key frame"),
    ],
)
def test_streams_that_break_the_rules_are_refused(packets, reason):
    plan = Plan([10, 1000] if packets[0][0] != 50 else [10], None)
    with pytest.raises(Unplannable, match=reason):
        for pts, key in packets:
            plan.add(PacketFacts(None, pts, key, disposable=False))
            list(plan.ready())


def test_pts_at_is_the_inverse_of_time_s():
    for base in (Fraction(1, 30), Fraction(1001, 30000), Fraction(1, 90000), Fraction(1, 1000), Fraction(1, 10**9)):
        for start in (0, 7, -3000):
            for ticks in (0, 1, 2, 3, 1001, 90000 * 3600 + 1, 10**9 + 1):
                time_s = ticks * base.numerator / base.denominator
                assert pts_at(time_s, start, base) - start >= ticks
                assert (pts_at(time_s, start, base) - start) * base.numerator / base.denominator == time_s
                below = np.nextafter(time_s, -1)
                assert (pts_at(below, start, base) - start) * base.numerator / base.denominator <= below
    assert pts_at(float("inf"), 0, Fraction(1, 1000)) == 10**12
