"""`expportrait weights`: list, verify, download and convert weights, and embed prompts."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import Display
from expportrait_cli.cli.command import App
from expportrait_cli.errors import WeightsError
from expportrait_cli.weights import catalogue as store

log = logging.getLogger(__name__)

app = App(help="List weights with their licences, verify their hashes, download, or convert.", rich_markup_mode=None)


@app.command("list")
def show(*, as_json: options.Json = False) -> None:
    """List all weights: licence, what needs them, source, and path."""
    entries = [(weight, store.locate(weight)) for weight in store.catalogue()]
    if as_json:
        rows = [{**asdict(weight), "path": str(path) if path else None} for weight, path in entries]
        typer.echo(json.dumps(rows, indent=2))
        return
    for weight, path in entries:
        needed = ", ".join(weight.needed_by)
        typer.echo(f"{weight.name:<24} {weight.licence:<12} {needed:<24} {weight.source:<34} {path or 'missing'}")


@app.command("verify")
def verify(*, as_json: options.Json = False) -> None:
    """Compare the hash of every file with the catalogue; exit code 4 if one is missing or wrong."""
    states: list[tuple[store.Weight, store.State]] = [(weight, store.state(weight)) for weight in store.catalogue()]
    if as_json:
        rows = [{"name": weight.name, "state": state, "optional": weight.optional} for weight, state in states]
        typer.echo(json.dumps(rows, indent=2))
    for weight, state in [] if as_json else states:
        note = " (optional)" if weight.optional and state == "missing" else ""
        typer.echo(f"{state:<8} {weight.name}{note}")
    bad = [(weight, state) for weight, state in states if is_bad(weight, state)]
    if bad:
        found = "; ".join(f"{weight.name} is {state}" for weight, state in bad)
        raise WeightsError(f"{found}. {' '.join(dict.fromkeys(store.how_to_get(weight) for weight, _ in bad))}")


@app.command("fetch")
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names that `weights list` prints.")],
    *,
    as_json: options.Json = False,
) -> None:
    """Download files into the cache folder, and check their hashes; an interrupted download is resumed."""
    from expportrait_cli.artifacts.files import sha256
    from expportrait_cli.weights.download import fetch as download

    with Display() as display:
        for weight in [store.entry(name) for name in names]:
            progress = display.stage(f"{weight.name}, MB")
            path = download(
                weight,
                store.folders()[-1],
                lambda done, total, show=progress: show(done >> 20, total >> 20 if total else None),
            )
            log.info("%s: %s", weight.name, weight.licence)
            if not (weight.sha256 or weight.parts):
                log.info("%s: nobody published its sha256; this one has %s", weight.name, sha256(path))
            options.echo(path, {"name": weight.name, "licence": weight.licence}, as_json=as_json)


@app.command("convert")
def convert(
    original: Annotated[
        Path,
        typer.Argument(metavar="ORIGINAL", help="A Wan T2V or I2V model in Wan's own format: one .safetensors file."),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="A new folder.", show_default=False)],
    parts: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="Wan in diffusers' format (folder or cached repository), source of VAE, prompt embedding and CLIP.",
        ),
    ] = "",
    as_json: options.Json = False,
) -> None:
    """Convert a Wan transformer from Wan's own format into a folder for `train generator --base`."""
    options.writable(out.parent)
    from expportrait_cli.painting.wan import require_packages

    require_packages()
    from expportrait_cli.painting.wan.base import convert as work
    from expportrait_cli.painting.wan.base import find_base

    summary = work(original, out, find_base(parts) if parts else None)
    options.echo(out, summary, as_json=as_json)


@app.command("embed-prompt")
def embed_prompt(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="A prompt; by default the two default prompts.")] = "",
    *,
    encoder: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with text_encoder and tokenizer; by default that of `weights fetch wan-text-encoder`.",
            file_okay=False,
            exists=True,
            show_default=False,
        ),
    ] = None,
) -> None:
    """Embed a prompt with Wan's text encoder and store the embedding; `generate --prompt TEXT` reads it.

    The encoder takes 11.4 GB of memory, on a GPU or in main memory; painting never needs it.
    """
    from expportrait_cli.painting.wan import require_packages

    require_packages()
    from expportrait_cli.painting.wan import prompts

    folder = encoder or store.locate(store.entry(prompts.ENCODER))
    if folder is None:
        raise WeightsError(
            f"Wan's text encoder is missing. Run `expportrait weights fetch {prompts.ENCODER}` (11.4 GB), or name the "
            "folder of another copy with --encoder."
        )
    for words in [text] if text else [prompts.PROMPT_TEXT, prompts.NEGATIVE_TEXT]:
        typer.echo(str(prompts.embed(words, folder)))


def is_bad(weight: store.Weight, state: store.State) -> bool:
    """True if weights in this state are a fault: wrong, or missing and not optional."""
    return state == "wrong" or (state == "missing" and not weight.optional)
