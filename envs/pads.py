"""Coloured pads on the track, and the words that name them."""

import re
from collections.abc import Sequence

import numpy as np

COLOURS = ("red", "green", "blue", "yellow")
SLOTS_M = (-0.9, -0.3, 0.3, 0.9)

PATROLS = (
    "patrol {0}, {1}, {2}",
    "patrol {2} after {1} after {0}",
    "go to {0}, then {1}, then {2}, and start again",
    "keep visiting the pads {0}, {1} and {2} in this order",
)
"""Ways to say the cyclic order 0, 1, 2. The second names it backwards."""

VISITS = ("go to {0}", "drive to the {0} pad", "your place is on {0}", "leave for {0} now")
"""Ways to name one pad."""


def draw_pads(rng: np.random.Generator, jitter_m: float) -> np.ndarray:
    """Returns float64 [4]: where the pads lie in m, in the order of COLOURS; each slot has one, moved by up to the jitter."""
    return rng.permutation(np.asarray(SLOTS_M) + rng.uniform(-jitter_m, jitter_m, len(SLOTS_M)))


def say(template: str, colours: Sequence[int]) -> str:
    """Returns the template with the names of these colours filled in."""
    return template.format(*(COLOURS[colour] for colour in colours))


def recolour(words: str, names: Sequence[int]) -> str:
    """Returns the words with colour c called COLOURS[names[c]], for every c at once."""
    return re.sub("|".join(COLOURS), lambda match: COLOURS[names[COLOURS.index(match[0])]], words)
