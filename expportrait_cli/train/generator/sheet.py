"""A film of the generator in training, as one picture: what it was told, what it made of it, and the truth."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from expportrait_cli.generate.wan.portrait import TIMESTEPS
from expportrait_cli.generate.wan.sampler import sample, sigmas_of
from expportrait_cli.generate.wan.vae import Decoding, Vae, pictures
from expportrait_cli.media.image import write_png
from expportrait_cli.render.encode import encode
from expportrait_cli.train.generator.lessons import Lesson

COLUMNS = 5


@torch.no_grad()
def sampled(
    model: nn.Module, lesson: Lesson, device: torch.device, *, steps: int, shift: float
) -> Float[Tensor, "1 16 T h w"]:
    """Latents that the model makes from the lesson's noise, normals and photo."""
    told = lesson.told(device)

    def velocity(state: Tensor, sigma: float) -> Tensor:
        at = torch.full_like(told["timestep"], TIMESTEPS * sigma)  # pyright: ignore[reportArgumentType]
        return model(state, **{**told, "timestep": at})

    return sample(velocity, lesson.noise.to(device), sigmas_of(steps, shift=shift))


@torch.inference_mode()
def write_films(path: Path, lesson: Lesson, made: Float[Tensor, "1 16 T h w"], vae: Vae) -> Path:
    """Write a PNG of rows: normals, the proxy film if it was told, film and truth; the photo in front of them."""
    films = [_decoded(vae, film) for film in (lesson.hint, made, lesson.film) if film is not None]
    shown = lesson.normals[0, :, 4 * lesson.lead :].permute(1, 2, 3, 0).numpy()
    columns = np.unique(np.linspace(0, len(films[0]) - 1, COLUMNS).round().astype(int))
    photo = _decoded(vae, lesson.photo)[0]
    still = encode(lesson.still[0].permute(1, 2, 0).numpy())
    rows = [[still, *(encode(shown[k]) for k in columns)]]
    rows += [[photo, *(film[k] for k in columns)] for film in films]
    return write_png(path, np.concatenate([np.concatenate(row, 1) for row in rows]))


def _decoded(vae: Vae, latents: Float[Tensor, "1 16 T h w"]) -> list[UInt8[np.ndarray, "H W 3"]]:
    decoding = Decoding(vae)
    frames = [decoding.push(latent) for latent in latents.split(1, 2)]
    height, width = (8 * side for side in latents.shape[3:])
    return [picture for chunk in frames for picture in pictures(chunk, height, width)]
