"""Measures of how good a photo or a headshot is: pure functions, each with its unit, its range and its source.

What it shows is measured in `traits`.

Aligned faces are RGB, uint8, shape (FACE_PX, FACE_PX, 3), turned upright by `recognition.align_face`, so that a limit
is valid for pictures of any size.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from headshotkit.faces import recognition
from headshotkit.faces.traits import LUMA, brightness, skin_oval

FACE_PX = 128
USUAL_CONTRAST = 0.2
"""Standard deviation of a face's luma relative to its mean."""
TINT_DEGREE = 5
"""Degree of the polynomial that models a tint's hue by brightness."""
TWO_TINTS = 0.3
"""Least share of a face's hues that brightness must not explain: duotones stay far below, photos above."""
LIT_PER_LEVEL = 12.0
"""Brightness that counts as one grey level of contrast: a bright face without contrast is pale, not dark."""


def sharpness(aligned: np.ndarray) -> float:
    """Compute the face's mean absolute Laplacian for a contrast of 50 grey levels; higher is sharper, about 5 to 18.

    It is divided by the face's own contrast, so that dim or pale light does not count as blur.

    Source: Pertuz et al. 2013, Analysis of focus measure operators (LAP family).
    """
    luma, oval = skin_oval(aligned)
    edges = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    return float(np.abs(edges)[oval[1:-1, 1:-1]].mean() / max(luma[oval].std(), 8.0) * 50)


def eye_contrast(aligned: np.ndarray) -> float:
    """Return the median luma of the band over both eyes relative to the cheeks; about 0.6 to 0.9, near 0 when covered.

    Only the cheeks' brighter part counts: just below the eyes, where no beard grows, or next to the nose.
    """
    luma, _ = skin_oval(aligned)
    eyes = recognition.ARCFACE_TEMPLATE[:2] * len(luma)
    top, left, right = int(eyes[:, 1].mean()), int(eyes[0, 0]), int(eyes[1, 0])
    band = luma[top - 7 : top + 7, left - 12 : right + 12]
    upper = np.concatenate([_patch(luma, 0.52, 0.6, 0.24, 0.38), _patch(luma, 0.52, 0.6, 0.62, 0.76)])
    lower = _patch(luma, 0.625, 0.75, 0.235, 0.766)
    cheeks = max(float(np.median(part)) for part in (upper, lower))
    return float(np.median(band) / max(cheeks, 1.0))


def spectacles(aligned: np.ndarray) -> float:
    """Compute the strongest horizontal edge across the bridge of the nose, relative to the face's contrast.

    About 0.1 to 0.5 on bare skin, above 1 with glasses that have frames; rimless ones may be missed.
    """
    luma, oval = skin_oval(aligned)
    eyes, size = recognition.ARCFACE_TEMPLATE[:2], len(luma)
    middle, apart = eyes.mean(0), float(eyes[1, 0] - eyes[0, 0])
    top, bottom = (int(size * (middle[1] + part * apart)) for part in (-0.2, 0.3))
    left, right = (int(size * (middle[0] + part * apart)) for part in (-0.12, 0.12))
    rows = luma[top:bottom, left:right].mean(1)
    return float(np.abs(rows[2:] - rows[:-2]).max() / max(luma[oval].std(), 8.0))


def contrast(aligned: np.ndarray) -> float:
    """Compute the standard deviation of the face's luma, grey levels; about 15 to 40, in fog below 5."""
    luma, oval = skin_oval(aligned)
    return float(luma[oval].std())


def visible(aligned: np.ndarray) -> float:
    """Return the face's contrast, grey levels, or a part of its brightness if that is more; both are low in the dark.

    Dark skin in low light keeps its contrast, and a recogniser still works.
    """
    return max(contrast(aligned), brightness(aligned) / LIT_PER_LEVEL)


def steadiness(aligned: np.ndarray) -> float:
    """Compute the face's detail in its weakest direction for a contrast of 50 grey levels; higher is better, 8 to 20.

    A moved camera blurs detail along its direction and keeps the detail across, which `sharpness` still counts.
    """
    luma, oval = skin_oval(aligned)
    inner, middle, energies = oval[2:-2, 2:-2], luma[2:-2, 2:-2], []
    for x, y in ((2, 0), (2, 1), (1, 1), (1, 2), (0, 2), (-1, 2), (-1, 1), (-2, 1)):
        ahead = luma[2 + y : len(luma) - 2 + y, 2 + x : len(luma) - 2 + x]
        behind = luma[2 - y : len(luma) - 2 - y, 2 - x : len(luma) - 2 - x]
        energies.append(np.abs(2 * middle - ahead - behind)[inner].mean() * 4 / (x * x + y * y))
    return float(min(energies) / max(luma[oval].std(), 8.0) * 50)


def noise(aligned: np.ndarray) -> float:
    """Estimate the standard deviation of the noise on the face, grey levels; below 1 is clean, lower is better.

    Source: Immerkaer 1996, Fast noise variance estimation; with the median, not the mean, because edges are not noise.
    """
    return noise_in(aligned, skin_oval(aligned)[1])


def noise_in(image: np.ndarray, where: np.ndarray) -> float:
    """Estimate the standard deviation of the noise in a part of a picture; as `noise`.

    Args:
        image: RGB, uint8, shape (H, W, 3). where: bool, shape (H, W).
    """
    luma = image.astype(np.float32) @ LUMA
    rows = luma[:-2] - 2 * luma[1:-1] + luma[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    return float(np.median(np.abs(both)[where[1:-1, 1:-1]]) / (6 * 0.6745))


def blockiness(image: np.ndarray, box: np.ndarray, period: int = 8) -> float:
    """Compute the ratio of brightness steps across a grid of blocks to all others; 1 is none, lower is better.

    Args:
        image: RGB, uint8, shape (H, W, 3).
        box: the face's x0, y0, x1, y1, px.
        period: side of a block, px: 8, or 4 for a JPEG that was decoded at half its size.
    """
    x0, y0, x1, y1 = (max(0, int(v)) for v in box)
    luma = image[y0:y1, x0:x1].astype(np.float32) @ LUMA
    if min(luma.shape) < 4 * period:
        return 1.0
    ratios = []
    for axis in (0, 1):
        steps = np.abs(np.diff(luma, axis=axis)).mean(1 - axis)
        on_grid = max(float(np.median(steps[phase::period])) for phase in range(period))
        ratios.append(on_grid / max(float(np.median(steps)), 0.05))
    return min(ratios)


def skin_share(aligned: np.ndarray) -> float:
    """Compute the fraction of the face's oval that has the colour of its skin, in [0, 1]; a cover lowers it.

    The skin's colour is that of the cheeks and the forehead, or of the nose bridge, which a mask leaves free: the
    smaller fraction counts. Highlights and deep shadow have no colour of their own and count as skin.
    """
    import cv2

    side = len(aligned)
    lab = cv2.cvtColor(cv2.GaussianBlur(aligned, (0, 0), side / 64), cv2.COLOR_RGB2LAB).astype(np.float32)
    cheeks_and_forehead = (
        _patch(lab, 0.55, 0.72, 0.22, 0.38), _patch(lab, 0.55, 0.72, 0.62, 0.78), _patch(lab, 0.2, 0.3, 0.35, 0.65)
    )  # fmt: skip
    references = np.concatenate(cheeks_and_forehead), _patch(lab, 0.42, 0.52, 0.44, 0.56)
    return min(_share_like(lab, reference, skin_oval(aligned)[1]) for reference in references)


def _patch(plane: np.ndarray, top: float, bottom: float, left: float, right: float) -> np.ndarray:
    """Return the pixels of a rectangle given in fractions of a square's side, shape (N,) or (N, 3)."""
    side = len(plane)
    return np.concatenate(plane[int(top * side) : int(bottom * side), int(left * side) : int(right * side)])


def _share_like(lab: np.ndarray, reference: np.ndarray, oval: np.ndarray) -> float:
    """Return the fraction of the oval whose colour is near the reference's median; lab is OpenCV's, L in [0, 255]."""
    coloured = reference[(reference[:, 0] > 25) & (reference[:, 0] < 225)]
    skin = np.median(coloured if len(coloured) > 0.2 * len(reference) else reference, 0)
    other = np.hypot(lab[..., 1] - skin[1], lab[..., 2] - skin[2]) >= 14
    other &= (lab[..., 0] > 25) & (lab[..., 0] < 225)
    return float(1 - other[oval].mean())


def nose_free(aligned: np.ndarray, nose: np.ndarray) -> float:
    """Compute the share of skin on the nose's tip, in [0, 1]; a drawn nose or a plaster lowers it.

    Dark pixels count twice, because nostrils are small and no nose is black. Other colours count once, because noses
    can be red.

    Args:
        nose: position of the tip in the aligned face, px, shape (2,).
    """
    import cv2

    lab = cv2.cvtColor(cv2.GaussianBlur(aligned, (0, 0), 1), cv2.COLOR_RGB2LAB).astype(np.float32)
    around = (
        _patch(lab, 0.5, 0.62, 0.22, 0.38), _patch(lab, 0.5, 0.62, 0.62, 0.78), _patch(lab, 0.42, 0.52, 0.44, 0.56)
    )  # fmt: skip
    skin = np.median(np.concatenate(around), 0)
    x, y = np.round(nose).astype(int)
    tip = lab[max(y - 6, 0) : max(y + 8, 0), max(x - 7, 0) : max(x + 8, 0)]
    if skin[0] < 25 or not tip.size:
        return 1.0
    other = (np.hypot(tip[..., 1] - skin[1], tip[..., 2] - skin[2]) >= 18) & (tip[..., 0] < 235)
    return float(max(0.0, 1 - max(2 * (tip[..., 0] < 0.45 * skin[0]).mean(), other.mean())))


def hue_spread(aligned: np.ndarray) -> float | None:
    """Compute the hue variation of a face among equally bright pixels, in percent; about 2.4 to 7.

    Lips, cheeks and eyes of one brightness differ in hue. In a picture of one tint, such as grey or sepia, or of two,
    brightness decides the colour. Between two strong tints a JPEG's noise is large, but small relative to what
    brightness explains. Haze makes colours dull as well, so the value is raised in proportion on a face with little
    contrast. None if the face is nearly all black or white.
    """
    import cv2

    pixels = cv2.GaussianBlur(aligned, (0, 0), len(aligned) / 128).astype(np.float32)
    luma = pixels @ LUMA
    lit = skin_oval(aligned)[1] & (luma > 20) & (luma < 235)
    if lit.sum() < 0.05 * lit.size:
        return None
    light = luma[lit]
    hues = np.stack([pixels[..., c][lit] - light for c in (0, 2)], 1) / (light[:, None] + 8)
    curve = np.vander((light - light.mean()) / max(float(light.std()), 1.0), TINT_DEGREE + 1)
    left = hues - curve @ np.linalg.lstsq(curve, hues, rcond=None)[0]
    contrast = max(float(light.std()) / (float(light.mean()) + 8), 0.02)
    unexplained = np.sqrt((left**2).sum() / max(float(((hues - hues.mean(0)) ** 2).sum()), 1e-9))
    spread = 100 * np.hypot(*left.T).mean() * max(1.0, USUAL_CONTRAST / contrast)
    return float(spread * min(1.0, unexplained / TWO_TINTS))


def bars(image: np.ndarray) -> float:
    """Compute the share of a picture's height or width that bars along its edges take, in [0, 1]; 0 is none.

    A bar ends in one straight edge over the whole width or height, unlike a wall behind a head. Bars of equal width on
    two opposite sides always count: frames, letterboxes, blurred copies. A bar on one side counts if it takes a twelfth
    and is mostly of one colour, such as an app's. Plain bars on two sides count by the narrower one.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    shares = [0.0]
    for turned in (image, image.transpose(1, 0, 2)):
        size = len(turned)
        (first, plain_first), (last, plain_last) = _bars_px(turned), _bars_px(turned[::-1])
        shares += [min(one, other) / size for one in first for other in last if abs(one - other) <= 0.02 * size + 2]
        shares += [px / size for px in (*plain_first, *plain_last) if px >= size / 12]
        shares.append(min(max(plain_first, default=0), max(plain_last, default=0)) / size)
    return float(max(shares))


def _bars_px(image: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the heights of all bars at the top of a picture, px, and of those that are mostly of one colour."""
    thin = image[:, :: max(1, image.shape[1] // 300)].astype(np.int16)
    change = np.abs(thin[2:] - thin[:-2])
    edge = (np.maximum.reduce([change[..., c] for c in range(3)]) > 8).mean(1)  # over a last axis of 3, max is slow
    found, plain = [], []
    for row in np.flatnonzero(edge[: int(0.45 * len(thin))] >= 0.8):
        around = np.concatenate([edge[max(0, row - 24) : max(0, row - 16)], edge[row + 17 : row + 25]])
        if len(around) > 2 and np.median(around) < 0.5:  # nearer, a JPEG's colours blend
            found.append(int(row) + 1)
            colours = thin[: row + 1].reshape(-1, 3)
            values, counts = np.unique(colours // 12 @ [10000, 100, 1], return_counts=True)
            most = np.median(colours[colours // 12 @ [10000, 100, 1] == values[counts.argmax()]], 0)
            if (np.abs(colours - most).max(1) <= 12).mean() >= 0.6:
                plain.append(int(row) + 1)
    return found, plain


def difference_hash(image: np.ndarray) -> np.ndarray:
    """Compute a hash of 64 bits that similar pictures share: the brighter of neighbouring cells of a 9 x 8 grid.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    Returns: bool, shape (64,).
    """
    cells = np.asarray(Image.fromarray(image).convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return (np.diff(cells, axis=1) > 0).ravel()
