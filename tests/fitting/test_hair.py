"""Ears, hair and the back of a head: what a photo shows of them, and what a prior says."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import trimesh

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.fitting import hair, static
from expportrait_cli.fitting import seen as fit_seen
from expportrait_cli.fitting.clip import dynamic_mask, plain_skin
from expportrait_cli.fitting.seen import pixel_classes
from expportrait_cli.fitting.silhouette import draw_vertices, longer_teeth
from expportrait_cli.geometry.mesh import grown, vertex_normals
from expportrait_cli.head import dense, landmarks
from expportrait_cli.head.fitted import (
    INNER_LIPS,
    LOWER_EDGE_M,
    UPPER_EDGE_M,
    fitted_mesh,
    mouth_offset,
    neutral_mesh,
    relief_of,
    tongue,
)
from expportrait_cli.head.model import HEAD, TORSO

pytest_plugins = ("support.astronaut",)

SKIN, HAIR, CLOTHES = np.array([205, 150, 125]), np.array([60, 40, 30]), np.array([40, 90, 160])


@pytest.fixture(scope="module")
def bald(fitted) -> HeadFit:
    """The astronaut's head without any offset."""
    zero = np.zeros_like(fitted.static_offset)
    return replace(fitted, static_offset=zero, frame_offset=zero)


def drawn_of(fit: HeadFit, head) -> np.ndarray:
    return draw_vertices(fitted_mesh(fit, head), head, fit.focal_px, size=CROP_SIZE)


def painted(fit: HeadFit, head, covered: list[bool]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photo of that head with hair on the scalp and over covered ears, its matte, and the class of each pixel."""
    drawn = drawn_of(fit, head)
    kind = np.zeros(len(head.parts), int)
    kind[(head.skinning[:, HEAD].numpy() > 0.9) & (dense(head, head.template)[:, 1].numpy() > 0.075)] = 1
    kind[head.skinning[:, TORSO].numpy() > 0.6] = 2
    for ear, is_covered in zip(hair.sides(head), covered, strict=True):
        kind[grown(ear, head.dense_faces.numpy(), rings=3)] = int(is_covered)
    kinds = np.where(drawn >= 0, kind[np.maximum(drawn, 0)], -1)
    noise = np.random.default_rng(0).normal(0, 4, (CROP_SIZE, CROP_SIZE, 3))
    colours = np.stack([SKIN, HAIR, CLOTHES, np.array([200, 200, 200])])[kinds] + noise
    return np.clip(colours, 0, 255).astype(np.uint8), (kinds >= 0).astype(np.float32), kinds


@pytest.mark.parametrize("covered", [[False, False], [True, False], [False, True], [True, True]])
def test_bare_and_covered_ears_are_told_by_their_colour(bald, head, covered):
    photo, matte, _ = painted(bald, head, covered)
    seen = fit_seen.ears_seen(bald, head, photo, matte, lambda verts: drawn_of(bald, head))
    assert seen.tolist() == [not each for each in covered]


@pytest.mark.parametrize("covered", [False, True])
def test_an_ear_that_is_turned_away_is_as_the_other_one(bald, head, covered):
    turned = replace(bald, rotation=np.array([0, np.radians(35), 0], np.float32))
    photo, matte, _ = painted(turned, head, [covered, covered])
    seen = fit_seen.ears_seen(turned, head, photo, matte, lambda verts: drawn_of(turned, head))
    shown = [(np.isin(drawn_of(turned, head), np.flatnonzero(ear))).sum() for ear in hair.sides(head)]
    assert min(shown) < 0.05 * max(shown)
    assert seen.tolist() == [not covered] * 2


def test_a_hand_beside_the_face_is_no_part_of_the_head(bald, head):
    photo, matte, _ = painted(bald, head, [False, False])
    verts = fitted_mesh(bald, head)
    ear = verts[hair.sides(head)[0]].mean(0)
    column, row = (ear[:2] / ear[2] * bald.focal_px + CROP_SIZE / 2).astype(int)
    beside = matte == 0
    beside[:, : column + 8] = beside[:, column + 90 :] = False
    beside[: row - 25] = beside[row + 25 :] = False
    noise = np.random.default_rng(2).normal(0, 4, photo.shape)
    for colour, is_hand in ((SKIN, True), (HAIR, False)):
        photo[beside], matte[beside] = np.clip(colour + noise, 0, 255).astype(np.uint8)[beside], 1
        kept = fit_seen.without_background(bald, head, photo, matte, lambda verts: drawn_of(bald, head))
        assert kept[beside].mean() < 0.1 if is_hand else kept[beside].mean() > 0.9
        assert kept[~beside & (matte > 0.5)].mean() > 0.98


def test_a_horn_of_the_outline_goes_and_a_slope_stays(bald, head):
    template, faces = dense(head, head.template).numpy(), head.dense_faces.numpy()
    slope = np.zeros_like(template)
    slope[:, 0] = 0.05 * template[:, 1] * (1 - dynamic_mask(head))
    fit = replace(bald, static_offset=slope.astype(np.float32))
    assert np.abs(hair.without_spikes(fit, head).static_offset - fit.static_offset).max() < 1e-6
    horned = slope.copy()
    low = np.where(head.skinning[:, TORSO].numpy() > 0.6, np.abs(template[:, 0]), 0)
    horn = grown(np.arange(len(slope)) == np.argmin(np.abs(low - 0.1)), faces)
    horned[horn, 1] += 0.03
    found = hair.without_spikes(replace(fit, static_offset=horned.astype(np.float32)), head).static_offset
    assert np.abs(found - slope)[:, 1].max() < 0.008
    assert np.abs(found - slope)[dynamic_mask(head) > 0.99].max() < 1e-6


@pytest.mark.parametrize("colour", [HAIR, np.array([200, 200, 200])], ids=["a bun", "a branch"])
def test_background_that_a_matte_takes_for_hair_goes_and_hair_stays(bald, head, colour):
    photo, matte, _ = painted(bald, head, [False, False])
    rows, columns = np.nonzero(matte > 0.5)
    top, middle = rows.min(), int(columns[rows < rows.min() + 20].mean())
    ring = (cv2.dilate(matte, np.ones((21, 21), np.uint8)) > 0) & (matte == 0)
    noise = np.random.default_rng(1).normal(0, 4, photo.shape)
    photo[ring], matte[ring] = np.clip(HAIR + noise, 0, 255).astype(np.uint8)[ring], 1
    far = np.zeros(matte.shape, bool)
    far[max(top - 70, 0) : top - 12, middle - 20 : middle + 20] = True
    photo[far], matte[far] = np.clip(colour + noise, 0, 255).astype(np.uint8)[far], 1
    kept = fit_seen.without_background(bald, head, photo, matte, lambda verts: drawn_of(bald, head))
    assert kept[far].mean() > 0.99 if colour is HAIR else kept[far].mean() < 0.2
    assert kept[ring].mean() > 0.9 and kept[~far & ~ring][matte[~far & ~ring] > 0.5].min() > 0.9


def test_classes_of_pixels(bald, head):
    photo, matte, kinds = painted(bald, head, [False, False])
    shares = pixel_classes(photo, matte, drawn_of(bald, head), head)
    assert np.abs(shares.sum(-1) - matte).max() < 1e-5
    for kind in range(3):
        where = kinds == kind
        assert where.sum() > 2000
        assert shares[where][:, kind].mean() > 0.9, kind


def test_blond_hair_is_told_by_its_strands_and_a_beard_by_its_colour(bald, head):
    photo, matte, kinds = painted(bald, head, [False, False])
    strands = np.random.default_rng(3).normal(0, 30, (CROP_SIZE, CROP_SIZE, 1))
    photo[kinds == 1] = np.clip(SKIN + strands, 0, 255).astype(np.uint8)[kinds == 1]
    drawn = drawn_of(bald, head)
    template = dense(head, head.template).numpy()
    chin = (plain_skin(head) & (template[:, 1] < -0.065))[np.maximum(drawn, 0)] & (drawn >= 0)
    photo[chin] = np.clip(HAIR + strands / 6, 0, 255).astype(np.uint8)[chin]
    blond = pixel_classes(photo, matte, drawn, head)
    assert blond[kinds == 1][:, 1].mean() > 0.85
    photo[kinds == 1] = np.clip(HAIR + strands / 6, 0, 255).astype(np.uint8)[kinds == 1]
    dark = pixel_classes(photo, matte, drawn, head)
    assert dark[chin][:, 1].mean() > 0.85
    assert dark[(kinds == 0) & ~chin][:, 0].mean() > 0.9


def test_a_vest_in_the_colour_of_hair_is_cloth(bald, head):
    photo, matte, kinds = painted(bald, head, [False, False])
    photo[kinds == 2] = np.clip(HAIR + np.random.default_rng(4).normal(0, 4, photo.shape), 0, 255)[kinds == 2]
    shares = pixel_classes(photo, matte, drawn_of(bald, head), head)
    assert shares[kinds == 2][:, 2].mean() > 0.9
    assert shares[kinds == 1][:, 1].mean() > 0.9


@pytest.mark.parametrize("reach_px", [4, 30], ids=["a strip", "long hair"])
def test_cloth_in_the_colour_of_hair_that_touches_it(bald, head, reach_px):
    """A dark shirt that is smoother than the hair over it, joined to it by the shadow of a chin or by long hair."""
    photo, matte, kinds = painted(bald, head, [False, False])
    rng = np.random.default_rng(5)
    photo[kinds == 1] = np.clip(HAIR + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)[kinds == 1]
    photo[kinds == 2] = np.clip(HAIR + rng.normal(0, 1, photo.shape), 0, 255).astype(np.uint8)[kinds == 2]
    middle = CROP_SIZE // 2 - 60
    bridge = (kinds == 0) & (np.abs(np.arange(CROP_SIZE) - middle) < reach_px)
    photo[bridge] = np.clip(HAIR + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)[bridge]
    shares = pixel_classes(photo, matte, drawn_of(bald, head), head)
    assert shares[kinds == 2][:, 2].mean() > 0.9
    assert shares[kinds == 1][:, 1].mean() > 0.9


def white(fit: HeadFit, head, bottom_m: float) -> np.ndarray:
    """A photo of a smile with white teeth down to a height over the line of the closed lips, and red below."""
    drawn = drawn_of(fit, head)
    verts, seam = neutral_mesh(fit, head), landmarks(head, neutral_mesh(fit, head))[list(INNER_LIPS)].mean(0)
    teeth = head.part("teeth_upper").numpy() & (np.abs(verts[:, 0].numpy()) < 0.01)
    point = fitted_mesh(fit, head)[teeth]
    edge = point[verts[teeth, 1].argmin()]
    below_m = float(verts[teeth, 1].min() - seam[1]) - bottom_m
    row = int((edge[1] + below_m) / edge[2] * fit.focal_px + CROP_SIZE / 2)
    photo = np.tile(SKIN.astype(np.uint8), (CROP_SIZE, CROP_SIZE, 1))
    inner = head.part("teeth_upper", "teeth_lower", "mouth_cavity").numpy()
    mouth = (drawn >= 0) & inner[np.maximum(drawn, 0)]
    photo[mouth] = [225, 220, 205]
    photo[mouth & (np.arange(CROP_SIZE)[:, None] > row)] = [120, 40, 40]
    return photo


def test_teeth_end_where_a_smile_shows_their_edge(bald, head):
    static = mouth_offset(bald.identity, head)
    smile = replace(bald, static_offset=static, jaw=np.array([0.25, 0, 0], np.float32), rotation=bald.rotation * 0)
    upper = head.part("teeth_upper").numpy()
    found = longer_teeth(smile, head, white(smile, head, -0.0072)).static_offset - static
    assert np.ptp(found[upper, 1]) < 1e-6
    assert -0.0065 < found[upper, 1].mean() < -0.0035
    assert np.abs(found[~upper]).max() == 0
    dark = np.where(white(smile, head, 1.0) == 40, 30, white(smile, head, 1.0)).astype(np.uint8)
    assert np.array_equal(longer_teeth(smile, head, dark).static_offset, static)


def test_teeth_and_tongue_lie_between_the_lips(bald, head):
    fit = replace(bald, static_offset=mouth_offset(bald.identity, head))
    verts, before = neutral_mesh(fit, head).numpy(), neutral_mesh(bald, head).numpy()
    seam = landmarks(head, torch.from_numpy(before))[list(INNER_LIPS)].mean(0).numpy()
    middle = np.abs(verts[:, 0]) < 0.005
    upper, lower = (verts[head.part(name).numpy() & middle, 1] - seam[1] for name in ("teeth_upper", "teeth_lower"))
    assert abs(upper.min() - UPPER_EDGE_M) < 5e-4 and abs(lower.max() - LOWER_EDGE_M) < 5e-4
    back = tongue(head)
    assert (verts[back, 1] >= before[back, 1]).all()
    assert 0 < (verts[back, 1] - seam[1]).max() - LOWER_EDGE_M < 0.0035
    assert relief_of(fit, head).cavity.sum() == head.part("mouth_cavity").sum() - back.sum()
    # Round, without edges at the sides: 40 degrees between neighbouring triangles of its upper half before, now 26.
    rise = verts[:, 1] - before[:, 1]
    faces = head.dense_faces.numpy()
    faces = faces[(back & (rise > rise.max() / 2))[faces].all(1)]
    assert np.degrees(trimesh.Trimesh(verts, faces, process=False).face_adjacency_angles).max() < 32


def test_a_membrane_spans_a_gap_with_a_plane():
    side = 9
    x, y = np.meshgrid(np.arange(side, dtype=float), np.arange(side, dtype=float))
    index = np.arange(side * side).reshape(side, side)
    a, b, c, d = (
        index[:-1, :-1].ravel(),
        index[:-1, 1:].ravel(),
        index[1:, 1:].ravel(),
        index[1:, :-1].ravel(),
    )
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([a, c, d], -1)])
    plane = np.stack([x.ravel(), y.ravel(), 0.3 * x.ravel() - 0.2 * y.ravel()], -1)
    inner = ((x > 1) & (x < 7) & (y > 1) & (y < 7)).ravel()
    dented = plane + inner[:, None] * np.array([0.2, 0.1, -3.0])
    assert np.abs(hair.Membrane(~inner, faces)(dented) - plane).max() < 1e-9


def heights_of_ears(fit: HeadFit, head) -> tuple[float, float]:
    """How far the farthest vertex of the left and right ear stands off the skin around it, m."""
    verts, faces = neutral_mesh(fit, head).numpy().astype(np.float64), head.dense_faces.numpy()
    found = []
    for ear in hair.sides(head):
        zone = grown(ear, faces, rings=hair.ROOT_RINGS)
        found.append(float(np.linalg.norm(verts - hair.Membrane(~zone, faces)(verts), axis=1)[zone].max()))
    return found[0], found[1]


def test_ears_are_found_and_nothing_else(head):
    template = dense(head, head.template).numpy()
    for ear, side in zip(hair.sides(head), (1, -1), strict=True):
        assert 500 < ear.sum() < 2500
        low, high = template[ear].min(0), template[ear].max(0)
        assert (side * template[ear, 0] > 0.05).all()
        assert 0.05 < high[1] - low[1] < 0.08, "an ear is about 63 mm high"


def test_a_covered_ear_is_closed_over_and_a_bare_one_stays(bald, head):
    """Two centimetres of hair along the normals, which point everywhere on an ear."""
    normals = vertex_normals(neutral_mesh(bald, head), head.dense_faces).numpy()
    push = replace(bald, static_offset=(0.02 * normals * (head.scalp | hair.ears(head))[:, None]))
    settled = hair.with_ears(push, head, np.array([True, False]))
    stands = heights_of_ears(bald, head)
    left, right = heights_of_ears(settled, head)
    assert min(stands) > 0.012
    assert abs(left - stands[0]) < 0.003
    assert right < 0.5 * stands[1]
    own = hair.sides(head)[0]
    assert np.abs(settled.static_offset[own]).max() == 0
    smooth = hair.smoothed_ears(settled, head, np.array([True, False]))
    assert np.abs(smooth.static_offset[own]).max() < 1e-6


def test_the_back_of_the_head_has_hair_and_a_usual_skull(bald, head):
    level = replace(bald, rotation=np.zeros(3, np.float32))
    verts = neutral_mesh(level, head)
    normals, verts = vertex_normals(verts, head.dense_faces).numpy(), verts.numpy()
    skull = head.scalp
    back = skull & (normals[:, 2] < -0.9) & (verts[:, 1] > 0.02)
    assert back.sum() > 50
    bare = hair.behind(np.zeros_like(verts, dtype=np.float64), level, head)
    # The skull ends earlier by a share of its depth; the front stays.
    assert np.allclose(bare[back, 2], -hair.SHORTER * verts[back, 2], atol=1e-6)
    assert np.abs(bare[skull & (normals[:, 2] > 0.2)]).max() == 0
    thick = hair.behind(0.02 * normals * skull[:, None], level, head)
    height = (thick - bare)[back] * normals[back]
    assert np.allclose(height.sum(-1), hair.BACK_SHARE * 0.02, atol=1e-4)


def test_a_turned_photo_is_believed_about_the_side_that_it_shows(bald, head):
    level = replace(bald, rotation=np.array([0, np.radians(35), 0], np.float32))
    normals = vertex_normals(neutral_mesh(level, head), head.dense_faces).numpy()
    offset = 0.015 * normals * head.scalp[:, None]
    kept = hair.behind(offset, level, head)
    side = head.scalp & (np.abs(normals[:, 0]) > 0.95)
    moved = np.linalg.norm(kept - offset, axis=1)
    shown, hidden = (side & (np.sign(normals[:, 0]) == sign) for sign in (-1, 1))
    assert min(moved[shown].max(), moved[hidden].max()) < 1e-4 < max(moved[shown].mean(), moved[hidden].mean())


def test_the_outline_may_move_skin_over_a_covered_ear_alone(head):
    mask = static.outline_mask(head, np.array([True, False]))
    left, right = hair.sides(head)
    assert mask[left].max() == 0
    assert mask[right].min() > 0.99
    face = (head.facial_mask == 1).numpy() & (np.abs(dense(head, head.template)[:, 0].numpy()) < 0.05)
    assert face.sum() > 500
    assert mask[face].max() == 0
    assert torch.from_numpy(mask).isfinite().all()
