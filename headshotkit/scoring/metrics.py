"""All metrics in one table: METRICS. Report, page and tables read it; a new metric is one function and one line of it.

A metric is measured on a set of pictures, against the person's photos. Its interval says how much the value would
change with other headshots made in the same way; where the photos are a sample too (image quality, diversity), with
other photos of the person as well. It does not say how wrong the net is that looks at the pictures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from headshotkit.core.errors import (
    BadWeights,
    BrokenPackage,
    DownloadFailed,
    MissingModel,
    MissingPackage,
    NotMeasured,
)
from headshotkit.faces import copies, recognition
from headshotkit.scoring import bootstrap
from headshotkit.scoring import metrics_arithmetic as arithmetic
from headshotkit.scoring.adherence import prompt_adherence
from headshotkit.scoring.metrics_features import SHOWN, Features, Picture

NOT_HERE = (MissingModel, MissingPackage, BrokenPackage, DownloadFailed, BadWeights, NotMeasured)
"""Errors after which a metric is reported as missing, with what to do."""
CLIP_SCORE_WEIGHT = 2.5
GROUPS = 2
"""Number of groups of training photos, each as large as the held-out set, that copying is averaged over."""


@dataclass(frozen=True)
class Sets:
    """What a metric is measured on.

    made: the pictures · photos: the person's, which the LoRA was trained on · held_out: photos of the person that it
    was not trained on; may be empty. A picture that is itself one of the photos is not compared with itself.
    """

    made: Sequence[Picture]
    photos: Sequence[Picture]
    features: Features
    held_out: Sequence[Picture] = ()

    def faces(self, feature: str, of: Sequence[Picture], what: str = "pictures") -> tuple[np.ndarray, list[Picture]]:
        """Return a feature of the pictures with exactly one face, and these pictures.

        Raises:
            NotMeasured: there is none.
        """
        rows = self.features.of(feature, of) if of else np.zeros((0, 1), np.float32)
        text = rows.dtype.kind == "U"
        one = [bool(row[0]) if text else not np.isnan(row).all() for row in rows]
        if not any(one):
            raise NotMeasured(f"none of {len(of)} {what} shows exactly one face.")
        return rows[one], [picture for picture, has in zip(of, one, strict=True) if has]

    def at_least(self, pictures: int, photos: int = 0) -> None:
        """Refuse sets that are too small.

        Raises:
            NotMeasured: there are fewer.
        """
        for found, least, what in ((self.made, pictures, "pictures"), (self.photos, photos, "photos")):
            if len(found) < least:
                raise NotMeasured(f"there are {len(found)} {what}, and it needs {least}.")

    def apart(self) -> None:
        """Refuse to compare a set with itself.

        Raises:
            NotMeasured: a picture is one of the photos.
        """
        if {picture.sha256 for picture in self.made} & {photo.sha256 for photo in self.photos}:
            raise NotMeasured("the pictures are the photos that they would be compared with.")


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its 95 % interval, over n pictures; `low` and `high` are None where n tells nothing."""

    value: float
    low: float | None
    high: float | None
    n: int
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A metric.

    name: in files · title: for people · group: what it is about · unit · least, most: its range; None: without limit ·
    better: which direction is better · measure: its function · source: where it is defined · weights: what it needs
    of WEIGHTS · caution: when not to trust it.
    """

    name: str
    title: str
    group: Literal["text alignment", "image quality", "image alignment", "diversity", "copying"]
    unit: str
    least: float | None
    most: float | None
    better: Literal["higher", "lower"]
    measure: Callable[[Sets], Estimate]
    source: str
    weights: tuple[str, ...] = ()
    caution: str = ""


# --- text alignment ---------------------------------------------------------------------------------------------------


def clip_t(sets: Sets) -> Estimate:
    """Measure how well CLIP thinks that pictures match their prompts: the mean cosine of picture and text."""
    return mean_of(_text_cosines(sets))


def clip_score(sets: Sets) -> Estimate:
    """Measure CLIPScore: 2.5 times the cosine of picture and text, at least 0."""
    return mean_of(CLIP_SCORE_WEIGHT * np.maximum(_text_cosines(sets), 0))


def _text_cosines(sets: Sets) -> np.ndarray:
    """Return the cosine of each picture and its prompt by CLIP, shape (N,)."""
    made = [picture for picture in sets.made if picture.prompt]
    if not made:
        raise NotMeasured("no picture has a prompt.")
    seen = arithmetic.unit(sets.features.of("clip", made))
    read = arithmetic.unit(sets.features.texts("clip", [picture.prompt for picture in made]))
    return (seen * read).sum(1)


def adherence(sets: Sets) -> Estimate:
    """Measure prompt adherence by landmarks and background colour: the share of what is asked that is shown."""
    asking = [picture for picture in sets.made if picture.asked]
    if not asking:
        raise NotMeasured("no prompt asks for anything that can be measured.")
    rows, made = sets.faces("shown", asking)
    shares = [prompt_adherence(picture.asked, dict(zip(SHOWN, row, strict=True)))
              for picture, row in zip(made, rows.tolist(), strict=True)]  # fmt: skip
    return mean_of(np.array(shares, float), sets.made)


# --- image quality ----------------------------------------------------------------------------------------------------


def fid(sets: Sets) -> Estimate:
    """Measure the Fréchet distance of Inception features between pictures and photos."""
    return _frechet(sets, "inception")


def fd_dinov2(sets: Sets) -> Estimate:
    """Measure the Fréchet distance of DINOv2 features between pictures and photos."""
    return _frechet(sets, "dinov2")


def _frechet(sets: Sets, feature: str) -> Estimate:
    sets.at_least(4, 4)
    sets.apart()
    made, photos = (np.asarray(sets.features.of(feature, of), np.float64) for of in (sets.made, sets.photos))

    def distance(of_made: np.ndarray, of_photos: np.ndarray) -> float:
        return arithmetic.frechet_distance(made[of_made], photos[of_photos])

    return _of_sets(distance, len(made), len(photos))


def kid(sets: Sets) -> Estimate:
    """Measure the kernel distance of Inception features between pictures and photos, over all pairs."""
    return _discrepancy(sets, "inception", arithmetic.polynomial_kernel, 1.0)


def cmmd(sets: Sets) -> Estimate:
    """Measure the maximum mean discrepancy of CLIP embeddings between pictures and photos.

    It is the paper's unbiased estimate; its published code adds a term that shrinks with the number of pictures.
    """
    return _discrepancy(sets, "clip_336", arithmetic.gaussian_kernel, arithmetic.CMMD_SCALE)


def _discrepancy(sets: Sets, feature: str, kernel: Callable, scale: float) -> Estimate:
    sets.at_least(4, 4)
    sets.apart()
    made, photos = (sets.features.of(feature, of) for of in (sets.made, sets.photos))
    kernels = [scale * kernel(*pair) for pair in ((made, made), (made, photos), (photos, photos))]

    def discrepancy(a: np.ndarray, b: np.ndarray) -> float:
        places = np.ix_(a, a), np.ix_(a, b), np.ix_(b, b)
        return arithmetic.mean_discrepancy(*(values[place] for values, place in zip(kernels, places, strict=True)))

    return _of_sets(discrepancy, len(made), len(photos))


def _of_sets(statistic: Callable[..., float], *sizes: int) -> Estimate:
    """Return a statistic of whole sets, given the indices of their members."""
    low, high = bootstrap.sets_interval(statistic, sizes)
    return Estimate(statistic(*map(np.arange, sizes)), low, high, sizes[0])


def inception_score(sets: Sets) -> Estimate:
    """Measure the Inception score of the pictures, in one group."""
    sets.at_least(4)
    classes = sets.features.classes()
    logits = np.asarray(sets.features.of("inception", sets.made), np.float64) @ classes.T
    shares = arithmetic.softmax(logits)
    return _of_sets(lambda some: arithmetic.inception_score(shares[some]), len(shares))


def face_quality(sets: Sets) -> Estimate:
    """Measure the quality of faces: sharpness, steadiness, contrast, size and light, as in the photo check."""
    return mean_of(sets.faces("looks", sets.made)[0][:, 1], sets.made)


def sharpness(sets: Sets) -> Estimate:
    """Measure the sharpness of faces."""
    return mean_of(sets.faces("looks", sets.made)[0][:, 0], sets.made)


# --- image alignment --------------------------------------------------------------------------------------------------


def clip_i(sets: Sets) -> Estimate:
    """Measure CLIP-I: the mean cosine of CLIP embeddings between pictures and photos."""
    return _cosines(sets, "clip")


def dinov2(sets: Sets) -> Estimate:
    """Measure the mean cosine of DINOv2 features between pictures and photos."""
    return _cosines(sets, "dinov2")


def dinov2_face(sets: Sets) -> Estimate:
    """Measure the mean cosine of DINOv2 features between the faces of pictures and photos."""
    return _cosines(sets, "dinov2_face")


def _cosines(sets: Sets, feature: str) -> Estimate:
    made, pictures = sets.faces(feature, sets.made)
    known, photos = sets.faces(feature, sets.photos, "photos")
    cosine, other = arithmetic.unit(made) @ arithmetic.unit(known).T, _different(pictures, photos)
    if not other.any(1).all():
        raise NotMeasured("there is no other photo to compare a photo with.")
    return mean_of(np.where(other, cosine, 0).sum(1) / other.sum(1), sets.made)


def identity_arcface(sets: Sets) -> Estimate:
    """Measure facial similarity by ArcFace: the cosine of each face to the mean of the photos' faces."""
    return _identity(sets, "arcface", sets.photos, "photos")


def identity_dlib(sets: Sets) -> Estimate:
    """Measure facial similarity by dlib: 1 minus each face's distance to the mean of the photos' faces."""
    return _identity(sets, "dlib", sets.photos, "photos")


def held_out_arcface(sets: Sets) -> Estimate:
    """Measure facial similarity by ArcFace to the mean of photos that the LoRA was not trained on."""
    return _identity(sets, "arcface", sets.held_out, "held-out photos")


def held_out_dlib(sets: Sets) -> Estimate:
    """Measure facial similarity by dlib to the mean of photos that the LoRA was not trained on."""
    return _identity(sets, "dlib", sets.held_out, "held-out photos")


def _identity(sets: Sets, recogniser: str, reference: Sequence[Picture], what: str) -> Estimate:
    """Return the mean similarity to the centre of any set of photos; a photo is left out of the centre for itself."""
    if not reference:
        raise NotMeasured(f"there are no {what}.")
    known, photos = sets.faces(recogniser, reference, what)
    made, pictures = sets.faces(recogniser, sets.made)
    other = _different(pictures, photos)
    if not other.any(1).all():
        raise NotMeasured("there is no other photo to compare a photo with.")
    model = recognition.load_recogniser(recogniser)
    centres = [known[others].mean(0) for others in other]
    similar = [float(model.similarity(row, centre)[0]) for row, centre in zip(made, centres, strict=True)]
    return mean_of(np.array(similar), sets.made)


def _different(pictures: Sequence[Picture], photos: Sequence[Picture]) -> np.ndarray:
    """Return which pictures and photos are not the same picture, bool, shape (N, M)."""
    return np.array([[picture.sha256 != photo.sha256 for photo in photos] for picture in pictures])


# --- diversity --------------------------------------------------------------------------------------------------------


def lpips_diversity(sets: Sets) -> Estimate:
    """Measure the mean LPIPS between two pictures, relative to that between two of the person's photos."""
    return _diversity(sets, "lpips", lambda rows: arithmetic.squared_distances(rows, rows))


def dinov2_diversity(sets: Sets) -> Estimate:
    """Measure the mean cosine distance of DINOv2 features between two pictures, relative to that of the photos."""
    return _diversity(sets, "dinov2", lambda rows: 1 - arithmetic.unit(rows) @ arithmetic.unit(rows).T)


def _diversity(sets: Sets, feature: str, distances: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    sets.at_least(4, 4)
    sets.apart()
    made, own = (distances(sets.features.of(feature, of)) for of in (sets.made, sets.photos))
    if arithmetic.mean_of_pairs(own) <= 0:
        raise NotMeasured("the photos are all the same picture.")

    def relative(a: np.ndarray, b: np.ndarray) -> float:
        return arithmetic.mean_of_pairs(made[np.ix_(a, a)]) / arithmetic.mean_of_pairs(own[np.ix_(b, b)])

    note = f"the mean is {arithmetic.mean_of_pairs(made):.3g}, of the photos {arithmetic.mean_of_pairs(own):.3g}"
    return replace(_of_sets(relative, len(made), len(own)), note=note)


# --- copying ----------------------------------------------------------------------------------------------------------


def nearest_photo(sets: Sets) -> Estimate:
    """Measure how similar each face's fine structure is to the nearest training photo's, on average."""
    crops, made = sets.faces("structure", sets.made)
    known, photos = sets.faces("structure", sets.photos, "photos")
    other = _different(made, photos)
    if not other.any(1).all():
        raise NotMeasured("there is no other photo to compare a photo with.")
    key = f"nearest {_key(photos)}"
    return mean_of(sets.features.each(key, made, lambda one: _nearest(crops[one], known[other[one]])), sets.made)


def copying(sets: Sets) -> Estimate:
    """Measure by how much faces are nearer to the nearest training photo than to the nearest held-out photo.

    The more photos, the nearer the nearest: so training photos are taken in groups as large as the held-out set.
    """
    sets.apart()
    if not sets.held_out:
        raise NotMeasured("there are no held-out photos.")
    unseen, held_out = sets.faces("structure", sets.held_out, "held-out photos")
    crops, made = sets.faces("structure", sets.made)
    known, photos = sets.faces("structure", sets.photos, "photos")
    size = min(len(held_out), len(known))
    order = np.random.default_rng(0).permutation(len(known))
    groups = [known[order[start : start + size]] for start in range(0, len(known) - size + 1, size)][:GROUPS]

    def excess(one: int) -> float:
        near = [_nearest(crops[one], group) for group in groups]
        return float(np.mean(near)) - _nearest(crops[one], unseen[:size])

    key = f"copying {_key(photos)} {_key(held_out)}"
    return mean_of(sets.features.each(key, made, excess), sets.made)


def _key(photos: Sequence[Picture]) -> str:
    """Return a hash of a set of photos."""
    return hashlib.sha256(" ".join(photo.sha256 for photo in photos).encode()).hexdigest()


def _nearest(crop: np.ndarray, photos: np.ndarray) -> float:
    side = (copies.SIDE_PX, copies.SIDE_PX)
    return copies.copy_likeness(crop.reshape(side), [photo.reshape(side) for photo in photos])


# --- the table --------------------------------------------------------------------------------------------------------


def mean_of(values: np.ndarray, of: Sequence[Picture] = ()) -> Estimate:
    """Return the mean of one value a picture; pictures of the set that have none are counted in the note."""
    low, high = bootstrap.mean_interval(values)
    without = len(of) - len(values) if len(of) else 0
    note = f"{without} of {len(of)} pictures could not be measured" if without else ""
    return Estimate(float(np.mean(values)), low, high, len(values), note)


TOO_FEW = (
    "Do not compare it between sets of different size, nor trust it for 50 pictures: its bias at that number is larger "
    "than most differences. KID has no such bias."
)
ONE_CLASS = (
    "It rewards pictures that Inception calls by many different names; headshots are all of one kind, and neither the "
    "person nor a fault of a face is seen. For 50 pictures it is also too low."
)
METRICS: tuple[Metric, ...] = (
    Metric("clip_score", "CLIPScore", "text alignment", "2.5 × cosine", 0, 2.5, "higher", clip_score,
           "Hessel et al. 2021, arXiv:2104.08718", ("clip",)),
    Metric("clip_t", "CLIP-T", "text alignment", "cosine", -1, 1, "higher", clip_t,
           "Ruiz et al. 2023 (DreamBooth), arXiv:2208.12242", ("clip",)),
    Metric("adherence", "prompt adherence", "text alignment", "share", 0, 1, "higher", adherence,
           "headshotkit, scoring/adherence.py"),
    Metric("fid", "FID", "image quality", "squared distance", 0, None, "lower", fid,
           "Heusel et al. 2017, arXiv:1706.08500", ("inception",), TOO_FEW),
    Metric("kid", "KID", "image quality", "squared distance", None, None, "lower", kid,
           "Bińkowski et al. 2018, arXiv:1801.01401", ("inception",)),
    Metric("inception_score", "Inception score", "image quality", "exp(nats)", 1, 1008, "higher", inception_score,
           "Salimans et al. 2016, arXiv:1606.03498", ("inception", "inception_classes"), ONE_CLASS),
    Metric("cmmd", "CMMD", "image quality", "1000 × squared distance", None, None, "lower", cmmd,
           "Jayasumana et al. 2024, arXiv:2401.09603", ("clip_336",)),
    Metric("fd_dinov2", "FD-DINOv2", "image quality", "squared distance", 0, None, "lower", fd_dinov2,
           "Stein et al. 2023, arXiv:2306.04675", ("dinov2",), TOO_FEW),
    Metric("face_quality", "face quality", "image quality", "share", 0, 1, "higher", face_quality,
           "headshotkit, photos/assess.py"),
    Metric("sharpness", "sharpness of the face", "image quality", "grey levels", 0, None, "higher", sharpness,
           "headshotkit, faces/measures.py"),
    Metric("clip_i", "CLIP-I", "image alignment", "cosine", -1, 1, "higher", clip_i,
           "Ruiz et al. 2023 (DreamBooth), arXiv:2208.12242", ("clip",)),
    Metric("dinov2", "DINOv2", "image alignment", "cosine", -1, 1, "higher", dinov2,
           "Oquab et al. 2023, arXiv:2304.07193", ("dinov2",)),
    Metric("dinov2_face", "DINOv2, face", "image alignment", "cosine", -1, 1, "higher", dinov2_face,
           "Oquab et al. 2023, arXiv:2304.07193", ("dinov2",)),
    Metric("identity_arcface", "identity, ArcFace", "image alignment", "cosine", -1, 1, "higher", identity_arcface,
           "Deng et al. 2019, arXiv:1801.07698"),
    Metric("identity_dlib", "identity, dlib", "image alignment", "1 - distance", None, 1, "higher", identity_dlib,
           "dlib_face_recognition_resnet_model_v1"),
    Metric("held_out_arcface", "identity to held-out photos, ArcFace", "image alignment", "cosine", -1, 1, "higher",
           held_out_arcface, "Deng et al. 2019, arXiv:1801.07698"),
    Metric("held_out_dlib", "identity to held-out photos, dlib", "image alignment", "1 - distance", None, 1, "higher",
           held_out_dlib, "dlib_face_recognition_resnet_model_v1"),
    Metric("lpips_diversity", "diversity, LPIPS", "diversity", "times the photos'", 0, None, "higher", lpips_diversity,
           "Zhang et al. 2018, arXiv:1801.03924", ("lpips",)),
    Metric("dinov2_diversity", "diversity, DINOv2", "diversity", "times the photos'", 0, None, "higher",
           dinov2_diversity, "Oquab et al. 2023, arXiv:2304.07193", ("dinov2",)),
    Metric("nearest_photo", "nearest training photo", "copying", "correlation", -1, 1, "lower", nearest_photo,
           "headshotkit, faces/copies.py"),
    Metric("copying", "nearer to training than to held-out photos", "copying", "correlation", -2, 2, "lower", copying,
           "after Meehan et al. 2020, arXiv:2004.05675"),
)  # fmt: skip
"""All metrics, in the order of the report."""


def measure(sets: dict[str, Sets]) -> dict[str, dict]:
    """Return every metric of every set, as in metrics.json: metric's name -> its facts, and `sets`: set -> its values.

    A set's values are value, low, high, n and note, or what is missing and what to do.
    """
    found = {metric.name: facts_of(metric) for metric in METRICS}
    for metric in sorted(METRICS, key=lambda one: one.weights):  # one net after another, each loaded once
        for name, one in sets.items():
            found[metric.name]["sets"][name] = values_of(metric, one)
    for one in sets.values():
        one.features.forget_net()
    return found


def facts_of(metric: Metric) -> dict:
    """Return what is said of a metric in metrics.json, before it is measured."""
    return {
        "title": metric.title, "group": metric.group, "unit": metric.unit, "better": metric.better,
        "range": [metric.least, metric.most], "source": metric.source, "caution": metric.caution, "sets": {},
    }  # fmt: skip


def values_of(metric: Metric, sets: Sets) -> dict:
    """Return a metric's values on a set, as in metrics.json; never an error because something is missing."""
    try:
        found = metric.measure(sets)
    except NOT_HERE as error:
        return {"missing": error.happened, "next_step": error.next_step}
    interval = [None if bound is None else _number(np.clip(bound, metric.least, metric.most))
                for bound in (found.low, found.high)]  # fmt: skip
    return {"value": _number(found.value), "low": interval[0], "high": interval[1], "n": found.n, "note": found.note}


def in_words(values: dict) -> str:
    """Return a metric's values on a set as a table shows them.

    >>> in_words({"value": 0.1234567, "low": 0.1, "high": 0.15, "n": 50, "note": ""})
    '0.123 [0.1, 0.15]'
    >>> in_words({"missing": "there are no held-out photos.", "next_step": ""})
    'not measured'
    """
    if "value" not in values:
        return "not measured"
    low, high = values["low"], values["high"]
    return f"{values['value']:.3g}" + ("" if low is None else f" [{low:.3g}, {high:.3g}]")


def gaps_in(measured: dict) -> list[str]:
    """Return what is missing in metrics.json's `measured`, each once: the metrics that need it, and how to get it."""
    gaps: dict[str, list[str]] = {}
    for metric in measured.values():
        lacking = {f"{values['missing']} {values['next_step']}".strip() for values in metric["sets"].values()
                   if values.get("next_step")}  # fmt: skip
        for words in lacking:
            gaps.setdefault(words, []).append(metric["title"])
    return [f"{', '.join(titles)}: {words}" for words, titles in gaps.items()]


def _number(value: float) -> float:
    """Return a number with six significant digits."""
    return float(f"{value:.6g}")
