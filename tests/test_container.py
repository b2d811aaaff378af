"""The Dockerfile: its steps as a script, because no image can be built in a test."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import ROOT

STEPS = [
    tuple(line.split(maxsplit=1))
    for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    if line and not line.startswith("#")
]


def sources(rest: str) -> list[Path]:
    return [ROOT / name for name in rest.split()[:-1]]


def script(root: Path) -> str:
    """The steps as shell commands, with the image's folders below `root`; packages of the system are left out."""
    lines = ["set -eu"]
    for word, rest in STEPS:
        match word:
            case "ARG":
                name, _, value = rest.partition("=")
                lines.append(f"{name}=${{{name}-{value}}}")
            case "WORKDIR":
                lines += [f"mkdir -p {root}{rest}", f"cd {root}{rest}"]
            case "COPY":
                # Of a folder it is the contents that are copied.
                target = rest.split()[-1]
                lines += [
                    f"mkdir -p {target} && cp -r {path}/. {target}" if path.is_dir() else f"cp {path} {target}"
                    for path in sources(rest)
                ]
            case "RUN" if not rest.startswith("apt-get"):
                lines.append(rest)
    return "\n".join(lines) + "\n"


def test_what_is_copied_is_there_and_not_ignored(tmp_path):
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [path for word, rest in STEPS if word == "COPY" for path in sources(rest)]
    assert all(path.exists() for path in copied) and {path.name for path in copied} == kept
    done = subprocess.run(["sh", "-n"], input=script(tmp_path), text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_part_of_the_image_has_a_licence_note():
    page = (ROOT / "docs" / "container.md").read_text("utf-8")
    assert all(part in page for part in ("mediapipe", "imageio-ffmpeg", "pillow-heif", "nvidia", "OpenCV", "anny"))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("EXPPORTRAIT_LONG"), reason="downloads and installs 2 GB: EXPPORTRAIT_LONG=1")
def test_the_steps_run(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    own = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "TORCH_INDEX": "https://pypi.org/simple"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | own
    done = subprocess.run(["sh", "-c", script(tmp_path / "image")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "MISSING" not in done.stdout
    (entry,) = [rest for word, rest in STEPS if word == "ENTRYPOINT"]
    command = shlex.join([*re.findall(r'"(.*?)"', entry), "--version"])
    said = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0 and "expportrait" in said.stdout
