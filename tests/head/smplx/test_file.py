"""Which SMPL-X files are read, which refused, and that nothing in them can run."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support.smplx_bodies import VERTICES, body, file_of

from expportrait_cli.errors import WeightsError
from expportrait_cli.head import load_head
from expportrait_cli.head.smplx.build import ENVIRONMENT, find_file, read

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return body(load_head())


@pytest.mark.parametrize("width", [10, 20, 399])
def test_fewer_components_are_refused(arrays, tmp_path, width):
    path = file_of(tmp_path, {**arrays, "shapedirs": arrays["shapedirs"][:, :, :width]})
    with pytest.raises(WeightsError, match=rf"{width} components in shapedirs, expected 400"):
        read(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kintree_table": np.zeros((2, 52), int)}, "kintree_table' as int64 2x52, expected numbers 2x55"),
        ({"kintree_table": np.zeros((2, 55), int)}, "another skeleton"),
        ({"f": np.full((4, 3), VERTICES)}, "triangles that it does not have"),
        ({"weights": np.full((VERTICES, 55), np.nan)}, "not finite"),
        ({"lmk_faces_idx": np.array(["a"] * 51)}, "lmk_faces_idx' as <U1 51"),
    ],
)
def test_another_model_is_refused(arrays, tmp_path, changed, message):
    with pytest.raises(WeightsError, match=message):
        read(file_of(tmp_path, {**arrays, **changed}))


def test_a_key_that_is_missing_is_named(arrays, tmp_path):
    with pytest.raises(WeightsError, match="lacks 'posedirs'"):
        read(file_of(tmp_path, {key: value for key, value in arrays.items() if key != "posedirs"}))


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_objects_are_never_unpickled(arrays, tmp_path):
    """The published file holds some beside what is read; as something that is needed they are refused."""
    sprung = tmp_path / "sprung"
    trap = np.array([Trap(sprung)], object)
    assert read(file_of(tmp_path, {**arrays, "joint2num": trap, "part2num": trap})).template.shape == (VERTICES, 3)
    with pytest.raises(WeightsError, match="'v_template' as pickled objects"):
        read(file_of(tmp_path, {**arrays, "v_template": trap}))
    assert not sprung.exists()
    with np.load(tmp_path / "SMPLX_NEUTRAL.npz", allow_pickle=True) as archive:
        archive["v_template"]
    assert sprung.exists(), "the trap works"


def test_pickles_and_damaged_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "SMPLX_NEUTRAL.pkl"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(WeightsError, match=r"is a pickle.*npz"):
        read(path)
    monkeypatch.setenv(ENVIRONMENT, str(path))
    with pytest.raises(WeightsError, match="is a pickle"):
        find_file()
    disguised = path.rename(tmp_path / "SMPLX_NEUTRAL.npz")
    with pytest.raises(WeightsError, match=r"no \.npz file that can be read"):
        read(disguised)
    with zipfile.ZipFile(disguised, "w") as archive:
        archive.writestr("v_template.npy", b"no array")
    with pytest.raises(WeightsError, match="v_template"):
        read(disguised)
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_is_refused_with_the_way_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "none.npz"))
    with pytest.raises(WeightsError, match=r"none\.npz, which is no file.*smpl-x\.is\.tue\.mpg\.de"):
        find_file()
    monkeypatch.delenv(ENVIRONMENT)
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match=r"not there: looked in .*smpl-x\.is\.tue\.mpg\.de"):
        find_file()
    (tmp_path / "SMPLX_NEUTRAL.npz").touch()
    assert find_file() == tmp_path / "SMPLX_NEUTRAL.npz"
