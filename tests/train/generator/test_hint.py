"""Training with the proxy film as a hint: drawn by the real pipeline, in place, shown in training and in painting."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.balls import ball_entry
from support.generator_runs import interrupt_at_a_report, training_run, weights, write_set
from support.known_head import blank_fit, dynamic_poses
from support.performers import quiet
from support.places import ROOT
from support.tiny_wan import base_folder, prompt_embeds, tiny_transformer, tiny_vae

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash, sha256
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import PAPER, TrackConfig
from expportrait_cli.dataset.dataset import Clip, Dataset, clip_of
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.errors import InputError
from expportrait_cli.head import load_head
from expportrait_cli.media.video import frame_count, read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting.scene import Scene
from expportrait_cli.painting.wan.folder import load_folder
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.vae import Vae
from expportrait_cli.pipeline.performance import CurvesFile, OffsetSource, write_meshes
from expportrait_cli.tracking import track
from expportrait_cli.train.config import GeneratorTask, GeneratorTraining
from expportrait_cli.train.generator.cache import Maker, build_cache, entry_of
from expportrait_cli.train.generator.examples import Examples
from expportrait_cli.train.generator.loop import held_out_error
from expportrait_cli.train.generator.state import averaged_weights
from expportrait_cli.train.scenes import in_crop, own_scene, photo_rows

pytestmark = pytest.mark.slow

DRIVING = ROOT / "examples" / "driving.mp4"
COUNT = 5


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """Frames of the demo's driver, every other one, as `data prepare` leaves a clip."""
    folder, head = tmp_path_factory.mktemp("set"), load_head()
    clip = clip_of(folder, "driver", "driver")
    with VideoWriter(clip.video, rate=Fraction(25)) as writer:
        for frame in islice(read_frames(DRIVING), 40, 40 + 2 * COUNT, 2):
            writer.write(frame)
    tracking = track(clip.video, head, TrackConfig(), quiet)
    fit = replace(
        blank_fit(head, tracking.identity),
        dynamic_vertices=np.arange(2),
        dynamic_offset=np.zeros((COUNT, 2, 3), np.float16),
        **dynamic_poses(tracking),
        dynamic_loss=np.zeros((COUNT, 2), np.float32),
    )
    npz.save(tracking, clip.tracking, {})
    npz.save(fit, clip.head, {})
    return write_set(folder, [clip])


@pytest.fixture(scope="module")
def clip(prepared) -> Clip:
    (clip,) = Dataset.open(prepared).clips
    return clip


@pytest.fixture(scope="module")
def scene(clip) -> Iterator[Scene]:
    tracking = npz.load(Tracking, clip.tracking)
    (row,) = photo_rows(tracking, 1, end=1).tolist()
    assert row == 0
    with own_scene(clip, tracking, row, load_head(), size=256) as own:
        yield own


def test_the_proxy_film_lies_on_the_clip(scene, clip):
    """In a crop that is not the photo's own: nearer to the frames than the photo is, and than two pixels aside."""
    crop = Crop(40.0, 60.0, 380.0)
    assert Crop(*map(float, scene.fit.crop)) != crop
    aside = in_crop(scene, crop, 96)
    found = np.stack([sketch.proxy for sketch in aside.sketches(0)]).astype(float)
    truth = np.stack([crop_image(frame, crop, 96) for frame in read_frames(clip.video)]).astype(float)
    assert np.array_equal(aside.still.photo, truth[0])

    def error(frames: np.ndarray) -> float:
        return float(np.square(frames - truth)[:, 2:-2, 2:-2].mean())

    own = error(found)
    assert own < 0.75 * error(np.broadcast_to(aside.still.photo, truth.shape)), own
    for shift in (-2, 2):
        assert own < min(error(np.roll(found, shift, axis)) for axis in (1, 2))


@pytest.fixture(scope="module")
def trained(prepared, tmp_path_factory) -> tuple[Path, list[str]]:
    """A generator that was trained for two steps, and the command."""
    work = tmp_path_factory.mktemp("hint")
    base = base_folder(work / "base", tiny_transformer())
    command = ["train", "generator", str(prepared), "-o", str(work / "out"), "--base", str(base), "--hint"]
    command += ["--steps", "2", "--size", "32", "--frames", "5", "--report-every", "1", "--sample-every", "2"]
    assert app.run(command) == 0
    return work / "out", command


def test_a_generator_with_a_hint(trained, clip):
    out, _ = trained
    loaded = load_folder(out)
    assert loaded.manifest.has_hint and loaded.manifest.train["settings"]["hint"] is True
    weight = loaded.portrait.transformer.patch_embedding.weight
    assert weight.shape[1] == 52 and weight[:, 36:].any()
    found = entry_of(clip, out.with_name("out.work") / "cache").read()
    assert found.hints.shape == (2, *found.film.shape) and found.photos.shape == (2, 16, 4, 4)
    assert found.rows == photo_rows(npz.load(Tracking, clip.tracking), 2, end=COUNT).tolist()
    # A proxy shows its own photo as it is, up to seams: in that frame it is nearer to the film than to other frames.
    film = found.film
    near, far = ((found.hints[:, :, 0] - film[:, 0]).abs().mean(), (found.hints[:, :, 0] - film[:, -1]).abs().mean())
    assert near < far
    with Image.open(out.with_name("out.work") / "films" / "step-0000002.png") as picture:
        # The photo and the frame beside it; normals, proxy, film, truth.
        assert picture.size == (2 * 32, 4 * 32)


def test_interrupted_it_gives_the_same_bytes(trained, tmp_path, monkeypatch):
    out, command = trained
    other = tmp_path / "other"
    shutil.copytree(out.with_name("out.work") / "cache", tmp_path / "other.work" / "cache")
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "other.work" / "cache").iterdir())]
    command = [*command[:4], str(other), *command[5:]]
    with monkeypatch.context() as patch:
        interrupt_at_a_report(patch)
        assert app.run(command) == 130
    assert app.run(command) == 0
    assert weights(other) == weights(out)
    assert times == [path.stat().st_mtime_ns for path in sorted((tmp_path / "other.work" / "cache").iterdir())]


def test_it_paints_from_the_command_line(trained, scene, clip, tmp_path, capsys):
    out, _ = trained
    head, meshes = npz.save(scene.fit, tmp_path / "a.head.npz", {}), tmp_path / "a.meshes.npz"
    write_meshes(
        meshes,
        {"inputs": {"curves": ""}},
        scene.fit,
        npz.load(Tracking, clip.tracking),
        head=scene.head,
        head_hash=content_hash(head),
        source=OffsetSource.of(PAPER, scene.head.name),
        table=CurvesFile(None, meshes, ()),
        progress=quiet,
    )
    film = tmp_path / "film.mp4"
    command = ["generate", str(head), str(meshes), "-o", str(film), "--size", "256", "--audio", "none", "--steps", "1"]
    assert app.run([*command, "--weights-folder", str(out)]) == 0
    assert capsys.readouterr().out == f"{film}\n"
    assert json.loads(film.with_suffix(".json").read_text())["painter"]["painter"] == "wan-portrait"
    assert frame_count(film) == COUNT


def test_without_a_hint_the_cache_is_another(trained, clip, tmp_path):
    out, _ = trained
    shutil.copytree(out.with_name("out.work") / "cache", tmp_path / "cache")
    vae_hash = "".join(sha256(path) for path in (out / "vae").glob("*.safetensors"))
    maker = Maker(load_head(), Vae(tiny_vae()), vae_hash, 32, hints=2)
    (entry,) = build_cache([clip], tmp_path / "cache", maker, progress=quiet)
    assert entry.latents.read_bytes() == (out.with_name("out.work") / "cache" / entry.latents.name).read_bytes()
    build_cache([clip], tmp_path / "cache", replace(maker, hints=0), progress=quiet)
    assert len(entry.read().rows) == COUNT and not len(entry.read().hints)


def test_a_clip_without_a_photo_is_refused(clip, tmp_path):
    maker = Maker(load_head(), Vae(tiny_vae()), "one", 32, hints=1)
    with VideoWriter(tmp_path / "grey.mp4", rate=Fraction(25)) as writer:
        for _ in range(COUNT):
            writer.write(np.full((512, 512, 3), 90, np.uint8))
    empty = replace(clip, video=tmp_path / "grey.mp4")
    with pytest.raises(InputError, match=r"grey\.mp4 has no frame to use as the photo: no face is found\. Leave"):
        build_cache([empty], tmp_path, maker, progress=quiet)


def test_the_base_says_whether_there_is_a_hint(trained, tmp_path, capsys):
    """Before anything is drawn."""
    out, command = trained
    plain = [*command[:4], str(tmp_path / "next"), "--base", str(out), *command[8:]]
    assert app.run(plain) == 2
    assert "takes the proxy film as well: add --hint" in capsys.readouterr().err
    assert not (tmp_path / "next.work").exists()
    shutil.copytree(out.with_name("out.work") / "cache", tmp_path / "next.work" / "cache")
    assert app.run([*plain, "--hint"]) == 0
    assert load_folder(tmp_path / "next").manifest.has_hint


def test_it_learns_what_the_hint_is_for(tmp_path):
    """From a proxy film that is the film with some noise: played backwards it is worth less."""
    entry = ball_entry(tmp_path, "ball", 0, 17)
    tensors = load_file(entry.latents)
    film, count = tensors["film"], len(tensors["rows"])
    noise = torch.randn(count, *film.shape, generator=torch.Generator().manual_seed(0))
    tensors["hints"] = (film + 0.2 * noise).half()
    save_file(tensors, entry.latents)
    config = GeneratorTraining(steps=120, frames=9, rate=1e-2, warm_up=10, average=0.9)
    task = GeneratorTask(report_every=120, sample_every=120, drop_control=0.0, drop_reference=0.0, checkpointing=False)
    torch.manual_seed(0)
    portrait = WanPortrait.from_base(tiny_transformer(head_dim=48), prompt_embeds(), has_hint=True)
    training_run([entry], tmp_path / "run", config, task, portrait=portrait)
    portrait.load_state_dict(averaged_weights(tmp_path / "run" / "state.safetensors"), strict=False)
    examples = Examples([entry], task, frames=9, seed=0)
    validation = [examples.example(number) for number in range(1000, 1012)]
    wrong = [replace(example, hint=None if example.hint is None else example.hint.flip(2)) for example in validation]
    cpu = torch.device("cpu")
    right, lost = (held_out_error(portrait, each, cpu)["held_out"] for each in (validation, wrong))
    assert right < 0.8 * lost, (right, lost)
