"""What a run would write over: its inputs under any name, a stranger's files, and what lies in its work folder."""

import os
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.guard import check, check_foreign, check_outputs, is_own
from expportrait_cli.cli import app
from expportrait_cli.dataset.prepare import check_folder
from expportrait_cli.errors import UsageError
from expportrait_cli.export.shape import Shape, write_surface
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.media.writer import write_png
from expportrait_cli.pages import page
from expportrait_cli.pipeline import commands
from expportrait_cli.pipeline.export import export_head
from expportrait_cli.pipeline.job import Job
from expportrait_cli.pipeline.provenance import write_record
from expportrait_cli.pipeline.rows import Batch, write_summary
from expportrait_cli.render.files import NormalsInfo, save_normals
from expportrait_cli.render.stage import NormalFrame
from expportrait_cli.runtime import silent
from expportrait_cli.train.config import MiniTraining, TransferTraining
from expportrait_cli.train.mini.run import train_mini
from expportrait_cli.train.transfer.ablation import ablation
from expportrait_cli.train.transfer.run import train_transfer


@pytest.fixture
def clip(tmp_path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"a clip")
    return path


def named(clip: Path, how: str) -> Path:
    """The clip by another name."""
    other = clip.with_name("other.mp4")
    match how:
        case "same":
            return clip
        case "dots":
            return clip.parent / "x" / ".." / "clip.mp4"
        case "link":
            other.symlink_to(clip)
        case "hard link":
            os.link(clip, other)
    return other


@pytest.mark.parametrize("how", ["same", "dots", "link", "hard link"])
def test_an_input_is_no_output_under_any_name(clip, how):
    with pytest.raises(UsageError, match="is also an input"):
        check_outputs([clip.with_name("film.mp4"), named(clip, how)], [clip])


def test_letter_case_counts_where_the_file_system_tells_it_apart(tmp_path):
    folder = tmp_path / "Films"
    folder.mkdir()
    check_outputs([folder / "A.mp4", folder / "a.mp4"], [])
    # On a disk that does not, the folder is found by the other name too.
    (tmp_path / "fILMS").symlink_to(folder)
    with pytest.raises(UsageError, match="written twice"):
        check_outputs([folder / "new" / "A.mp4", folder / "new" / "a.mp4"], [])


def test_what_does_not_exist_yet_is_known_by_its_path(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "here").symlink_to(tmp_path / "there")
    with pytest.raises(UsageError, match="written twice"):
        check_outputs([tmp_path / "here" / "a.mp4", tmp_path / "there" / "a.mp4"], [])
    check_outputs([tmp_path / "there" / "a.mp4"], [tmp_path / "there" / "b.mp4"])


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(UsageError, match="is a named pipe"):
        check([tmp_path / "a.npz"])


KINDS = ("mp4", "mkv", "json", "html", "npz", "png", "jpg", "csv", "glb", "obj", "ply", "safetensors")


@pytest.mark.parametrize("name", [f"a.{kind}" for kind in KINDS])
def test_files_of_others_are_not_replaced(tmp_path, name):
    path = tmp_path / name
    check_foreign([path])
    path.touch()
    check_foreign([path])
    path.write_text('{"mine": 1}')
    with pytest.raises(UsageError, match="no run of this tool made it"):
        check_foreign([path])
    assert path.read_text() == '{"mine": 1}'


def test_own_files_are_known(tmp_path):
    square = Shape(
        np.array([[0, 0, 0], [0, 1, 0], [1, 1, 0]], np.float32), np.array([[0, 1, 2]]), np.zeros((3, 3), np.uint8)
    )
    for form in ("obj", "ply"):
        write_surface(square, tmp_path / f"a.{form}", form)
    (tmp_path / "a.html").write_text(page("a", {}))
    write_png(tmp_path / "a.png", np.zeros((4, 4, 3), np.uint8))
    write_rows(tmp_path)
    with npz.zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        npz.write_header(archive, "track", 1, {})
    frame = NormalFrame(np.zeros((16, 16, 3), np.uint8), np.ones((16, 16), np.float32), np.ones((16, 16), np.uint8))
    info = NormalsInfo(Camera.of_crop(500.0, 512, 16), Fraction(25), "", "warp", "")
    save_normals([frame], tmp_path / "a.normals.mkv", info, with_depth=True, with_mask=True)
    write_record(tmp_path / "a.json", {"output": "a.mp4", "key": "k", "settings": {}})
    found = sorted(path for path in tmp_path.iterdir() if path.is_file())
    assert len(found) == 12 and [path.name for path in found if not is_own(path)] == []


def write_rows(folder: Path) -> None:
    (folder / "rows").mkdir()
    write_summary(Batch(folder / "rows", (), since=0.0), folder)


def test_what_a_power_cut_left_gives_way(tmp_path):
    (tmp_path / "a.mp4").write_bytes(bytes(5000))
    check([tmp_path / "a.mp4"])


def test_own_files_are_known_when_they_are_damaged(tmp_path):
    write_record(tmp_path / "a.json", {"output": "a.mp4", "key": "k", "settings": {}})
    with npz.zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        npz.write_header(archive, "track", 1, {})
    for path in (tmp_path / "a.json", tmp_path / "a.npz"):
        path.write_bytes(path.read_bytes()[:-20])
        assert is_own(path)


def run(capsys, *words: object) -> tuple[int, str]:
    code = app.run([str(word) for word in words])
    return code, capsys.readouterr().err


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def artifact(folder: Path, name: str, kind: str) -> Path:
    with npz.zipfile.ZipFile(folder / name, "w") as archive:
        npz.write_header(archive, kind, 1, {})
    return folder / name


def functions(folder: Path, out: Path) -> dict[str, Callable[[], object]]:
    """Every function that makes files, as it would write `out`, or one file beside it."""
    photo, track = folder / "photo.png", artifact(folder, "a.track.npz", "track")
    head, meshes = artifact(folder, "a.head.npz", "head"), artifact(folder, "a.meshes.npz", "meshes")
    stem = out.with_suffix("")
    normals = out.with_name(out.name.partition(".")[0] + ".normals.mkv")
    normal_maps = partial(commands.render_normals, meshes, normals, depth=True, mask=True, preview=True)
    train = (TransferTraining(steps=1, synthetic=3), silent)
    return {
        "track": lambda: commands.track(photo, out),
        "faces of track": lambda: commands.track(photo, out.with_name(out.name.replace(".faces.png", ".track.npz"))),
        "fit": lambda: commands.fit([track], out),
        "transfer": lambda: commands.transfer(head, track, out),
        "render-normals": normal_maps,
        "eval": lambda: commands.evaluate(photo, photo, out),
        "report of eval": lambda: commands.evaluate(photo, photo, folder / "s.json", page=out),
        "export": lambda: export_head(head, out, "glb", silent, neutral=False),
        "train transfer": lambda: train_transfer([], stem.with_suffix(".safetensors"), *train),
        "train mini": lambda: train_mini([], out, MiniTraining(), silent),
        "train ablation": lambda: ablation([], out, *train),
        "data prepare": lambda: check_folder(folder / "videos", out.parent),
    }


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("track", "o.track.npz"),
        ("faces of track", "o.faces.png"),
        ("fit", "o.head.npz"),
        ("transfer", "o.meshes.npz"),
        *[("render-normals", f"o.{kind}") for kind in ("normals.mkv", "normals.json", "depth.mkv", "mask.mkv")],
        ("render-normals", "o.preview.mp4"),
        ("eval", "o.json"),
        ("report of eval", "o.html"),
        ("export", "o.glb"),
        *[("train transfer", f"o.{kind}") for kind in ("safetensors", "html", "jpg")],
        ("train mini", "o.safetensors"),
        ("train ablation", "o.json"),
        ("data prepare", "index.html"),
    ],
)
def test_no_command_replaces_what_it_did_not_make(photo, tmp_path, name, out):
    (tmp_path / out).write_text("mine")
    with pytest.raises(UsageError, match="no run of this tool made it"):
        functions(tmp_path, tmp_path / out)[name]()
    assert (tmp_path / out).read_text() == "mine"


@pytest.mark.parametrize("name", ["track", "fit", "transfer", "eval", "report of eval", "export"])
def test_no_command_replaces_an_input_by_another_name(photo, tmp_path, name):
    inputs = {"track": "photo.png", "fit": "a.track.npz", "transfer": "a.head.npz", "export": "a.head.npz"}
    (tmp_path / "o").symlink_to(tmp_path / inputs.get(name, "photo.png"))
    with pytest.raises(UsageError, match="is also an input"):
        functions(tmp_path, tmp_path / "o")[name]()


def test_the_source_behind_an_artifact_is_an_input(photo, tmp_path):
    meshes = tmp_path / "a.meshes.npz"
    with npz.zipfile.ZipFile(meshes, "w") as archive:
        npz.write_header(archive, "meshes", 1, {"driver": {"source": str(tmp_path / "o.preview.mp4")}})
    (tmp_path / "o.preview.mp4").write_bytes(b"expportrait made this")
    with pytest.raises(UsageError, match=r"o\.preview\.mp4 would be written, and is also an input"):
        commands.render_normals(meshes, tmp_path / "o.normals.mkv", preview=True)


def test_a_driver_with_the_name_of_a_side_product_stays(photo, tmp_path, make_clip, capsys):
    driver = tmp_path / "take.grid.mp4"
    driver.write_bytes(make_clip("driver.mp4", "-pix_fmt", "yuv420p").read_bytes())
    before = driver.read_bytes()
    code, err = run(capsys, "generate", photo, driver, "-o", tmp_path / "take.mp4", "--grid")
    assert code == 2 and "is also an input" in err and driver.read_bytes() == before


@pytest.mark.parametrize("name", ["g.json", "g.mp4", "g.html", "g.grid.mp4"])
def test_a_foreign_file_beside_the_film_stays(photo, tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    code, err = run(capsys, "generate", photo, photo, "-o", tmp_path / "g.mp4", "--grid", "--report")
    assert code == 2 and "no run of this tool made it" in err and (tmp_path / name).read_text() == "mine"


def test_a_batch_is_refused_before_its_first_film(photo, tmp_path, make_clip, capsys):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(make_clip("second.mp4", "-pix_fmt", "yuv420p").read_bytes())
    before = clip.read_bytes()
    rows = "reference,driving,output\nphoto.png,photo.png,first.mp4\nphoto.png,photo.png,clip.mp4\n"
    (tmp_path / "jobs.csv").write_text(rows + "photo.png,clip.mp4,z.mp4\n")
    code, err = run(capsys, "batch", tmp_path / "jobs.csv")
    assert code == 2 and "is also an input" in err
    assert clip.read_bytes() == before and not (tmp_path / "first.mp4").exists()


def test_curves_do_not_replace_an_input(tmp_path, capsys):
    for name in ("a.head.npz", "a.track.npz"):
        with npz.zipfile.ZipFile(tmp_path / name, "w") as archive:
            npz.write_header(archive, name.split(".")[1], 1, {})
    (tmp_path / "c.csv").symlink_to(tmp_path / "a.head.npz")
    words = ["transfer", tmp_path / "a.head.npz", tmp_path / "a.track.npz", "--curves", tmp_path / "c.csv"]
    code, err = run(capsys, *words, "-o", tmp_path / "a.meshes.npz")
    assert code == 2 and "is also an input" in err


def test_rows_may_share_curves_that_exist_and_not_write_the_same(tmp_path):
    jobs = [Job(tmp_path / "a.png", tmp_path / "b.mp4", tmp_path / f"{n}.mp4", curves=tmp_path / "c.csv") for n in "12"]
    with pytest.raises(UsageError, match="written twice"):
        check_outputs([path for job in jobs for path in job.outputs()], [])
    (tmp_path / "c.csv").write_text("frame\n")
    check_outputs([path for job in jobs for path in job.outputs()], [path for job in jobs for path in job.inputs()])


def test_the_picture_of_the_control_does_not_replace_the_photo(tmp_path):
    job = Job(tmp_path / "film.control.png", tmp_path / "b.mp4", tmp_path / "film.mp4", show_control=True)
    with pytest.raises(UsageError, match=r"film\.control\.png would be written, and is also an input"):
        check_outputs(job.outputs(), job.inputs())
