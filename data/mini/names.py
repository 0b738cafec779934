"""Names: in six of ten captions a word stands for the very face, "photo of adam man", as names do in SDXL's captions.

A name's vectors in the two text encoders' token tables are what the recogniser says of the face, less what the other
words say of it already: alike faces have alike names, and every word of the vocabulary that captions never use, being
drawn from the same distribution, is the name of somebody who doesn't exist. So there is a word for nearly anybody, which
textual inversion can look for.

    python names.py --base HOME/base      # is a held-out face drawn when its name is said?
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from captions import Captioner
from diffusers import StableDiffusionXLPipeline
from judges import Detector, Dlib, Recogniser
from measure import column
from pipeline import TEXT_WIDTH, WORD_SPREAD, WORDS, draw
from store import HOME, Store
from torch import nn
from training import Faces

STAND_IN = "adam"
"""What a name is written as until its id takes the place: one token."""
NAME_SIZE = 2 * TEXT_WIDTH
"""Numbers in a name, in both text encoders together. Name number n has the id WORDS + n."""
TRAITS = 24
"""Principal components of the recogniser's embedding that a name says; they hold 30 % of what differs between faces."""
JITTER = 0.55
"""How much of somebody else's name is mixed into one in training: what photos of one person differ by, for a name is
reckoned from a single picture (`p1`, `p2`, `p3`: standard deviation of their photos' names 0.56, 0.56, 0.52 of that over all
faces). With 0.1 the U-Net trusted names so far that a person's own made the loss on the photos larger than none did."""


def name_vectors(
    embedding: np.ndarray, measures: np.ndarray, male: np.ndarray, known: np.ndarray, size: int, traits: int
) -> np.ndarray:
    """A name for every face: principal components of its embedding, each with the same spread, turned at random.

    Args:
        embedding: of all faces, (N, 512). male: the captions' score of each, (N,).
        known: rows that the components are found on.
        size: numbers in a name. traits: principal components that they say.
    Returns:
        float32, shape (N, size), mean 0 and standard deviation WORD_SPREAD over the known faces. What sex, pose and
        expression say of the embedding is taken out of it first, for captions have words for them.
    """
    yaw, smile, jaw = (np.nan_to_num(column(measures, c)) for c in ("yaw", "mouthSmileLeft", "jawOpen"))
    said = np.column_stack([np.ones(len(male)), np.clip(male, -1, 1), yaw, smile, jaw, np.abs(yaw)])
    embedding = np.nan_to_num(embedding).astype("float64")
    rest = embedding - said @ np.linalg.lstsq(said[known], embedding[known], rcond=None)[0]
    _, spread, components = np.linalg.svd(rest[known] - rest[known].mean(0), full_matrices=False)
    plain = (rest - rest[known].mean(0)) @ components[:traits].T / spread[:traits] * np.sqrt(len(known))
    turn = np.linalg.qr(np.random.default_rng(77).normal(size=(size, size)))[0][:traits]
    return (WORD_SPREAD * np.sqrt(size / traits) * plain @ turn).astype("float32")


def known_names() -> np.ndarray:
    """The names of all faces of the store, (N, NAME_SIZE); as they were first made, for a net has learnt those."""
    path = HOME / "names.npy"
    if not path.exists():
        store = Store()
        captioner = Captioner(store)
        known = np.flatnonzero(captioner.usable)
        made = name_vectors(store.array("embedding"), captioner.measures, captioner.male, known, NAME_SIZE, TRAITS)
        np.save(path, made)
    return np.load(path)


class NamedTable(nn.Embedding):
    """A token table that knows names too; they are no weights of it and are not saved with it.

    In training a name is blurred: by JITTER where names differ, and where they don't as much as words do, so that what no
    name says is learnt to mean nothing and a new word's vectors are led nowhere else.
    """

    @classmethod
    def of(cls, table: nn.Embedding, names: torch.Tensor) -> "NamedTable":
        """Args: names: (N, D), D the table's width."""
        new = cls(*table.weight.shape, _weight=table.weight, _freeze=True)
        new.register_buffer("names", names, persistent=False)
        said = torch.linalg.svd(names - names.mean(0), full_matrices=False)[2][:TRAITS]
        new.register_buffer("unsaid", torch.eye(names.shape[1]) - said.T @ said, persistent=False)
        return new

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        place = ids - WORDS
        said = self.names[place.clamp(min=0)]
        if self.training:
            said = said + JITTER * self.names[torch.randint(len(self.names), place.shape)]
            said = said + WORD_SPREAD * torch.randn_like(said) @ self.unsaid
        return torch.where((place >= 0).unsqueeze(-1), said, super().forward(ids.clamp(max=WORDS - 1)))


def teach_names(encoders: list[nn.Module], names: np.ndarray) -> None:
    """Gives each text encoder its part of the names, side by side as the U-Net sees them."""
    for encoder, part in zip(encoders, np.split(names, len(encoders), axis=1)):
        encoder.set_input_embeddings(NamedTable.of(encoder.get_input_embeddings(), torch.from_numpy(part.copy())))


def say_names(ids: torch.Tensor, names: np.ndarray, stand_in: int) -> torch.Tensor:
    """Puts the names' ids where the stand-in is, in place; `names` has a face's number for each row of ids (B, 77)."""
    rows, places = torch.nonzero(ids == stand_in, as_tuple=True)
    ids[rows, places] = torch.from_numpy(WORDS + names.astype("int64"))[rows]
    return ids


@torch.no_grad()
def judge_names(pipe, rows: np.ndarray, names: np.ndarray, nouns: list[str], px: int) -> None:
    """Prints how alike a face is what comes out when its name is said, by both recognisers.

    Args:
        pipe: the base; its stand-in's vectors are overwritten.
        rows: faces of the store, whose names are said.
        names: of all faces. nouns: "man", "woman" or "person", for each of the rows.
    """
    store, detect, judges = Store(), Detector(), {"ArcFace": Recogniser(), "dlib": Dlib()}
    encoders, word = (pipe.text_encoder, pipe.text_encoder_2), pipe.tokenizer(STAND_IN, add_special_tokens=False)
    known, drawn, bare = ({name: [] for name in judges} for _ in range(3))

    def look(rgb: np.ndarray, where: dict) -> None:
        found = detect(rgb)
        for name, judge in judges.items():
            where[name].append(judge(rgb, found[2]) if found else np.full(512 if name == "ArcFace" else 128, np.nan))

    for row, noun in zip(rows, nouns):
        look(np.array(store.array("pixels")[row]), known)
        for encoder, part in zip(encoders, np.split(names[row], len(encoders))):
            encoder.get_input_embeddings().weight.data[word.input_ids[0]] = torch.from_numpy(part.copy())
        for call, where in ((f"photo of {STAND_IN} {noun}", drawn), (f"photo of a {noun}", bare)):
            look(draw(pipe, [call], px, seed=int(row), guidance=2.0)[0], where)
    for name in judges:
        a, b, c = (np.array(where[name]) for where in (known, drawn, bare))
        like = (lambda x, y: 1 - np.linalg.norm(x - y, axis=-1)) if name == "dlib" else (lambda x, y: (x * y).sum(-1))
        others = np.nanmedian(like(a, np.roll(b, 1, 0)))
        own, plain = np.nanmedian(like(a, b)), np.nanmedian(like(a, c))
        print(
            f"{name}: named {own:.3f}, not named {plain:.3f}, another's name {others:.3f}, {len(a)} faces", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", type=Path, default=HOME / "base")
    parser.add_argument("--px", type=int, default=128, help="256 for a base as enlarge.py writes it")
    parser.add_argument("--faces", type=int, default=48, help="held-out ones, and as many that were trained on")
    args = parser.parse_args()
    pipe = StableDiffusionXLPipeline.from_pretrained(args.base, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    faces, names = Faces(), known_names()
    for what, rows in (("held out", faces.test_rows), ("trained on", faces.rows)):
        rows = rows[: args.faces]
        print(what)
        judge_names(pipe, rows, names, [faces.captioner.attributes(row).noun for row in rows], args.px)


if __name__ == "__main__":
    main()
