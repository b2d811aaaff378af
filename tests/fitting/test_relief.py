"""Heights that shade a surface as pictures show it, and the noise that makes none."""

import numpy as np
import pytest
import torch
from support.pixel_patch import posed, sheet

from expportrait_cli.fitting.clip import CALM_FRAMES, calmest
from expportrait_cli.fitting.dynamic import Slopes, heights_by_shading
from expportrait_cli.fitting.evidence import LEAST_NOISE, MOST_NOISE, resting_albedo
from expportrait_cli.fitting.losses import Light, ShadingLoss, shown_folds
from expportrait_cli.fitting.patch import high_passed

SIDE, FRAMES = 40, 3
PATCH = sheet(SIDE)
BARE = posed(PATCH, FRAMES, folds_m=0.0)
POINTS = SIDE * SIDE
OUTWARDS = torch.tensor([0.0, 0.0, -1.0]).expand(POINTS, 3)
LIGHT = Light(torch.tensor([0.8, 0.3, 0.35, 0.2, 0.02, 0.01, -0.02, 0.01, 0.01]))
INNER = PATCH.mask > 0
STILL = torch.zeros(FRAMES)
ONE = torch.ones(FRAMES, POINTS)


def folds(height_m: float) -> torch.Tensor:
    """Slanting folds of 14 mm, 2 mm between vertices, which move a little from frame to frame, masked; [T,P]."""
    row, column = torch.meshgrid(*[torch.arange(SIDE).float()] * 2, indexing="ij")
    phase = 2 * torch.pi * (column + 0.4 * row).ravel() / 7
    return height_m * torch.stack([torch.cos(phase + 0.2 * t) for t in range(FRAMES)]) * PATCH.mask


def loss_of(heights: torch.Tensor, weight: torch.Tensor = ONE, noise: float = 0.0) -> ShadingLoss:
    """What pictures of these heights say; `noise` is a variance."""
    flat, shown = (LIGHT.log_shade(BARE.raised(h[..., None], OUTWARDS).normals) for h in (0 * heights, heights))
    target = shown_folds(PATCH, shown - flat, weight, torch.full((POINTS,), noise))
    return ShadingLoss(PATCH, LIGHT, torch.zeros(POINTS), flat, target, weight)


def found(loss: ShadingLoss, follows: torch.Tensor = STILL, before: torch.Tensor | None = None) -> torch.Tensor:
    """Heights, masked, [T,P]."""
    solved = heights_by_shading(
        loss,
        BARE,
        OUTWARDS,
        PATCH.preconditioner(0.7),
        before=torch.zeros(POINTS, 3) if before is None else before,
        follows=follows,
        height_mm=2.0,
    )
    return solved[..., 0] * PATCH.mask


def test_slopes_are_the_derivative_of_the_shade():
    start, step = folds(3e-4), 1e-5 * torch.randn(FRAMES, POINTS, generator=torch.Generator().manual_seed(0))
    loss = loss_of(0 * start)
    rise = torch.einsum("tpab,pb->tpa", BARE.blend, PATCH.mask[:, None] * OUTWARDS)
    slopes = Slopes.of(loss, BARE.raised(start[..., None], OUTWARDS), rise)
    high, low = (LIGHT.log_shade(BARE.raised((start + s * step)[..., None], OUTWARDS).normals) for s in (1, -1))
    expected = (high - low) / 2
    # In single precision a normal is known to some 1e-5.
    assert (slopes(step) - expected).abs().max() < 0.01 * expected.abs().max()
    other = torch.randn(FRAMES, POINTS, generator=torch.Generator().manual_seed(1))
    assert float((slopes(step) * other).sum()) == pytest.approx(float((step * slopes.back(other)).sum()), rel=1e-3)


@pytest.mark.parametrize("height_m", [2e-5, 2e-4])
def test_faint_folds_are_found_as_well_as_strong_ones(height_m):
    true = folds(height_m)
    heights = found(loss_of(true))
    inner = [high_passed(PATCH, each, ONE)[:, INNER].numpy().ravel() for each in (heights, true)]
    assert np.corrcoef(inner)[0, 1] > 0.9
    assert 0.6 < inner[0].std() / inner[1].std() < 1.1


def test_loud_frames_and_places_do_not_calm_others():
    left = (torch.arange(POINTS) % SIDE < SIDE // 2).float()
    mixed = folds(2e-5) * (1 + 9 * left)
    alone, beside = (found(loss_of(each)) for each in (folds(2e-5), mixed))
    far = INNER & (torch.arange(POINTS) % SIDE > SIDE * 3 // 4)
    band = [high_passed(PATCH, each, ONE)[:, far].numpy().ravel() for each in (folds(2e-5), alone, beside)]
    assert np.corrcoef(band)[0, 1:].min() > 0.95 and 0.9 < band[2].std() / band[1].std() < 1.1
    louder = folds(2e-5)
    louder[1] *= 10
    # Nothing but what lasts is told by other frames.
    assert (found(loss_of(louder))[[0, 2]] - alone[[0, 2]]).abs().max() < 0.1 * alone.abs().max()


def test_what_is_not_seen_makes_no_folds():
    assert not found(loss_of(folds(2e-4), weight=0 * ONE)).any()


def test_no_more_than_the_noise_is_no_fold_and_much_more_is_one():
    true = folds(1e-4)
    energy = float(loss_of(true).target[:, INNER].square().mean())
    assert not found(loss_of(true, noise=3 * energy))[:, INNER].abs().max() > 2e-5
    kept = found(loss_of(true, noise=0.05 * energy)).std() / found(loss_of(true)).std()
    assert 0.85 < float(kept) <= 1


def test_what_lasts_for_one_frame_is_noise_and_what_grows_is_a_fold():
    """Grain of the strength of folds, and folds that double from frame to frame."""
    grain = 0.02 * torch.randn(FRAMES, POINTS, generator=torch.Generator().manual_seed(0))
    growing = loss_of(folds(1e-4) * torch.tensor([[1.0], [2.0], [4.0]])).target
    none = torch.zeros(POINTS)
    raw = high_passed(PATCH, grain, ONE)
    assert shown_folds(PATCH, grain, ONE, none)[:, INNER].std() < 0.4 * raw[:, INNER].std()
    kept = shown_folds(PATCH, growing, ONE, none)[:, INNER] / high_passed(PATCH, growing, ONE)[:, INNER]
    assert kept[:2].median() > 0.85 and kept[2].median() > 0.5
    # One picture alone says nothing of what lasts.
    assert torch.allclose(shown_folds(PATCH, grain[:1], ONE[:1], none), raw[:1], atol=1e-7)


def test_a_frame_is_drawn_to_the_one_before():
    apart, drawn = (
        found(loss_of(folds(1e-4)), follows=follow) for follow in (STILL, torch.tensor([0.0, 500.0, 500.0]))
    )
    change = [(each[1] - each[0]).norm() for each in (apart, drawn)]
    assert change[1] < 0.8 * change[0] and torch.equal(apart[0], drawn[0])
    before = (found(loss_of(folds(1e-4)))[0, :, None] * OUTWARDS) * 2
    pulled = found(loss_of(folds(1e-4)), follows=torch.tensor([500.0, 0.0, 0.0]), before=before)
    assert pulled[0].norm() > 1.05 * apart[0].norm()


def test_albedo_is_that_of_calm_frames_and_noise_their_spread():
    rng = np.random.default_rng(0)
    spread = 0.0065
    paint = 0.2 * rng.normal(size=POINTS).astype(np.float32)
    calm = (paint + spread * rng.normal(size=(15, POINTS))).astype(np.float32)
    seen = np.ones(calm.shape, bool)
    seen[CALM_FRAMES - 1 :, 7] = False
    albedo, noise = resting_albedo(PATCH, calm, seen, np.full(POINTS, 5.0, np.float32))
    assert np.abs(np.delete(albedo - paint, 7)).max() < 4 * spread and albedo[7] == 5
    assert np.sqrt(np.median(noise) / 0.6) == pytest.approx(spread, rel=0.1)
    # A minority that frowns is no noise.
    frowns = calm.copy()
    frowns[:4] += 0.2 * np.cos(np.arange(POINTS))
    assert np.sqrt(np.median(resting_albedo(PATCH, frowns, seen, paint)[1]) / 0.6) < 1.2 * spread
    for error, bound in ((1e-4, LEAST_NOISE), (0.1, MOST_NOISE)):
        values = (error * rng.normal(size=(15, POINTS))).astype(np.float32)
        noise = resting_albedo(PATCH, values, np.ones_like(seen), paint)[1]
        assert np.median(noise) == pytest.approx(bound**2, rel=1e-3)


def test_the_calmest_frames_are_those_at_rest():
    expression, jaw = np.zeros((30, 5), np.float32), np.zeros((30, 3), np.float32)
    expression[::2, 1], jaw[::3, 0] = 0.7, 0.4
    chosen = calmest(expression, jaw, np.ones(len(jaw), bool))
    assert len(chosen) == 10 and not expression[chosen].any() and not jaw[chosen].any()
    assert (
        len(calmest(expression[:5], jaw[:5], np.ones(5, bool))) == CALM_FRAMES
        and len(calmest(expression[:2], jaw[:2], np.ones(2, bool))) == 2
    )
