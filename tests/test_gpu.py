"""Every part that a run may have on a GPU, on one: `pytest -m gpu` on a machine with CUDA proves all of them.

Each is compared with what the CPU says.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.balls import ball_entry, small_portrait
from support.generator_runs import FAST, TASK, training_run
from support.known_head import KnownHead, NumberedOracle, folds, numbered_film
from support.mini_examples import TINY, example
from support.performers import make_state, quiet
from support.transfer_faces import driver_of, photo_of, tiny, trained
from support.wan_film import portrait_folder, sketches_of, still, vace_folder

from expportrait_cli.artifacts import npz
from expportrait_cli.config import TransferConfig, WanConfig
from expportrait_cli.fitting.joint import OF_FRAMES, SHARED, descend
from expportrait_cli.fitting.rendered import Problem, Targets
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import HeadModel, dense, load_head
from expportrait_cli.painting.wan.painters import WanPainter
from expportrait_cli.pipeline.doctor import examine
from expportrait_cli.render.buffers import render_buffers
from expportrait_cli.render.rasterizer import choose
from expportrait_cli.retargeting import Beyond, transfer
from expportrait_cli.retargeting.face import Face
from expportrait_cli.runtime import DEVICE, best_device
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.generator.examples import Examples
from expportrait_cli.train.generator.loop import held_out_error
from expportrait_cli.train.generator.state import averaged_weights
from expportrait_cli.train.mini.loop import train as train_mini
from expportrait_cli.train.mini.run import judge
from expportrait_cli.train.transfer.clips import FaceClip
from expportrait_cli.train.transfer.loop import train
from expportrait_cli.train.transfer.synthetic import random_expressions

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def head() -> HeadModel:
    return load_head()


def on(monkeypatch, name: str) -> torch.device:
    monkeypatch.setenv(DEVICE, name)
    return best_device()


def test_the_choice_is_the_runs(monkeypatch):
    assert on(monkeypatch, "auto").type == "cuda" and on(monkeypatch, "cuda:0").index == 0
    assert on(monkeypatch, "cpu").type == "cpu"


def test_doctor_runs_every_part(monkeypatch):
    on(monkeypatch, "cuda")
    found = {check.name: check for check in examine()}
    for name in ("rasteriser", "transfer network", "head", "video model"):
        assert found[name].ok and "ms on cuda" in found[name].found, found[name].found
    assert choose(torch.device("cuda"))[0] in found["rasteriser"].found


def drawn(head: HeadModel) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normals and mask of a head in main memory, and the gradient that comes back to its vertices."""
    verts = dense(head, head.template) * torch.tensor([1.0, -1.0, -1.0]) + torch.tensor([0.0, 0.0, 1.2])
    verts = verts.requires_grad_()
    found = render_buffers(verts[None], head.dense_faces, Camera(500.0, 64.0, 64.0, 128, 128))
    weight = torch.linspace(0, 1, 128)[:, None]
    (gradient,) = torch.autograd.grad((found.normals.sum(-1) * weight).sum() + (found.mask * weight).sum(), verts)
    return found.normals.detach(), found.mask.detach(), gradient


def test_a_head_in_main_memory_is_drawn_there_and_back(head, monkeypatch):
    """Forward and backward, by nvdiffrast where it is installed: from `fit`, painters, sheets and caches alike."""
    on(monkeypatch, "cpu")
    normals, mask, gradient = drawn(head)
    on(monkeypatch, "cuda")
    ours = drawn(head)
    assert all(tensor.device.type == "cpu" for tensor in ours)
    # Rules at shared edges differ between rasterisers.
    assert (ours[0] - normals).abs().amax(-1).gt(0.02).float().mean() < 0.01
    assert (ours[1] - mask).abs().mean() < 0.002
    assert torch.nn.functional.cosine_similarity(ours[2].ravel(), gradient.ravel(), dim=0) > 0.98


def test_the_transfer_network_says_the_same(head, monkeypatch):
    face = Face.of(head)
    states = [make_state(head), make_state(head, mouthSmileLeft=0.8, jaw=(0.2, 0, 0))]
    driver, photo, found = driver_of(head, states, seed=2), photo_of(head, 1), []
    for name in ("cpu", "cuda"):
        on(monkeypatch, name)
        beyond = Beyond(trained=trained(tiny(face)))
        performance = transfer(photo, driver, head, TransferConfig(neutral_frame="0"), beyond)
        found.append(performance.offsets(slice(0, 2), performance.curves))
    assert np.abs(found[0]).max() > 1e-5
    assert np.abs(found[0] - found[1]).max() < 1e-6


def weights_of(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.detach().ravel() for value in network.parameters()])


def test_the_transfer_network_is_trained(head, monkeypatch, tmp_path):
    face = Face.of(head)
    generator = torch.Generator().manual_seed(0)
    people = []
    for seed in range(4):
        psi, jaw = random_expressions(head, 4, generator)
        offset = 1e-3 * torch.randn(4, len(face.vertices), 3, generator=generator)
        neutral = dense(head, head.template)[face.vertices].numpy()
        people.append(
            FaceClip(f"synthetic-{seed}", f"synthetic-{seed}", neutral, psi.numpy(), jaw.numpy(),
                      offset.half().numpy(), np.ones(4, np.float32))
        )  # fmt: skip
    config = TransferTraining(steps=6, report_every=3, people=2, frames=2, vertices=32)
    begin, moved = weights_of(tiny(face)), {}
    for name in ("cpu", "cuda"):
        on(monkeypatch, name)
        folder = tmp_path / name
        folder.mkdir()
        network = tiny(face).requires_grad_()
        done = train(
            network, people, people, config, state=folder / "s.safetensors", progress=quiet, log=lambda *_: None
        )
        moved[name] = weights_of(done) - begin
        assert moved[name].device.type == "cpu" and moved[name].any()
    # AdamW goes by signs at first: those of gradients near zero may differ.
    assert torch.nn.functional.cosine_similarity(moved["cpu"], moved["cuda"], dim=0) > 0.95


def test_the_joint_optimisation_runs_and_falls(head, monkeypatch, tmp_path):
    film: Path = numbered_film(tmp_path / "a.mkv", 2)
    normals = vertex_normals(dense(head, head.template), head.dense_faces).numpy()
    heights = np.stack([folds(head, seed, wave_m=0.05, rms_m=0.0005) for seed in range(2)])
    known = KnownHead.make(head, heights, normals, seed=1, source=film)
    curves = {}
    for name in ("cpu", "cuda"):
        device = on(monkeypatch, name)
        targets = Targets.of(known.clip, np.arange(2), NumberedOracle(known), 128)
        problem = Problem(known.clip, np.arange(2), known.patch, 0 * known.offset, share=0.0)
        assert problem.moving["static"].device.type == device.type
        curves[name] = descend(problem, [targets], quiet, steps=8, moves=(*SHARED, *OF_FRAMES))
    assert min(curves["cuda"]) < 0.9 * curves["cuda"][0]
    assert curves["cuda"][0] == pytest.approx(curves["cpu"][0], rel=0.02)


def film_by(folder: Path, *, seed: int = 0, **options) -> np.ndarray:
    """A film of the painter that a folder's name says."""
    name = "wan-portrait" if (folder / "generator.json").is_file() else "wan-vace"
    # All of it from noise alone: what is kept of the proxy is the same in any case.
    whole = {"keep": False, "strength": 1.0} if name == "wan-vace" else {}
    painter = WanPainter(name, folder, WanConfig(**{"steps": 2, "dtype": "fp32", **whole, **options}), seed)
    return np.stack(list(painter.paint(still(), sketches_of(5), start=0, count=5))).astype(np.float32)


WAYS = [
    {},
    {"offload": "model"},
    {"offload": "group"},
    {"compile": True},
    {"attention": "native"},
    {"dtype": "bf16", "vae": "bf16"},
    {"dtype": "fp16"},
    {"quantize": "fp8"},
]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("make", [vace_folder, portrait_folder])
def test_wan_paints_the_same_film(make, options, monkeypatch, tmp_path, caplog):
    """However its weights are kept, it is nearer to the processor's film than that of another seed is."""
    folder = make(tmp_path)
    on(monkeypatch, "cpu")
    expected, other = film_by(folder), film_by(folder, seed=1)
    on(monkeypatch, "cuda")
    found = film_by(folder, **options)
    away, far = np.abs(found - expected).mean(), np.abs(other - expected).mean()
    # Convolutions take TF32; without one of the smaller types, that is all.
    assert far > 1 and away < (0.5 if {"dtype", "quantize"} & set(options) else 0.05) * far
    assert "cannot be compiled" not in caplog.text


def test_the_generator_learns(monkeypatch, tmp_path):
    """Steps by accelerate lower the error on noise that it never saw."""
    device, clip = on(monkeypatch, "cuda"), ball_entry(tmp_path, "one", 0, 9)
    config = replace(FAST, steps=120, warm_up=10, average=0.97, batch=1)
    task = replace(TASK, report_every=120, sample_every=120, drop_control=0.0, drop_reference=0.0)
    examples, portrait = Examples([clip], task, frames=config.frames, seed=0), small_portrait(48)
    validation = [examples.example(number) for number in range(1000, 1008)]
    start = held_out_error(portrait, validation, torch.device("cpu"))["held_out"]
    training_run([clip], tmp_path / "run", config, task, portrait=portrait, cpu=False)
    portrait.to("cpu").load_state_dict(averaged_weights(tmp_path / "run" / "state.safetensors"), strict=False)
    right = held_out_error(portrait, validation, torch.device("cpu"))["held_out"]
    assert device.type == "cuda" and right < 0.8 * start


def test_the_small_painter_learns_as_on_the_cpu(monkeypatch, tmp_path):
    paths = [npz.save(example(f"person{k}", k), tmp_path / f"{k}.npz", {}) for k in range(2)]
    config, losses = replace(TINY, steps=4, report_every=4, half=False), {}
    for name in ("cpu", "cuda"):
        on(monkeypatch, name)
        train_mini(
            paths,
            config,
            state=tmp_path / f"{name}.safetensors",
            progress=quiet,
            log=lambda _, row, name=name: losses.update({name: row["loss"]}),
            judge=lambda average: judge(average, paths)[0],
        )
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.02)
