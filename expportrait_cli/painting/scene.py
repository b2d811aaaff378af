"""What a painter sees of a film, and what a painter is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import GenerateConfig
from expportrait_cli.detect.crop import Box, Crop, crop_image, shape_of, shown_box
from expportrait_cli.detect.matte import Matte
from expportrait_cli.errors import FilmError
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import Edges, edges
from expportrait_cli.head import HeadModel, landmark_model, landmarks
from expportrait_cli.head.facemesh import CHIN, FOREHEAD, IRIS, LIP_PAIRS
from expportrait_cli.head.fitted import Bones, fitted_mesh, person_joints, photo_curves, relief_of
from expportrait_cli.media.video import read_frame
from expportrait_cli.painting.proxy.compositor import Compositor
from expportrait_cli.painting.proxy.glimpse import Glimpse, Glimpses
from expportrait_cli.painting.proxy.layers import lids, prepare
from expportrait_cli.painting.proxy.lips import around_lips
from expportrait_cli.render.buffers import Buffers, Bump, render_buffers


@dataclass(frozen=True)
class Still:
    """The photo on the canvas of the film, and the head that was fitted to it."""

    photo: UInt8[np.ndarray, "H W 3"]
    normals: Float32[np.ndarray, "H W 3"]
    """N^R: x right, y up, z to the viewer; zero where there is no head."""
    landmarks_px: Float32[np.ndarray, "L 2"] | None = None
    """FaceMesh's landmarks on the fitted head; None where there is no head behind the picture."""
    depth: Float32[np.ndarray, "H W"] | None = None
    """As `Sketch.depth`; None likewise."""


@dataclass(frozen=True)
class Sketch:
    """One frame as the proxy film has it, and the posed head in it."""

    proxy: UInt8[np.ndarray, "H W 3"]
    guess: Float32[np.ndarray, "H W"]
    """How far the proxy made a pixel up: 0 where it shows the photo's, 1 where the photo had nothing to show."""
    draw: Callable[[], Buffers]
    """Draws the posed head, for those who ask."""
    landmarks_px: Float32[np.ndarray, "L 2"] | None = None
    """FaceMesh's landmarks on the posed head; None where there is no head behind the picture."""

    @property
    def normals(self) -> Float32[np.ndarray, "H W 3"]:
        """N^D, as N^R."""
        return self._buffers.normals[0].numpy()

    @property
    def depth(self) -> Float32[np.ndarray, "H W"]:
        """Distance along the optical axis, m; zero where there is no head."""
        return self._buffers.depth[0].numpy()

    @cached_property
    def _buffers(self) -> Buffers:
        return self.draw()


Sketches = Callable[[int], Iterator[Sketch]]
"""The frames from a given one on to the end of the film, made as they are asked for."""


@runtime_checkable
class Painter(Protocol):
    """Makes frames of one film; memory must not grow with its length."""

    @property
    def name(self) -> str:
        """As in `GenerateConfig.backend`."""
        ...

    @property
    def detail(self) -> bool:
        """Whether it was made for normal maps with fine static detail (`Scene.detail`)."""
        ...

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield the frames from `start` on of a film of `count`.

        They are the same whatever `start` is: a painter that looks at frames before it asks for them, or finds in the
        folder `keep` what it left there when it painted them.
        """
        ...


class ProxyPainter:
    """The proxy film as it is."""

    name, detail = "proxy", True

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield the proxy's frames."""
        return (sketch.proxy for sketch in sketches(start))


@dataclass(frozen=True)
class Canvas:
    """Pixels that are painted, and how the photo's crop lies in them."""

    photo: UInt8[np.ndarray, "H W 3"]
    alpha: Float32[np.ndarray, "H W"]
    camera: Camera
    scale: float
    """Canvas px for one px of the crop."""
    corner: tuple[float, float]
    """Crop's corner on the canvas, px."""

    def hair(self, fit: HeadFit) -> Float32[np.ndarray, "H W"]:
        """Share of hair in each pixel (`HeadFit.classes`); none outside the crop, and where a head was not asked."""
        shape = self.alpha.shape
        if not fit.classes.size:
            return np.zeros(shape, np.float32)
        shift = (self.scale - 1) / 2
        place = np.array([[self.scale, 0, self.corner[0] + shift], [0, self.scale, self.corner[1] + shift]])
        share = np.ascontiguousarray(fit.classes[..., 1], np.float32) / 255
        return cv2.warpAffine(share, place, shape[::-1], flags=cv2.INTER_LINEAR)


def crop_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, size: int) -> Canvas:
    """The photo's crop at `size` pixels."""
    crop = Crop(*map(float, fit.crop))
    alpha = Matte().matte(crop_image(image, crop, CROP_SIZE))
    if size != CROP_SIZE:
        alpha = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_LINEAR)
    camera = Camera.of_crop(fit.focal_px, CROP_SIZE, size)
    return Canvas(crop_image(image, crop, size), alpha, camera, size / CROP_SIZE, (0.0, 0.0))


def photo_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, size: int) -> Canvas:
    """The whole photo, so scaled that the crop has at most `size` pixels."""
    height, width = image.shape[:2]
    shrink = min(1.0, size / float(fit.crop[2]))
    shape = (max(round(width * shrink), 2), max(round(height * shrink), 2))
    return box_canvas(image, fit, Box(0.0, 0.0, float(width), float(height)), shape)


def box_canvas(image: UInt8[np.ndarray, "H W 3"], fit: HeadFit, box: Box, shape: tuple[int, int]) -> Canvas:
    """A part of the photo at `shape` (width, height) pixels; the matte of the crop wins inside it."""
    crop = Crop(*map(float, fit.crop))
    left, top, width, height = map(int, box)
    ratio = shape[0] / width
    photo = image[top : top + height, left : left + width]
    if photo.shape[1::-1] != shape:
        photo = cv2.resize(photo, shape, interpolation=cv2.INTER_AREA if ratio < 1 else cv2.INTER_CUBIC)
    photo = np.ascontiguousarray(photo).astype(np.uint8)
    scale = ratio * crop.side / CROP_SIZE
    corner = ((crop.left - left) * ratio, (crop.top - top) * ratio)
    whole = _square_matte(photo)
    inner = Matte().matte(crop_image(image, crop, CROP_SIZE))
    alpha = _merge(whole, inner, scale, corner)
    camera = Camera(fit.focal_px * scale, corner[0] + CROP_SIZE / 2 * scale, corner[1] + CROP_SIZE / 2 * scale, *shape)
    return Canvas(photo, alpha, camera, scale, corner)


def _square_matte(photo):
    """Matte of the whole photo, read through the smallest square around it."""
    height, width = photo.shape[:2]
    side = max(height, width)
    square = Crop(round((width - side) / 2), round((height - side) / 2), side)
    k = CROP_SIZE / side
    matte = Matte().matte(crop_image(photo, square, CROP_SIZE))
    x, y = np.meshgrid(np.arange(width) + 0.5 - square.left, np.arange(height) + 0.5 - square.top)
    return cv2.remap(matte, (x * k - 0.5).astype(np.float32), (y * k - 0.5).astype(np.float32), cv2.INTER_LINEAR)


def _merge(whole, inner, scale, corner):
    """Put the crop's finer matte over the whole one, with a soft seam at the crop's border."""
    height, width = whole.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    x, y = ((x - corner[0]) / scale).astype(np.float32), ((y - corner[1]) / scale).astype(np.float32)
    fine = cv2.remap(inner, x - 0.5, y - 0.5, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    edge = np.minimum(np.minimum(x, CROP_SIZE - x), np.minimum(y, CROP_SIZE - y))
    weight = np.clip(edge / 24, 0, 1)
    return (fine * weight + whole * (1 - weight)).astype(np.float32)


UNLIKE = 0.2
"""Difference from the photo (`Witnesses.unlike`) from which a frame is torn or another picture."""
WITNESSES = 900
"""Approximate number of triangles of the face that are compared."""
FACING = 0.35
"""Least area of a triangle in the picture, as a share of its area seen from the front, for it to be compared."""
LEAST_SPREAD = 12.0
"""Levels by which the witnesses of any photo are taken to differ: compression and grain are no fault."""
FEWEST = 60
"""Witnesses in sight below which a head that is turned away says nothing."""


class Witnesses:
    """Triangles of the face and their colours in the photo: what a frame has to show where they now lie.

    They are read pixel by pixel, by none of the operations that paint a frame, so that a fault in those shows.
    """

    def __init__(self, canvas: Canvas, verts_cam: Float32[np.ndarray, "V 3"], head: HeadModel) -> None:
        """Read the photo where the fitted head `verts_cam` lies."""
        self._camera = canvas.camera
        facial = ((head.facial_mask > 0.5) & head.part("skin")).numpy() & ~lids(head) & ~around_lips(head)
        triangles = head.dense_faces.numpy()
        triangles = triangles[facial[triangles].all(1)]
        self._triangles = triangles[:: max(len(triangles) // WITNESSES, 1)]
        self._colours, self._seen = self._look(canvas.photo, verts_cam)

    def unlike(self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]) -> float:
        """Squared difference from the photo at the witnesses, as a share of how much they differ among themselves.

        0 where they show the photo's colours, about 2 where they show anything; 0 too if too few are in sight.
        """
        colours, seen = self._look(frame, verts_cam)
        both = seen & self._seen
        if both.sum() < FEWEST:
            return 0.0
        expected = self._colours[both]
        spread = ((expected - expected.mean((0, 1))) ** 2).mean()
        return float(((colours[both] - expected) ** 2).mean() / max(spread, LEAST_SPREAD**2))

    def _look(
        self, frame: UInt8[np.ndarray, "H W 3"], verts_cam: Float32[np.ndarray, "V 3"]
    ) -> tuple[Float32[np.ndarray, "N 3"], Bool[np.ndarray, " N"]]:
        """Colours at the triangles, and which of them face the camera inside the picture."""
        corners = verts_cam[self._triangles]
        px = corners[..., :2] / corners[..., 2:] * self._camera.focal_px + [self._camera.cx, self._camera.cy]
        a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        normal = np.cross(a, b)
        facing = normal[:, 2] < -FACING * np.linalg.norm(normal, axis=1)
        height, width = frame.shape[:2]
        column, row = np.floor(px.mean(1)).astype(int).T
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        colours = cv2.blur(frame, (3, 3))[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
        return colours.astype(np.float32), facing & inside


UPPER_LIP, LOWER_LIP = LIP_PAIRS[0]


def _iris(points: Float[np.ndarray, "5 2"]) -> Float[np.ndarray, " 3"]:
    """Centre and radius of an iris from its landmarks: the centre, then four points of its rim."""
    return np.r_[points[0], np.linalg.norm(points[1:] - points[0], axis=1).mean()]


@dataclass(frozen=True)
class Scene:
    """One person's head, their photo, and the meshes that say how it moves."""

    fit: HeadFit
    meshes: Meshes
    head: HeadModel
    whole: UInt8[np.ndarray, "H W 3"]
    """The photo as it is,"""
    canvas: Canvas
    """and what of it the film shows."""
    driver: Tracking | None = None
    """Whose clip says what is between the lips (`GenerateConfig.mouth`); None if the head model does."""
    detail: bool = True
    """Whether normals show the photo's fine static detail."""

    @classmethod
    def of(
        cls,
        fit: HeadFit,
        meshes: Meshes,
        head: HeadModel,
        config: GenerateConfig,
        driver: Tracking | None = None,
    ) -> "Scene":
        """Read the photo."""
        photo = read_frame(fit.source, fit.picture)
        if not config.detail:
            fit = replace(fit, relief=np.zeros((0, 0), np.float16))
        if config.paste_back:
            canvas = photo_canvas(photo, fit, config.size)
        elif (shape := shape_of(config.aspect, config.size))[0] == shape[1]:
            canvas = crop_canvas(photo, fit, config.size)
        else:
            canvas = box_canvas(photo, fit, shown_box(fit, fit.landmarks, config), shape)
        return cls(fit, meshes, head, photo, canvas, driver)

    @property
    def still(self) -> Still:
        """The photo and its normals."""
        verts = fitted_mesh(self.fit, self.head)
        buffers = self._buffers(verts)
        normals, depth = buffers.normals[0].numpy(), buffers.depth[0].numpy()
        return Still(self.canvas.photo, normals, self._landmarks_px(verts), depth)

    def sketches(self, start: int) -> Iterator[Sketch]:
        """Frames from `start` on, painted by the compositor."""
        for index, verts in enumerate(self.meshes.frames(start), start):
            if not np.isfinite(verts).all():
                raise FilmError(f"Frame {index} of the meshes holds no numbers (NaN). Make them again, then the film.")
            proxy, guess = self._compositor.frame(verts, self._bones(index), self._glimpse(index))
            if (unlike := self._witnesses.unlike(proxy, verts)) > UNLIKE:
                raise FilmError(
                    f"Frame {index} of the film does not show the face of the photo: {unlike:.1f} of the variance at "
                    f"its points differs, expected below {UNLIKE}. This is a fault of the tool or of OpenCV "
                    f"{cv2.__version__}; install the versions of constraints.txt, and report it."
                )
            yield Sketch(proxy, guess, partial(self._buffers, verts), self._landmarks_px(verts))

    def _landmarks_px(self, verts: Float32[np.ndarray, "V 3"]) -> Float32[np.ndarray, "L 2"]:
        points = landmarks(self.head, torch.from_numpy(np.ascontiguousarray(verts)))
        return self.canvas.camera.project(points).float().numpy()

    def _glimpse(self, index: int) -> Glimpse | None:
        return self._glimpses.at(index) if self._glimpses is not None else None

    def _bones(self, index: int) -> Bones:
        return Bones.of(self._joints, self.meshes.curves, index)

    def _buffers(self, verts: Float32[np.ndarray, "V 3"]) -> Buffers:
        return render_buffers(
            torch.from_numpy(np.ascontiguousarray(verts))[None],
            self.head.dense_faces,
            self.canvas.camera,
            edges=self._edges,
            bump=self._bump,
        )

    @cached_property
    def _bump(self) -> Bump | None:
        return Bump.of(relief_of(self.fit, self.head), scale=self.canvas.scale) if self.detail else None

    @cached_property
    def _witnesses(self) -> Witnesses:
        return Witnesses(self.canvas, fitted_mesh(self.fit, self.head), self.head)

    @cached_property
    def _edges(self) -> Edges:
        return edges(self.head.dense_faces)

    @cached_property
    def _joints(self):
        return person_joints(self.fit, self.head).numpy()

    @cached_property
    def _glimpses(self) -> Glimpses | None:
        return Glimpses(self.driver) if self.driver is not None else None

    @cached_property
    def _compositor(self) -> Compositor:
        fit, head, canvas = self.fit, self.head, self.canvas
        layers = prepare(canvas.photo, canvas.alpha, fitted_mesh(fit, head), head, canvas.camera, canvas.hair(fit))
        points = fit.landmarks * canvas.scale + np.array(canvas.corner)
        model = landmark_model(head)
        lips = (model.template + model.identity @ fit.identity)[[UPPER_LIP, LOWER_LIP]]
        reference = Bones.of(self._joints, photo_curves(fit, head), 0)
        return Compositor(
            layers,
            head,
            reference,
            lips.mean(0),
            irises=np.stack([_iris(points[rows]) for rows in (IRIS[5:], IRIS[:5])]),
            face_height_px=float(np.linalg.norm(points[CHIN] - points[FOREHEAD])),
            chin_y_px=float(points[CHIN, 1]),
            glimpses=self._glimpses,
        )
