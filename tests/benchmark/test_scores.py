"""Means over clips, and the page of a suite, on scores that are written down here."""

import json
import re

import numpy as np
import pytest
from support.page_reader import Page
from support.suite_scores import film

from expportrait_cli.benchmark.report import WorstFrame, suite_report
from expportrait_cli.benchmark.scores import SuiteScores
from expportrait_cli.evaluation.report import data_uri
from expportrait_cli.evaluation.scores import over_clips, scores_from_json
from expportrait_cli.pages import histogram, overlay


@pytest.fixture
def suite() -> SuiteScores:
    pairs = {name: {"mode": "self", "driving": f"{name}.mp4", "reference": ""} for name in ("a", "b<i>", "c")}
    pairs["d"] = {"mode": "cross", "driving": "c.mp4", "reference": "p.png"}
    ours = {"a": film(20.0), "b<i>": film(24.0), "c": film(31.0, broken=5), "d": film(0, "cross")}
    theirs = {"a": film(21.0), "c": film(33.0)}
    failed = {"ours": {}, "theirs": {"b<i>": "no film & no reason", "d": "none"}}
    settings = {"name": "made up", "stride": 2}
    return SuiteScores(settings, pairs, {"ours": "this", "theirs": "that"}, {"ours": ours, "theirs": theirs}, failed)


def test_a_clip_counts_once_and_its_interval_is_over_clips(suite):
    mean = suite.mean("ours", "self", "psnr_head")
    assert mean is not None and (mean["mean"], mean["clips"]) == (25, 3)
    assert 20 <= mean["interval"][0] < 25 < mean["interval"][1] <= 31
    assert suite.mean("ours", "cross", "psnr_head") is None
    # One clip alone says nothing of others.
    cross = suite.mean("ours", "cross", "lmk_nme_aligned")
    assert cross is not None and cross["interval"] is None and cross["mean"] == pytest.approx(1, abs=1e-6)


def test_a_difference_is_over_the_clips_that_both_have(suite):
    gap = suite.difference("theirs", "self", "psnr_head")
    assert gap is not None and (gap["mean"], gap["clips"]) == (1.5, 2)
    assert gap["interval"] == [1.0, 2.0]


def test_an_interval_over_clips_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        bounds = over_clips(random.normal(3.0, 1.0, 20))
        assert bounds is not None
        hits += bounds[0] <= 3.0 <= bounds[1]
    # A bootstrap of 20 clips promises a little too much: 91 to 94 % for 95.
    assert 0.86 < hits / 200 < 0.99
    assert over_clips(np.array([1.0])) is None


def test_the_document_is_plain_json_and_the_table_names_what_is_missing(suite):
    document = json.loads(json.dumps(suite.to_json(), allow_nan=False))
    assert document["methods"]["theirs"]["difference_from_first"]["self"]["psnr_head"]["clips"] == 2
    assert "difference_from_first" not in document["methods"]["ours"]
    assert document["missing"]["self"]["flip"] == "needs <flip>"
    text = suite.table()
    assert "psnr_head" in text and "theirs has no scores of b<i>: no film & no reason" in text
    assert "self, not measured: flip (needs <flip>)" in text
    # The paper's figures stand below, and say that they are of other clips.
    assert text.index("psnr_head") < text.index("26.5507") and "other clips" in text


def test_scores_come_back_from_json_as_they_were():
    scores = film(20.123456, broken=3)
    again = scores_from_json(json.loads(json.dumps(scores.to_json())))
    np.testing.assert_allclose(again.values, scores.values, atol=5e-7)
    assert again.to_json() == scores.to_json()
    with pytest.raises(ValueError, match="version 1"):
        scores_from_json({**scores.to_json(), "version": 1})


def test_the_page_stands_alone_and_shows_every_pair(suite):
    grey = data_uri(np.full((64, 64, 3), 90, np.uint8))
    captions = ["photo", "truth", "normals", "film", "error"]
    worst = {"c": WorstFrame(7, "psnr <low>", [(caption, grey) for caption in captions])}
    text = suite_report(suite, worst, {"ours": 12.34}, ["licences: all may be used"])
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "http" not in re.sub(r"base64,[^\"]+", "", text) and "url(" not in text
    assert "prefers-color-scheme: dark" in text
    shown = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert shown == [f"{caption} of frame 7 of c" for caption in captions]
    assert "<i>" not in text and "<low>" not in text
    for words in ("made up", "12.3", "licences: all may be used", "b<i>: no film & no reason", "26.5507"):
        assert any(words in word for word in page.words), words
    # A film that is missing keeps its colour free: of pair b only ours is drawn.
    lines = [attributes.get("class") for tag, attributes in page.tags if tag == "polyline"]
    assert lines.count("s0") > lines.count("s1") > 0


def test_curves_that_share_a_picture_share_its_scale():
    drawn = overlay([np.zeros(3), np.full(3, 4.0)], "x")
    heights = [float(y) for y in re.findall(r"[\d.]+,([\d.]+)", drawn)]
    assert heights[:3] == [90.0] * 3 and heights[3:] == [6.0] * 3
    assert "0 .. 4" in drawn


def test_a_histogram_counts_every_value_once():
    drawn = histogram(np.array([0.0, 0.0, 0.0, 1.0]), "x")
    tall = [float(height) for height in re.findall(r'height="([\d.]+)"', drawn)]
    assert len(tall) == 2 and tall[0] == pytest.approx(3 * tall[1])
    assert "4 frames, highest bar 3" in drawn
    assert histogram(np.ones(5), "x").count("<rect") == 1
