"""Find FaceMesh's 478 landmarks on any head model by detecting them in renders of it.

Heads of several identities, with closed and open mouth, are rendered from several sides. The detected points are
un-projected to the surface, mapped to the mean head with its mouth open (on a closed mouth points of the lower inner
lip could land on the upper lip) and averaged robustly.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import platformdirs
import torch
from jaxtyping import Float, Float32, Int, Int64, UInt8
from scipy import ndimage, optimize
from torch import Tensor

from expportrait_cli.artifacts import npz
from expportrait_cli.artifacts.files import sha256
from expportrait_cli.errors import InputError, WeightsError
from expportrait_cli.geometry import rotations
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import model
from expportrait_cli.head.facemesh import LIP_PAIRS
from expportrait_cli.head.model import FindLandmarks, HeadModel
from expportrait_cli.head.smplx.regions import facial_mask
from expportrait_cli.version import __version__

log = logging.getLogger(__name__)

Rasterize = Callable[[Tensor, Tensor, tuple[int, int]], Tensor]
"""Function from clip positions [n,V,4], triangles int32 [F,3] and (H, W) to rast [n,H,W,4], see `rasterizer`."""
Detect = Callable[[np.ndarray], np.ndarray | None]
"""Function of an RGB picture, uint8 [H,W,3], that returns landmarks [478,2] in px, or None."""

SIZE = 512
FIRST_IRIS = 468
YAWS_RAD = (0.0, -0.2, 0.2, -0.42, 0.42, -0.65, 0.65)
PITCHES_RAD = (0.0, -0.2, 0.2)
IDENTITIES = 6
OPENINGS = (0.0, 0.6)
"""Openings of the jaw in the renders, as shares of the full one."""
IRIS_M, PUPIL_M = 0.0059, 0.0022
LIP_REACH_M = 0.005
NEAR_PX = 6.0
"""Distance, px, below which a landmark beside the allowed surface is moved to its nearest pixel."""


@dataclass(frozen=True)
class View:
    """One render: the picture, and the triangle and barycentrics of each pixel."""

    picture: UInt8[np.ndarray, "H W 3"]
    triangle: Int[np.ndarray, "H W"]
    """Triangle of each pixel, -1 in the background."""
    barycentrics: Float[np.ndarray, "H W 3"]
    facing: Float[np.ndarray, "H W"]
    """Cosine between the normal and the direction to the viewer."""


def embed(head: HeadModel, colours: Float[Tensor, "V 3"], *, rasterize: Rasterize, detect: Detect) -> HeadModel:
    """Return the head with its landmarks replaced by detected ones.

    `colours` are 0..1 and must contain lips and brows; irises are added here. Random identities have a fixed seed.

    Raises:
        WeightsError: no face is found in any picture of the head.
    """
    open_jaw = _jaw(head, OPENINGS[-1])
    opened = _canonical(head, torch.zeros_like(head.template[0, :1]).expand(head.identity_basis.shape[-1]), open_jaw)
    surface = opened.numpy().astype(float)
    faces = head.dense_faces.numpy()
    skin, eyes = (np.all(head.part(*names).numpy()[faces], axis=1) for names in (["skin"], ["eye_left", "eye_right"]))

    points, weights = [], []
    for view in _views(head, colours, rasterize):
        found = detect(view.picture)
        if found is None:
            continue
        hits = [_unproject(view, found[:FIRST_IRIS], skin), _unproject(view, found[FIRST_IRIS:], eyes)]
        triangle, barycentrics, weight = (np.concatenate(parts) for parts in zip(*hits, strict=True))
        points.append((surface[faces[triangle]] * barycentrics[..., None]).sum(1))
        weights.append(weight)
    if not points:
        raise WeightsError(
            f"FaceMesh finds no face in pictures of the head model '{head.name}': its landmarks cannot be placed. Give "
            "the published file, whose head is upright and looks along z."
        )
    centre, spread = _median(np.stack(points), np.stack(weights))
    centre = _symmetric(centre)
    triangles, barycentrics = [], []
    for landmark, point in enumerate(centre):
        allowed = np.nonzero(eyes if landmark >= FIRST_IRIS else skin)[0]
        near = allowed[np.argsort(((surface[faces[allowed]].mean(1) - point) ** 2).sum(-1))[:64]]
        weight, distance = _closest(point, surface[faces[near]])
        triangles.append(faces[near[distance.argmin()]])
        barycentrics.append(weight[distance.argmin()])
    return close_lips(
        replace(
            head,
            landmark_triangles=torch.from_numpy(np.stack(triangles)),
            landmark_barycentrics=torch.from_numpy(np.array(barycentrics, np.float32)),
            landmark_spread=torch.from_numpy(np.float32(spread)),
        )
    )


def close_lips(head: HeadModel) -> HeadModel:
    """Move the landmarks of the inner lips to where the lips of the neutral head touch.

    The detector places them about 1.5 mm too far out. A closed mouth would then be tracked as open, and a fit would
    push the lips through each other to close it.
    """
    verts = model.dense(head, head.template).numpy().astype(float)
    faces = head.dense_faces.numpy()
    weight = head.skinning[:, model.JAW].numpy()
    skin = head.part("skin").numpy()
    upper, lower = np.flatnonzero(skin & (weight < 0.5)), np.flatnonzero(skin & (weight > 0.5))
    points = model.landmarks(head, torch.from_numpy(np.float32(verts))).numpy()
    triangles, barycentrics = head.landmark_triangles.clone(), head.landmark_barycentrics.clone()
    for above, below in (*LIP_PAIRS, (191, 95), (415, 324)):
        middle = (points[above] + points[below]) / 2
        near = [rows[np.linalg.norm(verts[rows] - middle, axis=1) < LIP_REACH_M] for rows in (upper, lower)]
        apart = np.linalg.norm(verts[near[0]][:, None] - verts[near[1]][None], axis=-1)
        first, second = np.unravel_index(apart.argmin(), apart.shape)
        seam = (verts[near[0][first]] + verts[near[1][second]]) / 2
        seam[0] = middle[0]
        for landmark, side in ((above, weight < 0.5), (below, weight > 0.5)):
            allowed = np.flatnonzero((side & skin)[faces].all(1))
            closest = allowed[np.argsort(((verts[faces[allowed]].mean(1) - seam) ** 2).sum(-1))[:64]]
            shares, distance = _closest(seam, verts[faces[closest]])
            triangles[landmark] = torch.from_numpy(faces[closest[distance.argmin()]])
            barycentrics[landmark] = torch.from_numpy(np.float32(shares[distance.argmin()]))
    return replace(head, landmark_triangles=triangles, landmark_barycentrics=barycentrics)


def _jaw(head: HeadModel, share: float) -> Tensor:
    return torch.tensor([share * head.jaw_full_rad, 0.0, 0.0])


def _canonical(head: HeadModel, identity: Tensor, jaw: Tensor) -> Tensor:
    """Dense vertices of an identity with a rotated jaw, in the head frame, m."""
    still, rest = torch.zeros(3), torch.zeros(4)
    shape = model.dense(head, model.coarse(head, identity, torch.zeros(head.expression_basis.shape[-1]), jaw, rest))
    joints = model.joints(head, identity)
    pose = {"rotation": still, "translation": still, "torso_rotation": still, "torso_translation": joints[model.NECK]}
    return model.pose(head, shape, joints, model.HeadPose(jaw=jaw, gaze=rest, **pose))


def _views(head: HeadModel, colours: Tensor, rasterize: Rasterize) -> Iterator[View]:
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(IDENTITIES, head.identity_basis.shape[-1], generator=generator) * 0.7
    people[0] = 0
    camera = Camera(focal_px=4.2 * SIZE, cx=SIZE / 2, cy=SIZE / 2, width=SIZE, height=SIZE)
    for identity in people:
        for opening in OPENINGS:
            points = _canonical(head, identity, _jaw(head, opening))
            eyes = model.joints(head, identity)[[model.EYE_LEFT, model.EYE_RIGHT]]
            painted = _Painted(points, colours, _irises(head, points, eyes))
            for yaw in YAWS_RAD:
                for pitch in PITCHES_RAD if abs(yaw) < 0.5 else (0.0,):
                    turn = rotations.matrix(torch.tensor([0.0, yaw, 0.0])) @ rotations.matrix(
                        torch.tensor([pitch, 0.0, 0.0])
                    )
                    yield _render(head, painted, turn, camera, rasterize)


@dataclass(frozen=True)
class _Painted:
    points: Tensor
    colours: Tensor
    irises: Tensor
    """Centre of each iris on its eyeball's surface, m."""


def _irises(head: HeadModel, points: Tensor, centres: Tensor) -> Tensor:
    """Foremost point of each eyeball."""
    radii = [
        (points[head.part(part)] - centre).norm(dim=-1).mean()
        for part, centre in zip(("eye_left", "eye_right"), centres, strict=True)
    ]
    return centres + torch.stack(radii)[:, None] * torch.tensor([0.0, 0.0, 1.0])


def _render(head: HeadModel, painted: _Painted, turn: Tensor, camera: Camera, rasterize: Rasterize) -> View:
    facing = torch.tensor([1.0, -1.0, -1.0])
    cam = painted.points @ turn.T * facing + torch.tensor([0.0, -0.005, 1.2])
    faces = head.dense_faces
    rast = rasterize(camera.clip(cam)[None], faces.int(), (SIZE, SIZE))[0]
    triangle = rast[..., 3].long() - 1
    weights = torch.cat([rast[..., :2], 1 - rast[..., :2].sum(-1, keepdim=True)], -1)

    def at_pixels(values: Tensor) -> Tensor:
        return (values[faces[triangle.clamp(min=0)]] * weights[..., None]).sum(-2)

    corners = cam[faces]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    smooth = torch.zeros_like(cam).index_add_(0, faces.T.reshape(-1), normals.repeat(3, 1))
    normal = torch.nn.functional.normalize(at_pixels(torch.nn.functional.normalize(smooth, dim=-1)), dim=-1)
    sight = -torch.nn.functional.normalize(at_pixels(cam), dim=-1)
    colour, canonical = at_pixels(painted.colours), at_pixels(painted.points)
    eye = at_pixels(head.part("eye_left", "eye_right").float()[:, None])[..., 0] > 0.5
    off_axis = (canonical[..., None, :] - painted.irises).norm(dim=-1).amin(-1)
    colour = torch.where((eye & (off_axis < IRIS_M))[..., None], torch.tensor([0.25, 0.16, 0.1]), colour)
    colour = torch.where((eye & (off_axis < PUPIL_M))[..., None], torch.tensor([0.03, 0.03, 0.03]), colour)
    light = torch.nn.functional.normalize(torch.tensor([-0.3, -0.5, -0.8]), dim=0)
    shade = (0.35 + 0.65 * (normal @ light).clamp(min=0))[..., None]
    picture = torch.where((triangle >= 0)[..., None], colour * shade, torch.full_like(colour, 0.5))
    cosine = (normal * sight).sum(-1)
    return View((picture * 255).byte().numpy(), triangle.numpy(), weights.numpy().astype(float), cosine.numpy())


def _unproject(view: View, found: np.ndarray, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nearest allowed triangle of each landmark found in the view, the barycentrics there, and a weight.

    The weight is the squared cosine to the viewer; 0 if the landmark lies NEAR_PX or more beside the surface, or the
    surface faces away.
    """
    usable = (view.triangle >= 0) & allowed[view.triangle]
    found_nearest: tuple = ndimage.distance_transform_edt(~usable, return_indices=True)  # pyright: ignore
    distance, (rows, columns) = found_nearest
    column, row = np.clip(found.astype(int), 0, SIZE - 1).T
    missed = distance[row, column]
    row, column = rows[row, column], columns[row, column]
    facing = view.facing[row, column]
    weight = np.where((missed < NEAR_PX) & (facing > 0.35), facing**2, 0)
    return view.triangle[row, column], view.barycentrics[row, column], weight


def _median(points: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted geometric median over the first axis by Weiszfeld's iteration, and the median distance to it."""
    weights = weights + 1e-9
    centre = (points * weights[..., None]).sum(0) / weights.sum(0)[:, None]
    for _ in range(50):
        distance = np.linalg.norm(points - centre, axis=-1)
        share = weights / np.maximum(distance, 1e-4)
        centre = (points * share[..., None]).sum(0) / share.sum(0)[:, None]
    distance = np.where(weights > 1e-6, np.linalg.norm(points - centre, axis=-1), np.nan)
    return centre, np.nan_to_num(np.nanmedian(distance, axis=0), nan=1.0)


def _symmetric(points: np.ndarray) -> np.ndarray:
    """Average each point with its mirrored partner, if the two match mutually within 6 mm."""
    mirrored = points * [-1, 1, 1]
    distance = np.linalg.norm(points[:, None] - mirrored, axis=-1)
    _, partner = optimize.linear_sum_assignment(np.minimum(distance, 0.05))
    good = (distance[np.arange(len(points)), partner] < 0.006) & (partner[partner] == np.arange(len(points)))
    return np.where(good[:, None], (points + mirrored[partner]) / 2, points)


def _closest(point: np.ndarray, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Barycentrics of the nearest point on each triangle, and its distance."""
    best, shortest = np.zeros((len(triangles), 3)), np.full(len(triangles), np.inf)
    a, b, c = triangles.transpose(1, 0, 2)
    edges = np.stack([b - a, c - a], -1)
    inner = np.linalg.solve(edges.transpose(0, 2, 1) @ edges, (edges.transpose(0, 2, 1) @ (point - a)[..., None]))[
        ..., 0
    ]
    candidates = [np.stack([1 - inner.sum(-1), inner[:, 0], inner[:, 1]], -1)]
    for first, second in ((0, 1), (1, 2), (2, 0)):
        along = triangles[:, second] - triangles[:, first]
        share = np.clip(((point - triangles[:, first]) * along).sum(-1) / (along**2).sum(-1), 0, 1)
        candidate = np.zeros((len(triangles), 3))
        candidate[:, first], candidate[:, second] = 1 - share, share
        candidates.append(candidate)
    for candidate in candidates:
        distance = np.linalg.norm((triangles * candidate[..., None]).sum(1) - point, axis=-1)
        better = (candidate >= 0).all(-1) & (distance < shortest)
        best[better], shortest[better] = candidate[better], distance[better]
    return best, shortest


@dataclass(frozen=True)
class KeptLandmarks:
    """FaceMesh's landmarks on the head of one file, stored in the cache folder.

    Raise VERSION also when the cutting or subdivision of the mesh, or the search for landmarks, changes.
    """

    KIND: ClassVar[str] = "landmarks"
    VERSION: ClassVar[int] = 1

    file_hash: str
    """SHA-256 of the head model's file."""
    triangles: Int64[np.ndarray, "478 3"]
    barycentrics: Float32[np.ndarray, "478 3"]
    spread: Float32[np.ndarray, " 478"]


def with_landmarks(
    path: Path, head: HeadModel, colours: Callable[[], Tensor], find_landmarks: FindLandmarks | None
) -> HeadModel:
    """Add FaceMesh's landmarks and the facial mask to a head from a user's file, and the file's hash to its name.

    The landmarks come from the cache; for a new file they are detected now, on the head in its `colours`.

    Raises:
        WeightsError: they are not in the cache, and `find_landmarks` is not given.
    """
    digest = sha256(path)
    kept = platformdirs.user_cache_path("expportrait") / "landmarks" / f"{head.name}-{digest[:16]}.npz"
    found = _cached(kept, digest, len(head.parts))
    if found is None:
        if find_landmarks is None:
            raise WeightsError(
                f"FaceMesh's landmarks were not found yet on {path}. Run `expportrait track --head-model {head.name}` "
                "once."
            )
        log.info("Looking for FaceMesh's landmarks on %s: once for each file, for a minute or two.", path)
        embedded = find_landmarks(head, colours())
        found = KeptLandmarks(
            digest,
            embedded.landmark_triangles.numpy().astype(np.int64),
            embedded.landmark_barycentrics.numpy().astype(np.float32),
            embedded.landmark_spread.numpy().astype(np.float32),
        )
        npz.save(found, kept, {"tool": f"expportrait {__version__}"})
    marked = replace(
        head,
        # Files for women and men, or of other versions, are different models with incompatible parameters.
        name=f"{head.name}-{digest[:8]}",
        landmark_triangles=torch.from_numpy(found.triangles),
        landmark_barycentrics=torch.from_numpy(found.barycentrics),
        landmark_spread=torch.from_numpy(found.spread),
    )
    return replace(marked, facial_mask=facial_mask(marked))


def _cached(path: Path, digest: str, vertices: int) -> KeptLandmarks | None:
    if not path.is_file():
        return None
    try:
        found = npz.load(KeptLandmarks, path)
    except InputError as error:
        log.info("%s It is made again.", error)
        return None
    return found if found.file_hash == digest and found.triangles.max() < vertices else None
