"""What the models see: integers in fixed-size streams, never a timeline.

Axes: B rows, L controller tokens, S planner tokens, J plans, M targets, K atoms (scalars summed into one token). Without the
leading B these describe one row. A segment is one window of one episode; segments of a row do not see each other.
"""

from typing import NamedTuple

import numpy as np


class Stream(NamedTuple):
    """One stream of N tokens.

    value: int32 [..., N, K], Gato ids, PATCH for a patch of an image, ASKED for an action element without its value; EMPTY (-1)
        where a token has fewer atoms, and throughout padding.
    field: int32 [..., N, K], field ids of the schema; EMPTY where value is.
    tick: int32 [..., N], absolute ticks of the token's episode, below 0 in the prompt before it; 0 in padding.
    segment: int32 [..., N], 1, 2, ... within the row; 0 in padding. Tokens of one segment are contiguous and in order of time.
    lasting: bool [..., N], whether ticks after its own may attend to the token. False for action tokens alone.
    """

    value: np.ndarray
    field: np.ndarray
    tick: np.ndarray
    segment: np.ndarray
    lasting: np.ndarray


class Targets(NamedTuple):
    """A budget of M predictions from one stream.

    slot: int32 [..., M], the token whose output predicts. label: int32 [..., M], the Gato id to predict.
    limit: int32 [..., M], number of legal ids, counted from the first id of the head's range.
    weight: float32 [..., M]; 0 marks an unused entry.
    """

    slot: np.ndarray
    label: np.ndarray
    limit: np.ndarray
    weight: np.ndarray


class Patches(NamedTuple):
    """A budget of M patches of images in one stream.

    pixels: uint8 [..., M, patch * patch * channels], row by row. row, column: int32 [..., M], where a patch stands in its image,
        in 128 intervals of its height and width. slot: int32 [..., M], the token that it is; -1 unused.
    """

    pixels: np.ndarray
    row: np.ndarray
    column: np.ndarray
    slot: np.ndarray


class Above(NamedTuple):
    """A planner above the planner, and its link to the stream of N tokens below: the planner's, or that of the planner between.

    stream: its own. plan_slot: int32 [..., J], plan and age: int32 [..., N], as in `Batch`: the plans that updates below see, and
        which of them the update of each token below sees, how old; -1 for none.
    """

    stream: Stream
    plan_slot: np.ndarray
    plan: np.ndarray
    age: np.ndarray


class Batch(NamedTuple):
    """Packed rows.

    controller, planner: the streams of L and S tokens. In the controller's, a tick is its observation tokens (the separator last,
        or in the pooled token), then the tokens of all action elements but the last: the separator predicts element 0 and the
        token of element i predicts element i + 1.
    plan_slot: int32 [..., J], the last token of an update whose plan some tick of the row sees; -1 unused.
    plan: int32 [..., L], index into plan_slot of the plan that the token's tick sees; -1 for none.
    age: int32 [..., L], ticks since that plan's observation; -1 for none.
    continuous, discrete, text: action targets in the controller's stream, by their head: bounded, discrete, pieces of text.
    sub_goal: targets in the planner's stream (the controller's, where there is no planner).
    planner_text: the next piece, in the planner's stream: each piece that it follows predicts the one after it.
    patches: of the images in the planner's stream (the controller's, where there is no planner).
    following: the next tick's observation, in the controller's stream: a tick's last observation token predicts it. Labels are
        classes of the head of predictions (`Schema.predictions`).
    lifetime: in the planner's stream at its updates: the bin of LIVES in which the sub-goal ends. Where the episode ends first
        the label is so many bins higher: that of the ticks that it lasted at least.
    above: the planners above the planner, the nearest first; none where there are two rates.
    """

    controller: Stream
    planner: Stream
    plan_slot: np.ndarray
    plan: np.ndarray
    age: np.ndarray
    continuous: Targets
    discrete: Targets
    text: Targets
    sub_goal: Targets
    planner_text: Targets
    patches: Patches
    following: Targets
    lifetime: Targets
    above: tuple[Above, ...] = ()
