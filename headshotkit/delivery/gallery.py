"""The gallery: one self-contained HTML page and a contact sheet of the delivered headshots."""

from __future__ import annotations

import base64
import html
import io
import math
from pathlib import Path

from PIL import Image, ImageOps

from headshotkit.core import locks
from headshotkit.core.run import Run, write_atomic
from headshotkit.generation.shortfall import OFFERED, is_offered

PAGE = "index.html"
SHEET = "contact_sheet.png"
TILE_PX = 256
EMBED_BYTES = 150_000
SHOWN_PX = 640
"""Width at which a large headshot is shown; its link holds it at full size."""
WORDS = {
    "no_face": "no face was found", "many_faces": "more than one face", "small_face": "the face is small",
    "unclear_face": "no clear face", "soft_face": "the face is not sharp", "eyes_closed": "the eyes are closed",
    "other_person": "not surely you", "copy_of_photo": "almost a copy of one of your photos",
    "near_twin": "almost the same picture as another",
}  # fmt: skip
"""A reason of the identity gate, for people."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""What a page may load: nothing; its pictures and its style are inside."""
STYLE = """
:root{--page:#fafafa;--card:#fff;--ink:#222;--soft:#555;--tick:#2a7f3f;--cross:#b3382c}
@media(prefers-color-scheme:dark){:root{--page:#181818;--card:#242424;--ink:#eee;--soft:#b0b0b0;--tick:#6cc283;
--cross:#f08a7e}}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:78rem;padding:0 1rem;color:var(--ink);
background:var(--page)}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .6rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem;align-items:start}
figure{margin:0;background:var(--card);border-radius:.5rem;overflow:hidden;box-shadow:0 1px 4px #0002}
figure img{width:100%;display:block}figcaption{padding:.5rem .7rem;font-size:.8rem;color:var(--soft)}
figcaption b{display:block;color:var(--ink);font-size:.9rem}.pass b::before{content:"\\2713 ";color:var(--tick)}
.near b::before{content:"\\2717 ";color:var(--cross)}
table{border-collapse:collapse;font-size:.9rem}td,th{padding:.25rem .9rem .25rem 0;text-align:left}
footer{margin:2.5rem 0 1rem;font-size:.8rem;color:var(--soft)}
"""


@locks.writes("gallery")
def build_gallery(run: Run) -> Path:
    """Writes `gallery/`: index.html, which holds its pictures itself, contact_sheet.png, manifest.json.

    Returns: the page's path.
    Raises:
        StageMissing: the run has not been evaluated.
    """
    generated, judged = run.manifest("headshots"), run.manifest("photos")
    metrics = run.manifest("report")["metrics"]
    shots = {h["file"]: h for h in generated["headshots"]}
    threshold = generated["pass_mark"]["mark"]
    delivered = [shots[file] for file in generated["delivered"] if is_offered(shots[file], threshold)]
    files = run.files("restored", [shot["file"] for shot in delivered])
    stage = run.begin("gallery", {}, run.inputs_from("headshots", "restored", "report"))
    if stage.done:
        return stage.folder / PAGE
    write_atomic(stage.folder / SHEET, contact_sheet(files))
    write_atomic(stage.folder / PAGE, page(delivered, files, generated, judged, metrics))
    passed = sum(h["accepted"] for h in delivered)
    stage.finish(f"{len(delivered)} headshots in gallery/{PAGE}, {passed} of them at or above the pass mark")
    return stage.folder / PAGE


def contact_sheet(files: list[Path], columns: int = 6) -> bytes:
    """All pictures in one PNG, each whole in a square tile of TILE_PX, row by row."""
    rows = max(1, math.ceil(len(files) / columns))
    sheet = Image.new("RGB", (columns * TILE_PX, rows * TILE_PX), "white")
    for number, file in enumerate(files):
        with Image.open(file, formats=("PNG",)) as picture:
            tile = ImageOps.pad(picture.convert("RGB"), (TILE_PX, TILE_PX), Image.Resampling.LANCZOS, color="white")
        sheet.paste(tile, (number % columns * TILE_PX, number // columns * TILE_PX))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def page(delivered: list[dict], files: list[Path], generated: dict, judged: dict, metrics: dict) -> str:
    """The gallery as one HTML page; nothing in it is loaded from elsewhere."""
    cards = [_card(n, shot, file) for n, (shot, file) in enumerate(zip(delivered, files, strict=True), 1)]
    passed = [c for c, shot in zip(cards, delivered, strict=True) if shot["accepted"]]
    near = [c for c, shot in zip(cards, delivered, strict=True) if not shot["accepted"]]
    wanted = len(generated["delivered"])
    mark = generated["pass_mark"]
    kept = sum(v["kept"] for v in judged["verdicts"])
    parts = [
        "<h1>Your headshots</h1>",
        f"<p>{len(passed)} of {wanted} pass as surely you: identity at least {mark['mark']:.2f}. "
        f"That mark comes from your own photos: {html.escape(str(mark['reason']))}.</p>",
    ]
    if passed:
        parts.append(f'<h2>Surely you</h2><div class="grid">{"".join(passed)}</div>')
    if near:
        parts.append(f'<h2>Below the mark</h2><p>The best try of each prompt that did not pass. Look twice before you '
                     f'use one.</p><div class="grid">{"".join(near)}</div>')  # fmt: skip
    if wanted > len(cards):
        what = f"{wanted - len(cards)} of {wanted} are not shown: their identity is below {OFFERED:.0%} of the mark"
        parts.append(f"<p>{what}.</p>")
    if causes := generated.get("causes"):
        rows = [f"<li>{html.escape(c['why'])}. {html.escape(c['next_step'])}</li>" for c in causes]
        parts.append(f"<h2>Why so few pass, and what to do</h2><ol>{''.join(rows)}</ol>")
    parts += ["<h2>How they were made</h2>", _facts(generated, kept, len(judged["verdicts"]), metrics)]
    parts.append("<footer>Generated by a diffusion model with headshotkit, not photographs. Identity is the cosine of "
                 "ArcFace embeddings; no picture left the machine.</footer>")  # fmt: skip
    return document("Your headshots", parts)


def document(title: str, parts: list[str]) -> str:
    """Return a page of parts that are HTML already; nothing in it is loaded from elsewhere."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _card(number: int, shot: dict, file: Path) -> str:
    """Return one headshot with what it is; its link saves it at full size, from the page itself.

    So the page works wherever it is sent.
    """
    name = html.escape(shot["prompt_id"].replace("-", " "))
    if shot.get("likeness") is None:
        words = "no likeness to tell"
    else:
        words = f"{shot['likeness']:.0%} as much like you as your own photos are ({shot['identity']:.2f})"
    if shot["reasons"]:
        words += f"; {', '.join(WORDS.get(code, code) for code in shot['reasons'])}"
    how = html.escape(f"{shot['prompt']} / seed {shot['seed']}, attempt {shot['attempt']}")
    whole = embedded(file)
    saved = f"{number:02d}_{shot['prompt_id']}." + ("png" if whole.startswith("data:image/png") else "jpg")
    shown = whole if len(whole) <= 2 * EMBED_BYTES else embedded(file, SHOWN_PX)
    return (
        f'<figure class="{"pass" if shot["accepted"] else "near"}"><a href="{whole}" download="{html.escape(saved)}">'
        f'<img src="{shown}" alt="{name}" title="{how}"></a>'
        f"<figcaption><b>{name}</b>{html.escape(words)}</figcaption></figure>"
    )


def embedded(file: Path, most_px: int = 0) -> str:
    """Return a picture as a data URI: the PNG itself if it is small, else a JPEG, so that fifty large ones fit a page.

    Args:
        most_px: width and height that the JPEG has at most; 0: those of the picture.
    """
    data, kind = file.read_bytes(), "png"
    if len(data) > EMBED_BYTES:
        buffer, kind = io.BytesIO(), "jpeg"
        with Image.open(file, formats=("PNG",)) as picture:
            whole = picture.convert("RGB")
        if most_px:
            whole.thumbnail((most_px, most_px), Image.Resampling.LANCZOS)
        whole.save(buffer, "JPEG", quality=85 if most_px else 92)
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _facts(generated: dict, kept: int, given: int, metrics: dict) -> str:
    """What made the pictures, as a table."""
    identity = metrics["identity"]
    rows = [
        ("Photos", f"{kept} kept of {given}"),
        ("Base", generated["config"]["base"]),
        ("Attempts", f"{metrics['accepted']} accepted of {metrics['attempted']}"),
        ("Seconds", ", ".join(f"{stage} {s:.0f}" for stage, s in metrics["seconds"].items())),
        ("Made", f"{generated['finished']}, headshotkit {generated['headshotkit']}"),
    ]
    for name, m in identity.items():
        medians = [m["base_median"], m["lora_median"], m["own_photos_median"]]
        shown = ["none" if v is None else f"{v:.2f}" for v in medians]
        rows.append((f"Identity, {name}", "base {}, LoRA {}, own photos {} (medians)".format(*shown)))
    cells = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(str(v))}</td></tr>" for k, v in rows)
    return f"<table>{cells}</table>"
