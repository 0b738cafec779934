"""A panel with the knobs known from A1111, thin over `render_pictures`; it shows the call that draws a picture again.

It works with ipywidgets 7, which Colab has, and with 8; where nobody looks it waits and does nothing.
"""

from __future__ import annotations

import base64
import html

from headshotkit import runtime
from headshotkit.config import SAMPLERS
from headshotkit.errors import HeadshotError
from headshotkit.pictures import FOLDER, Picture, PictureRequest, Studio
from headshotkit.run import Run

SIDES = {"width": 0, "height": 1}
"""Knobs of `size_px`; every other knob is named like the setting of PictureRequest that it stands for."""


def control_panel(run: Run, request: PictureRequest, studio: Studio | None = None):
    """Knobs that begin as a request says, a button that draws, the pictures, and the call that draws them again.

    Args:
        studio: what earlier requests have loaded; None loads it when the button is first pressed.
    """
    import ipywidgets

    knobs, studio = _knobs(request), studio or Studio(run)
    button = ipywidgets.Button(description="Draw", button_style="primary")
    line, shown, call = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()

    def draw(_) -> None:
        button.disabled, line.value = True, "Drawing."
        try:
            wanted = request_of(knobs, request.base)
            pictures = studio.render(wanted)
        except HeadshotError as error:
            line.value = html.escape(str(error)).replace("\n", "<br>")
        except Exception as error:  # a notebook shows a callback's traceback in a log at most
            line.value = html.escape(_unexpected(error))
            runtime.free_memory()
        else:
            line.value = f"{len(pictures)} in {html.escape(str(run.path(FOLDER)))}. The call that draws them again:"
            shown.value = "".join(_shown(run, picture) for picture in pictures)
            call.value = f"<pre>{html.escape(wanted.call(run))}</pre>"
        finally:
            button.disabled = False

    button.on_click(draw)
    return ipywidgets.VBox([*knobs.values(), button, line, call, shown])


def _unexpected(error: Exception) -> str:
    """What happened, in one line, and what to do where it is the GPU's memory."""
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no words'}"
    return f"{said} Draw fewer at once (batch), or smaller." if runtime.out_of_memory(error) else said


def request_of(knobs: dict, base: str) -> PictureRequest:
    """What the knobs say.

    Raises:
        BadConfig: two knobs contradict each other.
    """
    values = {name: knob.value for name, knob in knobs.items()}
    size = tuple(values.pop(side) for side in SIDES)
    return PictureRequest(base=base, size_px=size, **values)


def _knobs(request: PictureRequest) -> dict:
    """A widget a setting, by its name, in the order in which they are shown."""
    import ipywidgets as w

    made = {
        "prompt": w.Textarea(),
        "negative": w.Text(),
        "steps": w.IntSlider(min=1, max=60),
        "guidance": w.FloatSlider(min=1.0, max=15.0, step=0.5),
        "guidance_share": w.FloatSlider(min=0.0, max=1.0, step=0.05),
        "sampler": w.Dropdown(options=list(SAMPLERS)),
        "seed": w.BoundedIntText(min=0, max=2**31 - 1),
        "width": w.BoundedIntText(min=16, max=2048, step=8),
        "height": w.BoundedIntText(min=16, max=2048, step=8),
        "batch": w.BoundedIntText(min=1, max=16),
        "lora_scale": w.FloatSlider(min=0.0, max=2.0, step=0.05),
        "photo": w.Text(placeholder="path of a photo to begin with"),
        "strength": w.FloatSlider(min=0.05, max=1.0, step=0.05),
        "control": w.Text(placeholder="path of a photo whose edges are obeyed"),
        "control_scale": w.FloatSlider(min=0.0, max=2.0, step=0.05),
        "refiner": w.FloatSlider(min=0.0, max=0.95, step=0.05),
    }
    for name, knob in made.items():
        knob.description = name.replace("_", " ")
        knob.value = request.size_px[SIDES[name]] if name in SIDES else getattr(request, name)
        knob.style = {"description_width": "110px"}
    return made


def _shown(run: Run, picture: Picture) -> str:
    """A picture with its seed and identity, as HTML that loads nothing from elsewhere."""
    data = base64.b64encode((run.path(FOLDER) / picture.file).read_bytes()).decode()
    figure = f'<img src="data:image/png;base64,{data}" style="width:176px" alt="">'
    return f'<div style="display:inline-block;margin:4px">{figure}<br>seed {picture.seed}: {picture.words}</div>'
