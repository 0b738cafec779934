"""Captions: words for what is sure, none for the face; a person's edits; the models' words, cleaned."""

import shutil

import numpy as np
import pytest
from conftest import P1, SHARED, open_picture

from headshotkit.config import CheckConfig, PrepareConfig
from headshotkit.core.errors import BaseUnavailable, StageMissing
from headshotkit.core.run import Run
from headshotkit.dataset import captions
from headshotkit.dataset.build import prepare_dataset
from headshotkit.dataset.captioners import FACE_WORDS, RECIPES, Captioner, without_the_face
from headshotkit.dataset.captions import NoSuchCaption, View, caption_of, edit_caption
from headshotkit.faces import recognition, traits
from headshotkit.photos.check import check_photos

MINI_WORDS = {
    "smiling", "neutral expression", "looking at the camera", "looking left", "looking right",
    "plain white background", "grey studio background", "dark background",
    "bright lighting", "dim lighting", "side light", "soft light",
}  # fmt: skip
"""Those of the words which data/mini/captions.py and pictures.py taught to the embedded base that templates use."""


def view_of(path):
    """A whole photo as a view."""
    pixels = np.asarray(open_picture(path).convert("RGB"))
    face = recognition.detect_faces(pixels)[0]
    yaw_deg, _, _ = traits.head_pose(recognition.landmarks_106(pixels, face))
    return View(pixels, face.points, face.box, yaw_deg)


@pytest.fixture(scope="module")
def views():
    """Six photos of the sample person as views."""
    return [view_of(P1 / f"p1_{n:02d}.jpg") for n in (2, 4, 9, 11, 14, 16)]


# --- templates ----------------------------------------------------------------------------------------------------


def test_the_embedded_base_is_told_only_words_it_knows(views):
    said = set()
    for view in views:
        first, *words = caption_of(view, "ohwx man", brief=True).split(", ")
        assert first == "photo of ohwx man"
        said |= set(words)
    assert said <= MINI_WORDS and len(said) >= 4


def test_the_words_of_the_embedded_base_are_those_it_was_trained_on():
    sources = "".join((P1.parents[1] / "mini" / f"{n}.py").read_text() for n in ("captions", "pictures"))
    assert all(f'"{words}"' in sources for words in MINI_WORDS)


def test_no_caption_names_the_face(views):
    for view in views:
        words = caption_of(view, "ohwx person", brief=False).removeprefix("photo of ohwx person")
        assert not set(words.replace(",", "").split()) & (FACE_WORDS - {"head"}), words


@pytest.mark.parametrize(
    ("colour", "words"),
    [((250, 250, 250), "plain white background"), ((20, 22, 25), "dark background"),
     ((130, 130, 132), "grey studio background"), ((40, 160, 60), "")],
)  # fmt: skip
def test_the_backdrop_is_named_only_where_it_is_plain(colour, words):
    assert captions.backdrop(np.full((90, 90, 3), colour, np.uint8)) == words


@pytest.mark.parametrize(
    ("colour", "word"),
    [((25, 25, 30), "dark"), ((240, 240, 238), "white"), ((128, 128, 130), "grey"), ((190, 190, 192), ""),
     ((190, 25, 30), "red"), ((40, 130, 60), "green"), ((30, 60, 160), "blue"), ((130, 50, 150), "purple"),
     ((200, 150, 125), ""), ((120, 80, 50), ""), ((220, 190, 160), "")],
)  # fmt: skip
def test_clothes_are_named_by_sure_colours_and_never_by_skins(colour, word):
    pixels = np.full((300, 300, 3), colour, np.uint8)
    pixels[60:170, 100:200] = (205, 155, 130)  # a face
    view = View(pixels, np.zeros((5, 2)), np.array([110, 60, 190, 160]))
    assert captions.clothes(view) == (f"wearing {word} clothes" if word else "")
    striped = pixels.copy()
    striped[::2] = (90, 200, 200)
    assert captions.clothes(View(striped, view.points, view.box)) == "", "half of it has another colour"
    assert captions.clothes(View(pixels[:175], view.points, view.box)) == "", "the clothes are out of the picture"


@pytest.mark.parametrize(
    ("height", "words"), [(70, "close-up"), (45, "head and shoulders"), (20, "upper body"), (9, "")]
)
def test_framing_follows_the_height_of_the_face(height, words):
    assert captions.framing(View(np.zeros((100, 100, 3)), None, np.array([0, 0, 50, height]))) == words


def test_light_is_named_by_the_light_and_not_by_the_skin():
    """A dark face is in dim light only if nothing else in the picture is bright."""
    dark, pale = np.full((128, 128, 3), 60, np.uint8), np.full((128, 128, 3), 220, np.uint8)
    assert captions.light(np.full((200, 200, 3), 90, np.uint8), dark) == "dim lighting"
    assert captions.light(np.full((200, 200, 3), 230, np.uint8), dark) == "soft light"
    assert captions.light(pale, pale) == "bright lighting"
    half = np.full((128, 128, 3), 160, np.uint8)
    half[:, 64:] = 90
    assert captions.light(half, half) == "side light"


@pytest.mark.skipif(not (SHARED / "london").is_dir(), reason="the photos of real people are not here")
def test_words_for_real_people_are_true():
    """All wear white, look at the camera and stand in good light: 24 photos, and no word may be wrong."""
    said = []
    for path in sorted((SHARED / "london").glob("*.jpg"))[::3][:24]:
        words = set(caption_of(view_of(path), "X", brief=False).split(", "))
        wrong = {"smiling"} if "neutral" in path.name else {"neutral expression"}
        assert not words & (wrong | {"dim lighting", "looking left", "looking right", "dark background"}), path.name
        assert words & {"wearing white clothes"} == {w for w in words if w.startswith("wearing")}, path.name
        said.append(words)
    for word, least in (("wearing white clothes", 6), ("looking at the camera", 18), ("smiling", 3)):
        assert sum(word in words for words in said) >= least, word


def test_the_mirrored_caption_swaps_sides():
    assert captions.mirrored("looking left, a door on the right, bright lighting") == (
        "looking right, a door on the left, bright lighting"
    )


# --- edits --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_run(tmp_path):
    """A run with one photo, prepared for the embedded base."""
    (tmp_path / "photos").mkdir()
    shutil.copy(P1 / "p1_09.jpg", tmp_path / "photos")
    run = Run(tmp_path / "run")
    check_photos(tmp_path / "photos", run, CheckConfig(min_photos=1))
    prepare_dataset(run, PrepareConfig.for_base("mini", class_word="man"))
    return run


def test_editing_a_caption_changes_file_and_manifest(own_run):
    made = prepare_dataset(own_run, PrepareConfig.for_base("mini", class_word="man"))
    photo = edit_caption(own_run, made.photos[0].file, "photo of ohwx man,\n  at sea ")
    assert photo.caption == "photo of ohwx man, at sea" and photo.written == made.photos[0].caption
    text = (own_run.path("dataset") / photo.file).with_suffix(".txt")
    assert text.read_text() == "photo of ohwx man, at sea\n"
    assert own_run.manifest("dataset")["dataset"]["photos"][0]["caption"] == "photo of ohwx man, at sea"
    back = edit_caption(own_run, photo.file, photo.written)
    assert back.caption == made.photos[0].caption and not back.written
    text.unlink()
    assert captions.note_edits(own_run).photos[0].caption == back.caption, "a lost file loses no caption"


@pytest.mark.parametrize(("file", "text"), [("nobody.png", "words"), ("p1_09_0.png", "  "), ("../x.png", "words")])
def test_an_edit_without_picture_or_words_is_refused(own_run, file, text):
    with pytest.raises(NoSuchCaption, match="p1_"):
        edit_caption(own_run, file, text)


def test_without_a_dataset_there_is_nothing_to_edit(tmp_path):
    with pytest.raises(StageMissing, match="check, prepare"):
        edit_caption(Run(tmp_path), "a.png", "words")


# --- models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "kept"),
    [("a man with a beard wearing a blue shirt", "wearing a blue shirt"),
     ("a beautiful young woman", ""),
     ("arafed woman with long brown hair and freckles standing near a lake", "standing, near a lake"),
     ("The image shows an elderly man in his sixties, wearing glasses and a suit.", "wearing glasses and a suit"),
     ("a close up of a person smiling in a garden with trees behind her", "smiling, in a garden with trees, behind"),
     ("a portrait of a dark-haired girl with green eyes against a brick wall", "against a brick wall"),
     ("two children", "")],
)  # fmt: skip
def test_what_a_model_says_of_the_face_is_taken_out(said, kept):
    assert without_the_face(said) == kept
    assert not set(kept.replace(",", "").split()) & FACE_WORDS


@pytest.fixture(scope="module")
def tiny_blip(tmp_path_factory):
    """A BLIP of the real class with two layers and random weights, and a tokenizer of few words."""
    import torch
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    folder = tmp_path_factory.mktemp("blip")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] [DEC] , coat boat lake wall desk lamp"
    vocabulary = {word: number for number, word in enumerate(words.split())}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(vocabulary), "encoder_hidden_size": 16, "max_position_embeddings": 80,
                    "bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}  # fmt: skip
    config = BlipConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.text_decoder.cls.predictions.bias.data[:6] = -9  # no end, no special token: it talks
    model.save_pretrained(folder)
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    image_processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    BlipProcessor(image_processor, tokenizer).save_pretrained(folder)

    return folder


@pytest.fixture(scope="module")
def tiny_florence(tmp_path_factory):
    """A Florence-2 of the real class with a layer each and random weights, and a tokenizer of few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        BartConfig,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        PreTrainedTokenizerFast,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    known = "<pad> <s> </s> <unk> <image> coat boat lake wall desk"
    vocabulary = {word: number for number, word in enumerate(known.split())}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    extra = {"image_token": "<image>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, extra_special_tokens=extra, **special)
    size = {"height": 64, "width": 64}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size)
    image_processor.image_seq_length = 5  # 2 x 2 patches of 32 px, and their mean
    vision = {"depths": (1, 1, 1, 1), "embed_dim": (8, 8, 16, 16), "num_heads": (1, 1, 2, 2),
              "num_groups": (1, 1, 2, 2), "window_size": 2, "projection_dim": 16}  # fmt: skip
    text = BartConfig(
        vocab_size=len(vocabulary), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Florence2ForConditionalGeneration(Florence2Config(vision_config=vision, text_config=text, image_token_id=4))
    model.generation_config.suppress_tokens = [0, 1, 3, 4]  # it can say words only
    model.generation_config.min_new_tokens = 4
    folder = tmp_path_factory.mktemp("florence")
    model.save_pretrained(folder)
    Florence2Processor(image_processor, tokenizer).save_pretrained(folder)
    return folder


def test_florence_says_words_of_its_vocabulary(tiny_florence):
    """Proves the plumbing only: load, pixels and task in, words out. Random weights see nothing."""
    seen = Captioner("florence", str(tiny_florence)).caption(np.asarray(open_picture(P1 / "p1_09.jpg")))
    assert seen and set(seen.split()) <= {"coat", "boat", "lake", "wall", "desk"}


def test_blip_writes_captions_from_pixels_to_the_file(tiny_blip, own_run):
    """Proves the plumbing only: load, pixels, generate, filter, file. Random weights see nothing."""
    options = {"base": "sdxl", "size_px": 256, "captioner": "blip", "captioner_weights": str(tiny_blip)}
    made = prepare_dataset(own_run, PrepareConfig(**options))
    seen = Captioner("blip", str(tiny_blip)).caption(
        np.asarray(open_picture(own_run.path("dataset") / made.photos[0].file))
    )
    assert seen, "the random model says nothing, so nothing is tested"
    for photo in made.photos:
        assert photo.caption.startswith("photo of ohwx person, ") and "background" not in photo.caption
        assert not set(photo.caption.replace(",", "").split()) & (FACE_WORDS - {"person", "head"})
    assert seen in made.photos[0].caption


@pytest.mark.parametrize("name", RECIPES)
def test_a_captioner_without_weights_says_what_to_do(name, tmp_path):
    with pytest.raises(BaseUnavailable, match="template"):
        Captioner(name, str(tmp_path))
    with pytest.raises(BaseUnavailable, match=f"'{name}'"):
        Captioner(name)


def test_the_recipes_name_classes_that_transformers_has():
    import transformers

    for recipe in RECIPES.values():
        assert hasattr(transformers, recipe.model) and hasattr(transformers, recipe.processor)
