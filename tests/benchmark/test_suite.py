"""Suites: which pairs they are, what every method is given, and what a run leaves; the person is the astronaut."""

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.places import TESTS

from expportrait_cli.benchmark import run as suites
from expportrait_cli.benchmark.inputs import prepare, suite_of_folder
from expportrait_cli.benchmark.suite import Pair, Suite, given_films, read_suite, write_list
from expportrait_cli.benchmark.variants import Making, variants
from expportrait_cli.cli import app
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.evaluation import evaluate
from expportrait_cli.media.video import frame_count, probe, read_frame, read_frames
from expportrait_cli.media.writer import VideoWriter

pytestmark = pytest.mark.slow

RATE = Fraction(24)
FRAMES = 7
USED = 3
"""Of them, where only the way counts."""


def quiet(done: int, total: int | None) -> None:
    pass


def astronaut() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return cv2.resize(data.astronaut()[:300, 60:420], (480, 400), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Two clips of a swaying astronaut, and one without a face."""
    folder = tmp_path_factory.mktemp("clips")
    picture = astronaut()
    for name, step in (("slow", 1.0), ("fast", 2.5)):
        with VideoWriter(folder / f"{name}.mkv", rate=RATE, lossless=True) as writer:
            for t in range(FRAMES):
                move = np.array([[1, 0, step * t], [0, 1, 0.5 * step * t]], np.float32)
                writer.write(cv2.warpAffine(picture, move, (480, 400), borderMode=cv2.BORDER_REFLECT))
    return folder


def listed(folder: Path, text: str) -> Path:
    path = folder / "list.toml"
    path.write_text(text)
    return path


def test_a_list_is_read_and_written_back(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPS", str(clips))
    text = 'root = "$CLIPS"\nstride = 2\ncross_absolute = true\n[[self]]\nclip = "slow.mkv"\n'
    text += '[[cross]]\nreference = "fast.mkv"\ndriving = "slow.mkv"\n[[self]]\nclip = "slow.mkv"\nname = "again"\n'
    suite = read_suite(listed(tmp_path, text))
    assert [(pair.name, pair.mode) for pair in suite.pairs] == [
        ("slow", "self"),
        ("again", "self"),
        ("fast--slow", "cross"),
    ]
    assert (suite.name, suite.stride, suite.size, suite.cross_absolute) == ("list", 2, 512, True)
    write_list(suite, tmp_path / "copy.toml")
    again = read_suite(tmp_path / "copy.toml")
    assert again == Suite(**{**vars(suite), "folder": clips.resolve()})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[self]]\n", "clip"),
        ('[[self]]\nclip = "none.mkv"', "does not exist"),
        ('[[self]]\nclip = "slow.mkv"\n[[self]]\nclip = "slow.mkv"', "twice"),
        ('[[self]]\nclip = "slow.mkv"\nname = "a/b"', "cannot be a file name"),
        ('[[self]]\nclip = "slow.mkv"\nspeed = 2', "speed"),
        ('[self]\nclip = "slow.mkv"', "two brackets"),
        ('[[cross]]\ndriving = "slow.mkv"', "reference"),
        ('stride = "2"\n[[self]]\nclip = "slow.mkv"', "whole number"),
        ('stride = true\n[[self]]\nclip = "slow.mkv"', "whole number"),
        ('size = 500\n[[self]]\nclip = "slow.mkv"', "256"),
        ('strides = 2\n[[self]]\nclip = "slow.mkv"', "strides"),
        ('root = "$NOT_SET_ANYWHERE"\n[[self]]\nclip = "slow.mkv"', "not set"),
        ("name = 'x'", "no pairs"),
        ("[[self", "TOML"),
        ("a = " + "[" * 150_000, "nested too deep"),
        ("stride = " + "9" * 5000, "TOML"),
        ('stride = 99999999999\n[[self]]\nclip = "slow.mkv"', "stride must be 1 to"),
        ("self = [1]", "is no table"),
        ('root = 3\n[[self]]\nclip = "slow.mkv"', "root is no text"),
        ('[[self]]\nclip = "slow.mkv"\nname = 3', "name is no text"),
        ('[[self]]\nclip = "slow.mkv"\nname = ".."', "cannot be a file name"),
        (f'[[self]]\nclip = "slow.mkv"\nname = "{"a" * 201}"', "cannot be a file name"),
        (f'[[self]]\nclip = "{"a" * 300}.mkv"', "cannot be a file name|does not exist"),
    ],
)
def test_a_wrong_list_is_refused_in_one_line(clips, text, words):
    with pytest.raises(InputError, match=words) as error:
        read_suite(listed(clips, text))
    assert "\n" not in str(error.value).strip()


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_ravdess_gives_one_film_of_each_of_twenty_actors(tmp_path):
    names = []
    for actor in range(1, 25):
        for emotion in range(1, 9):
            for intensity in (1, 2) if emotion > 1 else (1,):
                for statement, repetition, modality in ((1, 1, 1), (1, 1, 2), (2, 2, 2)):
                    code = f"{modality:02}-01-{emotion:02}-{intensity:02}-{statement:02}-{repetition:02}-{actor:02}"
                    names.append(f"Video_Speech_Actor_{actor:02}/Actor_{actor:02}/{code}.mp4")
    # Songs do not count, and an actor may lack the emotion whose turn it is.
    names = [name for name in names if "-03-02-" not in name or "Actor_01/" not in name]
    touch(tmp_path, *names, "Actor_25/02-02-03-02-01-01-25.mp4")
    suite = suite_of_folder(tmp_path, "auto")
    chosen = [pair.name for pair in suite.pairs]
    assert len(chosen) == 20 and {name[-2:] for name in chosen} == {f"{n:02}" for n in range(1, 21)}
    assert chosen[0] == "02-01-03-01-01-01-01"
    assert chosen[1:3] == ["02-01-04-02-01-01-02", "02-01-05-02-01-01-03"]
    assert "20 actors" in suite.rule


def test_nersemble_gives_four_films_of_each_of_twenty_people(tmp_path, caplog):
    for person in range(17, 40):
        for sequence in ("EMO-1-shout", "EXP-2-eyes", "EXP-1-head", "SEN-01-box", "BACKGROUND"):
            touch(tmp_path, *(f"{person:03}/sequences/{sequence}/images/cam_{n}.mp4" for n in (222200037, 220700191)))
    touch(tmp_path, "041/sequences/EMO-1-shout/images/cam_222200037.mp4")
    suite = suite_of_folder(tmp_path, "auto")
    assert len(suite.pairs) == 80 and not caplog.text
    assert [pair.name for pair in suite.pairs[:4]] == [
        "017_EMO-1-shout",
        "017_EXP-1-head",
        "017_EXP-2-eyes",
        "017_SEN-01-box",
    ]
    assert all("222200037" in pair.driving for pair in suite.pairs)
    for person in range(20, 40):
        (tmp_path / f"{person:03}/sequences/EMO-1-shout/images/cam_222200037.mp4").unlink()
    assert len(suite_of_folder(tmp_path, "nersemble").pairs) == 12
    assert "12 of the 80" in caplog.text


def test_a_folder_gives_its_clips_and_no_other_files(tmp_path):
    touch(tmp_path, "b.mp4", "a.mkv", "notes.txt", "below/c.mp4", ".a.mp4.partial")
    assert [pair.name for pair in suite_of_folder(tmp_path, "auto").pairs] == ["a", "b"]
    with pytest.raises(InputError, match="no clip of the layout 'ravdess'"):
        suite_of_folder(tmp_path, "ravdess")


def test_a_pair_is_cropped_once_to_a_square_without_loss(clips, tmp_path, monkeypatch):
    suite = Suite("s", clips, (Pair("fast", "self", "fast.mkv"),), stride=3, size=256)
    inputs = prepare(suite, suite.pairs[0], tmp_path, quiet)
    info = probe(inputs.driving)
    assert (info.width, info.height, info.rate, info.codec) == (256, 256, RATE / 3, "ffv1")
    assert inputs.frames == frame_count(inputs.driving) == 3
    assert np.array_equal(read_frame(inputs.reference, 0), read_frame(inputs.driving, 0))
    # The crop stays where it is, so that what moves is the person.
    first, second, _ = read_frames(inputs.driving)
    shift = cv2.phaseCorrelate(*(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY).astype(np.float64) for f in (first, second)))[0]
    assert shift[0] == pytest.approx(2 * shift[1], abs=0.6) and shift[0] > 3
    with monkeypatch.context() as patch:
        patch.setattr("expportrait_cli.benchmark.inputs._write_driving", None)
        assert prepare(suite, suite.pairs[0], tmp_path, quiet) == inputs
    shorter = Suite("s", clips, suite.pairs, stride=3, frames=2, size=256)
    assert prepare(shorter, suite.pairs[0], tmp_path, quiet).frames == 2


def test_methods_are_named_once_and_lie_in_folders(tmp_path):
    assert given_films([f"a={tmp_path}"]) == {"a": tmp_path}
    for wrong in (["a"], [f"={tmp_path}"], [f"a={tmp_path}", f"a={tmp_path}"], [f"a={tmp_path}/none"]):
        with pytest.raises(UsageError):
            given_films(wrong)


def run(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    assert app.run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, err


@pytest.fixture(scope="module")
def others(clips, tmp_path_factory) -> dict[str, Path]:
    """Films of two other programs: the truth itself, and the truth blurred; the second has one film only."""
    folder = tmp_path_factory.mktemp("others")
    films = {"perfect": folder / "perfect", "soft": folder / "soft"}
    for pair in ("slow", "fast"):
        suite = Suite("s", clips, (Pair(pair, "self", f"{pair}.mkv"),), frames=USED, size=256)
        inputs = prepare(suite, suite.pairs[0], folder / "inputs" / pair, quiet)
        for name, sigma in (("perfect", 0.0), ("soft", 1.5)):
            with VideoWriter(films[name] / f"{pair}.mkv", rate=RATE, lossless=True) as writer:
                for frame in read_frames(inputs.driving):
                    writer.write(cv2.GaussianBlur(frame, (0, 0), sigma) if sigma else frame)
    (films["soft"] / "fast.mkv").unlink()
    return films


@pytest.mark.slow
def test_films_of_others_side_by_side(clips, others, tmp_path, capsys, monkeypatch):
    methods = [word for name, folder in others.items() for word in ("--method", f"{name}={folder}")]
    command = ["eval", "--size", 256, "--frames", USED, "--no-own", *methods, "--suite"]
    out, err = run(capsys, *command, clips, "-o", tmp_path / "a.scores.json", code=3)
    assert out == f"{tmp_path / 'a.scores.json'}\n"
    document = json.loads((tmp_path / "a.scores.json").read_text())
    perfect, soft = document["methods"]["perfect"], document["methods"]["soft"]
    assert perfect["means"]["self"]["psnr_frame"] == {"mean": 99, "interval": [99, 99], "clips": 2}
    assert perfect["means"]["self"]["lmk_nme"]["mean"] == pytest.approx(0, abs=1e-6)
    assert soft["means"]["self"]["psnr_frame"]["clips"] == 1
    assert soft["means"]["self"]["psnr_frame"]["interval"] is None
    gap = soft["difference_from_first"]["self"]["psnr_frame"]
    assert gap["mean"] == pytest.approx(soft["means"]["self"]["psnr_frame"]["mean"] - 99) and gap["clips"] == 1
    assert "expected one, e.g. fast.mp4" in soft["failed"]["fast"] and "soft has no scores of fast" in err
    assert document["published"]["rows"][-1]["self"]["PSNR"] == 26.5507 and "published, other clips" in err
    assert "1 of 2 pairs have no scores of every method" in err
    assert str(clips) not in json.dumps(document["pairs"])

    # From nothing, elsewhere, and by the list that was chosen: the same to the byte.
    run(capsys, *command, tmp_path / "a.work" / "pairs.toml", "-o", tmp_path / "b.scores.json", code=3)
    assert (tmp_path / "a.scores.json").read_bytes() == (tmp_path / "b.scores.json").read_bytes()
    # In its place nothing is measured again but what is damaged.
    (tmp_path / "a.work" / "scores" / "soft" / "slow.json").write_text('{"key": "another"}')
    with monkeypatch.context() as patch:
        measured = []
        patch.setattr(
            suites, "evaluate", lambda film, *_, **words: measured.append(film) or evaluate(film, *_, **words)
        )
        run(capsys, *command, clips, "-o", tmp_path / "a.scores.json", code=3)
        assert [film.parent.name for film in measured] == ["soft"]
    monkeypatch.setattr(suites, "evaluate", None)
    run(capsys, *command, clips, "-o", tmp_path / "a.scores.json", code=3)
    assert (tmp_path / "a.scores.json").read_bytes() == (tmp_path / "b.scores.json").read_bytes()


def test_jobs_of_slurm_score_what_this_process_scores(clips, others, tmp_path, capsys, monkeypatch):
    pytest.importorskip("submitit")
    method = f"perfect={others['perfect']}"
    command = ["eval", "--size", 256, "--frames", USED, "--no-own", "--method", method, "--suite", clips]
    run(capsys, *command, "-o", tmp_path / "here.scores.json")
    # The stand-in for Slurm that submitit brings: processes of this machine.
    far = ("--executor", "slurm", "--slurm", "cluster=local,timeout_min=5", "--workers", 2)
    with monkeypatch.context() as patch:
        # This process only collects.
        patch.setattr(suites, "evaluate", None)
        run(capsys, *command, *far, "-o", tmp_path / "far.scores.json")
    assert (tmp_path / "far.scores.json").read_bytes() == (tmp_path / "here.scores.json").read_bytes()


def test_a_pair_without_a_face_is_noted_and_the_others_go_on(clips, others, tmp_path, capsys):
    with VideoWriter(tmp_path / "grey.mkv", rate=RATE, lossless=True) as writer:
        for _ in range(3):
            writer.write(np.full((128, 128, 3), 90, np.uint8))
    slow = clips / "slow.mkv"
    text = f'size = 256\nframes = 2\n[[self]]\nclip = "grey.mkv"\n[[self]]\nclip = "{slow}"\n'
    path = listed(tmp_path, text)
    method = f"p={others['perfect']}"
    out, _ = run(capsys, "eval", "--suite", path, "--no-own", "--method", method, "-o", tmp_path, "--json", code=3)
    document = json.loads(out)
    assert "shows no face" in document["methods"]["p"]["failed"]["grey"]
    # The film has three frames, of which the suite wants two.
    assert "3 frames" in document["methods"]["p"]["failed"]["slow"]


@pytest.mark.parametrize(
    "words",
    [
        ("film.mp4", "--suite", "x.toml"),
        (),
        ("film.mp4", "--target", "film.mp4", "--ablation"),
        ("--suite", "list.toml", "--layout", "ravdess"),
        ("--suite", "list.toml", "--no-own"),
    ],
)
def test_options_that_do_not_fit_together(words, clips, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed(tmp_path, f'[[self]]\nclip = "{clips / "slow.mkv"}"')
    assert app.run(["eval", *words]) in (2, 3)
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.slow
def test_our_own_films_and_what_they_lose_without_this_and_that(clips, tmp_path, capsys, monkeypatch):
    path = listed(tmp_path, f'size = 256\nframes = {USED}\nroot = "{clips}"\n[[self]]\nclip = "fast.mkv"\n')
    command = ["eval", "--suite", path, "--backend", "proxy", "-o", tmp_path / "a.scores.json"]

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(suites, "evaluate", killed)
        _, err = run(capsys, *command, "--ablation", code=130)
    assert "same command again" in err and not (tmp_path / "a.scores.json").exists()
    _, err = run(capsys, *command, "--ablation", "--report", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(f'alt="{caption} of frame' in page for caption in ("photo", "truth", "normals", "film"))
    assert "fast.mp4 is up to date" in err and "s a film" in err
    document = json.loads((tmp_path / "a.scores.json").read_text())
    assert list(document["methods"]) == [
        variant.name for variant in variants(ablation=True, making=Making(backend="proxy"))
    ]
    scores = {name: row["means"]["self"]["psnr_frame"]["mean"] for name, row in document["methods"].items()}
    assert scores["expportrait"] > 25 and scores["base"] != scores["no-dynamic"]
    times = json.loads((tmp_path / "a.work" / "times.json").read_text())["films"]
    assert all(times[name]["fast"] > 0 for name in document["methods"])
    assert document["licences"]["commercial_use_of_the_weights"] == "yes" and "licences: all weights" in err


@pytest.mark.slow
@pytest.mark.media
def test_a_pair_of_each_kind_of_the_development_suite(media, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_MEDIA", str(media))
    whole = read_suite(TESTS / "suite_dev.toml")
    assert [pair.mode for pair in whole.pairs] == ["self"] * 8 + ["cross"] * 8
    chosen = tuple(next(pair for pair in whole.pairs if pair.mode == mode) for mode in ("self", "cross"))
    write_list(Suite(**{**vars(whole), "pairs": chosen, "size": 256, "frames": 5, "stride": 4}), tmp_path / "two.toml")
    command = ["eval", "--suite", tmp_path / "two.toml", "--backend", "proxy", "--json"]
    out, _ = run(capsys, *command, "-o", tmp_path / "two.scores.json")
    means = json.loads(out)["methods"]["expportrait"]["means"]
    assert means["self"]["psnr_head"]["mean"] > means["self"]["psnr_head_still"]["mean"]
    assert means["self"]["lmk_nme"]["mean"] < 4
    assert means["cross"]["found"]["mean"] == 1 and means["cross"]["psnr_head"] is None


def test_each_embedded_painter_is_compared_with_the_other():
    pytest.importorskip("diffusers")
    names = [variant.name for variant in variants(ablation=True, making=Making(backend="proxy"))]
    assert names == ["expportrait", "direct", "no-detail", "no-dynamic", "base", "mini"]
    found = [(variant.name, variant.backend) for variant in variants(ablation=True, making=Making(backend="mini"))]
    assert found[-1] == ("proxy", "proxy") and len(found) == 6
    assert [variant.name for variant in variants(ablation=False, making=Making(backend="mini"))] == ["expportrait"]
