"""Export what was trained for other programs: kohya's naming for A1111 and ComfyUI, or diffusers' unchanged."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from headshotkit.config.bases import find_base
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig, BadLora
from headshotkit.core.finite import spoilt
from headshotkit.core.records import Lora
from headshotkit.core.results import LoraResult
from headshotkit.core.run import Run, write_atomic
from headshotkit.families.lora_files import file_bytes
from headshotkit.families.places import code_at

FORMATS = ("kohya", "diffusers")
SUFFIX = ".safetensors"
PEFT_METADATA = "lora_adapter_metadata"
"""Header key of peft's config. diffusers would read kohya's names by it, so kohya's file has none."""


@runtime.frees_memory
def export_lora(run: Run, path: Path | str, format: str = "kohya") -> Path:
    """Write what the run has trained to a separate file; an existing file is replaced.

    New tokens have one format for all programs, which find them by the file's name: so pivotal's are written next to
    the LoRA as TOKEN.safetensors.

    Args:
        path: the file, ending in .safetensors; or an existing folder, then person.safetensors in it, or
            TOKEN.safetensors if only new tokens were trained.
        format: kohya (A1111, ComfyUI, and diffusers too) or diffusers (a copy, with peft's config in its header).
    Returns: the file's path.
    Raises:
        StageMissing: nothing has been trained.
        DamagedRun: what was trained is missing or changed.
        BadConfig: the format is unknown, the base's family has no kohya naming, the path has another ending, or the
            whole U-Net was trained.
        BadLora: the file holds layers that have no name in kohya's naming, or NaN or infinity.
        DiskFull, RunFolderError: the file can't be written.
    """
    lora = LoraResult.load(run).lora
    run.files("lora", lora.files, thorough=True)
    source, called = run.path("lora") / lora.path, f"{Path(lora.token).name}{SUFFIX}"
    name = called if lora.method == "textual-inversion" else lora.path.name
    target = Path(path) / name if Path(path).is_dir() else Path(path)
    if lora.method == "dreambooth":
        raise BadConfig(
            f"{source.parent} holds a whole U-Net, not a LoRA.",
            "It replaces the base's U-Net, so there is no small file to load on top of a base.",
            "Give diffusers the folder (UNet2DConditionModel.from_pretrained), or train with --method lora.",
        )
    if format not in FORMATS:
        raise BadConfig(
            f"format is {format!r}.", f"The known formats are: {', '.join(FORMATS)}.", "Choose one of them."
        )
    if target.suffix != SUFFIX:
        raise BadConfig(
            f"{target} does not end in {SUFFIX}.",
            "A1111, ComfyUI and diffusers recognise a LoRA file by its ending.",
            f"Name it {target.with_suffix(SUFFIX).name}.",
        )
    for file in [run.path("lora") / name for name in lora.files or (lora.path,)]:
        _demand_sound(file, run)
    as_it_is = format == "diffusers" or lora.method == "textual-inversion"
    write_atomic(target, source.read_bytes() if as_it_is else _kohya_file(source, lora))
    if lora.method == "pivotal":
        write_atomic(target.with_name(called), (run.path("lora") / lora.files[1]).read_bytes())
    return target


def _demand_sound(file: Path, run: Run) -> None:
    """Raise BadLora if a file can't be read, or holds NaN or infinity."""
    try:
        names = spoilt(load_file(file))
        problem, cause = f"{len(names)} of its tensors hold NaN or infinity: {', '.join(names[:2])}", None
    except (OSError, SafetensorError) as error:
        names, problem, cause = [""], str(error).splitlines()[0], error
    if names:
        raise BadLora(
            f"{file} can't be exported.",
            f"{problem}.",
            f"Train again: headshotkit train --out {run.folder}",
        ) from cause


def header_of(path: Path) -> dict[str, str]:
    """Return a LoRA file's metadata on how it was trained."""
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def _kohya_file(source: Path, lora: Lora) -> bytes:
    """Return the same matrices under kohya's names, each pair with its alpha, which diffusers keeps in the header."""
    family, spec = find_base(lora.base).family, find_base(lora.base).spec
    if not spec.kohya:
        raise BadConfig(
            f"base {lora.base!r} is of the family {family}, for which kohya's naming is not implemented.",
            "Names differ from family to family.",
            "Export it for diffusers: --format diffusers",
        )
    module = code_at(spec.kohya)
    tensors = {name.removeprefix(spec.lora_prefix): tensor for name, tensor in load_file(source).items()}
    names = module.kohya_names(dict.fromkeys(name.rpartition(".lora_")[0] for name in tensors))
    renamed = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".lora_")
        renamed[f"{names[layer]}.lora_{'down' if part == 'A.weight' else 'up'}.weight"] = tensor
        renamed[f"{names[layer]}.alpha"] = torch.tensor(float(lora.alpha))
    return file_bytes(renamed, _header(source, lora, module.KOHYA_VERSION))


def _header(source: Path, lora: Lora, version: str) -> dict[str, str]:
    """Return the trained file's metadata and kohya's own fields: A1111 shows them and sorts by the version."""
    said = {name: value for name, value in header_of(source).items() if name != PEFT_METADATA}
    captions = json.loads(said["headshotkit.captions"])
    tags = Counter(tag for caption in captions for tag in caption.split(", "))
    source = find_base(lora.base).public_source
    return said | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.rank),
        "ss_network_alpha": str(lora.alpha),
        "ss_steps": str(lora.step),
        "ss_tag_frequency": json.dumps({lora.token: dict(tags.most_common())}),
        **({"ss_base_model_version": version, "ss_sd_model_name": source} if source else {}),
    }
