import numpy as np
import pytest
from conftest import P1, open_picture
from PIL import Image

from headshotkit.faces import landmarks, recognition


@pytest.fixture(scope="module")
def seen(good_photo):
    face = recognition.detect_faces(good_photo)[0]
    return face, recognition.landmarks_106(good_photo, face)


def turned_head(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Landmarks of the average head, turned by degrees and seen from far away."""
    y, p, r = np.radians([yaw, pitch, roll])
    around_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    around_x = np.array([[1, 0, 0], [0, np.cos(p), np.sin(p)], [0, -np.sin(p), np.cos(p)]])
    around_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    points = np.zeros((106, 2))
    points[list(landmarks.HEAD_POINTS)] = (landmarks.HEAD_CM @ (around_z @ around_y @ around_x).T)[:, :2] * 30 + 400
    return points


@pytest.mark.parametrize("yaw", [-60, -30, -10, 0, 10, 30, 60])
def test_yaw_is_told_to_the_degree_on_the_average_head(yaw):
    assert landmarks.head_pose(turned_head(yaw, 0, 0))[0] == pytest.approx(yaw, abs=0.01)


@pytest.mark.parametrize(("pitch", "roll"), [(-20, 0), (15, 0), (0, 30), (0, -40)])
def test_pitch_and_roll_have_their_signs(pitch, roll):
    found = landmarks.head_pose(turned_head(0, pitch, roll))
    assert found[1] + landmarks.LEVEL_PITCH_DEG == pytest.approx(pitch, abs=0.01)
    assert found[2] == pytest.approx(roll, abs=0.01)


def test_a_mirrored_photo_has_the_opposite_yaw():
    photo = np.asarray(open_picture(P1 / "p1_06.jpg"))
    yaws = []
    for image in (photo, np.ascontiguousarray(photo[:, ::-1])):
        yaws.append(landmarks.head_pose(recognition.landmarks_106(image, recognition.detect_faces(image)[0]))[0])
    assert yaws[0] > 12 and yaws[1] == pytest.approx(-yaws[0], abs=4)


def test_eye_openness_is_height_over_width_however_the_head_leans():
    points = np.zeros((106, 2))
    points[landmarks.LEFT_EYE] = [[x, 0.3 * (x % 2) * 9] for x in range(10)]
    points[landmarks.RIGHT_EYE] = [[20 + x, 0.3 * (x % 2) * 9] for x in range(10)]
    assert landmarks.eye_openness(points) == pytest.approx(0.3)
    leaning = points @ np.array([[np.cos(1), np.sin(1)], [-np.sin(1), np.cos(1)]])
    assert landmarks.eye_openness(leaning) == pytest.approx(0.3)
    points[landmarks.RIGHT_EYE, 1] = 1.35
    assert landmarks.eye_openness(points) == pytest.approx(0.3, abs=0.05) and landmarks.wink(points) > 0.2


def test_a_smile_widens_the_mouth(seen):
    _, points = seen
    left, right = landmarks.MOUTH_CORNERS
    width = np.linalg.norm(points[right] - points[left])
    values = []
    for wider in (-0.2, 0, 0.2):
        shaped = points.copy()
        shaped[left, 0] -= wider * width / 2
        shaped[right, 0] += wider * width / 2
        values.append(landmarks.smile(shaped))
    assert values == sorted(values) and values[0] < 0.5 < values[2] and 0 <= values[0] <= values[2] <= 1


def test_an_open_mouth_shows(seen):
    _, points = seen
    opened = points.copy()
    opened[landmarks.INNER_LIPS[1], 1] += 0.5 * np.linalg.norm(np.subtract(*points[list(landmarks.MOUTH_CORNERS)]))
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


def test_pose_does_not_depend_on_the_size_of_the_photo(good_photo, seen):
    _, points = seen
    small = np.asarray(Image.fromarray(good_photo).resize((384, 384)))
    again = recognition.landmarks_106(small, recognition.detect_faces(small)[0])
    assert np.abs(np.subtract(landmarks.head_pose(points), landmarks.head_pose(again))).max() < 4
