"""Fit the head of one person: identity, static offset, and the dynamic offset of every frame (paper 3.1)."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float32, Int64

from expportrait_cli.artifacts.types import CROP_SIZE, HeadFit, Tracking
from expportrait_cli.config import FitConfig
from expportrait_cli.detect.crop import Crop, crop_image
from expportrait_cli.detect.estimate import Estimator
from expportrait_cli.detect.estimator import available, estimator
from expportrait_cli.detect.matte import Matte
from expportrait_cli.errors import InputError, WeightsError
from expportrait_cli.fitting.clip import (
    Clip,
    distinct_frames,
    dynamic_mask,
    face_share,
    landmark_steps,
    neutral_weights,
    plain_skin,
    torso_turns,
)
from expportrait_cli.fitting.detail import with_detail
from expportrait_cli.fitting.dynamic import Dynamic, dynamic_offsets
from expportrait_cli.fitting.evidence import Estimates, Evidence, Shading, checked_axes
from expportrait_cli.fitting.fine import sharpened
from expportrait_cli.fitting.hair import without_spikes
from expportrait_cli.fitting.joint import jointly, person_first
from expportrait_cli.fitting.parametric import (
    as_frame_of,
    neutral_frame,
    refined_identity,
    shared_identity,
    shows_photo,
    whole_patch,
    with_identity,
    with_whole_smile,
)
from expportrait_cli.fitting.patch import Patch
from expportrait_cli.fitting.seen import ears_seen, without_background
from expportrait_cli.fitting.silhouette import draw_vertices, longer_teeth
from expportrait_cli.fitting.static import KeyFrames, outline_offset, refined_static, settled_ears, silhouette_iou
from expportrait_cli.head import HeadModel
from expportrait_cli.head.facemesh import LandmarkSpread
from expportrait_cli.head.finer import finer
from expportrait_cli.head.fitted import blend_matrices, fitted_mesh, mouth_offset
from expportrait_cli.media.video import read_frame
from expportrait_cli.runtime import Progress

log = logging.getLogger(__name__)

STRANGER = 1.3
"""Ratio of the landmark error with a given head's identity to that with the clip's own, above which a warning says that
the clip seems to show another person."""


def fit(
    trackings: Sequence[Tracking],
    head: HeadModel,
    config: FitConfig,
    progress: Progress,
    *,
    driver: Tracking | None = None,
    known: HeadFit | None = None,
) -> HeadFit:
    """Fit the head to a photo or a clip; further trackings of the same person are used for the identity only.

    The head is fitted to the first tracking: a photo, or the most neutral frame of a clip. With `known`, identity and
    static offset are taken from it and only frames are fitted. With `driver`, its identity is used if it shows the same
    person (`config.same_person`), because many frames determine an identity better than one photo.

    Raises:
        WeightsError: `quality=paper` without a network, or weights that are missing or unusable.
        InputError: the pictures do not determine the network's axes.
    """
    network = _network(config)
    if config.quality == "paper" and network is None:
        raise WeightsError(f"`quality=paper` compares rendered normals with a network's: {available()[1]}.")
    same = driver is not None and known is None and shares_identity(trackings, driver, config)
    tracking, identity_from = _identified(trackings, head, driver if same else None, known)
    _warn(trackings[0], tracking, config, known)
    if network is not None:
        clip = Clip.of(tracking, _blank(tracking, head), head, config)
        try:
            network = checked_axes(network, clip, neutral_frame(tracking))
        except InputError as error:
            if known is None:
                raise
            log.warning("%s The axes of the network's published code are used.", error)
        if known is None:
            seen = Estimates(clip, whole_patch(clip), network, plain_skin(head))
            tracking = with_identity(tracking, refined_identity(clip, seen), head)
            identity_from = identity_from if same else ""
    if len(tracking.error) == 1 and known is None and identity_from == trackings[0].fingerprint:
        tracking = with_whole_smile(tracking, head)
    start = replace(_blank(tracking, head), identity_from=identity_from)
    # Landmarks first: the outline is then fitted with the face in the right place.
    start = replace(start, frame_offset=_landmark_offset(start, head))
    photo = read_frame(tracking.source, start.picture)
    image = crop_image(photo, Crop(*map(float, tracking.crop)), CROP_SIZE)

    def draw(verts: Float32[np.ndarray, "V 3"]) -> Int64[np.ndarray, "S S"]:
        return draw_vertices(verts, head, start.focal_px, size=CROP_SIZE)

    matte = without_background(start, head, image, Matte().matte(image), draw)
    if known is not None:
        # A finer mesh begins with the vertices of the plain one.
        start = replace(start, static_offset=known.static_offset[: len(head.parts)])
    else:
        start = replace(start, static_offset=outline_offset(start, head, matte, config, progress))
        if config.quality != "draft":
            start = refined_static(start, KeyFrames.of(start, tracking, head, (image, matte), config), network, config)
        seen = ears_seen(start, head, image, matte, draw)
        start = settled_ears(replace(start, ears_seen=seen), head, matte, tracking, config, progress)
        start = without_spikes(start, head)
        static = start.static_offset + mouth_offset(start.identity, head)
        start = longer_teeth(replace(start, static_offset=static), head, image)
    done = _with_dynamic(start, tracking, head, config, progress, network=network, known=known)
    own = head if done.head_model == head.name else finer(head).head
    done = replace(done, silhouette_iou=silhouette_iou(done, own, matte))
    return with_detail(done, own, photo, matte, network) if config.detail and config.quality != "draft" else done


def _warn(own: Tracking, tracking: Tracking, config: FitConfig, known: HeadFit | None) -> None:
    """Warn of shading from one photo, and of a `known` head that the landmarks do not fit.

    `tracking` is `own` with the head's identity.
    """
    if config.supervision == "shading" and len(own.error) == 1:
        log.warning("%s is one photo: shading is not used there, because it needs frames that differ.", own.source)
    if known is not None and tracking.error.mean() > STRANGER * own.error.mean():
        log.warning(
            "%s does not seem to show the person of that head: its landmarks are %.1f %% of the distance between the "
            "eyes away, %.1f %% with an identity of its own.",
            own.source,
            tracking.error.mean(),
            own.error.mean(),
        )


def _network(config: FitConfig) -> Estimator | None:
    """Load the configured network, or the best installed one; None if there is none or none is used."""
    if config.quality == "draft" or config.supervision == "shading":
        return None
    return estimator(config.supervision)


def _identified(
    trackings: Sequence[Tracking], head: HeadModel, driver: Tracking | None, known: HeadFit | None
) -> tuple[Tracking, str]:
    """The first tracking with the head's identity, and the fingerprint of that identity's tracking ("" for several).

    `driver` must show the same person.
    """
    own = trackings[0]
    if known is not None:
        return with_identity(own, known.identity, head), known.identity_from
    if len(trackings) > 1:
        return with_identity(own, shared_identity(trackings, head), head), ""
    if driver is None:
        return own, own.fingerprint
    is_frame = len(own.error) == 1 and shows_photo(driver, own)
    return as_frame_of(own, driver, head) if is_frame else with_identity(own, driver.identity, head), driver.fingerprint


def shares_identity(trackings: Sequence[Tracking], driver: Tracking, config: FitConfig) -> bool:
    """Return True, and log it, if the driver shows the photo's person: by `same_person`, or because a frame matches.

    If it returns False, the driver does not influence the fit.
    """
    photo = trackings[0]
    if len(trackings) > 1 or driver.head_model != photo.head_model or config.same_person == "no":
        return False
    if config.same_person == "auto" and not shows_photo(driver, photo):
        return False
    why = "as you say" if config.same_person == "yes" else "a frame of it is the photo (if not: `same_person=no`)"
    log.warning("%s shows the person of %s: %s.", driver.source, photo.source, why)
    return True


def _blank(tracking: Tracking, head: HeadModel) -> HeadFit:
    """Fit of a tracking's most neutral frame, with all offsets zero."""
    frame = neutral_frame(tracking)
    zero = np.zeros((head.operator.shape[0], 3), np.float32)
    return HeadFit(
        source=tracking.source,
        source_hash=tracking.source_hash,
        frame=frame,
        first_frame=tracking.first_frame,
        head_model=head.name,
        size=tracking.size,
        crop=tracking.crop,
        focal_px=tracking.focal_px,
        landmarks=tracking.landmarks[frame],
        identity=tracking.identity,
        identity_from="",
        expression=tracking.expression[frame],
        jaw=tracking.jaw[frame],
        gaze=tracking.gaze[frame],
        rotation=tracking.rotation[frame],
        translation=tracking.translation[frame],
        torso_rotation=torso_turns(tracking)[frame],
        static_offset=zero,
        frame_offset=zero,
        relief=np.zeros((0, 0), np.float16),
        relief_seen=np.zeros(len(zero), np.float16),
        classes=np.zeros((0, 0, 3), np.uint8),
        ears_seen=np.ones(2, bool),
        silhouette_iou=0.0,
        dynamic_vertices=np.zeros(0, np.int64),
        dynamic_offset=np.zeros((0, 0, 3), np.float16),
        dynamic_expression=np.zeros((0, len(head.expression_names)), np.float32),
        dynamic_jaw=np.zeros((0, 3), np.float32),
        dynamic_gaze=np.zeros((0, 4), np.float32),
        dynamic_rotation=np.zeros((0, 3), np.float32),
        dynamic_translation=np.zeros((0, 3), np.float32),
        dynamic_loss=np.zeros((0, 2), np.float32),
    )


def _landmark_offset(fit: HeadFit, head: HeadModel) -> Float32[np.ndarray, "V 3"]:
    """Canonical offsets, m, that bring the model to the photo's landmarks, spread over the face."""
    verts = fitted_mesh(replace(fit, frame_offset=np.zeros_like(fit.frame_offset)), head)
    spread = LandmarkSpread(head, fit.identity)
    steps = landmark_steps(head, torch.from_numpy(verts[None]), fit.landmarks[None], spread, focal_px=fit.focal_px)
    return canonical_steps(fit, head, steps[0])


def canonical_steps(fit: HeadFit, head: HeadModel, steps_cam: Float32[np.ndarray, "V 3"]) -> Float32[np.ndarray, "V 3"]:
    """Rotate offsets from the camera to the canonical frame, by the inverse of the skinning."""
    return np.einsum("vji,vj->vi", blend_matrices(fit, head), steps_cam).astype(np.float32)


def _with_dynamic(
    fit: HeadFit,
    tracking: Tracking,
    head: HeadModel,
    config: FitConfig,
    progress: Progress,
    *,
    network: Estimator | None,
    known: HeadFit | None,
) -> HeadFit:
    """Add the dynamic offsets; in a clip of many distinct frames also their static part in the face."""
    is_clip = len(tracking.error) > 1
    if config.quality == "draft" or (network is None and not is_clip):
        return fit
    patch = Patch.of(head.dense_faces.numpy(), dynamic_mask(head))
    clip = Clip.of(tracking, fit, head, config)
    distinct = distinct_frames(tracking.rotation, head.shares(tracking.expression))
    share = face_share(distinct) if known is None else 0.0
    weights = neutral_weights(head.shares(tracking.expression), tracking.jaw, tracking.sure)
    if config.recenter == "mean":
        weights = tracking.sure / tracking.sure.sum()
    if config.quality == "paper" and network is not None and known is None:
        fit, tracking = person_first(fit, clip, patch, network, progress, share=share)
        clip = Clip.of(tracking, fit, head, config)
    moving = dynamic_offsets(
        clip,
        patch,
        weights=weights,
        share=share,
        evidence=lambda field: _evidence(clip, patch, field, network, config),
        progress=progress,
    )
    static = fit.static_offset.copy()
    static[patch.vertices] += moving.static
    fit = _recorded(replace(fit, static_offset=static), tracking, head, moving, is_clip=is_clip)
    if config.quality == "paper" and network is not None:
        own, keeps = Clip.of(tracking, fit, head, config), known is not None
        return jointly(fit, own, patch, network, progress, weights=weights, share=share, keeps_person=keeps)
    if config.quality != "high":
        return fit
    return sharpened(
        fit,
        tracking,
        head,
        patch,
        moving,
        weights=weights,
        share=share,
        evidence=lambda finer_clip, finer_patch, field: _evidence(finer_clip, finer_patch, field, network, config),
        config=config,
        progress=progress,
        known=known,
    )


def _evidence(clip: Clip, patch: Patch, field, network: Estimator | None, config: FitConfig) -> Evidence | None:
    """Evidence for folds: a network's normals, or shading; None without either."""
    plain = plain_skin(clip.head)
    if network is not None:
        return Estimates(clip, patch, network, plain)
    if config.supervision in ("auto", "shading"):
        return Shading.of(clip, patch, plain, field)
    return None


def _recorded(fit: HeadFit, tracking: Tracking, head: HeadModel, moving: Dynamic, *, is_clip: bool) -> HeadFit:
    """Write the offset of the fit's own frame, and for a clip those of all frames, into the fit."""
    frame_offset = _landmark_offset(fit, head)
    frame_offset[moving.vertices] += moving.folds(np.array([fit.frame]))[0]
    fit = replace(fit, frame_offset=frame_offset)
    if not is_clip:
        return fit
    return replace(
        fit,
        dynamic_vertices=moving.vertices,
        dynamic_offset=moving.offset(),
        dynamic_expression=tracking.expression,
        dynamic_jaw=tracking.jaw,
        dynamic_gaze=tracking.gaze,
        dynamic_rotation=tracking.rotation,
        dynamic_translation=tracking.translation,
        dynamic_loss=moving.loss,
    )
