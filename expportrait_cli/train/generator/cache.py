"""Cache of the generator's training data: latents of each prepared clip and of its photos, and its normal maps.

On request also latents of proxy films that the tool makes of the clip (hints), and CLIP's image tokens of the photos.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import atomic_path, content_hash
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import Representation
from expportrait_cli.dataset.dataset import Clip
from expportrait_cli.dataset.summary import clip_meshes
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.errors import InputError
from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import HeadModel, landmarks
from expportrait_cli.head.facemesh import EYE_RINGS, LIPS
from expportrait_cli.head.fitted import reduced, relief_of
from expportrait_cli.media.video import read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.painting.wan.encoders import SPATIAL, TEMPORAL, ImageEncoder
from expportrait_cli.painting.wan.vae import Encoding, Vae, pixels
from expportrait_cli.pipeline.steps import made_by
from expportrait_cli.render.buffers import CONVENTION, Bump, encode, render_buffers
from expportrait_cli.runtime import Progress
from expportrait_cli.train.scenes import in_crop, own_scene, photo_rows

log = logging.getLogger(__name__)

PHOTOS = 16
"""Frames of a clip that may be the photo, evenly spread; with proxy films `Maker.hints` counts instead."""
FEATURES = (EYE_RINGS[:16], EYE_RINGS[16:], LIPS[:20])
"""FaceMesh landmarks around one eye, the other eye, and the lips."""
POSED = 16
"""Frames whose meshes are posed in one batch."""


@dataclass(frozen=True)
class Latents:
    """Normalised latents of one clip and its photos, and further conditions."""

    film: Float[Tensor, "16 T h w"]
    photos: Float[Tensor, "R 16 h w"]
    rows: list[int]
    """Frame index of each photo in the clip."""
    hints: Float[Tensor, "N 16 T h w"]
    """Proxy film that is made from each photo; N is 0 without hints."""
    tokens: Float[Tensor, "M I E"]
    """CLIP's image tokens of each photo; M is 0 without an image encoder."""
    control: Float[Tensor, "K T h w"]
    """Latents of a grey film and of the normal maps, 32 channels; K is 0 unless VACE is trained."""
    features: Float[Tensor, "P T h w"]
    """Share of each latent pixel that the face covers, and that eyes or lips cover; P is 0 if the file has none."""


@dataclass(frozen=True)
class Entry:
    """One clip in the cache."""

    name: str
    person: str
    latents: Path
    """safetensors: the fields of `Latents`, in 16 bits."""
    normals: Path
    """Lossless video of the normal maps of the 4 T - 3 frames that the latents encode."""

    def read(self) -> Latents:
        """Read all but the normal maps."""
        with safe_open(self.latents, "pt") as file:
            shown = {name: file.get_tensor(name).float() for name in file.keys() if name != "rows"}  # noqa: SIM118
            none = shown["film"].new_zeros(0, *shown["film"].shape[1:])
            return Latents(rows=file.get_tensor("rows").tolist(), **{"control": none, "features": none, **shown})

    def read_normals(self) -> UInt8[np.ndarray, "F H W 3"]:
        """Read the normal maps, as RGB."""
        return np.stack(list(read_frames(self.normals)))

    @property
    def latent_count(self) -> int:
        """Number T of latent frames."""
        with safe_open(self.latents, "pt") as file:
            return file.get_slice("film").get_shape()[1]


@dataclass(frozen=True)
class Maker:
    """Models and settings that cache entries are made with."""

    head: HeadModel
    vae: Vae
    vae_hash: str
    size: int
    """Side of the pictures, px."""
    hints: int = 0
    """Photos of a clip for each of which a proxy film is made; 0 for no proxy films."""
    image_encoder: ImageEncoder | None = None
    control: bool = False
    """True if VACE is trained to follow the normal maps."""
    representation: Representation = "full"
    """Part of the fitted head that is drawn."""

    def inputs(self) -> dict[str, str]:
        """Hashes of the weights that entries depend on; an empty one without an image encoder."""
        encoder = self.image_encoder
        return {"vae": self.vae_hash, "image_encoder": encoder.digest() if encoder else ""}


def build_cache(clips: Sequence[Clip], folder: Path, maker: Maker, *, progress: Progress) -> list[Entry]:
    """Make the entries that `folder` lacks; return those of all clips, in the order of `clips`.

    A proxy film takes about 6 s, and 0.2 s a frame of 512 px, on one core.

    Raises:
        InputError: a clip was fitted without dynamic offsets, or with another head model, or has no frame that can be
            the photo.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries, weights = [], maker.inputs()
    settings = {"size": maker.size, "photos": PHOTOS, "normals": CONVENTION, "hints": maker.hints}
    settings |= {"control": maker.control, "features": FEATURES}
    if maker.representation != "full":
        settings["representation"] = maker.representation
    for index, clip in enumerate(clips):
        progress(index, len(clips))
        entry = entry_of(clip, folder)
        inputs = {name: content_hash(getattr(clip, name)) for name in ("video", "tracking", "head")}
        key = made_by("generator-cache", settings, {**inputs, **weights})["key"]
        if not _is_current(entry, key):
            _build(clip, entry, maker, key=key)
        entries.append(entry)
    progress(len(clips), len(clips))
    return entries


def entry_of(clip: Clip, folder: Path) -> Entry:
    """Return the entry of a clip, with the paths of its files in the cache folder."""
    return Entry(clip.name, clip.person, folder / f"{clip.name}.safetensors", folder / f"{clip.name}.mkv")


def _is_current(entry: Entry, key: str) -> bool:
    try:
        with safe_open(entry.latents, "pt") as file:
            return (file.metadata() or {}).get("key") == key and entry.normals.is_file()
    except (OSError, SafetensorError):
        return False


def _build(clip: Clip, entry: Entry, maker: Maker, *, key: str) -> None:
    tracking, fit, head = npz.load(Tracking, clip.tracking), npz.load(HeadFit, clip.head), maker.head
    tracking = replace(tracking, source=str(clip.video.resolve()))
    count = len(tracking.error)
    if fit.head_model != head.name or len(fit.dynamic_offset) != count:
        raise InputError(
            f"{clip.head} holds {len(fit.dynamic_offset)} frames of dynamic offsets on the head model "
            f"'{fit.head_model}', expected {count} on '{head.name}'. Prepare the dataset again."
        )
    # Cut to whole latent frames: the first stands for one frame, each further one for four.
    count -= (count - 1) % TEMPORAL
    features: list[np.ndarray] = []
    with VideoWriter(entry.normals, rate=Fraction(*tracking.rate.tolist()), lossless=True) as writer:
        shown = reduced(fit, maker.representation)
        for picture in _normals(shown, tracking, head, count, maker.size, features):
            writer.write(picture)
    if maker.hints:
        hints = _hints(clip, tracking, count, maker)
        tensors = _latents(clip, tracking, sorted(hints), count, maker)
        tensors["hints"] = torch.stack([hints[row] for row in sorted(hints)])
    else:
        spread = np.unique(np.linspace(0, count - 1, min(PHOTOS, count)).round().astype(int)).tolist()
        tensors = _latents(clip, tracking, spread, count, maker)
        tensors["hints"] = tensors["film"].new_zeros(0, *tensors["film"].shape)
    if maker.control:
        tensors["control"] = _control(entry, maker.vae)
    tensors["features"] = _by_latent(features)
    # Written last: an entry whose latents exist is complete.
    with atomic_path(entry.latents) as partial:
        partial.write_bytes(save(tensors, {"key": key}))


@torch.inference_mode()
def _normals(
    fit: HeadFit, tracking: Tracking, head: HeadModel, count: int, size: int, features: list[np.ndarray]
) -> Iterator[UInt8[np.ndarray, "S S 3"]]:
    """Yield the normal map of each frame, and append its face and feature masks to `features`."""
    camera, faces = Camera.of_crop(tracking.focal_px, CROP_SIZE, size), head.dense_faces.to(torch.int32)
    edges, bump = mesh.edges(head.dense_faces), Bump.of(relief_of(fit, head), scale=size / CROP_SIZE)
    for begin in range(0, count, POSED):
        for verts in clip_meshes(fit, tracking, head, np.arange(begin, min(begin + POSED, count))):
            buffers = render_buffers(torch.from_numpy(verts)[None], faces, camera, edges=edges, bump=bump)
            points = camera.project(landmarks(head, torch.from_numpy(verts))).numpy()
            features.append(_features(points, buffers.mask[0].numpy()))
            yield encode(buffers.normals[0].numpy())


def _features(points: Float32[np.ndarray, "L 2"], mask: Float32[np.ndarray, "S S"]) -> Float32[np.ndarray, "2 s s"]:
    """Share of each latent pixel that the face covers, and that eyes or lips cover; `points`: landmarks, px."""
    face, inner = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
    cv2.fillConvexPoly(face, cv2.convexHull(np.rint(points).astype(np.int32)), (1.0,))
    for ring in FEATURES:
        cv2.fillConvexPoly(inner, cv2.convexHull(np.rint(points[list(ring)]).astype(np.int32)), (1.0,))
    side = mask.shape[0] // SPATIAL
    both = np.stack([face, inner]) * mask
    return both.reshape(2, side, SPATIAL, side, SPATIAL).mean((2, 4))


def _by_latent(features: list[np.ndarray]) -> Float[Tensor, "2 T h w"]:
    """Average over the frames of each latent frame: one for the first, four for each other."""
    rest = np.stack(features[1:]) if features[1:] else np.zeros((0, *features[0].shape), np.float32)
    groups = [
        features[0][None].mean(0),
        *(part.mean(0) for part in np.split(rest, len(rest) // TEMPORAL or 1) if len(part)),
    ]
    return torch.from_numpy(np.stack(groups, 1)).half()


@torch.inference_mode()
def _control(entry: Entry, vae: Vae) -> Float[Tensor, "32 T h w"]:
    """VACE's control, as in `VaceModel`: latents of a grey film (no pixels are kept) and of the normal maps."""
    latents, encoding, rest = [], Encoding(vae), read_frames(entry.normals)
    while chunk := list(islice(rest, TEMPORAL if latents else 1)):
        maps = pixels(chunk)
        latents.append(encoding.push(torch.cat([torch.zeros_like(maps), maps])).flatten(0, 1).half().cpu())
    return torch.cat(latents, 1)


def _hints(clip: Clip, tracking: Tracking, count: int, maker: Maker) -> dict[int, Float[Tensor, "16 T h w"]]:
    """Latents of proxy films by the index of their photo; in the clip's crop, so that they align with the clip."""
    found, crop = {}, Crop(*tracking.crop.tolist())
    for row in photo_rows(tracking, maker.hints, end=count).tolist():
        try:
            with own_scene(clip, tracking, row, maker.head, size=maker.size) as scene:
                sketches = in_crop(scene, crop, maker.size).sketches(0)
                found[row] = _film((sketch.proxy for sketch in islice(sketches, count)), maker.vae)
        except InputError as error:
            log.warning("Frame %d of %s is not used as a photo: %s", row, clip.video, error)
    if not found:
        raise InputError(f"{clip.video} has no frame to use as the photo: no face is found. Leave it out of the set.")
    return found


@torch.inference_mode()
def _film(frames: Iterable[UInt8[np.ndarray, "S S 3"]], vae: Vae) -> Float[Tensor, "16 T h w"]:
    """Encode 4 T - 3 frames."""
    latents, encoding, rest = [], Encoding(vae), iter(frames)
    while chunk := list(islice(rest, TEMPORAL if latents else 1)):
        latents.append(_stored(encoding.push(pixels(chunk))))
    return torch.cat(latents, 1)


@torch.inference_mode()
def _latents(clip: Clip, tracking: Tracking, rows: list[int], count: int, maker: Maker) -> dict[str, Tensor]:
    """Encode the clip, and its frames `rows` as photos, with their image tokens."""
    crop, wanted, photos = Crop(*tracking.crop.tolist()), set(rows), []

    def frames() -> Iterator[UInt8[np.ndarray, "S S 3"]]:
        row = -1
        for row, picture in enumerate(read_frames(clip.video, end=count)):
            shown = crop_image(picture, crop, maker.size)
            if row in wanted:
                photos.append(shown)
            yield shown
        if row + 1 != count:
            raise InputError(f"{clip.video} has {row + 1} frames, expected {count}. Prepare the dataset again.")

    film = _film(frames(), maker.vae)
    encoder = maker.image_encoder
    return {
        "film": film,
        "photos": torch.stack([_stored(maker.vae.encode(pixels([photo])))[:, 0] for photo in photos]),
        "rows": torch.tensor(rows),
        "tokens": torch.cat([encoder.tokens(p).half().cpu() for p in photos]) if encoder else film.new_zeros(0, 0, 0),
    }


def _stored(latent: Float[Tensor, "1 16 1 h w"]) -> Float[Tensor, "16 1 h w"]:
    """Round to float16, on the CPU; normalised latents are about 1, so that the error is about 0.0005 at most."""
    return latent[0].half().cpu()
