"""The agent: any loop gives it observations and takes actions; the timeline says when the planner runs and which plan is seen."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from hierarchy.corpus.codecs import from_unit
from hierarchy.corpus.reading import History, Pieces, controller_tokens, planner_tokens, spoken_fields, words_due
from hierarchy.layout import EMPTY, Bounded, Layout, Schema, tick_action, tokens_per_reading, tokens_per_update, words
from hierarchy.model import stepwise
from hierarchy.model.network import Network
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
    read: Callable[..., Any]
    no_plan: Callable[..., Any]
    tick: Callable[..., Any]


def compile_acting(network: Network, schema: Schema, name: str, decoding: stepwise.Decoding = "mean") -> Acting:
    """Returns the acting functions of layout `name`. Caches given to them are donated.

    decoding: "sample" draws an id, "argmax" takes the likeliest, "mean" takes the mean over bins of a bounded action.
    """
    layout = schema[name]

    def update(params, cache, tokens, chunks, now):
        return stepwise.update(network, layout, params, cache, tokens, chunks, now)

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
    """What one reader has read: the tick of its last reading, each text field's [B] tick of last reading, and the words of each
    reading as [(tick, [B] counts)], newest last."""

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
        self._no_plan = acting.no_plan(params) if self._has_planner else None
        chunk, gaps = acting.layout.chunk, np.diff([*timeline.observed, horizon])
        if chunk > 1 and (0 not in self._update_at or gaps.max() > chunk):
            raise ValueError(
                f"layout {acting.layout.name!r} acts on chunks of {chunk} ticks: its timeline reads at tick 0 and at least every "
                f"{chunk} ticks, not at {timeline.observed.tolist()}"
            )

    def begin(self, seeds: Sequence[int]) -> AgentState:
        """Returns the state before tick 0 of one episode a seed; seeds are for sampling actions."""
        network, layout, batch = self.acting.network, self.acting.layout, len(seeds)

        def repeat(tree):
            return jax.tree.map(lambda x: jnp.repeat(x[None], batch, axis=0), tree)

        nothing = {
            reader: Heard(-1, {f.name: np.full(batch, -1) for f in words(getattr(layout, reader))}, []) for reader in READERS
        }
        return AgentState(
            tick=0,
            seeds=np.asarray(seeds, np.uint32),
            history=History(self.acting.schema, layout.name, batch, self._tokenizer),
            planner=repeat(stepwise.planner_cache(network, layout)) if self._has_planner else None,
            controller=repeat(stepwise.controller_cache(network, layout)),
            plans={NO_PLAN: repeat(self._no_plan)},
            heard=nothing,
            previous_action=None,
            decoded=None,
            updates=0,
        )

    def step(self, state: AgentState, observations: Mapping[str, np.ndarray]) -> tuple[np.ndarray, AgentState]:
        """Returns the actions [B, A] (discrete: int [B]) of this tick, and the state after it.

        observations: name to [B, ...], text as [B] of str. Raises ValueError for what the layout cannot read, and past
        the horizon.
        """
        now = state.tick
        if now >= self._horizon:
            raise ValueError(f"tick {now} is past the agent's horizon of {self._horizon} ticks: give it a longer one")
        state.history.append(observations, state.previous_action)
        if self.acting.layout.chunk > 1 and now not in self._update_at:
            action, *queue = state.queue
            return action, state._replace(tick=now + 1, previous_action=action, queue=tuple(queue))
        state = self._update(state) if self._has_planner and now in self._update_at else state
        newest = int(self._visible[now])
        plans = {j: plan for j, plan in state.plans.items() if j >= newest or j == NO_PLAN}
        tokens, chunks, heard = _tokens(state, "controller", self.acting)
        reading = plans[newest].reading if self._has_planner else None
        since = np.int32(self._age[now])
        controller, decoded = self.acting.tick(
            self.params, state.controller, tokens, chunks, np.int32(now), reading, since, state.seeds
        )
        action, *queue = as_actions(self.acting.layout, decoded)
        heard = state.heard | {"controller": heard}
        return action, state._replace(
            tick=now + 1,
            controller=controller,
            plans=plans,
            heard=heard,
            previous_action=action,
            decoded=decoded,
            queue=tuple(queue),
        )

    def _update(self, state: AgentState) -> AgentState:
        """Runs the update that is due; its plan waits in `plans` until the timeline makes it visible."""
        j = self._update_at[state.tick]
        tokens, chunks, heard = _tokens(state, "planner", self.acting)
        cache, plan = self.acting.update(self.params, state.planner, tokens, chunks, np.int32(state.tick))
        if self._intervention is not None:
            plan = self.acting.read(self.params, self._intervention(j, plan.vectors))
        return state._replace(
            planner=cache, plans=state.plans | {j: plan}, heard=state.heard | {"planner": heard}, updates=state.updates + 1
        )


READERS = ("planner", "controller")


def as_actions(layout: Layout, decoded: stepwise.Action) -> list[np.ndarray]:
    """Returns the decoded action of each tick of the layout's chunk, in the environment's units: [B, A] inside the spec, or int
    [B] for one discrete action."""
    codec, units = tick_action(layout).codec, np.split(np.asarray(decoded.unit), layout.chunk, axis=1)
    if isinstance(codec, Bounded):
        return [from_unit(codec, unit) for unit in units]
    return [unit[:, 0].astype(np.int32) if unit.shape[1] == 1 else unit.astype(np.int32) for unit in units]


def _tokens(state: AgentState, reader: str, acting: Acting) -> tuple[stepwise.Tokens, np.int32, Heard]:
    """Returns one reader's tokens at the state's tick, the number of chunks they fill, and what it has heard after that."""
    layout, now = acting.layout, state.tick
    numbers = planner_tokens if reader == "planner" else controller_tokens
    size = tokens_per_update(layout) if reader == "planner" else tokens_per_reading(layout)
    heard = state.heard[reader]
    value, field = (part[:, 0] for part in numbers(state.history, np.array([now]), np.array([heard.last])))
    count = np.full(len(value), size, np.int32)
    if not heard.fields:
        return stepwise.Tokens(value, field, count), np.int32(1), heard._replace(last=now)
    config = acting.network.config
    window = (config.planner if reader == "planner" else config.controller).window
    pieces, fields = _words(state, reader, acting, window // 2)
    lengths = np.array([len(each) for each in pieces])
    recent = [(tick, many) for tick, many in heard.words if now - tick < window] + [(now, lengths)]
    held = int(np.max(sum(many for _, many in recent)))
    if held > config.text_slots:
        raise ValueError(
            f"layout {layout.name!r}: the {reader} would hold {held} words in its window of {window} ticks, and text_slots is "
            f"{config.text_slots}: raise text_slots in the model's config, or send fewer words"
        )
    value, field = _words_first(pieces, fields, value, field, -(-config.text_slots // size) * size)
    count = count + lengths.astype(np.int32)
    return stepwise.Tokens(value, field, count), np.int32(-(-count.max() // size)), Heard(now, heard.fields, recent)


def _words(state: AgentState, reader: str, acting: Acting, reread: int) -> tuple[list[list[int]], list[list[int]]]:
    """Returns each episode's pieces that are due at this tick, and their field ids; notes that they were read."""
    heard, ids = state.heard[reader], acting.schema.field_ids(acting.layout.name)
    pieces: list[list[int]] = [[] for _ in state.seeds]
    fields: list[list[int]] = [[] for _ in state.seeds]
    for field in words(getattr(acting.layout, reader)):
        last = heard.fields[field.name]
        for episode, changes in enumerate(state.history.spoken[field.name]):
            if changes and words_due(changes[-1][0], int(last[episode]), state.tick, reread):
                last[episode] = state.tick
                pieces[episode] += changes[-1][1]
                fields[episode] += spoken_fields(field, ids[reader, field.name], changes[-1][1])
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
