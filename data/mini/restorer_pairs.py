"""Makes what the restorer learns from: pairs of a clean face of 512 px and the 256 px picture that the base makes of it.

    nice -n 19 python restorer_pairs.py draw --pairs 2600 --generator GENERATOR     # about 1 s a pair on one core
    nice -n 19 python restorer_pairs.py measure --follow --pairs 2600               # next to it; 0.2 s a pair
    nice -n 19 python restorer_pairs.py look --pairs 2600 --generator GENERATOR     # then; about 0.6 s a pair

The faces are the usable ones of the store, adults only, drawn again by the whole generator (1,024 px). GENERATOR is the
folder `random_face/data` of the package random-face==2021.7.21.1 (`pip download --no-deps`, unzip). A face gets a new
backdrop and crop as the base's own training pictures did. Its 256 px version goes through the base's image-to-image, so
that it shows the base's own faults. Both commands go on where they were stopped, and training may begin before they end.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
from captions import caption
from judges import Detector, Landmarks106, Recogniser
from pictures import make_variant
from store import ARRAYS, FACE_PX, HOME, SHARED, Store
from training import Faces

from headshotkit.faces import colours
from headshotkit.restoration import embedded_net, reference

SEED = 31001
BASE = Path(__file__).with_name("base")
BATCH = 8
STEPS = 12
STRENGTHS = (0.15, 0.62)
"""Least and most noise of the image-to-image; above, the base makes another person of the face."""
GUIDED = 0.25
"""Share of the pairs that are drawn with guidance, which makes harder contours."""
COMPOSITED = 0.7
"""Share of the faces with a matte that get a new backdrop."""
EDITS = {"yaw": 0.8, "pitch": 0.7, "roll": 0.3, "smile": 0.8, "jaw": 0.5, "gaze": 0.6, "lum": 0.7, "lr": 0.7, "bg": 1.0}
"""How much another picture of a person differs, by direction of the style, in spreads among the faces."""
CLEAN_PX, DRAWN_PX, LARGE_PX = (ARRAYS[name][0][0] for name in ("clean", "drawn", "large"))


def pair_store() -> Store:
    return Store(HOME / "restorer/pairs")


def cut_out(rgb: np.ndarray, alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a face without its old background's colours at the edges, and its matte at the size of the picture.

    The matte follows the picture's edges and is a little narrower than it was, so that no bright rim is left.

    Source: guided filter, He et al. 2013.
    """
    side = rgb.shape[0]
    reach = (side // 64 * 2 + 1,) * 2
    guide = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype("float32") / 255
    matte = cv2.resize(alpha, (side, side), interpolation=cv2.INTER_CUBIC).astype("float32") / 255
    guide_mean, matte_mean = cv2.blur(guide, reach), cv2.blur(matte, reach)
    variance = cv2.blur(guide**2, reach) - guide_mean**2
    slope = (cv2.blur(guide * matte, reach) - guide_mean * matte_mean) / (variance + 1e-4)
    followed = cv2.blur(slope, reach) * guide + cv2.blur(matte_mean - slope * guide_mean, reach)
    narrow = ((followed - 0.45) / 0.5).clip(0, 1)
    sure = (narrow >= 1)[..., None].astype("float32")
    inner = cv2.blur(rgb * sure, reach) / np.maximum(cv2.blur(sure, reach), 1e-3)[..., None]
    known = cv2.blur(sure, reach)[..., None] > 0.02
    face = np.where((sure > 0) | ~known, rgb, inner.clip(0, 255)).astype("uint8")
    return face, (narrow * 255).round().astype("uint8")


class Generator:
    """The whole face generator: a style vector to a face, RGB uint8, (LARGE_PX, LARGE_PX, 3)."""

    def __init__(self, folder: Path, threads: int):
        import openvino as ov

        core = ov.Core()
        model = core.read_model(folder / "SynthesisNetwork.xml")
        self.net = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads})

    def __call__(self, style: np.ndarray) -> np.ndarray:
        made = np.asarray(self.net({"style": style[None]})[0])[0].transpose(1, 2, 0)
        rgb = ((made.clip(-1, 1) + 1) * 127.5).round().astype("uint8")
        return cv2.resize(rgb, (LARGE_PX, LARGE_PX), interpolation=cv2.INTER_AREA)


class Ghosts:
    """The embedded base's image-to-image: what it makes of a face at some strength, its usual faults included."""

    def __init__(self, base: Path):
        import torch
        from diffusers import StableDiffusionXLImg2ImgPipeline

        self.torch = torch
        self.pipe = StableDiffusionXLImg2ImgPipeline.from_pretrained(
            base, add_watermarker=False, torch_dtype=torch.float32
        )
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, pictures: np.ndarray, words: list[str], strength: float, guidance: float, seed: int):
        with self.torch.autocast("cpu", self.torch.bfloat16):
            made = self.pipe(
                words,
                image=self.torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255,
                strength=strength,
                num_inference_steps=STEPS,
                guidance_scale=guidance,
                generator=self.torch.Generator().manual_seed(seed),
                output_type="np",
            ).images
        return (made * 255).round().astype("uint8")


def draw_pairs(pairs: int, generator: Path, threads: int) -> None:
    """Draw pairs until there are `pairs`, the usable faces in order and then from the first again."""
    import torch

    torch.set_num_threads(threads)
    faces, store = Faces(), pair_store()
    rows = np.sort(np.concatenate([faces.rows, faces.test_rows]))
    styles = faces.store.array("w")
    large = store.array("large", len(rows))
    clean, drawn, origin = (store.array(name, pairs) for name in ("clean", "drawn", "origin"))
    generate, haunt = Generator(generator, threads), Ghosts(BASE)
    first, start = store.count["drawn"], time.time()
    for at in range(first, pairs, BATCH):
        rng, words = np.random.default_rng((SEED, at)), []
        strength, guidance = rng.uniform(*STRENGTHS), 3.0 if rng.random() < GUIDED else 1.0
        batch = range(at, min(at + BATCH, pairs))
        for number in batch:
            which = number % len(rows)
            row = rows[which]
            if number >= store.count["large"] and number < len(rows):
                large[which] = generate(styles[row])
            rgb, alpha = np.array(large[which]), None
            if faces.matted[row] and rng.random() < COMPOSITED:
                rgb, alpha = cut_out(rgb, np.array(faces.alpha[row]))
            made = make_variant(rgb, alpha, faces.points[row] * (LARGE_PX / FACE_PX), CLEAN_PX, rng, composite=1)
            clean[number], origin[number] = made.pixels, (row, strength, guidance)
            words.append(caption(faces.captioner.attributes(row).on(made), rng))
        small = [cv2.resize(clean[n], (DRAWN_PX, DRAWN_PX), interpolation=cv2.INTER_AREA) for n in batch]
        drawn[batch.start : batch.stop] = haunt(np.stack(small), words, strength, guidance, at)
        store.finish("large", min(batch.stop, len(rows)))
        for name in ("clean", "origin", "drawn"):
            store.finish(name, batch.stop)
        if at // BATCH % 10 == 0:
            print(f"{batch.stop} pairs, {(time.time() - start) / (batch.stop - first):.2f} s each", flush=True)


class Measurer:
    """Measures a clean picture: points (7, 2) and the person's vector; NaN where no face is found."""

    def __init__(self):
        self.detect, self.marks, self.embed = Detector(), Landmarks106(), Recogniser()

    def __call__(self, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self.detect(clean)
        if found is None:
            return np.full((7, 2), np.nan, "float32"), np.full(embedded_net.PERSON, np.nan, "float32")
        _, box, points = found
        marks = self.marks(clean, box)
        eyes, hair = colours.iris_colour(clean, marks), colours.crown_colour(clean, points)
        irises = marks[list(colours.IRIS_CENTRES)]
        return np.concatenate([points, irises]), embedded_net.compose_vector(self.embed(clean, points), eyes, hair)


def measure_pairs(pairs: int, follow: bool) -> None:
    """Measure the pairs that are drawn, and with `follow` those that will be."""
    store, measure = pair_store(), Measurer()
    points, person = store.array("points", pairs), store.array("person", pairs)
    row, start = store.count["person"], time.time()
    first = row
    while row < pairs:
        store.refresh()
        if row >= store.count["drawn"]:
            if not follow:
                break
            time.sleep(5)
            continue
        points[row], person[row] = measure(np.array(store.array("clean")[row]))
        row += 1
        if row % 8 == 0 or row == pairs:
            store.finish("points", row)
            store.finish("person", row)
        if row % 200 == 0:
            found = np.isfinite(person[:row, 0])
            print(
                f"{row} measured, {(time.time() - start) / (row - first):.2f} s each; a face in {found.mean():.0%}, "
                f"eyes known in {person[:row][found, embedded_net.EMBEDDING + 3].mean():.0%}",
                flush=True,
            )


def look_again(pairs: int, generator: Path, threads: int) -> None:
    """Draw another picture of each pair's person, and lay it over the drawing as the restorer's reference.

    All grey where no face is found.
    """
    faces, store = Faces(), pair_store()
    styles = faces.store.array("w")
    with np.load(SHARED / "assets/facegen/wdirs.npz") as file:
        directions = dict(zip(file["K"].tolist(), file["D"], strict=True))
    generate, detect, marks_of = Generator(generator, threads), Detector(), Landmarks106()
    looks, drawn, origin = store.array("look", pairs), store.array("drawn"), store.array("origin")
    first, start = store.count["look"], time.time()
    for number in range(first, min(pairs, store.count["drawn"])):
        rng = np.random.default_rng((SEED, 2, number))
        style = styles[int(origin[number, 0])] + sum(
            rng.normal(0, spread) * directions[name] for name, spread in EDITS.items()
        )
        other, given = generate(style.astype("float32")), np.array(drawn[number])
        found = [detect(picture) for picture in (other, given)]
        looks[number] = reference.UNKNOWN
        if all(found):
            source, target = (marks_of(picture, face[1]) for picture, face in zip((other, given), found))
            scale = CLEAN_PX / DRAWN_PX
            looks[number] = reference.laid_over(other, source, (target + 0.5) * scale - 0.5, CLEAN_PX)
        store.finish("look", number + 1)
        if number % 100 == 0:
            print(f"{number + 1} looks, {(time.time() - start) / (number + 1 - first):.2f} s each", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("draw", "measure", "look"))
    parser.add_argument("--pairs", type=int, default=2600)
    parser.add_argument("--generator", type=Path, help="folder with SynthesisNetwork.xml (draw, look)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--follow", action="store_true", help="wait for pairs that are still being drawn (measure)")
    args = parser.parse_args()
    if args.command == "draw":
        draw_pairs(args.pairs, args.generator, args.threads)
    elif args.command == "look":
        look_again(args.pairs, args.generator, args.threads)
    else:
        measure_pairs(args.pairs, args.follow)


if __name__ == "__main__":
    main()
