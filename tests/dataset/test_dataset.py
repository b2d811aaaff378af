"""Reading a prepared set, refusing what is none; and the page that shows it."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from support.performers import make_state, performed

from expportrait_cli.config import PrepareConfig
from expportrait_cli.dataset import dataset
from expportrait_cli.dataset.dataset import Dataset, Row, clip_of
from expportrait_cli.dataset.summary import (
    AXES,
    counts,
    telling_frames,
    tracked_figures,
    tracked_refusal,
    write_summary,
)
from expportrait_cli.errors import InputError

pytest_plugins = ("support.astronaut",)

CONFIG = PrepareConfig()
ROW = Row(
    name="talk-000000-0123abcd",
    person="folder-alice",
    source="alice/talk.mp4",
    source_sha256="ab" * 32,
    first_frame=0,
    frames=48,
    rate="30000/1001",
    status="accepted",
    reason="",
    head_model="anny",
)


def write(folder: Path, *rows: Row, complete: bool = True) -> Path:
    dataset.write(
        folder, rows, source=folder / "videos", head_model="anny", settings={"frames": 240}, complete=complete
    )
    for row in rows:
        clip = clip_of(folder, row.name, row.person)
        clip.video.parent.mkdir(parents=True, exist_ok=True)
        for path in (clip.video, clip.tracking, clip.head):
            path.write_bytes(b"there")
    return folder


def edit(folder: Path, **values: object) -> None:
    path = folder / dataset.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_what_was_accepted_is_read_back(tmp_path):
    other = replace(ROW, name="b", person="folder-bob")
    refused = replace(ROW, name="c", status="rejected", reason="a face of 90 px, at least 120")
    found = Dataset.open(write(tmp_path / "set", ROW, other, refused))
    assert found.head_model == "anny"
    assert [(clip.name, clip.person) for clip in found.clips] == [(ROW.name, "folder-alice"), ("b", "folder-bob")]
    place = tmp_path / "set" / "clips" / ROW.name
    clip = found.clips[0]
    assert (clip.video, clip.tracking, clip.head) == tuple(
        place / name for name in ("clip.mp4", "track.npz", "head.npz")
    )
    content = json.loads((tmp_path / "set" / "dataset.json").read_text())
    assert content["clips"][2]["reason"] == refused.reason and content["settings"] == {"frames": 240}


def test_a_set_that_moved_is_read_where_it_is(tmp_path):
    write(tmp_path / "set", ROW).rename(tmp_path / "elsewhere")
    assert Dataset.open(tmp_path / "elsewhere").clips[0].video.is_file()


def test_a_folder_that_is_no_set(tmp_path):
    with pytest.raises(InputError, match=r"no prepared set.*data prepare FOLDER -o"):
        Dataset.open(tmp_path)
    with pytest.raises(InputError, match="no prepared set"):
        Dataset.open(tmp_path / "none")
    (tmp_path / dataset.FILE).write_text('{"kind": "films"}')
    with pytest.raises(InputError, match="not a set of this tool"):
        Dataset.open(tmp_path)


@pytest.mark.parametrize("text", ["{", "\x00", '{"kind": "dataset", "version": 1, "complete": true}'])
def test_a_damaged_file(text, tmp_path):
    (tmp_path / dataset.FILE).write_text(text)
    with pytest.raises(InputError, match="is damaged"):
        Dataset.open(tmp_path)


def test_a_set_of_a_newer_tool(tmp_path):
    edit(write(tmp_path, ROW), version=dataset.VERSION + 1)
    with pytest.raises(InputError, match=r"is version 2, this tool reads version 1\. Update the tool"):
        Dataset.open(tmp_path)


def test_a_set_of_nothing(tmp_path):
    write(tmp_path, replace(ROW, status="rejected", reason="still"))
    with pytest.raises(InputError, match=r"no accepted clip.*index\.html"):
        Dataset.open(tmp_path)


def test_a_set_of_two_head_models(tmp_path):
    write(tmp_path, ROW, replace(ROW, name="b", head_model="smplx-12ab"))
    with pytest.raises(InputError, match="mixes the head models anny and smplx-12ab"):
        Dataset.open(tmp_path)


def test_a_file_that_is_gone(tmp_path):
    clip_of(write(tmp_path, ROW), ROW.name, ROW.person).head.unlink()
    with pytest.raises(InputError, match=r"head\.npz is missing. Run `expportrait data prepare` again"):
        Dataset.open(tmp_path)


def test_a_name_cannot_lead_out_of_the_set(tmp_path):
    edit(write(tmp_path, ROW), clips=[{**vars(ROW), "name": "../../secret"}])
    with pytest.raises(InputError, match="is damaged"):
        Dataset.open(tmp_path)


def test_an_unfinished_set_is_read_with_a_warning(tmp_path, caplog):
    assert len(Dataset.open(write(tmp_path, ROW, complete=False)).clips) == 1
    assert "not complete" in caplog.text


@pytest.fixture(scope="module")
def clip(photo_tracking, head):
    """Ten frames: jaw widest in 3, turned most in 5, most expression in 7, at rest in 9."""
    states = [make_state(head, jaw=(0.05, 0, 0), mouthSmileLeft=0.2) for _ in range(10)]
    states[3] = make_state(head, jaw=(0.35, 0, 0), mouthSmileLeft=0.2)
    states[5] = make_state(head, jaw=(0.05, 0, 0), turn=(0, -0.5, 0), mouthSmileLeft=0.2)
    states[7] = make_state(head, jaw=(0.05, 0, 0), mouthSmileLeft=0.9, mouthSmileRight=0.9, browInnerUp=0.9)
    states[9] = make_state(head)
    return performed(photo_tracking, head, states)


def test_the_telling_frames_are_found(clip):
    assert telling_frames(clip).tolist() == [9, 3, 5, 7]
    # Nothing is told by a frame without a face.
    hidden = np.zeros(10, np.uint8)
    hidden[[3, 9]] = 2
    assert not {3, 9} & set(telling_frames(replace(clip, state=hidden)).tolist())


def test_figures_are_those_of_the_performance(clip):
    figures = tracked_figures(clip)
    assert figures["landmark_error_percent"] == 1.0 and figures["shots"] == 1 and figures["filled_share"] == 0
    assert figures["yaw_deg"][0] == pytest.approx(np.percentile(np.degrees(clip.rotation[:, 1]), 5), abs=0.1)
    assert min(figures["yaw_deg"]) < -10 and max(figures["pitch_deg"]) == pytest.approx(0, abs=0.1)
    assert figures["jaw_deg"][1] == pytest.approx(np.degrees(0.05), abs=0.1)
    assert figures["mean_abs_psi"] == pytest.approx(np.abs(clip.expression).mean(), abs=1e-4)
    assert tracked_refusal(figures, CONFIG) == ""
    histograms = counts(clip)
    assert {name: sum(row) for name, row in histograms.items()} == {axis.name: 10 for axis in AXES}
    yaw = AXES[0]
    turned = np.digitize(np.degrees(-0.5), yaw.edges) - 1
    assert histograms["yaw"][turned] == 1


def test_tracked_clips_are_refused_with_figure_and_limit(clip):
    bad = replace(clip, error=np.full(10, 4.52, np.float32))
    assert tracked_refusal(tracked_figures(bad), CONFIG) == (
        "landmark error 4.52 % of the distance between the eyes after tracking, at most 4 %"
    )
    hidden = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2, 2], np.uint8)
    assert "no landmarks in 30%" in tracked_refusal(tracked_figures(replace(clip, state=hidden)), CONFIG)
    cut = replace(clip, shot=np.repeat([0, 1], 5))
    assert "2 shots" in tracked_refusal(tracked_figures(cut), CONFIG)


class Page(HTMLParser):
    """Pictures, bars and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.bars, self.text = 0, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe")
        values = dict(attrs)
        assert not any("//" in (values.get(key) or "") for key in ("src", "href"))
        self.pictures += [values["src"]] if tag == "img" else []
        self.bars += tag == "rect"

    def handle_data(self, data):
        self.text += data


def test_the_page_names_every_stretch_and_nothing_from_the_net(clip, tmp_path):
    figures = {"face_px": 200.0, "sharpness": 50.0, "motion_percent": 4.0, "silhouette_iou": 0.97}
    taken = replace(ROW, figures={**figures, **tracked_figures(clip)}, histograms=counts(clip), notes=["2 <faces>"])
    refused = replace(ROW, name="", source="<b>.mp4", status="rejected", reason="a face of 90 px, at least 120")
    write_summary(tmp_path, [taken, refused])
    page = Page((tmp_path / "index.html").read_text("utf-8"))
    assert page.pictures == [f"sheets/{ROW.name}.jpg"]
    assert page.bars == sum(count > 0 for row in counts(clip).values() for count in row)
    for text in ("1 clips of 1 persons", "<b>.mp4", "a face of 90 px, at least 120", "2 <faces>", ROW.name):
        assert text in page.text
    write_summary(tmp_path, [refused])
    assert Page((tmp_path / "index.html").read_text("utf-8")).pictures == []
