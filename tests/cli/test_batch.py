"""`expportrait batch`: what is said before, while and after films are made; no film is."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from expportrait_cli.cli import app
from expportrait_cli.errors import InputError
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline import film


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A photo, a clip, and films that are made by writing their photo's name."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (64, 64)).save(name)
    with VideoWriter(tmp_path / "clip.mp4", rate=Fraction(25)) as writer:
        for _ in range(4):
            writer.write(np.zeros((32, 32, 3), np.uint8))

    def generate(job, stage):
        if job.reference.stem == "b":
            raise InputError(f"{job.reference} shows no face.")
        job.out.write_text(job.reference.stem)

    monkeypatch.setattr(film, "generate", generate)
    return tmp_path


def run(capsys, *arguments, code=0):
    assert app.run(["batch", *arguments]) == code
    return capsys.readouterr()


def test_rows_are_looked_at_first_made_and_summed_up(folder, capsys):
    rows = ["a.png,clip.mp4,1.mp4,", "none.png,clip.mp4,2.mp4,", "b.png,clip.mp4,3.mp4,", "a.png,clip.mp4,4.mp4,9s"]
    (folder / "jobs.csv").write_text("\n".join(["reference,driving,output,start", *rows]))
    said = run(capsys, "jobs.csv", code=3)
    assert said.out == "1.mp4\n"
    lines = said.err.splitlines()
    first = next(index for index, line in enumerate(lines) if "film 1 of" in line)
    assert any("none.png does not exist" in line for line in lines[:first])
    assert any("4 frames (0.16 s)" in line and "--start 9s" in line for line in lines[:first])
    assert "3 of 4 films failed" in lines[-1] and "summary.html" in lines[-1]
    assert "1 of 4 films made, 3 failed" in (folder / "jobs.work" / "summary.html").read_text()
    states = json.loads(run(capsys, "jobs.csv", "--status", "--json").out)
    assert [state["exit_code"] for state in states] == [0, 3, 3, 3] and states[0]["attempts"] == 1
    assert "done" in run(capsys, "jobs.csv", "--status").out


def test_a_place_that_cannot_be_written_to_is_one_line(folder, capsys):
    (folder / "taken").write_text("a file")
    words = ["batch", str(folder / "*.png"), "--driving", str(folder / "*.png"), "-o", str(folder / "taken")]
    assert app.run(words) == 3
    assert capsys.readouterr().err.startswith(f"error: Nothing can be written to {folder / 'taken'}")


def test_a_dry_run_checks_all_rows_and_makes_nothing(folder, capsys):
    rows = ["a.png,clip.mp4,1.mp4", "none.png,clip.mp4,2.mp4", "b.png,clip.mp4,3.mp4"]
    (folder / "jobs.csv").write_text("\n".join(["reference,driving,output", *rows]))
    said = run(capsys, "jobs.csv", "--dry-run", code=3)
    assert [line.partition(":")[0] for line in said.out.splitlines()] == ["1.mp4", "3.mp4"]
    assert "none.png does not exist" in said.err and "2 of 3 films can be made, in about" in said.err
    assert "1 of 3 films cannot be made" in said.err.splitlines()[-1]
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "b.png", "clip.mp4", "jobs.csv"]
    (folder / "jobs.csv").write_text("\n".join(["reference,driving,output", rows[0]]))
    (found,) = json.loads(run(capsys, "jobs.csv", "--dry-run", "--json").out)
    assert found["output"] == "1.mp4" and [stage["name"] for stage in found["stages"]][-1] == "paint the film"


def test_a_file_of_settings_holds_for_all_rows_of_patterns(folder, capsys, monkeypatch):
    (folder / "run.toml").write_text("size = 256\nworkers = 1\nmax_frames = 2\n")
    seen = []
    monkeypatch.setattr(film, "generate", lambda job, stage: seen.append(job))
    run(capsys, "*.png", "-d", "*.mp4", "--config", "run.toml", "-o", "out")
    assert [job.out.name for job in seen] == ["a--clip.mp4", "b--clip.mp4"]
    assert {(job.generate.size, job.driving_stretch.max_frames) for job in seen} == {(256, 2)}
    run(capsys, "*.png", "-d", "*.mp4", "--preset", "fine", "-o", "out")
    assert {(job.fit.quality, job.generate.size) for job in seen[2:]} == {("high", 768)}
    run(capsys, "*.png", "-d", "*.mp4", "--config", "run.toml", "--preset", "fine", "-o", "out")
    assert {(job.fit.quality, job.generate.size) for job in seen[4:]} == {("high", 256)}
    (folder / "run.toml").write_text("sise = 256\n")
    assert "Did you mean size?" in run(capsys, "*.png", "-d", "*.mp4", "--config", "run.toml", code=2).err
    assert "--driving" in run(capsys, "*.png", code=2).err


def test_programs_are_told_of_rows(folder, capfd):
    (folder / "jobs.csv").write_text("reference,driving,output\na.png,clip.mp4,1.mp4\n")
    events = [json.loads(line) for line in run(capfd, "jobs.csv", "--progress", "json").err.splitlines()]
    (row,) = [event for event in events if event["event"] == "row"]
    assert (row["output"], row["exit_code"], row["attempts"]) == ("1.mp4", 0, 1)
    assert events[-1] == {"event": "end", "exit_code": 0}


def test_without_slurm_one_line_says_so_before_any_film(folder, capsys, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(folder))
    (folder / "jobs.csv").write_text("reference,driving,output\na.png,clip.mp4,1.mp4\n")
    said = run(capsys, "jobs.csv", "--executor", "slurm", code=2)
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: --executor slurm: this machine has no srun. Give the command on a machine of")
