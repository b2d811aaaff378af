"""The Wan painters on random weights: as diffusers' own pipelines where these can do the same, and beyond."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from unittest import mock

import cv2
import numpy as np
import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from PIL import Image
from support.tiny_wan import tiny_prompts, tiny_transformer, tiny_vace, tiny_vae
from support.wan_film import sketch, sketches_of, still, tiny_portrait, vae
from torch import Tensor

from expportrait_cli.errors import WeightsError
from expportrait_cli.painting.scene import Sketch
from expportrait_cli.painting.wan.film import Conditions, Model, Sampling, paint_window, paint_windows, sigmas_of
from expportrait_cli.painting.wan.masks import Masks
from expportrait_cli.painting.wan.portrait_model import PortraitModel
from expportrait_cli.painting.wan.prompts import Prompts
from expportrait_cli.painting.wan.vace import Control, FinishModel, VaceModel, control_sheet, guide_of
from expportrait_cli.painting.wan.vae import pixels
from expportrait_cli.painting.wan.windows import Painted, Window, chunks, latent_of, noise_of
from expportrait_cli.render.buffers import encode

pytestmark = pytest.mark.slow

PROMPTS = tiny_prompts()


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def vace(height: int = 32, width: int = 32, *, keep: bool = False, control: Control = "proxy") -> VaceModel:
    return VaceModel(tiny_vace(), vae(), PROMPTS, still(height, width), control=control, keep=keep)


def finish(height: int = 32, width: int = 32) -> FinishModel:
    return FinishModel(tiny_transformer(), vae(), PROMPTS)


def portrait(height: int = 32, width: int = 32) -> PortraitModel:
    return PortraitModel(tiny_portrait(), vae(), still(height, width))


def sampling(steps: int = 2, **changes) -> Sampling:
    strength = changes.pop("strength", 1.0)
    return Sampling(sigmas_of(steps, shift=3.0, strength=strength), **{"length": 6, "overlap": 2, **changes})


def told(model: Model, count: int) -> Tensor:
    return Conditions.joined(list(model.controls(chunks(sketches_of(count)(0), first=0, count=count), 0))).control


class Evenly(FlowMatchEulerDiscreteScheduler):
    """Noise levels as this tool spreads them, and as few-step models are published with."""

    def set_timesteps(self, num_inference_steps=None, device=None, **options):  # pyright: ignore
        super().set_timesteps(sigmas=np.linspace(1, 1 / num_inference_steps, num_inference_steps), device=device)  # pyright: ignore


def pipeline_of(kind, transformer, shift: float):
    pipeline = kind(
        tokenizer=None, text_encoder=None, vae=tiny_vae(), scheduler=Evenly(shift=shift), transformer=transformer
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


SIDE, COUNT = 64, 33


def moving() -> list[Sketch]:
    """Frames whose doubtful part moves across them."""
    frames = []
    for index in range(COUNT):
        guess = np.zeros((SIDE, SIDE), np.float32)
        guess[8:32, index : index + 20] = 1
        frames.append(replace(sketch(index, SIDE, SIDE), guess=guess))
    return frames


def masks_of(frames: list[Sketch]) -> list[np.ndarray]:
    """Mask of each frame, px."""
    cells = [mask for _, mask in Masks(still(SIDE, SIDE)).of(chunks(iter(frames), first=0, count=COUNT))]
    return [cells[latent_of(index)].repeat(8, 0).repeat(8, 1) for index in range(COUNT)]


@pytest.mark.parametrize(("shift", "guidance"), [(3.0, 1.0), (3.0, 5.0), (16.0, 5.0)])
def test_vace_is_its_pipeline(shift, guidance):
    """Same film, moving masks, one window, guidance with a negative prompt: the same film after four steps."""
    frames, transformer = moving(), tiny_vace()
    model = VaceModel(transformer, vae(), PROMPTS, still(SIDE, SIDE), control="holes", keep=False)
    masks = masks_of(frames)
    assert not np.array_equal(masks[0], masks[-1]) and 0.05 < np.mean(masks) < 0.5
    theirs = pipeline_of(WanVACEPipeline, transformer, shift)(
        video=[
            Image.fromarray(np.where(mask[..., None], np.uint8(127), frame.proxy))
            for mask, frame in zip(masks, frames, strict=True)
        ],
        mask=[Image.fromarray(mask.astype(np.uint8) * 255) for mask in masks],
        reference_images=[Image.fromarray(still(SIDE, SIDE).photo)],
        prompt_embeds=PROMPTS.positive,
        negative_prompt_embeds=PROMPTS.negative,
        height=SIDE,
        width=SIDE,
        num_frames=COUNT,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=noise_of(0, range(-1, 9), (16, SIDE // 8, SIDE // 8)),
        output_type="np",
    ).frames[0]
    settings = Sampling(sigmas_of(4, shift=shift), guidance=guidance)
    ours = list(paint_windows(model, vae(), lambda start: iter(frames[start:]), settings, start=0, count=COUNT))
    assert np.abs(np.stack(ours) - theirs * 255).max() < 1.01


def test_the_second_size_of_vace_takes_what_it_is_told():
    """The settings of the 14B, without its weights."""
    sizes = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "vace_layers": [*range(0, 40, 5)]}
    with torch.device("meta"):
        transformer = WanVACETransformer3DModel(**sizes, vace_in_channels=96, text_dim=4096)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == pytest.approx(17.3e9, rel=0.01)
    model = VaceModel(transformer, vae(), Prompts(torch.zeros(1, 512, 4096), None), still())
    control = told(model, 5)
    state = torch.zeros(1, 16, 1 + control.shape[2], *control.shape[3:], device="meta")
    assert model.velocity(control)(state, 0.5).shape == state.shape


@pytest.mark.parametrize(("shift", "guidance"), [(3.0, 5.0), (16.0, 5.0)])
def test_finishing_is_its_pipeline(shift, guidance):
    frames, transformer = [sketch(index) for index in range(9)], tiny_transformer()
    noise = noise_of(0, range(3), (16, 4, 4))
    pipeline = pipeline_of(WanVideoToVideoPipeline, transformer, shift)
    with mock.patch("diffusers.pipelines.wan.pipeline_wan_video2video.randn_tensor", lambda *_, **__: noise):
        theirs = pipeline(
            video=[Image.fromarray(frame.proxy) for frame in frames],
            prompt_embeds=PROMPTS.positive,
            negative_prompt_embeds=PROMPTS.negative,
            height=32,
            width=32,
            num_inference_steps=4,
            strength=0.5,
            guidance_scale=guidance,
            output_type="np",
        ).frames[0]
    settings = Sampling(sigmas_of(4, shift=shift, strength=0.5), guidance=guidance, length=6, overlap=2)
    model = FinishModel(transformer, vae(), PROMPTS)
    ours = list(paint_windows(model, vae(), lambda start: iter(frames[start:]), settings, start=0, count=9))
    assert np.abs(np.stack(ours) - theirs * 255).max() < 1.01


def test_what_is_not_repainted_is_the_proxys_own():
    """A transformer that returns its input unchanged, as far from a film as can be: what is kept does not see it."""
    transformer, frames = tiny_vace(), moving()
    transformer.forward = lambda hidden_states, **_: (hidden_states,)
    model = VaceModel(transformer, vae(), PROMPTS, still(SIDE, SIDE))
    settings = Sampling(sigmas_of(4, shift=3.0, strength=0.75), guidance=5.0, length=6, overlap=2)
    ours = list(paint_windows(model, vae(), lambda start: iter(frames[start:]), settings, start=0, count=COUNT))
    for frame, shown, painted in zip(ours, frames, masks_of(frames), strict=True):
        assert np.array_equal(frame[~painted], shown.proxy[~painted])
        assert np.abs(frame[painted].astype(int) - shown.proxy[painted]).mean() > 5


def test_latents_are_held_where_the_proxy_is_kept():
    model = VaceModel(tiny_vace(), vae(), PROMPTS, still(SIDE, SIDE))
    known = Conditions.joined(list(model.controls(chunks(iter(moving()), first=0, count=COUNT), 0)))
    made = paint_window(model, known, Window(0, 0, 9), Sampling(sigmas_of(4, shift=3.0, strength=0.75)))
    assert known.keep is not None and known.film is not None and 0.3 < float(known.keep.mean()) < 0.95
    kept = known.keep.expand_as(made) == 1
    assert torch.allclose(made[kept], known.film[kept], atol=1e-5)
    assert (made - known.film)[~kept].abs().mean() > 0.05


def test_in_the_mask_vace_follows_grey_levels():
    frame = sketch(0)
    guide = guide_of(frame, "proxy", still())
    assert np.array_equal(guide[..., 0], cv2.cvtColor(frame.proxy, cv2.COLOR_RGB2GRAY))
    assert np.array_equal(guide[..., 0], guide[..., 2])
    assert (guide_of(frame, "holes", still()) == 127).all()
    assert np.array_equal(guide_of(frame, "normals", still()), encode(frame.normals))


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
    control = Conditions.joined(list(shown.controls(chunks(iter(frames), first=0, count=13), 0))).control
    assert control.shape == (1, 32, 4, 4, 4)
    assert torch.allclose(shown.velocity(control)(noise, 0.6), expected, atol=1e-5)
    dropped = shown.unconditional(control)(noise, 0.6)
    assert (dropped - expected).abs().max() > 1e-3
    assert torch.equal(dropped, shown.unconditional(torch.randn_like(control))(noise, 0.6))


@pytest.mark.parametrize("count", [1, 2, 13, 16, 17, 18, 37])
def test_pose_features_in_blocks_are_those_of_the_whole_film(count):
    model = tiny_portrait(has_hint=False)
    shown = PortraitModel(model, vae(), still(16, 16))
    frames = list(sketches_of(count, height=16, width=16)(0))
    groups = list(chunks(iter(frames), first=0, count=count))
    filled = [frame.normals for group in groups for frame in group]
    expected = model.pose(torch.from_numpy(np.stack(filled)).permute(3, 0, 1, 2)[None])
    found = Conditions.joined(list(shown.controls(iter(groups), 0))).control
    assert found.shape == expected.shape and torch.allclose(found, expected, atol=1e-6)
    for first in range(1, len(groups)):
        # What begins in the middle has the first of its frames only, and is right once it has forgotten that.
        late = [groups[first][-1:], *groups[first + 1 :]]
        part = Conditions.joined(list(shown.controls(iter(late), first))).control
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
    settings = sampling(1, strength=0.5 if isinstance(model, FinishModel) else 1.0)
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


@pytest.mark.parametrize("make", [vace, finish])
def test_little_noise_leaves_the_proxy_nearly_alone(make):
    """Of a transformer that says there is no noise to take away."""

    def distance(strength: float) -> float:
        model = make()
        known = Conditions.joined(list(model.controls(chunks(sketches_of(9)(0), first=0, count=9), 0)))
        model.velocity = lambda control: lambda state, sigma: torch.zeros_like(state)
        settings = Sampling(sigmas_of(10, shift=3.0, strength=strength))
        made = paint_window(model, replace(known, keep=None), Window(0, 0, 3), settings)
        return float((made - known.film).std())

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


@pytest.mark.parametrize("control", ["proxy", "depth"])
def test_frames_that_are_given_stay_as_they_are(control: Control):
    frames = [replace(sketch(index), guess=np.ones((32, 32), np.float32)) for index in range(9)]
    given = Painted(frames[0].proxy, np.zeros((32, 32), np.float32), frames[0].draw)
    known = list(vace(control=control, keep=True).controls(chunks(iter([given, *frames[1:]]), first=0, count=9), 0))
    assert known[0].keep.all() and not known[1].keep.all()  # pyright: ignore
    assert np.array_equal(guide_of(given, control, still()), given.proxy)


def test_the_sheet_shows_what_vace_is_told():
    frames = moving()
    sheet = control_sheet(still(SIDE, SIDE), lambda start: iter(frames[start:]), COUNT, "holes", columns=3)
    assert sheet.shape == (3 * SIDE, 4 * SIDE, 3) and np.array_equal(sheet[:SIDE, :SIDE], still(SIDE, SIDE).photo)
    for column, index in enumerate((0, 16, 32), 1):
        proxy, told, mask = (sheet[row * SIDE :][:SIDE, column * SIDE :][:, :SIDE] for row in range(3))
        assert np.array_equal(proxy, frames[index].proxy)
        assert np.array_equal(mask[..., 0] > 0, masks_of(frames)[index])
        assert np.array_equal(told, np.where(mask > 0, 127, proxy))


def test_depth_is_white_where_it_is_near_and_everything_is_painted():
    model, frame = vace(control="depth", keep=True), sketch(0)
    picture, depth = guide_of(frame, "depth", still()), frame.depth
    assert picture[np.unravel_index(depth.argmin(), depth.shape)].tolist() == [255] * 3
    assert picture[np.unravel_index(depth.argmax(), depth.shape)].tolist() == [round(0.3 * 255)] * 3
    # Beside a photo's depth, the same distance has the same level in every frame.
    photo = replace(still(), depth=np.full((32, 32), 1.05, np.float32))
    levels = [guide_of(sketch(index), "depth", photo)[..., 0][sketch(index).depth > 1.09].mean() for index in range(3)]
    assert np.ptp(levels) < 3 and 76 < levels[0] < 250
    (known,) = model.controls(chunks(iter([frame]), first=0, count=1), 0)
    assert not known.keep.any() and known.control[:, 32:].all()  # pyright: ignore
    assert not np.array_equal(told(model, 5).numpy(), told(vace(), 5).numpy())


@pytest.mark.parametrize("change", ["parts", "channels"])
def test_parts_of_two_models_are_refused(change):
    with pytest.raises(WeightsError, match="channels, expected" if change == "parts" else "needs a transformer"):
        if change == "parts":
            transformer = tiny_vace()
            transformer.register_to_config(vace_in_channels=80)
            VaceModel(transformer, vae(), PROMPTS, still())
        else:
            FinishModel(tiny_transformer(in_channels=36), vae(), PROMPTS)
