"""Figures and widgets: sizes stay small, captions come along, a dial redraws, a picture stays without a kernel."""

from base64 import b64decode

import matplotlib.pyplot as plt
import numpy as np
import pytest

from wsss_lib import viz, widgets


def test_a_figure_of_photographs_stays_small():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (300, 400, 3)).astype(np.uint8)
    assert len(viz.png(viz.grid([[noise] * 5] * 3))) < 400_000


def test_figures_are_closed_after_they_were_shown():
    before = len(plt.get_fignums())
    viz.show(viz.grid([[np.zeros((4, 4))]]), "Nothing.")
    assert len(plt.get_fignums()) == before


def test_a_mask_leaves_the_background_as_it_is_and_paints_void_white():
    image = np.full((1, 3, 3), 100, np.uint8)
    painted = viz.overlay_mask(image, np.array([[0, 1, 255]]), opacity=1.0)
    assert painted[0].tolist() == [[100, 100, 100], [128, 0, 0], [255, 255, 255]]


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 4, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_any_image_becomes_height_width_channels(shape, dtype):
    image = viz.as_array(np.ones(shape, dtype))
    assert image.shape == (4, 5, 3) and image.dtype == np.uint8
    assert image.max() == (1 if dtype is np.uint8 else 255)


def test_heat_maps_are_never_jet():
    assert viz.HEAT in ("magma", "viridis", "inferno", "cividis")


def test_a_dial_draws_anew_and_the_first_picture_stays_for_viewers_without_widgets():
    asked = []

    def draw(level, kind):
        asked.append((level, kind))
        return viz.bars({"a": level}, kind)

    explorer = widgets.Explorer(draw, {"level": (0.0, 1.0, 0.1, 0.5), "kind": ["x", "y"]})
    first = explorer.picture.value
    explorer.dials["level"].value = 0.9
    explorer.dials["kind"].value = "y"
    assert asked == [(0.5, "x"), (0.9, "x"), (0.9, "y")]
    assert explorer.picture.value != first
    bundle = explorer._repr_mimebundle_()
    assert b64decode(bundle["image/png"]) == first and "application/vnd.jupyter.widget-view+json" in bundle
