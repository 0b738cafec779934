"""Class images: pictures of the class from the bare base, for prior preservation; drawn once, shared between runs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from PIL import Image

from headshotkit.config import GenerateConfig, PrepareConfig
from headshotkit.config.bases import find_base
from headshotkit.core import hub, runtime
from headshotkit.core.run import make_folder, sha256_of, write_atomic
from headshotkit.families import Sampling, load_family, weights_place
from headshotkit.families.jobs import Job, draw
from headshotkit.photos.files import png_bytes


def build_class_images(config: PrepareConfig, folder: Path, changes: list[dict] | None = None) -> list[str]:
    """Return the class images of a dataset, drawn or taken from an earlier run.

    They are kept in the cache folder's class/, in a folder for each recipe: base, fingerprint of its weights, class
    word, prompt, seed, size, steps, guidance and its share. Each PNG's text records its recipe; a damaged PNG, or one
    with another recipe, is drawn again. A run links to them, or copies them if links are impossible. An interrupted
    run resumes.

    Args:
        folder: of the dataset; they go to its class/.
        changes: savings made after memory ran out; new ones are appended.
    Returns: their names, relative to `folder`.
    Raises:
        BaseUnavailable: some are missing, and the base's weights can't be loaded.
        DiskFull, RunFolderError: they can't be written.
    """
    names = [f"class/{number:03d}.png" for number in range(config.class_images)]
    if all((folder / name).exists() for name in names):
        return names
    family = None if weights_version(config.base) else load_family(config.base)  # loading downloads the weights
    recipe = class_recipe(config)
    cache_dir = _cache_dir(recipe)
    for number, name in enumerate(runtime.progress(names, "class images")):
        picture, facts = cache_dir / f"{number:03d}.png", recipe | {"noise": str(runtime.seed_for(config.seed, number))}
        if not _made_by(picture, facts):
            family = family or load_family(config.base)
            family.changes = family.changes if changes is None else changes
            job = Job(recipe["prompt"], "", int(facts["noise"]), (int(recipe["size_px"]),) * 2)
            guidance = float(recipe["guidance"]), float(recipe["guidance_share"])
            for _, image in draw(family, [job], Sampling(job.size_px, int(recipe["steps"]), *guidance)):
                write_atomic(picture, png_bytes(image, **facts))  # two processes at once write the same
        _link(picture, folder / name)
    return names


def missing_class_images(config: PrepareConfig) -> int:
    """Return how many class images of a config the cache lacks; a damaged one counts as present until it is read."""
    if not config.class_images:
        return 0
    cache_dir = class_cache_dir(config)
    return sum(not (cache_dir / f"{number:03d}.png").is_file() for number in range(config.class_images))


def weights_version(base_name: str) -> str:
    """Return an id of a base's weights: a sha256 for a folder, the hub's commit for a download; "" if not known.

    Raises:
        UnknownBase: no base has that name.
        BaseUnavailable: the base's folder or file is missing.
    """
    base = find_base(base_name)
    if base.source.startswith("data:"):
        place = Path(weights_place(base))
        files = sorted(f for f in place.rglob("*") if f.is_file() and not f.name.startswith("."))
        listing = "".join(f"{f.relative_to(place).as_posix()} {sha256_of(f)}\n" for f in files)
        return hashlib.sha256(listing.encode()).hexdigest()
    if base.like and base.place:
        return base.name  # it holds a fingerprint of the weights
    commits = [hub.commit_of(source) for source in base.sources]
    return " ".join(commits) if all(commits) else ""


def class_cache_dir(config: PrepareConfig) -> Path:
    """Return the cache folder of a config's class images."""
    return _cache_dir(class_recipe(config))


def _cache_dir(recipe: dict[str, str]) -> Path:
    return runtime.cache_path("class", hashlib.sha256(repr(sorted(recipe.items())).encode()).hexdigest())


def class_recipe(config: PrepareConfig) -> dict[str, str]:
    """Return the settings that determine the class images, as text."""
    render = GenerateConfig.for_base(config.base).without_base_guidance()
    facts = {
        "base": config.base,
        "weights": weights_version(config.base),
        "class_word": config.class_word,
        "prompt": config.class_prompt or f"photo of a {config.class_word}",
        "seed": config.seed,
        "size_px": config.size_px,
        "steps": render.sampler_steps,
        "guidance": render.guidance,
        "guidance_share": render.guidance_share,
    }
    return {name: str(value) for name, value in facts.items()}


def _made_by(picture: Path, facts: dict[str, str]) -> bool:
    """Return whether an undamaged picture with the same recipe exists."""
    try:
        with Image.open(picture, formats=("PNG",)) as image:
            image.load()
            return image.text == facts
    except (OSError, ValueError, SyntaxError, AttributeError):
        return False


def _link(picture: Path, place: Path) -> None:
    """Put a class image into a run: as a hard link, or as a copy if the file system has no links."""
    make_folder(place.parent)
    if place.exists():
        return
    try:
        os.link(picture, place)
    except OSError:
        write_atomic(place, picture.read_bytes())
