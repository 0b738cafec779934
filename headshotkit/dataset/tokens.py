"""The rare token: which word may name the person, and which ones have a meaning for the base already.

Rarity is read from the tokenizer. Byte-pair encoding builds its vocabulary by merging the most frequent pair of
pieces again and again (Sennrich et al. 2016, arXiv:1508.07909), so the merges are in the order of their frequency;
CLIP numbers its tokens in that order (openai/CLIP, simple_tokenizer.py: 512 bytes, then the merges).
Rarest of all are leftovers: pieces that were merged only to build one longer word, which then got a token of its own.
Language models hardly train such tokens (Land and Bartolo 2024, arXiv:2405.05417).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from headshotkit.config import TOKEN, GenerateConfig, TokenConfig
from headshotkit.config.bases import find_base
from headshotkit.core import runtime
from headshotkit.core.errors import BadConfig
from headshotkit.core.records import Record, stored_as
from headshotkit.families import Family, Sampling, load_family, load_tokenizers
from headshotkit.families.jobs import Job, draw

KNOWN = runtime.PACKAGE / "dataset" / "tokens.txt"
SHAPE = re.compile("[a-z]{3,6}")
BARE, NAMED = "photo of a person", "photo of a {} person"
SEEDS, STEPS, MOST_PX, SEEN_PX = 4, 4, 512, 32
COMPARED = 48
WHAT_NEXT = "Choose one with: headshotkit token, or keep the default {default!r}."


@dataclass(frozen=True)
class TokenScore(Record):
    """A token's suitability to name a person. Every measure is better the nearer to 0; -1 is not measured.

    `unigram` and `leftover_of` come from the tokenizer, the rest from the base's pictures and encodings.
    """

    token: str
    id: int
    rank: int
    """Number of its merge; among tokens that no longer word contains, the larger the rarer."""
    unigram: float = stored_as("alone")
    """Upper bound of its unigram frequency in the tokenizer's texts; 1 is the last merge of all."""
    leftover_of: str = ""
    """The first word that contains it; empty if none does."""
    moved: float = -1.0
    """Distance that it moves the base's pictures; 1 is as far as another seed."""
    sameness: float = -1.0
    """Loss of variety among the pictures with it, in [0, 1]; a known face is high."""
    name_likeness: float = -1.0
    """Nearness of a name to it, less that of the nearest plain word, in cosines of encoded prompts, 0 or more."""
    nearest_name: str = ""

    @property
    def trouble(self) -> float:
        """Return the sum of the measures; the best token has the lowest."""
        measured = (self.moved, self.sameness, self.name_likeness)
        return self.unigram + sum(max(0.0, value) for value in measured)

    def explain(self) -> str:
        """Return the reasons for this token, in plain words."""
        words = f"'{self.token}' is one token (number {self.id}) for each tokenizer"
        known = known_tokens().get(self.token)
        words += f", but known as: {known}." if known else ", and is in no list of words or names."
        if self.leftover_of:
            words += f" It is a step in the merge to '{self.leftover_of}', which has its own token."
        words += f" Its unigram frequency is at most {self.unigram:.2g} times that of the tokenizers' last merge."
        if self.moved >= 0:
            nearer = f"nearer to a name ({self.nearest_name})" if self.name_likeness else "no nearer to a name"
            words += f" It changes the base's pictures {self.moved:.2g} times as much as another seed does, makes them"
            words += f" {self.sameness:.0%} more similar to each other, and is {nearer} than to plain words."
        return words


@runtime.frees_memory
def find_token(base: str = "mini", candidates: int = 12, seed: int = 0, also: Sequence[str] = ()) -> list[TokenScore]:
    """Return the tokens with the least meaning for a base, best first.

    The rarest `candidates` tokens that no list holds are tried on the bare base. On the embedded base that is real
    but weak: its text encoders were trained on some 60 words, so every other token is a random vector to it, names
    too. On SDXL it has not been tried.

    Args:
        candidates: how many of the rarest tokens to try, 1 or more; about 2 s each with the embedded base.
        seed: seed of the pictures.
        also: further tokens to measure as well, whatever they mean.
    Raises:
        UnknownBase: no base has that name.
        BaseUnavailable: its weights can't be loaded.
        BadConfig: `candidates` is below 1, `seed` is below 0, one of `also` is several pieces, or the base has other
            tokenizers than CLIP.
    """
    TokenConfig(candidates=candidates, seed=seed)
    kinds = find_base(base).spec.tokenizers.values()
    if set(kinds) != {"CLIPTokenizer"}:
        raise BadConfig(
            f"base {base!r} reads prompts with {' and '.join(kinds)}.",
            "The search measures rarity with CLIP's vocabulary only.",
            f"Keep the default token {TOKEN!r}, or search for another base: --base sdxl",
        )
    tokenizers = load_tokenizers(base)
    for word in also:
        _pieces_checked(word, tokenizers)
    every = rank_tokens(tokenizers, also)
    chosen = [s for s in every if s.token not in also][:candidates] + [s for s in every if s.token in also]
    return measure_tokens(chosen, load_family(base), seed)


def rank_tokens(tokenizers: Sequence, also: Sequence[str] = ()) -> list[TokenScore]:
    """Return all tokens that may name a person, rarest first, by the tokenizers only.

    They are whole words of 3 to 6 small letters, have one number in all tokenizers, and are in no list.

    Args:
        tokenizers: of one base, with byte-pair vocabularies.
        also: tokens to include whatever the lists hold.
    """
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
    model = json.loads(tokenizers[0].backend_tokenizer.to_str())["model"]
    merges, suffix = [tuple(pair) for pair in model["merges"]], model["end_of_word_suffix"]  # in the merges' order
    made, taken_up = {}, {}
    for number, (left, right) in enumerate(merges):
        made.setdefault(left + right, number)
        for piece in {left, right}:
            taken_up.setdefault(piece, number)
    known, scores = known_tokens(), []
    for piece, number in made.items():
        word = piece.removesuffix(suffix)
        ids = {vocabulary.get(piece) for vocabulary in vocabularies}
        fit = SHAPE.fullmatch(word) and word not in known and len(ids) == 1
        if piece == word or not (fit or word in also):
            continue
        taker = taken_up.get(piece)
        unigram = len(merges) * (1 / (number + 1) - (1 / (taker + 1) if taker is not None else 0))
        longer = "" if taker is None else "".join(merges[taker]).removesuffix(suffix)
        scores.append(TokenScore(word, vocabularies[0][piece], number, round(unigram, 4), longer))
    return sorted(scores, key=lambda score: (score.unigram, score.token))


def measure_tokens(scores: list[TokenScore], family: Family, seed: int = 0) -> list[TokenScore]:
    """Measure tokens on the bare base and return them, best first.

    Each is drawn with the same few seeds as the prompt without it. Pictures are compared at 32 px, so that pose,
    colours and shape count and grain does not.

    Args:
        seed: seed of the pictures' noise.
    """
    bare = _draw(family, BARE, seed)
    another_seed = _apart(bare, [np.roll(bare, shift, axis=0) for shift in range(1, SEEDS)])
    likeness = _likeness([score.token for score in scores], family)
    measured = []
    for score in runtime.progress(scores, "trying tokens"):
        drawn = _draw(family, NAMED.format(score.token), seed)
        alike, name = likeness[score.token]
        found = replace(
            score,
            moved=round(_apart(drawn, [bare]) / another_seed, 4),
            sameness=round(max(0.0, 1 - float(drawn.std(0).mean() / bare.std(0).mean())), 4),
            name_likeness=round(max(0.0, alike), 4),
            nearest_name=name,
        )
        measured.append(found)
    return sorted(measured, key=lambda score: (score.trouble, score.token))


def token_table(scores: list[TokenScore]) -> str:
    """Return a line a token, in the given order; the lowest sum is best."""
    lines = [f"{'token':<8}{'unigram':>8}{'change':>8}{'similar':>8}{'name':>8}{'sum':>8}  merged into"]
    for score in scores:
        values = (score.unigram, score.moved, score.sameness, score.name_likeness, score.trouble)
        lines.append(f"{score.token:<8}" + "".join(f"{value:>8.3f}" for value in values) + f"  {score.leftover_of}")
    return "\n".join(line.rstrip() for line in lines)


def check_token(word: str, tokenizers: Sequence | None = None) -> int:
    """Refuse words that can't name a person: several pieces, words, names, brands and the like. Loads no model.

    Args:
        tokenizers: of the base; None is the embedded base's CLIP vocabulary, which all SDXL bases share.
    Returns: the token's number.
    Raises:
        BadConfig: it is not one token, not of 3 to 6 small letters, or in a list; the error says which.

    >>> check_token("ohwx")
    47993
    """
    number = _pieces_checked(word, load_tokenizers("mini") if tokenizers is None else tokenizers)
    kinds = known_tokens().get(word.lower())
    if kinds:
        raise BadConfig(
            f"token {word!r} already has a meaning: {kinds}.",
            "The base's idea of it would show in every headshot and compete with the person.",
            WHAT_NEXT.format(default=TOKEN),
        )
    if not SHAPE.fullmatch(word):
        raise BadConfig(
            f"token {word!r} is not 3 to 6 lower-case letters (it has {len(word)} characters).",
            "Longer tokens are words and names; tokenizers split at signs and digits.",
            WHAT_NEXT.format(default=TOKEN),
        )
    return number


@lru_cache(maxsize=1)
def known_tokens() -> dict[str, str]:
    """Return the known short tokens: token -> kinds, such as "surname, place"; source and licence in tokens.txt."""
    lines = [line for line in KNOWN.read_text(encoding="ascii").splitlines() if not line.startswith("#")]
    groups = [line.split(": ", 1) for line in lines]
    return {word: kinds for kinds, words in groups for word in words.split()}


def _pieces_checked(word: str, tokenizers: Sequence) -> int:
    """Return a word's number in the first tokenizer; raise BadConfig if it is several pieces for any."""
    numbers = []
    for tokenizer in tokenizers:
        pieces = tokenizer.tokenize(word)
        if len(pieces) != 1:
            shown = " + ".join(piece.removesuffix("</w>") for piece in pieces) or "nothing"
            raise BadConfig(
                f"token {word!r} is {len(pieces)} pieces for the base's tokenizer: {shown}.",
                "The base would read the pieces and their meanings instead of one new word.",
                WHAT_NEXT.format(default=TOKEN),
            )
        numbers.append(tokenizer.convert_tokens_to_ids(pieces[0]))
    return numbers[0]


def _draw(family: Family, prompt: str, seed: int) -> np.ndarray:
    """Draw pictures with the base: float32, 0 to 255, shape (SEEDS, 32, 32, 3)."""
    preset = GenerateConfig.for_base(family.base.name).without_base_guidance()
    size_px = (min(preset.size_px, MOST_PX),) * 2
    jobs = [Job(prompt, "", runtime.seed_for(seed, number), size_px) for number in range(SEEDS)]
    drawn = draw(family, jobs, Sampling(size_px, STEPS, preset.guidance), SEEDS)
    return np.stack([np.asarray(picture.resize((SEEN_PX, SEEN_PX)), np.float32) for _, picture in drawn])


def _apart(pictures: np.ndarray, others: list[np.ndarray]) -> float:
    """Return the mean absolute difference of pictures to each of `others` at the same index, grey levels."""
    return float(np.mean([np.abs(pictures - other).mean() for other in others]))


def _likeness(words: list[str], family: Family) -> dict[str, tuple[float, str]]:
    """Return how much nearer each word is to a name than to any plain word, and the nearest name.

    Nearness is the cosine of the encoded prompts, after the mean of all prompts is subtracted.
    """
    names, plain = _common("common first name", "famous person"), _common("word")
    every = list(dict.fromkeys([*words, *names, *plain]))
    encoded = family.encode_prompts([NAMED.format(word) for word in every])
    rows = np.concatenate([np.asarray(part, np.float32).reshape(len(every), -1) for part in encoded.values()], axis=1)
    rows -= rows.mean(0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    row = dict(zip(every, rows, strict=True))
    found = {}
    for word in words:
        to_name = {name: float(row[name] @ row[word]) for name in names if name != word}
        nearest = max(to_name, key=to_name.get)
        found[word] = to_name[nearest] - max(float(row[other] @ row[word]) for other in plain if other != word), nearest
    return found


@lru_cache
def _common(*kinds: str) -> list[str]:
    """Return the most frequent tokens of CLIP's vocabulary whose first kind is one of these, COMPARED at most."""
    vocabulary = load_tokenizers("mini")[0].get_vocab()
    of_kind = [word for word, known in known_tokens().items() if known.split(", ")[0] in kinds]
    return sorted(of_kind, key=lambda word: vocabulary[f"{word}</w>"])[:COMPARED]
