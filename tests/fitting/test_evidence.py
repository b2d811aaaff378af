"""What networks say, before it is believed."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.known_head import KnownHead, Oracle

from expportrait_cli.fitting.clip import Clip, static_mask
from expportrait_cli.fitting.evidence import Estimates, checked_axes
from expportrait_cli.fitting.static import static_patch
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import dense

pytest_plugins = ("support.astronaut",)


class Mirrored(Oracle):
    """A network whose x axis points to the left."""

    def __call__(self, crop):
        found = super().__call__(crop)
        return replace(found, normals=found.normals * np.float32([-1, 1, 1]))


@pytest.fixture
def known(head, monkeypatch):
    # The oracle draws its frames itself.
    monkeypatch.setattr(Clip, "crops", lambda self, rows: (np.zeros((2, 2, 3), np.uint8) for _ in rows))
    flat = np.zeros((1, len(head.parts)))
    return KnownHead.make(head, flat, np.zeros((len(head.parts), 3)), seed=0, source=Path())


def test_normals_with_our_axes_are_taken(known):
    network = Oracle(known, noise_deg=6.0)
    assert checked_axes(network, known.clip, 0) is network


def test_normals_with_other_axes_are_turned_into_ours(known, caplog):
    network = checked_axes(Mirrored(known), known.clip, 0)
    assert "other axes" in caplog.text and (network.name, network.licence) == ("oracle", "none")
    network.network._row = known_row = 0
    expected = Oracle(known)(np.zeros((2, 2, 3), np.uint8))
    found = network(np.full((2, 2, 3), known_row, np.uint8))
    assert np.abs(found.normals - expected.normals).max() < 1e-6
    assert np.array_equal(found.depth, expected.depth, equal_nan=True)


def terms(known, share: float):
    """What exact estimates say of the bald head, wherever the static offset may move it."""
    bald = replace(known.clip.fit, static_offset=np.zeros_like(known.clip.fit.static_offset))
    clip = Clip.of(known.clip.tracking, bald, known.head)
    verts, posed = clip.pose(np.array([0]), static_patch(known.head))
    seen = Estimates(clip, posed.patch, Oracle(known), static_mask(known.head, 0.0) > 0, share)
    return seen.terms([np.zeros((2, 2, 3), np.uint8)], verts), posed


@pytest.fixture
def hairy(known, head):
    """The known head with hair of 3 cm."""
    shape = dense(head, head.template)
    grown = 0.03 * vertex_normals(shape, head.dense_faces).numpy() * (shape[:, 1:2] > 0.06).numpy()
    hair = (grown * static_mask(head, 0.0)[:, None]).astype(np.float32)
    return replace(known, clip=Clip.of(known.clip.tracking, replace(known.clip.fit, static_offset=hair), head))


def test_a_share_weighs_normals_and_depth_alike(hairy):
    (full, posed), (part, _) = terms(hairy, 1.0), terms(hairy, 0.3)
    shown = posed.moved(torch.zeros(1, len(posed.patch.vertices), 3))
    assert len(full) == len(part) == 2
    for one, other in zip(full, part, strict=True):
        assert float(one(shown)) > 0.05
        assert float(other(shown)) == pytest.approx(0.3 * float(one(shown)), rel=1e-5)


def test_hair_does_not_bend_the_alignment_of_depth(hairy):
    """It is fitted to, but scale and shift come from face, ears and neck."""
    (_, depth), _ = terms(hairy, 1.0)
    found, true = depth.target_mm[0, 0].numpy(), 1e3 * hairy.buffers(0).depth[0].numpy()
    person = cv2.erode((true > 0).astype(np.uint8), np.ones((5, 5))) > 0
    assert np.abs(found - true)[person].max() < 1.0
