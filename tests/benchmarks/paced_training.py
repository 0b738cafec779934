"""One training in a process of its own, which does a block of steps whenever it is told to, and says what they cost.

    python paced_training.py BLOCK ours RUN '{"targets": "attention"}'
    python paced_training.py BLOCK SCRIPT.py --its --own --arguments

After every BLOCK optimizer steps it prints their process seconds and waits for a line on its standard input. A script
of diffusers runs as it is, with two things around it: a stand-in for torchvision, and the embedded base's autoencoder
(an AutoencoderTiny) where the script expects an AutoencoderKL.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from types import SimpleNamespace

from torch.optim.optimizer import register_optimizer_step_post_hook


class Pace:
    """Counts optimizer steps. At the end of each block it tells the block's process seconds and waits."""

    def __init__(self, block: int) -> None:
        self.block, self.done, self.begun_s = block, 0, time.process_time()
        self.told = os.fdopen(os.dup(1), "w")  # what the training itself prints must not come between
        os.dup2(2, 1)

    def __call__(self, *_) -> None:
        self.done += 1
        if self.done % self.block == 0:
            print(time.process_time() - self.begun_s, file=self.told, flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self.begun_s = time.process_time()


def train_ours(folder: str, settings: str) -> None:
    """headshotkit's training of a run folder."""
    from headshotkit import Run, TrainConfig, train_lora

    train_lora(Run(folder), TrainConfig.for_base("mini", **json.loads(settings)))


def run_script(script: str, arguments: list[str]) -> None:
    """A training script of diffusers, as if it had been called."""
    import diffusers
    import torchvision_stand_in

    torchvision_stand_in.install()

    class Autoencoder(diffusers.AutoencoderTiny):
        """The embedded base's own, with the answer that an AutoencoderKL would give."""

        def encode(self, pixels):
            latents = super().encode(pixels).latents
            return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: latents))

    diffusers.AutoencoderKL = Autoencoder
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    register_optimizer_step_post_hook(Pace(int(sys.argv[1])))
    kind, rest = sys.argv[2], sys.argv[3:]
    train_ours(*rest) if kind == "ours" else run_script(kind, rest)
