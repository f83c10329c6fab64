"""What the demo claims, each claim computed from rows and shown with its verdict."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.rows import Row, best, pick
from experiments.statistics import Interval, normalise, paired_difference

PATROL = "patrol"
RATIO = 8
LATE = 8
CELLS = [(ratio, latency) for ratio in (1, 2, 4, 8, 16) for latency in (0, 2, 4, 8)]
BODIES = ("cartpole", "pendulum", "reacher", "point_mass", "ball_in_cup", "finger", "fish", "walker")

HOLDS, FAILS = "holds", "does not hold"
UNTRAINED, UNMEASURED = "baseline not trained", "not measured"


class Check(NamedTuple):
    """One claim, what was measured, and one of the four verdicts above."""

    claim: str
    measured: str
    verdict: str


def two_rate(rows: Sequence[Row], ratio: int, latency: int, control: str = "none", task: str = PATROL) -> Row | None:
    """Returns the row of the plain two-rate agent in a cell."""
    return best(pick(rows, task, "two_rate", variant="", ratio=ratio, latency=latency, control=control))


def held_action(rows: Sequence[Row], ratio: int) -> Row | None:
    """Returns the better of the agents that hold every action for `ratio` ticks."""
    return best(pick(rows, PATROL, "held_action", ratio=ratio))


def late_action(rows: Sequence[Row], latency: int) -> Row | None:
    """Returns the better of the agents whose actions come `latency` ticks late."""
    return best(pick(rows, PATROL, "late_action", latency=latency))


def single_rate(rows: Sequence[Row], task: str = PATROL) -> Row | None:
    """Returns the row of the one transformer that reads everything at every tick."""
    return best(pick(rows, task, "single_rate", variant=""))


def controller_only(rows: Sequence[Row]) -> Row | None:
    """Returns the row of the controller that was trained without any planner."""
    return best(pick(rows, PATROL, "controller_only", variant=""))


def scripted(rows: Sequence[Row], variant: str, **cell: int) -> Row | None:
    """Returns the row of a scripted reference."""
    return best(pick(rows, PATROL, "scripted", variant=variant, **cell))


def quotient(rows: Sequence[Row], ratio: int, latency: int) -> float | None:
    """Returns the two-rate agent's return over that of the scripted hierarchy in the same cell."""
    agent, reference = two_rate(rows, ratio, latency), scripted(rows, "hierarchy", ratio=ratio, latency=latency)
    if agent is None or reference is None or reference.normalised_return <= 0:
        return None
    return agent.normalised_return / reference.normalised_return


def mean_return(rows: Sequence[Row], task: str, variant: str) -> float | None:
    """Returns the mean return of "random" or "expert" in the task's own units."""
    row = best(pick(rows, task, "scripted", variant=variant))
    return sum(row.returns) / row.episodes if row and row.returns else None


def difference(rows: Sequence[Row], first: Row, second: Row) -> Interval | None:
    """Returns the paired difference of two cells in points, None where returns or the scale are not there."""
    low, high = (mean_return(rows, first.task, name) for name in ("random", "expert"))
    if low is None or high is None or not first.returns or len(first.returns) != len(second.returns):
        return None
    return paired_difference(normalise(first.returns, low, high), normalise(second.returns, low, high))


def above(claim: str, row: Row | None, floor: float) -> Check:
    """Returns whether a cell's return is above a floor."""
    if row is None:
        return Check(claim, "", UNMEASURED)
    measured = f"{row.normalised_return:.1f} [{row.ci_low:.1f}, {row.ci_high:.1f}]"
    return Check(claim, measured, HOLDS if row.normalised_return > floor else FAILS)


def ahead(rows: Sequence[Row], claim: str, row: Row | None, other: Row | None, points: float = 30) -> Check:
    """Returns whether one cell is at least `points` above another."""
    if row is None or other is None:
        return Check(claim, "", UNMEASURED)
    lead = row.normalised_return - other.normalised_return
    measured = f"{row.normalised_return:.1f} against {other.normalised_return:.1f}: {lead:+.1f}"
    if paired := difference(rows, row, other):
        measured += f" [{paired.low:+.1f},\u00a0{paired.high:+.1f}]"
    return Check(claim, measured, HOLDS if lead >= points else FAILS)


def flat(rows: Sequence[Row]) -> Check:
    """Returns whether no cell falls behind the scripted hierarchy by much more than another does."""
    claim = "At ratios 1 to 16 and latencies 0 to 8 every quotient to the scripted hierarchy is at least 75% of the best"
    quotients = {cell: value for cell in CELLS if (value := quotient(rows, *cell)) is not None}
    if len(quotients) < len(CELLS):
        return Check(claim, f"{len(quotients)} of {len(CELLS)} cells" if quotients else "", UNMEASURED)
    (ratio, latency), low = min(quotients.items(), key=lambda item: item[1])
    share = low / max(quotients.values())
    measured = f"lowest {low:.2f} at ratio {ratio}, latency {latency}: {share:.0%} of the best, {max(quotients.values()):.2f}"
    return Check(claim, measured, HOLDS if share >= 0.75 else FAILS)


def cheap(rows: Sequence[Row]) -> Check:
    """Returns whether a tick of the two-rate agent costs at most a third of the single-rate agent's."""
    claim = f"At ratio {RATIO} a tick takes at most a third of the single-rate agent's FLOPs"
    agent, baseline = two_rate(rows, RATIO, 0), single_rate(rows)
    if not (agent and baseline and agent.flops_per_tick and baseline.flops_per_tick):
        return Check(claim, "", UNMEASURED)
    share = agent.flops_per_tick / baseline.flops_per_tick
    return Check(claim, f"{share:.2f} of them", HOLDS if share <= 1 / 3 else FAILS)


def keeps_up(rows: Sequence[Row]) -> Check:
    """Returns whether the two-rate agent keeps the single-rate agent's return, if that one was trained at all."""
    claim = f"At ratio {RATIO} the two-rate agent has at least 90% of the single-rate agent's return"
    agent, baseline = two_rate(rows, RATIO, 0), single_rate(rows)
    if agent is None or baseline is None:
        return Check(claim, "", UNMEASURED)
    measured = f"{agent.normalised_return:.1f} against {baseline.normalised_return:.1f}"
    if baseline.normalised_return <= 50:
        return Check(claim, measured, UNTRAINED)
    return Check(claim, measured, HOLDS if agent.normalised_return >= 0.9 * baseline.normalised_return else FAILS)


def no_leak(rows: Sequence[Row]) -> Check:
    """Returns whether every cell stays within its interval of the expert that plans at every tick."""
    claim = "No cell lies above the full-rate expert by more than its interval, which would point to a leak"
    cells = pick(rows, PATROL, "two_rate", variant="")
    if not cells:
        return Check(claim, "", UNMEASURED)
    top = max(cells, key=lambda row: row.ci_low)
    measured = f"highest lower bound {top.ci_low:.1f}, at ratio {top.ratio}, latency {top.latency}"
    return Check(claim, measured, HOLDS if top.ci_low <= 100 else FAILS)


def suite_tasks(rows: Sequence[Row]) -> list[str]:
    """Returns the suite's tasks among the rows, in the order of their bodies."""
    tasks = {row.task for row in rows if row.task != PATROL and row.task.startswith(BODIES) and "patrol" not in row.task}
    return sorted(tasks)


def on_task(rows: Sequence[Row], agent: str, task: str) -> Row | None:
    """Returns an agent's row on a suite task, at the ratio of the other claims where there is one."""
    found = pick(rows, task, agent, variant="")
    return next((row for row in found if row.ratio == RATIO and not row.latency), found[0] if found else None)


def bodies(rows: Sequence[Row]) -> Check:
    """Returns whether the same weights also drive the suite's bodies."""
    claim = "The same weights reach at least half of the expert on suite tasks of at least three bodies"
    measured = {task: row for task in suite_tasks(rows) if (row := on_task(rows, "two_rate", task))}
    if not measured:
        return Check(claim, "", UNMEASURED)
    reached = {body for body in BODIES for task, row in measured.items() if task.startswith(body) and row.normalised_return >= 50}
    return Check(claim, ", ".join(sorted(reached)) or "none", HOLDS if len(reached) >= 3 else FAILS)


def checks(rows: Sequence[Row]) -> list[Check]:
    """Returns every claim with its verdict."""
    agent, late = two_rate(rows, RATIO, 0), two_rate(rows, RATIO, LATE)
    others = {
        "the controller trained alone": controller_only(rows),
        "itself with its plans zeroed": two_rate(rows, RATIO, 0, "zeroed"),
        "itself with plans of other episodes": two_rate(rows, RATIO, 0, "shuffled"),
        "itself with random plans": two_rate(rows, RATIO, 0, "random"),
        f"actions held for {RATIO} ticks": held_action(rows, RATIO),
    }
    return [
        above(f"With a plan every {RATIO} ticks the return is above 60", agent, 60),
        above(f"With a plan every {RATIO} ticks and {LATE} ticks late it is above 50", late, 50),
        *(ahead(rows, f"At ratio {RATIO} at least 30 points above {name}", agent, other) for name, other in others.items()),
        ahead(rows, f"Late plans at least 30 points above late actions, both {LATE} ticks late", late, late_action(rows, LATE)),
        flat(rows),
        cheap(rows),
        keeps_up(rows),
        no_leak(rows),
        bodies(rows),
    ]
