"""How well the embedded base's ControlNet is obeyed, and what its refiner does to pictures of a person.

    python tests/benchmarks/obey_edges.py RUN [--photos 16] [--steps 20]

RUN is a run folder on the embedded base with photos and a LoRA; it gets nothing but pictures. Neither network was
trained on these photos. Edges: for each photo of the sample people one noise, drawn without, half and fully controlled,
by the bare base and its own words; agreement is the F1 of edge px, 1 px of reach (`edges.edge_agreement`). Refiner: for
as many seeds a picture of the person with it off and on, identity and the face's sharpness. Medians, differences with
their 95 % bootstrap intervals. One thread; about 2 s a picture of one core.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from headshotkit.core import runtime
from headshotkit.core.run import Run
from headshotkit.evaluation.evaluate import rise_of
from headshotkit.faces import measures, recognition
from headshotkit.generation.pictures import Picture, PictureRequest, Studio

SCALES = (0.0, 0.5, 1.0)


def good_photos(count: int) -> list[Path]:
    """So many photos of both sample people, in turn."""
    people = [sorted(runtime.data_path("people", p).glob(f"{p}_*.jpg")) for p in ("p1", "p2")]
    return [photo for pair in zip(*people, strict=False) for photo in pair][:count]


def sharpness(run: Run, picture: Picture) -> float | None:
    """Of the face, None without one."""
    image = np.asarray(Image.open(run.path("pictures") / picture.file).convert("RGB"))
    found = recognition.detect_faces(image)
    return measures.sharpness(recognition.align_face(image, found[0].points, measures.FACE_PX)) if found else None


def compared(name: str, off: list, on: list) -> str:
    rise = rise_of(off, on)
    medians = [statistics.median(v for v in values if v is not None) for values in (off, on)]
    return (
        f"{name}: {medians[0]:.3f} -> {medians[1]:.3f}, difference {rise.median:+.3f} [{rise.low:+.3f}, "
        f"{rise.high:+.3f}] over {rise.pairs} pairs"
    )


def obey(studio: Studio, ask: PictureRequest, photos: list[Path]) -> None:
    bare = ask.replace(lora_scale=0.0)
    found: dict[float, list[float]] = {scale: [] for scale in SCALES}
    for seed, photo in enumerate(photos):
        word = "man" if photo.name.startswith("p1") else "woman"
        for scale in SCALES:
            wanted = bare.replace(prompt=f"photo of a {word}", control=str(photo), control_scale=scale, seed=seed)
            found[scale].append(studio.render(wanted)[0].agreement)
        line = ", ".join(f"{scale:g}: {found[scale][-1]:.3f}" for scale in SCALES)
        print(f"{photo.name} edge agreement by scale {line}", flush=True)
    for scale in SCALES[1:]:
        print(compared(f"edge agreement, control 0 -> {scale:g}", found[0.0], found[scale]), flush=True)


def refine(run: Run, studio: Studio, ask: PictureRequest, count: int) -> None:
    made = {share: [] for share in (0.0, 0.2)}
    for seed in range(count):
        for share, pictures in made.items():
            pictures += studio.render(ask.replace(refiner=share, seed=seed))
    identity, sharp = (
        [[of(picture) for picture in made[share]] for share in (0.0, 0.2)]
        for of in (lambda p: p.identity, lambda p: sharpness(run, p))
    )
    print(compared("identity, refiner off -> on", *identity))
    print(compared("sharpness of the face, refiner off -> on", *sharp))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(args.run)
    studio, ask = Studio(run), PictureRequest.for_base("mini", "photo of {person}", sampler_steps=args.steps)
    obey(studio, ask, good_photos(args.photos))
    refine(run, studio, ask, args.photos)


if __name__ == "__main__":
    main()
