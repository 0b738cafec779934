"""Load and choose from the prompt bank: hand-written prompts for headshots, from `prompts.toml` or the user's file.

Nobody has to write a prompt: by default the bank decides, and `choose_prompts` makes the pictures differ.
"""

from __future__ import annotations

import random
import re
import tomllib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from headshotkit.config import SDXL_SIZES_PX
from headshotkit.config.base import shown
from headshotkit.core import runtime
from headshotkit.core.errors import BadPromptBank
from headshotkit.core.run import read_regular
from headshotkit.core.runtime import PACKAGE

BANK = PACKAGE / "generation" / "prompts.toml"
PERSON = "{person}"
PACKS = ("linkedin", "creative", "academic", "medical", "studio", "outdoor", "black-and-white")
"""The packs that every bank may use; a user's bank declares further ones in a table [packs]."""
SIZES_PX = {aspect: SDXL_SIZES_PX[aspect] for aspect in ("1:1", "4:5", "3:4", "16:9")}
"""Aspect of a headshot -> SDXL's size (width, height) px for it."""
MAX_WEIGHT = 10
MAX_BANK_BYTES, MAX_PROMPTS, MAX_TAGS, MAX_LETTERS = 2**20, 1000, 100, 4000
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ENDLESS_KEY = re.compile(r"""(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")
"""A dotted key of more parts than any bank has; the time to parse one grows with their square."""
OPENING = 26
"""Number of a bank's first prompts that are taken in its own order if no pack is named."""


@dataclass(frozen=True)
class Prompt:
    """One picture to make. `text` and `brief` hold "{person}", the place of token and class word.

    `brief` is the same in the short phrases that a small base was trained on. `tags` are "axis:value", such as
    "light:window"; a choice is spread over them. `weight`, above 0 to 10: at 2 it is taken as readily as a prompt whose
    tags were used half as often. `aspect`, one of SIZES_PX, is the picture's shape, on bases that can draw it.
    `packs` are the collections that the prompt belongs to.
    """

    id: str
    text: str
    brief: str
    negative: str
    tags: tuple[str, ...]
    weight: float = 1.0
    aspect: str = "1:1"
    packs: tuple[str, ...] = ()

    def for_person(self, instance: str, brief: bool) -> str:
        """Return the prompt with the person named.

        >>> Prompt("a", "photo of {person}, suit", "{person}", "", ()).for_person("ohwx man", brief=False)
        'photo of ohwx man, suit'
        """
        return (self.brief if brief else self.text).replace(PERSON, instance)


def load_prompts(path: Path | str = BANK) -> list[Prompt]:
    """Load all prompts of a bank, in its order.

    Args:
        path: a TOML file with `[[prompt]]` tables: id and text, and optionally brief (default: the text), negative,
            tags, weight, aspect, packs. `[defaults]` may hold the negative prompt of all that have none, and
            `[packs]` declares further packs: name = "what it is for".
    Raises:
        BadPromptBank: the file is missing or does not follow the format; the error names file, entry and field.
    """
    try:
        text = read_regular(runtime.typed_path(path), MAX_BANK_BYTES).decode("utf-8-sig")
        if ENDLESS_KEY.search(text):
            raise ValueError("a key has more than 64 parts")
        bank = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        why = "It is missing, or not a TOML file of at most 1 MiB."
        raise BadPromptBank(f"{path} can't be read: {error}.", why, "Correct it.") from error
    _check_tables(bank, path)
    entries = bank.get("prompt", [])
    if not 0 < len(entries) <= MAX_PROMPTS:
        raise BadPromptBank(
            f"{path} holds {len(entries)} prompts.",
            f"A bank is a list of [[prompt]] tables, 1 to {MAX_PROMPTS} of them.",
            "Take some out." if entries else "Add at least one.",
        )
    negative = bank.get("defaults", {}).get("negative", "")
    packs = (*PACKS, *(name for name in bank.get("packs", {}) if name not in PACKS))
    prompts = [_prompt(entry, number, negative, packs, path) for number, entry in enumerate(entries, start=1)]
    twice = sorted(i for i, times in Counter(p.id.casefold() for p in prompts).items() if times > 1)
    if twice:
        why = "Ids become file names, and some disks ignore upper and lower case."
        raise BadPromptBank(f"{path} has {', '.join(twice)} more than once.", why, "Rename one of them.")
    return prompts


def _check_tables(bank: dict, path: Path | str) -> None:
    """Reject unknown tables and tables of a wrong shape."""
    defaults, packs = bank.get("defaults", {}), bank.get("packs", {})
    tables = isinstance(defaults, dict) and isinstance(packs, dict)
    unknown = sorted(set(bank) - {"defaults", "packs", "prompt"})
    unknown += sorted(f"defaults.{name}" for name in set(defaults) - {"negative"}) if tables else []
    entries = bank.get("prompt", [])
    if unknown or not tables or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise BadPromptBank(
            f"{path} has unknown {shown(unknown)}." if unknown else f"{path}: a table has the wrong shape.",
            "A bank has [[prompt]] tables and may have [defaults] (negative) and [packs] (name = what it is for).",
            "Correct the name or the brackets.",
        )
    if not _is_text(defaults.get("negative", "")):
        raise BadPromptBank(
            f"{path}, [defaults] negative is {shown(defaults['negative'])}.", "It must be text.", "Quote it."
        )


ALLOWED = {
    "id": "1 to 64 of A to Z, a to z, 0 to 9, - and _, because it is part of a file name",
    "text": f"text that holds {PERSON}, of at most {MAX_LETTERS} letters; without it the picture would not show the "
    "person",
    "brief": f"text that holds {PERSON}, of at most {MAX_LETTERS} letters; without it the picture would not show the "
    "person",
    "negative": f"text of at most {MAX_LETTERS} letters",
    "tags": f'a list of at most {MAX_TAGS} texts such as "light:window"',
    "weight": f"a number above 0, to {MAX_WEIGHT}",
    "aspect": f"one of {', '.join(SIZES_PX)}",
    "packs": "a list of packs, of: {packs}; further ones are declared in a table [packs]",
}
"""Field of a prompt -> its allowed values."""


def _fits(field: str, value: object, packs: tuple[str, ...]) -> bool:
    """Return whether a field's value is allowed."""
    match field:
        case "id":
            return isinstance(value, str) and bool(ID.fullmatch(value))
        case "text" | "brief":
            return _is_text(value) and PERSON in value
        case "negative":
            return _is_text(value)
        case "tags":
            tags = isinstance(value, list) and len(value) <= MAX_TAGS
            return tags and all(_is_text(tag) and tag.strip() for tag in value)
        case "weight":
            return type(value) in (int, float) and 0 < value <= MAX_WEIGHT
        case "aspect":
            return isinstance(value, str) and value in SIZES_PX
        case "packs":
            return isinstance(value, list) and all(isinstance(pack, str) and pack in packs for pack in value)
    raise AssertionError(field)


def _is_text(value: object) -> bool:
    """Return whether a value is text without control characters, so that it can be shown, and not too long."""
    plain = isinstance(value, str) and len(value) <= MAX_LETTERS
    return plain and not any(unicodedata.category(c) == "Cc" and not c.isspace() for c in value)


def _prompt(entry: dict, number: int, negative: str, packs: tuple[str, ...], path: Path | str) -> Prompt:
    """Return one table of the bank as a Prompt; `number` counts from 1, `packs` are the known ones."""
    own = entry.get("id", "no id")
    name = f"prompt {number} ({own if isinstance(own, str) and ID.fullmatch(own) else shown(own)}) of {path}"
    missing, unknown = sorted({"id", "text"} - set(entry)), sorted(set(entry) - set(ALLOWED))
    if missing or unknown:
        raise BadPromptBank(
            f"{name} lacks {missing} and has unknown {shown(unknown)}.",
            f"A prompt has {', '.join(ALLOWED)}; id and text are needed.",
            "Correct the entry.",
        )
    for field, value in entry.items():
        if not _fits(field, value, packs):
            raise BadPromptBank(
                f"{name}, field {field}: {shown(value)} is not allowed.",
                f"Allowed is {ALLOWED[field].replace('{packs}', ', '.join(packs))}.",
                f"For example: text = 'photo of {PERSON}, grey suit'" if field in ("text", "brief") else "Correct it.",
            )
    filled = {"brief": entry["text"], "negative": negative, "tags": (), "packs": ()} | entry
    return Prompt(**filled | {"tags": tuple(filled["tags"]), "packs": tuple(filled["packs"])})


def in_packs(bank: list[Prompt], packs: tuple[str, ...] | list[str] = ()) -> list[Prompt]:
    """Return the prompts that belong to any of the packs, in the bank's order; all if no pack is named.

    Raises:
        BadPromptBank: a pack has no prompt in the bank.
    """
    sizes = Counter(pack for prompt in bank for pack in prompt.packs)
    empty = [pack for pack in packs if not sizes[pack]]
    if empty:
        raise BadPromptBank(
            f"no prompt belongs to pack {', '.join(map(repr, empty))}.",
            f"Packs of this bank: {', '.join(f'{name} ({size})' for name, size in sizes.items()) or 'none'}.",
            "Name one of them, or none for the whole bank.",
        )
    return [prompt for prompt in bank if not packs or set(packs) & set(prompt.packs)]


def choose_prompts(
    bank: list[Prompt], count: int, packs: tuple[str, ...] | list[str] = (), seed: int = 0
) -> list[tuple[str, Prompt]]:
    """Return `count` prompts that differ as much as possible, each with a unique id.

    The next prompt is always the one whose tags were used least so far (over its weight; the seed breaks ties), so
    settings, clothes, light and other tags are spread. None is repeated before all were taken, so every prompt comes at
    most ceil(count / size) times, and two of the same brief are not neighbours if that is possible. A larger count only
    adds: the first ones stay.

    If no pack is named, the bank's first 26 come first, in its order, and only later ones are chosen: up to 26
    headshots are the same whatever the seed.

    Args:
        bank: at least one prompt, ids unique.
        count: number of prompts, 0 or more; beyond the bank's size ids get a number: "press-dark-2".
        packs: names of packs to choose from; empty: the whole bank.
        seed: breaks ties between equally good prompts.
    Raises:
        BadPromptBank: a pack has no prompt in the bank.

    >>> [i for i, _ in choose_prompts([Prompt("a", "", "", "", ()), Prompt("b", "", "", "", ())], 3)]
    ['a', 'b', 'a-2']
    """
    pool = in_packs(bank, packs)
    order = _spread(pool, 0 if packs else OPENING, seed)
    chosen = [(prompt.id, prompt) for prompt in order[:count]]
    taken = {prompt.id.casefold() for prompt in order}
    for number in range(len(order), count):
        lap, place = divmod(number, len(order))
        name = f"{order[place].id}-{lap + 1}"
        while name.casefold() in taken:  # a bank may hold "a" and "a-2"
            name += "-"
        taken.add(name.casefold())
        chosen.append((name, order[place]))
    return chosen


def _spread(pool: list[Prompt], opening: int, seed: int) -> list[Prompt]:
    """Order all prompts: the first `opening` unchanged, then always the one least similar to those before it."""
    rng = random.Random(seed)
    luck = {prompt.id: rng.random() for prompt in pool}
    order, left = pool[:opening], pool[opening:]
    used = Counter(tag for prompt in order for tag in prompt.tags)

    def worn(prompt: Prompt) -> tuple[float, float]:
        times = sum(used[tag] for tag in prompt.tags) / max(len(prompt.tags), 1)
        return (1 + times) / prompt.weight, luck[prompt.id]

    while left:
        order.append(min(_may_follow(order, left), key=worn))
        left.remove(order[-1])
        used.update(order[-1].tags)
    return _joined(order, opening)


def _may_follow(order: list[Prompt], left: list[Prompt]) -> list[Prompt]:
    """Return the prompts of `left` that can come next without two of one brief side by side, now or at the end."""
    briefs = Counter(prompt.brief for prompt in left)
    fresh = [prompt for prompt in left if not order or prompt.brief != order[-1].brief] or left
    pressing = [prompt for prompt in fresh if 2 * briefs[prompt.brief] > len(left)]
    return pressing or fresh


def _joined(order: list[Prompt], opening: int) -> list[Prompt]:
    """Move the order's last prompt forward if it would meet its own brief when the order begins again."""
    *others, last = order
    if not others or last.brief != order[0].brief or len(order) <= opening:
        return order
    for place in range(max(opening, 1), len(others)):
        if last.brief not in (others[place - 1].brief, others[place].brief):
            return [*others[:place], last, *others[place:]]
    return order


def prompt_table(prompts: list[Prompt]) -> str:
    """Format the prompts as lines: id, aspect, packs, and the values of the tags; the last line counts them.

    >>> print(prompt_table([Prompt("a", "", "", "", ("light:window",), packs=("studio",))]))
    id  aspect  packs   tags
    a   1:1     studio  window
    1 prompts
    """
    rows = [("id", "aspect", "packs", "tags")]
    rows += [(p.id, p.aspect, ", ".join(p.packs), ", ".join(t.split(":")[-1] for t in p.tags)) for p in prompts]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]) for row in rows
    ]
    return "\n".join([*map(str.rstrip, lines), f"{len(prompts)} prompts"])
