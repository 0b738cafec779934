"""Run the command line: a command a stage, `run` for all of them, `demo` for the sample person."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from headshotkit.config import ASPECTS, AUGMENTS, CAPTIONERS, CLASS_WORDS, METHODS, OPTIMIZERS, SAMPLERS, DatasetConfig
from headshotkit.config.bases import BASES, choose_base, find_base
from headshotkit.config.few_steps import FEW_STEPS
from headshotkit.config.pick import scales_of
from headshotkit.core import __version__, runtime
from headshotkit.core.errors import BadConfig, HeadshotError, NoPhotos
from headshotkit.core.run import COMMANDS, STAGES, Run, bytes_of, clean_run
from headshotkit.families.costs import GPUS
from headshotkit.generation.prompts import PACKS

BAD_INPUT = 2
OWN_FAULT = 3
INTERRUPTED, NOBODY_READS, TERMINATED = 130, 141, 143

ABOUT = {
    "check": "judge the photos, keep the good ones, say why not the others",
    "prepare": "crop, resize and caption the kept photos",
    "train": "train the person's LoRA, or go on where it was interrupted",
    "pick": "choose the checkpoint and the LoRA's strength by pictures; generate then uses them",
    "generate": "generate headshots, try again where identity is below the pass mark",
    "restore": "restore faces with CodeFormer, where it is installed",
    "evaluate": "measure identity and sharpness, draw the plots",
    "gallery": "write the gallery page and the contact sheet",
    "token": "find a rare token that means nothing to the base, and say why",
    "export": "write the LoRA to a file for A1111, ComfyUI or diffusers",
    "prompts": "list the prompt bank, or some of its packs",
    "crop": "cut a whole folder around the faces to one size, without metadata",
    "plan": "what a run takes on a GPU, minutes and memory, and what to do without to fit",
    "clean": "delete earlier results, which were moved aside when a stage was done anew",
    "run": "all of it, from photos to gallery",
    "demo": "all of it on the sample person, offline, with the embedded base",
}


def _schedule(text: str) -> tuple[tuple[int, int], ...]:
    """Parse a training's sizes; argparse reports other texts.

    >>> _schedule("768:700,1024:300")
    ((768, 700), (1024, 300))
    """
    return tuple((int(px), int(steps)) for px, steps in (part.split(":") for part in text.split(",")))


def _scales(text: str) -> tuple[float, ...]:
    """Parse the LoRA scales to choose from, for argparse."""
    try:
        return scales_of(text)
    except BadConfig as error:
        raise argparse.ArgumentTypeError(f"{error.happened} {error.next_step}") from error


BANK_KNOBS: list[tuple[str, dict]] = [
    ("--prompts", {"help": "an own prompt bank, TOML"}),
    ("--pack", {"dest": "packs", "metavar": "NAME,...", "type": lambda text: tuple(text.replace(",", " ").split()),
                "help": f"prompts of these packs alone: {', '.join(PACKS)}; default: all"}),
]  # fmt: skip
DRAWING_KNOBS: list[tuple[str, dict]] = [
    ("--sampler-steps", {"type": int, "help": "sampler steps of a headshot; for generate --steps does, too"}),
    ("--guidance", {"type": float, "help": "classifier-free guidance scale; 1 is none"}),
    ("--word-guidance", {"type": float, "help": "strength of the bare base's sense of the prompt's words; 1 is none"}),
    ("--sampler", {"choices": SAMPLERS, "help": "which sampler draws"}),
]
SCHEDULE: tuple[str, dict] = ("--schedule", {
    "type": _schedule, "metavar": "PX:STEPS,...",
    "help": "sizes one after the other, such as 768:700,1024:300; default: the pictures' size throughout"})  # fmt: skip
MINUTES: tuple[str, dict] = ("--minutes", {
    "type": float, "help": "what it may take from now on: a plan decides what you leave open and changes its mind when "
    "steps take longer or memory runs out; tries are spent where they pass; 0: no limit; default: none, "
    "but 60 for run on CUDA"})  # fmt: skip
KNOBS: dict[str, list[tuple[str, dict]]] = {
    "check": [("--min-photos", {"type": int, "help": "fewest kept photos to go on with"})],
    "prepare": [
        ("--token", {"help": "rare token that names the person"}),
        (
            "--class-word",
            {
                "type": str.lower,
                "choices": CLASS_WORDS,
                "help": "what the person is; default: as the run began, else proposed from the photos",
            },
        ),
        ("--class-images", {"type": int, "help": "class images for prior preservation; 0 is none"}),
        ("--class-prompt", {"help": 'what they show, such as "oil painting of a woman"; default: a photo'}),
        ("--aspect", {"choices": ASPECTS, "help": "shape of the training pictures, width to height"}),
        ("--augment", {"choices": AUGMENTS, "help": "safe: turned and scaled a little; full: mirrored as well"}),
        ("--captioner", {"choices": CAPTIONERS, "help": "who writes the captions; template is offline"}),
    ],
    "train": [
        ("--method", {"choices": METHODS, "help": "a LoRA (default), the whole U-Net, new tokens, or tokens and LoRA"}),
        ("--steps", {"type": int, "help": "optimizer updates"}),
        SCHEDULE,
        MINUTES,
        (
            "--optimizer",
            {"choices": OPTIMIZERS, "help": "auto: adamw where the GPU has room for its state, else adamw8bit"},
        ),
        ("--face-weight", {"type": float, "help": "weight of the face in the loss, 1 is that of all else"}),
        ("--rank", {"type": int, "help": "rank of the LoRA"}),
        ("--snapshots", {"type": int, "help": "LoRA files to leave along the way, in lora/previews/"}),
    ],
    "pick": [
        ("--scales", {"type": _scales, "metavar": "SCALE,...", "help": "strengths to choose from; 0.6,0.8,1.0,1.2"}),
        ("--pick-prompts", {"type": int, "help": "prompts that each candidate draws; 6"}),
        *DRAWING_KNOBS + BANK_KNOBS[:1],
    ],
    "generate": [
        ("--lora-scale", {"type": float, "help": "strength of the last checkpoint, whatever was picked"}),
        ("--few-steps", {"choices": FEW_STEPS, "help": "a LoRA to draw in 8 steps with, used where identity holds"}),
        ("--count", {"type": int, "help": "number of headshots"}),
        ("--max-attempts", {"type": int, "help": "most tries a prompt gets, without --minutes"}),
        MINUTES,
        *DRAWING_KNOBS + BANK_KNOBS,
    ],
    "restore": [
        ("--fidelity", {"type": float, "help": "0 = better looking, 1 = truer to the input"}),
        ("--codeformer-weights", {"help": "path of codeformer.pth"}),
    ],
    "evaluate": [MINUTES],
    "gallery": [],
}
CROP_KNOBS: list[tuple[str, dict]] = [
    ("photos", {"type": Path, "help": "folder with photos"}),
    ("out", {"type": Path, "help": "folder for the crops"}),
    ("--size", {"dest": "size_px", "help": "a side of the square and the like in other shapes, or WIDTHxHEIGHT, px"}),
    ("--aspect", {"choices": (*ASPECTS, "auto"), "help": "shape, width to height; auto cuts least"}),
    ("--what", {"help": "head-and-shoulders, face or whole"}),
    ("--format", {"help": "jpg or png"}),
    ("--quality", {"type": int, "help": "JPEG quality, 1 to 100"}),
    ("--no-upscale", {"dest": "enlarge", "action": "store_false", "default": None, "help": "refuse small photos"}),
    ("--json", {"action": "store_true", "help": "print what became of each photo as JSON"}),
]
TOKEN_KNOBS: list[tuple[str, dict]] = [
    ("--base", {"help": f"{', '.join(BASES)}; default: by device"}),
    ("--candidates", {"type": int, "default": 12, "help": "how many of the rarest to try (default: %(default)s)"}),
    ("--seed", {"type": int, "default": 0, "help": "seed of the pictures"}),
    ("--json", {"action": "store_true", "help": "print the scores as JSON"}),
]
EXPORT_KNOBS: list[tuple[str, dict]] = [
    ("file", {"type": Path, "help": "the file to write, NAME.safetensors, or a folder"}),
    ("--out", {"type": Path, "default": Path("runs/me"), "help": "the run folder (default: %(default)s)"}),
    ("--format", {"default": "kohya", "help": "kohya, for A1111 and ComfyUI, or diffusers (default: %(default)s)"}),
    ("--json", {"action": "store_true", "help": "print the file's header as JSON"}),
]
PLAN_KNOBS: list[tuple[str, dict]] = [
    ("--gpu", {"default": "t4", "help": f"{', '.join(GPUS)} (default: %(default)s)"}),
    ("--count", {"type": int, "default": 50, "help": "number of headshots (default: %(default)s)"}),
    ("--minutes", {"type": float, "default": 60.0, "help": "what the run may take at worst (default: %(default)g)"}),
    ("--base", {"help": f"{', '.join(BASES)}; default: mini on cpu, else sdxl"}),
    ("--method", {"choices": METHODS, "default": METHODS[0], "help": "how it is trained (default: %(default)s)"}),
    ("--class-images", {"type": int, "default": 0, "help": "class images to draw, and to train beside"}),
    (
        "--pick",
        {
            "type": int,
            "default": 0,
            "metavar": "PICTURES",
            "help": "pictures that pick draws, 42 with 4 snapshots, "
            "4 strengths and 6 prompts; default: nothing is picked",
        },
    ),
    ("--json", {"action": "store_true", "help": "print the plan as JSON"}),
]
CLEAN_KNOBS: list[tuple[str, dict]] = [
    ("run", {"type": Path, "help": "the run folder"}),
    ("--yes", {"action": "store_true", "help": "delete it, for good"}),
    ("--json", {"action": "store_true", "help": "print names and bytes as JSON"}),
]
PROMPT_KNOBS = [*BANK_KNOBS, ("--json", {"action": "store_true", "help": "print the prompts as JSON"})]
SHARED: list[tuple[str, dict]] = [
    ("--out", {"type": Path, "default": Path("runs/me"), "help": "the run folder (default: %(default)s)"}),
    ("--base", {"help": f"{', '.join(BASES)}; default: by device"}),
    ("--seed", {"type": int, "help": "seed of everything random"}),
    ("--json", {"action": "store_true", "help": "print the manifest as JSON"}),
]


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(
        "headshotkit", description="Professional headshots from selfies, on your own machine."
    )
    top.add_argument("--version", action="version", version=f"headshotkit {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, about in ABOUT.items():
        one = commands.add_parser(command, help=about, description=about)
        if command in TOOLS:
            for name, options in TOOLS[command][0]:
                one.add_argument(name, **options)
            continue
        if command in ("check", "run"):
            one.add_argument("photos", type=Path, help="folder with 10-20 photos of one person")
        for name, options in SHARED:
            default = {"default": Path("demo")} if (command, name) == ("demo", "--out") else {}
            one.add_argument(name, **options | default)
        every = {name: (name, options) for part in {**KNOBS, "pick": []}.values() for name, options in part}.values()
        for name, options in every if command in ("run", "demo") else KNOBS[command]:
            alias = ["--steps"] if (command, name) == ("generate", "--sampler-steps") else []
            one.add_argument(name, *alias, **options)
    return top


class Terminated(KeyboardInterrupt):
    """SIGTERM was received, as from a scheduler or a machine that shuts down."""


def _terminate(*_) -> None:
    raise Terminated


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns: the exit code: 0 done, 2 bad input (the error has the next step), 3 a bug in headshotkit (its log is
        named), 130 interrupted, 141 the output's reader closed it, 143 terminated.
    """
    for stream in (sys.stdout, sys.stderr):  # a console may lack a character; it then shows its code
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    arguments = parser().parse_args(argv)
    runtime.set_environment()
    earlier = os.umask(0o077)  # files that libraries write may hold a face
    listening = threading.current_thread() is threading.main_thread()
    listening = listening and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if listening:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        _do(arguments)
        sys.stdout.flush()
    except HeadshotError as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        ended = "Stopped by SIGTERM" if isinstance(stop, Terminated) else "Interrupted"
        print(f"{ended}. Give the same command again: it goes on from the last checkpoint.", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it when it ends)
        return NOBODY_READS
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        if runtime.out_of_memory(error):
            print(f"OutOfMemory: memory gave out: {said}\n  {runtime.MORE_MEMORY}", file=sys.stderr)
            return BAD_INPUT
        print(
            f"{type(error).__name__}: {said}\n  This is a fault of headshotkit's own; what was finished before stays."
            f"\n  Its log, for a bug report: {_log(error)}",
            file=sys.stderr,
        )
        return OWN_FAULT
    finally:
        os.umask(earlier)
        if listening:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0


def _log(error: Exception) -> str:
    """Write an error with its traceback to a temporary file that only its owner can read; return its path."""
    try:
        handle, path = tempfile.mkstemp(prefix="headshotkit-", suffix=".log")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"headshotkit {__version__}, {runtime.versions()}\n")
            file.writelines(traceback.format_exception(error))
    except OSError as problem:
        return f"can't be written ({problem.strerror})"
    return path


def _do(arguments: argparse.Namespace) -> None:
    """Run the command; its lines go to standard error if standard output must hold JSON."""
    if arguments.command in TOOLS:
        return TOOLS[arguments.command][1](arguments)
    from headshotkit import pipeline

    options = _options(arguments, pipeline.Options)
    run = Run(arguments.out)
    tell = partial(print, flush=True)
    with contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext():
        if arguments.command in ("run", "demo"):
            pipeline.make_headshots(options.photos, run.folder, options, tell=tell)
            manifest = {stage: run.manifest(stage) for stage in STAGES}
        else:
            stage = {command: stage for stage, command in COMMANDS.items()}[arguments.command]
            if stage in pipeline.NEED_BASE or options.base:
                base, _ = pipeline.run_base(run, options)
                if caution := find_base(base).caution:
                    tell(f"{'base':<10} {base}: {caution}")
            planned = stage == "lora"  # generate keeps to its minutes itself
            controller = pipeline.begin_deadline(run, options, tell, ("download", "train")) if planned else None
            if run.has("headshots"):
                pipeline.do_missing(pipeline.LATE.get(stage, ()), run, options, tell)
            manifest = pipeline.do_stage(stage, run, options, controller)
            tell(pipeline.line_of(manifest, run))
    if arguments.json:
        print(json.dumps(manifest, indent=1))


def _crop(arguments: argparse.Namespace) -> None:
    """Crop a folder: print a line a photo, and at the end how many."""
    from headshotkit.dataset import crops

    names = ("size_px", "aspect", "what", "format", "quality", "enlarge")
    chosen = {name: getattr(arguments, name) for name in names} | crops.size_options(arguments.size_px)
    made = crops.crop_folder(arguments.photos, arguments.out, crops.CropConfig.with_options(**chosen))
    stream = sys.stderr if arguments.json else sys.stdout
    for crop in made:
        print(crops.line_of_crop(crop), file=stream)
    print(f"{'crop':<10} {sum(not c.reason for c in made)} of {len(made)} photos, in {arguments.out}", file=stream)
    if arguments.json:
        print(json.dumps([crop.to_dict() for crop in made], indent=1))
    if all(crop.reason for crop in made):
        raise NoPhotos(f"0 of {len(made)} photos were cropped.", "Each line above says why.", "Give other photos.")


def _export(arguments: argparse.Namespace) -> None:
    """Write the LoRA to a file: print a line, or the file's header."""
    from headshotkit.training import export

    file = export.export_lora(Run(arguments.out), arguments.file, arguments.format)
    stream = sys.stderr if arguments.json else sys.stdout
    print(f"{'export':<10} {file}, {arguments.format}, {file.stat().st_size / 2**20:.1f} MiB", file=stream)
    if arguments.json:
        print(json.dumps(export.header_of(file), indent=1, ensure_ascii=False))


def _prompts(arguments: argparse.Namespace) -> None:
    """List the prompt bank, or some of its packs: a table, or every field as JSON."""
    from headshotkit.generation import prompts

    chosen = prompts.in_packs(prompts.load_prompts(arguments.prompts or prompts.BANK), arguments.packs or ())
    print(json.dumps([asdict(p) for p in chosen], indent=1) if arguments.json else prompts.prompt_table(chosen))


def _token(arguments: argparse.Namespace) -> None:
    """Try the rarest tokens on a base: print a table that includes the default, and why the first is the best."""
    from headshotkit.dataset import tokens

    base, why = choose_base(arguments.base)
    scores = tokens.find_token(base, arguments.candidates, arguments.seed, also=(DatasetConfig.token,))
    stream = sys.stderr if arguments.json else sys.stdout
    print(f"base {base}: {why}\n{tokens.token_table(scores)}\n{scores[0].explain()}", file=stream)
    if arguments.json:
        print(json.dumps([score.to_dict() | {"trouble": score.trouble} for score in scores], indent=1))


def _plan(arguments: argparse.Namespace) -> None:
    """Plan a run: print a table, then the choices and why; load neither torch nor weights."""
    from headshotkit.planning import plan as planner

    known = {"method": arguments.method, "prior": arguments.class_images > 0}
    known |= {"class_images": arguments.class_images, "pick": arguments.pick}
    plan = planner.plan_run(arguments.gpu, arguments.count, arguments.minutes, arguments.base, **known)
    print(f"{planner.plan_table(plan)}\n\n{plan.explain()}", file=sys.stderr if arguments.json else sys.stdout)
    if arguments.json:
        print(json.dumps(plan.to_dict(), indent=1))


def _clean(arguments: argparse.Namespace) -> None:
    """Delete what was set aside when a stage was done again; without --yes only list it."""
    run = Run(arguments.run)
    found = {path.name: bytes_of(path) for path in run.earlier()}
    stream = sys.stderr if arguments.json else sys.stdout
    for name, size in found.items():
        print(f"{'clean':<10} {run.folder / 'earlier' / name}, {size / 2**20:.1f} MiB", file=stream)
    total = f"{sum(found.values()) / 2**20:.1f} MiB"
    if arguments.yes:
        clean_run(run)
        print(f"{'clean':<10} {total} were deleted", file=stream)
    else:
        more = "; nothing is deleted yet: give --yes as well" if found else ""
        print(f"{'clean':<10} {len(found)} earlier results, {total}{more}", file=stream)
    if arguments.json:
        print(json.dumps({"deleted": arguments.yes, "bytes": found}, indent=1))


TOOLS: dict[str, tuple[list[tuple[str, dict]], Callable[[argparse.Namespace], None]]] = {
    "crop": (CROP_KNOBS, _crop),
    "export": (EXPORT_KNOBS, _export),
    "prompts": (PROMPT_KNOBS, _prompts),
    "token": (TOKEN_KNOBS, _token),
    "plan": (PLAN_KNOBS, _plan),
    "clean": (CLEAN_KNOBS, _clean),
}
"""The commands that are no stage of a run: their arguments and functions."""


def _options(arguments: argparse.Namespace, kind: type):
    """Return the parsed arguments as the flow's options; the demo fills in the sample person."""
    given = {f.name: getattr(arguments, f.name) for f in fields(kind) if hasattr(arguments, f.name)}
    if arguments.command == "demo":
        given["photos"] = runtime.sample_person()
        given["base"] = given["base"] or "mini"
    return kind(**given)


if __name__ == "__main__":
    sys.exit(main())
