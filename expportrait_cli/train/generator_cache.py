"""Prepared clips as the generator learns from them: latents of film and photos, and normal maps; made once a clip."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.atomic import atomic_path
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.errors import InputError
from expportrait_cli.generate.wan.encoders import TEMPORAL
from expportrait_cli.generate.wan.vae import Encoding, Vae, pixels
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import HeadModel
from expportrait_cli.media.files import content_hash
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline.cache import made_by
from expportrait_cli.render.buffers import render_buffers
from expportrait_cli.render.encode import CONVENTION, encode
from expportrait_cli.train.dataset import Clip
from expportrait_cli.train.posed import clip_meshes

PHOTOS = 16
"""Frames of a clip that may serve as the photo, evenly spread; the latent of each is made."""
POSED = 16
"""Frames that are posed together."""

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Entry:
    """One clip in the cache."""

    name: str
    person: str
    latents: Path
    """safetensors: `film` [16, T, h, w], `photos` [R, 16, h, w] and their frames, `rows` [R]."""
    normals: Path
    """Lossless film of the 4 T - 3 frames that the latents code."""

    def read(self) -> tuple[Float[Tensor, "16 T h w"], Float[Tensor, "R 16 h w"], list[int]]:
        """Latents of the film and of the photos, normalised, and the photos' frames."""
        with safe_open(self.latents, "pt") as file:
            film, photos, rows = (file.get_tensor(name) for name in ("film", "photos", "rows"))
        return film.float(), photos.float(), rows.tolist()

    def read_normals(self) -> UInt8[np.ndarray, "F H W 3"]:
        """Normal maps as RGB."""
        return np.stack(list(read_frames(self.normals)))

    @property
    def latent_count(self) -> int:
        """T."""
        with safe_open(self.latents, "pt") as file:
            return file.get_slice("film").get_shape()[1]


def build_cache(
    clips: Sequence[Clip], head: HeadModel, vae: Vae, folder: Path, *, size: int, vae_hash: str, progress: Progress
) -> list[Entry]:
    """Make what `folder` lacks of these clips, at `size` px.

    Raises:
        InputError: a clip that was fitted without dynamic offsets, or with another head model.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, clip in enumerate(clips):
        progress(index, len(clips))
        entry = entry_of(clip, folder)
        inputs = {name: content_hash(getattr(clip, name)) for name in ("video", "tracking", "head")}
        settings = {"size": size, "photos": PHOTOS, "normals": CONVENTION}
        key = made_by("generator-cache", settings, {**inputs, "vae": vae_hash})["key"]
        if not _is_current(entry, key):
            _build(clip, entry, head, vae, size=size, key=key)
        entries.append(entry)
    progress(len(clips), len(clips))
    return entries


def entry_of(clip: Clip, folder: Path) -> Entry:
    """Where the files of a clip lie."""
    return Entry(clip.name, clip.person, folder / f"{clip.name}.safetensors", folder / f"{clip.name}.mkv")


def _is_current(entry: Entry, key: str) -> bool:
    try:
        with safe_open(entry.latents, "pt") as file:
            return (file.metadata() or {}).get("key") == key and entry.normals.is_file()
    except (OSError, SafetensorError):
        return False


@torch.inference_mode()
def _build(clip: Clip, entry: Entry, head: HeadModel, vae: Vae, *, size: int, key: str) -> None:
    tracking, fit = npz.load(Tracking, clip.tracking), npz.load(HeadFit, clip.head)
    count = len(tracking.error)
    if fit.head_model != head.name or len(fit.dynamic_offset) != count:
        raise InputError(
            f"{clip.head} holds {len(fit.dynamic_offset)} frames of dynamic offsets on the head model "
            f"'{fit.head_model}', expected {count} on '{head.name}'. Prepare the dataset again."
        )
    # Whole latent frames: one picture, and then four each.
    count -= (count - 1) % TEMPORAL
    with VideoWriter(entry.normals, rate=Fraction(*tracking.rate.tolist()), lossless=True) as writer:
        for picture in _normals(fit, tracking, head, count, size):
            writer.write(picture)
    tensors = _latents(clip, tracking, vae, count, size)
    # Last of all: an entry with latents is whole.
    with atomic_path(entry.latents) as partial:
        partial.write_bytes(save(tensors, {"key": key}))


def _normals(
    fit: HeadFit, tracking: Tracking, head: HeadModel, count: int, size: int
) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
    camera, faces = Camera.of_crop(tracking.focal_px, CROP_SIZE, size), head.dense_faces.to(torch.int32)
    edges = mesh.edges(head.dense_faces)
    for begin in range(0, count, POSED):
        for verts in clip_meshes(fit, tracking, head, np.arange(begin, min(begin + POSED, count))):
            buffers = render_buffers(torch.from_numpy(verts)[None], faces, camera, edges=edges)
            yield encode(buffers.normals[0].numpy())


def _latents(clip: Clip, tracking: Tracking, vae: Vae, count: int, size: int) -> dict[str, Tensor]:
    rows = np.unique(np.linspace(0, count - 1, min(PHOTOS, count)).round().astype(int)).tolist()
    crop, wanted = Crop(*tracking.crop.tolist()), set(rows)
    frames = (crop_image(picture, crop, size) for picture in read_frames(clip.video, end=count))
    film, photos, encoding, done = [], [], Encoding(vae), 0
    while chunk := list(islice(frames, TEMPORAL if done else 1)):
        film.append(_stored(encoding.push(pixels(chunk))))
        photos += [_stored(vae.encode(pixels([p]))) for row, p in enumerate(chunk, done) if row in wanted]
        done += len(chunk)
    if done != count:
        raise InputError(f"{clip.video} has {done} frames, expected {count}. Prepare the dataset again.")
    return {
        "film": torch.cat(film, 1),
        "photos": torch.cat(photos, 1).transpose(0, 1).contiguous(),
        "rows": torch.tensor(rows),
    }


def _stored(latent: Float[Tensor, "1 16 1 h w"]) -> Float[Tensor, "16 1 h w"]:
    """In 16 bits: latents are of size 1, and rounded by a two-thousandth."""
    return latent[0].half().cpu()
