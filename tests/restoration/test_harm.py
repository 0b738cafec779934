"""What restoring may harm, planted into a photo of the sample person, and which fidelity is kept."""

from dataclasses import dataclass

import cv2
import numpy as np
import planting
import pytest
from conftest import P1, P2, open_picture

from headshotkit.config import GenerateConfig, RestoreConfig
from headshotkit.faces import landmarks, measures, recognition
from headshotkit.restoration.harm import harms, known_looks, look_at
from headshotkit.restoration.restore import best_of

NAMES = ("p1_02", "p1_03", "p1_04", "p1_05")


@pytest.fixture(scope="module")
def known():
    pictures = [np.asarray(open_picture(P1 / f"{name}.jpg")) for name in NAMES]
    photos = [(picture, recognition.detect_faces(picture)[0]) for picture in pictures]
    return known_looks(photos, 0.5, GenerateConfig())


def oval(picture: np.ndarray, centre: np.ndarray, radius: float) -> np.ndarray:
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    return (((x - centre[0]) ** 2 + (y - centre[1]) ** 2) < radius**2)[..., None]


def recoloured_eyes(picture: np.ndarray, face: recognition.Face) -> np.ndarray:
    """Irises turned towards blue, as bright as before."""
    marks, made = recognition.landmarks_106(picture, face), picture.copy()
    for eye in (landmarks.LEFT_EYE, landmarks.RIGHT_EYE):
        radius = 0.22 * np.ptp(marks[eye][:, 0])
        blue = np.clip(picture.astype(float) * [0.5, 0.9, 1.2] + [-10, 0, 50], 0, 255).astype(np.uint8)
        made = np.where(oval(picture, marks[eye].mean(0), radius), blue, made)
    return made


def lightened_skin(picture: np.ndarray, face: recognition.Face) -> np.ndarray:
    inside = oval(picture, face.points[2], 0.9 * face.width_px)
    return np.where(inside, np.clip(picture.astype(float) + 25, 0, 255).astype(np.uint8), picture)


def smoothed(picture: np.ndarray, face: recognition.Face) -> np.ndarray:
    """Skin like plastic: no pores, edges kept."""
    return cv2.bilateralFilter(picture, 15, 60, 12)


def nothing(picture: np.ndarray, face: recognition.Face) -> np.ndarray:
    return picture


def sharpened(picture: np.ndarray, face: recognition.Face) -> np.ndarray:
    return cv2.addWeighted(picture, 1.6, cv2.GaussianBlur(picture, (0, 0), 2), -0.6, 0)


def someone_else(picture: np.ndarray, face: recognition.Face) -> np.ndarray:
    """A narrower face with other proportions: whose identity falls."""
    height, width = picture.shape[:2]
    narrow = cv2.resize(picture, (int(0.72 * width), height), interpolation=cv2.INTER_AREA)
    left = (width - narrow.shape[1]) // 2
    return np.pad(narrow, ((0, 0), (left, width - narrow.shape[1] - left), (0, 0)), mode="edge")


def misdrawn(picture: np.ndarray, face: recognition.Face) -> np.ndarray:
    """One eye larger than the other, and a smeared mouth."""
    marks, rng = recognition.landmarks_106(picture, face), np.random.default_rng(1)
    return planting.mouth_smeared(planting.eye_of_another_size(picture, marks, rng), marks, rng)


@pytest.mark.parametrize(
    ("planted", "code"),
    [
        (recoloured_eyes, "eyes"),
        (lightened_skin, "skin"),
        (smoothed, "texture"),
        (someone_else, "identity"),
        (misdrawn, "artefact"),
    ],  # fmt: skip
)
def test_planted_harm_is_found(known, good_photo, planted, code):
    face = recognition.detect_faces(good_photo)[0]
    before = look_at(good_photo, face, known)
    made = planted(good_photo, face)
    after = look_at(made, recognition.detect_faces(made)[0], known)
    assert code in harms(before, after, known, RestoreConfig())


def test_a_face_that_becomes_a_copy_of_a_photo_is_harmed(known):
    pictures = [np.asarray(open_picture(P1 / f"{name}.jpg")) for name in ("p1_09", NAMES[0])]
    other, copied = (look_at(picture, recognition.detect_faces(picture)[0], known) for picture in pictures)
    assert "copy" in harms(other, copied, known, RestoreConfig())
    assert "copy" not in harms(copied, copied, known, RestoreConfig())


def test_an_artefact_that_was_there_before_is_no_harm_of_the_restorer(known, good_photo):
    face = recognition.detect_faces(good_photo)[0]
    spoilt = misdrawn(good_photo, face)
    before = look_at(spoilt, face, known)
    assert before.sound.faults(known.gate)["artefact"]
    assert "artefact" not in harms(before, look_at(spoilt.copy(), face, known), known, RestoreConfig())


@pytest.mark.parametrize("harmless", [nothing, sharpened])
def test_a_harmless_change_is_none(known, good_photo, harmless):
    face = recognition.detect_faces(good_photo)[0]
    before = look_at(good_photo, face, known)
    assert harms(before, look_at(harmless(good_photo, face), face, known), known, RestoreConfig()) == ()


@dataclass
class Restorer:
    """A restorer of one's own: at fidelity 0 the whole change, at 1 none, as all restorers."""

    change: object
    name: str = "a test's restorer"

    def of(self, image, faces):
        made = self.change(image, faces[0]).astype(float)
        return lambda fidelity: (made + (image - made) * fidelity).round().clip(0, 255).astype(np.uint8)


def test_of_harmless_fidelities_the_sharpest_is_kept(known, good_photo):
    made, row = best_of(good_photo, Restorer(sharpened), known, RestoreConfig())
    assert (row["kept"], row["fidelity"]) == ("restored", 0.0)
    assert row["sharpness_before"] < row["tried"][0]["sharpness"] and len(row["tried"]) == 1
    assert not np.array_equal(made, good_photo)


def test_each_fidelity_is_tried_until_one_harms_nothing_the_sharpest_first(known, good_photo):
    def sharp_and_blue(picture, face):
        return sharpened(recoloured_eyes(picture, face), face)

    _, row = best_of(good_photo, Restorer(sharp_and_blue), known, RestoreConfig(fidelities=(0.9, 0.0, 0.5, 0.97)))
    sharpness = [one["sharpness"] for one in row["tried"]]
    assert sharpness == sorted(sharpness, reverse=True) and all(one["harm"] for one in row["tried"][:-1])
    assert row["fidelity"] == row["tried"][-1]["fidelity"] and not row["tried"][-1]["harm"]


def test_a_truer_fidelity_is_kept_where_the_full_restoration_harms(known, good_photo):
    made, row = best_of(good_photo, Restorer(recoloured_eyes), known, RestoreConfig(fidelities=(0.0, 0.95)))
    harm = {one["fidelity"]: one["harm"] for one in row["tried"]}
    assert row["fidelity"] == 0.95 and "eyes" in harm.get(0.0, ["eyes"])


def test_nothing_is_kept_where_every_fidelity_harms_and_the_row_says_why(known, good_photo):
    made, row = best_of(good_photo, Restorer(someone_else), known, RestoreConfig(fidelity=0.0))
    assert row["kept"] == "unrestored" and made is good_photo
    assert "identity" in row["tried"][0]["harm"] and row["tried"][0]["identity"] < row["identity_before"]


def test_fidelity_0_looks_better_and_1_is_truer(known, good_photo):
    """For every restorer of this package; CodeFormer's own network is asked in test_codeformer."""
    face = recognition.detect_faces(good_photo)[0]
    soft = cv2.GaussianBlur(good_photo, (0, 0), 3)
    restored = Restorer(sharpened).of(soft, [face])
    sharp = [
        measures.sharpness(recognition.align_face(restored(w), face.points, measures.FACE_PX)) for w in (0, 0.5, 1)
    ]
    off = [np.abs(restored(w).astype(int) - soft).mean() for w in (0, 0.5, 1)]
    assert sharp == sorted(sharp, reverse=True) and off == sorted(off, reverse=True) and off[2] == 0


def test_of_several_faces_only_the_person_is_restored(known, good_photo):
    """A stranger's face stands beside the person's: every pixel of it stays."""
    stranger = np.asarray(open_picture(P2 / "p2_01.jpg").resize((768, 768)))
    seen = []

    class Noting(Restorer):
        def of(self, image, faces):
            seen.extend(faces)
            return super().of(image, faces)

    best_of(np.hstack([stranger, good_photo]), Noting(nothing), known, RestoreConfig())
    assert len(seen) == 1 and seen[0].points[2, 0] > 768


@pytest.mark.parametrize("kind", ["no face", "12 faces", "at the border", "4000 px"])
def test_every_picture_gets_a_row_and_keeps_its_size(known, good_photo, kind):
    small = cv2.resize(good_photo, (384, 384), interpolation=cv2.INTER_AREA)
    pictures = {
        "no face": np.full((300, 200, 3), 128, np.uint8),
        "12 faces": np.vstack([np.hstack([small] * 4)] * 3),
        "at the border": np.pad(good_photo, ((200, 0), (0, 0), (0, 0)), mode="edge")[:, 250:],
        "4000 px": cv2.resize(good_photo, (4000, 4000), interpolation=cv2.INTER_CUBIC),
    }
    made, row = best_of(pictures[kind], Restorer(sharpened), known, RestoreConfig(fidelity=0.5))
    assert made.shape == pictures[kind].shape and row["kept"] in ("restored", "unrestored")
    assert bool(row.get("why")) == (row["kept"] == "unrestored")
    assert ("tried" in row) == (kind != "no face")
