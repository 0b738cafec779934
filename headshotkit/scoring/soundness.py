"""Judge whether a face is drawn soundly: open eyes, features where two landmark models agree, no artefacts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from headshotkit.config import GenerateConfig
from headshotkit.faces import artefacts, landmarks, recognition


@dataclass(frozen=True)
class Soundness:
    """The measures of a face that decide. eye_openness, disagreement: as in `landmarks` · artefacts: kind -> rating in
    [0, 1], as `artefacts.rate_artefacts`; empty if faces are not rated.
    """

    eye_openness: float
    disagreement: float
    artefacts: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, image: np.ndarray, face: recognition.Face, marks: np.ndarray, config: GenerateConfig) -> Soundness:
        """Measure a face; artefacts are not rated if the settings switch that off.

        Args:
            image: RGB, uint8, shape (H, W, 3). marks: the 106 landmarks, px.
        Raises:
            BadWeights: the artefact detector's weights are damaged.
        """
        return cls(
            landmarks.eye_openness(marks), landmarks.disagreement(face.points, marks),
            artefacts.rate_artefacts(image, face) if config.max_artefact < 1 else {},
        )  # fmt: skip

    def faults(self, config: GenerateConfig, before: Soundness | None = None) -> dict[str, bool]:
        """Return for each fault whether the face has it: unclear_face, eyes_closed, artefact.

        Args:
            before: the face before it was changed; then only what is worse than it was counts.
        """
        old = before or Soundness(np.inf, 0.0)
        return {
            "unclear_face": self.disagreement > max(config.max_disagreement, old.disagreement),
            "eyes_closed": self.eye_openness < min(config.min_eye_openness, old.eye_openness),
            "artefact": any(
                rating > max(config.max_artefact, old.artefacts.get(kind, 0.0))
                for kind, rating in self.artefacts.items()
            ),
        }
