"""The Wan painters on random weights: as diffusers' own pipelines where these can do the same, and beyond."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACEPipeline
from PIL import Image
from support.tiny_wan import prompt_embeds, tiny_transformer, tiny_vace, tiny_vae
from support.wan_film import sketch, sketches_of, still, tiny_portrait, vae
from torch import Tensor

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.wan.film import Model, Painted, Sampling, paint_windows, sigmas_of
from expportrait_cli.painting.wan.portrait_model import PortraitModel
from expportrait_cli.painting.wan.vace import FinishModel, VaceModel
from expportrait_cli.painting.wan.vae import pixels
from expportrait_cli.painting.wan.windows import chunks, noise_of

pytestmark = pytest.mark.slow

PROMPT = prompt_embeds()[None]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def vace(height: int = 32, width: int = 32, **options: str) -> VaceModel:
    return VaceModel(tiny_vace(), vae(), PROMPT, still(height, width), **options)  # pyright: ignore[reportArgumentType]


def finish(height: int = 32, width: int = 32) -> FinishModel:
    return FinishModel(tiny_transformer(), vae(), PROMPT)


def portrait(height: int = 32, width: int = 32) -> PortraitModel:
    return PortraitModel(tiny_portrait(), vae(), still(height, width))


def sampling(steps: int = 2, **changes) -> Sampling:
    strength = changes.pop("strength", 1.0)
    return Sampling(sigmas_of(steps, shift=3.0, strength=strength), **{"length": 6, "overlap": 2, **changes})


def told(model: Model, count: int) -> Tensor:
    return torch.cat(list(model.controls(chunks(sketches_of(count)(0), first=0, count=count), 0)), 2)


def test_vace_sees_what_its_pipeline_would_show_it():
    """Same film, masks that stand still, one window: the same latents, from the first to the last step."""
    frames = [sketch(index) for index in range(9)]
    hole = sketch(0, holes=0.02).guess
    frames = [type(frame)(frame.proxy, hole, frame.draw) for frame in frames]
    model = vace()
    masks = model._mask(frames[0])
    assert 0.05 < masks.mean() < 0.6
    pipeline = WanVACEPipeline(
        tokenizer=None,  # pyright: ignore[reportArgumentType]
        text_encoder=None,  # pyright: ignore[reportArgumentType]
        vae=tiny_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=tiny_vace(),
    )
    pipeline.set_progress_bar_config(disable=True)
    pictures = [np.where(masks[..., None], np.uint8(127), frame.proxy) for frame in frames]
    noise = noise_of(0, range(-1, 3), (16, 4, 4))
    theirs = pipeline(
        video=[Image.fromarray(picture) for picture in pictures],
        mask=[Image.fromarray(masks.astype(np.uint8) * 255)] * 9,
        reference_images=[Image.fromarray(still().photo)],
        prompt_embeds=PROMPT,
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=1,
        guidance_scale=1.0,
        latents=noise,
        output_type="np",
    ).frames[0]  # pyright: ignore[reportAttributeAccessIssue]
    ours = list(paint_windows(model, vae(), lambda start: iter(frames[start:]), sampling(1), start=0, count=9))
    assert np.abs(np.stack(ours) - theirs * 255).max() < 1.01


def test_the_generator_paints_as_it_was_trained():
    """One step over one window is what the model's own `forward` says of the whole clip."""
    model, own = tiny_portrait(), vae()
    frames = [sketch(index) for index in range(13)]
    shown = PortraitModel(model, own, still())
    normals = torch.from_numpy(np.stack([frame.normals for frame in frames])).permute(3, 0, 1, 2)[None]
    film = pixels([frame.proxy for frame in frames])
    hint = own.normalised(own.model.encode(film).latent_dist.mode())
    noise = noise_of(0, range(4), (16, 4, 4))
    expected = model(
        noise,
        torch.tensor([600.0]),
        normals,
        own.encode(pixels([still().photo])),
        torch.from_numpy(still().normals).permute(2, 0, 1)[None],
        hint,
    )
    control = torch.cat(list(shown.controls(chunks(iter(frames), first=0, count=13), 0)), 2)
    assert control.shape == (1, 32, 4, 4, 4)
    assert torch.allclose(shown.velocity(control)(noise, 0.6), expected, atol=1e-5)
    dropped = shown.untold(control)(noise, 0.6)
    assert (dropped - expected).abs().max() > 1e-3
    assert torch.equal(dropped, shown.untold(torch.randn_like(control))(noise, 0.6))


@pytest.mark.parametrize("count", [1, 2, 13, 16, 17, 18, 37])
def test_pose_features_in_blocks_are_those_of_the_whole_film(count):
    model = tiny_portrait(has_hint=False)
    shown = PortraitModel(model, vae(), still(16, 16))
    frames = list(sketches_of(count, height=16, width=16)(0))
    groups = list(chunks(iter(frames), first=0, count=count))
    filled = [frame.normals for group in groups for frame in group]
    expected = model.pose(torch.from_numpy(np.stack(filled)).permute(3, 0, 1, 2)[None])
    found = torch.cat(list(shown.controls(iter(groups), 0)), 2)
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)
    for first in range(1, len(groups)):
        # What begins in the middle has the first of its frames only, and is right once it has forgotten that.
        late = [groups[first][-1:], *groups[first + 1 :]]
        part = torch.cat(list(shown.controls(iter(late), first)), 2)
        assert part.shape[2] == len(groups) - first
        assert torch.equal(part[:, :, shown.memory :], found[:, :, first + shown.memory :])


MODELS = {"wan-vace": vace, "wan-v2v": finish, "wan-portrait": portrait}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_every_frame_is_painted_once_at_its_own_size(make: Callable[..., Model], count):
    sketches = sketches_of(count, height=28, width=42)
    model = make(28, 42)
    frames = list(paint_windows(model, vae(), sketches, sampling(1), start=0, count=count))
    assert [frame.shape for frame in frames] == [(28, 42, 3)] * count and frames[0].dtype == np.uint8
    assert all(frame.std() > 1 for frame in frames)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_painting_can_begin_anywhere(make: Callable[..., Model]):
    """Far enough on that the decoder, the windows and the encoder all begin in the middle of the film."""
    count, start = 330, 320
    opened = []

    def sketches(first: int):
        opened.append(first)
        return sketches_of(count, height=16, width=16)(first)

    model = make(16, 16)
    settings = sampling(2, strength=0.5 if isinstance(model, FinishModel) else 1.0)
    whole = list(paint_windows(model, vae(), sketches, settings, start=0, count=count))
    part = list(paint_windows(make(16, 16), vae(), sketches, settings, start=start, count=count))
    assert opened[0] == 0 and opened[1] > 0
    assert len(whole) == count and np.array_equal(np.stack(part), np.stack(whole[start:]))


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_the_seed_decides(make: Callable[..., Model]):
    def film(seed: int) -> np.ndarray:
        settings = sampling(1, seed=seed, strength=0.5 if make is finish else 1.0)
        return np.stack(list(paint_windows(make(), vae(), sketches_of(25), settings, start=0, count=25)))

    assert np.array_equal(film(0), film(0)) and not np.array_equal(film(0), film(1))


def test_little_noise_leaves_the_proxy_nearly_alone():
    def distance(strength: float) -> float:
        model = finish()
        control = told(model, 9)
        noise = noise_of(0, range(3), (16, 4, 4))
        return float((model.start(control, noise, sigmas_of(10, shift=3.0, strength=strength)[0]) - control).std())

    assert distance(0.02) < 0.15 < distance(0.35) < distance(0.9)


def test_memory_does_not_grow_with_the_film():
    """Of a film of thousands of frames, frames are only made as far as the first ones need them."""
    drawn = 0

    def sketches(first: int):
        nonlocal drawn
        for frame in sketches_of(4000)(first):
            drawn += 1
            yield frame

    frames = paint_windows(finish(), vae(), sketches, sampling(1), start=0, count=4000)
    assert len(list(islice(frames, 5))) == 5 and drawn <= 4 * 6
    # The second bridge needs the third anchor: 4 windows of 6 latent frames that overlap by 2, and no more.
    assert len(list(islice(frames, 40))) == 40 and drawn <= 4 * (4 * 4 + 6)


def test_frames_that_are_given_stay_as_they_are():
    frame = Painted(sketch(3).proxy, np.zeros((32, 32), np.float32), sketch(3).draw)
    for model in (vace(), vace(control="depth")):
        assert np.array_equal(model._film(frame), frame.proxy) and not model._mask(frame).any()


def test_depth_is_white_where_it_is_near_and_everything_is_painted():
    model, frame = vace(control="depth"), sketch(0)
    picture, depth = model._film(frame), frame.depth
    assert model._mask(frame).all()
    assert picture[np.unravel_index(depth.argmin(), depth.shape)].tolist() == [255] * 3
    assert picture[np.unravel_index(depth.argmax(), depth.shape)].tolist() == [round(0.3 * 255)] * 3
    assert not np.array_equal(told(model, 5).numpy(), told(vace(), 5).numpy())


def test_the_mask_is_the_proxys_guess_and_a_margin():
    guess = np.zeros((64, 64), np.float32)
    guess[30:34, 40:44] = 0.9
    guess[5, 5] = 0.4
    frame = type(sketch(0))(np.zeros((64, 64, 3), np.uint8), guess, sketch(0).draw)
    mask = vace()._mask(frame)
    rows, columns = np.nonzero(mask)
    # 12 of 512 px is 1.5 of 64, rounded to even.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (28, 35, 38, 45)


@pytest.mark.parametrize("change", ["parts", "channels"])
def test_parts_of_two_models_are_refused(change):
    with pytest.raises(WeightsError, match="channels, expected" if change == "parts" else "needs a transformer"):
        if change == "parts":
            transformer = tiny_vace()
            transformer.register_to_config(vace_in_channels=80)
            VaceModel(transformer, vae(), PROMPT, still())
        else:
            FinishModel(tiny_transformer(in_channels=36), vae(), PROMPT)
