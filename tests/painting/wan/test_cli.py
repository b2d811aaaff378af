"""Films by the Wan painters through the command line, from folders with the layout of the real ones."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline, WanVACETransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from support.tiny_wan import (
    prompt_embeds,
    tiny_decoder_file,
    tiny_prompts,
    tiny_transformer,
    tiny_vace,
    tiny_vae,
)
from support.wan_film import portrait_folder, sketches_of, still, swaying, v2v_folder, vace_folder

from expportrait_cli.artifacts.files import content_hash, sha256
from expportrait_cli.cli import app
from expportrait_cli.config import GenerateConfig, WanConfig
from expportrait_cli.errors import UsageError
from expportrait_cli.media.video import frame_count, probe
from expportrait_cli.painting import stage
from expportrait_cli.painting.scene import Sketch
from expportrait_cli.painting.wan import painters as wan_painters
from expportrait_cli.painting.wan import runtime
from expportrait_cli.painting.wan.painters import WanPainter, sampling_of
from expportrait_cli.painting.wan.runtime import GB, Cost, Shape
from expportrait_cli.weights.catalogue import read_folder

pytestmark = pytest.mark.slow
pytest_plugins = ("support.astronaut",)

COUNT = 2


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("wan")


@pytest.fixture(scope="module")
def folders(work) -> dict[str, Path]:
    return {"wan-vace": vace_folder(work), "wan-v2v": v2v_folder(work), "wan-portrait": portrait_folder(work)}


@pytest.fixture(scope="module")
def inputs(work, fitted, head) -> tuple[Path, Path]:
    return swaying(work, fitted, head, COUNT)


@pytest.fixture
def film(inputs, capsys):
    def run(out: Path, *options: object, code: int = 0) -> str:
        words = ["generate", *inputs, "-o", out, "--size", 256, "--audio", "none", *options]
        assert app.run([str(word) for word in words]) == code
        out_text, err = capsys.readouterr()
        assert "Traceback" not in err and out_text == ("" if code else f"{out}\n")
        return err

    return run


@pytest.mark.parametrize("name", ["wan-vace", "wan-v2v", "wan-portrait"])
def test_a_film_its_record_and_a_second_run(name, folders, film, tmp_path):
    path = tmp_path / "film.mp4"
    options = ("--backend", name, "--weights-folder", folders[name], "--steps", 2)
    err = film(path, *options)
    assert f"{name}, this machine: 0.0 GB of weights" in err and "each of 1 windows" in err
    assert frame_count(path) == COUNT and (probe(path).width, probe(path).height) == (256, 256)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["painter"]["painter"] == name and len(record["painter"]["weights"]) == 64
    (row,) = [row for row in record["weights"] if row["name"] == name]
    assert row["licence"] == "apache-2.0" and row["sha256"] == record["painter"]["weights"]
    assert record["settings"]["generate"]["wan"]["steps"] == 2
    assert "up to date" in film(path, *options)


@pytest.fixture(scope="module")
def known() -> dict[str, str]:
    """Hashes of films without further options, by painter."""
    return {}


@pytest.fixture
def plain(folders, film, work, known):
    def hash_of(name: str) -> str:
        if name not in known:
            film(work / f"{name}.mp4", "--weights-folder", folders[name], "--steps", 2)
            known[name] = content_hash(work / f"{name}.mp4")
        return known[name]

    return hash_of


def test_other_weights_make_another_film(folders, plain, film, tmp_path):
    path, prompt = tmp_path / "film.mp4", folders["wan-v2v"] / "prompt_embeds.safetensors"
    options = ("--weights-folder", folders["wan-v2v"], "--steps", 2)
    film(path, *options)
    assert content_hash(path) == plain("wan-v2v")
    kept = prompt.read_bytes()
    try:
        prompt.unlink()
        err = film(tmp_path / "other.mp4", *options, code=4)
        assert "has not been embedded" in err and "expportrait weights embed-prompt" in err
        save_file({"prompt_embeds": prompt_embeds(5), "negative_prompt_embeds": prompt_embeds(1)}, prompt)
        err = film(path, *options)
    finally:
        prompt.write_bytes(kept)
    assert "up to date" not in err and content_hash(path) != plain("wan-v2v")


def test_the_control_is_shown_without_weights(inputs, capsys, tmp_path):
    words = ["generate", *inputs, "-o", tmp_path / "film.mp4", "--size", 256, "--show-control"]
    assert app.run([str(word) for word in words]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'film.control.png'}\n" and not (tmp_path / "film.mp4").exists()
    with Image.open(tmp_path / "film.control.png") as picture:
        # Two frames and the photo; the proxy, what is told, and the mask.
        assert picture.size == (3 * 256, 3 * 256)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("wan-vace", {"control": "depth"}),
        ("wan-vace", {"control": "holes", "keep": False, "skip": 1, "steps": 5}),
        ("wan-vace", {"guidance": 1.5, "quantize": "fp8", "dtype": "bf16", "chain": 1, "vae": "bf16"}),
        ("wan-v2v", {"shift": 16.0, "guidance": 1.0}),
        ("wan-v2v", {"strength": 0.8}),
        ("wan-portrait", {"guidance": 1.5, "attention": "native"}),
    ],
)
def test_options_change_the_film(name, options, folders):
    def film(**changes) -> np.ndarray:
        painter = WanPainter(name, folders[name], WanConfig(**{"steps": 2, **changes}), 0)
        return np.stack(list(painter.paint(still(), sketches_of(5), start=0, count=5)))

    changed = film(**options)
    assert changed.shape == (5, 32, 32, 3) and not np.array_equal(changed, film())


def test_a_preview_by_the_tiny_decoder(folders, plain, film, tmp_path, monkeypatch):
    path, options = tmp_path / "film.mp4", ("--weights-folder", folders["wan-v2v"], "--steps", 2, "--vae", "tiny")
    assert "expportrait weights fetch taew2.1" in film(path, *options, code=4)
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    digest = sha256(tiny_decoder_file(tmp_path / "taew2_1.safetensors"))
    film(path, *options, "--strength", 0.8)
    assert frame_count(path) == COUNT and content_hash(path) != plain("wan-v2v")
    record = json.loads(path.with_suffix(".json").read_text())
    (row,) = [row for row in record["weights"] if row["name"] == "taew2.1"]
    assert record["painter"]["decoder"] == row["sha256"] == digest and row["licence"] == "MIT"


@pytest.mark.parametrize("naming", ["diffusers", "wan"])
def test_a_lora_is_worked_in(naming, folders, plain, film, tmp_path):
    model = tiny_vace()
    model.add_adapter(
        LoraConfig(r=2, lora_alpha=2, target_modules=["attn1.to_q", "attn1.to_k"], init_lora_weights=False)
    )
    tensors = {f"transformer.{name}": value.contiguous() for name, value in get_peft_model_state_dict(model).items()}
    if naming == "wan":
        new = {"transformer.": "diffusion_model.", "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k"}
        for old, own in new.items():
            tensors = {name.replace(old, own): value for name, value in tensors.items() if "vace" not in name}
    save_file({name: 20 * value for name, value in tensors.items()}, tmp_path / "style.safetensors")
    options = ("--weights-folder", folders["wan-vace"], "--steps", 2)
    film(tmp_path / "other.mp4", *options, "--lora", tmp_path / "style.safetensors", "--guidance", 5, "--shift", 3)
    assert content_hash(tmp_path / "other.mp4") != plain("wan-vace")
    assert len(json.loads((tmp_path / "other.json").read_text())["painter"]["lora"]) == 64
    save_file({"something.else": torch.ones(2)}, tmp_path / "bad.safetensors")
    err = film(tmp_path / "bad.mp4", *options, "--lora", tmp_path / "bad.safetensors", code=4)
    assert "holds nothing for this transformer" in err or "does not go with this transformer" in err


def test_loras_add_up_by_their_scales(tmp_path):
    """Two at half are one whole, and three tenths are three tenths of the change."""
    model = tiny_vace()
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["attn1.to_q"], init_lora_weights=False))
    path = tmp_path / "style.safetensors"
    tensors = get_peft_model_state_dict(model)
    save_file({f"transformer.{name}": value.contiguous() for name, value in tensors.items()}, path)

    def painter(*scales: float) -> WanVACETransformer3DModel:
        changed = tiny_vace()
        config = WanConfig(lora=",".join(f"{path}:{scale:g}" for scale in scales))
        runtime.settle(changed, config, torch.device("cpu"), torch.float32)
        return changed

    def weight(*scales: float) -> torch.Tensor:
        return painter(*scales).blocks[0].attn1.to_q.weight

    own, whole = weight(), weight(1)
    assert (whole - own).abs().max() > 1e-3
    assert torch.allclose(weight(0.5, 0.5), whole, atol=1e-6)
    assert torch.allclose(weight(0.3) - own, 0.3 * (whole - own), atol=1e-6)
    # As diffusers' own pipelines have it, which keep a LoRA beside the weights.
    stock = tiny_vace()
    stock.load_lora_adapter(WanVACEPipeline.lora_state_dict(str(path)), prefix="transformer", adapter_name="style")
    stock.set_adapters("style", 0.3)
    assert torch.allclose(velocity_of(painter(0.3)), velocity_of(stock), atol=1e-5)
    assert (velocity_of(painter(0.3)) - velocity_of(painter())).abs().max() > 1e-3


def velocity_of(transformer) -> torch.Tensor:
    """One call of a VACE transformer."""
    generator = torch.Generator().manual_seed(1)
    state, told = (torch.randn(1, channels, 3, 4, 4, generator=generator) for channels in (16, 96))
    with torch.inference_mode():
        return transformer(
            hidden_states=state,
            timestep=torch.full((1,), 500.0),
            encoder_hidden_states=tiny_prompts().positive,
            control_hidden_states=told,
            control_hidden_states_scale=torch.ones(len(transformer.config["vace_layers"])),
            return_dict=False,
        )[0]


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    lines = []
    monkeypatch.setattr(runtime.log, "warning", lambda text, *rest: lines.append(text % rest))
    return lines


def test_compiled_blocks_say_the_same(warnings):
    """Traced with all its operators; what these become is the compiler's affair."""
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph

    transformer = tiny_vace()
    runtime.compile_blocks(transformer, backend)
    found = velocity_of(transformer)
    assert traced and torch.allclose(found, velocity_of(tiny_vace()), atol=1e-5) and not warnings


@pytest.mark.slow
@pytest.mark.skipif("EXPPORTRAIT_LONG" not in os.environ, reason="a minute: set EXPPORTRAIT_LONG=1")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler for the CPU needs g++")
def test_torchs_own_compiler_says_the_same(warnings):
    transformer = tiny_vace()
    runtime.compile_blocks(transformer)
    assert torch.allclose(velocity_of(transformer), velocity_of(tiny_vace()), atol=1e-5) and not warnings


def test_what_cannot_be_compiled_runs_as_it_is(warnings):
    tries = []

    def broken(graph, inputs):
        tries.append(graph)
        raise RuntimeError("no compiler here")

    transformer = tiny_vace()
    runtime.compile_blocks(transformer, broken)
    for _ in range(2):
        assert torch.equal(velocity_of(transformer), velocity_of(tiny_vace()))
    assert len(tries) == 1
    assert warnings == ["The transformer cannot be compiled here, and runs as it is: no compiler here"]


def test_few_steps_are_those_that_loras_are_published_with(folders):
    few = sampling_of("wan-vace", folders["wan-vace"], WanConfig(steps=4, strength=1.0, lora="a.safetensors"), 0)
    assert few.sigmas == pytest.approx([1, 0.9375, 0.8333, 0.625, 0], abs=1e-3) and few.guidance == 1
    usual = sampling_of("wan-vace", folders["wan-vace"], WanConfig(), 0)
    # Seven tenths of thirty steps, shifted by 3, each of which is computed with both prompts.
    assert usual.sigmas[0] == pytest.approx(3 * 0.7 / (1 + 2 * 0.7)) and usual.guidance == 5 and usual.calls == 42
    half = sampling_of("wan-vace", folders["wan-vace"], WanConfig(skip=1), 0)
    assert 22 <= half.calls <= 24


def test_auto_takes_only_what_was_compared(folders, work, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(work))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stage, "folders", lambda: (work, tmp_path))
    (folders["wan-vace"] / "fetched.json").write_text("{}")
    (folders["wan-portrait"] / "generator.json").rename(work / "aside.json")
    try:
        assert stage.choose(GenerateConfig()).name == "proxy"
        stage.note_comparison(read_folder(folders["wan-vace"], "wan-vace"), tmp_path / "index.html")
        assert stage.choose(GenerateConfig()).name == "wan-vace"
    finally:
        (work / "aside.json").rename(folders["wan-portrait"] / "generator.json")
        (folders["wan-vace"] / "fetched.json").unlink()


REFUSED = [
    ("wan-portrait", ["--strength", 0.5], 2, "--strength 0.5 is for wan-vace and wan-v2v, not wan-portrait"),
    ("wan-v2v", ["--control", "depth"], 2, "--control depth is for wan-vace, not wan-v2v"),
    ("wan-portrait", ["--chain", 5], 2, "--chain 5 is for wan-vace"),
    ("wan-vace", ["--prompt", "a cat"], 4, "The prompt 'a cat' has not been embedded"),
    ("wan-vace", ["--lora", "a.safetensors:much"], 2, "'much' is no scale"),
    ("wan-vace", ["--chain", 3], 2, "expected 1 or 5 frames"),
    ("wan-vace", ["--cache", 0.1], 2, "--cache would skip"),
    ("wan-v2v", ["--cache", 0.1, "--skip", 1], 2, "save the same steps"),
    ("wan-vace", ["--attention", "flash_hub"], 2, "downloads code"),
    ("wan-vace", ["--quantize", "int8"], 2, "needs torchao"),
    ("wan-vace", ["--lora", "style.pt"], 4, "style.pt does not exist"),
    ("wan-vace", ["--backend", "wan-portrait"], 4, "holds weights of wan-vace, expected wan-portrait's"),
    ("wan-vace", ["--backend", "proxy"], 2, "the painter is proxy"),
]


@pytest.mark.parametrize(
    ("name", "options", "code", "words"), REFUSED, ids=[" ".join(map(str, row[1])) for row in REFUSED]
)
def test_what_means_nothing_is_refused_in_one_line(name, options, code, words, folders, film, tmp_path):
    err = film(tmp_path / "film.mp4", "--weights-folder", folders[name], "--steps", 1, *options, code=code)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and words in lines[0]
    assert not (tmp_path / "film.mp4").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to empty")
def test_without_a_gpu_nothing_can_be_put_outside_of_it(folders, film, tmp_path):
    err = film(tmp_path / "film.mp4", "--weights-folder", folders["wan-vace"], "--offload", "group", code=2)
    assert "torch finds none here" in err


def test_weights_that_are_missing_or_none_are_named(film, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    err = film(tmp_path / "film.mp4", "--backend", "wan-vace", code=4)
    assert "expportrait weights fetch wan-vace-1.3b" in err
    (tmp_path / "empty").mkdir()
    err = film(tmp_path / "film.mp4", "--weights-folder", tmp_path / "empty", code=4)
    assert "neither generator.json nor transformer/config.json" in err


def test_a_film_that_does_not_fit_ends_with_5_before_it_is_begun(folders, film, tmp_path, monkeypatch):
    monkeypatch.setattr("expportrait_cli.painting.wan.painters.free_bytes", lambda device: 1 << 20)
    err = film(tmp_path / "film.mp4", "--weights-folder", folders["wan-vace"], code=5)
    assert "This needs about" in err and "0.0 GB are free" in err


def test_the_cost_of_the_published_model_is_the_published_one():
    """1.3B at 512 px and 81 frames with a reference: 150 TFLOP a step, 7 to 9 GB in bfloat16."""
    shape = Shape(parameters=1_420_000_000, width=1536, hidden=8960, layers=30, controls=0)
    cost = Cost.of(shape, tokens=22528, windows=3, calls=1, pixels=512 * 512, bytes_each=2, vae_width=96)
    assert cost.flop == pytest.approx(150e12, rel=0.1)
    assert 7 < (cost.weights + cost.work) / GB < 10
    assert "for each of 3 windows" in cost.line(294e12)


def test_parameters_are_counted_from_the_headers(folders):
    shape = Shape.of(folders["wan-v2v"] / "transformer")
    own = tiny_transformer()
    assert shape.parameters == sum(parameter.numel() for parameter in own.parameters())
    assert (shape.width, shape.hidden, shape.layers, shape.controls) == (24, 48, 2, 0)
    assert Shape.of(folders["wan-vace"] / "transformer").controls == 2


def test_a_reused_step_is_another_result(folders):
    """A cache of the first block's result skips the others, and forgets between windows."""

    def film(cache: float) -> np.ndarray:
        painter = WanPainter("wan-v2v", folders["wan-v2v"], WanConfig(steps=6, strength=1.0, cache=cache), 0)
        return np.stack(list(painter.paint(still(), sketches_of(5), start=0, count=5)))

    assert not np.array_equal(film(1.0), film(0.0)) and np.array_equal(film(1.0), film(1.0))


@pytest.mark.parametrize(
    "name, options", [("wan-portrait", {}), ("wan-vace", {"control": "depth"}), ("wan-vace", {"chain": 5})]
)
def test_drawing_ahead_changes_nothing(name, options, folders, monkeypatch):
    def film() -> np.ndarray:
        painter = WanPainter(name, folders[name], WanConfig(steps=1, **options), 0)
        return np.stack(list(painter.paint(still(16, 16), sketches_of(90, height=16, width=16), start=0, count=90)))

    ahead = film()
    monkeypatch.setattr(wan_painters, "read_ahead", lambda items, depth: iter(items))
    assert ahead.shape == (90, 16, 16, 3) and np.array_equal(ahead, film())


@pytest.mark.parametrize("start", [0, 21])
def test_frames_that_several_threads_draw_come_in_order(start, monkeypatch):
    def late(first: int) -> Iterator[Sketch]:
        for index, frame in enumerate(sketches_of(70, height=16, width=16)(first), first):
            # The earlier a block, the later it is done.
            time.sleep(0.02 * (index % 16 == 0) * (5 - index // 16))
            yield frame

    found = list(wan_painters.by_several(late, start, 70, workers=3, depth=32))
    expected = list(sketches_of(70, height=16, width=16)(start))
    assert len(found) == 70 - start
    assert all(np.array_equal(a.proxy, b.proxy) for a, b in zip(found, expected, strict=True))

    def broken(first: int) -> Iterator[Sketch]:
        yield from islice(late(first), 40 - first if first < 40 else 0)
        raise OSError("the meshes are gone")

    with pytest.raises(OSError, match="the meshes are gone"):
        list(wan_painters.by_several(broken, start, 70, workers=3, depth=32))


def test_what_is_drawn_ahead_is_one_window_and_its_errors_come_through(folders):
    drawn = []

    def sketches(start: int) -> Iterator[Sketch]:
        for index, frame in enumerate(sketches_of(300, height=16, width=16)(start), start):
            drawn.append(index)
            if index == 200:
                raise OSError("the meshes are gone")
            yield frame

    painter = WanPainter("wan-v2v", folders["wan-v2v"], WanConfig(steps=1, strength=1.0), 0)
    frames = painter.paint(still(16, 16), sketches, start=0, count=300)
    assert len(list(islice(frames, 5))) == 5
    # A window of 21 latent frames, and ahead of it what the next one has more: 16.
    assert len(drawn) <= 1 + 4 * (20 + 16)
    with pytest.raises(OSError, match="the meshes are gone"):
        list(frames)


def test_attention_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="`attention=nonsense` cannot be used"):
        runtime.settle(tiny_vace(), WanConfig(attention="nonsense"), torch.device("cpu"), torch.float32)


def test_layers_that_come_and_go_paint_the_same():
    plain, spread = tiny_transformer(), tiny_transformer()
    cpu = torch.device("cpu")
    wake = runtime.place({"transformer": spread, "vae": tiny_vae()}, WanConfig(offload="group"), cpu)
    assert set(wake) == {"transformer", "vae"}
    words = (torch.randn(1, 16, 2, 4, 4), torch.tensor([500.0]), torch.randn(1, 512, 32))
    with torch.inference_mode():
        assert torch.equal(spread(*words, return_dict=False)[0], plain(*words, return_dict=False)[0])


def test_the_best_painter_that_is_there_is_chosen(folders, work, tmp_path, monkeypatch):
    """Only where there is a GPU, and only among downloads that are complete."""
    monkeypatch.setattr(stage, "folders", lambda: (tmp_path,))
    monkeypatch.setattr(stage, "best_device", lambda: torch.device("cuda"))
    for name in ("wan-vace", "wan-portrait"):
        (tmp_path / stage.FOLDERS[name]).symlink_to(folders[name])
    assert stage.choose(GenerateConfig()).name == "proxy", "they were not compared with it"
    for name in ("wan-vace", "wan-portrait"):
        stage.note_comparison(stage.read_folder(tmp_path / stage.FOLDERS[name], name), tmp_path / "index.html")
    assert stage.choose(GenerateConfig()).name == "wan-portrait"
    (tmp_path / "wan-portrait").unlink()
    assert stage.choose(GenerateConfig()).name == "proxy"
    note = folders["wan-vace"] / "fetched.json"
    note.write_text("{}")
    try:
        choice = stage.choose(GenerateConfig())
        assert choice.name == "wan-vace" and choice.identity["weights"] and choice.licences
        monkeypatch.setattr(stage, "best_device", lambda: torch.device("cpu"))
        assert stage.choose(GenerateConfig()).name == "proxy"
    finally:
        note.unlink()


def test_models_take_turns_on_the_device():
    shared = runtime.SharedDevice(torch.device("meta"))
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    wake = [shared.waker(module) for module in (first, second)]
    wake[0]()
    assert (first.weight.device.type, second.weight.device.type) == ("meta", "cpu")
    wake[0]()
    assert first.weight.device.type == "meta"
