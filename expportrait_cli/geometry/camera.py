"""Pinhole camera and the conventions of every frame in the project.

Camera: OpenCV axes (x right, y down, z forward), pixel centres at +0.5, image row 0 on top.
Head frame: x to the person's left, y up, z out of the face, origin between the ears, metres;
a person who looks straight into the camera has R_cam_head = diag(1, -1, -1).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Camera:
    """Pinhole camera of an image of `width` x `height` px; focal length and principal point (`cx`, `cy`) in px."""

    focal_px: float
    cx: float
    cy: float
    width: int
    height: int

    @classmethod
    def of_crop(cls, focal_px: float, crop_size: int, size: int) -> "Camera":
        """Camera of a square crop scaled to `size` px; `focal_px` is the focal length at `crop_size` px."""
        return cls(focal_px * size / crop_size, size / 2, size / 2, size, size)

    def project(self, points_cam: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 2"]:
        """Project points (m) to pixels; they must lie in front of the camera."""
        z = points_cam[..., 2:]
        centre = points_cam.new_tensor([self.cx, self.cy])
        return points_cam[..., :2] / z * self.focal_px + centre

    def clip(
        self, points_cam: Float[Tensor, "*B 3"], *, near_m: float = 0.05, far_m: float = 10.0
    ) -> Float[Tensor, "*B 4"]:
        """Map to the rasteriser's clip space: w = z, image row 0 at y_ndc = -1."""
        x, y, z = points_cam.unbind(-1)
        x_clip = x * (2 * self.focal_px / self.width) + z * (2 * self.cx / self.width - 1)
        y_clip = y * (2 * self.focal_px / self.height) + z * (2 * self.cy / self.height - 1)
        z_clip = z * ((far_m + near_m) / (far_m - near_m)) - 2 * far_m * near_m / (far_m - near_m)
        return torch.stack([x_clip, y_clip, z_clip, z], -1)
