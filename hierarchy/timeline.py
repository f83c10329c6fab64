"""Which plan is visible at which tick: the one place that knows ratio, latency and phase.

    ratio 4, latency 2, first plan not waited for

    tick        0   1   2   3   4   5   6   7   8   9  10  11
    planner    o0              o1              o2                  (update j observes tick 4j)
    visible     -   -   0   0   0   0   1   1   1   1   2   2
    age         -   -   2   3   4   5   2   3   4   5   2   3

`draw_timeline` prints this picture of any timeline. Ticks are episode-relative and are the only unit of time here;
`ticks_from_seconds` is the only way in from seconds.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

NO_PLAN = -1


class Timeline(NamedTuple):
    """The updates of one episode, in order.

    observed: int32 [J], strictly increasing; the tick whose observation update j reads (and every earlier one).
    ready: int32 [J]; the first tick that may use the plan of update j. A plan is never ready before its tick, but for
        update 0 when the first plan is waited for.
    """

    observed: np.ndarray
    ready: np.ndarray


def periodic(
    ticks: int,
    ratio: int,
    latency: int = 0,
    phase: int = 0,
    *,
    wait_for_first: bool = False,
    workers: int | None = None,
) -> Timeline:
    """Returns the timeline of a planner that runs every `ratio` ticks and whose plans take `latency` ticks.

    Update 0 observes tick 0 and update j >= 1 observes `j * ratio - phase`. A latency above the ratio means several
    updates in flight at once, which `workers` planners can carry only while `latency <= workers * ratio`.

    Args:
        ticks: length of the episode; updates that would observe a later tick are left out.
        ratio: ticks from one update to the next, at least 1.
        latency: ticks from an update's observation to the first tick that may use its plan.
        phase: ticks by which all updates but the first come early, in [0, ratio).
        wait_for_first: the world waits at tick 0 until the first plan is there.
        workers: number of planners that can think at once; None for as many as it takes.

    Raises:
        ValueError: an argument is out of its range, or the workers cannot keep up.
    """
    if ticks < 1:
        raise ValueError(f"an episode has at least 1 tick, not {ticks}")
    if ratio < 1:
        raise ValueError(f"ratio is {ratio}: it counts ticks and is at least 1")
    if latency < 0:
        raise ValueError(f"latency is {latency}: it counts ticks and is at least 0")
    if not 0 <= phase < ratio:
        raise ValueError(f"phase is {phase}: it lies in [0, {ratio}), the ratio")
    if workers is not None and latency > workers * ratio:
        raise ValueError(
            f"latency {latency} needs {-(-latency // ratio)} updates in flight at ratio {ratio}, "
            f"and there is room for {workers}: raise the ratio or the number of workers"
        )
    later = np.arange(ratio - phase, ticks, ratio, dtype=np.int32)
    observed = np.concatenate([np.zeros(1, np.int32), later])
    ready = observed + np.int32(latency)
    if wait_for_first:
        ready[0] = 0
    return Timeline(observed, ready)


def draw(
    rng: np.random.Generator,
    ticks: int,
    ratios: Sequence[int],
    latencies: Sequence[int],
    *,
    wait_for_first: bool = False,
) -> Timeline:
    """Returns a periodic timeline with ratio, latency and phase drawn uniformly, as training sees them."""
    ratio = int(rng.choice(np.asarray(ratios)))
    latency = int(rng.choice(np.asarray(latencies)))
    phase = int(rng.integers(ratio))
    return periodic(ticks, ratio, latency, phase, wait_for_first=wait_for_first)


def draw_irregular(
    rng: np.random.Generator,
    ticks: int,
    ratios: Sequence[int],
    latencies: Sequence[int],
    *,
    wait_for_first: bool = False,
) -> Timeline:
    """Returns a timeline whose updates come when they come: at tick 0, then after gaps that are drawn one by one.

    Gaps are geometric; their mean is one of the ratios, and every plan takes one of the latencies, both drawn uniformly. So that
    weights see what a planner does that runs when it is asked to.
    """
    mean, latency = float(rng.choice(np.asarray(ratios))), int(rng.choice(np.asarray(latencies)))
    observed = np.concatenate([[0], np.cumsum(rng.geometric(1.0 / mean, size=ticks))])
    observed = observed[observed < ticks]
    ready = observed + latency
    if wait_for_first:
        ready[0] = 0
    return recorded(observed, ready)


PLAN_READY = "plan_ready"
"""The privileged field of an episode that says under which timeline it was recorded, see `marks`."""


def marks(timeline: Timeline, ticks: int) -> np.ndarray:
    """Returns int32 [ticks]: at each tick that an update observes the first tick that may use its plan, at all others -1."""
    marked = np.full(ticks, NO_PLAN, np.int32)
    within = timeline.observed < ticks
    marked[timeline.observed[within]] = timeline.ready[within]
    return marked


def from_marks(marked: np.ndarray) -> Timeline:
    """Returns the timeline that `marks` wrote down. Raises ValueError as `recorded` does."""
    observed = np.flatnonzero(np.asarray(marked) != NO_PLAN)
    return recorded(observed, np.asarray(marked)[observed])


def recorded(observed: Sequence[int], ready: Sequence[int]) -> Timeline:
    """Returns the timeline of a run as it happened, missed deadlines included.

    Raises:
        ValueError: the two differ in length, observations are not in order, or a plan precedes its observation.
    """
    observed, ready = np.asarray(observed, np.int32), np.asarray(ready, np.int32)
    if observed.ndim != 1 or observed.shape != ready.shape:
        raise ValueError(f"observed {observed.shape} and ready {ready.shape} must be of one length")
    if len(observed) and (observed[0] < 0 or np.any(np.diff(observed) <= 0)):
        raise ValueError(f"observed ticks must increase strictly from 0 or later: {observed.tolist()}")
    early = ready < observed
    if len(early) and observed[0] == 0 and ready[0] == 0:
        early[0] = False
    if np.any(early):
        j = int(np.argmax(early))
        raise ValueError(f"plan {j} is ready at tick {ready[j]}, before tick {observed[j]} that it observes")
    return Timeline(observed, ready)


def on_time(timeline: Timeline, ticks: int) -> Timeline:
    """Returns the updates that observe the first `ticks` ticks of a timeline, each plan ready at once: how a prompt is read,
    which is whole before anything has to be done."""
    observed = timeline.observed[timeline.observed < ticks]
    return Timeline(observed, observed)


def visible(timeline: Timeline, ticks: np.ndarray) -> np.ndarray:
    """Returns [N] int32: the newest update whose plan each tick may use, `NO_PLAN` where there is none.

    The newest is the largest j with `ready[j] <= t`: a plan overtaken by a newer one is never gone back to.
    """
    order = np.argsort(timeline.ready, kind="stable")
    newest = np.maximum.accumulate(order) if len(order) else order
    arrived = np.searchsorted(timeline.ready[order], np.asarray(ticks), side="right")
    return np.concatenate([[NO_PLAN], newest])[arrived].astype(np.int32)


def age(timeline: Timeline, ticks: np.ndarray) -> np.ndarray:
    """Returns [N] int32: ticks since the observation behind each tick's visible plan, -1 where there is none."""
    plan = visible(timeline, ticks)
    observed = np.concatenate([timeline.observed, [0]])[plan]
    return np.where(plan == NO_PLAN, -1, np.asarray(ticks) - observed).astype(np.int32)


def ticks_from_seconds(seconds: float, tick_s: float) -> int:
    """Returns how many ticks of `tick_s` seconds make `seconds`.

    Raises:
        ValueError: not a whole number of ticks (within a millionth of a tick), or not a positive tick.
    """
    if not tick_s > 0:
        raise ValueError(f"a tick lasts more than 0 s, not {tick_s}")
    ticks = Fraction(str(seconds)) / Fraction(str(tick_s))
    nearest = round(ticks)
    if nearest < 0 or abs(ticks - nearest) > Fraction(1, 1_000_000):
        raise ValueError(f"{seconds} s is {float(ticks):g} ticks of {tick_s} s: make it a whole multiple")
    return nearest


def draw_timeline(timeline: Timeline, ticks: int) -> str:
    """Returns the picture at the top of this file, for the first `ticks` ticks of a timeline."""
    t = np.arange(ticks)
    update = {int(tick): f"o{j}" for j, tick in enumerate(timeline.observed)}
    plan, plan_age = visible(timeline, t), age(timeline, t)
    rows = {
        "tick": [str(i) for i in t],
        "planner": [update.get(int(i), "") for i in t],
        "visible": ["-" if p == NO_PLAN else str(p) for p in plan],
        "age": ["-" if p == NO_PLAN else str(a) for p, a in zip(plan, plan_age, strict=True)],
    }
    return "\n".join(f"{name:<9}" + "".join(f"{cell:>4}" for cell in cells) for name, cells in rows.items())
