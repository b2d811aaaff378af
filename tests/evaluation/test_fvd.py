"""FVD: the distance against what is known of it, the network's windows, and its place in a suite."""

import json

import numpy as np
import pytest
import scipy.linalg
import torch
from support.scored_films import clip, portrait, score
from support.suite_scores import film

from expportrait_cli.benchmark.report import suite_report
from expportrait_cli.benchmark.scores import SuiteScores
from expportrait_cli.errors import WeightsError
from expportrait_cli.evaluation.columns import CLASSES, LEAST_WINDOWS
from expportrait_cli.evaluation.fvd import I3d, Windows, frechet_distance, prepared
from expportrait_cli.evaluation.scores import Scores, scores_from_json
from expportrait_cli.media.writer import write_png


def exactly(mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Vectors that have just this mean and covariance."""
    size = len(mean)
    noise = np.random.default_rng(1).normal(size=(3 * size, size))
    noise -= noise.mean(0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def spread(seed: int, size: int = 12) -> np.ndarray:
    """A covariance of full rank."""
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T + 0.1 * np.eye(size)


def test_equal_sets_are_at_no_distance():
    vectors = np.random.default_rng(0).normal(size=(40, 400)) * 5
    assert frechet_distance(vectors, vectors) == pytest.approx(0, abs=1e-9)
    # The order of the windows means nothing.
    assert frechet_distance(vectors, vectors[::-1]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [2, 9, 500])
def test_a_shift_counts_its_squared_length_whatever_the_rank(count):
    vectors, shift = np.random.default_rng(3).normal(size=(count, 400)), np.linspace(-1, 1, 400)
    assert frechet_distance(vectors, vectors + shift) == pytest.approx(shift @ shift)


def test_covariances_that_commute_leave_the_difference_of_their_roots():
    axes = np.linalg.qr(np.random.default_rng(5).normal(size=(12, 12)))[0]
    a, b = np.linspace(0.5, 3, 12), np.linspace(4, 0.25, 12)
    sets = [exactly(np.zeros(12), axes @ np.diag(values) @ axes.T) for values in (a, b)]
    assert frechet_distance(*sets) == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum())


def test_it_is_the_formula_with_a_matrix_root_where_that_is_well_conditioned():
    means, covariances = (np.zeros(12), np.arange(12) / 7), (spread(6), spread(7))
    sets = [exactly(mean, covariance) for mean, covariance in zip(means, covariances, strict=True)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((means[0] - means[1]) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(*sets[::-1]) == pytest.approx(expected, rel=1e-6)


def test_few_windows_make_it_too_large_as_its_definition_says():
    random = np.random.default_rng(8)
    found = [frechet_distance(*random.normal(size=(2, count, 400))) for count in (16, 100, 1000)]
    assert found[0] > 1.3 * found[1] and found[1] > 3 * found[2] > 30


class Colours(torch.nn.Module):
    """I3D in form alone: the mean colour of each frame, again and again."""

    def forward(self, clip: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert not rescale and not resize and return_features
        return clip.mean([3, 4]).flatten(1).repeat(1, 9)[:, :400]


class Short(Colours):
    def forward(self, clip: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        return clip.mean([3, 4]).flatten(1)


class Other(torch.nn.Module):
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        return clip


class Writes(Colours):
    def forward(self, clip: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        torch.save(clip, "/tmp/stolen")
        return clip


def script(module: torch.nn.Module, path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.script(module).save(str(path))


def test_windows_are_frames_one_after_the_other_and_the_rest_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    script(Colours(), tmp_path / "i3d_torchscript.pt")
    windows = Windows()
    shades = np.arange(38, dtype=np.uint8) * 5
    for shade in shades:
        windows.add(np.full((40, 60, 3), shade, np.uint8), np.full((300, 300, 3), 255, np.uint8))
    answers = windows.answers
    assert answers.shape == (2, 2, CLASSES)
    # Red, frame by frame, in -1..1.
    np.testing.assert_allclose(answers[0, 1, :16], shades[16:32] / 127.5 - 1, atol=1e-5)
    np.testing.assert_allclose(answers[1], 1, atol=1e-5)


def test_a_frame_is_cut_to_its_middle_square():
    frame = np.zeros((100, 160, 3), np.uint8)
    frame[:, 30:130] = (255, 0, 127)
    ready = prepared(frame)
    assert ready.shape == (224, 224, 3) and ready.dtype == np.float32
    np.testing.assert_allclose(ready, np.broadcast_to([1, -1, -0.5 / 127.5], ready.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (None, "damaged or no TorchScript archive"),
        (Writes(), "contains operations that no network needs"),
        (Short(), r"gives \[1, 48\], expected \[1, 400\]"),
        (Other(), "cannot be used as FVD's network"),
    ],
)
def test_another_file_is_refused_in_one_line(module, words, tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    path.write_bytes(b"\x80\x04pickled")
    if module is not None:
        script(module, path)
    with pytest.raises(WeightsError, match=words) as caught:
        I3d(path).look(np.zeros((16, 224, 224, 3), np.float32))
    assert "\n" not in str(caught.value) and "Sapiens" not in str(caught.value)
    assert str(caught.value).endswith("Take i3d_torchscript.pt as StyleGAN-V uses it: `expportrait weights list`.")


@pytest.mark.slow
def test_the_reference_frame_is_in_no_window(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    script(Colours(), tmp_path / "i3d_torchscript.pt")
    shades = range(60, 60 + 34)
    frames = [np.full((180, 180, 3), shade, np.uint8) for shade in shades]
    truth, film = clip(tmp_path / "truth.mkv", frames), clip(tmp_path / "film.mkv", [*frames[:20], *frames[:14]])
    windows = score(film, truth).windows
    assert windows.shape == (2, 2, CLASSES)
    red = np.array(shades) / 127.5 - 1
    np.testing.assert_allclose(windows[1, :, :16], [red[1:17], red[17:33]], atol=1e-5)
    np.testing.assert_allclose(windows[0, 1, :16], [*red[17:20], *red[:13]], atol=1e-5)
    # Without a truth every frame counts.
    photo = write_png(tmp_path / "photo.png", portrait())
    np.testing.assert_allclose(score(film, truth, photo).windows[1, 0, :16], red[:16], atol=1e-5)


def answered(count: int, shift: float, seed: int) -> Scores:
    """Scores of a film whose windows are its target's, moved."""
    target = np.random.default_rng(seed).normal(size=(count, CLASSES))
    scores = film(20.0)
    return Scores("self", "film.mp4", "clip.mkv", "photo.png", scores.values, {}, np.stack([target + shift, target]))


def suite_of(films: dict[str, dict[str, Scores]]) -> SuiteScores:
    pairs = {name: {"mode": "self", "driving": f"{name}.mp4", "reference": ""} for name in ("a", "b")}
    return SuiteScores({"name": "made up"}, pairs, dict.fromkeys(films, "what"), films, {name: {} for name in films})


def test_a_suite_has_one_figure_of_all_its_windows():
    ours = {"a": answered(10, 0.5, 1), "b": answered(7, 0.5, 2)}
    theirs = {"a": answered(10, 0.1, 1), "b": answered(7, 0.1, 2)}
    suite = suite_of({"ours": ours, "theirs": theirs})
    assert suite.mean("ours", "self", "fvd_i3d") == {"mean": 100.0, "interval": None, "clips": 2, "windows": 17}
    gap = suite.difference("theirs", "self", "fvd_i3d")
    assert gap is not None and gap["mean"] == pytest.approx(-96) and gap["windows"] == 17
    document = json.loads(json.dumps(suite.to_json(), allow_nan=False))
    assert document["methods"]["ours"]["means"]["self"]["fvd_i3d"]["windows"] == 17
    assert "rank" in document["definitions"]["fvd_i3d"]["definition"]
    row = next(line for line in suite.table().splitlines() if line.startswith("fvd_i3d"))
    assert "100.0000 of 17 windows" in row and "4.0000 of 17 windows" in row
    page = suite_report(suite, {}, {}, [])
    assert '100.0000<br><span class="range">of 17 windows</span>' in page
    assert page.count("fvd_i3d") == 2


def test_a_difference_is_over_pairs_that_both_have():
    ours = {"a": answered(20, 0.5, 1), "b": answered(20, 3.0, 2)}
    suite = suite_of({"ours": ours, "theirs": {"a": answered(20, 0.1, 1)}})
    gap = suite.difference("theirs", "self", "fvd_i3d")
    assert gap is not None and gap["mean"] == pytest.approx(4 - 100) and gap["clips"] == 1


def test_too_few_windows_give_none_and_the_reason():
    suite = suite_of({"ours": {"a": answered(LEAST_WINDOWS - 1, 0.5, 1)}})
    assert suite.mean("ours", "self", "fvd_i3d") is None
    assert suite.missing["self"]["fvd_i3d"] == f"needs {LEAST_WINDOWS} windows of 16 frames, there are 15"
    assert "fvd_i3d" in suite.table() and "fvd_i3d" not in [column.name for column in suite.columns("self")]


def test_without_weights_the_reason_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    suite = suite_of({"ours": {"a": film(20.0)}})
    assert suite.missing["self"]["fvd_i3d"].startswith("needs i3d_torchscript.pt in")


def test_windows_come_back_from_json_as_they_were():
    scores = answered(3, 0.5, 1)
    again = scores_from_json(json.loads(json.dumps(scores.to_json())))
    np.testing.assert_allclose(again.windows, scores.windows, atol=5e-7)
    assert scores_from_json(film(20.0).to_json()).windows.shape == (2, 0, CLASSES)
