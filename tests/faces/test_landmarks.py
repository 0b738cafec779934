import numpy as np
import pytest

from headshotkit.faces import landmarks, recognition
from headshotkit.faces.traits import MOUTH_CORNERS


@pytest.fixture(scope="module")
def seen(good_photo):
    face = recognition.detect_faces(good_photo)[0]
    return face, recognition.landmarks_106(good_photo, face)


def test_eye_openness_is_height_over_width_however_the_head_leans():
    points = np.zeros((106, 2))
    points[landmarks.LEFT_EYE] = [[x, 0.3 * (x % 2) * 9] for x in range(10)]
    points[landmarks.RIGHT_EYE] = [[20 + x, 0.3 * (x % 2) * 9] for x in range(10)]
    assert landmarks.eye_openness(points) == pytest.approx(0.3)
    leaning = points @ np.array([[np.cos(1), np.sin(1)], [-np.sin(1), np.cos(1)]])
    assert landmarks.eye_openness(leaning) == pytest.approx(0.3)
    points[landmarks.RIGHT_EYE, 1] = 1.35
    assert landmarks.eye_openness(points) == pytest.approx(0.3, abs=0.05) and landmarks.wink(points) > 0.2


def test_an_open_mouth_shows(seen):
    _, points = seen
    opened = points.copy()
    opened[landmarks.INNER_LIPS[1], 1] += 0.5 * np.linalg.norm(np.subtract(*points[list(MOUTH_CORNERS)]))
    assert landmarks.mouth_open(points) < 0.1 and landmarks.mouth_open(opened) > 0.45


def test_the_two_landmark_models_agree_on_a_clear_face_and_not_on_a_covered_one(good_photo, seen):
    face, points = seen
    assert landmarks.disagreement(face.points, points) < 0.1
    covered = good_photo.copy()
    x0, y0, x1, y1 = face.box.astype(int)
    covered[y0 : y0 + int(0.7 * (y1 - y0)), x0:x1] = (60, 110, 170)
    hidden = recognition.detect_faces(covered)
    assert hidden and landmarks.disagreement(hidden[0].points, recognition.landmarks_106(covered, hidden[0])) > 0.2


def test_face_inside_counts_what_the_frame_leaves():
    points = recognition.ARCFACE_TEMPLATE * 100
    assert landmarks.face_inside(points, 100, 100) == 1.0
    assert landmarks.face_inside(points - [50, 0], 100, 100) == pytest.approx(0.5, abs=0.02)
