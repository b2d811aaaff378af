"""The joint optimisation (paper 3.1.2): every term is 0 where it should be, and a known head is found better by it."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.known_head import (
    KnownHead,
    NumberedOracle,
    Skin,
    dynamic_poses,
    folds,
    found_by,
    numbered_film,
    rigid_rms_mm,
    tracked_again,
    wrinkles,
)
from support.performers import quiet

from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.fitting.clip import Clip, plain_skin
from expportrait_cli.fitting.evidence import Estimates
from expportrait_cli.fitting.joint import jointly, person_first
from expportrait_cli.fitting.parametric import refined_identity, whole_patch, with_identity
from expportrait_cli.fitting.rendered import Problem, Targets
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import dense
from expportrait_cli.head.fitted import neutral_mesh

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

SIZE, FRAMES, EIGHT = 96, 2, 8
MM = 1e3


@pytest.fixture(scope="module")
def known(head, tmp_path_factory) -> KnownHead:
    """Two frames of a head with bumps of half a millimetre, different in each."""
    film = numbered_film(tmp_path_factory.mktemp("joint") / "a.mkv", FRAMES)
    normals = vertex_normals(dense(head, head.template), head.dense_faces).numpy()
    heights = np.stack([folds(head, seed, wave_m=0.05, rms_m=0.0005) for seed in range(FRAMES)])
    return KnownHead.make(head, heights, normals, seed=1, source=film)


def problem_of(known: KnownHead, start: np.ndarray, clip: Clip | None = None) -> tuple[Problem, Targets]:
    """The loss around some dynamic offsets, and what the oracle says."""
    rows, own = np.arange(FRAMES), clip or known.clip
    targets = Targets.of(known.clip, rows, NumberedOracle(known), SIZE)
    return Problem(own, rows, known.patch, start.astype(np.float32), share=0.0), targets


def test_the_truth_has_no_loss(known):
    problem, targets = problem_of(known, known.offset)
    with torch.no_grad():
        found = problem.loss(torch.arange(FRAMES), targets)
        zero, _ = problem_of(known, 0 * known.offset)
        flat = zero.loss(torch.arange(FRAMES), targets)
    # What is averaged to a fifth of its size is no exact picture.
    assert found["normals"].max() < 0.05 and found["normals"].max() < 0.7 * flat["normals"].min()
    assert found["outline"].max() < 0.01
    assert found["depth"].max() < flat["depth"].min()
    assert not found["static"].any() and not flat["dynamic"].any() and found["dynamic"].min() > 0


def test_every_parameter_is_moved_by_it(known):
    """Parameters, static and dynamic offset: none is cut off from the rendered maps."""
    problem, targets = problem_of(known, 0 * known.offset)
    loss = problem.loss(torch.arange(FRAMES), targets)
    (loss["normals"] + loss["depth"] + loss["outline"]).sum().backward()
    for name, value in problem.moving.items():
        assert value.grad is not None and torch.isfinite(value.grad).all() and value.grad.abs().max() > 0, name
    assert problem.static.mask[known.head.facial_mask[problem.static.rows] > 0.999].max() < 2e-3


def test_a_known_head_is_found_better(known, head):
    """From another identity and without offsets: the loss falls, and so do the errors of surface and identity."""
    wrong = known.clip.fit.identity + 0.4 * np.random.default_rng(0).normal(size=head.identity_basis.shape[-1])
    fit = replace(known.clip.fit, identity=wrong.astype(np.float32))
    clip = Clip.of(replace(known.clip.tracking, identity=fit.identity), fit, head)
    start = replace(
        fit, dynamic_vertices=known.patch.vertices, dynamic_offset=np.zeros_like(known.offset, np.float16),
        dynamic_loss=np.zeros((FRAMES, 2), np.float32),
        **{f"dynamic_{n}": getattr(clip.tracking, n) for n in ("expression", "jaw", "gaze", "rotation", "translation")},
    )  # fmt: skip
    done = jointly(
        start, clip, known.patch, NumberedOracle(known), quiet, weights=np.full(FRAMES, 0.5), share=0.0, steps=12,
        sizes=[SIZE],
    )  # fmt: skip
    losses = []
    for found in (start, done):
        moved = replace(
            clip.tracking, identity=found.identity,
            **{n: getattr(found, f"dynamic_{n}") for n in ("expression", "jaw", "rotation", "translation")},
        )  # fmt: skip
        problem, targets = problem_of(known, found.dynamic_offset, Clip.of(moved, found, head))
        with torch.no_grad():
            losses.append(float(sum(problem.loss(torch.arange(FRAMES), targets).values()).sum()))
    assert losses[1] < 0.75 * losses[0]
    face = head.facial_mask.numpy() > 0.5
    true = neutral_mesh(known.clip.fit, head).numpy()[face]
    away = [MM * np.linalg.norm(neutral_mesh(f, head).numpy()[face] - true, axis=1).mean() for f in (fit, done)]
    assert away[1] < 0.8 * away[0]
    assert not np.array_equal(done.dynamic_offset, start.dynamic_offset)
    assert np.abs(done.dynamic_expression - start.dynamic_expression).max() > 1e-4
    kept = jointly(
        start, clip, known.patch, NumberedOracle(known), quiet, weights=np.full(FRAMES, 0.5), share=0.0, steps=1,
        sizes=[SIZE], keeps_person=True,
    )  # fmt: skip
    assert np.array_equal(kept.identity, start.identity) and np.array_equal(kept.static_offset, start.static_offset)


def both_ways(head, folder: Path, seed: int, *, noise_deg: float, depth_noise: float) -> np.ndarray:
    """Errors of identity and offsets, mm, of one stage after the other and of the joint optimisation: [2, 2].

    From landmarks with a bias of 1.2 % of the distance between the eyes; the stages have the same network.
    """
    skin, acting = Skin(head), np.array([0.0, 1.0, 0.5])
    long = skin.without_pose(folds(head, seed + 100, wave_m=0.13, rms_m=1.5e-3), 1.5e-3)
    heights = acting[:, None] * (wrinkles(head) + long)
    film = numbered_film(folder / "a.mkv", len(acting))
    known = KnownHead.make(head, heights, skin.normals, seed=seed, source=film)
    oracle = NumberedOracle(known, noise_deg=noise_deg, depth_noise=depth_noise, seed=seed)
    face, weights = head.facial_mask.numpy() > 0.5, np.full(len(acting), 1 / len(acting))
    true = neutral_mesh(known.clip.fit, head).numpy()[face]

    def errors_mm(fit: HeadFit, offset: np.ndarray) -> tuple[float, float]:
        mesh = neutral_mesh(fit, head).numpy()[face]
        return rigid_rms_mm(mesh, true), skin.error_mm(known, offset.astype(np.float32))

    tracking = tracked_again(known, seed)
    clip = Clip.of(tracking, replace(known.clip.fit, identity=tracking.identity), head)
    seen = Estimates(clip, whole_patch(clip), oracle, plain_skin(head))
    tracking = with_identity(tracking, refined_identity(clip, seen), head)
    fit = replace(clip.fit, identity=tracking.identity)
    clip = Clip.of(tracking, fit, head)
    staged = errors_mm(fit, found_by(oracle, clip, known.patch).offset())

    fit, tracking = person_first(fit, clip, known.patch, oracle, quiet, share=0.0, steps=20, size=128)
    clip = Clip.of(tracking, fit, head)
    offset = found_by(oracle, clip, known.patch).offset()
    fit = replace(
        fit,
        dynamic_vertices=known.patch.vertices,
        dynamic_offset=offset,
        dynamic_loss=np.zeros((len(acting), 2), np.float32),
        **dynamic_poses(tracking),
    )
    done = jointly(fit, clip, known.patch, oracle, quiet, weights=weights, share=0.0, steps=20, sizes=[128])
    together = errors_mm(done, done.dynamic_offset)
    return np.array([staged, together])


def test_a_head_is_found_better_than_by_one_stage_after_the_other(head, tmp_path):
    staged, together = both_ways(head, tmp_path, 1, noise_deg=0.0, depth_noise=0.0)
    assert together[0] < 0.9 * staged[0] and together[1] < staged[1]


@pytest.mark.skipif("EXPPORTRAIT_LONG" not in os.environ, reason="ten minutes: set EXPPORTRAIT_LONG=1")
@pytest.mark.parametrize(
    ("noise_deg", "depth_noise", "identity_mm", "offset_mm"), [(0, 0, 0.7, 0.35), (6, 0.05, 0.8, 0.75)]
)
def test_the_known_heads_of_the_other_qualities_are_found_better(
    head, tmp_path, noise_deg, depth_noise, identity_mm, offset_mm
):
    """The worst of five heads of `test_known_head`, with the command's own number of steps.

    Landmarks alone find the identity of the worst to 1.0 mm, from the same eight frames; the other qualities find
    offsets of known heads to 0.5 mm with clean and 0.9 mm with noisy maps.
    """
    face, skin, worst = head.facial_mask.numpy() > 0.5, Skin(head), np.zeros(2)
    noise = {"noise_deg": noise_deg, "depth_noise": depth_noise}
    for seed in range(5):
        film = numbered_film(tmp_path / f"{seed}.mkv", EIGHT)
        bare = np.zeros((EIGHT, len(head.parts)))
        known = KnownHead.make(head, bare, np.zeros((len(head.parts), 3)), seed=seed, source=film)
        oracle = NumberedOracle(known, **noise, seed=seed)
        tracking = tracked_again(known, seed)
        clip = Clip.of(tracking, replace(known.clip.fit, identity=tracking.identity), head)
        seen = Estimates(clip, whole_patch(clip), oracle, plain_skin(head))
        tracking = with_identity(tracking, refined_identity(clip, seen), head)
        fit = replace(clip.fit, identity=tracking.identity)
        fit, tracking = person_first(fit, Clip.of(tracking, fit, head), known.patch, oracle, quiet, share=0.0, size=128)
        found = optimised(fit, Clip.of(tracking, fit, head), known, oracle)
        meshes = (neutral_mesh(each, head).numpy()[face] for each in (found, known.clip.fit))
        worst[0] = max(worst[0], rigid_rms_mm(*meshes))
        long = skin.without_pose(folds(head, seed + 100, wave_m=0.13, rms_m=1.5e-3), 1.5e-3)
        known = KnownHead.make(head, np.stack([wrinkles(head) + long] * 2), skin.normals, seed=seed, source=film)
        found = optimised(
            known.clip.fit, known.clip, known, NumberedOracle(known, **noise, seed=seed), keeps_person=True
        )
        worst[1] = max(worst[1], skin.error_mm(known, found.dynamic_offset.astype(np.float32)))
    print(worst.round(3))
    assert worst[0] < identity_mm and worst[1] < offset_mm


def optimised(fit: HeadFit, clip: Clip, known: KnownHead, oracle: NumberedOracle, **options) -> HeadFit:
    """The joint optimisation from the offsets of the other qualities."""
    count = len(clip.tracking.error)
    fit = replace(
        fit,
        dynamic_vertices=known.patch.vertices,
        dynamic_offset=found_by(oracle, clip, known.patch).offset(),
        dynamic_loss=np.zeros((count, 2), np.float32),
        **dynamic_poses(clip.tracking),
    )
    weights = np.full(count, 1 / count)
    return jointly(fit, clip, known.patch, oracle, quiet, weights=weights, share=0.0, sizes=[128], **options)


@pytest.mark.skipif("EXPPORTRAIT_LONG" not in os.environ, reason="five minutes: set EXPPORTRAIT_LONG=1")
@pytest.mark.parametrize(("noise_deg", "depth_noise"), [(0.0, 0.0), (6.0, 0.05)])
def test_five_heads_are_found_better(head, tmp_path, noise_deg, depth_noise):
    """The worst of them, and offsets of each; with noise, single identities may be found worse by a few hundredths."""
    found = [both_ways(head, tmp_path, seed, noise_deg=noise_deg, depth_noise=depth_noise) for seed in range(5)]
    print(np.array2string(np.array(found), precision=2))
    staged, together = np.array(found).swapaxes(0, 1)
    assert (together.max(0) < staged.max(0)).all() and (together.mean(0) < staged.mean(0)).all()
    assert (together[:, 1] < staged[:, 1]).all() and (together[:, 0] < staged[:, 0] + 0.1).all()
