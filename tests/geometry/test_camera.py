import numpy as np
import torch

from expportrait_cli.geometry.camera import Camera

CAMERA = Camera(focal_px=700.0, cx=301.5, cy=190.25, width=640, height=360)
POINTS = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.3 + torch.tensor(
    [0, 0, 2.0]
)


def test_clip_space_and_pixels_agree():
    clip = CAMERA.clip(POINTS)
    ndc = clip[:, :3] / clip[:, 3:]
    seen = torch.stack([(ndc[:, 0] + 1) / 2 * CAMERA.width, (ndc[:, 1] + 1) / 2 * CAMERA.height], -1)
    assert (seen - CAMERA.project(POINTS)).abs().max() < 1e-9
    assert torch.equal(clip[:, 3], POINTS[:, 2])


def test_depth_runs_from_minus_one_to_one():
    ends = CAMERA.clip(torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.0, 5.0]], dtype=torch.float64), near_m=0.1, far_m=5.0)
    assert torch.allclose(ends[:, 2] / ends[:, 3], torch.tensor([-1.0, 1.0], dtype=torch.float64))
    depth = CAMERA.clip(POINTS)[:, 2] / CAMERA.clip(POINTS)[:, 3]
    assert torch.equal(depth.argsort(), POINTS[:, 2].argsort())


def test_a_point_to_the_right_and_below_lies_there():
    px = CAMERA.project(torch.tensor([0.1, 0.2, 1.0]))
    assert np.allclose(px, [301.5 + 70, 190.25 + 140], atol=1e-3)


def test_a_crop_at_another_size_shows_the_same():
    full, half = Camera.of_crop(1300.0, 512, 512), Camera.of_crop(1300.0, 512, 256)
    assert (full.project(POINTS) / 2 - half.project(POINTS)).abs().max() < 1e-9


def test_gradients_of_projection():
    start = POINTS[:4].clone().requires_grad_()
    assert torch.autograd.gradcheck(CAMERA.project, start)
    assert torch.autograd.gradcheck(CAMERA.clip, start)
