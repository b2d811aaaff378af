"""Films without a head model for the tests of painters: noise that says of itself which frame it is."""

from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.meshes import MeshesWriter
from expportrait_cli.artifacts.types import Curves, HeadFit
from expportrait_cli.head import HeadModel
from expportrait_cli.head.fitted import neck_in_camera, posed_meshes
from expportrait_cli.painting.scene import Sketch, Sketches, Still
from expportrait_cli.painting.wan.folder import save_folder
from expportrait_cli.painting.wan.manifest import FrameRule, Manifest, Sampler
from expportrait_cli.painting.wan.portrait import WanPortrait
from expportrait_cli.painting.wan.vae import Vae
from expportrait_cli.render.buffers import Buffers
from support.tiny_wan import base_folder, prompt_embeds, tiny_transformer, tiny_vace, tiny_vae


def sketch(index: int, height: int = 32, width: int = 32, *, holes: float = 0.2) -> Sketch:
    random = np.random.default_rng(index)
    normals = random.normal(size=(height, width, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    depth = 1 + 0.1 * random.random((height, width), dtype=np.float32)

    def draw() -> Buffers:
        one = torch.ones(1, height, width)
        return Buffers(normals=torch.from_numpy(normals)[None], depth=torch.from_numpy(depth)[None], mask=one)

    proxy = random.integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Sketch(proxy, (random.random((height, width)) < holes).astype(np.float32), draw)


def sketches_of(count: int, **shape: Any) -> Sketches:
    def frames(start: int) -> Iterator[Sketch]:
        return (sketch(index, **shape) for index in range(start, count))

    return frames


def still(height: int = 32, width: int = 32) -> Still:
    frame = sketch(1_000_000, height, width)
    return Still(frame.proxy, frame.normals)


def woken(portrait: WanPortrait) -> WanPortrait:
    """Give the channels that start at zero something to say, so that what goes wrong in them shows."""
    generator = torch.Generator().manual_seed(3)
    weight = portrait.transformer.patch_embedding.weight
    with torch.no_grad():
        weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return portrait.eval().requires_grad_(False)


def tiny_portrait(*, has_hint: bool = True) -> WanPortrait:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return woken(WanPortrait.from_base(tiny_transformer(), prompt_embeds(), has_hint=has_hint))


def portrait_folder(folder: Path) -> Path:
    """A trained generator as `train generator` leaves it."""
    tiny_vae().save_pretrained(folder / "vae")
    manifest = Manifest(
        base="t2v",
        has_hint=True,
        origin={"repo": "tiny/base", "revision": "0", "license": "apache-2.0"},
        resolution=256,
        frame_rule=FrameRule(window=25, overlap=8),
        sampler=Sampler(steps=2),
    )
    return save_folder(tiny_portrait(), folder / "wan-portrait", manifest, vae=folder / "vae")


def vace_folder(folder: Path) -> Path:
    """As `weights fetch wan-vace-1.3b` leaves it."""
    return base_folder(folder / "wan-vace-1.3b", tiny_vace())


def v2v_folder(folder: Path) -> Path:
    return base_folder(folder / "wan-t2v-1.3b")


def vae() -> Vae:
    return Vae(tiny_vae())


def swaying(folder: Path, fitted: HeadFit, head: HeadModel, count: int) -> tuple[Path, Path]:
    """The astronaut's head, and its meshes swaying a little."""
    head_path, meshes_path = folder / "a.head.npz", folder / "a.meshes.npz"
    npz.save(fitted, head_path, {})
    values = {field.name: getattr(fitted, field.name, None) for field in fields(Curves)}
    values["torso_translation"] = neck_in_camera(fitted, head)
    curves = Curves(**{name: np.repeat(np.float32(value)[None], count, 0) for name, value in values.items()})
    curves.translation[:, 0] += np.linspace(0, 0.02, count, dtype=np.float32)
    curves.jaw[:, 0] += np.linspace(0, 0.2, count, dtype=np.float32)
    with MeshesWriter(
        meshes_path,
        faces=head.dense_faces.numpy(),
        focal_px=fitted.focal_px,
        rate=Fraction(25),
        head_model="anny",
        head_hash=content_hash(head_path),
        made_by={},
    ) as writer:
        for verts, turn, shift in zip(
            posed_meshes(fitted, head, curves), curves.rotation, curves.translation, strict=True
        ):
            writer.write(verts, turn, shift)
        writer.finish(curves)
    return head_path, meshes_path
