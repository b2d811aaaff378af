"""The forms of `fit`: a photo, several of one person, a clip, the frames of a known head, and the command."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import skimage.data
from PIL import Image
from support.known_head import KnownHead, blank_fit, folds, perturbed, wrinkles, write_film
from support.performers import quiet

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import content_hash
from expportrait_cli.artifacts.types import HeadFit, Tracking
from expportrait_cli.cli import app
from expportrait_cli.config import FitConfig, TrackConfig
from expportrait_cli.fitting import fit
from expportrait_cli.fitting.parametric import neutral_frame, shared_identity, with_identity
from expportrait_cli.geometry.mesh import vertex_normals
from expportrait_cli.head import dense
from expportrait_cli.head.fitted import neutral_mesh
from expportrait_cli.tracking import track

pytest_plugins = ("support.astronaut",)

MM = 1e3
FRAMES = 8
DRAFT = FitConfig(quality="draft", rounds=2)
SHADING = FitConfig(supervision="shading", rounds=2)


@pytest.fixture(scope="module")
def clip(head, tmp_path_factory) -> Tracking:
    """A known head that frowns, lit from the side, as tracked."""
    film = tmp_path_factory.mktemp("film") / "a.mkv"
    normals = vertex_normals(dense(head, head.template), head.dense_faces).numpy()
    acting = np.clip(np.sin(np.linspace(0, 2 * np.pi, FRAMES)), 0, 1)
    heights = acting[:, None] * wrinkles(head, wave_m=0.014, height_m=1e-3)
    known = KnownHead.make(head, heights, normals, seed=2, source=film)
    albedo = 0.3 * np.exp(0.075 * folds(head, 5, wave_m=0.012, rms_m=1.0))
    write_film(film, (known.picture(row, albedo) for row in range(FRAMES)))
    return replace(known.clip.tracking, source_hash=content_hash(film))


@pytest.fixture(scope="module")
def clip_head(clip, head) -> HeadFit:
    return fit([clip], head, SHADING, quiet)


def one_frame(tracking: Tracking, row: int, **changes) -> Tracking:
    """One frame of a clip by itself."""
    return replace(tracking.frames([row]), **changes)


def face_error_mm(identity: np.ndarray, true: np.ndarray, head) -> float:
    """Rms distance of two identities' neutral faces."""
    meshes = [neutral_mesh(blank_fit(head, each), head).numpy() for each in (identity, true)]
    difference = (meshes[0] - meshes[1])[head.facial_mask.numpy() > 0.5]
    return MM * float(np.sqrt(((difference - difference.mean(0)) ** 2).sum(1).mean()))


def test_a_photo_has_no_frames(fitted):
    assert fitted.dynamic_offset.shape == (0, 0, 3) and len(fitted.dynamic_vertices) == 0
    assert np.abs(fitted.frame_offset).max() > 2e-4


@pytest.mark.slow
def test_two_photos_of_a_known_head_tell_more_than_one(clip, head):
    # Landmarks are off by the detector's own error in each photo, which is another from another side.
    photos = [
        with_identity(perturbed(one_frame(clip, row), row, jitter_iod=0.012), np.zeros(80, np.float32), head)
        for row in (1, 3, 6)
    ]
    shared = fit(photos, head, DRAFT, quiet)
    assert np.array_equal(shared.identity, shared_identity(photos, head))
    assert np.array_equal(shared.landmarks, photos[0].landmarks[0])
    alone = [face_error_mm(shared_identity([photo], head), clip.identity, head) for photo in photos]
    assert face_error_mm(shared.identity, clip.identity, head) < min(alone)


@pytest.mark.slow
def test_two_photos_of_the_astronaut_share_an_identity(photo_tracking, head, fitted, tmp_path):
    """The second is brighter, cropped, and turned a little."""
    image = skimage.data.astronaut()
    turned = cv2.warpAffine(image, cv2.getRotationMatrix2D((220, 120), 5, 1.1), (512, 512))
    bright = np.clip(turned[10:420, 30:430] * 1.15, 0, 255).astype(np.uint8)
    Image.fromarray(bright).save(tmp_path / "other.png")
    other = track(tmp_path / "other.png", head, TrackConfig(), quiet)
    shared = fit([photo_tracking, other], head, FitConfig(), quiet)
    assert shared.source == photo_tracking.source
    assert np.array_equal(shared.identity, shared_identity([photo_tracking, other], head))
    # It explains each photo better than the other's identity does.
    for own, neighbour in ((photo_tracking, other), (other, photo_tracking)):
        together, crossed = (with_identity(own, each.identity, head).error[0] for each in (shared, neighbour))
        assert together < crossed and together < own.error[0] + 0.05
    assert shared.silhouette_iou > fitted.silhouette_iou - 0.01


@pytest.mark.slow
def test_a_clip_gives_the_offsets_of_all_its_frames(clip, clip_head, head):
    points = len(clip_head.dynamic_vertices)
    assert points > 5000 and clip_head.dynamic_offset.shape == (FRAMES, points, 3)
    assert clip_head.dynamic_expression.shape == (FRAMES, len(head.expression_names))
    assert clip_head.frame == neutral_frame(clip)
    assert np.array_equal(clip_head.identity, clip.identity)
    outside = np.setdiff1d(np.arange(len(head.parts)), clip_head.dynamic_vertices)
    assert (head.facial_mask.numpy()[outside] == 0).all()
    assert 2e-4 < np.abs(clip_head.dynamic_offset.astype(np.float32)).max() <= 0.0041
    before, after = clip_head.dynamic_loss.mean(0)
    assert after < 0.8 * before


@pytest.mark.slow
def test_a_known_head_is_kept_to_the_bit(clip, clip_head, head):
    rng = np.random.default_rng(0)
    own = replace(clip_head, static_offset=clip_head.static_offset + 1e-3 * rng.random(3, np.float32))
    again = fit([clip], head, SHADING, quiet, known=own)
    assert np.array_equal(again.identity, own.identity) and np.array_equal(again.static_offset, own.static_offset)
    assert again.dynamic_offset.shape == clip_head.dynamic_offset.shape and np.abs(again.dynamic_offset).max() > 0


@pytest.mark.slow
def test_a_clip_of_one_frame_is_a_photo(clip, head):
    first = one_frame(clip, 0)
    found = fit([first], head, SHADING, quiet)
    assert found.frame == 0 and len(found.dynamic_offset) == 0
    assert not found.static_offset[(head.facial_mask == 1).numpy()].any()
    assert np.isfinite(found.frame_offset).all()


def run(*arguments: object) -> int:
    return app.run([str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_takes_two_trackings_and_a_head(clip, head, tmp_path, capsys):
    shown = {name: perturbed(clip, seed, jitter_iod=0.005) for seed, name in enumerate("ab")}
    paths = [npz.save(tracking, tmp_path / f"{name}.track.npz", {}) for name, tracking in shown.items()]
    built, kept = tmp_path / "built.head.npz", tmp_path / "kept.head.npz"
    assert run("fit", *paths, "--quality", "draft", "--rounds", 1, "-o", built) == 0
    assert capsys.readouterr().out == f"{built}\n"
    assert run("fit", paths[1], "--head", built, "--quality", "draft", "-o", kept) == 0
    first, second = (npz.load(HeadFit, path) for path in (built, kept))
    assert np.array_equal(first.identity, shared_identity([npz.load(Tracking, path) for path in paths], head))
    assert np.array_equal(second.identity, first.identity)
    assert np.array_equal(second.static_offset, first.static_offset)
    assert not np.array_equal(second.landmarks, first.landmarks)
    assert len(first.dynamic_offset) == len(second.dynamic_offset) == 0
