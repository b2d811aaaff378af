"""What a file holds, in 64 characters."""

import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Hash of a file's content in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    # `hashlib.file_digest` does this, from Python 3.11 on.
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
