"""Files of a run that are missing or were changed: made again where a stage can, else named; never used as they are."""

import numpy as np
import pytest
from conftest import open_picture

from headshotkit.cli import main
from headshotkit.config import CheckConfig, GenerateConfig, PrepareConfig, TrainConfig
from headshotkit.core.errors import DamagedRun
from headshotkit.dataset.build import prepare_dataset
from headshotkit.generation.headshots import generate_headshots
from headshotkit.photos.check import check_photos
from headshotkit.restoration.restore import restore_headshots
from headshotkit.training.checkpoints import to_bytes
from headshotkit.training.export import export_lora
from headshotkit.training.train import train_lora


def test_a_deleted_training_picture_is_named_and_made_again(prepared_run, capsys):
    made = prepared_run.manifest("dataset")["dataset"]["photos"]
    picture, other = (prepared_run.path("dataset") / photo["file"] for photo in made[:2])
    other.with_suffix(".txt").write_text("photo of ohwx man, on a ship")
    before = picture.read_bytes()
    picture.unlink()
    picture.with_suffix(".txt").unlink()
    assert main(["train", "--out", str(prepared_run.folder), "--base", "mini", "--steps", "5"]) == 2
    said = capsys.readouterr().err
    assert "\nDamagedRun: " in f"\n{said}" and picture.name in said and "headshotkit prepare" in said
    prepare_dataset(prepared_run, PrepareConfig.for_base("mini", class_word="man"))
    assert picture.read_bytes() == before and not (prepared_run.folder / "earlier").exists()
    assert other.with_suffix(".txt").read_text() == "photo of ohwx man, on a ship\n"
    assert prepared_run.files("dataset", [photo["file"] for photo in made])


def test_a_kept_photo_that_was_edited_is_noticed_and_put_back(small_run, three_photos):
    config = PrepareConfig.for_base("mini", class_word="man", face_fractions=(0.6,))
    kept = sorted((small_run.path("photos") / "kept").iterdir())
    first, second = kept[:2]
    before = first.read_bytes()
    open_picture(first).crop((300, 250, 700, 700)).save(first)
    second.write_bytes(second.read_bytes()[:-1] + b"x")  # of the same size
    with pytest.raises(DamagedRun, match=f"{first.name}.*{second.name}"):
        prepare_dataset(small_run, config)
    check_photos(three_photos.parent / "photos", small_run, CheckConfig(min_photos=1))
    assert first.read_bytes() == before
    prepare_dataset(small_run, config)


def test_a_lora_that_is_another_one_now_is_named_and_not_trained_again(brief_run, tmp_path):
    file = brief_run.path("lora") / "person.safetensors"
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    of_another = (brief_run.path("lora") / "previews" / "000003.safetensors").read_bytes()
    for data in (bytes(changed), whole[:100], of_another):
        file.write_bytes(data)
        for verb in (
            lambda: export_lora(brief_run, tmp_path / "x.safetensors"),
            lambda: generate_headshots(brief_run, GenerateConfig.for_base("mini", count=1, sampler_steps=2)),
        ):
            with pytest.raises(DamagedRun, match="person.safetensors"):
                verb()
        with pytest.raises(DamagedRun, match="lora"):
            train_lora(brief_run, TrainConfig.for_base("mini", steps=6, batch=2, snapshots=2))
        assert file.read_bytes() == data and not (brief_run.folder / "earlier").exists()
    file.write_bytes(whole)
    assert export_lora(brief_run, tmp_path / "x.safetensors").exists()


def test_a_headshot_that_is_missing_is_drawn_again_from_its_seed(brief_run):
    config = GenerateConfig.for_base("mini", count=4, sampler_steps=6, max_attempts=2, batch=2)
    before = brief_run.manifest("headshots")
    lost, cut = (brief_run.path("headshots") / file for file in before["delivered"][:2])
    pixels = open_picture(lost)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.raises(DamagedRun, match=lost.name):
        restore_headshots(brief_run)
    generate_headshots(brief_run, config)
    after = brief_run.manifest("headshots")
    assert after["headshots"] == before["headshots"] and after["delivered"] == before["delivered"]
    again = open_picture(lost)
    assert again.size == pixels.size and np.abs(np.asarray(again, int) - np.asarray(pixels, int)).max() <= 2
    assert len(restore_headshots(brief_run)["restored"]) == 4


@pytest.mark.parametrize(
    ("file", "value"),
    [
        ("checkpoints/000001.pt", {}),
        ("checkpoints/000001.pt", {"losses": [1.0]}),
        ("checkpoints/000001.pt", [1, 2]),
        ("cache.pt", {}),
        ("cache.pt", {"latents": {128: [0]}, "condition": {}}),
    ],
)
def test_a_checkpoint_or_cache_of_another_kind_counts_as_damaged(quick_run, file, value):
    config = TrainConfig.for_base("mini", steps=1, batch=1)
    stage = quick_run.begin("lora", config, quick_run.inputs_from("dataset"), seed=config.seed)
    path = stage.folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(to_bytes(value))
    if file == "cache.pt":
        train_lora(quick_run, config)
    else:
        with pytest.warns(UserWarning, match="damaged checkpoint 000001.pt"):
            train_lora(quick_run, config)
    assert quick_run.has("lora")


def test_a_checkpoint_of_another_training_is_not_gone_on_with(quick_run):
    first, second = (TrainConfig.for_base("mini", steps=2, batch=1, checkpoint_every_steps=1, seed=n) for n in (0, 1))

    class Stopped(Exception):
        pass

    folder = quick_run.path("lora") / "checkpoints"
    with pytest.raises(Stopped), pytest.MonkeyPatch.context() as patch:
        patch.setattr("headshotkit.training.train.write_trained", _raise(Stopped))
        train_lora(quick_run, first)
    data = next(folder.glob("*.pt")).read_bytes()
    quick_run.begin("lora", second, quick_run.inputs_from("dataset"), seed=1)
    folder.mkdir()
    (folder / "000001.pt").write_bytes(data)
    with pytest.warns(UserWarning, match="belongs to another training"):
        train_lora(quick_run, second)


def _raise(error):
    def raising(*_):
        raise error

    return raising
