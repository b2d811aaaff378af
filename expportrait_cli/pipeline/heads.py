"""Loading of the head model that the artifacts of a run were made with."""

from pathlib import Path
from typing import get_args

from jaxtyping import Float32
from torch import Tensor

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.meshes import Meshes
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.detect.nets import LandmarkNet
from expportrait_cli.errors import InputError, UsageError
from expportrait_cli.head import HeadModel, HeadName, find_model, load_head
from expportrait_cli.head.embed import embed
from expportrait_cli.head.finer import finer
from expportrait_cli.head.model import base_name, is_finer
from expportrait_cli.pipeline.job import Job
from expportrait_cli.render.rasterizer import rasterize


def head_by_name(name: HeadName) -> HeadModel:
    """Load a head model. In a user's file that is new to it, FaceMesh's landmarks are located first.

    Raises:
        WeightsError: the model's file is missing, or cannot be used.
    """
    return load_head(name, find_landmarks=_find_landmarks)


def head_behind(path: Path, artifact: Tracking | HeadFit, *, wanted: HeadName | None = None) -> HeadModel:
    """Load the head model that an artifact was made with; `path` is the artifact's file.

    For a fit of high quality it has a finer mesh (`head.finer`); a tracking has no mesh, and gets the plain model.

    Raises:
        InputError: this tool has no such model, or the artifact was made with another file of it.
        UsageError: the artifact was made with another model than `wanted`.
        WeightsError: as `head_by_name`.
    """
    known = [name for name in get_args(HeadName) if name == kind_of_head(artifact.head_model)]
    if not known:
        raise InputError(
            f"{path} was made with the head model '{artifact.head_model}', this tool has "
            f"{' and '.join(get_args(HeadName))}. Track the photo or clip again."
        )
    if wanted not in (None, known[0]):
        raise UsageError(
            f"{path} was made with the head model '{artifact.head_model}', not with `head_model={wanted}`. Leave that "
            "out, or give the photo or clip."
        )
    head = head_by_name(known[0])
    counts = (artifact.identity.shape[-1], artifact.expression.shape[-1])
    expected = (head.identity_basis.shape[-1], head.expression_basis.shape[-1])
    if base_name(artifact.head_model) != head.name or counts != expected:
        raise InputError(
            f"{path} was made with the head model '{artifact.head_model}' of {counts[0]} + {counts[1]} parameters, "
            f"here it is '{head.name}' of {expected[0]} + {expected[1]}. Use the same file, or track the photo or clip "
            "again."
        )
    wants_finer = isinstance(artifact, HeadFit) and is_finer(artifact.head_model)
    return finer(head).head if wants_finer else head


def model_file(name: HeadName) -> dict[str, str]:
    """Hash of a head model's file by its name, as inputs of a key; none for anny, whose hash is in the catalogue.

    Raises:
        WeightsError: the file is missing.
    """
    return {} if name == "anny" else {name: content_hash(find_model(name))}


def tracking_head(head: HeadModel) -> HeadModel:
    """Return the plain model behind a finer one; photos and clips are always tracked with the plain model."""
    if not is_finer(head.name):
        return head
    (kind,) = (name for name in get_args(HeadName) if name == kind_of_head(head.name))
    return head_by_name(kind)


def kind_of_head(name: str) -> str:
    """Kind (`anny`, `smplx` or `gnm`) that a head model's name begins with; the rest identifies its file and mesh."""
    return base_name(name).partition("-")[0]


def check_same(first: Path, own: Tracking | HeadFit, second: Path, other: Tracking | HeadFit | Meshes) -> None:
    """Raise InputError unless two artifacts were made with the same head model: with the same parameters.

    Their meshes may differ: only the parameters are transferred.
    """
    if base_name(own.head_model) != base_name(other.head_model):
        raise InputError(
            f"{first} was made with the head model '{own.head_model}', {second} with '{other.head_model}': they do not "
            "fit together. Track both with the same `head_model`."
        )


def _find_landmarks(head: HeadModel, colours: Float32[Tensor, "V 3"]) -> HeadModel:
    return embed(head, colours, rasterize=rasterize, detect=LandmarkNet(video=False))


def head_model_of(job: Job, kinds: tuple[str, str]) -> HeadModel:
    """Load the head model of the given artifacts, or the job's (by default anny) for photos and clips."""
    own = npz.load(HeadFit, job.reference) if kinds[0] == "head" else None
    tracking = npz.load(Tracking, job.driving) if kinds[1] == "track" else None
    if own is not None and tracking is not None:
        check_same(job.reference, own, job.driving, tracking)
    if own is not None:
        return head_behind(job.reference, own, wanted=job.head_model)
    if tracking is not None:
        return head_behind(job.driving, tracking, wanted=job.head_model)
    return head_by_name(job.head_model or "anny")
