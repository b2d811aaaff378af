import cv2
import numpy as np
import pytest

from expportrait_cli.detect.flow import RegionFlow, head_and_torso, robust_similarity

SIZE = 512


def texture(seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).uniform(0, 255, (SIZE, SIZE)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 4)
    grey = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def face() -> np.ndarray:
    """Landmarks of an upright face 160 px high, as far as the regions use them."""
    points = np.full((478, 2), (256.0, 220.0), np.float32)
    points[10], points[152] = (256, 150), (256, 310)
    points[234], points[454] = (200, 220), (312, 220)
    points[[70, 63, 105, 66, 107, 336, 296, 334, 293, 300], 1] = 190
    return points


def person() -> np.ndarray:
    matte = np.zeros((SIZE, SIZE), np.float32)
    matte[60:340, 160:352] = 1
    matte[330:, 60:452] = 1
    return matte


def moved(image: np.ndarray, similarity: np.ndarray) -> np.ndarray:
    a, b, c, d = (float(value) for value in similarity)
    matrix = np.array([[a, -b, c + 0.5 * (a - b) - 0.5], [b, a, d + 0.5 * (a + b) - 0.5]])
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def about(x: float, y: float, *, scale: float, angle: float, shift: tuple[float, float]) -> np.ndarray:
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([a, b, x - a * x + b * y + shift[0], y - b * x - a * y + shift[1]])


def apply(similarity: np.ndarray, points: np.ndarray) -> np.ndarray:
    a, b, c, d = similarity
    return points @ np.array([[a, b], [-b, a]]) + [c, d]


def test_regions_leave_the_face_out() -> None:
    head, torso = head_and_torso(face(), person())
    assert head[100, 256] and head[210, 170] and not head[250, 256]
    assert torso[400, 256] and not torso[320, 256]
    assert not (head & torso).any()


def test_hair_and_torso_are_followed_each_on_its_own() -> None:
    first = texture(0)
    follower = RegionFlow(first, face(), person())
    head_points = np.argwhere(head_and_torso(face(), person())[0])[::50, ::-1] + 0.5
    torso_points = np.argwhere(head_and_torso(face(), person())[1])[::50, ::-1] + 0.5
    for t in range(1, 9):
        head = about(256, 200, scale=1 + 0.006 * t, angle=0.012 * t, shift=(5.0 * t, -2.0 * t))
        torso = about(256, 420, scale=1 - 0.003 * t, angle=-0.004 * t, shift=(-1.0 * t, 0.7 * t))
        frame = moved(first, head)
        frame[335:] = moved(first, torso)[335:]
        motion = follower.step(frame)
        np.testing.assert_allclose(apply(motion.flow[0], head_points), apply(head, head_points), atol=0.15)
        np.testing.assert_allclose(apply(motion.flow[1], torso_points), apply(torso, torso_points), atol=0.3)
        assert motion.confidence.min() > 0.8


def test_the_same_frame_has_not_moved() -> None:
    motion = RegionFlow(texture(1), face(), person()).step(texture(1))
    np.testing.assert_allclose(motion.flow, [[1, 0, 0, 0]] * 2, atol=1e-3)


def test_without_a_torso_it_takes_a_share_of_the_head() -> None:
    matte = person()
    matte[300:] = 0
    first = texture(2)
    motion = RegionFlow(first, face(), matte).step(moved(first, np.array([1, 0, 10.0, 4.0])))
    np.testing.assert_allclose(motion.flow[1], [1, 0, 3.0, 1.2], atol=0.1)
    assert motion.confidence[1] == 0


def test_another_picture_is_not_trusted() -> None:
    motion = RegionFlow(texture(3), face(), person()).step(texture(4))
    assert motion.confidence.max() < 0.2


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_similarity_ignores_points_that_move_otherwise(share: float) -> None:
    rng = np.random.default_rng(5)
    points = rng.uniform(0, 256, (1000, 2))
    truth = about(128, 128, scale=1.03, angle=0.05, shift=(7, -3))
    seen = apply(truth, points)
    seen[: int(share * 1000)] += rng.uniform(5, 30, (int(share * 1000), 2))
    found, residual = robust_similarity(points, seen, np.ones(1000))
    # The Cauchy weight never falls to zero, so that far points keep a small pull.
    np.testing.assert_allclose(apply(found, points), apply(truth, points), atol=0.1)
    assert residual < 0.1
