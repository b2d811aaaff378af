import json

import pytest

from expportrait_cli.media.files import content_hash
from expportrait_cli.pipeline.licences import DATA, TERMS, licence_map, of_film, together
from expportrait_cli.weights import catalogue, entry


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
    shipped = {weight.name for weight in catalogue() if not weight.package and not weight.optional and not weight.form}
    assert {name for name in shipped if not entry(name).downloads} <= set(DATA)


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
