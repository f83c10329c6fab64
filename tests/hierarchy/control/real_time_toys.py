"""The toy model against the wall clock: a world that shows a toy episode over and over, and its replay in one pass."""

import dataclasses
import functools

import numpy as np
from dm_env import specs

from experiments.replay import Acted, check_actions, check_plans, difference, segment_of
from hierarchy.control.clock import Clock
from hierarchy.control.link import Link
from hierarchy.control.monitor import Monitor
from hierarchy.control.planner_process import Thinker
from hierarchy.control.real_time import Late, RealTimeAgent, reading_size, timeline_of
from hierarchy.episode import Episode
from hierarchy.timeline import Timeline
from tests.hierarchy.control.toy_parts import KIND, make
from tests.hierarchy.corpus.corpus_toys import Letters
from tests.hierarchy.model.two_rate_toys import Toy, observations, toy, world

HOLD = Late()
SAFE = np.array([0.25, 0.5, -0.5], np.float32)


@functools.cache
def shown() -> Episode:
    """The episode that the world shows, from its end on again."""
    return world(toy(KIND, "mean"))[1]


def seen_at(tick: int) -> dict[str, np.ndarray]:
    """What is seen at a tick, [1, ...]; what is told says nothing new after the first time round."""
    episode = shown()
    said = observations([episode], min(tick, episode.ticks - 1))
    return said | {name: value for name, value in observations([episode], tick % episode.ticks).items() if name in ("state",)}


def observation_spec() -> dict[str, specs.Array]:
    """The spec of what is seen."""
    return {
        name: specs.StringArray((), name=name) if value.dtype == object else specs.Array(value.shape[1:], value.dtype, name)
        for name, value in seen_at(0).items()
    }


def action_spec() -> specs.BoundedArray:
    """The spec of the toy's action."""
    return specs.BoundedArray((3,), np.float32, -2.0, 3.0, "action")


class Bench:
    """A real-time agent and its link, driven by hand: `tick` is one step; `episode` what happened."""

    def __init__(self, horizon: int, period_s: float = 0.0, late: Late = HOLD, **how):
        made: Toy = toy(KIND, "mean")
        self.made, self.horizon = made, horizon
        size = reading_size(made.acting, made.params)
        self.link = Link(made.layout, observation_spec(), action_spec(), horizon, size)
        self.monitor = Monitor(horizon, period_s)
        self.agent = RealTimeAgent(
            made.acting,
            made.params,
            action_spec(),
            clock=Clock(period_s),
            monitor=self.monitor,
            horizon=horizon,
            link=self.link,
            late=late,
            safe=SAFE,
            tokenizer=Letters(),
            **how,
        )
        self.agent.warm_up(seen_at(0))
        self.executed: list[np.ndarray] = []

    def begin(self) -> None:
        self.state, self.executed = self.agent.begin([0]), []

    def tick(self) -> int:
        """Runs the next tick and returns its number."""
        now = self.state.agent.tick
        action, self.state = self.agent.step(self.state, seen_at(now))
        self.executed.append(action[0])
        return now

    def thinker(self, generation: int = 0) -> Thinker:
        return Thinker(*make(), self.link, generation)

    @property
    def flight(self):
        return self.agent.flights[-1]

    def timeline(self) -> Timeline:
        return timeline_of(self.flight.taken)

    def episode(self) -> Episode:
        """What was executed and seen, as an episode."""
        ticks = len(self.executed)
        frames = [seen_at(tick) for tick in range(ticks + 1)]
        numbers = {name: np.concatenate([f[name] for f in frames]) for name in frames[0] if frames[0][name].dtype != object}
        words = {name: ((0, str(frames[0][name][0])),) for name in frames[0] if frames[0][name].dtype == object}
        for name in words:
            words[name] = tuple(
                (tick, str(frame[name][0]))
                for tick, frame in enumerate(frames)
                if tick == 0 or frame[name][0] != frames[tick - 1][name][0]
            )
        zeros = np.zeros(ticks, np.float32)
        return dataclasses.replace(
            shown(),
            observation=numbers,
            text=words,
            action=np.stack(self.executed),
            label=np.stack(self.flight.decoded),
            reward=zeros,
            discount=zeros + 1,
            privileged={"goal": np.zeros((ticks, 1), int)},
        )

    def acted(self, timeline: Timeline | None = None) -> Acted:
        """What `experiments.replay` reads of a run, under the recorded timeline or another."""
        rows = self.monitor.rows[: len(self.executed)]
        without, stopped = np.array(self.flight.without, int), np.array(self.flight.stopped, int)
        timeline = self.timeline() if timeline is None else timeline
        return Acted(timeline, rows["plan"], without, stopped, SAFE, np.zeros(0), np.stack(self.flight.logits))

    def disagreement(self, timeline: Timeline | None = None) -> float:
        """The largest difference of the parallel pass from what was acted on. A timeline that is given is not checked first."""
        acted, episode = self.acted(timeline), self.episode()
        if timeline is None:
            check_plans(acted)
            check_actions(acted, episode)
        made = self.made
        segment = segment_of(made.network, made.schema, made.layout.name, episode, acted, Letters())
        return float(difference(made.network, made.params, made.schema, segment, acted.logits).max())
