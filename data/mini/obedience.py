"""Whether pictures show what a prompt asked for, judged by other nets and rules than those that wrote the captions.

Smile and direction: geometry of insightface's 106 landmarks (captions: mediapipe). Man or woman: a ridge on dlib's
embedding, fitted on 1,000 generated faces that the captions are sure about (captions: the generator's probe and ArcFace).
Background: a linear discriminant on the colours that MODNet leaves outside the person, fitted on composited pictures
of held-out faces, whose backdrop is known.
"""

import itertools
from collections import defaultdict

import cv2
import numpy as np
from captions import ridge
from judges import Detector, Dlib, Landmarks106, Matter, Recogniser
from pictures import BACKDROPS, make_variant
from store import HOME
from training import Faces

NOUNS, SMILES = ("man", "woman"), ("smiling", "neutral expression")
LOOKS = ("looking left", "looking right", "looking at the camera")
TURNED_DEGREES = 7
VIEWS = 4  # composited pictures of each held-out face, for the judge of backgrounds
KNOWN_FACES = 1000  # from the store, for dlib's man or woman


def background_features(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Brightness, colour and spread of what is outside the person, (9,); rgb (H, W, 3) and alpha (H, W), uint8."""
    upper = np.zeros(alpha.shape, bool)
    upper[: alpha.shape[0] * 2 // 3] = True
    outside = rgb[upper & (alpha < 25)].astype("float32")
    if len(outside) < 50:
        outside = np.concatenate([rgb[:40, :12].reshape(-1, 3), rgb[:40, -12:].reshape(-1, 3)]).astype("float32")
    mean, grey = outside.mean(0), outside.mean(1)
    colour = np.abs(outside - grey[:, None]).mean()
    warm, green = mean[0] - mean[2], mean[1] - mean[0]
    bright = grey.mean()
    return np.array(
        [bright, np.sqrt(bright), colour, grey.std(), warm, green, abs(warm), max(green, 0), max(bright, 200)]
    )


class Discriminant:
    """Linear discriminant between classes: one mean each, one covariance for all."""

    def __init__(self, features: np.ndarray, classes: np.ndarray):
        self.means = np.stack([features[classes == k].mean(0) for k in range(classes.max() + 1)])
        scatter = features - self.means[classes]
        self.inverse = np.linalg.inv(scatter.T @ scatter / len(features) + 1e-3 * np.eye(features.shape[1]))

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Class of each row."""
        apart = np.atleast_2d(features)[:, None] - self.means
        return np.einsum("nkf,fg,nkg->nk", apart, self.inverse, apart).argmin(1)


def learn_backgrounds(faces: Faces, matte: Matter, px: int) -> tuple[Discriminant, float]:
    """The judge of backgrounds, and how many of the composited pictures it gets right when their face is left out."""
    rng, features, classes = np.random.default_rng(41), [], []
    for row in faces.test_rows[:60]:  # held-out faces have no matte in the store
        rgb = np.array(faces.pixels[row])
        alpha = matte(rgb)
        for _ in range(VIEWS):
            made = make_variant(rgb, alpha, faces.points[row], px, rng, composite=1.0)
            big = cv2.resize(made.pixels, (256, 256), interpolation=cv2.INTER_CUBIC)
            features.append(background_features(big, matte(big)))
            classes.append(BACKDROPS.index(made.backdrop))
    features, classes = np.stack(features), np.array(classes)
    right = 0
    for first in range(0, len(classes), VIEWS):
        rest = np.delete(np.arange(len(classes)), np.arange(first, first + VIEWS))
        right += (
            Discriminant(features[rest], classes[rest])(features[first : first + VIEWS])
            == classes[first : first + VIEWS]
        ).sum()
    return Discriminant(features, classes), right / len(classes)


def learn_men(faces: Faces, detect: Detector, dlib: Dlib) -> tuple[np.ndarray, np.ndarray]:
    """dlib's embeddings (N, 128) of faces whose man or woman is sure, and the label, above 0 for men; kept in HOME."""
    path = HOME / "dlib_men.npz"
    if not path.exists():
        sure = faces.rows[np.abs(faces.captioner.male[faces.rows]) > 0.7]
        rows = np.random.default_rng(43).choice(sure, KNOWN_FACES, replace=False)
        embeddings = [dlib(np.array(faces.pixels[row]), faces.points[row]) for row in rows]
        np.savez(path, embeddings=np.stack(embeddings), male=np.sign(faces.captioner.male[rows]))
    with np.load(path) as file:
        return file["embeddings"], file["male"]


class Judge:
    """What a picture shows, by word: noun, smile, look, background; None where there is no face."""

    def __init__(self, faces: Faces, px: int):
        self.detect, self.recognise, self.dlib = Detector(), Recogniser(), Dlib()
        self.landmarks, self.matte = Landmarks106(), Matter()
        self.known, self.male = learn_men(faces, self.detect, self.dlib)
        self.backgrounds, share = learn_backgrounds(faces, self.matte, px)
        half = len(self.male) // 2
        guess = ridge(self.known[:half], self.male[:half], 1, self.known[half:])
        agree = (np.sign(guess) == self.male[half:]).mean()
        print(
            f"judges: background right on {100 * share:.1f} % of composited pictures of left-out faces, "
            f"man or woman as captioned on {100 * agree:.1f} % of {len(guess)} faces",
            flush=True,
        )

    def __call__(self, rgb: np.ndarray) -> dict | None:
        big = cv2.resize(rgb, (256, 256), interpolation=cv2.INTER_CUBIC)
        face = self.detect(big)
        if face is None:
            return None
        smile, yaw = self.landmarks.smile_and_yaw(self.landmarks(big, face[1]))
        male = ridge(self.known, self.male, 1, self.dlib(big, face[2])[None])[0]
        background = self.backgrounds(background_features(big, self.matte(big)))[0]
        return {
            "noun": NOUNS[0] if male > 0 else NOUNS[1],
            "smile": SMILES[0] if smile > 0 else SMILES[1],
            "look": LOOKS[2] if abs(yaw) < TURNED_DEGREES else LOOKS[1] if yaw > 0 else LOOKS[0],
            "background": BACKDROPS[background],
            "embedding": self.recognise(big, face[2]),
        }


def judge_obedience(draw, judge: Judge, images: int, person: str = "") -> np.ndarray:
    """Draws a prompt grid and prints how often each attribute is as asked; returns the embeddings, (faces, 512).

    Args:
        draw: takes prompts and a seed, returns uint8 pictures, (N, px, px, 3).
        person: "ohwx woman" asks for the person of a LoRA; without it a man or a woman is asked for.
    """
    nouns = (person.split()[-1],) if person else NOUNS
    grid = list(itertools.product(nouns, SMILES, LOOKS, BACKDROPS))
    order = np.random.default_rng(47).permutation(len(grid))  # so that fewer images are no lopsided choice
    asked = [grid[k] for k in itertools.islice(itertools.cycle(order), images)]
    right, total, embeddings, rows, missing = defaultdict(int), defaultdict(int), [], [], 0
    for start in range(0, images, 16):
        part = asked[start : start + 16]
        prompts = [f"photo of {person or 'a ' + noun}, {s}, {look}, {b}" for noun, s, look, b in part]
        pictures = draw(prompts, seed=1000 + start)
        rows.append(np.hstack(list(pictures)))
        for words, picture in zip(part, pictures):
            seen = judge(picture)
            if seen is None:
                missing += 1
                continue
            embeddings.append(seen["embedding"])
            for name, word in zip(("noun", "smile", "look", "background"), words):
                for key in (name, f"{name}: {word}"):
                    right[key] += seen[name] == word
                    total[key] += 1
    (HOME / "samples").mkdir(exist_ok=True)
    full = [row for row in rows if row.shape == rows[0].shape]
    cv2.imwrite(str(HOME / "samples/benchmark.png"), np.vstack(full)[:, :, ::-1])
    print(f"obedience, {images} images: a face found in {100 * (1 - missing / images):.1f} %")
    for key in sorted(total):
        print(f"  {key:46s} {100 * right[key] / total[key]:5.1f} %  of {total[key]}")
    return np.stack(embeddings)
