import numpy as np
from PIL import Image

from headshotkit.config import GenerateConfig
from headshotkit.scoring.near_duplicates import Album


def picture(motif: int, noise: int) -> Image.Image:
    coarse = np.kron(np.random.default_rng(motif).normal(128, 40, (8, 8)), np.ones((16, 16)))
    fine = np.random.default_rng(noise).normal(0, 12, (128, 128))
    return Image.fromarray(np.clip(coarse + fine, 0, 255).astype(np.uint8)).convert("RGB")


def test_a_near_duplicate_is_found_through_noise_and_other_motifs_are_none():
    album, mark = Album(), GenerateConfig().max_near_duplicate
    for motif in range(5):
        assert album.nearest(picture(motif, 10 + motif))[0] < mark
        album.add(f"{motif}.png", picture(motif, 10 + motif))
    for motif in range(5):
        alike, which = album.nearest(picture(motif, 20 + motif))
        assert alike > mark and which == f"{motif}.png"


def test_brightness_and_colour_make_no_other_picture():
    album, one = Album(), picture(1, 1)
    album.add("one.png", one)
    brighter = Image.fromarray((np.asarray(one) * 0.7 + 60).astype(np.uint8))
    assert album.nearest(brighter)[0] > 0.99 and album.nearest(one.convert("L"))[0] > 0.99


def test_an_empty_album_has_no_near_duplicate():
    assert Album().nearest(picture(0, 0)) == (-1.0, "")
