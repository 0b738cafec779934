"""The expressions that captions and prompts name."""

from __future__ import annotations

SMILING, NEUTRAL = EXPRESSIONS = ("smiling", "neutral expression")


def with_expression(prompt: str, expression: str) -> str:
    """Return the prompt with its expression replaced; a prompt that names none stays as it is.

    >>> with_expression("photo of a man, neutral expression, looking left", "smiling")
    'photo of a man, smiling, looking left'
    """
    for words in EXPRESSIONS if expression else ():
        prompt = prompt.replace(words, expression)
    return prompt
