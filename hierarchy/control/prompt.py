"""What an agent reads before its tick 0: a stretch of another episode, through the functions that act."""

from collections.abc import Sequence

import haiku as hk
import jax
import numpy as np

from hierarchy.control.acting import Acting, lay_out
from hierarchy.control.agent import AgentState, act, begin, think
from hierarchy.corpus.reading import Pieces
from hierarchy.episode import Episode
from hierarchy.timeline import NO_PLAN, Timeline, age, on_time


def read_prompt(
    acting: Acting,
    params: hk.Params,
    state: AgentState,
    prompts: Sequence[Episode],
    timeline: Timeline,
    tokenizer: Pieces | None = None,
) -> AgentState:
    """Returns the state before tick 0 of agents that have read a prompt each, which then ended: Q ticks, at ticks -Q to -1.

    What they keep of it is in their caches alone. Its actions are those that were executed in it.

    acting: of the prompts' layout. prompts: one an episode, all of Q ticks (`hierarchy.corpus.prompts.excerpt`). timeline: the
    episodes' own; the prompts are read under it from its tick 0 on, every plan on time.

    Raises:
        ValueError: the state is past its tick 0, the prompts differ in number or length, or their layout has other caches.
    """
    ticks, layout = prompts[0].ticks, acting.layout
    if layout.above:
        raise ValueError(f"layout {layout.name!r} has planners above the planner: prompts are read by one planner at most")
    if state.tick or len(prompts) != len(state.seeds) or any(prompt.ticks != ticks for prompt in prompts):
        raise ValueError(
            f"{len(prompts)} prompts of {sorted({prompt.ticks for prompt in prompts})} ticks at tick {state.tick} of "
            f"{len(state.seeds)} episodes: give one an episode, all of one length, before tick 0"
        )
    weights = lay_out(acting, params)
    reader = begin(acting, weights.update, state.seeds, tokenizer)
    own, theirs = (jax.tree.map(np.shape, (each.planner, each.controller)) for each in (state, reader))
    if own != theirs:
        raise ValueError(
            f"a prompt of layout {layout.name!r} before an episode of {state.history.layout.name!r}: their caches differ in size"
        )
    reader = reader._replace(planner=state.planner, controller=state.controller, origin=ticks)
    timeline, planner = on_time(timeline, ticks), state.planner is not None
    reading, ages = reader.plans[NO_PLAN].reading if planner else None, age(timeline, np.arange(ticks))
    for tick in range(ticks):
        executed = np.stack([prompt.action[tick - 1] for prompt in prompts]) if tick else None
        reader.history.append(_shown(prompts, tick), executed)
        if planner and tick in timeline.observed:
            plan, reader = think(acting, weights.update, reader)
            reading = plan.reading
        if layout.chunk == 1 or tick in timeline.observed:
            _, reader = act(acting, weights.tick, reader, reading, int(ages[tick]))
        else:
            reader = reader._replace(tick=tick + 1)
    words_ = {name: [(tick - ticks, many) for tick, many in heard.words] for name, heard in reader.heard.items()}
    heard = {name: fresh._replace(words=words_[name]) for name, fresh in state.heard.items()}
    return state._replace(planner=reader.planner, controller=reader.controller, heard=heard)


def _shown(episodes: Sequence[Episode], tick: int) -> dict[str, np.ndarray]:
    """What recorded episodes show at a tick, stacked; words that have not been said yet are empty."""
    names = episodes[0].observation
    shown = {name: np.stack([episode.observation[name][tick] for episode in episodes]) for name in names}
    for name in episodes[0].text:
        said = [[words_ for since, words_ in episode.text[name] if since <= tick] for episode in episodes]
        shown[name] = np.array([wordings[-1] if wordings else "" for wordings in said], object)
    return shown
