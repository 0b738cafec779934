"""Plant artefacts into a portrait, and harmless changes of the same make: what the artefact detector is tried on.

Pictures are RGB uint8, shape (H, W, 3), with the face's 106 landmarks in px, shape (106, 2). Lengths are in eye
distances. Each way takes (picture, marks, rng, strength): at 1 a person sees the artefact at a glance, at 0.2 nobody
does. `WAYS` holds what the detector was trained on, `UNSEEN` what it was not.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

EYES = (slice(33, 43), slice(87, 97))
IRISES, MOUTH, CONTOUR = (38, 88), slice(52, 72), slice(0, 33)


@functools.lru_cache(maxsize=4)
def grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The y and the x of each pixel, float32."""
    return tuple(np.mgrid[:height, :width].astype(np.float32))


def eye_distance(marks: np.ndarray) -> float:
    return max(float(np.linalg.norm(marks[EYES[1]].mean(0) - marks[EYES[0]].mean(0))), 4.0)


def axes(marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of the face: to the viewer's right along the eyes, and downwards."""
    right = marks[EYES[1]].mean(0) - marks[EYES[0]].mean(0)
    right = right / max(float(np.linalg.norm(right)), 1e-6)
    return right, np.array([-right[1], right[0]])


def spot(shape: tuple, centre: np.ndarray, marks: np.ndarray, width: float, height: float) -> np.ndarray:
    """A soft ellipse, 1 inside and 0 from the given radii (px) on, turned as the face is, float32, (H, W)."""
    y, x = grid(*shape[:2])
    right, down = axes(marks)
    across = ((x - centre[0]) * right[0] + (y - centre[1]) * right[1]) / width
    along = ((x - centre[0]) * down[0] + (y - centre[1]) * down[1]) / height
    away = np.sqrt(across**2 + along**2)
    return np.clip((1 - away) / 0.4, 0, 1).astype(np.float32)


def blend(picture: np.ndarray, other: np.ndarray, share: np.ndarray) -> np.ndarray:
    base = picture.astype(np.float32)
    made = base + (np.asarray(other, np.float32) - base) * np.float32(share)[..., None]
    return np.clip(made + 0.5, 0, 255).astype(np.uint8)


def moved(picture: np.ndarray, shift_x: np.ndarray, shift_y: np.ndarray) -> np.ndarray:
    """The picture whose pixels come from elsewhere, by shifts in px, (H, W)."""
    y, x = grid(*picture.shape[:2])
    return cv2.remap(picture, x + np.float32(shift_x), y + np.float32(shift_y), cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_REFLECT)  # fmt: skip


def waves(shape: tuple, rng: np.random.Generator, length: float) -> np.ndarray:
    """A smooth random field of about unit spread whose blotches have that length in px, float32, (H, W)."""
    cells = [max(2, round(side / length) + 1) for side in shape[:2]]
    field = cv2.resize(rng.normal(size=cells).astype(np.float32), shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return field / max(float(field.std()), 1e-3)


def signed(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high) * rng.choice([-1, 1]))


# --- eyes: the left one is eye 0 -------------------------------------------------------------------------------------


def affine_eye(picture, marks, eye: int, matrix: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """One eye and its lids, enlarged, turned or moved; `matrix` maps from there to where its pixels come from."""
    d, centre = eye_distance(marks), marks[EYES[eye]].mean(0)
    where = spot(picture.shape, centre, marks, 0.55 * d, 0.4 * d)
    y, x = grid(*picture.shape[:2])
    away = np.stack([x - centre[0] - shift[0] * where, y - centre[1] - shift[1] * where], -1)
    source = away @ matrix.T - np.stack([x - centre[0], y - centre[1]], -1)
    return moved(picture, source[..., 0] * where, source[..., 1] * where)


def eye_of_another_size(picture, marks, rng, strength=1.0):
    grown = rng.random() < 0.5
    factor = 1 + strength * (rng.uniform(0.5, 0.85) if grown else -rng.uniform(0.35, 0.5))
    return affine_eye(picture, marks, int(rng.integers(2)), np.eye(2) / factor, np.zeros(2))


def eye_half_shut(picture, marks, rng, strength=1.0):
    right, down = axes(marks)
    factor = 1 / (1 - strength * rng.uniform(0.5, 0.75)) - 1
    return affine_eye(picture, marks, int(rng.integers(2)), np.eye(2) + factor * np.outer(down, down), np.zeros(2))


def eye_higher(picture, marks, rng, strength=1.0):
    down = axes(marks)[1] * eye_distance(marks) * signed(rng, 0.16, 0.26) * strength
    return affine_eye(picture, marks, int(rng.integers(2)), np.eye(2), down)


def eye_turned(picture, marks, rng, strength=1.0):
    angle = np.deg2rad(signed(rng, 35, 60)) * strength
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return affine_eye(picture, marks, int(rng.integers(2)), turn, np.zeros(2))


def gaze_apart(picture, marks, rng, strength=1.0):
    """One iris looks elsewhere: it is moved sideways within its eye."""
    eye, d = int(rng.integers(2)), eye_distance(marks)
    where = spot(picture.shape, marks[IRISES[eye]], marks, 0.28 * d, 0.17 * d)
    shift = -axes(marks)[0] * d * signed(rng, 0.15, 0.2) * strength
    return moved(picture, shift[0] * where, shift[1] * where)


def eye_of_another_colour(picture, marks, rng, strength=1.0, eyes=None):
    """One iris gets a light or a dark colour, whichever differs more."""
    d, made = eye_distance(marks), picture
    light = np.array([(150, 190, 235), (165, 205, 160), (225, 225, 215), (220, 170, 90)][rng.integers(4)], np.float32)
    for eye in [int(rng.integers(2))] if eyes is None else eyes:
        iris = marks[IRISES[eye]]
        where = spot(picture.shape, iris, marks, 0.125 * d, 0.125 * d)
        seen = picture[where > 0.5].mean() if (where > 0.5).any() else 128.0
        bright = max(float(np.median(picture)), 60.0) / 150
        colour = light * bright if seen < 120 * bright else np.array((25, 18, 14), np.float32)
        made = blend(made, np.broadcast_to(colour, picture.shape), where * 0.8 * strength)
    return made


def eye_smeared(picture, marks, rng, strength=1.0):
    """One eye runs into its lids: blurred in one direction and wavy."""
    d, centre = eye_distance(marks), marks[EYES[int(rng.integers(2))]].mean(0)
    where = spot(picture.shape, centre, marks, 0.45 * d, 0.32 * d)
    field = strength * 0.07 * d * rng.uniform(0.8, 1.3)
    wavy = moved(picture, field * waves(picture.shape, rng, 0.16 * d), field * waves(picture.shape, rng, 0.16 * d))
    return blend(picture, directional(wavy, rng, strength * rng.uniform(0.12, 0.25) * d), where)


def directional(picture: np.ndarray, rng: np.random.Generator, length_px: float) -> np.ndarray:
    """The picture blurred along a random direction."""
    size = int(length_px) // 2 * 2 + 1
    if size < 3:
        return picture
    kernel, angle = np.zeros((size, size), np.float32), rng.uniform(0, np.pi)
    reach = np.array([np.cos(angle), np.sin(angle)]) * (size // 2)
    ends = [tuple(int(v) for v in np.round(size // 2 + sign * reach)) for sign in (-1, 1)]
    cv2.line(kernel, *ends, 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)


# --- mouth -----------------------------------------------------------------------------------------------------------


def mouth_spot(picture, marks, wide: float = 1.0) -> np.ndarray:
    d = eye_distance(marks)
    return spot(picture.shape, marks[MOUTH].mean(0), marks, 0.75 * d * wide, 0.45 * d * wide)


def mouth_smeared(picture, marks, rng, strength=1.0):
    length = strength * rng.uniform(0.3, 0.55) * eye_distance(marks)
    return blend(picture, directional(picture, rng, length), mouth_spot(picture, marks))


def mouth_melted(picture, marks, rng, strength=1.0):
    d, where = eye_distance(marks), mouth_spot(picture, marks)
    field, length = strength * rng.uniform(0.07, 0.11) * d * where, rng.uniform(0.2, 0.35) * d
    return moved(picture, field * waves(picture.shape, rng, length), field * waves(picture.shape, rng, length))


def mouth_doubled(picture, marks, rng, strength=1.0):
    d, right_down = eye_distance(marks), np.stack(axes(marks))
    shift = np.array([signed(rng, 0.05, 0.25), signed(rng, 0.14, 0.22)]) @ right_down * d
    ghost = moved(picture, np.full(picture.shape[:2], shift[0]), np.full(picture.shape[:2], shift[1]))
    return blend(picture, ghost, mouth_spot(picture, marks, 1.2) * strength * rng.uniform(0.42, 0.58))


def teeth_mixed(picture, marks, rng, strength=1.0):
    """Blotches of teeth, lips and shadow where lips and teeth were."""
    d, lips = eye_distance(marks), marks[MOUTH]
    where = spot(picture.shape, lips.mean(0), marks, max(np.ptp(lips[:, 0]) * 0.55, 0.3 * d),
                 max(np.ptp(lips[:, 1]) * 0.6, 0.2 * d))  # fmt: skip
    field = waves(picture.shape, rng, rng.uniform(0.07, 0.14) * d)
    bright = max(float(np.median(picture[where > 0.5])) if (where > 0.5).any() else 128.0, 40.0)
    light, dark = bright * np.array([1.5, 1.4, 1.3]), bright * np.array([0.55, 0.3, 0.28])
    blotches = np.clip(field * 0.8 + 0.5, 0, 1)[..., None] * (light - dark) + dark
    return blend(picture, blotches, where * strength * rng.uniform(0.45, 0.75))


def mouth_dissolved(picture, marks, rng, strength=1.0):
    blurred = cv2.GaussianBlur(picture, (0, 0), max(strength * rng.uniform(0.16, 0.28) * eye_distance(marks), 0.1))
    return blend(picture, blurred, mouth_spot(picture, marks))


# --- ears and glasses ------------------------------------------------------------------------------------------------


def ear_of(marks: np.ndarray, side: int) -> np.ndarray:
    """About where an ear is: beside the contour of the face, at the height of eyes and nose; side 0 is the left."""
    right, down = axes(marks)
    d, middle = eye_distance(marks), marks[[*IRISES]].mean(0)
    across, below = (marks[CONTOUR] - middle) @ right, (marks[CONTOUR] - middle) @ down
    level = (below > -0.1 * d) & (below < 0.6 * d)
    beside = across[level] if level.any() else across
    edge = beside.min() - 0.08 * d if side == 0 else beside.max() + 0.08 * d
    return middle + right * edge + down * 0.3 * d


def ear_melted(picture, marks, rng, strength=1.0):
    """An ear, or the hair over it, and the contour of the face beside it run."""
    d, right_down = eye_distance(marks), np.stack(axes(marks))
    sides = [int(rng.integers(2))] if rng.random() < 0.6 else [0, 1]
    made = picture
    for side in sides:
        where = spot(picture.shape, ear_of(marks, side), marks, 0.42 * d, 0.62 * d)
        field, length = strength * where * d, rng.uniform(0.2, 0.45) * d
        wavy = rng.uniform(0.1, 0.16)
        drip = np.array([0.0, -rng.uniform(0.05, 0.3)]) @ right_down
        made = moved(made, field * (wavy * waves(picture.shape, rng, length) + drip[0]),
                     field * (wavy * waves(picture.shape, rng, length) + drip[1]))  # fmt: skip
    return made


def ear_ghosted(picture, marks, rng, strength=1.0):
    """An ear is seen twice, or blurred away."""
    d, right_down = eye_distance(marks), np.stack(axes(marks))
    side = int(rng.integers(2))
    where = spot(picture.shape, ear_of(marks, side), marks, 0.42 * d, 0.62 * d)
    if rng.random() < 0.5:
        shift = np.array([signed(rng, 0.14, 0.24), signed(rng, 0.1, 0.3)]) @ right_down * d
        other = moved(picture, np.full(picture.shape[:2], shift[0]), np.full(picture.shape[:2], shift[1]))
        return blend(picture, other, where * strength * 0.5)
    return blend(picture, directional(picture, rng, strength * rng.uniform(0.4, 0.7) * d), where)


def with_glasses(picture, marks, rng, broken: bool, strength=1.0):
    """Glasses drawn on the face: whole ones, or ones with a lens, a side or the bridge missing or of another shape."""
    d, (right, down) = eye_distance(marks), axes(marks)
    thick = max(rng.uniform(0.03, 0.075) * d, 1.0)
    colour = np.array([(25, 22, 22), (70, 45, 30), (120, 110, 100), (150, 115, 60), (60, 60, 80)][rng.integers(5)])
    half, power = np.array([rng.uniform(0.36, 0.45), rng.uniform(0.24, 0.34)]) * d, rng.uniform(2, 5)
    drop, scale = rng.uniform(0.0, 0.08) * d, 8
    layer = np.zeros(picture.shape[:2], np.uint8)
    fault = rng.choice(["gap", "shape", "bridge", "slipped", "faded"]) if broken else ""
    bad = int(rng.integers(2))
    angles = np.linspace(0, 2 * np.pi, 60)
    ends = []
    for eye in (0, 1):
        centre, size = marks[EYES[eye]].mean(0) + down * drop, half.copy()
        circle = np.stack([np.cos(angles), np.sin(angles)], 1)
        shape = np.sign(circle) * np.abs(circle) ** (2 / power)
        if eye == bad and fault == "shape":
            size *= rng.uniform(0.55, 0.75) if rng.random() < 0.5 else rng.uniform(1.25, 1.45)
        if eye == bad and fault == "slipped":
            centre = centre + down * signed(rng, 0.14, 0.25) * d
        if eye == bad and fault in ("shape", "slipped", "gap"):
            shape = shape * (1 + 0.12 * np.sin(angles * rng.integers(2, 5) + rng.uniform(0, 6)))[:, None]
        points = centre + (shape[:, :1] * right * size[0] + shape[:, 1:] * down * size[1])
        if eye == bad and fault == "gap":
            start = rng.integers(60)
            points = np.roll(points, -start, 0)[: int(60 * rng.uniform(0.35, 0.65))]
        closed = not (eye == bad and fault == "gap")
        cv2.polylines(layer, [np.round(points * scale).astype(np.int32)], closed, 255, max(round(thick), 1),
                      cv2.LINE_AA, 3)  # fmt: skip
        ends.append((centre, size))
    if fault != "bridge":
        inner = [ends[0][0] + right * ends[0][1][0], ends[1][0] - right * ends[1][1][0]]
        cv2.line(layer, *[tuple(int(v) for v in np.round(p * scale)) for p in inner], 255, max(round(thick), 1),
                 cv2.LINE_AA, 3)  # fmt: skip
    for eye, sign in ((0, -1), (1, 1)):
        if broken and fault in ("bridge", "gap") and eye == bad:
            continue
        start = ends[eye][0] + sign * right * ends[eye][1][0] - down * 0.1 * d
        stop = ear_of(marks, eye) - down * 0.35 * d
        if (stop - start) @ right * sign > 0:
            cv2.line(layer, *[tuple(int(v) for v in np.round(p * scale)) for p in (start, stop)], 255,
                     max(round(thick), 1), cv2.LINE_AA, 3)  # fmt: skip
    share = cv2.GaussianBlur(layer, (0, 0), 0.6).astype(np.float32) / 255 * rng.uniform(0.75, 1.0)
    if fault == "faded":
        middle, (y, x) = marks[[*IRISES]].mean(0), grid(*picture.shape[:2])
        along = ((x - middle[0]) * right[0] + (y - middle[1]) * right[1]) / d * (1 if bad else -1)
        share = share * np.clip(0.35 - 1.6 * along, 0.0, 1)
    bright = max(float(np.median(picture)), 30) / 140
    return blend(picture, np.broadcast_to(colour * min(bright, 1.2), picture.shape), share)


def glasses_broken(picture, marks, rng, strength=1.0):
    return with_glasses(picture, marks, rng, broken=True)


def glasses_melted(picture, marks, rng, strength=1.0, worn=False):
    """Whole glasses are drawn on, unless they are worn already; then they and the eyes behind run."""
    made, d = picture if worn else with_glasses(picture, marks, rng, broken=False), eye_distance(marks)
    where = spot(picture.shape, marks[[*IRISES]].mean(0), marks, 1.3 * d, 0.65 * d)
    field, length = strength * rng.uniform(0.07, 0.1) * d * where, rng.uniform(0.25, 0.4) * d
    return moved(made, field * waves(picture.shape, rng, length), field * waves(picture.shape, rng, length))


# --- hair ------------------------------------------------------------------------------------------------------------


def strands(picture, marks, rng, ways: list[np.ndarray], width: float, colour: np.ndarray, cover: float):
    """A lock of hair along each way, a curve of three points in px: many thin hairs that meet at its end."""
    d, shift = eye_distance(marks), 4
    layer, share = np.zeros(picture.shape, np.float32), np.zeros(picture.shape[:2], np.uint8)
    t = np.linspace(0, 1, 16)[:, None]
    for start, middle, end in ways:
        across = np.array([start[1] - end[1], end[0] - start[0]]) / max(float(np.linalg.norm(end - start)), 1.0)
        wave, tip = rng.uniform(0, 0.05) * d, rng.uniform(0.1, 0.8)
        phase = rng.uniform(0, 6)
        for _ in range(max(4, int(width / 0.006))):
            off = rng.normal(0, 0.33) * width * d
            bend = [p + off * part * across + rng.normal(0, 0.02 * d, 2) for p, part in
                    ((start, 1.0), (middle, (1 + tip) / 2), (end, tip))]  # fmt: skip
            curve = (1 - t) ** 2 * bend[0] + 2 * t * (1 - t) * bend[1] + t**2 * bend[2]
            curve = curve + across * wave * np.sin(6 * t + phase)
            curve = [np.round(curve[: int(rng.integers(11, 17))] * 2**shift).astype(np.int32)]
            tone = tuple(float(v) for v in np.clip(colour * rng.uniform(0.7, 1.35), 0, 255))
            thick = 1 if rng.random() < 0.7 else max(1, round(0.025 * d))
            cv2.polylines(layer, curve, False, tone, thick, cv2.LINE_AA, shift)
            cv2.polylines(share, curve, False, 255, thick, cv2.LINE_AA, shift)
    soft = cv2.GaussianBlur(share, (0, 0), 0.6).astype(np.float32) / 255
    colours = cv2.GaussianBlur(layer, (0, 0), 0.6) / np.maximum(soft, 0.05)[..., None]
    return blend(picture, np.clip(colours, 0, 255), np.clip(soft * cover, 0, 1))


def hair_tone(picture, marks, rng) -> np.ndarray:
    """The hair's colour over the forehead, or another; at least 25 grey levels from the skin."""
    right, down = axes(marks)
    d, middle = eye_distance(marks), marks[[*IRISES]].mean(0)
    x, y = np.clip((middle - down * d * 1.25).astype(int), 3, np.array(picture.shape[1::-1]) - 4)
    seen = np.median(picture[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3), 0)
    x, y = np.clip(marks[EYES[0]].mean(0) * 0.5 + marks[MOUTH].mean(0) * 0.5, 3,
                   np.array(picture.shape[1::-1]) - 4).astype(int)  # fmt: skip
    skin = np.median(picture[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3), 0)
    tones = [seen, skin * [0.25, 0.22, 0.2], skin * [0.45, 0.35, 0.28], skin * [1.25, 1.2, 1.0]]
    for tone in [tones[0], *rng.permutation(tones[1:])] if rng.random() < 0.6 else rng.permutation(tones[1:]):
        if abs(float(tone.mean() - skin.mean())) > 25:
            return np.clip(tone, 0, 255)
    return skin * 0.3


def hair_across(picture, marks, rng, strength=1.0):
    """One to three locks fall from the hair over eyes, nose, cheeks or mouth."""
    d, (right, down) = eye_distance(marks), axes(marks)
    middle, ways = marks[[*IRISES]].mean(0), []
    for _ in range(rng.integers(1, 4)):
        side = rng.choice([-1, 1])
        start = middle + right * side * rng.uniform(0.0, 1.1) * d - down * rng.uniform(0.9, 1.4) * d
        goal = rng.choice([-1, 1]) * rng.uniform(0.0, 0.75)
        end = middle + right * goal * d + down * rng.uniform(0.5, 1.7) * d
        bow = (start + end) / 2 + right * rng.normal(0, 0.25) * d
        ways.append(np.stack([start, bow, end]))
    return strands(picture, marks, rng, ways, rng.uniform(0.08, 0.2), hair_tone(picture, marks, rng),
                   rng.uniform(0.7, 1.0) * strength)  # fmt: skip


def hair_copied(picture, marks, rng, strength=1.0):
    """A lock cut from the hair over the forehead lies across the face, along a bow."""
    d, (right, down) = eye_distance(marks), axes(marks)
    middle, side = marks[[*IRISES]].mean(0), rng.choice([-1, 1])
    start = middle + right * side * rng.uniform(0.1, 1.0) * d - down * rng.uniform(0.9, 1.3) * d
    end = middle + right * rng.uniform(-0.7, 0.7) * d + down * rng.uniform(0.6, 1.6) * d
    bow = (start + end) / 2 + right * rng.normal(0, 0.3) * d
    t = np.linspace(0, 1, 16)[:, None]
    curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bow + t**2 * end
    band = np.zeros(picture.shape[:2], np.uint8)
    cv2.polylines(band, [np.round(curve).astype(np.int32)], False, 255, max(2, round(rng.uniform(0.1, 0.24) * d)))
    where = cv2.GaussianBlur(band, (0, 0), rng.uniform(0.01, 0.03) * d).astype(np.float32) / 255
    x, y = np.clip((middle - down * 1.2 * d + right * rng.uniform(-0.4, 0.4) * d).astype(int), 0,
                   np.array(picture.shape[1::-1]) - int(0.4 * d) - 2)  # fmt: skip
    patch = picture[y : y + int(0.3 * d) + 2, x : x + int(0.4 * d) + 2]
    tile = np.concatenate([patch, patch[::-1]], 0)
    tile = np.concatenate([tile, tile[:, ::-1]], 1)
    again = [picture.shape[0] // tile.shape[0] + 1, picture.shape[1] // tile.shape[1] + 1, 1]
    hair = np.tile(tile, again)[: picture.shape[0], : picture.shape[1]]
    return blend(picture, hair, where * strength * rng.uniform(0.65, 1.0))


def hair_beside(picture, marks, rng):
    """Harmless: locks on the forehead above the brows, or beside the face."""
    d, (right, down) = eye_distance(marks), axes(marks)
    middle, ways = marks[[*IRISES]].mean(0), []
    for _ in range(rng.integers(1, 4)):
        if rng.random() < 0.5:
            start = middle + right * signed(rng, 0.0, 1.0) * d - down * rng.uniform(1.1, 1.5) * d
            end = middle + right * signed(rng, 0.1, 0.9) * d - down * rng.uniform(0.5, 0.8) * d
        else:
            side = int(rng.integers(2))
            out = (-1 if side == 0 else 1) * right * rng.uniform(0.05, 0.35) * d
            end = ear_of(marks, side) + out + down * rng.uniform(0.2, 1.2) * d
            start = end - down * rng.uniform(1.0, 1.8) * d
        ways.append(np.stack([start, (start + end) / 2 + rng.normal(0, 0.08 * d, 2), end]))
    return strands(picture, marks, rng, ways, rng.uniform(0.06, 0.25), hair_tone(picture, marks, rng),
                   rng.uniform(0.5, 1.0))  # fmt: skip


# --- ways that no training saw: parts of another face ----------------------------------------------------------------


def part_of(other, other_marks, marks, shape, part: slice, matrix: np.ndarray) -> np.ndarray:
    """Another portrait, laid over this one so that a part of its face meets the same part, then changed by matrix."""
    scale = eye_distance(marks) / eye_distance(other_marks)
    (right, down), (its_right, its_down) = axes(marks), axes(other_marks)
    turn = np.stack([right, down], 1) @ matrix @ np.stack([its_right, its_down], 1).T * scale
    shift = marks[part].mean(0) - turn @ other_marks[part].mean(0)
    return cv2.warpAffine(other, np.c_[turn, shift].astype(np.float32), shape[1::-1], flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REFLECT)  # fmt: skip


def toned(part: np.ndarray, picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """A part with the mean colour that the picture has along the rim of `where`."""
    rim = (where > 0.02) & (where < 0.5)
    return np.clip(part + picture[rim].mean(0) - part[rim].mean(0), 0, 255)


def eye_of_another_face(picture, marks, rng, other, other_marks):
    eye, d = int(rng.integers(2)), eye_distance(marks)
    where = spot(picture.shape, marks[EYES[eye]].mean(0), marks, 0.5 * d, 0.36 * d)
    angle, factor = np.deg2rad(signed(rng, 8, 20)), rng.choice([0.65, 1.4])
    turn = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    part = toned(part_of(other, other_marks, marks, picture.shape, EYES[eye], turn), picture, where)
    return blend(picture, part, where)


def mouth_of_another_face(picture, marks, rng, other, other_marks):
    angle, where = np.deg2rad(signed(rng, 14, 28)), mouth_spot(picture, marks)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * rng.choice([0.75, 1.3])
    part = toned(part_of(other, other_marks, marks, picture.shape, MOUTH, turn), picture, where)
    return blend(picture, part, where * rng.uniform(0.55, 0.85))


def ear_swirled(picture, marks, rng, other, other_marks):
    d, made = eye_distance(marks), picture
    for side in (0, 1):
        centre = ear_of(marks, side)
        angle = spot(picture.shape, centre, marks, 0.45 * d, 0.6 * d) * signed(rng, 1.6, 2.6)
        y, x = grid(*picture.shape[:2])
        dx, dy = x - centre[0], y - centre[1]
        made = moved(made, np.cos(angle) * dx - np.sin(angle) * dy - dx, np.sin(angle) * dx + np.cos(angle) * dy - dy)
    return made


def hair_of_another_face(picture, marks, rng, other, other_marks):
    """A lock of the hair over another forehead lies across this face."""
    d, (right, down) = eye_distance(marks), axes(marks)
    middle, side = marks[[*IRISES]].mean(0), rng.choice([-1, 1])
    start = middle + right * side * rng.uniform(0.2, 0.9) * d - down * 1.1 * d
    end = middle + right * rng.uniform(-0.5, 0.5) * d + down * rng.uniform(0.8, 1.6) * d
    band = np.zeros(picture.shape[:2], np.uint8)
    cv2.line(band, *[tuple(int(v) for v in p) for p in (start, end)], 255, max(2, round(rng.uniform(0.14, 0.26) * d)))
    where = cv2.GaussianBlur(band, (0, 0), 0.02 * d).astype(np.float32) / 255
    its_d, (_, its_down) = eye_distance(other_marks), axes(other_marks)
    x, y = (other_marks[[*IRISES]].mean(0) - its_down * 1.25 * its_d).astype(int)
    top, left = max(y - int(0.25 * its_d), 0), max(x - int(0.5 * its_d), 0)
    patch = other[top : max(y, 0) + int(0.2 * its_d), left : x + int(0.5 * its_d)]
    hair = cv2.resize(patch, (max(int(0.9 * d), 4), max(int(0.45 * d), 4)))
    tiles = [picture.shape[0] // hair.shape[0] + 1, picture.shape[1] // hair.shape[1] + 1, 1]
    sheet = np.tile(np.concatenate([hair, hair[::-1]]), tiles)
    return blend(picture, sheet[: picture.shape[0], : picture.shape[1]], where)


WAYS = {
    "eyes": (
        eye_of_another_size, eye_half_shut, eye_higher, eye_turned, gaze_apart, eye_of_another_colour, eye_smeared,
    ),
    "mouth": (mouth_smeared, mouth_melted, mouth_doubled, teeth_mixed, mouth_dissolved),
    "ears_glasses": (ear_melted, ear_ghosted, glasses_broken, glasses_melted),
    "hair": (hair_across, hair_copied),
}  # fmt: skip
"""Kind of artefact -> the ways of training and trial."""
UNSEEN = {
    "eyes": (eye_of_another_face,), "mouth": (mouth_of_another_face,), "ears_glasses": (ear_swirled,),
    "hair": (hair_of_another_face,),
}  # fmt: skip
"""Kind of artefact -> ways of the trial alone; each takes another portrait and its landmarks as well."""


def is_visible(before: np.ndarray, after: np.ndarray, marks: np.ndarray) -> bool:
    """Whether a planted change shows: 3 % of a square eye distance changed by more than 20 grey levels, once blurred.

    An ear that hair covers, or a mouth in the dark, may be changed without a trace.
    """
    d = eye_distance(marks)
    sigma = max(0.03 * d, 0.5)
    change = cv2.absdiff(cv2.GaussianBlur(after, (0, 0), sigma), cv2.GaussianBlur(before, (0, 0), sigma)) > 20
    return float((change[..., 0] | change[..., 1] | change[..., 2]).sum()) > 0.03 * d * d
