"""Who is in a clip, by folders of the shapes that published sets have."""

from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from expportrait_cli.dataset.sources import find_sources, person_of
from expportrait_cli.errors import InputError

SETS = {
    "vfhq": (
        {
            "Clip+_HebIzK_LP4+P2+C1+F16589-16715.mp4": "vfhq-_HebIzK_LP4-P2",
            "Clip+_HebIzK_LP4+P2+C2+F17000-17200.mp4": "vfhq-_HebIzK_LP4-P2",
            "Clip+_HebIzK_LP4+P0+C0+F100-300.mp4": "vfhq-_HebIzK_LP4-P0",
            "train/Clip+--MJTR3evMw+P0+C0+F205-350_206clip.mp4": "vfhq---MJTR3evMw-P0",
        }
    ),
    "hdtf": (
        {
            "RD_Radio1_000.mp4": "hdtf-Radio1",
            "RD_Radio2_000.mp4": "hdtf-Radio2",
            "RD_Radio1_001.mp4": "hdtf-Radio1",
            "WDA_CarolynMaloney0_000.mp4": "hdtf-CarolynMaloney",
            "WDA_CarolynMaloney1_000.mp4": "hdtf-CarolynMaloney",
            # Eleven letters before the number, as a YouTube id has.
            "WDA_AndyKim_000.mp4": "hdtf-AndyKim",
            "WRA_KellyAyotte_000_cfr25.mp4": "hdtf-KellyAyotte",
        }
    ),
    "ravdess": (
        {
            "Actor_01/01-01-03-02-01-01-01.mp4": "ravdess-01",
            "Song_Actor_01/02-02-04-01-01-01-01.mp4": "ravdess-01",
            "Actor_24/01-01-01-01-02-02-24.mp4": "ravdess-24",
        }
    ),
    "celebv-hq": (
        {
            "35666/M2Ohb0FAaJU_1.mp4": "celebvhq-M2Ohb0FAaJU",
            "35666/M2Ohb0FAaJU_7_2.mp4": "celebvhq-M2Ohb0FAaJU",
            "35666/-5BHvsLh4qk_0.mp4": "celebvhq--5BHvsLh4qk",
        }
    ),
    "a folder a person": (
        {
            "alice/one.mp4": "folder-alice",
            "alice/later/two.mov": "folder-alice",
            "bob/one.mp4": "folder-bob",
            # As long as a YouTube id, but words.
            "bob/take_number_1.mp4": "folder-bob",
            "carol/take_number_1.mp4": "folder-carol",
        }
    ),
    "single files": ({"smile.mp4": "file-smile", "frown.mkv": "file-frown", "a.b.mp4": "file-a.b"}),
}


@pytest.mark.parametrize("name", SETS)
def test_persons_of_a_set(name, tmp_path):
    expected = SETS[name]
    for path in expected:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"tiny")
    found = {
        source.relative.as_posix(): person_of(source.relative)
        for source in find_sources(tmp_path, skipped=tmp_path / "set")
    }
    assert found == expected


def test_folders_of_numbered_pictures_are_videos(tmp_path):
    frames = tmp_path / "Clip+G0DGRma_p48+P1+C0+F11208-11383"
    frames.mkdir()
    for index in (10, 2, *range(20, 28)):
        Image.fromarray(np.full((24, 32, 3), index, np.uint8)).save(frames / f"{index}.png")
    (tmp_path / "photos").mkdir()
    for name in ("me.jpg", "you.jpg", *(f"{index}.jpg" for index in range(9))):
        (tmp_path / "photos" / name).write_bytes(b"tiny")
    (source,) = find_sources(tmp_path, skipped=tmp_path / "set")
    assert person_of(source.relative) == "vfhq-G0DGRma_p48-P1"
    assert [int(frame[0, 0, 0]) for frame in source.frames()] == [2, 10, *range(20, 28)]
    assert len(list(source.frames(end=3))) == 3
    before = source.digest()
    Image.fromarray(np.full((24, 32, 3), 99, np.uint8)).save(frames / "20.png")
    assert source.digest() != before


def test_pictures_of_several_sizes_are_no_video(tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(8):
        Image.fromarray(np.zeros((24, 32 + index // 7, 3), np.uint8)).save(frames / f"{index}.png")
    (source,) = find_sources(tmp_path, skipped=tmp_path / "set")
    with pytest.raises(InputError, match=r"7\.png has another size"):
        list(source.frames())


def test_the_set_itself_and_hidden_files_are_no_sources(tmp_path):
    for name in ("a.MP4", "set/clips/a/clip.mp4", ".trash/b.mp4", ".c.mp4", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"tiny")
    assert [source.relative for source in find_sources(tmp_path, skipped=tmp_path / "set")] == [PurePath("a.MP4")]


def test_a_folder_without_videos_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(InputError, match=r"holds no videos.*\.mp4"):
        find_sources(tmp_path, skipped=tmp_path / "set")
    with pytest.raises(InputError, match="is a file, expected a folder"):
        find_sources(tmp_path / "notes.txt", skipped=Path("set"))
    with pytest.raises(InputError, match="does not exist"):
        find_sources(tmp_path / "none", skipped=Path("set"))
