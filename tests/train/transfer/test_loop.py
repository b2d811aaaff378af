"""Training the transfer network: the same every time, interrupted or not; by person; to a file and a page."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.known_head import dynamic_poses
from support.performers import make_state, quiet
from support.transfer_faces import driver_of, photo_of, tiny

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.network_file import read_header
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import PrepareConfig
from expportrait_cli.dataset import dataset
from expportrait_cli.dataset.dataset import Clip, Row, clip_of
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.retargeting.face import Face, Neutral
from expportrait_cli.retargeting.network import KIND, load_network, save_network
from expportrait_cli.runtime import silent
from expportrait_cli.train.config import TransferTraining
from expportrait_cli.train.transfer.clips import (
    FaceClip,
    Stored,
    centred,
    expression_scale,
    held_out,
    read_clip,
    stored,
    stored_clip,
)
from expportrait_cli.train.transfer.loop import fresh_network, principal_axes, train
from expportrait_cli.train.transfer.run import prepare_data, train_transfer, trained_of
from expportrait_cli.train.transfer.synthetic import random_expressions

pytest_plugins = ("support.astronaut",)

pytestmark = pytest.mark.slow

TINY = TransferTraining(
    steps=12, report_every=6, people=2, frames=2, vertices=32, synthetic=5, synthetic_frames=4, rate=1e-2
)


@pytest.fixture(scope="module")
def face(head) -> Face:
    return Face.of(head)


def pretended(head, face: Face, seed: int, frames: int = 6) -> FaceClip:
    """Somebody who bulges in proportion to a few expressions, more the wider the face is."""
    generator = torch.Generator().manual_seed(seed)
    identity = 0.8 * torch.randn(head.identity_basis.shape[-1], generator=generator)
    neutral = (head.operator @ (head.template + head.identity_basis @ identity))[face.vertices]
    psi, jaw = random_expressions(head, frames, generator)
    bulge = 0.004 * neutral[:, :1] * torch.sin(40 * neutral) * face.mask[:, None] / 0.05
    offset = psi.sum(1)[:, None, None] / 4 * bulge * (1 + identity[0] / 3)
    ones = np.ones(frames, np.float32)
    name = f"synthetic-{seed:05d}"
    return FaceClip(name, name, neutral.numpy(), psi.numpy(), jaw.numpy(), offset.numpy().astype(np.float16), ones)


@pytest.fixture(scope="module")
def people(head, face) -> list[FaceClip]:
    return [pretended(head, face, seed) for seed in range(5)]


def trained(people, face, folder: Path, config=TINY, *, kind="learned", progress=quiet):
    """One run of a tiny network: the averaged network, and what it reported."""
    folder.mkdir(exist_ok=True)
    network = tiny(face, kind).requires_grad_()
    network.psi_scale.copy_(expression_scale(people))
    rows = []
    average = train(
        network,
        people[:4],
        people[4:],
        config,
        state=folder / "state.safetensors",
        stage=lambda name: progress if name == "train" else quiet,
        log=lambda step, figures: rows.append((step, figures)),
    )
    return average, rows


def content(average, people, head, path: Path) -> bytes:
    save_network(trained_of(average, people), path, head, {})
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["learned", "concat"])
def test_the_same_run_gives_the_same_bytes_interrupted_or_not(head, face, people, tmp_path, kind):
    whole, rows = trained(people, face, tmp_path / "a", kind=kind)
    assert [step for step, _ in rows] == [6, 12]

    def interrupt(done: int, total: int | None) -> None:
        assert total == 12
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(people, face, tmp_path / "b", kind=kind, progress=interrupt)
    calls = []
    gone_on, later = trained(people, face, tmp_path / "b", kind=kind, progress=lambda done, total: calls.append(done))
    assert calls == [7, 8, 9, 10, 11, 12]
    assert later == rows[1:]
    files = [
        content(average, people, head, tmp_path / f"{k}.safetensors") for k, average in enumerate((whole, gone_on))
    ]
    assert files[0] == files[1]
    done, none = trained(people, face, tmp_path / "b", kind=kind)
    assert none == [] and content(done, people, head, tmp_path / "c.safetensors") == files[0]


def test_another_seed_is_another_run(head, face, people, tmp_path):
    one, two = (trained(people, face, tmp_path / str(seed), replace(TINY, steps=2, seed=seed))[0] for seed in (0, 1))
    assert not torch.equal(one.linear.weight, two.linear.weight)


def test_the_state_of_another_network_is_refused(face, people, tmp_path):
    trained(people, face, tmp_path, replace(TINY, steps=2))
    with pytest.raises(InputError, match="state of another network"):
        trained(people, face, tmp_path, kind="blind")


def test_errors_fall(face, people, tmp_path):
    """Of the people that are learned from: from about that of no offsets to well below."""
    config = replace(TINY, steps=60, report_every=20, people=4, vertices=64, average=0.5, rate=5e-2)
    network = tiny(face).requires_grad_()
    with torch.no_grad():
        network.vertex[-1].weight.mul_(0.1)
    rows = []
    train(
        network,
        people,
        people,
        config,
        state=tmp_path / "state.safetensors",
        stage=silent,
        log=lambda step, figures: rows.append(figures),
    )
    errors = [figures["synthetic"] for figures in rows]
    assert errors[-1] < 0.8 * errors[0] and errors[-1] < 0.8, errors
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all("filmed" not in figures for figures in rows)


def test_a_fresh_network_knows_its_people(head, face, people):
    network = fresh_network("learned", face, people, quiet, seed=3)
    codes = torch.stack([network.code(Neutral.of(torch.from_numpy(p.neutral), face)) for p in people])
    # Five people differ in four ways.
    assert not network.code_basis[4:].any() and network.code_basis[:4].flatten(1).norm(dim=1).min() > 0
    assert codes.mean(0).abs().max() < 1e-3
    assert codes[:, :4].std(0) == pytest.approx(np.ones(4), abs=0.05)
    again = fresh_network("learned", face, people, quiet, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    rows = np.concatenate([p.expression for p in people])
    assert np.allclose(network.psi_scale.numpy() ** 2, (rows**2).mean(0).clip(0.05**2), rtol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(40, 300), (300, 40)])
def test_principal_axes_are_those_of_the_whole_decomposition(rows, columns):
    draw = np.random.default_rng(rows)
    values = draw.normal(size=(rows, columns)) * np.geomspace(3, 0.01, columns)
    values -= values.mean(0)
    deviation, axes = principal_axes(values, 12)
    _, length, expected = np.linalg.svd(values, full_matrices=False)
    assert np.allclose(deviation, length[:12] / np.sqrt(rows - 1), rtol=1e-9)
    assert np.allclose(np.abs((axes * expected[:12]).sum(1)), 1, atol=1e-9)


def test_a_damaged_clip_on_disk_is_made_again(people, tmp_path, caplog):
    made: list[str] = []

    def make():
        made.append("again")
        return people[0]

    def kept():
        return stored(tmp_path / "a", people[0].name, people[0].person, make)

    assert np.array_equal(kept().offset, people[0].offset) and kept().is_synthetic and len(made) == 1
    path = tmp_path / "a" / "offset.npy"
    path.write_bytes(path.read_bytes()[:-7])
    assert np.array_equal(kept().offset, people[0].offset) and len(made) == 2
    assert "is damaged, and is made again" in caplog.text


def test_a_person_is_on_one_side(people):
    clips = [
        replace(p, name=f"{p.name}-{k}", person=f"person-{n % 7}") for n, p in enumerate(people * 8) for k in (0, 1)
    ]
    learn, judge = held_out(clips, 0.4)
    assert len(learn) + len(judge) == len(clips) and learn and judge
    assert not {p.person for p in learn} & {p.person for p in judge}
    fewer = held_out(clips[:30], 0.4)[1]
    assert {p.person for p in fewer} <= {p.person for p in judge}
    assert held_out(clips, 0.0)[1] == [] and held_out(clips, 1.0)[0] == []


def test_what_all_neutral_frames_share_is_not_learned():
    generator = np.random.default_rng(0)
    offset = generator.normal(0, 1e-3, (5, 7, 3)).astype(np.float32) + np.float32(0.002)
    weights = np.array([0.5, 0.3, 0.2, 0, 0])
    found = centred(offset, weights).astype(np.float64)
    assert np.abs(np.einsum("t,tpc->pc", weights, found)).max() < 2e-6
    assert np.abs(np.diff(found, axis=0) - np.diff(offset, axis=0)).max() < 5e-6


@pytest.fixture
def filmed(head, tmp_path):
    """Make a prepared clip of `frames` at rest and smiling in turn, with offsets that go with the smile."""

    def make(name: str, seed: int, frames: int = 6) -> Clip:
        states = [make_state(head, mouthSmileLeft=0.8 * (t % 2), mouthSmileRight=0.8 * (t % 2)) for t in range(frames)]
        tracking = driver_of(head, states, seed=seed)
        vertices = np.flatnonzero(head.facial_mask.numpy() > 0)[5:]
        generator = np.random.default_rng(seed)
        smile = 1e-3 * generator.normal(size=(len(vertices), 3)) * (np.arange(frames) % 2)[:, None, None] + 1e-3
        fit = replace(
            photo_of(head, seed),
            dynamic_vertices=vertices,
            dynamic_offset=smile.astype(np.float16),
            **dynamic_poses(tracking),
            dynamic_loss=np.zeros((frames, 2), np.float32),
        )
        clip = clip_of(tmp_path / "set", name, f"folder-{name}")
        clip.video.parent.mkdir(parents=True)
        clip.video.write_bytes(b"not read")
        npz.save(tracking, clip.tracking, {})
        npz.save(fit, clip.head, {})
        return clip

    return make


def test_a_prepared_clip_is_a_performer(head, face, filmed):
    clip = filmed("a", 1)
    tracking = npz.load(Tracking, clip.tracking)
    state, error = tracking.state.copy(), tracking.error.copy()
    state[1], error[2], error[3] = 1, 3.0, 9.0
    npz.save(replace(tracking, state=state, error=error), clip.tracking, {})
    found = read_clip(clip, head, face)
    assert (found.name, found.person, found.is_synthetic) == ("a", "folder-a", False)
    assert found.weight == pytest.approx([1, 0, 0.5, 0, 1, 1])
    assert np.array_equal(found.expression, tracking.expression)
    assert not found.offset[:, :5].any()
    # What is left at rest is what the smiles' small weight takes away.
    size = np.linalg.norm(found.offset.astype(float), axis=-1).mean(1)
    assert size[0] < 0.02 * size[1] and size[1] > 1e-3


def test_a_prepared_clip_is_kept_on_disk(head, face, filmed, tmp_path):
    """Small columns are in memory; the others are opened at each look, and hold neither memory nor files."""
    clip = filmed("a", 1)
    expected = read_clip(clip, head, face)
    found = [stored_clip(clip, head, face, tmp_path / "kept") for _ in range(2)][1]
    for column in ("neutral", "expression", "jaw", "weight", "offset"):
        assert np.array_equal(getattr(found, column), getattr(expected, column)), column
    assert isinstance(found.offset, np.memmap) and (found.name, found.person) == ("a", "folder-a")
    assert sum(isinstance(value, np.ndarray) and value.nbytes > 10_000 for value in vars(found).values()) == 0
    (folder,) = (tmp_path / "kept").iterdir()
    clip.head.unlink()
    assert np.array_equal(Stored(folder, "a", "folder-a").offset[[1, 3]], expected.offset[[1, 3]])


def test_people_on_disk_and_in_memory_are_the_same_data(head, face, filmed, tmp_path):
    clips = [filmed(name, seed) for seed, name in enumerate("abc")]
    config = replace(TINY, steps=2, report_every=2)
    averages = []
    for people in (
        [read_clip(clip, head, face) for clip in clips],
        [stored_clip(clip, head, face, tmp_path / "kept") for clip in clips],
    ):
        network = tiny(face).requires_grad_()
        folder = tmp_path / str(len(averages))
        folder.mkdir()
        state = folder / "state.safetensors"
        averages.append(train(network, people, [], config, state=state, stage=silent, log=lambda *_: None))
    assert all(torch.equal(a, b) for a, b in zip(*(each.parameters() for each in averages), strict=True))


def test_a_clip_without_offsets_teaches_nothing(head, face, filmed):
    clip = filmed("a", 1)
    npz.save(photo_of(head, 1), clip.head, {})
    with pytest.raises(InputError, match=r"holds 0 frames of dynamic offsets.*Prepare the dataset again"):
        read_clip(clip, head, face)
    npz.save(replace(npz.load(HeadFit, clip.head), head_model="smplx-01234567"), clip.head, {})
    with pytest.raises(InputError, match="'smplx-01234567', expected those of a clip on 'anny'"):
        read_clip(clip, head, face)


def test_nobody_to_learn_from_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"0 people to train on, expected 3 or more.*`synthetic=240`"):
        prepare_data([], tmp_path, replace(TINY, synthetic=0), silent)
    with pytest.raises(InputError, match="is no prepared set"):
        prepare_data([tmp_path], tmp_path, TINY, silent)


def test_a_refused_run_is_not_in_the_way_of_its_own_advice(tmp_path, monkeypatch):
    out = tmp_path / "net.safetensors"
    with pytest.raises(InputError, match="people to train on"):
        train_transfer([], out, replace(TINY, synthetic=0), silent)
    assert not (tmp_path / "net.work" / "run.json").exists()
    monkeypatch.setattr("expportrait_cli.train.transfer.run.prepare_data", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_transfer([], out, TINY, silent)
    assert (tmp_path / "net.work" / "run.json").exists()


def _interrupted(*_):
    raise KeyboardInterrupt


def test_other_settings_do_not_go_on(tmp_path):
    out = tmp_path / "net.safetensors"

    def interrupt(title: str):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_transfer([], out, TINY, interrupt)
    for other, said in ((replace(TINY, steps=13, rate=0.1), "rate, steps"), (replace(TINY, seed=1), "seed")):
        with pytest.raises(UsageError, match=f"holds a run with other {said}. Give the same command"):
            train_transfer([], out, other, interrupt)
    with pytest.raises(UsageError, match="with other sets"):
        train_transfer([tmp_path], out, TINY, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_transfer([], out, TINY, interrupt)


class Links(HTMLParser):
    """Everything that a page points at."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]


def write_set(folder: Path, clips: list[Clip]) -> Path:
    row = Row("", "", "a.mp4", "ab" * 32, 0, 6, "25", "accepted", "", "anny")
    rows = [replace(row, name=clip.name, person=clip.person) for clip in clips]
    settings = {"frames": PrepareConfig().frames}
    dataset.write(folder, rows, source=folder, head_model="anny", settings=settings, complete=True)
    return folder


@pytest.mark.slow
def test_from_a_set_to_a_network(head, face, filmed, tmp_path, capsys):
    """The command, on two filmed people and twelve who were made up: weights, page, picture and history."""
    folder = write_set(tmp_path / "set", [filmed("a", 1), filmed("b", 2)])
    out = tmp_path / "net.safetensors"
    command = ["train", "transfer", str(folder), "-o", str(out), "--steps", "3", "--synthetic", "12", "--json"]
    assert app.run(command) == 0
    said = json.loads(capsys.readouterr().out)
    header = read_header(out, KIND)
    sources = header["made_by"]["sources"]
    assert sources["filmed"] == {"clips": 2, "people": 2} and sources["synthetic"] == {"people": 12}
    assert sources["held_out"] and said["people"] == 14 - len(sources["held_out"])
    assert header["made_by"]["settings"]["steps"] == 3 and header["made_by"]["figures"] == said["figures"]
    network = load_network(out, head)
    assert network.psi_most.max() > 0.5
    assert network.network.code(Neutral.of(face.template, face)).abs().max() < 10
    history = [json.loads(line) for line in (tmp_path / "net.work" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [3]
    page = (tmp_path / "net.html").read_text("utf-8")
    assert Links(page).found == ["net.jpg"] and "http" not in page and "<svg" in page
    with Image.open(tmp_path / "net.jpg") as picture:
        assert picture.width == 9 * 200 and picture.height == 200 * min(len(sources["held_out"]), 4)
        assert np.asarray(picture).std() > 20
    first = out.read_bytes()
    assert app.run(command) == 0
    assert out.read_bytes() == first
