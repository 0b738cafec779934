"""Measures of what a picture shows: head direction, smile, light, framing, background and clothes. Pure functions.

Captions, coach, coverage and prompt adherence have different words for a trait, but all of them measure it here and
compare it with the limits below. "Left" and "right" are the viewer's. `landmarks` are insightface's 106, px, float,
shape (106, 2); `points` are a face's five, px, shape (5, 2): eyes, nose and mouth corners, the viewer's left first.
Aligned faces are RGB, uint8, shape (side, side, 3), from `recognition.align_face`. `tests/benchmarks/README.md` has the
figures that measures and limits were chosen by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in luma (ITU-R BT.601)."""

# --- limits: head direction ---------------------------------------------------------------------------------------

STRAIGHT_DEG, ASIDE_DEG, SURELY_ASIDE_DEG = 4.5, 7.0, 9.0
"""Yaw below which a face surely looks into the camera; from which it counts as looking aside, if it must be one of the
two; from which it surely does. The embedded base's captions have the first and the last limit."""
HALF_TURNED_DEG, RAISED_DEG = 15.0, 20.0
"""Yaw and pitch from which a photo shows a turned or a raised face; half profile is about 30 to 45."""

# --- limits: smile ------------------------------------------------------------------------------------------------

SMILE, SURELY_NEUTRAL, SURELY_SMILING = 0.5, 0.05, 0.8
"""Smile from which a face counts as smiling; up to which it is surely neutral; from which it surely smiles."""

# --- limits: light ------------------------------------------------------------------------------------------------

DIM_LUMA, DIM_HIGHLIGHTS = 85.0, 170.0
"""Brightness and highlights below which, if both are, the light is dim. Dark skin in good light has bright parts of the
picture around it."""
SURELY_DIM_LUMA = 48.0
"""Brightness below which the light is dim in a photo whose highlights are not known."""
BRIGHT_LUMA, HARD_CLIPPED = 190.0, 0.15
"""Brightness above which the light is bright; pure white part of the face above which it is hard."""
SIDE_LIGHT, EVEN_LIGHT = 0.15, 0.036
"""Difference between the face's halves above which the light comes from a side; below which it is even."""

# --- limits: framing ----------------------------------------------------------------------------------------------

CLOSE_UP, HEAD_AND_SHOULDERS, UPPER_BODY = 0.55, 0.3, 0.15
"""Height of the face relative to the picture's from which a picture shows no more than face, shoulders, upper body."""

# --- limits: background and colours -------------------------------------------------------------------------------

DARK_L, WHITE_L = 23.0, 83.0
"""Lightness (CIELAB) below which a background is dark, and above which a colourless one is white."""
COLOURLESS = 10.0
"""Distance from grey in CIELAB up to which a colour counts as grey, black or white."""
BUSY_STD, SAME_WALL = 6.0, 16.0
"""Spread of lightness in an upper corner above which a background is busy; CIELAB distance of the two corners' colours
above which they don't show one wall."""
SAME_COLOUR = 12.0
"""Largest `colour_distances` between things that count as one colour."""
SURE_CLOTHES, SURELY_GREY_L = 0.7, 72.0
"""Share of the clothes' pixels that must have one colour before it is named; lightness (CIELAB) above which grey
clothes may be white ones in shade."""

# --- head direction -----------------------------------------------------------------------------------------------

NOSE_TIP, CHIN, OUTER_EYES, MOUTH_CORNERS = 86, 0, (35, 93), (52, 61)
HEAD_POINTS = (NOSE_TIP, CHIN, *OUTER_EYES, *MOUTH_CORNERS)
HEAD_CM = np.array(
    [[0.0, 1.13, -7.48], [0.0, 9.40, -4.26], [-4.45, -2.66, -3.17], [4.45, -2.66, -3.17],
     [-2.46, 4.34, -4.28], [2.46, 4.34, -4.28]]
)  # fmt: skip
"""HEAD_POINTS of an average head in cm: x to the viewer's right, y down, z away from the viewer.

Source: MediaPipe's canonical face model (Apache-2.0), rounded.
"""
LEVEL_PITCH_DEG = 5.0
"""Pitch of the average head for people who look straight ahead: 7.7 on 80 frontal portraits, 2.9 against another
landmark model on 250 generated faces."""


def head_pose(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Compute yaw, pitch and roll of the head, degrees, in [-180, 180]; 0, 0, 0 looks into the camera.

    yaw > 0: the nose points to the right edge of the picture · pitch > 0: up · roll > 0: clockwise.
    An average head is fitted to six landmarks by least squares without perspective. Pitch is less exact than yaw.

    Source: own; its yaw was compared with MediaPipe's face landmarker.

    >>> straight = np.zeros((106, 2)); straight[list(HEAD_POINTS)] = 40 * HEAD_CM[:, :2]
    >>> [round(a) for a in head_pose(straight)]
    [0, -5, 0]
    """
    head, seen = HEAD_CM - HEAD_CM.mean(0), landmarks[list(HEAD_POINTS)]
    fit = np.linalg.lstsq(head, seen - seen.mean(0), rcond=None)[0].T
    u, _, vt = np.linalg.svd(fit, full_matrices=False)
    turn = u @ vt
    nose = -np.array([turn[0, 2], turn[1, 2], np.cross(turn[0], turn[1])[2]])  # direction of the nose
    yaw = np.degrees(np.arctan2(nose[0], -nose[2]))
    pitch = -np.degrees(np.arcsin(np.clip(nose[1], -1, 1))) - LEVEL_PITCH_DEG
    return float(yaw), float(pitch), float(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))


def side_of(yaw_deg: float, least_deg: float) -> str:
    """Return "left" or "right", where the nose points, if yaw reaches the limit; else "".

    >>> side_of(-7.0, ASIDE_DEG), side_of(6.9, ASIDE_DEG)
    ('left', '')
    """
    return "" if abs(yaw_deg) < least_deg else "right" if yaw_deg > 0 else "left"


# --- smile --------------------------------------------------------------------------------------------------------

NEUTRAL_MOUTH, BROAD_MOUTH = 0.77, 0.93
"""Width of the mouth in eye distances at which `smile` is 0 and 1."""


def smile(points: np.ndarray) -> float:
    """Rate the mouth's width, in eye distances: 0 neutral, 0.5 the limit, 1 a broad smile; in [0, 1].

    A naturally wide mouth is rated as a smile. Turning the head narrows mouth and eyes alike.

    Source: own; compared with labelled portraits and with MediaPipe's blendshapes.

    >>> smile(np.array([[30, 40], [70, 40], [50, 60], [33, 80], [67, 80]]))
    0.5
    """
    eyes, mouth = (np.linalg.norm(points[right] - points[left]) for left, right in ((0, 1), (3, 4)))
    width = mouth / max(float(eyes), 1e-6)
    return round(float(np.clip((width - NEUTRAL_MOUTH) / (BROAD_MOUTH - NEUTRAL_MOUTH), 0, 1)), 3)


# --- light --------------------------------------------------------------------------------------------------------


def skin_oval(aligned: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the luma of an aligned face, float32 (H, W), and the oval that holds skin, bool (H, W)."""
    luma = aligned.astype(np.float32) @ LUMA
    y, x = np.mgrid[: luma.shape[0], : luma.shape[1]] / luma.shape[0]
    return luma, ((x - 0.5) / 0.33) ** 2 + ((y - 0.56) / 0.42) ** 2 < 1


def brightness(aligned: np.ndarray) -> float:
    """Compute the median luma of the face, 0 to 255; skin and light decide it together."""
    luma, oval = skin_oval(aligned)
    return float(np.median(luma[oval]))


def highlights(image: np.ndarray) -> float:
    """Compute the 98th percentile of a picture's luma, 0 to 255; it follows the light, whatever the skin.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    step = max(1, min(image.shape[:2]) // 256)
    return float(np.percentile(image[::step, ::step] @ LUMA, 98))


def clipped(aligned: np.ndarray) -> float:
    """Compute the fraction of the face that is pure white (luma above 250), in [0, 1]; lower is better."""
    luma, oval = skin_oval(aligned)
    return float((luma[oval] > 250).mean())


def light_side(aligned: np.ndarray) -> float:
    """Compare the mean luma of the face's halves relative to their sum, in [-1, 1]; above 0 the right is brighter.

    It is the same at any exposure and on any skin, unlike the difference in grey levels.
    """
    luma, oval = skin_oval(aligned)
    half = luma.shape[1] // 2
    left, right = (float(luma[:, part][oval[:, part]].mean()) for part in (slice(half), slice(half, None)))
    return (right - left) / max(right + left, 1.0)


def is_dim(brightness: float, highlights: float | None) -> bool:
    """Return whether the light on a face is dim; highlights is None for photos of runs that did not measure them."""
    if highlights is None:
        return brightness < SURELY_DIM_LUMA
    return brightness < DIM_LUMA and highlights < DIM_HIGHLIGHTS


# --- framing ------------------------------------------------------------------------------------------------------


def face_height(box: np.ndarray, image: np.ndarray) -> float:
    """Return the height of the face relative to the picture's, from 0 up; about 0.45 for head and shoulders.

    The picture's height decides how much of the body there is below the chin, whatever its width.

    Args:
        box: the face's x0, y0, x1, y1, px.
        image: RGB, uint8, shape (H, W, 3).
    """
    return float((box[3] - box[1]) / image.shape[0])


# --- background ---------------------------------------------------------------------------------------------------


def to_lab(patch: np.ndarray) -> np.ndarray:
    """Convert pixels to CIELAB (L in [0, 100], a and b about -100 to 100), float32, shape (N, 3).

    Args:
        patch: RGB, uint8, any shape (..., 3), not empty.
    """
    import cv2

    lab = cv2.cvtColor(np.ascontiguousarray(patch.reshape(-1, 1, 3)), cv2.COLOR_RGB2LAB).reshape(-1, 3)
    return (lab.astype(np.float32) - [0, 128, 128]) * np.float32([100 / 255, 1, 1])


def linear(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB values in [0, 255] to amounts of light in [0, 1] (IEC 61966-2-1), of any shape."""
    value = np.asarray(rgb, np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


@dataclass(frozen=True)
class Background:
    """What the upper corners of a picture show.

    lab: their median colour, CIELAB · busy: standard deviation of L in a corner around a fitted plane, from 0 up;
    below 4 is a plain wall · apart: CIELAB distance of the two corners' median colours.
    """

    lab: tuple[float, float, float]
    busy: float
    apart: float

    @property
    def colour(self) -> str:
        """Return white, grey or dark; empty if it has another colour."""
        if self.lab[0] < DARK_L:
            return "dark"
        return "" if math.hypot(*self.lab[1:]) > COLOURLESS else "white" if self.lab[0] > WHITE_L else "grey"

    @property
    def is_plain(self) -> bool:
        return self.busy <= BUSY_STD and self.apart <= SAME_WALL


def background(image: np.ndarray) -> Background:
    """Measure the background of a portrait in its upper corners.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    height, width = max(1, image.shape[0] // 3), max(1, image.shape[1] // 10)
    step = max(1, height // 40)  # about 40 rows are enough
    corners = [image[:height:step, :width:step], image[:height:step, -width::step]]
    labs, spreads = [to_lab(corner) for corner in corners], []
    for corner, lab in zip(corners, labs, strict=True):
        y, x = (axis.ravel() for axis in np.mgrid[: corner.shape[0], : corner.shape[1]])
        plane = np.stack([np.ones(len(x)), x, y], 1)
        spreads.append(float((lab[:, 0] - plane @ np.linalg.lstsq(plane, lab[:, 0], rcond=None)[0]).std()))
    left, right = (np.median(lab, 0) for lab in labs)
    middle = tuple(round(float(v), 1) for v in np.median(np.concatenate(labs), 0))
    return Background(middle, float(np.mean(spreads)), float(np.linalg.norm(left - right)))


# --- clothes and colours ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clothes:
    """The clothes below a face: median colour, CIELAB, and the share of their pixels that have it, in [0, 1]."""

    lab: tuple[float, float, float]
    share: float


def clothes(image: np.ndarray, box: np.ndarray) -> Clothes | None:
    """Measure the clothes below the chin, without bare skin; None if none are visible.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        box: the face's x0, y0, x1, y1, px.
    """
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    top, bottom = int(y1 + 0.25 * height), int(min(y1 + 0.8 * height, image.shape[0]))
    left, right = int(max(x0 - 0.2 * width, 0)), int(min(x1 + 0.2 * width, image.shape[1]))
    if bottom - top < 0.15 * height or right <= left:
        return None
    step = max(1, (bottom - top) // 40)
    worn = to_lab(image[top:bottom:step, left:right:step])
    rows, columns = (int(y0 + 0.5 * height), int(y0 + 0.8 * height)), (int(x0 + 0.25 * width), int(x1 - 0.25 * width))
    face = image[max(rows[0], 0) : rows[1] : step, max(columns[0], 0) : columns[1] : step]
    if face.size:
        skin = np.median(to_lab(face), 0)
        bare = (np.hypot(*(worn[:, 1:] - skin[1:]).T) < 8) & (np.abs(worn[:, 0] - skin[0]) < 30)
        if bare.mean() > 0.8:
            return None
        worn = worn[~bare]
    middle = np.median(worn, 0)
    share = (np.linalg.norm((worn - middle) * LIGHT_HALVED, axis=1) <= SAME_COLOUR).mean()
    return Clothes(tuple(round(float(v), 1) for v in middle), float(share))


LIGHT_HALVED = np.array([0.5, 1, 1])
"""Weights of L, a and b in the distance of two colours: light changes the lightness of a thing."""


def colour_distances(labs: np.ndarray) -> np.ndarray:
    """Compute distances of CIELAB colours, lightness at half weight, shape (N, 3) -> (N, N)."""
    weighted = labs * LIGHT_HALVED
    return np.linalg.norm(weighted[:, None] - weighted[None], axis=-1)


def colour_name(lab) -> str:
    """Return a plain word for a CIELAB colour (L in [0, 100], D65).

    >>> [colour_name(lab) for lab in ([95, 0, 0], [55, 2, 1], [15, 1, 2], [40, 10, -40], [45, 60, 40])]
    ['white', 'grey', 'black', 'blue', 'red']
    """
    light, a, b = lab
    chroma, hue = math.hypot(a, b), math.degrees(math.atan2(b, a)) % 360
    if chroma < (2 * COLOURLESS if light < 18 else COLOURLESS):
        return "black" if light < 25 else "dark grey" if light < 45 else "grey" if light <= WHITE_L else "white"
    if chroma < 28 and 40 <= hue < 115 and light >= 45:
        return "beige"
    limits = ((20, "pink"), (52, "red"), (80, "orange"), (112, "yellow"), (180, "green"), (225, "turquoise"))
    name = next((word for limit, word in (*limits, (312, "blue"), (345, "purple")) if hue < limit), "pink")
    if name == "pink" and (light < 60 or chroma > 60):
        name = "red" if hue < 20 else "purple"
    elif name == "red" and light > 68 and chroma < 45:
        name = "pink"
    elif (name == "orange" and light < 55) or (name == "red" and light < 55 and chroma < 30):
        name = "brown"
    return name if name == "brown" else f"dark {name}" if light < 30 else f"light {name}" if light > 78 else name
