"""What the metrics cost, and whether their intervals cover: 50 headshots and the photos of a run, on a CPU.

python tests/benchmarks/metrics_cost.py RUN          time and memory, without drawing the bare base's pictures
python tests/benchmarks/metrics_cost.py --coverage   intervals on simulated sets whose value is known
"""

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from headshotkit.core.results import HeadshotsResult, LoraResult
from headshotkit.core.run import Run
from headshotkit.evaluation.evaluate import evaluate_run
from headshotkit.scoring import metrics
from headshotkit.scoring.adherence import asked_of
from headshotkit.scoring.bootstrap import BOOTSTRAPS, mean_interval, sets_interval
from headshotkit.scoring.metrics_arithmetic import (
    frechet_distance,
    inception_score,
    mean_discrepancy,
    mean_of_pairs,
    softmax,
)
from headshotkit.scoring.metrics_features import Features, picture_of_headshot, pictures_of_photos
from headshotkit.scoring.ranking import choose_headshots

DRAWS = 1000


def main() -> None:
    if "--coverage" in sys.argv:
        return show_coverage()
    run = Run(sys.argv[1])
    generated, names = HeadshotsResult.load(run), LoraResult.load(run).lora.names
    start, used = time.perf_counter(), time.process_time()
    photos, features = pictures_of_photos(run), Features()
    made = [picture_of_headshot(run.path("headshots") / shot.file, shot, names, asked_of(shot.prompt))
            for shot in choose_headshots(generated.headshots, 50)]  # fmt: skip
    found = metrics.measure({"delivered": metrics.Sets(made, photos[3:], features, photos[:3])})
    measured = sum("value" in one["sets"]["delivered"] for one in found.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(made)} headshots, {len(photos)} photos, {measured} metrics: {time.perf_counter() - start:.1f} s, "
          f"{time.process_time() - used:.1f} s of processor time, {peak:.2f} GB")  # fmt: skip
    for name, one in found.items():
        print(f"  {name:<20}{metrics.in_words(one['sets']['delivered'])}")
    with tempfile.TemporaryDirectory() as folder:
        copy = Run(shutil.copytree(run.folder, Path(folder) / "run"))
        for title in ("first", "second"):
            start = time.perf_counter()
            evaluate_run(copy)
            print(f"evaluate, the {title} time: {time.perf_counter() - start:.1f} s")


def percentile_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the simple bootstrap's interval of a mean, which is not used."""
    draws = np.random.default_rng(seed).integers(0, len(values), (BOOTSTRAPS, len(values)))
    return tuple(np.quantile(values[draws].mean(1), [0.025, 0.975]))


def show_coverage() -> None:
    """Print the share of draws whose interval holds the known value; that of a biased statistic is its mean."""
    means = {
        "normal, 12": (lambda rng: rng.normal(0.6, 0.1, 12), 0.6),
        "normal, 50": (lambda rng: rng.normal(0.6, 0.1, 50), 0.6),
        "beta(8, 3), 12": (lambda rng: rng.beta(8, 3, 12), 8 / 11),
        "beta(8, 3), 50": (lambda rng: rng.beta(8, 3, 50), 8 / 11),
        "thirds, 24": (lambda rng: rng.binomial(3, 0.7, 24) / 3, 0.7),
    }
    for title, (draw, value) in means.items():
        held = {"percentile": 0, "studentised": 0}
        for seed in range(DRAWS):
            values = draw(np.random.default_rng(seed))
            for name, interval in (("percentile", percentile_interval), ("studentised", mean_interval)):
                low, high = interval(values, seed)
                held[name] += low <= value <= high
        print(f"mean of {title}: {held} of {DRAWS}", flush=True)
    scales = 1 / np.sqrt(1 + np.arange(64))

    def two(rng):
        return (rng.normal(size=(50, 64)) + 0.3) * scales, 1.2 * rng.normal(size=(20, 64)) * scales

    def kernels(rng, shift):
        both = rng.normal(size=(70, 8))
        both[:50] += shift
        squares = (both**2).sum(1)
        return np.exp(-(squares[:, None] + squares - 2 * both @ both.T) / 32)

    def of_kernel(kernel):
        def discrepancy(a, b):
            return mean_discrepancy(*(kernel[np.ix_(*pair)] for pair in ((a, a), (a, b + 50), (b + 50, b + 50))))

        return discrepancy, (50, 20)

    def of_two(sets):
        return (lambda a, b: frechet_distance(sets[0][a], sets[1][b])), (50, 20)

    def of_shares(shares):
        return (lambda a: inception_score(shares[a])), (50,)

    def of_distances(rows):
        distances = ((rows[:, None] - rows) ** 2).sum(-1)
        return (lambda a: mean_of_pairs(distances[np.ix_(a, a)])), (len(rows),)

    wholes = {
        "Fréchet distance, 64 features": (two, of_two),
        "Inception score, 10 classes": (lambda rng: softmax(1.5 * rng.normal(size=(50, 10))), of_shares),
        "discrepancy, sets apart": (lambda rng: kernels(rng, 0.5), of_kernel),
        "discrepancy, sets alike": (lambda rng: kernels(rng, 0.0), of_kernel),
        "mean distance of 24": (lambda rng: rng.normal(size=(24, 8)), of_distances),
    }
    for title, (draw, build) in wholes.items():
        found = []
        for seed in range(DRAWS):
            statistic, sizes = build(draw(np.random.default_rng(seed)))
            found.append(sets_interval(statistic, sizes))
        mean = np.mean([sum(bounds) / 2 for bounds in found])
        held = sum(low <= mean <= high for low, high in found)
        print(f"{title}: {held} of {DRAWS} hold its mean, {mean:.4f}", flush=True)


if __name__ == "__main__":
    main()
