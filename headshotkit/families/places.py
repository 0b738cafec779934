"""Load a family's code and figures by their place in its `FamilySpec`."""

from __future__ import annotations

from typing import Any

from headshotkit.core import runtime


def code_at(place: str) -> Any:
    """Return a module of this room, or with "module:name" the object of that name in it.

    >>> code_at("sdxl_kohya:KOHYA_VERSION")
    'sdxl_base_v1-0'
    """
    module, _, name = place.partition(":")
    loaded = runtime.import_whole(f"headshotkit.families.{module}")
    return getattr(loaded, name) if name else loaded
