"""Reasons against a headshot, and against a restored face, in plain words, by their codes."""

WORDS = {
    "no_face": "no face was found", "many_faces": "more than one face", "small_face": "the face is small",
    "unclear_face": "no clear face", "soft_face": "the face is not sharp", "eyes_closed": "the eyes are closed",
    "artefact": "eyes, mouth, ears or glasses are misdrawn, or hair lies across the face",
    "other_person": "not similar enough", "copy_of_photo": "almost a copy of one of your photos",
    "near_twin": "almost the same picture as another",
}  # fmt: skip
"""Code of the identity gate -> its reason in plain words."""
HARM = {
    "identity": "less similar to you", "second_recogniser": "less similar to you for the second recogniser",
    "threshold": "below the identity threshold", "eyes": "eyes of another colour", "skin": "skin of another tone",
    "texture": "smoothed skin", "distorted": "a distorted face", "copy": "almost a copy of one of your photos",
    "artefact": "a new artefact in the face",
}  # fmt: skip
"""Code of `restoration.harm` -> what restoring harmed, in plain words."""
