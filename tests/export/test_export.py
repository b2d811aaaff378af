"""What other programs read from an export is the head, the animation and the camera that went in."""

import json
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import cv2
import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from scipy.spatial.transform import Rotation
from support.imports import HEAVY
from support.performers import quiet

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import atomic_folder
from expportrait_cli.artifacts.meshes import Meshes, MeshesWriter
from expportrait_cli.artifacts.types import CROP_SIZE, Curves
from expportrait_cli.cli import app
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.export import compress
from expportrait_cli.export.gltf import linear_colours, quaternions
from expportrait_cli.export.morphs import LIMIT, TOLERANCE_M
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.geometry.rotations import rodrigues
from expportrait_cli.head.fitted import fitted_mesh, neck_in_camera, posed_meshes, relief_of
from expportrait_cli.media.video import read_frame
from expportrait_cli.pipeline.export import export_head, export_meshes
from expportrait_cli.render.buffers import Bump, render_buffers
from expportrait_cli.render.rasterizer import interpolate, rasterize

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

COUNT = 18
RATE = Fraction(30000, 1001)
FLIP = np.array([1, -1, -1])
TRIANGLES = np.array([[0, 1, 2], [2, 1, 3], [3, 1, 4]])


@pytest.fixture(scope="module")
def head_file(fitted, tmp_path_factory):
    return npz.save(fitted, tmp_path_factory.mktemp("head") / "person.head.npz", {})


@pytest.fixture(scope="module")
def meshes_file(fitted, head, tmp_path_factory):
    """The astronaut nods, turns, speaks and blinks."""
    time = np.linspace(0, 1, COUNT)[:, None]

    def rows(value, change):
        return (value + time**2 * np.asarray(change)).astype(np.float32)

    blink = np.zeros(len(head.expression_names))
    blink[head.expression_names.index("eyeBlinkLeft")] = 1
    curves = Curves(
        expression=rows(fitted.expression, blink),
        jaw=rows(fitted.jaw, [0.3, 0, 0]),
        gaze=rows(fitted.gaze, [0.2, 0.1, 0.2, 0.1]),
        rotation=rows(fitted.rotation, [0.1, 0.6, -0.1]),
        translation=rows(fitted.translation, [0.02, 0.01, -0.05]),
        torso_rotation=rows(fitted.torso_rotation, [0, 0.1, 0]),
        torso_translation=rows(neck_in_camera(fitted, head), [0.02, 0.01, -0.05]),
    )
    path = tmp_path_factory.mktemp("meshes") / "talk.meshes.npz"
    options = {"focal_px": fitted.focal_px, "rate": RATE, "head_model": "anny", "head_hash": "ab"}
    with MeshesWriter(path, faces=head.dense_faces.numpy(), made_by={"tool": "1"}, **options) as writer:
        for index, verts in enumerate(posed_meshes(fitted, head, curves)):
            writer.write(verts, curves.rotation[index], curves.translation[index])
        writer.finish(curves)
    return path


@pytest.fixture(scope="module")
def talk(meshes_file):
    """The animation's .glb, and what the command said about it."""
    out = meshes_file.with_name("talk.glb")
    summary = export_meshes(meshes_file, out, "glb", lambda _: quiet, frames="")
    return Glb(out), out, summary


@pytest.fixture(scope="module")
def person(head_file):
    """The head's .glb, and what the command said about it."""
    out = head_file.with_name("person.glb")
    summary = export_head(head_file, out, "glb", lambda _: quiet, neutral=False)
    return Glb(out), summary


class Glb:
    """A .glb as its own library reads it, evaluated by the rules of the format alone."""

    def __init__(self, path):
        self.model = pygltflib.GLTF2().load(str(path))
        self.blob = self.model.binary_blob()
        self.primitives = self.model.meshes[0].primitives
        primitive = self.primitives[0]
        self.base = self.array(primitive.attributes.POSITION)
        self.faces = np.concatenate([self.array(each.indices).reshape(-1, 3) for each in self.primitives])
        targets = primitive.targets or []
        self.offsets = np.array([self.array(t["POSITION"]) for t in targets]).reshape(-1, *self.base.shape)
        self.names = self.model.meshes[0].extras.get("targetNames", [])
        self.colours = None if primitive.attributes.COLOR_0 is None else self.array(primitive.attributes.COLOR_0)

    def array(self, index):
        accessor = self.model.accessors[index]
        kind = {pygltflib.FLOAT: np.float32, pygltflib.UNSIGNED_INT: np.uint32}[accessor.componentType]
        width = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}[accessor.type]
        start = self.model.bufferViews[accessor.bufferView].byteOffset
        values = np.frombuffer(self.blob, kind, accessor.count * width, start)
        return values if width == 1 else values.reshape(-1, width)

    def picture(self, texture):
        """RGB of a texture."""
        view = self.model.bufferViews[self.model.images[self.model.textures[texture].source].bufferView]
        png = np.frombuffer(self.blob, np.uint8, view.byteLength, view.byteOffset)
        return cv2.imdecode(png, cv2.IMREAD_COLOR)[..., ::-1]

    def tracks(self):
        (animation,) = self.model.animations
        samplers = {c.target.path: animation.samplers[c.sampler] for c in animation.channels}
        return {path: (self.array(s.input), self.array(s.output)) for path, s in samplers.items()}

    def world(self, weights, rotation=None, translation=None):
        node = self.model.nodes[0]
        turn = Rotation.from_quat(node.rotation if rotation is None else rotation).as_matrix()
        local = self.base + np.tensordot(weights, self.offsets, 1)
        return local @ turn.T + (node.translation if translation is None else translation)


def run(capsys, *arguments):
    assert app.run(["export", *map(str, arguments)]) == 0
    return capsys.readouterr().out.strip()


def rebuilt(made):
    return made.base + np.tensordot(made.weights, made.morphs.offsets, 1)


def farthest(a, b):
    return np.linalg.norm(np.asarray(a) - b, axis=-1).max()


def test_a_film_of_three_motions_needs_three_components():
    random = np.random.default_rng(0)
    parts, amounts = random.normal(size=(3, 300, 3)), random.normal(size=(50, 3))
    film = (random.normal(size=(300, 3)) + np.tensordot(amounts, 0.01 * parts, 1)).astype(np.float32)
    made = compress(lambda: iter(film), TRIANGLES)
    assert len(made.morphs.names) == 1 + 3
    assert np.array_equal(made.base, film[0])
    assert farthest(rebuilt(made), film) < 1e-5
    assert made.weights.min() == 0 and made.weights.max() == 1


def test_a_still_film_needs_none():
    film = np.repeat(np.random.default_rng(0).random((1, 5, 3), np.float32), 20, 0)
    made = compress(lambda: iter(film), TRIANGLES)
    assert made.morphs.names == () and made.weights.shape == (20, 0)
    assert made.max_error_m == 0


def test_a_film_without_order_takes_all_and_its_error_is_as_stated():
    film = 0.01 * np.random.default_rng(0).normal(size=(150, 400, 3)).astype(np.float32)
    made = compress(lambda: iter(film), TRIANGLES)
    assert len(made.morphs.names) == 1 + LIMIT
    assert made.max_error_m > TOLERANCE_M
    assert farthest(rebuilt(made), film) == pytest.approx(made.max_error_m, rel=1e-4)
    assert made.weights.min() >= 0 and made.weights.max() <= 1


def test_a_long_film_is_compressed_as_well_as_if_it_were_in_memory():
    random = np.random.default_rng(0)
    scales = 0.05 * 0.97 ** np.arange(240)
    film = random.normal(size=(400, 240)) * scales @ (random.normal(size=(240, 3 * 200)) / 20)
    film = film.reshape(400, 200, 3).astype(np.float32)
    made = compress(lambda: iter(film), TRIANGLES)
    flat = (film - film[0]).reshape(400, -1).astype(np.float64)
    u, s, v = np.linalg.svd(flat, full_matrices=False)
    best = np.linalg.norm(flat - (u[:, :LIMIT] * s[:LIMIT]) @ v[:LIMIT])
    assert len(made.morphs.names) == 1 + LIMIT
    assert best < np.linalg.norm(rebuilt(made) - film) < 1.02 * best


def test_the_animation_comes_back_within_its_stated_error(meshes_file, talk):
    meshes, (glb, _, summary) = Meshes.open(meshes_file), talk
    tracks = glb.tracks()
    weights = tracks["weights"][1].reshape(COUNT, -1)
    assert summary["targets"] == len(glb.names) == weights.shape[1] and summary["frames"] == COUNT
    for times, _ in tracks.values():
        assert np.allclose(times, np.arange(COUNT) * 1001 / 30000, atol=1e-6)
    shown = [glb.world(*row) for row in zip(weights, tracks["rotation"][1], tracks["translation"][1], strict=True)]
    error_mm = 1000 * farthest(np.array(shown) * FLIP, np.array(list(meshes.frames())))
    assert error_mm == pytest.approx(summary["max_error_mm"], abs=1e-3)
    assert error_mm < 0.1
    assert np.array_equal(glb.faces, meshes.faces)


def test_normals_follow_the_animation(talk):
    glb = talk[0]
    (primitive,) = glb.model.meshes[0].primitives
    changes = np.array([glb.array(target["NORMAL"]) for target in primitive.targets])
    weights = glb.tracks()["weights"][1].reshape(COUNT, -1)[-1]
    normals = glb.array(primitive.attributes.NORMAL) + np.tensordot(weights, changes, 1)
    true = trimesh.Trimesh(glb.base + np.tensordot(weights, glb.offsets, 1), glb.faces, process=False).vertex_normals
    cosine = (normals * true).sum(-1) / np.linalg.norm(normals, axis=-1) / np.linalg.norm(true, axis=-1)
    # trimesh weights faces by their angle, we by their area: at the folds of the ears they differ.
    assert np.quantile(np.degrees(np.arccos(cosine.clip(-1, 1))), 0.9) < 3
    assert np.abs(changes).max() > 0.3


def test_the_camera_sees_what_the_normal_maps_show(meshes_file, talk):
    meshes, scene = Meshes.open(meshes_file), trimesh.load(talk[1], process=False)
    (mesh,) = scene.geometry.values()
    assert (len(mesh.vertices), len(mesh.faces)) == (len(next(meshes.frames())), len(meshes.faces))
    first = next(meshes.frames())
    assert np.allclose(scene.bounds, np.sort(np.stack([first.min(0) * FLIP, first.max(0) * FLIP]), 0), atol=1e-5)
    to_camera = np.linalg.inv(scene.graph.get("camera")[0]) @ scene.graph.get("head")[0]
    points = trimesh.transform_points(mesh.vertices, to_camera)
    half = np.tan(np.radians(scene.camera.fov[1]) / 2)
    xy = (points[:, :2] / -points[:, 2:] / half * [1, -1] + 1) * CROP_SIZE / 2
    expected = Camera.of_crop(meshes.focal_px, CROP_SIZE, CROP_SIZE).project(torch.from_numpy(first)).numpy()
    assert np.abs(xy - expected).max() < 0.01


def test_a_head_rests_as_in_the_photo_and_can_be_posed(person, fitted, head):
    glb, summary = person
    assert glb.names[: len(head.expression_names)] == list(head.expression_names)
    assert summary["targets"] == len(glb.names) == len(head.expression_names) + 1 + 8 + 1
    rest = glb.model.meshes[0].weights
    assert farthest(glb.world(rest) * FLIP, fitted_mesh(fitted, head)) < 1e-5

    def posed(**units):
        return glb.world([units.get(name, 0.0) for name in glb.names]) * FLIP

    def true(**changes):
        fields = ("expression", "jaw", "gaze", "frame_offset")
        zero = {name: np.zeros_like(getattr(fitted, name)) for name in fields}
        return fitted_mesh(replace(fitted, **{**zero, **changes}), head)

    psi = np.zeros_like(fitted.expression)
    psi[[head.expression_names.index(name) for name in ("mouthSmileLeft", "eyeBlinkRight")]] = 0.4, 0.8
    assert farthest(posed(mouthSmileLeft=0.4, eyeBlinkRight=0.8), true(expression=psi)) < 1e-5
    jaw = np.array([head.jaw_full_rad, 0, 0], np.float32)
    assert farthest(posed(jawOpen=1), true(jaw=jaw)) < 1e-5
    assert 1e-3 < farthest(posed(jawOpen=0.5), true(jaw=jaw / 2)) < 2.5e-3
    full = head.gaze_full_rad.numpy()
    looks = {"eyeLookUpLeft": (0, full[0]), "eyeLookOutLeft": (1, full[2]), "eyeLookInLeft": (1, -full[3])}
    looks |= {"eyeLookDownRight": (2, -full[5]), "eyeLookInRight": (3, full[6]), "eyeLookOutRight": (3, -full[7])}
    for name, (index, angle_rad) in looks.items():
        gaze = np.zeros(4, np.float32)
        gaze[index] = angle_rad
        assert farthest(posed(**{name: 1}), true(gaze=gaze)) < 1e-5


def test_a_viewer_shows_the_detail_that_normal_maps_show(person, fitted, head):
    """The shader of glTF 2.0.1, 3.9.3, at the photo's pose: normal = T x + B y + N z, the bitangent by its sign."""
    glb, summary = person
    assert summary["detail"] and len(glb.primitives) == 2
    plain, detailed = glb.primitives
    materials = glb.model.materials
    assert materials[plain.material].normalTexture is None
    assert materials[detailed.material].normalTexture.index == 0
    texture = glb.picture(0)
    tangents, places = glb.array(detailed.attributes.TANGENT), glb.array(detailed.attributes.TEXCOORD_0)
    assert np.allclose(np.linalg.norm(tangents[:, :3], axis=1), 1, atol=1e-5) and (np.abs(tangents[:, 3]) == 1).all()

    verts_cam = torch.from_numpy(fitted_mesh(fitted, head))
    camera, faces = Camera.of_crop(fitted.focal_px, CROP_SIZE, CROP_SIZE), head.dense_faces
    normal = vertex_normals(verts_cam, faces).numpy() * FLIP
    turn = Rotation.from_quat(glb.model.nodes[0].rotation).as_matrix()
    right = tangents[:, :3] @ turn.T
    carried = np.c_[normal, right, np.cross(normal, right) * tangents[:, 3:], places].astype(np.float32)
    rast = rasterize(camera.clip(verts_cam)[None], faces.int(), (CROP_SIZE, CROP_SIZE))
    drawn = interpolate(torch.from_numpy(carried)[None], rast, faces.int())[0].numpy()
    x, y = (drawn[..., 9:] * len(texture) - 0.5).transpose(2, 0, 1)
    own = cv2.remap(texture, x, y, cv2.INTER_LINEAR).astype(np.float32) / 127.5 - 1
    made = np.einsum("hwca,hwc->hwa", np.stack([drawn[..., 3:6], drawn[..., 6:9], drawn[..., :3]], 2), own)
    made /= np.maximum(np.linalg.norm(made, axis=-1, keepdims=True), 1e-6)

    bump = Bump.of(relief_of(fitted, head), scale=1.0)
    wanted, mesh = (
        render_buffers(verts_cam[None], faces, camera, antialias=False, bump=each).normals[0].numpy()
        for each in (bump, None)
    )
    ids = rast[0, ..., 3].numpy().astype(int) - 1
    is_shown = np.isin(faces.numpy()[ids, 0], np.flatnonzero(fitted.relief_seen > 0.99)) & (ids >= 0)
    bends, wanted_bends = (made - mesh)[is_shown], (wanted - mesh)[is_shown]
    assert np.corrcoef(bends.ravel(), wanted_bends.ravel())[0, 1] > 0.9
    assert 0.75 < np.abs(bends).mean() / np.abs(wanted_bends).mean() < 1.25


def test_the_photo_is_the_texture_of_what_it_shows(person, fitted, head):
    """Sharper than colours of vertices, in the photo's own place, and not multiplied by them."""
    glb, _ = person
    plain, mapped = glb.primitives
    assert plain.attributes.COLOR_0 is not None and mapped.attributes.COLOR_0 is None
    material = glb.model.materials[mapped.material].pbrMetallicRoughness
    texture = glb.picture(material.baseColorTexture.index)
    photo = crop_image(read_frame(fitted.source, 0), Crop(*map(float, fitted.crop)), len(texture))
    x, y = (glb.array(mapped.attributes.TEXCOORD_0) * len(texture)).T.astype(int).clip(0, len(texture) - 1)
    seen = fitted.relief_seen > 0.99
    verts_cam = fitted_mesh(fitted, head)
    px = (verts_cam[:, :2] / verts_cam[:, 2:] * fitted.focal_px / CROP_SIZE + 0.5) * len(texture)
    assert np.abs(np.stack([x, y], 1) - px)[seen].max() < 2
    away = np.abs(texture[y, x].astype(int) - photo[y, x])[seen]
    assert away.mean() < 1 and np.percentile(away, 99) < 12
    assert glb.model.materials[plain.material].pbrMetallicRoughness.baseColorTexture is None


def test_the_normal_map_can_be_left_out(head_file, tmp_path):
    out = tmp_path / "plain.glb"
    summary = export_head(head_file, out, "glb", lambda _: quiet, neutral=True, detail=False)
    glb = Glb(out)
    assert not summary["detail"] and len(glb.primitives) == 1 and not glb.model.images
    assert glb.primitives[0].attributes.TANGENT is None


def test_the_photos_colours_are_on_the_head(person, head_file, fitted, head, tmp_path, capsys):
    linear = person[0].colours
    run(capsys, head_file, "-o", tmp_path / "person.ply")
    srgb = np.asarray(trimesh.load(tmp_path / "person.ply", process=False).visual.vertex_colors)[:, :3]
    assert np.allclose(linear, linear_colours(srgb), atol=1e-6)
    # The nose's tip is the point nearest to the camera in front of the face.
    tip = fitted_mesh(fitted, head)[:, 2].argmin()
    assert srgb[tip, 0] > srgb[tip, 1] > srgb[tip, 2] > 40


def test_without_the_photo_the_head_has_no_colours_and_that_is_said(fitted, tmp_path, capsys):
    path = npz.save(replace(fitted, source="/nowhere/photo.png"), tmp_path / "a.head.npz", {})
    assert app.run(["export", str(path), "-o", str(tmp_path / "a.ply"), "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["coloured"] is False
    assert "photo.png" in err and "without colours" in err


@pytest.mark.parametrize("form", ["obj", "ply"])
@pytest.mark.parametrize("neutral", [False, True])
def test_a_still_head_comes_back(form, neutral, head_file, fitted, head, tmp_path, capsys):
    out = tmp_path / f"person.{form}"
    assert run(capsys, head_file, "-o", out, *["--neutral"] * neutral) == str(out)
    mesh = trimesh.load(out, process=False, maintain_order=True)
    assert np.array_equal(mesh.faces, head.dense_faces.numpy())
    if neutral:
        shape = head.template + head.identity_basis @ torch.from_numpy(fitted.identity)
        expected = (head.operator @ shape).numpy() + fitted.static_offset
    else:
        expected = fitted_mesh(fitted, head) * FLIP
    assert np.abs(mesh.vertices - expected).max() < 1e-5
    # trimesh points its normals outwards only if the winding of the faces does.
    assert mesh.volume > 0


def test_frames_become_a_folder_of_meshes(meshes_file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, meshes_file, "--format", "ply", "--frames", "2:12:4") == "talk-ply"
    assert sorted(p.name for p in (tmp_path / "talk-ply").iterdir()) == [
        f"frame_{index:05d}.ply" for index in (2, 6, 10)
    ]
    frames = list(Meshes.open(meshes_file).frames())
    for index in (2, 6, 10):
        mesh = trimesh.load(tmp_path / f"talk-ply/frame_{index:05d}.ply", process=False)
        assert np.abs(mesh.vertices * FLIP - frames[index]).max() < 1e-5
    # The same command again replaces its own frames.
    run(capsys, meshes_file, "--format", "ply", "--frames", "3:5")
    assert sorted(p.name for p in (tmp_path / "talk-ply").iterdir()) == ["frame_00003.ply", "frame_00004.ply"]
    assert [p.name for p in tmp_path.iterdir()] == ["talk-ply"]
    assert run(capsys, meshes_file, "-o", "one.obj", "--frames", "7") == "one.obj"
    mesh = trimesh.load(tmp_path / "one.obj", process=False, maintain_order=True)
    assert np.abs(mesh.vertices * FLIP - frames[7]).max() < 1e-5


def test_some_frames_of_the_animation_keep_their_times(meshes_file, tmp_path, capsys):
    out = tmp_path / "part.glb"
    run(capsys, meshes_file, "-o", out, "--frames", "4::3")
    times, _ = Glb(out).tracks()["rotation"]
    assert np.allclose(times, np.arange(0, 14, 3) * 1001 / 30000, atol=1e-6)
    run(capsys, meshes_file, "-o", out, "--frames", "4")
    glb = Glb(out)
    assert glb.model.animations == []
    assert farthest(glb.world([]) * FLIP, list(Meshes.open(meshes_file).frames())[4]) < 2e-6


def test_an_interrupted_folder_leaves_what_was_there(tmp_path):
    target = tmp_path / "frames"
    target.mkdir()
    (target / "frame_00000.ply").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as partial:
        (partial / "frame_00000.ply").write_text("new")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]
    assert (target / "frame_00000.ply").read_text() == "old"


def test_quaternions_take_the_short_way_through_a_full_turn():
    turns = np.linspace(0, 4 * np.pi, 60)[:, None] * np.array([0, 1, 0])
    q = quaternions(rodrigues(turns))
    assert (q[1:] * q[:-1]).sum(-1).min() > 0.9
    assert np.allclose(np.linalg.norm(q, axis=-1), 1, atol=1e-6)
    assert np.allclose(Rotation.from_quat(q).as_matrix(), rodrigues(turns), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{head}", "-o", "a.ply", "--format", "obj"], 2, "contradicts"),
        (["{head}", "-o", "a.stl"], 2, ".glb"),
        (["{head}", "--frames", "3"], 2, "--frames"),
        (["{meshes}", "--neutral"], 2, "--neutral"),
        (["{meshes}", "-o", "a.ply"], 2, "folder"),
        (["{meshes}", "--frames", "90:"], 2, "from 0 to 17"),
        (["{meshes}", "--frames", "1:2:0"], 2, "step"),
        (["{meshes}", "--frames", "-1"], 2, "START:END:STEP"),
        (["{meshes}", "--frames", "a:b"], 2, "START:END:STEP"),
        (["{meshes}", "--format", "ply", "-o", "{full}"], 3, "holds other files"),
        (["{meshes}", "--format", "ply", "-o", "{head}"], 3, "is a file"),
        (["{meshes}", "-o", "/proc/nowhere/a.glb"], 3, "/proc"),
        (["{track}"], 3, "'track' artifact"),
        (["{full}/text.txt"], 3, "not an artifact"),
        (["missing.head.npz"], 3, "does not exist"),
    ],
)
def test_what_does_not_fit_is_one_line(
    arguments, code, says, head_file, meshes_file, photo_tracking, tmp_path, capsys, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "text.txt").write_text("mine")
    track = npz.save(photo_tracking, tmp_path / "a.track.npz", {})
    names = {"head": head_file, "meshes": meshes_file, "full": tmp_path / "full", "track": track}
    monkeypatch.chdir(tmp_path / "here")
    assert app.run(["export", *(word.format(**names) for word in arguments)]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert says in err
    assert list((tmp_path / "here").iterdir()) == []
    assert (tmp_path / "full" / "text.txt").read_text() == "mine"


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from expportrait_cli.cli.app import run; run(['export', '--help']); print('MODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage: expportrait" in done.stdout
    assert not {*HEAVY, "trimesh", "pygltflib"} & set(done.stdout.partition("MODULES")[2].split())
