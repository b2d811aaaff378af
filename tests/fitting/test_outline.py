"""The loss on the outline, whose gradient comes through antialiased edges; in float32, as the rasteriser works."""

import numpy as np
import pytest
import torch
from support.render_shapes import sphere

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.fitting.patch import Patch, PosedPatch, Surface
from expportrait_cli.fitting.static import OutlineLoss, outline_loss
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import edges
from expportrait_cli.render.buffers import render_buffers


def outline(size: int = 192):
    """A flat ball before a camera, and the loss that wants it as large as its picture at full scale."""
    verts, faces = sphere(40, 60)
    flat = verts * torch.tensor([0.2, 0.2, 0.02])
    camera = Camera(size * 2.4, size / 2, size / 2, size, size)
    joined = edges(faces)

    def shown(scale: torch.Tensor, shift: torch.Tensor) -> Surface:
        one, zero = torch.ones(()), torch.zeros(())
        placed = flat * torch.stack([scale, scale, one]) + torch.stack([shift, zero, one * 1.5])
        return Surface(placed[None] * 0, placed[None], placed[None].clone, placed[None, :, :2])

    matte = render_buffers(shown(torch.ones(()), torch.zeros(())).verts, faces, camera, edges=joined).mask
    return OutlineLoss(camera, faces, joined, matte), shown


def test_a_met_outline_costs_nothing():
    loss, shown = outline()
    assert loss(shown(torch.ones(()), torch.zeros(()))).item() == 0


@pytest.mark.parametrize(("scale", "shift_m"), [(1.15, 0.0), (0.85, 0.0), (1.0, 0.03)])
def test_the_outlines_gradient_agrees_with_finite_differences(scale, shift_m):
    loss, shown = outline()
    at = [torch.tensor(scale, requires_grad=True), torch.tensor(shift_m, requires_grad=True)]
    gradient = torch.autograd.grad(loss(shown(*at)).sum(), at)
    which = 0 if scale != 1.0 else 1
    step = (0.02, 0.004)[which]
    high, low = (
        loss(shown(*[a.detach() + (sign * step if k == which else 0.0) for k, a in enumerate(at)])) for sign in (1, -1)
    )
    difference = float(high - low) / (2 * step)
    assert abs(difference) > 0.5
    # Only the few hundred pixels on the edge carry the gradient, each by where one edge crosses it.
    assert float(gradient[which]) == pytest.approx(difference, rel=0.02)


def test_where_an_outline_is_met_its_frame_is_left_alone():
    loss, shown = outline()
    both = OutlineLoss(loss.camera, loss.faces, loss.edges, loss.matte.expand(2, -1, -1))
    scale = torch.tensor([1.0, 1.1], requires_grad=True)
    verts = torch.cat([shown(s, torch.zeros(())).verts for s in scale])
    value = both(Surface(verts * 0, verts, verts.clone, verts[..., :2]))
    assert value[0] == 0 and value[1] > 0.1
    torch.testing.assert_close(value[1:], loss(Surface(verts[1:] * 0, verts[1:], verts[1:].clone, verts[1:, :, :2])))
    (gradient,) = torch.autograd.grad(value.sum(), scale)
    assert abs(gradient[0]) < 1e-3 < gradient[1]


def three(loss, shown, scales):
    """The ball in three frames, drawn at these scales before mattes of its right size."""
    verts = torch.cat([shown(torch.tensor(s), torch.zeros(())).verts for s in scales])
    many = OutlineLoss(loss.camera, loss.faces, loss.edges, loss.matte.expand(3, -1, -1))
    return many, Surface(verts * 0, verts, verts.clone, verts[..., :2])


def test_a_matte_that_is_far_off_is_not_believed():
    many, surface = three(*outline(), (1.02, 1.02, 1.2))
    belief = many.doubting(surface).belief.flatten()
    assert belief[2] == 0 and belief[1] > 0.7
    # The head's own frame weighs as all others.
    assert belief[0] == 1


def test_the_heads_own_matte_is_believed_in_any_case():
    many, surface = three(*outline(), (1.2, 1.02, 1.02))
    belief = many.doubting(surface).belief.flatten()
    assert belief[0] == pytest.approx(float(belief[1:].sum())) and belief[1:].min() > 0.7


def test_mattes_that_are_all_nearly_right_are_all_believed():
    many, surface = three(*outline(), (1.0, 1.0, 1.002))
    assert many.doubting(surface).belief.flatten()[1:].min() > 0.5


def test_far_from_an_outline_little_is_believed():
    matte = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    matte[100:, 150:350] = 1
    verts = torch.tensor([[[0.0, 0, 1.0], [0.1, 0, 1.0], [0, 0.1, 1.0]]])
    patch = Patch(np.arange(3), torch.tensor([[0, 1, 2]]), torch.ones(3))
    posed = PosedPatch(patch, verts, torch.eye(3).expand(1, 3, 3, 3), 1000.0)
    assert float(outline_loss(posed, [matte], CROP_SIZE).belief) == 1
    belief = outline_loss(posed, [matte, matte], CROP_SIZE).belief[1]
    # One px is one mm: at 30 mm a quarter, on either side; the border of the picture is no outline.
    assert belief[300, 150] > 0.99
    assert float(belief[300, 180]) == pytest.approx(0.25, abs=0.02)
    assert float(belief[300, 119]) == pytest.approx(0.25, abs=0.02)
    assert float(belief[511, 250]) < 0.01
    half = outline_loss(posed, [matte, matte], CROP_SIZE // 2).belief[1]
    assert float(half[150, 90]) == pytest.approx(0.25, abs=0.02)
