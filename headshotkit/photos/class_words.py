"""Propose a class word, which captions use next to the token, if the person gave none."""

from __future__ import annotations

from collections import Counter

from headshotkit.config import CLASS_WORDS
from headshotkit.core import runtime
from headshotkit.core.results import PhotosResult
from headshotkit.core.run import Run
from headshotkit.faces import recognition
from headshotkit.photos.kept import kept_faces

SAMPLE_CLASS = "man"
LEAST_PHOTOS, LEAST_SHARE = 3, 0.8
"""Fewest kept photos for a proposal, and least share of them with the same guess."""


def propose_class_word(run: Run) -> tuple[str, str]:
    """Return a class word for a run's person, and the reason.

    The sample person's is known. Else insightface's model of sex votes on each kept photo, if the face pack has it; if
    not, or if the photos disagree, the word is "person", which is always right.

    Raises:
        StageMissing: the photos have not been judged.
        DamagedRun: a kept photo is missing, or was edited since it was judged.
    """
    folder = run.placed(PhotosResult.load(run).folder)
    if folder and folder.resolve() == runtime.sample_person().resolve():
        return SAMPLE_CLASS, "as recorded for the sample person"
    if not recognition.knows_sex():
        return CLASS_WORDS[0], "because none was given"
    faces = kept_faces(run, "class word")
    votes = Counter("man" if recognition.looks_male(image, face) else "woman" for image, face in faces)
    total = votes.total()
    word, count = next(iter(votes.most_common(1)), ("", 0))
    if total < LEAST_PHOTOS or count < LEAST_SHARE * total:
        return CLASS_WORDS[0], f"because none was given, and the {total} kept photos don't decide it"
    return word, f"as insightface's model says of {count} of {total} kept photos"
