import inspect
import re
from dataclasses import replace

import numpy as np
import planting
import pytest
from conftest import P2, open_picture
from PIL import Image, ImageFilter, ImageOps

from headshotkit.config import GenerateConfig
from headshotkit.core.errors import NoKnownFaces
from headshotkit.core.run import Run
from headshotkit.faces import copies, recognition
from headshotkit.generation.session import Session
from headshotkit.scoring.identity import calibrate, judge_headshot, known_person
from headshotkit.scoring.reasons import WORDS
from headshotkit.scoring.soundness import Soundness

CONFIG = GenerateConfig.for_base("mini")


@pytest.fixture(scope="module")
def person(prepared):
    return known_person(Run(prepared), CONFIG)


@pytest.fixture(scope="module")
def own(prepared):
    """A photo of the person that the gate does not know, so no copy: (the photo, the person as the others show him)."""
    run = Run(prepared)
    whole, first = known_person(run, CONFIG), sorted(run.path("photos").glob("kept/*.jpg"))[0]
    photo = np.asarray(open_picture(first))
    mine = copies.face_crop(photo, recognition.detect_faces(photo)[0])
    others = [crop for crop in whole.face_crops if np.nanmean(np.abs(crop - mine)) > 3]
    assert len(others) == len(whole.face_crops) - 1
    return photo, replace(whole, face_crops=tuple(others))


def reasons(image, person, **limits):
    return judge_headshot(image, person, CONFIG.replace(**limits)).reasons


def test_a_photo_of_the_person_passes_and_a_stranger_does_not(own):
    photo, person = own
    judged = judge_headshot(photo, person, CONFIG)
    assert judged.accepted and judged.reasons == () and 0.8 < judged.likeness < 1.2 and 0.5 < judged.quality <= 1
    stranger = judge_headshot(np.asarray(open_picture(P2 / "p2_03.jpg")), person, CONFIG)
    assert stranger.reasons == ("other_person",) and stranger.identity < 0.28 and stranger.copy < CONFIG.max_copy


def test_nobody_and_two_people_are_refused(person, good_photo):
    assert reasons(np.zeros((128, 128, 3), np.uint8), person) == ("no_face",)
    assert reasons(np.concatenate([good_photo, good_photo], 1), person) == ("many_faces",)


def test_a_copy_of_a_photo_is_refused_however_it_was_changed(person, good_photo):
    """Cut to the face, shrunk, mirrored, recoloured, turned: `copy_of_photo` each time."""
    photo = Image.fromarray(good_photo)
    x0, y0, x1, y1 = recognition.detect_faces(good_photo)[0].box
    reach = 0.95 * (x1 - x0)
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    cut = photo.crop([int(m + side * reach) for side in (-1, 1) for m in middle]).resize((128, 128), Image.LANCZOS)
    tinted = np.clip(np.asarray(cut, np.float32)[:, :, [2, 0, 1]] * [1.2, 0.9, 0.7], 0, 255).astype(np.uint8)
    for changed in (photo, cut, ImageOps.mirror(cut), ImageOps.grayscale(cut).convert("RGB"), tinted, cut.rotate(5)):
        judged = judge_headshot(np.asarray(changed), person, CONFIG)
        assert "copy_of_photo" in judged.reasons and judged.copy > CONFIG.max_copy


def test_a_small_a_soft_and_a_half_seen_face_are_refused(own):
    photo, person = own
    small = np.full((2400, 2400, 3), 128, np.uint8)
    small[800:1568, 800:1568] = photo
    assert "small_face" in reasons(small, person, min_face=0.3)
    soft = np.asarray(Image.fromarray(photo).resize((128, 128)).filter(ImageFilter.GaussianBlur(2.5)))
    assert "soft_face" in reasons(soft, person)
    assert "eyes_closed" in reasons(photo, person, min_eye_openness=0.6)
    assert "unclear_face" in reasons(photo, person, max_disagreement=0.001)


def test_a_planted_artefact_is_refused_and_the_switch_turns_that_off(own):
    photo, person = own
    face = recognition.detect_faces(photo)[0]
    marks, rng = recognition.landmarks_106(photo, face), np.random.default_rng(1)
    assert "artefact" not in reasons(photo, person)
    smeared = planting.mouth_smeared(planting.eye_of_another_size(photo, marks, rng), marks, rng)
    judged = judge_headshot(smeared, person, CONFIG)
    assert "artefact" in judged.reasons and not judged.accepted
    assert max(judged.artefacts, key=judged.artefacts.get) in ("eyes", "mouth")
    off = judge_headshot(smeared, person, CONFIG.replace(max_artefact=1.0))
    assert "artefact" not in off.reasons and off.artefacts == {}


def test_every_reason_has_words_in_the_gallery():
    code = inspect.getsource(judge_headshot) + inspect.getsource(Session._unless_near_duplicate)
    said = set(re.findall(r'"([a-z]+_[a-z_]+)"', code)) - {"face_px"}
    assert said | set(Soundness(0.3, 0.1).faults(CONFIG)) == set(WORDS)


def spread(cosine, n=12):
    """Unit vectors whose leave-one-out identity is about the given one."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(n, 512))
    noise[:, 0] = 0
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    faces = np.sqrt(1 - cosine**2) * noise
    faces[:, 0] = cosine
    return faces.astype(np.float32)


@pytest.mark.parametrize(("cosine", "said"), [(0.95, "capped at 0.55"), (0.2, "raised to 0.28")])
def test_floor_and_ceiling_are_explained(cosine, said):
    assert said in calibrate(spread(cosine), GenerateConfig()).reason


def test_the_mark_between_them_is_the_persons_own():
    threshold = calibrate(spread(0.6), GenerateConfig(pass_ceiling=0.9))
    assert threshold.value == threshold.own_quantile and 0.4 < threshold.value < threshold.own_median


def test_nobody_can_not_be_calibrated():
    with pytest.raises(NoKnownFaces):
        calibrate(np.zeros((0, 512), np.float32), GenerateConfig())


def test_what_lies_outside_of_the_picture_is_not_compared(good_photo):
    """Two strangers' faces at a picture's edge have the edge in common, and a copy turned in its frame has another."""
    face = recognition.detect_faces(good_photo)[0]
    x0 = int(face.box[0] + 0.2 * face.width_px)
    cut = good_photo[:, x0:]
    crop, whole = copies.face_crop(cut, recognition.detect_faces(cut)[0]), copies.face_crop(good_photo, face)
    assert np.isnan(crop).any() and copies.copy_likeness(crop, [whole]) > 0.97
    assert copies.copy_likeness(np.full_like(crop, np.nan), [whole]) == -1 == copies.copy_likeness(crop, [])
