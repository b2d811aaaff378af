import json
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from support.media_files import read_gray16
from support.render_shapes import sphere

from expportrait_cli.artifacts.meshes import Meshes, MeshesWriter
from expportrait_cli.artifacts.types import CROP_SIZE, Curves
from expportrait_cli.config import RenderConfig
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.media.video import read_frames
from expportrait_cli.pipeline.commands import load
from expportrait_cli.render import render_normals
from expportrait_cli.render.buffers import CONVENTION
from expportrait_cli.render.files import DEPTH_STEP_M, NormalsInfo, save_normals
from expportrait_cli.render.stage import Viewpoint, parse_orbit, parse_view, preview, turn

FOCAL_PX = 1200.0
RATE = Fraction(30000, 1001)


@pytest.fixture(name="meshes")
def _meshes(tmp_path: Path) -> Meshes:
    """A ball that moves to the right."""
    verts, faces = (part.numpy() for part in sphere(20, 30))
    places = np.array([[0.02 * frame, 0, 0.8] for frame in range(3)], np.float32)
    still = [np.zeros((3, width), np.float32) for width in (40, 3, 4, 3, 3, 3)]
    path = tmp_path / "ball.meshes.npz"
    with MeshesWriter(
        path, faces=faces, focal_px=FOCAL_PX, rate=RATE, head_model="ball", head_hash="abc", made_by={}
    ) as writer:
        for place in places:
            writer.write(verts * 0.1 + place, still[1][0], place)
        writer.finish(Curves(*still[:4], places, *still[4:]))
    return Meshes.open(path)


def _info() -> NormalsInfo:
    return NormalsInfo(Camera.of_crop(FOCAL_PX, CROP_SIZE, 64), RATE, "abc", "warp", "a.meshes.npz")


def test_frames_come_one_by_one(meshes):
    frames = render_normals(meshes, RenderConfig(size=64))
    first = next(frames)
    assert not torch.is_inference_mode_enabled()
    rest = list(frames)
    assert len(rest) == 2
    assert first.normals.shape == (64, 64, 3) and first.mask.shape == (64, 64)
    columns = [np.nonzero(frame.mask)[1].mean() for frame in (first, *rest)]
    # 0.02 m at 0.8 m with a focal length of 150 px.
    np.testing.assert_allclose(np.diff(columns), 3.75, atol=0.2)
    assert first.depth.max() == pytest.approx(0.8, abs=0.02)
    assert first.depth[0, 0] == 0


def test_a_view_keeps_the_heads_place_and_turns_the_rest(meshes):
    plain = next(render_normals(meshes, RenderConfig(size=64)))
    turned = next(render_normals(meshes, RenderConfig(size=64), viewpoint=parse_view("yaw=30,pitch=10")))
    differ = np.abs(plain.mask.astype(int) - turned.mask.astype(int))
    assert differ.mean() < 2


def test_the_camera_moves_where_the_view_says():
    centre = torch.tensor([0.0, 0.0, 1.0])
    nose = torch.tensor([[0.0, 0.0, 0.9]])
    from_right = turn(nose, parse_view("yaw=30").rotations(1)[0], centre)[0]
    from_above = turn(nose, parse_view("pitch=30").rotations(1)[0], centre)[0]
    assert from_right[0] < -0.04 and from_above[1] > 0.04
    right_of_head = turn(torch.tensor([[0.1, 0.0, 1.0]]), parse_view("roll=30").rotations(1)[0], centre)[0]
    assert right_of_head[1] < -0.04


def test_a_view_is_read():
    assert parse_view(" yaw=20, pitch=-5 ") == Viewpoint(yaw=(20.0, 20.0), pitch=(-5.0, -5.0))
    assert parse_orbit("yaw=-30..30,pitch=5") == Viewpoint(yaw=(-30.0, 30.0), pitch=(5.0, 5.0))
    rotations = parse_orbit("yaw=-30..30").rotations(5)
    torch.testing.assert_close(rotations[2], torch.eye(3))
    torch.testing.assert_close(rotations[0], rotations[4].T)
    assert parse_orbit("yaw=-30..30").rotations(1).shape == (1, 3, 3)


@pytest.mark.parametrize(
    "text", ["", "yaw", "yaw=", "yaw=left", "yaw=nan", "yaw=500", "zoom=2", "yaw=1,yaw=2", "yaw=1..2", "yaw=1;pitch=2"]
)
def test_a_bad_view_is_refused_in_one_line(text):
    with pytest.raises(UsageError) as refusal:
        parse_view(text)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["yaw=20", "yaw=1..", "yaw=..2", "yaw=1..2..3", "pitch=0..95"])
def test_a_bad_orbit_is_refused(text):
    with pytest.raises(UsageError):
        parse_orbit(text)


def test_films_come_back_bit_by_bit(tmp_path, meshes):
    frames = list(render_normals(meshes, RenderConfig(size=64)))
    path = save_normals(frames, tmp_path / "a.normals.mkv", _info(), with_depth=True, with_mask=True)
    assert np.array_equal(np.stack(list(read_frames(path))), np.stack([frame.normals for frame in frames]))
    masks = np.stack(list(read_gray16(tmp_path / "a.mask.mkv")))
    assert np.array_equal(masks // 257, np.stack([frame.mask for frame in frames]))
    depth = np.stack(list(read_gray16(tmp_path / "a.depth.mkv"))) * DEPTH_STEP_M
    np.testing.assert_allclose(depth, np.stack([frame.depth for frame in frames]), atol=DEPTH_STEP_M)
    sidecar = json.loads((tmp_path / "a.normals.json").read_text())
    assert sidecar["frame_count"] == 3 and Fraction(sidecar["rate"]) == RATE
    assert sidecar["camera"] == asdict(_info().camera) and sidecar["convention"] == CONVENTION


def test_a_film_beside_anothers_description_is_refused(tmp_path, meshes):
    frames = list(render_normals(meshes, RenderConfig(size=64)))
    path = save_normals(frames, tmp_path / "a.normals.mkv", _info(), with_mask=True)
    again = save_normals(frames, tmp_path / "again" / "a.normals.mkv", _info(), with_mask=True)
    for name in ("a.normals.mkv", "a.mask.mkv", "a.normals.json"):
        assert (path.parent / name).read_bytes() == (again.parent / name).read_bytes()
    info = load(path)
    assert info == replace(_info(), frame_count=3)
    # As after a kill between the films and the file that describes them.
    for name in ("a.normals.mkv", "a.mask.mkv"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole + b" ")
        with pytest.raises(InputError, match=f"{name} is not the film that"):
            load(path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / "a.normals.json").write_text("{}")
    with pytest.raises(InputError, match="does not describe"):
        load(path)


def test_another_name_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.normals\.mkv"):
        save_normals(iter(()), tmp_path / "a.mkv", _info())


def test_the_preview_is_driver_then_normals():
    driver, normals = np.zeros((4, 6, 3), np.uint8), np.full((4, 6, 3), 9, np.uint8)
    both = preview(driver, normals)
    assert both.shape == (4, 12, 3) and both[0, 5, 0] == 0 and both[0, 6, 0] == 9
