"""Show widgets for upload and review in a notebook, thin wrappers of the verbs; without one they wait and do nothing.

They work with ipywidgets 7, which Colab has, and with 8.
"""

from __future__ import annotations

import contextlib
import html
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from urllib.parse import quote

from PIL import Image

from headshotkit.core import pages, runtime
from headshotkit.core.errors import HeadshotError, NoPhotos, NoRun
from headshotkit.core.pages import data_uri, embedded, template
from headshotkit.core.records import LEFT_OUT, Verdict
from headshotkit.core.results import PhotosResult
from headshotkit.core.run import COMMANDS, Run, make_folder
from headshotkit.delivery.pack import accepted_headshots, nothing_accepted, pack_headshots
from headshotkit.photos.files import find_photos
from headshotkit.widgets.uploads import PIECE_BYTES, UPLOADS, Arrival, Inbox, demand_all, keep_files, upload_on_colab

ALL, KEPT = "all photos", "kept"
NAME, VERDICT = "name", "verdict"
KEEP, LEAVE_OUT = "keep it anyway", "leave it out"
PAGE = 24
"""Photos on a page of a widget; each has its picture embedded, so a page of all would be slow."""
THUMB_PX = 176


def open_run(folder: Path | str, begins: bool = False) -> Run:
    """Return a run, and print its folder, whose photos it has and which stages are finished.

    From here on the stop button ends a cell with a line instead of a traceback.

    Args:
        folder: the run folder.
        begins: whether a new run may begin in it.
    Raises:
        NoRun: the folder holds no run, and none may begin there.
    """
    run = Run(folder)
    whole = run.folder.absolute()
    begun = [stage for stage in COMMANDS if run.peek(stage)]
    if not (begun or begins):
        others = sorted(place.parent.parent.name for place in whole.parent.glob("*/*/manifest.json"))
        there = (
            f"Runs next to it: {', '.join(dict.fromkeys(others))}." if others else "There is no run next to it either."
        )
        raise NoRun(
            f"{whole} holds no run.",
            there,
            "Set RUN to the folder of a run, or begin one with notebook 00_quickstart or 01_check_photos.",
        )
    finished = ", ".join(stage for stage in begun if run.has(stage)) or "none"
    judged = run.peek("photos")
    whose = run.placed(judged["folder"]) if judged.get("folder") else None
    sample = whose and whose.resolve() == runtime.sample_person().resolve()
    person = "the sample person, who does not exist" if sample else whose or ("not noted" if judged else "none yet")
    print(f"run folder: {whole}\nphotos:     {person}\nfinished:   {finished}")
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell:  # the stop button then ends a cell with one line, not with a traceback
        words = "Stopped. What was finished is kept: run the cell again to go on."
        shell.set_custom_exc((KeyboardInterrupt,), lambda *_, **__: print(words))
    return run


def take_headshots(run: Run):
    """Show the accepted headshots at full size, pack them into one zip, and offer it.

    On Colab the browser saves the zip; elsewhere a link that saves it is returned. If none is accepted, it shows why.

    Raises:
        StageMissing: no headshots were generated.
        DiskFull, RunFolderError: the zip can't be written.
    """
    from IPython.display import HTML, display

    accepted = accepted_headshots(run)
    if not accepted:
        error = nothing_accepted(run)
        print(error.happened, error.why, error.next_step, sep="\n")
        return None
    pictures = {name: embedded(file) for name, file in accepted.items()}
    display(HTML(template("widgets/headshots.html").render(headshots=pictures)))
    packed = pack_headshots(run)
    print(f"{len(accepted)} accepted headshots are in {packed.absolute()}")
    if "google.colab" not in sys.modules:
        # Without `download` JupyterLab opens a zip as text.
        return _link(packed, f"Save {packed.name}", packed.name)
    from google.colab import files

    files.download(str(packed))
    return None


def link_page(run: Run, stage: str):
    """Print where a stage's page lies, and return a link that opens it in JupyterLab; on Colab return None.

    Args:
        stage: photos or gallery.
    Raises:
        StageMissing: the stage is not finished.
        DamagedRun: the page is missing, or was changed.
    """
    (page,) = run.files(stage, [pages.PAGE])
    print(f"The page is {page.absolute()}")
    if "google.colab" not in sys.modules:
        return _link(page, f"Open {stage}/{pages.PAGE}")
    print("Download it from the Files pane on the left, and open it in your browser.")
    return None


def _link(file: Path, words: str, saved_as: str = ""):
    """Return a link to a file relative to the notebook; None if it is on another drive, which a link can't reach."""
    from IPython.display import HTML

    try:
        place = Path(os.path.relpath(file)).as_posix()
    except ValueError:
        return None
    return HTML(template("widgets/link.html").render(address=quote(place), words=words, saved_as=saved_as))


def uploaded_files(value) -> list[tuple[str, bytes]]:
    """Return the files in `FileUpload().value` as (name, bytes); names have no folders in them.

    Args:
        value: a dict of name -> file in ipywidgets 7, a tuple of files in 8.

    >>> uploaded_files({"me.jpg": {"metadata": {"name": "me.jpg"}, "content": b"1"}})
    [('me.jpg', b'1')]
    >>> uploaded_files(({"name": "../me.jpg", "content": memoryview(b"1")},))
    [('me.jpg', b'1')]
    """
    named = value.items() if isinstance(value, dict) else [(file["name"], file) for file in value]
    files = [(PureWindowsPath(name).name, bytes(file["content"])) for name, file in named]
    return [(name, content) for name, content in files if name not in ("", ".", "..")]


def photo_folder(photos: str, run: Run) -> tuple[Path, str]:
    """Return the photos' folder, and why: the named one, else uploads, else the run's, else the sample person's.

    Raises:
        UploadIncomplete: not all photos chosen for upload arrived.
        NoPhotos: the run began with a folder that it doesn't name.
    """
    if photos:
        return Path(photos), "the folder that you chose"
    uploads = run.folder / UPLOADS
    demand_all(uploads)
    if _files_in(uploads):
        return uploads, f"the {len(find_photos(uploads))} uploaded photos"
    begun = run.peek("photos")
    if begun.get("folder"):
        return run.placed(begun["folder"]), "the folder that the run began with"
    if begun:
        why = "Their path holds a person's name, so it was not stored."
        raise NoPhotos(f"{run.folder} doesn't say where its photos are.", why, "Name the folder.")
    return runtime.sample_person(), "the sample person, because no photos were given"


def upload_photos(run: Run):
    """Show a button that uploads photos into the run's `uploads/`, and a line with how many of them arrived.

    On Colab it is Colab's own, and the cell ends when all are there. Elsewhere anywidget sends them in pieces. Without
    anywidget ipywidgets' button sends all in one message, and Jupyter drops one above 10 MiB (tornado's limit); so the
    line names the folder, which is created here, because the file browser has no such limit.
    """
    folder = run.folder / UPLOADS
    if "google.colab" in sys.modules:
        upload_on_colab(folder)
        print(_uploads_line(folder))
        return None
    with contextlib.suppress(OSError):  # the error comes when something is written
        make_folder(folder)
    try:
        import anywidget
    except ImportError:
        return _plain_upload(folder)
    import traitlets

    class PhotoUpload(anywidget.AnyWidget):
        """The button of `upload.js`, which sends pieces, and the line next to it."""

        _esm = Path(__file__).with_name("upload.js").read_text(encoding="utf-8")
        said = traitlets.Unicode().tag(sync=True)
        piece_bytes = traitlets.Int(PIECE_BYTES).tag(sync=True)
        patience_ms = traitlets.Int(10_000, help="how long an answer is waited for").tag(sync=True)

        def __repr__(self) -> str:
            """Return the text shown if the page can't show the button."""
            without = "If you see no button, install anywidget where Jupyter runs, or use the file browser."
            return f"{self.said} {without}"

    inbox, button = Inbox(folder), PhotoUpload(said=_uploads_line(folder))

    def take(_, message: dict, pieces: list) -> None:
        reply = inbox.answer(message, pieces)
        button.said = _uploads_line(folder, inbox.arrival)
        button.send(reply)

    button.on_msg(take)
    return button


def _plain_upload(folder: Path):
    """Show ipywidgets' button, which sends all files in one message."""
    import ipywidgets

    button = ipywidgets.FileUpload(accept="image/*,.heic,.heif,.avif", multiple=True, description="Add photos")
    limit = (
        "This button takes about 10 MB in total and drops larger files silently: drag more into that folder in "
        "the file browser, or install anywidget (pip install anywidget) and start the notebook again."
    )
    line = ipywidgets.HTML(f"{html.escape(_uploads_line(folder))} {limit}")

    def take(change) -> None:
        keep_files(folder, uploaded_files(change["new"]))
        line.value = f"{html.escape(_uploads_line(folder))} {limit}"

    button.observe(take, names="value")
    return ipywidgets.VBox([button, line])


def _files_in(folder: Path) -> list[str]:
    """Return the names in a folder, except hidden ones, such as Jupyter's own."""
    return [f.name for f in folder.iterdir() if not f.name.startswith(".")] if folder.is_dir() else []


def _uploads_line(folder: Path, arrival: Arrival | None = None) -> str:
    """Return how many of the chosen photos arrived, and how many are in the folder."""
    there = len(_files_in(folder))
    line = f"{there or 'No'} photo{'s' * (there != 1)} in {folder}."
    if arrival is None:
        return line
    done = f" {line} Now run the next cell." if arrival.complete else ""
    return arrival.words + done


class _Pages:
    """Widgets shown PAGE at a time, each built when it is first shown.

    Args:
        make: builds the widget of a name.
    """

    def __init__(self, make: Callable[[str], object]) -> None:
        import ipywidgets

        self.make, self.made, self.names = make, {}, []
        self.number = ipywidgets.BoundedIntText(value=1, min=1, max=1, description="Page")
        self.row = ipywidgets.HBox(layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.number.observe(self._draw, names="value")
        self.box = ipywidgets.VBox([self.number, self.row])

    def show(self, names: list[str]) -> None:
        """Show the first page of these names."""
        self.names = names
        self.number.max = max(1, math.ceil(len(names) / PAGE))
        self.number.description = f"of {self.number.max}"
        self.number.value = 1
        self._draw()

    def _draw(self, _=None) -> None:
        shown = self.names[(self.number.value - 1) * PAGE : self.number.value * PAGE]
        for name in shown:
            if name not in self.made:
                self.made[name] = self.make(name)
        self.row.children = [self.made[name] for name in shown]


def review_verdicts(run: Run):
    """Show all photos with frame, verdict and reasons, to filter, sort and override, a page at a time.

    The button below a photo overrides its verdict: `override.override_verdict` records it, and later stages notice.

    Raises:
        StageMissing: the photos have not been judged.
    """
    import ipywidgets

    verdicts = _verdicts(run)
    codes = [ALL, KEPT, *sorted({_code(v) for v in verdicts.values()} - {KEPT})]
    choice = ipywidgets.Dropdown(options=codes, value=ALL, description="Show")
    order = ipywidgets.Dropdown(options=[VERDICT, NAME, *_numbers(verdicts)], value=VERDICT, description="Sort by")
    falling = ipywidgets.Checkbox(value=False, description="largest first", indent=False)
    line = ipywidgets.HTML(_count_line(verdicts))
    pages = _Pages(lambda name: _verdict_card(run, name, line))

    def show(_=None) -> None:
        now = _verdicts(run).values()
        pages.show(sorted_names([v for v in now if choice.value in (ALL, _code(v))], order.value, falling.value))

    for control in (choice, order, falling):
        control.observe(show, names="value")
    show()
    return ipywidgets.VBox([ipywidgets.HBox([choice, order, falling]), line, pages.box])


def _verdict_card(run: Run, name: str, line):
    """Return one photo with its verdict and the button that overrides it."""
    import ipywidgets

    page = ipywidgets.HTML()
    button = ipywidgets.Button()

    def draw() -> None:
        verdicts = _verdicts(run)
        verdict, number = verdicts[name], list(verdicts).index(name)
        thumb = run.path("photos") / "thumbs" / f"{number:03d}.jpg"
        picture = data_uri(thumb.read_bytes(), "jpeg") if thumb.exists() else ""
        page.value = template("widgets/verdict.html").render(verdict=verdict, picture=picture)
        button.description = LEAVE_OUT if verdict.kept else KEEP
        button.disabled = "face_box_px" not in verdict.measures  # there is no face to crop around

    def override(_) -> None:
        from headshotkit.photos.override import override_verdict

        try:
            override_verdict(run, name, not _verdicts(run)[name].kept)
        except HeadshotError as error:
            line.value = html.escape(str(error))
            return
        draw()
        line.value = _count_line(_verdicts(run))

    button.on_click(override)
    draw()
    return ipywidgets.VBox([page, button], layout=ipywidgets.Layout(width="176px"))


def _verdicts(run: Run) -> dict[str, Verdict]:
    """Return the current verdicts by the photos' names, in the order of the thumbnails."""
    return {verdict.photo: verdict for verdict in PhotosResult.load(run).verdicts}


def _count_line(verdicts: dict[str, Verdict]) -> str:
    kept = sum(v.kept for v in verdicts.values())
    words = f"{kept} of {len(verdicts)} photos are kept"
    overridden = sum(v.overridden for v in verdicts.values())
    return words + (f"; overridden by you: {overridden}." if overridden else ".")


def _numbers(verdicts: dict[str, Verdict]) -> list[str]:
    """Return the measures that are one number, by which photos can be sorted."""
    return sorted({name for v in verdicts.values() for name, value in v.measures.items() if _is_number(value)})


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def sorted_names(verdicts: list[Verdict], by: str, falling: bool) -> list[str]:
    """Return the photos' names sorted by name, verdict (kept first) or a measure; those without the measure come last.

    >>> a, b = Verdict("a", True), Verdict("b", True, measures={"yaw_deg": 1})
    >>> c = Verdict("c", True, measures={"yaw_deg": 9})
    >>> sorted_names([b, a, c], "yaw_deg", falling=True), sorted_names([b, a, c], "name", falling=False)
    (['c', 'b', 'a'], ['a', 'b', 'c'])
    """
    verdicts = sorted(verdicts, key=lambda v: v.photo)
    if by == NAME:
        return [v.photo for v in verdicts][:: -1 if falling else 1]
    if by == VERDICT:
        verdicts.sort(key=lambda v: (not v.kept, _code(v)), reverse=falling)
        return [v.photo for v in verdicts]
    there = [v for v in verdicts if _is_number(v.measures.get(by))]
    missing = [v.photo for v in verdicts if not _is_number(v.measures.get(by))]
    return [v.photo for v in sorted(there, key=lambda v: v.measures[by], reverse=falling)] + missing


def _code(verdict: Verdict) -> str:
    """Return a verdict's group: kept, its first reason, or left out by the person."""
    return KEPT if verdict.kept else verdict.reasons[0].code if verdict.reasons else LEFT_OUT


def edit_captions(run: Run):
    """Show every training picture with its caption to edit, a page at a time; leaving a field saves it.

    Raises:
        StageMissing: the dataset has not been built.
    """
    import ipywidgets

    from headshotkit.dataset.captions import note_edits

    captions = {photo.file: photo.caption for photo in note_edits(run).photos}
    line = ipywidgets.HTML(f"{len(captions)} captions.")
    pages = _Pages(lambda file: _caption_card(run, file, captions[file], line))
    pages.show(list(captions))
    return ipywidgets.VBox([line, pages.box])


def _caption_card(run: Run, file: str, caption: str, line):
    """Return one training picture above its caption."""
    import ipywidgets

    size = ipywidgets.Layout(width="176px", height="90px")
    field = ipywidgets.Textarea(value=caption, continuous_update=False, layout=size)

    def write(change) -> None:
        from headshotkit.dataset.captions import edit_caption

        try:
            edit_caption(run, file, change["new"])
        except HeadshotError as error:
            line.value = html.escape(str(error))
        else:
            line.value = f"The caption of {html.escape(file)} is saved."

    field.observe(write, names="value")
    thumb = io.BytesIO()
    with Image.open(run.path("dataset") / file, formats=("PNG",)) as picture:
        picture.convert("RGB").resize((THUMB_PX, THUMB_PX * picture.height // picture.width)).save(thumb, "JPEG")
    shown = template("widgets/picture.html").render(picture=data_uri(thumb.getvalue(), "jpeg"))
    return ipywidgets.VBox([ipywidgets.HTML(shown), field], layout=ipywidgets.Layout(width="186px"))
