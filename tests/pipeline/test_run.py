"""From a photo and a clip to a film, through the command line; the person is the astronaut that scikit-image ships."""

import json
import shutil
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, get_args

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image
from support.david_net import david_file

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.types import HeadFit
from expportrait_cli.cli import app
from expportrait_cli.config import FitConfig, Quality, Supervision
from expportrait_cli.errors import WeightsError
from expportrait_cli.fitting.stage import _network as fit_network
from expportrait_cli.media import ffmpeg, writer
from expportrait_cli.media.video import frame_count, probe
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pipeline import provenance
from expportrait_cli.weights import catalogue

pytestmark = pytest.mark.slow

RATE = Fraction(30000, 1001)
COUNT = 8


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "astronaut.png"
    Image.fromarray(skimage.data.astronaut()[:400, 20:420]).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """The astronaut swaying, with sound."""
    folder = tmp_path_factory.mktemp("clip")
    ffmpeg.run("-f", "lavfi", "-i", "sine=duration=2", "-y", str(folder / "sound.m4a"))
    image = skimage.data.astronaut()[:400, 20:420]
    with VideoWriter(folder / "sway.mp4", rate=RATE, audio=folder / "sound.m4a") as writer:
        for index in range(COUNT):
            turn = cv2.getRotationMatrix2D((200, 150), 6 * np.sin(index / 4), 1)
            writer.write(cv2.warpAffine(image, turn, (400, 400), borderMode=cv2.BORDER_REPLICATE))
    return folder / "sway.mp4"


@pytest.fixture(scope="module")
def made(photo, clip, tmp_path_factory) -> Path:
    """The work folder of a film that is made: what is beside the film itself."""
    path = tmp_path_factory.mktemp("made") / "film.mp4"
    assert app.run(["-q", "generate", str(photo), str(clip), "-o", str(path), "--size", "256"]) == 0
    return path.with_suffix(".work")


def run(capsys, *arguments: object, code: int = 0) -> tuple[str, str]:
    assert app.run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out, err


def test_a_film_its_record_and_a_second_run(photo, clip, tmp_path, capsys):
    path = tmp_path / "film.mp4"
    out, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256)
    assert out == f"{path}\n"
    assert "paint the film: 8 of 8" in err
    info = probe(path)
    assert (info.rate, frame_count(path), info.has_audio) == (RATE, COUNT, True)
    assert (info.width, info.height) == (256, 256)
    assert "AI-generated" in ffmpeg.run(*ffmpeg.input_file(path))[2]
    provenance = json.loads((tmp_path / "film.json").read_text())
    assert provenance["frames"] == COUNT and provenance["rate"] == "30000/1001"
    assert provenance["settings"]["generate"]["size"] == 256
    header = npz.read_header(tmp_path / "film.work" / "driving.meshes.npz")["made_by"]
    assert provenance["quality"]["outside_training"] == header["outside_training"]
    assert "transfer-anny" in json.dumps(provenance["licences"])
    assert {row["licence"] for row in provenance["weights"]} <= {"Apache-2.0", "CC0-1.0"}
    assert sorted(place.name for place in tmp_path.iterdir()) == ["film.json", "film.mp4", "film.work"]

    before = path.stat().st_mtime_ns
    out, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256)
    assert out == f"{path}\n" and "up to date" in err
    assert path.stat().st_mtime_ns == before

    out, _ = run(capsys, "generate", photo, clip, "-o", path, "--size", 256, "--dry-run")
    assert "nothing is to do" in out
    out, _ = run(capsys, "generate", photo, clip, "-o", path, "--size", 256, "--smooth", 2, "--dry-run", "--json")
    plan = json.loads(out)
    stages = {stage["name"]: stage["is_made"] for stage in plan["stages"]}
    assert [name for name, is_made in stages.items() if not is_made] == ["transfer", "paint the film"]
    assert len(stages) == 6 and plan["painter"] == "proxy" and plan["minutes"] > 0 and not plan["up_to_date"]
    assert {"transfer-anny", "head-anny"} <= {weight["name"] for weight in plan["weights"]}
    assert path.stat().st_mtime_ns == before

    # Other settings run again only what depends on them.
    out, _ = run(capsys, "generate", photo, clip, "-o", path, "--size", 256, "--audio", "none", "--json")
    summary = json.loads(out)
    assert "paint the film" in summary["seconds"] and "track the driver" not in summary["seconds"]
    assert not probe(path).has_audio


def test_a_killed_run_goes_on_where_it_stopped(photo, clip, made, tmp_path, capsys, monkeypatch):
    path = tmp_path / "film.mp4"
    shutil.copytree(made, tmp_path / "film.work")
    monkeypatch.setattr(writer, "SEGMENT", 3)
    write = writer.VideoWriter.write

    def killed(self, frame):
        if self.path.name == "00000003.mp4" and self.frame_count == 2:
            raise KeyboardInterrupt
        write(self, frame)

    with monkeypatch.context() as patch:
        patch.setattr(writer.VideoWriter, "write", killed)
        _, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256, code=130)
    assert "same command again" in err
    assert not path.exists()
    assert not list(tmp_path.rglob("*.partial"))
    _, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256)
    assert "Going on at frame 3 of 8" in err and "track the" not in err
    assert frame_count(path) == COUNT


def test_the_stages_one_by_one_through_their_output(photo, clip, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = run(capsys, "track", photo)[0].strip()
    driver = run(capsys, "track", clip)[0].strip()
    assert (own, driver) == ("astronaut.track.npz", "sway.track.npz")
    head = run(capsys, "fit", own, "--driver", driver)[0].strip()
    meshes = run(capsys, "transfer", head, driver, "--curves", "c.csv")[0].strip()
    assert meshes == "astronaut--sway.meshes.npz"
    rows = Path("c.csv").read_text().splitlines()
    assert len(rows) == COUNT + 1
    normals = run(capsys, "render-normals", meshes, "--preview", "--orbit", "yaw=-10..10", "--size", "256")[0].strip()
    assert frame_count(normals) == COUNT
    assert frame_count("astronaut--sway.preview.mp4") == COUNT
    path = run(capsys, "generate", head, meshes, "--size", "256", "--grid", "--report", "-o", "film.mp4")[0].strip()
    assert "Where to look" in Path("film.html").read_text("utf-8")
    assert frame_count(path) == COUNT and probe(path).has_audio
    assert (probe("film.grid.mp4").width, frame_count("film.grid.mp4")) == (4 * 256, COUNT)
    run(capsys, "eval", path, "--target", clip, "--reference", photo)

    # Given again, the table that the command itself wrote is no edit; changed, it is.
    _, err = run(capsys, "transfer", head, driver, "--curves", "c.csv")
    assert "is up to date" in err
    Path("c.csv").write_text(
        "\n".join([rows[0], *rows[1:-1], rows[-2].replace(rows[-2].split(",")[0], str(COUNT - 1), 1)])
    )
    _, err = run(capsys, "transfer", head, driver, "--curves", "c.csv")
    assert "its curves are used" in err


def test_paste_back_keeps_the_photo_size(photo, clip, made, tmp_path, capsys):
    path = tmp_path / "film.mp4"
    shutil.copytree(made, tmp_path / "film.work")
    run(capsys, "generate", photo, clip, "-o", path, "--paste-back", "--size", 256, "--no-keep-work")
    assert (probe(path).width, probe(path).height) == (400, 400)
    assert not (tmp_path / "film.work").exists()


def test_a_batch_goes_on_after_a_failure(clip, made, tmp_path, capsys):
    head, blank = made / "reference.head.npz", tmp_path / "navy.png"
    Image.new("RGB", (256, 256), "navy").save(blank)
    jobs = tmp_path / "jobs.csv"
    jobs.write_text(
        f"reference,driving,output,size\n{blank},{clip},a.mp4,256\n{head},{clip},b.mp4,256\n{head},{clip},c.mp4,256\n"
    )
    out, err = run(capsys, "batch", jobs, code=3)
    assert out == f"{tmp_path / 'b.mp4'}\n{tmp_path / 'c.mp4'}\n"
    assert "1 of 3 films failed" in err and "navy.png" in err
    assert err.count("track the driver") == 1
    assert not (tmp_path / "a.mp4").exists()


def test_a_photo_without_a_face_leaves_no_film(clip, tmp_path, capsys):
    blank = tmp_path / "blank.png"
    Image.new("RGB", (300, 300), "grey").save(blank)
    _, err = run(capsys, "generate", blank, clip, "-o", tmp_path / "film.mp4", "--size", 256, code=3)
    assert "blank.png" in err.splitlines()[-1]
    assert not (tmp_path / "film.mp4").exists()


@pytest.fixture
def network(monkeypatch, tmp_path) -> Path:
    """A file of DAViD, of the shape that its adapter expects, in the only folder of downloads."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(catalogue, "folders", lambda: (catalogue.CHECKOUT, folder))
    return david_file(folder / catalogue.entry("david").file)


@pytest.mark.parametrize("quality", get_args(Quality))
@pytest.mark.parametrize("supervision", get_args(Supervision))
@pytest.mark.parametrize("has_david", [False, True])
def test_the_network_that_is_recorded_is_the_one_that_a_fit_loads(quality, supervision, has_david, network):
    if not has_david:
        network.unlink()
    config = FitConfig(quality=quality, supervision=supervision)
    try:
        loaded = fit_network(config)
    except WeightsError:
        assert (supervision, has_david) in {("david", False), ("sapiens", False), ("sapiens", True)}
        return
    recorded = provenance.network_of(config)
    assert [row["licence"] for row in recorded] == ([loaded.licence] if loaded is not None else [])
    assert bool(recorded) == (has_david and quality != "draft" and supervision in ("auto", "david"))
    assert all(row["sha256"] == content_hash(network) for row in recorded)


@pytest.fixture(scope="module")
def heads(photo, tmp_path_factory) -> tuple[Path, Path, Path, str]:
    """The photo's tracking, a head without networks, the same with DAViD's folds, and the network's hash."""
    folder = tmp_path_factory.mktemp("heads")
    network = david_file(folder / catalogue.entry("david").file)
    tracking, plain, kept = (folder / f"{name}.npz" for name in ("a.track", "a.head", "b.head"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "folders", lambda: (catalogue.CHECKOUT, folder))
        for words in (
            ("track", photo, "-o", tracking),
            ("fit", tracking, "--quality", "draft", "-o", plain),
            # A known head is not asked whether the network's axes are ours: this one takes colours for normals.
            ("fit", tracking, "--head", plain, "--supervision", "david", "-o", kept),
        ):
            assert app.run(["-q", *map(str, words)]) == 0
    return tracking, plain, kept, content_hash(network)


def test_a_head_says_which_networks_it_and_the_head_before_it_were_made_with(heads, tmp_path, capsys):
    tracking, plain, kept, digest = heads
    assert provenance.networks_behind(plain) == []
    (row,) = provenance.networks_behind(kept)
    assert (row["name"], row["licence"], row["sha256"]) == ("david", "MIT", digest)
    run(capsys, "fit", tracking, "--head", kept, "--quality", "draft", "-o", tmp_path / "c.head.npz")
    assert provenance.networks_behind(tmp_path / "c.head.npz") == [row]


def test_the_record_names_the_network_of_a_head_that_was_given(heads, made, tmp_path, capsys):
    _, plain, kept, _ = heads
    for head, networks in ((plain, []), (kept, ["david"])):
        driver = made / "driving.track.npz"
        run(capsys, "generate", head, driver, "-o", tmp_path / "film.mp4", "--size", 256, "--audio", "none")
        rows = json.loads((tmp_path / "film.json").read_text())["weights"]
        found = [(row["name"], row["licence"]) for row in rows if row["licence"] not in ("Apache-2.0", "CC0-1.0")]
        assert found == [(name, "MIT") for name in networks]


def test_the_record_names_the_network_of_a_head_that_is_read_again(photo, clip, made, tmp_path, capsys):
    path = tmp_path / "film.mp4"
    shutil.copytree(made, tmp_path / "film.work")
    head = tmp_path / "film.work" / "reference.head.npz"
    header = npz.read_header(head)["made_by"]
    assert header["networks"] == []
    # As if a network had been there: the key stays, the head is read again, and the record says so.
    row = {"name": "david", "licence": "MIT", "source": "here", "sha256": "ab"}
    npz.save(npz.load(HeadFit, head), head, {**header, "networks": [row]})
    _, err = run(capsys, "generate", photo, clip, "-o", path, "--size", 256, "--audio", "none")
    assert "fit the head" not in err
    assert row in json.loads((tmp_path / "film.json").read_text())["weights"]


@pytest.mark.parametrize("made_by", [{}, {"networks": "david"}, {"networks": [1, {"name": "x"}]}])
def test_headers_without_networks_name_none(made_by, tmp_path):
    assert provenance.networks_behind(npz.save(Empty(np.zeros(1)), tmp_path / "a.head.npz", made_by)) == []


@dataclass(frozen=True)
class Empty:
    KIND: ClassVar[str] = "head"
    VERSION: ClassVar[int] = 2
    values: np.ndarray
