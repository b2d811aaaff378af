"""Everything that the painters of one film are shown: the photo taken apart, and a sketch of every frame."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.config import GenerateConfig
from expportrait_cli.generate.bones import Bones
from expportrait_cli.generate.painter import Sketch, Still
from expportrait_cli.generate.proxy.canvas import Canvas, crop_canvas, photo_canvas
from expportrait_cli.generate.proxy.compositor import Compositor
from expportrait_cli.generate.proxy.layers import prepare
from expportrait_cli.geometry.mesh import Edges, edges
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.head.facemesh import CHIN, FOREHEAD, LIP_PAIRS
from expportrait_cli.head.fitted import fitted_mesh, neck_in_camera, person_joints
from expportrait_cli.media.source import read_frame
from expportrait_cli.render.buffers import Buffers, render_buffers

UPPER_LIP, LOWER_LIP = LIP_PAIRS[0]
RIGID = ("rotation", "translation", "jaw", "torso_rotation", "torso_translation")


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

    @classmethod
    def of(cls, fit: HeadFit, meshes: Meshes, head: HeadModel, config: GenerateConfig) -> "Scene":
        """Read the photo."""
        photo = read_frame(fit.source, fit.frame)
        make = photo_canvas if config.paste_back else crop_canvas
        return cls(fit, meshes, head, photo, make(photo, fit, config.size))

    @property
    def still(self) -> Still:
        """The photo and its normals."""
        return Still(self.canvas.photo, self._buffers(fitted_mesh(self.fit, self.head)).normals[0].numpy())

    def sketches(self, start: int) -> Iterator[Sketch]:
        """Frames from `start` on, painted by the compositor."""
        for index, verts in enumerate(self.meshes.frames(start), start):
            proxy, guess = self._compositor.frame(verts, self._bones(index))
            yield Sketch(proxy, guess, partial(self._buffers, verts))

    def _bones(self, index: int) -> Bones:
        return Bones.of(self._joints, **{name: getattr(self.meshes.curves, name)[index] for name in RIGID})

    def _buffers(self, verts: Float32[np.ndarray, "V 3"]) -> Buffers:
        return render_buffers(
            torch.from_numpy(np.ascontiguousarray(verts))[None],
            self.head.dense_faces,
            self.canvas.camera,
            edges=self._edges,
        )

    @cached_property
    def _edges(self) -> Edges:
        return edges(self.head.dense_faces)

    @cached_property
    def _joints(self):
        return person_joints(self.fit, self.head).numpy()

    @cached_property
    def _compositor(self) -> Compositor:
        fit, head, canvas = self.fit, self.head, self.canvas
        layers = prepare(canvas.photo, canvas.alpha, fitted_mesh(fit, head), head, canvas.camera)
        points = fit.landmarks * canvas.scale + np.array(canvas.corner)
        model = landmark_model(head)
        lips = (model.template + model.identity @ fit.identity)[[UPPER_LIP, LOWER_LIP]]
        reference = Bones.of(
            self._joints,
            rotation=fit.rotation,
            translation=fit.translation,
            jaw=fit.jaw,
            torso_rotation=fit.torso_rotation,
            torso_translation=neck_in_camera(fit, head),
        )
        return Compositor(
            layers,
            head,
            reference,
            lips.mean(0),
            face_height_px=float(np.linalg.norm(points[CHIN] - points[FOREHEAD])),
            chin_y_px=float(points[CHIN, 1]),
        )
