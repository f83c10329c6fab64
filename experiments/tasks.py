"""The tasks by name: a world, its expert, and the layout that turns its ticks into tokens, put together here alone."""

import dataclasses
from collections.abc import Callable

import dm_env
import numpy as np

from envs import (
    baby_ai,
    bursty_goal,
    captions,
    cue_recall,
    disturbance_rejection,
    documents,
    meta_world,
    needle,
    patrol_camera,
    patrol_experts,
    pointer_chain,
    relayed_goal,
    suite,
    suite_experts,
    suite_planning,
    suite_tasks,
    switching_goal,
)
from envs.bursty_goal import BurstyGoal
from envs.cue_recall import CueRecall
from envs.disturbance_rejection import DisturbanceRejection
from envs.go_to import GoTo
from envs.needle import Needle
from envs.noise import Noise
from envs.patrol import Patrol
from envs.patrol_camera import PatrolCamera
from envs.pointer_chain import PointerChain
from envs.recording import Expert
from envs.relayed_goal import RelayedGoal
from envs.switching_goal import SwitchingGoal
from experiments import layouts
from hierarchy.episode import Episode
from hierarchy.layout import Layout, Schema, ahead, single_rate


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


# Most of an episode is rest at the goal, and a ball once caught stays; what follows a burst shows the way there. A regulator has
# no way back from far off.
SWING_UP = Noise(clean=0.0, most=0.6, bursts=0.01, burst_ticks=(5, 40), pauses=0.3)
NOISE = {
    "cartpole_balance": Noise(),
    "cartpole_balance_sparse": Noise(),
    "cartpole_swingup": SWING_UP,
    "cartpole_swingup_sparse": SWING_UP,
    "pendulum_swingup": Noise(clean=0.0, bursts=0.01, pauses=0.3),
    "reacher_easy": Noise(clean=0.0, bursts=0.03, pauses=0.5),
    "reacher_hard": Noise(clean=0.0, bursts=0.03, pauses=0.5),
    "point_mass_easy": Noise(clean=0.0, bursts=0.02, pauses=0.5),
    "ball_in_cup_catch": Noise(clean=0.0, bursts=0.06, pauses=0.3),
}


def suite_task(name: str) -> Task:
    """Returns a body of the DeepMind Control Suite whose expert is scripted: 1000 ticks an episode as there, or 250 of two."""

    def expert(noisy: bool) -> Expert:
        return suite_experts.SuiteExpert(NOISE[name] if noisy else None)

    ticks = suite.SUITE_TICKS if name in suite.BODIES else suite_tasks.SETTINGS[name].ticks
    return Task(lambda: suite_experts.make(name), expert, layouts.SUITE[name], ticks)


def planned_task(name: str) -> Task:
    """Returns a body of the DeepMind Control Suite whose expert plans."""
    planned = suite_planning.PLANNED[name]
    return Task(
        lambda: suite_tasks.make(name),
        suite_planning.PlanningExpert,
        layouts.PLANNED[name],
        suite_tasks.SETTINGS[name].ticks,
        kept=SUCCESS * planned.mean_return,
        cost_s=planned.cost_s,
    )


def meta_world_task(name: str) -> Task:
    """Returns a task of Meta-World; its return is 1 for success."""
    layout = layouts.meta_world_layout(name)
    return Task(lambda: meta_world.make(name), meta_world.ScriptedPolicy, layout, meta_world.TICKS, kept=1.0, cost_s=1.0)


def baby_ai_task(name: str) -> Task:
    """Returns a level of BabyAI; its return is 1 for success."""
    return Task(lambda: baby_ai.make(name), baby_ai.Bot, layouts.baby_ai_layout(name), baby_ai.LEVELS[name][1], kept=1.0)


def regulator(noisy: bool) -> Expert:
    """Returns the patrol's expert."""
    return patrol_experts.Regulator(patrol_experts.NOISY if noisy else patrol_experts.CLEAN)


def recalled(noisy: bool) -> Expert:
    """Returns the expert of cue recall, which no noise would carry anywhere."""
    return cue_recall.Expert()


def switched(noisy: bool) -> Expert:
    """Returns the expert of the switching goal, which no noise would carry anywhere."""
    return switching_goal.Expert()


def relayed(noisy: bool) -> Expert:
    """Returns the expert of the relayed goal, which no noise would carry anywhere."""
    return relayed_goal.Expert()


def followed(noisy: bool) -> Expert:
    """Returns the expert of the pointer chain, which no noise would carry anywhere."""
    return pointer_chain.Expert()


def remembered(noisy: bool) -> Expert:
    """Returns the expert of the trajectory needle, which no noise would carry anywhere."""
    return needle.Expert()


def read_seldom(noisy: bool) -> Expert:
    """Returns the expert of the bursty goal: noisy, it sees the goal as seldom and as irregularly as a planner may."""
    return bursty_goal.Reader(ratios=(2, 4, 8, 16, 32), latencies=(0, 2)) if noisy else bursty_goal.Reader()


def pushed(noisy: bool) -> Expert:
    """Returns the expert of disturbance rejection."""
    return disturbance_rejection.Expert(Noise(most=0.1) if noisy else None)


COLLECTIONS = {
    "text": Collection(
        "text",
        documents.episode,
        lambda: len(documents.passages()),
        layouts.TEXT,
        documents.origin,
        documents.LICENCE,
        documents.TICK_S,
    ),
    "captions": Collection(
        "captions", captions.episode, lambda: None, layouts.CAPTIONS, lambda: "envs.captions", "Apache-2.0", documents.TICK_S
    ),
}

TASKS = {
    "patrol": Task(Patrol, regulator, layouts.PATROL, 256, patrol_experts.augment),
    "patrol_camera": Task(PatrolCamera, regulator, layouts.PATROL_CAMERA, 256, patrol_camera.augment),
    "go_to": Task(GoTo, regulator, layouts.GO_TO, 256, patrol_experts.augment),
    "cue_recall": Task(CueRecall, recalled, layouts.BENCH["cue_recall"], cue_recall.Rules().ticks),
    "switching_goal": Task(SwitchingGoal, switched, layouts.BENCH["switching_goal"], switching_goal.Rules().ticks),
    "bursty_goal": Task(BurstyGoal, read_seldom, layouts.BENCH["bursty_goal"], bursty_goal.Rules().ticks),
    "disturbance_rejection": Task(
        DisturbanceRejection, pushed, layouts.BENCH["disturbance_rejection"], disturbance_rejection.Rules().ticks
    ),
    "pointer_chain": Task(PointerChain, followed, layouts.BENCH["pointer_chain"], pointer_chain.Rules().ticks),
    "needle": Task(Needle, remembered, layouts.BENCH["needle"], needle.Rules().whole),
    "relayed_goal": Task(RelayedGoal, relayed, layouts.BENCH["relayed_goal"], relayed_goal.Rules().ticks),
}
TASKS |= {name: suite_task(name) for name in layouts.SUITE} | {name: planned_task(name) for name in layouts.PLANNED}
TASKS |= {name: meta_world_task(name) for name in meta_world.NAMES} | {name: baby_ai_task(name) for name in baby_ai.LEVELS}


def find(name: str) -> Task | Collection:
    """Returns the task, or the collection of episodes, of that name. Raises ValueError that lists the names."""
    known = TASKS | COLLECTIONS
    if name not in known:
        raise ValueError(f"no task {name!r}: there are {', '.join(known)}")
    return known[name]


def layouts_of(name: str, agent: str, lookahead: tuple[int, ...] = ()) -> dict[int, Layout]:
    """Returns a task's layouts for an agent: one, or one for each of the ticks that the agent looks ahead, by these.

    `two_rate`; `three_rate`, with a planner above the planner that is told what the task is in its place; `controller_only`, the
    planner's fields left out; `single_rate`, the planner's fields read at every tick; `chunked`, the same, but a reading decodes
    the actions of so many ticks; `late_action`, the same, but of so many ticks later.

    Raises:
        ValueError: there is no such task or agent, or nothing to look ahead to.
    """
    layout = find(name).layout
    match agent:
        case "two_rate":
            return {0: layout}
        case "three_rate" if name not in layouts.THREE_RATES:
            raise ValueError(f"{name!r} has no layout of three rates: there are {', '.join(layouts.THREE_RATES)}")
        case "three_rate":
            return {0: layouts.THREE_RATES[name]}
        case "controller_only":
            return {0: dataclasses.replace(layout, planner=(), sub_goal=(), lifetime=False)}
        case "single_rate":
            return {0: single_rate(layout)}
        case "chunked" | "late_action" if not lookahead:
            raise ValueError(f"{agent} looks ahead: give the ticks")
        case "chunked":
            return {ticks: ahead(layout, 0, ticks) for ticks in lookahead}
        case "late_action":
            return {ticks: ahead(layout, ticks, 1) for ticks in lookahead}
    raise ValueError(
        f"no agent {agent!r} can be trained: there are two_rate, three_rate, single_rate, controller_only, chunked and "
        "late_action"
    )


def schema_of(
    names: tuple[str, ...], text_pieces: int, agent: str, lookahead: tuple[int, ...] = (), at_once: bool = False
) -> Schema:
    """Returns the schema of the tasks for an agent, see `layouts_of`; tasks may share one.

    at_once: their actions are decoded in one pass.
    """
    layouts = dict.fromkeys(layout for name in names for layout in layouts_of(name, agent, lookahead).values())
    return Schema(tuple(dataclasses.replace(layout, at_once=layout.at_once or at_once) for layout in layouts), text_pieces)
