"""Trains the base's autoencoder: stock AutoencoderTiny, 1/8 of the side, 12 channels of mean 0 and std 1.

    OMP_NUM_THREADS=1 nice -n 19 python autoencoder.py --workers 2 --minutes 37                   # from scratch or resumed
    OMP_NUM_THREADS=1 nice -n 19 python autoencoder.py --workers 2 --minutes 60 --decoder-only    # later: the same latents

Leaves HOME/autoencoder (from_pretrained) and HOME/checkpoints/autoencoder.pt. Once latents are cached for the U-Net the
encoder must not change any more: --decoder-only from then on. Each run has a schedule of its own that ends low.
"""

import argparse
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from judges import Recogniser
from losses import ArcFace, Lpips, align_faces
from store import HOME
from training import Ema, Every, Faces, Replicas, grown, prefetched, save_checkpoint, to_pixels, to_tensor

CHANNELS, WIDTH = 12, 64
LATENT_NOISE = 0.05  # added to latents in training: the decoder learns to bear what a U-Net gets wrong
WEIGHTS = {"gradient": 0.5, "lpips": 0.25, "face": 0.4, "latent": 0.05}  # beside L1


def new_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        latent_channels=CHANNELS,
        num_encoder_blocks=(0, 1, 3, 4),
        num_decoder_blocks=(4, 3, 2, 0),
        scaling_factor=1.0,
    )


@torch.no_grad()
def grow(old: AutoencoderTiny, model: AutoencoderTiny, pictures: torch.Tensor) -> None:
    """Sets `model` to `old`, which has fewer latent channels, and lets the new ones say what `old` loses.

    What it loses on `pictures` (N, 3, S, S) is cut into blocks of 8 px; its first principal components are read from the
    encoder's last features by least squares. New channels that begin at random fail: after 730 steps 0.03 dB came from them.
    """
    model.load_state_dict(grown(old.state_dict(), model.state_dict(), drawn=True))
    features, lost, first = [], [], old.config.latent_channels
    last = [part for part in model.encoder.modules() if isinstance(part, torch.nn.Conv2d)][-1]
    hook = last.register_forward_pre_hook(lambda _, given: features.append(F.unfold(given[0], 3, padding=1)))
    for part in pictures.split(32):
        made = old.decoder(model.encoder(part)[:, :first]).clamp(-1, 1)
        lost.append(F.unfold(part - made, 8, stride=8))
    hook.remove()
    features, lost = (torch.cat(found).transpose(1, 2).flatten(0, 1).double() for found in (features, lost))
    wanted = lost @ torch.linalg.eigh(lost.T @ lost).eigenvectors[:, first - CHANNELS :]
    features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    inner = features.T @ features + 0.1 * torch.eye(features.shape[1], device=features.device)
    rows = torch.linalg.solve(inner, features.T @ wanted)
    rows = rows / (features @ rows).std(0)
    last.weight[first:] = rows[:-1].T.reshape(-1, *last.weight.shape[1:]).to(last.weight)
    last.bias[first:] = (rows[-1] - (features @ rows).mean(0)).to(last.bias)


def gradient_loss(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """L1 between the steps from pixel to pixel: edges."""
    error = made - true
    return (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()


class LatentPull:
    """A loss that is 0 when every channel of the latents has mean 0 and variance 1 over *many* batches.

    Judged on one small batch alone it would forbid a picture to be darker or redder than the others. So the pull comes
    from running averages, and a batch only feels in which direction these are off.
    """

    def __init__(self, channels: int, device: str):
        self.mean, self.variance = torch.zeros(channels, device=device), torch.ones(channels, device=device)

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        flat = latents.float().transpose(0, 1).flatten(1)
        mean, variance = flat.mean(1), (flat - self.mean[:, None]).pow(2).mean(1)
        pull = (2 * self.mean * mean + (self.variance - 1) * variance).mean()
        self.mean = self.mean.lerp(mean.detach(), 0.02)
        self.variance = self.variance.lerp(variance.detach(), 0.02)
        return pull - pull.detach() + (self.mean.pow(2) + (self.variance - 1).pow(2)).mean()


class Losses:
    """All terms of the loss, by name, unweighted."""

    def __init__(self, device: str):
        self.recognise, self.lpips = ArcFace().to(device).eval(), Lpips().to(device).eval()
        self.latent_pull = LatentPull(CHANNELS, device)

    def __call__(self, made, true, latents, points, embedding) -> dict[str, torch.Tensor]:
        half = len(made) // 2  # the recogniser is as dear as the decoder: half of the batch will do
        cosine = (self.recognise(align_faces(made[:half], points[:half])).float() * embedding[:half]).sum(1)
        return {
            "l1": (made - true).abs().mean(),
            "gradient": gradient_loss(made, true),
            "lpips": self.lpips(made, true),
            "face": (1 - cosine).mean(),
            "latent": self.latent_pull(latents),
        }


@torch.no_grad()
def evaluate(model: AutoencoderTiny, faces: Faces, px: int, device: str) -> str:
    """PSNR and face cosine, before against after, on up to 64 held-out faces, in words."""
    rows, rng, recognise = faces.test_rows[:64], np.random.default_rng(5), Recogniser(threads=2)
    made = [faces.variant(row, px, rng, zoom=(0.9, 1.0), composite=0.3) for row in rows]
    true = np.stack([v.pixels for v in made])
    latents = model.encoder(to_tensor(true, device))
    back = to_pixels(model.decoder(latents))
    psnr = [10 * math.log10(255**2 / np.square(a.astype("f") - b).mean()) for a, b in zip(back, true)]
    cosine = [recognise(b, v.points) @ recognise(a, v.points) for a, b, v in zip(true, back, made)]
    return (
        f"held out: {np.mean(psnr):.2f} dB, face cosine {np.median(cosine):.3f} (least {np.min(cosine):.3f}), "
        f"latent std {latents.std():.3f}, mean {latents.mean():.3f}"
    )


def batch_maker(faces: Faces, size: int, px: int, rng: np.random.Generator):
    def make():
        rows = rng.choice(faces.rows, size)
        made = [faces.variant(row, px, rng, zoom=(0.6, 1.0), composite=0.35) for row in rows]
        return (
            np.stack([v.pixels for v in made]),
            np.stack([v.points for v in made]).astype("float32"),
            faces.embedding[rows],
        )

    return make


class Trainer:
    """Everything that a checkpoint holds, and one step of training."""

    def __init__(self, args):
        torch.manual_seed(11)
        self.args, self.path, self.faces = args, HOME / "checkpoints/autoencoder.pt", Faces()
        self.path.parent.mkdir(exist_ok=True)
        self.model = new_autoencoder().to(args.device, memory_format=torch.channels_last)
        self.run = f"{'decoder' if args.decoder_only else 'both'} {args.minutes:g}"
        saved = torch.load(self.path, weights_only=False) if self.path.exists() else {"run": None, "step": 0}
        resumed = saved["run"] == self.run and saved["spent"] < args.minutes * 60
        if resumed:
            self.model.load_state_dict(saved["model"])
        elif self.path.exists():
            self.start_from_averages()
        self.model.encoder.requires_grad_(not args.decoder_only)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.ema, self.step, self.spent = Ema(self.model, 0.998), saved["step"], 0.0
        if resumed:
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema.load_state_dict(saved["ema"])
            self.spent = saved["spent"]
        self.first, self.losses, self.mean = self.step, Losses(args.device), {}
        self.replicas = Replicas(self.model, args.workers)

    def start_from_averages(self) -> None:
        """Another run starts from the averages that were exported: latents are made with those."""
        old, rng = AutoencoderTiny.from_pretrained(HOME / "autoencoder").to(self.args.device), np.random.default_rng(12)
        if old.config.latent_channels == CHANNELS:
            self.model.load_state_dict(old.state_dict())
            return
        made = [self.faces.variant(row, self.args.px, rng, zoom=(0.6, 1)) for row in rng.choice(self.faces.rows, 320)]
        grow(old, self.model, to_tensor(np.stack([v.pixels for v in made]), self.args.device))

    def save(self) -> None:
        save_checkpoint(
            self.path,
            {
                "model": self.model.state_dict(),
                "ema": self.ema.state_dict(),
                "run": self.run,
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "spent": self.spent,
            },
        )
        average = self.ema.averaged()
        average.save_pretrained(HOME / "autoencoder")
        score = evaluate(average, self.faces, self.args.px, self.args.device)
        print(f"step {self.step}, {self.spent / 60:.1f} min, {score}", flush=True)

    def loss(self, net, true, noise, points, embedding) -> torch.Tensor:
        with torch.autocast(self.args.device, dtype=torch.bfloat16):
            latents = net.encoder(true)
            made = net.decoder(latents + noise).float()
            terms = self.losses(made, true, latents, points, embedding)
        self.mean.update({k: 0.98 * self.mean.get(k, v.item()) + 0.02 * v.item() for k, v in terms.items()})
        return terms["l1"] + sum(weight * terms[name] for name, weight in WEIGHTS.items())

    def one_step(self, pixels: np.ndarray, points: np.ndarray, embedding: np.ndarray) -> None:
        start, args = time.time(), self.args
        warm, done = min(1, (self.step - self.first + 1) / 100), self.spent / (args.minutes * 60)
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))
        true = to_tensor(pixels, args.device)
        noise = torch.randn(len(true), CHANNELS, args.px // 8, args.px // 8, device=args.device)
        noise *= LATENT_NOISE / 2 if args.decoder_only else LATENT_NOISE
        self.replicas.backward(
            self.loss, true, noise, *(torch.from_numpy(a).to(args.device) for a in (points, embedding))
        )
        if self.step - self.first < args.hold_encoder:
            self.model.encoder.zero_grad(set_to_none=True)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step, self.spent = self.step + 1, self.spent + time.time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--minutes", type=float, required=True, help="training time of this run; its schedule ends there"
    )
    parser.add_argument(
        "--decoder-only", action="store_true", help="leave the encoder, and so the latents, as they are"
    )
    parser.add_argument(
        "--hold-encoder", type=int, default=0, help="steps before the encoder learns too: after growing"
    )
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=1, help="2 for two cores, with OMP_NUM_THREADS=1")
    args = parser.parse_args()

    trainer = Trainer(args)
    faces = trainer.faces
    print(
        f"{trainer.run}: from step {trainer.step}, {trainer.spent / 60:.1f} min spent, {len(faces.rows)} faces, "
        f"{len(faces.test_rows)} held out",
        flush=True,
    )
    batches = prefetched(batch_maker(faces, args.batch, args.px, np.random.default_rng(trainer.step + 11)))
    due, mark = Every(4), time.time()
    while trainer.spent < args.minutes * 60:
        trainer.one_step(*next(batches))
        if trainer.step % 50 == 0:
            print(
                f"step {trainer.step} {(time.time() - mark) / 50:.2f} s/step",
                {name: round(value, 4) for name, value in trainer.mean.items()},
                flush=True,
            )
            mark = time.time()
        if due():
            trainer.save()
    trainer.save()


if __name__ == "__main__":
    main()
