"""Antialiased shapes and words on a numpy image, without a window or a graphics library.

A canvas is float32 [H, W, 3] in [0, 1]; lengths are pixels, x to the right and y down. Every function draws in place.
"""

import functools

import matplotlib
import numpy as np
from matplotlib import ft2font

Colour = tuple[float, float, float]
Point = tuple[float, float]


def blank(height: int, width: int, colour: Colour) -> np.ndarray:
    """Returns a canvas of one colour."""
    return np.full((height, width, 3), colour, np.float32)


def pixels(canvas: np.ndarray) -> np.ndarray:
    """Returns uint8 [H, W, 3]."""
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def box(canvas: np.ndarray, centre: Point, half: Point, colour: Colour, radius: float = 0.0, alpha: float = 1.0) -> None:
    """Fills an upright rectangle with rounded corners; `half` is half its width and height."""
    radius = min(radius, *half)
    rows, columns = _window(canvas, centre[0] - half[0], centre[0] + half[0], centre[1] - half[1], centre[1] + half[1])
    x, y = _centres(rows, columns)
    # Distance to the rounded rectangle: that to the smaller one within it, less the radius.
    across, down = np.abs(x - centre[0]) - half[0] + radius, np.abs(y - centre[1]) - half[1] + radius
    distance = np.hypot(np.maximum(across, 0), np.maximum(down, 0)) + np.minimum(np.maximum(across, down), 0) - radius
    _blend(canvas, rows, columns, distance, colour, alpha)


def capsule(canvas: np.ndarray, start: Point, end: Point, radius: float, colour: Colour, alpha: float = 1.0) -> None:
    """Fills a line with round ends; a disc where both ends are one."""
    left, right, top, bottom = min(start[0], end[0]), max(start[0], end[0]), min(start[1], end[1]), max(start[1], end[1])
    rows, columns = _window(canvas, left - radius, right + radius, top - radius, bottom + radius)
    x, y = _centres(rows, columns)
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    _blend(canvas, rows, columns, np.hypot(x - start[0] - along * dx, y - start[1] - along * dy) - radius, colour, alpha)


def write(canvas: np.ndarray, words: str, corner: Point, size: float, colour: Colour, width: float | None = None) -> None:
    """Writes words with their top left corner at `corner`, smaller where they would pass `width`."""
    mask = _letters(words, round(size))
    if width is not None and mask.shape[1] > width:
        mask = _letters(words, max(6, int(size * width / mask.shape[1])))
    top, left = round(corner[1]), round(corner[0])
    mask = mask[: max(0, canvas.shape[0] - top), : max(0, canvas.shape[1] - left), None]
    patch = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
    patch += mask * (np.asarray(colour, np.float32) - patch)


@functools.lru_cache(maxsize=256)
def _letters(words: str, size: int) -> np.ndarray:
    font = ft2font.FT2Font(matplotlib.get_data_path() + "/fonts/ttf/DejaVuSans.ttf")
    font.set_size(size, 72)
    font.set_text(words, 0.0)
    font.draw_glyphs_to_bitmap(antialiased=True)
    return np.array(font.get_image(), np.float32) / 255


def _window(canvas: np.ndarray, left: float, right: float, top: float, bottom: float) -> tuple[slice, slice]:
    height, width = canvas.shape[:2]
    rows = slice(max(0, int(top) - 1), max(0, min(height, int(bottom) + 2)))
    return rows, slice(max(0, int(left) - 1), max(0, min(width, int(right) + 2)))


def _centres(rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    x = np.arange(columns.start, columns.stop, dtype=np.float32) + 0.5
    return x[None, :], np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5


def _blend(canvas: np.ndarray, rows: slice, columns: slice, distance: np.ndarray, colour: Colour, alpha: float) -> None:
    cover = (alpha * np.clip(0.5 - distance, 0, 1))[..., None]
    patch = canvas[rows, columns]
    patch += cover * (np.asarray(colour, np.float32) - patch)
