"""Trains the restorer of the base's headshots on the pairs of restorer_pairs.py; goes on where it was stopped.

    nice -n 19 python restorer.py --until 19:25 --decay-minutes 25   # about 1.5 s a step on one core
    nice -n 19 python restorer.py --export                           # writes the averaged weights as they are

It reads the pairs that are there and looks for more every few minutes. A checkpoint is written every 5 minutes, a grid of
held-out faces and the weights of headshotkit every 15 minutes. A run that ended with the rate at 0 can be gone on from.
"""

import argparse
import itertools
import signal
import time

import cv2
import losses
import numpy as np
import torch
import torch.nn.functional as F
from pictures import smooth_noise
from restorer_pairs import CLEAN_PX, DRAWN_PX, pair_store
from store import HOME
from torch import nn
from training import Ema, Every, clock_time, held_out, prefetched, save_checkpoint, to_pixels, to_tensor

from headshotkit.faces.colours import DISC
from headshotkit.restoration.embedded_net import EMBEDDING, FaceRestorer, save_restorer
from headshotkit.restoration.reference import UNKNOWN

FOLDER = HOME / "restorer"
CROP_PX = 128  # of the drawn picture
CROPS, WHOLES = 4, 2  # pictures in a step
WHOLE = (True, True, False)  # steps on whole pictures and on crops, in turn
PLAIN = 0.25  # share of the pictures that are the clean one with usual degradations, not the base's drawing
DOUBLED = 0.25  # share of the base's drawings that get double contours
MAX_STRENGTH = 0.62
MIRRORED = [1, 0, 2, 4, 3, 6, 5]  # order of the points in a mirrored picture
NOBODY = 0.05  # share of the pictures whose person is not told
ALONE = 0.05  # share of the pictures that no photo of the person is laid over
NOWHERE = 0.03  # share of the pictures whose face is not found
OFF = 0.02  # mean error of a found point, in distances of the eyes
FASTER = 4.0  # the rate of what knows the person, in rates of all else
QUICK = ("person.", "face.", "lay.", "see_", "gate_", "blend")
WEIGHTS = {"l1": 1.0, "lpips": 0.8, "face": 1.0, "iris": 3.0, "gan": 0.05, "features": 0.5}
JUDGE_STARTS, GAN_STARTS = 150, 250  # steps; in between, the discriminator is only learning
WARM_UP = 50  # steps


class Discriminator(nn.Module):
    """Says for each patch of 46 px how real it looks; returns its inner features too, to be matched."""

    def __init__(self, channels: int = 32):
        super().__init__()
        sizes = [(3, 1, 2), (1, 2, 2), (2, 4, 2), (4, 4, 1)]
        self.layers = nn.ModuleList()
        for before, after, stride in sizes:
            before = 3 if before == 3 else before * channels
            kernel = 4 if stride == 2 else 3
            self.layers.append(nn.utils.spectral_norm(nn.Conv2d(before, after * channels, kernel, stride, 1)))
        self.judge = nn.utils.spectral_norm(nn.Conv2d(4 * channels, 1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return self.judge(x), features


def degrade(picture: np.ndarray, rng: np.random.Generator, mild: bool) -> np.ndarray:
    """Blur, shrink by up to 4, add noise and JPEG blocks, each at random; RGB uint8, the size stays."""
    side, strength = picture.shape[0], 0.35 if mild else 1.0
    out = picture.astype("float32")
    if rng.random() < 0.5:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.3, 0.3 + 2.2 * strength))
    if rng.random() < 0.6 * strength:
        small = int(side / rng.uniform(1.3, 4.0))
        how = cv2.INTER_AREA if rng.random() < 0.6 else cv2.INTER_LINEAR
        back = cv2.INTER_CUBIC if rng.random() < 0.7 else cv2.INTER_LINEAR
        out = cv2.resize(cv2.resize(out, (small, small), interpolation=how), (side, side), interpolation=back)
    if rng.random() < 0.5:
        grain = rng.normal(size=(side, side, 3 if rng.random() < 0.5 else 1)).astype("float32")
        out = out + grain * rng.uniform(1, 2 + 14 * strength)
    out = out.clip(0, 255).round().astype("uint8")
    if rng.random() < 0.5:
        quality = int(rng.uniform(70 - 45 * strength, 95))
        out = cv2.imdecode(cv2.imencode(".jpg", out, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)
    return out


def double(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Lay a picture over itself, moved a little, in soft patches: the double contours of a LoRA's drawings."""
    side = picture.shape[0]
    matrix = cv2.getRotationMatrix2D((side / 2, side / 2), rng.normal(0, 2), rng.normal(1, 0.03))
    matrix[:, 2] += rng.normal(0, 0.02 * side, 2)
    moved = cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    share = (rng.uniform(0.2, 0.5) + 0.4 * smooth_noise(rng, 4, side)).clip(0, 0.6)
    both = picture * (1 - share) + moved * share
    return cv2.GaussianBlur(both, (0, 0), rng.uniform(0.1, 2.0)).clip(0, 255).round().astype("uint8")


class Pairs:
    """Random batches of (given, clean, person, points) from the pairs that are there by now."""

    def __init__(self, seed: int):
        self.store, self.rng = pair_store(), np.random.default_rng(seed)
        self.look()

    def look(self) -> None:
        """Look again which pairs are drawn and measured."""
        self.store.refresh()
        count = min(self.store.count["person"], self.store.count["look"])
        self.clean, self.drawn, self.seen = (self.store.array(name) for name in ("clean", "drawn", "look"))
        self.person, self.points = (np.array(self.store.array(name)) for name in ("person", "points"))
        self.origin = origin = np.array(self.store.array("origin")[:count])
        good = np.isfinite(self.person[:count, 0]) & (origin[:, 1] <= MAX_STRENGTH)
        apart = held_out(origin[:, 0].astype(int))
        self.train, self.test = np.flatnonzero(good & ~apart), np.flatnonzero(good & apart)

    def given(self, number: int) -> np.ndarray:
        """Return a picture to be restored, RGB uint8, DRAWN_PX square."""
        rng = self.rng
        if rng.random() >= PLAIN:
            drawn = np.array(self.drawn[number])
            drawn = double(drawn, rng) if rng.random() < DOUBLED else drawn
            return degrade(drawn, rng, mild=True) if rng.random() < 0.3 else drawn
        small = cv2.resize(np.array(self.clean[number]), (DRAWN_PX, DRAWN_PX), interpolation=cv2.INTER_AREA)
        return degrade(small, rng, mild=False)

    def photo(self, number: int) -> np.ndarray:
        """Return the photo that the network sees, in another light, sometimes softer; grey stays where nothing is known."""
        rng, seen = self.rng, np.array(self.seen[number])
        if rng.random() < ALONE:
            return np.full_like(seen, UNKNOWN)
        known = np.abs(seen.astype("int16") - UNKNOWN).max(-1, keepdims=True) > 1
        if rng.random() < 0.3:
            seen = cv2.GaussianBlur(seen, (0, 0), rng.uniform(0.3, 1.6))
        curve = np.linspace(0, 1, 256)[:, None] ** rng.uniform(0.7, 1.4) * rng.normal(1, 0.08) * rng.normal(1, 0.05, 3)
        seen = np.stack([cv2.LUT(seen[..., c], (curve[:, c] * 255).clip(0, 255).astype("uint8")) for c in range(3)], -1)
        return np.where(known, seen, np.uint8(UNKNOWN))

    def corner(self, points: np.ndarray, side: int) -> np.ndarray:
        """Return the upper left corner, even, of a crop around a point of the face, or now and then anywhere."""
        most = DRAWN_PX - side
        middle = points[self.rng.integers(len(points))] / 2 + self.rng.normal(0, side / 8, 2)
        if self.rng.random() < 0.25:
            middle = self.rng.uniform(side / 2, DRAWN_PX - side / 2, 2)
        return (np.clip(middle - side / 2, 0, most) / 2).round().astype(int)[::-1] * 2

    def batch(self, whole: bool):
        rng, count, side = self.rng, WHOLES if whole else CROPS, DRAWN_PX if whole else CROP_PX
        rows = rng.choice(self.train, count, replace=False)
        given, clean, photo, points = [], [], [], self.points[rows].copy()
        for k, row in enumerate(rows):
            y, x = (0, 0) if whole else self.corner(points[k], side)
            given.append(self.given(row)[y : y + side, x : x + side])
            large = slice(2 * y, 2 * (y + side)), slice(2 * x, 2 * (x + side))
            clean.append(self.clean[row][large])
            photo.append(self.photo(row)[large])
            points[k] -= (2 * x, 2 * y)
        given, clean, photo = np.stack(given), np.stack(clean), np.stack(photo)
        if rng.random() < 0.5:  # mirrored
            given, clean, photo = (pictures[:, :, ::-1].copy() for pictures in (given, clean, photo))
            points = points[:, MIRRORED].copy()
            points[..., 0] = 2 * side - 1 - points[..., 0]
        pictures = (to_tensor(pictures) for pictures in (given, clean, photo))
        return *pictures, torch.from_numpy(self.person[rows]), torch.from_numpy(points)

    def found(self, points: torch.Tensor) -> torch.Tensor:
        """Return where the network is told that the face is, px of the small picture: with errors, and sometimes nowhere."""
        small = (points[:, :5] + 0.5) * (DRAWN_PX / CLEAN_PX) - 0.5
        apart = (small[:, 1] - small[:, 0]).norm(dim=1)[:, None, None]
        small = small + torch.randn_like(small) * OFF * apart
        return small.masked_fill(torch.from_numpy(self.rng.random((len(small), 1, 1)) < NOWHERE), torch.nan)

    def told(self, person: torch.Tensor) -> torch.Tensor:
        """Return what the network is told: as if it came from other photos of the person, and sometimes nothing."""
        told = person.clone()
        noise = torch.from_numpy(self.rng.uniform(0, 0.75, (len(told), 1)).astype("float32"))
        embedding = told[:, :EMBEDDING] + torch.randn(len(told), EMBEDDING) * noise
        told[:, :EMBEDDING] = F.normalize(embedding, dim=1) * EMBEDDING**0.5
        for start in (EMBEDDING, EMBEDDING + 4):
            known = told[:, start + 3 : start + 4] * float(self.rng.random() > 0.1)
            told[:, start : start + 3] = (told[:, start : start + 3] + torch.randn(len(told), 3) * 0.15) * known
            told[:, start + 3 : start + 4] = known
        return told * torch.from_numpy((self.rng.random((len(told), 1)) >= NOBODY).astype("float32"))


def iris_loss(made: torch.Tensor, clean: torch.Tensor, irises: torch.Tensor) -> torch.Tensor:
    """Compare the mean colours of both irises, and their pixels; irises in px, (B, 2, 2)."""
    ramp = torch.arange(made.shape[-1], dtype=torch.float32)
    apart = (irises[:, 1] - irises[:, 0]).norm(dim=1)[:, None, None]
    total = 0.0
    for k in range(2):
        x, y = (irises[:, k, axis][:, None, None] for axis in (0, 1))
        disc = (((ramp[None, None] - x) ** 2 + (ramp[None, :, None] - y) ** 2).sqrt() < 1.3 * DISC * apart)[:, None]
        area = disc.sum((2, 3)).clamp(min=1)
        off = (made - clean) * disc
        total = total + (off.sum((2, 3)) / area).abs().mean() + 0.5 * (off.abs().sum((2, 3)) / area).mean()
    return total / 2


class Trainer:
    """Network, discriminator, their optimizers and averages; all of it is in a checkpoint."""

    def __init__(self, rate: float):
        self.net = FaceRestorer().to(memory_format=torch.channels_last)
        self.judge = Discriminator().to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.groups(), rate, betas=(0.9, 0.99), weight_decay=1e-4)
        self.judging = torch.optim.AdamW(self.judge.parameters(), rate, betas=(0.5, 0.99), weight_decay=1e-4)
        self.ema, self.step, self.rate, self.rng = Ema(self.net, 0.99), 0, rate, np.random.default_rng()
        self.lpips, self.arcface = losses.Lpips().eval(), losses.ArcFace().eval()

    def groups(self) -> list[dict]:
        """Return the network's weights in two groups: what knows the person and the face learns faster."""
        names = dict(self.net.named_parameters())
        quick = [name for name in names if name.startswith(QUICK) or ".film." in name]
        return [
            {"params": [p for name, p in names.items() if (name in quick) == fast], "share": FASTER if fast else 1.0}
            for fast in (False, True)
        ]

    def parts(self) -> dict:
        return {"net": self.net, "judge": self.judge, "opt": self.optimizer, "judging": self.judging, "ema": self.ema}

    def save(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts().items()}
        save_checkpoint(FOLDER / "checkpoints/restorer.pt", state | {"step": self.step})

    def load(self) -> None:
        state = torch.load(FOLDER / "checkpoints/restorer.pt", weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.step = state["step"]

    def train_step(self, pairs: Pairs, batch, whole: bool, share: float) -> dict:
        """Do one step at `share` of the rate; return the losses."""
        for group in (*self.optimizer.param_groups, *self.judging.param_groups):
            group["lr"] = self.rate * share * group.get("share", 1.0)
        given, clean, photo, person, points = batch
        with torch.autocast("cpu", torch.bfloat16):
            made = self.net(given, pairs.told(person), pairs.found(points), photo)
        made = made.float()
        seen = {"l1": (made - clean).abs().mean()}
        seen["lpips"] = self.perceived(*((F.avg_pool2d(t, 2) for t in (made, clean)) if whole else (made, clean)))
        if whole:
            face = self.arcface(losses.align_faces(made, points[:, :5]))
            seen["face"] = (1 - (face * F.normalize(person[:, :EMBEDDING], dim=1)).sum(1)).mean()
            seen["iris"] = iris_loss(made, clean, points[:, 5:])
            # a quarter is enough for the discriminator
            y, x = self.rng.integers(0, CLEAN_PX // 2 + 1, 2)
            made, clean = (t[:, :, y : y + CLEAN_PX // 2, x : x + CLEAN_PX // 2] for t in (made, clean))
        judged = self.step >= JUDGE_STARTS
        if judged:
            with torch.autocast("cpu", torch.bfloat16):
                score, features = self.judge(made)
                with torch.no_grad():
                    _, wanted = self.judge(clean)
            seen["features"] = sum((a - b).abs().float().mean() for a, b in zip(features, wanted))
            if self.step >= GAN_STARTS:
                seen["gan"] = -score.float().mean()
        self.optimizer.zero_grad(set_to_none=True)
        sum(WEIGHTS[name] * value for name, value in seen.items()).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update()
        if judged:
            with torch.autocast("cpu", torch.bfloat16):
                real, fake = self.judge(torch.cat([clean, made.detach()]))[0].float().chunk(2)
            self.judging.zero_grad(set_to_none=True)
            seen["judge"] = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            seen["judge"].backward()
            self.judging.step()
        self.step += 1
        return {name: float(value.detach()) for name, value in seen.items()}

    def perceived(self, made: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Return LPIPS, which sees whole pictures at half their size (a quarter of the time) and crops at full size."""
        with torch.autocast("cpu", torch.bfloat16):
            return self.lpips(made, clean).float()


@torch.no_grad()
def draw_grid(net: FaceRestorer, pairs: Pairs, columns: int = 6) -> np.ndarray:
    """Held-out pictures as given (the last two degraded, not drawn), restored, restored with no person told, photo, clean."""
    rng, rows = np.random.default_rng(5), pairs.test[:columns]
    given = [np.array(pairs.drawn[row]) for row in rows]
    for k in (-1, -2):
        small = cv2.resize(np.array(pairs.clean[rows[k]]), (DRAWN_PX, DRAWN_PX), interpolation=cv2.INTER_AREA)
        given[k] = degrade(small, rng, mild=False)
    person, points = torch.from_numpy(pairs.person[rows]), torch.from_numpy(pairs.points[rows][:, :5] / 2 - 0.25)
    looks = np.stack([pairs.seen[row] for row in rows])
    nobody = torch.zeros_like(person), points, torch.zeros_like(to_tensor(looks))
    with torch.autocast("cpu", torch.bfloat16):
        made = [
            to_pixels(net(to_tensor(np.stack(given)), *told)) for told in ((person, points, to_tensor(looks)), nobody)
        ]
    large = [cv2.resize(g, (CLEAN_PX, CLEAN_PX), interpolation=cv2.INTER_CUBIC) for g in given]
    return np.vstack([np.hstack(row) for row in (large, *made, looks, [pairs.clean[r] for r in rows])])


def show(trainer: Trainer, pairs: Pairs) -> None:
    """Write a grid and the weights as headshotkit reads them."""
    net = trainer.ema.averaged()
    (FOLDER / "samples").mkdir(exist_ok=True)
    cv2.imwrite(str(FOLDER / f"samples/{trainer.step:06d}.png"), draw_grid(net, pairs)[:, :, ::-1])
    save_restorer(net, FOLDER / "export")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--until", help="HH:MM by this machine's clock")
    parser.add_argument("--decay-minutes", type=float, default=25, help="at the end, the rate falls to 0")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show-minutes", type=float, default=15)
    parser.add_argument("--export", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(int(time.time()))
    (FOLDER / "checkpoints").mkdir(parents=True, exist_ok=True)
    trainer, pairs = Trainer(args.rate), Pairs(int(time.time()))
    if (FOLDER / "checkpoints/restorer.pt").exists():
        trainer.load()
    if args.export:
        return show(trainer, pairs)
    end, start, began, seen = clock_time(args.until), time.time(), trainer.step, {}
    save_due, show_due, look_due = Every(5), Every(args.show_minutes), Every(2)
    print(f"step {trainer.step}, {len(pairs.train)} pairs, {sum(p.numel() for p in trainer.net.parameters())} weights")
    kinds = itertools.cycle(WHOLE)
    batches = prefetched(lambda: (whole := next(kinds), pairs.batch(whole)), depth=2)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))  # a kill still writes the checkpoint
    while time.time() < end and not stopped:
        whole, batch = next(batches)
        share = min(1, (trainer.step - began + 1) / WARM_UP, (end - time.time()) / 60 / args.decay_minutes)
        for name, value in trainer.train_step(pairs, batch, whole, max(share, 0)).items():
            seen.setdefault(name, []).append(value)
        if trainer.step % 50 == 0:
            means = ", ".join(f"{name} {np.mean(values):.3f}" for name, values in seen.items())
            pace = (time.time() - start) / (trainer.step - began)
            print(
                f"step {trainer.step}, {pace:.2f} s each, rate share {share:.2f}, {len(pairs.train)} pairs: {means}",
                flush=True,
            )
            seen = {}
        if look_due():
            pairs.look()
        if save_due():
            trainer.save()
        if show_due():
            show(trainer, pairs)
    trainer.save()
    show(trainer, pairs)


if __name__ == "__main__":
    main()
