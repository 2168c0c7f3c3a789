"""A view of a table is what copying it would have given."""

import numpy as np

from headcam.evaluation.features.views import TableView, mean_of


def test_rows_and_centre():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(40, 5)).astype(np.float16)
    rows = np.array([3, 5, 6, 20, 39])
    plain = TableView(values)
    assert (len(plain), plain.shape, plain.dtype, plain.ndim) == (40, (40, 5), np.float16, 2)
    assert np.array_equal(plain[3:7], values[3:7])
    centre = mean_of(TableView(values, rows), block=2)
    assert np.allclose(centre, values[rows].astype(float).mean(axis=0), atol=1e-6)
    view = TableView(values, rows, centre)
    copied = values[rows].astype(np.float32) - centre
    assert (view.shape, view.dtype) == ((5, 5), np.float32)
    assert np.array_equal(view[1:3], copied[1:3]) and np.array_equal(view[np.array([4, 0])], copied[[4, 0]])
