"""Measures every face of the store: where it is, how it is turned, what colours it has, its embedding, its matte.

    nice -n 19 python measure.py                # about 0.08 s a face on one core; two may share the work:
    nice -n 19 python measure.py --follow       # waits for faces that generate.py is still drawing, up to --faces

What cannot be measured is NaN; captions.py leaves out what it is not sure of. Yaw above 0 is a nose that points to
the right edge of the picture, so "looking right" is right as the *viewer* sees it.
"""

import argparse
import time

import cv2
import numpy as np
from judges import Detector, Landmarker, Matter, Recogniser
from store import MEASURES, Store

POINTS = [f"{part}_{axis}" for part in ("eye_l", "eye_r", "nose", "mouth_l", "mouth_r") for axis in "xy"]
SHAPES = (
    "mouthSmileLeft",
    "mouthSmileRight",
    "jawOpen",
    "eyeBlinkLeft",
    "eyeBlinkRight",
    "browDownLeft",
    "browInnerUp",
    "mouthPucker",
)
NAMES = (
    ["score", *POINTS, "yaw", "pitch", "roll", *SHAPES]
    + [f"{what}_{c}" for what in ("hair", "skin", "left", "right") for c in "rgb"]  # median colours, 0-255
    + ["back_sd", "skin_sd", "light_lr", "bridge", "under_eye", "texture", "matte_face", "matte_corners", "face_px"]
)
assert len(NAMES) <= MEASURES


def column(measures: np.ndarray, name: str) -> np.ndarray:
    """One column, by its name in NAMES, of measures of shape (N, MEASURES)."""
    return measures[:, NAMES.index(name)]


def edge_energy(grey: np.ndarray, centre: np.ndarray, half_px: float, axis: int) -> float:
    """Mean absolute step of brightness along `axis` in a square around `centre`: high where a frame crosses it."""
    (x, y), half = centre.astype(int), max(int(half_px), 2)
    patch = grey[max(y - half, 0) : y + half, max(x - half, 0) : x + half]
    return float(np.abs(np.diff(patch, axis=axis)).mean()) if min(patch.shape) > 2 else np.nan


def colours_and_light(rgb: np.ndarray, marks: np.ndarray) -> dict:
    """Colours (0-255), brightness left minus right over the face, and edge cues, from 478 landmarks in px."""
    side = rgb.shape[0]
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype("float32")
    oval = np.zeros((side, side), np.uint8)
    cv2.fillConvexPoly(oval, cv2.convexHull(marks.astype(np.int32)), 1)
    top, chin, nose = marks[10], marks[152], marks[1]
    up, height = (top - chin), float(np.linalg.norm(top - chin))
    across = np.array([-up[1], up[0]])
    spots = [top + up * u + across * v for u in (0.10, 0.14, 0.18) for v in (-0.16, -0.08, 0.0, 0.08, 0.16)]
    spots = [s.astype(int) for s in spots if 2 <= s[0] < side - 3 and 2 <= s[1] < side - 3]
    hair = [rgb[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0) for x, y in spots]
    strip = side // 10
    left, right = rgb[: side // 3, :strip].reshape(-1, 3), rgb[: side // 3, -strip:].reshape(-1, 3)
    skin, on_left = rgb[oval > 0], np.arange(side)[None] < nose[0]
    fine = np.abs(grey - cv2.GaussianBlur(grey, (0, 0), 2.0))
    out = {
        "back_sd": np.concatenate([left, right]).mean(1).std(),
        "skin_sd": grey[oval > 0].std(),
        "light_lr": grey[(oval > 0) & on_left].mean() - grey[(oval > 0) & ~on_left].mean(),
        "bridge": edge_energy(grey, marks[6], height * 0.06, 0),
        "under_eye": np.nanmean([edge_energy(grey, marks[k], height * 0.05, 0) for k in (119, 348)]),
        "texture": fine[oval > 0].mean() / max(grey[oval > 0].mean(), 1) * 100,
        "face_px": height,
    }
    medians = {
        "hair": np.median(hair, 0) if len(hair) > 4 else np.full(3, np.nan),
        "skin": np.median(skin, 0),
        "left": np.median(left, 0),
        "right": np.median(right, 0),
    }
    out.update({f"{what}_{c}": value[k] for what, value in medians.items() for k, c in enumerate("rgb")})
    return out


class Measurer:
    """Measures one picture: (measures (MEASURES,), embedding (512,)); NaN where there is no face."""

    def __init__(self):
        self.detect, self.recognise, self.landmarks = Detector(), Recogniser(), Landmarker()

    def __call__(self, rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        row, face, found = np.full(MEASURES, np.nan, "float32"), self.detect(rgb), self.landmarks(rgb)
        if face is None or found is None:
            return row, np.full(512, np.nan, "float32"), None
        marks, shapes, yaw, pitch, roll = found
        known = {"score": face[0], **dict(zip(POINTS, face[2].ravel())), "yaw": yaw, "pitch": pitch, "roll": roll}
        known.update({name: shapes[name] for name in SHAPES})
        known.update(colours_and_light(rgb, marks))
        for name, value in known.items():
            row[NAMES.index(name)] = value
        return row, self.recognise(rgb, face[2]), marks


def matte_cues(alpha: np.ndarray, marks: np.ndarray) -> tuple[float, float]:
    """Share of the face that the matte keeps (1 is right) and of the two upper corners (0 is right)."""
    oval = np.zeros(alpha.shape, np.uint8)
    cv2.fillConvexPoly(oval, cv2.convexHull(marks.astype(np.int32)), 1)
    strip = alpha.shape[0] // 8
    corners = np.r_[alpha[: 2 * strip, :strip].ravel(), alpha[: 2 * strip, -strip:].ravel()]
    return float(alpha[oval > 0].mean() / 255), float(corners.mean() / 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--matte-every", type=int, default=2, help="a matte for every n-th face (0.08 s each)")
    parser.add_argument("--follow", action="store_true", help="wait for faces that are still being drawn")
    args = parser.parse_args()
    store, measure, matter = Store(), Measurer(), Matter()
    total = store.count["w"]
    arrays = {name: store.array(name, total) for name in ("measures", "embedding", "alpha")}
    row, start = min(store.count[name] for name in arrays), time.time()
    first = row
    while row < total:
        store.refresh()
        if row >= store.count["pixels"]:
            if not args.follow:
                break
            time.sleep(5)
            continue
        rgb = np.array(store.array("pixels")[row])
        values, arrays["embedding"][row], marks = measure(rgb)
        if marks is not None and row % args.matte_every == 0:
            arrays["alpha"][row] = matter(rgb)
            cues = matte_cues(arrays["alpha"][row], marks)
            values[NAMES.index("matte_face")], values[NAMES.index("matte_corners")] = cues
        arrays["measures"][row] = values
        row += 1
        if row % 100 == 0 or row == total:
            for name in arrays:
                store.finish(name, row)
        if row % 500 == 0:
            print(f"{row} measured, {(time.time() - start) / (row - first):.3f} s each", flush=True)


if __name__ == "__main__":
    main()
