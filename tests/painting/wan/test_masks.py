"""What is painted anew: steady boxes where the proxy guessed, and never the eyes and lips that it knows."""

from dataclasses import replace

import numpy as np
import pytest
from support.wan_film import sketch, still

from expportrait_cli.head.facemesh import EYE_RINGS, LID_PAIRS, LIPS
from expportrait_cli.painting.scene import Sketch, Still
from expportrait_cli.painting.wan.masks import AROUND, MOST, Masks
from expportrait_cli.painting.wan.windows import chunks, latent_count

SIDE = 256


def landmarks(*, gap: float = 12.0, mouth: float = 0.0) -> np.ndarray:
    """A face of three ellipses: eyes at (90, 100) and (166, 100), the mouth at (128, 180)."""
    points = np.full((478, 2), 128, np.float32)
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for ring, x in ((EYE_RINGS[:16], 90), (EYE_RINGS[16:], 166)):
        points[ring] = np.stack([x + 24 * np.cos(angle), 100 + gap / 2 * np.sin(angle)], 1)
    for (upper, lower), x in zip(LID_PAIRS, [90] * 3 + [166] * 3, strict=True):
        points[[upper, lower]] = [[x, 100 - gap / 2], [x, 100 + gap / 2]]
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    points[LIPS[:20]] = np.stack([128 + 40 * np.cos(angle), 180 + (16 + mouth) * np.sin(angle)], 1)
    points[LIPS[20:]] = np.stack([128 + 30 * np.cos(angle), 180 + mouth * np.sin(angle)], 1)
    return points


def photo(**face: float) -> Still:
    return replace(still(SIDE, SIDE), photo=np.full((SIDE, SIDE, 3), 128, np.uint8), landmarks_px=landmarks(**face))


def still_of(picture: np.ndarray) -> Still:
    return replace(still(SIDE, SIDE), photo=picture)


def film(guess: np.ndarray, count: int, **face: float) -> list[Sketch]:
    frame = replace(sketch(0, SIDE, SIDE), proxy=photo().photo, guess=guess, landmarks_px=landmarks(**face))
    return [frame] * count


def masks(still: Still, frames: list[Sketch]) -> list[np.ndarray]:
    """Of each latent frame, px."""
    found = list(Masks(still).of(chunks(iter(frames), first=0, count=len(frames))))
    assert len(found) == latent_count(len(frames))
    return [cells.repeat(8, 0).repeat(8, 1) for _, cells in found]


def everywhere() -> np.ndarray:
    """A guess over all of eyes and mouth, as the proxy raises it."""
    guess = np.zeros((SIDE, SIDE), np.float32)
    guess[80:120, 64:192] = guess[160:200, 80:176] = 1
    return guess


def test_eyes_and_lips_that_the_proxy_knows_are_kept():
    (mask,) = masks(photo(), film(everywhere(), 1))
    assert mask[84, 128] and not mask[100, 90] and not mask[100, 166]
    assert not mask[168:176, 112:144].any() and not mask[184:192, 112:144].any()


def test_an_eye_of_which_the_photo_shows_nothing_is_painted():
    (mask,) = masks(photo(gap=2.0), film(everywhere(), 1))
    assert mask[100, 90] and mask[100, 166]


def test_a_mouth_that_the_proxy_made_up_is_painted_inside_the_lips():
    (mask,) = masks(photo(), film(everywhere(), 1, mouth=12.0))
    assert mask[176:184, 112:144].all() and not mask[194:200, 112:136].any()


def test_of_too_much_doubt_the_most_doubtful_part_is_painted():
    guess = np.full((SIDE, SIDE), 0.3, np.float32)
    guess[:32, :128] = 0.9
    (mask,) = masks(still(SIDE, SIDE), [replace(sketch(0, SIDE, SIDE), guess=guess)])
    assert mask[:32, :128].all() and 1 / 16 <= mask.mean() <= MOST


def test_moved_edges_are_doubted_before_moved_areas():
    proxy = photo().photo.copy()
    proxy[:64, :128] = 128 + 20 * np.sign(np.sin(np.pi * (np.arange(128) + 0.5) / 4))[:, None]
    proxy[128:, :] = 152
    (mask,) = masks(still_of(photo().photo), [replace(sketch(0, SIDE, SIDE, holes=0), proxy=proxy)])
    assert mask[:64, :128].all() and 1 / 8 <= mask.mean() <= MOST


def test_nothing_is_doubted_where_nothing_moves():
    (mask,) = masks(still_of(photo().photo), [replace(sketch(0, SIDE, SIDE, holes=0), proxy=photo().photo)])
    assert not mask.any()


@pytest.mark.parametrize("count", [1, 2, 9, 30])
def test_a_mask_lasts_and_ends_with_the_film(count):
    frames = film(everywhere(), count)
    assert all(np.array_equal(mask, masks(photo(), frames)[0]) for mask in masks(photo(), frames))


def test_a_moment_of_doubt_changes_the_mask_slowly():
    """A box that is doubtful in one latent frame of many comes and goes with its mean over those around it."""
    guess = np.zeros((SIDE, SIDE), np.float32)
    guess[32:96, 32:96] = 1
    frames = [film(guess * (57 <= index <= 60), 1)[0] for index in range(92)]
    shown = [mask.any() for mask in masks(photo(), frames)]
    assert np.flatnonzero(shown).tolist() == list(range(15 - AROUND, 15 + AROUND + 1))


def test_where_it_begins_is_forgotten():
    random = np.random.default_rng(0)
    frames = [film(random.random((SIDE, SIDE)).astype(np.float32) * (random.random() > 0.5), 1)[0] for _ in range(61)]
    whole = [cells for _, cells in Masks(photo()).of(chunks(iter(frames), first=0, count=61))]
    part = [cells for _, cells in Masks(photo()).of(chunks(iter(frames[20:]), first=5, count=61))]
    assert all(np.array_equal(a, b) for a, b in zip(whole[5 + Masks.memory :], part[Masks.memory :], strict=True))
