"""Training the paper's generator: it learns, from the normals too; the same every time, interrupted or not."""

import json
import signal
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.balls import ball_entry, small_portrait
from support.generator_runs import FAST, TASK, interrupt_at_a_report, training_run, weights, write_set
from support.known_head import dynamic_poses
from support.performers import make_state, quiet
from support.tiny_wan import (
    IMAGE_DIM,
    IMAGE_TOKENS,
    add_image_encoder,
    base_folder,
    prompt_embeds,
    tiny_i2v_transformer,
    tiny_transformer,
    tiny_vae,
)
from support.transfer_faces import driver_of, photo_of

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.cli import app
from expportrait_cli.dataset.dataset import Clip, Dataset, clip_of
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting.wan.encoders import ImageEncoder
from expportrait_cli.painting.wan.folder import load_folder
from expportrait_cli.painting.wan.manifest import FrameRule
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.vae import Vae
from expportrait_cli.render.buffers import decode
from expportrait_cli.train.config import GeneratorTraining
from expportrait_cli.train.generator.cache import Maker, build_cache, entry_of
from expportrait_cli.train.generator.examples import Examples
from expportrait_cli.train.generator.loop import FOR_IMAGES, held_out_error, optimizer_of, set_free
from expportrait_cli.train.generator.run import train_generator
from expportrait_cli.train.generator.state import averaged_weights

pytestmark = pytest.mark.slow

pytest_plugins = ("support.astronaut",)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("balls")
    return [ball_entry(folder, name, seed, 9) for seed, name in enumerate(("one", "two"))]


@pytest.fixture
def heeds_interrupts():
    """A background job of a shell ignores them, and so would its tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
@pytest.mark.parametrize("lora", [0, 4])
def test_the_same_run_gives_the_same_bytes_interrupted_or_not(lora, clips, tmp_path):
    config = replace(FAST, lora=lora)
    rows = training_run(clips, tmp_path / "a", config)
    assert [step for step, _ in rows] == [4, 6]

    def interrupt(done: int, total: int | None) -> None:
        assert total == 6
        if done == 3:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        training_run(clips, tmp_path / "b", config, progress=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    calls = []
    later = training_run(clips, tmp_path / "b", config, progress=lambda done, total: calls.append(done))
    assert calls == [4, 5, 6] and [step for step, _ in later] == [4, 6] and later[1] == rows[1]
    whole, gone_on = ((tmp_path / name / "state.safetensors").read_bytes() for name in "ab")
    assert whole == gone_on
    assert training_run(clips, tmp_path / "b", config) == []
    assert (tmp_path / "b" / "state.safetensors").read_bytes() == whole


def test_another_seed_is_another_run(clips, tmp_path):
    for seed in (0, 1):
        training_run(clips, tmp_path / str(seed), replace(FAST, steps=1, seed=seed))
    one, two = (averaged_weights(tmp_path / str(seed) / "state.safetensors") for seed in (0, 1))
    assert not torch.equal(one["transformer.proj_out.weight"], two["transformer.proj_out.weight"])


def test_the_state_of_another_generator_is_refused(clips, tmp_path):
    training_run(clips, tmp_path, replace(FAST, steps=1))
    with pytest.raises(InputError, match="is the state of another generator"):
        training_run(clips, tmp_path, replace(FAST, lora=2))


def test_it_learns_a_clip_and_what_normals_are_for(clips, tmp_path):
    """Twice as well as at first; and with the film's own normals better than with them in another order."""
    config = replace(FAST, steps=220, rate=1e-2, warm_up=10, average=0.97, batch=1)
    task = replace(TASK, report_every=220, sample_every=220, drop_control=0.0, drop_reference=0.0, checkpointing=False)
    portrait = small_portrait(48)
    examples = Examples(clips[:1], task, frames=config.frames, seed=0)
    # Of the same clip, with noise that it was never shown.
    validation = [examples.example(number) for number in range(1000, 1016)]
    start = held_out_error(portrait, validation, CPU)["held_out"]
    rows = training_run(clips[:1], tmp_path, config, task, portrait=portrait)
    portrait.load_state_dict(averaged_weights(tmp_path / "state.safetensors"), strict=False)
    right = held_out_error(portrait, validation, CPU)["held_out"]
    wrong = held_out_error(
        portrait, [replace(example, normals=example.normals.flip(2)) for example in validation], CPU
    )["held_out"]
    assert right < 0.5 * start, (start, right)
    assert right < 0.8 * wrong, (right, wrong)
    assert rows[-1][1]["loss"] < start


def test_what_learns_and_how_fast():
    whole = small_portrait(12)
    config = replace(FAST, trunk=0.1, lora=0)
    set_free(whole, config, TASK)
    new, own = optimizer_of(whole, config).param_groups
    assert (new["full_rate"], own["full_rate"]) == (1e-2, pytest.approx(1e-3))
    assert any(p is whole.transformer.patch_embedding.weight for p in new["params"])
    assert len(new["params"]) + len(own["params"]) == len(list(whole.parameters()))
    low = small_portrait(12)
    set_free(low, replace(config, lora=4), TASK)
    (only,) = optimizer_of(low, config).param_groups
    free = {name for name, p in low.named_parameters() if p.requires_grad}
    assert len(only["params"]) == len(free) and "transformer.patch_embedding.weight" in free
    assert {name for name in free if name.startswith("transformer.blocks")} == {n for n in free if ".lora_" in n}
    # 2 blocks of 10 layers with 2 matrices each.
    assert sum(".lora_" in name for name in free) == 40


def test_an_i2v_base_learns_all_but_what_is_for_images(clips, tmp_path):
    portrait = WanPortrait.from_base(tiny_i2v_transformer(), prompt_embeds())
    rows = training_run(clips, tmp_path, replace(FAST, steps=4), portrait=portrait)
    assert np.isfinite(rows[-1][1]["held_out"])
    learned = averaged_weights(tmp_path / "state.safetensors")
    assert "reference.layers.12.weight" in learned and learned["reference.layers.12.weight"].any()
    assert not [name for name in learned if "image_embedder" in name or "add_k" in name]


def filmed(head, folder: Path, name: str, seed: int, frames: int = 11) -> Clip:
    """A prepared clip: a head that turns and smiles in front of a picture that moves with it."""
    turns = np.linspace(-0.2, 0.2, frames)
    states = [make_state(head, turn=(0, turn, 0), mouthSmileLeft=0.8 * (t % 2)) for t, turn in enumerate(turns)]
    tracking = driver_of(head, states, seed=seed)
    vertices = np.flatnonzero(head.facial_mask.numpy() > 0)
    smile = 1e-3 * np.random.default_rng(seed).normal(size=(len(vertices), 3)) * (np.arange(frames) % 2)[:, None, None]
    fit = replace(
        photo_of(head, seed),
        dynamic_vertices=vertices,
        dynamic_offset=smile.astype(np.float16),
        **dynamic_poses(tracking),
        dynamic_loss=np.zeros((frames, 2), np.float32),
    )
    clip = clip_of(folder, name, f"folder-{name}")
    with VideoWriter(clip.video, rate=Fraction(25)) as writer:
        for turn in turns:
            writer.write(np.tile(np.uint8([200, 120, 60 + 300 * abs(turn)]), (512, 512, 1)))
    npz.save(tracking, clip.tracking, {})
    npz.save(fit, clip.head, {})
    return clip


def test_the_cache_holds_what_the_clip_shows(head, tmp_path):
    clip = filmed(head, tmp_path / "set", "a", 1)
    one = Maker(head, Vae(tiny_vae()), "one", 64)
    (entry,) = build_cache([clip], tmp_path / "cache", one, progress=quiet)
    found = entry.read()
    film, photos, rows = found.film, found.photos, found.rows
    assert found.hints.shape == (0, 16, 3, 8, 8) and len(found.tokens) == 0
    # 11 frames: 9 of them are whole latent frames.
    assert film.shape == (16, 3, 8, 8) and photos.shape == (9, 16, 8, 8) and rows == list(range(9))
    assert entry.latent_count == 3
    # The first latent frame is that of a single picture.
    assert torch.allclose(film[:, 0], photos[0], atol=2e-3)
    normals = entry.read_normals()
    assert normals.shape == (9, 64, 64, 3) and (normals[:, 0, 0] == 128).all()
    shown = decode(normals)
    seen = np.linalg.norm(shown, axis=-1) > 0.5
    assert 0.1 < seen.mean() < 0.9
    # The head turns from one side to the other: its normals' mean goes along.
    across = [float(shown[t, ..., 0][seen[t]].mean()) for t in range(9)]
    assert abs(across[-1] - across[0]) > 0.05
    times = [path.stat().st_mtime_ns for path in (entry.latents, entry.normals)]
    build_cache([clip], tmp_path / "cache", one, progress=quiet)
    assert times == [path.stat().st_mtime_ns for path in (entry.latents, entry.normals)]
    build_cache([clip], tmp_path / "cache", replace(one, vae_hash="two"), progress=quiet)
    assert times[0] != entry.latents.stat().st_mtime_ns
    npz.save(photo_of(head, 1), clip.head, {})
    with pytest.raises(InputError, match=r"holds 0 frames of dynamic offsets.*expected 11 on 'anny'. Prepare"):
        build_cache([clip], tmp_path / "cache", one, progress=quiet)


@pytest.fixture(scope="module")
def prepared(head, tmp_path_factory) -> Path:
    """Two people, the second of whom only judges."""
    folder = tmp_path_factory.mktemp("prepared")
    return write_set(folder, [filmed(head, folder, name, seed) for seed, name in enumerate("ab")])


def test_from_a_set_to_a_generator(prepared, tmp_path, capsys, monkeypatch):
    """The command with 4 steps: folder, films, history; the same bytes when it was interrupted."""
    folder = prepared
    base = base_folder(tmp_path / "base", tiny_transformer())
    out = tmp_path / "generator"
    options = ["--base", str(base), "--steps", "4", "--size", "32", "--frames", "9", "--lora", "2"]
    options += ["--report-every", "2", "--sample-every", "4", "--json"]
    command = ["train", "generator", str(folder), "-o", str(out), *options]
    assert app.run(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["output"] == str(out) and said["steps"] == 4
    assert said["clips"] == 1 and said["held_out"] == ["folder-b"]
    loaded = load_folder(out)
    assert loaded.manifest.resolution == 32
    # Of three latent frames they share one.
    assert loaded.manifest.frame_rule == FrameRule(window=9, overlap=4)
    assert loaded.manifest.origin["license"] == "apache-2.0"
    assert loaded.manifest.train["settings"]["lora"] == 2 and loaded.manifest.train["people"] == 1
    weight = loaded.portrait.transformer.patch_embedding.weight
    assert weight[:, 16:].any() and (out / "vae" / "config.json").is_file()
    assert load_file(out / "prompt_embeds.safetensors")["prompt_embeds"].shape == (7, 32)
    with Image.open(tmp_path / "generator.work" / "films" / "step-0000004.png") as picture:
        assert picture.size == (6 * 32, 3 * 32) and np.asarray(picture).std() > 10
    history = [json.loads(line) for line in (tmp_path / "generator.work" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [2, 4] and all(
        np.isfinite([row["loss"], row["held_out"]]).all() for row in history
    )
    assert list((tmp_path / "generator.work" / "tensorboard").iterdir())
    other = tmp_path / "other"
    command[4] = str(other)
    with monkeypatch.context() as patch:
        interrupt_at_a_report(patch)
        assert app.run(command) == 130
    assert "interrupted. Run the same command again" in capsys.readouterr().err and not other.exists()
    with safe_open(tmp_path / "other.work" / "state.safetensors", "pt") as file:
        assert file.metadata() == {"step": "2"}
    assert app.run(command) == 0
    assert weights(other) == weights(out)
    capsys.readouterr()
    assert app.run([*command, "--seed", "3"]) == 2
    assert "holds a run with other seed" in capsys.readouterr().err


def test_from_an_i2v_base(prepared, tmp_path):
    """What it is given where nothing is given is the latent of a grey film."""
    base = base_folder(tmp_path / "base", tiny_i2v_transformer())
    config = GeneratorTraining(epochs=2, frames=9, size=32, held_out=0.0)
    summary = train_generator([prepared, prepared], tmp_path / "out", str(base), config, TASK, lambda name: quiet)
    # Two clips of one window each, twice; that they are in two sets makes no more of them.
    assert summary["steps"] == 4 and summary["held_out"] == []
    portrait = load_folder(tmp_path / "out").portrait
    grey = torch.zeros(1, 3, 17, 64, 64)
    raw = tiny_vae().encode(grey).latent_dist.mode()
    wanted = Vae(tiny_vae()).normalised(raw)[0, :, -1].mean((1, 2))
    assert portrait.base == "i2v" and torch.allclose(portrait.blank, wanted, atol=1e-4)
    with pytest.raises(UsageError, match="holds a run with other epochs"):
        config = replace(config, epochs=3)
        train_generator([prepared, prepared], tmp_path / "out", str(base), config, TASK, lambda name: quiet)


def test_an_i2v_base_with_clip(prepared, tmp_path):
    """Its tokens of every photo are in the cache, and what reads them learns; the generator has the encoder."""
    base = add_image_encoder(base_folder(tmp_path / "base", tiny_i2v_transformer()))
    config = GeneratorTraining(steps=2, frames=9, size=32, held_out=0.0)
    train_generator([prepared], tmp_path / "out", str(base), config, TASK, lambda name: quiet)
    clip = Dataset.open(prepared).clips[0]
    tokens = entry_of(clip, tmp_path / "out.work" / "cache").read().tokens
    assert tokens.shape == (9, IMAGE_TOKENS, IMAGE_DIM)
    crop = Crop(*npz.load(Tracking, clip.tracking).crop.tolist())
    last = crop_image(list(read_frames(clip.video))[8], crop, 32)
    # They are kept in 16 bits.
    assert torch.allclose(tokens[8], ImageEncoder(base / "image_encoder").tokens(last)[0], atol=5e-3)
    portrait = load_folder(tmp_path / "out").portrait
    assert portrait.image_encoder == tmp_path / "out" / "image_encoder"
    before, after = tiny_i2v_transformer().state_dict(), portrait.transformer.state_dict()
    reading = [name for name in before if any(part in name for part in FOR_IMAGES)]
    assert len(reading) > 10 and not [name for name in reading if torch.equal(before[name], after[name])]


def test_wrong_options_end_in_one_line(tmp_path, capsys):
    def said(*options: str) -> str:
        assert app.run(["train", "generator", str(tmp_path), "-o", str(tmp_path / "out"), *options]) in (2, 3, 4)
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1
        return lines[0]

    assert "--frames 80: Wan takes 5, 9, 13" in said("--frames", "80")
    assert "--size 100: Wan takes multiples of 16" in said("--size", "100")
    refusal = said("--base", "somebody/model")
    assert "somebody/model is no folder, none of the weights folders, and not in Hugging Face's cache" in refusal
    assert "has no transformer/config.json" in said("--base", str(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    assert "exists and is no generator's folder" in said()
