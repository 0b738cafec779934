import numpy as np
import pytest
from PIL import Image

from headshotkit.families.edges import edge_agreement, find_edges


def square(left=20, px=64):
    pixels = np.full((px, px, 3), 30, np.uint8)
    pixels[20:44, left : left + 24] = 220
    return Image.fromarray(pixels)


def test_a_square_has_its_outline():
    lines = np.asarray(find_edges(square()).convert("L")) > 0
    assert 60 <= lines.sum() <= 120 and not lines[26:38, 26:38].any() and not lines[:16].any()


def test_edges_are_found_after_scaling_so_they_stay_thin():
    assert find_edges(square(), (32, 32)).size == (32, 32)
    thin = np.asarray(find_edges(square(), (128, 128)).convert("L")) > 0
    assert thin.mean() < 0.04


@pytest.mark.parametrize(("left", "least", "most"), [(20, 1, 1), (21, 0.95, 1), (26, 0, 0.65)])
def test_agreement_falls_with_the_distance(left, least, most):
    assert least <= edge_agreement(square(left), find_edges(square())) <= most


def test_a_picture_in_another_size_is_brought_to_the_edges():
    assert edge_agreement(square().resize((256, 256)), find_edges(square())) > 0.9


def test_more_edges_than_wanted_count_against_it():
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert edge_agreement(noisy, find_edges(square())) < 0.5
