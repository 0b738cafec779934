"""Run the command line: a command a stage, `run` for all of them, `demo` for the sample person.

The options of each command are made from the settings in `config/`; nothing is listed here a second time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, NotRequired, Required, TypedDict

import tyro

from headshotkit.config import CropConfig, LeakConfig, PlanConfig, RunSettings, TokenConfig
from headshotkit.config.base import MOST_LETTERS, Settings, allowed, meaning, schema_of
from headshotkit.config.bases import BASES, OTHER_WAYS, choose_base, find_base
from headshotkit.config.run_settings import CONFIGS, NAMES, SHARED, flag, in_options
from headshotkit.core import __version__, runtime
from headshotkit.core.errors import ACTING, BadConfig, HeadshotError, NoPhotos
from headshotkit.core.run import Run, bytes_of, clean_run

BAD_INPUT = 2
OWN_FAULT = 3
INTERRUPTED, NOBODY_READS, TERMINATED = 130, 141, 143

Given = dict[str, object]
"""Arguments that were given, by their names in Python."""


def option(hint: object, help_: str, note: str = "", metavar: str = "") -> object:
    """Return the annotation of an option for tyro, or of a required positional argument if it has a metavar."""
    note = f"({note})" if note else ""
    if metavar:
        argument = tyro.conf.arg(help=help_, help_behavior_hint=note, metavar=metavar)
        return Required[Annotated[tyro.conf.Positional[hint], argument]]
    return NotRequired[Annotated[hint, tyro.conf.arg(help=help_, help_behavior_hint=note)]]


BASE = f"The base model: {', '.join(BASES)}; or {OTHER_WAYS}."
USUAL_BASE = "sdxl on a GPU, else mini"
JSON = option(bool, "Print the result as JSON.")
RUN_FOLDER = option(Path, "The run folder.", "default: runs/me")


def options_of(kind: type[Settings], names: list[str] | None = None) -> dict[str, object]:
    """Return the options that set the fields of a config: name -> annotation."""
    return {
        name: option(_hint(kind, name), meaning(kind, name), _note(kind, name)) for name in names or kind.model_fields
    }


def _hint(kind: type[Settings], name: str) -> object:
    """Return the type that tyro reads; a word is read as text in small letters, for the config knows the words."""
    words = schema_of(kind, name).get("enum", ())
    if not words:
        return kind.model_fields[name].annotation
    word = tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(filter(None, words))}}}",
        instance_from_str=lambda given: given[0].lower(),
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )
    return Annotated[str, word]


def _note(kind: type[Settings], name: str) -> str:
    """Return a setting's range and default, and the presets of sdxl and mini that differ from it."""
    default = kind.model_fields[name].default
    presets = {base: BASES[base].presets.get(kind.__name__, {}).get(name, default) for base in ("sdxl", "mini")}
    notes = [allowed(kind, name).partition("number ")[2]] if kind.model_fields[name].annotation in (int, float) else []
    usual = DEFAULTS.get(name, as_typed(default))
    notes += [f"default: {usual}"] if usual else []
    notes += [f"{as_typed(preset)} with base {base}" for base, preset in presets.items() if preset != default]
    return "; ".join(notes)


DEFAULTS = {"class_word": ""}
"""Settings whose help says itself what happens if they are not set."""


def as_typed(value: object) -> str:
    """Return a setting's value as a person types it: a list has spaces between."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


FIRST = ("class_word", "count")
"""Settings that most people set: the help shows them before those of the stages."""


def run_options(commands: tuple[str, ...], others: tuple[str, ...] = ()) -> dict[str, object]:
    """Return the options of stages by their names in RunSettings; with several stages, those of each are a group.

    Args:
        commands: those whose settings are all included.
        others: names of further settings.
    """
    made = {"base": option(str, BASE, f"default: as the run began; for a new run {USUAL_BASE}")}
    if "minutes" in others or {"generate", "evaluate"} & {*commands}:
        limit = "Time limit in minutes from now; settings that you don't give are chosen so that the run fits; 0: none."
        made["minutes"] = option(float, limit, "default: no limit; 60 for run on an NVIDIA GPU")
    made["seed"] = option(int, "Random seed.", "default: 0")
    groups: dict[str, dict[str, object]] = {command: {} for command in commands}
    for name, ((kind, own), *_) in NAMES.items():
        command = next(command for command, home in CONFIGS.items() if home is kind)
        if name not in SHARED and (name in others or command in commands):
            group = groups.get(command, made) if len(commands) > 1 and name not in FIRST else made
            group[name] = options_of(kind, [own])[own]
    for command, options in groups.items():
        if options:
            made[command] = Annotated[TypedDict(command, options), tyro.conf.arg(help=COMMAND_LINE[command].about)]
    return made


@dataclass(frozen=True)
class Command:
    """A command: its line in the help, its options and its function."""

    about: str
    options: Callable[[], dict[str, object]]
    run: Callable[[str, Given], None]
    folder: Path = field(default=Path("runs/me"))

    def parse(self, name: str, words: list[str]) -> Given:
        """Return the given arguments. Wrong ones, and --help, end the program as argparse does."""
        arguments = TypedDict("Arguments", self.options())
        given = tyro.cli(
            arguments, args=words, prog=f"headshotkit {name}", description=self.about,
            config=(tyro.conf.OmitArgPrefixes,),
        )  # fmt: skip
        groups = [value for value in given.values() if isinstance(value, dict)]
        return {key: value for part in (given, *groups) for key, value in part.items() if not isinstance(value, dict)}


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
    runtime.set_environment()
    earlier = os.umask(0o077)  # files that libraries write may hold a face
    listening = threading.current_thread() is threading.main_thread()
    listening = listening and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if listening:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        command, given = parse(sys.argv[1:] if argv is None else argv)
        COMMAND_LINE[command].run(command, given)
        sys.stdout.flush()
    except HeadshotError as error:
        print(in_options(str(error)), file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as stop:
        ended = "Stopped by SIGTERM" if isinstance(stop, Terminated) else "Interrupted"
        print(f"{ended}. Give the same command again: it resumes where it stopped.", file=sys.stderr)
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (Python flushes it when it ends)
        return NOBODY_READS
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        if runtime.out_of_memory(error):
            print(f"OutOfMemory: {said}\n  {runtime.MORE_MEMORY}", file=sys.stderr)
            return BAD_INPUT
        print(
            f"{type(error).__name__}: {said}\n  This is a bug in headshotkit. Finished work is kept."
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


def parse(words: list[str]) -> tuple[str, Given]:
    """Return the command and the arguments that were given.

    Raises:
        SystemExit: --help, --version, or an unknown command or option.
        BadConfig: an argument holds control characters, or is endless.
    """
    for word in words:
        if ACTING.search(word) or len(word) > MOST_LETTERS:
            raise BadConfig(
                f"the argument {word[:80]!r} holds control characters, or is longer than {MOST_LETTERS} characters.",
                "A terminal would act on it.",
                "Type it anew; rename a file whose name holds them.",
            )
    if words == ["--version"]:
        print(f"headshotkit {__version__}")
        raise SystemExit(0)
    if words and words[0] in COMMAND_LINE:
        return words[0], COMMAND_LINE[words[0]].parse(words[0], words[1:])
    about = "Professional headshots from selfies, on your own machine."
    listed = {name: _listed(command.about) for name, command in COMMAND_LINE.items()}
    tyro.extras.subcommand_cli_from_dict(listed, args=words or ["--help"], prog="headshotkit", description=about)
    raise SystemExit(BAD_INPUT)


def _listed(about: str) -> Callable[[], None]:
    """Return a function that tyro lists with this line."""

    def command() -> None:
        pass

    command.__doc__ = about
    return command


def chosen_by(command: str, given: Given) -> RunSettings:
    """Return the settings of a run that were given; the demo fills in the sample person.

    Raises:
        BadConfig: a setting is out of its range.
    """
    if command == "demo":
        given = {"base": "mini"} | given | {"photos": runtime.sample_person()}
    return RunSettings(**settings_in(given, RunSettings))


def settings_in(given: Given, kind: type[Settings]) -> Given:
    """Return the given arguments that are settings of a config."""
    return {name: value for name, value in given.items() if name in kind.model_fields}


def _stage(command: str, given: Given) -> None:
    """Run a stage, or all of them; its lines go to standard error if standard output must hold JSON."""
    from headshotkit import pipeline

    chosen, in_json = chosen_by(command, given), given.get("json", False)
    run = Run(given.get("out", COMMAND_LINE[command].folder))
    tell = partial(print, flush=True)
    with contextlib.redirect_stdout(sys.stderr) if in_json else contextlib.nullcontext():
        if command in ("run", "demo"):
            pipeline.make_headshots(chosen.photos, run.folder, chosen, tell=tell)
            manifest = {row.folder: run.manifest(row.folder) for row in pipeline.STAGES if not row.optional}
        else:
            row = pipeline.stage_named(command)
            if row.needs_base or chosen.base:
                base, _ = pipeline.run_base(run, chosen)
                if caution := find_base(base).caution:
                    tell(f"{'base':<10} {base}: {caution}")
            planned = command == "train"  # generate keeps to its minutes itself
            controller = pipeline.begin_deadline(run, chosen, tell, ("download", "train")) if planned else None
            if run.has("headshots"):
                pipeline.do_missing(row.late, run, chosen, tell)
            manifest = pipeline.do_stage(row.folder, run, chosen, controller)
            tell(pipeline.line_of(manifest, run))
    if in_json:
        print(json.dumps(manifest, indent=1))


def _crop(command: str, given: Given) -> None:
    """Crop a folder: print a line a photo, and at the end how many."""
    from headshotkit.dataset import crops

    config = CropConfig(**settings_in(given, CropConfig))
    made = crops.crop_folder(given["photos"], given["out"], config)
    in_json = given.get("json", False)
    stream = sys.stderr if in_json else sys.stdout
    for crop in made:
        print(crops.line_of_crop(crop), file=stream)
    print(f"{'crop':<10} {sum(not c.reason for c in made)} of {len(made)} photos, in {given['out']}", file=stream)
    if in_json:
        print(json.dumps([crop.to_dict() for crop in made], indent=1))
    if all(crop.reason for crop in made):
        raise NoPhotos(f"0 of {len(made)} photos were cropped.", "Each line above says why.", "Give other photos.")


def _export(command: str, given: Given) -> None:
    """Write the LoRA to a file: print a line, or the file's header."""
    from headshotkit.training import export

    format_ = given.get("format", "kohya")
    file = export.export_lora(Run(given.get("out", "runs/me")), given["file"], format_)
    in_json = given.get("json", False)
    stream = sys.stderr if in_json else sys.stdout
    print(f"{'export':<10} {file}, {format_}, {file.stat().st_size / 2**20:.1f} MiB", file=stream)
    if in_json:
        print(json.dumps(export.header_of(file), indent=1, ensure_ascii=False))


def _prompts(command: str, given: Given) -> None:
    """List the prompt bank, or some of its packs: a table, or every field as JSON."""
    from headshotkit.generation import prompts

    known = chosen_by(command, given)
    chosen = prompts.in_packs(prompts.load_prompts(known.prompts or prompts.BANK), known.packs or ())
    print(json.dumps([asdict(p) for p in chosen], indent=1) if given.get("json") else prompts.prompt_table(chosen))


def _token(command: str, given: Given) -> None:
    """Try the rarest tokens on a base: print a table that includes the default, and why the first is the best."""
    from headshotkit.config import TOKEN
    from headshotkit.dataset import tokens

    base, why = choose_base(given.get("base"))
    config = TokenConfig(**settings_in(given, TokenConfig))
    scores = tokens.find_token(base, config.candidates, config.seed, also=(TOKEN,))
    in_json = given.get("json", False)
    stream = sys.stderr if in_json else sys.stdout
    print(f"base {base}: {why}\n{tokens.token_table(scores)}\n{scores[0].explain()}", file=stream)
    if in_json:
        print(json.dumps([score.to_dict() | {"trouble": score.trouble} for score in scores], indent=1))


def _plan(command: str, given: Given) -> None:
    """Plan a run: print a table, then the choices and why; load neither torch nor weights."""
    from headshotkit.planning import plan as planner

    config = PlanConfig(**settings_in(given, PlanConfig))
    known = {"method": config.method, "prior": config.class_images > 0}
    known |= {"class_images": config.class_images, "pick": config.pick}
    plan = planner.plan_run(config.gpu, config.count, config.minutes, config.base or None, **known)
    in_json = given.get("json", False)
    print(f"{planner.plan_table(plan)}\n\n{plan.explain()}", file=sys.stderr if in_json else sys.stdout)
    if in_json:
        print(json.dumps(plan.to_dict(), indent=1))


def _compare(command: str, given: Given) -> None:
    """Compare runs: print the tables, or all values as JSON, and where the page is."""
    from headshotkit.core.pages import PAGE
    from headshotkit.evaluation import compare
    from headshotkit.evaluation.plots import Table

    folder, in_json = runtime.typed_path(given.get("out", COMMAND_LINE[command].folder)), given.get("json", False)
    report = compare.compare_runs([Run(run) for run in given["runs"]], folder)
    stream = sys.stderr if in_json else sys.stdout
    for title, header, rows in compare.tables_of(report["runs"]):
        print(f"{title}\n{Table(header, rows)}\n", file=stream)
    print(f"{'compare':<10} {(folder / PAGE).resolve()}", file=stream)
    if in_json:
        print(json.dumps(report, indent=1))


def _leak(command: str, given: Given) -> None:
    """Measure what the LoRA does to other people: print a line for each finding, or all values as JSON."""
    from headshotkit.evaluation.forgetting import measure_leak

    config = LeakConfig(**settings_in(given, LeakConfig))
    report, in_json = measure_leak(Run(given.get("out", "runs/me")), config), given.get("json", False)
    for line in [*report["sentences"], *report["missing"]]:
        print(f"{'leak':<10} {line}", file=sys.stderr if in_json else sys.stdout)
    if in_json:
        print(json.dumps(report, indent=1))


def _clean(command: str, given: Given) -> None:
    """Delete what was set aside when a stage was done again; without --yes only list it."""
    run, deleted, in_json = Run(given["run"]), given.get("yes", False), given.get("json", False)
    found = {path.name: bytes_of(path) for path in run.earlier()}
    stream = sys.stderr if in_json else sys.stdout
    for name, size in found.items():
        print(f"{'clean':<10} {run.folder / 'earlier' / name}, {size / 2**20:.1f} MiB", file=stream)
    total = f"{sum(found.values()) / 2**20:.1f} MiB"
    if deleted:
        clean_run(run)
        print(f"{'clean':<10} {total} were deleted", file=stream)
    else:
        more = "; nothing is deleted yet: give --yes as well" if found else ""
        print(f"{'clean':<10} {len(found)} earlier results, {total}{more}", file=stream)
    if in_json:
        print(json.dumps({"deleted": deleted, "bytes": found}, indent=1))


def _settings(command: str, given: Given) -> None:
    """List every setting of a run with its values, default and meaning."""
    rows = [
        {"command": stage, "option": flag(name), "values": allowed(kind, own),
         "default": kind.model_fields[own].default, "meaning": meaning(kind, own),
         "presets": {base.name: base.presets[kind.__name__][own] for base in BASES.values()
                     if (base.presets or {}).get(kind.__name__, {}).get(own, usual) != usual}}
        for stage, kind in CONFIGS.items()
        for name, homes in NAMES.items() for home, own in homes if home is kind
        for usual in [kind.model_fields[own].default]
    ]  # fmt: skip
    if given.get("json"):
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        presets = "".join(f"; {as_typed(value)} with base {base}" for base, value in row["presets"].items())
        default = "none" if row["default"] in ("", ()) else as_typed(row["default"])
        print(f"{row['command']:<9} {row['option']}: {row['values']}; default: {default}{presets}")
        print(f"{'':<9} {row['meaning']}")


def _stage_options(*commands: str, photos: bool = False, others: tuple[str, ...] = ()) -> Callable[[], dict]:
    """Return the options of stages, when they are needed."""

    def options() -> dict[str, object]:
        folder = {"photos": option(Path, "Folder with 10-20 photos of one person.", metavar="PHOTOS")} if photos else {}
        return {**folder, "out": RUN_FOLDER, **run_options(commands, others), "json": JSON}

    return options


def _plan_options() -> dict[str, object]:
    """Return the options of plan, with the names of the GPUs."""
    from headshotkit.families.costs import GPUS

    gpu = option(str, f"The GPU to plan for: {', '.join(GPUS)}.", f"default: {PlanConfig().gpu}")
    return {**options_of(PlanConfig), "gpu": gpu, "json": JSON}


WHOLE = tuple(command for command in CONFIGS if command != "pick")
"""The commands of a whole run; only its own command picks."""
DRAWING = ("sampler_steps", "guidance", "guidance_share", "base_guidance", "base_guidance_every", "sampler", "prompts")
"""Settings of generation that affect how pick draws its pictures."""
COMMAND_LINE: dict[str, Command] = {
    "run": Command("Run all stages, from photos to gallery.", _stage_options(*WHOLE, photos=True), _stage),
    "demo": Command("Run all stages for the sample person, offline, with the embedded base.", _stage_options(*WHOLE),
                    _stage, Path("demo")),
    "check": Command("Judge the photos: keep the good ones, and explain why the rest were refused.",
                     _stage_options("check", photos=True), _stage),
    "prepare": Command("Crop, resize and caption the kept photos.", _stage_options("prepare"), _stage),
    "train": Command("Train the person's LoRA, or resume an interrupted training.",
                     _stage_options("train", others=("minutes",)), _stage),
    "pick": Command("Generate test pictures to choose the best checkpoint and LoRA scale, which generate then uses.",
                    _stage_options("pick", others=DRAWING), _stage),
    "generate": Command("Generate headshots, and try again where the identity is below the threshold.",
                        _stage_options("generate"), _stage),
    "restore": Command("Restore the faces; keep a restored one only if it passes checks of identity, eyes and skin.",
                       _stage_options("restore"), _stage),
    "evaluate": Command("Measure identity and sharpness, and draw the plots.", _stage_options("evaluate"), _stage),
    "gallery": Command("Write the gallery page and the contact sheet.", _stage_options(), _stage),
    "leak": Command("Measure whether the LoRA turns other people into the person, or repeats the photos.",
                    lambda: {"out": RUN_FOLDER, **options_of(LeakConfig), "json": JSON}, _leak),
    "compare": Command("Put runs side by side: baselines, identity leak and honesty, as a page and as JSON.",
                       lambda: {"runs": option(tuple[Path, ...], "Folders of evaluated runs.", metavar="RUN"),
                                "out": option(Path, "Folder for the page and compare.json.", "default: compare"),
                                "json": JSON}, _compare, Path("compare")),
    "token": Command("Find a rare token that means nothing to the base, and explain the choice.",
                     lambda: {"base": option(str, BASE, f"default: {USUAL_BASE}"),
                              **options_of(TokenConfig), "json": JSON}, _token),
    "export": Command("Write the LoRA to a file for A1111, ComfyUI or diffusers.",
                      lambda: {"file": option(Path, "File to write, NAME.safetensors, or a folder.", metavar="FILE"),
                               "out": RUN_FOLDER,
                               "format": option(str, "kohya, for A1111 and ComfyUI, or diffusers.", "default: kohya"),
                               "json": JSON}, _export),
    "prompts": Command("List the prompt bank, or some of its packs.",
                       lambda: {**options_of(CONFIGS["generate"], ["prompts", "packs"]), "json": JSON}, _prompts),
    "crop": Command("Crop every photo of a folder around the face to one size, without metadata.",
                    lambda: {"photos": option(Path, "Folder with photos.", metavar="PHOTOS"),
                             "out": option(Path, "Folder for the crops.", metavar="CROPS"),
                             **options_of(CropConfig), "json": JSON}, _crop),
    "plan": Command("Estimate time and memory on a GPU, and what to cut to fit.",
                    _plan_options, _plan),
    "settings": Command("List every setting of a run, its values, its default and what it does.",
                        lambda: {"json": JSON}, _settings),
    "clean": Command("List earlier results, which were set aside when a stage was done again; --yes deletes them.",
                     lambda: {"run": option(Path, "The run folder.", metavar="RUN"),
                              "yes": option(bool, "Delete them for good."), "json": JSON}, _clean),
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
