import numpy as np
import pytest
from conftest import P2, open_picture

from headshotkit.config import RenderConfig
from headshotkit.errors import NoKnownFaces
from headshotkit.identity import calibrate, judge_headshot, known_faces
from headshotkit.run import Run


@pytest.fixture(scope="module")
def centre(prepared):
    return known_faces(Run(prepared), "arcface").mean(0)


def test_a_photo_of_the_person_passes_and_a_stranger_does_not(centre, good_photo):
    assert judge_headshot(good_photo, centre, 0.5).accepted
    stranger = judge_headshot(np.asarray(open_picture(P2 / "p2_03.jpg")), centre, 0.28)
    assert not stranger.accepted and stranger.reasons == ("other_person",) and stranger.identity < 0.28


def test_nobody_and_two_people_are_refused(centre, good_photo):
    assert judge_headshot(np.zeros((128, 128, 3), np.uint8), centre, 0.0).reasons == ("no_face",)
    twice = np.concatenate([good_photo, good_photo], 1)
    assert judge_headshot(twice, centre, 0.0).reasons == ("many_faces",)


def spread(cosine, n=12):
    """Unit vectors whose leave-one-out identity is about the given one."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(n, 512))
    noise[:, 0] = 0
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    faces = np.sqrt(1 - cosine**2) * noise
    faces[:, 0] = cosine
    return faces.astype(np.float32)


@pytest.mark.parametrize(("cosine", "said"), [(0.95, "lowered to the ceiling 0.55"), (0.2, "raised to the floor 0.28")])
def test_floor_and_ceiling_are_explained(cosine, said):
    assert said in calibrate(spread(cosine), RenderConfig()).reason


def test_the_mark_between_them_is_the_persons_own():
    mark = calibrate(spread(0.6), RenderConfig(pass_ceiling=0.9))
    assert mark.mark == mark.own_quantile and 0.4 < mark.mark < mark.own_median


def test_nobody_can_not_be_calibrated():
    with pytest.raises(NoKnownFaces):
        calibrate(np.zeros((0, 512), np.float32), RenderConfig())
