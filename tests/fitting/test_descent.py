"""The descent on offset fields: frames apart, never worse than the start, and a known surface found again."""

import numpy as np
import pytest
import torch
from support.pixel_patch import painted, pixels, posed, sheet

from expportrait_cli.fitting.losses import (
    DepthLoss,
    LandmarkLoss,
    MagnitudeLoss,
    NormalLoss,
    TemporalLoss,
    UniformAdam,
    descend,
)
from expportrait_cli.fitting.patch import Surface

SIDE, FRAMES = 24, 3
PATCH = sheet(SIDE)
BARE = posed(PATCH, FRAMES)
STILL = torch.zeros(FRAMES, SIDE * SIDE, 1)
TOWARDS_CAMERA = torch.tensor([0.0, 0.0, -1.0]).expand(SIDE * SIDE, 3)
RATE_M = 1e-3
SMOOTH = PATCH.preconditioner(10.0)


def bumps(frames: int = FRAMES) -> torch.Tensor:
    """Heights of a bump of 1 mm and 12 mm width that wanders from frame to frame, [T,P,1]."""
    at = (pixels(SIDE) - pixels(SIDE).float().mean(0)) * 2e-3
    heights = [torch.exp(-((at - torch.tensor([0.006 * (t - 1), 0.0])) ** 2).sum(-1) / 0.006**2) for t in range(frames)]
    return 1e-3 * torch.stack(heights)[..., None]


def raised(heights: torch.Tensor, bare=BARE) -> Surface:
    """The sheet under heights, along one line of which pictures say everything."""
    return bare.raised(heights, TOWARDS_CAMERA)


def terms(shown: Surface) -> list:
    """Normals and depth as a perfect network would see them."""
    weight = PATCH.mask.expand(len(shown.verts), -1)
    depth = 1e3 * shown.verts[..., 2:]
    return [NormalLoss(PATCH, painted(shown.normals), weight), DepthLoss(painted(depth), weight, per_mm=0.04)]


def total(field: torch.Tensor, losses, surface=raised) -> torch.Tensor:
    return sum(loss(surface(field)) for loss in losses)


def error_mm(field: torch.Tensor) -> torch.Tensor:
    """RMS distance to the bumps, a frame."""
    off = 1e3 * (field - bumps())[:, PATCH.mask > 0]
    return off.square().sum(-1).mean(1).sqrt()


def test_the_first_step_is_as_long_as_the_rate_where_the_gradient_is_largest():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(2, 7, 3, generator=generator) * torch.tensor([1e-6, 1e3])[:, None, None]
    variable = torch.zeros(2, 7, 3)
    UniformAdam(variable, 0.1).step(gradient)
    torch.testing.assert_close(variable, -0.1 * gradient / gradient.abs().amax((1, 2), keepdim=True), rtol=1e-4, atol=0)


def test_steps_shrink_where_gradients_change_sign():
    variable = torch.zeros(1, 1, 1)
    optimiser = UniformAdam(variable, 0.1)
    path = []
    for sign in (1, -1, 1, -1, 1):
        before = float(variable)
        optimiser.step(torch.full((1, 1, 1), float(sign)))
        path.append(abs(float(variable) - before))
    # The mean of 1, -1, ... with weights of 0.9, 0.81, ... over that of ones.
    means = [abs(sum(0.9 ** (n - k) * (-1) ** k for k in range(n + 1))) * 0.1 / (1 - 0.9 ** (n + 1)) for n in range(5)]
    assert path == pytest.approx([0.1 * mean for mean in means], rel=1e-3)


def stepped(gradients: torch.Tensor) -> torch.Tensor:
    """Where ten steps along given gradients [10,T,P,C] lead."""
    variable = torch.zeros_like(gradients[0])
    optimiser = UniformAdam(variable, 1e-3)
    for gradient in gradients:
        optimiser.step(gradient)
    return variable


def test_a_frames_steps_do_not_depend_on_other_frames():
    gradients = torch.randn(10, 3, 20, 3, generator=torch.Generator().manual_seed(1))
    louder = gradients * torch.tensor([1.0, 1e4, 0.0])[:, None, None]
    assert torch.equal(stepped(gradients)[0], stepped(louder)[0])
    assert torch.equal(stepped(gradients)[:1], stepped(gradients[:, :1]))
    assert (stepped(louder)[2] == 0).all()


@pytest.fixture(scope="module")
def recovered() -> tuple[torch.Tensor, torch.Tensor]:
    seen = terms(raised(bumps()))
    return descend(STILL, raised, seen, SMOOTH, iterations=25, rate=RATE_M)


def test_a_known_surface_is_found(recovered):
    field, _ = recovered
    assert (error_mm(field) < 0.3 * error_mm(STILL)).all()


def test_every_vertex_that_may_move_has_moved(recovered):
    field, _ = recovered
    assert (field[:, PATCH.mask > 0].abs().sum(-1) > 0).all()


def test_the_loss_belongs_to_the_field(recovered):
    field, least = recovered
    losses = terms(raised(bumps()))
    assert (least < 0.5 * total(STILL, losses)).all()
    torch.testing.assert_close(total(field, losses), least)


@pytest.mark.parametrize("rate", [1e-4, 3e-2, 1.0])
def test_the_result_is_never_worse_than_the_start(rate):
    start = bumps() + 2e-5 * torch.randn(STILL.shape, generator=torch.Generator().manual_seed(2))
    losses = terms(raised(bumps()))
    _, least = descend(start, raised, losses, SMOOTH, iterations=4, rate=rate)
    assert (least <= total(start, losses) + 1e-6).all()


def test_a_start_that_is_right_is_kept():
    losses = terms(raised(bumps()))
    field, least = descend(bumps(), raised, losses, SMOOTH, iterations=4, rate=1e-2)
    # The start goes through the solve and back.
    assert (field - bumps()).abs().max() < 1e-8 and (least < 1e-4).all()


def test_each_frame_keeps_its_own_best():
    start = torch.cat([bumps()[:1], STILL[1:]])
    losses = terms(raised(bumps()))
    field, _ = descend(start, raised, losses, SMOOTH, iterations=15, rate=RATE_M)
    after, before = error_mm(field), error_mm(start)
    assert after[0] < 1e-3 and (after[1:] < 0.6 * before[1:]).all()


def test_no_steps_give_the_start():
    start = bumps()
    field, least = descend(start, raised, terms(raised(bumps())), SMOOTH, iterations=0, rate=1e-3)
    assert (field - start).abs().max() < 1e-8 and len(least) == FRAMES


def alone(row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The result of one frame without the others."""
    part = slice(row, row + 1)
    bare = type(BARE)(PATCH, BARE.verts[part], BARE.blend[part], BARE.focal_px)
    seen = terms(raised(bumps()[part], bare))
    return descend(STILL[part], lambda heights: raised(heights, bare), seen, SMOOTH, iterations=25, rate=RATE_M)


@pytest.mark.parametrize("row", range(FRAMES))
def test_a_frame_has_the_same_result_alone_and_in_company(recovered, row):
    field, least = alone(row)
    # Sums of another shape are rounded otherwise: 0.1 micrometres of 1 mm.
    assert (field[0] - recovered[0][row]).abs().max() < 1e-7
    assert float(least) == pytest.approx(float(recovered[1][row]), rel=1e-4)


def test_one_field_serves_many_frames():
    shared = bumps()[1:2]
    losses = terms(raised(shared))
    field, least = descend(STILL[:1], raised, losses, SMOOTH, iterations=25, rate=RATE_M)
    assert field.shape == (1, SIDE * SIDE, 1) and least.shape == (1,)
    assert float(least) == pytest.approx(float(total(field, losses).mean()), rel=1e-4)
    assert error_mm(field.expand(FRAMES, -1, -1))[1] < 0.3 * error_mm(STILL)[1]


def test_a_still_sheet_under_a_calm_is_left_alone():
    calm = [MagnitudeLoss(0.01), TemporalLoss(torch.zeros(SIDE * SIDE, 3), torch.ones(FRAMES), 0.02)]
    field, least = descend(STILL, raised, calm, SMOOTH, iterations=3, rate=1e-3)
    assert (field == 0).all() and (least == 0).all()


def test_landmarks_pull_what_lies_around_them():
    triangle = PATCH.faces[len(PATCH.faces) // 4][None]
    third = torch.full((1, 3), 1 / 3)
    shown = raised(STILL)
    points = (shown.verts[:, triangle] * third[..., None]).sum(-2)
    target = points[..., :2] / points[..., 2:] * BARE.focal_px + torch.tensor([1.0, 0.0])
    loss = LandmarkLoss(triangle, third, target, torch.ones(FRAMES, 1), torch.full((FRAMES,), 2.0), BARE.focal_px)
    field, least = descend(STILL.expand(-1, -1, 3), BARE.moved, [loss], SMOOTH, iterations=20, rate=3e-3)
    assert (loss(shown) > 0.1).all() and (least < 0.02).all()
    moved = (BARE.moved(field).verts - BARE.verts)[:, triangle[0]].mean(1)
    assert moved[:, 0].numpy() == pytest.approx(np.full(FRAMES, 1e-3), rel=0.15)
    # The neighbourhood comes along, the far side less.
    near, far = triangle[0, 0] - 3, triangle[0, 0] + 9 * SIDE
    length = field.norm(dim=-1)
    assert (length[:, near] > 0.5 * length.amax(1)).all() and (length[:, far] < 0.4 * length.amax(1)).all()


def test_a_field_that_is_cut_off_is_an_error():
    with pytest.raises(RuntimeError, match="does not require grad"):
        descend(
            STILL,
            lambda field: raised(field.detach()),
            terms(raised(bumps())),
            SMOOTH,
            iterations=2,
            rate=1e-3,
        )
