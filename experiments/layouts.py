"""How each task's ticks become tokens: who reads which field when, and what is the action."""

import dataclasses

from envs import baby_ai, captions, documents, patrol_camera
from hierarchy.layout import Angle, Bounded, Continuous, Discrete, Field, Image, Layout, Piece, Text


def motor(size: int) -> Field:
    """Returns the action field of `size` motors in [-1, 1]."""
    return Field("action", Bounded((-1.0,) * size, (1.0,) * size), size)


def number(name: str, size: int, bound: float, mu: float = 5.0, **how) -> Field:
    """Returns a field of continuous values up to about `bound`, finer near zero."""
    return Field(name, Continuous(mu, bound), size, **how)


def angle(name: str, size: int) -> Field:
    """Returns a field of joint angles. A joint without a stop turns on and on, and whole turns say nothing; the embedding's waves
    over the bins are the angle's own sine and cosine."""
    return Field(name, Angle(), size)


TRACK = Bounded((-1.2,) * 4, (1.2,) * 4)
SUB_GOAL = (Field("target", Discrete(4)), Field("sub_goal", Bounded((-1.2,), (1.2,), bins=64)))
HISTORY = {"frames": 4, "stride": 8}


def cart(**how) -> tuple[Field, ...]:
    """Returns the fields of cart and pole."""
    return number("position", 3, 2.0, **how), number("velocity", 2, 10.0, **how)


PATROL = Layout(
    "patrol",
    planner=(
        Field("instruction", Text()),
        Field("pads", TRACK, 4, spoken=True),
        Field("chime", Discrete(32), summed="episode"),
        *cart(**HISTORY),
    ),
    controller=cart(),
    action=motor(1),
    sub_goal=SUB_GOAL,
)
PATROL_CAMERA = dataclasses.replace(
    PATROL,
    name="patrol_camera",
    planner=(
        *(field for field in PATROL.planner if field.name != "pads"),
        Field("camera", Image(patrol_camera.HEIGHT, patrol_camera.WIDTH)),
    ),
)
GO_TO = dataclasses.replace(
    PATROL, name="go_to", planner=(Field("instruction", Text()), Field("pads", TRACK, 4, spoken=True), *cart(**HISTORY))
)


def body(name: str, motors: int, *fields: Field) -> Layout:
    """Returns the layout of a body whose planner and controller read the same numbers."""
    return Layout(name, planner=fields, controller=fields, action=motor(motors))


# Tasks that ask the same of one body, from other starts, for a smaller target or for a rarer reward, have one layout: what is
# learnt in one of them holds in the other. Standing and walking look alike to a walker, which is told neither: those are two.
CARTPOLE = body("cartpole", 1, number("position", 3, 2.0), number("velocity", 2, 20.0))
REACHER = body("reacher", 2, angle("position", 2), number("to_target", 2, 0.5), number("velocity", 2, 20.0))
FINGER = body(
    "finger_turn",
    2,
    number("position", 4, 2.0),
    number("velocity", 3, 20.0),
    number("touch", 2, 10.0),
    number("target_position", 2, 0.5),
    number("dist_to_target", 1, 0.5),
)
FISH = number("joint_angles", 7, 2.0), number("upright", 1, 1.0), number("velocity", 13, 20.0)
WALKER = number("orientations", 14, 1.0), number("height", 1, 2.0), number("velocity", 9, 20.0)
SUITE = {
    "cartpole_balance": CARTPOLE,
    "cartpole_balance_sparse": CARTPOLE,
    "cartpole_swingup": CARTPOLE,
    "cartpole_swingup_sparse": CARTPOLE,
    "pendulum_swingup": body("pendulum_swingup", 1, number("orientation", 2, 1.0), number("velocity", 1, 12.0)),
    "reacher_easy": REACHER,
    "reacher_hard": REACHER,
    "point_mass_easy": body("point_mass_easy", 2, number("position", 2, 0.5), number("velocity", 2, 2.0)),
    "ball_in_cup_catch": body("ball_in_cup_catch", 2, number("position", 4, 0.6), number("velocity", 4, 5.0)),
}
PLANNED = {
    "finger_turn_easy": FINGER,
    "finger_turn_hard": FINGER,
    "fish_upright": body("fish_upright", 5, *FISH),
    "fish_swim": body("fish_swim", 5, number("target", 3, 1.0), *FISH),
    "walker_stand": body("walker_stand", 6, *WALKER),
    "walker_walk": body("walker_walk", 6, *WALKER),
}


def meta_world_layout(name: str) -> Layout:
    """Returns the layout of a task of Meta-World."""
    return body(name, 4, number("hand", 4, 1.0), number("objects", 14, 1.0), number("goal", 3, 1.0))


def baby_ai_layout(name: str) -> Layout:
    """Returns the layout of a level of BabyAI. The words are the planner's alone."""
    cells = tuple(Field(symbol, Discrete(values), baby_ai.CELLS) for symbol, values in baby_ai.SYMBOLS.items())
    seen = (*cells, Field("direction", Discrete(4)))
    return Layout(name, planner=(Field("mission", Text()), *seen), controller=seen, action=Field("action", Discrete(7)))


BENCH = {
    "cue_recall": Layout(
        "cue_recall",
        planner=(Field("cue", Discrete(5)),),
        controller=(Field("go", Discrete(2)),),
        action=Field("action", Discrete(4)),
        sub_goal=Field("sub_goal", Discrete(4)),
    ),
    "switching_goal": Layout(
        "switching_goal",
        planner=(Field("goal", Discrete(4)),),
        controller=(Field("clock", Bounded((0.0,), (1.0,))),),
        action=Field("action", Discrete(4)),
        sub_goal=Field("sub_goal", Discrete(4)),
    ),
    "bursty_goal": Layout(
        "bursty_goal",
        planner=(Field("goal", Discrete(8)),),
        controller=(Field("reward", Discrete(2)),),
        action=Field("action", Discrete(8)),
        sub_goal=Field("sub_goal", Discrete(8)),
        predicted=(Field("reward", Discrete(2)),),
        lifetime=True,
    ),
    "disturbance_rejection": Layout(
        "disturbance_rejection",
        planner=(Field("goal", Bounded((-1.0,), (1.0,))),),
        controller=(number("position", 1, 4.0),),
        action=motor(1),
        sub_goal=Field("sub_goal", Bounded((-1.0,), (1.0,), bins=32)),
    ),
    "pointer_chain": Layout(
        "pointer_chain",
        planner=(
            Field("links", Discrete(18), 18, spoken=True),
            Field("start", Discrete(18)),
        ),
        controller=(Field("clock", Bounded((0.0,), (1.0,))),),
        action=Field("action", Discrete(18)),
        sub_goal=Field("sub_goal", Discrete(18)),
    ),
    "needle": Layout(
        "needle",
        planner=(
            Field("mark", Discrete(42)),
            Field("key", Discrete(41)),
            Field("value", Discrete(9)),
            Field("asked", Discrete(41)),
        ),
        controller=(Field("clock", Bounded((0.0,), (1.0,))),),
        action=Field("action", Discrete(9)),
        sub_goal=Field("sub_goal", Discrete(9)),
    ),
    "relayed_goal": Layout(
        "relayed_goal",
        planner=(Field("course", Discrete(4)), Field("turn", Discrete(4))),
        controller=(Field("clock", Bounded((0.0,), (1.0,))),),
        action=Field("action", Discrete(4)),
        sub_goal=Field("sub_goal", Discrete(4)),
    ),
}

TOLD = "instruction", "pads", "course"
"""What the slowest of three rates reads, and the planner below it does not."""


def three_rates(layout: Layout, *seen: Field) -> Layout:
    """Returns the layout with a planner above the planner, which reads what is `TOLD` in its place, and what is `seen` too."""
    told = tuple(field for field in layout.planner if field.name in TOLD)
    planner = tuple(field for field in layout.planner if field.name not in TOLD)
    return dataclasses.replace(layout, planner=planner, above=((*told, *seen),))


THREE_RATES = {
    "patrol": three_rates(PATROL, *cart()),
    "relayed_goal": three_rates(BENCH["relayed_goal"]),
}

SAID = Field("previous_action", Piece())
"""A tick of text says one piece; the planner reads every piece up to its update, the controller those of its window.

So a piece's time is its place in the text, which attention is told of. Several pieces of one tick would be told apart by their
numbers alone, and to find the piece before would have to be learnt.
"""
TEXT = Layout(
    "text",
    planner=(dataclasses.replace(SAID, every_tick=True),),
    controller=(SAID,),
    action=Field(documents.TEXT, Piece()),
    pooled=False,
)
CAPTIONS = dataclasses.replace(
    TEXT, name="captions", planner=(*TEXT.planner, Field("picture", Image(captions.SIDE, captions.SIDE)))
)
