"""The bases: the source of each one's weights, the family that runs it, and the settings that suit it.

`find_base` alone decides what a base is. Besides the presets of BASES it takes a hub id, a folder or a file, which get
the settings of their family's preset. A run stores a folder or a file by NAME@FINGERPRINT, never by its path, because a
run may be given away. Where it lies is kept in the cache folder of this machine.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from headshotkit.config.families import FAMILIES, FamilySpec
from headshotkit.config.pretrained import (
    INDEX,
    SDXL_SIZE_PX,
    SUFFIX,
    Pretrained,
    read_family,
    read_layout,
    read_pretrained,
)
from headshotkit.core import hub
from headshotkit.core.errors import BaseUnavailable, DownloadFailed, UnknownBase
from headshotkit.core.run import read_json, write_json
from headshotkit.core.runtime import cache_path, choose_device, typed_path


@dataclass(frozen=True)
class Base:
    """A pretrained model: its source, the family whose code runs it, and the settings that suit it.

    `brief_prompts`: the text encoders know few words, so the bank's brief prompts are used. `square_only`: it was
    trained on squares, so all headshots are drawn square. `presets`: the settings of each config, and those of a
    training method ("TrainConfig.METHOD"). `without_base_guidance`: guidance and guidance share of pictures
    without base-model guidance; None: as in headshots. `experimental`: what was never tried with it; shown when the
    base is chosen. `download_gb`: size of its weights, GB. `gated`: the hub requires its licence to be accepted
    first. `controlnet`, `refiner`: sources of its ControlNet for edges and its refiner, a hub id or a folder of the
    project's data; empty: none. `restorer`: folder of its own face restorer in the project's data; empty: none.
    `like`: the preset whose settings it has; empty: it is a preset. `usual`: it has the sizes for which its family's
    costs were counted, if they were.
    """

    name: str
    family: str
    source: str
    licence: str
    vae: str = ""
    brief_prompts: bool = False
    square_only: bool = False
    presets: dict = None
    experimental: str = ""
    without_base_guidance: tuple[float, float] | None = None
    download_gb: float = 7.0
    gated: bool = False
    controlnet: str = ""
    refiner: str = ""
    restorer: str = ""
    like: str = ""
    usual: bool = True

    @property
    def spec(self) -> FamilySpec:
        """Return the record of its family."""
        return FAMILIES[self.family]

    @property
    def counted(self) -> bool:
        """Return whether costs were counted for it, so that its time can be planned."""
        return self.usual and bool(self.spec.costs)

    @property
    def place(self) -> Path | None:
        """Return the folder or the file of a base that lies on this machine; None: a hub id, or the project's data."""
        path = Path(self.source)
        return path if path.is_absolute() else None

    @property
    def is_file(self) -> bool:
        """Return whether it is a single file, not a folder in diffusers' layout."""
        return self.source.endswith(SUFFIX) and self.place is not None

    @property
    def public_source(self) -> str:
        """Return its source as other people may read it: a hub id, or its name; empty for the project's data."""
        return "" if self.source.startswith("data:") else self.name if self.place else self.source

    @property
    def sources(self) -> tuple[str, ...]:
        """Return the sources of its pipeline: folder or hub id of the base, and of its own autoencoder if any."""
        return tuple(source for source in (self.source, self.vae) if source)

    @property
    def caution(self) -> str:
        """Return the warning for a person who chooses an experimental base; empty for other bases."""
        return f"experimental: {self.experimental}; licence {self.licence}" if self.experimental else ""


# Not tried on a GPU. dreambooth: the rate of diffusers' DreamBooth examples; textual-inversion: that of its SDXL
# example, 5e-4 for each of 4 pictures a step; pivotal: cog-sdxl's, 1e-4 for the LoRA and 3e-4 for the tokens.
_SDXL = {
    "PrepareConfig": {},
    "TrainConfig": {},
    "TrainConfig.dreambooth": {"learning_rate": 5e-6, "steps": 800, "checkpointing": True, "keep_checkpoints": 1},
    "TrainConfig.textual-inversion": {"learning_rate": 2e-3, "caption_dropout": 0.0, "checkpointing": True},
    "TrainConfig.pivotal": {"checkpointing": True},
    "GenerateConfig": {"guidance_share": 0.6},
}
# This project has never run these weights, only the embedded base's of the same classes.
_SDXL_CONTROLS = {
    "controlnet": "diffusers/controlnet-canny-sdxl-1.0-small", "refiner": "stabilityai/stable-diffusion-xl-refiner-1.0",
}  # fmt: skip
_UNTRIED = "its real weights have never been run by this project, its code has, on small random ones"
_FLOW_TRAINING = {"rank": 16, "alpha": 16, "min_snr_gamma": 0.0, "checkpointing": True}


def _flow(**render) -> dict:
    """Return presets of the flow-matching bases: untested estimates after model cards and diffusers' scripts."""
    return {"PrepareConfig": {}, "TrainConfig": _FLOW_TRAINING, "GenerateConfig": render}


BASES = {
    base.name: base
    for base in (
        Base(
            "mini", "sdxl", "data:mini/base", "made for this project; demo and test only", brief_prompts=True,
            square_only=True, without_base_guidance=(3.0, 0.2),
            controlnet="data:mini/controlnet", refiner="data:mini/refiner", restorer="data:mini/restorer",
            presets={
                "PrepareConfig": {
                    "size_px": 256, "face_fractions": (0.55, 0.65),
                    "held_out": 0,  # a LoRA of this base misses every photo (tests/benchmarks/README.md)
                },
                "TrainConfig": {
                    "rank": 32, "alpha": 32, "targets": "all", "steps": 1000, "batch": 4,
                    "learning_rate": 2e-3, "checkpoint_every_steps": 50,
                    "face_weight": 10.0,  # p2: identity 0.51, background adherence 70 %; with 1: 0.48, 52 %
                },
                "TrainConfig.dreambooth": {"learning_rate": 2e-4, "steps": 600, "keep_checkpoints": 1},
                # Identity does not rise, at 1e-2 it falls, at 0.1 faces fall apart: no word here names a face
                # (tests/benchmarks/README.md).
                "TrainConfig.textual-inversion": {"learning_rate": 3e-3, "steps": 300, "caption_dropout": 0.0},
                "TrainConfig.pivotal": {"steps": 600},
                "GenerateConfig": {
                    "size_px": 256, "sampler_steps": 20, "batch": 8, "count": 24, "max_attempts": 5,
                    "guidance": 1.0, "guidance_share": 0.2,  # base-model guidance alone; guidance > 1 would act early
                    "base_guidance": 2.5,  # p2: smile adherence 60 -> 90 %, background 63 -> 90 %
                    "min_sharpness": 3.6,  # 21 headshots 4.0 to 5.9, blurred by 1.5 px at most 3.4
                },
            },
        ),
        Base(
            "sdxl", "sdxl", "SG161222/RealVisXL_V5.0", "openrail++", vae="madebyollin/sdxl-vae-fp16-fix", presets=_SDXL,
            **_SDXL_CONTROLS,
        ),
        Base(
            "sdxl-base", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "openrail++",
            vae="madebyollin/sdxl-vae-fp16-fix", presets=_SDXL,
            **_SDXL_CONTROLS,
        ),
        Base(
            "flux", "flux", "black-forest-labs/FLUX.1-dev", "FLUX.1 [dev], non-commercial", gated=True,
            presets=_flow(sampler_steps=28, guidance=3.5), experimental=_UNTRIED, download_gb=33.7,
        ),
        # Not the distilled klein or Z-Image-Turbo: training undoes a distillation.
        Base(
            "flux2", "flux2", "black-forest-labs/FLUX.2-klein-base-4B", "Apache-2.0",
            presets=_flow(sampler_steps=28, guidance=4.0), experimental=_UNTRIED, download_gb=16.0,
        ),
        Base(
            "zimage", "zimage", "Tongyi-MAI/Z-Image", "Apache-2.0",
            presets=_flow(sampler_steps=28, guidance=5.0), experimental=_UNTRIED, download_gb=20.5,
        ),
    )
}  # fmt: skip


STORED = re.compile(r".+@(?P<print>[0-9a-f]{16})")
"""How a run names a folder or a file."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
OTHER_WAYS = f"a hub id (owner/name), a folder in diffusers' layout, or a {SUFFIX} file"


def find_base(name: str) -> Base:
    """Return a base: a preset, a hub id, a folder in diffusers' layout, a .safetensors file, or one that a run stores.

    No weights are loaded. Of a hub id the configs are downloaded once, a few kB.

    Raises:
        UnknownBase: it is none of these, or its weights are of another kind.
        BaseUnavailable: a run stores it, and it is not where it was; or the hub can't be reached.
    """
    if name in BASES:
        return BASES[name]
    if stored := STORED.fullmatch(name):
        return _stored(name, stored["print"])
    if is_path(name):
        return _local(typed_path(name).absolute())
    if HUB_ID.fullmatch(name):
        return _on_hub(name)
    raise UnknownBase(
        f"no base is called {name!r}.",
        f"The {len(BASES)} known ones are: {', '.join(BASES)}.",
        f"Choose one of them, for example --base {next(iter(BASES))}; or give {OTHER_WAYS}.",
    )


def is_path(name: str) -> bool:
    """Return whether a person means a folder or a file, which may be missing.

    >>> [is_path(name) for name in ("sdxl", "SG161222/RealVisXL_V5.0", "./model", "a/b/c", "photon.safetensors")]
    [False, False, True, True, True]
    """
    if name in BASES or STORED.fullmatch(name) or not name:
        return False
    begins = name.startswith((".", "~", "/")) or Path(name).is_absolute()
    ends = name.endswith((SUFFIX, ".ckpt", ".bin", ".pt", "/"))
    return begins or ends or "\\" in name or name.count("/") > 1 or os.path.exists(typed_path(name))


def stored_name(name: str) -> str:
    """Return a base's name as a run may hold it: NAME@FINGERPRINT for a folder or a file, else as it is.

    Raises:
        UnknownBase: the folder or file is no base.
    """
    return find_base(name).name if is_path(name) else name


def same_weights(one: str, other: str) -> bool:
    """Return whether two stored names are of the same weights; a folder or a file may have been renamed."""
    prints = [found["print"] if (found := STORED.fullmatch(name)) else name for name in (one, other)]
    return prints[0] == prints[1]


def _local(path: Path) -> Base:
    """Return the base in a folder or a file, and note where it lies."""
    found = read_pretrained(path)
    known = found.fingerprint[:16]
    called = re.sub(r"[^\w.+-]+", "-", path.resolve().stem if path.is_file() else path.resolve().name)[:60] or "base"
    note = cache_path("bases", f"{known}.json")
    if read_json(note, {}) != {"path": str(path)}:
        write_json(note, {"path": str(path)})
    return _other(f"{called}@{known}", str(path), found)


def _stored(name: str, known: str) -> Base:
    """Return the base that a run names, if it still lies where it was given."""
    note = read_json(cache_path("bases", f"{known}.json"), {"path": str}) or {}
    path, again = Path(note.get("path", "")), "Give it again: --base PATH"
    if not note:
        happened = f"the folder or file of base {name!r} is not known on this machine."
        raise BaseUnavailable(happened, "A run stores its name and its fingerprint, never a path.", again)
    try:
        found = read_pretrained(path)
    except UnknownBase as error:
        raise BaseUnavailable(f"base {name!r} can't be used any more: {error.happened}", error.why, again) from error
    if found.fingerprint[:16] != known:
        raise BaseUnavailable(
            f"{path} is no longer base {name!r}: its files were changed.",
            "Results of two bases can't be mixed.",
            "Put the earlier files back and give their place, --base PATH; or begin again with the new ones.",
        )
    return _other(name, str(path), found)


def _on_hub(name: str) -> Base:
    """Return the base of a hub id, by its configs."""
    wanted = hub.Wanted(name, f"the configs of base {name!r}", f"give {OTHER_WAYS.partition(', ')[2]}.", files=(INDEX,))
    try:
        folder = hub.fetch(wanted)
        if parts := FAMILIES[read_family(folder, name)].read_configs:
            folder = hub.fetch(replace(wanted, files=tuple(f"{part}/config.json" for part in parts)))
    except DownloadFailed as error:
        if error.cause != "no such file":
            raise
        raise UnknownBase(
            f"{name} on the hub is no base in diffusers' layout: {error.happened}",
            f"Only such repositories can be loaded by their id; a single {SUFFIX} file can be loaded by its path.",
            f"Download the file and give its path: --base FILE{SUFFIX}",
        ) from error
    return _other(name, name, read_layout(folder, name))


def _other(name: str, source: str, found: Pretrained) -> Base:
    """Return a base that is no preset, with the settings of its family's preset and the size of its own pictures."""
    untried = Base(found.family, found.family, "", "", presets=FAMILIES[found.family].presets)
    usual = BASES.get(found.family, untried)
    presets = {kind: dict(settings) for kind, settings in usual.presets.items()}
    if found.size_px != SDXL_SIZE_PX:
        for kind in ("PrepareConfig", "GenerateConfig"):
            presets.setdefault(kind, {})["size_px"] = found.size_px
    controls = {} if found.usual else {"controlnet": "", "refiner": ""}
    size = {"download_gb": found.numbers * 2 / 1e9} if found.numbers else {}
    return replace(
        usual, name=name, source=source, vae="", licence="not known: read it where you got the weights", gated=False,
        like=usual.name, usual=found.usual, presets=presets, **controls, **size,
    )  # fmt: skip


def choose_base(name: str | None) -> tuple[str, str]:
    """Choose the base, and return it with the reason: the named one, else by device.

    Returns: (name as a run stores it, reason).
    Raises:
        UnknownBase, BaseUnavailable: as `find_base`.
    """
    if name:
        base = find_base(name)
        return base.name, "chosen by the command" + (f"; {base.caution}" if base.caution else "")
    device, why = choose_device()
    if device == "cpu":
        return "mini", f"{why}, so the small embedded base is used; a run with --base sdxl would take many hours here"
    return "sdxl", why
