"""Convert pixels to sRGB by the numbers in a file, whatever its profile's name.

Colour data without an ICC profile (a PNG's gAMA and cHRM, CICP code points, EXIF's Adobe RGB) are converted to a
profile too, so that littleCMS does all of the arithmetic.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20
PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
SRGB = ImageCms.createProfile("sRGB")
SAME_LEVELS = 1
"""Largest difference, grey levels, from sRGB on a grid of colours for a profile that counts as sRGB."""

D65, DCI_WHITE, D50_XYZ = (0.3127, 0.3290), (0.314, 0.351), (0.9642, 1.0, 0.8249)
Chromaticities = tuple[tuple[float, float], ...]
"""CIE x, y of red, green, blue and white."""
BT709: Chromaticities = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65)
ADOBE_RGB: Chromaticities = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), D65)
PRIMARIES: dict[int, Chromaticities] = {
    1: BT709,
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), D65),
    6: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    7: ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), D65),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), DCI_WHITE),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
}
"""Code points of ITU-T H.273, table 2."""
WHITE_NITS, HLG_PEAK_NITS = 203.0, 1000.0
"""Brightness of white in HDR pictures (ITU-R BT.2408). It becomes sRGB's white, and what is brighter is clipped."""
USUAL_GAMMA, GAMMA_SLACK = 1 / 2.2, 0.05
"""Largest difference from 1/2.2 for a PNG's gAMA that counts as sRGB's own curve, as in libpng."""


def srgb_curve(coded: np.ndarray) -> np.ndarray:
    """Return linear light in [0, 1] of sRGB values in [0, 1]."""
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _pq(coded: np.ndarray) -> np.ndarray:
    """Return light relative to white of SMPTE ST 2084 values in [0, 1]."""
    power = coded ** (1 / 78.84375)
    nits = 10000 * (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125)
    return nits / WHITE_NITS


def _hlg(coded: np.ndarray) -> np.ndarray:
    """Return light relative to white of ARIB STD-B67 values in [0, 1], each channel on its own."""
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - 0.55991073) / 0.17883277) + 0.28466892) / 12)
    return scene**1.2 * HLG_PEAK_NITS / WHITE_NITS


TRANSFERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    **dict.fromkeys((1, 6, 13, 14, 15), srgb_curve), 4: lambda x: x**2.2, 5: lambda x: x**2.8, 8: lambda x: x,
    16: _pq, 18: _hlg,
}  # fmt: skip
"""Code points of ITU-T H.273, table 3. Viewers show video's curve, BT.709's, as sRGB's."""


def profile_from_cicp(primaries: int, transfer: int) -> bytes | None:
    """Return the ICC profile of two CICP code points; None for sRGB and for unspecified ones.

    Source: ITU-T H.273.

    >>> profile_from_cicp(1, 13), profile_from_cicp(2, 2), len(profile_from_cicp(12, 13)) > 1000
    (None, None, True)
    """
    primaries, transfer = (1 if primaries == 2 else primaries), (13 if transfer == 2 else transfer)
    if primaries not in PRIMARIES or transfer not in TRANSFERS:
        return None
    if primaries == 1 and TRANSFERS[transfer] is srgb_curve:
        return None
    return make_profile(f"CICP {primaries}/{transfer}", PRIMARIES[primaries], TRANSFERS[transfer])


def profile_from_png(gamma: float | None, chromaticity: tuple[float, ...] | None) -> bytes | None:
    """Return the ICC profile of a PNG's gAMA and cHRM; None if they are missing or invalid.

    Args:
        gamma: exponent that converts light to values, such as 0.45455; None: unknown.
        chromaticity: x, y of white, red, green and blue; None: sRGB's.
    """
    usual = gamma is None or abs(gamma / USUAL_GAMMA - 1) <= GAMMA_SLACK
    if (usual and chromaticity is None) or (gamma is not None and not 0.1 <= gamma <= 5):
        return None
    pairs = list(zip(chromaticity[::2], chromaticity[1::2], strict=True)) if chromaticity else []
    points = (*pairs[1:], pairs[0]) if pairs else BT709
    name = f"PNG gAMA {gamma or USUAL_GAMMA:.5f}" + (", cHRM" if pairs else "")
    return make_profile(name, points, srgb_curve if usual else lambda x: x ** (1 / gamma))


def adobe_rgb() -> bytes:
    """Return Adobe RGB (1998) as an ICC profile; cameras name it in EXIF instead of embedding it."""
    return make_profile("Adobe RGB (1998)", ADOBE_RGB, lambda x: x ** (563 / 256))


def make_profile(name: str, points: Chromaticities, curve: Callable[[np.ndarray], np.ndarray]) -> bytes | None:
    """Return an ICC profile of primaries, white and curve; None if they are not valid colours.

    Source: ICC.1:2001-04, three-component matrix-based display profiles; Bradford adaptation to D50.
    """
    columns = np.array([[x / y, 1, (1 - x - y) / y] if y > 0 else [np.nan] * 3 for x, y in points]).T
    matrix, white = columns[:, :3], columns[:, 3]
    if not np.isfinite(columns).all() or abs(np.linalg.det(matrix)) < 1e-3:
        return None
    cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    adapted = np.linalg.inv(cones) @ np.diag(cones @ D50_XYZ / (cones @ white)) @ cones
    to_xyz = adapted @ matrix @ np.diag(np.linalg.solve(matrix, white))
    levels = np.clip(curve(np.linspace(0, 1, 4096)), 0, 1)
    table = b"curv" + bytes(4) + struct.pack(">I", 4096) + (levels * 65535).round().astype(">u2").tobytes()
    text = name.encode("ascii", "replace") + b"\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": _xyz(D50_XYZ),
        **{key: _xyz(column) for key, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), to_xyz.T, strict=True)},
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), table),
    }
    directory, body, places = struct.pack(">I", len(tags)), b"", {}
    for key, data in tags.items():
        if data not in places:
            places[data] = 132 + 12 * len(tags) + len(body)
            body += data + bytes(-len(data) % 4)
        directory += key + struct.pack(">2I", places[data], len(data))
    head = bytes(8) + b"\x02\x40\0\0mntrRGB XYZ " + struct.pack(">6H", 2000, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head = (head + _xyz(D50_XYZ)[8:]).ljust(128, b"\0")
    return struct.pack(">I", 128 + len(directory) + len(body)) + head[4:] + directory + body


def _xyz(values) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(v) * 65536) for v in values))


def to_srgb(picture: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """Return a picture of L, RGB or CMYK as RGB in sRGB, and the name of its profile if that was used.

    A profile that equals sRGB on a grid of colours leaves the pixels unchanged. A profile that is broken, or for
    another kind of picture, is ignored.

    Source: ICC.1:2022, by littleCMS, perceptual intent.
    """
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return picture.convert("RGB"), None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name = ImageCms.getProfileDescription(source).strip()[:80]
        mode = PROFILE_MODES.get(source.profile.xcolor_space)
        if mode == picture.mode or (mode, picture.mode) == ("RGB", "L"):
            turn = ImageCms.buildTransform(source, SRGB, mode, "RGB")
            if mode != "CMYK":
                grid = _grid_of(mode)
                change = np.asarray(ImageCms.applyTransform(grid, turn), int) - np.asarray(grid.convert("RGB"), int)
                if np.abs(change).max() <= SAME_LEVELS:
                    return picture.convert("RGB"), name
            return ImageCms.applyTransform(picture.convert(mode), turn), name
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return picture.convert("RGB"), None


def _grid_of(mode: str) -> Image.Image:
    """Return colours from a mode's whole range: all greys, or nine steps per channel."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(27, 27, 3))
