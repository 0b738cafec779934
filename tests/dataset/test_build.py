import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import P1, SHARED, open_picture
from PIL import Image

from headshotkit.config import CheckConfig, PrepareConfig, RunSettings, TrainConfig
from headshotkit.core.errors import BadConfig, StageMissing, TooFewPhotos
from headshotkit.core.records import Dataset, TrainingPhoto
from headshotkit.core.run import Run, write_json
from headshotkit.dataset import augment, captions
from headshotkit.dataset.build import prepare_dataset
from headshotkit.dataset.class_images import (
    build_class_images,
    class_cache_dir,
    class_recipe,
    missing_class_images,
    weights_version,
)
from headshotkit.dataset.crops import face_window
from headshotkit.faces import recognition
from headshotkit.families import load_family
from headshotkit.photos.check import check_photos
from headshotkit.pipeline import do_stage
from headshotkit.training import train


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, so that it finds no class images of others."""
    monkeypatch.setenv("HEADSHOTKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_dataset_holds_square_pictures_with_captions(small_run):
    made = prepare_dataset(small_run, PrepareConfig.for_base("mini", class_word="man"))
    folder = small_run.path("dataset")
    assert {p.photo for p in made.photos} == {p.name for p in (small_run.path("photos") / "kept").iterdir()}
    for photo in made.photos:
        assert open_picture(folder / photo.file).size == (256, 256)
        assert photo.caption.startswith("photo of ohwx man")
        assert (folder / photo.file).with_suffix(".txt").read_text().strip() == photo.caption
        x0, y0, x1, y1 = photo.face_box_px
        assert 60 < x1 - x0 < 280 and 60 < y1 - y0 < 280


def test_no_metadata_of_a_photo_reaches_the_dataset(tmp_path, good_photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    Image.fromarray(good_photo).save(folder / "a.jpg", exif=exif, comment=b"secret place")
    run = Run(tmp_path / "run")
    check_photos(folder, run, CheckConfig(min_photos=1))
    made = prepare_dataset(run, PrepareConfig.for_base("mini"))
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
    check_photos(folder, run, CheckConfig(min_photos=1))
    made = prepare_dataset(run, PrepareConfig.for_base("mini"))
    picture = np.asarray(open_picture(run.path("dataset") / made.photos[0].file), np.int16)
    upright = Image.fromarray(good_photo)
    left, top, side, _ = face_window(768, 768, np.array(_box(run)), 0.55, (256, 256))
    expected = np.asarray(upright.crop((left, top, left + side, top + side)).resize((256, 256), 1), np.int16)
    assert np.abs(picture - expected).mean() < 2


def _box(run):
    return run.manifest("photos")["verdicts"][0]["measures"]["face_box_px"]


def test_too_few_photos_stop_here(tmp_path, good_photo):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(good_photo).save(folder / "a.jpg")
    run = Run(tmp_path / "run")
    check_photos(folder, run)
    with pytest.raises(TooFewPhotos, match="1 of 1 .* 10"):
        prepare_dataset(run, PrepareConfig.for_base("mini"))


def test_without_a_photo_check_there_is_no_dataset(tmp_path):
    with pytest.raises(StageMissing, match="headshotkit check"):
        prepare_dataset(Run(tmp_path), PrepareConfig.for_base("mini"))


def test_photos_that_differ_in_their_suffix_alone_keep_their_pictures(tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(P1 / "p1_09.jpg", tmp_path / "photos" / "me.jpg")
    open_picture(P1 / "p1_16.jpg").save(tmp_path / "photos" / "me.png")
    run = Run(tmp_path / "run")
    check_photos(tmp_path / "photos", run, CheckConfig(min_photos=1))
    made = prepare_dataset(run, PrepareConfig.for_base("mini", face_fractions=(0.6,)))
    assert [p.file for p in made.photos] == ["me_jpg_0.png", "me_png_0.png"]


def test_old_manifests_still_load():
    """A manifest from before captions could be edited and pictures could be other than square."""
    old = {"file": "a.png", "photo": "a.jpg", "caption": "photo of ohwx man", "original_size_px": [9, 9],
           "crop_top_left_px": [0, 0], "face_box_px": [1.0, 2.0, 3.0, 4.0]}  # fmt: skip
    photo = TrainingPhoto.from_dict(old)
    assert photo.size_px == () and photo.written == ""


# --- shapes and augmentation --------------------------------------------------------------------------------------


def test_pictures_of_another_aspect_have_sdxls_size_and_tell_it(small_run):
    made = prepare_dataset(small_run, PrepareConfig(base="sdxl", size_px=256, aspect="4:5", face_fractions=(0.6,)))
    for photo in made.photos:
        assert photo.size_px == (224, 288) == open_picture(small_run.path("dataset") / photo.file).size
        x0, y0, x1, y1 = photo.face_box_px
        assert -6 < x0 < x1 < 230 and -6 < y0 < y1 < 294
    assert "pictures of 224 x 288 px" in small_run.manifest("dataset")["outcome"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"base": "mini", "aspect": "4:5"}, "aspect is 4:5, base is 'mini'"),
     ({"aspect": "2:3", "class_images": 4}, "class_images is 4"), ({"aspect": "auto"}, "aspect is 'auto'"),
     ({"augment": "wild"}, "augment is 'wild'"), ({"base": "mini", "captioner": "blip"}, "captioner is 'blip'"),
     ({"class_prompt": "comic of a man"}, "class_prompt is 'comic of a man', class_images is 0")],
)  # fmt: skip
def test_what_a_base_can_not_do_is_refused(options, words):
    with pytest.raises(BadConfig, match=words):
        PrepareConfig(**options)


def iou(a, b):
    """Overlap of two boxes, in [0, 1]."""
    inner = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner)


@pytest.fixture(scope="module")
def augmented(three_photos, tmp_path_factory):
    """A run of the sample person with all augmentation, at a size at which the detector is sure."""
    run = Run(shutil.copytree(three_photos, tmp_path_factory.mktemp("augmented") / "run"))
    prepare_dataset(
        run, PrepareConfig(base="sdxl", size_px=384, class_word="man", augment="full", face_fractions=(0.5,))
    )
    return run


def test_face_boxes_stay_true_after_augmentation(augmented):
    """Measured with the detector on each picture: it finds the face where the manifest says it is."""
    made = Dataset.from_dict(augmented.manifest("dataset")["dataset"])
    turned = [p for p in made.photos if p.file.endswith("_turned.png")]
    mirrored = [p for p in made.photos if p.file.endswith("_mirrored.png")]
    plain = {p.file for p in made.photos} - {p.file for p in turned + mirrored}
    assert len(plain) == len(mirrored) == 3 and turned
    overlaps = []
    for photo in turned + mirrored:
        picture = np.asarray(open_picture(augmented.path("dataset") / photo.file))
        overlaps.append(iou(recognition.detect_faces(picture)[0].box, np.array(photo.face_box_px)))
    assert min(overlaps) > 0.8 and np.mean(overlaps) > 0.9


def test_turned_pictures_show_the_person_with_true_facts(augmented):
    """The corner told to the U-Net lies in the photo, and the turned picture is none of the others."""
    made = Dataset.from_dict(augmented.manifest("dataset")["dataset"])
    by_file = {p.file: p for p in made.photos}
    for photo in made.photos:
        assert photo.original_size_px == (768, 768) and min(photo.crop_top_left_px) >= 0
    for name in [n for n in by_file if n.endswith("_turned.png")]:
        plain = by_file[name.replace("_turned", "")]
        a, b = (np.asarray(open_picture(augmented.path("dataset") / f), np.int16) for f in (plain.file, name))
        assert 2 < np.abs(a - b).mean() < 60 and by_file[name].caption == plain.caption
        assert (b.max(2)[[0, 0, -1, -1], [0, -1, 0, -1]] > 0).any(), "the corners are black"


def test_mirrored_pictures_swap_left_and_right(augmented):
    made = Dataset.from_dict(augmented.manifest("dataset")["dataset"])
    folder = augmented.path("dataset")
    swap = {"looking left": "looking right", "looking right": "looking left"}
    by_file = {p.file: p for p in made.photos}
    pairs = [p for p in made.photos if p.file.endswith("_mirrored.png")]
    assert any("looking right" in p.caption or "looking left" in p.caption for p in pairs)
    for mirrored in pairs:
        plain = by_file[mirrored.file.replace("_mirrored", "")]
        a, b = (np.asarray(open_picture(folder / p.file)) for p in (plain, mirrored))
        assert (a[:, ::-1] == b).all()
        assert mirrored.caption.split(", ") == [swap.get(w, w) for w in plain.caption.split(", ")]
        assert mirrored.face_box_px[0] == pytest.approx(384 - plain.face_box_px[2], abs=0.2)
        assert mirrored.crop_top_left_px[0] == plain.crop_top_left_px[0]


def test_safe_never_mirrors_and_the_same_seed_makes_the_same(small_run, tmp_path):
    copy = Run(shutil.copytree(small_run.folder, tmp_path / "copy"))
    files = []
    for run, seed in ((small_run, 0), (copy, 0), (small_run, 1)):
        made = prepare_dataset(run, PrepareConfig.for_base("mini", augment="safe", seed=seed))
        assert not [p for p in made.photos if "mirrored" in p.file]
        files.append({p.file: (run.path("dataset") / p.file).read_bytes() for p in made.photos})
    assert files[0] == files[1] != files[2]
    assert any("_turned" in name for name in files[0])


def test_turns_stay_small_and_inside_the_photo():
    box, photo = np.array([300.0, 250, 460, 450]), (900, 800)
    for number in range(200):
        angle, zoom = augment.draw_turn(0, f"photo_{number}")
        assert abs(angle) <= augment.MAX_ANGLE and augment.MIN_ZOOM <= zoom <= augment.MAX_ZOOM
        turn = augment.turned_window((180, 130, 400, 400), box, photo, angle, zoom)
        assert turn.angle == angle and turn.width == pytest.approx(400 / zoom)
    assert augment.turned_window((0, 0, 100, 100), np.array([0, 0, 100, 100.0]), (100, 100), 4.0, 1.1) is None


@pytest.mark.skipif(not (SHARED / "london").is_dir(), reason="the photos of real people are not here")
def test_augmentation_is_off_for_a_reason_that_can_be_measured():
    """Of real faces, the mirrored one is less alike to the photo than the one turned by 4 degrees."""
    arcface, turned, mirrored = recognition.load_recogniser("arcface"), [], []
    for path in sorted((SHARED / "london").glob("*_neutral.jpg"))[:4]:
        image = np.asarray(open_picture(path).convert("RGB"))
        face = recognition.detect_faces(image)[0]
        known = arcface.embed(image, face)
        turn = augment.turned_window((0, 0, *image.shape[1::-1]), face.box, image.shape[1::-1], 4.0, 1.0)
        for made, found in ((augment.cut_turned(image, turn, image.shape[1::-1]), turned),
                            (Image.fromarray(image[:, ::-1]), mirrored)):  # fmt: skip
            pixels = np.asarray(made)
            found.append(arcface.similarity(arcface.embed(pixels, recognition.detect_faces(pixels)[0]), known)[0])
    assert np.mean(mirrored) < np.mean(turned)


# --- edited captions ----------------------------------------------------------------------------------------------


def test_an_edited_caption_stays_and_is_recorded(small_run):
    config = PrepareConfig.for_base("mini", class_word="man")
    made = prepare_dataset(small_run, config)
    photo = made.photos[1]
    text = (small_run.path("dataset") / photo.file).with_suffix(".txt")
    text.write_text("photo of ohwx man, in a red coat\n")
    again = prepare_dataset(small_run, config).photos[1]
    assert again.caption == "photo of ohwx man, in a red coat" and again.written == photo.caption
    noted = small_run.manifest("dataset")["dataset"]["photos"][1]
    assert noted["caption"] == again.caption and noted["written"] == photo.caption
    other = prepare_dataset(small_run, PrepareConfig.for_base("mini", class_word="man", token="fodils", seed=4))
    kept = {p.file: p for p in other.photos}[photo.file]
    assert kept.caption == "photo of fodils man, in a red coat" and kept.written.startswith("photo of fodils man")
    assert text.read_text() == "photo of fodils man, in a red coat\n"
    assert sum(bool(p.written) for p in other.photos) == 1
    assert "1 edited" in small_run.manifest("dataset")["outcome"]
    text.write_text(kept.written)
    assert not any(p.written for p in prepare_dataset(small_run, PrepareConfig(**_config(small_run))).photos)


def test_an_edited_caption_is_not_given_to_another_photo_of_the_same_name(tmp_path):
    photos, run = tmp_path / "photos", Run(tmp_path / "run")
    photos.mkdir()
    for name in ("p1_01.jpg", "p1_02.jpg", "p1_05.jpg"):
        shutil.copy(P1 / name, photos)
    for replaced in (False, True):
        if replaced:
            shutil.copy(P1 / "p1_05.jpg", photos / "p1_01.jpg")
            (photos / "p1_05.jpg").unlink()
        check_photos(photos, run, CheckConfig(min_photos=1))
        made = prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man"))
        if not replaced:
            for name in ("p1_01.jpg", "p1_02.jpg"):
                file = next(photo.file for photo in made.photos if photo.photo == name)
                captions.edit_caption(run, file, f"photo of ohwx man, a ship in {name}")
    kept = {p.photo: p.caption for p in made.photos if p.written}
    assert kept == {"p1_02.jpg": "photo of ohwx man, a ship in p1_02.jpg"}


def _config(run):
    config = run.manifest("dataset")["config"]
    return config | {"face_fractions": tuple(config["face_fractions"])}


def test_edits_outlive_an_interrupted_preparation(small_run):
    made = prepare_dataset(small_run, PrepareConfig.for_base("mini", class_word="man"))
    captions.edit_caption(small_run, made.photos[0].file, "photo of ohwx man, on a ship")
    config = PrepareConfig.for_base("mini", class_word="man", seed=9)
    prepare_dataset(small_run, config)
    manifest = small_run.peek("dataset")
    for name in ("dataset", "upscaled", "outcome"):
        del manifest[name]
    write_json(small_run.path("dataset") / "manifest.json", manifest | {"status": "started"})
    again = prepare_dataset(small_run, config)
    assert again.photos[0].caption == "photo of ohwx man, on a ship"


def test_training_reads_the_edited_text(small_run, monkeypatch):
    """What a real, one-step training gives to the text encoders, and what decides whether its LoRA is used again."""
    config = TrainConfig.for_base("mini", steps=1, batch=1)
    made = prepare_dataset(small_run, PrepareConfig.for_base("mini", class_word="man"))
    captions.edit_caption(small_run, made.photos[0].file, "photo of ohwx man, side light, on a ship")
    family, told = load_family("mini"), []
    encode = family.encode_prompts
    monkeypatch.setattr(family, "encode_prompts", lambda prompts: (told.extend(prompts), encode(prompts))[1])
    monkeypatch.setattr(train, "load_family", lambda base: family)
    train.train_lora(small_run, config)
    first = small_run.manifest("lora")
    assert "photo of ohwx man, side light, on a ship" in told and made.photos[1].caption in told
    assert first["status"] == "done" and small_run.has("lora")
    text = (small_run.path("dataset") / made.photos[0].file).with_suffix(".txt")
    text.write_text("photo of ohwx man, at sea")
    assert small_run.has("dataset") and not small_run.has("lora"), "an edit leaves the old LoRA in use"
    text.write_text("photo of ohwx man, side light, on a ship")
    assert small_run.has("lora")


# --- class images -------------------------------------------------------------------------------------------------


COMMAND = """
import sys
from pathlib import Path
from headshotkit.dataset.class_images import build_class_images
from headshotkit.config import PrepareConfig
build_class_images(PrepareConfig.for_base("mini", class_word="man", class_images=2), Path(sys.argv[1]))
"""


def test_class_images_are_made_once_for_all_runs(small_run, own_cache, tmp_path):
    """Another process makes them; as soon as its first is there, a run here wants them too. Later runs render nothing.

    What is missing or damaged is made again, to the same picture.
    """
    config = PrepareConfig.for_base("mini", class_word="man", class_images=2)
    cache_dir = class_cache_dir(config)
    other = subprocess.Popen([sys.executable, "-c", COMMAND, str(tmp_path / "other")], stderr=subprocess.PIPE)
    while not list(cache_dir.glob("*.png")) and other.poll() is None:
        time.sleep(0.05)
    made = prepare_dataset(small_run, config)
    errors = other.communicate()[1].decode()
    assert other.returncode == 0, errors
    first = [(small_run.path("dataset") / f).read_bytes() for f in made.class_images]
    assert len(first) == 2 and first[0] != first[1]
    assert [p.read_bytes() for p in sorted((tmp_path / "other" / "class").iterdir())] == first
    written = {p: p.stat().st_mtime_ns for p in sorted(cache_dir.iterdir())}
    assert [p.name for p in written] == ["000.png", "001.png"]
    names = build_class_images(config, tmp_path / "later")
    assert [(tmp_path / "later" / n).read_bytes() for n in names] == first
    assert {p: p.stat().st_mtime_ns for p in sorted(cache_dir.iterdir())} == written, "they were rendered again"
    assert_facts(open_picture(cache_dir / "000.png").text)
    for damaged, data in zip(written, (first[0][: len(first[0]) // 2], b""), strict=True):
        damaged.unlink()
        damaged.write_bytes(data)
    build_class_images(config, tmp_path / "third")
    assert [p.read_bytes() for p in sorted((tmp_path / "third" / "class").iterdir())] == first
    assert [p.read_bytes() for p in sorted(cache_dir.iterdir())] == first


def assert_facts(text):
    """What made a class image stands in it."""
    assert text["base"] == "mini" and text["prompt"] == "photo of a man" and text["class_word"] == "man"
    assert text["weights"] == weights_version("mini") and len(text["weights"]) == 64
    assert text["size_px"] == "256" and text["seed"] == "0" and text["noise"] and text["steps"] and text["guidance"]
    assert (text["guidance"], text["guidance_share"]) == ("3.0", "0.2")


def test_class_images_are_announced(small_run, own_cache, capsys):
    do_stage("dataset", small_run, RunSettings(base="mini", class_word="man", class_images=1))
    assert "class images: 1 " in capsys.readouterr().err


def test_class_images_are_guided_in_a_share_of_the_steps(small_run, own_cache, monkeypatch):
    """20 sampler steps with guidance in four of them: 24 passes of the denoiser, not 40."""
    config = PrepareConfig.for_base("mini", class_word="man", class_images=1)
    family = load_family("mini")
    monkeypatch.setattr("headshotkit.dataset.class_images.load_family", lambda base: family)
    assert missing_class_images(config) == 1
    build_class_images(config, small_run.path("dataset"))
    assert family.forwards == 24 and class_recipe(PrepareConfig(class_images=1))["guidance_share"] == "0.6"
    assert missing_class_images(config) == missing_class_images(PrepareConfig.for_base("mini")) == 0


@pytest.mark.parametrize("change", [{"class_word": "woman"}, {"seed": 1}, {"size_px": 128}, {"base": "sdxl"},
                                    {"class_prompt": "portrait of a man, dark background"}])  # fmt: skip
def test_another_recipe_is_another_shelf(own_cache, change):
    """Other settings never take these pictures; the number of pictures, and what is done to photos, does not count."""
    options = {"base": "mini", "class_word": "man", "size_px": 256}
    cache_dir = class_cache_dir(PrepareConfig(**options, class_images=2))
    assert own_cache in cache_dir.parents
    assert class_cache_dir(PrepareConfig(**options | change, class_images=2)) != cache_dir
    assert class_cache_dir(PrepareConfig(**options, class_images=9, augment="safe", token="sks")) == cache_dir


def test_class_images_of_a_style_are_asked_for_and_learnt_in_its_words(small_run, own_cache):
    style = "portrait of a man, dark background, side light"
    made = prepare_dataset(
        small_run, PrepareConfig.for_base("mini", class_word="man", class_images=1, class_prompt=style)
    )
    text = open_picture(small_run.path("dataset") / made.class_images[0]).text
    assert text["prompt"] == style and made.captions[-2:] == [style, ""]


@pytest.mark.parametrize(("token", "said"), [("sks", "rifle"), ("anna", "name"), ("xqzvbk", "pieces|tokens")])
def test_a_token_that_names_something_is_refused_before_anything_is_written(prepared_run, token, said):
    with pytest.raises(BadConfig, match=said):
        prepare_dataset(prepared_run, PrepareConfig.for_base("mini", token=token))
    assert prepared_run.manifest("dataset")["config"]["token"] == "ohwx"


def test_own_pictures_in_the_training_folder_are_named_as_not_used(prepared_run, capsys):
    folder = prepared_run.path("dataset")
    (folder / "mine.png").write_bytes(b"x")
    (folder / "mine.txt").write_text("photo of ohwx man")
    capsys.readouterr()
    dataset = prepare_dataset(prepared_run, PrepareConfig.for_base("mini", class_word="man"))
    said = capsys.readouterr().err
    assert "2 files" in said and "mine.png, mine.txt" in said and "mine" not in str(dataset.photos)
    (folder / "mine.png").unlink()
    (folder / "mine.txt").unlink()
    prepare_dataset(prepared_run, PrepareConfig.for_base("mini", class_word="man"))
    assert "not used" not in capsys.readouterr().err
