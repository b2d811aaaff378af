"""Interpolation of pictures in Warp kernels; pixel centres lie at whole numbers."""

from typing import no_type_check

import warp as wp


@no_type_check
@wp.func
def _mirrored(index: int, count: int):
    """Index inside the picture for one outside, by mirroring at the border pixels (they are not repeated)."""
    if index >= 0 and index < count:
        return index
    if count == 1:
        return 0
    period = 2 * (count - 1)
    index = wp.abs(index) % period
    return wp.min(index, period - index)


@no_type_check
@wp.func
def mirror_sample(picture: wp.array2d(dtype=float), at: wp.vec2):
    """Sample bilinearly, with the picture mirrored at its borders."""
    x = int(wp.floor(at[0]))
    y = int(wp.floor(at[1]))
    s = at[0] - float(x)
    t = at[1] - float(y)
    height = picture.shape[0]
    width = picture.shape[1]
    top = _mirrored(y, height)
    bottom = _mirrored(y + 1, height)
    left = _mirrored(x, width)
    right = _mirrored(x + 1, width)
    above = picture[top, left] + s * (picture[top, right] - picture[top, left])
    below = picture[bottom, left] + s * (picture[bottom, right] - picture[bottom, left])
    return above + t * (below - above)


@no_type_check
@wp.func
def sample(picture: wp.array2d(dtype=wp.vec2), at: wp.vec2):
    """Sample bilinearly, with the border pixels replicated."""
    height = picture.shape[0]
    width = picture.shape[1]
    x = wp.clamp(at[0], 0.0, float(width - 1))
    y = wp.clamp(at[1], 0.0, float(height - 1))
    left = int(x)
    top = int(y)
    right = wp.min(left + 1, width - 1)
    bottom = wp.min(top + 1, height - 1)
    s = x - float(left)
    t = y - float(top)
    above = picture[top, left] + s * (picture[top, right] - picture[top, left])
    below = picture[bottom, left] + s * (picture[bottom, right] - picture[bottom, left])
    return above + t * (below - above)


@no_type_check
@wp.func
def _cubic_weights(s: float):
    """Cubic convolution with a = -0.75, as OpenCV has it."""
    a = -0.75
    first = ((a * (s + 1.0) - 5.0 * a) * (s + 1.0) + 8.0 * a) * (s + 1.0) - 4.0 * a
    second = ((a + 2.0) * s - (a + 3.0)) * s * s + 1.0
    r = 1.0 - s
    third = ((a + 2.0) * r - (a + 3.0)) * r * r + 1.0
    return wp.vec4(first, second, third, 1.0 - first - second - third)


@no_type_check
@wp.func
def cubic(picture: wp.array2d(dtype=wp.vec4), at: wp.vec2):
    """Sample by cubic convolution, with the picture mirrored at its borders."""
    height = picture.shape[0]
    width = picture.shape[1]
    x = int(wp.floor(at[0])) - 1
    y = int(wp.floor(at[1])) - 1
    s = _cubic_weights(at[0] - float(x + 1))
    t = _cubic_weights(at[1] - float(y + 1))
    x0 = _mirrored(x, width)
    x1 = _mirrored(x + 1, width)
    x2 = _mirrored(x + 2, width)
    x3 = _mirrored(x + 3, width)
    total = wp.vec4(0.0, 0.0, 0.0, 0.0)
    for i in range(4):
        row = _mirrored(y + i, height)
        line = s[0] * picture[row, x0] + s[1] * picture[row, x1] + s[2] * picture[row, x2] + s[3] * picture[row, x3]
        total += t[i] * line
    return total


@no_type_check
@wp.func
def finer(squares: wp.array2d(dtype=wp.vec2), row: int, column: int):
    """Value at a pixel of a map of half resolution, linear between the centres of its 2 x 2 blocks."""
    top = wp.max((row + 1) / 2 - 1, 0)
    left = wp.max((column + 1) / 2 - 1, 0)
    bottom = wp.min((row + 1) / 2, squares.shape[0] - 1)
    right = wp.min((column + 1) / 2, squares.shape[1] - 1)
    s = 0.75 - 0.5 * float(column % 2)
    t = 0.75 - 0.5 * float(row % 2)
    above = squares[top, left] + s * (squares[top, right] - squares[top, left])
    below = squares[bottom, left] + s * (squares[bottom, right] - squares[bottom, left])
    return above + t * (below - above)
