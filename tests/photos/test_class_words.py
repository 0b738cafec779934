"""The class word: one list, proposed from the photos, kept by the run, and the same in every caption."""

import shutil

import onnx
import pytest
from conftest import P1
from onnx import TensorProto, helper

from headshotkit.cli import main
from headshotkit.config import CLASS_WORDS, CheckConfig, PrepareConfig, RunSettings
from headshotkit.core.errors import BadConfig
from headshotkit.core.run import Run, sha256_of
from headshotkit.faces import recognition
from headshotkit.photos.check import check_photos
from headshotkit.photos.class_words import propose_class_word
from headshotkit.photos.override import override_verdict
from headshotkit.pipeline import do_missing, do_stage


@pytest.fixture(scope="module")
def somebodys(tmp_path_factory):
    """A judged run of four photos in a folder of their own; copy it, don't change it."""
    place = tmp_path_factory.mktemp("somebody")
    (place / "photos").mkdir()
    for n in range(1, 5):
        shutil.copy(P1 / f"p1_{n:02d}.jpg", place / "photos")
    check_photos(place / "photos", Run(place / "run"), CheckConfig(min_photos=4))
    return place / "run"


@pytest.fixture
def somebody(somebodys, tmp_path):
    return Run(shutil.copytree(somebodys, tmp_path / "run"))


@pytest.fixture
def sex_model(tmp_path, monkeypatch):
    """A face pack with a model in the real one's form, which finds these two numbers, female and male, in every face.

    The real model can't be had here, so this proves that one is found, checked, run and heard, and no more.
    """

    def make(female, male, pinned=True):
        folder = tmp_path / "pack"
        folder.mkdir()
        numbers = helper.make_tensor("numbers", TensorProto.FLOAT, (1, 3), (female, male, 0.3))
        pixels = helper.make_tensor_value_info("data", TensorProto.FLOAT, (1, 3, 96, 96))
        said = helper.make_tensor_value_info("fc1", TensorProto.FLOAT, (1, 3))
        nodes = [
            helper.make_node("ReduceMin", ["data"], ["least"], keepdims=0),
            helper.make_node("Sub", ["least", "least"], ["nothing"]),
            helper.make_node("Add", ["numbers", "nothing"], ["fc1"]),
        ]
        graph = helper.make_graph(nodes, "genderage", [pixels], [said], [numbers])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.save(model, folder / "genderage.onnx")
        monkeypatch.setattr(recognition, "model_folder", lambda: (folder, "of a test"))
        if pinned:
            monkeypatch.setattr(recognition, "SEX_SHA256", sha256_of(folder / "genderage.onnx"))
        recognition._sex_model.cache_clear()

    yield make
    recognition._sex_model.cache_clear()


def test_the_sample_persons_word_is_known(prepared_run):
    assert propose_class_word(prepared_run)[0] == "man"


def test_without_a_model_it_is_the_word_for_everybody(somebody):
    assert propose_class_word(somebody)[0] == "person" == PrepareConfig().class_word == CLASS_WORDS[0]


@pytest.mark.parametrize(("numbers", "word"), [((2.0, -1.0), "woman"), ((-1.0, 2.0), "man")])
def test_the_photos_propose_it_where_the_model_is_there(numbers, word, somebody, sex_model):
    sex_model(*numbers)
    proposed, why = propose_class_word(somebody)
    assert proposed == word and "4 of 4" in why


def test_another_model_of_that_name_is_not_asked(somebody, sex_model):
    sex_model(2.0, -1.0, pinned=False)
    assert not recognition.knows_sex() and propose_class_word(somebody)[0] == "person"


@pytest.mark.parametrize(
    ("votes", "word"), [((True, True, False, False), "person"), ((True,) * 3 + (False,), "person")]
)
def test_photos_that_disagree_propose_nothing(votes, word, somebody, sex_model, monkeypatch):
    sex_model(1.0, 0.0)
    heard = iter(votes)
    monkeypatch.setattr(recognition, "looks_male", lambda *_: next(heard))
    assert propose_class_word(somebody)[0] == word


def test_without_a_kept_photo_nothing_is_proposed(somebody, sex_model):
    sex_model(2.0, -1.0)
    for n in range(1, 5):
        override_verdict(somebody, f"p1_{n:02d}.jpg", False)
    assert propose_class_word(somebody)[0] == "person"


def test_it_is_said_and_the_run_keeps_it(somebody, sex_model, capsys):
    sex_model(2.0, -1.0)
    options = RunSettings(base="mini")
    captions = [photo["caption"] for photo in do_stage("dataset", somebody, options)["dataset"]["photos"]]
    assert captions and all("ohwx woman" in caption for caption in captions)
    assert "class word: woman" in capsys.readouterr().err
    recognition.model_folder()[0].joinpath("genderage.onnx").unlink()
    recognition._sex_model.cache_clear()
    assert do_stage("dataset", somebody, options)["config"]["class_word"] == "woman"
    assert "class word" not in capsys.readouterr().err


def test_an_unknown_word_is_answered_with_those_that_are_known(somebody, capsys):
    with pytest.raises(BadConfig) as caught:
        PrepareConfig(class_word="womna")
    assert "womna" in caught.value.happened and all(word in caught.value.why for word in CLASS_WORDS)
    code = main(["prepare", "--out", str(somebody.folder), "--class-word", "womna"])
    said = capsys.readouterr().err
    assert code == 2 and all(word in said for word in CLASS_WORDS)
    assert main(["prepare", "--out", str(somebody.folder), "--base", "mini", "--class-word", "Woman"]) == 0
    assert somebody.manifest("dataset")["config"]["class_word"] == "woman"


def test_another_word_than_the_run_has_is_no_silent_matter(prepared_run):
    do_missing(("photos", "dataset"), prepared_run, RunSettings(class_word="man"))
    with pytest.raises(BadConfig) as caught:
        do_missing(("photos", "dataset"), prepared_run, RunSettings(class_word="woman"))
    assert "woman" in caught.value.happened and "'man'" in caught.value.happened
