import numpy as np
import pytest
from conftest import P1, P2, SHARED, open_picture
from PIL import Image

from headshotkit.core.errors import NoKnownFaces
from headshotkit.faces import recognition


def embed(files, recogniser):
    """Embeddings of the main face of each file."""
    model = recognition.load_recogniser(recogniser)
    images = [np.asarray(open_picture(f).convert("RGB")) for f in files]
    return np.stack([model.embed(image, recognition.detect_faces(image)[0]) for image in images])


def test_a_face_is_found_at_any_size(good_photo):
    whole = recognition.detect_faces(good_photo)
    assert len(whole) == 1 and whole[0].width_px > 400
    small = Image.new("RGB", (900, 700), "grey")
    small.paste(Image.fromarray(good_photo).resize((160, 160)), (500, 200))
    found = recognition.detect_faces(np.asarray(small))
    assert len(found) == 1 and 70 < found[0].width_px < 110
    assert 500 < found[0].box[0] < 660 and 200 < found[0].box[1] < 360


def test_nothing_is_found_where_nobody_is():
    landscape = np.asarray(open_picture(P1 / "bad_07_no_face.jpg"))
    assert recognition.detect_faces(landscape) == []
    assert recognition.detect_faces(np.zeros((64, 64, 3), np.uint8)) == []


def test_alignment_puts_the_points_on_the_template(good_photo):
    face = recognition.detect_faces(good_photo)[0]
    aligned = recognition.detect_faces(recognition.align_face(good_photo, face.points, 224))[0]
    assert np.abs(aligned.points / 224 - recognition.ARCFACE_TEMPLATE).max() < 0.06


def test_alignment_undoes_a_turn(good_photo):
    turned = np.asarray(Image.fromarray(good_photo).rotate(25, resample=Image.Resampling.BICUBIC))
    model = recognition.load_recogniser("arcface")
    upright, tilted = (model.embed(x, recognition.detect_faces(x)[0]) for x in (good_photo, turned))
    assert float(upright @ tilted) > 0.85


@pytest.mark.parametrize("recogniser", ["arcface", "dlib"])
def test_recognisers_tell_the_sample_people_apart(recogniser):
    model = recognition.load_recogniser(recogniser)
    one = embed([P1 / f"p1_{n:02d}.jpg" for n in (1, 4, 8, 12)], recogniser)
    two = embed([P2 / f"p2_{n:02d}.jpg" for n in (1, 4, 8, 12)], recogniser)
    own = np.concatenate([recognition.leave_one_out(one, model), recognition.leave_one_out(two, model)])
    strangers = np.concatenate([model.similarity(one, two.mean(0)), model.similarity(two, one.mean(0))])
    assert own.min() > strangers.max() + 0.2


def test_leave_one_out_needs_somebody():
    with pytest.raises(NoKnownFaces, match="0 embeddings"):
        recognition.leave_one_out(np.zeros((0, 512), np.float32), recognition.load_recogniser("arcface"))


@pytest.mark.parametrize(("recogniser", "limit"), [("arcface", 0.42), ("dlib", 0.53)])
def test_recognisers_tell_real_people_apart(recogniser, limit):
    """40 real people, neutral and smiling: every pair of one person above the limit, every other pair below it."""
    folder = SHARED / "london"
    if not folder.is_dir():
        pytest.skip(f"no real faces at {folder}")
    files = sorted(folder.glob("*.jpg"))
    known, model = embed(files, recogniser), recognition.load_recogniser(recogniser)
    table = np.stack([model.similarity(known, one) for one in known])
    people = np.array([f.name[:3] for f in files])
    same = people[:, None] == people[None]
    assert table[same & ~np.eye(len(files), dtype=bool)].min() > limit > table[~same].max()


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ("", f"the package {recognition.OFFLINE_PACK} brings them"),
        ("buffalo_s", "insightface's pack buffalo_s"),
        ("buffalo_l", "insightface's pack buffalo_l; limits were measured with buffalo_s, and may be off"),
    ],
)
def test_the_words_that_runs_hold_among_their_inputs_stay(monkeypatch, chosen, words):
    """With other words a run of an earlier version would judge its photos again and train anew."""
    monkeypatch.setenv("HEADSHOTKIT_FACES", chosen)
    monkeypatch.setattr(recognition, "pack_folder", lambda pack: pack)
    assert recognition.model_folder()[1] == words
