"""Prints what the base can do: autoencoder, obedience, diversity, copies of training faces, seconds a headshot.

    nice -n 19 python benchmark.py --images 256            # 64 is enough for a first look
    nice -n 19 python personalise.py --people p1 p2 p3     # the part about people has a script of its own

Obedience is judged on the picture alone: smile and direction by mediapipe, background by rules on what MODNet leaves
over, man or woman by a ridge on the w600k embedding (fitted on the store's labels, so not independent of them).
"""

import argparse
import itertools
import math
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import torch
from captions import Captioner, ridge
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline
from judges import Detector, Landmarker, Matter, Recogniser
from personalise import draw, embed_all, framed
from pictures import BACKDROPS
from store import HOME, SHARED
from training import Faces, to_pixels, to_tensor

NOUNS, SMILES = ("man", "woman"), ("smiling", "neutral expression")
LOOKS = ("looking left", "looking right", "looking at the camera")
COPY_ABOVE = 0.69  # w600k cosine: the least between two photos of one person in the London set (facts.md)


@torch.no_grad()
def rebuild(vae: AutoencoderTiny, pictures: np.ndarray) -> np.ndarray:
    parts = [to_tensor(pictures[k : k + 16]) for k in range(0, len(pictures), 16)]
    return np.concatenate([to_pixels(vae.decoder(vae.encoder(part))) for part in parts])


def judge_autoencoder(vae: AutoencoderTiny, px: int, detect: Detector, recognise: Recogniser) -> None:
    """PSNR in dB and face cosine, before against after, on generated held-out faces and on real ones (London)."""
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
        print(
            f"autoencoder, {name} ({len(pictures)}): PSNR mean {np.mean(psnr):.2f} dB, least {np.min(psnr):.2f}; "
            f"face cosine median {np.median(cosine):.3f}, least {np.min(cosine):.3f}",
            flush=True,
        )


def judged_background(rgb: np.ndarray, alpha: np.ndarray) -> str:
    """One of BACKDROPS, by rules on the colours outside the person; (H, W, 3) and (H, W).

    The limits were set on composited training pictures, where they are right for 93 % (150 pictures, 2026-11-20).
    """
    upper = alpha[: alpha.shape[0] * 2 // 3] < 25
    pixels = rgb[: len(upper)][upper].astype("float32")
    if len(pixels) < 50:
        pixels = np.concatenate([rgb[:40, :12].reshape(-1, 3), rgb[:40, -12:].reshape(-1, 3)]).astype("float32")
    r, g, b = pixels.mean(0)
    bright, colour = pixels.mean(), np.abs(pixels - pixels.mean(1, keepdims=True)).mean()
    if bright < 55:
        return BACKDROPS[2]
    if colour > 11 and (g > r or b > r):
        return BACKDROPS[4]
    if bright > 215 and colour < 8:
        return BACKDROPS[0]
    return BACKDROPS[3] if colour > 4.2 or pixels.mean(1).std() > 17 else BACKDROPS[1]


class Judge:
    """What a picture shows, by word: noun, smile, look, background; None where there is no face."""

    def __init__(self, captioner: Captioner, embedding: np.ndarray):
        self.detect, self.recognise, self.landmarks, self.matte = Detector(), Recogniser(), Landmarker(), Matter()
        self.known, self.male = np.nan_to_num(embedding), captioner.male

    def __call__(self, rgb: np.ndarray) -> dict | None:
        big = cv2.resize(rgb, (256, 256), interpolation=cv2.INTER_CUBIC)
        face, found = self.detect(big), self.landmarks(big)
        if face is None or found is None:
            return None
        embedding, (_, shapes, yaw, _, _) = self.recognise(big, face[2]), found
        smile = (shapes["mouthSmileLeft"] + shapes["mouthSmileRight"]) / 2
        male = ridge(self.known, self.male, 5, embedding[None])[0]
        return {
            "noun": "man" if male > 0 else "woman",
            "smile": SMILES[0] if smile > 0.4 else SMILES[1],
            "look": LOOKS[2] if abs(yaw) < 7 else LOOKS[1] if yaw > 0 else LOOKS[0],
            "background": judged_background(big, self.matte(big)),
            "embedding": embedding,
        }


def judge_obedience(pipe, judge: Judge, px: int, images: int, guidance: float) -> np.ndarray:
    """Draws a prompt grid and prints how often each attribute is as asked; returns the embeddings, (faces, 512)."""
    asked = list(itertools.islice(itertools.cycle(itertools.product(NOUNS, SMILES, LOOKS, BACKDROPS)), images))
    right, total, embeddings, rows, missing = defaultdict(int), defaultdict(int), [], [], 0
    for start in range(0, images, 16):
        part = asked[start : start + 16]
        pictures = draw(
            pipe, [f"photo of a {n}, {s}, {look}, {b}" for n, s, look, b in part], px, 1000 + start, guidance
        )
        rows.append(np.hstack(list(pictures)))
        for words, picture in zip(part, pictures):
            seen = judge(picture)
            if seen is None:
                missing += 1
                continue
            embeddings.append(seen["embedding"])
            for name, word in zip(("noun", "smile", "look", "background"), words):
                for key in (name, f"{name}: {word}"):
                    right[key] += seen[name] == word
                    total[key] += 1
    (HOME / "samples").mkdir(exist_ok=True)
    full = [row for row in rows if row.shape == rows[0].shape]
    cv2.imwrite(str(HOME / "samples/benchmark.png"), np.vstack(full)[:, :, ::-1])
    print(f"obedience, {images} images, guidance {guidance}: a face found in {100 * (1 - missing / images):.1f} %")
    for key in sorted(total):
        print(f"  {key:46s} {100 * right[key] / total[key]:5.1f} %  of {total[key]}")
    return np.stack(embeddings)


def judge_diversity(pipe, detect, recognise, px: int, guidance: float, seeds: int = 16) -> None:
    """Mean face cosine between different seeds of one prompt: near 0 is many people, near 1 is one."""
    means = []
    for prompt in ("photo of a man", "photo of a woman", "headshot of a woman, smiling, plain white background"):
        embeddings = embed_all(draw(pipe, [prompt] * seeds, px, 77, guidance), detect, recognise)
        cosine = (embeddings @ embeddings.T)[np.triu_indices(seeds, 1)]
        means.append(cosine.mean())
        print(
            f"diversity, '{prompt}': cosine between seeds mean {cosine.mean():.3f}, most {cosine.max():.3f}", flush=True
        )
    print(f"diversity: mean {np.mean(means):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=HOME / "base")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--only-autoencoder", action="store_true")
    args = parser.parse_args()
    detect, recognise = Detector(), Recogniser()
    vae = HOME / "autoencoder" if args.only_autoencoder else args.base / "vae"
    judge_autoencoder(AutoencoderTiny.from_pretrained(vae, torch_dtype=torch.float32), args.px, detect, recognise)
    if args.only_autoencoder:
        return
    pipe = StableDiffusionXLPipeline.from_pretrained(args.base, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    size = sum(p.stat().st_size for p in args.base.rglob("*") if p.is_file()) / 1e6
    start = time.time()
    draw(pipe, ["professional headshot of a woman, smiling"], args.px, 1)
    print(f"base {size:.1f} MB; one headshot, 20 steps with guidance: {time.time() - start:.2f} s", flush=True)
    faces = Faces()
    judge = Judge(faces.captioner, np.array(faces.embedding))
    embeddings = judge_obedience(pipe, judge, args.px, args.images, args.guidance)
    nearest = (embeddings @ judge.known.T).max(1)
    print(
        f"nearest of {len(judge.known)} training faces: cosine median {np.median(nearest):.3f}, most {nearest.max():.3f}, "
        f"{100 * (nearest > COPY_ABOVE).mean():.1f} % above {COPY_ABOVE}"
    )
    judge_diversity(pipe, detect, recognise, args.px, args.guidance)


if __name__ == "__main__":
    main()
