"""Scripted references of the patrol: what exact control reaches when goals, or actions, come seldom or late.

Each reference acts on the true state, so it shows what a rate or a delay costs by itself. They are references and not bounds: a
planner that foresees the end of a visit may do better than a scripted hierarchy.
"""

from collections.abc import Callable, Sequence

import numpy as np

from envs import lqr
from envs.patrol import Patrol, Rules
from hierarchy.timeline import NO_PLAN, periodic, visible

Scripted = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""Actions [B] at a tick, from the states [tick + 1, B, 4] and the goals [tick + 1, B] in m, up to and including it."""


def hierarchy(ratio: int, latency: int, ticks: int) -> Scripted:
    """Acts every tick on a goal read every `ratio` ticks and known `latency` ticks later; until the first, stays at the start."""
    timeline = periodic(ticks, ratio, latency)
    plans = visible(timeline, np.arange(ticks))

    def act(tick: int, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        plan = plans[tick]
        return lqr.act(states[-1], states[0, :, 0] if plan == NO_PLAN else goals[timeline.observed[plan]])

    return act


def held(ratio: int, latency: int, ticks: int) -> Scripted:
    """Acts every `ratio` ticks and holds each action, with the controller that is best for that hold; `latency` is not used."""
    action = np.zeros(0)

    def act(tick: int, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        nonlocal action
        if tick % ratio == 0:
            action = lqr.act(states[-1], goals[-1], hold=ratio)
        return action

    return act


def chunks(ratio: int, latency: int, ticks: int) -> Scripted:
    """Every `ratio` ticks decides on as many actions, open loop on the plant's linear model; `latency` is not used."""
    actions: list[np.ndarray] = []

    def act(tick: int, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        if tick % ratio == 0:
            actions.clear()
            state = states[-1]
            for _ in range(ratio):
                actions.append(lqr.act(state, goals[-1]))
                state = lqr.predict(state, actions[-1])
        return actions[tick % ratio]

    return act


def late(ratio: int, latency: int, ticks: int) -> Scripted:
    """Acts every tick, each action `latency` ticks late and nothing done about it; 0 before the first. `ratio` is not used."""

    def act(tick: int, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        decided = tick - latency
        return lqr.act(states[decided], goals[decided]) if decided >= 0 else np.zeros(states.shape[1])

    return act


def compensated(ratio: int, latency: int, ticks: int) -> Scripted:
    """The same, each action decided for the state that the linear model predicts from the actions still on their way."""
    queue: list[np.ndarray] = []

    def act(tick: int, states: np.ndarray, goals: np.ndarray) -> np.ndarray:
        if tick == 0:
            queue[:] = [np.zeros(states.shape[1])] * latency
        state = states[-1]
        for action in queue:
            state = lqr.predict(state, action)
        queue.append(lqr.act(state, goals[-1]))
        return queue.pop(0)

    return act


def centre(ratio: int, latency: int, ticks: int) -> Scripted:
    """Goal-blind: stays in the middle of the track."""
    return lambda tick, states, goals: lqr.act(states[-1], 0.0)


def start(ratio: int, latency: int, ticks: int) -> Scripted:
    """Goal-blind: stays where it began."""
    return lambda tick, states, goals: lqr.act(states[-1], states[0, :, 0])


def sweep(ratio: int, latency: int, ticks: int) -> Scripted:
    """Goal-blind: goes to and fro over the pads, once in `ratio` ticks."""
    return lambda tick, states, goals: lqr.act(states[-1], -np.cos(2 * np.pi * tick / ratio))


def stops(ratio: int, latency: int, ticks: int) -> Scripted:
    """Goal-blind: goes from slot to slot, `ratio` ticks for each."""
    tour = (-0.3, -0.9, -0.3, 0.3, 0.9, 0.3)
    return lambda tick, states, goals: lqr.act(states[-1], tour[tick // ratio % len(tour)])


def random(ratio: int, latency: int, ticks: int) -> Scripted:
    """Uniform actions, independent at every tick."""
    rng = np.random.default_rng(0)
    return lambda tick, states, goals: rng.uniform(-1, 1, states.shape[1])


REFERENCES = {
    reference.__name__: reference
    for reference in (hierarchy, held, chunks, late, compensated, centre, start, sweep, stops, random)
}
BLIND = ("centre", "start", "sweep", "stops")


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
    ticks = tasks[0].rules.ticks
    act = REFERENCES[reference](ratio, latency, ticks)
    states, goals = np.zeros((ticks, len(tasks), 4)), np.zeros((ticks, len(tasks)))
    totals = np.zeros(len(tasks))
    for tick in range(ticks):
        states[tick] = [task.track.state for task in tasks]
        goals[tick] = [task.goal for task in tasks]
        for i, (task, action) in enumerate(zip(tasks, act(tick, states[: tick + 1], goals[: tick + 1]).tolist())):
            if not task.track.ended:
                totals[i] += task.advance(action)
    return totals
