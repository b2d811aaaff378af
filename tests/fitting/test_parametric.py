"""The identity that normals and depth add to landmarks, on heads of which everything is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.astronaut import QUICK
from support.known_head import KnownHead, Oracle, blank_fit
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.config import TrackConfig
from expportrait_cli.fitting import fit
from expportrait_cli.fitting.clip import Clip, plain_skin
from expportrait_cli.fitting.evidence import Estimates
from expportrait_cli.fitting.parametric import (
    as_frame_of,
    refined_identity,
    shows_photo,
    solver_of,
    whole_patch,
    with_identity,
    with_whole_smile,
)
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import landmarks
from expportrait_cli.head.facemesh import FACE_OVAL, IRIS
from expportrait_cli.head.fitted import fitted_mesh, neutral_mesh
from expportrait_cli.solve.solver import IDENTITY_PRIOR
from expportrait_cli.solve.state import State, interocular_px
from expportrait_cli.tracking import track

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


def jpeg(image: np.ndarray, path: Path) -> str:
    Image.fromarray(image).save(path, quality=60)
    return str(path)


def test_a_frame_that_is_the_photo_shows_its_person(photo, photo_tracking, tmp_path):
    """Coded anew and darker it still is; with other pixels under the same landmarks it is not."""
    image = np.array(Image.open(photo))
    clip = replace(photo_tracking, source=jpeg((0.7 * image).astype(np.uint8), tmp_path / "again.jpg"))
    assert shows_photo(clip, photo_tracking)
    away = photo_tracking.landmarks + np.float32([0, 3]) * (np.arange(478) % 5 > 1)[None, :, None]
    assert not shows_photo(replace(clip, landmarks=away * np.float32([1, 1.2])), photo_tracking)
    stranger = replace(photo_tracking, source=jpeg(np.ascontiguousarray(image[:, ::-1]), tmp_path / "other.jpg"))
    assert not shows_photo(stranger, photo_tracking)
    assert not shows_photo(replace(photo_tracking, source=str(tmp_path / "gone.png")), photo_tracking)


def test_a_photo_that_is_a_frame_has_that_frames_state(photo_tracking, head):
    """Its translation is that of its own crop: exact for landmarks that the state explains."""
    own = replace(photo_tracking, rotation=photo_tracking.rotation + np.float32(0.04))
    state = State(
        *(getattr(own, name)[0].astype(np.float64) for name in ("expression", "jaw", "gaze")),
        from_turns(own.rotation[0]),
        own.translation[0].astype(np.float64),
    )
    exact = solver_of(own, head).predict(own.identity, state).astype(np.float32)
    photo = replace(photo_tracking, landmarks=exact[None])
    # The clip's crop is larger, about the same centre.
    seen = 0.7 * (exact[None] - CROP_SIZE / 2) + CROP_SIZE / 2
    driver = replace(own, landmarks=seen.astype(np.float32), focal_px=0.7 * own.focal_px)
    found = as_frame_of(photo, driver, head)
    assert np.abs(found.rotation - driver.rotation).max() < 1e-5 < np.abs(photo.rotation - driver.rotation).max()
    assert np.array_equal(found.expression, driver.expression) and np.array_equal(found.landmarks, photo.landmarks)
    assert np.abs(found.translation - own.translation).max() < 1e-4 and found.error[0] < 0.01


@pytest.mark.slow
def test_the_user_has_the_last_word(photo_tracking, head, tmp_path, caplog):
    driver = replace(photo_tracking, identity=photo_tracking.identity + np.float32(0.1))
    heads = {
        said: fit([photo_tracking], head, replace(QUICK, same_person=said), quiet, driver=driver)
        for said in ("auto", "yes", "no")
    }
    # The driver's picture is the photo itself.
    assert heads["auto"].identity_from == heads["yes"].identity_from == driver.fingerprint
    assert np.array_equal(heads["yes"].identity, driver.identity)
    assert heads["no"].identity_from == photo_tracking.fingerprint
    assert np.array_equal(heads["no"].identity, photo_tracking.identity)
    assert [line for line in caplog.messages if "shows the person of" in line and "as you say" in line]
    gone = replace(driver, source=str(tmp_path / "gone.png"))
    unknown = fit([photo_tracking], head, QUICK, quiet, driver=gone)
    assert unknown.identity_from == photo_tracking.fingerprint


def test_a_smile_in_one_photo_is_whole(photo_tracking, head):
    """All of the mouth's units that widen it, up to their limit, and nothing else."""
    psi = np.zeros_like(photo_tracking.expression)
    unit = {name: k for k, name in enumerate(head.expression_names)}
    psi[0, unit["mouthSmileLeft"]], psi[0, unit["mouthStretchLeft"]], psi[0, unit["browInnerUp"]] = 0.5, 1.0, 0.6
    whole = with_whole_smile(replace(photo_tracking, expression=psi), head).expression[0]
    found = {name: round(float(whole[k]), 5) for name, k in unit.items() if whole[k]}
    assert found == {"mouthSmileLeft": 0.9, "mouthStretchLeft": 1.2, "browInnerUp": 0.6}


def test_a_smiling_photo_still_lies_where_it_is_seen(fitted, photo_tracking, head):
    """What the smile gains, the offset of the landmarks gives back."""
    assert fitted.expression.sum() > photo_tracking.expression.sum() + 0.3
    points = landmarks(head, torch.from_numpy(fitted_mesh(fitted, head))).numpy()
    px = points[:, :2] / points[:, 2:] * fitted.focal_px + CROP_SIZE / 2
    inner = np.delete(np.arange(478), FACE_OVAL + IRIS)
    away = np.linalg.norm(px - photo_tracking.landmarks[0], axis=1)[inner]
    assert away.mean() < 0.012 * interocular_px(photo_tracking.landmarks[0])


STRANGERS = ["ref03*", "ref13*", "ref02*", "ref31*", "ref25*"]


@pytest.mark.media
@pytest.mark.slow
def test_strangers_are_never_one_person(media, head):
    """Smiling faces from the front, which one identity fits well; each is its own self."""
    people = [track(next(media.glob(f"reference/{name}")), head, TrackConfig(), quiet) for name in STRANGERS]
    for photo in people:
        assert [shows_photo(driver, photo) for driver in people] == [driver is photo for driver in people]
