"""Parts of a head that one photo does not show: the skull behind, the hair over it, and the shape of ears."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from scipy.sparse.linalg import splu

from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.detect.matte import smoothstep
from expportrait_cli.fitting.clip import dynamic_mask, ear_vertices
from expportrait_cli.fitting.silhouette import graph_laplacian
from expportrait_cli.geometry.mesh import faded, grown, relaxed, vertex_normals
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.head.model import HEAD

SHORTER = 0.16
"""Share by which the skull is shortened behind the ears: the model's cephalic index is 0.74, people's 0.80."""
BACK_SHARE, BACK_LIMIT_M = 0.6, 0.02
"""BACK_SHARE: thickness of hair at the back, as a share of the smaller of those on top and at the sides. BACK_LIMIT_M:
its largest value, m. Both grow when the head in the photo is turned (`TURN_DEG`)."""
TURN_DEG = (15.0, 30.0)
"""Yaw of the head in the photo, degrees, at which share and limit of the hair behind begin to grow, and are largest."""
AWAY = (-0.1, 0.5)
"""Cosine between normal and viewing direction (positive: faces away) at which the prior has weight 0, and 1."""
EAR_BOX_M = np.array([[0.055, -0.05, -0.05], [np.inf, 0.038, 0.03]])
"""Lowest and highest |x|, y, z of the ears in the template; the origin of the head frame lies between them."""
EAR_STANDS_M = 0.0075
"""Least distance, m, of an ear's vertex from the smooth surface that is spanned over the ear's box."""
ROOT_RINGS = 3
"""Rings of triangles around an ear that are replaced with it when the ear is closed over."""
HELD_RINGS = 4
"""Rings of triangles over which the weight of a change around an ear fades to 0."""
SLOPE_RINGS = 8
"""Rings of triangles around a bare ear over which the offset of hair beside it is smoothed towards 0."""
CREASE_STEPS, SMOOTH_STEPS = 25, 6
"""Smoothing steps after an ear was closed over (CREASE_STEPS), and after each descent on the outline (SMOOTH_STEPS)."""
SPIKE_M, SPIKE_RINGS, SPIKE_ROUNDS = 0.0025, 3, 6
"""SPIKE_M: distance, m, of an offset from its mean after SPIKE_RINGS smoothing steps beyond which it is a spike.
SPIKE_ROUNDS: most rounds of removing spikes."""


class Membrane:
    """Interpolation of unknown points between known ones by discrete harmonic functions."""

    def __init__(self, known: Bool[np.ndarray, " V"], faces: Int64[np.ndarray, "F 3"]):
        """Factorise the system of the points that are not `known`; it can be solved for any positions."""
        self._free, self._fixed = np.flatnonzero(~known), np.flatnonzero(known)
        rows = graph_laplacian(faces, len(known)).tocsr()[self._free]
        self._factor, self._border = splu(rows[:, self._free].tocsc()), rows[:, self._fixed]

    def __call__(self, points: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
        """Return the points with the unknown ones interpolated."""
        result = np.array(points, np.float64)
        result[self._free] = self._factor.solve(-self._border @ result[self._fixed])
        return result


@lru_cache(8)
def ears(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """Mask of the ears alone: vertices that stand off a smooth surface over the region around them."""
    template, faces = dense(head, head.template).numpy().astype(np.float64), head.dense_faces.numpy()
    place = np.c_[np.abs(template[:, 0]), template[:, 1:]]
    near = head.part("skin").numpy() & ((place > EAR_BOX_M[0]) & (place < EAR_BOX_M[1] + [0, 0.012, 0])).all(1)
    stands = np.linalg.norm(template - Membrane(~near, faces)(template), axis=1)
    is_ear = (stands > EAR_STANDS_M) | (ear_vertices(head) & (stands > 0.8 * EAR_STANDS_M))
    return near & is_ear & (place[:, 1] < EAR_BOX_M[1, 1])


def behind(offset: Float[np.ndarray, "V 3"], fit: HeadFit, head: HeadModel) -> Float[np.ndarray, "V 3"]:
    """Replace the static offset where the head faces away from the camera by a prior: an average skull with hair.

    The outline in one photo does not determine the back of the head. Where the head in the photo is turned, the
    outline shows more of the back, and thicker hair is allowed there.
    """
    verts = _bare(fit, head)
    normals = vertex_normals(torch.from_numpy(verts), head.dense_faces).numpy()
    skull, away = head.scalp, (normals @ from_turns(fit.rotation).T)[:, 2]
    height = (offset * normals).sum(1)
    rim = skull & (np.abs(away) < 0.3) & (verts[:, 1] > 0.04)
    sides, top = (height[rim & chosen] for chosen in (normals[:, 1] < 0.5, normals[:, 1] > 0.75))
    at_side = float(np.median(sides)) if len(sides) > 10 else 0.0
    on_top = float(np.median(top)) if len(top) > 10 else at_side
    turned = float(np.clip((abs(np.degrees(fit.rotation[1])) - TURN_DEG[0]) / (TURN_DEG[1] - TURN_DEG[0]), 0, 1))
    share, limit = BACK_SHARE + 0.4 * turned, BACK_LIMIT_M * (1 + 0.5 * turned)
    thickness = float(np.clip(share * min(at_side, on_top), 0, limit))
    wanted = normals * thickness
    wanted[:, 2] += SHORTER * np.maximum(-verts[:, 2], 0)
    weight = smoothstep(away, *AWAY) * skull * smoothstep(verts[:, 1], -0.05, 0.0)
    return offset + weight[:, None] * (wanted - offset)


@lru_cache(8)
def sides(head: HeadModel) -> tuple[Bool[np.ndarray, " V"], Bool[np.ndarray, " V"]]:
    """Masks of the person's left and right ear."""
    x, both = dense(head, head.template)[:, 0].numpy(), ears(head)
    return both & (x > 0), both & (x < 0)


def with_ears(fit: HeadFit, head: HeadModel, seen: Bool[np.ndarray, " 2"]) -> HeadFit:
    """Set the ears: a bare one (`seen`) as in the head model; a covered one is closed over by a smooth surface."""
    faces, bare = head.dense_faces.numpy(), _bare(fit, head)
    offset = fit.static_offset.astype(np.float64)
    for ear, is_seen in zip(sides(head), seen, strict=True):
        if is_seen:
            held = faded(grown(ear, faces), faces, rings=HELD_RINGS)
            offset = offset * (1 - held)[:, None]
            # Without smoothing the hair beside the ear would end in a step.
            around = faded(grown(ear, faces, rings=SLOPE_RINGS), faces, rings=HELD_RINGS)
            offset = relaxed(offset, around * (held < 0.5) * (1 - dynamic_mask(head)), faces, CREASE_STEPS)
        else:
            zone = grown(ear, faces, rings=ROOT_RINGS)
            spanned = Membrane(~zone, faces)(bare + offset)
            # The rim of a membrane is a crease.
            wide = grown(zone, faces, rings=ROOT_RINGS).astype(np.float64)
            offset = relaxed(spanned, wide, faces, CREASE_STEPS) - bare
    return replace(fit, static_offset=offset.astype(np.float32))


def smoothed_ears(fit: HeadFit, head: HeadModel, seen: Bool[np.ndarray, " 2"]) -> HeadFit:
    """Keep the skin over covered ears smooth while the outline moves it.

    The interpolated surface gathers the many vertices of an ear in one spot, where the descent would leave a pit.
    """
    faces, bare = head.dense_faces.numpy(), _bare(fit, head)
    offset = fit.static_offset.astype(np.float64)
    for (span, around), is_seen in zip(_closed(head), seen, strict=True):
        if not is_seen:
            offset = relaxed(span(bare + offset), around, faces, SMOOTH_STEPS) - bare
    return replace(fit, static_offset=offset.astype(np.float32))


@lru_cache(8)
def _closed(head: HeadModel) -> list[tuple[Membrane, Float[np.ndarray, " V"]]]:
    """Interpolation of the skin over each ear, and the weight (0..1) of smoothing around it."""
    faces = head.dense_faces.numpy()
    return [
        (Membrane(~ear, faces), faded(grown(ear, faces, rings=ROOT_RINGS + 2), faces, rings=HELD_RINGS))
        for ear in sides(head)
    ]


def without_spikes(fit: HeadFit, head: HeadModel) -> HeadFit:
    """Smooth spikes and ridges of the static offset, off the face and off sides whose ear is bare.

    Where long hair ends at a shoulder, one sheet would have to fold back; the descent leaves a ridge there, which
    sticks out when the head turns. A side whose ear is bare is left as it is: hair really stands off there.
    """
    faces, free = head.dense_faces.numpy(), outline_mask(head, fit.ears_seen).astype(np.float64)
    across, skull = dense(head, head.template)[:, 0].numpy(), head.skinning[:, HEAD].numpy()
    for side, is_seen in zip((1, -1), fit.ears_seen, strict=True):
        free *= 1 - is_seen * skull * smoothstep(side * across, 0.0, 0.02)
    offset, everywhere = fit.static_offset.astype(np.float64), np.ones(len(free))
    for _ in range(SPIKE_ROUNDS):
        away = np.linalg.norm(relaxed(offset, everywhere, faces, SPIKE_RINGS) - offset, axis=1)
        spikes = (away > SPIKE_M) & (free > 0)
        if not spikes.any():
            break
        offset = relaxed(offset, faded(spikes, faces, rings=SPIKE_RINGS + 1) * free, faces, CREASE_STEPS)
    return replace(fit, static_offset=offset.astype(np.float32))


def _bare(fit: HeadFit, head: HeadModel) -> Float[np.ndarray, "V 3"]:
    """The neutral head without static offsets."""
    return neutral_mesh(replace(fit, static_offset=np.zeros_like(fit.static_offset)), head).numpy().astype(np.float64)


def outline_mask(head: HeadModel, seen: Bool[np.ndarray, " 2"]) -> Float32[np.ndarray, " V"]:
    """Mask (0..1) of vertices that the outline may move once the ears are set.

    It is 0 on the face and on bare ears, 1 on the skin over covered ears.
    """
    faces, face = head.dense_faces.numpy(), dynamic_mask(head).astype(np.float64)
    held = np.zeros(len(face))
    for ear, is_seen in zip(sides(head), seen, strict=True):
        if is_seen:
            held = np.maximum(held, faded(grown(ear, faces), faces, rings=HELD_RINGS))
        else:
            face = face * (1 - faded(grown(ear, faces, rings=ROOT_RINGS), faces, rings=3))
    return ((1 - face) * head.part("skin").numpy() * (1 - held)).astype(np.float32)
