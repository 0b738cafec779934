import html
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import P1, open_picture

from headshotkit.config import GenerateConfig
from headshotkit.core.errors import BadConfig, BadLora, HeadshotError, StageMissing
from headshotkit.core.run import Run, write_json
from headshotkit.generation.pictures import Picture, PictureRequest, Studio, fitted_photo, render_pictures, styles_of
from headshotkit.widgets.panel import control_panel

PHOTO = str(P1 / "p1_03.jpg")
BRIEF = PictureRequest.for_base("mini", "photo of {person}", sampler_steps=4, seed=3)
SMALL = BRIEF.replace(size_px=(128, 128))


@pytest.fixture
def studio(brief_run):
    return Studio(brief_run)


def pixels(run, pictures):
    return [np.asarray(open_picture(run.path("pictures") / p.file)) for p in pictures]


def test_a_preset_suits_the_base():
    config = GenerateConfig.for_base("mini")
    assert BRIEF.size_px == (config.size_px,) * 2 and BRIEF.guidance == config.without_base_guidance().guidance == 3.0
    assert PictureRequest.from_dict(json.loads(json.dumps(BRIEF.to_dict()))) == BRIEF
    mini, sdxl = (set(styles_of(base).values()) for base in ("mini", "sdxl"))
    assert len(mini) == 6 and not mini & sdxl


def test_the_shown_call_draws_the_same_picture_after_others(brief_run, studio):
    """What was loaded for other requests leaves no trace, and a process that has none of it draws the same."""
    wanted = SMALL.replace(photo=PHOTO, refiner=0.25)
    first = pixels(brief_run, studio.render(wanted))
    for other in (SMALL.replace(lora_scale=0.0), SMALL.replace(lora_scale=0.5), SMALL.replace(control=PHOTO)):
        studio.render(other)
    assert all(np.array_equal(*pair) for pair in zip(first, pixels(brief_run, studio.render(wanted)), strict=True))
    place = {}
    text = wanted.call(brief_run).replace("render_pictures(Run", "made = render_pictures(Run")
    exec(text, place)
    again = pixels(brief_run, place["made"])
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))


def test_each_picture_of_a_batch_has_its_seed(brief_run, studio):
    made = studio.render(SMALL.replace(batch=2))
    assert [p.seed for p in made] == [3, 4] and len({p.file for p in made}) == 2
    alone = pixels(brief_run, studio.render(SMALL.replace(seed=4)))[0]
    assert np.abs(pixels(brief_run, made)[1].astype(int) - alone).mean() < 0.1


def test_a_png_says_how_it_was_made_and_keeps_folders_to_itself(brief_run, studio):
    (made,) = studio.render(BRIEF.replace(control=PHOTO, control_scale=0.5))
    texts = open_picture(brief_run.path("pictures") / made.file).text
    facts = json.loads(texts["headshotkit"])
    assert "not a photograph" in texts["Software"] and str(P1) not in texts["headshotkit"]
    assert facts["control"] == "p1_03.jpg" and facts["seed"] == 3 and facts["agreement"] == made.agreement
    assert facts["identity"] == made.identity and Picture.from_dict(made.to_dict()) == made


def test_the_person_is_named_with_the_lora_alone(brief_run, studio):
    assert studio._worded(BRIEF) == "photo of ohwx man"
    assert studio._worded(BRIEF.replace(lora_scale=0.0)) == "photo of a man"


def test_the_bare_base_needs_no_run(tmp_path):
    run = Run(tmp_path / "empty")
    (made,) = render_pictures(run, BRIEF.replace(lora_scale=0.0, sampler_steps=2))
    assert made.identity is None and (run.path("pictures") / made.file).is_file()
    with pytest.raises(StageMissing, match="finished lora"):
        render_pictures(run, BRIEF)


def test_a_lora_of_another_base_is_refused(brief_run, studio):
    known = brief_run.peek("lora")
    write_json(brief_run.path("lora") / "manifest.json", known | {"lora": known["lora"] | {"base": "sdxl"}})
    with pytest.raises(BadLora, match="base 'sdxl', .* base 'mini'"):
        studio.render(BRIEF)


@pytest.mark.parametrize(("change", "words"), [
    ({"sampler_steps": 0}, "sampler_steps is 0"), ({"strength": 0.0}, "strength is 0.0"),
    ({"sampler": "ddim"}, "sampler is 'ddim'"), ({"photo": "a", "control": "b"}, "photo is 'a', control is 'b'"),
    ({"refiner": 1.0}, "refiner is 1.0"),
    ({"photo": "a", "strength": 0.2}, "strength 0.2 of 4 steps is 0"), ({"size_px": (0, 8)}, "size_px is"),
    ({"photo": "a", "strength": 0.3, "refiner": 0.4}, "the refiner has 0.4"),
    ({"control_scale": 3}, "control_scale is 3"),
])  # fmt: skip
def test_knobs_out_of_range_are_refused(change, words):
    with pytest.raises(BadConfig, match=words):
        BRIEF.replace(**change)


def test_a_photo_is_cut_around_its_face_as_training_pictures_are(brief_run):
    fitted = fitted_photo(PHOTO, BRIEF)
    assert fitted.size == BRIEF.size_px
    prepared = next(iter(sorted(brief_run.path("dataset").glob("*.png"))))
    again = fitted_photo(str(prepared), BRIEF)
    assert np.array_equal(np.asarray(again), np.asarray(open_picture(prepared).convert("RGB")))


# --- the panel ----------------------------------------------------------------------------------------------------


def inside(box):
    """A widget and all that it holds."""
    yield box
    for child in getattr(box, "children", ()):
        yield from inside(child)


def knob(panel, name):
    return next(k for k in inside(panel) if getattr(k, "description", "") == name)


def right(panel):
    """The line, the pictures and the call, to the right of the knobs."""
    return panel.children[1].children


def test_the_panel_draws_and_shows_the_call(brief_run, studio):
    panel = control_panel(brief_run, SMALL, studio)
    knob(panel, "prompt").value, knob(panel, "sampler steps").value = "photo of {person}, 'smiling' & <b>", 3
    knob(panel, "batch").value, knob(panel, "lora scale").value = 2, 0.5
    knob(panel, "Draw").click()
    line, shown, call = right(panel)
    assert line.value.startswith("2 in ") and "<b>" not in call.value
    drawn = [f'download="{file.name}"' for file in brief_run.path("pictures").glob("*.png")]
    assert len(drawn) == 2 and all(link in shown.value for link in drawn), "each can be saved"
    assert shown.value.count('<img src="data:image/png') == 2
    wanted = SMALL.replace(prompt="photo of {person}, 'smiling' & <b>", sampler_steps=3, batch=2, lora_scale=0.5)
    place = {}
    exec(html.unescape(re.search("<pre.*?>(.*)</pre>", call.value, re.DOTALL)[1]), place)
    assert place["PictureRequest"] is PictureRequest and repr(wanted) in html.unescape(call.value)


def test_every_knob_is_explained_and_photos_are_chosen_from_a_list(brief_run, studio):
    kept = sorted((brief_run.path("photos") / "kept").iterdir())
    panel = control_panel(brief_run, BRIEF.replace(photo=str(kept[1])), studio)
    said = {k.description: getattr(k, "tooltip", None) or getattr(k, "description_tooltip", None)
            for k in inside(panel) if getattr(k, "description", "")}  # fmt: skip
    said.pop("Draw"), said.pop("Random seed")
    assert len(said) == 16 and all(len(words) > 20 for words in said.values()), said
    for name in ("photo", "control"):
        assert knob(panel, name).options == (("none", ""), *((file.name, str(file)) for file in kept))
    assert knob(panel, "photo").value == str(kept[1])
    own = control_panel(brief_run, BRIEF.replace(photo=PHOTO), studio)
    assert knob(own, "photo").value == PHOTO and knob(own, "photo").options[-1] == ("p1_03.jpg", PHOTO)
    assert knob(control_panel(Run(brief_run.folder / "no"), BRIEF), "photo").options == (("none", ""),)


def test_the_dice_chooses_a_seed(brief_run, studio):
    panel, seeds = control_panel(brief_run, BRIEF, studio), set()
    for _ in range(3):
        knob(panel, "Random seed").click()
        seeds.add(knob(panel, "seed").value)
    assert len(seeds) == 3 and all(0 <= seed < 2**31 for seed in seeds)


def apart(run, studio, prompts):
    """How far pictures of one noise are from each other: mean levels of 255, the median over all pairs."""
    asked = [BRIEF.replace(prompt=prompt, lora_scale=0.0, size_px=(128, 128)) for prompt in prompts]
    drawn = [pixels(run, studio.render(request))[0].astype(int) for request in asked]
    return np.median([np.abs(one - other).mean() for one, other in itertools.combinations(drawn, 2)])


@pytest.mark.slow
def test_the_embedded_base_is_asked_for_styles_that_it_knows(brief_run, studio):
    """Paintings, which it was never shown, change next to nothing of a picture."""
    known, unknown = (styles_of(base).values() for base in ("mini", "sdxl"))
    assert apart(brief_run, studio, known) > 3 * apart(brief_run, studio, unknown)


def refuse(request):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more of it.\nGPU 0 has")


def test_the_panel_says_what_is_wrong_and_goes_on(brief_run, studio, monkeypatch):
    gone = Path(shutil.copy(PHOTO, brief_run.path("photos") / "kept" / "nobody.jpg"))
    panel = control_panel(brief_run, SMALL, studio)
    gone.unlink()
    knob(panel, "photo").value = knob(panel, "control").value = str(brief_run.path("photos") / "kept" / "p1_03.jpg")
    knob(panel, "Draw").click()
    assert "BadConfig" in right(panel)[0].value and not knob(panel, "Draw").disabled
    knob(panel, "control").value, knob(panel, "photo").value = "", str(gone)
    knob(panel, "Draw").click()
    assert "nobody.jpg can&#x27;t be read" in right(panel)[0].value
    knob(panel, "photo").value = ""
    with monkeypatch.context() as patch:
        patch.setattr(studio, "render", refuse)
        knob(panel, "Draw").click()
    assert right(panel)[0].value.endswith("more of it. Draw fewer at once (batch), or smaller.")
    knob(panel, "Draw").click()
    assert right(panel)[0].value.startswith("1 in ") and not knob(panel, "Draw").disabled
    knob(panel, "photo").value = str(gone)
    with pytest.raises(HeadshotError):
        fitted_photo(knob(panel, "photo").value, SMALL)
