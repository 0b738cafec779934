"""Show a panel with A1111's settings, a thin wrapper of `render_pictures`, and the call that draws a picture again.

It works with ipywidgets 7, which Colab has, and with 8; without a notebook it waits and does nothing.
"""

from __future__ import annotations

import html
import random
from pathlib import Path

from headshotkit.config.base import meaning, schema_of
from headshotkit.core import runtime
from headshotkit.core.errors import HeadshotError
from headshotkit.core.pages import data_uri, template
from headshotkit.core.run import Run
from headshotkit.generation.pictures import FOLDER, PictureRequest, Studio

SIDES = {"width": 0, "height": 1}
"""Knobs of `size_px`; every other knob is named like its setting of PictureRequest."""
ALWAYS = ("prompt", "negative", "sampler_steps", "guidance", "seed", "width", "height", "lora_scale")
FOLDED = {
    "Begin with a photo": ("photo", "strength"),
    "Obey a photo's edges": ("control", "control_scale"),
    "More": ("batch", "guidance_share", "sampler", "refiner"),
}
"""Heading -> the knobs below it, which are shown when it is opened."""
MOST_SEEDS = 2**31
PICTURE_PX = 512


def control_panel(run: Run, request: PictureRequest, studio: Studio | None = None):
    """Show knobs set to a request's values, and to their right the pictures and the call that draws them again.

    Args:
        studio: what earlier requests have loaded; None loads it when the button is first pressed.
    """
    import ipywidgets as w

    knobs, studio = _knobs(run, request), studio or Studio(run)
    draw, dice = w.Button(description="Draw", button_style="primary"), w.Button(description="Random seed")
    line, shown, call = w.HTML("Press Draw."), w.HTML(), w.HTML()

    def render(_) -> None:
        draw.disabled, line.value = True, "Drawing."
        try:
            wanted = request_of(knobs, request.base)
            pictures = studio.render(wanted)
        except HeadshotError as error:
            line.value = html.escape(str(error)).replace("\n", "<br>")
        except Exception as error:  # a notebook shows a callback's traceback in a log at most
            said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no words'}"
            less = " Draw fewer at once (batch), or smaller." if runtime.out_of_memory(error) else ""
            line.value = html.escape(said + less)
            runtime.free_memory()
        else:
            line.value = f"{len(pictures)} in {html.escape(str(run.path(FOLDER)))}."
            drawn = [(one, data_uri((run.path(FOLDER) / one.file).read_bytes(), "png")) for one in pictures]
            width_px = max(256, min(PICTURE_PX, wanted.size_px[0]))
            shown.value = template("widgets/drawn.html").render(drawn=drawn, width_px=width_px)
            call.value = template("widgets/call.html").render(call=wanted.call(run))
        finally:
            draw.disabled = False

    def roll(_) -> None:
        knobs["seed"].value = random.SystemRandom().randrange(MOST_SEEDS)

    draw.on_click(render)
    dice.on_click(roll)
    folded = w.Accordion([w.VBox([knobs[name] for name in names]) for names in FOLDED.values()], selected_index=None)
    for number, (heading, names) in enumerate(FOLDED.items()):
        folded.set_title(number, heading)
        if any(name in ("photo", "control") and knobs[name].value for name in names):
            folded.selected_index = number
    left = [*(knobs[name] for name in ALWAYS), w.HBox([draw, dice]), folded]
    right = w.VBox([line, shown, call], layout=w.Layout(flex="1 1 auto", min_width="0", margin="0 0 0 16px"))
    left = w.VBox(left, layout=w.Layout(width="400px", flex="0 0 auto"))
    return w.HBox([left, right], layout=w.Layout(width="100%"))


def request_of(knobs: dict, base: str) -> PictureRequest:
    """Return the request that the knobs are set to.

    Raises:
        BadConfig: two knobs contradict each other.
    """
    values = {name: round(knob.value, 6) if isinstance(knob.value, float) else knob.value  # a slider gives 0.6000000001
              for name, knob in knobs.items()}  # fmt: skip
    size = tuple(values.pop(side) for side in SIDES)
    return PictureRequest(base=base, size_px=size, **values)


def _knobs(run: Run, request: PictureRequest) -> dict:
    """Return a widget for each setting but the base, with the setting's docstring as its tooltip."""
    names = [name for name in PictureRequest.model_fields if name not in ("base", "size_px")]
    made = {name: _knob(run, request, name) for name in names} | {
        side: _knob(run, request, "size_px") for side in SIDES
    }
    for name, knob in made.items():
        setting = "size_px" if name in SIDES else name
        knob.description = name.replace("_", " ")
        knob.value = request.size_px[SIDES[name]] if name in SIDES else getattr(request, name)
        knob.style = {"description_width": "110px"}
        knob.layout.width = "auto"
        tooltip = "tooltip" if knob.has_trait("tooltip") else "description_tooltip"  # ipywidgets 8 and 7
        setattr(knob, tooltip, meaning(PictureRequest, setting))
    return made


def _knob(run: Run, request: PictureRequest, name: str):
    """Return the widget that suits a setting's type, with its range."""
    import ipywidgets as w

    schema = schema_of(PictureRequest, name)
    if name in ("photo", "control"):
        return w.Dropdown(options=_photos(run, getattr(request, name)))
    if "enum" in schema:
        return w.Dropdown(options=list(schema["enum"]))
    if "usual" in schema:
        low, high, step = schema["usual"]
        return (w.IntSlider if schema["type"] == "integer" else w.FloatSlider)(min=low, max=high, step=step)
    if name == "size_px":
        side = schema["prefixItems"][0]
        return w.BoundedIntText(min=side["minimum"], max=side["maximum"], step=8)
    if schema["type"] == "integer":
        return w.BoundedIntText(min=schema["minimum"], max=min(schema["maximum"], MOST_SEEDS - 1))
    return w.Textarea(layout=w.Layout(height="80px")) if name == "prompt" else w.Text()


def _photos(run: Run, also: str) -> list[tuple[str, str]]:
    """Return the run's kept photos to choose from, name and path, after "none", with the one a request names."""
    kept = run.path("photos") / "kept"
    paths = sorted(str(file) for file in kept.iterdir()) if kept.is_dir() else []
    paths += [also] * bool(also and also not in paths)
    return [("none", ""), *((Path(path).name, path) for path in paths)]
