import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.scored_films import clip, moved, portrait, score

from expportrait_cli.errors import InputError
from expportrait_cli.evaluation import COLUMNS, Scores, estimators, table
from expportrait_cli.media.writer import write_png

pytestmark = pytest.mark.slow

FRAMES = 6


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    # An uneven walk, so that an order of frames can be told from another.
    steps = [(0, 0), (2, 0), (6, 2), (7, 8), (2, 14), (-6, 16)]
    return [moved(portrait(), x, y) for x, y in steps]


@pytest.fixture(scope="module")
def truth(frames, tmp_path_factory) -> Path:
    return clip(tmp_path_factory.mktemp("clips") / "truth.mkv", frames)


@pytest.fixture(scope="module")
def same(truth) -> Scores:
    return score(truth, truth)


def test_a_film_equals_itself(same):
    means = same.means
    for region in ("frame", "head", "face"):
        assert means[f"psnr_{region}"] == 99
        assert means[f"ssim_g11_{region}"] == pytest.approx(1, abs=1e-6)
        assert means[f"l1_{region}"] == 0
    for name in ("lmk_nme", "lmk_nme_aligned", "lip_gap_error", "lid_gap_error"):
        assert means[name] == pytest.approx(0, abs=1e-6)
    assert means["found"] == means["found_target"] == 1
    assert means["jitter_lmk"] == means["jitter_lmk_target"] > 0
    assert means["psnr_head_still"] < 40


def test_a_face_is_at_no_distance_from_itself(same, truth):
    if estimators.missing_packages():
        pytest.skip("needs dlib")
    assert same.rows[0]["identity_dlib"] == 0
    # The same face, a few pixels further.
    assert same.means["identity_dlib"] < 0.2
    # The film is the truth, and reaches what that does.
    assert same.counts["identity_dlib_target"] == FRAMES - 1
    assert same.means["identity_dlib_target"] == same.means["identity_dlib"]


def test_what_is_better_depends_on_whether_the_target_shows_the_person():
    columns = {column.name: column for column in COLUMNS}
    for name, alone in (("identity_dlib", "lower"), ("csim_arcface", "higher")):
        assert columns[name].better_in("self") == columns[f"{name}_target"].better_in("self") == "like the target's"
        assert columns[name].better_in("cross") == alone
    assert columns["psnr_frame"].better_in("self") == columns["psnr_frame"].better_in("cross") == "higher"


def test_the_reference_frame_counts_in_no_mean(same):
    assert same.first_frame == 1
    assert same.counts["psnr_frame"] == FRAMES - 1
    assert same.counts["jitter_lmk"] == FRAMES - 2
    assert same.rows[0]["psnr_frame_still"] == 99
    assert same.means["psnr_frame_still"] < 40


def test_one_grey_level_more(frames, truth, tmp_path):
    means = score(clip(tmp_path / "brighter.mkv", [frame + 1 for frame in frames]), truth).means
    for region in ("frame", "head", "face"):
        assert means[f"l1_{region}"] == pytest.approx(0.00392, abs=1e-5)
        assert means[f"psnr_{region}"] == pytest.approx(48.13, abs=0.01)
    assert means["lmk_nme"] < 0.5


def test_a_wrong_order_is_worse(frames, truth, tmp_path):
    means = score(clip(tmp_path / "shuffled.mkv", [frames[i] for i in (0, 3, 1, 5, 2, 4)]), truth).means
    assert means["lmk_nme"] > 5
    # The face only moves, so that nothing is left when its place is taken out.
    assert means["lmk_nme_aligned"] < 2
    assert means["jitter_lmk"] > 1.5 * means["jitter_lmk_target"]
    assert means["psnr_head"] < 30


def test_the_scores_are_plain_json(same):
    document = json.loads(json.dumps(same.to_json(), allow_nan=False))
    assert document["mode"] == "self"
    assert len(document["rows"]) == document["frames"] == FRAMES
    assert document["definitions"].keys() == document["means"].keys() == document["intervals"].keys()
    assert all(entry["unit"] and entry["source"] for entry in document["definitions"].values())
    assert document["versions"]["mediapipe"]
    assert document["rows"][0]["jitter_lmk"] is None
    assert all(column.definition and column.estimator and column.unit for column in COLUMNS)


def test_a_driver_needs_no_size_and_gives_no_pixel_metrics(frames, truth, tmp_path):
    driver = clip(tmp_path / "driver.mkv", [cv2.resize(frame, (400, 416)) for frame in frames])
    photo = write_png(tmp_path / "photo.png", frames[0])
    scores = score(truth, driver, photo)
    assert scores.mode == "cross" and scores.first_frame == 0
    assert scores.means["psnr_frame"] is None and "psnr_frame" in scores.missing
    # The driver is the same face, a little taller.
    assert 0 < scores.means["lmk_nme_aligned"] < 6
    assert scores.counts["found"] == FRAMES
    text = table(scores)
    assert "lip_gap_error" in text
    # A driver is another person, and says nothing of what the photo's own could reach.
    assert scores.means["identity_dlib_target"] is None and "same person" in scores.missing["identity_dlib_target"]
    assert "like the target's" not in next((x for x in text.splitlines() if x.startswith("identity_dlib ")), "")
    assert any(line.startswith("not measured") and "psnr_frame" in line for line in text.splitlines())


def test_without_dlib_the_cell_is_empty_and_says_why(truth, frames, tmp_path, monkeypatch):
    monkeypatch.setattr(estimators, "find_spec", lambda name: None)
    scores = score(clip(tmp_path / "two.mkv", frames[:2]), clip(tmp_path / "truth.mkv", frames[:2]))
    assert scores.means["identity_dlib"] is None
    assert "pip install" in scores.missing["identity_dlib"]
    assert "identity_dlib, identity_dlib_target (dlib-bin and face-recognition-models are not installed" in table(
        scores
    )


def test_a_frame_without_a_face_counts_in_the_found_rate_only(frames, tmp_path):
    target = clip(tmp_path / "truth.mkv", frames[:4])
    grey = np.full_like(frames[0], 128)
    scores = score(clip(tmp_path / "output.mkv", [*frames[:2], grey, frames[3]]), target)
    assert scores.means["found"] == pytest.approx(2 / 3, abs=1e-5)
    assert scores.counts["lmk_nme"] == 2 and scores.counts["psnr_head"] == 3
    assert scores.rows[2]["lmk_nme"] is None
    assert scores.means["lmk_nme"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("reference", [False, True])
def test_clips_of_unlike_length_are_refused(reference, frames, truth, tmp_path):
    short = clip(tmp_path / "short.mkv", frames[:4])
    photo = write_png(tmp_path / "photo.png", frames[0]) if reference else None
    with pytest.raises(InputError, match=r"has 4 frames, .* has 6") as error:
        score(short, truth, photo)
    assert "\n" not in str(error.value)


def test_a_truth_of_another_size_is_refused(frames, truth, tmp_path):
    other = clip(tmp_path / "other.mkv", [frame[:300] for frame in frames])
    with pytest.raises(InputError, match=r"320x300.* 320x320.*`reference`"):
        score(other, truth)


def test_one_frame_is_no_film(frames, tmp_path):
    one = clip(tmp_path / "one.mkv", frames[:1])
    with pytest.raises(InputError, match="one frame"):
        score(one, one)


def test_a_photo_without_a_face_is_refused(frames, truth, tmp_path):
    if estimators.missing_packages():
        pytest.skip("needs dlib")
    wall = write_png(tmp_path / "wall.png", np.full((128, 128, 3), 90, np.uint8))
    with pytest.raises(InputError, match="shows no face"):
        score(truth, truth, wall)
