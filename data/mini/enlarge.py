"""Makes the 128 px base one of 256 px: the same U-Net and the same latents, an autoencoder with one level more.

    OMP_NUM_THREADS=1 nice -n 19 python enlarge.py --workers 2 --minutes 40    # trains, or goes on; then again for more
    python enlarge.py --export                  # writes HOME/base_256 from HOME/base or --base, and the new autoencoder

The new encoder is solved, not trained: it gives the old one's latents of the picture at half its size (0.25 % of their
variance off). The new decoder learns to draw 256 px from those. Nothing that was trained on the latents has to be
trained again: a latent picture is 16 x 16 as before. The U-Net was told one target size in all of its training, so
telling it another one is exactly a shift of one bias.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from autoencoder import LATENT_NOISE, WEIGHTS, WIDTH, Losses, batch_maker, evaluate
from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from store import HOME
from training import Ema, Every, Faces, Replicas, prefetched, save_checkpoint, to_tensor

OLD_PX, PX = 128, 256
BASE = HOME / "base"
TAPS = range(-2, 3)  # two 3 x 3 convolutions, the second one in steps of 2, see 5 x 5 pixels


def new_autoencoder(channels: int) -> AutoencoderTiny:
    """As autoencoder.py's, with a level more: 1/16 of the side."""
    return AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 5,
        decoder_block_out_channels=(WIDTH,) * 5,
        latent_channels=channels,
        num_encoder_blocks=(0, 0, 1, 3, 4),
        num_decoder_blocks=(4, 3, 2, 1, 0),
        scaling_factor=1.0,
    )


@torch.no_grad()
def begin_encoder(old: AutoencoderTiny, model: AutoencoderTiny, pictures: torch.Tensor) -> None:
    """Sets the new encoder to the old one behind a halving of the side, as nearly as two linear layers can.

    Old: mean of 2 x 2 pixels, then its first convolution. New: the first layer copies the 27 values around each pixel
    (and a 1), the second one mixes 5 x 5 of them; how is read from `pictures` (N, 3, 256, 256) by least squares.
    """
    first, second, *rest = model.encoder.layers
    for mine, theirs in zip(rest, list(old.encoder.layers)[1:], strict=True):
        mine.load_state_dict(theirs.state_dict())
    pixels = pictures.add(1).div(2)
    wanted = old.encoder.layers[0](F.avg_pool2d(pixels, 2))[..., 2:-2, 2:-2].flatten(2)
    patches = F.unfold(pixels, 5, padding=2, stride=2).unflatten(2, (PX // 2, PX // 2))[..., 2:-2, 2:-2].flatten(2)
    rows, goal = (t.transpose(1, 2).flatten(0, 1).double() for t in (patches, wanted))
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], 1)
    inner = rows.T @ rows + 1e-4 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype)
    solved = torch.linalg.solve(inner, rows.T @ goal).float()
    print(
        f"halving inside the encoder: {100 * ((rows.float() @ solved - goal).std() / goal.std()):.1f} % off", flush=True
    )
    first.weight.zero_()
    first.bias.zero_()
    second.weight.zero_()
    for colour in range(3):
        for dy in range(3):
            for dx in range(3):
                first.weight[9 * colour + 3 * dy + dx, colour, dy, dx] = 1
    first.bias[27] = 1
    kernel = solved[:-1].T.reshape(WIDTH, 3, 5, 5)
    for y in TAPS:
        for x in TAPS:
            at_y, at_x = max(-1, min(y, 1)), max(-1, min(x, 1))  # the second layer's tap; the first one has the rest
            for colour in range(3):
                copied = 9 * colour + 3 * (y - at_y + 1) + (x - at_x + 1)
                second.weight[:, copied, at_y + 1, at_x + 1] = kernel[:, colour, y + 2, x + 2]
    second.weight[:, 27, 1, 1] = solved[-1]


@torch.no_grad()
def begin_decoder(old: AutoencoderTiny, model: AutoencoderTiny) -> None:
    """Sets the new decoder to the old one's levels; the new level begins at random."""
    mine, theirs = list(model.decoder.layers), list(old.decoder.layers)
    for own, known in zip(mine, theirs[:-1], strict=False):
        own.load_state_dict(known.state_dict())


class Trainer:
    """Everything that a checkpoint holds, and one step of training."""

    def __init__(self, args):
        torch.manual_seed(51)
        self.args, self.path, self.faces = args, HOME / "checkpoints/enlarged.pt", Faces()
        self.path.parent.mkdir(exist_ok=True)
        self.old = AutoencoderTiny.from_pretrained(args.base / "vae").float().eval().requires_grad_(False)
        self.model = new_autoencoder(self.old.config.latent_channels).to(memory_format=torch.channels_last)
        self.step, self.spent = 0, 0.0
        saved = torch.load(self.path, weights_only=False) if self.path.exists() else None
        if saved:
            self.model.load_state_dict(saved["model"])
        else:
            rows, rng = self.faces.rows[:: len(self.faces.rows) // 64], np.random.default_rng(52)
            seen = np.stack([self.faces.variant(row, PX, rng, zoom=(0.6, 1)).pixels for row in rows])
            begin_encoder(self.old, self.model, to_tensor(seen))
            begin_decoder(self.old, self.model)
        self.model.encoder.requires_grad_(False)
        self.trained = list(self.model.decoder.parameters())
        self.optimizer = torch.optim.AdamW(self.trained, lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
        self.ema = Ema(self.model, 0.998)
        if saved:
            self.step, done = saved["step"], saved["minutes"] == args.minutes and saved["spent"] >= args.minutes * 60
            self.spent = 0.0 if done or saved["minutes"] != args.minutes else saved["spent"]
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema.load_state_dict(saved["ema"])
        self.first, self.losses, self.mean = self.step, Losses("cpu"), {}
        self.replicas = Replicas(self.model, args.workers)

    def loss(self, net, true, noise, points, embedding) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                wanted = self.old.encoder(F.avg_pool2d(true, 2)).float()
            made = net.decoder(wanted + noise).float()
            terms = self.losses(made, true, wanted, points, embedding)
        self.mean.update({k: 0.98 * self.mean.get(k, v.item()) + 0.02 * v.item() for k, v in terms.items()})
        return terms["l1"] + sum(weight * terms[name] for name, weight in WEIGHTS.items() if name != "latent")

    def one_step(self, pixels: np.ndarray, points: np.ndarray, embedding: np.ndarray) -> None:
        start, args = time.time(), self.args
        warm, done = min(1, (self.step - self.first + 1) / 50), self.spent / (args.minutes * 60)
        for group in self.optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * min(done, 1))))
        true = to_tensor(pixels)
        noise = LATENT_NOISE / 2 * torch.randn(len(true), self.old.config.latent_channels, PX // 16, PX // 16)
        self.replicas.backward(self.loss, true, noise, torch.from_numpy(points), torch.from_numpy(embedding))
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update()
        self.step, self.spent = self.step + 1, self.spent + time.time() - start

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "ema": self.ema.state_dict(), "step": self.step}
        state |= {"optimizer": self.optimizer.state_dict(), "spent": self.spent, "minutes": self.args.minutes}
        save_checkpoint(self.path, state)
        average = self.ema.averaged()
        average.save_pretrained(HOME / "autoencoder_256")
        print(f"step {self.step}, {self.spent / 60:.1f} min, {evaluate(average, self.faces, PX, 'cpu')}", flush=True)


@torch.no_grad()
def tell_new_size(net: UNet2DConditionModel | ControlNetModel, known: list[int], new: list[int]) -> None:
    """Has a net take the last ones of its six size facts for what it always knew them as: a shift of one bias."""
    embed, width = net.add_embedding.linear_1, net.config.addition_time_embed_dim
    before, after = (get_timestep_embedding(torch.tensor(px).float(), width, True, 0).flatten() for px in (known, new))
    facts = embed.weight[:, -len(before) :].float()  # after the pooled text: original size, crop, target size
    embed.bias += (facts @ (before - after)).to(embed.bias)


def export(base: Path, folder: Path) -> None:
    """Writes the base of 256 px in fp16 to `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("vae"))
    vae = AutoencoderTiny.from_pretrained(HOME / "autoencoder_256")
    vae.to(torch.float16).save_pretrained(folder / "vae")
    unet = UNet2DConditionModel.from_pretrained(base / "unet").float()
    tell_new_size(unet, [OLD_PX] * 2, [PX] * 2)
    unet.to(torch.float16).save_pretrained(folder / "unet")
    for part in ("unet", "vae"):  # where the weights lay on this machine is nobody's business
        path = folder / part / "config.json"
        config = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}: {size:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=40, help="training time of this run; its schedule ends there")
    parser.add_argument("--base", type=Path, default=BASE, help="of 128 px, as unet.py writes it")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--workers", type=int, default=1, help="2 for two cores, with OMP_NUM_THREADS=1")
    parser.add_argument("--export", action="store_true", help="only write HOME/base_256")
    args = parser.parse_args()
    if args.export:
        return export(args.base, HOME / "base_256")
    trainer, mark, due = Trainer(args), time.time(), Every(5)
    batches = prefetched(batch_maker(trainer.faces, args.batch, PX, np.random.default_rng(trainer.step + 53)))
    print(f"from step {trainer.step}, {len(trainer.faces.rows)} faces", flush=True)
    while trainer.spent < args.minutes * 60:
        trainer.one_step(*next(batches))
        if trainer.step % 25 == 0:
            told = {name: round(value, 4) for name, value in trainer.mean.items()}
            print(f"step {trainer.step} {(time.time() - mark) / 25:.2f} s/step", told, flush=True)
            mark = time.time()
        if due():
            trainer.save()
    trainer.save()


if __name__ == "__main__":
    main()
