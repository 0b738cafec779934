"""Measured attributes -> words -> captions, in the grammar that headshotkit's prompts use.

    {photo|headshot|portrait|professional headshot} of a {young|middle-aged|older}? {man|woman|person}, {expression},
    {look}, {glasses}, {hair}, {background}, {light}

An attribute that is not surely measured has no word. "looking left" is towards the left edge of the picture, as the
viewer sees it. Age comes from a ridge on the face embedding, fitted to faces labelled by eye (age_labels.csv, rows of
the store of generate.py's seed: 0 a child or perhaps one, 1 young, 2 middle-aged, 3 older); it also finds children
whom the generator's own probe missed, and they are never trained on.
"""

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from generate import load_probe
from measure import POINTS, column
from pictures import Variant
from store import Store

CHILD_ABOVE = 0.20  # ridge output; by 10-fold cross-validation 5 % of the children and 85 % of the adults lie below
AGE_GROUPS = ((1.30, "young"), (1.50, None), (1.95, "middle-aged"), (2.02, None), (9.0, "older"))  # upper ends


@dataclass(frozen=True)
class Attributes:
    """Words for what was measured on one face; None where it is unsure."""

    noun: str = "person"
    age: str | None = None
    expression: str | None = None
    look: str | None = None
    glasses: str | None = None
    hair: str | None = None
    background: str | None = None
    light: str | None = None

    def on(self, made: Variant) -> "Attributes":
        """The same for a training picture made of the face."""
        swap = {"looking left": "looking right", "looking right": "looking left"}
        look = swap.get(self.look, self.look) if made.mirrored else self.look
        background = made.backdrop or (self.background if not made.light else None)
        return replace(self, look=look, background=background, light=made.light or self.light)


def ridge(known: np.ndarray, target: np.ndarray, strength: float, wanted: np.ndarray) -> np.ndarray:
    """Linear regression with a penalty, fitted on rows `known` and applied to rows `wanted`."""
    centre = known.mean(0)
    x = known - centre
    weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (target - target.mean()))
    return (wanted - centre) @ weights + target.mean()


def first_below(value: float, steps) -> str | None:
    return next(word for limit, word in steps if value < limit)


def hair_patch(rgb: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Median colour of spots over and beside the forehead, RGB 0-255, (3,); NaN where they lie outside."""
    eyes = (points[0] + points[1]) / 2
    up = eyes - (points[3] + points[4]) / 2
    across, spots = np.array([-up[1], up[0]]), []
    for u in (1.35, 1.5, 1.65, 1.8):
        for v in (-0.7, -0.45, -0.2, 0.0, 0.2, 0.45, 0.7):
            x, y = (eyes + up * u + across * v).astype(int)
            if 3 <= x < rgb.shape[1] - 3 and 3 <= y < rgb.shape[0] - 3:
                spots.append(rgb[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0))
    return np.median(spots, 0) if len(spots) > 7 else np.full(3, np.nan)


def hair_word(seen: np.ndarray, guessed: np.ndarray, skin: np.ndarray, age: float, male: float) -> str | None:
    """Hair colour, where the patch on the picture and the guess from the style vector agree; colours RGB 0-255."""
    bright, warm, likely = seen.mean(), seen[0] - seen[2], guessed.mean()
    if not np.isfinite(bright):
        return None
    if bright < 60 and likely < 88:
        return "dark hair"
    if np.abs(seen - skin).mean() < 14:
        return None  # bald, or the patch lies on the forehead
    if bright > 105 and warm > 28 and likely > (112 if male < 0 else 130):
        return "blond hair"
    if bright > 105 and abs(warm) < 24 and likely > 108 and age > 1.85:
        return "grey hair"
    if 62 < bright < 100 and warm > 26 and 72 < likely < 105 and age < 1.8:
        return "brown hair"
    return None


def background_word(left: np.ndarray, right: np.ndarray, spread: float) -> str | None:
    """Word for the generator's own background where it is as plain as the composited ones; RGB 0-255."""
    both = np.stack([left, right])
    if both.max() < 42 and spread < 12:
        return "dark background"
    if both.min() > 226 and spread < 9:
        return "plain white background"
    return None


def eye_darkness(rgb: np.ndarray, points: np.ndarray, skin: np.ndarray) -> float:
    """Brightness of the brighter eye over that of the skin: below 0.4 are mostly sunglasses."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    patches = [grey[max(int(y) - 5, 0) : int(y) + 6, max(int(x) - 7, 0) : int(x) + 8].mean() for x, y in points[:2]]
    return max(patches) / max(skin.mean(), 1)


class Captioner:
    """Attributes of every measured face of the store, `usable` rows, and captions."""

    def __init__(self, store: Store):
        measures, embedding = np.array(store.array("measures")), np.nan_to_num(np.array(store.array("embedding")))
        rows, probe = len(measures), load_probe()
        traits = (np.array(store.array("w")[:rows]) - probe["mu"]) @ probe["M"] + probe["b"]
        raw = dict(zip(probe["keys"], traits.T))
        plain = 5 * (traits - traits.mean(0)) / traits.std(0)
        self.measures, self.pixels = measures, store.array("pixels")
        features = np.column_stack([embedding * np.sqrt(512), plain])
        with open(Path(__file__).with_name("age_labels.csv")) as file:
            labels = np.array([(int(r["row"]), int(r["age_group"])) for r in csv.DictReader(file)])
        labels = labels[labels[:, 0] < rows]
        known = features[labels[:, 0]]
        self.age = ridge(known, labels[:, 1].astype(float), 1000, features)
        self.child = ridge(known, (labels[:, 1] == 0).astype(float), 1000, features)
        marked = np.isin(np.arange(rows), labels[labels[:, 1] == 0, 0])
        sex = (raw["male"] + ridge(embedding, raw["male"], 5, embedding)) / 2
        self.male, self.glasses = sex, raw["glasses"]
        points = np.stack([column(measures, name) for name in POINTS], 1).reshape(-1, 5, 2)
        skin, found = self.colour("skin"), np.isfinite(column(measures, "score"))
        self.hair = np.full((rows, 3), np.nan)
        for row in np.flatnonzero(found):
            self.hair[row] = hair_patch(np.array(self.pixels[row]), points[row])
        seen = np.isfinite(self.hair[:, 0])
        styles = np.array(store.array("w")[:rows])
        styles = (styles - styles.mean(0)) / styles.std(0)
        self.hair_guess = np.stack([ridge(styles[seen], self.hair[seen, k], 1000, styles) for k in range(3)], 1)
        eyes = np.array(
            [eye_darkness(np.array(self.pixels[i]), points[i], skin[i]) if found[i] else 0 for i in range(rows)]
        )
        self.usable = (
            found & (self.child < CHILD_ABOVE) & ~marked & (eyes > 0.38) & (np.abs(column(measures, "roll")) < 20)
        )

    def colour(self, what: str) -> np.ndarray:
        return np.stack([column(self.measures, f"{what}_{c}") for c in "rgb"], 1)

    def attributes(self, row: int) -> Attributes:
        at = {
            name: column(self.measures, name)[row]
            for name in (
                "yaw",
                "mouthSmileLeft",
                "mouthSmileRight",
                "jawOpen",
                "bridge",
                "back_sd",
                "light_lr",
                "skin_sd",
            )
        }
        smile, male = (at["mouthSmileLeft"] + at["mouthSmileRight"]) / 2, self.male[row]
        expression = (
            "smiling" if smile > 0.6 else "neutral expression" if smile < 0.14 and at["jawOpen"] < 0.2 else None
        )
        turned = abs(at["yaw"])
        look = (
            ("looking right" if at["yaw"] > 0 else "looking left")
            if turned > 9
            else "looking at the camera"
            if turned < 4.5
            else None
        )
        light = None
        if abs(at["light_lr"]) > 42 and turned < 10:
            light = "side light"
        elif abs(at["light_lr"]) < 10 and at["skin_sd"] < 32:
            light = "soft light"
        skin, left, right = (self.colour(what)[row] for what in ("skin", "left", "right"))
        return Attributes(
            noun="man" if male > 0.5 else "woman" if male < -0.5 else "person",
            age=first_below(self.age[row], AGE_GROUPS),
            expression=expression,
            look=look,
            glasses="glasses" if at["bridge"] > 8 and self.glasses[row] > 1.9 else None,
            hair=hair_word(self.hair[row], self.hair_guess[row], skin, self.age[row], male),
            background=background_word(left, right, at["back_sd"]),
            light=light,
        )


KINDS = (("photo", 0.5), ("headshot", 0.2), ("portrait", 0.15), ("professional headshot", 0.15))
KEPT = {"expression": 0.8, "look": 0.8, "glasses": 0.9, "hair": 0.6, "background": 0.88, "light": 0.75}


def caption(words: Attributes, rng: np.random.Generator, name: str | None = None) -> str:
    """One random caption: every piece is left out now and then, one time in ten all but the noun.

    Args:
        name: word for this very face, said before the noun in place of the age.
    """
    kind = rng.choice([k for k, _ in KINDS], p=[p for _, p in KINDS])
    noun = "person" if rng.random() < 0.08 else words.noun
    age = f"{words.age} " if words.age and rng.random() < 0.5 else ""
    head = f"{kind} of {name} {noun}" if name else f"{kind} of {'an' if age.startswith('o') else 'a'} {age}{noun}"
    if rng.random() < 0.1:
        return head
    pieces = [getattr(words, name) for name, share in KEPT.items() if rng.random() < share]
    return ", ".join([head, *(piece for piece in pieces if piece)])
