"""Caches what the U-Net learns from: latents of augmented faces, their attributes and their crops.

    nice -n 19 python latents.py --variants 5        # about 0.01 s a picture on two cores

Each variant of all usable faces is one file HOME/latents/NN.npz; finished files are left alone, so it can be stopped,
and called again for more. Delete the folder when the encoder or the captions change.
"""

import argparse
import json
import os
import time
from dataclasses import asdict

import numpy as np
import torch
from diffusers import AutoencoderTiny
from store import HOME
from training import Faces, to_tensor

SEED = 9001


def crop_facts(made) -> tuple[int, int, int]:
    """Side of the whole picture and what was cut off above and left of the crop, in px at the crop's scale."""
    return made.side_px, made.top_px, made.left_px


@torch.no_grad()
def encode_variant(index: int, faces: Faces, encoder, px: int, device: str, batch: int = 32) -> dict:
    """One training picture of every usable face: latents float16 (N, 8, px/8, px/8), words (JSON), crops (N, 3), rows."""
    rng = np.random.default_rng((SEED, index))
    rows = faces.rows
    out = {"latents": [], "words": [], "crops": [], "rows": rows}
    for start in range(0, len(rows), batch):
        made = [faces.variant(row, px, rng, composite=0.8) for row in rows[start : start + batch]]
        pixels = to_tensor(np.stack([v.pixels for v in made]), device)
        with torch.autocast(device, dtype=torch.bfloat16):
            latents = encoder(pixels)
        out["latents"].append(latents.float().cpu().numpy().astype("float16"))
        out["crops"] += [crop_facts(v) for v in made]
        for row, v in zip(rows[start : start + batch], made):
            words = faces.captioner.attributes(row).on(v)
            out["words"].append(json.dumps({k: value for k, value in asdict(words).items() if value}))
    out["latents"] = np.concatenate(out["latents"])
    return out | {"crops": np.array(out["crops"], "int16"), "words": np.array(out["words"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--variants", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="variant to begin with: two runs can share the work")
    parser.add_argument("--px", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = HOME / "latents"
    folder.mkdir(exist_ok=True)
    faces = Faces()
    encoder = AutoencoderTiny.from_pretrained(HOME / "autoencoder").encoder.to(
        args.device, memory_format=torch.channels_last
    )
    for index in range(args.first, args.variants):
        path, start = folder / f"{index:02d}.npz", time.time()
        if path.exists():
            continue
        made = encode_variant(index, faces, encoder, args.px, args.device)
        beside = folder / f"{index:02d}.part.npz"
        np.savez(beside, **made)
        os.replace(beside, path)
        print(
            f"{path.name}: {len(made['rows'])} pictures, {(time.time() - start) / len(made['rows']):.4f} s each, "
            f"latent mean {made['latents'].astype('f').mean():.3f}, std {made['latents'].astype('f').std():.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
