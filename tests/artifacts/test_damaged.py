"""Files that are damaged, or made to do harm: one line that says what is wrong, little memory, little time."""

import json
import re
import resource
import struct
import zipfile
from dataclasses import replace
from time import process_time

import numpy as np
import pytest
import torch
from fuzz import mutate

from expportrait_cli.artifacts import network_file, npz
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.texts import parse_json, read_json, read_toml
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.errors import InputError, WeightsError

TRACK, HEAD = mutate.artifact(Tracking), mutate.artifact(HeadFit)


@pytest.mark.parametrize(
    ("artifact", "name", "value", "says"),
    [
        (TRACK, "landmarks", np.nan, "holds 'landmarks' with nan at [0, 0, 0], expected -100000 to 100000"),
        (TRACK, "translation", 1e5, "holds 'translation' with 100000 at [0, 0], expected -1000 to 1000"),
        (TRACK, "rotation", 7, "holds 'rotation' with 7 at [0, 0], expected -6.2832 to 6.2832"),
        (TRACK, "crop", np.inf, "holds 'crop' with inf at [0], expected"),
        (TRACK, "shot", -1, "holds 'shot' with -1 at [0], expected 0 to"),
        (TRACK, "state", 3, "holds 'state' with 3 at [0], expected 0 to 2"),
        (TRACK, "rate", 0, "holds the frame rate 0/0, expected 1/1000 to 1000 frames/s"),
        (TRACK, "shoulders", np.nan, ""),
        (HEAD, "static_offset", 0.51, "holds 'static_offset' with 0.51 at [0, 0], expected -0.5 to 0.5"),
        (HEAD, "dynamic_offset", -np.inf, "holds 'dynamic_offset' with -inf at [0, 0, 0], expected -0.5 to 0.5"),
        (HEAD, "dynamic_vertices", 7, "holds 'dynamic_vertices' with 7, expected less than its 7 vertices"),
        (HEAD, "dynamic_vertices", -1, "holds 'dynamic_vertices' with -1 at [0], expected 0 to"),
        (HEAD, "dynamic_loss", np.nan, ""),
    ],
)
def test_a_number_out_of_range_is_named(artifact, name, value, says, tmp_path):
    array = getattr(artifact, name).copy()
    if name in ("rate", "shoulders", "dynamic_loss"):
        array[...] = value
    else:
        array.reshape(-1)[0] = value
    path = npz.save(replace(artifact, **{name: array}), tmp_path / "a.npz", {})
    if not says:
        assert np.array_equal(getattr(npz.load(type(artifact), path), name), array, equal_nan=array.dtype.kind == "f")
        return
    with pytest.raises(InputError, match=re.escape(f"{path} {says}")):
        npz.load(type(artifact), path)


@pytest.mark.parametrize("focal_px", [0.0, -1.0, np.nan, 2e6])
def test_a_focal_length_that_no_camera_has(focal_px, tmp_path):
    path = npz.save(replace(TRACK, focal_px=focal_px), tmp_path / "a.npz", {})
    with pytest.raises(InputError, match=r"holds 'focal_px' with .*, expected 0.001 to 1e\+06"):
        npz.load(Tracking, path)


def test_a_tracking_without_a_tracked_frame(tmp_path):
    path = npz.save(replace(TRACK, state=np.ones(3, np.uint8)), tmp_path / "a.npz", {})
    with pytest.raises(InputError, match="holds no tracked frame, expected at least one"):
        npz.load(Tracking, path)


def changed(path, **arrays):
    """Write members of an .npz anew: arrays, or bytes as they are."""
    with zipfile.ZipFile(path) as archive:
        members = {row.filename.removesuffix(".npy"): archive.read(row) for row in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**members, **arrays}.items():
            archive.writestr(f"{name}.npy", content if isinstance(content, bytes) else mutate._npy(content))
    return path


@pytest.mark.parametrize(
    ("faces", "says"),
    [
        ([[0, 1, -(2**31)]], "holds 'faces' with -2.14748e+09 at [0, 2], expected 0 to"),
        ([[0, 1, -1]], "holds 'faces' with -1 at [0, 2]"),
        ([[-(2**40), 1, 2]], "holds 'faces' with"),
        ([[0, 1, 7]], "holds damaged vertices"),
        (np.zeros((0, 3)), "holds no triangle"),
    ],
)
def test_triangles_of_vertices_that_are_not_there(faces, says, tmp_path):
    path = tmp_path / "a.meshes.npz"
    mutate.make_meshes(path)
    changed(path, faces=np.asarray(faces, np.int64))
    with pytest.raises(InputError, match=re.escape(says)):
        list(Meshes.open(path).frames())


@pytest.mark.parametrize("name", ["boxes", "poses", "curves_translation"])
def test_places_that_are_none(name, tmp_path):
    path = tmp_path / "a.meshes.npz"
    mutate.make_meshes(path)
    with zipfile.ZipFile(path) as archive:
        array = npz.read_member(path, archive, name).copy()
    array.reshape(-1)[-1] = np.nan
    changed(path, **{name: array})
    with pytest.raises(InputError, match="with nan at"):
        Meshes.open(path)


def false_header(kind: str, shape: str) -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


BOMBS = {
    "zeros": mutate._npy(np.zeros((120_000, 478, 2), np.float32)),
    "a header that promises more": false_header("'<f4'", "(1000000000, 478, 2)") + bytes(100),
    "a negative shape": false_header("'<f4'", "(-1, 478, 2)") + bytes(100),
    "a shape beyond 64 bits": false_header("'<f4'", "(99999999999999999999, 2)") + bytes(100),
    "objects": false_header("'|O'", "(1,)") + bytes(8),
    "records": false_header("[('a', '<f4')]", "(1,)") + bytes(4),
    "arrays in arrays": false_header("('<f4', (9999, 9999))", "(1,)") + bytes(100),
    "sixty axes": false_header("'<f4'", "(" + "1," * 60 + ")") + bytes(4),
    "the second version": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + bytes(1 << 20),
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS)
def test_bombs_cost_neither_memory_nor_time(content, tmp_path):
    path = changed(npz.save(TRACK, tmp_path / "a.npz", {}), landmarks=content)
    before, since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, process_time()
    with pytest.raises(InputError) as caught:
        npz.load(Tracking, path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert process_time() - since < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


def test_members_twice_and_over_each_other(tmp_path):
    path = npz.save(TRACK, tmp_path / "a.npz", {})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("jaw.npy", b"")
    with pytest.raises(InputError, match="members of the archive occur twice or overlap"):
        npz.load(Tracking, path)
    whole = npz.save(TRACK, path, {}).read_bytes()
    # The second row of the table then points at the first member.
    second = whole.index(b"PK\1\2", whole.index(b"PK\1\2") + 1)
    path.write_bytes(whole[: second + 42] + bytes(4) + whole[second + 46 :])
    with pytest.raises(InputError, match="members of the archive occur twice or overlap"):
        npz.load(Tracking, path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 150_000, "nested too deep"),
        ('{"a":' * 150_000, "nested too deep"),
        ("9" * 5000, "a number of 5000 digits"),
        ("[1e999]", "holds 1e999, which is no number"),
        ('{"a": NaN}', "holds NaN, which is no number"),
        ("[-Infinity]", "holds -Infinity"),
        ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
        (b"\xff{}", "can't decode byte"),
        ("{", "Expecting"),
        ("", "Expecting value"),
    ],
)
def test_json_says_what_is_wrong_in_one_line(text, says, tmp_path):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)


def test_json_that_is_right():
    content = {"a": [1, -2.5, 1e300, 2**63, None, True, "面\ud800"], "b": {}}
    assert parse_json(json.dumps(content)) == content


@pytest.mark.parametrize("text", ["a = " + "[" * 150_000, "a = " + "9" * 5000, "a = 1\na = 2", "\0"])
def test_toml_says_what_is_wrong(text, tmp_path):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError):
        read_toml(tmp_path / "a.toml")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_networks_hold_finite_numbers(number, tmp_path):
    path, kind = tmp_path / "a.safetensors", mutate.KIND
    network_file.write(path, kind, {"a": torch.tensor([1.0, number]), "b": torch.tensor([65504.0] * 9)}, {})
    with pytest.raises(WeightsError, match="holds 'a' with numbers that are not finite"):
        network_file.read_tensors(path)
    network_file.write(path, kind, {"b": torch.tensor([65504.0] * 9)}, {})
    assert network_file.read_tensors(path)["b"].tolist() == [65504.0] * 9


def test_a_table_of_tensors_without_end(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(WeightsError, match="its table of tensors has 1099511627776 bytes"):
        network_file.read_header(path, mutate.KIND)


@pytest.mark.parametrize("kind", mutate.KINDS, ids=lambda kind: kind.name)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_files_end_in_a_line_or_are_right(kind):
    found = mutate.fuzz(kind, 25, seed=1)
    assert found["line"] + found["accepted"] == 25, found
