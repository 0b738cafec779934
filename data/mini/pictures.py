"""One face of the store -> one training picture: new backdrop, crop, mirror, light; with what was done, for its caption.

Pictures are RGB uint8. Everything random comes from the `rng` given, so a seed makes the same pictures again.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from store import FACE_PX

BACKDROPS = (
    "plain white background",
    "grey studio background",
    "dark background",
    "blurred office background",
    "blurred outdoor background",
)


@dataclass(frozen=True)
class Variant:
    """A training picture and what was done to it."""

    pixels: np.ndarray  # RGB uint8, (px, px, 3)
    points: np.ndarray  # five points of the face in px of the picture, (5, 2), mirrored ones in their proper order
    mirrored: bool
    backdrop: str | None  # one of BACKDROPS if it was composited
    light: str | None  # "bright lighting", "dim lighting", "side light" if it was made so
    top_px: int  # how much was cut off above, when the whole picture has side_px
    left_px: int
    side_px: int  # side of the whole picture at the scale of `pixels`


def smooth_noise(rng: np.random.Generator, cells: int, side: int, channels: int = 1) -> np.ndarray:
    """Soft random blotches in about [-1, 1], float32, (side, side, channels)."""
    coarse = rng.normal(size=(cells, cells, channels)).astype("float32")
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).reshape(side, side, channels).clip(-2, 2) / 2


def radial(rng: np.random.Generator, side: int) -> np.ndarray:
    """1 near a random centre behind the head, falling to 0 at the far corner, (side, side, 1)."""
    y, x = np.mgrid[:side, :side].astype("float32") / side
    centre = rng.uniform(0.3, 0.7), rng.uniform(0.2, 0.65)
    return np.clip(1 - np.hypot(x - centre[0], y - centre[1]) / rng.uniform(0.7, 1.0), 0, 1)[..., None]


def bokeh(rng: np.random.Generator, canvas: np.ndarray, discs: int, colours) -> None:
    """Draws out-of-focus lights into `canvas` (float32, 0-255) in place."""
    side = canvas.shape[0]
    for _ in range(discs):
        layer, radius = canvas.copy(), int(rng.uniform(0.02, 0.07) * side)
        centre, colour = rng.integers(0, side, 2), colours[rng.integers(len(colours))]
        cv2.circle(layer, tuple(int(v) for v in centre), radius, [float(v) for v in colour], -1)
        cv2.addWeighted(layer, 0.45, canvas, 0.55, 0, canvas)


def office(rng: np.random.Generator, side: int) -> np.ndarray:
    """Walls, a window, shelves and screens, far out of focus."""
    walls = ((205, 198, 188), (178, 184, 192), (150, 152, 158), (214, 210, 205), (168, 150, 132))
    canvas = np.ones((side, side, 3), "float32") * np.float32(walls[rng.integers(len(walls))]) * rng.uniform(0.7, 1.0)
    window, width = rng.uniform(0, 0.8) * side, rng.uniform(0.15, 0.4) * side
    cv2.rectangle(
        canvas, (int(window), -1), (int(window + width), int(rng.uniform(0.4, 0.8) * side)), (236, 243, 250), -1
    )
    for x in np.arange(window, window + width, width / 3):
        cv2.line(canvas, (int(x), 0), (int(x), int(0.8 * side)), (120, 120, 125), max(side // 60, 1))
    things = ((92, 74, 58), (60, 66, 78), (44, 46, 50), (120, 92, 66), (70, 98, 130), (150, 120, 80), (225, 225, 225))
    for _ in range(rng.integers(5, 11)):
        corner, size = rng.uniform(0, 1, 2) * side, rng.uniform(0.06, 0.3, 2) * side
        cv2.rectangle(
            canvas,
            tuple(int(v) for v in corner),
            tuple(int(v) for v in corner + size),
            [float(v) for v in things[rng.integers(len(things))]],
            -1,
        )
    bokeh(rng, canvas, rng.integers(0, 4), ((255, 236, 200), (255, 250, 240)))
    return cv2.GaussianBlur(canvas, (0, 0), side * rng.uniform(0.02, 0.05))


def outdoor(rng: np.random.Generator, side: int) -> np.ndarray:
    """Sky over foliage or a street, far out of focus."""
    ramp = np.linspace(0, 1, side, dtype="float32")[:, None, None]
    sky, haze = np.float32((150, 190, 232)), np.float32((226, 234, 240))
    canvas = np.ones((side, side, 3), "float32") * (sky * (1 - ramp) + haze * ramp)
    greens = ((70, 104, 48), (96, 132, 62), (52, 80, 40), (128, 150, 84), (110, 120, 60))
    horizon = rng.uniform(0.0, 0.55) * side
    for _ in range(rng.integers(40, 80)):
        y = horizon + abs(rng.normal()) * 0.4 * side
        cv2.circle(
            canvas,
            (int(rng.uniform(0, side)), int(y)),
            int(rng.uniform(0.05, 0.16) * side),
            [float(v) for v in greens[rng.integers(len(greens))]],
            -1,
        )
    bokeh(rng, canvas, rng.integers(3, 10), ((200, 225, 150), (240, 248, 220), (160, 190, 110)))
    return cv2.GaussianBlur(canvas, (0, 0), side * rng.uniform(0.02, 0.05)) * rng.uniform(0.75, 1.1)


def backdrop(kind: str, rng: np.random.Generator, side: int = FACE_PX) -> np.ndarray:
    """A backdrop of one of BACKDROPS, float32 0-255, (side, side, 3)."""
    tint = rng.uniform(-4, 4, 3).astype("float32")
    if kind == "plain white background":
        return (
            np.full((side, side, 3), rng.uniform(240, 255), "float32")
            + tint / 2
            - 8 * rng.random() * (1 - radial(rng, side))
        )
    if kind == "grey studio background":
        return rng.uniform(70, 115) + rng.uniform(50, 90) * radial(rng, side) + tint + 3 * smooth_noise(rng, 5, side)
    if kind == "dark background":
        return rng.uniform(6, 24) + rng.uniform(5, 30) * radial(rng, side) + tint + 2 * smooth_noise(rng, 5, side)
    return office(rng, side) if kind == "blurred office background" else outdoor(rng, side)


def relight(picture: np.ndarray, rng: np.random.Generator, word: str | None) -> np.ndarray:
    """Exposure, contrast and white balance as phones give them; strongly so where a `word` says it. float32 0-255."""
    gain = {"bright lighting": rng.uniform(1.22, 1.45), "dim lighting": rng.uniform(0.42, 0.62)}.get(
        word, rng.uniform(0.88, 1.1)
    )
    balance = 1 + rng.normal(0, 0.035, 3)
    out = 255 * (np.clip(picture, 0, 255) / 255) ** rng.uniform(0.9, 1.12) * gain * balance
    if word == "side light":
        ramp = np.linspace(-1, 1, picture.shape[1], dtype="float32")[None, :, None] * (1 if rng.random() < 0.5 else -1)
        out = out * (1 + rng.uniform(0.38, 0.55) * ramp)
    return out


def make_variant(
    rgb: np.ndarray,
    alpha: np.ndarray | None,
    points: np.ndarray,
    px: int,
    rng: np.random.Generator,
    zoom: tuple[float, float] = (0.72, 1.0),
    composite: float = 0.65,
) -> Variant:
    """A random training picture of px x px from a face of the store.

    Args:
        rgb, alpha: the face and its matte, or None if it has none.
        points: five points of the face in px of `rgb`, (5, 2).
        zoom: the least and the most of the side that a crop keeps; every other picture keeps at least 0.92.
        composite: how often a face with a matte gets a new backdrop, in [0, 1].
    """
    picture, kind = rgb.astype("float32"), None
    if alpha is not None and rng.random() < composite:
        kind = BACKDROPS[rng.integers(len(BACKDROPS))]
        share = cv2.GaussianBlur(alpha, (0, 0), 0.6).astype("float32")[..., None] / 255
        picture = picture * share + backdrop(kind, rng) * (1 - share)
    light = rng.choice(["bright lighting", "dim lighting", "side light", ""], p=[0.06, 0.06, 0.06, 0.82]) or None
    if light or rng.random() < 0.5:
        picture = relight(picture, rng, light)
    side = rng.uniform(max(zoom[0], 0.92), 1.0) if rng.random() < 0.5 else rng.uniform(*zoom)
    side = min(side, zoom[1]) * FACE_PX
    left, top = rng.uniform(0, FACE_PX - side), rng.uniform(0, FACE_PX - side) * 0.9
    scale = px / side
    matrix = np.float32([[scale, 0, (0.5 - left) * scale - 0.5], [0, scale, (0.5 - top) * scale - 0.5]])
    soft = picture if scale >= 0.9 else cv2.GaussianBlur(picture, (0, 0), 0.28 / scale)
    out = cv2.warpAffine(soft, matrix, (px, px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    made = Variant(
        out.clip(0, 255).round().astype("uint8"),
        points @ matrix[:, :2].T + matrix[:, 2],
        False,
        kind,
        light,
        int(top * scale),
        int(left * scale),
        int(FACE_PX * scale),
    )
    return mirror(made) if rng.random() < 0.5 else made


def mirror(made: Variant) -> Variant:
    """The same picture, left and right swapped."""
    px = made.pixels.shape[0]
    points = made.points.copy()[[1, 0, 2, 4, 3]]
    points[:, 0] = px - 1 - points[:, 0]
    return replace(
        made,
        pixels=np.ascontiguousarray(made.pixels[:, ::-1]),
        points=points,
        mirrored=True,
        left_px=made.side_px - px - made.left_px,
    )
