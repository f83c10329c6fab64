"""The agent: any loop gives it observations and takes actions; the timeline says when the planner runs and which plan is seen."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from hierarchy.batch import Patches
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
    Schema,
    images,
    tick_action,
    tokens_between,
    tokens_per_reading,
    tokens_per_update,
    words,
)
from hierarchy.model import stepwise
from hierarchy.model.network import Network, Reading
from hierarchy.timeline import NO_PLAN, Timeline, age, visible
from modules.transformer import Cache

Intervention = Callable[[int, jax.Array], jax.Array]
"""From update j and its plan vectors [B, P, plan_width] to the vectors that the controller gets instead."""


class Acting(NamedTuple):
    """The compiled functions of one layout, batched over B episodes. Built once; every timeline and episode reuses them."""

    network: Network
    schema: Schema
    layout: Layout
    update: Callable[..., Any]
    follow: Callable[..., Any]
    look: Callable[..., Any]
    read: Callable[..., Any]
    no_plan: Callable[..., Any]
    tick: Callable[..., Any]


@functools.lru_cache(64)
def compile_acting(network: Network, schema: Schema, name: str, decoding: stepwise.Decoding = "mean") -> Acting:
    """Returns the acting functions of layout `name`, made once. Caches given to them are donated.

    decoding: "sample" draws an id, "argmax" takes the likeliest, "mean" takes the mean over bins of a bounded action.
    """
    layout = schema[name]

    def update(params, cache, tokens, chunks, now):
        return stepwise.update(network, layout, params, cache, tokens, chunks, now)

    def follow(params, cache, tokens, first, ticks):
        return stepwise.follow(network, layout, params, cache, tokens, first, ticks)

    def look(params, cache, tokens, patches, now):
        return stepwise.look(network, layout, params, cache, tokens, patches, now)

    def tick(params, cache, tokens, chunks, now, reading, since, seed):
        key = jax.random.fold_in(jax.random.key(seed), now)
        return stepwise.tick(network, schema, layout, params, cache, tokens, chunks, now, reading, since, key, decoding)

    def read(params, vectors):
        return stepwise.as_plan(network, params, vectors)

    return Acting(
        network,
        schema,
        layout,
        jax.jit(jax.vmap(update, in_axes=(None, 0, 0, None, None)), donate_argnums=1),
        jax.jit(jax.vmap(follow, in_axes=(None, 0, 0, None, None)), donate_argnums=1),
        jax.jit(jax.vmap(look, in_axes=(None, 0, 0, 0, None)), donate_argnums=1),
        jax.jit(jax.vmap(read, in_axes=(None, 0))),
        jax.jit(lambda params: stepwise.no_plan(network, params)),
        jax.jit(jax.vmap(tick, in_axes=(None, 0, 0, None, None, 0, None, 0)), donate_argnums=1),
    )


class AgentState(NamedTuple):
    """Where B parallel episodes stand. Passing it to `step` consumes it: caches are donated and the history grows in place.

    tick: of the next step. plans: update to its plan, from the visible one on. reader: what was last read, by reader.
    previous_action: [B, ...], executed at the last tick. decoded: the last tick's action ids and logits, for whoever looks.
    updates: how many planner updates have run. queue: actions of the last chunk that are still to be executed, in order.
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


class Heard(NamedTuple):
    """What one reader has read: the tick of its last reading, each spoken field's [B] tick of last reading, and the words and
    patches of each reading as [(tick, [B] counts)], newest last."""

    last: int
    fields: dict[str, np.ndarray]
    words: list[tuple[int, np.ndarray]]


class Agent:
    """A policy over B episodes in lockstep: `begin(seeds)`, then `step(state, observations)` at every tick.

    timeline: of every episode; `hierarchy.timeline.periodic` for simulated time, `recorded` to replay a run. The agent does not
    know which it is. horizon: ticks of the longest episode that is asked for.
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
    ):
        self.acting, self.params, self.timeline = acting, params, timeline
        self._tokenizer, self._intervention = tokenizer, intervention
        self._horizon = horizon
        self._visible = visible(timeline, np.arange(horizon))
        self._age = age(timeline, np.arange(horizon))
        self._update_at = {int(tick): j for j, tick in enumerate(timeline.observed)}
        self._has_planner = acting.network.config.planner is not None
        chunk, gaps = acting.layout.chunk, np.diff([*timeline.observed, horizon])
        if chunk > 1 and (0 not in self._update_at or gaps.max() > chunk):
            raise ValueError(
                f"layout {acting.layout.name!r} acts on chunks of {chunk} ticks: its timeline reads at tick 0 and at least every "
                f"{chunk} ticks, not at {timeline.observed.tolist()}"
            )

    def begin(self, seeds: Sequence[int]) -> AgentState:
        """Returns the state before tick 0 of one episode a seed; seeds are for sampling actions."""
        return begin(self.acting, self.params, seeds, self._tokenizer)

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
        state = self._update(state) if self._has_planner and now in self._update_at else state
        newest = int(self._visible[now])
        plans = {j: plan for j, plan in state.plans.items() if j >= newest or j == NO_PLAN}
        reading = plans[newest].reading if self._has_planner else None
        return act(self.acting, self.params, state._replace(plans=plans), reading, int(self._age[now]))

    def _update(self, state: AgentState) -> AgentState:
        """Runs the update that is due; its plan waits in `plans` until the timeline makes it visible."""
        j = self._update_at[state.tick]
        plan, state = think(self.acting, self.params, state)
        if self._intervention is not None:
            plan = self.acting.read(self.params, self._intervention(j, plan.vectors))
        return state._replace(plans=state.plans | {j: plan})


def begin(acting: Acting, params: hk.Params, seeds: Sequence[int], tokenizer: Pieces | None = None) -> AgentState:
    """Returns the state before tick 0 of one episode a seed."""
    network, layout, batch = acting.network, acting.layout, len(seeds)
    has_planner = network.config.planner is not None

    def repeat(tree):
        return jax.tree.map(lambda x: jnp.repeat(x[None], batch, axis=0), tree)

    nothing = {reader: Heard(-1, {f.name: np.full(batch, -1) for f in words(getattr(layout, reader))}, []) for reader in READERS}
    return AgentState(
        tick=0,
        seeds=np.asarray(seeds, np.uint32),
        history=History(acting.schema, layout.name, batch, tokenizer),
        planner=repeat(stepwise.planner_cache(network, layout)) if has_planner else None,
        controller=repeat(stepwise.controller_cache(network, layout)),
        plans={NO_PLAN: repeat(acting.no_plan(params)) if has_planner else None},
        heard=nothing,
        previous_action=None,
        decoded=None,
        updates=0,
    )


def think(acting: Acting, params: hk.Params, state: AgentState) -> tuple[stepwise.Plan, AgentState]:
    """Returns the plan of an update that observes the state's tick, and the state whose planner has read it."""
    cache, seen = _look(acting, params, state, "planner", _follow(acting, params, state))
    tokens, chunks, heard = _tokens(state, "planner", acting, seen)
    cache, plan = acting.update(params, cache, tokens, chunks, np.int32(state.tick))
    return plan, state._replace(planner=cache, heard=state.heard | {"planner": heard}, updates=state.updates + 1)


def act(
    acting: Acting, params: hk.Params, state: AgentState, reading: Reading | None, since: int
) -> tuple[np.ndarray, AgentState]:
    """Returns the actions [B, A] of the state's tick, and the state after it.

    reading: of the visible plan, entries [B, ...]. since: its age in ticks; -1 where there is none.
    """
    cache, seen = _look(acting, params, state, "controller", state.controller)
    tokens, chunks, heard = _tokens(state, "controller", acting, seen)
    controller, decoded = acting.tick(params, cache, tokens, chunks, np.int32(state.tick), reading, np.int32(since), state.seeds)
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
        cache = acting.follow(params, cache, read, np.int32(first), np.int32(stop - first))
    return cache


def _look(acting: Acting, params: hk.Params, state: AgentState, reader: str, cache: Cache) -> tuple[Cache, np.ndarray]:
    """Returns the reader's cache after the images that are due, and how many patches those were, int32 [B]."""
    layout, schema, config = acting.layout, acting.schema, acting.network.config
    window = (config.planner if reader == "planner" else config.controller).window
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
            cache = acting.look(params, cache, tokens, Patches(pixels, *places, due), np.int32(state.tick))
            seen += due
    return cache, seen


READERS = ("planner", "controller")
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
    numbers = planner_tokens if reader == "planner" else controller_tokens
    size = tokens_per_update(layout) if reader == "planner" else tokens_per_reading(layout)
    value, field = (part[:, 0] for part in numbers(state.history, np.array([now]), np.array([heard.last])))
    count = np.full(len(value), size, np.int32)
    if not heard.fields:
        return stepwise.Tokens(value, field, count, seen), np.int32(1), heard._replace(last=now)
    config = acting.network.config
    window = (config.planner if reader == "planner" else config.controller).window
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
    for field in words(getattr(acting.layout, reader)):
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
