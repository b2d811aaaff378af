import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.meshes import Meshes, MeshesWriter
from expportrait_cli.artifacts.types import Curves
from expportrait_cli.errors import InputError
from expportrait_cli.geometry.rotations import from_turns

FACES = np.array([[0, 1, 2], [2, 1, 3]])


def performance(count: int, vertices: int = 400) -> tuple[Curves, np.ndarray]:
    """A head that turns, with a torso that stands still and an expression that grows."""
    random = np.random.default_rng(0)
    turn = np.linspace(0, 1, count)[:, None] * np.array([0.2, -0.9, 0.1])
    place = np.array([0.02, 0.01, 0.9]) + 0.1 * np.sin(np.arange(count))[:, None]
    verts_head = random.uniform(-0.25, 0.25, (vertices, 3)) * (1 + 0.05 * np.linspace(0, 1, count)[:, None, None])
    verts_cam = verts_head @ from_turns(turn).swapaxes(1, 2) + place[:, None]
    verts_cam[:, : vertices // 3] = verts_cam[0, : vertices // 3]
    blocks = [random.random((count, width)) for width in (6, 3, 4)] + [turn, place, turn * 0, place]
    return Curves(*(np.asarray(block, np.float32) for block in blocks)), verts_cam.astype(np.float32)


def write(path, curves, verts_cam):
    options = {"focal_px": 1234.5, "rate": Fraction(30000, 1001), "head_model": "anny", "head_hash": "ab"}
    with MeshesWriter(path, faces=FACES, made_by={"tool": "1"}, **options) as writer:
        for verts, turn, place in zip(verts_cam, curves.rotation, curves.translation, strict=True):
            writer.write(verts, turn, place)
        writer.finish(curves)
    return path


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_vertices_come_back_within_a_hundredth_of_a_millimetre(tmp_path, count):
    curves, verts_cam = performance(count)
    meshes = Meshes.open(write(tmp_path / "a.meshes.npz", curves, verts_cam))
    assert meshes.frame_count == count
    assert meshes.rate == Fraction(30000, 1001)
    assert (meshes.focal_px, meshes.head_model, meshes.head_hash) == (1234.5, "anny", "ab")
    assert np.array_equal(meshes.faces, FACES)
    assert np.array_equal(meshes.curves.gaze, curves.gaze)
    frames = list(meshes.frames())
    assert np.abs(np.array(frames) - verts_cam).max() < 1e-5
    assert frames[0].dtype == np.float32
    part = list(meshes.frames(7, 19))
    assert len(part) == max(0, min(19, count) - 7)
    assert all(np.array_equal(a, b) for a, b in zip(part, frames[7:19], strict=True))


def test_same_content_same_bytes_and_a_header(tmp_path):
    a = write(tmp_path / "a.meshes.npz", *performance(20))
    b = write(tmp_path / "b.meshes.npz", *performance(20))
    assert a.read_bytes() == b.read_bytes()
    assert npz.read_header(a)["kind"] == "meshes"


def test_leaving_without_the_curves_leaves_nothing(tmp_path):
    curves, verts_cam = performance(3)
    options = {"focal_px": 1.0, "rate": Fraction(25), "head_model": "anny", "head_hash": "", "made_by": {}}
    with pytest.raises(ValueError, match="finish"), MeshesWriter(tmp_path / "a.npz", faces=FACES, **options) as writer:
        writer.write(verts_cam[0], curves.rotation[0], curves.translation[0])
    with pytest.raises(KeyboardInterrupt), MeshesWriter(tmp_path / "a.npz", faces=FACES, **options):
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match="0 frames"),
        MeshesWriter(tmp_path / "a.npz", faces=FACES, **options) as writer,
    ):
        writer.finish(curves)
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = write(tmp_path / "a.meshes.npz", *performance(20))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"a\.meshes\.npz"):
        Meshes.open(path)
    broken = bytearray(whole)
    place = whole.index(b"verts_00000") + 400
    broken[place : place + 40] = bytes(40)
    path.write_bytes(broken)
    with pytest.raises(InputError, match="verts_00000"):
        list(Meshes.open(path).frames())
    with pytest.raises(InputError, match="verts_00000"):
        Meshes.open(path).check()
    path.write_bytes(whole)
    Meshes.open(path).check()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clip(tmp_path):
    script = (
        "import resource, sys, numpy as np; from fractions import Fraction\n"
        "from expportrait_cli.artifacts.meshes import Meshes, MeshesWriter\n"
        "from expportrait_cli.artifacts.types import Curves\n"
        "n = int(sys.argv[2]); zero = lambda width: np.zeros((n, width), np.float32)\n"
        "verts = np.random.default_rng(0).random((20_000, 3)); faces = np.array([[0, 1, 2]])\n"
        "with MeshesWriter(sys.argv[1], faces=faces, focal_px=1.0, rate=Fraction(25), head_model='', head_hash='',\n"
        "                  made_by={}) as writer:\n"
        "    for k in range(n): writer.write(verts * (1 + k * 1e-4), np.zeros(3), np.ones(3))\n"
        "    writer.finish(Curves(zero(4), zero(3), zero(4), zero(3), zero(3), zero(3), zero(3)))\n"
        "assert sum(1 for _ in Meshes.open(sys.argv[1]).frames()) == n\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    used = []
    for count in (100, 1000):
        command = [sys.executable, "-c", script, str(tmp_path / "a.npz"), str(count)]
        used.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    assert used[1] < used[0] + 10_000
