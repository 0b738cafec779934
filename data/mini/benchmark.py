"""Prints what the base can do: autoencoder, obedience, diversity, copies of training faces, seconds a headshot.

    nice -n 19 python benchmark.py --images 256            # 64 is enough for a first look
    nice -n 19 python benchmark.py --parts obedience --lora HOME/personalise/p2/lora/person.safetensors --person "ohwx woman"
    nice -n 19 python personalise.py --people p1 p2 p3     # the part about people has a script of its own

obedience.py says by what prompts are judged to be obeyed.
"""

import argparse
import math
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from judges import Detector, Dlib, Recogniser, embed_all, framed
from obedience import Judge, judge_obedience
from pipeline import draw
from store import HOME, SHARED
from training import Faces, to_pixels, to_tensor

PARTS = ["autoencoder", "obedience", "diversity"]
COPY_ABOVE = 0.69  # w600k cosine: the least between two photos of one person in the London set (facts.md)


@torch.no_grad()
def rebuild(vae: AutoencoderTiny, pictures: np.ndarray) -> np.ndarray:
    parts = [to_tensor(pictures[k : k + 16]) for k in range(0, len(pictures), 16)]
    return np.concatenate([to_pixels(vae.decoder(vae.encoder(part))) for part in parts])


def judge_autoencoder(vae: AutoencoderTiny, px: int, detect: Detector, recognise: Recogniser) -> None:
    """PSNR in dB and face cosine, before against after, on generated held-out faces and on real ones (London).

    ArcFace is in the autoencoder's loss, dlib's recogniser is not: its distance says whether the gain is one of likeness.
    """
    dlib = Dlib()
    faces, rng = Faces(), np.random.default_rng(8)
    made = [faces.variant(row, px, rng, zoom=(0.9, 1), composite=0.3).pixels for row in faces.test_rows[:100]]
    sets = {"generated, held out": np.stack(made)}
    real = []
    for path in sorted((SHARED / "assets/london").glob("*.jpg")):
        rgb = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
        real.append(framed(rgb, detect(rgb)[2], px, rng))
    if real:
        sets["London"] = np.stack(real)
    for name, pictures in sets.items():
        back = rebuild(vae, pictures)
        psnr = [
            10 * math.log10(255**2 / max(np.square(a.astype("f") - b).mean(), 1e-9)) for a, b in zip(pictures, back)
        ]
        found = [detect(p) for p in pictures]
        cosine = [recognise(a, f[2]) @ recognise(b, f[2]) for a, b, f in zip(pictures, back, found) if f]
        apart = [np.linalg.norm(dlib(a, f[2]) - dlib(b, f[2])) for a, b, f in zip(pictures, back, found) if f]
        print(
            f"autoencoder, {name} ({len(pictures)}): PSNR mean {np.mean(psnr):.2f} dB, least {np.min(psnr):.2f}; "
            f"face cosine median {np.median(cosine):.3f}, least {np.min(cosine):.3f}; "
            f"dlib distance median {np.median(apart):.3f}, most {np.max(apart):.3f} (one person: below 0.6)",
            flush=True,
        )


def judge_diversity(draw, detect, recognise, seeds: int = 16) -> None:
    """Mean face cosine between different seeds of one prompt: near 0 is many people, near 1 is one."""
    means = []
    for prompt in ("photo of a man", "photo of a woman", "headshot of a woman, smiling, plain white background"):
        embeddings = embed_all(draw([prompt] * seeds, seed=77), detect, recognise)
        cosine = (embeddings @ embeddings.T)[np.triu_indices(seeds, 1)]
        means.append(cosine.mean())
        print(
            f"diversity, '{prompt}': cosine between seeds mean {cosine.mean():.3f}, most {cosine.max():.3f}", flush=True
        )
    print(f"diversity: mean {np.mean(means):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=HOME / "base_256")
    parser.add_argument("--vae", type=Path, help="an autoencoder that is not in a base yet: HOME/autoencoder")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--share", type=float, default=1.0, help="of the sampler steps that are guided, the first ones")
    parser.add_argument("--lora", type=Path, help="a person's LoRA: are prompts obeyed with it?")
    parser.add_argument("--person", default="", help="how prompts name that person, such as 'ohwx woman'")
    parser.add_argument("--px", type=int, default=256, help="128 for a base as unet.py writes it")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    args = parser.parse_args()
    detect, recognise = Detector(), Recogniser()
    if "autoencoder" in args.parts:
        vae = args.vae or args.base / "vae"
        judge_autoencoder(AutoencoderTiny.from_pretrained(vae, torch_dtype=torch.float32), args.px, detect, recognise)
    if args.parts == ["autoencoder"]:
        return
    pipe = StableDiffusionXLPipeline.from_pretrained(args.base, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if args.lora:
        pipe.load_lora_weights(str(args.lora.parent), weight_name=args.lora.name)
    render = partial(draw, pipe, px=args.px, guidance=args.guidance, share=args.share)
    size = sum(p.stat().st_size for p in args.base.rglob("*") if p.is_file()) / 1e6
    start = time.time()
    render(["professional headshot of a woman, smiling"], seed=1)
    print(f"base {size:.1f} MB; one headshot, 20 steps with guidance: {time.time() - start:.2f} s", flush=True)
    if "obedience" in args.parts:
        faces = Faces()
        embeddings = judge_obedience(render, Judge(faces, args.px), args.images, args.person)
        known = np.nan_to_num(np.array(faces.embedding))
        nearest = (embeddings @ known.T).max(1)
        print(
            f"nearest of {len(known)} training faces: cosine median {np.median(nearest):.3f}, most {nearest.max():.3f}, "
            f"{100 * (nearest > COPY_ABOVE).mean():.1f} % above {COPY_ABOVE}",
            flush=True,
        )
    if "diversity" in args.parts:
        judge_diversity(render, detect, recognise)


if __name__ == "__main__":
    main()
