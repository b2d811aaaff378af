"""Make the film: frames painted from the photo and the posed meshes."""

from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.config import GenerateConfig
from expportrait_cli.generate.bones import Bones
from expportrait_cli.generate.canvas import Canvas, crop_canvas, photo_canvas
from expportrait_cli.generate.compositor import Compositor
from expportrait_cli.generate.layers import prepare
from expportrait_cli.head import HeadModel, landmark_model
from expportrait_cli.head.facemesh import CHIN, FOREHEAD, LIP_PAIRS
from expportrait_cli.head.fitted import fitted_mesh, neck_in_camera, person_joints
from expportrait_cli.media.source import read_frame

UPPER_LIP, LOWER_LIP = LIP_PAIRS[0]
RIGID = ("rotation", "translation", "jaw", "torso_rotation", "torso_translation")


def generate(
    head_fit: HeadFit,
    meshes: Meshes,
    head: HeadModel,
    config: GenerateConfig,
    *,
    start: int = 0,
    end: int | None = None,
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Paint frames `start` to `end`: the crop at `config.size`, or with paste-back the whole photo at its own size."""
    photo = read_frame(head_fit.source, head_fit.frame)
    make = photo_canvas if config.paste_back else crop_canvas
    canvas = make(photo, head_fit, config.size)
    at = person_joints(head_fit, head).numpy()
    layers = prepare(canvas.photo, canvas.alpha, fitted_mesh(head_fit, head), head, canvas.camera)
    points = head_fit.landmarks * canvas.scale + np.array(canvas.corner)
    model = landmark_model(head)
    lips = (model.template + model.identity @ head_fit.identity)[[UPPER_LIP, LOWER_LIP]]
    compositor = Compositor(
        layers,
        head,
        Bones.of(
            at,
            rotation=head_fit.rotation,
            translation=head_fit.translation,
            jaw=head_fit.jaw,
            torso_rotation=head_fit.torso_rotation,
            torso_translation=neck_in_camera(head_fit, head),
        ),
        lips.mean(0),
        face_height_px=float(np.linalg.norm(points[CHIN] - points[FOREHEAD])),
        chin_y_px=float(points[CHIN, 1]),
    )
    curves = meshes.curves
    for index, verts in enumerate(meshes.frames(start, end), start):
        bones = Bones.of(at, **{name: getattr(curves, name)[index] for name in RIGID})
        frame = compositor.frame(verts, bones)
        yield paste(photo, canvas, frame) if config.paste_back else frame


def paste(
    photo: UInt8[np.ndarray, "H W 3"], canvas: Canvas, frame: UInt8[np.ndarray, "h w 3"]
) -> UInt8[np.ndarray, "H W 3"]:
    """Put a canvas frame into the photo: what did not change keeps the photo's own pixels."""
    if frame.shape == photo.shape:
        return frame
    height, width = photo.shape[:2]
    changed = cv2.absdiff(frame, canvas.photo).max(2) > 2
    changed = cv2.dilate(changed.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(np.float32)
    weight = cv2.GaussianBlur(cv2.resize(changed, (width, height), interpolation=cv2.INTER_LINEAR), (0, 0), 2)[
        ..., None
    ]
    large = cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.rint(photo * (1 - weight) + large * weight).astype(np.uint8)
