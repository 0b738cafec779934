"""The coach: find what a set of photos lacks, and request the next photos. Pure functions over verdicts.

`coverage` finds what a set shows, `selection` chooses the photos to train with; none of them opens a picture.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

from headshotkit.config import CheckConfig
from headshotkit.core.records import Record, Verdict
from headshotkit.photos.coverage import ONE_SIDED, Axis, Coverage, coverage, scenes
from headshotkit.photos.selection import Choice, Chosen, choose_photos

__all__ = ["Choice", "Chosen", "Coverage", "Request", "choose_photos", "coverage", "requests", "scenes", "summary"]

MOST_REQUESTS = 3
LEAST_SCENES, LEAST_ALIKE = 5, 3
"""Fewest scenes that show a trait before the coach requests variety of it; fewest if all show the same value. A missing
pose or expression is requested from the first photo on."""
WANTED = 2
"""Scenes to reach for each of: left, front, right; neutral, smiling."""
SPOILT = 0.15
"""Share of the photos refused for one reason from which the coach mentions it."""
MINORITY = 0.25
"""Share of the faces from which another person's photos count as a second set, not as strays."""
FIXABLE = {
    "blurred": "sharp photos: hold still, touch the face on the screen to focus",
    "moved": "sharp photos: rest the camera on something, or take them in more light",
    "dark": "brighter photos: face a window or a lamp",
    "bright": "photos without glare: turn the flash off, step out of the sun",
    "noisy": "photos in more light",
    "pale": "photos with more contrast: wipe the lens, no haze filter",
    "compressed": "the original files, not copies that a messenger app sent",
    "greyscale": "photos in colour, without a filter",
    "small_face": "photos from closer: the face should fill a third of the height",
    "cropped_face": "photos with the whole face in the frame",
    "occluded": "photos without sunglasses, mask or hand in front of the face",
    "profile": "photos with both eyes visible",
    "tilted": "photos the right way up, with the head upright",
    "framed": "the photos themselves, without a frame, bars or an app around them",
    "generated": "photos from a camera, not pictures that a model generated",
    "eyes_closed": "photos with open eyes",
    "grimace": "photos with a calm face or a smile",
    "many_faces": "photos of the person alone",
    "crowd": "photos of the person alone",
}
"""Refusals that a retake would fix, and the request for it."""
REPEATED = ("duplicate", "surplus")
"""Refusals of good photos that add nothing to other photos."""
PLURALS = {
    "pose": "poses", "expression": "expressions", "light": "kinds of light", "framing": "framings",
    "background": "backgrounds", "clothes": "kinds of clothes",
}  # fmt: skip
VARIED = {
    "clothes": (0.8, "", "the {} top", "without the {} top"),
    "background": (0.7, "", "the {} background", "outdoors or in front of another background than the {} one"),
    "light": (0.4, "soft", "{} light", "in soft light from the front, for example facing a window"),
    "framing": (0.3, "head and shoulders", "{}", "with head and shoulders in the frame"),
}
"""Axis -> weight of its lack, the value that most photos may show, the words for what they show, and for a request."""
SHOWN = {"face fills the frame": "a face that fills the frame", "half body": "half of the body"}
"""Values that read badly in a sentence, and their words."""
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Request(Record):
    """One request: its kind, the number of photos, its text, and the reason with numbers."""

    code: str
    count: int
    text: str
    why: str


def requests(verdicts: list[Verdict], covered: Coverage, config: CheckConfig) -> tuple[Request, ...]:
    """Return at most three requests for photos, most useful first; empty if the set is good.

    Ranked by harm. Two people in the set come first, because a mixture of two is nobody. Then come too few photos or
    scenes, and, if photos are too few, the most frequent reason for refusals. Each of these outranks what the set
    lacks, which is ranked by weight times lack (0 to 1). A turned head weighs 1, because an unseen pose can't be
    rendered; clothes 0.8, background 0.7 and expression 0.6, because what all photos share is learned as part of the
    face; light 0.4, framing 0.3. In a set that is large enough, a reason for refusals weighs its share of the photos.

    Args:
        config: with `min_photos`, the number of photos needed; from `max_photos` kept ones on, no retake of a refused
            photo is requested.
    """
    found = [_two_people(verdicts), _too_few(verdicts, covered, config), _spoilt(verdicts, config)]
    found += [_turned(covered), _expression(covered), *(_one_sided(covered.axis(name)) for name in VARIED)]
    ranked = sorted((f for f in found if f), key=lambda f: -f[0])  # stable: equal ones stay in this order
    return tuple(request for _, request in ranked[:MOST_REQUESTS])


def summary(asked: tuple[Request, ...], covered: Coverage) -> str:
    """Return the requests as one sentence, or that there are none."""
    if asked:
        return "The set still needs: " + "; ".join(request.text for request in asked) + "."
    counts = f"{covered.photos} photos of {covered.scenes} scenes"
    varied = [a for a in covered.axes if sum(a.scenes) >= LEAST_SCENES and sum(n > 0 for n in a.scenes) > 1]
    shown = ", ".join(f"{sum(n > 0 for n in axis.scenes)} {PLURALS[axis.name]}" for axis in varied)
    return f"No more photos are needed: {counts}" + (
        f" show {shown}." if shown else ", too few to judge their variety."
    )


def _photos(count: int) -> str:
    word = NUMBERS[count] if count < len(NUMBERS) else str(count)
    return f"{word} photo{'' if count == 1 else 's'}"


def _named(names: list[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(sorted(names)[:most]) + more


def _two_people(verdicts: list[Verdict]) -> tuple[float, Request] | None:
    """Request only one person's photos if two are in the set; `person` in the measures tells more than two apart."""
    groups = defaultdict(list)
    for v in verdicts:
        if not v.kept and any(r.code == "other_person" for r in v.reasons):
            groups[v.measures.get("person", "other")].append(v.photo)
        elif v.kept or "identity" in v.measures:
            groups["main"].append(v.photo)
    main = groups.pop("main", [])
    strangers = sum(map(len, groups.values()))
    if strangers < max(2, MINORITY * (strangers + len(main))):
        return None
    sets = [main, *sorted((g for g in groups.values() if len(g) > 1), key=lambda g: -len(g))]
    lists = "; ".join(f"{len(g)} of {'one' if g is main else 'another'} ({_named(g)})" for g in sets)
    once = [name for g in groups.values() if len(g) == 1 for name in g]
    lists += f"; {len(once)} of others ({_named(once)})" if once else ""
    people = len(sets) + len(once)
    text = f"photos of one person only; this set shows {NUMBERS[people] if people < 11 else people} people: {lists}"
    why = f"{strangers} of {strangers + len(main)} faces belong to somebody else"
    return 10.0, Request("two_people", strangers, text, why)


def _too_few(verdicts: list[Verdict], covered: Coverage, config: CheckConfig) -> tuple[float, Request] | None:
    """Request the missing number of photos: of other scenes if many photos show the same few, else any."""
    kept = sum(v.kept for v in verdicts)
    same = kept + sum(not v.kept and v.reasons[:1] != () and v.reasons[0].code in REPEATED for v in verdicts)
    useful = 5.0 if kept < config.min_photos else 3.0
    missing = config.min_photos - covered.scenes
    if missing > 0 and same >= max(4, 2 * covered.scenes):
        what = "scene" if covered.scenes == 1 else "scenes"
        why = f"{same} photos show {covered.scenes} {what}, {config.min_photos} are needed"
        return useful, Request(
            "moments", missing, f"{_photos(missing)} from other days, in other clothes and places", why
        )
    missing = config.min_photos - kept
    if missing <= 0:
        return None
    why = f"{kept} of {len(verdicts)} photos were kept, training needs {config.min_photos}"
    return useful, Request("few_photos", missing, _photos(missing).replace(" ", " more good "), why)


def _spoilt(verdicts: list[Verdict], config: CheckConfig) -> tuple[float, Request] | None:
    """Request a retake for the most frequent refusal that a retake fixes."""
    kept = sum(v.kept for v in verdicts)
    refused = Counter(v.reasons[0].code for v in verdicts if v.reasons and not v.kept)
    code, count = next(((c, n) for c, n in refused.most_common() if c in FIXABLE), ("", 0))
    if kept >= config.max_photos or count < max(2, SPOILT * len(verdicts)):
        return None
    why = f"{count} of {len(verdicts)} photos were refused as {code.replace('_', ' ')}"
    useful = 4.0 if kept < config.min_photos else count / len(verdicts)
    return useful, Request(f"refused_{code}", count, FIXABLE[code], why)


def _turned(covered: Coverage) -> tuple[float, Request] | None:
    axis = covered.axis("pose")
    words = {
        "left": "half-turned to the left of the picture",
        "right": "half-turned to the right of the picture",
        "front": "looking straight into the camera",
    }
    enough = WANTED if sum(axis.scenes) >= LEAST_SCENES else 1
    lacks = {pose: WANTED - axis.count(pose) for pose in words if axis.count(pose) < enough}
    if not lacks or not sum(axis.scenes):
        return None
    (pose, count), *others = lacks.items()
    text = f"{_photos(count)} with the face {words[pose]}"
    text += "".join(f" and {NUMBERS[n]} {words[other]}" for other, n in others)
    counts = ", ".join(f"{axis.count(p)} {p}" for p in ("left", "front", "right"))
    why = f"of {sum(axis.scenes)} scenes: {counts}; {WANTED} of each are needed"
    return 1.0 * min(1, sum(lacks.values()) / (2 * WANTED)), Request("pose", sum(lacks.values()), text, why)


def _one_sided(axis: Axis) -> tuple[float, Request] | None:
    """Request photos that show anything else, if most scenes show the same value of an axis of VARIED."""
    weight, good, shown, wanted = VARIED[axis.name]
    total, top = sum(axis.scenes), max(axis.scenes, default=0)
    few = total < (LEAST_ALIKE if top == total else LEAST_SCENES)
    if few or axis.most == good or axis.share <= ONE_SIDED:
        return None
    count = min(3, max(1, math.ceil(top / ONE_SIDED - total)))
    what = SHOWN.get(axis.most) or shown.format(axis.most)
    why = f"{top} of {total} scenes show {what}, at most {ONE_SIDED:.0%} should"
    return weight * axis.share, Request(axis.name, count, f"{_photos(count)} {wanted.format(axis.most)}", why)


def _expression(covered: Coverage) -> tuple[float, Request] | None:
    axis = covered.axis("expression")
    total = sum(axis.scenes)
    rare = min(axis.values, key=axis.count)
    count = WANTED - axis.count(rare)
    if not total or count <= 0 or (axis.count(rare) and total < LEAST_SCENES):
        return None
    text = f"{_photos(count)} with " + ("a smile" if rare == "smiling" else "a calm face and the mouth closed")
    why = f"{axis.count(rare)} of {total} scenes show a {rare} face, {WANTED} are needed"
    return 0.6 * count / WANTED, Request("expression", count, text, why)
