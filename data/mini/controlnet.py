"""Trains the embedded base's ControlNet for edges, and its refiner, on the store's faces; goes on where it was stopped.

    OMP_NUM_THREADS=1 nice -n 19 python controlnet.py pictures                 # 0.05 s a picture
    OMP_NUM_THREADS=1 nice -n 19 python controlnet.py control --steps 500
    OMP_NUM_THREADS=1 nice -n 19 python controlnet.py refiner --steps 200

Wants headshotkit in the environment, for its edges. The base's own weights don't change. `control` leaves a
ControlNetModel beside the base, in fp16: without attention, as diffusers' small one for SDXL is, begun from the base's
own layers. `refiner` leaves a LoRA: the base's U-Net trained further on low noise alone, which is what SDXL's refiner is
for. Both checkpoints lie in HOME/controlnet. A step's pictures, noise and words come from its number alone, so a
stopped training goes on to the same weights.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from captions import Attributes, caption
from diffusers import ControlNetModel, StableDiffusionXLPipeline
from peft import LoraConfig
from PIL import Image
from store import HOME
from training import Faces, save_checkpoint, to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from headshotkit.families.edges import find_edges
from headshotkit.families.lora_files import load_lora_tensors, lora_bytes, lora_tensors, put_lora
from headshotkit.families.sdxl import TARGETS

BASE, FOLDER = Path(__file__).with_name("base"), HOME / "controlnet"
SEED, CONTROL_FACTOR, SNR_CAP = 4301, 8, 5.0
UNWORDED = 0.15  # without words, so that the edges have to say it
EDGE_CHANNELS = (16, 32, 64, 96)  # three halvings: the edges have 8 px a latent
REFINED = 200  # of 1,000 noise levels, the lowest
TEST = 48  # pictures that are never trained on
RANK = 16


def load_base() -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(BASE, add_watermarker=False).to(torch.float32)
    for part in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.vae):
        part.requires_grad_(False)
    return pipe


# --- pictures -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def make_pictures(count: int, variants: int) -> None:
    """HOME/controlnet/pictures.npz: latents, packed edges and words of variants of `count` faces; test pictures last."""
    pipe, faces, rng = load_base(), Faces(), np.random.default_rng(SEED)
    side = pipe.unet.config.sample_size
    px, edge_px = side * pipe.vae_scale_factor, side * CONTROL_FACTOR
    rows = [*np.tile(faces.rows[:count], variants), *faces.test_rows[:TEST]]
    out = {"latents": [], "edges": [], "words": []}
    start = time.time()
    for place in range(0, len(rows), 32):
        made = [faces.variant(row, px, rng, composite=0.8) for row in rows[place : place + 32]]
        out["latents"].append(pipe.vae.encode(to_tensor(np.stack([v.pixels for v in made]))).latents.half().numpy())
        for row, variant in zip(rows[place : place + 32], made):
            lines = np.asarray(find_edges(Image.fromarray(variant.pixels), (edge_px, edge_px)).convert("L")) > 0
            out["edges"].append(np.packbits(lines))
            words = faces.captioner.attributes(row).on(variant)
            out["words"].append(json.dumps({k: value for k, value in asdict(words).items() if value}))
    out |= {"latents": np.concatenate(out["latents"]), "edges": np.stack(out["edges"]), "words": np.array(out["words"])}
    FOLDER.mkdir(parents=True, exist_ok=True)
    np.savez(FOLDER / "pictures.npz", test=min(TEST, len(faces.test_rows)), **out)
    share = np.unpackbits(out["edges"], axis=1).mean()
    print(f"{len(rows)} pictures, {share:.1%} of their px edges, {time.time() - start:.0f} s")


class Pictures:
    """All pictures in memory; `batch` draws by a step's number, `test` is always the same."""

    def __init__(self, pipe: StableDiffusionXLPipeline) -> None:
        with np.load(FOLDER / "pictures.npz") as file:
            self.latents = torch.from_numpy(file["latents"].astype("float32"))
            self.edges, self.tests = file["edges"], int(file["test"])
            self.words = [Attributes(**json.loads(text)) for text in file["words"]]
        self.pipe, self.told = pipe, {}

    def batch(self, step: int, size: int, levels: int, skew: float) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((SEED, step))
        return self._rows(rng.integers(0, len(self.latents) - self.tests, size), rng, levels, skew)

    def test(self, levels: int, skew: float) -> dict[str, torch.Tensor]:
        first = len(self.latents) - self.tests
        return self._rows(np.arange(first, len(self.latents)), np.random.default_rng(SEED), levels, skew)

    def _rows(self, chosen: np.ndarray, rng: np.random.Generator, levels: int, skew: float) -> dict[str, torch.Tensor]:
        """What a step is told: clean latents, noise, noise levels in [0, levels), edges, text, pooled text.

        skew: 1 for all noise levels alike; below it the high ones come more often.
        """
        clean = self.latents[chosen]
        texts = [None if rng.random() < UNWORDED else caption(self.words[k], rng) for k in chosen]
        text, pooled = zip(*(self._encoded(t) for t in texts))
        spread = (np.arange(len(chosen)) + rng.random(len(chosen))) / len(chosen)
        side = int(round((self.edges.shape[1] * 8) ** 0.5))
        edges = np.unpackbits(self.edges[chosen], axis=1).reshape(len(chosen), 1, side, side)
        return {
            "clean": clean,
            "noise": torch.from_numpy(rng.standard_normal(clean.shape, dtype="float32")),
            "t": torch.from_numpy((spread**skew * levels).astype("int64")),
            "edges": torch.from_numpy(edges.astype("float32")).expand(-1, 3, -1, -1),
            "text": torch.cat(text),
            "pooled": torch.cat(pooled),
        }

    @torch.no_grad()
    def _encoded(self, text: str | None) -> tuple[torch.Tensor, torch.Tensor]:
        if text not in self.told:
            parts = self.pipe.encode_prompt(text or "", do_classifier_free_guidance=False)
            self.told[text] = tuple(part * (0.0 if text is None else 1.0) for part in (parts[0], parts[2]))
        return self.told[text]


# --- training -----------------------------------------------------------------------------------------------------


class Trained:
    """What both trainings share: noise, loss, checkpoints. `levels`: how many noise levels, from the lowest up."""

    name, levels, rate, skew, batch = "", 1000, 2e-3, 1.0, 8

    def __init__(self) -> None:
        torch.manual_seed(SEED)
        self.pipe = load_base()
        self.unet, self.path = self.pipe.unet, FOLDER / f"{self.name}.pt"
        self.signal = self.pipe.scheduler.alphas_cumprod.float()
        self.pictures, self.step = Pictures(self.pipe), 0
        self.parameters = self.put()
        self.optimizer = torch.optim.AdamW(self.groups(), lr=self.rate, weight_decay=1e-3, betas=(0.9, 0.99))
        if self.path.exists():
            saved = torch.load(self.path)
            self.step = saved["step"]
            for own, kept in zip(self.parameters, saved["weights"]):
                own.data.copy_(kept)
            self.optimizer.load_state_dict(saved["optimizer"])

    def groups(self) -> list[dict]:
        """The parameters, each group with how many times the rate it learns at."""
        return [{"params": self.parameters, "factor": 1.0}]

    def save(self) -> None:
        weights = [p.detach().clone() for p in self.parameters]
        save_checkpoint(self.path, {"step": self.step, "weights": weights, "optimizer": self.optimizer.state_dict()})

    def loss(self, told: dict[str, torch.Tensor], with_it: bool = True) -> torch.Tensor:
        """The base's own loss, min-SNR, mean over the batch; `with_it` False: of the base alone."""
        signal = self.signal[told["t"]].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * told["clean"] + (1 - signal).sqrt() * told["noise"]
        goal = signal.sqrt() * told["noise"] - (1 - signal).sqrt() * told["clean"]
        px = float(told["clean"].shape[-1] * self.pipe.vae_scale_factor)
        facts = {"text_embeds": told["pooled"], "time_ids": torch.tensor([[px, px, 0, 0, px, px]] * len(noisy))}
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guess = self.predict(noisy, told, facts, with_it)
        error = (guess.float() - goal).pow(2).mean((1, 2, 3))
        snr = signal.flatten() / (1 - signal.flatten())
        return (error * ((SNR_CAP + 1) / (snr + 1)).clamp(max=1)).mean()

    @torch.no_grad()
    def test_loss(self, with_it: bool = True) -> float:
        return float(self.loss(self.pictures.test(self.levels, self.skew), with_it))

    def train(self, steps: int) -> None:
        count = sum(p.numel() for p in self.parameters) / 1e6
        print(
            f"{self.name}: {count:.2f} M trained, from step {self.step}; test loss of the base {self.test_loss(False):.4f}"
        )
        mean, mark = None, time.time()
        while self.step < steps:
            warm, left = min(1.0, (self.step + 1) / 50), (steps - self.step) / (0.3 * steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate * group["factor"] * warm * min(1.0, max(left, 0.02))
            loss = self.loss(self.pictures.batch(self.step, self.batch, self.levels, self.skew))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step, mean = self.step + 1, loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
            if self.step % 25 == 0:
                self.save()
                each = (time.time() - mark) / 25
                print(
                    f"{time.strftime('%H:%M:%S')} step {self.step} loss {mean:.4f} test {self.test_loss():.4f} {each:.3f} s/step",
                    flush=True,
                )
                mark = time.time()
        self.save()
        self.export()


class Control(Trained):
    name, skew = "control", 0.5  # mostly where there is much noise, for there a picture gets its outline

    def put(self) -> list[torch.nn.Parameter]:
        """A ControlNet without attention, begun from the base's own convolutions, in a part that adds nothing yet."""
        plain = dict(ControlNetModel.from_unet(self.unet).config)
        plain |= {
            "down_block_types": ["DownBlock2D"] * len(self.unet.config.block_out_channels),
            "mid_block_type": "UNetMidBlock2D",
            "conditioning_embedding_out_channels": EDGE_CHANNELS,
        }
        self.net = ControlNetModel.from_config(plain)
        known, own = self.unet.state_dict(), self.net.state_dict()
        taken = {k: v for k, v in known.items() if k in own and own[k].shape == v.shape}
        self.net.load_state_dict(taken, strict=False)
        # Its last layers alone begin at zero. Diffusers has the edges' at zero too, which then learn very late.
        torch.nn.init.kaiming_normal_(self.net.controlnet_cond_embedding.conv_out.weight)
        self.taken = {name for name, _ in self.net.named_parameters() if name in taken}
        return list(self.net.parameters())

    def groups(self) -> list[dict]:
        named = list(self.net.named_parameters())
        old = {"params": [p for name, p in named if name in self.taken], "factor": 0.25}
        return [old, {"params": [p for name, p in named if name not in self.taken], "factor": 1.0}]

    def predict(self, noisy, told, facts, with_it) -> torch.Tensor:
        down, middle = None, None
        if with_it:
            down, middle = self.net(
                noisy,
                told["t"],
                told["text"],
                controlnet_cond=told["edges"],
                added_cond_kwargs=facts,
                return_dict=False,
            )
        return self.unet(
            noisy, told["t"], told["text"], added_cond_kwargs=facts,
            down_block_additional_residuals=down, mid_block_additional_residual=middle,
        ).sample  # fmt: skip

    def export(self) -> None:
        folder = Path(__file__).with_name("controlnet")
        self.net.half().save_pretrained(folder)
        print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")


class Refiner(Trained):
    name, levels, rate, batch = "refiner", REFINED, 5e-4, 4

    def put(self) -> list[torch.nn.Parameter]:
        return put_lora(self.unet, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS["all"]), SEED)

    def predict(self, noisy, told, facts, with_it) -> torch.Tensor:
        (self.unet.enable_adapters if with_it else self.unet.disable_adapters)()
        return self.unet(noisy, told["t"], told["text"], added_cond_kwargs=facts).sample

    def export(self) -> None:
        place = Path(__file__).with_name("refiner") / "pytorch_lora_weights.safetensors"
        place.parent.mkdir(exist_ok=True)
        load_lora_tensors(self.unet, {k: v.half() for k, v in lora_tensors(self.unet).items()})
        for parameter in self.parameters:
            parameter.data = parameter.data.half()
        place.write_bytes(lora_bytes(self.unet, "unet.", {"headshotkit.levels": str(REFINED)}))
        print(f"{place}: {place.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("pictures", "control", "refiner"))
    parser.add_argument("--faces", type=int, default=1100, help="as many of the store's, each adult and surely found")
    parser.add_argument("--variants", type=int, default=2, help="pictures of each face")
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "pictures":
        make_pictures(args.faces, args.variants)
    else:
        {"control": Control, "refiner": Refiner}[args.what]().train(args.steps)


if __name__ == "__main__":
    main()
