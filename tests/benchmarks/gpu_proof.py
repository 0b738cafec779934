"""Times SDXL at its real size, of random numbers, on a CUDA GPU kept within the limits of a T4.

    python tests/benchmarks/gpu_proof.py --out OUT [--diffusers SCRIPT] [--minutes 8] [--rows NAME,...]
    python tests/benchmarks/gpu_proof.py --out OUT --device cpu --small   # every row, with small networks

Limits: torch may take 14.2 GiB, and the package sees a GPU of that size; float16; attention by the memory-efficient
kernel or by plain matrices, as PyTorch has them for sm_75, not by flash or cuDNN; no TF32, no bfloat16. Only the speed
is the GPU's own. SCRIPT is diffusers' examples/dreambooth/train_dreambooth_lora_sdxl.py, or a checkout that holds it;
its loop runs unmodified. Weights are drawn on the GPU, so nothing is read or downloaded; no face model is needed.

"s" is the median of the steps after the first three, from one call of the U-Net to the next, or a whole picture's
time. "planned" is the planner's, for the GPU, or for a T4 where it knows no rates of this one. "TFLOP/s" is the counted
work over the time. "held" is the most GiB that tensors took, "taken" the most that torch took from the GPU for them,
both after the first three steps; "planned" there is the planner's peak with its slack and CUDA's own share. Each
"ratio" is measured over planned ("taken" in GiB). Each row is printed when it is done, and results.json is written
anew, so a run that is cut off leaves what it had. A row that was left out says why. Two pictures lie beside it; they
show noise. Exit code 1 where a row failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from headshotkit.core.runtime import DTYPES

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = Path("examples") / "dreambooth" / "train_dreambooth_lora_sdxl.py"
CAP_GIB = 14.2
WARM_UP = 3
SMALLER = 4
"""With --small, sides are divided by it."""
PICTURES = 2
"""In the dataset."""
PROMPT, SEED = "photo of ohwx man, studio portrait, grey background", 7
SAVED = ("picture", "picture-channels-last")
"""Rows whose picture is kept."""
PLANNED = ("planned_s", "tflops", "planned_gib")
"""What a row has from counting, not from a clock."""
FOREVER = 1_000_000
LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Row:
    """One thing to time.

    `px`: sizes of the training, one after another; empty: none. `picture`: whether one is drawn, with the LoRA where
    the process has trained one. `script`: the loop is diffusers', not headshotkit's. `group`: rows of one group share a
    process.
    """

    name: str
    px: tuple[int, ...] = ()
    checkpointing: bool = False
    optimizer: str = "adamw"
    channels_last: bool = False
    benchmark: bool = False
    picture: bool = False
    script: bool = False
    group: str = "main"


ROWS = (
    Row("step-768", (768,)),
    Row("step-1024", (1024,)),
    Row("step-1024-checkpointing", (1024,), checkpointing=True),
    Row("picture", picture=True),
    Row("step-768-checkpointing", (768,), checkpointing=True),
    Row("step-768-adamw8bit", (768,), optimizer="adamw8bit"),
    Row("step-768-channels-last", (768,), channels_last=True),
    Row("step-768-cudnn-benchmark", (768,), benchmark=True),
    Row("picture-channels-last", picture=True, channels_last=True),
    Row("picture-cudnn-benchmark", picture=True, benchmark=True),
    Row("script-1024-checkpointing", (1024,), checkpointing=True, script=True, group="script"),
    Row("run-fixed-segments", (768, 1024), picture=True, group="fixed"),
    Row("run-expandable", (768, 1024), picture=True, group="expandable"),
)
"""Those that matter most come first. The last two train at both sizes and draw, as a notebook does: what memory is lost
in pieces shows in "taken"."""
ENVIRONMENT = {"expandable": {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}}
"""What the process of a group has beside the usual."""
OWN_FOLDERS = ("TMPDIR", "HF_HOME", "HEADSHOTKIT_CACHE")


# --- the table: a process for each group, until the time is up --------------------------------------------------------

HEADER = f"{'row':<26}{'s':>8}{'planned':>9}{'ratio':>7}{'TFLOP/s':>9}{'held':>7}{'taken':>7}{'planned':>9}{'ratio':>7}"


def main() -> int:
    """Prints the table. Returns the exit code: 1 where a row failed."""
    given = arguments()
    if given.group:
        return work(given)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / LOG_FILE).unlink(missing_ok=True)
    end_s, done = time.monotonic() + 60 * given.minutes, []

    def keep(result: dict) -> None:
        done.append(result)
        print(line_of(result), flush=True)
        (given.out / "results.json").write_text(json.dumps(done, indent=1))

    print(HEADER, flush=True)
    for group in dict.fromkeys(row.group for row in ROWS):
        waiting = [row.name for row in ROWS if row.group == group and (not given.rows or row.name in given.rows)]
        if not waiting:
            continue
        for result in results_of(group, given, end_s):
            waiting = [name for name in waiting if name != result.get("row")]
            keep(result)
        for name in waiting:
            late = time.monotonic() > end_s
            keep({"row": name, **({"left_out": "no time"} if late else {"failed": f"its process died: {LOG_FILE}"})})
    failed = [result["row"] for result in done if "failed" in result]
    print(f"\nfailed: {', '.join(failed)}" if failed else "\nno row failed")
    return bool(failed)


def results_of(group: str, given: argparse.Namespace, end_s: float) -> Iterator[dict]:
    """What the rows of a group come to, one by one, in a process that is ended when the time is up."""
    left_s = end_s - time.monotonic()
    if left_s <= 0:
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--group", group, "--minutes", str(left_s / 60)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"} | ENVIRONMENT.get(group, {})
    with open(given.out / LOG_FILE, "a") as log, tempfile.TemporaryDirectory() as temporary:
        environment |= dict.fromkeys(OWN_FOLDERS, temporary)  # the process may be ended before it has tidied up
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
        killer = threading.Timer(left_s, process.kill)
        killer.start()
        try:
            for line in process.stdout:
                yield json.loads(line)
        finally:
            killer.cancel()
            process.kill()
            process.wait()


def line_of(result: dict) -> str:
    """A row as it is printed."""
    if "row" not in result:
        return result["machine"]
    if said := result.get("left_out") or result.get("failed"):
        return f"{result['row']:<26}{'left out' if 'left_out' in result else 'FAILED'}: {said}"
    ratio = result["s"] / result["planned_s"] if result["planned_s"] else None
    memory = result["taken_gib"] / result["planned_gib"] if result["taken_gib"] and result["planned_gib"] else None
    numbers = (
        (result["s"], 8, 2), (result["planned_s"], 9, 2), (ratio, 7, 2), (result["tflops"], 9, 1),
        (result["held_gib"], 7, 1), (result["taken_gib"], 7, 1), (result["planned_gib"], 9, 1), (memory, 7, 2),
    )  # fmt: skip
    cells = (
        f"{'-':>{width}}" if number is None else f"{number:>{width}.{digits}f}" for number, width, digits in numbers
    )
    return f"{result['row']:<26}{''.join(cells)}  {result['note']}".rstrip()


# --- a group: within a T4's limits ------------------------------------------------------------------------------------


class NoTime(BaseException):
    """The time was up; no library is to catch it."""


class Enough(BaseException):
    """A script has made as many steps as are timed."""


def work(given: argparse.Namespace) -> int:
    """Does the rows of one group, and tells each one's result as a line of JSON on standard output."""
    told = os.fdopen(os.dup(1), "w")  # what libraries print must not come between
    os.dup2(2, 1)
    os.environ["HEADSHOTKIT_DTYPE"] = given.dtype
    machine = limit(given.device)
    if given.group == ROWS[0].group:
        print(json.dumps({"machine": machine}), file=told, flush=True)
    end_s, slowest_s = time.monotonic() + 60 * given.minutes, 0.0
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(given, Path(temporary), end_s)
        for row in [row for row in ROWS if row.group == given.group and (not given.rows or row.name in given.rows)]:
            begun_s = time.monotonic()
            if end_s - begun_s < slowest_s:
                result = {"left_out": f"no time: a row took {slowest_s:.0f} s, {end_s - begun_s:.0f} are left"}
            else:
                result = bench.result(row)
            slowest_s = max(slowest_s, time.monotonic() - begun_s)
            print(json.dumps({"row": row.name, **result}), file=told, flush=True)
    return 0


def limit(device: str) -> str:
    """Keeps this process within a T4's limits, and says what machine it is on."""
    import torch

    from headshotkit.core import runtime

    versions = runtime.versions()
    software = ", ".join(
        f"{name} {versions.get(name, 'none')}" for name in ("torch", "diffusers", "peft", "bitsandbytes")
    )
    if device == "cpu":
        torch.cuda.is_available = lambda: False
        return f"a CPU, {software}, {time.strftime('%Y-%m-%d')}"
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name, total = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1]
    cap = min(int(CAP_GIB * 2**30), total)
    torch.cuda.set_per_process_memory_fraction(cap / total)
    torch.cuda.mem_get_info = lambda *_: (cap - torch.cuda.memory_reserved(), cap)
    return f"{name} kept to {cap / 2**30:.1f} of {total / 2**30:.1f} GiB, {software}, {time.strftime('%Y-%m-%d')}"


class Bench:
    """Does rows. `lora`: the file of the process's last training, if there was one."""

    def __init__(self, given: argparse.Namespace, folder: Path, end_s: float) -> None:
        import real_size

        self.given, self.folder, self.end_s, self.lora = given, folder, end_s, None
        self.size, self.scale = (real_size.SMALL, SMALLER) if given.small else (real_size.REAL, 1)
        self.steps = WARM_UP + given.steps + 1
        self.base = real_size.write_cache(Path(os.environ["HF_HOME"]), self.size, weights=False)
        write_dataset(folder / "prepared", 1024 // self.scale)

    def result(self, row: Row) -> dict:
        """What a row comes to; what it held is freed."""
        from headshotkit.core import runtime

        if reason := self._lacks(row):
            return {"left_out": reason}
        try:
            return self._timed(row)
        except NoTime:
            return {"left_out": f"the time was up within it, after {self.given.minutes:.1f} minutes"}
        except Exception as error:  # the other rows are to go on
            traceback.print_exc()
            return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
        finally:
            runtime.free_memory()

    def _lacks(self, row: Row) -> str:
        """What a row needs and isn't here; empty where all is."""
        from headshotkit.core import runtime

        if row.optimizer == "adamw8bit" and not runtime.has_module("bitsandbytes"):
            return "bitsandbytes is not installed"
        if row.script and not (self.given.diffusers and self.given.diffusers.is_file()):
            return f"diffusers' script is not here: --diffusers {self.given.diffusers}"
        return ""

    def _timed(self, row: Row) -> dict:
        import torch

        torch.backends.cudnn.benchmark = row.benchmark
        draw_networks(self.size, self.base, self.given.device, row)
        seconds, notes, peaks = {}, [], []
        if row.px:
            with Clock(self, self.steps if row.script else FOREVER) as clock:
                notes += self._script(row) if row.script else self._train(row)
            seconds = {px: clock.median_s(px // self.scale) for px in row.px}
            notes += [f"{px} px {seconds[px]:.2f} s" for px in row.px[:-1]]
            peaks.append(clock.peak_gib())
        if row.picture:
            drawn_s, note, peak = self._draw(row)
            notes += [f"picture {drawn_s:.1f} s, {note}" if row.px else note]
            peaks.append(peak)
        held, taken = (max(sizes) if sizes[0] is not None else None for sizes in zip(*peaks, strict=True))
        planned_s, tflop, planned_gib = planned(row)
        timed_s = seconds[row.px[-1]] if row.px else drawn_s
        found = {"s": timed_s, "planned_s": planned_s, "tflops": tflop / timed_s, "held_gib": held, "taken_gib": taken,
                 "planned_gib": planned_gib, "steps_s": seconds, "note": ", ".join(notes)}  # fmt: skip
        return found | (dict.fromkeys(PLANNED) if self.given.small else {})  # those are of the real size

    def _train(self, row: Row) -> list[str]:
        """headshotkit's own training; what it changed on its way, for memory for example."""
        from headshotkit import Run, TrainConfig, train_lora

        folder = self.folder / row.name
        folder.mkdir()
        (folder / "dataset").symlink_to(self.folder / "prepared" / "dataset")
        config = TrainConfig.for_base(
            "sdxl", schedule=tuple((px // self.scale, self.steps) for px in row.px), steps=self.steps * len(row.px),
            checkpointing=row.checkpointing, optimizer=row.optimizer, checkpoint_every_steps=FOREVER,
            checkpoint_every_minutes=0,
        )  # fmt: skip
        lora = train_lora(Run(folder), config)
        self.lora = folder / "lora" / lora.path
        return [f"changed: {change['why']}" for change in Run(folder).peek("lora").get("changes", [])]

    def _script(self, row: Row) -> list[str]:
        """diffusers' script, as if it had been called."""
        from torchvision_stand_in import install

        from headshotkit.core import runtime

        install()
        eight_bit = ["--use_8bit_adam"] if runtime.has_module("bitsandbytes") else []
        settings = {
            "pretrained_model_name_or_path": self.base, "instance_prompt": PROMPT, "rank": 32,
            "instance_data_dir": pictures_of(self.folder / "prepared"), "resolution": row.px[0] // self.scale,
            "train_batch_size": 1, "max_train_steps": FOREVER, "checkpointing_steps": FOREVER, "seed": 0,
            "output_dir": self.folder / "theirs", "dataloader_num_workers": 0,
            "mixed_precision": "fp16" if self.given.device == "cuda" else "no",
        }  # fmt: skip
        words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        sys.argv = [str(self.given.diffusers), *words, "--gradient_checkpointing", *eight_bit]
        with contextlib.suppress(Enough):
            runpy.run_path(str(self.given.diffusers), run_name="__main__")
        return [f"diffusers' loop, {'8-bit Adam' if eight_bit else 'AdamW'}"]

    def _draw(self, row: Row) -> tuple[float, str, tuple]:
        """A headshot, after one of two steps to warm up: (seconds, what there is to say, peaks)."""
        import numpy as np

        from headshotkit.config import GenerateConfig
        from headshotkit.families import Sampling, load_family

        side = 1024 // self.scale
        config = GenerateConfig.for_base("sdxl", sampler_steps=2)
        family = load_family("sdxl")
        family.use_lora(self.lora or Path(), 1.0 if self.lora else 0)
        family.encode_prompts([PROMPT, ""])
        family.render([PROMPT], [""], [SEED], Sampling.of(config, (side, side)))
        config = GenerateConfig.for_base("sdxl", sampler_steps=4 if self.given.small else 25)
        with Clock(self) as clock:
            clock.reset_peaks()
            begun_s = time.monotonic()
            image = family.render([PROMPT], [""], [SEED], Sampling.of(config, (side, side)))[0]
            seconds = time.monotonic() - begun_s
            peaks = clock.peak_gib()
        spread = float(np.asarray(image).std())
        if spread < 1:
            raise ValueError(f"the picture is of one colour: its levels' standard deviation is {spread:.2f}")
        if row.name in SAVED:
            image.save(self.given.out / f"{row.name}.png")
        return seconds, f"{'with' if self.lora else 'without'} a LoRA, decoded {family.decoding}", peaks


class Clock:
    """Notes each call of a U-Net while it is entered; the first ones of a size don't count.

    Raises:
        NoTime: within a call, when the bench's time is up.
        Enough: within the call after the last one wanted.
    """

    def __init__(self, bench: Bench, wanted: int = FOREVER) -> None:
        self.bench, self.wanted, self.calls = bench, wanted, []

    def __enter__(self) -> Clock:
        from torch.nn.modules.module import register_module_forward_pre_hook

        self.hook = register_module_forward_pre_hook(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def _called(self, module, inputs: tuple) -> None:
        from diffusers import UNet2DConditionModel

        if not isinstance(module, UNet2DConditionModel):
            return
        self._synchronize()
        self.calls.append((time.monotonic(), 8 * inputs[0].shape[-1]))
        if len(self.calls) == WARM_UP + 1:
            self.reset_peaks()
        if time.monotonic() > self.bench.end_s:
            raise NoTime
        if len(self.calls) >= self.wanted:
            raise Enough

    def median_s(self, px: int) -> float:
        """Seconds from one call at a size to the next."""
        times = [moment for moment, side in self.calls if side == px]
        return statistics.median(b - a for a, b in list(zip(times, times[1:], strict=False))[WARM_UP:])

    def reset_peaks(self) -> None:
        if self.bench.given.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> tuple[float | None, float | None]:
        """Most that tensors took, and most that torch took for them; None on a CPU."""
        if self.bench.given.device == "cpu":
            return None, None
        import torch

        return torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30

    def _synchronize(self) -> None:
        if self.bench.given.device == "cuda":
            import torch

            torch.cuda.synchronize()


def draw_networks(size, base: Path, device: str, row: Row) -> None:
    """Has from_pretrained of the pipeline and of its networks draw random numbers on the device, and read no weights.

    Args:
        size: a `real_size.Size`.
        base: folder with configs and tokenizers.
    """
    import diffusers
    import real_size
    import torch
    import transformers

    dtype = getattr(torch, os.environ["HEADSHOTKIT_DTYPE"])
    makers = real_size.makers(size)

    def drawn(name: str):
        usual = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(device):
                network = makers[name]().eval()
        finally:
            torch.set_default_dtype(usual)
        return network.to(memory_format=torch.channels_last) if row.channels_last else network

    def pipeline(*_, **options):
        kinds = {"tokenizer": transformers.CLIPTokenizer, "tokenizer_2": transformers.CLIPTokenizer}
        read = {name: kind.from_pretrained(base, subfolder=name) for name, kind in kinds.items()}
        scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler")
        networks = {name: drawn(name) for name in makers if name != "vae"} | {"vae": options.get("vae") or drawn("vae")}
        return diffusers.StableDiffusionXLPipeline(**networks, **read, scheduler=scheduler, add_watermarker=False)

    torch.manual_seed(0)
    diffusers.StableDiffusionXLPipeline.from_pretrained = pipeline
    diffusers.AutoencoderKL.from_pretrained = lambda *_, **__: drawn("vae")
    diffusers.UNet2DConditionModel.from_pretrained = lambda *_, **__: drawn("unet")
    transformers.CLIPTextModel.from_pretrained = lambda *_, **__: drawn("text_encoder")
    transformers.CLIPTextModelWithProjection.from_pretrained = lambda *_, **__: drawn("text_encoder_2")


def write_dataset(folder: Path, px: int) -> None:
    """A run with a finished dataset of two pictures, cut from the sample person's photos without a face model."""
    from PIL import Image

    from headshotkit import PrepareConfig, Run
    from headshotkit.core import runtime
    from headshotkit.core.records import Dataset, TrainingPhoto
    from headshotkit.core.run import write_atomic
    from headshotkit.photos.files import png_bytes

    config = PrepareConfig.for_base("sdxl", class_word="man", size_px=px)
    stage = Run(folder).begin("dataset", config, {})
    photos = []
    for source in sorted(runtime.sample_person().glob("p1_*.jpg"))[:PICTURES]:
        with Image.open(source) as image:
            picture = image.convert("RGB").resize((px, px))
        name, face = source.with_suffix(".png").name, (0.3 * px, 0.2 * px, 0.7 * px, 0.7 * px)
        write_atomic(stage.folder / name, png_bytes(picture))
        photos.append(TrainingPhoto(name, source.name, "photo of ohwx man", (px, px), (0, 0), face, (px, px)))
    dataset = Dataset(stage.folder, config.token, config.class_word, px, tuple(photos))
    stage.finish(f"{PICTURES} pictures", dataset=dataset.to_dict())


def pictures_of(folder: Path) -> Path:
    """A folder with the pictures of a prepared run alone."""
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for file in (folder / "dataset").glob("*.png"):
        (pictures / file.name).unlink(missing_ok=True)
        (pictures / file.name).symlink_to(file)
    return pictures


def planned(row: Row) -> tuple[float | None, float, float | None]:
    """What the planner has for a row: (seconds of the last size's step or of a picture, TFLOP of it, peak GiB)."""
    from headshotkit.config import GenerateConfig
    from headshotkit.config.bases import BASES
    from headshotkit.core import runtime
    from headshotkit.families.costs import GPUS, cost, rates_of
    from headshotkit.planning.ladder import ATTEMPTS, Choice, Task, stages_of, step_seconds

    rates = rates_of(runtime.choose_device()[1]) or GPUS["t4"]
    share = BASES["sdxl"].presets["GenerateConfig"]["guidance_share"]
    choice = Choice(tuple((px, 1) for px in row.px or (1024,)), 1, GenerateConfig().sampler_steps, share)
    task = Task(rates, "sdxl", 1, 60.0, CAP_GIB)
    stages = {stage.name: stage for stage in stages_of(task, choice, row.checkpointing)}
    peaks = ([stages["train"].peak_gib] if row.px else []) + ([stages["generate"].peak_gib] if row.picture else [])
    if row.px:
        tflop = task.step_cost(choice, row.px[-1], row.checkpointing).tflop
        seconds = step_seconds(task, choice, row.px[-1], row.checkpointing)[0]
    else:
        tflop = GenerateConfig().sampler_steps * (1 + share) * cost("forward").tflop + cost("decode").tflop
        seconds = 60 * stages["generate"].minutes / ATTEMPTS["sdxl"]
    return (None, tflop, None) if row.script else (seconds, tflop, max(peaks))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="folder for results; default: $OUT")
    parser.add_argument("--diffusers", type=Path, help="diffusers' script, or a checkout of diffusers")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all rows (default: %(default)g)")
    parser.add_argument("--steps", type=int, help="timed steps of a size (default: 8; 2 with --small)")
    parser.add_argument("--rows", type=lambda text: text.split(","), help=", ".join(row.name for row in ROWS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float16 on CUDA, float32 on a CPU")
    parser.add_argument("--small", action="store_true", help="small networks and pictures, for trying this script")
    parser.add_argument("--group", choices=sorted({row.group for row in ROWS}), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.out:
        parser.error("--out is not given, and $OUT is not set")
    if unknown := set(given.rows or ()) - {row.name for row in ROWS}:
        parser.error(f"no row is called {', '.join(sorted(unknown))}")
    if given.diffusers and given.diffusers.is_dir():
        given.diffusers = given.diffusers / SCRIPT
    given.out, given.steps = Path(given.out), given.steps or (2 if given.small else 8)
    given.dtype = given.dtype or ("float16" if given.device == "cuda" else "float32")
    return given


if __name__ == "__main__":
    sys.exit(main())
