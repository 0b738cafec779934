"""One face of the store -> one training picture: new backdrop, crop, mirror, light; with what was done, for its caption.

Pictures are RGB uint8. Everything random comes from the `rng` given, so a seed makes the same pictures again.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

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


def shade(rng: np.random.Generator, palette, spread: float = 0.15) -> list[float]:
    """A colour of the palette, lighter or darker by up to `spread`."""
    colour = np.float32(palette[rng.integers(len(palette))])
    return [float(v) for v in (colour * rng.uniform(1 - spread, 1 + spread)).clip(0, 255)]


def box(canvas: np.ndarray, x: float, y: float, width: float, height: float, colour) -> None:
    """Fills a rectangle given in shares of the side."""
    side = canvas.shape[0]
    corners = [tuple(int(v * side) for v in at) for at in ((x, y), (x + width, y + height))]
    cv2.rectangle(canvas, *corners, colour, -1)


def bokeh(rng: np.random.Generator, canvas: np.ndarray, discs: int, colours, top: float = 1.0) -> None:
    """Adds out-of-focus lights to `canvas` (float32, 0-255) in place, above the height `top` (a share of the side)."""
    side = canvas.shape[0]
    for _ in range(discs):
        layer = np.zeros_like(canvas)
        centre = int(rng.uniform(0, side)), int(rng.uniform(0, top * side))
        cv2.circle(layer, centre, int(rng.uniform(0.02, 0.065) * side), shade(rng, colours), -1)
        canvas += layer * rng.uniform(0.25, 0.6)


WALLS = ((214, 188, 150), (198, 160, 118), (222, 206, 180), (176, 136, 100), (150, 112, 84))
WOOD = ((122, 78, 42), (150, 98, 54), (92, 58, 34), (176, 124, 74), (70, 44, 28))
BOOKS = ((170, 52, 40), (38, 78, 130), (206, 164, 70), (60, 104, 82), (226, 216, 196), (96, 48, 60))
LAMPS = ((255, 214, 140), (255, 196, 110), (255, 236, 190), (250, 246, 236))


def shelves(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """A wooden bookcase with books of all colours."""
    x, width = rng.choice([rng.uniform(-0.1, 0.15), rng.uniform(0.6, 0.85)]), rng.uniform(0.25, 0.45)
    box(canvas, x, -0.1, width, 1.1, shade(rng, WOOD))
    for y in np.arange(rng.uniform(-0.1, 0.05), 1, rng.uniform(0.16, 0.24)):
        at = x + 0.02
        while at < x + width - 0.05:
            thick = rng.uniform(0.03, 0.07)
            box(canvas, at, y + rng.uniform(0, 0.05), thick, 0.13, shade(rng, BOOKS, 0.3))
            at += thick


def office(rng: np.random.Generator, side: int) -> np.ndarray:
    """Warm walls, a bright window, wood, shelves, screens and lamps, far out of focus."""
    ramp = np.linspace(0.75, 1.2, side, dtype="float32")[None, :, None]
    canvas = np.float32(shade(rng, WALLS)) * (ramp if rng.random() < 0.5 else ramp[:, ::-1])
    canvas = np.ascontiguousarray(np.broadcast_to(canvas, (side, side, 3)), "float32")
    if rng.random() < 0.6:
        shelves(rng, canvas)
    if rng.random() < 0.65:
        x, width, height = rng.uniform(-0.1, 0.75), rng.uniform(0.22, 0.4), rng.uniform(0.45, 0.85)
        box(canvas, x, -0.05, width, height, shade(rng, ((232, 242, 250), (250, 248, 236)), 0.02))
        for bar in np.arange(x, x + width + 0.01, width / 2):
            box(canvas, bar - 0.012, -0.05, 0.024, height, shade(rng, WOOD))
    for _ in range(rng.integers(2, 5)):  # desks, doors, cupboards
        box(canvas, rng.uniform(-0.1, 0.9), rng.uniform(0.3, 0.9), *rng.uniform(0.12, 0.4, 2), shade(rng, WOOD, 0.3))
    for _ in range(rng.integers(0, 3)):  # screens
        x, y, width = *rng.uniform(0.0, 0.8, 2), rng.uniform(0.12, 0.22)
        box(canvas, x, y, width, 0.7 * width, (26.0, 26.0, 30.0))
        box(
            canvas,
            x + 0.015,
            y + 0.015,
            width - 0.03,
            0.7 * width - 0.03,
            shade(rng, ((70, 130, 190), (150, 190, 220))),
        )
    bokeh(rng, canvas, rng.integers(3, 10), LAMPS, top=0.6)
    return cv2.GaussianBlur(canvas, (0, 0), side * rng.uniform(0.018, 0.036)) * rng.uniform(0.7, 1.05)


GREENS = ((58, 104, 36), (84, 132, 48), (38, 74, 28), (126, 160, 66), (104, 124, 44), (66, 120, 74))
STREET = ((150, 140, 130), (186, 170, 150), (120, 104, 96), (164, 110, 88))
SUN = ((255, 250, 190), (214, 240, 150), (250, 252, 230), (190, 225, 255))


def outdoor(rng: np.random.Generator, side: int) -> np.ndarray:
    """Sky over trees, a meadow, the sea or a street, far out of focus."""
    ramp = np.linspace(0, 1, side, dtype="float32")[:, None, None]
    sky, haze = np.float32(shade(rng, ((96, 156, 226), (140, 186, 236), (120, 170, 214)))), np.float32((222, 232, 240))
    canvas = np.ones((side, side, 3), "float32") * (sky * (1 - ramp) + haze * ramp)
    horizon = rng.uniform(-0.1, 0.6)
    if rng.random() < 0.3:  # houses
        for _ in range(rng.integers(2, 5)):
            box(
                canvas, rng.uniform(-0.2, 0.9), rng.uniform(0.05, 0.5), rng.uniform(0.15, 0.35), 1.0, shade(rng, STREET)
            )
    ground = ((70, 130, 170),) if rng.random() < 0.15 else GREENS
    box(canvas, -0.1, max(horizon + 0.25, 0.45), 1.2, 1.0, shade(rng, ground))
    for _ in range(rng.integers(25, 70)):
        at = int(rng.uniform(0, side)), int((horizon + abs(rng.normal()) * 0.35) * side)
        cv2.circle(canvas, at, int(rng.uniform(0.04, 0.15) * side), shade(rng, GREENS, 0.3), -1)
    bokeh(rng, canvas, rng.integers(4, 14), SUN)
    air = rng.uniform(0.05, 0.25)
    canvas = canvas * (1 - air) + haze * 0.8 * air
    return cv2.GaussianBlur(canvas, (0, 0), side * rng.uniform(0.02, 0.045)) * rng.uniform(0.75, 1.1)


def backdrop(kind: str, rng: np.random.Generator, side: int) -> np.ndarray:
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
    scene = (office if kind == "blurred office background" else outdoor)(
        rng, side // 2
    )  # blurred: half the side will do
    return cv2.resize(scene, (side, side), interpolation=cv2.INTER_LINEAR)


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
        rgb, alpha: the face, a square of any size, and its matte, or None if it has none.
        points: five points of the face in px of `rgb`, (5, 2).
        zoom: the least and the most of the side that a crop keeps; every other picture keeps at least 0.92.
        composite: how often a face with a matte gets a new backdrop, in [0, 1].
    """
    picture, kind, whole_px = rgb.astype("float32"), None, rgb.shape[0]
    if alpha is not None and rng.random() < composite:
        kind = BACKDROPS[rng.integers(len(BACKDROPS))]
        share = cv2.GaussianBlur(alpha, (0, 0), 0.6).astype("float32")[..., None] / 255
        picture = picture * share + backdrop(kind, rng, whole_px) * (1 - share)
    light = rng.choice(["bright lighting", "dim lighting", "side light", ""], p=[0.06, 0.06, 0.06, 0.82]) or None
    if light or rng.random() < 0.5:
        picture = relight(picture, rng, light)
    side = rng.uniform(max(zoom[0], 0.92), 1.0) if rng.random() < 0.5 else rng.uniform(*zoom)
    side = min(side, zoom[1]) * whole_px
    left, top = rng.uniform(0, whole_px - side), rng.uniform(0, whole_px - side) * 0.9
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
        int(whole_px * scale),
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
