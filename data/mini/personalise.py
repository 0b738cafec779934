"""Does a LoRA on the base become a person? A small plain trainer, to measure the base and not the package.

    nice -n 19 python personalise.py --people p1 p2 p3 --minutes 4

Prints, for each person, the median face cosine of headshots to the mean of their photos, before and after, beside the
photos' own and the other people's. Leaves HOME/personalise/<person>.png: photos above, before, after below.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from judges import Detector, Recogniser, similarity
from peft import LoraConfig
from store import HOME, SHARED
from training import to_tensor

TOKEN = "ohwx"
CLASS_WORD = {"p1": "man", "p2": "woman", "p3": "man"}
PROMPTS = (
    "photo of {}",
    "photo of {}, smiling",
    "headshot of {}, neutral expression, plain white background",
    "photo of {}, looking left",
    "photo of {}, looking right",
    "headshot of {}, grey studio background",
    "professional headshot of {}, smiling, blurred office background",
    "portrait of {}, dark background",
)
FRAME = np.float32([[98, 118], [158, 118], [128, 153], [103, 186], [153, 186]]) / 256
"""Where eyes, nose and mouth lie in the pictures that the base knows, as shares of the side."""
TARGETS = {
    "attention": ["to_k", "to_q", "to_v", "to_out.0"],
    "all": [
        "to_k",
        "to_q",
        "to_v",
        "to_out.0",
        "ff.net.0.proj",
        "ff.net.2",
        "proj_in",
        "proj_out",
        "conv1",
        "conv2",
        "conv_shortcut",
        "time_emb_proj",
    ],
}


def framed(rgb: np.ndarray, points: np.ndarray, px: int, rng: np.random.Generator) -> np.ndarray:
    """The face at the place and about the size that the base knows, a little closer or further at random."""
    matrix = similarity(points, FRAME * px)
    zoom, shift = rng.uniform(0.9, 1.15), rng.normal(0, 0.012 * px, 2)
    matrix *= zoom
    matrix[:, 2] += px * (1 - zoom) / 2 + shift
    scale = np.hypot(*matrix[0, :2])
    soft = cv2.GaussianBlur(rgb, (0, 0), 0.35 / scale) if scale < 0.8 else rgb
    return cv2.warpAffine(soft, matrix, (px, px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class Person:
    """Photos of one person, their embeddings and the mean of these."""

    def __init__(self, name: str, detect: Detector, recognise: Recogniser):
        self.name, self.photos, self.points = name, [], []
        for path in sorted((SHARED / "assets/people" / name).glob("*.jpg")):
            rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
            face = detect(rgb)
            if face:
                self.photos.append(rgb)
                self.points.append(face[2])
        self.embeddings = np.stack([recognise(p, f) for p, f in zip(self.photos, self.points)])
        self.mean = self.embeddings.mean(0) / np.linalg.norm(self.embeddings.mean(0))

    def own(self) -> float:
        """Median cosine of a photo to the mean of the other photos."""
        rest = self.embeddings.sum(0) - self.embeddings
        return float(np.median((self.embeddings * rest).sum(1) / np.linalg.norm(rest, axis=1)))


def embed_all(pictures: np.ndarray, detect: Detector, recognise: Recogniser) -> np.ndarray:
    """Embeddings of all pictures, (N, 512); zeros where there is no face."""
    faces = [detect(p) for p in pictures]
    return np.stack([recognise(p, f[2]) if f else np.zeros(512, "float32") for p, f in zip(pictures, faces)])


@torch.no_grad()
def draw(pipe, prompts, px: int, seed: int, guidance: float = 2.5, steps: int = 20) -> np.ndarray:
    with torch.autocast(pipe.device.type, dtype=torch.bfloat16):
        images = pipe(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=px,
            width=px,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).images
    return (images * 255).round().astype("uint8")


@torch.no_grad()
def encode_person(pipe, person: Person, px: int, rng: np.random.Generator, views: int = 4) -> torch.Tensor:
    """Latents of every photo in a few framings, (photos * views, C, px/8, px/8)."""
    crops = [framed(p, f, px, rng) for p, f in zip(person.photos, person.points) for _ in range(views)]
    return pipe.vae.encode(to_tensor(np.stack(crops), pipe.device.type)).latents


def train_lora(pipe, person: Person, args) -> float:
    """Trains a LoRA inside `pipe.unet`; returns the seconds it took."""
    start, rng = time.time(), np.random.default_rng(5)
    noun = CLASS_WORD[person.name]
    latents = encode_person(pipe, person, args.px, rng)
    prompts = [f"photo of {TOKEN} {noun}", f"headshot of {TOKEN} {noun}", f"portrait of {TOKEN} {noun}", ""]
    with torch.no_grad():
        text, _, pooled, _ = pipe.encode_prompt(prompts, device=pipe.device, do_classifier_free_guidance=False)
        text[-1], pooled[-1] = 0, 0
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS[args.target]))
    trained = [p for p in pipe.unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=1e-4)
    alphas = pipe.scheduler.alphas_cumprod.float().to(pipe.device)
    facts = torch.tensor([[args.px, args.px, 0, 0, args.px, args.px]], device=pipe.device).float().repeat(args.batch, 1)
    pipe.unet.train()
    step = 0
    while time.time() - start < args.minutes * 60 and step < args.steps:
        done = max((time.time() - start) / (args.minutes * 60), step / args.steps)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 20) * (1 - done) ** 0.5
        clean = latents[rng.integers(0, len(latents), args.batch)]
        which = torch.from_numpy(rng.choice(4, args.batch, p=[0.45, 0.25, 0.2, 0.1]))
        spread = (np.arange(args.batch) + rng.random(args.batch)) / args.batch * 1000
        timesteps = torch.from_numpy(spread.astype("int64")).to(pipe.device)
        alpha, noise = alphas[timesteps].view(-1, 1, 1, 1), torch.randn_like(clean)
        with torch.autocast(pipe.device.type, dtype=torch.bfloat16):
            guess = pipe.unet(
                alpha.sqrt() * clean + (1 - alpha).sqrt() * noise,
                timesteps,
                text[which],
                added_cond_kwargs={"text_embeds": pooled[which], "time_ids": facts},
            ).sample
        goal = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        loss = (guess.float() - goal).pow(2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    pipe.unet.eval()
    print(
        f"  {step} steps of {args.batch}, loss {loss.item():.3f}, {time.time() - start:.0f} s, "
        f"{sum(p.numel() for p in trained) / 1e6:.2f} M trained",
        flush=True,
    )
    return time.time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--people", nargs="+", default=["p1"], choices=sorted(CLASS_WORD))
    parser.add_argument("--base", type=Path, default=HOME / "base")
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--target", choices=sorted(TARGETS), default="all")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.manual_seed(5)
    detect, recognise = Detector(), Recogniser()
    people = {name: Person(name, detect, recognise) for name in CLASS_WORD}
    (HOME / "personalise").mkdir(exist_ok=True)
    for name in args.people:
        person, word = people[name], f"{TOKEN} {CLASS_WORD[name]}"
        pipe = StableDiffusionXLPipeline.from_pretrained(args.base, torch_dtype=torch.float32).to(args.device)
        pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            back = pipe.vae.decode(encode_person(pipe, person, args.px, np.random.default_rng(5), 1)).sample
        rebuilt = ((back.float().clamp(-1, 1) + 1) * 127.5).byte().permute(0, 2, 3, 1).cpu().numpy()
        before = draw(pipe, [p.format(f"a {CLASS_WORD[name]}") for p in PROMPTS], args.px, 7)
        train_lora(pipe, person, args)
        after = np.concatenate([draw(pipe, [p.format(word) for p in PROMPTS], args.px, seed) for seed in (7, 8)])
        shots = {"rebuilt": rebuilt, "before": before, "after": after}
        score = {what: embed_all(pictures, detect, recognise) for what, pictures in shots.items()}
        found = {what: np.median(e @ person.mean) for what, e in score.items()}
        others = {o: round(float(np.median(score["after"] @ people[o].mean)), 3) for o in people if o != name}
        print(
            f"{name}: photos {person.own():.3f} | autoencoder alone {found['rebuilt']:.3f} | before {found['before']:.3f} | "
            f"after {found['after']:.3f} (least {np.min(score['after'] @ person.mean):.3f}) | others {others}",
            flush=True,
        )
        shown = [framed(p, f, args.px, np.random.default_rng(1)) for p, f in zip(person.photos[:8], person.points)]
        cv2.imwrite(
            str(HOME / f"personalise/{name}.png"),
            np.vstack([np.hstack(row) for row in (shown, before[:8], after[:8], after[8:16])])[:, :, ::-1],
        )


if __name__ == "__main__":
    main()
