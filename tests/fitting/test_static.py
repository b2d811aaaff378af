"""Hair and shoulders of heads of which everything is known: from the mattes of a turn, from normals and from depth."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.known_head import FOCAL_PX, KnownHead, NumberedOracle
from support.performers import quiet

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit
from expportrait_cli.config import FitConfig
from expportrait_cli.fitting import static
from expportrait_cli.fitting.clip import Clip, static_mask
from expportrait_cli.fitting.evidence import views_of
from expportrait_cli.fitting.silhouette import draw_vertices
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head.fitted import canonical_mesh, fitted_mesh
from expportrait_cli.head.model import HEAD

pytest_plugins = ("support.astronaut",)

MM = 1e3
FRAMES, TURN_DEG = 6, 25.0
HAIR_M, WAVES, WAVE_M, CLOTHES_M = 0.025, 0.12, 0.045, 0.015
"""Edges on the crown are 11 mm long: shorter waves are not there."""
DISTANCE_M = 1.7
"""Hair and shoulders are in the crop from here."""


def hair_and_clothes(head, bald: HeadFit) -> np.ndarray:
    """Wavy hair above the ears and a coat on the shoulders, canonical [V,3]; nothing on the face."""
    shape = canonical_mesh(bald, head, bald)
    x, y, z = shape.numpy().T
    hair = 1 / (1 + np.exp((0.06 - y) / 0.012)) * (head.skinning[:, HEAD].numpy() > 0.5)
    waves = 1 + WAVES * np.cos(2 * np.pi * x / WAVE_M) * np.cos(2 * np.pi * z / WAVE_M)
    height = HAIR_M * hair * waves + CLOTHES_M * np.clip((-0.14 - y) / 0.04, 0, 1)
    normals = vertex_normals(shape, head.dense_faces).numpy()
    return ((height * static_mask(head, 0.0))[:, None] * normals).astype(np.float32)


@dataclass(frozen=True)
class Turning:
    """A known head that turns from side to side, and what is known of it: the fit starts from its first matte."""

    known: KnownHead
    bald: HeadFit
    start: HeadFit
    mattes: list[np.ndarray]

    @classmethod
    def make(cls, head) -> "Turning":
        """The first frame faces the camera."""
        nothing = np.zeros((len(head.parts), 3))
        known = KnownHead.make(head, np.zeros((FRAMES, len(head.parts))), nothing, seed=0, source=Path())
        turns = np.zeros((FRAMES, 3), np.float32)
        turns[1:, 0] = np.radians(np.linspace(-6, 8, FRAMES - 1))
        turns[1:, 1] = np.radians(np.linspace(-TURN_DEG, TURN_DEG, FRAMES - 1))
        clip = known.clip
        place = np.tile(np.float32([0, -0.03, DISTANCE_M]), (FRAMES, 1))
        still = {name: np.zeros_like(getattr(clip.tracking, name)) for name in ("expression", "jaw")}
        tracking = replace(clip.tracking, rotation=turns, translation=place, **still)
        bald = replace(clip.fit, translation=place[0])
        true = replace(bald, static_offset=hair_and_clothes(head, bald))
        known = replace(known, clip=Clip.of(tracking, true, head))
        mattes = []
        for row in range(FRAMES):
            verts = known.posed(np.array([row]))[0].numpy()
            drawn = draw_vertices(verts, head, FOCAL_PX, size=CROP_SIZE) >= 0
            mattes.append(cv2.GaussianBlur(drawn.astype(np.float32), (0, 0), 1.0))
        grown = static.outline_offset(bald, head, mattes[0], FitConfig(), quiet)
        return cls(known, bald, replace(bald, static_offset=grown), mattes)

    def frames(self, rows, mattes=None) -> static.KeyFrames:
        """Some frames, with mattes [all frames] other than the right ones; pictures show their numbers."""
        points = len(static.static_patch(self.known.head).vertices)
        return static.KeyFrames(
            self.known.clip.tracking,
            self.known.head,
            np.array(rows),
            [np.full((CROP_SIZE, CROP_SIZE, 3), row, np.uint8) for row in rows],
            [(mattes or self.mattes)[row] for row in rows],
            np.zeros((len(rows), points, 3), np.float32),
        )

    def fit(self, rows, *, network=None, mattes=None) -> HeadFit:
        """The start, refined by some frames."""
        return static.refined_static(self.start, self.frames(rows, mattes), network, FitConfig())

    def visible(self, rows) -> np.ndarray:
        """What the static offset may move and any of the frames shows, [V]."""
        head = self.known.head
        views = views_of(self.known.posed(np.array(rows)), self.known.clip, np.arange(len(head.parts)))
        return np.max([view.weight > 0.5 for view in views], axis=0) & (static_mask(head, 0.0) > 0.5)

    def apart_mm(self, one: HeadFit, other: HeadFit, where: np.ndarray) -> np.ndarray:
        """Distances of two heads along the true normals."""
        shape = canonical_mesh(self.known.clip.fit, self.known.head, self.bald)
        normals = vertex_normals(shape, self.known.head.dense_faces).numpy()
        return MM * np.abs(((one.static_offset - other.static_offset) * normals).sum(1)[where])

    def error_mm(self, found: HeadFit, where: np.ndarray) -> float:
        """Rms distance along the normal from the true surface."""
        return float(np.sqrt((self.apart_mm(found, self.known.clip.fit, where) ** 2).mean()))


@pytest.fixture(scope="module")
def turning(head) -> Turning:
    return Turning.make(head)


@pytest.fixture(scope="module")
def alone(turning) -> HeadFit:
    return turning.fit([0])


@pytest.fixture(scope="module")
def together(turning) -> HeadFit:
    return turning.fit(range(FRAMES))


def on_face_m(found: HeadFit, head) -> float:
    return float(np.abs(found.static_offset[(head.facial_mask == 1).numpy()]).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise_deg", "depth_noise", "ratio"), [(0.0, 0.0, 0.25), (6.0, 0.05, 0.55)], ids=["clean", "noisy"]
)
def test_normals_and_depth_give_the_surface_within_the_outline(turning, alone, head, noise_deg, depth_noise, ratio):
    oracle = NumberedOracle(turning.known, noise_deg=noise_deg, depth_noise=depth_noise)
    found = turning.fit([0], network=oracle)
    seen = turning.visible([0])
    before = turning.error_mm(alone, seen)
    assert before > 5
    assert turning.error_mm(found, seen) < ratio * before
    assert turning.frames([0]).overlaps(found)[0] >= 0.97
    assert on_face_m(found, head) == 0


@pytest.mark.slow
def test_normals_and_depth_of_a_turn_give_its_sides(turning, together, head):
    found = turning.fit(range(FRAMES), network=NumberedOracle(turning.known, noise_deg=6.0, depth_noise=0.05))
    sides = turning.visible(range(FRAMES)) & ~turning.visible([0])
    for part in (sides, turning.visible([0])):
        assert turning.error_mm(found, part) < 0.6 * turning.error_mm(together, part)
    assert turning.frames(range(FRAMES)).overlaps(found).min() >= 0.97
    assert on_face_m(found, head) == 0


@pytest.mark.slow
def test_mattes_of_a_turn_tell_more_of_its_sides_than_one(turning, alone, together, head):
    sides = turning.visible(range(FRAMES)) & ~turning.visible([0])
    assert sides.sum() > 300
    assert turning.error_mm(together, sides) < 0.97 * turning.error_mm(alone, sides)
    frames = turning.frames(range(FRAMES))
    before, after = frames.overlaps(alone), frames.overlaps(together)
    # What is not covered yet becomes less by a tenth.
    assert (1 - after < 0.9 * (1 - before)).all() and after.min() > 0.975
    assert on_face_m(together, head) == 0


def with_a_hand(matte: np.ndarray) -> np.ndarray:
    """A patch of 90 px beside the head."""
    edge = int(np.flatnonzero(matte[200] > 0.5)[-1])
    return cv2.rectangle(matte.copy(), (edge - 20, 155), (edge + 90, 245), 1.0, -1)


def shifted(matte: np.ndarray) -> np.ndarray:
    return np.roll(matte, 14, axis=1)


def pull_mm(turning: Turning, alone: HeadFit, row: int, spoilt) -> float:
    """Largest difference that a wrong matte makes to the descent, against leaving its frame out.

    Before the head's own matte has the last word, which would cover up some of it.
    """

    def descended(rows, mattes) -> HeadFit:
        frames = turning.frames(rows, mattes)
        _, posed = frames.posed(alone)
        return replace(
            alone, static_offset=static.refined_offset(alone, frames.head, frames.mattes, posed, FitConfig())
        )

    mattes = [spoilt(matte) if other == row else matte for other, matte in enumerate(turning.mattes)]
    right = descended([other for other in range(FRAMES) if other != row], turning.mattes)
    return float(turning.apart_mm(descended(range(FRAMES), mattes), right, turning.visible(range(FRAMES))).max())


@pytest.mark.slow
@pytest.mark.parametrize(("row", "spoilt"), [(2, with_a_hand), (5, shifted)])
def test_one_wrong_matte_does_not_pull(turning, alone, row, spoilt):
    """Of frames that are turned aside, each in its own way."""
    assert pull_mm(turning, alone, row, spoilt) < 0.4


@pytest.mark.slow
def test_a_wrong_matte_would_pull_if_it_were_believed(turning, alone, monkeypatch):
    monkeypatch.setattr(static, "DOUBTFUL", 1e3)
    assert pull_mm(turning, alone, 2, with_a_hand) > 0.45


@pytest.mark.slow
def test_other_frames_never_spoil_the_heads_own(turning, alone):
    """All others show a person with a hood, who is not the one of the first."""
    mattes = [turning.mattes[0], *[cv2.dilate(matte, np.ones((61, 61))) for matte in turning.mattes[1:]]]
    own = turning.frames([0])
    assert own.overlaps(turning.fit(range(FRAMES), mattes=mattes)) >= own.overlaps(alone)


def test_a_step_is_taken_as_far_as_it_covers_the_mattes(turning):
    frames = turning.frames([0, 1])
    true = turning.known.clip.fit.static_offset
    assert np.array_equal(frames.towards(turning.bald, true).static_offset, true)
    near = replace(turning.bald, static_offset=np.float32(0.6) * true)
    # 1.8 times is too much, half of the way there is not.
    np.testing.assert_allclose(frames.towards(near, 1.8 * true).static_offset, 1.2 * true, atol=1e-6)
    assert frames.towards(turning.bald, -true) is turning.bald


def test_a_better_mean_does_not_make_up_for_the_heads_own_matte(turning, head):
    bald = turning.bald
    drawn = draw_vertices(fitted_mesh(bald, head), head, FOCAL_PX, size=CROP_SIZE) >= 0
    frames = turning.frames([0, 1], [drawn.astype(np.float32), turning.mattes[1]])
    true = turning.known.clip.fit.static_offset
    smaller = replace(bald, static_offset=np.float32(0.1) * true)
    assert turning.frames([1]).overlaps(smaller) > turning.frames([1]).overlaps(bald)
    assert frames.towards(bald, true) is bald


def test_no_offset_is_longer_than_its_limit(turning, head, monkeypatch):
    monkeypatch.setattr(static, "STAGES", ((64, 1, 30.0),))
    far = np.zeros_like(turning.bald.static_offset)
    far[static_mask(head, 0.0) > 0.5] = [0, 0, -0.2]
    fit, frames = replace(turning.bald, static_offset=far), turning.frames([0, 1])
    found = static.refined_offset(fit, head, frames.mattes, frames.posed(fit)[1], FitConfig())
    length = np.linalg.norm(found, axis=1)
    assert length.max() == pytest.approx(static.LIMIT_M, abs=1e-6)
    assert (found[length > 0.05, 2] < 0).all()


@pytest.fixture
def filmed(turning, monkeypatch):
    """Clips whose pictures are grey; what is read is counted."""
    read = []

    def crops(clip, rows):
        read.extend(rows)
        return (np.full((CROP_SIZE, CROP_SIZE, 3), 90, np.uint8) for _ in rows)

    monkeypatch.setattr(Clip, "crops", crops)
    own = np.full((CROP_SIZE, CROP_SIZE, 3), 90, np.uint8), turning.mattes[0]

    def of(tracking) -> static.KeyFrames:
        return static.KeyFrames.of(turning.start, tracking, turning.known.head, own, FitConfig())

    return of, read


def test_key_frames_are_turned_seen_and_begin_with_the_heads_own(turning, filmed):
    of, read = filmed
    tracking = turning.known.clip.tracking
    hidden = replace(tracking, state=np.array([0, 1, 0, 0, 0, 0], np.uint8))
    frames = of(hidden)
    assert frames.rows.tolist() == [0, 2, 4, 5] or frames.rows.tolist() == [0, 2, 3, 4, 5]
    assert read == frames.rows[1:].tolist() and len(frames.mattes) == len(frames.rows) == len(frames.offset)
    turns = np.degrees(tracking.rotation[frames.rows])
    apart = np.linalg.norm(turns[:, None] - turns, axis=-1) + 99 * np.eye(len(turns))
    assert apart.min() >= static.KEY_TURN_DEG
    assert frames.mattes[0] is turning.mattes[0]


def test_a_head_that_does_not_turn_is_a_photo(turning, filmed):
    of, read = filmed
    tracking = turning.known.clip.tracking
    frames = of(replace(tracking, rotation=0.1 * tracking.rotation))
    assert frames.rows.tolist() == [0] and not read


def test_many_turns_give_no_more_than_a_handful_of_frames(turning, filmed):
    of, _ = filmed
    tracking, count = turning.known.clip.tracking, 40
    names = (
        "landmarks",
        "expression",
        "jaw",
        "gaze",
        "translation",
        "shoulders",
        "flow",
        "shot",
        "state",
        "error",
        "doubt",
    )
    longer = {name: np.repeat(getattr(tracking, name)[:1], count, 0) for name in names}
    turns = np.radians(np.random.default_rng(0).uniform(-40, 40, (count, 3))).astype(np.float32)
    turns[0] = 0
    rows = of(replace(tracking, rotation=turns, **longer)).rows
    assert 1 < len(rows) <= static.KEY_FRAMES and rows[0] == 0 and len(set(rows)) == len(rows)
