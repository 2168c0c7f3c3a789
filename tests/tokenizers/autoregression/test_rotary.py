"""Rotary positions: the formula, that products depend on distances alone, and where the start token stands."""

import math

import pytest
import torch

from headcam.errors import InputError
from headcam.tokenizers.autoregression.rotary import rotary_table, rotate


def turned(vector: list[float], place: list[float], pairs: int) -> list[float]:
    """The formula, one pair at a time: channel k with channel R + k, axes one after the other."""
    out, R = list(vector), pairs * len(place)
    for axis, p in enumerate(place):
        for k in range(pairs):
            angle = p * 100 ** (-k / pairs)
            i = axis * pairs + k
            a, b = vector[i], vector[R + i]
            out[i] = a * math.cos(angle) - b * math.sin(angle)
            out[R + i] = a * math.sin(angle) + b * math.cos(angle)
    return out


@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
@pytest.mark.parametrize("start", [True, False])
def test_queries_stand_at_the_place_they_ask_for_and_keys_at_their_own(grid, start):
    head_dim, axes = 14, len(grid)
    pairs = head_dim // (2 * axes)
    places = [list(map(float, index)) for index in torch.cartesian_prod(*map(torch.arange, grid)).tolist()]
    sequence = ([[-1.0] * axes] if start else []) + places
    P = len(sequence) - 1
    table = rotary_table(grid, head_dim, start)
    assert table.shape == (2, 2, P, axes * pairs)
    x = torch.randn(2, 1, 1, P, head_dim, generator=torch.Generator().manual_seed(0))
    found = rotate(x, table)
    for i in range(P):
        for which, place in enumerate((sequence[i + 1], sequence[i])):
            expected = turned(x[which, 0, 0, i].tolist(), place, pairs)
            assert found[which, 0, 0, i].tolist() == pytest.approx(expected, abs=1e-5)


def test_products_depend_on_distances_alone():
    grid, head_dim = (6, 7), 16
    table = rotary_table(grid, head_dim, start=True)  # position i: query at place i, key at place i - 1
    q, k = torch.randn(2, head_dim, generator=torch.Generator().manual_seed(0)).unbind()
    P = table.shape[2]
    qs, ks = rotate(torch.stack([q.expand(P, -1), k.expand(P, -1)])[:, None, None], table).squeeze((1, 2)).unbind()
    scores = qs @ ks[1:].T  # of the query at place i and the key at place j
    by_distance: dict[tuple[int, int], list[float]] = {}
    for i in range(P):
        for j in range(P - 1):
            distance = (i // 7 - j // 7, i % 7 - j % 7)
            by_distance.setdefault(distance, []).append(scores[i, j].item())
    assert all(max(same) - min(same) < 1e-4 for same in by_distance.values())
    means = torch.tensor([sum(same) / len(same) for same in by_distance.values()])
    assert len(means) == 11 * 13 - 1 and means.std() > 0.1  # and they do depend on them
    # What lies above the place that is asked for is one row away, also at the start of a row.
    assert abs(scores[7, 0] - scores[10, 3]) < 1e-4


def test_turning_keeps_lengths_types_and_what_is_left_over():
    table = rotary_table((2, 2), 10, start=True)  # 2 axes, 2 pairs each: 8 channels, 2 left over
    x = torch.randn(2, 3, 2, 4, 10, generator=torch.Generator().manual_seed(0))
    found = rotate(x, table)
    torch.testing.assert_close(found.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(found[..., 8:], x[..., 8:]) and not torch.allclose(found[..., :8], x[..., :8])
    assert rotate(x.bfloat16(), table).dtype == torch.bfloat16


def test_heads_without_a_pair_for_every_axis_are_refused():
    with pytest.raises(InputError, match=r"heads of 5 channels are too narrow .* take 6 channels"):
        rotary_table((2, 2, 2), 5, start=True)
