"""Lips that shut, what is behind them, and what a driver's clip says of it, on drawn mouths."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from support.known_head import tracking_of

from expportrait_cli.geometry.camera import Camera
from expportrait_cli.head import dense, landmarks
from expportrait_cli.head.facemesh import LIP_CORNERS, LOWER_LIPS, MOUTH_CORNERS, OUTER_EYES, UPPER_LIPS
from expportrait_cli.painting.proxy.anatomy import Between, Mouth, tongue_relief
from expportrait_cli.painting.proxy.glimpse import Glimpses
from expportrait_cli.painting.proxy.layers import Layers
from expportrait_cli.painting.proxy.lips import MEETS_DARK, Contours, around_lips, shut_lips

pytest_plugins = ("support.astronaut",)

SKIN, LIP, TOOTH, TONGUE, DARK = (200, 150, 120), (170, 80, 80), (235, 230, 220), (180, 95, 90), (30, 10, 10)


def mouth_points(centre, half_width: float, lip: float, gap: float) -> np.ndarray:
    """Landmarks of a level mouth: lips `lip` px thick in the middle, `gap` px apart there."""
    points = np.zeros((478, 2), np.float32)
    points[list(OUTER_EYES)] = [[0, 0], [4 * half_width, 0]]
    arch = np.sin(np.linspace(0, np.pi, 11))
    across = np.linspace(-1, 1, 11) * half_width
    for rows, side in ((UPPER_LIPS, -1), (LOWER_LIPS, 1)):
        for row, share in zip(rows, (1, 0.66, 0.33, 0), strict=True):
            corners = MOUTH_CORNERS if share == 1 else LIP_CORNERS
            down = side * arch * (gap / 2 + share * lip)
            points[[corners[0], *row, corners[1]]] = np.c_[across, down] + centre
    return points


def painted(points: np.ndarray, shape: tuple[int, int], inside) -> np.ndarray:
    """Lips on skin; `inside` is the colour between them, or a picture of it."""
    lips = Contours.of(points.astype(float))
    picture = np.full((*shape, 3), SKIN, np.uint8)
    for upper, lower, colour in (
        (lips.upper_outer, lips.lower_outer, LIP),
        (lips.upper_inner, lips.lower_inner, inside),
    ):
        mask = np.zeros(shape, np.uint8)
        cv2.fillPoly(mask, [np.rint(np.concatenate([upper, lower[::-1]]) - 0.5).astype(np.int32)], (1,))
        picture = np.where(mask[..., None] > 0, np.asarray(colour, np.uint8), picture)
    return picture


def opening(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    lips = Contours.of(points.astype(float))
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(
        mask, [np.rint(np.concatenate([lips.upper_inner, lips.lower_inner[::-1]]) - 0.5).astype(np.int32)], (1,)
    )
    return mask > 0


def test_a_place_along_the_mouth_is_that_pixel():
    points = mouth_points((80, 60), 44, 10, 20)
    turn = np.array([[0.9, -0.4358899], [0.4358899, 0.9]])
    lips = Contours.of(points @ turn.T)
    px = np.random.default_rng(0).uniform(0, 160, (5, 7, 2))
    assert np.abs(lips.place(*lips.along(px)) - px).max() < 1e-9
    along, down = lips.along(np.array([lips.upper_inner[-1], lips.lower_inner[5]]))
    assert np.abs(along - [1, 0.5]).max() < 1e-6 and abs(down[1] - 10) < 1e-4
    assert abs(lips.line(lips.upper_inner, np.array([0.5]))[0] + 10) < 1e-4


def test_shut_lips_have_the_lips_colour_where_the_photo_shows_teeth():
    points = mouth_points((80, 60), 44, 9, 24)
    picture = painted(points, (120, 160), TOOTH)
    # A dark rim, and teeth, reach over what the landmarks take for the upper lip.
    strip = np.s_[47:52, 55:105]
    picture[strip][(picture[strip] == LIP).all(-1)] = DARK
    shut = shut_lips(picture, opening(points, (120, 160)), Contours.of(points.astype(float)))
    off = np.abs(shut[44:76, 60:100].astype(int) - LIP)
    assert np.delete(off, np.s_[12:20], axis=0).max() < 25
    # A shade lies where they meet.
    assert abs(shut[60, 60:100].mean() / np.mean(LIP) - (1 - MEETS_DARK)) < 0.04
    far = np.zeros((120, 160), bool)
    far[:20] = far[-20:] = far[:, :8] = far[:, -8:] = True
    assert np.array_equal(shut[far], picture[far])


def test_shut_lips_reach_their_corners_and_no_shadow_does():
    points = mouth_points((80, 60), 44, 9, 24)
    picture = painted(points, (120, 160), TOOTH)
    # A thin lip whose outer half looks like skin on one side, and a shadow beside the other corner.
    lips = Contours.of(points.astype(float))
    picture[62:80, 40:56][(picture[62:80, 40:56] == LIP).all(-1)] = SKIN
    cv2.circle(picture, (126, 60), 4, DARK, -1)
    shut = shut_lips(picture, opening(points, (120, 160)), lips)
    x, y = np.rint((lips.lower_outer[2] + lips.lower_inner[2]) / 2).astype(int)
    assert np.abs(shut[y, x].astype(int) - LIP).max() < 40
    assert np.abs(shut[60, 129].astype(int) - SKIN).max() < 25


def test_shut_lips_have_no_patches_and_keep_their_creases():
    points = mouth_points((80, 60), 44, 14, 24)
    picture = painted(points, (120, 160), TOOTH)
    # The shine of a stretched lip, and a red rim, within the lips' own colours; creases are finer.
    lip = (picture == LIP).all(-1)
    shine, red = np.s_[74:80, 70:84], np.s_[42:46, 84:98]
    patches = ((shine, (205, 112, 110)), (red, (178, 62, 66)))
    plain = shut_lips(picture, opening(points, (120, 160)), Contours.of(points.astype(float)))
    for place, colour in patches:
        picture[place][lip[place]] = colour
    crease = np.s_[66:90, 100]
    picture[crease][lip[crease]] = np.asarray(LIP) * 0.96
    shut = shut_lips(picture, opening(points, (120, 160)), Contours.of(points.astype(float))).astype(float)
    for place, colour in patches:
        left = shut[place][lip[place]].mean(0) - plain[place][lip[place]].mean(0)
        assert lip[place].sum() > 50 and np.abs(left).max() < 0.45 * np.abs(np.subtract(colour, LIP)).max()
    own = [row for row in range(74, 84) if lip[row, 96:105].all()]
    assert len(own) >= 3 and 0.02 < 1 - (shut[own, 100] / shut[own][:, [96, 104]].mean(1)).mean() < 0.05


def test_a_mouth_that_is_shut_stays_as_it_is():
    picture = np.full((40, 40, 3), 90, np.uint8)
    lips = Contours.of(mouth_points((20, 20), 10, 3, 0).astype(float))
    assert shut_lips(picture, np.zeros((40, 40), bool), lips) is picture


def test_what_is_around_the_lips_is_no_more_than_that(head):
    around = around_lips(head)
    points = landmarks(head, dense(head, head.template))
    near = torch.cdist(dense(head, head.template), points)
    assert around[near[:, [13, 14, 61, 291]].argmin(0).numpy()].all()
    assert not around[near[:, [4, 152, 33, 263, 50, 280]].argmin(0).numpy()].any()


FOCAL, DEPTH = 3000.0, 1.0
PHOTO_PX = 240


def anatomy(photo: np.ndarray, shown: np.ndarray, glimpses=None) -> tuple[Mouth, np.ndarray]:
    """A mouth a metre away, 3 px for a mm, and its bone; the line of the closed lips is in the picture's middle."""
    size = (PHOTO_PX, PHOTO_PX)
    plane, points, row = np.zeros(size, np.float32), np.zeros((1, 3), np.float32), np.zeros(1, np.float32)
    layers = Layers(
        camera=Camera(FOCAL, PHOTO_PX / 2, PHOTO_PX / 2, *size),
        **dict.fromkeys(("photo", "foreground", "plate", "close_plate"), photo),
        **dict.fromkeys(("alpha", "zbuffer"), plane),
        part=np.zeros(size, np.uint8),
        verts=points,
        colour=points,
        xy=points[:, :2].copy(),
        depth=row,
        cosine=row,
        hair=plane,
        hairy=row,
    )
    bone = np.array([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, DEPTH]])
    eyes = np.full((50, 3), 200, np.float32)
    skin, lip = photo[0, 0].astype(np.float32), photo[0, 1].astype(np.float32)
    mouth = Mouth(layers, np.zeros(3), shown, skin, skull=bone, jaw=bone, eyes=eyes, lip=lip, glimpses=glimpses)
    return mouth, bone


def lowered(bone: np.ndarray, by_m: float) -> np.ndarray:
    jaw = bone.copy()
    jaw[1, 3] += by_m
    return jaw


BOX = np.s_[60:210, 60:180]


def grin() -> tuple[np.ndarray, np.ndarray]:
    """A photo with its upper teeth from the line of the lips to 7 mm below it, and darkness from there on."""
    photo = np.full((PHOTO_PX, PHOTO_PX, 3), SKIN, np.uint8)
    photo[0, 1] = LIP
    photo[120:141, 70:170], photo[141:150, 70:170] = TOOTH, DARK
    shown = np.zeros((PHOTO_PX, PHOTO_PX), bool)
    shown[120:150, 70:170] = True
    return photo, shown


def rows_of_teeth(strip: np.ndarray) -> int:
    """How often a column of colours enters something bright and colourless."""
    bright = (strip.mean(-1) > 110) & (strip[:, 0] - strip[:, 1] < 25)
    return int((np.diff(np.r_[0, bright.astype(int)]) > 0).sum())


@pytest.mark.parametrize("by_mm", [12, 18])
def test_an_opened_mouth_has_the_photos_teeth_once(by_mm):
    mouth, bone = anatomy(*grin())
    assert np.abs(mouth.enamel - TOOTH).max() < 12
    found = mouth.colour(BOX, np.ones((150, 120), bool), bone, lowered(bone, by_mm / 1000))
    # Beside the middle, where a gap between teeth is.
    assert rows_of_teeth(found[60:, 70]) == 2
    # The upper row stays with the skull: its edge is where the photo has it.
    middle = found[:, 70].mean(-1)
    assert middle[141 - 60 - 4] > 170 and middle[141 - 60 + 5] < 110


def test_a_tongue_lies_behind_the_lower_teeth():
    mouth, bone = anatomy(*grin())
    found = mouth.colour(BOX, np.ones((150, 120), bool), bone, lowered(bone, 0.02))
    edge = round(120 + 3 * (20 + 2.6)) - 60
    red = found[..., 0] - found[..., 1]
    assert red[edge - 6, 70] > 30 and found[edge - 6, 70].mean() > 45
    assert found[edge + 6, 70].mean() > 110
    assert found[edge - 24, 70].mean() < 40


def test_a_grey_photo_has_a_grey_mouth():
    photo = np.full((PHOTO_PX, PHOTO_PX, 3), 150, np.uint8)
    mouth, bone = anatomy(photo, np.zeros((PHOTO_PX, PHOTO_PX), bool))
    found = mouth.colour(BOX, np.ones((150, 120), bool), bone, lowered(bone, 0.015))
    assert np.ptp(found, axis=-1).max() < 2
    assert found.max() > 150 and found.min() < 40


def driver(head, path, picture, points):
    """A photo's tracking, as a driver of one frame."""
    cv2.imwrite(str(path), picture[..., ::-1])
    tracking = tracking_of(head, np.zeros(head.identity_basis.shape[2]), 1, 0, path)
    return replace(tracking, landmarks=points[None].astype(np.float32))


def test_a_driver_says_where_teeth_and_tongue_are_and_not_their_colour(head, tmp_path):
    """Yellow teeth above a tongue: the person's are white, and the tongue as red as their lips."""
    yellow = np.array([210, 190, 120])
    inside = np.full((512, 512, 3), TONGUE, np.uint8)
    inside[:256] = yellow
    points = mouth_points((256, 256), 60, 14, 60)
    glimpses = Glimpses(driver(head, tmp_path / "driver.png", painted(points, (512, 512), inside), points))
    assert abs(glimpses.white - yellow.mean()) < 4
    found = glimpses.at(0)
    assert found is not None and found.trust == 1
    assert np.abs(found.read(np.array([[0.5, 0.5]]), np.array([[0.2, 0.8]])) - [[yellow, TONGUE]]).max() < 2

    mouth, bone = anatomy(*grin(), glimpses)
    lips = Contours.of(mouth_points((120, 130), 50, 8, 50).astype(float))
    between = Between(lips, found)
    colour = mouth.colour(BOX, np.ones((150, 120), bool), bone, lowered(bone, 0.02), between)
    assert np.abs(colour[115 - 60, 60] - mouth.enamel).max() < 12
    below = colour[145 - 60, 60]
    relief, wet = (each[85, 60] for each in tongue_relief(*between.places(BOX)))
    below = (below - wet * mouth.enamel) / relief
    # A little brighter than the lips, as in the clip; highlights are compressed.
    assert abs(below.mean() / mouth.flesh.mean() - (0.6 + 0.4 * np.mean(TONGUE) / np.mean(LIP))) < 0.02
    assert np.abs(below / below.mean() - mouth.flesh / mouth.flesh.mean()).max() < 0.03


def test_noise_in_the_colour_of_dark_flesh_makes_no_teeth(head, tmp_path):
    """As in every compressed clip: single pixels of a dark tongue without red, which stay flesh; rows of teeth stay."""
    dim = tuple(value // 2 for value in TONGUE)
    inside = np.full((512, 512, 3), dim, np.uint8)
    inside[:244] = TOOTH
    points = mouth_points((256, 256), 60, 14, 60)
    glimpses = Glimpses(driver(head, tmp_path / "driver.png", painted(points, (512, 512), inside), points))
    seen = np.full((40, 60, 3), dim, np.float32)
    seen[5:35:6, 5:55:6] = np.mean(dim)
    seen[:3] = TOOTH
    *_, tooth = glimpses.light(seen)
    assert tooth[6:].max() < 0.35 and tooth[:2].min() > 0.9


def test_the_highlight_of_a_tongue_is_no_tooth(head, tmp_path):
    """The tongue fills the mouth but for a row of teeth: it is paler than the lips, and redder than the teeth."""
    pale = (200, 140, 140)
    inside = np.full((512, 512, 3), pale, np.uint8)
    inside[:244] = TOOTH
    points = mouth_points((256, 256), 60, 14, 60)
    glimpses = Glimpses(driver(head, tmp_path / "driver.png", painted(points, (512, 512), inside), points))
    *_, tooth = glimpses.light(np.array([TOOTH, pale, LIP], np.float32))
    assert tooth[0] > 0.95 and tooth[1] < 0.5 and tooth[2] == 0


def test_teeth_at_the_sides_may_be_redder_and_a_pink_tongue_may_not(head, tmp_path):
    """Beside front teeth, as lips and cheeks light them; without front teeth in their row they are flesh in part."""
    side, tongue = (205, 150, 138), (200, 140, 150)
    inside = np.full((512, 512, 3), tongue, np.uint8)
    inside[:244] = TOOTH
    points = mouth_points((256, 256), 60, 14, 60)
    glimpses = Glimpses(driver(head, tmp_path / "driver.png", painted(points, (512, 512), inside), points))
    seen = np.full((40, 60, 3), DARK, np.float32)
    seen[:10, 20:40], seen[:10, 8:20], seen[:10, 40:52] = TOOTH, side, tongue
    seen[30:, 20:40] = side
    *_, tooth = glimpses.light(seen)
    assert tooth[5, 12] > 0.9 and tooth[5, 30] > 0.95
    assert tooth[5, 46] < 0.55 and tooth[35, 30] < 0.7


@pytest.mark.parametrize(("half_width", "gap"), [(60, 2), (8, 10)], ids=["shut", "small"])
def test_a_clip_that_shows_no_inside_leaves_it_to_the_model(head, tmp_path, half_width, gap):
    points = mouth_points((256, 256), half_width, half_width / 5, gap)
    picture = painted(points, (512, 512), TOOTH)
    assert Glimpses(driver(head, tmp_path / "driver.png", picture, points)).at(0) is None


def test_a_frame_that_was_not_seen_leaves_it_to_the_model(head, tmp_path):
    points = mouth_points((256, 256), 60, 14, 60)
    tracking = driver(head, tmp_path / "driver.png", painted(points, (512, 512), TOOTH), points)
    assert Glimpses(replace(tracking, state=np.ones(1, np.uint8))).at(0) is None
