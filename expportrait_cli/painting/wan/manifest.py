"""`generator.json`, the manifest of a generator's folder: its files, training, sampler, and convention of normals."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from safetensors import SafetensorError, safe_open

from expportrait_cli.artifacts.files import atomic_path, sha256
from expportrait_cli.artifacts.network_file import check_finite
from expportrait_cli.artifacts.texts import read_json
from expportrait_cli.errors import UsageError, WeightsError, one_line
from expportrait_cli.render.buffers import CONVENTION
from expportrait_cli.runtime import Between, Checked
from expportrait_cli.version import __version__

FILE, LORA_FILE = "generator.json", "vace_lora.json"
KIND, SCHEMA, BACKEND = "generator", 1, "wan-portrait"
TRANSFORMER, ENCODERS, VAE = "transformer", "condition_encoder", "vae"
PROMPT, LORA = "prompt_embeds.safetensors", "pytorch_lora_weights.safetensors"
HOW = "Train one with `expportrait train generator`, or copy the folder again."


@dataclass(frozen=True)
class FrameRule(Checked):
    """Lengths and overlap of the windows that the transformer takes, frames."""

    multiple: Annotated[int, Between(1, 64)] = 4
    offset: Annotated[int, Between(0, 64)] = 1
    """A window has `multiple` k + `offset` frames, k an integer."""
    window: Annotated[int, Between(1, 10_000)] = 81
    """Frames of a window, as in training."""
    overlap: Annotated[int, Between(0, 10_000)] = 20
    """Frames that two neighbouring windows share."""


@dataclass(frozen=True)
class Sampler(Checked):
    """Default settings of the sampler."""

    kind: Literal["euler"] = "euler"
    steps: Annotated[int, Between(1, 1000)] = 20
    shift: Annotated[float, Between(0.01, 1000)] = 3.0
    """Shift of the noise level s to shift s / (1 + (shift - 1) s), as in training."""
    guidance: Annotated[float, Between(0, 100)] = 1.0


@dataclass(frozen=True)
class Manifest(Checked):
    """Content of `generator.json`, except the hashes of the files."""

    base: Literal["t2v", "i2v"]
    has_hint: bool
    """True if the generator is conditioned on the proxy film, beside the normals."""
    origin: Mapping[str, str]
    """`repo`, `revision` and `license` of the base model."""
    vae: str = VAE
    """Folder of the autoencoder: a name inside the generator's folder, or an absolute path."""
    resolution: Annotated[int, Between(16, 4096)] = 512
    frame_rule: FrameRule = field(default_factory=FrameRule)
    sampler: Sampler = field(default_factory=Sampler)
    train: Mapping[str, Any] = field(default_factory=dict)
    """Settings, steps, data and figures of the training."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `generator.json` with the hashes of the files in `folder`; the last step of writing a generator."""
    content = {
        "kind": KIND,
        "schema": SCHEMA,
        "tool": f"expportrait {__version__}",
        "backend": BACKEND,
        "arch": {"base": manifest.base, "hint": manifest.has_hint},
        "weights": [_row(path, folder) for path in sorted(folder.rglob("*.safetensors"))],
        "base": dict(manifest.origin),
        "vae": manifest.vae,
        "normals": CONVENTION,
        "resolution": manifest.resolution,
        "frame_rule": asdict(manifest.frame_rule),
        "prediction": "v",
        "sampler": asdict(manifest.sampler),
        "prompt_embeds": PROMPT,
        "train": dict(manifest.train),
    }
    with atomic_path(folder / FILE) as partial:
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def _row(path: Path, folder: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        dtypes = sorted({file.get_slice(name).get_dtype() for name in file.keys()})  # noqa: SIM118
    return {
        "file": path.relative_to(folder).as_posix(),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "dtype": "+".join(dtypes),
    }


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder, and check that its convention of normals is this tool's.

    Raises:
        WeightsError: the manifest is missing or damaged, or of another kind, schema or convention of normals.
    """
    content = _content(folder)
    try:
        found = Manifest(
            base=content["arch"]["base"],
            has_hint=content["arch"]["hint"],
            origin={name: str(value) for name, value in content["base"].items()},
            vae=content["vae"],
            resolution=content["resolution"],
            frame_rule=FrameRule(**content["frame_rule"]),
            sampler=Sampler(**content["sampler"]),
            train=dict(content["train"]),
        )
        vae, rule = Path(found.vae), found.frame_rule
        if ".." in vae.parts or "\0" in found.vae or (vae.is_absolute() and not (vae / "config.json").is_file()):
            raise ValueError(f"its vae is {found.vae[:100]!r}, which is no folder of an autoencoder")
        if rule.window < rule.offset:
            raise ValueError(f"its window of {rule.window} frames is shorter than the offset of {rule.offset}")
        return found
    except (KeyError, TypeError, ValueError, AttributeError, OSError, UsageError) as error:
        # Backticks would become options of the command, which these settings are not.
        said = one_line(error).replace("`", "").rstrip(".")
        raise WeightsError(f"{folder / FILE} is damaged ({said}). {HOW}") from error


def _content(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"{folder} is no generator: it has no {FILE}. {HOW}") from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} is damaged ({error}). {HOW}") from error
    if not isinstance(content, dict) or (content.get("kind"), content.get("backend")) != (KIND, BACKEND):
        raise WeightsError(f"{path} is not the manifest of a {BACKEND} generator. {HOW}")
    if content.get("schema") != SCHEMA:
        newer = isinstance(content.get("schema"), int) and content["schema"] > SCHEMA
        remedy = "Update the tool." if newer else HOW
        raise WeightsError(f"{path} has schema {content.get('schema')}, this tool reads {SCHEMA}. {remedy}")
    if content.get("normals") != CONVENTION:
        raise WeightsError(
            f"{folder} was trained on normals of another convention ({content.get('normals')!r}), this tool makes "
            f"'{CONVENTION}'. Train it again on normals of this tool."
        )
    if content.get("prediction") != "v" or content.get("prompt_embeds") != PROMPT:
        raise WeightsError(f"{path} is damaged: it predicts {content.get('prediction')!r}, expected 'v'. {HOW}")
    return content


def verify(folder: Path) -> list[Path]:
    """Check every file of weights against its hash in the manifest; returns their paths.

    Raises:
        WeightsError: a file is missing, differs, or is not listed.
    """
    rows = _content(folder).get("weights")
    try:
        listed = {str(row["file"]): str(row["sha256"]) for row in rows}  # pyright: ignore[reportOptionalIterable]
    except (KeyError, TypeError) as error:
        raise WeightsError(f"{folder / FILE} is damaged: its list of weights cannot be read. {HOW}") from error
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.safetensors")}
    for name in sorted({*listed, *there}):
        if name not in there:
            raise WeightsError(f"{folder / name} is missing. {HOW}")
        if name not in listed:
            raise WeightsError(f"{there[name]} is not among the weights that {FILE} lists. Remove it.")
        if sha256(there[name]) != listed[name]:
            raise WeightsError(f"{there[name]} is not the file that {FILE} lists: its sha256 differs. {HOW}")
    return [there[name] for name in sorted(there)]


def read_tensors(path: Path) -> dict[str, Any]:
    """Read all tensors of a safetensors file, by name.

    Raises:
        WeightsError: the file is missing or damaged, or has values that are not finite.
    """
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. {HOW}") from error
    check_finite(path, tensors)
    return tensors
