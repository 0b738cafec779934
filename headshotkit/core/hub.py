"""Weights from the Hugging Face hub: the only module that downloads from it.

Each repository is pinned by commit. Its files are downloaded once, into the hub's own cache. After that, stages load
from that folder without contacting the hub.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from headshotkit.core import runtime
from headshotkit.core.commits import COMMITS
from headshotkit.core.downloads import (
    TRANSFER,
    NotThere,
    NotWhole,
    Trouble,
    again,
    first_line,
    size_in_words,
    trouble_of,
)
from headshotkit.core.errors import DownloadFailed
from headshotkit.core.run import write_json

WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model)(?P<half>\.fp16)?(-\d{5}-of-\d{5})?(?P<old>\.fp16)?"
    r"\.safetensors(\.index(?P<index>\.fp16)?\.json)?"
)
"""Names of the weights that diffusers and transformers load, and of the index of sharded weights."""
SMALL = (".json", ".txt", ".model", ".jinja")
"""Endings of configs and tokenizers."""
INDEX = "model_index.json"
ROOT = ("",)
"""The parts of a repository that holds a single model, not a pipeline."""
GATE = ". Accept its licence on huggingface.co/{source} first and log in (hf auth login)"
loaded: dict[str, str] = {}
"""Hub id -> commit that this process has loaded."""


@dataclass(frozen=True)
class Wanted:
    """What to download from a repository.

    source: hub id, or a folder · title: its name in messages · otherwise: other options for the person, in words ·
    parts: the folders, ROOT for a single model, empty for all that the pipeline's index names · without: parts to
    skip · files: exact names, instead of parts · half: float16 weights if available · size_gb: approximate, for
    messages until the hub reports it · gated: a licence has to be accepted first.
    """

    source: str
    title: str
    otherwise: str
    parts: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    half: bool = False
    size_gb: float = 0.0
    gated: bool = False


def fetch(wanted: Wanted) -> Path:
    """Return the folder that holds the wanted files; download the missing ones.

    Raises:
        DownloadFailed: a file is missing and can't be downloaded.
    """
    if Path(wanted.source).is_dir():
        return Path(wanted.source)
    known = _listing_of(wanted.source)
    try:
        folder = _whole(wanted, known) if known else None
        if folder is None:
            folder = again(lambda before: _download(wanted, before), wanted.title)
    except Exception as error:
        folder = _unlisted(wanted) if known is None else None
        if folder is None:
            raise failed(wanted, error) from error
    loaded[wanted.source] = folder.name
    return folder


def is_here(wanted: Wanted) -> bool:
    """Return whether all files are here, without contacting the hub."""
    if Path(wanted.source).is_dir():
        return True
    known = _listing_of(wanted.source)
    return (_whole(wanted, known) if known else _unlisted(wanted)) is not None


def failed(wanted: Wanted, error: Exception) -> DownloadFailed:
    """Return the error for a failed download, to be raised from its cause."""
    trouble = trouble_of(error)
    size = f"about {wanted.size_gb:.{0 if wanted.size_gb >= 1 else 1}f} GB, " if wanted.size_gb else ""
    licence = GATE if wanted.gated and trouble.code != "gated" else ""
    return DownloadFailed(
        f"{wanted.title} ({wanted.source}) can't be loaded: {first_line(error)}",
        f"{trouble.why} It is downloaded once, {size}and finished files are kept.",
        f"{(trouble.next_step + licence).format(source=wanted.source)}, or {wanted.otherwise}",
        cause=trouble.code,
    )


def commit_of(source: str) -> str:
    """Return the commit that a repository is pinned to, else the downloaded one; empty without either."""
    return COMMITS.get(source) or (_listing_of(source) or {}).get("commit", "")


def commits_of(*sources: str) -> dict[str, str]:
    """Return hub id -> commit for the sources that this process has loaded from the hub."""
    return {source: loaded[source] for source in sources if source in loaded}


def choose_files(names: list[str], parts: tuple[str, ...], half: bool) -> list[str]:
    """Return the files of the parts: their safetensors weights in one precision, and their small files.

    >>> names = ["unet/config.json", "vae_1_0/model.safetensors", "unet/diffusion_pytorch_model.bin",
    ...          "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"]
    >>> choose_files(names, ("unet",), half=True)
    ['unet/config.json', 'unet/diffusion_pytorch_model.fp16.safetensors']
    >>> choose_files(names, ("unet",), half=False)
    ['unet/config.json', 'unet/diffusion_pytorch_model.safetensors']
    """
    chosen: list[str] = []
    for part in parts:
        inside = [name for name in names if name.rpartition("/")[0] == part]
        weights = {name: match for name in inside if (match := WEIGHTS.fullmatch(name.rpartition("/")[2]))}
        halves = [name for name, match in weights.items() if match["half"] or match["old"] or match["index"]]
        whole = [name for name in weights if name not in halves]
        chosen += [name for name in inside if name not in weights and name.endswith(SMALL)]
        chosen += halves if half and halves or not whole else whole
    return sorted(chosen)


def half_option(folder: Path | str, part: str = "", wanted: bool = True) -> dict:
    """Return from_pretrained's argument for float16 files, if the folder holds any.

    Args:
        part: subfolder that is loaded separately.
        wanted: False: only if it holds no others.
    """
    names = [file.name for file in (Path(folder) / part).rglob("*.safetensors") if WEIGHTS.fullmatch(file.name)]
    halves = [name for name in names if ".fp16" in name]
    return {"variant": "fp16"} if halves and (wanted or len(halves) == len(names)) else {}


# --- the hub's cache --------------------------------------------------------------------------------------------------


def _record(source: str) -> Path:
    """Return the path of a repository's saved file list, by the requested revision."""
    return runtime.cache_path("hub", f"{source.replace('/', '--')}@{COMMITS.get(source) or 'main'}.json")


def _listing_of(source: str) -> dict | None:
    """Return the saved file list, {"commit": ..., "files": {name: bytes}}; None if it is missing or invalid."""
    try:
        note = json.loads(_record(source).read_text(encoding="utf-8"))
        sound = re.fullmatch("[0-9a-f]{40}", note["commit"]) and all(int(size) >= 0 for size in note["files"].values())
        return note if sound else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _whole(wanted: Wanted, listing: dict) -> Path | None:
    """Return the folder in the hub's cache if it holds every wanted file at its size; else None."""
    folder = _snapshot(wanted.source, listing["commit"])
    names = _files_wanted(wanted, listing, folder)
    return folder if names and not _missing(folder, names, listing["files"]) else None


def _snapshot(source: str, commit: str) -> Path:
    """Return the folder of a commit's files in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model") / "snapshots" / commit


def _files_wanted(wanted: Wanted, listing: dict, folder: Path) -> list[str]:
    """Return the names of the wanted files; empty until the pipeline's index, which names its parts, is here."""
    if wanted.files:
        return list(wanted.files)
    parts = wanted.parts
    if not parts:
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return []
        parts = tuple(name for name, kind in index.items() if isinstance(kind, list) and kind[0])
    names = choose_files(list(listing["files"]), tuple(p for p in parts if p not in wanted.without), wanted.half)
    return names if wanted.parts else [INDEX, *names]


def _missing(folder: Path, names: list[str], sizes: dict[str, int]) -> list[str]:
    """Return the files that are not in the folder, or not at their size."""

    def is_whole(name: str) -> bool:
        file = folder / name
        return file.is_file() and file.stat().st_size == sizes.get(name)

    return [name for name in names if not is_whole(name)]


def _unlisted(wanted: Wanted) -> Path | None:
    """Return a folder of the hub's cache that another program filled; only loading shows if it is complete."""
    from huggingface_hub import try_to_load_from_cache

    probe = wanted.files[0] if wanted.files else "config.json" if wanted.parts == ROOT else INDEX
    try:
        found = try_to_load_from_cache(wanted.source, probe, revision=COMMITS.get(wanted.source))
    except ValueError:  # neither a folder nor a hub id
        return None
    return Path(found).parents[probe.count("/")] if isinstance(found, str) else None


# --- downloading ------------------------------------------------------------------------------------------------------


def _download(wanted: Wanted, before: Trouble | None) -> Path:
    """Download what is missing and return the folder."""
    from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download

    source = wanted.source
    listing = _listing_of(source)
    if listing is None:
        patience_s = constants.HF_HUB_ETAG_TIMEOUT
        about = HfApi().model_info(source, revision=COMMITS.get(source), files_metadata=True, timeout=patience_s)
        listing = {"commit": about.sha, "files": {file.rfilename: file.size or 0 for file in about.siblings}}
        write_json(_record(source), listing)
    commit, sizes = listing["commit"], listing["files"]
    if not wanted.files and not wanted.parts:
        hf_hub_download(source, INDEX, revision=commit)
    folder = _snapshot(source, commit)
    names = _files_wanted(wanted, listing, folder)
    missing = _missing(folder, names, sizes)
    unknown = [name for name in missing if name not in sizes]
    if unknown or not names:
        raise NotThere(f"commit {commit[:8]} holds no {unknown[0] if unknown else 'safetensors weights'}")
    if missing:
        size = sum(sizes[name] for name in missing)
        _check_room(folder, size)
        for file in (folder / name for name in missing):
            if file.exists():  # at another size: the hub's client would accept it
                file.resolve().unlink()
        runtime.say(
            f"downloading {wanted.title} ({source}), {size_in_words(size)}, once; an interrupted download resumes"
        )
        with _visible(plain=before is TRANSFER):
            snapshot_download(source, revision=commit, allow_patterns=missing)
    missing = _missing(folder, names, sizes)
    if missing:
        raise NotWhole(f"{len(missing)} of {len(names)} files are incomplete: {', '.join(missing[:3])}")
    return folder


def _check_room(folder: Path, needed: int) -> None:
    """Refuse a download that does not fit on the disk, before it begins.

    Raises:
        OSError: ENOSPC, with both numbers.
    """
    blobs = folder.parents[1] / "blobs"
    begun = sum(file.stat().st_size for file in blobs.glob("*.incomplete"))
    free = shutil.disk_usage(next(place for place in folder.parents if place.exists())).free
    if free + begun < needed:
        problem = f"it needs {size_in_words(needed)}, {size_in_words(free)} are free"
        raise OSError(errno.ENOSPC, problem, str(blobs.parents[1]))


@contextmanager
def _visible(plain: bool) -> Iterator[None]:
    """Show the hub's progress bars, which the loading libraries turn off; `plain`: without the xet protocol."""
    from huggingface_hub import constants
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hidden, xet_off = are_progress_bars_disabled(), constants.HF_HUB_DISABLE_XET
    if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()
    constants.HF_HUB_DISABLE_XET = xet_off or plain
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = xet_off
        if hidden and not constants.HF_HUB_DISABLE_PROGRESS_BARS:
            disable_progress_bars()
