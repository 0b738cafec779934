"""The formulas of the metrics over features: pure functions of arrays, in float64."""

from __future__ import annotations

import numpy as np

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Bandwidth of CMMD's Gaussian kernel over embeddings of norm 1, and the factor of its published values."""


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Compute the squared Fréchet distance between the normal distributions that fit two sets, 0 or more.

    The covariances' root is not formed: its trace is the sum of the singular values of a product of the centred sets,
    which is exact, and small where there are fewer pictures than features.

    Args:
        one, other: features, shapes (N, D) and (M, D), N and M at least 2.
    Source: Heusel et al. 2017, arXiv:1706.08500.

    >>> round(frechet_distance(np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])), 6)
    9.0
    """
    a, b = (np.asarray(rows, np.float64) for rows in (one, other))
    free = np.sqrt(len(a) - 1), np.sqrt(len(b) - 1)
    centred = [(rows - rows.mean(0)) / root for rows, root in zip((a, b), free, strict=True)]
    small = [np.linalg.qr(rows, mode="r") if rows.shape[0] > rows.shape[1] else rows for rows in centred]
    shared = np.linalg.svd(small[0] @ small[1].T, compute_uv=False).sum()
    apart = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    return max(apart + sum(float((rows**2).sum()) for rows in centred) - 2 * float(shared), 0.0)


def polynomial_kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute KID's kernel, (x·y / D + 1)³, shapes (N, D), (M, D) -> (N, M).

    Source: Bińkowski et al. 2018, arXiv:1801.01401.
    """
    a, b = (np.asarray(rows, np.float64) for rows in (one, other))
    return (a @ b.T / a.shape[1] + 1) ** 3


def gaussian_kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute CMMD's kernel, exp(-|x - y|² / 2σ²), of embeddings scaled to norm 1, shapes (N, D), (M, D) -> (N, M).

    Source: Jayasumana et al. 2024, arXiv:2401.09603.
    """
    cosine = unit(one) @ unit(other).T
    return np.exp(-(2 - 2 * cosine) / (2 * CMMD_SIGMA**2))


def mean_discrepancy(within_one: np.ndarray, between: np.ndarray, within_other: np.ndarray) -> float:
    """Compute the unbiased squared maximum mean discrepancy of two sets, which can be below 0 by chance.

    Args:
        within_one, between, within_other: kernel values, shapes (N, N), (N, M), (M, M), N and M at least 2.
    Source: Gretton et al. 2012.
    """
    return mean_of_pairs(within_one) + mean_of_pairs(within_other) - 2 * float(between.mean())


def mean_of_pairs(values: np.ndarray) -> float:
    """Compute the mean over all pairs of two different members, from a symmetric matrix, shape (N, N), N >= 2."""
    count = len(values)
    return float((values.sum() - np.trace(values)) / (count * (count - 1)))


def inception_score(shares: np.ndarray) -> float:
    """Compute exp of the mean divergence of each picture's class probabilities from their mean, 1 or more.

    Args:
        shares: class probabilities, shape (N, classes), all above 0.
    Source: Salimans et al. 2016, arXiv:1606.03498.

    >>> round(inception_score(np.array([[0.999999, 0.000001], [0.000001, 0.999999]])), 3)
    2.0
    """
    shares = np.asarray(shares, np.float64)
    return float(np.exp((shares * np.log(shares / shares.mean(0))).sum(1).mean()))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Compute class probabilities from logits, shape (N, classes)."""
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def unit(rows: np.ndarray) -> np.ndarray:
    """Scale each row to norm 1, float64, shape (N, D)."""
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Compute the squared Euclidean distance of every pair, float64, shapes (N, D), (M, D) -> (N, M)."""
    a, b = (np.asarray(rows, np.float32) for rows in (one, other))
    lengths = [np.einsum("nd,nd->n", rows, rows, dtype=np.float64) for rows in (a, b)]
    return np.maximum(lengths[0][:, None] + lengths[1] - 2 * (a @ b.T).astype(np.float64), 0)
