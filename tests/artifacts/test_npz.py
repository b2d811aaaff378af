import os
import pickle
import zipfile
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.cli import app
from expportrait_cli.errors import InputError, OutputError

SIZES = {"T": 3, "K": 5, "E": 4, "V": 7, "P": 6, "M": 17, "R": 4, "S": 4}


def make(cls):
    """Fill an artifact with random numbers, in the shapes that its annotations name and within their ranges."""
    random = np.random.default_rng(0)
    values = {}
    for field in fields(cls):
        kind: Any = field.type
        if kind is str:
            values[field.name] = f"/a b/面 {field.name}"
        elif kind in (int, float):
            values[field.name] = kind(1)
        else:
            shape = [SIZES[letter] if letter in SIZES else int(letter) for letter in kind.dim_str.split()]
            dtype = np.dtype(kind.dtypes[0])
            drawn = random.random(shape) * 0.09 if dtype.kind == "f" else random.integers(0, 2, shape)
            values[field.name] = drawn.astype(dtype)
    given = {"size": np.array([640, 480]), "rate": np.array([30000, 1001]), "state": np.array([0, 1, 2], np.uint8)}
    return cls(**{**values, **{name: value for name, value in given.items() if name in values}})


@pytest.fixture
def saved(tmp_path):
    return npz.save(make(Tracking), tmp_path / "new" / "a.track.npz", {"tool": "1", "inputs": {"面": "ab"}})


def rewrite(path, name, content=None):
    """Replace a member by other bytes or an array, or drop it."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    del members[f"{name}.npy"]
    with zipfile.ZipFile(path, "w") as archive:
        for key, value in members.items():
            archive.writestr(key, value)
        if isinstance(content, np.ndarray):
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, content, allow_pickle=True)


@pytest.mark.parametrize("cls", [Tracking, HeadFit])
def test_load_undoes_save(tmp_path, cls):
    artifact = make(cls)
    loaded = npz.load(cls, npz.save(artifact, tmp_path / "a.npz", {}))
    for field in fields(cls):
        a, b = getattr(artifact, field.name), getattr(loaded, field.name)
        assert type(a) is type(b)
        assert np.array_equal(a, b)
        assert np.asarray(a).dtype == np.asarray(b).dtype


def test_header_alone(saved):
    header = npz.read_header(saved)
    assert header == {"kind": "track", "version": Tracking.VERSION, "made_by": {"tool": "1", "inputs": {"面": "ab"}}}


def test_numpy_can_read_it_without_us(saved):
    with np.load(saved, allow_pickle=False) as content:
        assert content["landmarks"].shape == (3, 478, 2)


def test_same_content_same_bytes(tmp_path):
    a = npz.save(make(Tracking), tmp_path / "a.npz", {"x": 1, "y": 2})
    b = npz.save(make(Tracking), tmp_path / "b.npz", {"y": 2, "x": 1})
    os.utime(a, (0, 0))
    assert a.read_bytes() == b.read_bytes()


def test_missing_values_survive(tmp_path):
    tracking = replace(make(Tracking), shoulders=np.full((3, 2, 2), np.nan, np.float32))
    assert np.isnan(npz.load(Tracking, npz.save(tracking, tmp_path / "a.npz", {})).shoulders).all()


def refused(cls, path) -> str:
    with pytest.raises(InputError) as error:
        npz.load(cls, path)
    assert "\n" not in str(error.value)
    assert os.fspath(path) in str(error.value)
    return str(error.value)


def test_the_wrong_kind_names_both(saved):
    assert "is a 'track' artifact, expected 'head'" in refused(HeadFit, saved)


@dataclass(frozen=True)
class Posed:
    """As much of meshes as their header is."""

    KIND: ClassVar[str] = "meshes"
    VERSION: ClassVar[int] = 1
    values: np.ndarray


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder, with an artifact of each kind, named a, and something else."""
    monkeypatch.chdir(tmp_path)
    for artifact in (make(Tracking), make(HeadFit), Posed(np.zeros(1))):
        npz.save(artifact, f"a.{artifact.KIND}.npz", {})
    Path("a.normals.mkv").write_bytes(b"\x1a\x45\xdf\xa3 and so on")
    return tmp_path


WRONG_KINDS = [
    ("fit a.head.npz", "a.head.npz is a 'head' artifact, expected 'track'", "given to fit as --head"),
    ("fit a.track.npz a.head.npz", "a.head.npz is a 'head' artifact, expected 'track'", "given to fit as --head"),
    ("fit a.track.npz --head a.track.npz", "a.track.npz is a 'track' artifact, expected 'head'", "expportrait fit"),
    ("fit a.track.npz --driver a.head.npz", "a.head.npz is a 'head' artifact, expected 'track'", "--head"),
    ("fit a.meshes.npz", "a.meshes.npz is a 'meshes' artifact, expected 'track'", "give the driver's .track.npz"),
    ("fit a.normals.mkv", "a.normals.mkv is not a .track.npz file", "expportrait track"),
    ("transfer a.track.npz a.head.npz", "a.track.npz is a 'track' artifact, expected 'head'", "the head comes first"),
    ("transfer a.track.npz a.track.npz", "a.track.npz is a 'track' artifact, expected 'head'", "expportrait fit"),
    ("transfer a.meshes.npz a.track.npz", "a.meshes.npz is a 'meshes' artifact, expected 'head'", ".head.npz that"),
    ("transfer a.head.npz a.head.npz", "a.head.npz is a 'head' artifact, expected 'track'", "before the .track.npz"),
    ("transfer a.head.npz a.meshes.npz", "a.meshes.npz is a 'meshes' artifact, expected 'track'", "render-normals"),
    ("transfer a.head.npz a.normals.mkv", "a.normals.mkv is not a .track.npz file", "expportrait track"),
    ("render-normals a.head.npz", "a.head.npz is a 'head' artifact, expected 'meshes'", "transfer HEAD TRACK"),
    ("render-normals a.track.npz", "a.track.npz is a 'track' artifact, expected 'meshes'", "transfer HEAD TRACK"),
    ("render-normals a.normals.mkv", "a.normals.mkv is not a .meshes.npz file", "transfer HEAD TRACK"),
    ("export a.track.npz", "a.track.npz is a 'track' artifact, expected 'head' or 'meshes'", "Give a .head.npz"),
    ("export a.normals.mkv", "a.normals.mkv is not an artifact of this tool", "they end in .npz"),
    ("track a.head.npz", "a.head.npz is a 'head' artifact, expected a photo or a clip", "what it was made from"),
    ("track a.normals.mkv", "a.normals.mkv is a 'normals' artifact, expected a photo", "what it was made from"),
    ("generate a.track.npz a.track.npz", "a.track.npz is a 'track' artifact, expected a photo", "expportrait fit"),
    ("generate a.track.npz a.head.npz", "a.track.npz is a 'track' artifact", "expected a photo or a .head.npz"),
    ("generate a.head.npz a.head.npz", "a.head.npz is a 'head' artifact", "expected a clip, a .track.npz"),
    ("generate a.head.npz a.normals.mkv", "a.normals.json", "does not exist"),
    ("generate a.normals.mkv a.track.npz", "a.normals.mkv is a 'normals' artifact", "expected a photo or"),
    ("generate a.meshes.npz a.track.npz", "a.meshes.npz is a 'meshes' artifact", "expected a photo or a .head.npz"),
]


@pytest.mark.parametrize(("command", "found", "remedy"), WRONG_KINDS, ids=[row[0] for row in WRONG_KINDS])
def test_commands_name_the_kind_that_they_were_given_instead(command, found, remedy, folder, capsys):
    before = sorted(folder.iterdir())
    assert app.run(command.split()) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {found}") and err.count("\n") == 1
    assert remedy in err
    assert sorted(folder.iterdir()) == before


def test_newer_and_older_versions_say_what_to_do(saved, monkeypatch):
    monkeypatch.setattr(Tracking, "VERSION", Tracking.VERSION - 1)
    assert "Update the tool" in refused(Tracking, saved)
    monkeypatch.setattr(Tracking, "VERSION", Tracking.VERSION + 2)
    assert "Make it again" in refused(Tracking, saved)


def test_types_and_shapes_must_fit_the_annotations_and_each_other(saved):
    for name, wrong, said in [
        ("jaw", np.zeros((4, 3), np.float32), "float32 4x3"),
        ("gaze", np.zeros((3, 4), np.float64), "float64 3x4"),
        ("landmarks", np.zeros((3, 68, 2), np.float32), "Tx478x2"),
        ("focal_px", np.zeros(2), "expected one float"),
        ("source", np.zeros(()), "expected one str"),
    ]:
        npz.save(make(Tracking), saved, {})
        rewrite(saved, name, wrong)
        assert said in refused(Tracking, saved)
        assert name in refused(Tracking, saved)


def test_a_missing_field_is_named(saved):
    rewrite(saved, "jaw")
    assert "lacks 'jaw'" in refused(Tracking, saved)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_pickles_are_refused_and_not_run(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rewrite(saved, "jaw", np.array([Trap()], dtype=object))
    assert "pickled" in refused(Tracking, saved)
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap()))
    refused(Tracking, tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"")
    refused(Tracking, tmp_path / "c.npz")
    assert not (tmp_path / "sprung").exists()


def test_every_truncation_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 50)):
        saved.write_bytes(whole[:length])
        refused(Tracking, saved)


def test_flipped_bytes_never_end_in_a_traceback(saved):
    whole = bytearray(saved.read_bytes())
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole), 200):
        broken = whole.copy()
        broken[place] ^= 0xFF
        saved.write_bytes(broken)
        try:
            npz.load(Tracking, saved)
        except InputError as error:
            assert "\n" not in str(error)


def test_other_npz_files_missing_files_and_folders(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(3))
    assert "no header" in refused(Tracking, tmp_path / "x.npz")
    assert "does not exist" in refused(Tracking, tmp_path / "y.npz")
    assert "folder" in refused(Tracking, tmp_path)


def test_a_failed_save_leaves_the_old_file(saved):
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        npz.save(make(Tracking), saved, {"x": object()})
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_place_that_cannot_be_written_to(saved):
    with pytest.raises(OutputError, match="could not be written"):
        npz.save(make(Tracking), saved / "below a file" / "a.npz", {})
