"""Windows, noise, sampling and the autoencoder that goes on where it stopped."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from jaxtyping import TypeCheckError
from safetensors.torch import load_file, save_file
from support.tiny_wan import tiny_decoder_file, tiny_vae
from support.wan_film import sketches_of, vae
from torch import Tensor
from torch.nn import functional as F

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan.film import (
    FEW,
    Conditions,
    Sampling,
    guided,
    held,
    paint_windows,
    sample,
    sigmas_of,
    skipping,
)
from expportrait_cli.painting.wan.vae import Decoding, Encoding, TinyDecoder, Vae, filled, pictures, pixels
from expportrait_cli.painting.wan.windows import Grid, chunks, latent_count, latent_of, noise_of

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


GRIDS = [(1, 21, 5), (21, 21, 5), (22, 21, 5), (37, 21, 5), (53, 21, 5), (54, 21, 5), (100, 7, 3), (40, 6, 3)]


@pytest.mark.parametrize(("count", "length", "overlap"), GRIDS)
def test_every_latent_frame_belongs_to_one_window(count, length, overlap):
    grid = Grid(count, length, overlap)
    windows = [grid[index] for index in range(len(grid))]
    owned = [latent for window in windows for latent in range(*grid.owned(window))]
    assert owned == list(range(count)) and windows[-1].end == count
    assert all(second.begin == first.end - overlap for first, second in pairwise(windows))
    assert all(window.end - window.begin == length for window in windows[:-1])
    for window in windows:
        for latent in range(*grid.owned(window)):
            # A bridge can only be painted after the anchor before it.
            assert grid.anchor_before(latent) == window.index - window.is_bridge


@pytest.mark.parametrize(("count", "length", "overlap"), GRIDS)
def test_a_bridge_is_held_at_its_ends(count, length, overlap):
    grid = Grid(count, length, overlap)
    for window in (grid[index] for index in range(1, len(grid), 2)):
        hold = grid.hold(window)
        assert (hold[:overlap].diff() < 0).all() and 0 < hold[overlap - 1] < hold[0] < 1
        is_last = window.index + 1 == len(grid)
        end = hold[overlap:] if is_last else hold[overlap : len(hold) - overlap]
        assert not end.any()
        if not is_last:
            assert torch.equal(hold[-overlap:], hold[:overlap].flip(0))


def test_overlaps_of_more_than_half_a_window_are_refused():
    with pytest.raises(ValueError, match="windows of 7 cannot overlap by 4"):
        Grid(30, 7, 4)


def test_noise_belongs_to_the_latent_frame():
    whole = noise_of(7, range(-1, 30), (16, 2, 3))
    assert torch.equal(noise_of(7, range(10, 20), (16, 2, 3)), whole[:, :, 11:21])
    assert not torch.equal(noise_of(8, range(10, 20), (16, 2, 3)), whole[:, :, 11:21])
    # Negative frames have their own noise, and no two frames share theirs.
    flat = whole[0].permute(1, 0, 2, 3).flatten(1)
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.45
    many = noise_of(0, range(400), (16, 4, 4))
    assert abs(float(many.mean())) < 0.01 and abs(float(many.std()) - 1) < 0.01


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 9, 50])
def test_chunks_begin_with_one_frame_and_run_back_at_the_end(count):
    found = list(chunks(iter(range(count)), first=0, count=count))
    assert [len(chunk) for chunk in found] == [1] + [4] * (latent_count(count) - 1)
    flat = [frame for chunk in found for frame in chunk]
    assert flat == list(np.pad(np.arange(count), (0, len(flat) - count), mode="reflect"))
    if latent_count(count) > 3:
        assert list(chunks(iter(range(8, count)), first=2, count=count)) == [[8], *found[3:]]


def test_latents_and_frames():
    assert [latent_count(count) for count in (1, 2, 5, 6, 81)] == [1, 2, 2, 3, 21]
    assert [latent_of(frame) for frame in (0, 1, 4, 5, 80)] == [0, 1, 1, 2, 20]


@pytest.mark.parametrize("steps", [1, 2, 4, FEW, FEW + 1, 30])
def test_an_exact_model_gives_the_exact_film(steps):
    film, noise = torch.randn(2, 1, 16, 3, 4, 5).unbind(0)
    sigmas = sigmas_of(steps, shift=3.0)
    seen = []

    def exact(state: Tensor, sigma: float) -> Tensor:
        seen.append(sigma)
        # Whatever state it is asked about, also one that lies off the straight path.
        return (state - film) / sigma

    assert torch.allclose(sample(exact, noise, sigmas), film, atol=2e-6)
    assert seen == sigmas[:-1] and len(seen) == steps


def test_more_steps_follow_a_curved_path_closer_and_the_second_order_closest():
    """Films are Gaussian with deviation 0.5: the velocity is known, and the true end of the path is half the noise."""
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 1, 9)

    def velocity(state: Tensor, sigma: float) -> Tensor:
        share = 1 - sigma
        return state * (sigma - 0.25 * share) / (0.25 * share**2 + sigma**2)

    def error(steps: int, *, straight: bool = False) -> float:
        sigmas, state = sigmas_of(steps, shift=1.0), noise
        # One step at a time it knows of none before.
        for part in pairwise(sigmas) if straight else [sigmas]:
            state = sample(velocity, state, list(part))
        return float((state - noise / 2).abs().max())

    assert error(2) > error(4) > error(8) > 2 * error(16) > 3 * error(32)
    assert error(FEW) == error(FEW, straight=True)
    assert error(16) < 0.6 * error(16, straight=True)


def test_sigmas_are_shifted_and_end_at_zero():
    assert sigmas_of(4, shift=1.0) == [1, 0.75, 0.5, 0.25, 0]
    assert sigmas_of(4, shift=3.0) == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert sigmas_of(20, shift=1.0, strength=0.35) == pytest.approx([0.05 * step for step in range(7, -1, -1)])
    assert len(sigmas_of(1, shift=3.0, strength=0.1)) == 2


def test_guidance_goes_beyond_the_control():
    def conditional(state: Tensor, sigma: float) -> Tensor:
        return state + sigma

    def unconditional(state: Tensor, sigma: float) -> Tensor:
        return state

    state = torch.zeros(1, 1, 1, 1, 1)
    assert guided(conditional, unconditional, 1.5)(state, 0.4).item() == pytest.approx(0.6)


def test_velocities_that_change_evenly_are_skipped_without_a_trace():
    asked: list[float] = []

    def velocity(state: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return torch.full_like(state, 3 - 2 * sigma)

    sigmas, noise = sigmas_of(6, shift=3.0), torch.randn(1, 16, 2, 2, 2)
    whole = sample(velocity, noise, sigmas)
    asked.clear()
    quick = sample(skipping(velocity, frozenset(sigmas[2:5])), noise, sigmas)
    assert asked == [sigmas[0], sigmas[1], sigmas[5]] and torch.allclose(quick, whole, atol=1e-5)


def test_what_is_held_wholly_comes_out_and_the_rest_is_free():
    film, own, noise = torch.randn(3, 1, 16, 4, 2, 2).unbind(0)
    hold = torch.tensor([1.0, 0.5, 0.0, 0.0])
    ends = hold.view(1, 1, 4, 1, 1)
    result = sample(held(lambda state, sigma: (state - own) / sigma, film, ends), noise, sigmas_of(5, shift=3.0))
    assert torch.allclose(result[:, :, 0], film[:, :, 0], atol=2e-6)
    assert torch.allclose(result[:, :, 1], (film + own)[:, :, 1] / 2, atol=2e-6)
    assert torch.allclose(result[:, :, 2:], own[:, :, 2:], atol=2e-6)


def big_vae() -> AutoencoderKLWan:
    """As deep as the real one, but narrow."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKLWan(base_dim=3, num_res_blocks=2).eval()


@pytest.mark.parametrize("make", [tiny_vae, big_vae])
def test_the_autoencoder_in_pieces_is_the_whole_one(make):
    own = Vae(make())
    film = torch.rand(1, 3, 13, 16, 24) * 2 - 1
    encoding = Encoding(own)
    latents = torch.cat([encoding.push(part) for part in film.split([1, 4, 4, 4], 2)], 2)
    whole = own.model.encode(film).latent_dist.mode()
    assert torch.allclose(latents, own.normalised(whole), atol=1e-5)
    decoding = Decoding(own)
    frames = torch.cat([decoding.push(part) for part in latents.split(1, 2)], 2)
    assert frames.shape == film.shape
    assert torch.allclose(frames, own.model.decode(whole).sample, atol=1e-4)


@pytest.mark.parametrize("make", [tiny_vae, big_vae])
def test_what_lies_further_back_than_its_memory_is_forgotten(make):
    own = Vae(make())
    count = own.decoder_memory + 6
    frames = [torch.rand(1, 3, 4, 16, 16) * 2 - 1 for _ in range(count)]

    def encoded(first: int) -> list[Tensor]:
        encoding = Encoding(own)
        return [encoding.push(frames[at][:, :, -1:] if at == first else frames[at]) for at in range(first, count)]

    at = own.encoder_memory
    whole, part = encoded(0), encoded(4)
    assert torch.equal(whole[4 + at], part[at]) and not torch.equal(whole[6], part[2])

    def decoded(first: int) -> list[Tensor]:
        decoding = Decoding(own)
        return [decoding.push(latent) for latent in whole[first:]]

    at = own.decoder_memory
    whole_film, part_film = decoded(0), decoded(4)
    assert torch.equal(whole_film[4 + at], part_film[at]) and not torch.equal(whole_film[6], part_film[2])


@pytest.fixture(scope="module")
def taew(tmp_path_factory) -> Path:
    return tiny_decoder_file(tmp_path_factory.mktemp("taew") / "taew2_1.safetensors")


def as_published(path: Path, latents: Tensor) -> Tensor:
    """What the published network makes of a whole film, layer by layer and all frames at once: [frames, 3, H, W]."""
    tensors = {name: value.float() for name, value in load_file(path).items()}

    def conv(frames: Tensor, name: str) -> Tensor:
        weight = tensors[f"decoder.{name}.weight"]
        return F.conv2d(frames, weight, tensors.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    frames = F.relu(conv(3 * torch.tanh(latents[0].transpose(0, 1) / 3), "1"))
    for first in (3, 9, 15):
        for block in range(first, first + 3):
            past = torch.cat([torch.zeros_like(frames[:1]), frames[:-1]])
            inner = F.relu(conv(torch.cat([frames, past], 1), f"{block}.conv.0"))
            frames = F.relu(conv(F.relu(conv(inner, f"{block}.conv.2")), f"{block}.conv.4") + frames)
        frames = F.interpolate(frames, scale_factor=2)
        frames = conv(frames, f"{first + 4}.conv").reshape(-1, *frames.shape[1:])
        frames = conv(frames, f"{first + 5}")
    return conv(F.relu(frames), "22").clamp(0, 1)[3:]


def test_the_tiny_decoder_in_pieces_is_the_published_one(taew):
    own = Vae(tiny_vae(), tiny=TinyDecoder.load(taew, torch.device("cpu")))
    latents = torch.randn(1, 16, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    decoding = Decoding(own)
    frames = torch.cat([decoding.push(part) for part in latents.split(1, 2)], 2)
    whole = as_published(taew, latents)
    assert frames.shape == (1, 3, 13, 16, 24) and 0.1 < whole.std() < 0.5
    assert torch.allclose(frames[0].transpose(0, 1), 2 * whole - 1, atol=1e-4)


def test_what_lies_further_back_than_the_tiny_decoder_remembers_is_forgotten(taew):
    own = Vae(tiny_vae(), tiny=TinyDecoder.load(taew, torch.device("cpu")))
    latents = list(torch.randn(own.decoder_memory + 6, 1, 16, 1, 1, 1, generator=torch.Generator().manual_seed(1)))
    whole, part = Decoding(own), Decoding(own)
    films = [whole.push(latent) for latent in latents], [part.push(latent) for latent in latents[4:]]
    at = own.decoder_memory
    assert torch.equal(films[0][4 + at], films[1][at]) and not torch.equal(films[0][6], films[1][2])


def test_a_file_that_grows_time_more_often_shows_the_last_frames(taew, tmp_path):
    tensors = load_file(taew)
    name = "decoder.7.conv.weight"
    save_file({**tensors, name: torch.cat([torch.ones_like(tensors[name]), tensors[name]])}, tmp_path / "b.safetensors")
    a, b = (TinyDecoder.load(path, torch.device("cpu")) for path in (taew, tmp_path / "b.safetensors"))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_another_file_is_no_tiny_decoder(damage, taew, tmp_path):
    path = tmp_path / "taew2_1.safetensors"
    path.write_bytes(taew.read_bytes()[:100_000])
    if damage == "other":
        save_file({"decoder.1.weight": torch.zeros(8, 48, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"is no tiny decoder of Wan 2\.1: .*weights fetch taew2\.1"):
        TinyDecoder.load(path, torch.device("cpu"))


def test_pictures_keep_every_level_and_their_size():
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    picture = np.repeat(levels[..., None], 3, 2)
    assert pixels([picture]).shape == (1, 3, 1, 16, 32) and filled(picture).shape == (16, 32, 3)
    assert float(pixels([picture]).min()) == -1 and float(pixels([picture]).max()) == 1
    (back,) = pictures(pixels([picture]), 8, 32)
    assert np.array_equal(back, picture)


class Still16:
    """A model that always guesses one and the same latent frame, whatever it is shown."""

    front, memory = None, 0

    def __init__(self) -> None:
        self.film = torch.randn(1, 16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        self.asked: list[int] = []

    def controls(self, frames, first):
        for chunk in frames:
            yield Conditions(torch.full((1, 1, 1, 4, 4), float(len(chunk))))

    def velocity(self, control):
        self.asked.append(control.shape[2])
        return lambda state, sigma: (state - self.film) / sigma

    def unconditional(self, control):
        return self.velocity(control)


@pytest.mark.parametrize(("length", "overlap", "steps"), [(21, 5, 3), (7, 3, 1), (9, 1, 12)])
def test_a_constant_model_gives_one_film_whatever_the_windows(length, overlap, steps):
    def film(**span: int) -> np.ndarray:
        sampling = Sampling(sigmas_of(steps, shift=3.0), length=length, overlap=overlap)
        return np.stack(list(paint_windows(Still16(), vae(), sketches_of(90), sampling, **span)))

    frames = film(start=0, count=90)
    decoding = Decoding(vae())
    expected = [frame for _ in range(latent_count(90)) for frame in pictures(decoding.push(Still16().film), 32, 32)][
        :90
    ]
    assert frames.shape == (90, 32, 32, 3)
    assert np.abs(frames.astype(int) - np.stack(expected)).max() <= 1


def test_shapes_are_checked():
    with pytest.raises(TypeCheckError):
        sample(lambda state, sigma: state, torch.zeros(3, 4), [1.0, 0.0])
