"""What a file says of its picture: EXIF that is broken, code points among other items, marks of generators."""

import io
import json
import struct

import numpy as np
import pytest
from damaged import encoded, png_chunk
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from headshotkit.photos import metadata
from headshotkit.photos.files import open_photo, png_bytes

PICTURE = Image.new("RGB", (16, 16), "teal")


@pytest.fixture
def made_by(tmp_path):
    def write_and_ask(data: bytes) -> str | None:
        (tmp_path / "photo").write_bytes(data)
        return open_photo(tmp_path / "photo").made_by

    return write_and_ask


def png_with(texts: dict[str, str], compressed: bool = False) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text, zip=compressed)
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def comment(words: str) -> bytes:
    """An EXIF block with a user comment, as A1111 writes it into a JPEG."""
    text = b"UNICODE\0" + words.encode("utf-16-be")
    first = struct.pack(">HHHII", 1, 0x8769, 4, 1, 26) + bytes(4)
    own = struct.pack(">HHHII", 1, 0x9286, 7, len(text), 44) + bytes(4)
    return b"Exif\0\0MM\0*\0\0\0\x08" + first + own + text


A1111 = "a man in a suit\nNegative prompt: ugly\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1"
COMFY = {"prompt": json.dumps({"3": {"class_type": "KSampler"}}), "workflow": json.dumps({"nodes": [], "links": []})}
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description Iptc4xmpExt:DigitalSourceType='
    b'"http://cv.iptc.org/newscodes/digitalsourcetype/%s"/></x:xmpmeta>'
)
GENERATED, RETOUCHED = XMP % b"trainedAlgorithmicMedia", XMP % b"compositeWithTrainedAlgorithmicMedia"
MARKED = {
    "ours": png_bytes(PICTURE, Software=metadata.ORIGIN, headshotkit="{}"),
    "ours, its text alone": png_bytes(PICTURE, Software=metadata.ORIGIN),
    "a1111": png_with({"parameters": A1111}),
    "a1111, compressed": png_with({"parameters": A1111}, compressed=True),
    "a1111, jpeg": encoded(PICTURE, "JPEG", exif=comment(A1111)),
    "comfyui": png_with({"prompt": COMFY["prompt"]}),
    "comfyui's workflow": png_with({"workflow": COMFY["workflow"]}),
    "invokeai": png_with({"invokeai_metadata": "{}"}),
    "swarmui": png_with({"parameters": '{"sui_image_params": {"prompt": "x"}}'}),
    "novelai": png_with({"Software": "NovelAI", "Source": "Stable Diffusion XL 9CC2F394"}),
    "xmp, jpeg": encoded(PICTURE, "JPEG", xmp=GENERATED),
    "xmp, webp": encoded(PICTURE, "WEBP", xmp=GENERATED),
    "c2pa, jpeg": encoded(PICTURE, "JPEG")[:2] + b"\xff\xeb" + struct.pack(">H", 102)
    + (b"JP\0\x01\0\0\0\x01jumb" + b"digitalsourcetype/trainedAlgorithmicMedia").ljust(100, b"\0")
    + encoded(PICTURE, "JPEG")[2:],
    "c2pa, png": encoded(PICTURE, "PNG")[:33] + png_chunk(b"caBX", b"jumb" + GENERATED) + encoded(PICTURE, "PNG")[33:],
}  # fmt: skip
PLAIN = {
    "plain png": encoded(PICTURE, "PNG"),
    "crop of ours": png_bytes(PICTURE),
    "camera's software": png_with({"Software": "Adobe Lightroom 13.2", "Description": "about stable diffusion"}),
    "other parameters": png_with({"parameters": "f/2.8", "prompt": "who is this?", "workflow": "scan"}),
    "retouched": encoded(PICTURE, "JPEG", xmp=RETOUCHED),
    "plain jpeg with a comment": encoded(PICTURE, "JPEG", exif=comment("Steps of the town hall")),
}


@pytest.mark.parametrize("name", MARKED)
def test_what_a_generator_marked_is_told(made_by, name):
    assert made_by(MARKED[name])


@pytest.mark.parametrize("name", PLAIN)
def test_what_it_did_not_is_a_photo(made_by, name):
    assert made_by(PLAIN[name]) is None


def test_a_mark_across_two_blocks_is_found():
    for at in (2**20 - 5, 2**20, 3):
        file = io.BytesIO(bytes(at) + metadata.GENERATED_SOURCE + bytes(9))
        file.seek(7)
        assert metadata._holds(file, metadata.GENERATED_SOURCE) and file.tell() == 7


def test_any_bytes_end_in_tags():
    """A property: EXIF and boxes of any bytes say something or nothing, and raise nothing."""
    rng, exif = np.random.default_rng(2), bytearray(comment(A1111))
    boxes = bytearray(encoded(PICTURE, "AVIF", speed=10)[:600])
    for valid, read in ((exif, metadata.read_exif), (boxes, metadata.nclx_of)):
        for _ in range(300):
            soup = bytearray(valid[: rng.integers(0, len(valid))])
            for place in rng.integers(0, max(1, len(soup)), 6):
                if soup:
                    soup[min(place, len(soup) - 1)] = rng.integers(0, 256)
            read(bytes(soup))


def test_a_directory_that_points_at_itself_ends():
    loop = b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + struct.pack("<2H2I", 0x8769, 4, 1, 8) * 3 + bytes(4)
    assert metadata.read_exif(loop) == {}


def test_the_main_pictures_code_points_count_and_not_a_gain_maps():
    def box(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", 8 + len(body)) + kind + body

    def colour(primaries: int) -> bytes:
        return box(b"colr", b"nclx" + struct.pack(">3HB", primaries, 13, 6, 128))

    for order in ((1, 2), (2, 1)):
        properties = box(b"ipco", colour(1) + colour(12))
        links = struct.pack(">4xI", 2) + b"".join(
            struct.pack(">HBB", item, 1, 0x80 | n) for n, item in enumerate(order, 1)
        )
        meta = box(
            b"meta", bytes(4) + box(b"pitm", bytes(4) + b"\0\x02") + box(b"iprp", properties + box(b"ipma", links))
        )
        assert metadata.nclx_of(box(b"ftyp", b"avif") + meta) == ((12, 13) if order == (1, 2) else (1, 13))
