"""Losses of the fit: their gradients, their zeros, and what they must not see."""

import math

import pytest
import torch
from support.pixel_patch import FOCAL_PX, painted, sheet, surface_of, verts_of

from expportrait_cli.fitting import losses
from expportrait_cli.fitting.losses import (
    DepthLoss,
    LandmarkLoss,
    Light,
    MagnitudeLoss,
    NormalLoss,
    ShadingLoss,
    TemporalLoss,
    align,
)
from expportrait_cli.fitting.patch import Patch, Surface

SIDE, FRAMES, UNSEEN = 20, 4, 2
"""In frame `UNSEEN` nothing is seen; it follows no other."""
PATCH = sheet(SIDE)
LIGHT = Light(torch.tensor([0.7, 0.2, 0.25, 0.4, 0.05, -0.03, 0.02, 0.04, -0.02]))
KINDS = ("normal", "depth", "shading", "landmark", "magnitude", "temporal")
PICTORIAL = KINDS[:4]
"""Compare with something that may be unseen."""


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truth() -> Surface:
    verts = verts_of(SIDE, FRAMES)
    return surface_of(PATCH, verts, 1e-3 * noise(*verts.shape, seed=1))


def weights(columns: int) -> torch.Tensor:
    """Uneven, with a hole, and a frame of which nothing is seen."""
    weight = noise(FRAMES, columns, seed=2).sigmoid()
    weight[:, columns // 3 : columns // 2] = 0
    weight[UNSEEN] = 0
    return weight


def tilted(normals: torch.Tensor, degrees: float, axis: int) -> torch.Tensor:
    generator = torch.zeros(3, 3, dtype=normals.dtype)
    one, other = [(1, 2), (0, 2), (0, 1)][axis]
    generator[one, other], generator[other, one] = -math.radians(degrees), math.radians(degrees)
    return normals @ torch.linalg.matrix_exp(generator).T


def make(kind: str, off: float):
    """A loss whose target is the true surface, or `off` times a typical error beside it."""
    true, weight = truth(), weights(SIDE * SIDE)
    match kind:
        case "normal":
            normals = torch.nn.functional.normalize(
                true.normals + 0.1 * off * noise(*true.normals.shape, seed=3), dim=-1
            )
            # A third of the sheet is so far off that it is not believed.
            third = SIDE * SIDE // 3
            normals[:, :third] = tilted(normals[:, :third], 40 * off, 0)
            return NormalLoss(PATCH, painted(normals), weight)
        case "depth":
            depth = 1e3 * true.verts[..., 2:] + 2 * off * noise(FRAMES, SIDE * SIDE, 1, seed=3)
            return DepthLoss(painted(depth), weight, per_mm=0.04)
        case "shading":
            albedo = 0.3 * noise(SIDE * SIDE, seed=4)
            flat = 0.1 * noise(FRAMES, SIDE * SIDE, seed=5)
            target = LIGHT.log_shade(true.normals) - flat + 0.03 * off * noise(FRAMES, SIDE * SIDE, seed=3)
            return ShadingLoss(PATCH, LIGHT, albedo, flat, target, weight)
        case "landmark":
            corners = noise(30, 3, seed=5).softmax(-1)
            triangles = PATCH.faces[::20][:30]
            points = (true.verts[:, triangles] * corners[..., None]).sum(-2)
            target = points[..., :2] / points[..., 2:] * FOCAL_PX + 3 * off * noise(FRAMES, 30, 2, seed=3)
            unit = torch.tensor([2.0, 3.0, 2.5, 4.0], dtype=torch.float64)
            return LandmarkLoss(triangles, corners, target, weights(30), unit, FOCAL_PX)
        case "magnitude":
            return MagnitudeLoss(0.01)
        case _:
            return TemporalLoss(1e-3 * noise(SIDE * SIDE, 3, seed=6), torch.tensor([1.0, 1.0, 0.0, 1.0]), 0.02)


def stepped(surface: Surface, step: Surface, size: float) -> Surface:
    """Along a direction; what is seen, and where, stays."""
    return given(
        surface.offset + size * step.offset,
        surface.verts + size * step.verts,
        surface.normals + size * step.normals,
        surface.px,
    )


def given(offset, verts, normals, px) -> Surface:
    """A surface whose normals do not follow from its vertices."""
    return Surface(offset, verts, lambda: normals, px)


def direction(frame: int) -> Surface:
    """A step of one frame alone."""
    steps = [scale * noise(FRAMES, SIDE * SIDE, 3, seed=7 + k) for k, scale in enumerate((1e-3, 1e-3, 0.1))]
    for step in steps:
        step[torch.arange(FRAMES) != frame] = 0
    return given(*steps, px=torch.zeros(FRAMES, SIDE * SIDE, 2))


def gradients(loss, surface: Surface) -> Surface:
    """Of the sum over the frames."""
    leaves = [t.clone().requires_grad_() for t in (surface.offset, surface.verts, surface.normals)]
    found = torch.autograd.grad(loss(given(*leaves, surface.px)).sum(), leaves, materialize_grads=True)
    return given(*found, surface.px)


def slope(gradient: Surface, step: Surface) -> float:
    pairs = ((gradient.offset, step.offset), (gradient.verts, step.verts), (gradient.normals, step.normals))
    return float(sum((g * s).sum() for g, s in pairs))


def worst_slope(loss) -> float:
    """Largest relative error of the gradient over the frames, against differences of each frame's own value."""
    surface, size = truth(), 1e-5
    gradient, worst = gradients(loss, surface), 0.0
    for frame in range(FRAMES):
        step = direction(frame)
        high, low = (loss(stepped(surface, step, sign * size))[frame] for sign in (1, -1))
        difference = float(high - low) / (2 * size)
        worst = max(worst, abs(slope(gradient, step) - difference) / max(abs(difference), 1e-9))
    return worst


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind):
    loss = make(kind, 1.0)
    assert loss(truth()).max() > 1e-3
    assert worst_slope(loss) < 1e-4


@pytest.mark.parametrize("kind", ["normal"])
def test_a_gradient_that_is_cut_off_would_be_noticed(kind, monkeypatch):
    smooth = Patch.smooth
    monkeypatch.setattr(Patch, "smooth", lambda patch, values, steps: smooth(patch, values.detach(), steps))
    assert worst_slope(make(kind, 1.0)) > 1e-2


@pytest.mark.parametrize("kind", PICTORIAL)
def test_the_truth_costs_nothing(kind):
    # The length of a zero vector is rounded to 1e-6 so that it has a gradient.
    assert make(kind, 0.0)(truth()).abs().max() < 3e-6
    assert make(kind, 1.0)(truth())[0] > 1e-2


def test_an_offset_that_is_zero_and_stays_costs_nothing():
    verts = verts_of(SIDE, FRAMES)
    still = surface_of(PATCH, verts, torch.zeros_like(verts))
    assert (MagnitudeLoss(0.01)(still) == 0).all()
    assert (TemporalLoss(torch.zeros(SIDE * SIDE, 3), torch.ones(FRAMES), 0.02)(still) == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_frames_do_not_influence_each_other(kind):
    loss, surface = make(kind, 1.0), truth()
    before = loss(surface)
    for frame in range(FRAMES):
        changed = loss(stepped(surface, direction(frame), 1.0)) != before
        others = torch.arange(FRAMES) != frame
        if kind == "temporal":
            # The next frame is drawn to this one, and therefore sees it.
            others[frame + 1 : frame + 2] = False
        assert not changed[others].any()
        assert changed[frame] == (kind == "magnitude" or frame != UNSEEN)


@pytest.mark.parametrize("kind", PICTORIAL)
def test_a_frame_of_which_nothing_is_seen_costs_nothing(kind):
    loss, surface = make(kind, 1.0), truth()
    gradient = gradients(loss, surface)
    assert loss(surface)[UNSEEN] == 0
    for part in (gradient.offset, gradient.verts, gradient.normals):
        assert torch.isfinite(part).all()
        assert (part[UNSEEN] == 0).all()


def test_a_plain_mean_would_not_be_finite(monkeypatch):
    monkeypatch.setattr(losses, "weighted_mean", lambda values, weights: (values * weights).sum(1) / weights.sum(1))
    gradient = gradients(make("depth", 1.0), truth())
    assert torch.isfinite(gradient.verts[0]).all() and not torch.isfinite(gradient.verts[UNSEEN]).all()


def test_a_frame_draws_on_the_one_before_and_is_not_drawn_back():
    verts = verts_of(SIDE, FRAMES)
    offset = torch.zeros_like(verts)
    offset[1] = 1e-3
    loss = TemporalLoss(torch.zeros(SIDE * SIDE, 3), torch.tensor([1.0, 1.0, 1.0, 0.0]), 0.02)
    surface = surface_of(PATCH, verts, offset)
    # 1 mm along each axis, squared; the last frame follows a cut.
    torch.testing.assert_close(loss(surface), torch.tensor([0.0, 0.06, 0.06, 0.0], dtype=torch.float64))
    pull = gradients(loss, surface).offset.sum((1, 2))
    assert pull[0] == 0 and pull[1] > 0 and pull[2] == pytest.approx(-float(pull[1])) and pull[3] == 0


def test_the_first_frame_draws_on_the_window_before():
    verts = verts_of(SIDE, 1)
    still = surface_of(PATCH, verts, torch.zeros_like(verts))
    assert float(TemporalLoss(torch.full((SIDE * SIDE, 3), 1e-3), torch.ones(1), 0.02)(still)) == pytest.approx(0.06)


def folds_seen(monkeypatch, degrees: float, axis: int) -> float:
    """What the high frequencies of estimated folds cost a smooth sheet when the whole estimate is tilted."""
    # Nothing is believed, so that the low frequencies are left out.
    monkeypatch.setattr(losses, "GATE", 0.0)
    smooth, folded = (
        surface_of(PATCH, v, torch.zeros_like(v)) for v in (verts_of(SIDE, 1, folds_m=0), verts_of(SIDE, 1))
    )
    weight = torch.ones(1, SIDE * SIDE, dtype=torch.float64)
    weight[:, 150:158] = weight[:, 170:178] = 0
    return float(NormalLoss(PATCH, painted(tilted(folded.normals, degrees, axis)), weight)(smooth))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_tilt_of_the_whole_estimate_does_not_touch_the_folds(monkeypatch, axis):
    level = folds_seen(monkeypatch, 0.0, axis)
    assert level > 0.03
    assert folds_seen(monkeypatch, 6.0, axis) == pytest.approx(level, rel=0.05)


def test_a_tilt_would_show_without_smoothing(monkeypatch):
    monkeypatch.setattr(Patch, "smooth", lambda patch, values, steps: torch.zeros_like(values))
    level = folds_seen(monkeypatch, 0.0, 0)
    assert folds_seen(monkeypatch, 6.0, 0) > 1.5 * level


def test_low_frequencies_count_up_to_the_gate():
    verts = verts_of(SIDE, 1, folds_m=0)
    shown = surface_of(PATCH, verts, torch.zeros_like(verts))
    weight = torch.ones(1, SIDE * SIDE, dtype=torch.float64)

    def cost(degrees: float) -> float:
        return float(NormalLoss(PATCH, painted(tilted(shown.normals, degrees, 0)), weight)(shown))

    # The length of a chord of the unit circle.
    assert cost(6.0) == pytest.approx(2 * math.sin(math.radians(3)), rel=0.05)
    assert cost(15.0) > 2 * cost(6.0)
    assert cost(30.0) < 0.5 * cost(6.0)


def depths(frames: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Relative depth, the millimetres that it stands for, and weights."""
    target = 1200 + 40 * noise(frames, count, seed=8)
    scale, shift = torch.tensor([[12.0], [-30.0], [0.5]])[:frames], torch.tensor([[900.0], [2000.0], [-5.0]])[:frames]
    return (target - shift) / scale, target, noise(frames, count, seed=9).sigmoid()


def aligned(source, target, weight) -> torch.Tensor:
    scale, shift = align(source, target, weight)
    return scale * source + shift


def test_alignment_finds_scale_and_shift():
    source, target, weight = depths(3, 400)
    scale, shift = align(source, target, weight)
    torch.testing.assert_close(scale[:, 0], torch.tensor([12.0, -30.0, 0.5], dtype=torch.float64))
    torch.testing.assert_close(shift[:, 0], torch.tensor([900.0, 2000.0, -5.0], dtype=torch.float64))


@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 0.0), (-7.0, 3.0), (250.0, -1e4)])
def test_alignment_does_not_depend_on_the_sources_scale_and_shift(scale, shift):
    source, target, weight = depths(3, 400)
    source = source + 0.01 * noise(*source.shape, seed=10)
    error = aligned(scale * source + shift, target, weight) - aligned(source, target, weight)
    assert error.abs().max() < 1e-6


def worst_in_company(off_mm: float) -> float:
    """Error of alignment where the target is right, in mm, while a fifth of it is off to one side."""
    source, target, weight = depths(3, 1000)
    wrong = torch.rand(target.shape, generator=torch.Generator().manual_seed(11)) < 0.2
    seen = target + torch.where(wrong, off_mm, 0.0) + 0.5 * noise(*target.shape, seed=12)
    return float((aligned(source, seen, weight) - target)[~wrong].abs().max())


@pytest.mark.parametrize("off_mm", [-300.0, 15.0, 60.0])
def test_alignment_leaves_out_what_is_off_to_one_side(off_mm):
    assert worst_in_company(off_mm) < 0.5


def test_least_squares_alone_would_not_align(monkeypatch):
    monkeypatch.setattr(losses, "ALIGN_POWERS", ())
    assert worst_in_company(15.0) > 2


def test_alignment_of_a_frame_of_which_nothing_is_seen_is_finite():
    source, target, weight = depths(3, 50)
    weight[1] = 0
    assert torch.isfinite(aligned(source, target, weight)).all()
    torch.testing.assert_close(aligned(source, target, weight)[[0, 2]], target[[0, 2]])
