"""Pictures with exact captions, as many as there are seeds: coloured shapes, and patrol scenes.

A scene is its attributes, name to word; picture and caption both follow from them, and `attributes` reads them off a caption
again. The picture is seen at tick 0, and the words begin at tick 1.
"""

import math
import re

import numpy as np

from envs import canvas
from envs.documents import words_episode
from envs.drawing import INK, PADS, PAPER, POLE
from envs.pads import COLOURS
from hierarchy.episode import Episode

SIDE = 64
PAINTS = dict(zip(COLOURS, PADS)) | {"black": INK}
SIZES = {"small": 6.0, "large": 11.0}
SHAPES = ("circle", "square", "ring")
RELATIONS = ("left of", "above")
CARTS = {"on the left": (-1.5, -0.7), "in the middle": (-0.3, 0.3), "on the right": (0.7, 1.5)}
LEANS = {"leans left": (-0.6, -0.3), "stands upright": (-0.05, 0.05), "leans right": (0.3, 0.6)}

TEMPLATES = {
    "shapes": (
        "a {size_a} {colour_a} {shape_a} {relation} a {size_b} {colour_b} {shape_b}",
        "two things: a {colour_a} {shape_a}, {size_a}, {relation} a {colour_b} {shape_b}, {size_b}",
    ),
    "patrol": (
        "the pads are {pad_1}, {pad_2}, {pad_3} and {pad_4}; the cart is {cart} and its pole {lean}",
        "a cart {cart} whose pole {lean}, above pads of {pad_1}, {pad_2}, {pad_3} and {pad_4}",
    ),
}
"""Pads are named from left to right; of two shapes the left or the upper one comes first."""

VALUES = {
    "size": tuple(SIZES),
    "colour": tuple(PAINTS),
    "shape": SHAPES,
    "relation": RELATIONS,
    "pad": COLOURS,
    "cart": tuple(CARTS),
    "lean": tuple(LEANS),
}


def draw_scene(rng: np.random.Generator) -> dict[str, str]:
    """Returns the attributes of a scene, "kind" and "template" among them."""
    kind = str(rng.choice(list(TEMPLATES)))
    template = TEMPLATES[kind][rng.integers(len(TEMPLATES[kind]))]
    scene = {name: str(rng.choice(VALUES[name.split("_")[0]])) for name in slots(template)}
    if kind == "patrol":
        scene |= {f"pad_{i}": COLOURS[colour] for i, colour in enumerate(rng.permutation(len(COLOURS)), start=1)}
    return {"kind": kind, "template": template} | scene


def slots(template: str) -> list[str]:
    """Returns the names of the attributes that a template states."""
    return re.findall(r"{(\w+)}", template)


def caption(scene: dict[str, str]) -> str:
    """Returns the words of a scene."""
    return scene["template"].format(**scene)


def attributes(words: str) -> dict[str, str]:
    """Returns the attributes that a caption states, name to word; {} if it is not one of the templates'."""
    for template in (template for group in TEMPLATES.values() for template in group):
        if match := re.fullmatch(_pattern(template), words.strip()):
            return match.groupdict()
    return {}


def _pattern(template: str) -> str:
    parts = re.split(r"{(\w+)}", template)
    named = [f"(?P<{name}>{'|'.join(VALUES[name.split('_')[0]])})" for name in parts[1::2]]
    return "".join(re.escape(text) + name for text, name in zip(parts[::2], [*named, ""]))


def picture(scene: dict[str, str], rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 [64, 64, 3]: the scene, with all that its caption does not state drawn at random."""
    image = canvas.blank(SIDE, SIDE, PAPER)
    (_shapes if scene["kind"] == "shapes" else _patrol)(image, scene, rng)
    return canvas.pixels(image)


def _shapes(image: np.ndarray, scene: dict[str, str], rng: np.random.Generator) -> None:
    for which, (low, high) in (("a", (13, 19)), ("b", (45, 51))):
        along, across = rng.uniform(low, high), rng.uniform(16, 48)
        centre = (along, across) if scene["relation"] == "left of" else (across, along)
        radius, colour = SIZES[scene[f"size_{which}"]], PAINTS[scene[f"colour_{which}"]]
        if scene[f"shape_{which}"] == "square":
            canvas.box(image, centre, (radius, radius), colour)
            continue
        canvas.capsule(image, centre, centre, radius, colour)
        if scene[f"shape_{which}"] == "ring":
            canvas.capsule(image, centre, centre, 0.55 * radius, PAPER)


def _patrol(image: np.ndarray, scene: dict[str, str], rng: np.random.Generator) -> None:
    rail, metre = 50, 16
    for i in range(1, 5):
        x = SIDE / 2 + metre * (i - 2.5 + rng.uniform(-0.12, 0.12))
        canvas.box(image, (x, rail + 8), (6, 3), PAINTS[scene[f"pad_{i}"]], 3)
    cart = SIDE / 2 + metre * rng.uniform(*CARTS[scene["cart"]])
    theta = rng.uniform(*LEANS[scene["lean"]])
    canvas.box(image, (cart, rail), (5, 3), INK, 1.5)
    canvas.capsule(image, (cart, rail), (cart + 28 * math.sin(theta), rail - 28 * math.cos(theta)), 1.6, POLE)


def episode(seed: int) -> Episode:
    """Returns the captioned picture of a seed; the scene's attributes are its facts."""
    rng = np.random.default_rng(seed)
    scene = draw_scene(rng)
    return words_episode("captions", caption(scene), 1, seed, {"picture": picture(scene, rng)}, scene)
