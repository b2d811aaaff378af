"""`expportrait ui`: a page in the browser for the most common commands."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from expportrait_cli.cli import options
from expportrait_cli.cli.boundary import as_options
from expportrait_cli.errors import InputError, UserError, WeightsError
from expportrait_cli.runtime import Progress

LARGEST = "largest"
HEIGHT_PX = 360
"""Height of the photo and the clip on the page, px."""
BUTTONS = ["download", "fullscreen"]
"""Buttons beside a picture. Gradio's button for sharing is left out: it would send the picture to a server."""


def ui(
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Folder for all files that the page makes.")
    ] = Path("expportrait-ui"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page on this machine.")] = 7860,
) -> None:
    """Open a page in the browser: photo, clip, choice of the face, normals, film, expressions, 3D head, report.

    Only this machine can open the page. It runs until Ctrl-C.
    """
    if find_spec("gradio") is None:
        raise WeightsError("Gradio is not installed. Install the tool with its extra: pip install '.[ui]'.")
    options.writable(out)
    out.mkdir(parents=True, exist_ok=True)
    # Uploads stay in the output folder, so that later runs find their inputs. Analytics are switched off.
    os.environ["GRADIO_TEMP_DIR"] = str(out.absolute() / "uploads")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    page = build(out.absolute())
    page.launch(server_name="127.0.0.1", server_port=port, share=False, quiet=True, prevent_thread_lock=True)
    typer.echo(f"http://127.0.0.1:{port}")
    page.block_thread()


def build(folder: Path) -> Any:
    """Build the page, whose files go to `folder`. Returns Gradio's `Blocks`, not yet launched."""
    import gradio as gr  # pyright: ignore[reportMissingImports]

    from expportrait_cli.pipeline.heads import head_by_name

    actions, names = Actions(folder), head_by_name("anny").expression_names
    with gr.Blocks(title="expportrait", analytics_enabled=False) as page:
        gr.Markdown("# expportrait\nThe person in the photo performs the clip.")
        with gr.Row():
            photo, clip = (
                gr.Image(type="filepath", label="Photo", height=HEIGHT_PX),
                gr.Video(label="Clip", height=HEIGHT_PX),
            )
        with gr.Row():
            faces = [_choice(gr, label, source, actions) for label, source in (("photo", photo), ("clip", clip))]
        with gr.Row():
            look, make = gr.Button("Show the normals"), gr.Button("Make the film", variant="primary")
        with gr.Row():
            normals, head = gr.Image(label="Normals of the photo", buttons=BUTTONS), gr.Model3D(label="Head (.glb)")
            film = gr.Video(label="Film")
        with gr.Accordion("Change expressions of the whole film", open=False):
            sliders = []
            for start in range(0, len(names), 4):
                with gr.Row():
                    sliders += [gr.Slider(-1, 1, 0, step=0.05, label=name) for name in names[start : start + 4]]
            change = gr.Button("Write the curves and make the film again")
            curves = gr.File(label="Curves (.csv)")
        report = gr.HTML(label="Quality")
        look.click(_reporting(gr, actions.preview), [photo, faces[0]], [normals, head], api_name="preview")
        make.click(_reporting(gr, actions.film), [photo, clip, *faces], [film, head, curves, report], api_name="film")
        change.click(
            _reporting(gr, actions.changed),
            [photo, clip, *faces, *sliders],
            [film, head, curves, report],
            api_name="changed",
        )
    return page


def _choice(gr: Any, label: str, source: Any, actions: "Actions") -> Any:
    """Add a picture of the faces in the upload, and a choice of one of them; returns the choice."""
    with gr.Column():
        sheet = gr.Image(label=f"Faces of the {label}", interactive=False, visible=False, buttons=BUTTONS)
        face = gr.Dropdown([LARGEST], value=LARGEST, label=f"Face of the {label}")

    def show(path: str | None) -> tuple[Any, Any]:
        found, count = actions.faces(Path(path)) if path else (None, 0)
        picture = gr.Image(found, visible=found is not None)
        return picture, gr.Dropdown([LARGEST, *map(str, range(count))], value=LARGEST)

    source.change(_reporting(gr, show), source, [sheet, face], api_name=f"faces_of_{label}")
    return face


def _reporting(gr: Any, work: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function, so that a `UserError` becomes a message on the page."""

    @wraps(work)
    def run(*given: Any) -> Any:
        try:
            return work(*given)
        except UserError as error:
            raise gr.Error(as_options(str(error)), print_exception=False) from error

    return run


def _stage(name: str) -> Progress:
    import gradio as gr  # pyright: ignore[reportMissingImports]

    bar = gr.Progress()
    return lambda done, total: bar((done, total) if total else None, desc=name)


class Actions:
    """Functions behind the page: they make files in a folder from uploads, and reuse those that exist."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def faces(self, source: Path) -> tuple[str | None, int]:
        """Picture of the numbered faces in the first frame (None unless there are several), and their number."""
        from expportrait_cli.detect.faces import FaceFinder
        from expportrait_cli.media.video import read_frame
        from expportrait_cli.pipeline.sheets import write_faces

        image = read_frame(source, 0)
        found = sorted(FaceFinder().find(image), key=lambda face: face.centre[0])
        if len(found) < 2:
            return None, len(found)
        return str(write_faces(self._path(source).with_suffix(".faces.png"), image, found)), len(found)

    def preview(self, photo: str | None, face: str) -> tuple[Any, str]:
        """Normal map of the photo from a quick fit, and its head as .glb."""
        from expportrait_cli.config import FitConfig, TrackConfig
        from expportrait_cli.pipeline import commands, export, sheets

        if not photo:
            raise InputError("Choose a photo first.")
        base = self._path(Path(photo), face)
        tracked, head, meshes = (base.with_suffix(f".{kind}.npz") for kind in ("track", "head", "meshes"))
        commands.track(photo, tracked, TrackConfig(face=face), stage=_stage)
        commands.fit([tracked], head, FitConfig(quality="draft"), stage=_stage)
        made = commands.transfer(head, tracked, meshes, stage=_stage)
        glb = base.with_suffix(".glb")
        export.export_head(head, glb, "glb", _stage, neutral=False)
        return sheets.normals_of(made, 0, detail=True), str(glb)

    def film(self, photo: str | None, clip: str | None, face: str, driving_face: str) -> tuple[str, str, str, str]:
        """Make the film; returns paths of film, head and curves, and the report as HTML."""
        return self._make(self._job(photo, clip, face, driving_face))

    def changed(
        self, photo: str | None, clip: str | None, face: str, driving_face: str, *steps: float
    ) -> tuple[str, str, str, str]:
        """Make the film again, with `steps` added to the expressions of every frame; returns as `film`."""
        from expportrait_cli.artifacts.curves_csv import read_csv, write_csv
        from expportrait_cli.pipeline.heads import head_by_name

        job, names = self._job(photo, clip, face, driving_face), head_by_name("anny").expression_names
        if job.curves is None or not job.curves.exists():
            raise InputError("Make the film first: its expressions are what is changed.")
        curves = read_csv(job.curves, names)
        path = job.curves.with_name(f"{job.out.stem}.changed.curves.csv")
        write_csv(replace(curves, expression=curves.expression + [float(step) for step in steps]), names, path)
        # Head and tracking of the first film are inputs, so that they are not made again.
        again = {"reference": job.work / "reference.head.npz", "driving": job.work / "driving.track.npz"}
        out = job.out.with_name(f"{job.out.stem}.changed.mp4")
        return self._make(replace(job, **again, out=out, curves=path))

    def _job(self, photo: str | None, clip: str | None, face: str, driving_face: str) -> Any:
        from expportrait_cli.config import TrackConfig
        from expportrait_cli.pipeline.job import Job

        if not photo or not clip:
            raise InputError("Choose a photo and a clip first.")
        base = self._path(Path(photo), face)
        out = base.with_name(f"{base.name}-{self._path(Path(clip), driving_face).name}.mp4")
        return Job(
            Path(photo),
            Path(clip),
            out,
            track=TrackConfig(face=face),
            driving_face=driving_face,
            curves=out.with_suffix(".curves.csv"),
            with_report=True,
        )

    def _make(self, job: Any) -> tuple[str, str, str, str]:
        from expportrait_cli.pipeline import export, film

        made = film.generate(job, _stage)
        head, glb = job.work / "reference.head.npz", job.out.with_suffix(".glb")
        export.export_head(head if head.exists() else job.reference, glb, "glb", _stage, neutral=False)
        page = escape(job.report.read_text("utf-8"))
        report = f'<iframe srcdoc="{page}" style="width:100%;height:70vh;border:0"></iframe>'
        return str(made.path), str(glb), str(job.curves), report

    def _path(self, source: Path, face: str = LARGEST) -> Path:
        """Path, without suffix, of files made of an upload, whose folder Gradio names by a hash of its content."""
        return self._folder / f"{source.stem.replace('.', '_')}-{source.parent.name[:8]}-{face}"
