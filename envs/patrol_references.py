"""Scripted references of the patrol: what exact control reaches when goals, or actions, come seldom or late.

Each reference acts on the true state, so it shows what a rate or a delay costs by itself. They are references and not bounds: a
planner that foresees the end of a visit may do better than a scripted hierarchy.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from envs import lqr
from envs.patrol import Patrol, Rules
from hierarchy.timeline import NO_PLAN, periodic, visible


class Past(NamedTuple):
    """What has been until now: states [tick + 1, B, 4], goals [tick + 1, B] in m, and pads [B, 4] in m."""

    tick: int
    states: np.ndarray
    goals: np.ndarray
    pads: np.ndarray


Scripted = Callable[[Past], np.ndarray]
"""Actions [B] at the tick."""


def hierarchy(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Acts every tick on a goal read every `ratio` ticks and known `latency` ticks later; until the first, stays at the start."""
    timeline = periodic(rules.ticks, ratio, latency)
    plans = visible(timeline, np.arange(rules.ticks))

    def act(past: Past) -> np.ndarray:
        plan = plans[past.tick]
        return lqr.act(past.states[-1], past.states[0, :, 0] if plan == NO_PLAN else past.goals[timeline.observed[plan]])

    return act


def held(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Acts every `ratio` ticks and holds each action, with the controller that is best for that hold; `latency` is not used."""
    action = np.zeros(0)

    def act(past: Past) -> np.ndarray:
        nonlocal action
        if past.tick % ratio == 0:
            action = lqr.act(past.states[-1], past.goals[-1], hold=ratio)
        return action

    return act


def chunks(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Every `ratio` ticks decides on as many actions, open loop on the plant's linear model; `latency` is not used."""
    actions: list[np.ndarray] = []

    def act(past: Past) -> np.ndarray:
        if past.tick % ratio == 0:
            actions.clear()
            state = past.states[-1]
            for _ in range(ratio):
                actions.append(lqr.act(state, past.goals[-1]))
                state = lqr.predict(state, actions[-1])
        return actions[past.tick % ratio]

    return act


def late(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Acts every tick, each action `latency` ticks late and nothing done about it; 0 before the first. `ratio` is not used."""

    def act(past: Past) -> np.ndarray:
        decided = past.tick - latency
        return lqr.act(past.states[decided], past.goals[decided]) if decided >= 0 else np.zeros(past.states.shape[1])

    return act


def compensated(ratio: int, latency: int, rules: Rules) -> Scripted:
    """The same, each action decided for the state that the linear model predicts from the actions still on their way."""
    queue: list[np.ndarray] = []

    def act(past: Past) -> np.ndarray:
        if past.tick == 0:
            queue[:] = [np.zeros(past.states.shape[1])] * latency
        state = past.states[-1]
        for action in queue:
            state = lqr.predict(state, action)
        queue.append(lqr.act(state, past.goals[-1]))
        return queue.pop(0)

    return act


def centre(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Goal-blind: stays in the middle of the track."""
    return lambda past: lqr.act(past.states[-1], 0.0)


def start(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Goal-blind: stays where it began."""
    return lambda past: lqr.act(past.states[-1], past.states[0, :, 0])


def sweep(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Goal-blind: goes to and fro over the pads, once in `ratio` ticks."""
    return lambda past: lqr.act(past.states[-1], -np.cos(2 * np.pi * past.tick / ratio))


def stops(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Goal-blind: goes from slot to slot, `ratio` ticks for each."""
    tour = (-0.3, -0.9, -0.3, 0.3, 0.9, 0.3)
    return lambda past: lqr.act(past.states[-1], tour[past.tick // ratio % len(tour)])


def search(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Goal-blind but clever: stays on the nearest pad that may be the target and rules it out if no visit is counted; after a
    visit all others may be."""
    aimed, stayed, possible = np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4), bool)

    def act(past: Past) -> np.ndarray:
        nonlocal aimed, stayed, possible
        x, every = past.states[-1, :, 0], np.arange(len(past.pads))
        if past.tick == 0:
            possible, stayed = np.ones(past.pads.shape, bool), np.zeros(len(every), int)
            aimed = np.argmin(np.abs(past.pads - x[:, None]), axis=1)
        else:
            counted = past.goals[-1] != past.goals[-2]
            stayed = np.where(np.abs(x - past.pads[every, aimed]) < rules.zone, stayed + 1, 0)
            done = counted | (stayed > rules.dwell)
            possible[counted] = True
            possible[every[done], aimed[done]] = False
            possible[~possible.any(axis=1)] = True
            nearest = np.argmin(np.abs(past.pads - x[:, None]) + 9.0 * ~possible, axis=1)
            aimed, stayed = np.where(done, nearest, aimed), np.where(done, 0, stayed)
        return lqr.act(past.states[-1], past.pads[every, aimed])

    return act


def random(ratio: int, latency: int, rules: Rules) -> Scripted:
    """Uniform actions, independent at every tick."""
    rng = np.random.default_rng(0)
    return lambda past: rng.uniform(-1, 1, past.states.shape[1])


REFERENCES = {
    reference.__name__: reference
    for reference in (hierarchy, held, chunks, late, compensated, centre, start, sweep, stops, search, random)
}
BLIND = ("centre", "start", "sweep", "stops", "search")


def scripted_returns(reference: str, ratio: int, latency: int, seeds: Sequence[int], rules: Rules | None = None) -> np.ndarray:
    """Returns float64 [len(seeds)]: the return of a reference in the episode of each seed.

    Raises:
        ValueError: there is no such reference, or its ratio or latency is out of range.
    """
    if reference not in REFERENCES:
        raise ValueError(f"no reference {reference!r}; there are {', '.join(REFERENCES)}")
    if ratio < 1 or latency < 0:
        raise ValueError(f"ratio {ratio} is at least 1 and latency {latency} at least 0")
    tasks = [Patrol(rules, seed) for seed in seeds]
    ticks, act = tasks[0].rules.ticks, REFERENCES[reference](ratio, latency, tasks[0].rules)
    states, goals = np.zeros((ticks, len(tasks), 4)), np.zeros((ticks, len(tasks)))
    totals, places = np.zeros(len(tasks)), np.array([task.track.places for task in tasks])
    for tick in range(ticks):
        states[tick] = [task.track.state for task in tasks]
        goals[tick] = [task.goal for task in tasks]
        for i, (task, action) in enumerate(zip(tasks, act(Past(tick, states[: tick + 1], goals[: tick + 1], places)).tolist())):
            if not task.track.ended:
                totals[i] += task.advance(action)
    return totals
