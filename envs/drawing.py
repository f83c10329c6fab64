"""Pictures of the cartpole tasks, and of the plan that the controller acts on, for films and reports."""

import math
from collections.abc import Sequence

import numpy as np

from envs import canvas
from envs.cartpole import SLIDER_M
from envs.track import Track
from hierarchy.timeline import NO_PLAN

PAPER, INK, FAINT = (0.98, 0.975, 0.96), (0.16, 0.18, 0.22), (0.82, 0.81, 0.79)
POLE, HUB = (0.78, 0.55, 0.30), (0.93, 0.90, 0.84)
PADS = ((0.84, 0.27, 0.25), (0.24, 0.62, 0.36), (0.22, 0.43, 0.78), (0.93, 0.73, 0.18))
FRESH, STALE = (0.45, 0.70, 0.85), (0.90, 0.47, 0.20)
POLE_M = 1.0


def scene(height: int, width: int, track: Track, target: int, progress: float, words: str) -> np.ndarray:
    """Returns uint8 [height, width, 3]: words, track, pads, cart and pole.

    The target has a marker below it, and `progress` in [0, 1] fills the pad that the cart is on.
    """
    image = canvas.blank(height, width, PAPER)
    unit = height / 270
    metre = min(width / (2 * SLIDER_M + 0.5), (height - 90 * unit) / (POLE_M + 0.1))
    rail = height - 46 * unit

    def column(x: float) -> float:
        return width / 2 + x * metre

    canvas.capsule(image, (column(-SLIDER_M), rail), (column(SLIDER_M), rail), 1.6 * unit, FAINT)
    for colour, place in enumerate(track.places):
        filled = progress if colour == track.pad else 0.0
        _pad(image, column(place), rail + 13 * unit, track.rules.zone * metre, 5.5 * unit, PADS[colour], filled)
    mark = column(track.places[target])
    canvas.capsule(image, (mark, rail + 29 * unit), (mark, rail + 29 * unit), 4 * unit, PADS[target])
    _cart(image, column(track.state.x), rail, track.state.theta, metre, unit)
    canvas.write(image, words, (14 * unit, 12 * unit), 15 * unit, INK, width - 28 * unit)
    return canvas.pixels(image)


def pads_view(height: int, width: int, places: Sequence[float], zone: float) -> np.ndarray:
    """Returns uint8 [height, width, 3]: the pads alone, at `places` in m in the order of their colours, the track's middle in the
    picture's."""
    image, metre = canvas.blank(height, width, PAPER), width / 2.4
    for colour, place in zip(PADS, places):
        canvas.box(image, (width / 2 + float(place) * metre, height / 2), (zone * metre, 0.3 * height), colour)
    return canvas.pixels(image)


def _pad(image: np.ndarray, x: float, y: float, half: float, thick: float, colour: canvas.Colour, progress: float) -> None:
    """A pale bar that fills from the left with its full colour."""
    canvas.box(image, (x, y), (half, thick), colour, thick, alpha=0.45)
    if progress > 0:
        reach = max(thick, progress * half)
        canvas.box(image, (x - half + reach, y), (reach, thick), colour, thick)


def _cart(image: np.ndarray, x: float, rail: float, theta: float, metre: float, unit: float) -> None:
    deck = rail - 15 * unit
    tip = (x + POLE_M * metre * math.sin(theta), deck - POLE_M * metre * math.cos(theta))
    for side in (-0.11, 0.11):
        canvas.capsule(image, (x + side * metre, rail - 4 * unit), (x + side * metre, rail - 4 * unit), 4.5 * unit, INK)
    canvas.box(image, (x, deck), (0.2 * metre, 9 * unit), INK, 4 * unit)
    canvas.capsule(image, (x, deck), tip, 4.5 * unit, POLE)
    canvas.capsule(image, (x, deck), (x, deck), 2.2 * unit, HUB)


def strip(height: int, width: int, visible: np.ndarray, age: np.ndarray, updates: Sequence[int], span: int = 96) -> np.ndarray:
    """Returns uint8 [height, width, 3]: the age of the plan at each of the last `span` ticks, now at the right.

    A bar is a tick, as tall as its plan is old, from a fresh colour to a stale one; no plan is a grey stub. A dot below stands
    where an update observed.

    Args:
        visible: int [T], the plan each tick up to now may use, -1 for none. age: int [T], its age in ticks.
        updates: ticks that updates observed. Those after now are not drawn.
    """
    image = canvas.blank(height, width, PAPER)
    unit, now = height / 60, len(visible)
    left, right, top, floor = 14 * unit, width - 14 * unit, 16 * unit, height - 12 * unit
    step, first = (right - left) / span, max(0, now - span)
    tallest = max(8, int(np.max(age[first:], initial=0)))
    canvas.capsule(image, (left, floor + unit), (right, floor + unit), 0.6 * unit, FAINT)
    for tick in range(first, now):
        x = left + (tick - first + max(0, span - now) + 0.5) * step
        old = age[tick] / tallest
        shade = FAINT if visible[tick] == NO_PLAN else tuple(f + old * (s - f) for f, s in zip(FRESH, STALE))
        half = max(1.2 * unit, (floor - top) * max(old, 0) / 2)
        canvas.box(image, (x, floor - half), (0.38 * step, half), shade, 1.2 * unit)
    for tick in updates:
        if first <= tick < now:
            x = left + (tick - first + max(0, span - now) + 0.5) * step
            canvas.capsule(image, (x, floor + 6 * unit), (x, floor + 6 * unit), 2.2 * unit, INK)
    newest = "no plan yet" if not now or visible[-1] == NO_PLAN else f"plan {visible[-1]}, {age[-1]} ticks old"
    canvas.write(image, newest, (left, 2 * unit), 10 * unit, INK)
    return canvas.pixels(image)
