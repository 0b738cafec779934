"""Trains the artefact detector: faces that do not exist, with artefacts planted as they are drawn.

    nice -n 19 python artefacts.py cut                     # aligned heads and their landmarks, about 1 minute
    nice -n 19 python artefacts.py train --until 21:50     # goes on where it was stopped
    nice -n 19 python artefacts.py limits                  # sets the limit of each kind on the validation faces, exports

The faces are the restorer's (`restorer_pairs.py draw`): the whole generator's at 704 px, and those of the base's own
versions that it changed little. Every tenth face is for validation, and every tenth for the trial of
tests/benchmarks/artefacts.py; no step sees them. Harmless changes of the same make are planted as often, so that a seam
or a blur is no sign, and every head is blurred, shrunk, noised and compressed at random.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from judges import NETS, Detector, Landmarks106
from measure import column
from restorer_pairs import pair_store
from store import HOME
from torch.nn import functional as F
from training import Ema, Faces, clock_time

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests/benchmarks"))
import planting

from headshotkit.faces import recognition
from headshotkit.faces.artefact_net import COARSE, FINE, ArtefactNet, load_detector, save_detector
from headshotkit.faces.artefacts import HEAD_PX, HEAD_TEMPLATE, KINDS, recogniser_maps, recogniser_maps_session

FOLDER = HOME / "artefacts"
CUT_PX = 208
LITTLE_CHANGED = 0.3
"""Most strength of the image-to-image whose pictures count as free of artefacts."""
BATCH, RATE = 32, 2e-3
VALIDATED = 8
SEED = 51001
VALIDATION, TRIAL = 9, 4
"""Last digit of the rows of validation faces, and of those of the trial."""
FALSE_ALARMS = 0.01
"""Share of the validation heads without artefacts that a kind's limit lets through as one."""


def wears_glasses(faces: Faces, row: int) -> bool:
    """Whether a face may wear glasses: surer than a caption must be that it doesn't."""
    return bool(column(faces.measures, "bridge")[row] > 6 and faces.captioner.glasses[row] > 0.8)


def cut_heads() -> None:
    """Cut every face with its landmarks, from the whole generator and from the base's little changed versions."""
    store, faces, detect, marks_of = pair_store(), Faces(), Detector(), Landmarks106()
    large, clean, drawn, origin = (store.array(name) for name in ("large", "clean", "drawn", "origin"))
    worn = {int(row) for row in range(len(faces.measures)) if wears_glasses(faces, row)}
    usable = np.sort(np.concatenate([faces.rows, faces.test_rows]))
    heads, marks, rows, glasses, base = [], [], [], [], []
    jobs = [(usable[n], large[n], large[n], False) for n in range(len(large))]
    jobs += [(int(origin[n][0]), clean[n], drawn[n], True) for n in range(len(drawn)) if origin[n][1] < LITTLE_CHANGED]
    for row, whole, shown, is_base in jobs:
        whole = np.array(whole)
        found = detect(whole)
        if found is None or found[1].min() < -0.2 * len(whole):
            continue
        scale = len(shown) / len(whole)
        seen = marks_of(whole, found[1]) * scale
        matrix = recognition.template_transform(found[2] * scale, CUT_PX, HEAD_TEMPLATE)
        shrink = 1 / max(np.hypot(*matrix[:, 0]), 1e-6)
        picture = cv2.GaussianBlur(np.array(shown), (0, 0), 0.4 * shrink) if shrink > 1.2 else np.array(shown)
        heads.append(cv2.warpAffine(picture, matrix, (CUT_PX, CUT_PX), flags=cv2.INTER_LINEAR,
                                    borderMode=cv2.BORDER_REPLICATE))  # fmt: skip
        marks.append(seen @ matrix[:, :2].T + matrix[:, 2])
        rows.append(row), glasses.append(row in worn), base.append(is_base)
    FOLDER.mkdir(exist_ok=True)
    np.savez(FOLDER / "heads.npz", heads=np.stack(heads), marks=np.float32(marks), rows=np.int64(rows),
             glasses=np.array(glasses), base=np.array(base))  # fmt: skip
    print(f"{len(heads)} heads, {sum(base)} of the base, {np.mean(glasses):.0%} may wear glasses")


class Heads:
    """The cut heads: one of them at random, with artefacts planted or not, as the detector sees it."""

    def __init__(self, digits: set[int]):
        with np.load(FOLDER / "heads.npz") as kept:
            mine = np.flatnonzero(np.isin(kept["rows"] % 10, list(digits)))
            self.heads, self.marks = kept["heads"][mine], kept["marks"][mine]
            self.glasses, self.base = kept["glasses"][mine], kept["base"][mine]

    def drawn(self, rng: np.random.Generator, planted: float = 0.42) -> tuple[np.ndarray, np.ndarray]:
        """A head of HEAD_PX and its labels: 1 planted, 0 not, -1 if another artefact makes that doubtful."""
        at = int(rng.integers(len(self.heads)))
        head, marks, worn = self.heads[at], self.marks[at], bool(self.glasses[at])
        if not worn and rng.random() < 0.2:
            head, worn = planting.with_glasses(head, marks, rng, broken=False), True
        if rng.random() < 0.3:
            head = planting.hair_beside(head, marks, rng)
        labels, ways = np.zeros(len(KINDS), np.float32), planting.WAYS
        for number, kind in enumerate(KINDS):
            way = ways[kind][rng.integers(len(ways[kind]))]
            if rng.random() < (planted if kind != "hair" else 0.7 * planted):
                strength, more = rng.uniform(0.8, 1.1), {}
                if way is planting.glasses_broken and worn:
                    way = planting.glasses_melted
                if way is planting.glasses_melted:
                    more = {"worn": worn}
                made = way(head, marks, rng, strength, **more)
                labels[number] = 1 if planting.is_visible(head, made, marks) else -1
                head = made
                doubtful = {
                    "hair": (0, 1, 2), "eyes": (2,) if worn else (), "mouth": (),
                    "ears_glasses": (0,) if "glasses" in way.__name__ else (),
                }[kind]  # fmt: skip
                for other in doubtful:
                    labels[other] = labels[other] or -1
            elif rng.random() < 0.5 and way not in (planting.glasses_broken, planting.hair_across):
                more = {"worn": True} if way is planting.glasses_melted else {}
                head = way(head, marks, rng, rng.uniform(0.05, 0.2), **more)
        return degraded(harmless(head, marks, rng), rng), labels


def harmless(head: np.ndarray, marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A head whose eyes both changed alike, or that was bent a little as a whole, or neither."""
    chance = rng.random()
    if chance < 0.12:
        factor, shift = rng.uniform(0.85, 1.2), planting.axes(marks)[0] * rng.normal(0, 3)
        for eye in (0, 1):
            head = planting.affine_eye(head, marks, eye, np.eye(2) / factor, shift)
    elif chance < 0.2:
        d = planting.eye_distance(marks)
        for eye in (0, 1):
            where = planting.spot(head.shape, marks[planting.IRISES[eye]], marks, 0.24 * d, 0.17 * d)
            if eye == 0:
                move = planting.axes(marks)[0] * d * rng.uniform(-0.08, 0.08)
            head = planting.moved(head, move[0] * where, move[1] * where)
    elif chance < 0.26:
        head = planting.eye_of_another_colour(head, marks, rng, rng.uniform(0.3, 0.8), eyes=(0, 1))
    if rng.random() < 0.3:
        field = 0.06 * planting.eye_distance(marks) * rng.random()
        head = planting.moved(head, field * planting.waves(head.shape, rng, CUT_PX / 3),
                              field * planting.waves(head.shape, rng, CUT_PX / 3))  # fmt: skip
    return head


def degraded(head: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A head as cameras, phones and soft generators show it, aligned by points that are a little off."""
    side = len(head)
    if rng.random() < 0.5:
        small = int(side * rng.uniform(0.3, 0.9))
        head = cv2.resize(head, (small, small), interpolation=cv2.INTER_AREA)
        head = cv2.resize(head, (side, side), interpolation=int(rng.choice([cv2.INTER_LINEAR, cv2.INTER_CUBIC])))
    if rng.random() < 0.4:
        head = cv2.GaussianBlur(head, (0, 0), rng.uniform(0.4, 2.2))
    elif rng.random() < 0.25:
        head = cv2.addWeighted(head, 1 + (s := rng.uniform(0.2, 0.9)), cv2.GaussianBlur(head, (0, 0), 1.5), -s, 0)
    light = head.astype(np.float32)
    if rng.random() < 0.7:
        gains = np.float32(rng.uniform(0.6, 1.2) * rng.normal(1, 0.05, 3))
        light = 255 * (light / 255) ** np.float32(rng.uniform(0.7, 1.4)) * gains
    if rng.random() < 0.3:
        ramp = np.linspace(-1, 1, side, dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-0.4, 0.4))
        light = light * (1 + ramp)
    if rng.random() < 0.15:
        light = light.mean(2, keepdims=True) * 0.8 + light * 0.2
    if rng.random() < 0.4:
        light = light + rng.uniform(1, 9) * rng.standard_normal(light.shape, np.float32)
    head = light.clip(0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, data = cv2.imencode(".jpg", head, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 95))])
        head = cv2.imdecode(data, cv2.IMREAD_COLOR)
    angle, zoom = np.deg2rad(rng.normal(0, 2.0)), HEAD_PX / side * np.exp(rng.normal(0, 0.04))
    turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = HEAD_PX / 2 + rng.normal(0, 0.012 * HEAD_PX, 2) - turn @ [side / 2, side / 2]
    head = cv2.warpAffine(head, np.c_[turn, shift], (HEAD_PX, HEAD_PX), flags=cv2.INTER_LINEAR,
                          borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    return head[:, ::-1] if rng.random() < 0.5 else head


def shelf(rows: int | None = None) -> dict[str, np.ndarray]:
    """The drawn heads as the recogniser sees them: its maps, the labels, and whether a row is for validation."""
    side = HEAD_PX // 8
    shapes = {"fine": (FINE, 2 * side, 2 * side), "coarse": (COARSE, side, side), "labels": (len(KINDS),)}
    arrays = {}
    for name, shape in shapes.items():
        path = FOLDER / f"{name}.raw"
        row_bytes = 2 * int(np.prod(shape))
        path.touch()
        count = max(rows or 0, path.stat().st_size // row_bytes)
        os.truncate(path, count * row_bytes)
        arrays[name] = np.memmap(path, np.float16, "r+", shape=(count, *shape))
    return arrays


def draw_heads(rows: int, until: float) -> None:
    """Draw heads and keep the recogniser's maps of them; every VALIDATED-th is a validation face's."""
    heads, checks = Heads(set(range(10)) - {VALIDATION, TRIAL}), Heads({VALIDATION})
    maps_of, arrays, state = recogniser_maps_session(NETS, 1), shelf(rows), FOLDER / "drawn.json"
    first, start = json.loads(state.read_text()) if state.is_file() else 0, time.time()
    for row in range(first, rows):
        rng = np.random.default_rng((SEED, row))
        is_check = row % VALIDATED == VALIDATED - 1
        free = is_check and row // VALIDATED % 2 == 0
        head, label = (checks if is_check else heads).drawn(rng, **({"planted": 0.0} if free else {}))
        fine, coarse = recogniser_maps(maps_of, np.ascontiguousarray(head))
        arrays["fine"][row], arrays["coarse"][row], arrays["labels"][row] = fine[0], coarse[0], label
        if row % 100 == 99 or row == rows - 1:
            state.write_text(json.dumps(row + 1))
            print(f"{row + 1} drawn, {(time.time() - start) / (row + 1 - first):.3f} s each", flush=True)
        if time.time() > until:
            break


def loss_of(rated: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the labels that are known; a little smoothed, as some faces have faults of their own."""
    each = F.binary_cross_entropy_with_logits(rated, labels.clamp(0.02, 0.98), reduction="none")
    known = (labels >= 0).float()
    return (each * known).sum() / known.sum().clamp(min=1)


def parts_of(arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows for validation."""
    rows = np.arange(json.loads((FOLDER / "drawn.json").read_text()))
    checks = rows % VALIDATED == VALIDATED - 1
    return rows[~checks], rows[checks]


def train(epochs: int, seed: int, begun: Path | None, rate: float) -> ArtefactNet:
    """Train on the drawn heads, anew or from a file of weights, and return the averaged network."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    arrays, net, rng = shelf(), load_detector(begun) if begun else ArtefactNet(), np.random.default_rng(seed)
    net.limits.zero_()
    rows, checks = parts_of(arrays)
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.05)
    ema, steps, step, start, running = Ema(net, 0.99), epochs * (len(rows) // BATCH), 0, time.time(), []
    for epoch in range(epochs):
        order = rng.permutation(rows)
        for batch in np.split(order[: len(order) // BATCH * BATCH], len(order) // BATCH):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / 50) * max(0.5 * (1 + math.cos(math.pi * step / steps)), 0.01)
            fine, coarse, labels = (torch.from_numpy(np.float32(arrays[n][np.sort(batch)])) for n in arrays)
            with torch.autocast("cpu", torch.bfloat16):
                rated = net.train()(fine, coarse)
            loss = loss_of(rated.float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema.update()
            running.append(loss.item())
            step += 1
        if epoch % 2 or epoch == epochs - 1:
            rated, labels = rated_by(ema.averaged(), arrays, checks)
            print(f"epoch {epoch + 1}: loss {np.mean(running[-len(rows) // BATCH :]):.3f}, validation "
                  f"{said(rated, labels)}; {time.time() - start:.0f} s", flush=True)  # fmt: skip
    return ema.averaged()


@torch.no_grad()
def rated_by(net: ArtefactNet, arrays: dict[str, np.ndarray], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network's numbers for rows of the shelf, and their labels."""
    rated = [
        net.eval()(*(torch.from_numpy(np.float32(arrays[name][part])) for name in ("fine", "coarse")))
        for part in np.array_split(rows, max(len(rows) // 64, 1))
    ]
    return torch.cat(rated).numpy(), np.array(arrays["labels"][rows])


def said(rated: np.ndarray, labels: np.ndarray) -> str:
    """For each kind how often a random head with the artefact is rated above one without: the area under the ROC."""
    words = []
    for kind, score, label in zip(KINDS, rated.T, labels.T, strict=True):
        above = score[label == 1][:, None] > score[label == 0][None]
        words.append(f"{kind} {above.mean():.3f}")
    return ", ".join(words)


def set_limits(net: ArtefactNet) -> None:
    """Give each kind the limit that the validation heads without artefacts set, and write the weights."""
    arrays = shelf()
    rated, labels = rated_by(net, arrays, parts_of(arrays)[1])
    clean = rated[(labels == 0).all(1)]
    net.limits.copy_(torch.from_numpy(np.quantile(clean, 1 - FALSE_ALARMS, axis=0)).float())
    limits = net.limits.numpy()
    for kind, score, label, limit in zip(KINDS, rated.T, labels.T, limits, strict=True):
        print(f"{kind}: limit {limit:.2f}, found {(score[label == 1] > limit).mean():.1%} of {(label == 1).sum()}")
    print(f"any kind: {(clean > limits).any(1).mean():.1%} of {len(clean)} heads without artefacts")
    save_detector(net, FOLDER / "artefacts.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("command", choices=("cut", "draw", "train"))
    parser.add_argument("--heads", type=int, default=6000, help="heads to draw (draw)")
    parser.add_argument("--until", default="23:59", help="HH:MM, when drawing ends at the latest (draw)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--begun", type=Path, help="weights to go on from (train)")
    parser.add_argument("--rate", type=float, default=RATE, help="learning rate (train)")
    args = parser.parse_args()
    if args.command == "cut":
        cut_heads()
    elif args.command == "draw":
        draw_heads(args.heads, clock_time(args.until))
    else:
        set_limits(train(args.epochs, SEED + bool(args.begun), args.begun, args.rate))


if __name__ == "__main__":
    main()
