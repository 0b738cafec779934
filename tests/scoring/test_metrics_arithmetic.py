"""The metrics' formulas against independent arithmetic with scipy, and against torchmetrics where it is installed."""

import numpy as np
import pytest
from scipy import linalg, spatial, special

from headshotkit.scoring.metrics_arithmetic import (
    frechet_distance,
    gaussian_kernel,
    inception_score,
    mean_discrepancy,
    mean_of_pairs,
    polynomial_kernel,
    softmax,
    squared_distances,
)

SIZES = [(50, 20, 64), (12, 9, 300), (200, 150, 16)]
"""Pictures, photos, features: also more features than pictures, as Inception's, and fewer."""


def two_sets(made: int, photos: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 features of two sets that differ, as a net's: above 0, with some in common."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(features, features)) / np.sqrt(features)
    one, other = (np.abs(rng.normal(size=(n, features)) @ mixing + shift) for n, shift in ((made, 0.3), (photos, 0)))
    return one.astype(np.float32), other.astype(np.float32)


def discrepancy(kernel, one, other) -> float:
    return mean_discrepancy(kernel(one, one), kernel(one, other), kernel(other, other))


@pytest.mark.parametrize("sizes", SIZES)
def test_fid_is_scipys(sizes):
    one, other = (rows.astype(np.float64) for rows in two_sets(*sizes))
    covariances = [np.cov(rows, rowvar=False) for rows in (one, other)]
    eigenvalues = linalg.eigvals(covariances[0] @ covariances[1])
    known = ((one.mean(0) - other.mean(0)) ** 2).sum() + sum(map(np.trace, covariances))
    known -= 2 * np.sqrt(eigenvalues.astype(complex)).real.sum()
    assert frechet_distance(one, other) == pytest.approx(known, rel=1e-4)


@pytest.mark.parametrize("sizes", SIZES)
def test_kid_is_the_sum_over_pairs(sizes):
    one, other = two_sets(*sizes)

    def kernel(x, y):
        return (float(np.dot(x.astype(np.float64), y)) / sizes[2] + 1) ** 3

    def mean(a, b, same):
        return np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)])

    few, fewer = one[:20], other[:15]
    known = mean(few, few, True) + mean(fewer, fewer, True) - 2 * mean(few, fewer, False)
    assert discrepancy(polynomial_kernel, few, fewer) == pytest.approx(known, rel=1e-4)


def test_cmmd_is_the_sum_over_pairs():
    one, other = two_sets(30, 20, 64)
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one.astype(float), other.astype(float))]

    def mean(a, b, same):
        values = np.exp(-spatial.distance.cdist(a, b, "sqeuclidean") / 200)
        return values[~np.eye(len(a), dtype=bool)].mean() if same else values.mean()

    known = mean(units[0], units[0], True) + mean(units[1], units[1], True) - 2 * mean(*units, False)
    assert discrepancy(gaussian_kernel, one, other) == pytest.approx(known, rel=1e-4)


def test_the_inception_score_is_scipys():
    logits = np.random.default_rng(0).normal(size=(50, 1008)) * 3
    shares = special.softmax(logits, axis=1)
    known = np.exp(special.rel_entr(shares, shares.mean(0)).sum(1).mean())
    assert inception_score(softmax(logits)) == pytest.approx(known, rel=1e-4)


def test_distances_of_pairs_are_scipys():
    rows = np.random.default_rng(0).normal(size=(9, 5000)).astype(np.float32)
    known = spatial.distance.pdist(rows.astype(np.float64), "sqeuclidean")
    assert mean_of_pairs(squared_distances(rows, rows)) == pytest.approx(known.mean(), rel=1e-4)


@pytest.mark.filterwarnings("ignore:Metric `:UserWarning")  # that it keeps all features in memory
@pytest.mark.filterwarnings("ignore:std\\(\\):UserWarning")  # of the scores of a single group
def test_torchmetrics_measures_the_same():
    """Its package wants torchvision for some names; these modules do without, and take features as pictures."""
    pytest.importorskip("torchmetrics")
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    class Same(torch.nn.Module):
        num_features = 64

        def forward(self, rows):
            return rows.flatten(1).float()

    one, other = two_sets(50, 50, 64)
    tensors = [torch.from_numpy(rows).double()[:, :, None, None] for rows in (one, other)]
    fid = FrechetInceptionDistance(feature=Same(), input_img_size=(64, 1, 1), normalize=False).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=50)
    for metric in (fid, kid):
        metric.update(tensors[0], real=False)
        metric.update(tensors[1], real=True)
    assert frechet_distance(one, other) == pytest.approx(float(fid.compute()), rel=1e-4)
    assert discrepancy(polynomial_kernel, one, other) == pytest.approx(float(kid.compute()[0]), rel=1e-4)
    score = InceptionScore(feature=Same(), splits=1)
    score.update(tensors[0] * 5)
    assert inception_score(softmax(one * 5)) == pytest.approx(float(score.compute()[0]), rel=1e-4)


@pytest.mark.parametrize("kernel", [None, polynomial_kernel, gaussian_kernel], ids=["fid", "kid", "cmmd"])
def test_distances_grow_with_the_shift_and_are_0_for_the_same_set(kernel):
    one, _ = two_sets(60, 2, 16)
    rng = np.random.default_rng(1)
    noise = rng.normal(size=one.shape)

    def distance(other):
        return frechet_distance(one, other) if kernel is None else discrepancy(kernel, one, other)

    found = [distance(one + step * noise) for step in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert found == sorted(found) and found[0] < found[1]
    assert kernel is not None or found[0] == pytest.approx(0, abs=1e-6)
