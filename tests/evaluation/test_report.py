import base64
import re
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.page_reader import Page

from expportrait_cli.evaluation import COLUMNS, Scores, report_page
from expportrait_cli.evaluation.columns import NAMES
from expportrait_cli.evaluation.report import worst_frames
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.pages import cell, curve, details, facts, figures, grid, items, key, link, notes, page, table

FRAMES = 20


def clip(path: Path, brightness: int) -> Path:
    with VideoWriter(path, rate=Fraction(25), lossless=True) as writer:
        for t in range(FRAMES):
            writer.write(np.full((48, 64, 3), brightness + t, np.uint8))
    return path


@pytest.fixture
def scores(tmp_path) -> Scores:
    values = np.full((FRAMES, len(NAMES)), np.nan)
    values[:, NAMES.index("l1_frame")] = np.linspace(0, 0.1, FRAMES)
    values[:, [NAMES.index("found"), NAMES.index("found_target")]] = 1
    values[5, NAMES.index("found")] = 0
    truth, film = clip(tmp_path / "truth.mkv", 40), clip(tmp_path / "a <b> & c.mkv", 90)
    return Scores("self", str(film), str(truth), str(truth), values, {"flip": "needs <this> & that"})


def parsed(scores: Scores) -> tuple[Page, str]:
    text = report_page(scores)
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page, text


def test_the_page_stands_alone(scores):
    page, text = parsed(scores)
    names = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object"} & set(names)
    addresses = [attributes.get(key) for _, attributes in page.tags for key in ("src", "href") if key in attributes]
    assert addresses and all(address.startswith("data:image/jpeg;base64,") for address in addresses)
    assert "http" not in re.sub(r"base64,[^\"]+", "", text) and "url(" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_three_worst_frames_are_shown_as_they_are(scores):
    page, _ = parsed(scores)
    shown = [attributes for tag, attributes in page.tags if tag == "img"]
    # The frame that lost its face, then the largest errors, a tenth of the film apart.
    assert [image["alt"].split()[-1] for image in shown[::3]] == ["5", "19", "16"]
    jpeg = base64.b64decode(shown[3]["src"].partition(",")[2])
    target = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert target.shape == (48, 64, 3) and abs(float(target.mean()) - (40 + 19)) < 2


def test_names_of_files_are_no_markup(scores):
    page, text = parsed(scores)
    assert "<b>" not in text and "<this>" not in text
    assert any("a <b> & c.mkv" in word for word in page.words)


def test_an_empty_cell_says_why(scores):
    page, _ = parsed(scores)
    assert "needs <this> & that" in page.words
    assert "no frame could be measured" in page.words
    assert any(word.startswith("no face found in 1 of 20 frames of the output: 5") for word in page.words)
    assert all(column.definition in page.words for column in COLUMNS)


def test_worst_frames_are_apart_and_never_unmeasured():
    badness = np.full(30, np.nan)
    badness[[3, 4, 20]] = [1, 2, 0.5]
    assert worst_frames(badness).tolist() == [4, 20]
    assert worst_frames(np.full(5, np.nan)).tolist() == []


def test_a_curve_leaves_holes_open_and_joins_every_eighth_frame():
    values = np.sin(np.arange(40.0))
    values[20] = np.nan
    assert curve(values, "x").count("<polyline") == 2
    sparse = np.full(41, np.nan)
    sparse[1::8] = 1.0
    assert curve(sparse, "x").count("<polyline") == 1
    long = curve(np.arange(5000.0), "x")
    assert len(re.findall(r"[\d.]+,[\d.]+", long)) <= 600


@pytest.mark.parametrize(
    "part",
    [
        lambda text: table([("", text)], [[text]]),
        lambda text: facts([(text, text)]),
        lambda text: figures([(text, text)], "row", text, text),
        lambda text: notes([text]),
        lambda text: items([text]),
        lambda text: cell(text, [text]),
        lambda text: link(text, text),
        lambda text: details(text, [notes([text])]),
        lambda text: grid([(text, text, curve(np.ones(3), text))]),
        lambda text: key([text]),
        lambda text: page(text, {text: [text]}),
    ],
)
def test_whatever_a_part_is_given_is_no_markup(part):
    for nasty in ('"><img src=x onerror=y>', "'><b>", "&lt;"):
        parts = Page()
        parts.feed(part(nasty))
        parts.close()
        found = [value or "" for _, attributes in parts.tags for value in attributes.values()]
        assert not parts.open and any(nasty in text for text in (*parts.words, *found))
        assert "b" not in [tag for tag, _ in parts.tags] and not any("onerror" in row for _, row in parts.tags)
