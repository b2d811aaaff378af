"""Results that are wrong without a word: faults found in tools of this kind, each with the test against it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image

from expportrait_cli import config
from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import film_name
from expportrait_cli.artifacts.types import Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import CHANGES, PAPER, TrackConfig
from expportrait_cli.detect.crop import crop_image, steady_crop
from expportrait_cli.errors import InputError
from expportrait_cli.head import landmark_model, load_head
from expportrait_cli.media import ffmpeg, writer
from expportrait_cli.media.video import frame_count, probe, read_frames
from expportrait_cli.media.writer import VideoWriter, join
from expportrait_cli.pipeline import film, job
from expportrait_cli.pipeline.joblist import read_jobs
from expportrait_cli.pipeline.performance import Driver
from expportrait_cli.pipeline.steps import made_by
from expportrait_cli.tracking.observe import HELD, INTERPOLATED, TRACKED, Observations, observe

NTSC = Fraction(30000, 1001)
FACE = slice(0, 200), slice(124, 324)
FACE_AT = (224, 115)
"""The middle of the astronaut's face in the whole picture."""
RIGHT, LEFT = (340, 20), (10, 20)


def quiet(done: int, total: int | None) -> None:
    pass


def grey_clip(path: Path, *, count: int, rate: Fraction, audio: Path | None = None, size=(32, 32)) -> Path:
    with VideoWriter(path, rate=rate, audio=audio) as writer:
        for index in range(count):
            writer.write(np.full((*size, 3), index % 250, np.uint8))
    return path


def sound_length_s(path: Path) -> float:
    """Length of the decoded sound."""
    _, out, _ = ffmpeg.run(*ffmpeg.input_file(path), "-map", "0:a:0", "-f", "framemd5", "-")
    rows = [line.split(",") for line in out.splitlines() if line and not line.startswith("#")]
    rate = re.search(r"#tb 0: 1/(\d+)", out)
    assert rate is not None
    return (int(rows[-1][1]) + int(rows[-1][3])) / int(rate[1])


def scene(*, left: str = "", right: str = "", light: float = 1.0) -> np.ndarray:
    """A landscape frame with a place of 200 px at the left and one at the right: empty, a `face` or a `blur` of it."""
    frame = np.full((240, 560, 3), 110, np.uint8)
    frame[::16] = 55
    face = skimage.data.astronaut()[FACE]
    for what, (x, y) in ((left, LEFT), (right, RIGHT)):
        if what:
            frame[y : y + 200, x : x + 200] = cv2.blur(face, (51, 51)) if what == "blur" else face
    return cv2.convertScaleAbs(frame, alpha=light)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Observations:
    """A face at the right of a landscape clip; hidden twice; after a cut at the left; gone at the end."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    face, blur = scene(right="face"), scene(right="blur")
    other = [scene(left=what, light=0.7) for what in ("face", "blur")]
    frames = [face] * 5 + [blur] * 3 + [face] * 2 + [other[0]] * 4 + [other[1]] * 3
    with VideoWriter(path, rate=Fraction(10)) as writer:
        for frame in frames:
            writer.write(frame)
    return observe(path, landmark_model(load_head()), TrackConfig(), quiet)


def source_px(observations: Observations) -> np.ndarray:
    left, top, side = observations.crop
    return observations.landmarks * (side / 512) + [left, top]


# 1. The rate cut to a whole number: 29.97 played at 29, the sound 2 s short in a minute.
def test_a_broken_rate_stays_exact_and_sound_as_long_as_the_film(tmp_path):
    ffmpeg.run("-f", "lavfi", "-i", "sine=duration=30", "-y", str(tmp_path / "sound.m4a"))
    writer = [grey_clip(tmp_path / f"{n}.mp4", count=299, rate=NTSC) for n in range(2)]
    join(writer, tmp_path / "film.mp4", rate=NTSC, frame_count=598, audio=tmp_path / "sound.m4a")
    info = probe(tmp_path / "film.mp4")
    assert (info.rate, frame_count(tmp_path / "film.mp4")) == (NTSC, 598)
    assert info.duration_s == pytest.approx(598 * 1001 / 30000, abs=0.01)
    assert sound_length_s(tmp_path / "film.mp4") == pytest.approx(info.duration_s, abs=0.05)


# 2. Frames of two clips paired by index: at different rates they drift, and the shorter one ends the film.
@pytest.mark.slow
def test_a_clip_as_reference_gives_its_face_and_neither_rate_nor_length(tmp_path, capsys):
    reference, driving = tmp_path / "reference.mp4", tmp_path / "driving.mp4"
    face = skimage.data.astronaut()[:300, 74:374]
    for path, count, rate in ((reference, 3, Fraction(25)), (driving, 7, Fraction(24000, 1001))):
        with VideoWriter(path, rate=rate) as writer:
            for index in range(count):
                writer.write(np.roll(face, index, axis=0))
    path = tmp_path / "film.mp4"
    assert app.run(["-q", "generate", str(reference), str(driving), "-o", str(path), "--size", "256"]) == 0
    assert (probe(path).rate, frame_count(path)) == (Fraction(24000, 1001), 7)
    capsys.readouterr()


# 3. A face followed from the frame before alone: after a cut, or when it leaves, nonsense without a warning.
def test_a_cut_starts_anew_at_the_right_face(seen):
    assert seen.shot.tolist() == [0] * 10 + [1] * 7
    centres = source_px(seen).mean(1)
    face = np.array(FACE_AT) - [124, 0]
    for frames, corner in ((range(5), RIGHT), (range(8, 10), RIGHT), (range(10, 14), LEFT)):
        for t in frames:
            assert np.hypot(*(centres[t] - face - corner)) < 25, t


# 4. Frames without a face dropped: everything after them comes too early for the sound.
def test_frames_without_a_face_keep_their_place(seen):
    T, I, H = TRACKED, INTERPOLATED, HELD  # noqa: E741
    assert seen.state.tolist() == [T] * 5 + [I] * 3 + [T] * 2 + [T] * 4 + [H] * 3
    np.testing.assert_array_equal(seen.landmarks[14:], np.broadcast_to(seen.landmarks[13], (3, 478, 2)))
    assert np.isfinite(seen.landmarks).all()


# 5. The film ends at the first frame without a face; a driver without sound kills it at the end; two jobs in one
# folder share a temporary file.
def test_a_film_without_sound_and_two_at_once(tmp_path):
    silent = grey_clip(tmp_path / "silent.mp4", count=4, rate=NTSC)
    join([silent], tmp_path / "film.mp4", rate=NTSC, frame_count=4, audio=silent)
    assert frame_count(tmp_path / "film.mp4") == 4 and not probe(tmp_path / "film.mp4").has_audio
    with VideoWriter(tmp_path / "same.mp4", rate=NTSC) as one, VideoWriter(tmp_path / "same.mp4", rate=NTSC) as two:
        for index in range(6):
            one.write(np.full((32, 32, 3), 10, np.uint8))
            if index < 5:
                two.write(np.full((32, 32, 3), 200, np.uint8))
    assert frame_count(tmp_path / "same.mp4") == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.mp4", "same.mp4", "silent.mp4"]


# 6. A landscape driver cut to its left square; 500 frames and no more; options that are read and ignored.
def test_the_crop_goes_where_the_face_is(seen):
    assert seen.crop.left <= 10 + 40 and seen.crop.left + seen.crop.side >= 340 + 150
    points = source_px(seen)[0]
    assert points[:, 0].min() > RIGHT[0]


@pytest.mark.slow
def test_a_long_clip_is_read_and_painted_to_its_end(tmp_path):
    path = grey_clip(tmp_path / "long.mp4", count=1207, rate=Fraction(60))
    assert frame_count(path) == 1207 == sum(1 for _ in read_frames(path))
    parts = writer.write_segments(
        lambda start: read_frames(path, start=start),
        tmp_path / "segments",
        frame_count=1207,
        rate=Fraction(60),
        progress=quiet,
    )
    assert sum(frame_count(part) for part in parts) == 1207


OPTIONS = {
    "--face": ("left", lambda job: job.track.face),
    "--driving-face": ("1", lambda job: job.driving_face),
    "--start": ("1f", lambda job: job.driving_stretch.start),
    "--end": ("0.1s", lambda job: job.driving_stretch.end),
    "--max-frames": ("2", lambda job: job.driving_stretch.max_frames),
    "--reference-start": ("1f", lambda job: job.track.stretch.start),
    "--reference-end": ("0.1s", lambda job: job.track.stretch.end),
    "--reference-max-frames": ("2", lambda job: job.track.stretch.max_frames),
    "--quality": ("draft", lambda job: job.fit.quality),
    "--aspect": ("9:16", lambda job: job.generate.aspect),
    "--on-missing": ("fail", lambda job: job.track.on_missing),
    "--head-model": ("smplx", lambda job: job.head_model or "anny"),
    "--method": ("none", lambda job: job.transfer.method),
    "--network": ("mine.safetensors", lambda job: job.transfer.network),
    "--same-person": (None, lambda job: job.fit.same_person == "yes"),
    "--expression": ("relative", lambda job: job.transfer.expression),
    "--pose": ("absolute", lambda job: job.transfer.pose),
    "--absolute": (None, lambda job: job.transfer == PAPER),
    "--neutral-frame": ("3", lambda job: job.transfer.neutral_frame),
    "--expression-scale": ("0.5", lambda job: job.transfer.expression_scale),
    "--pose-scale": ("0.25", lambda job: job.transfer.pose_scale),
    "--region": ("lips,eyes", lambda job: job.transfer.region),
    "--smooth": ("1.5", lambda job: job.transfer.smooth),
    "--representation": ("static", lambda job: job.transfer.representation),
    "--mouth": ("model", lambda job: job.generate.mouth),
    "--wrinkles": ("none", lambda job: job.generate.wrinkles),
    "--no-detail": (None, lambda job: not job.generate.detail),
    "--audio": ("none", lambda job: job.generate.audio),
    "--encode-quality": ("small", lambda job: job.generate.encode_quality),
    "--paste-back": (None, lambda job: job.generate.paste_back),
    "--size": ("768", lambda job: job.generate.size),
    "--backend": ("proxy", lambda job: job.generate.backend),
    "--weights-folder": (".", lambda job: job.generate.wan.weights),
    "--steps": ("4", lambda job: job.generate.wan.steps),
    "--guidance": ("1.5", lambda job: job.generate.wan.guidance),
    "--control": ("depth", lambda job: job.generate.wan.control),
    "--strength": ("0.5", lambda job: job.generate.wan.strength),
    "--shift": ("5.0", lambda job: job.generate.wan.shift),
    "--prompt": ("a portrait", lambda job: job.generate.wan.prompt),
    "--negative-prompt": ("blurred", lambda job: job.generate.wan.negative_prompt),
    "--no-keep": (None, lambda job: not job.generate.wan.keep),
    "--skip": ("2", lambda job: job.generate.wan.skip),
    "--compile": (None, lambda job: job.generate.wan.compile),
    "--vae": ("bf16", lambda job: job.generate.wan.vae),
    "--chain": ("5", lambda job: job.generate.wan.chain),
    "--dtype": ("bf16", lambda job: job.generate.wan.dtype),
    "--offload": ("group", lambda job: job.generate.wan.offload),
    "--quantize": ("fp8", lambda job: job.generate.wan.quantize),
    "--lora": ("mine.safetensors", lambda job: job.generate.wan.lora),
    "--cache": ("0.05", lambda job: job.generate.wan.cache),
    "--attention": ("sage", lambda job: job.generate.wan.attention),
    "--seed": ("7", lambda job: job.generate.seed),
    "--grid": (None, lambda job: job.grid),
    "--no-keep-work": (None, lambda job: not job.keep_work),
}
NOT_SETTINGS = (
    *("--source", "--driving", "--out", "--curves", "--report", "--preset", "--config"),
    *("--dry-run", "--show-control", "--json", "--progress", "--device", "--quiet", "--log-level", "--help"),
)


@pytest.fixture
def asked(monkeypatch, tmp_path, capsys):
    """Run `generate` with stages that only look at what they were asked for."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (64, 64)).save(photo)
    clip = grey_clip(tmp_path / "clip.mp4", count=4, rate=NTSC)
    found: list[job.Job] = []

    def run(*arguments: str) -> job.Job:
        def generate(one, show):
            found.append(one)
            return film.Film(one.out, one.record, {})

        monkeypatch.setattr(film, "generate", generate)
        assert app.run(["generate", str(photo), str(clip), "-o", str(tmp_path / "film.mp4"), *arguments]) == 0
        capsys.readouterr()
        return found[-1]

    return run


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_reaches_the_job_and_makes_another_film(option, asked):
    value, setting = OPTIONS[option]
    plain, changed = asked(), asked(option, *([] if value is None else [value]))
    expected = True if value is None else type(setting(plain))(value)
    assert setting(changed) == expected != setting(plain)
    keys = [made_by("generate", one.settings(), {})["key"] for one in (plain, changed)]
    assert (keys[0] == keys[1]) == (option == "--no-keep-work")


# 8, and 7. The help names another default than the one that counts.
def test_every_option_is_known_here_and_help_tells_the_true_default(capsys, asked):
    assert app.run(["generate", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    shown = dict(re.findall(r" (--[a-z-]+)(?= )(?:(?! --)[^\[])*?\[default: ([^\];]+)", text.partition("Options:")[2]))
    named = set(re.findall(r"--[a-z-]+", text.partition("Options:")[2]))
    alternatives = {
        "--relative",
        "--different-person",
        "--no-paste-back",
        "--no-grid",
        "--no-report",
        "--keep-work",
        "--keep",
        "--detail",
        "--reference",
    }
    assert named - alternatives == {*OPTIONS, *NOT_SETTINGS}
    plain = asked()
    for option, (value, setting) in OPTIONS.items():
        if value is not None and option in shown:
            assert str(setting(plain)) == shown[option].strip(), option


# 7. 100 frames and no more (above); 25 frames/s whatever the driver's (1); a seed that is read and not used (above);
# "False" read as true; a result made with other settings taken for the one that was asked for.
def test_no_means_no_in_a_list(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(
        "reference,driving,output,paste_back,absolute,grid\na.png,b.mp4,1.mp4,False,no,0\na.png,b.mp4,2.mp4,True,yes,1\n"
    )
    off, on = read_jobs(path, tmp_path)
    assert not (off.generate.paste_back or off.grid) and off.transfer == CHANGES
    assert on.generate.paste_back and on.grid and on.transfer == PAPER


def test_short_forms_stand_for_both(asked, capsys, tmp_path):
    assert asked("--relative").transfer == CHANGES
    assert asked("--absolute", "--neutral-frame", "3").transfer == replace(PAPER, neutral_frame="3")
    assert asked("--different-person").fit.same_person == "no"
    assert app.run(["generate", "a.png", "b.mp4", "--absolute", "--pose", "relative"]) != 0
    path = tmp_path / "jobs.csv"
    path.write_text("reference,driving,output,same_person,pose\na.png,b.mp4,1.mp4,yes,absolute\n")
    (one,) = read_jobs(path, tmp_path)
    assert one.fit.same_person == "yes" and one.transfer.pose == "absolute" and one.transfer.expression == "absolute"
    for columns, cells in (("absolute,pose", "yes,relative"), ("same_person", "maybe")):
        path.write_text(f"reference,driving,output,{columns}\na.png,b.mp4,1.mp4,{cells}\n")
        with pytest.raises(InputError, match=columns.split(",")[-1]):
            read_jobs(path, tmp_path)


def another(settings, name: str):
    """Some value that a setting does not have."""
    value, hint = getattr(settings, name), get_type_hints(type(settings))[name]
    if get_origin(hint) is Literal:
        return next(choice for choice in get_args(hint) if choice != value)
    match value:
        case bool():
            return not value
        case str():
            return f"{value}2"
        case int():
            return value + 1
        case config.Stretch():
            return replace(value, max_frames=value.max_frames + 1)
        case config.WanConfig():
            return replace(value, steps=value.steps + 1)
        case config.FitWeights():
            return replace(value, shading=value.shading + 1)
        case config.FitDescent():
            return replace(value, fine_steps=value.fine_steps + 1)
    return (value or 0.0) / 2 + 0.125


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, field.name)
        for section, cls in (
            ("track", config.TrackConfig),
            ("fit", config.FitConfig),
            ("transfer", config.TransferConfig),
            ("generate", config.GenerateConfig),
        )
        for field in fields(cls)
    ],
)
def test_every_setting_counts_for_what_is_used_again(section, name):
    plain = job.Job(Path("a.png"), Path("b.mp4"), Path("c.mp4"))
    settings = replace(getattr(plain, section), **{name: another(getattr(plain, section), name)})
    changed = replace(plain, **{section: settings})
    assert made_by("generate", plain.settings(), {})["key"] != made_by("generate", changed.settings(), {})["key"]


# 8. A rate that gets lost between two commands: the film at 30 whatever the driver's, and without its sound, or with
# the sound of another part of the clip.
@pytest.mark.slow
def test_rate_sound_and_trim_survive_the_commands_one_by_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(skimage.data.astronaut()[:300, 74:374]).save("photo.png")
    # Loud from frame 3 on, which is where the trimmed clip begins.
    loud = f"aevalsrc=if(lt(t\\,{3 * 1001 / 24000})\\,0\\,sin(2764*t)):d=1"
    ffmpeg.run("-f", "lavfi", "-i", loud, "-y", "sound.flac")
    with VideoWriter("drive.mp4", rate=Fraction(24000, 1001), audio="sound.flac") as writer:
        for index in range(12):
            writer.write(np.roll(skimage.data.astronaut()[:300, 74:374], index, axis=1))
    for line in (
        ["track", "photo.png"],
        ["track", "drive.mp4", "--start", "3f"],
        ["fit", "photo.track.npz"],
        ["transfer", "photo.head.npz", "drive.track.npz"],
        ["render-normals", "photo--drive.meshes.npz", "--size", "256"],
        ["generate", "photo.head.npz", "photo--drive.meshes.npz", "-o", "film.mp4", "--size", "256"],
    ):
        assert app.run(["-q", *line]) == 0, line
        written = Path(capsys.readouterr().out.strip())
        assert written.is_file()
        if written.suffix != ".npz":
            assert (probe(written).rate, frame_count(written)) == (Fraction(24000, 1001), 9)
    assert sound_length_s(Path("film.mp4")) == pytest.approx(9 * 1001 / 24000, abs=0.05)
    ffmpeg.run(*ffmpeg.input_file(Path("film.mp4")), "-ac", "1", "-ar", "8000", "-f", "s16le", "-y", "sound.raw")
    heard = np.fromfile("sound.raw", np.int16).astype(float)
    assert np.abs(heard[200:600]).mean() > 0.5 * np.abs(heard[1000:2000]).mean()
    assert npz.load(Tracking, "drive.track.npz").first_frame == 3
    driver = Driver.behind(Path("photo--drive.meshes.npz"))
    assert driver is not None
    shown = driver.picture(2).astype(float)
    own = [np.abs(frame - shown).mean() for frame in read_frames("drive.mp4")]
    assert int(np.argmin(own)) == 5


# 9. A name cut at its first dot: `./out` becomes an empty name, and files land somewhere else.
def test_dots_in_names_are_no_suffixes(asked, tmp_path):
    assert film_name(Path("./a.b/ref.v1.png"), Path("../drv.2.final.mp4")) == "ref.v1--drv.2.final.mp4"
    folder = tmp_path / "out.v2"
    folder.mkdir()
    one = asked("-o", str(folder / "film.v1.mp4"))
    places = [one.out, one.work, one.record, one.grid_path]
    assert [place.name for place in places] == ["film.v1.mp4", "film.v1.work", "film.v1.json", "film.v1.grid.mp4"]
    assert {place.parent for place in places} == {folder}
    assert asked("-o", str(folder)).out == folder / "photo--clip.mp4"


# 10. A mistyped name opens the camera instead; an option that nobody knows is passed over.
@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{photo}", "{folder}/clpi.mp4"], 3, "clpi.mp4 does not exist"),
        (["{photo}", "0"], 3, "0 does not exist"),
        (["{photo}", "{clip}", "--fps", "25"], 2, "--fps"),
        (["{photo}", "{clip}", "--pose-scale", "big"], 2, "--pose-scale"),
        (["{photo}", "{clip}", "--face", "tall"], 2, "--face tall"),
        (["{photo}", "{clip}", "--driving-face", "-1"], 2, "--driving-face"),
    ],
)
def test_nothing_is_guessed(arguments, code, says, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    clip = grey_clip(tmp_path / "clip.mp4", count=4, rate=NTSC)
    words = [word.format(photo=tmp_path / "photo.png", folder=tmp_path, clip=clip) for word in arguments]
    assert app.run(["generate", *words, "-o", str(tmp_path / "film.mp4")]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
    assert not (tmp_path / "film.mp4").exists()


# 11. Paths and variables of the author's own machine.
def test_the_command_needs_no_environment(tmp_path):
    code = "import sys; from expportrait_cli.cli.app import run; sys.exit(run(['weights', 'list']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


# 12. A frame without a face ends in a traceback from the depths, and which frame it was nobody says.
def test_a_frame_without_a_face_is_named(tmp_path):
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, rate=Fraction(25)) as writer:
        for index in range(6):
            writer.write(scene(right="blur" if index == 4 else "face"))
    with pytest.raises(InputError, match=r"clip\.mp4: no face in 1 of 6 frames, first in frame 4\."):
        observe(path, landmark_model(load_head()), TrackConfig(on_missing="fail"), quiet)


# 13. Both pictures squeezed into a square.
def test_a_circle_stays_round():
    frame = np.full((300, 900, 3), 40, np.uint8)
    cv2.circle(frame, (600, 150), 60, (250, 250, 250), -1)
    box = np.array([[[540.0, 90.0], [660.0, 210.0]]])
    crop = steady_crop(box, (900, 300))
    bright = crop_image(frame, crop, 512)[..., 0] > 140
    rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=2)
    assert np.ptp(rows) == pytest.approx(120 * 512 / crop.side, abs=4)


# 14. Ctrl-C ends with 0: a script believes that the film is there.
@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_ctrl_c_ends_with_130_and_leaves_nothing_half_done(tmp_path):
    import signal
    import time

    photo, clip, path = tmp_path / "photo.png", tmp_path / "clip.mp4", tmp_path / "out" / "film.mp4"
    face = skimage.data.astronaut()[:300, 74:374]
    Image.fromarray(face).save(photo)
    with VideoWriter(clip, rate=Fraction(25)) as writer:
        for index in range(80):
            writer.write(np.roll(face, index // 8, axis=1))
    # A job that a script started in the background ignores the signal, and so would what it starts.
    heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heeds}; from expportrait_cli.cli.app import main; main()"
    command = [sys.executable, "-c", code, "generate", str(photo), str(clip), "-o", str(path), "--size", "256"]
    # A terminal sends the signal to ffmpeg too.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(6000):
        if list(path.parent.glob("film.work/segments-*/.*.partial")) or process.poll() is not None:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert out == "" and "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: interrupted")
    assert not path.exists() and not list(tmp_path.rglob("*.partial"))
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, f"{path}\n")
    assert "track the" not in again.stderr and frame_count(path) == 80


# 15. Files written beside the input, which may be a read-only disk; files that run code when they are opened.
@pytest.mark.slow
def test_inputs_and_their_folder_are_left_alone(tmp_path, monkeypatch, capsys):
    inputs, here = tmp_path / "inputs", tmp_path / "here"
    inputs.mkdir()
    here.mkdir()
    Image.fromarray(skimage.data.astronaut()[:300, 74:374]).save(inputs / "photo.png")
    with VideoWriter(inputs / "clip.mp4", rate=Fraction(25)) as writer:
        writer.write(skimage.data.astronaut()[:300, 74:374])
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in inputs.iterdir()}
    monkeypatch.chdir(here)
    words = ["generate", str(inputs / "photo.png"), str(inputs / "clip.mp4"), "--size", "256", "--json"]
    assert app.run(["-q", *words]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["frames"] == 1
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in inputs.iterdir()} == before
    assert sorted(path.name for path in here.iterdir()) == [f"photo--clip.{kind}" for kind in ("json", "mp4", "work")]


def test_nothing_that_is_read_can_run_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    header = json.dumps({"kind": "track", "version": Tracking.VERSION, "made_by": {}}).encode()
    arrays = {field.name: np.array([Trap()], dtype=object) for field in fields(Tracking)}
    np.savez(tmp_path / "trap.track.npz", header=np.frombuffer(header, np.uint8), allow_pickle=True, **arrays)
    with pytest.raises(InputError, match=r"trap.*pickled"):
        npz.load(Tracking, tmp_path / "trap.track.npz")
    assert not (tmp_path / "sprung").exists()
    for source in Path(app.__file__).parents[1].rglob("*.py"):
        text = source.read_text("utf-8")
        assert not re.search(
            r"\bimport pickle|pickle\.load|allow_pickle=True|weights_only=False|torch\.load\(", text
        ), source
