"""Performances of known content put onto the astronaut."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from support.astronaut import QUICK
from support.performers import make_state, performed, quiet, state_of

from expportrait_cli.artifacts import curves_csv
from expportrait_cli.artifacts.types import Curves, Tracking
from expportrait_cli.config import PAPER, TransferConfig
from expportrait_cli.errors import UsageError
from expportrait_cli.fitting import fit
from expportrait_cli.geometry.rotations import from_turns, logarithm, rodrigues
from expportrait_cli.head import dense
from expportrait_cli.head.facemesh import BROWS, LID_PAIRS, landmark_model
from expportrait_cli.head.fitted import fitted_mesh
from expportrait_cli.head.model import landmarks
from expportrait_cli.retargeting import posed_frames, transfer
from expportrait_cli.retargeting.face import expression_map, parse_regions
from expportrait_cli.retargeting.gaps import Rest, at_rest
from expportrait_cli.retargeting.motion import LIMIT_IOD, SOFT_DEG, limit_turn
from expportrait_cli.retargeting.stage import smooth
from expportrait_cli.retargeting.steady import steady
from expportrait_cli.solve.state import Projection, interocular_px

pytest_plugins = ("support.astronaut",)

RIGHT, LEFT = LID_PAIRS[:3], LID_PAIRS[3:]
PERFORMANCE = ("jaw", "expression", "gaze")


@pytest.fixture(scope="module")
def stranger(photo_tracking, head):
    """Another person: neutral, then an open mouth, a smile, a turn with gaze, a shift; back to neutral."""
    identity = np.random.default_rng(1).normal(size=80) * 0.5
    states = [
        make_state(head, translation=(0.0, -0.02, 1.0)),
        make_state(head, jaw=(0.25, 0.0, 0.0), translation=(0.0, -0.02, 1.0)),
        make_state(head, mouthFrownLeft=0.7, mouthFrownRight=0.7, browInnerUp=0.8, translation=(0.0, -0.02, 1.0)),
        make_state(head, turn=(0.1, 0.3, -0.1), gaze=(0.1, 0.3, 0.1, 0.3), translation=(0.0, -0.02, 1.0)),
        make_state(head, translation=(0.03, 0.01, 0.9)),
        make_state(head, translation=(0.0, -0.02, 1.0)),
    ]
    return performed(photo_tracking, head, states, identity=identity)


@pytest.fixture(scope="module")
def own(photo_tracking, head):
    """The photo's person: with the mouth further open, as in the photo, turned."""
    start = state_of(photo_tracking, 0)
    wide = replace(start, jaw=start.jaw + np.array([0.2, 0, 0]))
    turned = replace(start, rotation=rodrigues(np.array([0.0, 0.2, 0.05])) @ start.rotation)
    return performed(photo_tracking, head, [wide, start, turned])


@pytest.fixture(scope="module")
def mine(photo_tracking, own, head):
    """The head that shares its identity with `own`."""
    return fit([photo_tracking], head, replace(QUICK, same_person="yes"), quiet, driver=own)


def curves_of(fitted, tracking, head, **options) -> Curves:
    return transfer(fitted, tracking, head, TransferConfig(**options)).curves


def meshes(fitted, tracking, head, **options) -> np.ndarray:
    return np.stack([*posed_frames(fitted, head, transfer(fitted, tracking, head, TransferConfig(**options)))])


def lid_gaps(fitted, verts, head, pairs) -> np.ndarray:
    """Opening of an eye in every frame, crop px."""
    points = landmarks(head, torch.from_numpy(verts)).numpy()
    px = points[..., :2] / points[..., 2:] * fitted.focal_px
    upper, lower = np.array(pairs).T
    return np.linalg.norm(px[:, upper] - px[:, lower], axis=-1).mean(-1)


WHO = {"stranger": "fitted", "own": "mine"}


@pytest.mark.parametrize("who", WHO)
def test_the_neutral_frame_is_the_photo(head, request, who):
    tracking, fitted = request.getfixturevalue(who), request.getfixturevalue(WHO[who])
    config = TransferConfig(expression="relative", turn_limit_deg=None)
    performance = transfer(fitted, tracking, head, config)
    verts = [*posed_frames(fitted, head, performance)][performance.neutral]
    assert np.linalg.norm(verts - fitted_mesh(fitted, head), axis=1).max() < 2e-5
    assert np.abs(performance.steps[performance.neutral]).max() < 1e-3


def test_neutral_frames_are_chosen_by_who_performs(fitted, mine, own, stranger, head):
    assert transfer(mine, own, head, TransferConfig()).neutral == 1
    assert transfer(fitted, stranger, head, TransferConfig()).neutral in (0, 5)
    assert transfer(fitted, stranger, head, TransferConfig(neutral_frame="4")).neutral == 4


@pytest.mark.slow
def test_a_driver_alike_to_the_last_bit_drives_landmarks_to_its_own(mine, own, head):
    fitted = mine
    verts = meshes(fitted, own, head, turn_limit_deg=None)
    points = landmarks(head, torch.from_numpy(verts)).numpy()
    px = points[..., :2] / points[..., 2:] * fitted.focal_px + 256
    inner = np.r_[1:7, 13, 14, 33, 133, 159, 145, 263, 362]
    error = np.linalg.norm(px - own.landmarks, axis=-1)[:, inner] / interocular_px(fitted.landmarks)
    assert error.mean() < 0.005


def test_performances_move_what_they_name(fitted, stranger, head):
    curves = curves_of(fitted, stranger, head, expression="relative")
    assert curves.jaw[1, 0] - curves.jaw[0, 0] == pytest.approx(0.25, abs=1e-5)
    column = head.expression_names.index("browInnerUp")
    raised = curves.expression[2, column] - fitted.expression[column]
    assert raised == pytest.approx(0.8 * (1 - fitted.expression[column] / 1.2), abs=1e-5)
    turn = logarithm(from_turns(curves.rotation[3]) @ from_turns(curves.rotation[0]).T)
    assert np.abs(turn - [0.1, 0.3, -0.1]).max() < 1e-4
    assert np.abs(curves.gaze[3] - curves.gaze[0] - [0.1, 0.3, 0.1, 0.3]).max() < 1e-5
    assert curves.translation[4, 2] / curves.translation[0, 2] == pytest.approx(0.9, abs=1e-4)


def test_shifts_count_in_heads(fitted, stranger, head):
    """The person's head moves by as many of its own widths in the picture as the driver's."""
    curves = curves_of(fitted, stranger, head)
    size_ref = fitted.focal_px / fitted.translation[2]
    size = stranger.focal_px / stranger.translation[0, 2]
    px = [
        rows.translation[:, :2] / rows.translation[:, 2:] * f
        for rows, f in ((curves, fitted.focal_px), (stranger, stranger.focal_px))
    ]
    step = [(p[4] - p[0]) / s for p, s in zip(px, (size_ref, size), strict=True)]
    assert np.abs(step[0] - step[1]).max() < 1e-5


@pytest.mark.parametrize("who", WHO)
def test_no_expression_leaves_the_pose(head, request, who):
    tracking, fitted = request.getfixturevalue(who), request.getfixturevalue(WHO[who])
    curves, full = curves_of(fitted, tracking, head, expression_scale=0.0), curves_of(fitted, tracking, head)
    assert np.abs(curves.expression - fitted.expression).max() < 1e-6
    assert np.abs(curves.jaw - fitted.jaw).max() < 1e-6
    for name in ("rotation", "translation", "torso_rotation", "torso_translation"):
        assert np.array_equal(getattr(curves, name), getattr(full, name)), name


@pytest.mark.parametrize("who", WHO)
def test_no_pose_leaves_the_expression(head, request, who):
    tracking, fitted = request.getfixturevalue(who), request.getfixturevalue(WHO[who])
    curves, full = curves_of(fitted, tracking, head, pose_scale=0.0), curves_of(fitted, tracking, head)
    assert np.abs(curves.rotation - fitted.rotation).max() < 1e-5
    assert np.abs(curves.translation - fitted.translation).max() < 1e-5
    assert np.ptp(curves.torso_rotation, axis=0).max() < 1e-6
    assert np.ptp(curves.torso_translation, axis=0).max() < 1e-6
    for name in PERFORMANCE:
        assert np.array_equal(getattr(curves, name), getattr(full, name)), name


def test_half_the_strength_is_half_the_way(fitted, stranger, head):
    full = curves_of(fitted, stranger, head, expression="relative")
    half = curves_of(fitted, stranger, head, expression="relative", expression_scale=0.5, pose_scale=0.5)
    assert np.abs((half.jaw - fitted.jaw) * 2 - (full.jaw - fitted.jaw)).max() < 1e-5
    turns = [logarithm(from_turns(c.rotation) @ from_turns(fitted.rotation).T) for c in (full, half)]
    assert np.abs(2 * turns[1] - turns[0]).max() < 1e-4


MOVED = {
    "pose": {"rotation", "translation", "torso_rotation", "torso_translation"},
    "gaze": {"gaze"},
    "expression": {"expression", "jaw"},
    "lips": {"expression", "jaw"},
    "eyes": {"expression"},
}


@pytest.mark.parametrize("region", MOVED)
def test_a_region_moves_alone(fitted, stranger, head, region):
    flow = stranger.flow.copy()
    flow[2:5, 1] = [0.99, 0.1, 5, 5]
    stranger = replace(stranger, flow=flow)
    curves = curves_of(fitted, stranger, head, region=region, expression="relative")
    still = curves_of(fitted, stranger, head, expression_scale=0.0, pose_scale=0.0, region="lips")
    for field in fields(Curves):
        same = np.abs(getattr(curves, field.name) - getattr(still, field.name)).max() < 1e-6
        # Nothing in this performance moves the eyes' units.
        assert same == (field.name not in MOVED[region] or (region, field.name) == ("eyes", "expression")), field.name


@pytest.mark.slow
def test_lips_leave_lids_brows_and_pose(fitted, stranger, head):
    verts = meshes(fitted, stranger, head, region="lips")
    rest = fitted_mesh(fitted, head)
    above = ((head.skinning[:, 3] == 0) & (dense(head, head.template)[:, 1] > 0.04)).numpy()
    assert np.linalg.norm(verts[:, above] - rest[above], axis=-1).max() < 3e-4
    for pairs in (LEFT, RIGHT):
        gaps = lid_gaps(fitted, verts, head, pairs)
        assert np.ptp(gaps) < 0.03 * gaps[0]
    mask = np.diag(expression_map(head, parse_regions("lips")))
    named = {name for name, on in zip(head.expression_names, mask, strict=True) if on}
    assert named == {name for name in head.expression_names if name.startswith(("mouth", "jaw"))}


def test_pose_alone_moves_the_head_rigidly(fitted, stranger, head):
    performance = transfer(fitted, stranger, head, TransferConfig(region="pose", turn_limit_deg=None))
    assert np.abs(performance.curves.expression - fitted.expression).max() < 1e-6
    assert np.abs(performance.steps).max() == 0
    verts = np.stack([*posed_frames(fitted, head, performance)])
    rigid = (head.skinning[:, 2] > 0.9999).numpy()
    rest = (fitted_mesh(fitted, head) - fitted.translation) @ from_turns(fitted.rotation)
    for frame, rotation, shift in zip(verts, performance.curves.rotation, performance.curves.translation, strict=True):
        assert np.abs((frame - shift) @ from_turns(rotation) - rest)[rigid].max() < 1e-5


@pytest.mark.parametrize("region", ["nose", "pose,nose", "", ",", "Pose"])
def test_unknown_regions_are_refused(fitted, stranger, head, region):
    with pytest.raises(UsageError, match="`region="):
        transfer(fitted, stranger, head, TransferConfig(region=region))


def test_regions_are_a_list(head):
    assert parse_regions(" lips , gaze") == {"lips", "gaze"}
    both = expression_map(head, parse_regions("lips,eyes"))
    assert (
        both.sum() == np.trace(both) == sum(name.startswith(("mouth", "jaw", "eye")) for name in head.expression_names)
    )


@pytest.mark.parametrize("frame", ["6", "-1", "1.5", "neutral", "99999999999", ""])
def test_neutral_frames_out_of_range_are_refused(fitted, stranger, head, frame):
    with pytest.raises(UsageError, match=r"0 to 5|auto, none, or the number"):
        transfer(fitted, stranger, head, TransferConfig(neutral_frame=frame))


def test_a_superscript_is_no_frame(fitted, stranger, head):
    with pytest.raises(UsageError):
        transfer(fitted, stranger, head, TransferConfig(neutral_frame="²"))


@pytest.fixture(scope="module")
def winker(photo_tracking, head):
    """A stranger who shuts the left eye step by step; in the end the lids touch."""
    states = [make_state(head, eyeBlinkLeft=share) for share in (0.0, 0.2, 0.4, 0.6, 0.85)]
    clip = performed(photo_tracking, head, states, identity=np.random.default_rng(2).normal(size=80) * 0.5)
    upper, lower = np.array(LEFT).T
    points = clip.landmarks.copy()
    points[-1, upper] = points[-1, lower] - np.float32([0.0, 0.3])
    return replace(clip, landmarks=points)


def test_a_wink_shuts_one_eye(fitted, winker, head):
    verts = meshes(fitted, winker, head, neutral_frame="0")
    left, right = (lid_gaps(fitted, verts, head, pairs) for pairs in (LEFT, RIGHT))
    # The points of a pair do not lie straight above each other: apart from that the lids touch.
    assert left[-1] < 0.25 * left[0]
    assert np.ptp(right) < 0.05 * right[0]


def test_what_the_landmarks_show_is_no_step_of_the_fit(winker, stranger, head):
    """Winks, dropped jaws and turns stay to the last bit; smiles that no landmark shows are smoothed."""
    eyes = expression_map(head, parse_regions("eyes"))
    for clip in (winker.frames([0, 4, 4, 0]), stranger):
        moved = steady(clip, eyes)
        for name in ("expression", "jaw", "rotation", "translation"):
            assert np.abs(getattr(moved, name) - getattr(clip, name)).max() < 1e-6, name
    psi = np.zeros_like(winker.expression)
    psi[2:, head.expression_names.index("mouthSmileLeft")] = 0.5
    unseen = steady(replace(unmoved(winker, 5), expression=psi), eyes).expression
    assert np.abs(np.diff(unseen, axis=0)).max() < 0.15
    assert np.abs(unseen.sum(0) - psi.sum(0)).max() < 1e-5


def test_lids_close_by_the_drivers_share(fitted, winker, head):
    left = lid_gaps(fitted, meshes(fitted, winker, head, neutral_frame="0"), head, LEFT)
    upper, lower = np.array(LEFT).T
    seen = np.linalg.norm(winker.landmarks[:, upper] - winker.landmarks[:, lower], axis=-1).mean(-1)
    assert (np.diff(left) < 0).all()
    assert np.abs(left / left[0] - seen / seen[0])[:-1].max() < 0.1


def test_steps_beyond_the_model_are_limited(fitted, stranger, head):
    wild = stranger.landmarks.copy()
    wild[2, [13, 0, 159]] += 500
    steps = transfer(
        fitted, replace(stranger, landmarks=wild), head, TransferConfig(neutral_frame="0", method="direct")
    ).steps
    limit = LIMIT_IOD * interocular_px(fitted.landmarks)
    assert np.linalg.norm(steps, axis=-1).max() < 1.001 * limit
    assert np.linalg.norm(steps[2, 13]) == pytest.approx(limit, rel=1e-3)


def test_the_papers_protocol_takes_the_drivers_own(fitted, stranger, head):
    curves = transfer(fitted, stranger, head, replace(PAPER, turn_limit_deg=None)).curves
    assert np.abs(curves.expression - stranger.expression).max() < 1e-6
    assert np.abs(curves.jaw - stranger.jaw).max() < 1e-6
    assert np.abs(curves.gaze - stranger.gaze).max() < 1e-6
    turn = logarithm(from_turns(curves.rotation) @ from_turns(stranger.rotation).swapaxes(1, 2))
    assert np.abs(turn).max() < 1e-5


def test_absolute_by_region_keeps_the_rest_of_the_photo(fitted, stranger, head):
    curves = transfer(fitted, stranger, head, replace(PAPER, pose="relative", region="lips")).curves
    brows = [k for k, name in enumerate(head.expression_names) if not name.startswith(("mouth", "jaw"))]
    assert np.abs(curves.expression[:, brows] - fitted.expression[brows]).max() < 1e-6
    assert np.abs(curves.gaze - fitted.gaze).max() < 1e-6
    assert np.abs(curves.rotation - fitted.rotation).max() < 1e-5


def test_expressions_stay_in_their_range(fitted, stranger, head):
    curves = curves_of(fitted, stranger, head, expression_scale=3.0)
    assert curves.expression.min() >= 0 and curves.expression.max() <= 1.2 + 1e-6
    downwards = curves_of(fitted, stranger, head, neutral_frame="2", expression="relative")
    assert downwards.expression.min() >= 0


def test_the_jaw_stays_in_its_range(fitted, stranger, head):
    assert curves_of(fitted, stranger, head, expression_scale=3.0).jaw[:, 0].max() < 0.7


def test_smoothing_keeps_constants_and_takes_jitter():
    constant = np.full((20, 3), 2.5)
    assert np.allclose(smooth(constant, 3.0), constant)
    jitter = np.resize([1.0, -1.0], (20, 1))
    assert np.abs(smooth(jitter, 2.0))[8:-8].max() < 0.1
    assert smooth(jitter, 0.0) is jitter
    ramp = np.arange(40.0)[:, None]
    assert np.allclose(smooth(ramp, 2.0)[8:-8], ramp[8:-8])


def test_smoothing_a_performance(fitted, stranger, head):
    sharp, soft = (curves_of(fitted, stranger, head, smooth=sigma) for sigma in (0.0, 1.5))
    for field in fields(Curves):
        a, b = getattr(sharp, field.name), getattr(soft, field.name)
        assert b.shape == a.shape
        assert np.abs(np.diff(b, axis=0)).sum() <= np.abs(np.diff(a, axis=0)).sum() + 1e-6, field.name


def test_limits_bound_the_turn_and_leave_roll():
    angles = np.radians(np.linspace(0, 170, 200))
    for axis in (np.array([1.0, 0.0]), np.array([0.6, 0.8])):
        turns = np.c_[angles[:, None] * axis, np.linspace(-1, 1, 200)]
        out = limit_turn(turns, 45.0)
        size = np.degrees(np.linalg.norm(out[:, :2], axis=1))
        assert size.max() <= 45.0 + SOFT_DEG / 2 + 1e-9
        assert (np.diff(size) >= 0).all()
        assert np.diff(size).max() < 0.9  # no kink: the input's step is 0.85 degrees
        assert np.array_equal(out[:, 2], turns[:, 2])
        free = np.degrees(angles) < 45 - SOFT_DEG / 2
        assert np.allclose(out[free], turns[free])
        assert np.allclose(out[:, 0] * axis[1], out[:, 1] * axis[0])
    assert np.array_equal(limit_turn(turns, None), turns)


def test_a_limited_performance_stops_turning(fitted, photo_tracking, head):
    turns = [make_state(head, turn=(0.0, yaw, 0.0)) for yaw in np.radians([0, 20, 50, 80])]
    tracking = performed(photo_tracking, head, turns, identity=np.random.default_rng(1).normal(size=80) * 0.5)
    curves = curves_of(fitted, tracking, head, neutral_frame="0", turn_limit_deg=30.0)
    turn = logarithm(from_turns(curves.rotation) @ from_turns(curves.rotation[0]).T)
    yaw = np.degrees(np.linalg.norm(turn, axis=1))
    assert yaw[1] == pytest.approx(20, abs=0.3)
    assert yaw[2] < yaw[3] < 30 + SOFT_DEG / 2


def test_a_torso_stays_with_the_head_across_a_cut(fitted, stranger, head):
    shot = np.array([0, 0, 0, 1, 1, 1])
    flow = stranger.flow.copy()
    flow[3:, 1] = [1, 0, 70, 20]
    still = replace(stranger, shot=shot, flow=flow, translation=stranger.translation[[0] * 6])
    curves = curves_of(fitted, still, head, neutral_frame="0")
    # What another shot's flow counts from is not known: it has no say. The neck, beside which the torso is steadied,
    # moves by a quarter of a millimetre as the head turns.
    assert np.linalg.norm(curves.torso_translation[5] - curves.torso_translation[0]) < 5e-4
    assert np.abs(curves.torso_rotation - curves.torso_rotation[0]).max() < 1e-6


def unmoved(tracking, count: int) -> Tracking:
    """The first frame, `count` times."""
    return tracking.frames([0] * count)


def test_the_torso_follows_its_flow(fitted, stranger, head):
    still = unmoved(stranger, 30)
    flow = still.flow.copy()
    flow[15:, 1] = [1, 0, 30, -12]
    # The head goes along: under one that rests a step of the flow is none of the shoulders.
    points = still.landmarks + 40 * (np.arange(30) >= 15)[:, None, None].astype(np.float32)
    curves = curves_of(fitted, replace(still, flow=flow, landmarks=points), head, neutral_frame="0")
    px = curves.torso_translation[:, :2] / curves.torso_translation[:, 2:] * fitted.focal_px
    scale = (fitted.focal_px / fitted.translation[2]) / (stranger.focal_px / stranger.translation[0, 2])
    assert np.abs(px[19:] - px[0] - np.array([30, -12]) * scale).max() < 2
    assert np.abs(px[1:11] - px[0]).max() < 2


@pytest.mark.slow
def test_curves_through_a_table_lead_to_the_same_meshes(fitted, stranger, head, tmp_path):
    performance = transfer(fitted, stranger, head, TransferConfig())
    path = curves_csv.write_csv(performance.curves, head.expression_names, tmp_path / "c.csv")
    again = replace(performance, curves=curves_csv.read_csv(path, head.expression_names))
    pairs = zip(posed_frames(fitted, head, performance), posed_frames(fitted, head, again), strict=True)
    assert max(np.abs(a - b).max() for a, b in pairs) < 2e-6


@pytest.mark.slow
def test_frames_do_not_depend_on_how_they_are_batched(fitted, stranger, head):
    performance = transfer(fitted, stranger, head, TransferConfig())
    order = np.resize(np.arange(6), 20)
    long = replace(
        performance,
        curves=Curves(*(getattr(performance.curves, field.name)[order] for field in fields(Curves))),
        steps=performance.steps[order],
    )
    first = [*posed_frames(fitted, head, performance)]
    for index, verts in enumerate(posed_frames(fitted, head, long)):
        assert np.abs(verts - first[order[index]]).max() < 1e-6


def test_the_same_persons_smile_is_not_damped_by_the_photos(mine, own, head):
    assert np.array_equal(mine.identity, own.identity)
    curves = curves_of(mine, own, head, turn_limit_deg=None)
    assert np.abs(curves.jaw - own.jaw).max() < 1e-6
    assert np.abs(curves.expression - own.expression).max() < 1e-6


def test_a_cut_moves_the_camera_and_not_the_person(fitted, stranger, head):
    shot = (np.arange(len(stranger.error)) >= len(stranger.error) // 2).astype(np.int64)
    elsewhere = stranger.translation + np.outer(shot, [0.2, 0.1, 0.3]).astype(np.float32)
    here, there = (
        curves_of(fitted, replace(stranger, shot=shot, translation=position), head).translation
        for position in (stranger.translation, elsewhere)
    )
    assert np.abs(there - here).max() < 0.03


NEUTRAL_FACE = {"browInnerUp": 0.3, "mouthRollUpper": 0.2, "eyeWideLeft": 0.2}
"""What the tracker reads in many a face that rests."""


def scowling(fitted, head, **values):
    """The photo with another expression; the landmarks are the model's own."""
    state = make_state(head, translation=tuple(fitted.translation.astype(float)), **values)
    view = Projection(landmark_model(head), focal_px=fitted.focal_px, centre_px=256.0)
    return replace(
        fitted,
        landmarks=view.predict(fitted.identity.astype(float), state).astype(np.float32),
        expression=state.expression.astype(np.float32),
        jaw=state.jaw.astype(np.float32),
        gaze=state.gaze.astype(np.float32),
        rotation=np.zeros(3, np.float32),
    )


def test_rest_keeps_the_face_and_takes_the_expression(head):
    wild = make_state(
        head, **NEUTRAL_FACE, mouthSmileLeft=0.9, browDownLeft=0.8, jaw=(0.3, 0.1, 0), gaze=(0.4, 0.5, 0.0, 0.1)
    )
    rest = at_rest(wild, head)
    unit = dict(zip(head.expression_names, rest.expression, strict=True))
    assert {name: unit[name] for name in NEUTRAL_FACE} == NEUTRAL_FACE
    assert unit["mouthSmileLeft"] < 0.11 and unit["browDownLeft"] < 0.04
    assert rest.jaw[0] < 0.05 and abs(rest.jaw[1]) <= 0.01
    assert np.abs(rest.gaze).max() <= 0.2 and rest.gaze[3] == 0.1
    again = at_rest(rest, head)
    assert np.array_equal(again.vector(), rest.vector())


def test_a_neutral_photo_stays_itself_when_the_driver_rests(fitted, head, photo_tracking):
    """The bias that the tracker has for this driver is not expression, and the photo's own is not either."""
    photo = scowling(fitted, head, browInnerUp=0.2)
    clip = performed(photo_tracking, head, [make_state(head, **NEUTRAL_FACE)] * 3, identity=np.full(80, 0.3))
    curves = curves_of(photo, clip, head)
    assert np.abs(curves.expression - photo.expression).max() < 1e-6
    assert np.abs(curves.jaw - photo.jaw).max() < 1e-6


def test_an_expression_is_the_drivers_whatever_the_photo_shows(fitted, head, photo_tracking):
    """Anger stays anger on a smiling photo, and shut lips shut on an open mouth."""
    states = [make_state(head), make_state(head, browDownLeft=0.9, browDownRight=0.9, mouthFrownLeft=0.6)]
    clip = performed(photo_tracking, head, states, identity=np.full(80, 0.2))
    smile = {"mouthSmileLeft": 0.9, "mouthSmileRight": 0.9, "cheekSquintLeft": 0.5}
    plain, smiling = scowling(fitted, head), scowling(fitted, head, jaw=(0.2, 0, 0), gaze=(0, 0.5, 0, 0.5), **smile)
    own, other = (curves_of(photo, clip, head, neutral_frame="0") for photo in (plain, smiling))
    assert np.abs(other.expression - own.expression).max() < 0.1
    assert np.abs(other.jaw - own.jaw).max() < 0.05 and np.abs(other.gaze - own.gaze).max() < 0.21
    assert other.expression[1, head.expression_names.index("browDownLeft")] == pytest.approx(0.9, abs=0.03)
    kept = curves_of(smiling, clip, head, neutral_frame="0", expression="relative")
    assert kept.expression[1, head.expression_names.index("mouthSmileLeft")] == pytest.approx(0.9)


def lip_gaps(fitted, verts, head) -> np.ndarray:
    """Gap in the middle of the lips in every frame, % of the distance between the eyes."""
    points = landmarks(head, torch.from_numpy(verts)).numpy()
    px = points[..., :2] / points[..., 2:] * fitted.focal_px
    return 100 * np.array([np.linalg.norm(p[14] - p[13]) / interocular_px(p) for p in px])


def test_lips_part_as_far_as_the_drivers(fitted, head, photo_tracking):
    """A photo with its mouth wide open."""
    states = [make_state(head, jaw=(angle, 0, 0)) for angle in (0.0, 0.1, 0.25)]
    clip = performed(photo_tracking, head, states, identity=np.full(80, -0.3))
    seen = 100 * np.array([np.linalg.norm(p[14] - p[13]) / interocular_px(p) for p in clip.landmarks])
    gaps = lip_gaps(fitted, meshes(fitted, clip, head, neutral_frame="0"), head)
    assert np.abs(gaps - seen).max() < 1.5
    # The astronaut smiles with open lips.
    kept = lip_gaps(fitted, meshes(fitted, clip, head, neutral_frame="0", expression="relative"), head)
    assert kept[0] > seen[0] + 5


def test_expression_and_pose_are_chosen_apart(fitted, stranger, head):
    both = {
        (psi, pose): curves_of(fitted, stranger, head, expression=psi, pose=pose, turn_limit_deg=None)
        for psi in ("absolute", "relative")
        for pose in ("absolute", "relative")
    }
    for same in ("absolute", "relative"):
        assert np.array_equal(both[same, "absolute"].expression, both[same, "relative"].expression)
        assert np.array_equal(both["absolute", same].rotation, both["relative", same].rotation)
    turn = from_turns(both["relative", "absolute"].rotation) @ from_turns(stranger.rotation).swapaxes(1, 2)
    assert np.abs(logarithm(turn)).max() < 1e-5


def test_a_change_needs_a_frame_to_count_from(fitted, stranger, head):
    with pytest.raises(UsageError, match="`neutral_frame=none`"):
        transfer(fitted, stranger, head, TransferConfig(expression="relative", neutral_frame="none"))


def test_jumps_of_the_torso_are_none_of_the_person(fitted, stranger, head):
    """A driver who stands still, with two frames of wild flow; a slow walk goes through."""
    still = unmoved(stranger, 40)
    flow = still.flow.copy()
    # A flow that turns by exactly nothing was not measured.
    flow[:, 1] = [1, 1e-7, 0, 0]
    jump, walk = flow.copy(), flow.copy()
    jump[17:19, 1] = [1.1, 0.2, 73, -40]
    walk[:, 1, 2] = np.linspace(0, 40, 40)
    px = {}
    for name, flow in (("jump", jump), ("walk", walk)):
        curves = curves_of(fitted, replace(still, flow=flow), head, neutral_frame="0")
        px[name] = curves.torso_translation[:, :2] / curves.torso_translation[:, 2:] * fitted.focal_px
        assert np.abs(curves.torso_rotation - curves.torso_rotation[0]).max() < 1e-6
    assert np.abs(px["jump"] - px["jump"][0]).max() < 0.05
    steps = np.diff(px["walk"][:, 0])
    assert np.ptp(steps[15:-15]) < 0.1 * steps.mean() and steps.mean() > 0.5


def test_a_head_does_not_leave_its_torso(fitted, stranger, head):
    """The driver leans back by a tenth, the flow on the clothes sees nothing of it."""
    leaning = stranger.frames([0] * 8 + [4] * 8 + [0] * 8)
    curves = curves_of(fitted, leaning, head, neutral_frame="0")
    ratio = curves.translation[:, 2] / curves.torso_translation[:, 2]
    parted = np.abs(np.log(ratio / ratio[0]))
    assert parted[12] == pytest.approx(0.04, abs=1e-3)
    # The torso is smoothed where the head sets off.
    assert parted.max() < 0.06


def test_brows_rise_as_far_as_the_drivers(fitted, head, photo_tracking):
    """By more than the model's expressions hold; the mouth stays."""
    clip = performed(photo_tracking, head, [make_state(head)] * 3, identity=np.full(80, 0.2))
    points = clip.landmarks.copy()
    points[2, BROWS, 1] -= 0.06 * interocular_px(points[2])
    verts = meshes(fitted, replace(clip, landmarks=points), head, neutral_frame="0")
    seen = landmarks(head, torch.from_numpy(verts)).numpy()
    px = seen[..., :2] / seen[..., 2:] * fitted.focal_px
    rise = (px[0, :, 1] - px[2, :, 1]) / interocular_px(px[0])
    assert 0.045 < rise[[105, 334]].mean() < 0.065
    assert np.abs(rise[[13, 14, 61, 291]]).max() < 0.003
    mouth = meshes(fitted, replace(clip, landmarks=points), head, neutral_frame="0", region="lips")
    assert np.abs(mouth[2] - mouth[0]).max() < 1e-5


def test_eyes_at_rest_stand_open_between_the_persons_and_the_drivers(fitted, head, photo_tracking):
    clip = performed(photo_tracking, head, [make_state(head)] * 3, identity=np.full(80, 0.2))
    wide = Rest.neutral(fitted, clip, head, 0)
    own = Rest.neutral(fitted, replace(clip, landmarks=np.repeat(fitted.landmarks[None], 3, 0)), head, 0)
    assert np.abs(wide.driver - own.driver).min() > 5e-4
    assert np.abs(wide.person**3 / wide.driver**2 - own.person**3 / own.driver**2).max() < 1e-9


def test_a_pan_moves_the_torso_with_the_head(fitted, stranger, head):
    """A camera that pans slowly moves both alike: neither lags behind the other."""
    step, count = 2.5, len(stranger.state)
    flow = stranger.flow.copy()
    flow[:, :, 0], flow[:, :, 1] = 1 + 1e-7, 0
    flow[:, :, 2], flow[:, :, 3] = step * np.arange(count)[:, None], 0
    start = stranger.translation[0]
    shift = np.outer(np.arange(count), [step / stranger.focal_px * start[2], 0, 0])
    pan = replace(
        stranger,
        flow=flow,
        rotation=stranger.rotation[[0] * count],
        translation=(start + shift).astype(np.float32),
        landmarks=stranger.landmarks[:1] + np.arange(count, dtype=np.float32)[:, None, None] * np.float32([step, 0]),
    )
    curves = curves_of(fitted, pan, head, neutral_frame="0")
    head_px = (curves.translation[:, 0] / curves.translation[:, 2]) * fitted.focal_px
    torso_px = (curves.torso_translation[:, 0] / curves.torso_translation[:, 2]) * fitted.focal_px
    assert np.ptp(head_px) > 5
    assert np.allclose(torso_px - torso_px[0], head_px - head_px[0], rtol=0.05, atol=0.1)
