import numpy as np
import pytest
from conftest import open_picture
from PIL import Image

from headshotkit import dataset
from headshotkit.config import DatasetConfig, GateConfig
from headshotkit.dataset import build_dataset, face_crop
from headshotkit.errors import StageMissing, TooFewPhotos
from headshotkit.gate import judge_photos
from headshotkit.run import Run


def test_the_dataset_holds_square_pictures_with_captions(prepared_run):
    made = build_dataset(prepared_run, DatasetConfig.for_base("mini", class_word="man"))
    folder = prepared_run.path("dataset")
    assert len({p.photo for p in made.photos}) == 18
    for photo in made.photos:
        assert open_picture(folder / photo.file).size == (128, 128)
        assert photo.caption.startswith("photo of ohwx man")
        assert (folder / photo.file).with_suffix(".txt").read_text().strip() == photo.caption
        x0, y0, x1, y1 = photo.face_box_px
        assert 30 < x1 - x0 < 140 and 30 < y1 - y0 < 140


def test_no_metadata_of_a_photo_reaches_the_dataset(tmp_path, good_photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    Image.fromarray(good_photo).save(folder / "a.jpg", exif=exif, comment=b"secret place")
    run = Run(tmp_path / "run")
    judge_photos(folder, run, GateConfig(min_photos=1))
    made = build_dataset(run, DatasetConfig.for_base("mini"))
    picture = open_picture(run.path("dataset") / made.photos[0].file)
    assert not picture.getexif() and not picture.info
    assert b"Secret" not in (run.path("dataset") / made.photos[0].file).read_bytes()


def test_a_photo_on_its_side_is_turned_upright(tmp_path, good_photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(good_photo)).save(folder / "a.png", exif=exif)
    run = Run(tmp_path / "run")
    judge_photos(folder, run, GateConfig(min_photos=1))
    made = build_dataset(run, DatasetConfig.for_base("mini"))
    picture = np.asarray(open_picture(run.path("dataset") / made.photos[0].file), np.int16)
    upright = Image.fromarray(good_photo)
    left, top, side = face_crop(768, 768, np.array(_box(run)), 0.55)
    expected = np.asarray(upright.crop((left, top, left + side, top + side)).resize((128, 128), 1), np.int16)
    assert np.abs(picture - expected).mean() < 2


def _box(run):
    return run.manifest("photos")["verdicts"][0]["measures"]["face_box_px"]


@pytest.mark.parametrize("box", [[0, 0, 10, 12], [380, 280, 400, 300], [50, 20, 350, 290], [-20, -10, 60, 90]])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 1.0])
def test_a_crop_lies_inside_the_photo(box, fraction):
    left, top, side = face_crop(400, 300, np.array(box), fraction)
    assert left >= 0 and top >= 0 and left + side <= 400 and top + side <= 300 and side > 0


def test_too_few_photos_stop_here(tmp_path, good_photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(good_photo).save(folder / "a.jpg")
    run = Run(tmp_path / "run")
    judge_photos(folder, run)
    with pytest.raises(TooFewPhotos, match="kept 1 of 1 photos, training needs 10"):
        build_dataset(run, DatasetConfig.for_base("mini"))


def test_without_a_photo_check_there_is_no_dataset(tmp_path):
    with pytest.raises(StageMissing, match="headshotkit check"):
        build_dataset(Run(tmp_path), DatasetConfig.for_base("mini"))


def test_mirrored_pictures_swap_left_and_right(prepared_run):
    made = build_dataset(prepared_run, DatasetConfig.for_base("mini", class_word="man", mirror=True))
    folder = prepared_run.path("dataset")
    pairs = [p for p in made.photos if p.file.endswith("_mirrored.png")]
    assert len(pairs) * 2 == len(made.photos)
    swap = {"looking left": "looking right", "looking right": "looking left"}
    by_file = {p.file: p for p in made.photos}
    for mirrored in pairs:
        plain = by_file[mirrored.file.replace("_mirrored", "")]
        a, b = (np.asarray(open_picture(folder / p.file)) for p in (plain, mirrored))
        assert (a[:, ::-1] == b).all()
        words = [swap.get(w, w) for w in plain.caption.split(", ")]
        assert mirrored.caption.split(", ") == words
        assert mirrored.face_box_px[0] == pytest.approx(128 - plain.face_box_px[2], abs=0.2)


def test_class_images_come_from_the_base_and_are_made_once(prepared_run):
    config = DatasetConfig.for_base("mini", class_word="man", class_images=2)
    made = build_dataset(prepared_run, config)
    first = [(prepared_run.path("dataset") / f).read_bytes() for f in made.class_images]
    assert len(first) == 2 and first[0] != first[1]


@pytest.mark.parametrize(
    ("colour", "words"),
    [((250, 250, 250), "plain white background"), ((20, 22, 25), "dark background"),
     ((130, 130, 132), "grey studio background"), ((40, 160, 60), "")],
)  # fmt: skip
def test_the_backdrop_is_named_only_where_it_is_plain(colour, words):
    assert dataset.backdrop(np.full((90, 90, 3), colour, np.uint8)) == words
