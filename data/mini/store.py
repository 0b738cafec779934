"""The store of faces on disk: memory-mapped arrays that grow, and where everything else lies.

A store is one folder. Its arrays have one row a face and are raw files, so that a longer run appends to a shorter
one. `state.json` says how many rows of each array are finished; rows past that count are to be made again.
"""

import json
import os
from pathlib import Path

import numpy as np

SHARED = Path(os.environ.get("HEADSHOTKIT_SHARED") or Path(__file__).resolve().parents[3] / "shared")
HOME = Path(os.environ.get("HEADSHOTKIT_MINI", "/var/tmp/headshotkit-mini"))

FACE_PX = 256
MEASURES = 64  # columns kept for measures; faces.NAMES says which are in use
ARRAYS = {  # name: (shape of one row, dtype)
    "w": ((512,), "float32"),  # style vector, truncated
    "pixels": ((FACE_PX, FACE_PX, 3), "uint8"),  # RGB
    "measures": ((MEASURES,), "float32"),  # faces.NAMES, NaN where there is no face
    "embedding": ((512,), "float32"),  # w600k_mbf, L2 norm 1, NaN where there is no face
    "alpha": ((FACE_PX, FACE_PX), "uint8"),  # matte, 255 = person
    # the store of the restorer's pairs (restorer_pairs.py)
    "large": ((704, 704, 3), "uint8"),  # a face from the whole generator
    "clean": ((512, 512, 3), "uint8"),  # what the restorer shall make, composited and cropped
    "drawn": ((256, 256, 3), "uint8"),  # what it is given: the same through the base's image-to-image
    "origin": ((3,), "float32"),  # row of the face in the store of faces, strength and guidance of the image-to-image
    "look": ((512, 512, 3), "uint8"),  # another picture of the same person, laid over the drawing's face
    "points": ((7, 2), "float32"),  # eyes, nose, mouth, irises in px of `clean`; NaN unless exactly one face is found
    "person": ((520,), "float32"),  # what the restorer is told of the person, measured on `clean`
}


class Store:
    """Rows of faces in `folder`; `count[name]` rows of array `name` are finished."""

    def __init__(self, folder: Path = HOME / "faces"):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._state = self.folder / "state.json"
        self.count = {name: 0 for name in ARRAYS}
        self.refresh()

    def refresh(self) -> None:
        """Reads again how many rows other processes have finished."""
        if self._state.exists():
            self.count.update(json.loads(self._state.read_text()))

    def finish(self, name: str, rows: int) -> None:
        """Says that the first `rows` rows of `name` are finished; other arrays' counts are left as they are on disk."""
        self.refresh()
        self.count[name] = rows
        beside = self._state.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(self.count))
        os.replace(beside, self._state)

    def array(self, name: str, rows: int | None = None) -> np.ndarray:
        """Array `name`: read-only with its finished rows, or writable and grown to at least `rows` rows."""
        shape, dtype = ARRAYS[name]
        path = self.folder / f"{name}.raw"
        row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if rows is None:
            return np.memmap(path, dtype, "r", shape=(self.count[name], *shape))
        path.touch()
        rows = max(rows, path.stat().st_size // row_bytes)
        os.truncate(path, rows * row_bytes)
        return np.memmap(path, dtype, "r+", shape=(rows, *shape))
