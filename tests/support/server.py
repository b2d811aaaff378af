"""A web server on this machine, for what a test downloads."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

S = TypeVar("S", bound=ThreadingHTTPServer)


class QuietHandler(BaseHTTPRequestHandler):
    """Answers without a line on stderr for each request."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(server: S) -> Iterator[S]:
    """Have a server answer in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def git_hash(content: bytes) -> str:
    """Git's own hash of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def hub_rows(files: dict[str, bytes]) -> list[dict]:
    """Files of a repository as the hub describes them: large ones have a sha256."""
    rows: list[dict] = []
    for name, content in files.items():
        row = {"rfilename": name, "size": len(content), "blobId": git_hash(content)}
        if name.endswith(".safetensors"):
            row["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        rows.append(row)
    return rows


def hub_listing(commit: str, rows: list[dict]) -> bytes:
    """What the hub answers when it is asked for a model."""
    return json.dumps({"id": "Owner/model", "sha": commit, "siblings": rows}).encode()
