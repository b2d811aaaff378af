"""Fine static detail read from one photo: strands, hairline, brows, wrinkles and collars as heights over the mesh.

Dark is taken for deep, as in Beeler et al. 2010 (mesoscopic augmentation): a frequency band of log brightness becomes a
height. Slopes are plausible, not metric. Strong steps of albedo stay in the base of an edge-preserving filter, and
marks that change hue as well as brightness count as colour, not as shape.
"""

import logging
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from jaxtyping import Float16, Float32, Int64, UInt8
from scipy.fft import dctn, idctn

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.estimate import Estimate, Estimator
from expportrait_cli.detect.matte import smoothstep
from expportrait_cli.fitting.seen import pixel_classes
from expportrait_cli.fitting.silhouette import draw_vertices
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import fitted_mesh
from expportrait_cli.render.buffers import render_buffers

log = logging.getLogger(__name__)

GAMMA = 2.2
SKIN, HAIR, CLOTHES = range(3)


@dataclass(frozen=True)
class Band:
    """Filter that turns the brightness of one class of pixels (skin, hair or clothes) into relief."""

    gain_mm: float
    """Height of one unit of the logarithm of linear brightness, mm."""
    limit_mm: float
    """Largest height, mm."""
    fine_mm: float
    """Standard deviation of the blur that removes finer detail, mm."""
    coarse_mm: float
    """Radius of the edge-preserving filter, mm: wider structures are shape or light."""
    step: float
    """Step of log brightness above which an edge counts as albedo and stays in the base."""


SKIN_BAND, CLOTHES_BAND = Band(1.2, 0.5, 0.35, 6.0, 0.30), Band(3.0, 4.0, 1.2, 22.0, 0.36)
HAIR_BANDS = ((0.3, 2.5, 0.7), (2.0, 10.0, 0.9))
"""Strands and locks of hair: standard deviations of the Gaussians that bound a band, mm, and its usual height, mm.

The band is divided by its local contrast: black, blond and blurred hair differ ten times in contrast, and not in
height."""
HAIR_LIMIT_MM, CONTRAST, LEVELS = 2.0, 0.06, 2.0
"""HAIR_LIMIT_MM: largest height of strands and locks, mm. CONTRAST (log of linear brightness) and LEVELS (of 255):
contrast of hair that may be noise."""
COARSEST_MM = 15.0
"""Scale, mm, above which shape belongs to the mesh, and not to the relief."""
STRAND_MM = 2.5
"""Half the length along which strands of hair are averaged, and the scale at which their direction is read, mm."""
HUE, HUE_MM = 6.0, (0.7, 4.0)
"""HUE: sum of the changes of a and b (CIE Lab, 0..255) at which a mark's height is halved, because it is colour and not
shape. HUE_MM: lower and upper scale of these changes, mm."""
HAIR_LIES_MM, CLOTHES_LIE_MM = 3.0, 2.0
"""Heights of hair and of clothes above the skin, mm."""
SOFT_MM = (1.5, 1.2, 1.8)
"""Standard deviations of two successive blurs of the border of hair, and of one of clothes, mm."""


LARGEST = 1024
"""Largest side of the relief, px: finer detail such as pores is lost in the normal maps of a film."""
CLASSES = ("skin", "hair", "clothes")
STEEP = 0.2
"""Least cosine to the viewer of normals whose slopes are used."""
FACING = (0.08, 0.33)
"""Cosine between a vertex's normal and the view at which its visibility in the photo is 0, and 1."""
BEHIND_M = 0.006
"""Depth, m, by which a vertex may lie behind the drawn surface in its pixel and still count as visible."""


def with_detail(
    fit: HeadFit,
    head: HeadModel,
    photo: UInt8[np.ndarray, "H W 3"],
    matte: Float32[np.ndarray, "S S"],
    network: Estimator | None = None,
) -> HeadFit:
    """Add pixel classes and the fine static detail of the photo to a fit.

    `photo` is the whole picture, `matte` that of its crop at `CROP_SIZE`. With a `network` the detail comes from its
    normals, and its correlation with the detail from shades is logged.
    """
    crop, verts = Crop(*map(float, fit.crop)), fitted_mesh(fit, head)
    drawn = draw_vertices(verts, head, fit.focal_px, size=CROP_SIZE)
    side = int(np.clip(round(crop.side / CROP_SIZE) * CROP_SIZE, CROP_SIZE, LARGEST)) if network is None else CROP_SIZE
    picture, small = (crop_image(photo, crop, each) for each in (side, CROP_SIZE))
    px_per_mm = fit.focal_px / (1000 * float(fit.translation[2])) * side / CROP_SIZE
    heights_mm, classes = read_relief(picture, matte, drawn, head, px_per_mm=px_per_mm, small=small)
    if network is not None:
        camera = Camera.of_crop(fit.focal_px, CROP_SIZE, CROP_SIZE)
        with torch.no_grad():
            mesh = render_buffers(torch.from_numpy(verts)[None], head.dense_faces.int(), camera).normals[0].numpy()
        shaded_mm = heights_mm
        heights_mm = heights_from_normals(network(small), mesh, classes, px_per_mm=px_per_mm)
        found = [f"{name} {_likeness(shaded_mm, heights_mm, classes[..., k]):.2f}" for k, name in enumerate(CLASSES)]
        log.info("Detail read from shades correlates with that of %s: %s.", network.name, ", ".join(found))
    return replace(
        fit,
        relief=(heights_mm / 1000).astype(np.float16),
        relief_seen=shown(verts, head, matte, fit.focal_px),
        classes=np.rint(255 * classes).astype(np.uint8),
    )


def heights_from_normals(
    estimate: Estimate,
    mesh: Float32[np.ndarray, "S S 3"],
    classes: Float32[np.ndarray, "S S 3"],
    *,
    px_per_mm: float,
) -> Float32[np.ndarray, "S S"]:
    """Heights over the mesh, mm, whose slopes are those of a network's normals minus the mesh's own.

    Slopes are integrated in the least squares sense by cosine transforms (Simchony et al. 1990). They are 0 where
    either normal is unknown or nearly perpendicular to the view.
    """
    trust = estimate.confidence * (classes.sum(-1) > 0.5)
    slopes = np.zeros((*trust.shape, 2), np.float32)
    known = (trust > 0) & (np.minimum(estimate.normals[..., 2], mesh[..., 2]) > STEEP)
    own, plain = (-each[known][:, :2] / each[known][:, 2:] for each in (estimate.normals, mesh))
    slopes[known] = trust[known, None] * np.clip(own - plain, -1, 1) / px_per_mm
    across, down = slopes[..., 0], -slopes[..., 1]
    # Slopes are given at pixels; the mean of two neighbours is the height step between them.
    steps = (across[:, :-1] + across[:, 1:]) / 2, (down[:-1] + down[1:]) / 2
    divergence = np.diff(np.pad(steps[0], ((0, 0), (1, 1))), axis=1) + np.diff(
        np.pad(steps[1], ((1, 1), (0, 0))), axis=0
    )
    waves = 2 * np.cos(np.pi * np.arange(len(trust)) / len(trust)) - 2
    power = waves[:, None] + waves
    power[0, 0] = 1.0
    heights = idctn(np.asarray(dctn(divergence, norm="ortho")) / power, norm="ortho")
    return _settled(np.asarray(heights, np.float32), classes, px_per_mm)


def _likeness(a: Float32[np.ndarray, "S S"], b: Float32[np.ndarray, "S S"], share: Float32[np.ndarray, "S S"]) -> float:
    """Correlation of two maps over the pixels where `share` exceeds 0.5; 0 without any."""
    inside = share > 0.5
    spread = a[inside].std() * b[inside].std() if inside.any() else 0.0
    return float(np.corrcoef(a[inside], b[inside])[0, 1]) if spread > 0 else 0.0


def read_relief(
    picture: UInt8[np.ndarray, "R R 3"],
    matte: Float32[np.ndarray, "S S"],
    drawn: Int64[np.ndarray, "S S"],
    head: HeadModel,
    *,
    px_per_mm: float,
    small: UInt8[np.ndarray, "S S 3"] | None = None,
) -> tuple[Float32[np.ndarray, "R R"], Float32[np.ndarray, "S S 3"]]:
    """Heights of a crop's detail, mm, and its `pixel_classes`; `small`: the crop at `CROP_SIZE`, if it is larger."""
    classes = pixel_classes(picture if small is None else small, matte, drawn, head)
    side = len(picture)
    shares = classes if side == len(classes) else cv2.resize(classes, (side, side), interpolation=cv2.INTER_LINEAR)
    return relief_heights(picture, shares, px_per_mm=px_per_mm), classes


def shown(
    verts: Float32[np.ndarray, "V 3"], head: HeadModel, matte: Float32[np.ndarray, "S S"], focal_px: float
) -> Float16[np.ndarray, " V"]:
    """Visibility (0..1) in the photo of each vertex of skin, hair, clothes and teeth; 1: facing, and not hidden."""
    points, faces = torch.from_numpy(verts), head.dense_faces
    camera = Camera.of_crop(focal_px, CROP_SIZE, CROP_SIZE)
    with torch.no_grad():
        depth = render_buffers(points[None], faces.int(), camera, antialias=False).depth[0].numpy()
        away = (vertex_normals(points, faces) * points).sum(-1) / points.norm(dim=-1)
        place = camera.project(points).numpy()
    # The farthest of the pixels around: an outline must not hide its own vertices.
    front = cv2.dilate(depth, np.ones((3, 3), np.uint8))
    x, y = np.clip(place.astype(int), 0, CROP_SIZE - 1).T
    is_front = verts[:, 2] < front[y, x] + BEHIND_M
    told = head.part("skin", *({"teeth_upper", "teeth_lower"} & set(head.part_names))).numpy()
    inside = ((place >= 0) & (place < CROP_SIZE)).all(1) & told
    facing = smoothstep(-away.numpy(), *FACING)
    return (facing * is_front * inside * matte[y, x]).astype(np.float16)


def relief_heights(
    image: UInt8[np.ndarray, "S S 3"], classes: Float32[np.ndarray, "S S 3"], *, px_per_mm: float
) -> Float32[np.ndarray, "S S"]:
    """Heights over the smooth surface, mm, of a photo's skin, hair and clothes (`classes`, shares of each pixel)."""

    def px(length_mm: float) -> float:
        return max(length_mm * px_per_mm, 0.6)

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    log_light = (GAMMA * np.log((grey + 6) / 255)).astype(np.float32)

    def band(of: Band) -> Float32[np.ndarray, "S S"]:
        base = cv2.ximgproc.guidedFilter(log_light, log_light, max(round(px(of.coarse_mm)), 2), of.step**2)
        return _blurred(log_light - base, px(of.fine_mm))

    skin, clothes = band(SKIN_BAND), band(CLOTHES_BAND)
    lab = cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32)
    hue = sum(np.abs(lab[..., c] - _blurred(lab[..., c], px(HUE_MM[1]))) for c in (1, 2))
    skin = skin / (1 + (_blurred(np.asarray(hue, np.float32), px(HUE_MM[0])) / HUE) ** 2)
    heights = sum(
        share * _limited(height, limit_mm)
        for share, height, limit_mm in (
            (classes[..., SKIN], SKIN_BAND.gain_mm * skin, SKIN_BAND.limit_mm),
            (classes[..., HAIR], _strands(log_light, grey, classes[..., HAIR], px), HAIR_LIMIT_MM),
            (classes[..., CLOTHES], CLOTHES_BAND.gain_mm * clothes, CLOTHES_BAND.limit_mm),
        )
    )
    return _settled(np.asarray(heights, np.float32) + _layers(classes, px), classes, px_per_mm)


def _strands(
    log_light: Float32[np.ndarray, "S S"], grey: Float32[np.ndarray, "S S"], share: Float32[np.ndarray, "S S"], px
) -> Float32[np.ndarray, "S S"]:
    """Heights of strands and locks, mm: bands of log brightness, each divided by its local contrast."""

    def mean(values: Float32[np.ndarray, "S S"], sigma_px: float) -> Float32[np.ndarray, "S S"]:
        return _blurred(values * share, sigma_px) / np.maximum(_blurred(share, sigma_px), 0.02)

    noise = GAMMA * LEVELS / (grey + 6)
    heights = np.zeros_like(log_light)
    for fine_mm, coarse_mm, usual_mm in HAIR_BANDS:
        band = mean(log_light, px(fine_mm)) - mean(log_light, px(coarse_mm))
        contrast = np.sqrt(mean(band * band + noise * noise, px(2 * coarse_mm)) + CONTRAST**2)
        signal = (band / contrast * np.clip(share, 0, 1)).astype(np.float32)
        heights += usual_mm * (along_strands(signal, px(STRAND_MM)) if fine_mm < STRAND_MM / 2 else signal)
    return heights


def _settled(
    heights: Float32[np.ndarray, "S S"], classes: Float32[np.ndarray, "S S 3"], px_per_mm: float
) -> Float32[np.ndarray, "S S"]:
    """Remove scales that belong to the mesh (`COARSEST_MM`), and heights outside of the person."""
    matte, wide = classes.sum(-1), COARSEST_MM * px_per_mm
    heights -= _blurred(heights * matte, wide) / np.maximum(_blurred(matte, wide), 0.01)
    inner = _blurred(cv2.erode(matte, np.ones((3, 3), np.uint8)), 1.0)
    return (heights * inner).astype(np.float32)


def _layers(classes: Float32[np.ndarray, "S S 3"], px) -> Float32[np.ndarray, "S S"]:
    """Heights of hair and clothes over the skin, mm, with soft steps at their borders."""
    over = _blurred(_blurred(classes[..., HAIR], px(SOFT_MM[0])), px(SOFT_MM[1]))
    # Single pixels of the colour of hair are not hair.
    large = np.clip(2 * _blurred(classes[..., HAIR], px(6.0)), 0, 1)
    # Where hair falls over clothes, it lies on them.
    under = np.clip(2 * _blurred(classes[..., CLOTHES], px(12.0)), 0, 1) * over
    clothes = np.maximum(_blurred(classes[..., CLOTHES], px(SOFT_MM[2])), under)
    return HAIR_LIES_MM * over * large + CLOTHES_LIE_MM * clothes


def along_strands(signal: Float32[np.ndarray, "S S"], reach_px: float) -> Float32[np.ndarray, "S S"]:
    """Average along the direction of least change (structure tensor), the more the clearer that direction is."""
    dx, dy = cv2.Sobel(signal, cv2.CV_32F, 1, 0), cv2.Sobel(signal, cv2.CV_32F, 0, 1)
    xx, xy, yy = (_blurred(product, reach_px) for product in (dx * dx, dx * dy, dy * dy))
    across = 0.5 * np.arctan2(2 * xy, xx - yy)
    coherence = np.clip(1.5 * np.sqrt((xx - yy) ** 2 + 4 * xy**2) / (xx + yy + 1e-6), 0, 1)
    y, x = np.mgrid[: len(signal), : len(signal)].astype(np.float32)
    steps = np.linspace(-reach_px, reach_px, 9, dtype=np.float32)
    along_x, along_y = (-np.sin(across)).astype(np.float32), np.cos(across).astype(np.float32)
    lines = [
        cv2.remap(signal, x + s * along_x, y + s * along_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for s in steps
    ]
    mean = np.mean(lines, axis=0)
    return (mean * coherence + 0.25 * signal * (1 - coherence)).astype(np.float32)


def _blurred(values: Float32[np.ndarray, "H W"], sigma_px: float) -> Float32[np.ndarray, "H W"]:
    return cv2.GaussianBlur(values, (0, 0), sigma_px)


def _limited(values: Float32[np.ndarray, "H W"], limit: float) -> Float32[np.ndarray, "H W"]:
    return limit * np.tanh(values / limit)
