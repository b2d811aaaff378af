"""Settings of all trainings. Each default is defined here only."""

from dataclasses import dataclass
from typing import Annotated, Literal

from expportrait_cli.runtime import MANY, Between, Checked, Count, Positive, Rate, Seed, Share


@dataclass(frozen=True)
class TransferTraining(Checked):
    """Settings of the training of the transfer network."""

    steps: Positive = 12000
    """Optimiser steps, of one batch each."""
    people: Positive = 12
    """People in a batch."""
    frames: Positive = 4
    """Frames per person in a batch."""
    vertices: Positive = 256
    """Vertices per frame in a batch."""
    rate: Rate = 2e-3
    """Peak learning rate of AdamW; after a warm-up it falls to a fiftieth along half a cosine."""
    decay: float = 1e-4
    """Weight decay of AdamW."""
    average: Share = 0.999
    """Decay per step of the exponential moving average of the weights; the averaged weights are saved."""
    code_noise: float = 0.05
    """Standard deviation of the noise added to the (whitened) identity code."""
    psi_noise: float = 0.02
    """Standard deviation of the noise added to the expression coefficients, as a share of their root mean square."""
    filmed: float = 4.0
    """Sampling weight of filmed people; synthetic people have 1."""
    held_out: Share = 0.1
    """Share of the people who are used for validation only."""
    synthetic: Count = 300
    """Number of synthetic people (random identities of the head model) added to the training data."""
    synthetic_frames: Positive = 20
    """Frames of each synthetic person."""
    report_every: Positive = 500
    """Steps between two reports; the state is saved with each, and an interrupted run resumes there."""
    seed: Seed = 0
    """Seed of all random numbers."""
    head_model: Literal["anny", "smplx", "gnm"] = "anny"
    """Head model of the synthetic people if no dataset is given; a dataset has its own."""


@dataclass(frozen=True)
class MiniTraining(Checked):
    """Settings of the training of `mini`, the small painting network."""

    steps: Positive = 6000
    """Optimiser steps, of one batch each."""
    photos: Positive = 8
    """Frames of each clip that are used as the photo, with a proxy film for each."""
    lesson_windows: Positive = 8
    """Windows of four frames that are taken from each of these proxy films."""
    windows: Positive = 2
    """Windows per batch."""
    side: Positive = 128
    """Side of the random crops, px."""
    rate: Rate = 1e-3
    """Peak learning rate of AdamW; after a warm-up it falls to a twentieth along half a cosine."""
    average: Share = 0.998
    """Decay per step of the exponential moving average of the weights; the averaged weights are saved."""
    faults: Share = 0.3
    """Share of the windows whose proxy is shifted or blurred, as augmentation."""
    held_out: Share = 0.2
    """Share of the people who are used for validation only."""
    half: bool = True
    """Train in mixed precision (bfloat16) on GPUs that compute in it; elsewhere in float32."""
    report_every: Positive = 250
    """Steps between two reports; the state is saved with each, and an interrupted run resumes there."""
    seed: Seed = 0
    """Seed of all random numbers."""


@dataclass(frozen=True)
class GeneratorTraining(Checked):
    """Settings of the training of the generator; rate, batch, epochs and size are the paper's."""

    epochs: Positive = 30
    """Passes over the training clips."""
    steps: Count = 0
    """Optimiser steps, which replace `epochs`; 0 for as many as the epochs take."""
    frames: Annotated[int, Between(5, MANY)] = 81
    """Length of the training windows, frames: 5, 9, 13, ..., 81; shorter in short clips."""
    size: Annotated[int, Between(32, MANY)] = 512
    """Side of the pictures, px; a multiple of 16."""
    batch: Positive = 1
    """Windows per step and device."""
    rate: Rate = 1e-4
    """Learning rate of AdamW after the warm-up."""
    trunk: Rate = 0.15
    """Multiplier on `rate` for the pretrained base weights; 1 in the paper, a smaller one changes the base less."""
    decay: float = 0.03
    """Weight decay of AdamW."""
    warm_up: Count = 200
    """Steps over which the learning rate rises from 0."""
    average: Share = 0.999
    """Decay per step of the exponential moving average of the weights, which is saved; 0 saves the last weights."""
    lora: Count = 0
    """Rank of a LoRA that is trained instead of the base's weights; 0 trains all (VACE: a LoRA of rank 32)."""
    held_out: Share = 0.05
    """Share of the people who are used for validation only."""
    seed: Seed = 0
    """Seed of all random numbers."""
    representation: Literal["full", "static", "base"] = "full"
    """Part of the fitted head that normal maps are drawn of: all of it (full), without dynamic offsets (static), or the
    head model's mesh alone (base, as in the paper's Fig. 7). Make films with the same `representation`."""


@dataclass(frozen=True)
class GeneratorTask(Checked):
    """Loss, noise levels and conditions of the generator's training (paper Eq. 10), and intervals of its reports."""

    loss: Literal["velocity", "epsilon"] = "velocity"
    """Squared error that is minimised: of the predicted velocity, or of the noise (epsilon) as in Eq. 10, which is the
    velocity's error times (1 - sigma)^2."""
    shift: float = 3.0
    """Shift of the noise levels sigma towards more noise: shift u / (1 + (shift - 1) u), with u uniform in 0..1."""
    hint: bool = False
    """Condition the generator on the proxy film too, beside the normals (not in the paper)."""
    hint_photos: Positive = 2
    """With `hint`: frames of each clip that are used as the photo, with a proxy film for each. Without it, 16 are."""
    drop_control: Share = 0.1
    """Share of the training examples in which normals and proxy film are dropped, for classifier-free guidance."""
    drop_reference: Share = 0.1
    """Share of the training examples in which the photo is dropped, for classifier-free guidance."""
    face: Annotated[float, Between(0, 100)] = 1.0
    """Loss weight that is added in the face, to the 1 that every pixel has; 0 in the paper."""
    features: Annotated[float, Between(0, 100)] = 1.0
    """Loss weight that is added at eyes and lips, to the 1 that every pixel has; 0 in the paper."""
    control: Literal["none", "normals"] = "none"
    """Film that VACE learns to follow, by a LoRA on its control branch: normals; none trains the paper's generator."""
    checkpointing: bool = True
    """Gradient checkpointing: recompute activations to save memory."""
    report_every: Positive = 500
    """Steps between two reports; the state is saved with each, and an interrupted run resumes there."""
    sample_every: Positive = 2000
    """Steps between two sample films."""
    sample_steps: Positive = 8
    """Denoising steps of a sample film."""


PAPER_TRAINING = {"trunk": 1.0, "decay": 0.01}
"""Settings of the paper's training (3.3) that differ from the defaults of `GeneratorTraining`."""
PAPER_TASK = {"loss": "epsilon", "face": 0.0, "features": 0.0}
"""Settings of the paper's loss (Eq. 10) that differ from the defaults of `GeneratorTask`."""
VACE_RANK = 32
"""Rank of the LoRA on VACE's control branch, as in published trainings."""
