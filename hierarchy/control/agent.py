"""The agent: any loop gives it observations and takes actions; the timeline says when the planner runs and which plan is seen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np

from hierarchy.batch import Patches
from hierarchy.control.acting import Acting, beside_controller, lay_out, repeat
from hierarchy.corpus.codecs import from_unit, intervals
from hierarchy.corpus.reading import (
    History,
    Pieces,
    between_tokens,
    controller_tokens,
    planner_tokens,
    spoken_fields,
    words_due,
)
from hierarchy.layout import (
    EMPTY,
    PATCH,
    Bounded,
    Field,
    Image,
    Layout,
    images,
    planner_name,
    readers,
    tick_action,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
    words,
)
from hierarchy.model import stepwise
from hierarchy.model.network import Reading
from hierarchy.timeline import NO_PLAN, Timeline, age, visible
from modules.cache import Cache

Intervention = Callable[[int, jax.Array], jax.Array]
"""From update j and its plan vectors [B, P, plan_width] to the vectors that the level below gets instead."""


class Standing(NamedTuple):
    """Where a planner above the planner stands: its cache, its plans from the visible one on, and how many updates have run."""

    cache: Cache
    plans: dict[int, stepwise.Plan]
    updates: int


class AgentState(NamedTuple):
    """Where B parallel episodes stand. Passing it to `step` consumes it: caches are donated and the history grows in place.

    tick: of the next step. plans: update to its plan, from the visible one on. reader: what was last read, by reader.
    previous_action: [B, ...], executed at the last tick. decoded: the last tick's action ids and logits, for whoever looks.
    updates: how many planner updates have run. queue: actions of the last chunk that are still to be executed, in order.
    origin: what the models call tick 0. It is the history's own; while a prompt is read, the tick after it.
    above: the planners above the planner, the nearest first.
    """

    tick: int
    seeds: np.ndarray
    history: History
    planner: Cache | None
    controller: Cache
    plans: dict[int, stepwise.Plan | None]
    heard: dict[str, "Heard"]
    previous_action: np.ndarray | None
    decoded: stepwise.Action | None
    updates: int
    queue: tuple[np.ndarray, ...] = ()
    origin: int = 0
    above: tuple[Standing, ...] = ()

    @property
    def time(self) -> np.int32:
        """The tick as the models are told it."""
        return np.int32(self.tick - self.origin)


class Heard(NamedTuple):
    """What one reader has read: the tick of its last reading, each spoken field's [B] tick of last reading, and the words and
    patches of each reading as [(tick, [B] counts)], newest last."""

    last: int
    fields: dict[str, np.ndarray]
    words: list[tuple[int, np.ndarray]]


class Schedule(NamedTuple):
    """A timeline as it is met tick by tick: the update that observes a tick, and each tick's visible plan and its age."""

    update_at: dict[int, int]
    visible: np.ndarray
    age: np.ndarray


def schedule(timeline: Timeline, horizon: int) -> Schedule:
    """Returns the schedule of a timeline's first `horizon` ticks."""
    ticks = np.arange(horizon)
    update_at = {int(tick): j for j, tick in enumerate(timeline.observed)}
    return Schedule(update_at, visible(timeline, ticks), age(timeline, ticks))


class Agent:
    """A policy over B episodes in lockstep: `begin(seeds)`, then `step(state, observations)` at every tick.

    timeline: of every episode; `hierarchy.timeline.periodic` for simulated time, `recorded` to replay a run. The agent does not
    know which it is. horizon: ticks of the longest episode that is asked for. intervention: on the plans of the planner, or of
    the one at `intervene_at` (2 is the planner's planner). above: the timelines of the planners above the planner, the nearest
    first, their ticks being the episode's too.
    """

    def __init__(
        self,
        acting: Acting,
        params: hk.Params,
        timeline: Timeline,
        *,
        horizon: int,
        tokenizer: Pieces | None = None,
        intervention: Intervention | None = None,
        intervene_at: int = 1,
        above: Sequence[Timeline] = (),
    ):
        self.acting, self.weights, self.timeline, self.above = acting, lay_out(acting, params), timeline, tuple(above)
        self._tokenizer, self._intervention, self._intervene_at = tokenizer, intervention, intervene_at
        self._horizon = horizon
        self._update_at, self._visible, self._age = schedule(timeline, horizon)
        self._schedules = tuple(schedule(each, horizon) for each in self.above)
        self._has_planner = acting.network.config.planner is not None
        if len(self.above) != len(acting.layout.above):
            raise ValueError(
                f"layout {acting.layout.name!r} has {len(acting.layout.above)} planners above the planner, and there are "
                f"{len(self.above)} timelines for them: give one each"
            )
        if intervention is not None and not 1 <= intervene_at <= 1 + len(self.above):
            raise ValueError(f"layout {acting.layout.name!r} has no planner {intervene_at} whose plans could be changed")
        chunk, gaps = acting.layout.chunk, np.diff([*timeline.observed, horizon])
        if chunk > 1 and (0 not in self._update_at or gaps.max() > chunk):
            raise ValueError(
                f"layout {acting.layout.name!r} acts on chunks of {chunk} ticks: its timeline reads at tick 0 and at least every "
                f"{chunk} ticks, not at {timeline.observed.tolist()}"
            )

    def begin(self, seeds: Sequence[int]) -> AgentState:
        """Returns the state before tick 0 of one episode a seed; seeds are for sampling actions."""
        return begin(self.acting, self.weights.update, seeds, self._tokenizer)

    def step(
        self, state: AgentState, observations: Mapping[str, np.ndarray], executed: np.ndarray | None = None
    ) -> tuple[np.ndarray, AgentState]:
        """Returns the actions [B, A] (discrete: int [B]; text: int [B, pieces]) of this tick, and the state after it.

        observations: name to [B, ...], text as [B] of str. executed: [B, ...], the actions of the last tick as they were
        executed, where they are not those that the agent gave (EMPTY for pieces that were not said). Raises ValueError for what
        the layout cannot read, and past the horizon.
        """
        now = state.tick
        if now >= self._horizon:
            raise ValueError(f"tick {now} is past the agent's horizon of {self._horizon} ticks: give it a longer one")
        state.history.append(observations, state.previous_action if executed is None else executed)
        if self.acting.layout.chunk > 1 and now not in self._update_at:
            action, *queue = state.queue
            return action, state._replace(tick=now + 1, previous_action=action, queue=tuple(queue))
        state = self._update_above(state) if self.above else state
        state = self._update(state) if self._has_planner and now in self._update_at else state
        newest = int(self._visible[now])
        plans = {j: plan for j, plan in state.plans.items() if j >= newest or j == NO_PLAN}
        reading = plans[newest].reading if self._has_planner else None
        return act(self.acting, self.weights.tick, state._replace(plans=plans), reading, int(self._age[now]))

    def _update(self, state: AgentState) -> AgentState:
        """Runs the update that is due; its plan waits in `plans` until the timeline makes it visible."""
        j = self._update_at[state.tick]
        plan, state = think(self.acting, self.weights.update, state, seen=self._seen(state, 1))
        return state._replace(plans=state.plans | {j: beside_controller(self.acting, self._intervened(1, j, plan))})

    def _update_above(self, state: AgentState) -> AgentState:
        """Runs the updates that are due above the planner, slowest first, and lets go of plans that were overtaken."""
        for level in range(len(self.above) + 1, 1, -1):
            due, newest = self._schedules[level - 2].update_at, self._schedules[level - 2].visible[state.tick]
            plans = state.above[level - 2].plans
            if state.tick in due:
                j = due[state.tick]
                plan, state = think(self.acting, self.weights.update, state, seen=self._seen(state, level), level=level)
                plans = plans | {j: self._intervened(level, j, plan)}
            kept = {j: plan for j, plan in plans.items() if j >= newest or j == NO_PLAN}
            state = _with_above(state, level, plans=kept)
        return state

    def _intervened(self, level: int, j: int, plan: stepwise.Plan) -> stepwise.Plan:
        if self._intervention is None or level != self._intervene_at:
            return plan
        return self.acting.thinking(level).read(self.weights.update, self._intervention(j, plan.vectors))

    def _seen(self, state: AgentState, level: int) -> tuple[Reading, np.int32] | tuple[()]:
        """Returns what a planner sees of the plans of the level above: the newest visible one, and its age."""
        if level > len(self.above):
            return ()
        _, newest, since = self._schedules[level - 1]
        plan = state.above[level - 1].plans[int(newest[state.tick])]
        return plan.reading, np.int32(since[state.tick])


def begin(acting: Acting, params: hk.Params, seeds: Sequence[int], tokenizer: Pieces | None = None) -> AgentState:
    """Returns the state before tick 0 of one episode a seed."""
    network, layout, batch = acting.network, acting.layout, len(seeds)
    has_planner = network.config.planner is not None

    nothing = {
        reader: Heard(-1, {field.name: np.full(batch, -1) for field in words(fields)}, [])
        for reader, fields in readers(layout).items()
    }
    above = (
        Standing(repeat(stepwise.planner_cache(network, layout, level), batch), {NO_PLAN: repeat(each.no_plan(params), batch)}, 0)
        for level, each in enumerate(acting.above, start=2)
    )
    return AgentState(
        tick=0,
        seeds=np.asarray(seeds, np.uint32),
        history=History(acting.schema, layout.name, batch, tokenizer),
        planner=repeat(stepwise.planner_cache(network, layout), batch) if has_planner else None,
        controller=beside_controller(acting, repeat(stepwise.controller_cache(network, layout), batch)),
        plans={NO_PLAN: beside_controller(acting, repeat(acting.no_plan(params), batch)) if has_planner else None},
        heard=nothing,
        previous_action=None,
        decoded=None,
        updates=0,
        above=tuple(above),
    )


def think(
    acting: Acting,
    params: hk.Params,
    state: AgentState,
    among: np.ndarray | None = None,
    seen: tuple[Reading, np.int32] | tuple[()] = (),
    level: int = 1,
) -> tuple[stepwise.Plan, AgentState]:
    """Returns the plan of an update that observes the state's tick, and the state whose planner has read it.

    among: bool [B], the episodes that have the update, None for all; the planners of the others read nothing, and what is
    returned as their plans means nothing. For layouts whose planner reads numbers of single ticks alone.
    level: 1 for the planner, 2 for the one that plans for it. seen: the visible plan of the level above that, entries [B, ...],
    and its age; () where there is none. Raises ValueError for an update that comes sooner after the last one than the planner's
    cache has room for.
    """
    reader = planner_name(level)
    last, least = state.heard[reader].last, acting.network.config.least_ratio
    if last >= 0 and state.tick - last < least:
        raise ValueError(
            f"layout {acting.layout.name!r}: updates of the {reader} at ticks {last} and {state.tick}, and its cache has room "
            f"for one in {least}: give the timeline that ratio or a larger one, or the model's config a smaller least_ratio"
        )
    if level > 1:
        standing, update = state.above[level - 2], acting.thinking(level).update
        tokens, chunks, heard = _tokens(state, reader, acting, np.zeros(len(state.seeds), np.int32))
        cache, plan = update(params, standing.cache, tokens, chunks, state.time, *seen)
        state = _with_above(state, level, cache=cache, updates=standing.updates + 1)
        return plan, state._replace(heard=state.heard | {reader: heard})
    cache, looked = _look(acting, params, state, reader, _follow(acting, params, state))
    tokens, chunks, heard = _tokens(state, reader, acting, looked)
    if among is not None:
        tokens = tokens._replace(count=np.where(among, tokens.count, 0).astype(np.int32))
    cache, plan = acting.update(params, cache, tokens, chunks, state.time, *seen)
    return plan, state._replace(planner=cache, heard=state.heard | {reader: heard}, updates=state.updates + 1)


def _with_above(state: AgentState, level: int, **changed: Any) -> AgentState:
    """Returns the state with this changed of one planner above the planner."""
    above = list(state.above)
    above[level - 2] = above[level - 2]._replace(**changed)
    return state._replace(above=tuple(above))


def act(
    acting: Acting, params: hk.Params, state: AgentState, reading: Reading | None, since: int | np.ndarray
) -> tuple[np.ndarray, AgentState]:
    """Returns the actions [B, A] of the state's tick, and the state after it.

    params: those that a tick reads (`Weights.tick`), or more. reading: of the visible plan, entries [B, ...]. since: its age in
        ticks, one for all or int [B]; -1 where there is none.
    """
    cache, seen = _look(acting, params, state, "controller", state.controller)
    tokens, chunks, heard = _tokens(state, "controller", acting, seen)
    controller, decoded = acting.tick(params, cache, stepwise.pack_tick(tokens, chunks, state.time, since, state.seeds), reading)
    action, *queue = as_actions(acting.layout, decoded)
    heard = state.heard | {"controller": heard}
    return action, state._replace(
        tick=state.tick + 1,
        controller=controller,
        heard=heard,
        previous_action=action,
        decoded=decoded,
        queue=tuple(queue),
    )


def _follow(acting: Acting, params: hk.Params, state: AgentState) -> Cache:
    """Returns the planner's cache after what it follows of the ticks since its last update, this one's left out."""
    layout, cache = acting.layout, state.planner
    tokens, batch = tokens_between(layout), len(state.seeds)
    if not tokens:
        return cache
    for first in range(state.heard["planner"].last + 1, state.tick, FOLLOWED):
        stop = min(first + FOLLOWED, state.tick)
        value, field = np.full((2, batch, FOLLOWED, tokens, acting.schema.planner_atoms), EMPTY, np.int32)
        value[:, : stop - first], field[:, : stop - first] = between_tokens(state.history, np.arange(first, stop))
        read = stepwise.Tokens(value, field, np.full(batch, tokens, np.int32), np.zeros(batch, np.int32))
        cache = acting.follow(params, cache, read, np.int32(first - state.origin), np.int32(stop - first))
    return cache


def _look(acting: Acting, params: hk.Params, state: AgentState, reader: str, cache: Cache) -> tuple[Cache, np.ndarray]:
    """Returns the reader's cache after the images that are due, and how many patches those were, int32 [B]."""
    layout, schema, config = acting.layout, acting.schema, acting.network.config
    window = config.of(reader).window
    atoms = schema.planner_atoms if reader == "planner" else schema.controller_atoms
    seen = np.zeros(len(state.seeds), np.int32)
    for field in images(getattr(layout, reader)):
        count, first = field.codec.patches, schema.field_ids(layout.name)[reader, field.name]
        pixels = np.zeros((len(seen), count, schema.patch_values), np.uint8)
        due = np.zeros(len(seen), np.int32)
        for episode, shown in _due(state, reader, field, window // 2).items():
            pixels[episode], due[episode] = shown, count
        if due.any():
            value, named = np.full((2, len(seen), count, atoms), EMPTY, np.int32)
            value[:, :, 0], named[:, :, 0] = PATCH, first
            places = [np.tile(place, (len(seen), 1)) for place in intervals(field.codec, None)]
            tokens = stepwise.Tokens(value, named, due, seen.copy())
            cache = acting.look(params, cache, tokens, Patches(pixels, *places, due), state.time)
            seen += due
    return cache, seen


FOLLOWED = 32
"""Ticks between updates that are read in one call."""


def as_actions(layout: Layout, decoded: stepwise.Action) -> list[np.ndarray]:
    """Returns the decoded action of each tick of the layout's chunk, in the environment's units: [B, A] inside the spec, or int
    [B] for one discrete action."""
    codec, units = tick_action(layout).codec, np.split(np.asarray(decoded.unit), layout.chunk, axis=1)
    if isinstance(codec, Bounded):
        return [from_unit(codec, unit) for unit in units]
    return [unit[:, 0].astype(np.int32) if unit.shape[1] == 1 else unit.astype(np.int32) for unit in units]


def _tokens(state: AgentState, reader: str, acting: Acting, seen: np.ndarray) -> tuple[stepwise.Tokens, np.int32, Heard]:
    """Returns one reader's tokens at the state's tick, the number of chunks they fill, and what it has heard after that.

    seen: int32 [B], patches that it has read at this tick.
    """
    layout, now, heard = acting.layout, state.tick, state.heard[reader]
    ticks, previous = np.array([now]), np.array([heard.last])
    if reader == "controller":
        size, read = tokens_per_reading(layout), controller_tokens(state.history, ticks, previous)
    else:
        size, read = tokens_per_update(layout, reader), planner_tokens(state.history, ticks, previous, reader)
    value, field = (part[:, 0] for part in read)
    count = np.full(len(value), size, np.int32)
    if not heard.fields:
        return stepwise.Tokens(value, field, count, seen), np.int32(1), heard._replace(last=now)
    config = acting.network.config
    window = config.of(reader).window
    pieces, fields = _words(state, reader, acting, window // 2)
    lengths = np.array([len(each) for each in pieces])
    recent = [(tick, many) for tick, many in heard.words if now - tick < window] + [(now, lengths + seen)]
    held = int(np.max(sum(many for _, many in recent)))
    if held > config.text_slots:
        raise ValueError(
            f"layout {layout.name!r}: the {reader} would hold {held} words and patches in its window of {window} ticks, and "
            f"text_slots is {config.text_slots}: raise text_slots in the model's config, or send fewer"
        )
    value, field = _words_first(pieces, fields, value, field, -(-config.text_slots // size) * size)
    count = count + lengths.astype(np.int32)
    return stepwise.Tokens(value, field, count, seen), np.int32(-(-count.max() // size)), Heard(now, heard.fields, recent)


def _due(state: AgentState, reader: str, field: Field, reread: int) -> dict[int, Any]:
    """Returns what each episode that is due at this tick is told or shown by one spoken field; notes that it was read."""
    last, due = state.heard[reader].fields[field.name], {}
    for episode, changes in enumerate(state.history.spoken[field.name]):
        if changes and words_due(changes[-1][0], int(last[episode]), state.tick, reread):
            last[episode] = state.tick
            due[episode] = changes[-1][1]
    return due


def _words(state: AgentState, reader: str, acting: Acting, reread: int) -> tuple[list[list[int]], list[list[int]]]:
    """Returns each episode's pieces that are due at this tick, and their field ids; notes that they were read."""
    ids = acting.schema.field_ids(acting.layout.name)
    pieces: list[list[int]] = [[] for _ in state.seeds]
    fields: list[list[int]] = [[] for _ in state.seeds]
    for field in words(readers(acting.layout)[reader]):
        if isinstance(field.codec, Image):
            continue
        for episode, said in _due(state, reader, field, reread).items():
            pieces[episode] += said
            fields[episode] += spoken_fields(field, ids[reader, field.name], said)
    return pieces, fields


def _words_first(pieces, fields, value: np.ndarray, field: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns value and field [B, room + n, K] with each episode's words before its n tokens of numbers."""
    batch, tokens, atoms = value.shape
    both = np.full((2, batch, room + tokens, atoms), EMPTY, np.int32)
    for episode, (words_, ids) in enumerate(zip(pieces, fields, strict=True)):
        n = len(words_)
        both[0, episode, :n, 0], both[1, episode, :n, 0] = words_, ids
        both[0, episode, n : n + tokens], both[1, episode, n : n + tokens] = value[episode], field[episode]
    return both[0], both[1]
