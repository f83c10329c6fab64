"""Updates by need: an agent whose planner runs when something asks for it, not when a timeline says so.

    tick        0   1   2   3   4   5   6   7   8   9
    score       .   .1  .1  .9  .1  .1  .1  .1  .8  .1     what the controller's last tick gave away; above .5 it asks
    planner    o0          o1                  o2
    visible     0   0   0   1   1   1   1   1   2   2

A `Trigger` is a score of what is known before a tick is acted, and a threshold. Each of B episodes has updates of its own; what
happened is a `Timeline` an episode (`timelines`), and the parallel pass replays it as any other.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from hierarchy.control.acting import Acting, lay_out
from hierarchy.control.agent import AgentState, act, begin, think
from hierarchy.corpus.reading import Pieces
from hierarchy.corpus.segment import predicted_values
from hierarchy.layout import LIVES, followed, words
from hierarchy.model import stepwise
from hierarchy.timeline import Timeline, recorded


class Evidence(NamedTuple):
    """What is known at a tick before it is acted, of B episodes whose newest plan has been acted under.

    tick: of the step. seeds: of the episodes [B]. age: int [B], ticks since the newest update. observations: of this tick, name
    to [B, ...]. decoded: the last tick's action, its logits, and what it predicted of these observations. lifetime: float
    [B, bins], the newest plan's logits over LIVES, None where nobody predicts it.
    """

    acting: Acting
    tick: int
    seeds: np.ndarray
    age: np.ndarray
    observations: Mapping[str, np.ndarray]
    decoded: stepwise.Action
    lifetime: np.ndarray | None


Score = Callable[[Evidence], np.ndarray]
"""From evidence to [B] numbers: the higher, the more an update is needed."""


def plan_age(evidence: Evidence) -> np.ndarray:
    """Returns the age in ticks: with a whole threshold k this is the fixed period of k ticks."""
    return evidence.age


def action_entropy(evidence: Evidence) -> np.ndarray:
    """Returns the entropy in nats of the last tick's action, its elements' added up."""
    logits = np.asarray(evidence.decoded.logits, np.float64)
    chance = _softmax(logits)
    return -np.sum(chance * np.log(np.maximum(chance, 1e-30)), axis=(1, 2))


def prediction_error(evidence: Evidence) -> np.ndarray:
    """Returns the nats by which this tick's observation surprises what the last tick predicted of it, its scalars' added up.

    Raises:
        ValueError: the layout predicts nothing.
    """
    schema, layout = evidence.acting.schema, evidence.acting.layout
    if evidence.decoded.following is None:
        raise ValueError(f"layout {layout.name!r} predicts nothing of the next tick: name `predicted` fields in it")
    values = [predicted_values(schema, layout, field, evidence.observations[field.name]) for field in layout.predicted]
    classes = [count for _, count in schema.predictions(layout.name)]
    logits = np.split(np.asarray(evidence.decoded.following, np.float64), np.cumsum(classes)[:-1], axis=1)
    chances = [_softmax(each)[np.arange(len(each)), value] for each, value in zip(logits, np.concatenate(values, axis=1).T)]
    return -np.sum(np.log(np.maximum(chances, 1e-30)), axis=0)


def lifetime_spent(evidence: Evidence) -> np.ndarray:
    """Returns the chance, by the newest plan's own prediction, that its sub-goal has changed by now.

    Within a bin of LIVES the chance is spread evenly; that of the last bin never comes.

    Raises:
        ValueError: the layout has no lifetimes.
    """
    if evidence.lifetime is None:
        raise ValueError(f"layout {evidence.acting.layout.name!r} predicts no lifetimes: set `lifetime` in it")
    first, after = np.array(LIVES[:-1]), np.array(LIVES[1:])
    spent = np.clip((evidence.age[:, None] - first + 1) / (after - first), 0.0, 1.0)
    return np.sum(_softmax(evidence.lifetime.astype(np.float64))[:, :-1] * spent, axis=1)


def at_random(evidence: Evidence) -> np.ndarray:
    """Returns numbers from [0, 1), a function of each episode's seed and the tick: a threshold of 1 - p asks with chance p."""
    return np.array([np.random.default_rng((int(seed), evidence.tick)).random() for seed in evidence.seeds])


@dataclasses.dataclass(frozen=True)
class Trigger:
    """When an update is asked for. All times are in ticks.

    score, threshold: it is asked for at a tick whose score is at least the threshold. minimum_gap: fewest ticks from one update
    to the next; what is asked for earlier waits until then. maximum_age: an update comes after so many ticks even if nothing
    asks; None for never. The planner thinks about one update at a time, and no score counts before a tick has been acted under
    its plan.
    """

    score: Score
    threshold: float
    minimum_gap: int = 1
    maximum_age: int | None = None

    def __post_init__(self) -> None:
        if self.minimum_gap < 1 or (self.maximum_age is not None and self.maximum_age < self.minimum_gap):
            raise ValueError(
                f"minimum_gap {self.minimum_gap} and maximum_age {self.maximum_age}: the gap is at least 1 tick, and the age at "
                "least the gap"
            )

    def due(self, age: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Returns bool [B], which updates come now: those asked for whose gap has passed, and those of the oldest plans."""
        return (asked & (age >= self.minimum_gap)) | (age >= (np.inf if self.maximum_age is None else self.maximum_age))


class TriggeredState(NamedTuple):
    """Where B parallel episodes stand; used up by `step`, as the agent's own state is.

    observed, ready: int [B], of each episode's newest update. newest: its plan. standing: the plan that its ticks see. since: int
    [B], the tick that that one observed, -1 before the first has arrived. asked: bool [B], an update waits for its gap.
    updates: ((tick, bool [B]), ...), which episodes had an update at which tick.
    """

    agent: AgentState
    observed: np.ndarray
    ready: np.ndarray
    newest: stepwise.Plan
    standing: stepwise.Plan
    since: np.ndarray
    asked: np.ndarray
    updates: tuple[tuple[int, np.ndarray], ...] = ()


class TriggeredAgent:
    """A policy over B episodes in lockstep as `Agent` is, whose updates come by a trigger; the first is at tick 0.

    latency: ticks from an update to the first tick that may use its plan.

    Raises:
        ValueError: the model has no planner, or the latency is below 0.
    """

    def __init__(self, acting: Acting, params: hk.Params, trigger: Trigger, *, latency: int = 0, tokenizer: Pieces | None = None):
        if acting.network.config.planner is None:
            raise ValueError(f"layout {acting.layout.name!r} has no planner: there is nothing to trigger")
        if acting.layout.above:
            raise ValueError(
                f"layout {acting.layout.name!r} has planners above the planner: updates of one planner are triggered"
            )
        if latency < 0:
            raise ValueError(f"latency is {latency}: it counts ticks and is at least 0")
        self.acting, self.weights, self.trigger, self.latency = acting, lay_out(acting, params), trigger, latency
        self._tokenizer = tokenizer

    def begin(self, seeds: Sequence[int]) -> TriggeredState:
        """Returns the state before tick 0 of one episode a seed.

        Raises:
            ValueError: several episodes, and a planner that reads what depends on when it last read.
        """
        fields = self.acting.layout.planner
        apart = [field.name for field in fields if field in (*words(fields), *followed(fields)) or field.summed == "reading"]
        if apart and len(seeds) > 1:
            raise ValueError(
                f"layout {self.acting.layout.name!r}: what the planner reads of {', '.join(apart)} depends on its last update, "
                f"and {len(seeds)} episodes have updates of their own: step one episode at a time"
            )
        agent = begin(self.acting, self.weights.update, seeds, self._tokenizer)
        nothing, none = agent.plans[-1], np.full(len(seeds), -1)
        if self.acting.layout.lifetime:
            nothing = nothing._replace(lifetime=jnp.zeros((len(seeds), len(LIVES))))
        return TriggeredState(agent, none, none, nothing, nothing, none, np.zeros(len(seeds), bool))

    def step(
        self, state: TriggeredState, observations: Mapping[str, np.ndarray], executed: np.ndarray | None = None
    ) -> tuple[np.ndarray, TriggeredState]:
        """Returns the actions of this tick and the state after it, as `Agent.step` does."""
        agent, now = state.agent, state.agent.tick
        agent.history.append(observations, agent.previous_action if executed is None else executed)
        asked, due = self._asked(state, observations)
        state = state._replace(asked=asked)
        if due.any():
            state = self._update(state, due)
        arrived = (state.ready == now) & (state.observed >= 0)
        if arrived.any():
            standing = _where(arrived, state.newest, state.standing)
            state = state._replace(standing=standing, since=np.where(arrived, state.observed, state.since))
        age = np.where(state.since < 0, -1, now - state.since)
        action, agent = act(self.acting, self.weights.tick, state.agent, state.standing.reading, age)
        return action, state._replace(agent=agent)

    def _asked(self, state: TriggeredState, observations: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns bool [B] each: for which episodes an update has been asked, and which updates come now."""
        agent, now = state.agent, state.agent.tick
        if now == 0:
            return state.asked, np.ones(len(agent.seeds), bool)
        acted = now > state.ready
        lifetime = None if state.newest.lifetime is None else np.asarray(state.newest.lifetime)
        age = now - state.observed
        evidence = Evidence(self.acting, now, agent.seeds, age, observations, agent.decoded, lifetime)
        asked = state.asked | (acted & (self.trigger.score(evidence) >= self.trigger.threshold))
        return asked, acted & self.trigger.due(age, asked)

    def _update(self, state: TriggeredState, due: np.ndarray) -> TriggeredState:
        """Runs the updates that are due; their plans wait in `newest` until they are ready."""
        now = state.agent.tick
        plan, agent = think(self.acting, self.weights.update, state.agent, None if due.all() else due)
        return state._replace(
            agent=agent,
            observed=np.where(due, now, state.observed),
            ready=np.where(due, now + self.latency, state.ready),
            newest=plan if due.all() else _where(due, plan, state.newest),
            asked=state.asked & ~due,
            updates=(*state.updates, (now, due)),
        )


def timelines(state: TriggeredState, latency: int) -> list[Timeline]:
    """Returns the timeline of each of the B episodes so far."""
    ticks = np.array([tick for tick, _ in state.updates])
    had = np.array([due for _, due in state.updates]).reshape(len(ticks), len(state.observed))
    return [recorded(ticks[own], ticks[own] + latency) for own in had.T]


def calibrate(
    trigger: Trigger,
    spend: Callable[[Trigger], float],
    budget: float,
    low: float,
    high: float,
    horizon: int,
    halvings: int = 7,
) -> Trigger:
    """Returns the trigger with the threshold in [low, high] that spends the most updates, but no more than the budget.

    spend: returns the mean updates of an episode on held-out episodes; it should fall as the threshold rises. What the threshold
    leaves unspent by more than a twentieth, as where scores have few values, a maximum age below the horizon spends.

    Raises:
        ValueError: even the highest threshold spends more than the budget.
    """
    best, spent = dataclasses.replace(trigger, threshold=high), spend(dataclasses.replace(trigger, threshold=high))
    if spent > budget:
        raise ValueError(f"{spent:.2f} updates an episode at the highest threshold, {high}, and the budget is {budget}")
    for _ in range(halvings):
        tried = dataclasses.replace(trigger, threshold=(low + high) / 2)
        found = spend(tried)
        if found > budget:
            low = tried.threshold
        else:
            best, spent, high = tried, found, tried.threshold
    shortest, longest = best.minimum_gap, horizon
    while spent < 0.95 * budget and shortest < longest:
        middle = (shortest + longest) // 2
        if spend(dataclasses.replace(best, maximum_age=middle)) > budget:
            shortest = middle + 1
        else:
            longest = middle
    return dataclasses.replace(best, maximum_age=longest) if longest < horizon else best


def _softmax(logits: np.ndarray) -> np.ndarray:
    chance = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return chance / chance.sum(axis=-1, keepdims=True)


def _where(chosen: np.ndarray, one, other):
    """Returns the tree [B, ...] that is `one` for the chosen episodes and `other` for the rest."""
    return jax.tree.map(lambda x, y: jnp.where(chosen.reshape(-1, *[1] * (x.ndim - 1)), x, y), one, other)
