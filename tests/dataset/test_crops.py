"""Crops of a folder: the face stays whole, the size is what was asked for, nothing of a photo's metadata survives."""

import json

import numpy as np
import pytest
from conftest import P1, SHARED, open_picture
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from headshotkit.cli import main
from headshotkit.config import ASPECTS
from headshotkit.core.errors import BadConfig, NoPhotos, RunFolderError
from headshotkit.dataset.crops import BUCKETS, CropConfig, bucket_size, crop_folder, face_window, holds, kept_share
from headshotkit.faces import recognition

SECRET = b"Secret"


@pytest.fixture
def folder(tmp_path):
    """An empty photo folder."""
    (tmp_path / "photos").mkdir()
    return tmp_path / "photos"


def named_profile(name):
    """A colour profile with the colours of sRGB and another name of four letters."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert "sRGB".encode("utf-16-be") in profile
    return profile.replace("sRGB".encode("utf-16-be"), name.encode("utf-16-be"))


def crop_one(folder, out, **options):
    """The record of the only photo of a folder."""
    return crop_folder(folder, out, CropConfig(**options))[0]


@pytest.mark.parametrize(
    ("framing", "aspect"), [*(("face", aspect) for aspect in ASPECTS), ("head-and-shoulders", "2:3"), ("whole", "3:4")]
)
def test_the_face_stays_whole_in_every_shape(folder, tmp_path, good_photo, aspect, framing):
    Image.fromarray(np.pad(good_photo, ((0, 300), (500, 0), (0, 0)), mode="edge")).save(folder / "a.png")
    crop = crop_one(folder, tmp_path / "out", aspect=aspect, framing=framing, size_px=512, format="png")
    picture = open_picture(tmp_path / "out" / "a.png")
    assert picture.size == crop.size_px == bucket_size(aspect, 512) and picture.mode == "RGB" and crop.face
    x0, y0, x1, y1 = recognition.detect_faces(np.asarray(picture))[0].box
    assert x0 >= -2 and y0 >= -2 and x1 <= picture.width + 2 and y1 <= picture.height + 2
    if framing == "face":
        assert (y1 - y0) / picture.height == pytest.approx(0.7, abs=0.12)


def test_each_bucket_is_a_size_of_sdxl_near_its_ratio():
    """Sizes of SDXL's appendix I: about 1024 x 1024 px, sides that 64 divides."""
    for aspect, (width, height) in BUCKETS.items():
        shape = [int(n) for n in aspect.split(":")]
        assert abs(width / height - shape[0] / shape[1]) < 0.03 and width % 64 == height % 64 == 0
        assert 0.9 <= width * height / 1024**2 <= 1.0
    assert len(set(BUCKETS.values())) == 4 == len(ASPECTS)


@pytest.mark.parametrize(("size", "aspect"), [((600, 600), "1:1"), ((640, 800), "4:5"), ((500, 750), "2:3")])
def test_auto_takes_the_shape_that_cuts_least(folder, tmp_path, good_photo, size, aspect):
    Image.fromarray(good_photo).crop((0, 0, 768, 768)).resize((500, 500)).save(folder / "face.png")
    canvas = Image.new("RGB", size, "grey")
    canvas.paste(open_picture(folder / "face.png"), ((size[0] - 500) // 2, 50))
    canvas.save(folder / "face.png")
    crop = crop_one(folder, tmp_path / "out", aspect="auto", framing="whole", size_px=256)
    assert crop.aspect == aspect
    shares = {a: kept_share(*size, BUCKETS[a]) for a in ASPECTS}
    assert shares[aspect] == max(shares.values())


def test_a_shape_that_would_cut_the_face_is_refused_with_its_numbers(folder, tmp_path):
    """A face as tall as its photo fits into no square of a narrow photo; the shape that holds it is taken by auto."""
    photo = np.asarray(open_picture(P1 / "p1_07.jpg"))
    x0, y0, x1, y1 = recognition.detect_faces(photo)[0].box.astype(int)
    Image.fromarray(photo[max(0, y0 - 40) : y1 + 40, x0:x1]).save(folder / "tall.png")
    refused = crop_one(folder, tmp_path / "out", aspect="1:1")
    assert "1:1" in refused.reason and "px" in refused.reason and not refused.file
    crop = crop_one(folder, tmp_path / "out", aspect="auto")
    assert not crop.reason and crop.aspect in ("3:4", "2:3")


def test_enlarging_is_said_or_refused(folder, tmp_path, good_photo, capsys):
    Image.fromarray(good_photo).resize((200, 200)).save(folder / "small.png")
    crop = crop_one(folder, tmp_path / "out", size_px=512, framing="whole")
    assert crop.factor == pytest.approx(512 / 200)
    refused = crop_one(folder, tmp_path / "no", size_px=512, framing="whole", enlarge=False)
    assert all(number in refused.reason for number in ("200 x 200 px", "512 x 512 px", "2.56"))
    assert not (tmp_path / "no").exists()
    assert main(["crop", str(folder), str(tmp_path / "cli"), "--size-px", "512"]) == 0
    assert "small.png: small.jpg, 512 x 512 px (1:1); enlarged " in capsys.readouterr().out
    assert crop_one(folder, tmp_path / "out", size_px=64, framing="whole", enlarge=False).factor < 1


def test_without_a_face_the_middle_is_kept_and_said(folder, tmp_path, capsys):
    ramp = np.tile(np.arange(300, dtype=np.uint8)[None, :, None], (100, 1, 3))
    Image.fromarray(ramp).save(folder / "ramp.png")
    assert main(["crop", str(folder), str(tmp_path / "out"), "--size-px", "100", "--format", "png"]) == 0
    assert "no face" in capsys.readouterr().out
    assert (np.asarray(open_picture(tmp_path / "out" / "ramp.png")) == ramp[:, 100:200]).all()


@pytest.mark.parametrize("made", ["jpg", "png"])
def test_no_metadata_of_a_photo_survives(folder, tmp_path, good_photo, made):
    """Place, camera, comment, XMP, colour profile and PNG texts: none of their bytes, none that Pillow reads."""
    exif = Image.Exif()
    exif[0x010F], exif[0x9286] = "SecretCamera", "SecretComment"
    exif.get_ifd(0x8825)[1], exif.get_ifd(0x8825)[2] = "N", (52.0, 31.0, 12.0)
    profile = named_profile("Secr")
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>SecretXmp</x:xmpmeta>"
    texts = PngInfo()
    texts.add_text("Comment", "SecretText")
    texts.add_itxt("XML:com.adobe.xmp", xmp.decode())
    photo = Image.fromarray(good_photo)
    photo.save(folder / "a.jpg", exif=exif, comment=b"SecretPlace", xmp=xmp, icc_profile=profile)
    photo.save(folder / "b.png", exif=exif, pnginfo=texts, icc_profile=profile)
    assert all(SECRET in path.read_bytes() for path in folder.iterdir()), "the photos hold no secret to lose"
    crops = crop_folder(folder, tmp_path / "out", CropConfig(size_px=128, format=made))
    assert len(crops) == 2 and not any(crop.reason for crop in crops)
    for crop in crops:
        data = (tmp_path / "out" / crop.file).read_bytes()
        traces = (SECRET, "Secr".encode("utf-16-be"), b"Exif", b"adobe", b"ICC_PROFILE", b"iCCP", b"tEXt", b"eXIf")
        assert not any(word in data for word in traces)
        picture = open_picture(tmp_path / "out" / crop.file)
        assert not picture.getexif() and not set(picture.info) - {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_wide_colours_become_srgb(folder, tmp_path):
    """A profile that calls green what sRGB calls red: the numbers change places, the look stays."""
    profile = named_profile("test")
    swapped = profile.replace(b"rXYZ", b"....").replace(b"gXYZ", b"rXYZ").replace(b"....", b"gXYZ")
    Image.new("RGB", (200, 200), (200, 60, 60)).save(folder / "a.png", icc_profile=swapped)
    Image.new("RGB", (200, 200), (200, 60, 60)).save(folder / "b.png")
    crop_folder(folder, tmp_path / "out", CropConfig(size_px=64, format="png"))
    with_profile, without = (open_picture(tmp_path / "out" / f"{n}.png").getpixel((9, 9)) for n in "ab")
    assert without == (200, 60, 60) and with_profile == pytest.approx((60, 200, 60), abs=3)


def test_alpha_becomes_white(folder, tmp_path):
    Image.new("RGBA", (200, 200), (255, 0, 0, 0)).save(folder / "a.png")
    crop = crop_one(folder, tmp_path / "out", size_px=64, format="png")
    assert open_picture(tmp_path / "out" / crop.file).getpixel((9, 9)) == (255, 255, 255)


def test_a_bad_file_is_listed_and_the_others_are_done(folder, tmp_path, good_photo, capsys):
    Image.fromarray(good_photo).save(folder / "good.jpg")
    Image.fromarray(good_photo).save(folder / "good.png")
    whole = (folder / "good.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "soup.jpg").write_bytes(b"no picture at all")
    assert main(["crop", str(folder), str(tmp_path / "out"), "--size-px", "128", "--json"]) == 0
    printed = capsys.readouterr()
    crops = {crop["photo"]: crop for crop in json.loads(printed.out)}
    assert [bool(crops[n]["reason"]) for n in ("good.jpg", "good.png", "half.jpg", "soup.jpg")] == [0, 0, 1, 1]
    assert crops["good.png"]["file"] == "good-2.jpg", "two photos share a picture"
    assert "half.jpg: not cropped, " in printed.err and "2 of 4 photos" in printed.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good-2.jpg", "good.jpg"]


def test_nothing_cropped_is_an_error(folder, tmp_path, capsys):
    (folder / "soup.jpg").write_bytes(b"no picture at all")
    assert main(["crop", str(folder), str(tmp_path / "out")]) == 2
    assert "0 of 1" in capsys.readouterr().err


def test_the_photos_are_never_replaced(folder, good_photo):
    Image.fromarray(good_photo).save(folder / "a.jpg")
    before = (folder / "a.jpg").read_bytes()
    with pytest.raises(RunFolderError, match=str(folder)):
        crop_folder(folder, folder)
    assert (folder / "a.jpg").read_bytes() == before


def test_any_size_and_quality_can_be_had(folder, tmp_path, good_photo):
    Image.fromarray(np.pad(good_photo, ((0, 0), (0, 432), (0, 0)), mode="edge")).save(folder / "a.jpg")
    wide = crop_one(folder, tmp_path / "wide", exact_px=(300, 200), framing="whole")
    assert wide.size_px == (300, 200) == open_picture(tmp_path / "wide" / "a.jpg").size and wide.aspect == "300x200"
    sizes = []
    for quality in (30, 95):
        crop_one(folder, tmp_path / str(quality), size_px=256, quality=quality)
        sizes.append((tmp_path / str(quality) / "a.jpg").stat().st_size)
    assert sizes[0] * 2 < sizes[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"aspect": "5:4"}, "aspect is '5:4'"), ({"framing": "feet"}, "framing is 'feet'"),
     ({"quality": 0}, "quality is 0"), ({"size_px": 10}, "size_px is 10"),
     ({"exact_px": (64, 64, 64)}, "exact_px is"), ({"format": "bmp"}, "format is")],
)  # fmt: skip
def test_settings_out_of_range_are_named(options, words):
    with pytest.raises(BadConfig, match=words):
        CropConfig(**options)


def test_bad_input_on_the_command_line_is_explained(tmp_path, capsys):
    assert main(["crop", str(tmp_path / "none"), str(tmp_path / "out")]) == 2
    assert main(["crop", str(tmp_path), str(tmp_path / "out"), "--size-px", "7"]) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "none") in err and "size_px is 7" in err
    with pytest.raises(NoPhotos):
        crop_folder(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("box", [[0, 0, 10, 12], [380, 280, 400, 300], [50, 20, 350, 290], [-20, -10, 60, 90]])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("aspect", ASPECTS)
def test_a_window_lies_inside_the_photo(box, fraction, aspect):
    left, top, window_width, window_height = face_window(400, 300, np.array(box), fraction, BUCKETS[aspect])
    assert (
        left >= 0
        and top >= 0
        and left + window_width <= 400
        and top + window_height <= 300
        and window_width > 0
        and window_height > 0
    )
    assert window_width / window_height == pytest.approx(BUCKETS[aspect][0] / BUCKETS[aspect][1], abs=1 / window_height)


def test_a_window_that_cuts_a_face_is_told_from_one_that_holds_it():
    assert holds((10, 10, 50, 50), np.array([10, 10, 60, 60]), 100, 100)
    assert not holds((10, 10, 50, 50), np.array([10, 10, 60, 64]), 100, 100)
    assert holds((0, 0, 50, 50), np.array([-20, 5, 40, 45]), 100, 100), "what the photo lacks can't be cut off"


@pytest.mark.skipif(not (SHARED / "london").is_dir(), reason="the photos of real people are not here")
def test_real_faces_stay_whole(tmp_path):
    (tmp_path / "some").mkdir()
    for path in sorted((SHARED / "london").glob("*.jpg"))[::8]:
        (tmp_path / "some" / path.name).symlink_to(path)
    made = crop_folder(tmp_path / "some", tmp_path / "out", CropConfig(aspect="auto", framing="face", size_px=256))
    assert len(made) >= 10 and not any(crop.reason for crop in made)
    for crop in made:
        picture = np.asarray(open_picture(tmp_path / "out" / crop.file))
        box = recognition.detect_faces(picture)[0].box
        assert (box > -4).all() and box[2] < picture.shape[1] + 4 and box[3] < picture.shape[0] + 4
