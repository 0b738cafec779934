"""Takes SDXL at its real size, of random numbers, through a whole run by the command line, on a CPU in bfloat16.

    python tests/benchmarks/real_size.py [--folder /var/tmp/headshotkit-real-size] [--steps 3] [--px 512] [--pictures 1]
    python tests/benchmarks/real_size.py --small     # the same with networks of a thousandth of the size; 2 minutes

The folder gets a hub cache of 7.3 GB, once: U-Net, both text encoders and the autoencoder under the file names that
RealVisXL V5.0 and the fp16-fix autoencoder have on the hub, in float16 (the autoencoder in float32), tokenizers with
CLIP's real vocabulary. So `--base sdxl` loads it offline as it loads the real one. Then the sample person goes through
check, prepare, train (stopped by SIGTERM in the first step; killed by SIGKILL in the next; then to its end), export,
generate, restore and evaluate, each a process of its own.

A row a stage: seconds, most anonymous memory (RssAnon, looked at ten times a second) and most memory in all (VmHWM,
which counts mapped files as well, whose pages the system can drop), GB. Exit code 1 where a stage fails, leaves
something that is not finite, or takes more anonymous memory than --limit. The weights are random, so the pictures are
noise and hold no face: CodeFormer's network (random as well) is loaded, but never asked.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import counting
import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from headshotkit import Run
from headshotkit.config import bases
from headshotkit.core import commits, runtime
from headshotkit.restoration import codeformer

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path("/var/tmp/headshotkit-real-size")
BASE = "sdxl"
COMMIT = "0" * 40
"""Names the snapshot where the preset pins none."""
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
    "timestep_spacing": "leading",
}  # fmt: skip
"""SDXL 1.0's, for diffusers.EulerDiscreteScheduler."""
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
"""As in the configs of SDXL's text encoders."""
NEEDED_DISK_GB, NEEDED_RAM_GB = 9, 14
LOOK_EVERY_S = 0.1
HEADER = f"{'stage':<24}{'seconds':>9}{'anonymous GB':>14}{'in all GB':>11}  outcome"


@dataclass(frozen=True)
class Size:
    """How large the networks are: the arguments of diffusers' and transformers' classes."""

    unet: dict
    vae: dict
    text: tuple[dict, dict]


REAL = Size(counting.UNET, counting.VAE | {"scaling_factor": 0.13025, "force_upcast": False}, counting.TEXT)
SMALL = Size(
    counting.UNET | {
        "block_out_channels": (32, 64, 64), "transformer_layers_per_block": (1, 1, 1), "layers_per_block": 1,
        "attention_head_dim": (1, 2, 2), "cross_attention_dim": 64, "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 80,
    },
    REAL.vae | {"block_out_channels": (8, 8, 16, 16), "layers_per_block": 1, "norm_num_groups": 8},
    ({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
      "projection_dim": 32},
     {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
      "projection_dim": 32, "hidden_act": "gelu"}),
)  # fmt: skip
"""The same networks, narrow and shallow."""


# --- the weights ------------------------------------------------------------------------------------------------------


def makers(size: Size) -> dict[str, Callable[[], torch.nn.Module]]:
    """The networks of a StableDiffusionXLPipeline by the pipeline's names, each made when it is called."""
    first, second = (CLIPTextConfig(**CLIP | one) for one in size.text)
    return {
        "unet": lambda: UNet2DConditionModel(**size.unet),
        "vae": lambda: AutoencoderKL(**size.vae),
        "text_encoder": lambda: CLIPTextModel(first),
        "text_encoder_2": lambda: CLIPTextModelWithProjection(second),
    }


def write_weights(network: torch.nn.Module, file: Path, dtype: torch.dtype) -> None:
    """Streams a network of device meta to a safetensors file, each layer as its class draws it at first.

    No more than one layer is in memory.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    # transformers 5 names the first encoder's layers without the prefix that the hub's file has
    prefix = "text_model." if isinstance(network, CLIPTextModel) else ""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + dtype.itemsize * int(np.prod(shape))
        kind = {torch.float16: "F16", torch.float32: "F32"}[dtype]
        header[prefix + name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text, written = json.dumps(header).encode(), []
    part = file.with_name(f".{file.name}.part")
    with open(part, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for place, layer in network.named_modules():
            if not list(layer.parameters(recurse=False)):
                continue
            drawn = copy.deepcopy(layer).to_empty(device="cpu")
            drawn.reset_parameters()
            for name, tensor in drawn.state_dict().items():
                out.write(tensor.detach().to(dtype).numpy().tobytes())
                written.append(f"{place}.{name}")
    if written != list(shapes):
        sys.exit(f"{file.name}: the layers' order is not that of the state's names")
    part.rename(file)


def write_tokenizers(folder: Path) -> None:
    """CLIP's vocabulary, from the embedded base, in the files that SDXL's tokenizers have; each pads in its own way."""
    model = json.loads((runtime.data_path("mini", "base", "tokenizer") / "tokenizer.json").read_text())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "vocab.json").write_text(json.dumps(model["vocab"]))
        (place / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]))
        special = {
            "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
            "pad_token": pad,
        }  # fmt: skip
        (place / "special_tokens_map.json").write_text(json.dumps(special))
        settings = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True}
        (place / "tokenizer_config.json").write_text(json.dumps(settings))


def write_base(folder: Path, size: Size, weights: bool = True) -> None:
    """Writes SDXL in diffusers' layout: configs, tokenizers, scheduler, and the weights as float16 variants."""
    kinds = {"scheduler": ("diffusers", "EulerDiscreteScheduler")}
    for name, make in makers(size).items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        with torch.device("meta"):
            network = make()
        library = "transformers" if name.startswith("text") else "diffusers"
        kinds[name] = (library, type(network).__name__)
        if library == "transformers":
            network.config.architectures = [type(network).__name__]
            network.config.save_pretrained(place)
        else:
            network.save_config(place)
        file = place / ("model.fp16.safetensors" if library == "transformers" else
                        "diffusion_pytorch_model.fp16.safetensors")  # fmt: skip
        if weights and not file.exists():
            write_weights(network, file, torch.float16)
    write_tokenizers(folder)
    kinds |= dict.fromkeys(("tokenizer", "tokenizer_2"), ("transformers", "CLIPTokenizer"))
    EulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": "0.19.0", **kinds}
    (folder / "model_index.json").write_text(json.dumps(index | {"force_zeros_for_empty_prompt": True}))


def write_vae(folder: Path, size: Size, weights: bool = True) -> None:
    """Writes an autoencoder alone, in float32 and without a variant, as the fp16-fix one is on the hub."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        network = makers(size)["vae"]()
    network.save_config(folder)
    if weights and not (file := folder / "diffusion_pytorch_model.safetensors").exists():
        write_weights(network, file, torch.float32)


def snapshot(home: Path, source: str) -> Path:
    """A repository's snapshot in the hub's cache of a HF_HOME; main and the commit that is pinned lead to it."""
    repository = home / "hub" / f"models--{source.replace('/', '--')}"
    place = repository / "snapshots" / COMMIT
    place.mkdir(parents=True, exist_ok=True)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(COMMIT)
    pinned = commits.COMMITS.get(source)
    if pinned and not (repository / "snapshots" / pinned).exists():
        (repository / "snapshots" / pinned).symlink_to(COMMIT)
    return place


def write_cache(home: Path, size: Size, weights: bool = True) -> Path:
    """Fills a HF_HOME with all that the base needs, and returns the pipeline's folder; weights that are there stay."""
    base = bases.find_base(BASE)
    write_vae(snapshot(home, base.vae), size, weights)
    write_base(snapshot(home, base.source), size, weights)
    return snapshot(home, base.source)


def write_codeformer(file: Path) -> bool:
    """CodeFormer's network at its real size, of random numbers; False where its package is not installed."""
    if not runtime.has_module(codeformer.PACKAGE):
        return False
    if not file.exists():
        torch.save({"params_ema": codeformer.codeformer_class()().state_dict()}, file)
    return True


# --- the run ----------------------------------------------------------------------------------------------------------


class Process:
    """A command of headshotkit in a process of its own, whose memory is watched until it ends."""

    def __init__(self, words: list[str], home: Path, log: Path) -> None:
        environment = os.environ | {
            "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "HEADSHOTKIT_CACHE": str(home / "cache"),
            "HEADSHOTKIT_DTYPE": "bfloat16", "PYTHONPATH": str(REPOSITORY),
        }  # fmt: skip
        self.log, self.begun_s, self.begun = log, time.monotonic(), time.time()
        self.anonymous_gb, self.most_gb = 0.0, 0.0
        with open(log, "w") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "headshotkit.cli", *words], env=environment, stdout=said, stderr=said
            )
        self.watcher = threading.Thread(target=self._watch)
        self.watcher.start()

    def _watch(self) -> None:
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            with contextlib.suppress(OSError, IndexError):  # it ends, or has no memory any more
                text = status.read_text()
                self.anonymous_gb = max(self.anonymous_gb, _gb(text, "RssAnon"))
                self.most_gb = max(self.most_gb, _gb(text, "VmHWM"))
            time.sleep(LOOK_EVERY_S)

    def wait(self) -> tuple[float, int]:
        """Waits for its end: (seconds, exit code)."""
        self.process.wait()
        seconds = time.monotonic() - self.begun_s
        self.watcher.join()
        return seconds, self.process.returncode

    def wait_for_steps(self, run: Run) -> None:
        """Return when its training is about to make a step: what it takes is noted, and there is a checkpoint."""
        manifest = run.path("lora") / "manifest.json"
        while self.process.poll() is None:
            with contextlib.suppress(OSError):
                begun = manifest.stat().st_mtime > self.begun and "cost" in run.peek("lora")
                if begun and any(run.path("lora").rglob("[0-9]*.pt")):
                    return
            time.sleep(LOOK_EVERY_S)

    @property
    def last_line(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else ""


def _gb(status: str, name: str) -> float:
    return int(status.split(f"{name}:")[1].split()[0]) * 1024 / 1e9


@dataclass
class Trip:
    """One person's way through all stages. `rows`: (stage, seconds, anonymous GB, in all GB); `wrong`: in words."""

    given: argparse.Namespace
    home: Path
    run: Run

    def __post_init__(self) -> None:
        self.rows: list[tuple[str, float, float, float]] = []
        self.wrong: list[str] = []

    def start(self, *words: str) -> Process:
        return Process([*words, "--out", str(self.run.folder)], self.home, self.home.parent / f"{words[0]}.log")

    def end(self, stage: str, process: Process, wanted: int = 0) -> None:
        """Waits for a process, prints its row and notes what is wrong with it."""
        seconds, code = process.wait()
        self.rows.append((stage, seconds, process.anonymous_gb, process.most_gb))
        print(f"{stage:<24}{seconds:>9.0f}{process.anonymous_gb:>14.2f}{process.most_gb:>11.2f}  "
              f"{process.last_line[:110]}", flush=True)  # fmt: skip
        if code != wanted:
            self.wrong.append(f"{stage} ended with {code}, not {wanted}")
            print(process.log.read_text(errors="replace")[-3000:], file=sys.stderr)
        if process.anonymous_gb > self.given.limit:
            self.wrong.append(f"{stage} took {process.anonymous_gb:.1f} GB of anonymous memory")

    def do(self, stage: str, *words: str) -> None:
        """A stage from its start to its end."""
        self.end(stage, self.start(*words))

    def train(self) -> None:
        """Stopped, which leaves a checkpoint; killed amid a step; then to its end."""
        words = ("train", "--schedule", str(self.given.px), str(self.given.steps))
        stopped = self.start(*words)
        stopped.wait_for_steps(self.run)
        time.sleep(0.5)  # so that the step is under way
        told_s = time.monotonic()
        stopped.process.send_signal(signal.SIGTERM)
        self.end("train, stopped", stopped, wanted=-signal.SIGTERM)
        step_s = time.monotonic() - told_s
        kept = checkpoints(self.run)
        killed = self.start(*words)
        killed.wait_for_steps(self.run)
        time.sleep(max(0.5, step_s / 2))
        killed.process.kill()
        self.end("train, killed", killed, wanted=-signal.SIGKILL)
        print(f"{'':<24}a step with its checkpoint took {step_s:.1f} s; killed while the newest was of step {kept}")
        if not 0 < kept < self.given.steps or self.run.peek("lora").get("status") == "done":
            self.wrong.append(f"the training was stopped after step {kept} of {self.given.steps}, and killed too late")
        self.do("train, to its end", *words)

    def check(self) -> None:
        """Notes what is not finite, or missing, in what the run holds."""
        losses = json.loads((self.run.path("lora") / "losses.json").read_text())["loss"]
        lora = load_file(self.run.path("lora") / "person.safetensors")
        if len(losses) != self.given.steps or not np.isfinite(losses).all():
            self.wrong.append(f"the losses are {losses}")
        if not all(bool(tensor.isfinite().all()) for tensor in lora.values()):
            self.wrong.append("the LoRA is not finite")
        pictures = self.run.manifest("headshots")["delivered"]
        for picture in pictures:
            with Image.open(self.run.path("headshots") / picture) as opened:
                if np.asarray(opened).std() < 1:
                    self.wrong.append(f"{picture} is of one colour")
        if len(pictures) != self.given.pictures:
            self.wrong.append(f"{len(pictures)} pictures were delivered")
        if not (self.run.path("report") / "metrics.json").is_file():
            self.wrong.append("there is no report")


def main() -> int:
    """Prints the table. Returns the exit code: 1 where something is wrong."""
    given = arguments()
    home = (given.folder / ("small" if given.small else "real")).resolve()
    free = shutil.disk_usage(given.folder if given.folder.exists() else given.folder.parent).free / 1e9
    ram = 1024 * int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) / 1e9
    if not given.small and ((free < NEEDED_DISK_GB and not home.exists()) or ram < NEEDED_RAM_GB):
        sys.exit(f"{free:.0f} GB of disk and {ram:.0f} of RAM are free, it needs {NEEDED_DISK_GB} and {NEEDED_RAM_GB}")
    begun_s = time.monotonic()
    write_cache(home, SMALL if given.small else REAL)
    restoring = write_codeformer(given.folder / "codeformer.pth")
    size = (
        sum(file.stat().st_size for file in (home / "hub").rglob("*") if file.is_file() and not file.is_symlink()) / 1e9
    )
    names = [versions[name] for versions in [runtime.versions()] for name in ("torch", "diffusers", "transformers")]
    print(f"{cpu()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}; torch, diffusers, transformers {names}")
    print(f"{home}: {size:.2f} GB of weights, made in {time.monotonic() - begun_s:.0f} s\n\n{HEADER}", flush=True)
    trip = Trip(given, home, Run(home / "run"))
    if not given.drawing:
        shutil.rmtree(home / "run", ignore_errors=True)
        trip.do("check", "check", str(runtime.sample_person()))
        trip.do("prepare", "prepare", "--base", BASE, "--class-word", "man")
        trip.train()
    for stage in ("headshots", "restored", "report"):
        shutil.rmtree(home / "run" / stage, ignore_errors=True)
    trip.do("export", "export", str(home / "run" / "person_kohya.safetensors"))
    sampler = ("--sampler-steps", str(given.sampler_steps))
    trip.do("generate", "generate", "--count", str(given.pictures), "--max-attempts", "1", *sampler)
    weights = ("--codeformer-weights", str(given.folder / "codeformer.pth")) if restoring else ()
    trip.do("restore", "restore", *weights)
    trip.do("evaluate", "evaluate")
    trip.check()
    print(f"{'all':<24}{sum(row[1] for row in trip.rows):>9.0f}{max(row[2] for row in trip.rows):>14.2f}"
          f"{max(row[3] for row in trip.rows):>11.2f}")  # fmt: skip
    print("\nfailed: " + "; ".join(trip.wrong) if trip.wrong else "\npassed")
    return bool(trip.wrong)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for weights and run (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small networks, for trying this script")
    parser.add_argument("--steps", type=int, help="of the training (default: 3; 40 with --small)")
    parser.add_argument("--px", type=int, default=512, help="side of the training pictures (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=1, help="headshots to draw (default: %(default)s)")
    parser.add_argument("--sampler-steps", type=int, default=3, help="of a headshot (default: %(default)s)")
    parser.add_argument("--drawing", action="store_true", help="only what comes after the training of an earlier call")
    parser.add_argument("--limit", type=float, default=10.0, help="GB of anonymous memory (default: %(default)g)")
    given = parser.parse_args()
    given.steps = given.steps or (40 if given.small else 3)
    return given


def checkpoints(run: Run) -> int:
    """The step of a training's newest checkpoint, by the files' names; 0 where there is none."""
    return max((int(file.stem) for file in run.path("lora").rglob("[0-9]*.pt")), default=0)


def cpu() -> str:
    with contextlib.suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text().split("model name")[1].split(":")[1].splitlines()[0].strip()
    return "a CPU"


if __name__ == "__main__":
    sys.exit(main())
