"""A planted leak is found: other people who become the person, forget their prompts, or repeat a photo."""

import itertools

import numpy as np
import pytest
from conftest import P1, P2, open_picture

from headshotkit.faces import recognition
from headshotkit.scoring import leak
from headshotkit.scoring.leak import Drawn, compare_group, expected_nearest, nearest_photos, sentences_of

PROMPT = "photo of a man, neutral expression, looking at the camera"


@pytest.fixture(scope="module")
def people():
    """Five pictures each of the sample person and of another one, as the measures see them."""
    files = {"person": sorted(P1.glob("p1_*.jpg"))[:5], "other": sorted(P2.glob("p2_*.jpg"))[:5]}
    return {name: [leak.look_at(open_picture(file), PROMPT) for file in some] for name, some in files.items()}


@pytest.fixture(scope="module")
def centre():
    photos = [np.asarray(open_picture(file)) for file in sorted(P1.glob("p1_*.jpg"))[5:9]]
    model = recognition.load_recogniser("arcface")
    return np.mean([model.embed(photo, recognition.detect_faces(photo)[0]) for photo in photos], 0)


def test_a_lora_that_turns_others_into_the_person_is_found(people, centre):
    """The pictures are real ones: without the LoRA of another person, with it of the person."""
    group = compare_group(people["other"], people["person"], centre, threshold=0.5)
    assert group.rise.low > 0.3 and (group.as_person_off, group.as_person_on) == (0, 1)
    assert group.alike_off > 0.4 and group.faces_on == 5
    assert any("more similar to the person (+" in words for words in sentences_of({"class": group}, {}))


def test_a_lora_that_leaves_others_as_they_are_is_not_accused(people, centre):
    for some in (people["other"], people["person"]):
        group = compare_group(some, some[1:] + some[:1], centre, threshold=0.5)
        assert group.rise.low <= 0 <= group.rise.high and abs(group.rise.mean) < 1e-4
        assert abs(group.alike_change.mean) < 1e-3 and len(sentences_of({"others": group}, {})) == 1


def seeded(rng, number, centre=None, share=0.0):
    """Unit vectors: random ones, or ones that lean to a centre by a share."""
    rows = rng.normal(size=(number, 512))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows if centre is None else (1 - share) * rows + share * centre
    return [row / np.linalg.norm(row) for row in rows]


def test_a_weak_leak_is_found_in_its_size_and_prompts_that_are_forgotten_too():
    """Faces are vectors here: strangers, and the same strangers who lean to the person a little."""
    rng = np.random.default_rng(1)
    centre, *strangers = seeded(rng, 13)
    leaning = [0.8 * one + 0.2 * centre for one in strangers]
    leaning = [one / np.linalg.norm(one) for one in leaning]
    off = [Drawn(one, None, 1.0) for one in strangers]
    group = compare_group(off, [Drawn(one, None, 0.5) for one in leaning], centre, 0.55)
    expected = np.mean([b @ centre - a @ centre for a, b in zip(strangers, leaning, strict=True)])
    assert group.rise.mean == pytest.approx(expected, abs=1e-3) and 0 < group.rise.low < group.rise.high
    assert (group.adherence_off, group.adherence_on, group.adherence_change.mean) == (1, 0.5, -0.5)
    assert group.alike_change.low > 0 and group.as_person_on == 0
    pairs = [float(a @ b) for a, b in itertools.combinations(leaning, 2)]
    assert group.alike_on == pytest.approx(np.mean(pairs), abs=1e-3)
    assert len(sentences_of({"class": group}, {})) == 3


def test_pictures_without_a_face_are_counted_and_not_paired():
    rng = np.random.default_rng(2)
    one, two, centre = seeded(rng, 3)
    off, on = [Drawn(one), Drawn(), Drawn(two)], [Drawn(one), Drawn(one), Drawn()]
    group = compare_group(off, on, centre, 0.5)
    assert (group.pictures, group.faces_off, group.faces_on, group.rise.count) == (3, 2, 2, 1)
    assert (group.rise.low, group.rise.high) == (-1, 1) and group.alike_off is None
    assert compare_group([Drawn()], [Drawn()], centre, 0.5).similarity_on is None
    blank = leak.look_at(open_picture(P1 / "bad_07_no_face.jpg"), PROMPT)
    assert blank.embedding is None and blank.adherence == 0


def test_of_more_photos_one_is_nearer_by_chance_and_that_is_taken_off():
    """By brute force over all choices; then a LoRA that knows all photos alike has no excess, one by heart has."""
    values = [0.1, 0.7, 0.4, 0.9, 0.3]
    for count in (1, 2, 5):
        choices = [max(some) for some in itertools.combinations(values, count)]
        assert expected_nearest(values, count) == pytest.approx(np.mean(choices))
    rng, means = np.random.default_rng(3), []
    for _ in range(40):  # faces of six numbers, which differ much by chance
        rows = rng.normal(size=(41, 6))
        some = [Drawn(row / np.linalg.norm(row)) for row in rows]
        means.append(nearest_photos(some[:24], some[24:38], some[38:], leak.by_recogniser).excess.mean)
    assert abs(np.mean(means)) < 0.05
    photos = [Drawn(one) for one in seeded(rng, 17)]
    copied = [Drawn(0.8 * photos[n % 14].embedding + 0.2 * v) for n, v in enumerate(seeded(rng, 24))]
    by_heart = nearest_photos(copied, photos[:14], photos[14:], leak.by_recogniser)
    assert by_heart.excess.low > 0 and by_heart.trained > by_heart.held_out
    assert nearest_photos(copied, photos[:14], [], leak.by_recogniser) is None
    assert nearest_photos([Drawn()], photos[:14], photos[14:], leak.by_recogniser) is None


def test_a_repeated_photo_is_found_by_its_structure(people):
    """The pictures are three of the photos themselves, in other colours: no recogniser is needed to see it."""
    photos = [np.asarray(open_picture(file)) for file in sorted(P1.glob("p1_*.jpg"))[:5]]
    repeated = [np.clip(photo * 0.8 + 20, 0, 255).astype(np.uint8) for photo in photos[:3]]
    seen = [leak.own_photo(photo, recognition.detect_faces(photo)[0]) for photo in repeated]
    memory = nearest_photos(seen, people["person"][:3], people["person"][3:], leak.by_structure)
    assert memory.excess.low > 0.05 and memory.trained > memory.held_out
