"""The zip to take home, on staged runs: the accepted headshots alone, in order, restored where they were restored."""

import zipfile

import pytest

from headshotkit.core.errors import NothingToShow, StageMissing
from headshotkit.core.run import Run, write_json
from headshotkit.delivery.pack import accepted_headshots, pack_headshots

SHOTS = [("a.png", "park", True), ("b.png", "office", False), ("c.png", "office", True), ("d.png", "studio", True)]
DELIVERED = ["c.png", "b.png", "a.png"]


@pytest.fixture
def generated(tmp_path):
    run = Run(tmp_path)
    stage = run.begin("headshots", {"base": "mini"}, {})
    for file, _, _ in SHOTS:
        (stage.folder / file).write_bytes(f"drawn {file}".encode())
    facts = {"prompt": "photo", "negative": "", "seed": 1, "attempt": 1, "lora_scale": 1.0, "identity": 0.6}
    shots = [facts | {"file": file, "prompt_id": prompt, "accepted": accepted} for file, prompt, accepted in SHOTS]
    stage.finish("3 of 4", headshots=shots, delivered=DELIVERED, pass_mark={"mark": 0.55})
    return run


def restored(run):
    stage = run.begin("restored", {}, run.inputs_from("headshots"))
    for file in DELIVERED:
        (stage.folder / file).write_bytes(f"restored {file}".encode())
    stage.finish("restored 3", restored=[{"file": file, "kept": "restored"} for file in DELIVERED])
    return run


def inside(zip_file):
    with zipfile.ZipFile(zip_file) as archive:
        return [(one.filename, archive.read(one).decode()) for one in archive.infolist()]


def test_the_zip_holds_the_accepted_ones_in_order(generated):
    packed = pack_headshots(generated)
    assert packed == generated.folder / "headshots.zip"
    assert inside(packed) == [("01_office.png", "drawn c.png"), ("02_park.png", "drawn a.png")]


def test_restored_ones_take_the_place_of_those_drawn(generated):
    assert [text for _, text in inside(pack_headshots(restored(generated)))] == ["restored c.png", "restored a.png"]


def test_what_was_restored_from_other_headshots_is_left(generated):
    restored(generated)
    manifest = generated.manifest("headshots")
    write_json(generated.path("headshots") / "manifest.json", manifest | {"fingerprint": "of other headshots"})
    assert [text for _, text in inside(pack_headshots(generated))] == ["drawn c.png", "drawn a.png"]


def test_the_same_headshots_make_the_same_zip(generated):
    assert pack_headshots(generated).read_bytes() == pack_headshots(generated).read_bytes()


def test_with_nothing_accepted_there_is_no_zip_but_a_reason(generated):
    manifest = generated.manifest("headshots")
    write_json(generated.path("headshots") / "manifest.json", manifest | {"delivered": ["b.png"]})
    assert accepted_headshots(generated) == {}
    with pytest.raises(NothingToShow) as caught:
        pack_headshots(generated)
    assert "0 of 1" in caught.value.happened and "0.55" in caught.value.why and caught.value.next_step
    assert not (generated.folder / "headshots.zip").exists()


def test_without_headshots_the_stage_is_named(tmp_path):
    with pytest.raises(StageMissing):
        pack_headshots(Run(tmp_path))
