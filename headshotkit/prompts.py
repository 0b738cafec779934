"""The prompt bank: hand-written prompts for professional headshots, from `prompts.toml` or a person's own file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from headshotkit.errors import BadPromptBank
from headshotkit.runtime import PACKAGE

BANK = PACKAGE / "prompts.toml"
PERSON = "{person}"


@dataclass(frozen=True)
class Prompt:
    """One picture to make. `text` and `brief` hold "{person}", where token and class word go.

    `brief` says the same in the few words that a small base knows.
    """

    id: str
    text: str
    brief: str
    negative: str
    tags: tuple[str, ...]

    def for_person(self, instance: str, brief: bool) -> str:
        """The prompt with the person named.

        >>> Prompt("a", "photo of {person}, suit", "{person}", "", ()).for_person("ohwx man", brief=False)
        'photo of ohwx man, suit'
        """
        return (self.brief if brief else self.text).replace(PERSON, instance)


def load_prompts(path: Path = BANK) -> list[Prompt]:
    """All prompts of a bank, in its order.

    Args:
        path: a TOML file with `[defaults]` (negative) and `[[prompt]]` tables: id, text, brief, tags, negative.
    Raises:
        BadPromptBank: the file is missing or does not follow the format; the error names the entry.
    """
    try:
        bank = tomllib.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise BadPromptBank(f"{path} can't be read: {error}.", "It is missing or not TOML.", "Correct it.") from error
    entries = bank.get("prompt", [])
    if not entries:
        raise BadPromptBank(f"{path} holds 0 prompts.", "A bank is a list of [[prompt]] tables.", "Add at least one.")
    negative = bank.get("defaults", {}).get("negative", "")
    prompts = [_prompt(entry, number, negative, path) for number, entry in enumerate(entries)]
    ids = [p.id for p in prompts]
    twice = sorted({i for i in ids if ids.count(i) > 1})
    if twice:
        raise BadPromptBank(f"{path} has {', '.join(twice)} more than once.", "Ids name files.", "Rename one of them.")
    return prompts


def _prompt(entry: dict, number: int, negative: str, path: Path) -> Prompt:
    """One table of the bank as a Prompt."""
    known = {"id", "text", "brief", "tags", "negative"}
    missing, unknown = {"id", "text"} - set(entry), set(entry) - known
    if missing or unknown:
        raise BadPromptBank(
            f"prompt {number + 1} of {path} lacks {sorted(missing)} and has unknown {sorted(unknown)}.",
            f"A prompt has {sorted(known)}; id and text are needed.",
            "Correct the entry.",
        )
    brief = entry.get("brief", entry["text"])
    if PERSON not in entry["text"] or PERSON not in brief:
        raise BadPromptBank(
            f"prompt {entry['id']!r} of {path} does not hold {PERSON}.",
            "Without it the picture would show anybody.",
            f"Write for example: photo of {PERSON}, grey suit",
        )
    if not all(c.isalnum() or c in "-_" for c in entry["id"]):
        raise BadPromptBank(
            f"prompt id {entry['id']!r} of {path} can't be part of a file name.",
            "Ids are made of letters, digits, - and _.",
            "Rename it.",
        )
    return Prompt(entry["id"], entry["text"], brief, entry.get("negative", negative), tuple(entry.get("tags", ())))


def choose_prompts(bank: list[Prompt], count: int) -> list[tuple[str, Prompt]]:
    """`count` prompts with an id of their own each; a bank that is too short is gone through again.

    >>> [i for i, _ in choose_prompts([Prompt("a", "", "", "", ()), Prompt("b", "", "", "", ())], 3)]
    ['a', 'b', 'a-2']
    """
    chosen = []
    for number in range(count):
        lap, place = divmod(number, len(bank))
        chosen.append((bank[place].id + (f"-{lap + 1}" if lap else ""), bank[place]))
    return chosen
