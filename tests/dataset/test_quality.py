"""What is measured on a stretch of video, and the limits: faces drawn at known sizes, sharpness and motion."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np
import pytest
import skimage.data
from support.performers import make_state, performed

from expportrait_cli.config import PrepareConfig
from expportrait_cli.dataset.scan import (
    FACE_VIEW,
    Sample,
    Scan,
    apart,
    blank,
    figures_of,
    judge,
    measure,
    motion_percent,
    parts,
    refusal,
    scan_key,
)
from expportrait_cli.detect.faces import FaceBox

pytest_plugins = ("support.astronaut",)

CONFIG = PrepareConfig()
SIZE = (512, 512)


@pytest.fixture(scope="module")
def talking(photo_tracking, head) -> np.ndarray:
    """Landmarks of a performance: jaw and smile come and go while the head turns a little."""
    beat = np.sin(np.linspace(0, 12, 16))
    states = [
        make_state(head, jaw=(0.12 * (1 + b), 0, 0), turn=(0.0, 0.1 * b, 0.0), mouthSmileLeft=max(b, 0.0)) for b in beat
    ]
    return performed(photo_tracking, head, states).landmarks


@pytest.fixture(scope="module")
def samples(talking) -> list[Sample]:
    image = skimage.data.astronaut()
    # The astronaut's pixels at 400 px of face are none of the performance's, but as sharp, bright and rich as a face.
    view = cv2.resize(image[:200, 120:320], SIZE, interpolation=cv2.INTER_AREA)
    return [measure(index, view, points, rival=0.0) for index, points in enumerate(talking)]


def with_all(samples, **values):
    return [replace(sample, **values) for sample in samples]


def test_a_good_stretch_is_taken(samples):
    figures = figures_of(samples, CONFIG)
    assert refusal(figures, CONFIG) == ""
    assert figures["face_share"] == 1.0 and figures["crowd_share"] == 0.0
    assert figures["face_px"] == pytest.approx(np.median([np.ptp(s.landmarks, axis=0).max() for s in samples]), abs=0.1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"rival": 0.6}, "several faces of similar size in 100% of the frames, at most 10%"),
        ({"cut": 0.2}, "cut off by the border in 100% of the frames, at most 10%"),
        ({"face_px": 90.0}, "a face of 90 px, at least 120"),
        ({"sharpness": 2.0}, "blurred: sharpness 2.0, at least 5"),
        ({"brightness": 20.0}, "brightness 20, expected 30 to 225"),
        ({"brightness": 240.0}, "brightness 240, expected 30 to 225"),
        ({"contrast": 5.0}, "contrast 5.0, at least 12"),
    ],
)
def test_each_limit_names_the_figure_and_itself(values, reason, samples):
    assert reason in refusal(figures_of(with_all(samples, **values), CONFIG), CONFIG)


def test_a_small_second_face_is_allowed(samples):
    assert refusal(figures_of(with_all(samples, rival=0.4), CONFIG), CONFIG) == ""


def test_faces_that_come_and_go(samples):
    half = [sample if index % 2 else blank(index) for index, sample in enumerate(samples)]
    assert refusal(figures_of(half, CONFIG), CONFIG) == "a face in 50% of the frames, at least 90%"
    none = [blank(index) for index in range(6)]
    assert refusal(figures_of(none, CONFIG), CONFIG) == "a face in 0% of the frames, at least 90%"


def test_a_photo_that_is_panned_zoomed_and_turned_is_still(samples):
    points = samples[0].landmarks.astype(np.float64)
    noise = np.random.default_rng(0).normal(0, 0.15, (16, 478, 2))
    moved = []
    for index in range(16):
        a, b = (1 + 0.02 * index) * np.array([np.cos(0.01 * index), np.sin(0.01 * index)])
        moved.append(points @ np.array([[a, b], [-b, a]]) + [3.0 * index, index])
    landmarks = (np.stack(moved) + noise).astype(np.float32)
    still = [replace(sample, landmarks=row) for sample, row in zip(samples, landmarks, strict=True)]
    figures = figures_of(still, CONFIG)
    assert 0 < figures["motion_percent"] < CONFIG.min_motion_percent
    assert refusal(figures, CONFIG).startswith("still: the face moves by")


def test_motion_is_measured_in_the_distance_between_the_eyes(talking):
    # Every seventh landmark, more than a tenth of them, swings by 5 % to both sides; neighbours against each other, so
    # that no similarity follows them.
    points = np.repeat(talking[:1], 8, 0).astype(np.float64)
    swing = 0.05 * np.linalg.norm(points[0, 33] - points[0, 263])
    points[::2, ::14, 1] += swing
    points[1::2, ::14, 1] -= swing
    points[::2, 7::14, 1] -= swing
    points[1::2, 7::14, 1] += swing
    assert motion_percent(points.astype(np.float32)) == pytest.approx(5.0, abs=0.2)
    assert motion_percent(np.repeat(talking[:1], 8, 0)) == pytest.approx(0.0, abs=1e-3)
    assert motion_percent(talking) > 2 * CONFIG.min_motion_percent


def test_sharpness_falls_with_blur_and_not_with_the_size_of_the_picture(talking):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (128, 128, 3), np.uint8), (1024, 1024), interpolation=cv2.INTER_CUBIC)
    points = talking[0] * 2
    sharp = measure(0, image, points, rival=0.0)
    blurred = measure(0, cv2.GaussianBlur(image, (0, 0), 12), points, rival=0.0)
    half = measure(0, cv2.resize(image, SIZE, interpolation=cv2.INTER_AREA), points / 2, rival=0.0)
    assert blurred.sharpness < 0.05 * sharp.sharpness
    # Both are brought to the size in a clip.
    assert min(sharp.face_px, half.face_px) > FACE_VIEW / 2
    assert half.sharpness == pytest.approx(sharp.sharpness, rel=0.3)


def test_a_face_over_the_border_is_counted(talking):
    image = np.full((512, 512, 3), 128, np.uint8)
    inside = measure(0, image, talking[0], rival=0.0)
    shifted = measure(0, image, talking[0] - np.float32([talking[0, :, 0].mean(), 0]), rival=0.0)
    assert inside.cut == 0.0 and 0.4 < shifted.cut < 0.6


@pytest.mark.parametrize(("length", "lengths"), [(240, [240]), (241, [120, 121]), (1000, [200] * 5), (7, [7])])
def test_long_shots_become_parts_of_nearly_equal_length(length, lengths):
    cut = list(parts(50, 50 + length, 240))
    assert sorted(end - first for first, end in cut) == lengths
    assert cut[0][0] == 50 and cut[-1][1] == 50 + length
    assert all(before[1] == after[0] for before, after in pairwise(cut))


def test_a_stretch_is_taken_with_a_crop_around_its_face(samples):
    taken = judge(0, 48, samples, CONFIG, rate=Fraction(25), size=SIZE)
    assert taken.reason == "" and taken.crop is not None
    left, top, side = taken.crop
    points = samples[0].landmarks
    assert (points > [left, top]).all() and (points < [left + side, top + side]).all()
    short = judge(0, 30, samples, CONFIG, rate=Fraction(25), size=SIZE)
    assert (short.reason, short.crop) == ("a shot of 1.20 s, at least 1.5 s", None)


def test_a_scan_survives_json(samples):
    rows = (
        judge(0, 48, samples, CONFIG, rate=Fraction(25), size=SIZE),
        judge(48, 60, [], CONFIG, rate=Fraction(25), size=SIZE),
    )
    found = Scan("ab", Fraction(30000, 1001), rows)
    assert Scan.from_json(found.to_json()) == found


def test_a_scan_depends_on_what_it_reads_and_not_on_the_limit_of_the_tracking():
    key = scan_key("ab", CONFIG)
    assert scan_key("ab", replace(CONFIG, max_error_percent=1.0)) == key
    assert scan_key("ab", replace(CONFIG, frames=100)) != key and scan_key("cd", CONFIG) != key


def test_a_box_around_the_whole_head_is_no_second_face():
    def box(x, y, side, score):
        half = side / 2
        return FaceBox(x - half, y - half, x + half, y + half, score, np.zeros((6, 2), np.float32))

    face, around, beside = box(627, 765, 168, 0.96), box(623, 742, 307, 0.83), box(300, 760, 150, 0.9)
    assert apart([around, face]) == [face]
    assert apart([around, beside, face]) == [face, beside]
