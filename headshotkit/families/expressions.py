"""The expressions that captions and prompts name, and the one that a person's photos all show."""

from __future__ import annotations

from collections.abc import Sequence

from headshotkit.photos.coverage import ONE_SIDED

SMILING, NEUTRAL = EXPRESSIONS = ("smiling", "neutral expression")


def usual_expression(captions: Sequence[str]) -> str:
    """The expression that more than three quarters of the captions name; empty where there is none.

    >>> usual_expression(["photo of ohwx man, smiling"] * 4 + ["photo of ohwx man"])
    'smiling'
    """
    named = {words: sum(words in caption for caption in captions) for words in EXPRESSIONS}
    return next((words for words, count in named.items() if count > ONE_SIDED * len(captions)), "")


def with_expression(prompt: str, expression: str) -> str:
    """The prompt with that expression in place of the one that it names; where it names none, it stays as it is.

    >>> with_expression("photo of a man, neutral expression, looking left", "smiling")
    'photo of a man, smiling, looking left'
    """
    for words in EXPRESSIONS if expression else ():
        prompt = prompt.replace(words, expression)
    return prompt
