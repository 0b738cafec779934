"""Limits of the photo check."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from headshotkit.config.base import Config
from headshotkit.core.errors import BadConfig


class CheckConfig(Config):
    """Limits of the photo check."""

    min_photos: Annotated[int, Field(ge=1, le=1000)] = 10
    """Minimum number of kept photos that training starts with; with fewer than 10 a LoRA overfits the photos."""
    max_photos: Annotated[int, Field(ge=1, le=1000)] = 20
    """Maximum number of photos to train on; if more are good, the best and most varied are selected."""
    min_faces: Annotated[int, Field(ge=1, le=100)] = 1
    """Minimum number of faces in a photo."""
    max_faces: Annotated[int, Field(ge=1, le=100)] = 5
    """Maximum number of faces in a photo, with passers-by and posters; in a crowd the person can't be identified
    reliably."""
    max_other_face: Annotated[float, Field(ge=0, le=1)] = 0.35
    """Maximum height of a second face relative to the main one; smaller ones count as passers-by."""
    min_face_px: Annotated[int, Field(ge=1, le=4096)] = 90
    """Minimum width of the main face, px; ArcFace reads 112 px, so it is unreliable below about 90."""
    min_face_inside: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Minimum fraction of the face's square (112 px ArcFace template) that lies inside the picture."""
    min_visible: Annotated[float, Field(ge=0, le=255)] = 5.0
    """Minimum visible detail of the face, grey levels: the larger of its contrast and 1/12 of its brightness."""
    max_stops_below: Annotated[float, Field(ge=0, le=20)] = 5.0
    """Maximum number of stops of exposure by which a face may be darker than in most of the person's photos."""
    max_clipped: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Maximum fraction of the face's pixels that are pure white (luma above 250)."""
    max_roll_deg: Annotated[float, Field(ge=0, le=180)] = 45.0
    """Maximum lean of the head to a side, degrees; beyond it the landmarks fail."""
    min_contrast: Annotated[float, Field(ge=0, le=255)] = 5.0
    """Minimum standard deviation of the face's luma, grey levels."""
    max_noise: Annotated[float, Field(ge=0, le=255)] = 5.0
    """Maximum noise on the face, grey levels, measured after the face is aligned to 128 px."""
    min_sharpness: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """Minimum sharpness of the face, measured after it is aligned to 128 px: the mean absolute Laplacian, normalised to
    a contrast of 50 grey levels."""
    min_steadiness: Annotated[float, Field(ge=0, le=1000)] = 5.5
    """Minimum sharpness along the blurriest direction; camera shake blurs only one."""
    max_blockiness: Annotated[float, Field(ge=0, le=1000)] = 3.0
    """Maximum ratio of the brightness steps between a JPEG's blocks to all other steps."""
    min_hue_spread: Annotated[float, Field(ge=0, le=100)] = 1.8
    """Minimum variation of hue among equally bright pixels of the face, percent; greyscale has 0, sepia less than
    1.2."""
    max_bars: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Maximum part of the height or width that bars along the edges take; larger bars would show in the training
    picture."""
    min_eye_contrast: Annotated[float, Field(ge=0, le=255)] = 0.35
    """Minimum brightness of the eye band relative to the cheeks; under a dark bar or dark glasses it is lower."""
    max_eye_contrast: Annotated[float, Field(ge=0, le=255)] = 1.3
    """Maximum brightness of the eye band relative to the cheeks; under a light bar it is higher."""
    min_skin_share: Annotated[float, Field(ge=0, le=1)] = 0.55
    """Minimum fraction of the face's oval that has the colour of its cheeks and forehead."""
    min_nose_free: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Minimum share of skin-coloured pixels on the nose's tip; dark pixels count double against it."""
    max_disagreement: Annotated[float, Field(ge=0, le=10)] = 0.18
    """Maximum disagreement of two landmark models: how far apart they place the same eye, nose or mouth corner, as a
    fraction of the distance between the eyes; about 0.05 on a clear face."""
    max_yaw_deg: Annotated[float, Field(ge=0, le=180)] = 50.0
    """Maximum turn of the head to a side, degrees."""
    max_pitch_deg: Annotated[float, Field(ge=0, le=180)] = 35.0
    """Maximum angle by which the head is raised or lowered, degrees; the limit is wide because the angle is estimated
    with an average head, not the person's."""
    min_eye_openness: Annotated[float, Field(ge=0, le=10)] = 0.12
    """Minimum height of the eye opening relative to its width; about 0.3 is open, below 0.12 closed."""
    max_mouth_open: Annotated[float, Field(ge=0, le=10)] = 0.45
    """Maximum gap between the lips relative to the mouth's width."""
    max_wink: Annotated[float, Field(ge=0, le=10)] = 0.2
    """Maximum difference of the two eyes' openness."""
    min_recognisable: Annotated[float, Field(ge=0, le=1000)] = 16.0
    """Minimum norm of the unnormalised ArcFace embedding; whatever makes the face hard to see, such as blur or a
    covered part, lowers it (arXiv:2103.06627). Used only with the recogniser that the limit was measured on."""
    min_same_person: Annotated[float, Field(ge=-1, le=1)] = 0.35
    """Minimum cosine similarity of a photo to the mean of all photos of the person, this one included; 99 % of
    strangers stay below 0.33."""
    max_hash_distance: Annotated[int, Field(ge=0, le=64)] = 6
    """Two photos whose 64-bit difference hashes differ in at most this many bits are candidates for duplicates."""
    min_duplicate_identity: Annotated[float, Field(ge=-1, le=2)] = 0.9
    """Two candidates (see max_hash_distance) are duplicates if their faces have at least this cosine similarity."""
    min_duplicate_structure: Annotated[float, Field(ge=-1, le=2)] = 0.96
    """Photos whose faces share at least this fraction of fine structure are duplicates, even after cropping, framing,
    mirroring, shrinking, squeezing, recolouring or photographing a print. A value above 1 turns this off. Different
    photos of the same person stay below 0.943."""

    @model_validator(mode="after")
    def _relations(self) -> Self:
        """Refuse settings that contradict each other."""
        if self.min_photos > self.max_photos:
            raise BadConfig(
                f"min_photos {self.min_photos} is above max_photos {self.max_photos}.",
                "Of more good photos than max_photos only the best are chosen, so there would never be enough.",
                "Lower CheckConfig.min_photos or raise CheckConfig.max_photos.",
            )
        if self.min_faces > self.max_faces:
            raise BadConfig(
                f"min_faces is {self.min_faces}, max_faces {self.max_faces}.",
                "No photo can satisfy both.",
                "Set CheckConfig.min_faces to 1.",
            )
        return self
