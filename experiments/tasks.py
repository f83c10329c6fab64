"""The tasks by name: a world, its expert, and the layout that turns its ticks into tokens, put together here alone."""

import dataclasses
import math
from collections.abc import Callable

import dm_env
import numpy as np

from envs import (
    baby_ai,
    captions,
    cue_recall,
    disturbance_rejection,
    documents,
    meta_world,
    patrol_camera,
    patrol_experts,
    suite,
    suite_experts,
    suite_planning,
    suite_tasks,
    switching_goal,
)
from envs.cue_recall import CueRecall
from envs.disturbance_rejection import DisturbanceRejection
from envs.go_to import GoTo
from envs.noise import Noise
from envs.patrol import Patrol
from envs.patrol_camera import PatrolCamera
from envs.recording import Expert
from envs.switching_goal import SwitchingGoal
from hierarchy.episode import Episode
from hierarchy.layout import Bounded, Continuous, Discrete, Field, Image, Layout, Piece, Schema, Text, ahead, single_rate


@dataclasses.dataclass(frozen=True)
class Task:
    """make: an environment. expert: (whether noisy) to a fresh expert. ticks: of its longest episode. augment: a random exact
    symmetry of an episode, or None. kept: least return of an episode that is worth imitating, where the expert can fail (a
    scripted label is right whatever happened). cost_s: CPU seconds that recording an episode takes, about."""

    make: Callable[[], dm_env.Environment]
    expert: Callable[[bool], Expert]
    layout: Layout
    ticks: int
    augment: Callable[[Episode, np.random.Generator], Episode] | None = None
    kept: float = -np.inf
    cost_s: float = 0.1


SUCCESS = 0.8
"""Share of the expert's mean return that an episode must reach to be imitated: Gato's (arXiv 2205.06175, section 4.1)."""


@dataclasses.dataclass(frozen=True)
class Collection:
    """Episodes that are made and not acted: documents, captioned pictures.

    episode: number to episode. count: how many there are, None for any number. origin: what they are made from.
    """

    name: str
    episode: Callable[[int], Episode]
    count: Callable[[], int | None]
    layout: Layout
    origin: Callable[[], str]
    licence: str
    tick_s: float
    augment: None = None

    def make(self) -> dm_env.Environment:
        """Raises ValueError: nothing can be acted in here."""
        raise ValueError(f"{self.name!r} has no environment: `python -m experiments.evaluate_text` measures it")


def motor(size: int) -> Field:
    """Returns the action field of `size` motors in [-1, 1]."""
    return Field("action", Bounded((-1.0,) * size, (1.0,) * size), size)


def number(name: str, size: int, bound: float, mu: float = 5.0, **how) -> Field:
    """Returns a field of continuous values up to about `bound`, finer near zero."""
    return Field(name, Continuous(mu, bound), size, **how)


def angle(name: str, size: int) -> Field:
    """Returns a field of joint angles, a turn to either side; next to linear, so that the embedding's waves over its bins are the
    angle's own sine and cosine."""
    return Field(name, Continuous(0.01, math.tau), size)


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


REACHER = angle("position", 2), number("to_target", 2, 0.5), number("velocity", 2, 20.0)
FINGER = (
    number("position", 4, 2.0),
    number("velocity", 3, 20.0),
    number("touch", 2, 10.0),
    number("target_position", 2, 0.5),
    number("dist_to_target", 1, 0.5),
)
FISH = number("joint_angles", 7, 2.0), number("upright", 1, 1.0), number("velocity", 13, 20.0)
WALKER = number("orientations", 14, 1.0), number("height", 1, 2.0), number("velocity", 9, 20.0)
SUITE = {
    "cartpole_balance": body("cartpole_balance", 1, *cart()),
    "cartpole_swingup": body("cartpole_swingup", 1, *cart()),
    "pendulum_swingup": body("pendulum_swingup", 1, number("orientation", 2, 1.0), number("velocity", 1, 12.0)),
    "reacher_easy": body("reacher_easy", 2, *REACHER),
    "reacher_hard": body("reacher_hard", 2, *REACHER),
    "point_mass_easy": body("point_mass_easy", 2, number("position", 2, 0.5), number("velocity", 2, 2.0)),
}
PLANNED = {
    "ball_in_cup_catch": body("ball_in_cup_catch", 2, number("position", 4, 0.5), number("velocity", 4, 5.0)),
    "finger_turn_easy": body("finger_turn_easy", 2, *FINGER),
    "finger_turn_hard": body("finger_turn_hard", 2, *FINGER),
    "fish_upright": body("fish_upright", 5, *FISH),
    "fish_swim": body("fish_swim", 5, number("target", 3, 1.0), *FISH),
    "walker_stand": body("walker_stand", 6, *WALKER),
    "walker_walk": body("walker_walk", 6, *WALKER),
}


# Most of an episode is rest at the goal; what follows a burst shows the way there. A regulator has no way back from far off.
BURSTS = {
    "cartpole_balance": 0.0,
    "cartpole_swingup": 0.0,
    "pendulum_swingup": 0.01,
    "reacher_easy": 0.03,
    "reacher_hard": 0.03,
    "point_mass_easy": 0.01,
}


def suite_task(name: str) -> Task:
    """Returns a small body of the DeepMind Control Suite, 1000 ticks an episode as there."""

    def expert(noisy: bool) -> Expert:
        return suite_experts.SuiteExpert(Noise(bursts=BURSTS[name]) if noisy else None)

    return Task(lambda: suite.make(name), expert, SUITE[name], suite.SUITE_TICKS)


def planned_task(name: str) -> Task:
    """Returns a body of the DeepMind Control Suite whose expert plans."""
    planned = suite_planning.PLANNED[name]
    return Task(
        lambda: suite_tasks.make(name),
        suite_planning.PlanningExpert,
        PLANNED[name],
        suite_tasks.SETTINGS[name].ticks,
        kept=SUCCESS * planned.mean_return,
        cost_s=planned.cost_s,
    )


def meta_world_task(name: str) -> Task:
    """Returns a task of Meta-World; its return is 1 for success."""
    fields = number("hand", 4, 1.0), number("objects", 14, 1.0), number("goal", 3, 1.0)
    layout = body(name, 4, *fields)
    return Task(lambda: meta_world.make(name), meta_world.ScriptedPolicy, layout, meta_world.TICKS, kept=1.0, cost_s=1.0)


def baby_ai_task(name: str) -> Task:
    """Returns a level of BabyAI; its return is 1 for success. The words are the planner's alone."""
    cells = tuple(Field(symbol, Discrete(values), baby_ai.CELLS) for symbol, values in baby_ai.SYMBOLS.items())
    seen = (*cells, Field("direction", Discrete(4)))
    layout = Layout(name, planner=(Field("mission", Text()), *seen), controller=seen, action=Field("action", Discrete(7)))
    return Task(lambda: baby_ai.make(name), baby_ai.Bot, layout, baby_ai.LEVELS[name][1], kept=1.0)


def regulator(noisy: bool) -> Expert:
    """Returns the patrol's expert."""
    return patrol_experts.Regulator(patrol_experts.NOISY if noisy else patrol_experts.CLEAN)


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
    "disturbance_rejection": Layout(
        "disturbance_rejection",
        planner=(Field("goal", Bounded((-1.0,), (1.0,))),),
        controller=(number("position", 1, 4.0),),
        action=motor(1),
        sub_goal=Field("sub_goal", Bounded((-1.0,), (1.0,), bins=32)),
    ),
}


def recalled(noisy: bool) -> Expert:
    """Returns the expert of cue recall, which no noise would carry anywhere."""
    return cue_recall.Expert()


def switched(noisy: bool) -> Expert:
    """Returns the expert of the switching goal, which no noise would carry anywhere."""
    return switching_goal.Expert()


def pushed(noisy: bool) -> Expert:
    """Returns the expert of disturbance rejection."""
    return disturbance_rejection.Expert(Noise(most=0.1) if noisy else None)


PIECES = 8
SAID = Field("previous_action", Piece(), PIECES)
TEXT = Layout(
    "text",
    planner=(dataclasses.replace(SAID, every_tick=True),),
    controller=(SAID,),
    action=Field(documents.TEXT, Piece(), PIECES),
    pooled=False,
)
CAPTIONS = dataclasses.replace(
    TEXT, name="captions", planner=(*TEXT.planner, Field("picture", Image(captions.SIDE, captions.SIDE)))
)

COLLECTIONS = {
    "text": Collection(
        "text",
        documents.episode,
        lambda: len(documents.documents()),
        TEXT,
        documents.origin,
        documents.LICENCE,
        documents.TICK_S,
    ),
    "captions": Collection(
        "captions", captions.episode, lambda: None, CAPTIONS, lambda: "envs.captions", "Apache-2.0", documents.TICK_S
    ),
}
"""Text says `PIECES` pieces a tick; the planner reads every piece up to its update, the controller those of its window."""

TASKS = {
    "patrol": Task(Patrol, regulator, PATROL, 256, patrol_experts.augment),
    "patrol_camera": Task(PatrolCamera, regulator, PATROL_CAMERA, 256, patrol_camera.augment),
    "go_to": Task(GoTo, regulator, GO_TO, 256, patrol_experts.augment),
    "cue_recall": Task(CueRecall, recalled, BENCH["cue_recall"], cue_recall.Rules().ticks),
    "switching_goal": Task(SwitchingGoal, switched, BENCH["switching_goal"], switching_goal.Rules().ticks),
    "disturbance_rejection": Task(
        DisturbanceRejection, pushed, BENCH["disturbance_rejection"], disturbance_rejection.Rules().ticks
    ),
}
TASKS |= {name: suite_task(name) for name in SUITE} | {name: planned_task(name) for name in PLANNED}
TASKS |= {name: meta_world_task(name) for name in meta_world.NAMES} | {name: baby_ai_task(name) for name in baby_ai.LEVELS}


def find(name: str) -> Task | Collection:
    """Returns the task, or the collection of episodes, of that name. Raises ValueError that lists the names."""
    known = TASKS | COLLECTIONS
    if name not in known:
        raise ValueError(f"no task {name!r}: there are {', '.join(known)}")
    return known[name]


def layouts_of(name: str, agent: str, lookahead: tuple[int, ...] = ()) -> dict[int, Layout]:
    """Returns a task's layouts for an agent: one, or one for each of the ticks that the agent looks ahead, by these.

    `two_rate`; `controller_only`, the planner's fields left out; `single_rate`, the planner's fields read at every tick;
    `chunked`, the same, but a reading decodes the actions of so many ticks; `late_action`, the same, but of so many ticks later.

    Raises:
        ValueError: there is no such task or agent, or nothing to look ahead to.
    """
    layout = find(name).layout
    match agent:
        case "two_rate":
            return {0: layout}
        case "controller_only":
            return {0: dataclasses.replace(layout, planner=(), sub_goal=())}
        case "single_rate":
            return {0: single_rate(layout)}
        case "chunked" | "late_action" if not lookahead:
            raise ValueError(f"{agent} looks ahead: give the ticks")
        case "chunked":
            return {ticks: ahead(layout, 0, ticks) for ticks in lookahead}
        case "late_action":
            return {ticks: ahead(layout, ticks, 1) for ticks in lookahead}
    raise ValueError(
        f"no agent {agent!r} can be trained: there are two_rate, single_rate, controller_only, chunked and late_action"
    )


def schema_of(names: tuple[str, ...], text_pieces: int, agent: str, lookahead: tuple[int, ...] = ()) -> Schema:
    """Returns the schema of the tasks for an agent, see `layouts_of`."""
    return Schema(tuple(layout for name in names for layout in layouts_of(name, agent, lookahead).values()), text_pieces)
