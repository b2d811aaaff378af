"""Settings of all trainings; each default stands here and nowhere else."""

from dataclasses import dataclass
from typing import Annotated, Literal

from expportrait_cli.runtime import MANY, Between, Checked, Count, Positive, Rate, Seed, Share


@dataclass(frozen=True)
class TransferTraining(Checked):
    """Settings of the training of the transfer network."""

    steps: Positive = 12000
    """Batches to train on."""
    people: Positive = 12
    """People in a batch."""
    frames: Positive = 4
    """Frames of each person in a batch."""
    vertices: Positive = 256
    """Vertices of each frame in a batch."""
    rate: Rate = 2e-3
    """Initial learning rate of AdamW; it falls to a fiftieth along half a cosine."""
    decay: float = 1e-4
    """Weight decay of AdamW."""
    average: Share = 0.999
    """Decay of the exponential moving average of the weights, which is what is kept."""
    code_noise: float = 0.05
    """Noise added to the identity code, in its standard deviations."""
    psi_noise: float = 0.02
    """Noise added to the expression coefficients, in their standard deviations."""
    filmed: float = 4.0
    """Sampling weight of filmed people; synthetic people have 1."""
    held_out: Share = 0.1
    """Share of the people that are used for validation alone."""
    synthetic: Count = 300
    """Number of people of the head model who are made up to learn from, too."""
    synthetic_frames: Positive = 20
    """Frames of each synthetic person."""
    report_every: Positive = 500
    """Steps between two points of the curve; an interrupted run goes on from there."""
    seed: Seed = 0
    """Seed of everything random."""
    head_model: Literal["anny", "smplx", "gnm"] = "anny"
    """3D head of made-up people, where no set says which."""


@dataclass(frozen=True)
class MiniTraining(Checked):
    """Settings of the training of `mini`, the small painter."""

    steps: Positive = 6000
    """Batches to train on."""
    photos: Positive = 8
    """Frames of each clip that serve as the photo."""
    lesson_windows: Positive = 8
    """Windows of the film that each photo gives."""
    windows: Positive = 2
    """Windows per batch."""
    side: Positive = 128
    """Side of the random crop, px."""
    rate: Rate = 1e-3
    """Learning rate."""
    average: Share = 0.998
    """Decay of the exponential moving average of the weights, which is what is kept."""
    faults: Share = 0.3
    """Share of the windows whose proxy is degraded further."""
    held_out: Share = 0.2
    """Share of the people that are used for validation alone."""
    half: bool = True
    """Multiply in 16 bits."""
    report_every: Positive = 250
    """Steps between two points of the curve; an interrupted run goes on from there."""
    seed: Seed = 0
    """Seed of everything random."""


@dataclass(frozen=True)
class GeneratorTraining(Checked):
    """Settings of the training of the generator; rate, batch, epochs and size are the paper's."""

    epochs: Positive = 30
    """Passes through the clips."""
    steps: Count = 0
    """Optimiser steps, instead of epochs; 0 for as many as the epochs take."""
    frames: Annotated[int, Between(5, MANY)] = 81
    """Longest window of a clip, frames: 5, 9, 13, ..., 81."""
    size: Annotated[int, Between(32, MANY)] = 512
    """Side of the pictures, px; a multiple of 16."""
    batch: Positive = 1
    """Windows per step, on each device."""
    rate: Rate = 1e-4
    """Learning rate of AdamW."""
    trunk: Rate = 0.15
    """Multiplier on `rate` for the pretrained base weights; 1 in the paper, less forgets less of the base."""
    decay: float = 0.03
    """Weight decay of AdamW."""
    warm_up: Count = 200
    """Steps in which the learning rate rises from 0."""
    average: Share = 0.999
    """Decay of the exponential moving average of the weights, which is what is kept; 0 keeps the weights themselves."""
    lora: Count = 0
    """Rank of a LoRA that is trained instead of the base's weights; 0 trains them all, or of VACE one of rank 32."""
    held_out: Share = 0.05
    """Share of the people that are used for validation alone."""
    seed: Seed = 0
    """Seed of everything random."""
    representation: Literal["full", "static", "base"] = "full"
    """Head whose normals are shown: all of it (full), without dynamic offsets (static), or the head model's mesh alone
    (base), the baseline of the paper's Fig. 7. Films are then made with the same."""


@dataclass(frozen=True)
class GeneratorTask(Checked):
    """Loss and weights of the generator's steps (paper Eq. 10), and the intervals of its reports."""

    loss: Literal["velocity", "epsilon"] = "velocity"
    """Error that is minimised: of the velocity, or of the noise (epsilon) that follows from it, as in Eq. 10: the same
    times (1 - sigma)^2."""
    shift: float = 3.0
    """Shift of the uniform distribution of sigma towards more noise."""
    hint: bool = False
    """Show the model the proxy film beside the normals (ours, not the paper's)."""
    hint_photos: Positive = 2
    """Frames of a clip that serve as the photo that a proxy film is drawn from; without a hint there are 16."""
    drop_control: Share = 0.1
    """Share of the samples without normals; of the rest, the same share is without the proxy film."""
    drop_reference: Share = 0.1
    """Share of the samples without the photo."""
    face: Annotated[float, Between(0, 100)] = 1.0
    """Extra weight of the error in the face, where outside of it is 1; 0 in the paper."""
    features: Annotated[float, Between(0, 100)] = 1.0
    """Extra weight of the error of eyes and lips, in the same unit; 0 in the paper."""
    control: Literal["none", "normals"] = "none"
    """Control that VACE learns to follow, by a LoRA on the branch for it; none trains a generator of our own."""
    checkpointing: bool = True
    """Gradient checkpointing: recompute activations to save memory."""
    report_every: Positive = 500
    """Steps between two points of the curve; an interrupted run goes on from there."""
    sample_every: Positive = 2000
    """Steps between two sample films."""
    sample_steps: Positive = 8
    """Denoising steps of a sample film."""


PAPER_TRAINING = {"trunk": 1.0, "decay": 0.01}
PAPER_TASK = {"loss": "epsilon", "face": 0.0, "features": 0.0}
"""The paper's own recipe (3.3, Eq. 10), where it differs from the defaults."""
VACE_RANK = 32
"""As published trainings of VACE's branch."""
