"""Position tables: the published formula, other grids as direct evaluation and as interpolation by hand."""

import math

import pytest
import timm.layers
import torch

from headcam.errors import InputError
from headcam.ssl.positions import resample, sincos_2d


def at_place(y: float, x: float, dim: int) -> list[float]:
    """The embedding of one place by the published formula."""
    omega = [10000 ** (-k / (dim // 4)) for k in range(dim // 4)]
    return [f(place * w) for place in (x, y) for f in (math.sin, math.cos) for w in omega]


def test_the_table_is_the_published_formula_column_first():
    table = sincos_2d(16, (3, 5))
    assert table.shape == (1, 16, 16) and table.dtype == torch.float32
    assert (table[0, 0] == 0).all()
    wanted = torch.tensor([at_place(y, x, 16) for y in range(3) for x in range(5)])
    torch.testing.assert_close(table[0, 1:], wanted, rtol=0, atol=1e-7)
    assert torch.equal(sincos_2d(16, (3, 5), cls_token=False), table[:, 1:])


@pytest.mark.parametrize(
    "field, grid", [((4, 4), (8, 8)), ((14, 14), (6, 6)), ((3, 5), (6, 7)), ((16, 16), (128, 127))]
)
def test_another_grid_covers_the_same_field_of_view(field, grid):
    """Places of the new patches' centres, measured in old patches."""
    table = sincos_2d(16, grid, field=field)
    old_height, old_width = 1 / field[0], 1 / field[1]
    for row, column in {(0, 0), (grid[0] - 1, grid[1] - 1), (grid[0] // 2, 1), (2, grid[1] // 3)}:
        centre = (row + 0.5) / grid[0], (column + 0.5) / grid[1]  # of the picture
        wanted = at_place(centre[0] / old_height - 0.5, centre[1] / old_width - 0.5, 16)
        torch.testing.assert_close(
            table[0, 1 + row * grid[1] + column], torch.tensor(wanted), rtol=0, atol=1e-6, msg=f"{row}, {column}"
        )


@pytest.mark.parametrize("grid", [(1, 1), (14, 14), (3, 7), (34, 34)])
def test_the_own_grid_is_the_same_to_the_last_bit(grid):
    assert torch.equal(sincos_2d(32, grid, field=grid), sincos_2d(32, grid))


def test_every_third_patch_of_a_finer_grid_stands_where_an_old_one_stood():
    fine = sincos_2d(16, (12, 12), field=(4, 4), cls_token=False).view(12, 12, 16)
    torch.testing.assert_close(fine[1::3, 1::3].flatten(0, 1), sincos_2d(16, (4, 4), False)[0], rtol=0, atol=1e-6)


def test_the_table_comes_on_the_device_asked_for():
    assert sincos_2d(16, (2, 3), device=torch.device("meta")).shape == (1, 7, 16)
    with torch.device("meta"):
        assert sincos_2d(16, (2, 3)).is_meta


def test_a_width_of_no_four_parts_is_refused():
    with pytest.raises(InputError, match="embed_dim 30 is no multiple of 4"):
        sincos_2d(30, (2, 2))


def cubic(distance: float, a: float = -0.75) -> float:
    """The kernel of Keys (1981), equation 4."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def by_hand(image: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """(rows, columns, D) at the place (y, x), edges repeated."""
    last_row, last_column = image.shape[0] - 1, image.shape[1] - 1
    return sum(
        cubic(y - i) * cubic(x - j) * image[min(max(i, 0), last_row), min(max(j, 0), last_column)]
        for i in range(math.floor(y) - 1, math.floor(y) + 3)
        for j in range(math.floor(x) - 1, math.floor(x) + 3)
    )


@pytest.mark.parametrize("grid, wanted", [((4, 6), (7, 5)), ((4, 4), (8, 8)), ((7, 7), (3, 3))])
def test_learned_positions_are_interpolated_bicubically_at_the_new_centres(grid, wanted):
    table = torch.randn(1, grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = resample(table, grid, wanted)
    assert result.dtype == torch.float64
    for row in range(wanted[0]):
        for column in range(wanted[1]):
            y, x = (row + 0.5) * grid[0] / wanted[0] - 0.5, (column + 0.5) * grid[1] / wanted[1] - 0.5
            torch.testing.assert_close(result[0, row * wanted[1] + column], by_hand(table.view(*grid, 3), y, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_resampling_to_the_own_grid_changes_no_bit(dtype):
    table = torch.randn(1, 15, 8).to(dtype)
    assert torch.equal(resample(table, (3, 5), (3, 5)), table)


@pytest.mark.parametrize("side", [6, 28])
def test_timm_smooths_as_the_header_says(side):
    table = torch.randn(1, 196, 8, generator=torch.Generator().manual_seed(0))
    ours = resample(table, (14, 14), (side, side))
    theirs = [
        timm.layers.resample_abs_pos_embed(table, [side, side], [14, 14], 0, antialias=smooth)
        for smooth in (False, True)
    ]
    torch.testing.assert_close(ours, theirs[0])
    assert (ours - theirs[1]).abs().max() > 0.05


@pytest.mark.parametrize("side", [6, 28])
def test_dino_shifts_places_as_the_header_says(side):
    """Its call, with a factor in place of a size, is the cubic at (i + 0.5) old / (n + 0.1) - 0.5."""
    table = torch.randn(14, 14, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image, factor = table.permute(2, 0, 1).unsqueeze(0), (side + 0.1) / 14
    theirs = torch.nn.functional.interpolate(image, scale_factor=(factor, factor), mode="bicubic")[0]
    assert theirs.shape == (8, side, side)
    for row, column in ((0, 0), (side // 2, 1), (side - 1, side - 1)):
        places = [(n + 0.5) * 14 / (side + 0.1) - 0.5 for n in (row, column)]
        torch.testing.assert_close(theirs[:, row, column], by_hand(table, *places))
        assert all(0 < (n + 0.5) * 14 / side - 0.5 - p < 0.1 * 14 / side for n, p in zip((row, column), places))
