"""Settings from presets and files, progress as JSON, and the help's groups."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from expportrait_cli.cli import app, command
from expportrait_cli.config import PAPER, Stretch
from expportrait_cli.pipeline import film, job


@pytest.fixture
def asked(monkeypatch, tmp_path, capsys):
    """Run `generate` with stages that only look at what they were asked for; a code other than 0 gives the message."""
    found: list[job.Job] = []
    said: list[str] = []
    for name in ("photo.png", "other.png", "clip.mp4", "other.mp4"):
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(film, "generate", lambda one, show: found.append(one) or film.Film(one.out, one.record, {}))

    def run(*arguments: str, code: int = 0):
        assert app.run(["generate", *arguments]) == code
        said.append(capsys.readouterr().err)
        return said[-1] if code else found[-1]

    run.said = said
    return run


def test_a_file_sets_and_the_command_line_wins(asked, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.png").write_bytes(b"x")
    path = tmp_path / "in" / "run.toml"
    path.write_text(
        'reference = "photo.png"\nsize = 256\nmax-frames = 7\npaste_back = true\nout = "mine.mp4"\n'
        "expression-scale = 1.5\n"
    )
    one = asked("--driving", "clip.mp4", "--config", str(path), "--size", "768")
    assert one.reference == tmp_path / "in" / "photo.png" and one.out == tmp_path / "in" / "mine.mp4"
    assert (one.generate.size, one.generate.paste_back, one.transfer.expression_scale) == (768, True, 1.5)
    assert one.driving_stretch == Stretch(max_frames=7)
    assert not asked("photo.png", "clip.mp4", "--config", str(path), "--no-paste-back").generate.paste_back
    assert asked("--source", "photo.png", "-d", "clip.mp4", "--config", str(path)).reference.name == "photo.png"


def test_a_file_wins_over_a_preset_whatever_their_order(asked, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("size = 768\n")
    for order in (["--preset", "draft", "--config", str(path)], ["--config", str(path), "--preset", "draft"]):
        one = asked("photo.png", "clip.mp4", *order)
        assert (one.generate.size, one.fit.quality, one.generate.backend) == (768, "draft", "proxy")
    assert asked("photo.png", "clip.mp4", "--preset", "paper").transfer == PAPER


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sise = 3", "unknown setting sise. Did you mean size?"),
        ("config = 'a.toml'", "unknown setting config"),
        ("no_grid = true", "unknown setting no_grid"),
        ("grid = 'yes'", "expected true or false"),
        ("size = true", "expected a value"),
        ("size = 500", "--size"),
        ("size = [1979-05-27]", "expected a text or a number"),
        ("[transfer]\nregion = 'lips'", "unknown setting transfer"),
        ("size = ", "could not be read as TOML"),
    ],
)
def test_what_a_file_may_not_say(asked, tmp_path, text, says):
    (tmp_path / "run.toml").write_text(text)
    code = 3 if "could not" in says else 2
    assert says in asked("photo.png", "clip.mp4", "--config", "run.toml", code=code)


def test_a_preset_that_is_none_is_told(asked):
    assert "Did you mean draft?" in asked("photo.png", "clip.mp4", "--preset", "drafts", code=2)


def test_the_record_of_a_film_gives_its_settings_again(asked, tmp_path):
    options = (
        *("--size", "256", "--face", "left", "--start", "3f", "--reference-end", "9f", "--different-person", "--grid"),
        *("--relative", "--steps", "4", "--backend", "wan-v2v", "--quality", "draft", "--aspect", "9:16"),
        "--no-detail",
    )
    first = asked("photo.png", "clip.mp4", "-o", "a.mp4", *options)
    inputs = {"reference": {"path": "photo.png"}, "driving": {"path": "clip.mp4"}}
    record = json.loads(json.dumps({"settings": first.settings(), "inputs": inputs}))
    (tmp_path / "a.json").write_text(json.dumps(record))
    again = asked("--config", "a.json", "-o", "b.mp4")
    assert again.settings() == first.settings() and again.reference == tmp_path / "photo.png"
    other = asked("--config", "a.json", "-d", "other.mp4", "--size", "512", "--no-grid")
    assert other.driving.name == "other.mp4" and not other.grid
    assert other.generate.size == 512 and other.generate.wan == first.generate.wan
    # What the record says of its own photo and clip says nothing of others.
    assert "its --start, --same-person belong to" in asked.said[-1]
    assert "clip.mp4, and are not used for other.mp4" in asked.said[-1]
    assert other.driving_stretch == Stretch() and other.fit.same_person == "auto"
    assert other.track.face == "left" and other.track.stretch == first.track.stretch
    another = asked("other.png", "--config", "a.json", "--start", "5f")
    assert another.track == replace(first.track, face="largest", stretch=Stretch())
    assert another.driving == tmp_path / "clip.mp4" and another.driving_stretch == Stretch(start="5f")
    same = asked(str(tmp_path / "photo.png"), "--config", "a.json")
    assert same.settings() == first.settings() and "belong" not in asked.said[-1]

    record["settings"]["transfer"]["turn_limit_deg"] = 20.0
    (tmp_path / "a.json").write_text(json.dumps(record))
    assert "turn_limit_deg = 20.0, for which" in asked("--config", "a.json", code=2)


def test_progress_as_json_is_all_of_stderr(tmp_path):
    arguments = [sys.executable, "-m", "expportrait_cli", "track", str(tmp_path / "none.png")]
    done = subprocess.run([*arguments, "--progress", "json"], capture_output=True, text=True)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert [event["event"] for event in events] == ["error", "end"] and events[-1]["exit_code"] == done.returncode == 3
    assert "does not exist" in events[0]["message"]
    read, write = os.pipe()
    done = subprocess.run([*arguments, "--progress", f"json:{write}"], capture_output=True, text=True, pass_fds=[write])
    os.close(write)
    assert [json.loads(line)["event"] for line in os.fdopen(read)] == ["error", "end"]
    assert done.stderr.startswith("error: ")


def test_stages_are_told_and_not_too_often(monkeypatch, capfd):
    from expportrait_cli.cli.boundary import Display, output

    monkeypatch.setattr(output, "events", None)
    output.report_as("json")
    with Display() as display:
        progress = display.stage("paint")
        for index in range(1000):
            progress(index + 1, 1000)
    events = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert events[0] == {"event": "stage", "stage": "paint"}
    assert events[-2] == {"event": "progress", "stage": "paint", "done": 1000, "total": 1000}
    assert events[-1]["event"] == "done" and len(events) < 100


@pytest.mark.parametrize("form", ["xml", "json:1", "json:x", "json:777"])
def test_other_forms_of_progress_are_refused(form, capsys):
    assert app.run(["track", "none.png", "--progress", form]) == 2
    assert "--progress" in capsys.readouterr().err


def test_help_begins_with_the_few_options_that_people_need(capsys):
    assert app.run(["generate", "--help"]) == 0
    text = capsys.readouterr().out
    titles = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == [
        *("Arguments", "Options", "Face and clip", "Performance", "Result", "Video transformers", "How it runs")
    ]
    first = text.partition("\nOptions:")[2].partition("\nFace and clip:")[0]
    names = [line.split()[0] for line in first.splitlines() if line.startswith("  -")]
    assert 5 <= len(names) <= 10


def test_every_command_has_the_shared_options(capsys):
    for name in (["track"], ["weights", "list"], ["data", "prepare"], ["train", "gate"], ["doctor"]):
        assert app.run([*name, "--help"]) == 0
        text = capsys.readouterr().out
        assert all(f"--{option}" in text for option in ("preset", "config", "progress", "device", "quiet", "log-level"))


def test_without_a_command_one_is_told_how_to_begin(capsys):
    assert app.run([]) == 0
    text = capsys.readouterr().out
    assert text.count("\n  expportrait ") == 3 and "generate photo.png clip.mp4" in text
    assert app.run(["--help"]) == 0
    table = capsys.readouterr().out.partition("Exit codes:\n")[2]
    assert [int(line.split()[0]) for line in table.splitlines() if line] == list(app.CODES)


def test_presets_name_settings_that_there_are(asked):
    for name in command.PRESETS:
        assert asked("photo.png", "clip.mp4", "--preset", name).settings() != asked("photo.png", "clip.mp4").settings()


def test_what_may_be_given_several_times_is_a_list_in_a_file(asked, tmp_path):
    path = tmp_path / "run.toml"
    for written, expected in (('"a.safetensors:0.8"', ["a"]), ('["a.safetensors:0.8", "b.safetensors"]', ["a", "b"])):
        path.write_text(f'lora = {written}\nweights-folder = "wan-vace-1.3b"\nhead-model = "gnm"\n')
        one = asked("photo.png", "clip.mp4", "--config", str(path))
        record = tmp_path / "film.json"
        record.write_text(json.dumps({"settings": one.settings()}))
        again = asked("photo.png", "clip.mp4", "--config", str(record))
        for job_ in (one, again):
            files = job_.generate.wan.loras()
            assert files == [(str(tmp_path / f"{name}.safetensors"), 0.8 if name == "a" else 1.0) for name in expected]
            assert (job_.generate.wan.weights, job_.head_model) == ("wan-vace-1.3b", "gnm")
