"""Lists of jobs: what a row may say, and the line that is named when it says something else."""

import json

import pytest

from expportrait_cli.cli import app
from expportrait_cli.config import GenerateConfig, Stretch, TrackConfig, TransferConfig, WanConfig
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.pipeline.joblist import REFUSED, is_pattern, part_of, pattern_jobs, read_jobs
from expportrait_cli.runtime import between


def test_csv_rows_become_jobs(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(
        "reference,driving,output,size,paste_back,expression_scale,turn_limit_deg,face\n"
        "a.png,b.mp4,,256,yes,1.5,,left\n"
        "a.png,c.mp4,films/c.mp4,,,,20,\n"
    )
    first, second = read_jobs(path, tmp_path / "out")
    assert first.reference == tmp_path / "a.png" and first.out == tmp_path / "out" / "a--b.mp4"
    assert (first.generate.size, first.generate.paste_back, first.transfer.expression_scale) == (256, True, 1.5)
    assert first.track.face == "left"
    assert second.out == tmp_path / "films" / "c.mp4" and second.transfer.turn_limit_deg == 20
    assert first.track.several == second.track.several == "fail"


def test_a_row_may_trim_and_shape_its_film(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(
        "reference,driving,start,end,max_frames,reference_start,aspect,quality\na.mp4,b.mp4,3.2s,1:02,50,75f,9:16,draft\n"
    )
    (job,) = read_jobs(path, tmp_path)
    assert job.driving_stretch == Stretch("3.2s", "1:02", 50) and job.track.stretch == Stretch("75f")
    assert (job.generate.aspect, job.fit.quality) == ("9:16", "draft")


def test_jsonl_rows_become_jobs(tmp_path):
    path = tmp_path / "jobs.jsonl"
    rows = [{"reference": "a.png", "driving": "b.mp4", "grid": True}, {"reference": "a.png", "driving": "c.track.npz"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    first, second = read_jobs(path, tmp_path)
    assert first.grid and not second.grid
    assert second.out.name == "a--c.mp4"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("reference,driving\n", "no jobs"),
        ("reference,driving\na.png,\n", "line 2: no driving"),
        ("photo,driving\na.png,b.mp4\n", "no reference. Expected at least reference and driving, found photo."),
        ("reference,driving,colour\na.png,b.mp4,red\n", "line 2: unknown column colour"),
        ("reference,driving,max_frames\na.png,b.mp4,-1\n", "line 2: max_frames is -1, expected a whole number"),
        ("reference,driving,refrence_start\na.png,b.mp4,3s\n", "Did you mean reference_start"),
        ("reference,driving,size\na.png,b.mp4,big\n", "line 2: size is 'big'"),
        ("reference,driving,size\na.png,b.mp4,500\n", "line 2: size is '500'"),
        ("reference,driving,audio\na.png,b.mp4,loud\n", "line 2: audio is 'loud'"),
        ("reference,driving,grid\na.png,b.mp4,maybe\n", "line 2: grid is 'maybe'"),
        ("reference,driving\na.png,b.mp4,c.mp4\n", "line 2: more cells"),
        ("reference,driving,output\na.png,b.mp4,x.avi\n", "line 2: the output's name"),
        ("reference,driving\na.png,b.mp4\na.png,b.mp4\n", "line 3: an earlier line"),
        ("reference,driving,several\na.png,b.mp4,note\n", "unknown column several"),
        ("reference,driving,wan\na.png,b.mp4,x\n", "unknown column wan"),
        ("reference,driving,dtype\na.png,b.mp4,fp12\n", "line 2: dtype is 'fp12'"),
    ],
)
def test_the_line_is_named(text, says, tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_jobs(path, tmp_path)
    assert says in str(caught.value)


def test_settings_of_large_painters_are_columns_too(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text(
        "reference,driving,backend,weights,steps,guidance,chain,dtype,lora\n"
        "a.png,b.mp4,wan-vace,models/vace,4,1.5,5,bf16,style.safetensors\n"
        "a.png,c.mp4,,,,,,,\n"
    )
    first, second = read_jobs(path, tmp_path)
    own = first.generate.wan
    assert (first.generate.backend, own.steps, own.guidance, own.chain, own.dtype) == ("wan-vace", 4, 1.5, 5, "bf16")
    # As the photo and the clip, files are named relative to the list.
    assert (own.weights, own.lora) == (str(tmp_path / "models" / "vace"), str(tmp_path / "style.safetensors"))
    assert second.generate == GenerateConfig()


def test_parts_share_the_work_out(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("reference,driving\n" + "".join(f"a.png,{name}.mp4\n" for name in "bcdefgh"))
    jobs = read_jobs(path, tmp_path)
    parts = [part_of(jobs, f"{index}/3") for index in (1, 2, 3)]
    assert [len(part) for part in parts] == [3, 2, 2] and part_of(jobs, "1/1") == jobs
    assert sorted(str(job.out) for part in parts for job in part) == [str(job.out) for job in jobs]
    for wrong in ("0/3", "4/3", "1", "1/0", "a/b", "-1/2"):
        with pytest.raises(UsageError, match="expected I/N"):
            part_of(jobs, wrong)


@pytest.mark.parametrize("line", ["{", "[1]", "3"])
def test_json_that_is_no_job(line, tmp_path):
    path = tmp_path / "jobs.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match="line 1"):
        read_jobs(path, tmp_path)


def test_a_list_that_is_no_text(tmp_path):
    path = tmp_path / "jobs.csv"
    for content in (b"\xff\x00\x80", "reference,driving\ncaf\xe9.png,b.mp4\n".encode("cp1252"), b"\xff\xfe\x00\xd8"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"as text.*Save it as CSV or JSONL in UTF-8"):
            read_jobs(path, tmp_path)
    path.write_bytes("reference,driving\na.png,b.mp4\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"zero bytes.*in UTF-8"):
        read_jobs(path, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "reference,driving,output\r\na.png,b.mp4,c.mp4\r\n,,\r\n",
        "reference, driving, output\na.png, b.mp4, c.mp4\n",
        "\ufeffReference;Driving;Output\na.png;b.mp4;c.mp4\n;;\n",
        "\n\nreference\tDRIVING \toutput\t\na.png\tb.mp4\tc.mp4\t\n",
        "sep=;\r\nreference;driving;output\r\na.png;b.mp4;c.mp4\r\n",
        "reference,driving,output\ra.png,b.mp4,c.mp4\r",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_as_spreadsheets_save_them(text, encoding, tmp_path):
    (tmp_path / "jobs.csv").write_bytes(text.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    (job,) = read_jobs(tmp_path / "jobs.csv", tmp_path)
    assert [path.name for path in (job.reference, job.driving, job.out)] == ["a.png", "b.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "reference,driving,regoin\na.png,b.mp4,lips\n", "unknown column regoin. Did you mean region"),
        ("a.csv", "reference,driving,smooth\na.png,b.mp4,nan\n", "smooth is 'nan'"),
        ("a.csv", "reference,driving,expression_scale\na.png,b.mp4,1e9\n", "expression_scale is '1e9'"),
        ("a.csv", "reference,driving,seed\na.png,b.mp4,-1\n", "seed is '-1', expected a whole number from 0"),
        ("a.csv", "reference,driving\na.png," + "b" * 200_000 + "\n", "no table of cells"),
        (
            "a.csv",
            "reference,driving,pose_scale\na.png,b.mp4,3.1\n",
            "pose_scale is '3.1', expected a number from 0 to 3",
        ),
        (
            "a.csv",
            "reference,driving,steps\na.png,b.mp4,201\n",
            "steps is '201', expected a whole number from 0 to 200",
        ),
        (
            "a.csv",
            "reference,driving,strength\na.png,b.mp4,inf\n",
            "strength is 'inf', expected a number from 0 to 1",
        ),
        ("a.csv", "reference,driving,steps,Steps\na.png,b.mp4,1,2\n", "line 1: column steps is there twice"),
        ("a.jsonl", '{"reference": ["a.png"], "driving": "b.mp4"}', "reference is not a text"),
        (
            "a.jsonl",
            '{"reference": "a.png", "driving": "b.mp4", "seed": true}',
            "seed is 'True', expected a whole number",
        ),
        ("a.jsonl", '{"reference": "a.png", "driving": "b.mp4", "driving": "c.mp4"}', "the key 'driving' twice"),
        ("a.jsonl", "[" * 200_000, "no JSON"),
        ("a.jsonl", '{"reference": ' + "9" * 5000 + "}", "no JSON"),
    ],
)
def test_rows_that_mean_nothing_are_refused_with_their_line(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_jobs(tmp_path / name, tmp_path)


def test_a_text_may_hold_ends_of_lines_that_are_none_of_a_list(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"reference": "a\u2028.png", "driving": "b.mp4"}\n', "utf-8")
    (tmp_path / "a.csv").write_text('reference,driving\n"a\x0b.png",b.mp4\n', "utf-8")
    assert read_jobs(tmp_path / "a.jsonl", tmp_path)[0].reference.name == "a\u2028.png"
    assert read_jobs(tmp_path / "a.csv", tmp_path)[0].reference.name == "a\x0b.png"


BOUNDED = [
    (cls, name, limits)
    for cls in (TrackConfig, TransferConfig, GenerateConfig, WanConfig)
    for name in vars(cls)["__dataclass_fields__"]
    if (limits := between(cls, name)) and name not in ("size", *REFUSED.get(cls, ()))
]


@pytest.mark.parametrize(("cls", "name", "limits"), BOUNDED, ids=[row[1] for row in BOUNDED])
def test_a_list_the_command_line_and_python_have_the_same_bounds(cls, name, limits, tmp_path, capsys):
    path, above = tmp_path / "jobs.csv", f"{limits.high + 1:g}" if limits.high < 2**53 else str(2**63)
    path.write_text(f"reference,driving,{name}\na.png,b.mp4,{above}\n")
    with pytest.raises(InputError, match=f"{name} is '{above}', expected"):
        read_jobs(path, tmp_path)
    with pytest.raises(UsageError, match=f"`{name}=.*`: expected"):
        cls(**{name: type(getattr(cls, name))(limits.low - 1)})
    if name != "turn_limit_deg":  # Which has no option.
        assert app.run(["generate", "a.png", "b.mp4", f"--{name.replace('_', '-')}", above]) == 2
        assert f"--{name.replace('_', '-')}" in capsys.readouterr().err


def test_patterns_are_pairs_of_every_photo_with_every_clip(tmp_path):
    for name in ("b.jpg", "a.jpg", "note.txt", "x.mp4", "y.mp4"):
        (tmp_path / name).write_bytes(b"1")
    photos, clips = str(tmp_path / "*.jpg"), str(tmp_path / "*.mp4")
    assert is_pattern(photos) and not is_pattern(str(tmp_path / "a.jpg"))
    jobs = pattern_jobs(photos, clips, tmp_path / "out", shared=tmp_path, defaults={"size": 256, "start": "3f"})
    assert [job.out.name for job in jobs] == ["a--x.mp4", "a--y.mp4", "b--x.mp4", "b--y.mp4"]
    assert {job.generate.size for job in jobs} == {256} and jobs[0].driving_stretch == Stretch("3f")
    with pytest.raises(InputError, match="No file matches"):
        pattern_jobs(photos, str(tmp_path / "*.mov"), tmp_path, shared=tmp_path)


def test_what_holds_for_all_rows_gives_way_to_a_row(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("reference,driving,size\na.png,b.mp4,\na.png,c.mp4,768\n")
    first, second = read_jobs(path, tmp_path, defaults={"size": 256, "grid": True})
    assert (first.generate.size, second.generate.size, first.grid, second.grid) == (256, 768, True, True)


def test_a_list_has_the_head_model_and_the_detail_that_generate_has(tmp_path):
    path = tmp_path / "jobs.csv"
    path.write_text("reference,driving,head_model,detail\na.png,b.mp4,gnm,no\na.png,c.mp4,,\n")
    chosen, plain = read_jobs(path, tmp_path)
    assert (chosen.head_model, chosen.generate.detail, chosen.fit.detail) == ("gnm", False, True)
    assert (plain.head_model, plain.generate.detail) == (None, True)
    path.write_text("reference,driving,head_model\na.png,b.mp4,flame\n")
    with pytest.raises(InputError, match="line 2: head_model is 'flame', expected one of anny, smplx, gnm"):
        read_jobs(path, tmp_path)


def test_numbers_as_spreadsheets_write_them(tmp_path):
    (tmp_path / "jobs.csv").write_text("reference;driving;size;expression_scale\na.png;b.mp4;256.0;0,5\n")
    (job,) = read_jobs(tmp_path / "jobs.csv", tmp_path)
    assert (job.generate.size, job.transfer.expression_scale) == (256, 0.5)
    (tmp_path / "jobs.csv").write_text("reference,driving,Expression-Scale\na.png,b.mp4,0.5\n")
    (job,) = read_jobs(tmp_path / "jobs.csv", tmp_path)
    assert job.transfer.expression_scale == 0.5
    (tmp_path / "jobs.csv").write_text("reference;driving;expression_scale\na.png;b.mp4;1,000\n")
    with pytest.raises(InputError, match="expression_scale is '1,000', expected a number"):
        read_jobs(tmp_path / "jobs.csv", tmp_path)


def test_spreadsheets_are_lists(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        ["Reference", "driving", "size", "expression scale", "paste_back"],
        [],
        ["a.png", "b.mp4", 256.0, 1.25, True],
    ):
        book.active.append(row)
    book.save(tmp_path / "jobs.xlsx")
    (job,) = read_jobs(tmp_path / "jobs.xlsx", tmp_path)
    assert job.reference == tmp_path / "a.png" and job.generate.paste_back
    assert (job.generate.size, job.transfer.expression_scale) == (256, 1.25)
    book.active["C3"] = "big"
    book.save(tmp_path / "jobs.xlsx")
    with pytest.raises(InputError, match=r"jobs\.xlsx, line 3: size is 'big'"):
        read_jobs(tmp_path / "jobs.xlsx", tmp_path)
    (tmp_path / "no.xlsx").write_text("reference,driving")
    with pytest.raises(InputError, match="could not be read as a spreadsheet"):
        read_jobs(tmp_path / "no.xlsx", tmp_path)
