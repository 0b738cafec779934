"""Trains the base's U-Net and text encoders on the cached latents; goes on where it was stopped; writes the base.

    OMP_NUM_THREADS=1 nice -n 19 python unet.py --workers 2 --until 15:00    # trains, ends with the rate at 0, writes HOME/base
    nice -n 19 python unet.py --export                  # writes HOME/base from the averaged weights as they are now
    python unet.py --until 18:00 --device cuda --batch 256 --lr 1e-3       # the same on a GPU
    python unet.py --base HOME/base --until 18:00       # begins with the weights of a base that is there, where no checkpoint is

v-prediction; the weight of the loss falls where there is little noise (min-SNR, Hang et al. 2023, arXiv:2303.09556).
Leaves HOME/checkpoints/unet.pt every 5 minutes, a sample grid in HOME/samples and HOME/base every 15.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from captions import Attributes, caption
from names import STAND_IN, known_names, say_names, teach_names
from pipeline import Denoiser, draw_grid, export, new_scheduler, new_tokenizer
from store import HOME
from training import Ema, Every, Replicas, clock_time, grown, prefetched, save_checkpoint

UNWORDED, EMPTY = 0.07, 0.02  # without text, as the pipeline has it for guidance; with "" as the caption
NAMED = 0.6  # captions that say the face's name
SNR_CAP = 5.0
WARM_UP_STEPS = 100
# What `--hearing` trains: the text encoders, and what of the U-Net listens to them and to the timestep.
HEARING = ("text_encoder", "attn2", "add_embedding", "time_emb_proj")
torch.backends.cuda.enable_flash_sdp(False)  # on a CPU too: without it a step took 0.80 to 0.92 times as long


class Latents:
    """All cached variants in memory; `batch` draws random ones with new captions and timesteps."""

    def __init__(self, px: int):
        files = [np.load(path) for path in sorted((HOME / "latents").glob("[0-9][0-9].npz"))]
        self.latents = np.concatenate([f["latents"] for f in files])
        self.words = [Attributes(**json.loads(text)) for f in files for text in f["words"]]
        self.crops = np.concatenate([f["crops"] for f in files]).astype("float32")
        self.rows = np.concatenate([f["rows"] for f in files])
        self.px, self.tokenizer, self.files = px, new_tokenizer(), len(files)
        self.stand_in = self.tokenizer(STAND_IN, add_special_tokens=False).input_ids[0]

    def size_facts(self, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """SDXL's six facts: original height and width, crop from top and left, target height and width, in px.

        Users' photos come in all sizes, so the original size is often another one and must not matter.
        """
        facts = np.full((len(chosen), 6), self.px, "float32")
        other = rng.random(len(chosen)) < 0.6
        facts[other, 0:2] = np.exp(rng.uniform(np.log(self.px), np.log(1536), (other.sum(), 1)))
        facts[:, 2:4] = self.crops[chosen, 1:3]
        return facts

    def batch(self, size: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        chosen = rng.integers(0, len(self.latents), size)
        called = [STAND_IN if rng.random() < NAMED else None for _ in chosen]
        texts = ["" if rng.random() < EMPTY else caption(self.words[k], rng, name) for k, name in zip(chosen, called)]
        ids = self.tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        say_names(ids, self.rows[chosen], self.stand_in)
        worded = (rng.random(size) >= UNWORDED).astype("float32")
        timesteps = ((np.arange(size) + rng.random(size)) / size * 1000).astype("int64")  # spread evenly over a batch
        return (
            torch.from_numpy(self.latents[chosen].astype("float32")),
            torch.from_numpy(timesteps),
            ids,
            torch.from_numpy(self.size_facts(chosen, rng)),
            torch.from_numpy(worded),
        )


def learning_rate(base: float, steps_here: int, seconds_left: float, decay_s: float) -> float:
    """Warm-up, constant, then straight down to nearly 0 over the last `decay_s` seconds."""
    return base * min(1.0, (steps_here + 1) / WARM_UP_STEPS) * min(1.0, max(seconds_left / decay_s, 0.01))


def face_weights(side: int, weight: float) -> torch.Tensor:
    """How much each place of the latents counts, mean 1, shape (side, side): an oval where pictures have the face, more."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    oval = ((x - 0.5) / 0.27) ** 2 + ((y - 0.56) / 0.36) ** 2 < 1
    weights = 1 + (weight - 1) * oval.float()
    return weights / weights.mean()


class Trainer:
    """Everything that a checkpoint holds, and one step of training."""

    def __init__(self, args):
        torch.manual_seed(21)
        self.args, self.path, self.step, self.seen = args, HOME / "checkpoints/unet.pt", 0, 0
        channels = json.loads((HOME / "autoencoder/config.json").read_text())["latent_channels"]
        self.net = Denoiser(channels, args.px // 8).to(args.device)
        if args.base and not args.start.exists():
            self.net.take(args.base)
        self.net.unet.to(memory_format=torch.channels_last)
        teach_names([self.net.text_encoder, self.net.text_encoder_2], known_names())
        if args.hearing:
            self.net.requires_grad_(False)
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(any(part in name for part in HEARING) and "token_embedding" not in name)
        self.trained = [p for p in self.net.parameters() if p.requires_grad]
        self.face = face_weights(args.px // 8, args.face_weight).to(args.device)
        matrices, vectors = ([p for p in self.trained if (p.dim() > 1) == wanted] for wanted in (True, False))
        self.optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}],
            lr=args.lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.ema = Ema(self.net, args.ema)
        if args.start.exists():
            self.load(args.start)
        alphas = new_scheduler().alphas_cumprod.float().to(args.device)
        snr = alphas / (1 - alphas)
        self.alphas, self.weight = alphas, ((SNR_CAP + 1) / (snr + 1)).clamp(max=1)
        self.replicas = Replicas(self.net, args.workers)
        if args.compile:
            self.net.compile(dynamic=False)

    def load(self, path: Path) -> None:
        saved = torch.load(path, weights_only=False, map_location=self.args.device)
        self.net.load_state_dict(grown(saved["net"], self.net.state_dict(), drawn=False))
        self.step, self.seen = saved["step"], saved["seen"]
        torch.set_rng_state(saved["rng"].cpu())
        if self.args.new_latents:  # what the optimizer and the averages remember is of the old ones
            self.ema = Ema(self.net, self.args.ema)
        else:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema.load_state_dict(saved["ema"])

    def save(self) -> None:
        save_checkpoint(
            self.path,
            {
                "net": self.net.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "seen": self.seen,
                "ema": self.ema.state_dict(),
                "rng": torch.get_rng_state(),
                "step": self.step,
            },
        )

    def loss(self, net, clean, noise, timesteps, ids, facts, worded) -> torch.Tensor:
        alpha = self.alphas[timesteps].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * clean + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.args.device, dtype=torch.bfloat16):
            guess = net(noisy, timesteps, ids, facts, worded)
        goal = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        wrong = (guess.float() - goal).pow(2) * self.face
        return (wrong.mean((1, 2, 3)) * self.weight[timesteps]).mean()

    def one_step(self, batch: tuple[torch.Tensor, ...], rate: float) -> torch.Tensor:
        clean, timesteps, ids, facts, worded = (t.to(self.args.device, non_blocking=True) for t in batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        order = torch.randperm(len(clean))  # or one worker would get all the early timesteps
        loss = self.replicas.backward(
            self.loss, *(t[order] for t in (clean, torch.randn_like(clean), timesteps, ids, facts, worded))
        )
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step, self.seen = self.step + 1, self.seen + len(clean)
        return loss

    def show(self, tag: str) -> None:
        """A sample grid and the base, both from the averaged weights."""
        start, average = time.time(), self.ema.averaged()
        (HOME / "samples").mkdir(exist_ok=True)
        draw_grid(average, self.args.px, HOME / f"samples/{self.step:06d}.png", self.args.device)
        size = export(average, HOME / "base")
        print(
            f"{tag}: step {self.step}, grid and base of {size:.1f} MB written in {time.time() - start:.0f} s",
            flush=True,
        )


def train(trainer: Trainer, args) -> None:
    data, end = Latents(args.px), clock_time(args.until)
    rng = np.random.default_rng((31, trainer.step))
    batches = prefetched(lambda: data.batch(args.batch, rng))
    print(
        f"from step {trainer.step}: {len(data.latents)} latents in {data.files} variants, "
        f"{sum(p.numel() for p in trainer.trained) / 1e6:.1f} M trained",
        flush=True,
    )
    saves, shows, mean, mark, first = Every(5), Every(args.show_minutes), None, time.time(), trainer.step
    while time.time() < end:
        rate = learning_rate(args.lr, trainer.step - first, end - time.time(), args.decay_minutes * 60)
        loss = trainer.one_step(next(batches), rate)
        mean = loss if mean is None else torch.lerp(mean, loss, 0.01)
        if trainer.step % 100 == 0:
            print(
                f"{time.strftime('%H:%M:%S')} step {trainer.step} seen {trainer.seen} loss {mean.item():.4f} rate {rate:.1e} "
                f"{(time.time() - mark) / 100:.3f} s/step",
                flush=True,
            )
            mark = time.time()
        if saves():
            trainer.save()
        if shows():
            trainer.show(time.strftime("%H:%M"))
    trainer.save()
    trainer.show("end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--until", help="HH:MM on this machine's clock")
    parser.add_argument("--export", action="store_true", help="only write HOME/base and a sample grid")
    parser.add_argument("--start", type=Path, default=HOME / "checkpoints/unet.pt", help="the checkpoint to go on from")
    parser.add_argument("--base", type=Path, help="a base of 128 px to begin with where there is no checkpoint")
    parser.add_argument("--new-latents", action="store_true", help="the autoencoder changed since that checkpoint")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--hearing", action="store_true", help="train the text encoders and what listens to them alone")
    parser.add_argument("--face-weight", type=float, default=1.0, help="of the face's place in the loss")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--decay-minutes", type=float, default=25)
    parser.add_argument("--show-minutes", type=float, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="2 for two cores, with OMP_NUM_THREADS=1")
    parser.add_argument(
        "--compile", action="store_true", help="worth it on a GPU; on two cores it gained nothing (measured)"
    )
    args = parser.parse_args()
    args.compile = args.compile and not args.export
    trainer = Trainer(args)
    trainer.show("export") if args.export else train(trainer, args)


if __name__ == "__main__":
    main()
