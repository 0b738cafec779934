"""Measure a single photo, and find the reasons against it.

`measure_photo` measures, `reasons_against` compares with the limits. Both are pure; the gate does the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headshotkit.config import CheckConfig
from headshotkit.core.records import Reason
from headshotkit.faces import copies, landmarks, measures, recognition, traits
from headshotkit.photos.files import Opened

LEAST_PX = 1600
"""Photos are measured with a longer side of this length or up to twice it, whatever the file's size."""
CLEAR_DISAGREEMENT = 0.12
"""Largest disagreement of two landmark models about a clear face."""
GOOD = {"sharpness": 10.0, "face_px": 400.0, "steadiness": 12.0, "contrast": 20.0}
"""Values beyond which more is not better: quality counts each measure up to here."""
LIT, BURNT_FROM = 12.0, 190.0
"""Value of `visible` from which a face is well lit, and of `brightness` from which it is overexposed."""


OF_ALIGNED = ("sharpness", "steadiness", "noise", "contrast", "visible", "eye_contrast", "skin_share", "hue_spread")
"""Measures of the aligned face, by their names in `measures`."""


@dataclass(frozen=True)
class Measured:
    """The measurements of a photo; embedding, hash and face_crop are None without a face.

    measures: plain numbers by name, coordinates in px of the full photo · embedding: ArcFace, shape (512,), L2 norm 1
    · hash: bool, shape (64,) · face_crop: the face's luma, from `copies.face_crop`.
    """

    measures: dict = field(default_factory=dict)
    embedding: np.ndarray | None = None
    hash: np.ndarray | None = None
    face_crop: np.ndarray | None = None


def measure_photo(photo: Opened) -> Measured:
    """Measure a photo's largest face, its light, its colours and its surroundings."""
    image, scale = photo.pixels, photo.scale
    found = recognition.detect_faces(image)
    known: dict = {"faces": len(found), "bars": measures.bars(image)}
    known |= {"taken_at": photo.taken_at} if photo.taken_at else {}
    if not found:
        return Measured(_rounded(known | _of_turned(image, 1.0)))
    face, marks = found[0], recognition.landmarks_106(image, found[0])
    aligned = recognition.align_face(image, face.points, measures.FACE_PX)
    to_aligned = recognition.template_transform(face.points, len(aligned))
    embedding, norm = recognition.load_recogniser("arcface").embed_with_norm(image, face)
    yaw, pitch, roll = traits.head_pose(marks)
    background, clothes = traits.background(image), traits.clothes(image, face.box)
    block_px = round(8 * scale)
    known |= {
        "face_box_px": (face.box / scale).round(1).tolist(),
        "face_points_px": (face.points / scale).round(1).tolist(),
        "face_px": round(face.width_px / scale),
        "face_fraction": face.height_px / min(image.shape[:2]),
        "face_height": traits.face_height(face.box, image),
        "other_face": found[1].height_px / face.height_px if len(found) > 1 else 0.0,
        "face_inside": landmarks.face_inside(face.points, image.shape[1], image.shape[0]),
        "recognisable": norm if recognition.norm_is_known() else None,
        "yaw_deg": yaw,
        "pitch_deg": pitch,
        "roll_deg": roll,
        "eye_openness": landmarks.eye_openness(marks),
        "wink": landmarks.wink(marks),
        "smile": traits.smile(face.points),
        "mouth_open": landmarks.mouth_open(marks),
        "disagreement": landmarks.disagreement(face.points, marks),
        **{name: getattr(measures, name)(aligned) for name in OF_ALIGNED},
        "brightness": traits.brightness(aligned),
        "clipped": traits.clipped(aligned),
        "light_side": traits.light_side(aligned),
        "nose_free": measures.nose_free(aligned, to_aligned[:, :2] @ face.points[2] + to_aligned[:, 2]),
        "blockiness": measures.blockiness(image, face.box, block_px) if block_px >= 4 else 1.0,
        "highlights": traits.highlights(image),
        "backdrop_lab": list(background.lab),
        "backdrop_busy": background.busy,
        "clothes_lab": list(clothes.lab) if clothes else None,
    }
    if known["disagreement"] > CLEAR_DISAGREEMENT or known["face_inside"] < 1:
        known |= _of_turned(image, known["disagreement"])
    known["quality"] = quality(known)
    return Measured(_rounded(known), embedding, measures.difference_hash(image), copies.face_crop(image, face))


def _of_turned(image: np.ndarray, disagreement: float) -> dict:
    """Return the number of faces, their roll and inside fraction in a picture on its side or upside down.

    The detector finds such a face too, but misplaces its points. Empty if no rotation makes a face far clearer.
    """
    for quarters, roll_deg in ((2, 180.0), (1, 90.0), (3, -90.0)):
        turned = np.ascontiguousarray(np.rot90(image, quarters))
        found = recognition.detect_faces(turned)
        if not found:
            continue
        marks = recognition.landmarks_106(turned, found[0])
        if landmarks.disagreement(found[0].points, marks) < min(CLEAR_DISAGREEMENT, 0.5 * disagreement):
            inside = landmarks.face_inside(found[0].points, turned.shape[1], turned.shape[0])
            return {"faces": len(found), "roll_deg": roll_deg, "face_inside": inside}
    return {}


def quality(known: dict) -> float:
    """Compute a photo's training quality, in [0, 1]: mean of sharpness, steadiness, contrast, size and light.

    Light is good if it shows the face and overexposes nothing, however bright the skin itself is.
    """
    parts = [min(1.0, known[name] / good) for name, good in GOOD.items()]
    glare = max(0.0, known["brightness"] - BURNT_FROM) / (255 - BURNT_FROM)
    light = min(1.0, known["visible"] / LIT) - glare - 0.5 * min(1.0, known["clipped"])
    return float(np.clip(np.mean([*parts, max(light, 0.0)]), 0, 1))


def _rounded(known: dict) -> dict:
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in known.items()}


@dataclass(frozen=True)
class Rule:
    """A measure and its limit: refused below it ("least") or above it ("most"). `tier`: see `reasons_against`."""

    tier: int
    code: str
    measure: str
    side: str
    limit: str
    text: str

    def broken_by(self, known: dict, config: CheckConfig) -> Reason | None:
        value, limit = known.get(self.measure), getattr(config, self.limit)
        if value is None or (abs(value) <= limit if self.side == "most" else value >= limit):
            return None
        return Reason(self.code, value, limit, self.text.format(abs(value), limit))


RULES = (
    Rule(0, "no_face", "faces", "least", "min_faces", "no face was found in it"),
    Rule(1, "crowd", "faces", "most", "max_faces", "it shows {0} faces, at most {1} are allowed"),
    Rule(1, "many_faces", "other_face", "most", "max_other_face",
         "a second face is {0:.0%} as tall as the first, at most {1:.0%} is allowed"),
    Rule(1, "cropped_face", "face_inside", "least", "min_face_inside",
         "only {0:.0%} of the face is in the picture, at least {1:.0%} is needed"),
    Rule(1, "small_face", "face_px", "least", "min_face_px",
         "the face is {0:.0f} px wide, at least {1:.0f} is needed"),
    Rule(1, "dark", "visible", "least", "min_visible",
         "the face is too dark: {0:.1f} grey levels of its contrast are visible, at least {1:.1f} are needed"),
    Rule(1, "bright", "clipped", "most", "max_clipped",
         "{0:.0%} of the face is pure white, at most {1:.0%} is allowed"),
    Rule(2, "tilted", "roll_deg", "most", "max_roll_deg",
         "the head is tilted by {0:.0f} degrees, at most {1:.0f} can be corrected: rotate the photo"),
    Rule(2, "pale", "contrast", "least", "min_contrast",
         "the face's contrast is {0:.1f} grey levels, at least {1:.1f} is needed: fog, or a dirty lens"),
    Rule(2, "noisy", "noise", "most", "max_noise",
         "the noise on the face is {0:.1f} grey levels, at most {1:.1f} is allowed: more light helps"),
    Rule(2, "blurred", "sharpness", "least", "min_sharpness",
         "the face's sharpness is {0:.1f}, at least {1:.1f} is needed"),
    Rule(2, "compressed", "blockiness", "most", "max_blockiness",
         "strong JPEG blocking: {0:.1f}, at most {1:.1f} is allowed: use the original file"),
    Rule(3, "occluded", "eye_contrast", "least", "min_eye_contrast",
         "the eyes are covered: they have {0:.0%} of the cheeks' brightness, at least {1:.0%} is needed"),
    Rule(3, "occluded", "eye_contrast", "most", "max_eye_contrast",
         "the eyes are covered: they have {0:.0%} of the cheeks' brightness, at most {1:.0%} is allowed"),
    Rule(3, "occluded", "skin_share", "least", "min_skin_share",
         "only {0:.0%} of the face has skin colour, at least {1:.0%} is needed: something covers it"),
    Rule(3, "occluded", "nose_free", "least", "min_nose_free",
         "only {0:.0%} of the nose looks like skin, at least {1:.0%} is needed: a filter or a plaster covers it"),
    Rule(3, "profile", "yaw_deg", "most", "max_yaw_deg",
         "the head is turned {0:.0f} degrees to the side, at most {1:.0f} is allowed"),
    Rule(3, "profile", "pitch_deg", "most", "max_pitch_deg",
         "the head is raised or lowered by {0:.0f} degrees, at most {1:.0f} is allowed"),
    Rule(4, "occluded", "disagreement", "most", "max_disagreement",
         "the face is unclear: two detectors disagree by {0:.2f} eye distances, at most {1:.2f} is allowed"),
    Rule(4, "greyscale", "hue_spread", "least", "min_hue_spread",
         "the face has a single tint: its hues differ by {0:.1f} %, at least {1:.1f} % is needed; a LoRA would "
         "learn the filter's skin colour"),
    Rule(4, "framed", "bars", "most", "max_bars",
         "bars along its edges take {0:.0%} of its height or width, at most {1:.0%} is allowed: cut off the frame"
         " or app around the photo"),
    Rule(4, "moved", "steadiness", "least", "min_steadiness",
         "the sharpness along the camera's movement is {0:.1f}, at least {1:.1f} is needed"),
    Rule(5, "eyes_closed", "eye_openness", "least", "min_eye_openness",
         "the eyes are {0:.2f} open, at least {1:.2f} is needed"),
    Rule(5, "grimace", "mouth_open", "most", "max_mouth_open",
         "the mouth is wide open: its height is {0:.0%} of its width, at most {1:.0%} is allowed"),
    Rule(5, "grimace", "wink", "most", "max_wink",
         "one eye is {0:.2f} wider open than the other, at most {1:.2f} is allowed"),
    Rule(6, "unrecognisable", "recognisable", "least", "min_recognisable",
         "the face is hard to recognise: embedding norm {0:.1f}, at least {1:.1f} is needed"),
)  # fmt: skip
"""All checks of a single photo, in order of interest to a person."""


def reasons_against(known: dict, config: CheckConfig) -> list[Reason]:
    """Return the rules that a photo's measures break, one reason per code.

    A tier is checked only if no earlier one is broken: a dark photo is noisy too, and in a blurred one the eyes'
    landmarks disagree. The person needs the cause, not its symptoms.
    """
    for tier in sorted({rule.tier for rule in RULES}):
        broken = [rule.broken_by(known, config) for rule in RULES if rule.tier == tier]
        reasons = {reason.code: reason for reason in reversed(broken) if reason}
        if reasons:
            return list(reversed(reasons.values()))
    return []
