"""Folders of weights from a hub on this machine that lists, serves, breaks off and changes its mind as the real one."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import constants
from support.server import QuietHandler, hub_listing, hub_rows, serving

from expportrait_cli.artifacts.files import noted
from expportrait_cli.cli import app
from expportrait_cli.errors import OutputError, WeightsError
from expportrait_cli.weights import catalogue, download
from expportrait_cli.weights.catalogue import Weight
from expportrait_cli.weights.download import fetch

LARGE = np.random.default_rng(0).bytes(700_000)
FILES = {
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "model_index.json": b"{}",
    "transformer/config.json": b'{"_class_name": "WanVACETransformer3DModel"}',
    "transformer/diffusion_pytorch_model.safetensors": LARGE,
    "transformer/run.py": b"print('never')",
    "text_encoder/model.safetensors": b"far too large",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": LARGE[:1000],
}


class Hub(ThreadingHTTPServer):
    """One repository, /Owner/model, with one commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.commit = dict(FILES), "c0ffee"
        self.cut: str = ""
        """File that breaks off after 300000 bytes."""
        self.asked: list[str] = []
        self.tokens: set[str] = set()

    @property
    def weight(self) -> Weight:
        source = f"http://127.0.0.1:{self.server_port}/Owner/model"
        parts = ("transformer", "vae", "README.md")
        return Weight("big", "big", source, "", "Apache-2.0", ("wan-vace",), optional=True, parts=parts)

    def rows(self) -> list[dict]:
        return hub_rows(FILES)


class Answer(QuietHandler):
    server: Hub

    def do_GET(self) -> None:
        own = self.server
        own.asked.append(self.path)
        if "Authorization" in self.headers:
            own.tokens.add(self.headers["Authorization"])
        resolve = f"/Owner/model/resolve/{own.commit}/"
        if self.path.startswith("/api/models/Owner/gated/") and "Authorization" not in self.headers:
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.end_headers()
        elif self.path.startswith("/api/models/Owner/closed/"):
            self.send_error(401)
        elif self.path in [f"/api/models/Owner/model/revision/{name}?blobs=true" for name in ("main", own.commit)]:
            self.send(hub_listing(own.commit, own.rows()))
        elif self.path.startswith(resolve):
            name = self.path.removeprefix(resolve)
            self.send(own.files[name], cut=own.cut == name)
        else:
            self.send_error(404)

    def send(self, content: bytes, *, cut: bool = False) -> None:
        wanted, start = self.headers.get("Range", ""), 0
        if wanted:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:300_000] if cut else content[start:])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100_000)
    with serving(Hub()) as server:
        yield server


def silent(done: int, total: int | None) -> None:
    pass


def files_of(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "fetched.json"}


WANTED = {name: content for name, content in FILES.items() if not name.startswith(("model_index", "text_encoder"))}
WANTED.pop("transformer/run.py")


def test_what_is_needed_arrives_and_is_noted(server, tmp_path, monkeypatch):
    seen = []
    path = fetch(server.weight, tmp_path, lambda *step: seen.append(step))
    assert path == tmp_path / "big" and files_of(path) == WANTED
    total = sum(map(len, WANTED.values()))
    assert seen[-1] == (total, total) and [step[0] for step in seen] == sorted(step[0] for step in seen)
    note = json.loads((path / "fetched.json").read_text())
    assert note["revision"] == "c0ffee"
    assert {row["file"]: row["sha256"] for row in note["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in WANTED.items()
    }
    before = len(server.asked)
    fetch(server.weight, tmp_path, silent)
    assert len(server.asked) == before + 1
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    assert catalogue.locate(server.weight) == path and catalogue.state(server.weight) == "ok"
    (path / "vae" / "config.json").write_bytes(b"other")
    assert catalogue.state(server.weight) == "wrong"


def test_a_file_that_was_cut_short_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    server.cut = "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(WeightsError, match=r"cannot be reached: .*goes on where it stopped"):
        fetch(server.weight, tmp_path, silent)
    assert catalogue.locate(server.weight) is None
    begun = tmp_path / "big" / "transformer" / ".diffusion_pytorch_model.safetensors.partial"
    assert begun.stat().st_size == 300_000
    server.cut = ""
    assert files_of(fetch(server.weight, tmp_path, silent)) == WANTED


@pytest.mark.parametrize("name", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_another_content_than_the_hub_lists_is_thrown_away(name, server, tmp_path):
    server.files[name] = b"something else"
    with pytest.raises(WeightsError, match="it was deleted"):
        fetch(server.weight, tmp_path, silent)
    assert not (tmp_path / "big" / name).exists()
    server.files[name] = FILES[name]
    assert files_of(fetch(server.weight, tmp_path, silent)) == WANTED


def test_small_files_of_an_earlier_commit_are_replaced(server, tmp_path):
    old = tmp_path / "big" / "vae" / "config.json"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"{'old': 1}")
    fetch(server.weight, tmp_path, silent)
    assert old.read_bytes() == FILES["vae/config.json"]


def test_names_that_lead_out_of_the_folder_are_left_alone():
    parts = ("transformer",)
    good = ("transformer/a.json", "transformer/deep/a.safetensors")
    bad = (
        "transformer/../a.json",
        "transformer//a.json",
        "/transformer/a.json",
        "transformers/a.json",
    )
    assert all(download._is_under(path, part) for path in good for part in parts)
    assert not any(download._is_under(path, part) for path in bad for part in parts)


def test_a_disk_that_is_too_small_is_found_out_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"0\.0 GB free"):
        fetch(server.weight, tmp_path, silent)
    assert len(server.asked) == 1 and not (tmp_path / "big").exists()


@pytest.mark.parametrize("change", ["no such model", "no such part", "no list"])
def test_what_a_hub_cannot_give_is_said(change, server, tmp_path, monkeypatch):
    weight = server.weight
    match change:
        case "no such model":
            weight, words = replace(weight, source=weight.source + "s"), "answered 404"
        case "no such part":
            weight, words = replace(weight, parts=("transformer", "controlnet")), "has no controlnet"
        case _:
            monkeypatch.setattr(Hub, "rows", lambda self: [{"name": "other"}])
            words = "does not list files"
    with pytest.raises(WeightsError, match=words):
        fetch(weight, tmp_path, silent)


def test_the_command(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(catalogue, "folders", lambda: (tmp_path,))
    monkeypatch.setattr(catalogue, "catalogue", lambda: (server.weight,))
    assert app.run(["weights", "fetch", "big"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'big'}\n" and "Apache-2.0" in err and "nobody published" not in err


def test_the_catalogue_knows_both_folders():
    for name in ("wan-vace-1.3b", "wan-t2v-1.3b"):
        weight = catalogue.entry(name)
        assert weight.parts == ("transformer", "vae", "README.md") and weight.optional and weight.downloads


def test_files_whose_hash_is_known_are_those_or_none(server, tmp_path):
    name = "transformer/diffusion_pytorch_model.safetensors"
    known = replace(server.weight, pinned=((name, hashlib.sha256(LARGE).hexdigest()),))
    assert files_of(fetch(known, tmp_path / "a", silent)) == WANTED
    other = replace(server.weight, pinned=((name, "ab" * 32),))
    with pytest.raises(WeightsError, match=f"lists {name} with the sha256 .*, expected abab.*: its publisher has"):
        fetch(other, tmp_path / "b", silent)
    assert not (tmp_path / "b").exists()


def test_the_first_fetch_pins_commit_and_hashes(server, tmp_path):
    name = "transformer/diffusion_pytorch_model.safetensors"
    path = fetch(server.weight, tmp_path, silent)
    (path / name).unlink()
    asked = len(server.asked)
    assert files_of(fetch(server.weight, tmp_path, silent)) == WANTED
    assert [way for way in server.asked[asked:] if "/revision/" in way] == [
        f"/api/models/Owner/model/revision/{server.commit}?blobs=true"
    ]
    note = (path / "fetched.json").read_text()
    (path / "fetched.json").write_text(note.replace(hashlib.sha256(LARGE).hexdigest(), "ab" * 32))
    with pytest.raises(WeightsError, match=f"lists {name} with the sha256 .*, expected abab.*: its publisher has"):
        fetch(server.weight, tmp_path, silent)


def test_published_hashes_are_in_the_catalogue():
    pinned = dict(catalogue.entry("wan-vace-1.3b").pinned)
    assert len(pinned) == 3 and pinned["vae/diffusion_pytorch_model.safetensors"].startswith("d6e524b3")
    assert catalogue.entry("wan-vace-14b").parts == catalogue.entry("wan-vace-1.3b").parts


def test_what_the_hubs_own_cache_has_is_not_fetched_again(server, tmp_path, monkeypatch):
    name = "transformer/diffusion_pytorch_model.safetensors"
    cached = Path(constants.HF_HUB_CACHE) / "models--Owner--model" / "snapshots" / server.commit / name
    cached.parent.mkdir(parents=True)
    cached.write_bytes(LARGE)
    path = fetch(server.weight, tmp_path / "a", silent)
    assert files_of(path) == WANTED and not [way for way in server.asked if way.endswith(name)]
    assert (path / name).samefile(cached)
    cached.unlink()
    cached.write_bytes(b"damaged")
    assert files_of(fetch(server.weight, tmp_path / "b", silent)) == WANTED and cached.read_bytes() == b"damaged"


def test_the_users_own_endpoint_and_token_are_taken(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    other = fetch(server.weight, tmp_path / "a", silent)
    assert files_of(other) == WANTED and not server.tokens
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.weight.source.removesuffix("/Owner/model"))
    own = replace(server.weight, source="https://huggingface.co/Owner/model")
    assert files_of(fetch(own, tmp_path / "b", silent)) == WANTED and server.tokens == {"Bearer hf_secret"}


def test_one_file_of_the_hub_is_checked_by_the_hubs_hash(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.weight.source.removesuffix("/Owner/model"))
    name = "vae/diffusion_pytorch_model.safetensors"
    weight = Weight("one", "one.safetensors", f"https://huggingface.co/Owner/model/resolve/main/{name}", "", "MIT", ())
    server.files[name] = b"something else"
    with pytest.raises(WeightsError, match=r"has the hash .*: it was deleted"):
        fetch(weight, tmp_path, silent)
    server.files[name] = FILES[name]
    assert fetch(weight, tmp_path, silent).read_bytes() == FILES[name]
    assert noted(tmp_path / "one.safetensors") == hashlib.sha256(FILES[name]).hexdigest()


def test_a_repository_that_is_closed_is_said_with_the_way_to_log_in(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.weight.source.removesuffix("/Owner/model"))
    closed = replace(server.weight, source="https://huggingface.co/Owner/closed")
    with pytest.raises(WeightsError, match=r"answered 401 .* Look on https://huggingface.co/Owner/closed, and log in"):
        fetch(closed, tmp_path, silent)


def test_a_licence_that_has_to_be_accepted_is_said_with_its_page(server, tmp_path):
    gated = replace(server.weight, source=server.weight.source.replace("model", "gated"))
    with pytest.raises(WeightsError, match=f"accept its licence: do so on {gated.source}, and log in") as caught:
        fetch(gated, tmp_path, silent)
    assert "\n" not in str(caught.value)


def test_without_a_network_the_user_is_told_that_it_is_switched_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="cannot be reached while HF_HUB_OFFLINE is set"):
        fetch(server.weight, tmp_path, silent)
