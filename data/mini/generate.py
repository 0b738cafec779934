"""Draws faces of people who do not exist, adults only, into the store; goes on where it was stopped.

    nice -n 19 python generate.py --faces 8000          # about 0.1 s a face on two cores

Face `i` is always the same one for a seed, however often the run was stopped.
"""

import argparse
import time

import numpy as np
from store import SHARED, Store

SEED = 7001  # 4242, 20010 and 20028 made the sample people and an earlier base: never again
PSI = (0.65, 0.90)  # truncation: 0 = the mean face, 1 = the generator's full, odder variety
ADULT_LOG_AGE = 2.58  # on the probe's log-age; about 13 years there, and by eye no child is left above it
MARGIN = 0.06  # kept away from the threshold


def load_probe() -> dict:
    """Linear probe of attributes: `(w - mu) @ M + b`, columns named by `keys`."""
    with np.load(SHARED / "assets/facegen/w_probe.npz") as file:
        return {key: file[key] for key in file}


def adult_styles(rows: int, seed: int) -> np.ndarray:
    """Style vectors of the first `rows` adults of a seed, float32, shape (rows, 512)."""
    import openvino as ov  # only here and in main: the other scripts read the probe alone

    core, assets = ov.Core(), SHARED / "assets/facegen"
    mapping = core.compile_model(core.read_model(assets / "MappingNetwork.xml"), "CPU")
    mean, probe = np.load(assets / "wmean.npy"), load_probe()
    rng, kept = np.random.default_rng(seed), []
    while len(kept) < rows:
        z = rng.normal(size=(1, 512)).astype("float32")
        w = mean + rng.uniform(*PSI) * (mapping(z)[0] - mean)
        log_age = ((w[0] - probe["mu"]) @ probe["M"] + probe["b"])[list(probe["keys"]).index("age")]
        if log_age > ADULT_LOG_AGE + MARGIN:
            kept.append(w[0].astype("float32"))
    return np.stack(kept)


def main() -> None:
    import openvino as ov

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--faces", type=int, default=8000, help="rows the store shall have in the end")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    store = Store()
    styles, pixels = store.array("w", args.faces), store.array("pixels", args.faces)
    styles[: args.faces] = adult_styles(args.faces, args.seed)
    store.finish("w", args.faces)
    core = ov.Core()
    model = core.read_model(SHARED / "assets/facegen/gan256.xml")
    draw = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": args.threads, "INFERENCE_PRECISION_HINT": "f32"})
    start, first = time.time(), store.count["pixels"]
    for row in range(first, args.faces):
        pixels[row] = draw(styles[row][None])[0][0].transpose(1, 2, 0)
        if (row + 1) % 100 == 0 or row + 1 == args.faces:
            store.finish("pixels", row + 1)
        if (row + 1) % 500 == 0:
            print(f"{row + 1} faces, {(time.time() - start) / (row + 1 - first):.3f} s each", flush=True)


if __name__ == "__main__":
    main()
