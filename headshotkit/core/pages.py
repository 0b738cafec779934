"""Fill in the HTML templates, and embed pictures as data, so that a page loads nothing from elsewhere."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path

from PIL import Image

PAGE = "index.html"
EMBED_BYTES = 150_000


@functools.cache
def template(name: str):
    """Return a file of `headshotkit/templates` to render; values are escaped, and one that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    files = PackageLoader("headshotkit")
    return Environment(loader=files, autoescape=True, undefined=StrictUndefined, trim_blocks=True).get_template(name)


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
