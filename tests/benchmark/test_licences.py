import json

import numpy as np
import pytest

from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.evaluation.columns import CLASSES, NAMES
from expportrait_cli.evaluation.scores import SERVES, Scores, estimators
from expportrait_cli.pipeline.provenance import (
    TERMS,
    LicenceMap,
    Part,
    licence_map,
    of_film,
    shows_another,
    together,
    with_estimators,
)
from expportrait_cli.weights.catalogue import catalogue, entry

ALWAYS = {"head-anny", "face-detector-short", "face-landmarks"}
"""What every evaluation looks through."""


def row(name: str) -> dict[str, str]:
    weight = entry(name)
    return {"name": weight.name, "licence": weight.licence, "source": weight.source, "sha256": weight.sha256}


def record(*names: str) -> dict:
    inputs = {"reference": {"path": "/home/me/photo.png", "sha256": "ab"}}
    return {"weights": [row(name) for name in names], "inputs": inputs}


@pytest.mark.parametrize(
    ("names", "commercial"),
    [
        (("head-anny", "transfer-anny"), "yes"),
        (("head-anny", "david"), "yes"),
        (("head-anny", "sapiens-normal", "david"), "no"),
        (("smplx",), "no"),
        ((), "unknown"),
    ],
)
def test_one_weight_decides_for_all(names, commercial):
    assert licence_map(record(*names)).commercial == commercial


def test_a_licence_that_is_not_known_is_not_guessed():
    strange = {"weights": [{"name": "x", "licence": "Public-ish"}, row("head-anny")]}
    found = licence_map(strange)
    assert found.commercial == "unknown" and found.parts[0].attribution == "read the licence"
    strange["weights"].append(row("sapiens-normal"))
    assert licence_map(strange).commercial == "no"


def test_the_map_names_weights_data_and_inputs():
    found = licence_map(record("head-anny", "transfer-anny"))
    kinds = [part.kind for part in found.parts]
    assert kinds == sorted(kinds, key=["weights", "data", "input"].index)
    names = {part.name: part for part in found.parts}
    assert names["two clips of filmed models, of bytedance/LatentSync"].licence == "Apache-2.0"
    assert names["reference"].commercial == "unknown" and names["reference"].source == "photo.png"
    assert "/home/me" not in json.dumps(found.to_json())
    assert found.lines()[0] == "licences: all weights behind this film may be used commercially"


def test_every_licence_of_the_catalogue_is_known_and_every_file_of_our_own_says_what_it_was_made_from():
    assert {weight.licence for weight in catalogue()} <= set(TERMS)
    assert {licence for weight in catalogue() for _, licence in weight.data} <= set(TERMS)
    shipped = {weight.name for weight in catalogue() if not weight.package and not weight.optional and not weight.form}
    assert {name for name in shipped if not entry(name).downloads and not entry(name).data} == set()


def test_only_a_film_s_own_record_speaks_for_it(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"film")
    assert of_film(film) is None
    content = record("smplx") | {"sha256": content_hash(film)}
    (tmp_path / "film.json").write_text(json.dumps(content))
    found = of_film(film)
    assert found is not None and found.commercial == "no"
    film.write_bytes(b"another")
    assert of_film(film) is None
    (tmp_path / "film.json").write_text(json.dumps([1]))
    assert of_film(film) is None


def test_several_films_are_mapped_without_their_inputs():
    found = together([licence_map(record("head-anny")), licence_map(record("sapiens-normal", "head-anny"))])
    assert [part.name for part in found.parts if part.kind == "weights"] == ["head-anny", "sapiens-normal"]
    assert found.commercial == "no" and not [part for part in found.parts if part.kind == "input"]


def scored(*columns: str, windows: int = 0) -> Scores:
    """Scores of a film in which only these columns were measured."""
    values = np.full((3, len(NAMES)), np.nan)
    values[:, [NAMES.index(name) for name in columns]] = 0.5
    return Scores("self", "film.mp4", "clip.mkv", "clip.mkv", values, {}, np.zeros((2, windows, CLASSES)))


def named(found: LicenceMap, kind: str) -> dict[str, Part]:
    return {part.name: part for part in found.parts if part.kind == kind}


def test_figures_rest_on_what_measured_them():
    names = {weight.name for weight in estimators([scored("found", "psnr_frame")])}
    assert names <= ALWAYS and len(names) == 3
    more = {weight.name for weight in estimators([scored("identity_dlib", "csim_arcface"), scored("lpips_vgg")])}
    assert more - names == {"dlib-face-recognition", "dlib-five-landmarks", "arcface", "lpips-vgg"}
    assert {weight.name for weight in estimators([scored(windows=1)])} - names == {"i3d"}
    assert estimators([]) == []


def test_every_estimator_of_the_catalogue_has_its_column_or_serves_all():
    serving = {weight.name for weight in catalogue() if "eval" in weight.needed_by}
    assert serving - ALWAYS == set(SERVES) and serving >= ALWAYS


def test_the_map_of_scores_names_estimators_and_the_terms_of_their_data():
    scores = scored("identity_dlib", "csim_arcface", "aed_deep3d_mean", "aed_smirk_mean")
    found = with_estimators(licence_map(record("head-anny", "transfer-anny")), estimators([scores]))
    assert {"arcface", "deep3d", "smirk", "dlib-face-recognition", "head-anny"} <= set(named(found, "estimator"))
    assert set(named(found, "weights")) == {"head-anny", "transfer-anny"} and set(named(found, "input")) == {
        "reference"
    }
    data = named(found, "data")
    for what, behind in (("the Basel Face Model 2009", "deep3d"), ("the FLAME 2020 head model", "smirk")):
        (part,) = (part for name, part in data.items() if name.startswith(what))
        assert part.commercial == "no" and part.source == f"behind {behind}"
    # The film was made without them, and stays what it was.
    assert found.commercial == "yes" and found.commercial_scores == "no"
    film, figures = found.lines()[:2]
    assert film == "licences: all weights behind this film may be used commercially"
    assert figures == "licences: not for commercial use: some estimators behind the scores exclude it"
    document = json.loads(json.dumps(found.to_json()))
    assert document["commercial_use_of_the_estimators"] == "no"
    assert licence_map(record("head-anny")).to_json()["commercial_use_of_the_estimators"] is None


@pytest.mark.parametrize(("column", "verdict"), [("found", "yes"), ("aed_deep3d_mean", "yes"), ("csim_arcface", "no")])
def test_a_film_of_unknown_make_has_estimators_alone(column, verdict):
    found = with_estimators(None, estimators([scored(column)]))
    assert found.commercial_scores == verdict and found.commercial == "unknown"
    assert {part.kind for part in found.parts} == {"estimator", "data"}
    assert "this film" not in found.lines()[0] and "estimators behind the scores" in found.lines()[0]


def test_films_of_a_suite_share_their_estimators():
    films = together([licence_map(record("mini", "head-anny")), licence_map(record("head-anny"))])
    found = with_estimators(films, estimators([scored("found"), scored("identity_dlib")]))
    kinds = [part.kind for part in found.parts]
    assert kinds == sorted(kinds, key=["weights", "estimator", "data", "input"].index)
    assert set(named(found, "weights")) == {"head-anny", "mini"}
    assert kinds.count("estimator") == len(named(found, "estimator")) == 5


@pytest.mark.parametrize(("same", "expected"), [(False, True), (True, False), (None, False)])
def test_a_film_of_another_person_than_its_driver_is_known_by_its_record(same, expected, tmp_path):
    film, driver, other = (tmp_path / name for name in ("film.mp4", "clip.mp4", "other.mp4"))
    for path in (film, driver, other):
        path.write_bytes(path.name.encode())
    found = {"inputs": {"driving": {"sha256": content_hash(driver)}}, "sha256": content_hash(film)}
    (tmp_path / "film.json").write_text(json.dumps({**found, "quality": {} if same is None else {"same_person": same}}))
    assert shows_another(film, driver) is expected and not shows_another(film, other)
    film.write_bytes(b"another film")
    assert not shows_another(film, driver)
