"""The inputs of a painter, frame by frame, and the interface of painters."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.config import GenerateConfig
from expportrait_cli.detect.crop import shape_of, shown_box
from expportrait_cli.errors import FilmError
from expportrait_cli.geometry.mesh import Edges, edges
from expportrait_cli.head import HeadModel, landmark_model, landmarks
from expportrait_cli.head.facemesh import CHIN, FOREHEAD, IRIS, LIP_PAIRS
from expportrait_cli.head.fitted import Bones, fitted_mesh, person_joints, photo_curves, relief_of
from expportrait_cli.media.video import read_frame
from expportrait_cli.painting.canvas import UNLIKE, Canvas, FaceCheck, box_canvas, crop_canvas, photo_canvas
from expportrait_cli.painting.proxy.compositor import Compositor
from expportrait_cli.painting.proxy.folds import DriverFolds
from expportrait_cli.painting.proxy.glimpse import Glimpse, Glimpses, Pictures
from expportrait_cli.painting.proxy.layers import prepare
from expportrait_cli.render.buffers import Buffers, Bump, render_buffers
from expportrait_cli.runtime import in_order, read_ahead


@dataclass(frozen=True)
class Still:
    """The photo on the canvas of the film, and the head that was fitted to it."""

    photo: UInt8[np.ndarray, "H W 3"]
    normals: Float32[np.ndarray, "H W 3"]
    """N^R: x right, y up, z to the viewer; zero where there is no head."""
    landmarks_px: Float32[np.ndarray, "L 2"] | None = None
    """FaceMesh's landmarks on the fitted head, px; None if the picture was not made from a head."""
    depth: Float32[np.ndarray, "H W"] | None = None
    """Distance along the optical axis, m, zero outside the head; None if the picture was not made from a head."""


@dataclass(frozen=True)
class Sketch:
    """One frame of the proxy film, and the posed head in it."""

    proxy: UInt8[np.ndarray, "H W 3"]
    guess: Float32[np.ndarray, "H W"]
    """Share of each pixel that the proxy guessed: 0 for pixels of the photo, 1 for what the photo does not show."""
    draw: Callable[[], Buffers]
    """Draws the posed head: normals, depth and mask."""
    landmarks_px: Float32[np.ndarray, "L 2"] | None = None
    """FaceMesh's landmarks on the posed head, px; None if the picture was not made from a head."""

    @property
    def normals(self) -> Float32[np.ndarray, "H W 3"]:
        """Normal map N^D, in the convention of `Still.normals`."""
        return self._buffers.normals[0].numpy()

    @property
    def depth(self) -> Float32[np.ndarray, "H W"]:
        """Distance along the optical axis, m; zero where there is no head."""
        return self._buffers.depth[0].numpy()

    @cached_property
    def _buffers(self) -> Buffers:
        return self.draw()


Sketches = Callable[[int], Iterator[Sketch]]
"""Function that yields the frames from a given index to the end of the film, each made when it is needed."""


@runtime_checkable
class Painter(Protocol):
    """Makes frames of one film; memory must not grow with its length."""

    @property
    def name(self) -> str:
        """Name of the painter, as in `GenerateConfig.backend`."""
        ...

    @property
    def detail(self) -> bool:
        """True if the painter expects normal maps with fine static detail (`Scene.detail`)."""
        ...

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield the frames from `start` on of a film of `count`.

        Frames do not depend on `start`: a painter that needs earlier frames gets them from `sketches`, or reads what it
        saved in the folder `keep` when it painted them.
        """
        ...


class ProxyPainter:
    """Returns the proxy film unchanged."""

    name, detail = "proxy", True

    def paint(
        self, still: Still, sketches: Sketches, *, start: int, count: int, keep: Path | None = None
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """Yield the proxy's frames."""
        return (sketch.proxy for sketch in sketches(start))


UPPER_LIP, LOWER_LIP = LIP_PAIRS[0]


def _iris(points: Float[np.ndarray, "5 2"]) -> Float[np.ndarray, " 3"]:
    """Centre and radius of an iris from its landmarks: the centre, then four points of its rim."""
    return np.r_[points[0], np.linalg.norm(points[1:] - points[0], axis=1).mean()]


@dataclass(frozen=True)
class Scene:
    """A person's fitted head, their photo, and the posed meshes of a film."""

    fit: HeadFit
    meshes: Meshes
    head: HeadModel
    whole: UInt8[np.ndarray, "H W 3"]
    """The whole photo, at its own size."""
    canvas: Canvas
    """The part of the photo that the film shows."""
    driver: Tracking | None = None
    """Tracking of the clip that mouth and folds are read from; None if none may be."""
    takes: frozenset[str] = frozenset({"mouth", "wrinkles"})
    """What is read from it (`GenerateConfig.mouth` and `GenerateConfig.wrinkles`)."""
    detail: bool = True
    """True if normal maps have the photo's fine static detail."""

    @classmethod
    def of(
        cls,
        fit: HeadFit,
        meshes: Meshes,
        head: HeadModel,
        config: GenerateConfig,
        driver: Tracking | None = None,
    ) -> "Scene":
        """Build the scene: read the fit's photo, and choose the canvas that `config` asks for."""
        photo = read_frame(fit.source, fit.picture)
        if not config.detail:
            fit = replace(fit, relief=np.zeros((0, 0), np.float16))
        if config.paste_back:
            canvas = photo_canvas(photo, fit, config.size)
        elif (shape := shape_of(config.aspect, config.size))[0] == shape[1]:
            canvas = crop_canvas(photo, fit, config.size)
        else:
            canvas = box_canvas(photo, fit, shown_box(fit, fit.landmarks, config), shape)
        takes = frozenset(name for name in ("mouth", "wrinkles") if getattr(config, name) == "driver")
        return cls(fit, meshes, head, photo, canvas, driver, takes)

    @property
    def still(self) -> Still:
        """The photo on the canvas, with normals, landmarks and depth of the fitted head."""
        verts = fitted_mesh(self.fit, self.head)
        buffers = self._buffers(verts)
        normals, depth = buffers.normals[0].numpy(), buffers.depth[0].numpy()
        return Still(self.canvas.photo, normals, self._landmarks_px(verts), depth)

    def sketches(self, start: int) -> Iterator[Sketch]:
        """Yield the proxy's frames from `start` on, composed in several threads."""
        frames = enumerate(read_ahead(self.meshes.frames(start), 2), start)
        # Here and not in the threads, since the driver's clip is read in order.
        given = ((index, verts, self._glimpse(index), self._folded(index)) for index, verts in frames)
        return in_order(lambda each: self._sketch(*each), given)

    def _sketch(
        self,
        index: int,
        verts: Float32[np.ndarray, "V 3"],
        glimpse: Glimpse | None,
        folded: UInt8[np.ndarray, "H W 3"] | None,
    ) -> Sketch:
        if not np.isfinite(verts).all():
            raise FilmError(f"Frame {index} of the meshes has vertices that are not finite: make them again.")
        fold = self._folds.of(folded, index) if folded is not None and self._folds is not None else None
        proxy, guess = self._compositor.frame(verts, self._bones(index), glimpse, fold)
        if (unlike := self._face_check.unlike(proxy, verts)) > UNLIKE:
            raise FilmError(
                f"Frame {index} of the film does not show the face of the photo: the colours of the face "
                f"differ by {unlike:.1f} of their variance, expected below {UNLIKE}. This is a fault of the tool or of "
                f"OpenCV {cv2.__version__}; install the versions of constraints.txt, and report it."
            )
        return Sketch(proxy, guess, partial(self._buffers, verts), self._landmarks_px(verts))

    def _landmarks_px(self, verts: Float32[np.ndarray, "V 3"]) -> Float32[np.ndarray, "L 2"]:
        points = landmarks(self.head, torch.from_numpy(np.ascontiguousarray(verts)))
        return self.canvas.camera.project(points).float().numpy()

    def _glimpse(self, index: int) -> Glimpse | None:
        return self._glimpses.at(index) if self._glimpses is not None else None

    def _folded(self, index: int) -> UInt8[np.ndarray, "H W 3"] | None:
        """The driver's picture, if its folds are drawn."""
        return self._pictures.at(index) if self._folds is not None and self._folds.shows(index) else None

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
    def _face_check(self) -> FaceCheck:
        return FaceCheck(self.canvas, fitted_mesh(self.fit, self.head), self.head)

    @cached_property
    def _edges(self) -> Edges:
        return edges(self.head.dense_faces)

    @cached_property
    def _joints(self):
        return person_joints(self.fit, self.head).numpy()

    @cached_property
    def _glimpses(self) -> Glimpses | None:
        return Glimpses(self.driver, self._pictures) if self.driver is not None and "mouth" in self.takes else None

    @cached_property
    def _folds(self) -> DriverFolds | None:
        if self.driver is None or "wrinkles" not in self.takes:
            return None
        return DriverFolds(self.driver, self.head)

    @cached_property
    def _pictures(self) -> Pictures:
        assert self.driver is not None
        return Pictures(self.driver)

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
            folds=self._folds,
        )
