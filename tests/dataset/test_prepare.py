"""A folder of videos to a set, through the command line: what is taken, what is not and why, and going on."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from conftest import MakeClip
from support.david_net import david_file
from support.places import ROOT

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import FitConfig, PrepareConfig
from expportrait_cli.dataset.dataset import Dataset, Row
from expportrait_cli.dataset.make import Plan, Setup, finished, plan_of, scanned
from expportrait_cli.dataset.prepare import RowLog
from expportrait_cli.dataset.sources import find_sources
from expportrait_cli.dataset.summary import clip_meshes
from expportrait_cli.errors import FAULT, InputError, OutputError
from expportrait_cli.head import landmarks, load_head
from expportrait_cli.media.image import read_image
from expportrait_cli.media.video import frame_count, probe, read_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline.steps import fit_header, is_current
from expportrait_cli.weights.catalogue import entry

DRIVING = ROOT / "examples" / "driving.mp4"
RATE = Fraction(15000, 1001)
TALKING = 23
"""Frames, the least that 1.5 s of this rate have."""


def run(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    assert app.run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, err


def rows_of(out: Path) -> dict[str, dict]:
    return {row["source"]: row for row in json.loads((out / "dataset.json").read_text("utf-8"))["clips"]}


def times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_clip: MakeClip) -> Path:
    """A head that talks for a second and a half, once more as a copy; a photo that is panned over; nobody; no video."""
    folder = tmp_path_factory.mktemp("videos")
    for person in ("alice", "bob", "carol"):
        (folder / person).mkdir()
    with VideoWriter(folder / "alice" / "talk é 1.mp4", rate=RATE) as writer:
        for frame in islice(read_frames(DRIVING), 0, 2 * TALKING, 2):
            writer.write(frame)
    shutil.copy(folder / "alice" / "talk é 1.mp4", folder / "carol" / "again.mp4")
    photo = cv2.resize(skimage.data.astronaut()[:240, 100:340], (480, 480), interpolation=cv2.INTER_CUBIC)
    with VideoWriter(folder / "bob" / "still.mp4", rate=Fraction(25, 2)) as writer:
        for index in range(20):
            pan = np.array([[1, 0, index], [0, 1, 0]], np.float64)
            writer.write(cv2.warpAffine(photo, pan, (480, 480), borderMode=cv2.BORDER_REPLICATE))
    shutil.move(make_clip("nobody.mp4", size="320x240", rate="10"), folder / "bob" / "nobody.mp4")
    shutil.move(make_clip("short.mp4", size="320x240", rate="10", seconds=1.0), folder / "bob" / "short.mp4")
    (folder / "bob" / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module")
def interrupted(folder, tmp_path_factory) -> tuple[Path, str, dict[str, int]]:
    """A run that was interrupted when the clip was tracked and not yet fitted: the set, stderr, the files' times."""
    out = tmp_path_factory.mktemp("sets") / "set"
    # A job that a script started in the background ignores the signal, and so would what it starts.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{heeds}; from expportrait_cli.cli.app import main; main()"]
    process = subprocess.Popen(
        [*command, "data", "prepare", str(folder), "-o", str(out), "--jobs", "2"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 300
    while not list(out.glob("clips/*/track.npz")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    # As a terminal does: to the whole group.
    os.killpg(process.pid, signal.SIGINT)
    said, err = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    return out, err, times(out)


@pytest.fixture(scope="module")
def prepared(folder, interrupted) -> Path:
    """The same set, gone on with."""
    out = interrupted[0]
    assert app.run(["-q", "data", "prepare", str(folder), "-o", str(out), "--jobs", "1"]) == 0
    return out


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_partial_files_and_says_what_to_do(interrupted):
    out, err, before = interrupted
    assert err.splitlines()[-1] == "error: interrupted. Run the same command again to go on where it stopped."
    assert "Traceback" not in err
    assert not [path for path in before if path.endswith(".partial")]
    assert not list(out.glob("clips/*/head.npz"))


@pytest.mark.slow
def test_it_goes_on_with_what_there_was(interrupted, prepared):
    _, _, before = interrupted
    after = times(prepared)
    kept = [path for path in before if path.endswith(("clip.mp4", "track.npz")) or "/scans/" in path]
    assert len(kept) >= 6
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}


@pytest.mark.slow
def test_jobs_of_slurm_make_the_same_set(folder, prepared, tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(folder.parent)
    far = ("--executor", "slurm", "--slurm", "cluster=local,timeout_min=10", "--jobs", 2)
    run(capsys, "data", "prepare", folder.name, "-o", tmp_path / "far", *far)
    found, expected = rows_of(tmp_path / "far"), rows_of(prepared)
    assert found == expected
    done = [json.loads(path.read_text()) for path in (tmp_path / "far" / "work" / "rows").glob("*.json")]
    # Six videos and one clip, each a row that another process made.
    assert [row["exit_code"] for row in done] == [0] * 7
    assert f"process {os.getpid()} " not in {row["by"] for row in done}


@pytest.mark.slow
def test_every_video_is_taken_or_has_a_reason(prepared):
    rows = rows_of(prepared)
    assert {name: row["status"] for name, row in rows.items()} == {
        "alice/talk é 1.mp4": "accepted",
        "bob/broken.mp4": "rejected",
        "bob/nobody.mp4": "rejected",
        "bob/short.mp4": "rejected",
        "bob/still.mp4": "rejected",
        "carol/again.mp4": "rejected",
    }
    assert rows["bob/nobody.mp4"]["reason"] == "a face in 0% of the frames, at least 90%"
    assert rows["bob/still.mp4"]["reason"].startswith("still: the face moves by 0.")
    assert rows["bob/still.mp4"]["figures"]["face_share"] == 1.0
    assert rows["bob/short.mp4"]["reason"] == "a shot of 1.00 s, at least 1.5 s"
    assert rows["carol/again.mp4"]["reason"] == "a copy of alice/talk é 1.mp4"
    assert "broken.mp4 is not a clip" in rows["bob/broken.mp4"]["reason"]
    taken = rows["alice/talk é 1.mp4"]
    assert (taken["person"], taken["first_frame"], taken["frames"], taken["rate"]) == (
        "folder-alice",
        0,
        TALKING,
        "15000/1001",
    )
    assert taken["name"].startswith("talk___1-000000-") and len(taken["source_sha256"]) == 64
    assert taken["figures"]["landmark_error_percent"] < 2 and taken["figures"]["silhouette_iou"] > 0.9
    assert sum(taken["histograms"]["yaw"]) == TALKING


@pytest.mark.slow
def test_the_set_is_read_back_whole(prepared):
    found = Dataset.open(prepared)
    (clip,) = found.clips
    assert (found.head_model, clip.person) == ("anny", "folder-alice")
    info = probe(clip.video)
    assert (info.width, info.height, info.rate, info.has_audio) == (CROP_SIZE, CROP_SIZE, RATE, False)
    assert frame_count(clip.video) == TALKING
    tracking, fit = npz.load(Tracking, clip.tracking), npz.load(HeadFit, clip.head)
    assert len(tracking.error) == TALKING == len(fit.dynamic_offset)
    # The head stands where the landmarks are: its own, of a frame in the middle.
    head = load_head()
    frame = np.array([TALKING // 2])
    points = landmarks(head, torch.from_numpy(clip_meshes(fit, tracking, head, frame))).numpy()[0]
    shown = points[:, :2] / points[:, 2:] * tracking.focal_px + CROP_SIZE / 2
    away = np.linalg.norm(shown - tracking.landmarks[frame[0]], axis=1)
    eyes = np.linalg.norm(tracking.landmarks[frame[0], 33] - tracking.landmarks[frame[0], 263])
    assert np.median(away) < 0.02 * eyes


@pytest.mark.slow
def test_the_page_shows_the_head_on_the_face(prepared):
    (clip,) = Dataset.open(prepared).clips
    sheet = read_image(prepared / "sheets" / f"{clip.name}.jpg")
    assert sheet.shape == (3 * 192, 4 * 192, 3)
    pictures, both, normals = np.split(sheet.astype(float), 3)
    # The middle of the first column: a face to the camera is blue, and the row between is half of each.
    face = (slice(80, 120), slice(80, 110))
    assert normals[face][..., 2].mean() > 200
    assert np.abs((pictures + normals)[face] / 2 - both[face]).mean() < 8
    assert clip.name in (prepared / "index.html").read_text("utf-8")


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_lost_head_is_made_again(folder, prepared, capsys):
    before = times(prepared / "clips") | times(prepared / "sheets") | times(prepared / "work")
    out, err = run(capsys, "data", "prepare", folder, "-o", prepared, "--jobs", 1, "--json")
    assert json.loads(out) == {
        "output": str(prepared),
        "accepted": 1,
        "rejected": 5,
        "persons": 1,
        "frames": TALKING,
        "summary": str(prepared / "index.html"),
    }
    assert "look at the videos: 6 of 6" in err and "All clips count as one person, folder-alice" in err
    assert times(prepared / "clips") | times(prepared / "sheets") | times(prepared / "work") == before
    (clip,) = Dataset.open(prepared).clips
    clip.head.unlink()
    run(capsys, "data", "prepare", folder, "-o", prepared, "--jobs", 1)
    after = times(prepared / "clips")
    assert [path for path in after if after[path] != before[path]] == [str(clip.head)]


@pytest.mark.slow
def test_a_folder_of_nothing_usable(folder, tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    shutil.copy(folder / "bob" / "nobody.mp4", tmp_path / "videos")
    _, err = run(capsys, "data", "prepare", tmp_path / "videos", "-o", tmp_path / "set", "--jobs", 1, code=3)
    assert err.splitlines()[-1].startswith("error: None of 1 stretches of video was accepted")
    assert "a face in 0% of the frames" in (tmp_path / "set" / "index.html").read_text("utf-8")


def test_a_set_of_another_folder_is_left_alone(tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_text("no video")
    out = tmp_path / "set"
    out.mkdir()
    content = {"kind": "dataset", "version": 1, "complete": True, "clips": [], "folder": str(tmp_path / "one")}
    (out / "dataset.json").write_text(json.dumps(content))
    _, err = run(capsys, "-q", "data", "prepare", tmp_path / "two", "-o", out, code=3)
    assert "was made from" in err and "Name another folder with -o" in err
    assert json.loads((out / "dataset.json").read_text()) == content


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["data", "prepare", "{}/none", "-o", "{}/set"], 3, "does not exist, expected a folder of videos"),
        (["data", "prepare", "{}", "-o", "{}/set"], 3, "holds no videos"),
        (["data", "prepare", "{}", "-o", "{}"], 2, "Name another folder for the set"),
        (["data", "prepare", "{}"], 2, "--out"),
        (["data", "prepare", "{}", "-o", "{}/set", "--jobs", "0"], 2, "--jobs"),
    ],
)
def test_mistakes_are_one_line(arguments, code, said, tmp_path, capsys):
    _, err = run(capsys, "-q", *(argument.format(tmp_path) for argument in arguments), code=code)
    assert err.count("\n") == 1 and said in err
    assert not (tmp_path / "set").exists()


def test_a_fault_in_one_clip_leaves_the_others(tmp_path):
    row = Row("a", "file-a", "a.mp4", "ab", 0, 48, "25", "rejected", "still", "anny")
    row_log = RowLog(Setup(tmp_path / "set", PrepareConfig(), "anny"), tmp_path, "anny")
    row_log.add(row)
    row_log.fail("b-000000", ZeroDivisionError("in one clip"))
    row_log.add(replace(row, source="c.mp4"))
    with pytest.raises(InputError, match=r"1 videos or clips met a fault.*b-000000") as fault:
        row_log.close()
    assert fault.value.exit_code == FAULT
    content = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert not content["complete"] and [row["source"] for row in content["clips"]] == ["a.mp4", "c.mp4"]
    with pytest.raises(OutputError, match="disk full"):
        row_log.fail("c", OutputError("disk full"))


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from expportrait_cli.cli.app import run;"
        "assert run(['data', 'prepare', '--help']) == 0; print('\\nMODULES', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Usage: expportrait data prepare" in done
    assert not {"torch", "mediapipe", "cv2", "warp", "numpy"} & set(done.partition("MODULES")[2].split())


@pytest.mark.slow
@pytest.mark.media
def test_people(media, tmp_path, capsys):
    """Two clips of people are taken, with heads that fit; two people at once are not."""
    videos = tmp_path / "videos"
    for name in ("driving/drv11", "driving/drv13", "hard/hard18"):
        (source,) = media.glob(f"{name}*")
        path = videos / name.partition("/")[2] / source.name
        path.parent.mkdir(parents=True)
        with VideoWriter(path, rate=probe(source).rate) as writer:
            for frame in islice(read_frames(source), 50):
                writer.write(frame)
    run(capsys, "data", "prepare", videos, "-o", tmp_path / "set")
    found = Dataset.open(tmp_path / "set")
    assert [clip.person for clip in found.clips] == ["folder-drv11", "folder-drv13"]
    rows = {name.partition("/")[0]: row for name, row in rows_of(tmp_path / "set").items()}
    assert rows["hard18"]["reason"].startswith("several faces of similar size")
    for name in ("drv11", "drv13"):
        assert rows[name]["figures"]["landmark_error_percent"] < 2.5
        assert rows[name]["figures"]["silhouette_iou"] > 0.93


@pytest.mark.slow
def test_an_estimator_that_was_installed_since_makes_every_head_anew(folder, prepared, tmp_path, monkeypatch):
    setup = Setup(prepared, PrepareConfig(), "anny")

    def plans() -> list[Plan]:
        (source,) = (each for each in find_sources(folder, skipped=prepared) if each.relative.parts[0] == "alice")
        found = scanned(source, setup)
        return [plan_of(source, found, index, setup, person="alice") for index in range(len(found.stretches))]

    before = [finished(plan) for plan in plans()]
    assert before and all(row is not None for row in before)
    david_file(tmp_path / entry("david").file)
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    assert [finished(plan) for plan in plans()] == [None] * len(before)
    (plan,) = plans()
    track = npz.read_header(plan.clip.tracking)["made_by"]["key"]
    header = fit_header(FitConfig(), {"track": track, "driver": "", "head": ""})
    assert not is_current(plan.clip.head, header) and header["networks"][0]["name"] == "david"
