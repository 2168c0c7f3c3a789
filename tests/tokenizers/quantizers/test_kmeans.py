"""k-means and the nearest code beside scikit-learn and plain distances."""

import pytest
import torch
from sklearn.cluster import KMeans

from headcam.errors import InputError
from headcam.tokenizers.quantizers.kmeans import kmeans
from headcam.tokenizers.quantizers.nearest import nearest_code


def points(n=600, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "codes"), [(1, 1), (5000, 1000), (300, 7)])
def test_the_nearest_code_is_that_of_float64_distances(rows, codes):
    x, codebook = points(rows, 16), points(codes, 16, seed=1)
    found = nearest_code(x, codebook)
    distances = torch.cdist(x.double(), codebook.double())
    assert found.dtype == torch.int64
    torch.testing.assert_close(distances.gather(1, found[:, None])[:, 0], distances.min(1).values, rtol=1e-6, atol=0)
    assert torch.equal(found, distances.argmin(1))


def test_of_equal_codes_the_first_is_taken():
    assert nearest_code(torch.zeros(3, 2), torch.ones(5, 2)).tolist() == [0, 0, 0]


def test_lloyds_iterations_are_those_of_scikit_learn():
    x = points()
    start = kmeans(x, 8, start="k-means++", iterations=0).centres
    ours = kmeans(x, 8, start="k-means++", iterations=300)
    theirs = KMeans(8, init=start.numpy(), n_init=1, max_iter=300, tol=0).fit(x.numpy())
    torch.testing.assert_close(ours.centres, torch.from_numpy(theirs.cluster_centers_), rtol=1e-4, atol=1e-5)
    assert ours.counts.tolist() == torch.bincount(torch.from_numpy(theirs.labels_).long(), minlength=8).tolist()


@pytest.mark.parametrize("start", ["k-means++", "random"])
def test_the_same_points_and_seed_give_the_same_centres(start):
    x = points()
    first, again, other = (kmeans(x, 20, start=start, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.centres, again.centres) and not torch.equal(first.centres, other.centres)
    assert int(first.counts.sum()) == len(x)


def test_plus_plus_finds_small_clusters_far_away():
    x = torch.cat(
        [points(2000, 2), *(points(3, 2) * 0.01 + 100 * torch.eye(2)[k % 2] * (-1) ** (k // 2) for k in range(4))]
    )
    found = kmeans(x, 5, start="k-means++")
    assert sorted(found.counts.tolist()) == [3, 3, 3, 3, 2000]


def test_no_centre_is_lost_when_a_cluster_runs_empty():
    x = torch.cat([torch.zeros(90, 2), points(10, 2) + 50])  # a random start takes the same place many times
    found = kmeans(x, 8, start="random", seed=3, iterations=20)
    assert int((found.counts > 0).sum()) == 8


def test_more_centres_than_points_are_refused():
    with pytest.raises(InputError, match="3 points cannot have 4 centres"):
        kmeans(points(3), 4)
