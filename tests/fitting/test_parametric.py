"""The identity that normals and depth add to landmarks, on heads of which everything is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.known_head import KnownHead, Oracle, blank_fit

from expportrait_cli.fitting.clip import Clip, plain_skin
from expportrait_cli.fitting.evidence import Estimates
from expportrait_cli.fitting.parametric import refined_identity, solver_of, whole_patch, with_identity
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.solve.solver import IDENTITY_PRIOR

pytest_plugins = ("support.astronaut",)

FRAMES = 4
BIAS_IOD, JITTER_IOD = 0.012, 0.0022


def face_error_mm(head, found: np.ndarray, true: np.ndarray) -> float:
    """RMS distance of facial vertices of the neutral heads after a rigid alignment."""
    mask = head.facial_mask.numpy() > 0.5
    a, b = (neutral_mesh(blank_fit(head, beta), head).numpy()[mask].astype(float) for beta in (found, true))
    a, b = a - a.mean(0), b - b.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return float(1e3 * np.sqrt(((a @ turn - b) ** 2).sum(1).mean()))


@pytest.mark.slow
@pytest.mark.parametrize(("noise_deg", "depth_noise"), [(6.0, 0.05)])
def test_normals_and_depth_bring_the_identity_closer(head, monkeypatch, noise_deg, depth_noise):
    known = KnownHead.make(
        head, np.zeros((FRAMES, len(head.parts))), np.zeros((len(head.parts), 3)), seed=0, source=Path()
    )
    # The oracle draws its frames itself.
    monkeypatch.setattr(Clip, "crops", lambda self, rows: (np.zeros((2, 2, 3), np.uint8) for _ in rows))
    true = known.clip.tracking
    rng = np.random.default_rng(0)
    iod = np.linalg.norm(true.landmarks[:, 33] - true.landmarks[:, 263], axis=1)[:, None, None]
    # A detector's points are off by the same step in every frame, and jitter about it.
    off = BIAS_IOD / 1.25 * rng.normal(size=(1, 478, 2)) + JITTER_IOD * rng.normal(size=true.landmarks.shape)
    tracking = replace(true, landmarks=(true.landmarks + iod * off).astype(np.float32))
    by_landmarks = solver_of(tracking, head).identity(tracking.landmarks, prior=IDENTITY_PRIOR)[0].astype(np.float32)
    clip = Clip.of(with_identity(tracking, by_landmarks, head), blank_fit(head, by_landmarks), head)
    oracle = Oracle(known, noise_deg=noise_deg, depth_noise=depth_noise)
    refined = refined_identity(clip, Estimates(clip, whole_patch(clip), oracle, plain_skin(head)))
    before, after = (face_error_mm(head, beta, true.identity) for beta in (by_landmarks, refined))
    assert before < 1.2
    assert after < 0.85 * before
