"""A LoRA on VACE's branch: it learns to follow normal maps, and painting reads what training wrote."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from support.balls import ball_entry, small_branch
from support.generator_runs import FAST, TASK, training_run
from support.tiny_wan import tiny_prompts, tiny_vace
from support.wan_film import sketches_of, still, vae

from expportrait_cli.config import WanConfig
from expportrait_cli.painting.wan import runtime
from expportrait_cli.painting.wan.film import Conditions
from expportrait_cli.painting.wan.folder import save_lora
from expportrait_cli.painting.wan.vace import VaceBranch, VaceModel
from expportrait_cli.painting.wan.windows import chunks, noise_of
from expportrait_cli.train.generator.examples import Examples
from expportrait_cli.train.generator.loop import held_out_error, set_free
from expportrait_cli.train.generator.state import averaged_weights

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("balls")
    return [ball_entry(folder, name, seed, 17, told=True) for seed, name in enumerate(("one", "two"))]


def test_it_learns_what_normals_are_for(clips, tmp_path):
    """Right normals against those of other frames: at least 1.5 in loss."""
    config = replace(FAST, steps=260, frames=9, rate=4e-3, warm_up=10, average=0.97, batch=1, lora=32)
    task = replace(TASK, report_every=260, sample_every=260, control="normals", checkpointing=False)
    branch = small_branch()
    examples = Examples(clips[:1], task, frames=config.frames, seed=0)
    validation = [examples.example(number) for number in range(1000, 1016)]
    start = held_out_error(branch, validation, CPU)["held_out"]
    training_run(clips[:1], tmp_path, config, task, portrait=branch)
    learned = averaged_weights(tmp_path / "state.safetensors")
    assert learned and all(".lora_" in name and "vace_blocks" in name for name in learned)
    branch.load_state_dict(learned, strict=False)
    right = held_out_error(branch, validation, CPU)["held_out"]
    others = [replace(example, control=torch.roll(example.control, 1, 2)) for example in validation]  # pyright: ignore
    wrong = held_out_error(branch, others, CPU)["held_out"]
    assert right < 0.7 * start and wrong > 1.5 * right, (start, right, wrong)


def test_it_is_shown_what_the_painter_shows_vace():
    """The same velocity as in a film with `control=normals`, photo and prompt included."""
    transformer, prompts = tiny_vace(), tiny_prompts()
    model = VaceModel(transformer, vae(), prompts, still(), control="normals", keep=False)
    known = Conditions.joined(list(model.controls(chunks(sketches_of(9)(0), first=0, count=9), 0)))
    noise = noise_of(0, range(-1, 3), (16, 4, 4))
    state = noise.clone()
    state[:, :, :1] = torch.lerp(model.front, noise[:, :, :1], 0.6)
    with torch.inference_mode():
        expected = model.velocity(known.control)(state, 0.6)[:, :, 1:]
        found = VaceBranch(transformer, prompts.positive[0])(
            state[:, :, 1:], torch.tensor([600.0]), known.control[:, :32], model.front, noise[:, :, :1]
        )
    assert torch.allclose(found, expected, atol=1e-5)


def test_what_is_trained_is_what_is_painted_with(tmp_path):
    branch = small_branch(12)
    set_free(branch, replace(FAST, lora=4), replace(TASK, control="normals"))
    with torch.no_grad():
        for parameter in branch.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_lora(branch.transformer, path)
    assert all("vace_blocks" in name for name in load_file(path))
    painted = tiny_vace()
    runtime.settle(painted, WanConfig(lora=str(path)), CPU, torch.float32)
    given = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": tiny_prompts().positive,
        "control_hidden_states": torch.randn(1, 96, 2, 4, 4),
        "control_hidden_states_scale": torch.ones(2),
    }
    with torch.inference_mode():
        expected, found = (model(**given, return_dict=False)[0] for model in (branch.transformer.eval(), painted))
        plain = tiny_vace()(**given, return_dict=False)[0]
    assert torch.allclose(found, expected, atol=1e-4) and (found - plain).abs().max() > 1e-2
