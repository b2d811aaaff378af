"""Contact sheets of prepared clips: frames beside their fitted heads."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from expportrait_cli.artifacts.files import atomic_path
from expportrait_cli.artifacts.types import CROP_SIZE, Curves, HeadFit, Tracking
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.fitting.clip import neutral_weights, torso_turns
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import person_joints, posed_meshes, relief_of
from expportrait_cli.head.model import NECK
from expportrait_cli.media.video import read_pictures
from expportrait_cli.render.buffers import BACKGROUND, Bump, encode, render_buffers


def clip_curves(fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]) -> Curves:
    """What moves the head in some frames of its own clip; the torso hangs at the head's neck joint."""
    rotation, translation = fit.dynamic_rotation[rows], fit.dynamic_translation[rows]
    neck = person_joints(fit, head)[NECK].numpy()
    return Curves(
        expression=fit.dynamic_expression[rows],
        jaw=fit.dynamic_jaw[rows],
        gaze=fit.dynamic_gaze[rows],
        rotation=rotation,
        translation=translation,
        torso_rotation=torso_turns(tracking)[rows],
        torso_translation=(from_turns(rotation) @ neck + translation).astype(np.float32),
    )


def clip_meshes(
    fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]
) -> Float32[np.ndarray, "R V 3"]:
    """Dense vertices of some frames with static and dynamic offsets, camera of the tracking's crop, m (Eq. 1 to 4)."""
    curves = clip_curves(fit, tracking, head, rows)
    meshes = []
    for index, row in enumerate(rows.tolist()):
        folds = np.zeros_like(fit.frame_offset)
        folds[fit.dynamic_vertices] = fit.dynamic_offset[row]
        one = Curves(**{name: values[index : index + 1] for name, values in vars(curves).items()})
        meshes.append(posed_meshes(replace(fit, frame_offset=folds), head, one)[0])
    return np.stack(meshes)


TILE = 192
QUALITY = 85
FILLED = 1e6
"""Handicap of a frame whose landmarks were not seen."""


def telling_frames(tracking: Tracking) -> Int64[np.ndarray, " 4"]:
    """Most neutral frame, widest jaw, largest turn, largest expression; of those whose landmarks are sure."""
    effort = np.abs(tracking.expression).sum(1)
    rest = neutral_weights(tracking.expression, tracking.jaw, tracking.sure)
    jaw, turn = (np.linalg.norm(column, axis=1) for column in (tracking.jaw, tracking.rotation))
    unseen = FILLED * ~tracking.sure
    return np.array([(column - unseen).argmax() for column in (rest, jaw, turn, effort)])


def write_sheet(path: Path, video: Path, tracking: Tracking, fit: HeadFit, head: HeadModel) -> None:
    """Write a JPEG of four columns: picture, both in one, normals."""
    rows = telling_frames(tracking)
    order, inverse = np.unique(rows, return_inverse=True)
    crop = Crop(*tracking.crop.tolist())
    pictures = [crop_image(picture, crop, TILE) for picture in read_pictures(video, order)]
    normals = normal_maps(fit, tracking, head, order)
    columns = [column(picture, normal) for picture, normal in zip(pictures, normals, strict=True)]
    sheet = np.concatenate([columns[index] for index in inverse], axis=1)
    with atomic_path(path) as partial:
        Image.fromarray(sheet).save(partial, format="JPEG", quality=QUALITY)


def normal_maps(
    fit: HeadFit, tracking: Tracking, head: HeadModel, rows: Int64[np.ndarray, " R"]
) -> UInt8[np.ndarray, "R S S 3"]:
    """Normal maps of some frames, at the size of a tile."""
    camera = Camera.of_crop(tracking.focal_px, CROP_SIZE, TILE)
    faces = head.dense_faces.to(torch.int32)
    bump = Bump.of(relief_of(fit, head), scale=TILE / CROP_SIZE)
    maps = []
    for mesh in clip_meshes(fit, tracking, head, rows):
        with torch.inference_mode():
            drawn = render_buffers(torch.from_numpy(mesh)[None], faces, camera, bump=bump)
            maps.append(encode(drawn.normals[0].numpy()))
    return np.stack(maps)


def column(picture: UInt8[np.ndarray, "S S 3"], normal: UInt8[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "H S 3"]:
    """Picture, picture with the normals laid over it, normals."""
    shown = (normal != np.array(BACKGROUND, np.uint8)).any(-1, keepdims=True)
    both = np.where(shown, cv2.addWeighted(picture, 0.5, normal, 0.5, 0), picture)
    return np.concatenate([picture, both, normal], axis=0)
