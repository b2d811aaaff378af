"""A clip for training the generator: a ball that moves, the normals that say where, and a toy Wan to learn it."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from expportrait_cli.dataset.dataset import clip_of
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.vace import VaceBranch
from expportrait_cli.painting.wan.vae import Encoding, Vae, pixels
from expportrait_cli.render.buffers import encode
from expportrait_cli.train.generator.cache import Entry, entry_of
from support.tiny_wan import prompt_embeds, tiny_transformer, tiny_vace, tiny_vae


def ball(centre: tuple[float, float], colour: tuple[float, float, float], side: int) -> tuple[np.ndarray, np.ndarray]:
    """Normals of a ball, and the picture of it: [S, S, 3] each."""
    y, x = 32 * (np.mgrid[:side, :side] + 0.5) / side
    u, v = (x - centre[0]) / 9, (centre[1] - y) / 9
    depth = 1 - u**2 - v**2
    normals = np.stack([u, v, np.sqrt(np.maximum(depth, 0))], -1) * (depth > 0)[..., None]
    light = np.maximum(normals @ [0.4, 0.5, 0.77], 0)[..., None]
    picture = np.where(depth[..., None] > 0, 40 + 215 * light * np.array(colour), 20.0)
    return normals.astype(np.float32), picture.round().astype(np.uint8)


@torch.inference_mode()
def ball_entry(folder: Path, name: str, seed: int, frames: int, *, side: int = 16, told: bool = False) -> Entry:
    """A clip of a ball on its way, as the cache holds clips; `told` for VACE."""
    random = np.random.default_rng(seed)
    phase, colour = random.uniform(0, 2 * np.pi, 2), random.uniform(0.4, 1, 3)
    time = np.arange(frames) / 4
    centres = np.stack([16 + 9 * np.sin(time + phase[0]), 16 + 9 * np.sin(1.3 * time + phase[1])], 1)
    shown = [ball((x, y), tuple(colour), side) for x, y in centres.tolist()]
    entry = entry_of(clip_of(folder, name, name), folder)
    folder.mkdir(parents=True, exist_ok=True)
    with VideoWriter(entry.normals, rate=Fraction(25), lossless=True) as writer:
        for normals, _ in shown:
            writer.write(encode(normals))
    vae = Vae(tiny_vae())
    encoding, seen = Encoding(vae), [picture for _, picture in shown]
    film = [encoding.push(pixels(seen[:1]))]
    film += [encoding.push(pixels(seen[k : k + 4])) for k in range(1, frames, 4)]
    maps = [encode(normals) for normals, _ in shown]
    encoding = Encoding(vae)
    control = [encoding.push(pixels(maps[:1]))]
    control += [encoding.push(pixels(maps[k : k + 4])) for k in range(1, frames, 4)]
    rows = list(range(0, frames, 8))
    photos = [vae.encode(pixels([seen[row]])) for row in rows]
    # The toy autoencoder leaves little of a picture: as large as the latents of a real one.
    film, photos, control = (standard(torch.cat(latents, 2)[0]) for latents in (film, photos, control))
    tensors = {"film": film, "photos": photos.transpose(0, 1).contiguous(), "rows": torch.tensor(rows)}
    tensors |= {"hints": film.new_zeros(0, *film.shape), "tokens": film.new_zeros(0, 0, 0)}
    if told:
        tensors["control"] = torch.cat([torch.zeros_like(control), control])
    save_file(tensors, entry.latents, {"key": "made by a test"})
    return entry


def standard(latents: torch.Tensor) -> torch.Tensor:
    mean, deviation = latents.mean((1, 2, 3), keepdim=True), latents.std((1, 2, 3), keepdim=True)
    return ((latents - mean) / deviation).half()


def small_portrait(head_dim: int = 48) -> WanPortrait:
    """A toy generator that is able to learn."""
    torch.manual_seed(0)
    return WanPortrait.from_base(tiny_transformer(head_dim=head_dim), prompt_embeds())


def small_branch(head_dim: int = 48) -> VaceBranch:
    """A toy VACE that is able to learn."""
    torch.manual_seed(0)
    return VaceBranch(tiny_vace(head_dim=head_dim), prompt_embeds())
