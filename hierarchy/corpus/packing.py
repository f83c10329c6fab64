"""Fills rows of fixed size with segments of episodes whose ratios, latencies and phases are drawn one by one."""

import dataclasses
from collections.abc import Callable

import numpy as np

from hierarchy.batch import Above, Batch, Patches, Stream, Targets
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.outline import HEADS, TAKEN, NoLoss, Outline, outline, window_at
from hierarchy.corpus.placing import STREAMS, Offer, as_offer, place
from hierarchy.corpus.prompts import is_prompted, lay_before
from hierarchy.corpus.reading import Encoded
from hierarchy.corpus.segment import Segment, make, taken, trim
from hierarchy.layout import EMPTY, Piece, Schema, images, planner_name
from hierarchy.timeline import Timeline, draw, draw_irregular

# Windows in a row that no row can hold: after so many there is no batch.
FAILURES = 8
FILL = {True: np.array([0.9, 0.95]), False: np.array([1.0, 1.0])}
"""How full of its two streams a batch is drawn, by whether windows grow into what is left: with so little to spare everything
finds its place."""


def pack(
    rng: np.random.Generator, next_episode: Callable[[np.random.Generator], Encoded], schema: Schema, packing: Packing
) -> tuple[Batch, dict[str, float]]:
    """Returns a batch and its figures: `episodes`, `loss_ticks`, the share of segments that are `prompted`, the share of those
    drawn that are `left_out`, and shares of padding `controller_padding`, `planner_padding`, and so on for the planners above.

    next_episode: returns the next episode to cut a segment from. The batch is a function of `rng` and of what it returns. It is
    asked until the segments would fill one of the streams of all rows; that and not their sizes says how many there are, so that
    each kind is there as often as it is drawn (Wald's identity).

    Raises:
        ValueError: a segment does not fit an empty row; says which budget to raise.
    """
    offers = draw_offers(rng, next_episode, packing)
    held, left_out = place(offers, _budgets(packing), packing.rows, packing.segment_ticks is not None)
    places = rng if packing.draw_places else None
    rows = [[trim(offer.made or make(places, offer.outline), tokens) for offer, tokens in row] for row in held]
    return fill(rows, schema, packing), _figures(rows, packing) | {"left_out": left_out / len(offers)}


def draw_offers(
    rng: np.random.Generator, next_episode: Callable[[np.random.Generator], Encoded], packing: Packing
) -> list[Offer]:
    """Returns segments that would fill one of the streams of all rows, the last of them what is over."""
    offers, failures = [], 0
    budgets = _budgets(packing)
    room = np.maximum(packing.rows * budgets[STREAMS], 1) * FILL[packing.segment_ticks is not None]
    while (room > 0).all():
        try:
            offer = draw_offer(rng, next_episode(rng), packing)
        except NoLoss:
            # A window over the change from one long update to the next may see plans that one row cannot hold: draw another.
            failures += 1
            if failures == FAILURES and not offers:
                raise
            continue
        _check_alone(offer.least, packing)
        offers.append(offer)
        room = room - offer.whole[STREAMS]
    return offers


def draw_offer(rng: np.random.Generator, encoded: Encoded, packing: Packing) -> Offer:
    """Returns a segment of the episode under drawn timelines, one a link, its window drawn too, after its prompt where a row has
    room for both. Chunks come one after another."""
    timeline = draw_timeline_of(rng, encoded, packing)
    above = [draw(rng, encoded.ticks, link.ratios, link.latencies) for link in packing.above]
    window, begin = rng.random(2)

    drawn = outline(encoded, timeline, window_at(window, encoded, packing), packing, above, begin)
    known = drawn.read if drawn.read.first == 0 and drawn.read.stop == np.searchsorted(timeline.observed, encoded.ticks) else None

    def again(longer: int, tokens: np.ndarray | None) -> Outline:
        own = window_at(window, encoded, packing, longer)
        if tokens is None:
            return outline(encoded, timeline, own, packing, above, begin, None if above else known)
        room = dataclasses.replace(packing, controller_tokens=int(tokens[0]), planner_tokens=int(tokens[1]))
        return outline(encoded, timeline, own, room, above, begin)

    offer = as_offer(drawn, again)
    if encoded.prompt is None:
        return offer
    if above:
        raise ValueError("prompts are read by one planner at most: leave them out where there are planners above it")
    segment = make(rng if packing.draw_places else None, offer.outline)
    for own in (segment, trim(segment)):
        made = lay_before(rng, encoded.prompt, own, timeline, packing)
        if (taken(made) <= _budgets(packing)).all():
            return Offer(taken(made), taken(trim(made)), made=made)
    return offer


def draw_timeline_of(rng: np.random.Generator, encoded: Encoded, packing: Packing) -> Timeline:
    """Returns the timeline of a segment: the one under which the episode was recorded, an irregular one, or a periodic one."""
    wait, chunk = bool(rng.random() < packing.wait_for_first), encoded.history.layout.chunk
    # A share of 0 draws nothing, so that it leaves the batches of a mixture that has no use for it as they were.
    if packing.recorded_timelines and encoded.timeline is not None and rng.random() < packing.recorded_timelines:
        return encoded.timeline
    one_by_one = packing.irregular and chunk == 1 and rng.random() < packing.irregular
    ratios = packing.ratios if chunk == 1 else (chunk,)
    return (draw_irregular if one_by_one else draw)(rng, encoded.ticks, ratios, packing.latencies, wait_for_first=wait)


def fill(rows: list[list[Segment]], schema: Schema, packing: Packing) -> Batch:
    """Returns the batch whose row b holds the segments `rows[b]`, numbered 1, 2, ...

    A head that no layout of the schema uses has no entries at all.
    """
    count = len(rows)
    controller = _empty_stream(count, packing.controller_tokens, schema.controller_atoms)
    planner = _empty_stream(count, packing.planner_tokens, schema.planner_atoms)
    plan_slot = np.full((count, packing.plans), -1, np.int32)
    plan, age = np.full((2, count, packing.controller_tokens), -1, np.int32)
    heads = {name: _empty_targets(count, budget) for name, budget in _heads(schema, packing).items()}
    heads["patches"] = _empty_patches(count, packing.patches if schema.patch_values else 0, schema.patch_values)
    by_planner = _slow_parts(schema)
    above = _fill_above(rows, schema, packing)
    for b, segments in enumerate(rows):
        fast, slow, plans, filled = 0, 0, 0, dict.fromkeys(heads, 0)
        for number, segment in enumerate(segments, start=1):
            fast_stop, slow_stop = fast + len(segment.controller.tick), slow + len(segment.planner.tick)
            _copy(controller, segment.controller, b, slice(fast, fast_stop), number)
            _copy(planner, segment.planner, b, slice(slow, slow_stop), number)
            plan[b, fast:fast_stop] = np.where(segment.plan < 0, -1, segment.plan + plans)
            age[b, fast:fast_stop] = segment.age
            plan_slot[b, plans : plans + len(segment.plan_slot)] = segment.plan_slot + slow
            for name, targets in heads.items():
                entries = getattr(segment, name)
                at = slice(filled[name], filled[name] + len(entries.slot))
                for whole, part in zip(targets, entries):
                    whole[b, at] = part
                targets.slot[b, at] += slow if name in by_planner else fast
                filled[name] = at.stop
            fast, slow, plans = fast_stop, slow_stop, plans + len(segment.plan_slot)
    return Batch(controller, planner, plan_slot, plan, age, **heads, above=above)


def _fill_above(rows: list[list[Segment]], schema: Schema, packing: Packing) -> tuple[Above, ...]:
    """The planners above the planner, segments in the rows as they are in the streams below."""
    if len(packing.above) != schema.above:
        raise ValueError(f"packing: {len(packing.above)} budgets above the planner, and the layouts have {schema.above} there")
    filled, below_tokens = [], packing.planner_tokens
    for level, budget in enumerate(packing.above):
        stream = _empty_stream(len(rows), budget.tokens, schema.planner_atoms)
        plan_slot = np.full((len(rows), budget.plans), -1, np.int32)
        plan, age = np.full((2, len(rows), below_tokens), -1, np.int32)
        for b, segments in enumerate(rows):
            tokens, below, plans = 0, 0, 0
            for number, segment in enumerate(segments, start=1):
                part = segment.above[level]
                stop, stop_below = tokens + len(part.stream.tick), below + len(part.plan)
                _copy(stream, part.stream, b, slice(tokens, stop), number)
                plan[b, below:stop_below] = np.where(part.plan < 0, -1, part.plan + plans)
                age[b, below:stop_below] = part.age
                plan_slot[b, plans : plans + len(part.plan_slot)] = part.plan_slot + tokens
                tokens, below, plans = stop, stop_below, plans + len(part.plan_slot)
        filled.append(Above(stream, plan_slot, plan, age))
        below_tokens = budget.tokens
    return tuple(filled)


def _copy(whole: Stream, part: Stream, b: int, at: slice, number: int) -> None:
    for target, source in zip(whole, part):
        target[b, at] = source
    whole.segment[b, at] = number


def _empty_stream(rows: int, tokens: int, atoms: int) -> Stream:
    value, field = np.full((2, rows, tokens, atoms), EMPTY, np.int32)
    tick, segment = np.zeros((2, rows, tokens), np.int32)
    return Stream(value, field, tick, segment, np.zeros((rows, tokens), bool))


def _empty_targets(rows: int, budget: int) -> Targets:
    # A limit of 1 keeps a softmax over the legal ids finite where nothing is to be predicted.
    integers = np.zeros((2, rows, budget), np.int32)
    return Targets(*integers, np.ones((rows, budget), np.int32), np.zeros((rows, budget), np.float32))


def _empty_patches(rows: int, budget: int, values: int) -> Patches:
    places = np.zeros((2, rows, budget), np.int32)
    return Patches(np.zeros((rows, budget, values), np.uint8), *places, np.full((rows, budget), -1, np.int32))


def _heads(schema: Schema, packing: Packing) -> dict[str, int]:
    used = {HEADS[type(layout.action.codec)] for layout in schema.layouts}
    planned = any(isinstance(layout.action.codec, Piece) and layout.planner for layout in schema.layouts)
    return {
        "continuous": packing.action_targets if "continuous" in used else 0,
        "discrete": packing.action_targets if "discrete" in used else 0,
        "text": packing.text_targets if "text" in used else 0,
        "sub_goal": packing.sub_goal_targets if any(layout.sub_goal for layout in schema.layouts) else 0,
        "planner_text": packing.text_targets if planned else 0,
        "following": packing.action_targets if any(layout.predicted for layout in schema.layouts) else 0,
        "lifetime": packing.sub_goal_targets if any(layout.lifetime for layout in schema.layouts) else 0,
    }


def _slow_parts(schema: Schema) -> set[str]:
    """What stands in the planner's stream; without a planner it stands in the controller's."""
    uses = {
        "sub_goal": lambda layout: bool(layout.sub_goal),
        "patches": lambda layout: bool(images(layout.planner + layout.controller)),
    }
    slow = {"planner_text", "lifetime"}
    for name, using in uses.items():
        readers = {bool(layout.planner) for layout in schema.layouts if using(layout)}
        if len(readers) > 1:
            raise ValueError(f"layouts with and without a planner have {name}: one schema keeps them all in one stream")
        slow |= {name} if readers == {True} else set()
    return slow


BUDGETS = {
    "controller": "controller_tokens",
    "planner": "planner_tokens",
    "plans": "plans",
    "continuous": "action_targets",
    "discrete": "action_targets",
    "text": "text_targets",
    "sub_goal": "sub_goal_targets",
    "planner_text": "text_targets",
    "patches": "patches",
    "following": "action_targets",
    "lifetime": "sub_goal_targets",
}
"""The budget of each part that a segment takes of a row."""


def _budgets(packing: Packing) -> np.ndarray:
    above = [budget for link in packing.above for budget in (link.tokens, link.plans)]
    return np.array([getattr(packing, BUDGETS[part]) for part in TAKEN] + above)


def _check_alone(need: np.ndarray, packing: Packing) -> None:
    above = [f"{part} of {planner_name(level)}" for level, _ in enumerate(packing.above, start=2) for part in ("tokens", "plans")]
    for name, wanted, budget in zip([BUDGETS[part] for part in TAKEN] + above, need, _budgets(packing), strict=True):
        if wanted > budget:
            raise ValueError(f"packing: one segment needs {wanted} {name}, and a row has {budget}: raise {name}")


def _figures(rows: list[list[Segment]], packing: Packing) -> dict[str, float]:
    segments = [segment for row in rows for segment in row]
    fast = sum(len(segment.controller.tick) for segment in segments)
    slow = {"planner": (sum(len(segment.planner.tick) for segment in segments), packing.planner_tokens)}
    for level, link in enumerate(packing.above):
        slow[planner_name(level + 2)] = sum(len(segment.above[level].stream.tick) for segment in segments), link.tokens
    padding = {f"{name}_padding": 1 - filled / max(1, packing.rows * tokens) for name, (filled, tokens) in slow.items()}
    return {
        "episodes": len(segments),
        "loss_ticks": sum(segment.ticks for segment in segments),
        "prompted": sum(is_prompted(segment) for segment in segments) / len(segments),
        "controller_padding": 1 - fast / (packing.rows * packing.controller_tokens),
        **padding,
    }
