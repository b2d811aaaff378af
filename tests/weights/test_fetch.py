"""Downloads from a server on this machine that breaks off, changes its mind and refuses, as real ones do."""

import hashlib
import resource
import socket
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.server import QuietHandler, serving

from expportrait_cli.artifacts.files import note_of
from expportrait_cli.cli import app
from expportrait_cli.errors import OutputError, UsageError, WeightsError
from expportrait_cli.weights import catalogue
from expportrait_cli.weights.catalogue import Weight
from expportrait_cli.weights.download import fetch

PIECE = 1 << 18
CONTENT = np.random.default_rng(0).bytes(5 * PIECE + 123)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Publisher(ThreadingHTTPServer):
    """Serves CONTENT at every path but /missing and /forbidden."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.cut_after: int | None = None
        """Bytes after which each connection breaks."""
        self.breaks_at: int | None = None
        """Place in the file that no connection gets past."""
        self.knows_ranges = True
        self.says_length = True
        self.goes_on_by = 0
        """Bytes that it leaves out when it goes on."""
        self.asked: list[str] = []
        """Range of each request."""
        self.sent = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(QuietHandler):
    server: Publisher

    def do_GET(self) -> None:
        publisher = self.server
        wanted = self.headers.get("Range", "")
        publisher.asked.append(wanted)
        if self.path in ("/missing", "/forbidden"):
            self.send_error(404 if self.path == "/missing" else 403)
            return
        start, content = 0, publisher.content
        if wanted and publisher.knows_ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) + publisher.goes_on_by
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if publisher.says_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start : publisher.breaks_at][: publisher.cut_after]
        publisher.sent += len(body)
        self.wfile.write(body)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with serving(Publisher()) as server:
        yield server


@pytest.fixture(autouse=True)
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", PIECE)
    # It waits before it tries again.
    monkeypatch.setattr("huggingface_hub.file_download.time", SimpleNamespace(sleep=lambda seconds: None))


def entry(publisher: Publisher, *, path: str = "/net.onnx", sha256: str = SHA256, form: str = "") -> Weight:
    return Weight("net", "net.onnx", publisher.address + path, sha256, "MIT", ("fit",), optional=True, form=form)


def silent(done: int, total: int | None) -> None:
    pass


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_is_not_fetched_twice(publisher, tmp_path):
    seen = []
    path = fetch(entry(publisher), tmp_path / "new", lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT and left(path.parent) == ["net.onnx"]
    assert seen[-1] == (len(CONTENT), len(CONTENT)) and len(seen) >= 6
    assert fetch(entry(publisher), tmp_path / "new", silent) == path and len(publisher.asked) == 1


def test_a_broken_connection_is_made_again_in_the_same_run(publisher, tmp_path):
    publisher.cut_after = 2 * PIECE
    seen = []
    path = fetch(entry(publisher), tmp_path, lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT and left(tmp_path) == ["net.onnx"]
    assert publisher.asked == ["", f"bytes={2 * PIECE}-", f"bytes={4 * PIECE}-"] and publisher.sent == len(CONTENT)
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_a_broken_download_goes_on_where_it_stopped(publisher, tmp_path):
    publisher.breaks_at = 2 * PIECE
    with pytest.raises(WeightsError, match=r"cannot be reached: .*goes on where it stopped") as caught:
        fetch(entry(publisher), tmp_path, silent)
    assert "\n" not in str(caught.value) and left(tmp_path) == [".net.onnx.partial"]
    assert (tmp_path / ".net.onnx.partial").stat().st_size == 2 * PIECE
    publisher.breaks_at, publisher.asked, publisher.sent = None, [], 0
    seen = []
    path = fetch(entry(publisher), tmp_path, lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT and left(tmp_path) == ["net.onnx"]
    assert publisher.asked == [f"bytes={2 * PIECE}-"] and publisher.sent == len(CONTENT) - 2 * PIECE
    assert seen[0][0] > 2 * PIECE and seen[-1] == (len(CONTENT), len(CONTENT))


def test_an_interrupt_keeps_what_has_arrived(publisher, tmp_path):
    def interrupt(done: int, total: int | None) -> None:
        if done > 3 * PIECE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(entry(publisher), tmp_path, interrupt)
    assert (tmp_path / ".net.onnx.partial").stat().st_size == 3 * PIECE
    assert fetch(entry(publisher), tmp_path, silent).read_bytes() == CONTENT
    assert publisher.asked[1] == f"bytes={3 * PIECE}-"


def test_all_there_but_not_yet_named(publisher, tmp_path):
    (tmp_path / ".net.onnx.partial").write_bytes(CONTENT)
    assert fetch(entry(publisher), tmp_path, silent).read_bytes() == CONTENT
    assert publisher.sent == 0


@pytest.mark.parametrize("why", ["another version", "no ranges", "too long"])
def test_what_cannot_be_gone_on_with_starts_anew(publisher, tmp_path, why):
    begun = {"another version": b"old" * PIECE, "too long": CONTENT + b"more"}.get(why, CONTENT[:PIECE])
    (tmp_path / ".net.onnx.partial").write_bytes(begun)
    publisher.knows_ranges = why != "no ranges"
    assert fetch(entry(publisher), tmp_path, silent).read_bytes() == CONTENT
    assert left(tmp_path) == ["net.onnx"] and publisher.asked[0] == f"bytes={len(begun)}-"


def test_a_server_that_goes_on_elsewhere_is_not_believed(publisher, tmp_path):
    (tmp_path / ".net.onnx.partial").write_bytes(CONTENT[:PIECE])
    publisher.goes_on_by = 1
    with pytest.raises(WeightsError, match="sent another number of bytes than announced"):
        fetch(entry(publisher), tmp_path, silent)
    assert left(tmp_path) == [".net.onnx.partial"]
    assert fetch(entry(publisher), tmp_path, silent).read_bytes() == CONTENT


def test_without_a_hash_nothing_is_gone_on_with(publisher, tmp_path):
    (tmp_path / ".net.onnx.partial").write_bytes(b"old")
    assert fetch(entry(publisher, sha256=""), tmp_path, silent).read_bytes() == CONTENT
    assert left(tmp_path) == ["net.onnx", "net.onnx.sha256"] and publisher.asked == [""]


def test_a_wrong_hash_leaves_nothing(publisher, tmp_path):
    with pytest.raises(WeightsError, match=f"has the hash {SHA256}, expected {'0' * 64}: it was deleted") as caught:
        fetch(entry(publisher, sha256="0" * 64), tmp_path, silent)
    assert "\n" not in str(caught.value) and left(tmp_path) == []


def test_a_wrong_file_is_replaced(publisher, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"<html>sign in</html>")
    assert fetch(entry(publisher), tmp_path, silent).read_bytes() == CONTENT


def test_one_download_of_a_file_at_a_time(publisher, tmp_path):
    def second(done: int, total: int | None) -> None:
        with pytest.raises(OutputError, match="is being made by another run"):
            fetch(entry(publisher), tmp_path, silent)

    assert fetch(entry(publisher), tmp_path, second).read_bytes() == CONTENT


def test_a_folder_that_cannot_be_made_is_one_line(publisher, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OutputError, match=r"could not be written: .*exists"):
        fetch(entry(publisher), tmp_path / "cache", silent)
    assert publisher.asked == []


def test_a_silent_server_is_not_waited_for(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silence:
        url = f"http://127.0.0.1:{silence.getsockname()[1]}/net.onnx"
        with pytest.raises(WeightsError, match="cannot be reached: timed out"):
            fetch(Weight("net", "net.onnx", url, SHA256, "MIT", ("fit",)), tmp_path, silent)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, weight: Weight) -> int:
    monkeypatch.setattr(catalogue, "catalogue", lambda: (weight,))
    monkeypatch.setattr(catalogue, "folders", lambda: (folder,))
    return app.run(["weights", "fetch", "net"])


def test_the_command_prints_the_path(publisher, monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, entry(publisher)) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'net.onnx'}\n"
    assert "net: MIT\n" in err and "net, MB: 1 of 1" in err and "sha256" not in err


def test_a_full_disk_is_one_line_and_loses_nothing(publisher, monkeypatch, tmp_path, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PIECE, limits[1]))
    try:
        assert run(monkeypatch, tmp_path, entry(publisher)) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "no space left" in err and left(tmp_path) == [".net.onnx.partial"]
    assert run(monkeypatch, tmp_path, entry(publisher)) == 0 and publisher.asked[1] == f"bytes={2 * PIECE}-"


def test_an_unknown_hash_is_told(publisher, monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path, entry(publisher, sha256="")) == 0
    assert f"net: nobody published its sha256; this one has {SHA256}\n" in capsys.readouterr().err


def test_the_first_download_pins_a_hash_that_nobody_published(publisher, monkeypatch, tmp_path):
    weight = entry(publisher, sha256="")
    path = fetch(weight, tmp_path, silent)
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    assert note_of(path).read_text() == f"{SHA256}  net.onnx\n" and catalogue.state(weight) == "ok"
    path.write_bytes(b"other")
    assert catalogue.state(weight) == "wrong"
    assert fetch(weight, tmp_path, silent).read_bytes() == CONTENT
    path.unlink()
    publisher.content = CONTENT[::-1]
    with pytest.raises(WeightsError, match=f"expected {SHA256}.* delete .*net.onnx.sha256 to accept the new one"):
        fetch(weight, tmp_path, silent)
    note_of(path).unlink()
    assert fetch(weight, tmp_path, silent).read_bytes() == CONTENT[::-1]


def offline() -> str:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"http://127.0.0.1:{closed.getsockname()[1]}/net.onnx"


@pytest.mark.parametrize(
    ("why", "says"),
    [
        ("missing", "answered 404 Not Found. Look on the publisher's page."),
        ("forbidden", "answered 403 Forbidden. Look on the publisher's page."),
        ("offline", "cannot be reached: [Errno 111] Connection refused."),
        ("form", "Accept its licence on https://example.org/licence, and put net.onnx into"),
        ("wheel", "cannot be downloaded by this command. Install PyPI net 1.0."),
    ],
)
def test_what_cannot_be_fetched_is_one_line(publisher, monkeypatch, tmp_path, capsys, why, says):
    match why:
        case "missing" | "forbidden":
            weight = entry(publisher, path=f"/{why}")
        case "offline":
            weight = Weight("net", "net.onnx", offline(), SHA256, "MIT", ("fit",))
        case "form":
            weight = entry(publisher, form="https://example.org/licence")
        case _:
            weight = Weight("net", "net.onnx", "PyPI net 1.0", SHA256, "MIT", ("fit",), package="net")
    assert run(monkeypatch, tmp_path, weight) == 4
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and says in err
    assert left(tmp_path) == []


def test_an_unknown_name_is_a_usage_error(monkeypatch, capsys):
    assert app.run(["weights", "fetch", "nothing"]) == 2
    message = capsys.readouterr().err
    assert "'nothing' is not in the catalogue" in message and "david" in message
    with pytest.raises(UsageError):
        catalogue.entry("nothing")


@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_file_without_length_needs_a_hash(publisher, tmp_path, sha256):
    publisher.says_length = False
    weight = Weight("a", "a.onnx", f"{publisher.address}/a", sha256, "MIT", ())
    if sha256:
        assert fetch(weight, tmp_path, lambda *_: None).read_bytes() == CONTENT
        return
    with pytest.raises(WeightsError, match="has no length"):
        fetch(weight, tmp_path, lambda *_: None)
    assert list(tmp_path.glob("*")) == []


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.onnx", b"<!DOCTYPE html><html>Log in</html>", "is a web page: it was deleted"),
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{", "is not a safetensors file"),
        ("a.safetensors", b"<html>", "is not a safetensors file"),
        ("README.md", b"<p>Read me", ""),
    ],
)
def test_what_no_hash_is_known_of_has_to_look_like_itself(publisher, tmp_path, name, content, says):
    publisher.content = content
    weight = Weight("a", name, f"{publisher.address}/a", "", "MIT", ())
    if not says:
        assert fetch(weight, tmp_path, lambda *_: None).read_bytes() == content
        return
    with pytest.raises(WeightsError, match=says):
        fetch(weight, tmp_path, lambda *_: None)
    assert list(tmp_path.glob("*")) == []


ENTRY = {
    "name": '"a"',
    "file": '"a.onnx"',
    "source": '"https://a"',
    "sha256": '""',
    "licence": '"MIT"',
    "needed_by": "[]",
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"file": '"../a"'}, "file of 'a' is '../a', expected a path below the folder"),
        ({"file": '"/etc/passwd"'}, "expected a path below the folder"),
        ({"sha256": '"ab"'}, "sha256 of 'a' is 'ab'"),
        ({"optional": "1"}, "optional of 'a' is '1'"),
        ({"needed_by": "[1]"}, "needed_by of 'a' is '(1,)'"),
        ({"data": '[["a"]]'}, "data of 'a' is"),
        ({"colour": '"red"'}, "colour"),
        ({"licence": "9" * 5000}, "Exceeds the limit"),
        ({"licence": "[" * 150_000}, "nested too deep"),
    ],
)
def test_a_catalogue_of_ones_own(changes, says, tmp_path, monkeypatch):
    lines = [f"{name} = {value}" for name, value in {**ENTRY, **changes}.items()]
    (tmp_path / "catalogue.toml").write_text("[[weight]]\n" + "\n".join(lines))
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    if not says:
        assert [weight.file for weight in catalogue.catalogue.__wrapped__()] == ["a.onnx"]
        return
    with pytest.raises(WeightsError, match="is no catalogue of weights") as caught:
        catalogue.catalogue.__wrapped__()
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_place_for_weights_that_is_none(tmp_path, monkeypatch):
    (tmp_path / "catalogue.toml").mkdir()
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match="is a folder, expected a file"):
        catalogue.catalogue.__wrapped__()
    (tmp_path / "file").touch()
    monkeypatch.setenv("EXPPORTRAIT_WEIGHTS", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"EXPPORTRAIT_WEIGHTS names .*, which is no folder"):
        catalogue.catalogue.__wrapped__()
