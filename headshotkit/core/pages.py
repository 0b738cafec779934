"""One HTML page that loads nothing: its style, its pictures as data, and its content policy."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from PIL import Image

PAGE = "index.html"
EMBED_BYTES = 150_000
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content policy of a page: it loads nothing; its pictures and its style are inside."""
STYLE = """
:root{--page:#fafafa;--card:#fff;--ink:#222;--soft:#555;--tick:#2a7f3f;--cross:#b3382c}
@media(prefers-color-scheme:dark){:root{--page:#181818;--card:#242424;--ink:#eee;--soft:#b0b0b0;--tick:#6cc283;
--cross:#f08a7e}}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:78rem;padding:0 1rem;color:var(--ink);
background:var(--page)}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2rem 0 .6rem}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem;align-items:start}
figure{margin:0;background:var(--card);border-radius:.5rem;overflow:hidden;box-shadow:0 1px 4px #0002}
figure img{width:100%;display:block}
figcaption{padding:.5rem .7rem;font-size:.8rem;color:var(--soft);overflow-wrap:anywhere}
figcaption b{display:block;color:var(--ink);font-size:.9rem}.pass b::before{content:"\\2713 ";color:var(--tick)}
.near b::before{content:"\\2717 ";color:var(--cross)}
table{border-collapse:collapse;font-size:.9rem}td,th{padding:.25rem .9rem .25rem 0;text-align:left}
footer{margin:2.5rem 0 1rem;font-size:.8rem;color:var(--soft)}
"""


def document(title: str, parts: list[str]) -> str:
    """Return a page of HTML parts; it loads nothing from elsewhere."""
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<title>{html.escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def embedded(file: Path, most_px: int = 0) -> str:
    """Return a picture as a data URI: a small PNG itself, else a JPEG, so that fifty large ones fit a page.

    Args:
        most_px: largest width and height of the JPEG; 0: those of the picture.
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
    return data_uri(data, kind)


def data_uri(picture: bytes, kind: str) -> str:
    """Return a picture file's bytes as a data URI; kind: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
