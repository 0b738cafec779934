"""How much memory and time does CodeFormer take on a CPU? With random weights: they cost what the real ones cost.

python tests/benchmarks/codeformer_memory.py [--weights codeformer.pth]
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from headshotkit.restoration import codeformer
from headshotkit.restoration.alignment import SIDE_PX


def peak_gib() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="default: random ones")
    weights = parser.parse_args().weights
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if weights is None:
            weights = Path(folder) / "random.pth"
            torch.save({"params_ema": codeformer.codeformer_class()().state_dict()}, weights)
            print(f"made random weights: {peak_gib():.2f} GiB at most; run again with --weights for a clean figure")
        net = codeformer.load_codeformer(weights)
        print(f"loaded {weights.stat().st_size / 1e6:.0f} MB: {peak_gib():.2f} GiB at most")
        face = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3)).astype(np.uint8)
        begun = time.monotonic()
        codeformer.restore_face(face, net, 0.5)
        print(f"restored a face in {time.monotonic() - begun:.1f} s on one thread: {peak_gib():.2f} GiB at most")


if __name__ == "__main__":
    main()
