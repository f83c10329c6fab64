"""Feed a real-time run to the parallel pass: every tick's logits must be those that were acted on, missed deadlines and all.

    python -m experiments.replay runs/real_time

A few seconds an episode. Exits with 1 where they differ by more than 1e-4 of the largest logit (at least 1), or where what was
executed is not what the agent gave, but the safe action where it was stopped.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import NamedTuple

import haiku as hk
import jax
import numpy as np
import tyro

from experiments.real_time import newest_step
from experiments.real_time_run import Weights, parts
from experiments.train import cache_compilations
from hierarchy.control.real_time import Update
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import fill
from hierarchy.corpus.reading import Pieces
from hierarchy.corpus.segment import Segment, cut, encode_episode
from hierarchy.corpus.store import Source
from hierarchy.corpus.text import Tokenizer
from hierarchy.episode import Episode
from hierarchy.layout import Schema
from hierarchy.model.network import Network
from hierarchy.model.parallel import forward
from hierarchy.timeline import NO_PLAN, Timeline, age, draw_timeline, recorded, visible
from hierarchy.training.checkpoint import CheckpointError

TOLERANCE = 1e-4
ANY = 1 << 30
"""A budget that nothing exceeds."""


class Acted(NamedTuple):
    """What an episode's agent acted on. plan: int [T], the tick that the plan in use observed, -1 for none. without: ticks at
    which a plan was there and not used. stopped: ticks at which `safe` [A] was executed instead. late_ms: float [N], for how long
    plans that were taken had been held back on purpose. logits: float32 [T, A, classes]."""

    timeline: Timeline
    plan: np.ndarray
    without: np.ndarray
    stopped: np.ndarray
    safe: np.ndarray
    late_ms: np.ndarray
    logits: np.ndarray


def read(path: Path) -> Acted:
    """Returns what `experiments.real_time` wrote of one episode."""
    with np.load(path, allow_pickle=False) as arrays:
        held_back = arrays["updates"][:, Update._fields.index("held_back")] / 1e6
        timeline = recorded(arrays["observed"], arrays["ready"])
        rest = (arrays[name] for name in ("plan", "without", "stopped", "safe"))
        return Acted(timeline, *rest, held_back[held_back > 0], arrays["logits"])


def check_plans(acted: Acted) -> None:
    """Raises ValueError where the recorded timeline shows another plan than the one acted on."""
    ticks = np.arange(len(acted.plan))
    shown = np.append(acted.timeline.observed, NO_PLAN)[visible(acted.timeline, ticks)]
    shown[acted.without] = NO_PLAN
    if not np.array_equal(shown, acted.plan):
        tick = int(np.argmax(shown != acted.plan))
        raise ValueError(
            f"tick {tick} acted on the plan of tick {acted.plan[tick]}, and the timeline shows that of {shown[tick]}"
        )


def check_actions(acted: Acted, episode: Episode) -> None:
    """Raises ValueError where an action was executed that is neither the agent's own nor, where it was stopped, the safe one."""
    own = np.array(episode.label)
    own[acted.stopped] = acted.safe.astype(own.dtype)
    differs = (own != episode.action).reshape(episode.ticks, -1).any(axis=1)
    if differs.any():
        tick = int(np.argmax(differs))
        whose = "safe one, and it was stopped" if tick in acted.stopped else "agent's own, and it was not stopped"
        raise ValueError(f"tick {tick} executed {episode.action[tick]}: that is not the {whose}")


def segment_of(network: Network, schema: Schema, name: str, episode: Episode, acted: Acted, tokenizer: Pieces | None) -> Segment:
    """Returns the whole episode as one segment under its recorded timeline; ticks that used no plan see none."""
    slow, fast = network.config.planner, network.config.controller
    packing = Packing(
        controller_tokens=ANY,
        planner_tokens=ANY,
        lead_in=0,
        planner_lead_in=0,
        planner_reread=slow.window // 2 if slow else 1,
        controller_reread=fast.window // 2,
    )
    encoded = encode_episode(schema, name, episode, tokenizer)
    segment = cut(np.random.default_rng(0), encoded, acted.timeline, (0, episode.ticks), packing)
    without = np.isin(segment.controller.tick, acted.without)
    return segment._replace(plan=np.where(without, -1, segment.plan), age=np.where(without, -1, segment.age))


def difference(network: Network, params: hk.Params, schema: Schema, segment: Segment, logits: np.ndarray) -> np.ndarray:
    """Returns float [T]: the largest difference of each tick's logits from the parallel pass', over max(1, largest logit)."""
    exact = Packing(
        rows=1,
        controller_tokens=len(segment.controller.tick),
        planner_tokens=max(1, len(segment.planner.tick)),
        plans=max(1, len(segment.plan_slot)),
        action_targets=len(segment.continuous.slot) + len(segment.discrete.slot),
        sub_goal_targets=len(segment.sub_goal.slot),
    )
    found = jax.jit(functools.partial(forward, network))(params, fill([[segment]], schema, exact))
    parallel = np.asarray(found.continuous if len(segment.continuous.slot) else found.discrete)[0].reshape(logits.shape)
    legal = logits > -1e29
    if np.isnan(logits).any() or np.isnan(parallel).any():
        raise ValueError(f"logits that are not numbers: of the {'run' if np.isnan(logits).any() else 'parallel pass'}")
    if not np.array_equal(legal, parallel > -1e29):
        raise ValueError("the parallel pass has other legal ids than the run: the layout has changed since")
    apart = np.where(legal, np.abs(parallel - logits), 0.0).max(axis=(1, 2))
    return apart / max(1.0, np.abs(logits[legal]).max())


def replay(folder: Path) -> list[np.ndarray]:
    """Returns `difference` of each episode of a run, and prints a line about each."""
    facts = json.loads((folder / "facts.json").read_text())
    config = facts["config"]
    weights = Weights(**(config["weights"] | {"run": Path(config["weights"]["run"]) if config["weights"]["run"] else None}))
    if weights.run and (step := newest_step(weights.run)) != facts["step"]:
        raise ValueError(
            f"{weights.run} acted at step {facts['step']}, and its newest checkpoint is of step {step}: run it again"
        )
    tokenizer = folder / facts["tokenizer"]["file"] if facts["tokenizer"] else None
    if tokenizer and Tokenizer.load(tokenizer).hash != facts["tokenizer"]["hash"]:
        raise ValueError(f"{tokenizer} is another tokenizer than the one that acted: run it again")
    acting, params, pieces = parts(weights, config["task"], tokenizer, None)
    worst, late = [], []
    for number, episode in enumerate(Source.open(folder / "episodes")):
        acted = read(folder / f"acted-{number:04d}.npz")
        check_plans(acted)
        check_actions(acted, episode)
        segment = segment_of(acting.network, acting.schema, config["task"], episode, acted, pieces)
        apart = difference(acting.network, params, acting.schema, segment, acted.logits)
        worst.append(apart)
        late += acted.late_ms.tolist()
        old = age(acted.timeline, np.arange(episode.ticks))
        print(
            f"episode {number}: {episode.ticks} ticks, {len(acted.timeline.observed)} updates, plan age up to {old.max()}, "
            f"{len(acted.without)} ticks without the plan that was there, {len(acted.stopped)} stopped, "
            f"{len(acted.late_ms)} plans held back: logits within {apart.max():.1e}"
        )
        print(draw_timeline(acted.timeline, min(episode.ticks, 24)))
    if late:
        by = f"{min(late):.0f} to {max(late):.0f} ms, {np.mean(late):.0f} on average"
        print(f"{len(late)} plans that were taken had been held back on purpose, by {by}")
    return worst


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """run: folder that `experiments.real_time` wrote."""

    run: tyro.conf.Positional[Path]


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(ReplayConfig, description=f"{__doc__}\n{ReplayConfig.__doc__}")
    cache_compilations(Path("runs/.jax_cache"))
    try:
        worst = float(np.max(np.concatenate(replay(config.run))))
    except (ValueError, OSError, CheckpointError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 1
    print(f"largest difference {worst:.1e}, and {TOLERANCE:.0e} is allowed: {'agrees' if worst <= TOLERANCE else 'DIFFERS'}")
    return int(not worst <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
