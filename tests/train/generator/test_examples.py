"""What the generator is shown: windows of clips, noise, and the normals of its frames; all by the example's number."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.balls import ball_entry

from expportrait_cli.render.buffers import decode
from expportrait_cli.train.config import PAPER_TASK, GeneratorTask
from expportrait_cli.train.generator.examples import Example, Examples
from expportrait_cli.train.generator.loop import error_of, weight_of

pytestmark = pytest.mark.slow

TASK = GeneratorTask()


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("balls")
    return [ball_entry(folder, name, seed, 9) for seed, name in enumerate(("one", "two"))]


def test_examples_follow_from_their_number_alone(clips):
    task = replace(TASK, drop_control=0.5, drop_reference=0.5)
    examples, again = (Examples(clips, task, frames=5, seed=3) for _ in range(2))
    assert len(examples) == 4
    later = again.example(9)
    shown = [examples.example(number) for number in range(40)]
    assert torch.equal(later.noise, shown[9].noise) and later.sigma == shown[9].sigma
    assert not torch.equal(shown[8].noise, shown[9].noise)
    assert {example.drop_control for example in shown} == {example.drop_reference for example in shown} == {True, False}
    # Each epoch takes every window's clip once.
    films = [entry.read().film for entry in clips]

    def shows(example: Example) -> int:
        at = range(films[0].shape[1] - 1)
        return next(k for k, film in enumerate(films) for t in at if torch.equal(example.film[0], film[:, t : t + 2]))

    assert all(sorted(map(shows, shown[k : k + 4])) == [0, 0, 1, 1] for k in range(0, 40, 4))


def test_noise_is_shifted_towards_more_of_it(clips):
    """Median 0.5 becomes 3 / 4."""
    examples = Examples(clips, TASK, frames=5, seed=0)
    sigmas = np.array([examples.example(number).sigma for number in range(300)])
    assert np.median(sigmas) == pytest.approx(0.75, abs=0.05) and 0 < sigmas.min() < 0.1 and sigmas.max() < 1


def test_an_example_shows_the_normals_of_its_frames(clips):
    """And three latent frames around them, as far as there are any."""
    entry = clips[0]
    found = entry.read()
    film, photos, rows = found.film, found.photos, found.rows
    normals = torch.from_numpy(decode(entry.read_normals())).permute(3, 0, 1, 2)
    examples = Examples([entry], TASK, frames=5, seed=0)
    starts = set()
    for number in range(12):
        example = examples.example(number)
        begin = next(t for t in range(2) if torch.equal(example.film[0], film[:, t : t + 2]))
        starts.add(begin)
        assert example.lead == begin and torch.equal(example.normals[0], normals)
        photo = next(k for k in range(len(rows)) if torch.equal(example.photo[0, :, 0], photos[k]))
        assert torch.equal(example.still[0], normals[:, rows[photo]])
    assert starts == {0, 1}


def test_a_long_clip_is_cut(tmp_path):
    entry = ball_entry(tmp_path, "long", 3, 53)
    film = entry.read().film
    normals = torch.from_numpy(decode(entry.read_normals())).permute(3, 0, 1, 2)
    examples, leads = Examples([entry], TASK, frames=9, seed=0), set()
    assert len(examples) == round(14 / 3)
    for number in range(20):
        example = examples.example(number)
        begin = next(t for t in range(12) if torch.equal(example.film[0], film[:, t : t + 3]))
        leads.add(example.lead)
        assert example.lead == min(begin, 3)
        assert torch.equal(example.normals[0, :, 4 * example.lead], normals[:, 4 * begin])
        assert example.normals.shape[2] == 4 * (example.lead + 2 + min(14 - begin - 3, 3)) + 1
    assert leads >= {3}


@pytest.mark.parametrize(("frames", "window"), [(53, 9), (53, 45), (17, 81), (9, 5)])
def test_the_photo_is_never_a_frame_of_the_window(frames, window, tmp_path):
    """Copying it would be all that there is to learn; a window is shorter if it has to be."""
    entry = ball_entry(tmp_path, "one", 3, frames)
    found, examples = entry.read(), Examples([entry], TASK, frames=window, seed=0)
    for example in [*(examples.example(number) for number in range(20)), *examples.validation(3)]:
        size = example.film.shape[2]
        begin = next(t for t in range(20) if torch.equal(example.film[0], found.film[:, t : t + size]))
        photo = next(k for k in range(len(found.rows)) if torch.equal(example.photo[0, :, 0], found.photos[k]))
        latent = -(-found.rows[photo] // 4)
        assert not begin <= latent < begin + size and 1 <= size <= (window - 1) // 4 + 1


class Says(torch.nn.Module):
    """A model that says one and the same."""

    def __init__(self, velocity: torch.Tensor) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, *_, **__) -> torch.Tensor:
        return self.velocity


def test_the_face_counts_more_and_the_rate_means_the_same(tmp_path):
    entry = ball_entry(tmp_path, "one", 3, 17)
    tensors = load_file(entry.latents)
    features = torch.zeros(2, 5, 2, 2)
    features[0, :, 0], features[1, :, 0, 0] = 1, 1
    save_file({**tensors, "features": features}, entry.latents, {"key": "made by a test"})
    example = Examples([entry], replace(TASK, face=1.0, features=2.0), frames=9, seed=0).example(0)
    assert example.weight is not None and float(example.weight.mean()) == pytest.approx(1)
    # The features count 1 + 1 + 2, the face 1 + 1, and the rest 1: of mean 2.
    assert example.weight[0, 0, 0].tolist() == [[2.0, 1.0], [0.5, 0.5]]
    found = example.target().clone()
    found[:, :, :, 0, 0] += 1
    cpu = torch.device("cpu")
    assert float(error_of(Says(found), example, cpu)) == pytest.approx(2.0 / 4)
    plain = Examples([entry], replace(TASK, **PAPER_TASK), frames=9, seed=0).example(0)
    assert plain.weight is None and float(error_of(Says(found), plain, cpu)) == pytest.approx(1.0 / 4)


@pytest.mark.parametrize("sigma", [0.1, 0.9])
def test_both_losses_are_one_regression(sigma, clips):
    """Eq. 10: the noise that follows from a velocity is off by 1 - sigma times what the velocity is off by."""
    example = replace(Examples(clips, TASK, frames=5, seed=0).example(0), sigma=sigma)
    velocity = torch.randn(example.noise.shape, generator=torch.Generator().manual_seed(1))
    noise = example.noisy() + (1 - sigma) * velocity
    wanted = (noise - example.noise).square().mean()
    error = (velocity - example.target()).square().mean()
    assert weight_of(sigma, replace(TASK, loss="epsilon")) * error == pytest.approx(float(wanted), rel=1e-4)
    assert weight_of(sigma, TASK) == 1
