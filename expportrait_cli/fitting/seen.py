"""Pixel classes of a photo: skin, hair and clothes, background and hands in the matte, ears bare or covered."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, UInt8

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.detect.matte import Gaussian, Look, lab_colours, largest_part, roughness, smoothstep
from expportrait_cli.fitting.clip import dynamic_mask, ear_vertices, plain_skin
from expportrait_cli.fitting.hair import sides
from expportrait_cli.head import HeadModel, dense
from expportrait_cli.head.fitted import fitted_mesh
from expportrait_cli.head.model import NECK, TORSO

BESIDE_M, HAND_M, HAND_PX, CLEARLY, CLOTHED = 0.005, 0.04, 600, 2.5, 0.6
"""Rules for hands. Skin-coloured pixels more than BESIDE_M beside the head are a hand if they reach HAND_M, m, and are
more than HAND_PX, and if hair differs from skin by CLEARLY (Mahalanobis distance). CLOTHED: weight of the torso bone
from which the nearest vertex belongs to the shoulders, which have no hands beside them."""
BEYOND_M = 0.01
"""Extent of the matte beyond an ear, m, from which the ear counts as covered where colours are not distinct."""
BARE, COVERED = 0.4, 0.55
"""Share of skin-coloured pixels of an ear above which it is bare: where the matte ends at the ear (BARE), and where it
extends beyond it (COVERED)."""
OVER_EARS_M = 0.03
"""Height in the template, m, above which the matte beyond the skull is checked for background."""
USUAL_PERCENTILE, FAR_SHARE, FAR_M, LEAST_PX = 40, 1.3, 0.008, 200
"""USUAL_PERCENTILE: percentile of the matte's reach beyond the skull that is the usual thickness of hair. Pixels that
are further off than FAR_SHARE times that plus FAR_M, m, may be background. LEAST_PX: fewest pixels of a region."""
SEPARATED, FEW_PX, HARDLY = 0.5, 30, 0.05
"""Colours decide on an ear of FEW_PX pixels or more if the mean P(skin) of cheek and of hair differ by SEPARATED. An
ear with less than HARDLY of the other's pixels takes the other's result."""

CROWN_M, BROW_M = 0.085, 0.06
"""Heights in the template, m over the origin between the ears: of the crown, and of the brows' upper end."""
APART = 1.5
"""Least Mahalanobis distance of the crown's colours from the face's: below it the crown counts as bare skin."""
OTHER = -0.5 * 3.5**2
"""Log density, relative to the peak of a class, below which a pixel over the torso counts as clothes."""
SMALL_PX = 60
"""Fewest pixels from which the colours of a class are measured."""
EYE_M, NOSE_M, CHEEK_M = 0.015, -0.02, 0.045
"""Region of the cheeks, where no beard grows, in the template, m: height of the lower lids and of the base of the nose,
and half the width between the cheekbones."""
BRIDGE_PX = 9
"""Width, px, up to which a strip of hair does not connect two parts: it may be the shadow of a beard on a collar."""
SMOOTHER, AROUND_PX = 0.6, 31
"""Hair-coloured pixels below the face count as cloth if their log contrast, a median over AROUND_PX px (the rims of
cloth are rough), is lower than that of the hair on the head by SMOOTHER."""
SHOULDER_M = (0.10, 0.15)
"""Distance from the middle of the torso, m, at which the prior for clothes is 0, and 1."""


def without_background(
    fit: HeadFit,
    head: HeadModel,
    image: UInt8[np.ndarray, "S S 3"],
    matte: Float32[np.ndarray, "S S"],
    draw: Callable[[Float32[np.ndarray, "V 3"]], Int64[np.ndarray, "S S"]],
) -> Float32[np.ndarray, "S S"]:
    """Remove from a matte background that lies further off the skull than the hair around it, and hands.

    Networks include a branch or a curtain behind a head in the matte, and the outline would follow it by ten
    centimetres. `draw` gives the vertex that each pixel shows, or -1.
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
    # Distance that the person reaches from each pixel of the skull's outline.
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
    """The largest connected part of a matte after pixels were removed."""
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
    """True for the person's left and right ear if it is bare in the photo, False if hair or cloth covers it.

    The colours of cheek and hair decide where they differ, else how far the person extends beyond the ear. An ear that
    is hardly visible takes the result of the other one.
    """
    view, both = _View.of(fit, head, image, matte, draw), sides(head)
    seen = np.array([view.shows_ear(side, ear) for side, ear in zip((1, -1), both, strict=True)])
    shown = np.array([view.where(ear).sum() for ear in both])
    return np.where(shown < HARDLY * shown[::-1], seen[::-1], seen)


@dataclass(frozen=True)
class _View:
    """A head without static offset, drawn over its photo."""

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
        """Mask of the pixels that show chosen vertices."""
        return (self.drawn >= 0) & chosen[np.maximum(self.drawn, 0)]

    def columns(self, chosen: Bool[np.ndarray, " V"]) -> Float[np.ndarray, "P 2"]:
        """Projections of chosen vertices, crop px."""
        points = self.verts[chosen]
        return points[:, :2] / points[:, 2:] * self.focal_px + CROP_SIZE / 2

    def shows_ear(self, side: int, alone: Bool[np.ndarray, " V"]) -> bool:
        """True if an ear is bare. `side`: 1 for the person's left (positive x), -1 right; `alone`: its vertices."""
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
        """Median extent of the person beyond the ear's rim (column `rim`), m, over the rows `top` to `bottom`."""
        steps = []
        for row in range(top, bottom):
            inside = np.flatnonzero(self.matte[row] > 0.5)
            if len(inside):
                steps.append(outward * ((inside.max() if outward > 0 else inside.min()) - rim))
        return float(np.median(steps)) * self.depth_m / self.focal_px if steps else 0.0

    def hands(self, away_m: Float32[np.ndarray, "S S"], nearest: Int64[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
        """Mask of hands: large skin-coloured parts beside the head.

        `away_m`: distance of each pixel from the drawn head; `nearest`: the vertex nearest to it.
        """
        face, crown = self.where(plain_skin(self.head)), self._crown()
        beside = (away_m > BESIDE_M) & (self.matte > 0.5)
        beside &= (self.head.skinning[:, TORSO].numpy() < CLOTHED)[nearest]
        if min(face.sum(), crown.sum()) < LEAST_PX or not beside.any():
            return np.zeros_like(beside)
        skin, hair = Gaussian.of(self.lab[face]), Gaussian.of(self.lab[crown])
        if skin.distance(hair) < CLEARLY:
            return np.zeros_like(beside)
        is_skin = beside & (skin.score(self.lab) > hair.score(self.lab)) & (skin.peak_score(self.lab) > -0.5 * 3**2)
        found = cv2.connectedComponents(cv2.morphologyEx(is_skin.astype(np.uint8), cv2.MORPH_OPEN, np.ones((13, 13))))
        parts = np.asarray(found[1], np.int64)
        size, reach = np.bincount(parts.ravel()), np.zeros(parts.max() + 1, np.float32)
        np.maximum.at(reach, parts, away_m)
        is_hand = (size > HAND_PX) & (reach > HAND_M) & (np.arange(len(size)) > 0)
        return (cv2.dilate(is_hand[parts].astype(np.uint8), np.ones((15, 15), np.uint8)) > 0) & (away_m > 0)

    def _crown(self) -> Bool[np.ndarray, "S S"]:
        """Mask of hair on top: on the crown, and above the head down to 10 cm below its top."""
        drawn = self.drawn >= 0
        top = np.nonzero(drawn)[0].min() + 0.10 / self.depth_m * self.focal_px
        above = ~drawn & (np.arange(CROP_SIZE)[:, None] < top)
        return (self.where(self.head.scalp & (self.template[:, 1] > CROWN_M)) | above) & (self.matte > 0.9)

    def _skin_share(
        self, ear: Bool[np.ndarray, "S S"], cheek: Bool[np.ndarray, "S S"], hair: Bool[np.ndarray, "S S"]
    ) -> float | None:
        """Share of the ear with the colours of the cheek and not of hair; None if these colours do not differ."""
        skin_colours, hair_colours = Gaussian.of(self.lab[cheek]), Gaussian.of(self.lab[hair])

        def share(where):
            odds = skin_colours.score(self.lab[where]) - hair_colours.score(self.lab[where])
            return (1 / (1 + np.exp(-np.clip(odds, -30, 30)))).mean()

        high, low = share(cheek), share(hair)
        if high - low < SEPARATED or skin_colours.distance(hair_colours) < APART:
            return None
        return float((share(ear) - low) / (high - low))


def _loose(
    hair: Bool[np.ndarray, "S S"], low: Bool[np.ndarray, "S S"], scalp: Bool[np.ndarray, "S S"]
) -> Bool[np.ndarray, "S S"]:
    """Parts of the hair mask that lie low, and are connected to the scalp by at most a narrow strip."""

    def beside(parts: Bool[np.ndarray, "S S"]) -> Bool[np.ndarray, "S S"]:
        return cv2.dilate(parts.astype(np.uint8), np.ones((width + 2,) * 2, np.uint8)) > 0

    width = round(BRIDGE_PX * len(hair) / CROP_SIZE) | 1
    count, found = cv2.connectedComponents(cv2.erode(hair.astype(np.uint8), np.ones((width,) * 2, np.uint8)))
    parts = np.asarray(found, np.int64)
    area, below, above = (np.bincount(parts[hair & where], minlength=count) for where in (hair, low, scalp))
    is_loose = (below > 0.7 * area) & (above < SMALL_PX) & (np.arange(count) > 0)
    kept = beside((parts > 0) & ~is_loose[parts])
    return hair & ~kept & (low | beside(is_loose[parts]))


def _cloth_like_hair(rough: Float32[np.ndarray, "S S"], hair_look: Look) -> Bool[np.ndarray, "S S"]:
    """Mask of pixels whose surroundings are much smoother than the hair on the head."""
    level = np.clip(50 * (rough + 5), 0, 255).astype(np.uint8)
    usual = cv2.medianBlur(level, round(AROUND_PX * len(rough) / CROP_SIZE) | 1)
    return usual < 50 * (hair_look.rough[0] - SMOOTHER + 5)


def pixel_classes(
    image: UInt8[np.ndarray, "S S 3"],
    matte: Float32[np.ndarray, "S S"],
    drawn: Int64[np.ndarray, "S S"],
    head: HeadModel,
) -> Float32[np.ndarray, "S S 3"]:
    """Share of skin, hair and clothes in every pixel of a crop; their sum is the matte.

    `drawn` is the dense vertex that each pixel shows, -1 where the head is not drawn. Colours and roughness of skin and
    hair are those of this photo's face and crown; the place on the head is a prior.
    """
    template = dense(head, head.template).numpy()
    is_drawn, vertex = drawn >= 0, np.maximum(drawn, 0)
    height, lab = template[vertex, 1], np.dstack([lab_colours(image), roughness(image)])
    plain, inner = (is_drawn & mask[vertex] for mask in (plain_skin(head), dynamic_mask(head) > 0.5))
    # Cheeks alone: with brows, fringes and beards, skin would have all colours.
    cheek = plain & (np.abs(template[vertex, 0]) < CHEEK_M) & (height < EYE_M) & (height > NOSE_M)
    crown = is_drawn & (height > CROWN_M) & (matte > 0.9)
    torso = is_drawn & (head.skinning[:, TORSO].numpy() > 0.6)[vertex]
    neck = is_drawn & ((head.skinning[:, NECK].numpy() > 0.3) & (template[:, 2] > 0))[vertex] & ~torso
    below = np.zeros_like(matte, bool)
    if torso.any():
        below[np.nonzero(torso)[0].min() :] = True
    skin_look = Look.of(lab, cheek) if cheek.sum() > SMALL_PX else None
    hair_look = Look.of(lab, crown) if crown.sum() > SMALL_PX else None
    if skin_look is None:
        odds = np.full(matte.shape, -30.0)
    elif hair_look is None or skin_look.distance(hair_look) < APART:
        odds = np.where(is_drawn | below, 30.0, -30.0)
    else:
        # Wrinkles, eyes and lips are as rough as hair.
        smooth = lab.copy()
        smooth[inner, 3] = (skin_look.rough[0] + hair_look.rough[0]) / 2
        odds = skin_look.score(smooth) - hair_look.score(smooth)
    odds = odds + 3.0 * (inner & (height < BROW_M)) + 1.5 * neck - 1.0 * (head.scalp[vertex] & is_drawn)
    odds = odds - 2.0 * (crown | ~(is_drawn | below)) + 30.0 * (is_drawn & ~head.part("skin").numpy()[vertex])
    hair = 1 / (1 + np.exp(np.clip(odds, -30, 30)))
    clothes = (torso | (below & ~is_drawn)).astype(np.float64)
    if skin_look is not None:
        known = [each.likeness(lab) for each in (skin_look, hair_look) if each is not None]
        clothes *= 1 / (1 + np.exp(np.clip(np.max(known, 0) - OTHER, -30, 30)))
    # Far from the neck a pixel is cloth, whatever its colour, which in black and white is often that of skin.
    outside = smoothstep(np.abs(template[vertex, 0]), *SHOULDER_M) * torso * (1 - hair)
    clothes = np.maximum(clothes, outside)
    # Cloth in the colours of hair is smoother, or does not hang down from it.
    if hair_look is not None:
        clothes = np.where((below | neck) & (hair > 0.5) & _cloth_like_hair(lab[..., 3], hair_look), 1.0, clothes)
    cloth = _loose(hair * (1 - clothes) * matte > 0.5, below | neck, is_drawn & head.scalp[vertex])
    clothes = np.where(cloth, 1.0, clothes)
    shares = np.stack([(1 - clothes) * (1 - hair), (1 - clothes) * hair, clothes], -1).astype(np.float32)
    radius = max(round(4 * image.shape[0] / CROP_SIZE), 1)
    smooth = cv2.ximgproc.guidedFilter(image, shares, radius, 0.02**2 * 255**2)
    smooth = np.clip(smooth, 0, None)
    return (smooth / np.maximum(smooth.sum(-1, keepdims=True), 1e-6) * matte[..., None]).astype(np.float32)
