"""`train generator`: from prepared datasets to a folder of weights, with sheets of sample films on the way."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from expportrait_cli.artifacts.files import atomic_folder, sha256
from expportrait_cli.dataset.dataset import Dataset
from expportrait_cli.errors import InputError, OutOfMemoryError, UsageError
from expportrait_cli.media.writer import write_png
from expportrait_cli.painting.wan.base import BaseModel, check_hint, find_base, fresh_portrait, prompt_embeds
from expportrait_cli.painting.wan.encoders import TEMPORAL, ImageEncoder, latent_frames, network_config
from expportrait_cli.painting.wan.film import sample, sigmas_of
from expportrait_cli.painting.wan.folder import check_place, load_vace, load_vae, save_folder, save_lora
from expportrait_cli.painting.wan.manifest import LORA, LORA_FILE, TRANSFORMER, FrameRule, Manifest, Sampler
from expportrait_cli.painting.wan.portrait import TIMESTEPS, WanPortrait
from expportrait_cli.painting.wan.runtime import GB, Shape, free_bytes
from expportrait_cli.painting.wan.vace import VaceBranch
from expportrait_cli.painting.wan.vae import Decoding, Encoding, Vae, pictures
from expportrait_cli.pipeline.heads import head_by_name, kind_of_head
from expportrait_cli.render.buffers import CONVENTION, encode
from expportrait_cli.runtime import Stage, best_device, has_bf16, use_threads
from expportrait_cli.train.config import VACE_RANK, GeneratorTask, GeneratorTraining
from expportrait_cli.train.curves import History
from expportrait_cli.train.generator.cache import Entry, Maker, build_cache, entry_of
from expportrait_cli.train.generator.examples import Example, Examples
from expportrait_cli.train.generator.loop import Training, set_free, train
from expportrait_cli.train.generator.state import averaged_weights
from expportrait_cli.train.transfer.clips import held_out
from expportrait_cli.train.transfer.run import begun
from expportrait_cli.version import __version__

log = logging.getLogger(__name__)

COLUMNS = 5
"""Frames in each row of a sheet."""


@torch.no_grad()
def sampled(
    model: nn.Module, example: Example, device: torch.device, *, steps: int, shift: float
) -> Float[Tensor, "1 16 T h w"]:
    """Latents that the model generates from the example's noise and conditions."""
    conditions = example.conditions(device)

    def velocity(state: Tensor, sigma: float) -> Tensor:
        at = torch.full_like(conditions["timestep"], TIMESTEPS * sigma)  # pyright: ignore[reportArgumentType]
        return model(state, **{**conditions, "timestep": at})

    return sample(velocity, example.noise.to(device), sigmas_of(steps, shift=shift))


@torch.inference_mode()
def write_films(path: Path, example: Example, made: Float[Tensor, "1 16 T h w"], vae: Vae) -> Path:
    """Write a PNG with rows for normals, proxy film (if any), sampled film and truth; the photo is the first column."""
    films = [_decoded(vae, film) for film in (example.hint, made, example.film) if film is not None]
    shown = example.normals[0, :, 4 * example.lead :].permute(1, 2, 3, 0).numpy()
    columns = np.unique(np.linspace(0, len(films[0]) - 1, COLUMNS).round().astype(int))
    photo = _decoded(vae, example.photo)[0]
    still = encode(example.still[0].permute(1, 2, 0).numpy())
    rows = [[still, *(encode(shown[k]) for k in columns)]]
    rows += [[photo, *(film[k] for k in columns)] for film in films]
    return write_png(path, np.concatenate([np.concatenate(row, 1) for row in rows]))


def _decoded(vae: Vae, latents: Float[Tensor, "1 16 T h w"]) -> list[UInt8[np.ndarray, "H W 3"]]:
    decoding = Decoding(vae)
    frames = [decoding.push(latent) for latent in latents.split(1, 2)]
    height, width = (8 * side for side in latents.shape[3:])
    return [picture for chunk in frames for picture in pictures(chunk, height, width)]


VALIDATION = 8
"""Held-out examples over which the validation error is averaged."""


@dataclass(frozen=True)
class Run:
    """Inputs, settings and working files of one run."""

    datasets: Sequence[Path]
    out: Path
    base: BaseModel
    config: GeneratorTraining
    task: GeneratorTask
    stage: Stage

    @property
    def work(self) -> Path:
        """Folder of the cache, the state, the reports and the sample films."""
        return self.out.with_name(f"{self.out.name}.work")

    @property
    def state(self) -> Path:
        """File of the training state."""
        return self.work / "state.safetensors"

    @property
    def halved(self) -> bool:
        """True if the frozen weights are kept in bfloat16: with a LoRA, on a GPU."""
        return bool(self.config.lora) and best_device().type == "cuda"

    def portrait(self) -> WanPortrait | VaceBranch:
        """Build the generator before its first step; the same seed gives the same weights."""
        torch.manual_seed(self.config.seed)
        dtype = torch.bfloat16 if self.halved else torch.float32
        if self.task.control == "normals":
            transformer = load_vace(self.base.folder / TRANSFORMER, dtype)
            branch = VaceBranch(transformer, prompt_embeds(self.base.folder))
            set_free(branch, self.config, self.task)
            return branch
        portrait = fresh_portrait(self.base, has_hint=self.task.hint, dtype=dtype)
        if portrait.base == "i2v" and not self.base.is_generator:
            portrait.blank.copy_(_blank(Vae(load_vae(self.base.vae))))
        set_free(portrait, self.config, self.task)
        return portrait


def train_generator(
    datasets: Sequence[Path], out: Path, base: str, config: GeneratorTraining, task: GeneratorTask, stage: Stage
) -> dict[str, Any]:
    """Train, or resume the last run; write the generator, reports and sample films. Returns a summary of the run.

    Under `accelerate launch` on several devices every process calls it; all but the main one return an empty dict.

    Raises:
        InputError: no prepared set, sets of several head models, or the state of another run.
        UsageError: the folder has a run with other settings; or the base was trained with the proxy film, and `task` is
            without, or the reverse.
        WeightsError: the base is missing, or is no Wan model.
    """
    latent_frames(config.frames)
    check_place(out)
    use_threads()
    if task.control == "normals":
        config = replace(config, lora=config.lora or VACE_RANK)
    run = Run(datasets, out, find_base(base), config, task, stage)
    _check(run)
    accelerator = Accelerator(mixed_precision=_precision(), cpu=best_device().type == "cpu")
    run.work.mkdir(parents=True, exist_ok=True)
    settings = {**asdict(config), **asdict(task), "base": str(run.base.folder.resolve())}
    noted = {"settings": settings, "datasets": [str(d.resolve()) for d in datasets]}
    with begun(run.work / "run.json", noted) if accelerator.is_main_process else nullcontext():
        learners, judges = _entries(run, accelerator)
        portrait = run.portrait()
        training = _training(run, learners, judges, accelerator)
    train(portrait, training, config, task, accelerator)
    summary = {
        "steps": training.steps,
        "clips": len(learners),
        "people": len({entry.person for entry in learners}),
        "held_out": sorted({entry.person for entry in judges}),
    }
    if accelerator.is_main_process:
        _export(run, summary)
    accelerator.wait_for_everyone()
    return summary if accelerator.is_main_process else {}


def _check(run: Run) -> None:
    """Refuse a base that does not fit the task, and too little memory; log the memory that the training takes."""
    kind = network_config(run.base.folder / TRANSFORMER).get("_class_name")
    is_vace, wants_vace = kind == "WanVACETransformer3DModel", run.task.control == "normals"
    if is_vace != wants_vace:
        found = "VACE: give `control=normals`" if is_vace else "no VACE: leave out `control`"
        raise UsageError(f"{run.base.folder} is {found}, or name another `base`.")
    if wants_vace and run.task.hint:
        raise UsageError("`hint` is for the paper's generator, not for VACE. Leave it out.")
    check_hint(run.base, run.task.hint)
    shape, config = Shape.of(run.base.folder / TRANSFORMER), run.config
    # Weights, gradients, two moments and the average, in float32; with a LoRA only the weights count.
    fixed = shape.parameters * ((2 if run.halved else 4) if config.lora else 20)
    tokens = (latent_frames(config.frames) + 1) * (config.size // 16) ** 2
    layers = shape.layers + shape.controls
    # With checkpointing only the inputs of the blocks are kept, and the activations of one block at a time.
    kept = 2 * tokens * shape.width * layers * (1 if run.task.checkpointing else 12)
    work = kept + tokens * (shape.width * 40 + shape.hidden * 8)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log.info(
        "Training takes about %.1f GB for weights and optimiser, and %.1f GB for activations; %.1f GB are free.",
        fixed / GB,
        work / GB,
        free_bytes(device) / GB,
    )
    if fixed + work > free_bytes(device) and "RANK" not in os.environ:
        raise OutOfMemoryError(
            f"This training takes about {(fixed + work) / GB:.1f} GB, where {free_bytes(device) / GB:.1f} GB are free. "
            "Train a `lora`, take smaller `size` or `frames`, or launch it on several devices."
        )


def _precision() -> str | None:
    """Mixed precision for accelerate: None if the launcher sets it, else bfloat16 where the GPU has it."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return None
    return "bf16" if has_bf16(best_device()) else "no"


def _entries(run: Run, accelerator: Accelerator) -> tuple[list[Entry], list[Entry]]:
    """Cached clips to train on, and held-out ones (none if all would be); each process makes its share of the cache."""
    opened = [Dataset.open(folder) for folder in run.datasets]
    models = sorted({dataset.head_model for dataset in opened})
    if len(models) > 1:
        raise InputError(f"The sets mix the head models {' and '.join(models)}. Prepare them with one of them.")
    head = head_by_name(kind_of_head(models[0]))  # pyright: ignore[reportArgumentType]
    # Clips of the same name have the same content: one that is in two sets is used once.
    clips = list({clip.name: clip for dataset in opened for clip in dataset.clips}.values())
    folder = run.work / "cache"
    encoder = run.base.image_encoder
    maker = Maker(
        head,
        _vae(run, accelerator),
        "".join(sha256(path) for path in sorted(run.base.vae.glob("*.safetensors"))),
        run.config.size,
        hints=run.task.hint_photos * run.task.hint,
        image_encoder=None if encoder is None else ImageEncoder(encoder, accelerator.device),
        control=run.task.control == "normals",
        representation=run.config.representation,
    )
    share = clips[accelerator.process_index :: accelerator.num_processes]
    build_cache(share, folder, maker, progress=run.stage("encode the clips"))
    accelerator.wait_for_everyone()
    learners, judges = held_out([entry_of(clip, folder) for clip in clips], run.config.held_out)
    return (learners, judges) if learners else (judges, [])


def _vae(run: Run, accelerator: Accelerator) -> Vae:
    return Vae(load_vae(run.base.vae).to(accelerator.device))  # pyright: ignore[reportArgumentType]


def _training(run: Run, learners: list[Entry], judges: list[Entry], accelerator: Accelerator) -> Training:
    config, task = run.config, run.task
    examples = Examples(learners, task, frames=config.frames, seed=config.seed)
    validation = Examples(judges, task, frames=config.frames, seed=config.seed).validation(VALIDATION) if judges else []
    shown = replace((validation or examples.validation(1))[0], sigma=1.0)
    together = config.batch * accelerator.num_processes
    steps = config.steps or max(1, config.epochs * len(examples) // together)
    history = History(run.work / "history.jsonl", tensorboard=run.work / "tensorboard")

    def show(step: int, model: nn.Module) -> None:
        made = sampled(model, shown, accelerator.device, steps=task.sample_steps, shift=task.shift)
        if accelerator.is_main_process:
            # The VAE is loaded only now, to leave the memory to the generator.
            write_films(run.work / "films" / f"step-{step:07d}.png", shown, made, _vae(run, accelerator))

    def log(step: int, figures: dict[str, float]) -> None:
        if accelerator.is_main_process:
            history.add(step, figures)

    return Training(examples, validation, steps, run.state, run.stage("train"), log, show)


def _export(run: Run, summary: dict[str, Any]) -> None:
    """Write the averaged weights as a generator."""
    portrait = run.portrait()
    weights = averaged_weights(run.state)
    missing, unknown = portrait.load_state_dict(weights, strict=False)
    assert not unknown and not set(missing) & weights.keys()
    config, task = run.config, run.task
    train = {
        "tool": f"expportrait {__version__}",
        "settings": {**asdict(config), **asdict(task)},
        "datasets": [sha256(folder / "dataset.json") for folder in run.datasets],
        **summary,
        "figures": History.read(run.work / "history.jsonl").rows[-1:],
    }
    if isinstance(portrait, VaceBranch):
        with atomic_folder(run.out) as partial:
            save_lora(portrait.transformer, partial / LORA)
            note = {"base": dict(run.base.origin), "control": task.control, "normals": CONVENTION, "train": train}
            (partial / LORA_FILE).write_text(json.dumps(note, indent=1, ensure_ascii=False) + "\n", "utf-8")
        return
    manifest = Manifest(
        portrait.base,
        portrait.has_hint,
        run.base.origin,
        resolution=config.size,
        frame_rule=_frame_rule(config.frames),
        sampler=Sampler(shift=task.shift),
        train=train,
    )
    save_folder(portrait, run.out, manifest, vae=run.base.vae)


def _frame_rule(frames: int) -> FrameRule:
    """Windows of the length of the training windows, with an overlap of five latent frames, or half a window."""
    overlap = max(1, min(5, latent_frames(frames) // 2))
    return FrameRule(window=frames, overlap=TEMPORAL * overlap)


@torch.inference_mode()
def _blank(vae: Vae) -> torch.Tensor:
    """Mean latent (16 channels) of a grey film, late enough that its first frame has no influence."""
    encoding, grey = Encoding(vae), torch.zeros(1, 3, 1, 64, 64)
    latent = encoding.push(grey)
    for _ in range(4):
        latent = encoding.push(grey.expand(-1, -1, 4, -1, -1))
    return latent.mean((0, 2, 3, 4))
