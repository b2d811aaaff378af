"""Parts of a head that one photo does not show: the skull behind, the hair over it, and ears, bare or covered."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from scipy.sparse.linalg import splu

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.detect.matte import Gaussian, lab_colours, largest_part, smoothstep
from expportrait_cli.fitting.clip import dynamic_mask, ear_vertices, plain_skin
from expportrait_cli.fitting.detail import APART, CROWN_M
from expportrait_cli.fitting.silhouette import graph_laplacian
from expportrait_cli.geometry.mesh import faded, grown, relaxed, vertex_normals
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.fitted import fitted_mesh, neutral_mesh
from expportrait_cli.head.model import HEAD, TORSO

SHORTER = 0.16
"""Share of its depth behind the ears that the model's skull is too long: its cephalic index is 0.74, people's 0.80."""
BACK_SHARE, BACK_LIMIT_M = 0.6, 0.02
"""Thickness of hair behind, as a share of the lesser of what the outline shows on top and at the sides; its limit."""
TURN_DEG = (15.0, 30.0)
"""Turns of a photo between which its far side is seen more and more, and hair behind is believed in full."""
AWAY = (-0.1, 0.5)
"""Cosines between a normal and the view, away from the camera, between which the prior takes over from the outline."""
EAR_BOX_M = np.array([[0.055, -0.05, -0.05], [np.inf, 0.038, 0.03]])
"""Lowest and highest |x|, y, z of the ears in the template; the origin of the head frame lies between them."""
EAR_STANDS_M = 0.0075  # Over the skin around it.
ROOT_RINGS, HELD_RINGS, SLOPE_RINGS = 3, 4, 8
"""Rings of triangles around an ear: those that go with it when the skin closes over it, those over which the weight of
a change around it fades to 0, and those over which the offset of the hair beside a bare one falls to nothing."""
CREASE_STEPS, SMOOTH_STEPS = 25, 6
"""Steps of relaxation after an ear was closed over, and after each descent on the outline."""
SPIKE_M, SPIKE_RINGS, SPIKE_ROUNDS = 0.0025, 3, 6
"""Distance of an offset from the mean of so many rings around it from which it is a spike, and relaxations."""
BESIDE_M, HAND_M, HAND_PX, CLEARLY, CLOTHED = 0.005, 0.04, 600, 2.5, 0.6
"""What is so far off the head, m, in the colours of its skin is a hand, if it reaches so far, has so many pixels, and
hair differs so clearly (Mahalanobis distance); and the share of the torso bone in a spot of the shoulders."""
BEYOND_M = 0.01
"""Least extent of the matte beyond an ear, m, from which the ear counts as covered where colours cannot tell."""
BARE, COVERED = 0.4, 0.55
"""Shares of skin colour above which an ear is bare: if the matte ends at the ear, and if it extends beyond it."""
OVER_EARS_M = 0.03
"""Height in the template above which what stands off the skull is looked at."""
USUAL_PERCENTILE, FAR_SHARE, FAR_M, LEAST_PX = 40, 1.3, 0.008, 200
"""Percentile of the thickness of hair around a skull that is usual; how far off the skull something is looked at, as
many times that and so much more, m; and the fewest pixels of anything that is compared."""
SEPARATED, FEW_PX, HARDLY = 0.5, 30, 0.05
"""Least difference of what the colours of skin and hair score on themselves, and fewest pixels of an ear, for colours
to decide whether it is covered; and share of the other ear's pixels below which a photo hardly shows an ear."""


class Membrane:
    """Span of a gap between known points with the least bending: discrete harmonic functions."""

    def __init__(self, known: Bool[np.ndarray, " V"], faces: Int64[np.ndarray, "F 3"]):
        """Factorise the system of the points that are not `known`; it serves any points."""
        self._free, self._fixed = np.flatnonzero(~known), np.flatnonzero(known)
        rows = graph_laplacian(faces, len(known)).tocsr()[self._free]
        self._factor, self._border = splu(rows[:, self._free].tocsc()), rows[:, self._fixed]

    def __call__(self, points: Float[np.ndarray, "V 3"]) -> Float[np.ndarray, "V 3"]:
        """The known points, and the span of the gap between them."""
        result = np.array(points, np.float64)
        result[self._free] = self._factor.solve(-self._border @ result[self._fixed])
        return result


@lru_cache(8)
def ears(head: HeadModel) -> Bool[np.ndarray, " V"]:
    """The ears alone: what stands off a membrane over the region around them."""
    template, faces = dense(head, head.template).numpy().astype(np.float64), head.dense_faces.numpy()
    place = np.c_[np.abs(template[:, 0]), template[:, 1:]]
    near = head.part("skin").numpy() & ((place > EAR_BOX_M[0]) & (place < EAR_BOX_M[1] + [0, 0.012, 0])).all(1)
    stands = np.linalg.norm(template - Membrane(~near, faces)(template), axis=1)
    is_ear = (stands > EAR_STANDS_M) | (ear_vertices(head) & (stands > 0.8 * EAR_STANDS_M))
    return near & is_ear & (place[:, 1] < EAR_BOX_M[1, 1])


def without_background(
    fit: HeadFit,
    head: HeadModel,
    image: UInt8[np.ndarray, "S S 3"],
    matte: Float32[np.ndarray, "S S"],
    draw: Callable[[Float32[np.ndarray, "V 3"]], Int64[np.ndarray, "S S"]],
) -> Float32[np.ndarray, "S S"]:
    """Take out of a matte what stands further off the skull than the hair around it, in the background's colours.

    Networks take a branch or a curtain behind a head for hair, and the outline would follow it by ten centimetres. Nor
    is a hand beside the face a part of the head.
    """
    view = _View.of(fit, head, image, matte, draw)
    away_px, labels = cv2.distanceTransformWithLabels(
        (view.drawn < 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    nearest = np.asarray(labels, np.int64)
    vertex = np.zeros(nearest.max() + 1, np.int64)
    vertex[nearest[view.drawn >= 0]] = view.drawn[view.drawn >= 0]
    away_m = np.asarray(away_px, np.float32) * (view.depth_m / view.focal_px)
    matte = _without(matte, view.hands(away_m, vertex[nearest]))
    around = (view.drawn < 0) & (view.template[:, 1] > OVER_EARS_M)[vertex[nearest]]
    over = around & (matte > 0.5)
    # How far the person reaches from each pixel of the skull's outline.
    reach = np.zeros(nearest.max() + 1, np.float32)
    np.maximum.at(reach, nearest[over], away_m[over])
    if not reach.any():
        return matte
    usual = float(np.percentile(reach[reach > 0], USUAL_PERCENTILE))
    hair = over & (reach[nearest] <= usual) & (matte > 0.9)
    _, parts, stats, _ = cv2.connectedComponentsWithStats(
        (over & (away_m > FAR_SHARE * usual + FAR_M)).astype(np.uint8)
    )
    gone = np.zeros(matte.shape, bool)
    for part in 1 + np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] > LEAST_PX):
        far = parts == part
        near = cv2.dilate(far.astype(np.uint8), np.ones((61, 61), np.uint8)) > 0
        background = around & near & (matte < 0.1)
        if min(hair.sum(), background.sum()) < LEAST_PX:
            continue
        strange = Gaussian.of(view.lab[background]).score(view.lab) - Gaussian.of(view.lab[hair]).score(view.lab)
        if strange[far].mean() > 0:
            gone |= far | (over & near & (cv2.GaussianBlur(strange, (0, 0), 2.0) > 0) & (away_m > usual / 2))
    return _without(matte, gone)


def _without(matte: Float32[np.ndarray, "S S"], gone: Bool[np.ndarray, "S S"]) -> Float32[np.ndarray, "S S"]:
    """The largest part of a matte without some pixels."""
    if not gone.any():
        return matte
    return largest_part((matte * (1 - cv2.GaussianBlur(gone.astype(np.float32), (0, 0), 1.0))).astype(np.float32))


def ears_seen(
    fit: HeadFit,
    head: HeadModel,
    image: UInt8[np.ndarray, "S S 3"],
    matte: Float32[np.ndarray, "S S"],
    draw: Callable[[Float32[np.ndarray, "V 3"]], Int64[np.ndarray, "S S"]],
) -> Bool[np.ndarray, " 2"]:
    """Tell whether the photo shows the person's left and right ear bare, or covered by hair or cloth.

    Colours of the side's cheek and of the hair decide where they differ, else how far the person goes on beyond the
    ear. An ear that the photo hardly shows is as the other one.
    """
    view, both = _View.of(fit, head, image, matte, draw), sides(head)
    seen = np.array([view.shows_ear(side, ear) for side, ear in zip((1, -1), both, strict=True)])
    shown = np.array([view.where(ear).sum() for ear in both])
    return np.where(shown < HARDLY * shown[::-1], seen[::-1], seen)


@dataclass(frozen=True)
class _View:
    """The bare head over its photo."""

    head: HeadModel
    verts: Float32[np.ndarray, "V 3"]
    template: Float32[np.ndarray, "V 3"]
    drawn: Int64[np.ndarray, "S S"]
    lab: Float32[np.ndarray, "S S 3"]
    matte: Float32[np.ndarray, "S S"]
    focal_px: float
    depth_m: float

    @classmethod
    def of(cls, fit, head, image, matte, draw) -> "_View":
        verts = fitted_mesh(replace(fit, static_offset=np.zeros_like(fit.static_offset)), head)
        template = dense(head, head.template).numpy()
        depth_m = float(fit.translation[2])
        return cls(head, verts, template, draw(verts), lab_colours(image), matte, fit.focal_px, depth_m)

    def where(self, chosen: Bool[np.ndarray, " V"]) -> Bool[np.ndarray, "S S"]:
        """Pixels that show chosen vertices."""
        return (self.drawn >= 0) & chosen[np.maximum(self.drawn, 0)]

    def columns(self, chosen: Bool[np.ndarray, " V"]) -> Float[np.ndarray, "P 2"]:
        """Places of chosen vertices, px."""
        points = self.verts[chosen]
        return points[:, :2] / points[:, 2:] * self.focal_px + CROP_SIZE / 2

    def shows_ear(self, side: int, alone: Bool[np.ndarray, " V"]) -> bool:
        """One ear, `alone` without the skin around it: `side` is 1 for the person's left, which has positive x."""
        around = ear_vertices(self.head) & (side * self.template[:, 0] > 0)
        ear, points = self.where(alone) & (self.matte > 0.8), self.columns(around)
        outward = float(np.sign(points[:, 0].mean() - self.columns(plain_skin(self.head))[:, 0].mean()))
        rim = outward * float(np.percentile(outward * points[:, 0], 98))
        top, bottom = np.clip(np.percentile(points[:, 1], [10, 90]), 0, CROP_SIZE - 1).astype(int).tolist()
        beyond = self._beyond(outward, rim, top, bottom)
        hair = self._crown()
        if beyond > BEYOND_M:
            rows, columns = np.arange(CROP_SIZE)[:, None], np.arange(CROP_SIZE)
            level = (rows >= top - 0.3 * (bottom - top)) & (rows <= bottom)
            hair |= (self.matte > 0.9) & (outward * (columns - rim) > 3) & level & (self.drawn < 0)
        x, y, _ = self.template.T
        face = self.where(plain_skin(self.head))
        cheek = face & self.where((side * x > 0.03) & (y < 0.03) & (y > -0.05))
        cheek = cheek if cheek.sum() >= 150 else face
        if ear.sum() >= FEW_PX and hair.sum() > 100 and cheek.sum() > 50:
            share = self._skin_share(ear, cheek, hair)
            if share is not None:
                return share > (BARE if beyond < BEYOND_M else COVERED)
        return beyond < BEYOND_M

    def _beyond(self, outward: float, rim: float, top: int, bottom: int) -> float:
        """Extent of the person beyond the ear, m."""
        steps = []
        for row in range(top, bottom):
            inside = np.flatnonzero(self.matte[row] > 0.5)
            if len(inside):
                steps.append(outward * ((inside.max() if outward > 0 else inside.min()) - rim))
        return float(np.median(steps)) * self.depth_m / self.focal_px if steps else 0.0

    def hands(self, away_m: Float32[np.ndarray, "S S"], nearest: Int64[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
        """Skin that stands off the head beside it: a hand. `nearest` is the vertex of the head nearest to a pixel."""
        face, crown = self.where(plain_skin(self.head)), self._crown()
        beside = (away_m > BESIDE_M) & (self.matte > 0.5)
        beside &= (self.head.skinning[:, TORSO].numpy() < CLOTHED)[nearest]
        if min(face.sum(), crown.sum()) < LEAST_PX or not beside.any():
            return np.zeros_like(beside)
        skin, hair = Gaussian.of(self.lab[face]), Gaussian.of(self.lab[crown])
        if skin.distance(hair) < CLEARLY:
            return np.zeros_like(beside)
        is_skin = beside & (skin.score(self.lab) > hair.score(self.lab)) & (skin.peak_score(self.lab) > -0.5 * 3**2)
        _, parts = cv2.connectedComponents(
            cv2.morphologyEx(is_skin.astype(np.uint8), cv2.MORPH_OPEN, np.ones((13, 13)))
        )
        size, reach = np.bincount(parts.ravel()), np.zeros(parts.max() + 1, np.float32)
        np.maximum.at(reach, parts, away_m)
        is_hand = (size > HAND_PX) & (reach > HAND_M) & (np.arange(len(size)) > 0)
        return (cv2.dilate(is_hand[parts].astype(np.uint8), np.ones((15, 15), np.uint8)) > 0) & (away_m > 0)

    def _crown(self) -> Bool[np.ndarray, "S S"]:
        """Hair on top: on the crown, and above the head as far as it goes down by 10 cm."""
        drawn = self.drawn >= 0
        top = np.nonzero(drawn)[0].min() + 0.10 / self.depth_m * self.focal_px
        above = ~drawn & (np.arange(CROP_SIZE)[:, None] < top)
        return (self.where(self.head.scalp & (self.template[:, 1] > CROWN_M)) | above) & (self.matte > 0.9)

    def _skin_share(
        self, ear: Bool[np.ndarray, "S S"], cheek: Bool[np.ndarray, "S S"], hair: Bool[np.ndarray, "S S"]
    ) -> float | None:
        """Share of the ear that has the colours of the cheek, not of hair; None where these do not differ."""
        skin_colours, hair_colours = Gaussian.of(self.lab[cheek]), Gaussian.of(self.lab[hair])

        def share(where):
            odds = skin_colours.score(self.lab[where]) - hair_colours.score(self.lab[where])
            return (1 / (1 + np.exp(-np.clip(odds, -30, 30)))).mean()

        high, low = share(cheek), share(hair)
        if high - low < SEPARATED or skin_colours.distance(hair_colours) < APART:
            return None
        return float((share(ear) - low) / (high - low))


def behind(offset: Float[np.ndarray, "V 3"], fit: HeadFit, head: HeadModel) -> Float[np.ndarray, "V 3"]:
    """Replace the static offset where the head faces away from the camera by a prior: a usual skull with hair over it.

    An outline seen from the front says nothing of what lies behind it. The side of a photo that is turned itself is
    seen, and believed further back.
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
    """The person's left and right ear."""
    x, both = dense(head, head.template)[:, 0].numpy(), ears(head)
    return both & (x > 0), both & (x < 0)


def with_ears(fit: HeadFit, head: HeadModel, seen: Bool[np.ndarray, " 2"]) -> HeadFit:
    """Put ears where they belong: a bare one as the head model has it, of a covered one the skin is closed over it."""
    faces, bare = head.dense_faces.numpy(), _bare(fit, head)
    offset = fit.static_offset.astype(np.float64)
    for ear, is_seen in zip(sides(head), seen, strict=True):
        if is_seen:
            held = faded(grown(ear, faces), faces, rings=HELD_RINGS)
            offset = offset * (1 - held)[:, None]
            # Hair beside the ear would end in a cliff, and the skin under it in a fold.
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

    A membrane gathers the many vertices of an ear in one spot, which descents leave behind as a pit.
    """
    faces, bare = head.dense_faces.numpy(), _bare(fit, head)
    offset = fit.static_offset.astype(np.float64)
    for (span, around), is_seen in zip(_closed(head), seen, strict=True):
        if not is_seen:
            offset = relaxed(span(bare + offset), around, faces, SMOOTH_STEPS) - bare
    return replace(fit, static_offset=offset.astype(np.float32))


@lru_cache(8)
def _closed(head: HeadModel) -> list[tuple[Membrane, Float[np.ndarray, " V"]]]:
    """The skin over each ear where it is covered, and how much of what lies around it is smoothed with it."""
    faces = head.dense_faces.numpy()
    return [
        (Membrane(~ear, faces), faded(grown(ear, faces, rings=ROOT_RINGS + 2), faces, rings=HELD_RINGS))
        for ear in sides(head)
    ]


def without_spikes(fit: HeadFit, head: HeadModel) -> HeadFit:
    """Relax what the outline has drawn out to points and ridges, off the face and off a side whose ear is bare.

    Where the end of long hair meets a shoulder, one sheet would have to fold back: what descents leave there is a
    crest, which is a horn as soon as the head turns. Over a bare ear, hair does stand off like that.
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
    """Vertices that the outline may move once its ears are settled: not the face, not bare ears; over covered ones."""
    faces, face = head.dense_faces.numpy(), dynamic_mask(head).astype(np.float64)
    held = np.zeros(len(face))
    for ear, is_seen in zip(sides(head), seen, strict=True):
        if is_seen:
            held = np.maximum(held, faded(grown(ear, faces), faces, rings=HELD_RINGS))
        else:
            face = face * (1 - faded(grown(ear, faces, rings=ROOT_RINGS), faces, rings=3))
    return ((1 - face) * head.part("skin").numpy() * (1 - held)).astype(np.float32)
