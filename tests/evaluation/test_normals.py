"""Heads that are known, drawn by the tool itself: what is measured on them is what was put in."""

import json
from dataclasses import replace
from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from support.known_head import FOCAL_PX, KnownHead, wrinkles, write_film
from support.places import ROOT

from expportrait_cli.artifacts.types import CROP_SIZE
from expportrait_cli.benchmark import files
from expportrait_cli.cli import app
from expportrait_cli.detect.crop import Crop, picture_box
from expportrait_cli.evaluation import normals
from expportrait_cli.evaluation.report import NormalScores
from expportrait_cli.fitting.clip import Clip, above_brows, dynamic_mask, first_frame, plain_skin, still_frames
from expportrait_cli.fitting.dynamic import unseen_folds
from expportrait_cli.fitting.hair import ears as ears_of
from expportrait_cli.fitting.losses import Light
from expportrait_cli.fitting.silhouette import DrawnClip
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import from_turns
from expportrait_cli.head import HeadModel, dense, load_head
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.head.model import HEAD
from expportrait_cli.media.video import read_frames

LIGHT = Light(torch.tensor([0.55, 0.3, 0.35, 0.75, 0, 0, 0, 0, 0]))
SKIN, HAIR = (205, 160, 135), (60, 45, 35)
TURN_DEG = 35.0


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


@pytest.fixture(scope="module")
def known(head, tmp_path_factory) -> KnownHead:
    """A head that turns to either side, without folds."""
    still = np.zeros((3, len(head.parts)))
    made = KnownHead.make(
        head, still, np.zeros((len(head.parts), 3)), seed=3, source=tmp_path_factory.mktemp("f") / "f"
    )
    turns = np.radians([[0, 0, 0], [0, TURN_DEG, 0], [4, -TURN_DEG, 8]]).astype(np.float32)
    tracking = replace(made.clip.tracking, rotation=turns)
    return replace(made, clip=Clip.of(tracking, made.clip.fit, head))


def inflated(clip: Clip, head: HeadModel, by_m: float) -> Clip:
    """The same with the head grown along its normals, everywhere but in the face."""
    normal = vertex_normals(neutral_mesh(clip.fit, head), head.dense_faces).numpy()
    grows = (head.skinning[:, HEAD] > 0.5).numpy() * (1 - dynamic_mask(head))
    offset = (by_m * grows[:, None] * normal).astype(np.float32)
    return replace(clip, fit=replace(clip.fit, static_offset=offset))


def frame_of(clip: Clip, row: int, **changed) -> normals.Frame:
    """A frame whose picture is the drawn head under a known light; its matte is where it is drawn."""
    drawn = DrawnClip.of(clip, clip.fit)
    verts = drawn.verts(row)
    seen, ids = drawn.seen(verts, None), drawn.vertices(verts)
    normal, covered = seen.normals[0].numpy(), seen.mask[0].numpy()
    shade = LIGHT.log_shade(torch.from_numpy(normal)).numpy()
    grey = np.where(covered > 0.5, 255 * np.exp(shade / 2.2) * 0.7, 90).clip(0, 255).astype(np.uint8)
    rows = {
        "row": row,
        "turn_deg": abs(float(np.degrees(clip.tracking.rotation[row, 1]))),
        "picture": np.repeat(grey[..., None], 3, -1),
        "log_luminance": shade,
        "matte": covered,
        "normals": normal,
        "covered": covered,
        "vertices": ids,
        "rotation": from_turns(clip.tracking.rotation[row]),
        "translation": clip.tracking.translation[row].astype(np.float64),
        "focal_px": FOCAL_PX,
        "chin_px": np.array([256.0, 330.0]),
        "relief_drawn": np.full_like(covered, np.nan),
        "relief_read": np.zeros_like(covered),
        "box": (0.0, 0.0, float(CROP_SIZE), float(CROP_SIZE)),
    }
    return normals.Frame(**{**rows, **changed})


@pytest.mark.parametrize("row", [1, 2])
def test_a_right_head_has_no_distance_and_one_grown_by_5_mm_has_5(known, head, row):
    right = frame_of(known.clip, row)
    found = normals.outline(right)
    assert found["iou"] == 1.0 and found["max_mm"] == 0.0
    large = frame_of(inflated(known.clip, head, 0.005), row)
    found = normals.outline(replace(right, covered=large.covered))
    # Rays meet the outline at up to 25 degrees from its normal, where 5 mm across it are 5.5 along them.
    assert found["signed_mm"] == pytest.approx(5.2, abs=0.5)
    assert found["mm"] == pytest.approx(found["signed_mm"]) and 0.9 < found["iou"] < 0.99
    small = normals.outline(replace(large, covered=right.covered))
    assert small["signed_mm"] == pytest.approx(-found["signed_mm"], abs=0.01)


def test_distances_are_taken_behind_the_head_whichever_way_it_turns(known):
    for row in (1, 2):
        frame = frame_of(known.clip, row)
        nose = frame.project(np.array([0, 0, 0.12])) - frame.project(normals.CENTRE_M)
        # What is added in front of the face is not behind the ear.
        x = np.arange(CROP_SIZE) + 0.5
        ahead = np.sign(nose[0]) * (x - frame.project(normals.CENTRE_M)[0]) > 60
        wider = np.where(ahead, 1.0, frame.covered).astype(np.float32)
        assert np.nanmax(np.abs(normals.outline(replace(frame, covered=wider))["rays_mm"][:12])) < 0.01


def test_a_ray_that_leaves_the_picture_is_unknown():
    mask = np.zeros((64, 64), np.float32)
    mask[20:44, 20:] = 1
    directions = np.array([[1.0, 0], [-1, 0], [0, 1]])
    reach, known = normals.rays(mask, np.array([32.0, 32]), directions, (0.0, 0.0, 64.0, 64.0))
    assert known.tolist() == [False, True, True]
    assert reach[1:] == pytest.approx([12, 12], abs=0.05)
    # The crop goes on beyond the source picture, and repeats its last pixels there.
    box = picture_box(Crop(-16.0, 0.0, 128.0), np.array([100, 128]), 64)
    assert box == pytest.approx((8, 0, 58, 64))
    mask[:, 52:] = 0
    assert normals.rays(mask, np.array([32.0, 32]), directions, box)[1].all()
    assert not normals.rays(mask, np.array([32.0, 32]), directions, (8.0, 0.0, 53.0, 64.0))[1][0]


def person_of(known: KnownHead, **changed) -> normals.Person:
    photo = frame_of(known.clip, 0)
    return replace(files._person(known.clip, photo, LIGHT), colours=None, **changed)


@pytest.fixture(scope="module")
def wrinkled(known, head) -> Clip:
    normal = vertex_normals(neutral_mesh(known.clip.fit, head), head.dense_faces).numpy()
    offset = (wrinkles(head, height_m=0.0012)[:, None] * normal).astype(np.float32)
    return replace(known.clip, fit=replace(known.clip.fit, static_offset=offset))


def test_detail_of_a_picture_that_was_drawn_from_the_normals_is_all_explained(wrinkled, known):
    frame, person = frame_of(wrinkled, 1), person_of(known)
    found = normals.detail(frame, person)["forehead"]
    assert found == pytest.approx({"r": 1, "r_registered": 1, "gain": 1, "explained": 1}, abs=1e-5)
    # Half the depth is half the strength.
    shallow = replace(wrinkled, fit=replace(wrinkled.fit, static_offset=0.5 * wrinkled.fit.static_offset))
    found = normals.detail(replace(frame, normals=frame_of(shallow, 1).normals), person)["forehead"]
    # A tenth of what is left by the high-pass is the curved forehead itself.
    assert found["r"] > 0.95 and found["gain"] == pytest.approx(0.55, abs=0.1)
    assert found["explained"] == pytest.approx(0.5, abs=0.1)


def test_smooth_normals_explain_nothing(wrinkled, known):
    smooth = frame_of(known.clip, 1)
    found = normals.detail(replace(frame_of(wrinkled, 1), normals=smooth.normals), person_of(known))["forehead"]
    # As little as the curved forehead has of the same detail.
    assert abs(found["gain"]) < 0.2 and found["explained"] < 0.3


def test_light_of_a_picture_is_found_from_its_skin(wrinkled, known, head):
    frames = [frame_of(wrinkled, 1), frame_of(wrinkled, 2)]
    light = files._light(frames, plain_skin(head))
    person = person_of(known, log_shade=lambda n: light.log_shade(torch.from_numpy(n)).numpy())
    found = normals.detail(frames[0], person)["forehead"]
    assert found["r"] > 0.97 and found["gain"] == pytest.approx(1, abs=0.15)


def noise(seed: int) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(160, 160)), (0, 0), 2.0).astype(np.float32)


def test_shifted_detail_is_found_by_registration_alone_and_unrelated_detail_is_not():
    detail, inside = noise(0), np.zeros((160, 160), bool)
    inside[20:140, 20:140] = True
    moved = normals.agreement(detail, np.roll(detail, (3, -4), (0, 1)), inside)
    assert moved["r"] < 0.4 and moved["r_registered"] > 0.99
    far = normals.agreement(detail, np.roll(detail, (12, 9), (0, 1)), inside)
    other = normals.agreement(detail, noise(1), inside)
    for found in (far, other):
        assert abs(found["r"]) < 0.1 and found["r_registered"] < 0.2 and found["explained"] < -0.2
    assert normals.agreement(detail, 2 * detail, inside)["gain"] == pytest.approx(0.5)
    assert np.isnan(normals.agreement(detail, detail, np.zeros_like(inside))["r"])


def test_a_slope_leaves_nothing_after_the_high_pass():
    inside = np.zeros((120, 120), bool)
    inside[10:110, 30:90] = True
    slope = np.tile(np.linspace(0, 3, 120, dtype=np.float32), (120, 1))
    passed, trusted = normals.high_passed(slope, inside, 4.0)
    # At a rim where a tenth of the Gaussian is missing, 0.17 of its width of the slope remain.
    assert trusted.sum() > 4000 and np.abs(passed[trusted]).max() < 0.2 * 4 * 3 / 120 * 1.2


@pytest.mark.parametrize("sigma_deg", [0.5, 2.0])
def test_jitter_of_known_size_comes_back(known, sigma_deg):
    normal = frame_of(known.clip, 1).normals
    rng = np.random.default_rng(0)

    def shaken() -> np.ndarray:
        step = rng.normal(0, np.radians(sigma_deg), normal.shape)
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        step -= normal * (step * normal).sum(-1, keepdims=True)
        moved = normal + step
        return (moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-9) * length).astype(np.float32)

    assert normals.change_deg(normal, normal) == 0
    # Two tangential components, each of both frames: a Rayleigh distribution of scale sigma x sqrt 2.
    wanted = sigma_deg * np.sqrt(2) * np.sqrt(np.pi / 2)
    assert normals.change_deg(shaken(), shaken()) == pytest.approx(wanted, rel=0.02)


def painted(frame: normals.Frame, hair: np.ndarray) -> np.ndarray:
    picture = np.full((CROP_SIZE, CROP_SIZE, 3), SKIN, np.uint8)
    picture[(frame.vertices >= 0) & hair[frame.vertices]] = HAIR
    grain = np.random.default_rng(0).normal(0, 6, picture.shape)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def test_ears_agree_where_the_picture_has_the_colour_that_the_head_says(known, head):
    scalp = head.scalp
    ears = ears_of(head)
    photo, frame = frame_of(known.clip, 0), frame_of(known.clip, 1)
    person = files._person(known.clip, replace(photo, picture=painted(photo, scalp & ~ears)), LIGHT)
    assert [ear.is_bare for ear in person.ears] == [True, True] and person.colours is not None
    covered = [replace(ear, is_bare=False) for ear in person.ears]
    for hair, bare_share in ((scalp & ~ears, 1.0), (scalp | ears, 0.0)):
        judged = replace(frame, picture=painted(frame, hair))
        assert normals.ear_agreement(judged, person.ears, person.colours) == pytest.approx(bare_share, abs=0.1)
        assert normals.ear_agreement(judged, covered, person.colours) == pytest.approx(1 - bare_share, abs=0.1)
    alike = replace(photo, picture=painted(photo, np.zeros_like(scalp)))
    assert files._person(known.clip, alike, LIGHT).colours is None


def test_relief_that_is_carried_is_compared_with_the_relief_that_is_read(known):
    frame, person = frame_of(known.clip, 1), person_of(known)
    heights = cv2.GaussianBlur(np.random.default_rng(0).normal(size=frame.covered.shape), (0, 0), 2.0).astype(
        np.float32
    )
    same = normals.relief(replace(frame, relief_drawn=heights, relief_read=2 * heights), person)["skin"]
    assert same["r"] == pytest.approx(1, abs=1e-5) and same["gain"] == pytest.approx(0.5, abs=1e-3)
    # Heights count wherever they are wrong by a constant, and not where the photo shows no surface.
    half = np.where(np.arange(CROP_SIZE) < 256, heights, np.nan)
    assert normals.relief(replace(frame, relief_drawn=half, relief_read=heights + 3), person)["skin"]["r"] > 0.99
    assert np.isnan(normals.relief(frame, person)["skin"]["r"])


def test_bends_that_move_with_the_surface_do_not_change():
    bend = np.random.default_rng(0).normal(0, 0.05, (64, 64, 3)).astype(np.float32)
    places = np.random.default_rng(1).integers(10, 50, (200, 2)).astype(np.float32) + 0.5
    moved = np.roll(bend, (3, 2), (0, 1))
    step = np.array([2, 3], np.float32)
    assert normals.bend_change_deg([bend, moved], [places, places + step]) == pytest.approx(0, abs=1e-6)
    stronger = normals.bend_change_deg([bend, 1.5 * moved], [places, places + step])
    x, y = (places - 0.5).astype(int).T
    assert stronger == pytest.approx(np.degrees(0.5 * np.linalg.norm(bend[y, x], axis=1).mean()), rel=0.01)


def test_scores_by_turn_and_over_clips(wrinkled, known):
    person = person_of(known)
    frames = [frame_of(wrinkled, 1), frame_of(wrinkled, 2, turn_deg=8.0)]
    one = {"source": "a.mp4", **normals.measure(frames, person), **dict.fromkeys(files.STEADY, 0.5)}
    assert one["outline"]["30-45"]["frames"] == 1 and one["outline"]["all"]["frames"] == 1
    assert one["outline"]["30-45"]["mm"] == 0 and np.isnan(one["outline"]["15-30"]["mm"])
    assert one["detail"]["5-15"]["forehead"]["r"] == pytest.approx(1)
    assert np.isnan(one["ears"])
    other = {**one, "steady_deg": 1.5, "ears": 0.75}
    scores = NormalScores({"a": one, "b": other}, {"c": "no face"})
    assert scores.mean["steady_deg"] == 1.0 and scores.mean["ears"] == 0.75
    document = scores.to_json()
    assert document["clips"]["a"]["ears"] is None and "frames" not in document["mean"]
    table = scores.table().splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["a", "b", "mean"]
    assert "c: no face" in table


def test_frames_that_hardly_move(known):
    tracking = known.clip.tracking
    points = np.repeat(tracking.landmarks[:1], 3, 0)
    points[1] += 0.1
    points[2] += 20
    tracking = replace(tracking, landmarks=points)
    assert still_frames(tracking).tolist() == [0]
    assert not len(still_frames(replace(tracking, state=np.array([0, 1, 0], np.uint8))))
    assert not len(still_frames(replace(tracking, shot=np.array([0, 1, 1]))))
    photo = first_frame(tracking)
    assert len(photo.error) == 1 and photo.rate.tolist() == [0, 1] and photo.landmarks.shape == (1, 478, 2)


@pytest.mark.slow
def test_folds_of_frames_between_are_explained_by_their_neighbours(head, tmp_path):
    frames, direction = 9, vertex_normals(dense(head, head.template), head.dense_faces).numpy()
    # The albedo is that of the calmest frames, which hold some of the wrinkles: their strength is off, not their place.
    strength = np.cos(np.linspace(0, np.pi, frames))
    moving = strength[:, None] * wrinkles(head)
    made = KnownHead.make(head, moving, direction, seed=5, source=tmp_path / "film.mkv")
    write_film(tmp_path / "film.mkv", (made.picture(row, np.full(len(head.parts), 0.6)) for row in range(frames)))
    between = np.arange(frames) % 2 == 1
    fitted = np.where(between[:, None, None], 0, made.offset).astype(np.float32)
    shown, drawn, weight = unseen_folds(made.clip, made.patch, fitted, between)
    forehead = above_brows(head)[made.patch.vertices]
    found = normals.weighted_agreement(drawn, shown, weight * forehead)
    assert found["r"] > 0.5
    _, nothing, _ = unseen_folds(made.clip, made.patch, np.zeros_like(fitted), between)
    assert np.abs(nothing).max() < 1e-5


def test_what_serves_films_is_refused_and_so_is_a_folder_without_clips(capsys, tmp_path):
    for words in ([], [tmp_path, "--target", "a.mp4"], [tmp_path, "--frames", "9"], [tmp_path, "--suite", tmp_path]):
        assert app.run(["eval", "--normals", *map(str, words)]) == 2
    assert app.run(["eval", "--folds", "a.mp4", "--target", "b.mp4"]) == 2
    assert app.run(["eval", "--normals", str(tmp_path)]) == 3
    assert "holds no clip" in capsys.readouterr().err
    assert app.run(["eval", "--normals", str(tmp_path / "none.mp4")]) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_clip_and_one_without_a_face_from_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_film(tmp_path / "face.mkv", islice(read_frames(ROOT / "examples" / "driving.mp4"), 6))
    write_film(tmp_path / "grey.mkv", [np.full((96, 96, 3), 90, np.uint8)] * 3)
    assert app.run(["eval", "--normals", str(tmp_path), "--json", "-o", "heads.json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "heads.json").read_text())
    assert set(document["clips"]) == {"face"} and "face" in document["failed"]["grey"]
    assert set(document["mean"]) >= {"outline", "detail", "ears", "steady_deg"}
