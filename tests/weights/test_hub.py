"""Folders of weights from a hub on this machine that lists, serves, breaks off and changes its mind as the real one."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from support.server import QuietHandler, serving

from expportrait_cli.cli import app
from expportrait_cli.errors import OutputError, WeightsError
from expportrait_cli.weights import catalogue, download
from expportrait_cli.weights.catalogue import Weight
from expportrait_cli.weights.download import fetch_folder

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


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub(ThreadingHTTPServer):
    """One repository, /Owner/model, with one commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.commit = dict(FILES), "c0ffee"
        self.cut: str = ""
        """File that breaks off after 300000 bytes."""
        self.asked: list[str] = []

    @property
    def weight(self) -> Weight:
        source = f"http://127.0.0.1:{self.server_port}/Owner/model"
        parts = ("transformer", "vae", "README.md")
        return Weight("big", "big", source, "", "Apache-2.0", ("wan-vace",), optional=True, parts=parts)

    def rows(self) -> list[dict]:
        rows: list[dict] = [{"type": "directory", "path": "vae", "size": 0, "oid": "0"}]
        for path, content in FILES.items():
            row = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if path.endswith(".safetensors"):
                row["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            rows.append(row)
        return rows


class Answer(QuietHandler):
    server: Hub

    def do_GET(self) -> None:
        own = self.server
        own.asked.append(self.path)
        resolve = f"/Owner/model/resolve/{own.commit}/"
        match self.path:
            case "/api/models/Owner/model/revision/main":
                self.send(json.dumps({"sha": own.commit}).encode())
            case path if path == f"/api/models/Owner/model/tree/{own.commit}?recursive=true":
                self.send(json.dumps(own.rows()).encode())
            case path if path.startswith(resolve):
                name = path.removeprefix(resolve)
                self.send(own.files[name], cut=own.cut == name)
            case _:
                self.send_error(404)

    def send(self, content: bytes, *, cut: bool = False) -> None:
        wanted = self.headers.get("Range", "")
        tag = f'"{git_hash(content)}"'
        start = 0
        if wanted and self.headers.get("If-Range") == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(content[start:300_000] if cut else content[start:])


@pytest.fixture
def server() -> Iterator[Hub]:
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
    path = fetch_folder(server.weight, tmp_path, lambda *step: seen.append(step))
    assert path == tmp_path / "big" and files_of(path) == WANTED
    total = sum(map(len, WANTED.values()))
    assert seen[-1] == (total, total) and [step[0] for step in seen] == sorted(step[0] for step in seen)
    note = json.loads((path / "fetched.json").read_text())
    assert note["revision"] == "c0ffee"
    assert {row["file"]: row["sha256"] for row in note["files"]} == {
        name: hashlib.sha256(content).hexdigest() for name, content in WANTED.items()
    }
    before = len(server.asked)
    fetch_folder(server.weight, tmp_path, silent)
    assert len(server.asked) == before + 1
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    assert catalogue.locate(server.weight) == path and catalogue.state(server.weight) == "ok"
    (path / "vae" / "config.json").write_bytes(b"other")
    assert catalogue.state(server.weight) == "wrong"


def test_a_file_that_was_cut_short_goes_on(server, tmp_path, monkeypatch):
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    server.cut = "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(WeightsError, match="broke off after 300000 of 700000 bytes"):
        fetch_folder(server.weight, tmp_path, silent)
    assert catalogue.locate(server.weight) is None
    server.cut = ""
    assert files_of(fetch_folder(server.weight, tmp_path, silent)) == WANTED


@pytest.mark.parametrize("name", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_another_content_than_the_hub_lists_is_thrown_away(name, server, tmp_path):
    server.files[name] = b"something else"
    with pytest.raises(WeightsError, match="thrown away"):
        fetch_folder(server.weight, tmp_path, silent)
    assert not (tmp_path / "big" / name).exists()
    server.files[name] = FILES[name]
    assert files_of(fetch_folder(server.weight, tmp_path, silent)) == WANTED


def test_small_files_of_an_earlier_commit_are_replaced(server, tmp_path):
    old = tmp_path / "big" / "vae" / "config.json"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"{'old': 1}")
    fetch_folder(server.weight, tmp_path, silent)
    assert old.read_bytes() == FILES["vae/config.json"]


def test_names_that_lead_out_of_the_folder_are_left_alone():
    parts = ("transformer",)
    good = ("transformer/a.json", "transformer/deep/a.safetensors")
    bad = (
        "transformer/../a.json",
        "transformer//a.json",
        "/transformer/a.json",
        "transformer/a.bin",
        "transformers/a.json",
    )
    assert all(download._is_wanted(path, parts) for path in good)
    assert not any(download._is_wanted(path, parts) for path in bad)


def test_a_disk_that_is_too_small_is_found_out_first(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"0\.0 GB free"):
        fetch_folder(server.weight, tmp_path, silent)
    assert len(server.asked) == 2 and not (tmp_path / "big").exists()


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
        fetch_folder(weight, tmp_path, silent)


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
    assert files_of(fetch_folder(known, tmp_path / "a", silent)) == WANTED
    other = replace(server.weight, pinned=((name, "ab" * 32),))
    with pytest.raises(WeightsError, match=f"lists {name} with the sha256 .*, expected abab.*: its publisher has"):
        fetch_folder(other, tmp_path / "b", silent)
    assert not (tmp_path / "b").exists()


def test_the_first_fetch_pins_commit_and_hashes(server, tmp_path):
    name = "transformer/diffusion_pytorch_model.safetensors"
    path = fetch_folder(server.weight, tmp_path, silent)
    (path / name).unlink()
    asked = len(server.asked)
    assert files_of(fetch_folder(server.weight, tmp_path, silent)) == WANTED
    assert not [way for way in server.asked[asked:] if "/revision/" in way]
    note = (path / "fetched.json").read_text()
    (path / "fetched.json").write_text(note.replace(hashlib.sha256(LARGE).hexdigest(), "ab" * 32))
    with pytest.raises(WeightsError, match=f"lists {name} with the sha256 .*, expected abab.*: its publisher has"):
        fetch_folder(server.weight, tmp_path, silent)


def test_published_hashes_are_in_the_catalogue():
    pinned = dict(catalogue.entry("wan-vace-1.3b").pinned)
    assert len(pinned) == 3 and pinned["vae/diffusion_pytorch_model.safetensors"].startswith("d6e524b3")
    assert catalogue.entry("wan-vace-14b").parts == catalogue.entry("wan-vace-1.3b").parts
