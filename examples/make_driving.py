"""Make `driving.mp4`, the demo's driver: the default head as a performer, painted and lit here. Nobody's face.

python examples/make_driving.py [OUT.mp4]

The same versions of torch and ffmpeg give the same film. Takes about a minute.
"""

import sys
import tempfile
import wave
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.interpolate import PchipInterpolator

from expportrait_cli.geometry import mesh
from expportrait_cli.geometry.camera import Camera
from expportrait_cli.geometry.rotations import FRONTAL, rodrigues
from expportrait_cli.head import HeadModel, load_head
from expportrait_cli.head import model as chain
from expportrait_cli.head.facemesh import EYE_RINGS, LIPS
from expportrait_cli.media.writer import VideoWriter
from expportrait_cli.render.rasterizer import interpolate, rasterize

OUT = Path(__file__).with_name("driving.mp4")
RATE, FRAMES, SIZE, OVERSAMPLING = 25, 100, 512, 2
CAMERA = Camera(focal_px=2800.0, cx=512.0, cy=512.0, width=1024, height=1024)
DISTANCE_M, RAISED_M = 1.16, 0.012
PIVOT = np.array([0.0, -0.07, -0.02])
"""Where the head turns on the neck, in the head frame."""
BROWS = [[70, 63, 105, 66, 107, 55, 65, 52, 53, 46], [300, 293, 334, 296, 336, 285, 295, 282, 283, 276]]
TEXELS_PER_M, TEXELS = 5000, 1200
BALL, TOOTH = np.array([0.90, 0.88, 0.86]), np.array([0.90, 0.87, 0.80])
CAVITY, TONGUE = np.array([0.26, 0.07, 0.07]), np.array([0.54, 0.23, 0.22])
IRIS_M, PUPIL_M = 0.0058, 0.0022
KEY, FILL = np.array([-0.45, 0.55, 0.75]), np.array([0.8, 0.1, 0.6])
"""Directions to the lights: x right, y up, z to the viewer."""

# Seconds and values; between them a monotone cubic, so that nothing overshoots. Angles in degrees, the rest 0..1.
CURVES: dict[str, list[tuple[float, float]]] = {
    "yaw": [(0.35, 0), (1.0, 15), (1.3, 14), (2.1, -15), (2.5, -13), (3.3, 0), (4, 0)],
    "pitch": [(0.3, 0), (0.6, 4), (0.9, -2), (1.5, 0), (1.75, 9), (2.0, -5), (2.3, 0), (4, 0)],
    "roll": [(0.3, 0), (0.9, -3), (1.6, 4), (2.4, 5), (3.0, -2), (3.6, 0), (4, 0)],
    "jaw": [
        *((0.3, 0), (0.42, 9), (0.54, 2), (0.66, 12), (0.78, 3), (0.9, 7), (1.02, 0), (1.14, 10), (1.28, 13)),
        *((1.45, 1), (1.6, 0), (2.5, 0), (2.62, 6), (2.74, 1), (2.9, 11), (3.1, 2), (3.25, 8), (3.4, 0), (4, 0)),
    ],
    "mouthFunnel": [(0.6, 0), (0.72, 0.5), (0.84, 0), (1.28, 0), (1.4, 0.6), (1.5, 0), (2.9, 0), (3.0, 0.5), (3.12, 0)],
    "mouthPucker": [(0.78, 0), (0.92, 0.6), (1.04, 0), (2.66, 0), (2.76, 0.7), (2.86, 0)],
    "mouthUpperUp": [
        *((0.3, 0), (0.42, 0.55), (0.54, 0.15), (0.66, 0.6), (0.78, 0), (0.9, 0.4), (1.02, 0), (1.14, 0.6)),
        *((1.28, 0.5), (1.45, 0), (2.5, 0), (2.62, 0.4), (2.74, 0), (2.9, 0.55), (3.1, 0.1), (3.25, 0.5), (3.4, 0)),
    ],
    "mouthStretch": [(0.3, 0), (0.42, 0.3), (0.54, 0), (1.04, 0), (1.14, 0.3), (1.26, 0)],
    "mouthSmile": [(1.4, 0), (1.75, 0.8), (2.2, 0.8), (2.5, 0.1), (3.3, 0.1), (3.6, 0.35), (3.8, 0.05), (4, 0)],
    "cheekSquint": [(1.5, 0), (1.8, 0.5), (2.2, 0.5), (2.5, 0)],
    "browInnerUp": [(0.3, 0), (0.6, 0.3), (0.9, 0), (1.6, 0), (1.8, 0.8), (2.1, 0.7), (2.4, 0)],
    "browOuterUp": [(1.6, 0), (1.8, 0.8), (2.1, 0.7), (2.4, 0)],
    "browDown": [(2.5, 0), (2.8, 0.6), (3.1, 0.5), (3.3, 0)],
    "blink": [
        *((0.88, 0), (0.96, 1), (1.0, 1), (1.12, 0), (1.96, 0), (2.04, 1), (2.08, 1), (2.2, 0)),
        *((3.62, 0), (3.7, 1), (3.74, 1), (3.86, 0)),
    ],
    "winkLeft": [(2.3, 0), (2.4, 1), (2.52, 1), (2.66, 0)],
    "gaze": [(2.7, 0), (2.8, 18), (3.05, 18), (3.17, -18), (3.4, -18), (3.5, 0)],
    "gazePitch": [(1.7, 0), (1.8, -4), (2.0, 4), (2.3, 0)],
}


@dataclass(frozen=True)
class Colours:
    """Linear RGB, 0..1, of a person's surfaces."""

    skin: tuple[float, float, float] = (0.80, 0.58, 0.47)
    lip: tuple[float, float, float] = (0.66, 0.30, 0.29)
    brow: tuple[float, float, float] = (0.20, 0.12, 0.08)
    hair: tuple[float, float, float] = (0.30, 0.19, 0.12)
    shirt: tuple[float, float, float] = (0.16, 0.30, 0.36)
    iris: tuple[float, float, float] = (0.28, 0.19, 0.11)


@dataclass(frozen=True)
class Performer:
    """A person: canonical neutral shape, where paint goes on it, and how much of each point is hair."""

    head: HeadModel
    identity: torch.Tensor
    joints: torch.Tensor
    paint_points: torch.Tensor
    hair: torch.Tensor
    """0..1 over the dense vertices."""
    hair_offset: torch.Tensor
    texture: np.ndarray
    """Lips, brows and lid lines (BGR order of channels: lip, brow, lid), seen from the front."""
    grain: np.ndarray
    """Unevenness of the skin, and locks of hair, around the head: what optical flow can hold on to."""
    colours: Colours = field(default_factory=Colours)


def performer(seed: int = 7, strength: float = 0.35, colours: Colours | None = None) -> Performer:
    """A random head, a cap of hair, and paint where FaceMesh's points are.

    `strength`: how far the head is from the mean head, in standard deviations of each identity coefficient.
    """
    head = load_head()
    generator = torch.Generator().manual_seed(seed)
    identity = torch.randn(head.identity_basis.shape[-1], generator=generator) * strength
    still = torch.zeros(head.expression_basis.shape[-1])
    shape = chain.dense(head, chain.coarse(head, identity, still, torch.zeros(3), torch.zeros(4)))
    points = chain.landmarks(head, shape).numpy()
    hair = hair_share(head, shape.numpy(), points)
    normals = mesh.vertex_normals(shape, head.dense_faces)
    thickness = torch.from_numpy(np.float32(0.016 * hair))[:, None]
    return Performer(
        head=head,
        identity=identity,
        joints=chain.joints(head, identity),
        paint_points=shape,
        hair=torch.from_numpy(np.float32(hair)),
        hair_offset=normals * thickness,
        texture=front_texture(points),
        grain=grain_texture(),
        colours=colours or Colours(),
    )


def hair_share(head: HeadModel, verts: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Scalp from the hairline over the temples, behind the ears, down to the nape."""
    x, y, z = verts.T
    hairline, ear = points[10, 1] + 0.012, points[[127, 356]].mean(0)
    front = np.clip((z - ear[2] + 0.005) / (points[10, 2] - ear[2]), 0, 1)
    # Down to the lobe beside the ear, up to the hairline at the forehead's middle.
    behind = np.clip((ear[2] - 0.02 - z) / 0.03, 0, 1)
    border = (ear[1] + 0.012) * (1 - front**0.7) + hairline * front**0.7 - behind * 0.06
    above = np.clip((y - border) / 0.016 + 0.5, 0, 1)
    ear_reach = np.hypot((y - 0.002) / 0.042, (z - 0.0) / 0.030)
    above[(np.abs(x) > 0.058) & (ear_reach < 1)] = 0
    skin = head.part("skin").numpy()
    return np.where(skin & (head.skinning[:, chain.TORSO].numpy() < 0.2), above, 0)


def front_texture(points: np.ndarray) -> np.ndarray:
    """Soft masks of lips, brows and lids in the head frame's x and y."""
    places = np.stack([points[:, 0], -points[:, 1]], -1) * TEXELS_PER_M + TEXELS / 2
    lips, brows, lids = (np.zeros((TEXELS, TEXELS), np.float32) for _ in range(3))

    def fixed(rows: list[int]) -> np.ndarray:
        return np.round(places[rows] * 16).astype(np.int32)

    cv2.fillPoly(lips, [fixed(LIPS[:11] + LIPS[11:20])], 1.0, cv2.LINE_AA, 4)
    for brow in BROWS:
        cv2.fillPoly(brows, [fixed(brow)], 1.0, cv2.LINE_AA, 4)
    for ring in (EYE_RINGS[:16], EYE_RINGS[16:]):
        cv2.polylines(lids, [fixed([*ring[8:], ring[0]])], False, 1.0, 9, cv2.LINE_AA, 4)
        cv2.polylines(lids, [fixed(ring[:9])], False, 0.35, 5, cv2.LINE_AA, 4)
    soft = [cv2.GaussianBlur(lips, (0, 0), 5), cv2.GaussianBlur(brows, (0, 0), 7), cv2.GaussianBlur(lids, (0, 0), 2)]
    noise = cv2.GaussianBlur(np.random.default_rng(1).random((TEXELS, TEXELS), np.float32), (0, 0), 2.5)
    soft[1] *= np.clip(0.8 + 3 * (noise - 0.5), 0.5, 1)
    return np.stack(soft, -1)


def grain_texture() -> np.ndarray:
    """Mottled skin, strands of hair and knitted cloth over angle and height, each about zero."""
    random = np.random.default_rng(2).standard_normal((3, 1024, 2048)).astype(np.float32)
    layers = [
        sum(cv2.GaussianBlur(random[0], (0, 0), s) * s for s in (3, 9, 25)),
        sum(
            cv2.GaussianBlur(random[1], (0, 0), w, sigmaY=h) * 2 * np.sqrt(np.pi * w * h) for w, h in ((3, 20), (14, 9))
        ),
        cv2.GaussianBlur(random[2], (0, 0), 2.5) * 5,
    ]
    return np.stack(layers, -1)


def curve(name: str) -> np.ndarray:
    """Values of a curve at every frame."""
    rows = np.array([(-1.0, CURVES[name][0][1]), *CURVES[name], (9.0, CURVES[name][-1][1])])
    return PchipInterpolator(*rows.T)(np.arange(FRAMES) / RATE)


def expressions(head: HeadModel) -> torch.Tensor:
    """Expression coefficients of every frame."""
    blink, wink = curve("blink"), curve("winkLeft")
    values = dict.fromkeys(head.expression_names, np.zeros(FRAMES))
    for name in head.expression_names:
        stem = name.removesuffix("Left").removesuffix("Right")
        if stem in CURVES:
            values[name] = curve(stem)
    values |= {"eyeBlinkLeft": np.maximum(blink, wink), "eyeBlinkRight": blink}
    values["cheekSquintLeft"] = np.maximum(values["cheekSquintLeft"], 0.6 * wink)
    values["mouthSmileLeft"] = np.clip(values["mouthSmileLeft"] + 0.3 * wink, 0, 1)
    return torch.from_numpy(np.float32(np.stack([values[name] for name in head.expression_names], -1)))


def performance(person: Performer) -> torch.Tensor:
    """Posed dense vertices of every frame, in the camera."""
    yaw, pitch, roll, jaw, gaze, gaze_pitch = (
        np.deg2rad(curve(name)) for name in ("yaw", "pitch", "roll", "jaw", "gaze", "gazePitch")
    )
    zero = np.zeros(FRAMES)

    def turned(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return FRONTAL @ rodrigues(np.stack([zero, y, zero], -1)) @ rodrigues(np.stack([x, zero, z], -1))

    R_head, R_torso = turned(pitch, yaw, roll), turned(0.1 * pitch, 0.15 * yaw, 0.2 * roll)
    origin = np.array([0, RAISED_M, DISTANCE_M])
    neck = person.joints[chain.NECK].numpy()
    torso_cam = origin + FRONTAL @ neck
    head_cam = torso_cam + R_torso @ (PIVOT - neck) - R_head @ PIVOT
    jaws = np.stack([jaw, zero, zero], -1)
    gazes = np.stack([gaze_pitch, gaze, gaze_pitch, gaze], -1)
    logs = [chain.rotations.logarithm(R) for R in (R_head, R_torso)]
    rows = [np.float32(value) for value in (jaws, gazes, logs[0], head_cam, logs[1], torso_cam + zero[:, None])]
    jaw_t, gaze_t, rotation, translation, torso_rotation, torso_translation = map(torch.from_numpy, rows)
    shapes = chain.coarse(person.head, person.identity, expressions(person.head), jaw_t, gaze_t)
    return chain.pose(
        person.head,
        chain.dense(person.head, shapes) + person.hair_offset,
        person.joints.expand(FRAMES, 6, 3),
        chain.HeadPose(
            jaw=jaw_t,
            gaze=gaze_t,
            rotation=rotation,
            translation=translation,
            torso_rotation=torso_rotation,
            torso_translation=torso_translation,
        ),
    )


def draw(person: Performer, verts: torch.Tensor) -> np.ndarray:
    """One frame, RGB."""
    head = person.head
    parts = torch.stack([(head.parts == part).float() for part in range(len(head.part_names))], -1)
    normals = mesh.vertex_normals(verts, head.dense_faces)
    attributes = torch.cat([normals, person.paint_points, person.hair[:, None], parts, verts[:, 2:]], -1)
    rast = rasterize(CAMERA.clip(verts)[None], head.dense_faces, (CAMERA.height, CAMERA.width))
    layers = interpolate(attributes[None], rast, head.dense_faces)[0].numpy()
    covered = rast[0, ..., 3].numpy() > 0
    normal = layers[..., :3] / np.maximum(np.linalg.norm(layers[..., :3], axis=-1, keepdims=True), 1e-6) * [1, -1, -1]
    colour, gloss = painted(person, layers[..., 3:6], layers[..., 6], layers[..., 7:-1])
    depth = np.where(covered, layers[..., -1], DISTANCE_M + 0.1).astype(np.float32)
    # What lies behind its surroundings gets less light: under the chin, beside the nose, inside the mouth.
    hollow = [np.clip((depth - cv2.GaussianBlur(depth, (0, 0), s)) / d, 0, 1) for s, d in ((8, 0.012), (30, 0.05))]
    shade = np.where(covered, 0.5 * hollow[0] + 0.4 * hollow[1], 0)
    inside = layers[..., 7:-1][..., 3:6].sum(-1)
    # Teeth and tongue are seen by what light the lips let in, which comes from all sides.
    light = shading(normal) * (1 - inside[..., None]) + 0.9 * inside[..., None]
    light = light * (1 - (1 - 0.45 * inside) * shade)[..., None]
    half = (KEY / np.linalg.norm(KEY) + [0, 0, 1]) / np.linalg.norm(KEY / np.linalg.norm(KEY) + [0, 0, 1])
    shine = gloss[..., None] * np.clip(normal @ half, 0, 1)[..., None] ** np.where(gloss > 0.3, 200, 14)[..., None]
    picture = np.where(covered[..., None], colour * light + shine, backdrop())
    small = cv2.resize(np.clip(picture, 0, 1).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.uint8(np.rint(small ** (1 / 1.15) * 255))


def shading(normal: np.ndarray) -> np.ndarray:
    """Wrapped key and fill light and a sky from above; the key is a little warm."""
    key = np.clip((normal @ (KEY / np.linalg.norm(KEY)) + 0.35) / 1.35, 0, 1)
    fill = np.clip((normal @ (FILL / np.linalg.norm(FILL)) + 0.5) / 1.5, 0, 1)
    sky = 0.5 + 0.5 * normal[..., 1]
    return 0.72 * key[..., None] * [1.0, 0.97, 0.93] + (0.24 * fill + 0.16 * sky)[..., None] * [0.95, 0.98, 1.05]


def backdrop() -> np.ndarray:
    """A plain wall with a soft pool of light."""
    row, column = np.mgrid[: CAMERA.height, : CAMERA.width] / CAMERA.height
    pool = np.exp(-((column - 0.6) ** 2 + (row - 0.35) ** 2) / 0.35)
    return np.array([0.46, 0.48, 0.50]) + 0.18 * pool[..., None]


def painted(person: Performer, point: np.ndarray, hair: np.ndarray, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colour and gloss of pixels that show points of the neutral head."""
    x, y, z = (np.float32(point[..., axis]) for axis in range(3))
    row, column = -y * TEXELS_PER_M + TEXELS / 2, x * TEXELS_PER_M + TEXELS / 2
    marks = cv2.remap(person.texture, column, row, cv2.INTER_LINEAR) * (z > 0.03)[..., None]
    angle = np.float32((np.arctan2(x, z) / (2 * np.pi) + 0.5) * 2047)
    grain = cv2.remap(person.grain, angle, np.float32((0.25 - y) * 1500), cv2.INTER_LINEAR)
    own = person.colours
    skin = np.array(own.skin) * (1 + 0.035 * grain[..., :1])
    # Warmer cheeks and nose.
    flush = np.exp(-((np.abs(x) - 0.042) ** 2 + (y + 0.03) ** 2) / 0.022**2)[..., None] * (z > 0.03)[..., None]
    skin = skin * (1 - flush * [0.0, 0.10, 0.10])
    for mask, tone in ((marks[..., :1], own.lip), (0.85 * marks[..., 1:2], own.brow), (0.8 * marks[..., 2:], own.brow)):
        skin = skin * (1 - mask) + np.array(tone) * mask
    skin = (
        skin * (1 - hair[..., None])
        + np.array(own.hair) * np.clip(1 + 0.28 * grain[..., 1:2], 0.2, 2) * hair[..., None]
    )
    collar = -0.152 - 0.03 * np.clip(z / 0.06, -0.4, 1) * np.exp(-((x / 0.06) ** 2))
    cloth = np.clip((collar - y) / 0.003, 0, 1)[..., None]
    hem = np.exp(-(((collar - y - 0.006) / 0.005) ** 2))[..., None]
    skin = skin * (1 - cloth) + np.array(own.shirt) * (1 + 0.10 * grain[..., 2:] - 0.25 * hem) * cloth
    eyes, eye_gloss = eyeballs(person, point)
    ball = parts[..., 1] + parts[..., 2]
    shares = (parts[..., 0], ball, parts[..., 3] + parts[..., 4], parts[..., 5] + parts[..., 6])
    # Little light reaches the back teeth.
    front = np.exp(-((x / 0.022) ** 4))[..., None]
    teeth = TOOTH * front + CAVITY * (1 - front)
    # The head has no tongue of its own: the floor of its mouth is one.
    tongue = (np.clip((-0.060 - y) / 0.006, 0, 1) * np.clip((0.026 - np.abs(x)) / 0.006, 0, 1))[..., None]
    cavity = CAVITY + tongue * (TONGUE * (1 - 0.25 * np.exp(-((x / 0.003) ** 2)))[..., None] - CAVITY)
    colour = sum(s[..., None] * c for s, c in zip(shares, (skin, eyes, teeth, cavity), strict=True))
    gloss = np.where(ball > 0.5, eye_gloss, parts[..., 0] * (1 - cloth[..., 0]) * (0.05 + 0.06 * marks[..., 0]))
    return colour, gloss


def eyeballs(person: Performer, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Iris, its darker rim and the pupil, as drawn on an eyeball that looks ahead."""
    centres = person.joints[[chain.EYE_LEFT, chain.EYE_RIGHT]].numpy()
    off_axis = np.linalg.norm(point[..., None, :2] - centres[:, :2], axis=-1).min(-1)
    inside = np.clip((IRIS_M - off_axis) / 0.0004, 0, 1)[..., None]
    rim = np.clip((off_axis - IRIS_M + 0.0016) / 0.0012, 0, 1)[..., None]
    pupil = np.clip((PUPIL_M - off_axis) / 0.0003, 0, 1)[..., None]
    colour = BALL * (1 - inside) + np.array(person.colours.iris) * (1 - 0.6 * rim) * inside
    return colour * (1 - 0.95 * pupil), np.full(point.shape[:2], 0.8)


def hum(path: Path) -> None:
    """A soft voice that opens with the jaw: the harmonics of a low tone, brighter when the mouth is wider."""
    rate = 48000
    time = np.arange(FRAMES * rate // RATE) / rate
    jaw = np.interp(time, np.arange(FRAMES) / RATE, curve("jaw")) / 13
    phase = 2 * np.pi * np.cumsum(125 + 12 * np.sin(2 * np.pi * 0.6 * time)) / rate
    voice = sum(np.sin(k * phase) * np.exp(-k / (2 + 6 * jaw)) for k in range(1, 12))
    samples = np.int16(np.clip(0.14 * np.sqrt(jaw) * voice, -1, 1) * 32767)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def main() -> None:
    """Write the film."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    person = performer()
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "hum.wav"
        hum(sound)
        with VideoWriter(out, rate=Fraction(RATE), audio=sound) as film:
            for verts in performance(person):
                film.write(draw(person, verts))
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
