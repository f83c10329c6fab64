"""Prompts: a stretch of another episode of the same source and task that is read before an episode begins.

As in Gato (arXiv 2205.06175, section 2.3): a quarter of its sequences have one, half of them from the end of an episode and half
from anywhere in one. There it is further tokens of the sequence; here it is further ticks of the segment:

    tick        -3  -2  -1   0   1   2   3   4   5   6
    is of       |  prompt |  the episode, its own ticks
    planner     o0           o0              o1              (ratio 4; the prompt is read under the same timeline, on time)
    visible      0   0   0   -   -   0   0   0   0   1       (latency 2; a plan of the prompt's is the prompt's alone)

- The stretch is an episode of its own: its frames, sums and previous actions begin with it, and so do the episode's after it.
- The episode keeps its ticks, its timeline and its plans. It differs by what attention finds before tick 0 and by nothing else.
- Nothing in a prompt bears loss. The paper masks nothing in one; here it is given, as a lead-in is, and its ticks are learnt as
  often as any others: when the episode that they are of is drawn.
- The controller reads as much of it as its lead-in reaches, the planner all of it.
"""

import dataclasses

import numpy as np

from hierarchy.batch import Stream
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.reading import Encoded
from hierarchy.corpus.segment import Segment, cut
from hierarchy.episode import Episode
from hierarchy.timeline import Timeline, on_time

AT_THE_END = 0.5
"""Share of the prompts that are the end of an episode."""

UNLIMITED = 2**30


@dataclasses.dataclass(frozen=True)
class Prompts:
    """share: of the episodes drawn that get a prompt. ticks: of a prompt; an episode that is shorter is taken whole."""

    share: float = 0.0
    ticks: int = 32

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or self.ticks < 1:
            raise ValueError(f"{self}: share lies in [0, 1], and a prompt has at least 1 tick")


NO_PROMPTS = Prompts()


def excerpt(episode: Episode, first: int, last: int) -> Episode:
    """Returns ticks [first, last) of an episode as an episode of its own, which begins at tick 0.

    Raises:
        ValueError: there are no such ticks.
    """
    if not 0 <= first < last <= episode.ticks:
        raise ValueError(f"ticks [{first}, {last}) of an episode of {episode.source!r} that has {episode.ticks}")
    own, seen = slice(first, last), slice(first, last + 1)
    ended = episode.terminated and last == episode.ticks
    return dataclasses.replace(
        episode,
        observation={name: values[seen] for name, values in episode.observation.items()},
        text={name: _standing(changes, first, last) for name, changes in episode.text.items()},
        action=episode.action[own],
        label=episode.label[own],
        reward=episode.reward[own],
        discount=episode.discount[own],
        privileged={name: values[own] for name, values in episode.privileged.items()},
        terminated=ended,
        truncated=not ended,
    )


def draw_excerpt(rng: np.random.Generator, episode: Episode, ticks: int) -> Episode:
    """Returns `ticks` ticks of an episode, every other time its last ones, else from anywhere in it."""
    ticks = min(ticks, episode.ticks)
    last = episode.ticks if rng.random() < AT_THE_END else int(rng.integers(ticks, episode.ticks, endpoint=True))
    return excerpt(episode, last - ticks, last)


def lay_before(rng: np.random.Generator, prompt: Encoded, segment: Segment, timeline: Timeline, packing: "Packing") -> Segment:
    """Returns the segment with a prompt before it; as it is where it does not begin with its episode.

    timeline, packing: those that the segment was cut under.
    """
    layout, ticks = prompt.history.layout, prompt.ticks
    planned, acted = segment.planner.tick, segment.controller.tick
    if (len(planned) and planned[0] > timeline.observed[0]) or (not layout.planner and acted[0] > 0):
        return segment
    room = dataclasses.replace(packing, controller_tokens=UNLIMITED, planner_tokens=UNLIMITED, lead_in=0)
    before = cut(rng, prompt, on_time(timeline, ticks), (0, ticks), room)
    reach = packing.lead_in if layout.planner else ticks
    kept = before.controller.tick >= ticks - reach if acted[0] == 0 else np.zeros(len(before.controller.tick), bool)
    plan, age = before.plan[kept], before.age[kept]
    used = np.unique(plan[plan >= 0])
    fast, slow = int(kept.sum()), len(before.planner.tick)

    def later(part, by: int):
        return part._replace(slot=part.slot + np.int32(by))

    by_reader = slow if layout.planner else fast
    patches = later(segment.patches, by_reader)
    return segment._replace(
        controller=_one_after_another(Stream(*(array[kept] for array in before.controller)), ticks, segment.controller),
        planner=_one_after_another(before.planner, ticks, segment.planner),
        plan_slot=np.concatenate([before.plan_slot[used], segment.plan_slot + np.int32(slow)]),
        plan=np.concatenate([_numbered(plan, used), np.where(segment.plan < 0, -1, segment.plan + np.int32(len(used)))]),
        age=np.concatenate([age, segment.age]),
        continuous=later(segment.continuous, fast),
        discrete=later(segment.discrete, fast),
        text=later(segment.text, fast),
        sub_goal=later(segment.sub_goal, by_reader),
        planner_text=later(segment.planner_text, slow),
        following=later(segment.following, fast),
        lifetime=later(segment.lifetime, slow),
        patches=type(patches)(*(np.concatenate(parts) for parts in zip(before.patches, patches))),
        needed=segment.needed + slow,
    )


def is_prompted(segment: Segment) -> bool:
    """Returns whether a prompt lies before a segment."""
    return bool((segment.planner.tick < 0).any() or (segment.controller.tick < 0).any())


def _standing(changes: tuple[tuple[int, str], ...], first: int, last: int) -> tuple[tuple[int, str], ...]:
    """The changes of a text within [first, last], counted from `first`, where what stood before stands already."""
    said = [words for tick, words in changes if tick <= first][-1:]
    return tuple((0, words) for words in said) + tuple((tick - first, words) for tick, words in changes if first < tick <= last)


def _one_after_another(prompt: Stream, ticks: int, own: Stream) -> Stream:
    prompt = prompt._replace(tick=prompt.tick - np.int32(ticks))
    return Stream(*(np.concatenate(parts) for parts in zip(prompt, own)))


def _numbered(plan: np.ndarray, used: np.ndarray) -> np.ndarray:
    return np.where(plan < 0, -1, np.searchsorted(used, plan)).astype(np.int32)
