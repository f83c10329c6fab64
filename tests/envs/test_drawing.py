import numpy as np
import pytest

from envs import canvas, drawing
from envs.go_to import GoTo
from envs.patrol import Patrol
from hierarchy.timeline import age, periodic, visible


@pytest.mark.parametrize("task", [Patrol(seed=1), GoTo(seed=1)])
@pytest.mark.parametrize("size", [(270, 480), (210, 480), (96, 128)])
def test_a_picture_has_the_size_that_is_asked_for(task, size):
    picture = task.picture(*size)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 5


def middle(image: np.ndarray, colour: canvas.Colour) -> float:
    """Column of the pixels of about this colour, averaged."""
    near = np.abs(image / 255 - np.array(colour)).max(axis=2) < 0.03
    return float(np.mean(np.nonzero(near)[1]))


def test_cart_and_pole_are_drawn_where_they_are():
    task = Patrol(seed=1)
    before = task.picture(270, 480)[60:]
    for _ in range(12):
        task.advance(0.5)
    after = task.picture(270, 480)[60:]
    assert task.track.state.x > 0
    assert task.track.state.theta < -0.1
    assert middle(after, drawing.INK) > middle(before, drawing.INK) + 2
    assert middle(after, drawing.POLE) < middle(after, drawing.INK) - 5


def test_the_pad_fills_as_the_cart_stays():
    task = Patrol(seed=1)
    task.track.pad = task.target
    few, many = (drawing.scene(270, 480, task.track, task.target, done, "go") for done in (0.2, 0.9))
    full = np.array(drawing.PADS[task.target])
    count = [np.sum(np.abs(image / 255 - full).max(axis=2) < 0.02) for image in (few, many)]
    assert count[1] > 2 * count[0]


def test_the_strip_shows_saw_teeth_of_age():
    timeline, ticks = periodic(40, 8, 4), np.arange(40)
    image = drawing.strip(60, 480, visible(timeline, ticks), age(timeline, ticks), timeline.observed, span=40)
    inked = np.abs(image[15:47] / 255 - np.array(drawing.PAPER)).max(axis=2) > 0.05
    height = inked.sum(axis=0)[14:466]
    bars = [height[int((tick + 0.5) * 452 / 40)] for tick in ticks]
    assert max(bars[:4]) < min(bars[4:])
    rises = np.sign(np.diff(bars[4:]))
    assert np.array_equal(rises, np.sign(np.diff(age(timeline, ticks)[4:])))


def test_a_strip_before_the_first_tick_is_empty_and_does_not_fail():
    none = np.zeros(0, np.int32)
    assert drawing.strip(60, 480, none, none, [0]).shape == (60, 480, 3)


def test_shapes_are_antialiased_and_clipped_to_the_canvas():
    image = canvas.blank(20, 20, (0.0, 0.0, 0.0))
    canvas.capsule(image, (10, 10), (10, 10), 5, (1.0, 1.0, 1.0))
    assert image[..., 0].sum() == pytest.approx(np.pi * 25, rel=0.02)
    canvas.box(image, (-100, 5), (3, 3), (1.0, 0.0, 0.0))
    canvas.box(image, (19, 19), (30, 4), (1.0, 0.0, 0.0))
    canvas.write(image, "beyond", (18, 18), 12, (1.0, 0.0, 0.0))
    assert image.shape == (20, 20, 3)
    assert image.max() <= 1.0
