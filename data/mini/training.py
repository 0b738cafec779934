"""What both trainings share: pictures in batches, moving averages, checkpoints that a kill cannot harm, a clock."""

import copy
import os
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from captions import Captioner
from measure import POINTS, column
from pictures import Variant, make_variant
from store import Store

HELD_OUT_EVERY = 50  # rows 49, 99, ... are never trained on


def held_out(rows: np.ndarray) -> np.ndarray:
    return rows % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


class Faces:
    """The measured faces of the store, as training pictures.

    `rows` are the ones to train on: surely found, adult, no sunglasses (captions.py); `test_rows` are held out.
    """

    def __init__(self, min_score: float = 0.6):
        self.store = Store()
        self.measures, self.embedding = np.array(self.store.array("measures")), self.store.array("embedding")
        self.pixels, self.alpha = self.store.array("pixels"), self.store.array("alpha")
        self.points = np.stack([column(self.measures, name) for name in POINTS], 1).reshape(-1, 5, 2)
        self.captioner = Captioner(self.store)
        sure = np.flatnonzero((column(self.measures, "score") > min_score) & self.captioner.usable)
        self.rows, self.test_rows = sure[~held_out(sure)], sure[held_out(sure)]
        self.matted = (column(self.measures, "matte_face") > 0.97) & (column(self.measures, "matte_corners") < 0.25)

    def variant(self, row: int, px: int, rng: np.random.Generator, **options) -> Variant:
        alpha = np.array(self.alpha[row]) if self.matted[row] else None
        return make_variant(np.array(self.pixels[row]), alpha, self.points[row], px, rng, **options)


def to_tensor(pixels: np.ndarray, device: str = "cpu") -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32 in [-1, 1], channels last in memory."""
    batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return batch.contiguous(memory_format=torch.channels_last)


def to_pixels(batch: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    return batch.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def prefetched(make, depth: int = 3):
    """Runs `make()` over and over in a thread and yields what it returns: pictures are made while the net trains."""
    ready = queue.Queue(depth)
    threading.Thread(target=lambda: [ready.put(make()) for _ in iter(int, 1)], daemon=True).start()
    while True:
        yield ready.get()


class Ema:
    """Exponential moving average of a module's trained parameters; short at first, so that the start is soon forgotten."""

    def __init__(self, module: torch.nn.Module, decay: float):
        self.module, self.decay, self.steps = module, decay, 0
        self.shadow = [p.detach().clone() for p in self.trained(module)]

    @staticmethod
    def trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
        return [p for p in module.parameters() if p.requires_grad]

    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.trained(self.module)], 1 - decay)

    def averaged(self) -> torch.nn.Module:
        """A copy of the module that holds the averages, in eval mode."""
        twin = copy.deepcopy(self.module).eval()
        for own, average in zip(self.trained(twin), self.shadow):
            own.data.copy_(average)
        return twin

    def state_dict(self) -> dict:
        return {"steps": self.steps, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state["steps"]
        for own, saved in zip(self.shadow, state["shadow"]):
            own.copy_(saved)


class Replicas:
    """Splits each batch over `workers` Python threads, one core each; run with OMP_NUM_THREADS=1.

    Why: oneDNN's own threads wait for each other by spinning. On two cores that are shared with other work, that made a
    step of 0.5 s one of 2 s. Here the workers meet once a step, asleep. Their weights are the same memory.
    """

    def __init__(self, module: torch.nn.Module, workers: int):
        self.modules = [module]
        for _ in range(workers - 1):
            twin = copy.deepcopy(module)
            for own, shared in zip(twin.parameters(), module.parameters()):
                own.data = shared.data
            self.modules.append(twin)
        self.pool = ThreadPoolExecutor(workers)

    def backward(self, loss_of, *batch: torch.Tensor) -> torch.Tensor:
        """Adds the gradient of the mean of `loss_of(module, *part)` to the first module's; returns that mean."""
        count = len(self.modules)

        def one(module, *part):
            loss = loss_of(module, *part) / count
            loss.backward()
            return loss.detach()

        total = sum(self.pool.map(one, self.modules, *(tensor.chunk(count) for tensor in batch)))
        for twin in self.modules[1:]:
            for own, other in zip(self.modules[0].parameters(), twin.parameters()):
                if other.grad is not None:
                    own.grad.add_(other.grad)
                    other.grad = None
        return total


def grown(saved: dict, fresh: dict, drawn: bool) -> dict:
    """State `saved` in the shapes of `fresh`, which has more latent channels; the new weights are as drawn, or else 0."""
    out = dict(saved)
    for name, wanted in fresh.items():
        if saved[name].shape != wanted.shape:
            out[name] = wanted.clone() if drawn else torch.zeros_like(wanted)
            out[name][tuple(slice(0, n) for n in saved[name].shape)] = saved[name]
    return out


def save_checkpoint(path: Path, state: dict) -> None:
    """Writes beside the file and renames: a kill leaves the old one or the new one."""
    beside = Path(path).with_suffix(".part")
    torch.save(state, beside)
    os.replace(beside, path)


def clock_time(text: str) -> float:
    """'HH:MM' -> the next such moment, as seconds since the epoch."""
    now = datetime.now()
    then = now.replace(hour=int(text[:2]), minute=int(text[3:]), second=0, microsecond=0)
    return (then if then > now else then + timedelta(days=1)).timestamp()


class Every:
    """True once in `minutes`: `if every(): ...`."""

    def __init__(self, minutes: float):
        self.period, self.last = minutes * 60, time.time()

    def __call__(self) -> bool:
        due = time.time() - self.last >= self.period
        if due:
            self.last = time.time()
        return due
