"""Close the loop with a trained run: any task it was trained on, any ratio and latency.

    python -m experiments.evaluate --run runs/demo/two_rate --task patrol --ratio 8 --latency 4

Prints the cell's return with its interval (0 random, 100 expert) and, with --rows, appends it as a row. About 5 s for 64
episodes of the patrol, after some seconds of compilation.
"""

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Literal

import dm_env
import jax
import numpy as np
import tyro

from envs.loop import Policy, returns, run
from envs.recording import record
from envs.suite_experts import RandomExpert
from experiments.interventions import Control, HeldAction, LateAction, intervention
from experiments.rows import Row, append
from experiments.statistics import mean_interval, normalise
from experiments.tasks import Collection, Task, find, layouts_of, schema_of
from experiments.train import TOKENIZER, cache_compilations, lookahead
from hierarchy.control.agent import Acting, Agent, compile_acting
from hierarchy.corpus.text import Tokenizer
from hierarchy.layout import Layout, Schema, describe
from hierarchy.model.config import PRESETS, ModelConfig
from hierarchy.model.flops import flops_per_tick, parameters
from hierarchy.model.network import Network, build
from hierarchy.model.stepwise import Decoding
from hierarchy.timeline import Timeline, age, periodic
from hierarchy.training.checkpoint import CheckpointError, first_difference, open_manager, read_facts, restore
from hierarchy.training.learner import LearnerConfig, initial_state
from modules.transformer import TransformerConfig

FIRST_SEED = 1_000_000
"""Episodes of evaluation start here, far from those of any recording."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run's newest weights, ready to act. Functions are compiled once a layout and decoding.

    name: the agent's in rows. variant: how it differs from the plain agent of that name, empty if it does not. lookahead: ticks
    of its chunks or delays, for an agent that has them.
    """

    name: str
    variant: str
    lookahead: tuple[int, ...]
    network: Network
    schema: Schema
    tokenizer: Tokenizer | None
    params: dict
    facts: dict

    def acting(self, layout: str, decoding: Decoding) -> Acting:
        """Returns the compiled acting functions of one layout."""
        return compile_acting(self.network, self.schema, layout, decoding)

    def layout(self, task: str, cell: "Cell") -> Layout:
        """Returns the layout of a task that a cell needs. Raises ValueError for ticks ahead that were not trained."""
        if not self.lookahead:
            return self.schema[task]
        layouts = layouts_of(task, self.facts["agent"], self.lookahead)
        ticks = cell.ratio if self.name == "chunked" else cell.latency
        if ticks not in layouts:
            raise ValueError(f"{self.name} was trained {', '.join(map(str, layouts))} ticks ahead, and not {ticks}")
        return layouts[ticks]

    def agent(self, name: str, timeline: Timeline, horizon: int, decoding: Decoding = "mean", control: Control = "none") -> Agent:
        """Returns an agent on a timeline. name: of the layout; it is the task's but for agents that look ahead."""
        acting, changed = self.acting(name, decoding), intervention(control)
        return Agent(acting, self.params, timeline, horizon=horizon, tokenizer=self.tokenizer, intervention=changed)


def load(folder: Path) -> Trained:
    """Returns the newest weights of a training run.

    Raises:
        CheckpointError: there is no run or no checkpoint, it is damaged, or its layouts are not those of today's tasks.
    """
    facts = read_facts(folder)
    corpus = Path(facts["corpus"])
    tokenizer = Tokenizer.load(corpus / TOKENIZER) if facts["tokenizer"] else None
    if tokenizer is not None and tokenizer.hash != facts["tokenizer"]:
        raise CheckpointError(f"{folder} was trained with another tokenizer than {corpus / TOKENIZER}: train it again")
    ticks = lookahead(facts["agent"], facts["mix"])
    schema = schema_of(tuple(facts["tasks"]), tokenizer.pieces if tokenizer else 0, facts["agent"], ticks)
    if difference := first_difference(facts["schema"], describe(schema)):
        raise CheckpointError(f"{folder} is a checkpoint of another layout: {difference}; train it again, or use its own code")
    network = build(config_from(facts["model"]), schema)
    manager = open_manager(folder / "checkpoints")
    state = restore(manager, jax.eval_shape(lambda: initial_state(network, LearnerConfig())))
    if state is None:
        raise CheckpointError(f"{folder} has no checkpoint yet: train it first")
    planner = facts["learner"].get("planner", "joint")
    name = facts["agent"] if planner == "joint" else planner
    return Trained(name, variant_of(facts), ticks, network, schema, tokenizer, state.params, facts)


def variant_of(facts: dict) -> str:
    """Returns how a run differs from the plain one of its agent, in words joined by +; empty for the plain one."""
    preset, model, mix = PRESETS[facts["preset"]], facts["model"], facts["mix"]
    differs = {
        model["plan_read"]: model["planner"] is not None and model["plan_read"] != preset.plan_read,
        "quantised": model["planner"] is not None and bool(model.get("plan_levels")),
        "fixed": model["planner"] is not None and len({*mix["ratios"]}) == len({*mix["latencies"]}) == 1,
        "no_sub_goal": not facts["learner"]["weights"]["sub_goal"],
    }
    return "+".join(name for name, there in differs.items() if there)


def config_from(facts: dict) -> ModelConfig:
    """Returns the model's config from its plain form."""
    parts = {name: TransformerConfig(**facts[name]) if facts[name] else None for name in ("planner", "controller")}
    return ModelConfig(**(facts | parts))


@functools.lru_cache(8)
def environments(task: str, count: int) -> tuple[dm_env.Environment, ...]:
    """Returns `count` environments of a task, built once."""
    return tuple(find(task).make() for _ in range(count))


@functools.lru_cache(32)
def scale(task: str, seeds: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the returns [N] of the random policy and of the clean expert, in the episodes of these seeds."""
    environment = find(task).make()

    def total(expert) -> np.ndarray:
        return np.array([record(environment, expert, seed, task).reward.sum() for seed in seeds])

    return total(RandomExpert()), total(find(task).expert(False))


def seeds_of(count: int) -> tuple[int, ...]:
    """Returns the seeds of the first `count` evaluation episodes, the same for every cell."""
    return tuple(range(FIRST_SEED, FIRST_SEED + count))


def acted(task: str) -> Task:
    """Returns a task that can be acted in. Raises ValueError for a collection of texts."""
    found = find(task)
    if isinstance(found, Collection):
        raise ValueError(f"{task!r} has no environment: `python -m experiments.evaluate_text` measures it")
    return found


def policy_of(trained: Trained, agent: str, task: str, cell: "Cell") -> Policy:
    """Returns the policy of a cell: the run's own agent, or `held_action` and `late_action` made from it at (1, 0)."""
    horizon = acted(task).ticks
    if trained.lookahead:
        layout, every = trained.layout(task, cell), periodic(horizon, cell.ratio)
        own = trained.agent(layout.name, every, horizon, cell.decoding)
        return LateAction(own, layout.late) if layout.late else own
    if agent == "held_action":
        return HeldAction(trained.agent(task, periodic(horizon, 1), horizon, cell.decoding), cell.ratio)
    if agent == "late_action":
        return LateAction(trained.agent(task, periodic(horizon, 1), horizon, cell.decoding), cell.latency)
    return trained.agent(task, periodic(horizon, cell.ratio, cell.latency), horizon, cell.decoding, cell.control)


@dataclasses.dataclass(frozen=True)
class Cell:
    """Where a loop is closed. agent: None for the run's own; "held_action" repeats every action for `ratio` ticks, "late_action"
    brings it `latency` ticks late. control: what is done to the plan. decoding: how an action follows from its logits."""

    ratio: int = 8
    latency: int = 0
    agent: Literal["held_action", "late_action"] | None = None
    control: Control = "none"
    decoding: Decoding = "mean"


def measure(trained: Trained, task: str, cell: Cell, episodes: int, tick_ms: tuple[float, float] | None = None) -> Row:
    """Returns the row of one cell; all its episodes are stepped together. tick_ms: p50 and p99, measured apart at batch 1."""
    began = time.perf_counter()
    agent, seeds = cell.agent or trained.name, seeds_of(episodes)
    if cell.control != "none" and trained.network.config.planner is None:
        raise ValueError(f"control {cell.control!r} is done to plans, and {trained.name} has none")
    if cell.agent and trained.lookahead:
        raise ValueError(f"{cell.agent} is made of an agent that decides tick by tick, and {trained.name} looks ahead")
    totals = returns(run(environments(task, episodes), policy_of(trained, agent, task, cell), seeds))
    random, expert = scale(task, seeds)
    scores = normalise(totals, random.mean(), expert.mean())
    interval = mean_interval(scores)
    trained_at, seen = trained_on(trained, trained.facts["mix"], cell)
    ratio = 1 if cell.agent else cell.ratio
    return Row(
        task=task,
        agent=agent,
        variant=variant_in_rows(trained, cell),
        control=cell.control,
        trained_at=trained_at,
        episodes=episodes,
        train_seed=trained.facts["learner"]["seed"],
        normalised_return=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        flops_per_tick=flops_per_tick(trained.network.config, trained.schema, trained.layout(task, cell), ratio),
        tick_ms_p50=tick_ms and tick_ms[0],
        tick_ms_p99=tick_ms and tick_ms[1],
        params=parameters(trained.network),
        wall_s=time.perf_counter() - began,
        seen_in_training=seen,
        returns=tuple(totals),
        **rates(trained, task, cell),
    )


def variant_in_rows(trained: Trained, cell: Cell) -> str:
    """Returns the row's `variant`: the run's own; or, of an agent made from it, which weights it runs."""
    return "+".join(filter(None, (trained.name, trained.variant))) if cell.agent else trained.variant


def trained_on(trained: Trained, mix: dict, cell: Cell) -> tuple[str, bool]:
    """Returns the row's `trained_at`, and whether the cell's ratio and latency were drawn in training."""
    if trained.lookahead:
        ratios, latencies = (trained.lookahead, (0,)) if trained.name == "chunked" else ((1,), trained.lookahead)
    elif trained.network.config.planner is None:
        return "none", cell.agent is None
    else:
        ratios, latencies = mix["ratios"], mix["latencies"]
    ratios, latencies = sorted(set(ratios)), sorted(set(latencies))
    name = f"k{ratios[0]}d{latencies[0]}" if len(ratios) == len(latencies) == 1 else "random"
    return name, cell.agent is None and cell.ratio in ratios and cell.latency in latencies


def rates(trained: Trained, task: str, cell: Cell) -> dict:
    """Returns a row's ratio, latency and its three rates: slow Hz, fast Hz, and how old what an action rests on is, in ticks."""
    fast, ticks = 1 / environments(task, 1)[0].tick_s, find(task).ticks
    plans = trained.network.config.planner is not None
    seldom, late = cell.agent == "held_action" or trained.name == "chunked", "late_action" in (cell.agent, trained.name)
    if seldom:
        own = {"ratio": cell.ratio, "latency": 0, "observation_to_action_ticks": (cell.ratio - 1) / 2}
    elif late:
        own = {"ratio": 1, "latency": cell.latency, "observation_to_action_ticks": float(cell.latency)}
    elif plans:
        ages = age(periodic(ticks, cell.ratio, cell.latency), np.arange(ticks))
        own = {"ratio": cell.ratio, "latency": cell.latency, "observation_to_action_ticks": 0.0}
        own |= {"plan_age_ticks": float(ages[ages >= 0].mean())}
    else:
        reads_all = trained.name == "single_rate"
        own = {"ratio": 1 if reads_all else None, "latency": 0 if reads_all else None, "observation_to_action_ticks": 0.0}
    decided = fast / cell.ratio if seldom else fast
    return own | {"fast_hz": decided, "slow_hz": decided / (1 if cell.agent else cell.ratio) if plans else None}


def time_ticks(trained: Trained, task: str, ratio: int, ticks: int = 256) -> tuple[float, float]:
    """Returns milliseconds (p50, p99) of the agent's step in a closed loop with one environment, the planner's updates inside."""
    late = trained.lookahead[0] if trained.name == "late_action" else 0
    agent = policy_of(trained, trained.name, task, Cell(ratio, late))
    took: list[float] = []

    class Timed:
        begin = staticmethod(agent.begin)

        @staticmethod
        def step(state, observations):
            began = time.perf_counter()
            answer = agent.step(state, observations)
            took.append(1e3 * (time.perf_counter() - began))
            return answer

    for _ in range(2):
        took.clear()
        for _ in run(environments(task, 1), Timed, seeds_of(1), ticks):
            pass
    p50, p99 = np.percentile(took, [50, 99])
    return float(p50), float(p99)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """run: folder of a training run. task: any that it was trained on. episodes: stepped together, the same seeds for every cell.
    rows: file to append the row to."""

    run: Path
    task: str = "patrol"
    cell: tyro.conf.OmitArgPrefixes[Cell] = Cell()
    episodes: int = 128
    rows: Path | None = None


def describe_row(row: Row) -> str:
    """Returns a row in words."""
    who = f"{row.agent} ({row.variant})" if row.variant else row.agent
    where = f"{who} on {row.task}, ratio {row.ratio}, latency {row.latency}, control {row.control}"
    score = f"{row.normalised_return:.1f} [{row.ci_low:.1f}, {row.ci_high:.1f}] over {row.episodes} episodes"
    cost = f"; {row.flops_per_tick / 1e6:.2f} MFLOP a tick" if row.flops_per_tick else ""
    time_ = f", {row.tick_ms_p50:.2f} ms p50, {row.tick_ms_p99:.2f} ms p99" if row.tick_ms_p50 else ""
    return f"{where}: {score} (0 random, 100 expert; 95% bootstrap interval over episodes){cost}{time_}"


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(EvaluateConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        trained = load(config.run)
        if config.task not in trained.facts["tasks"]:
            raise ValueError(f"{config.run} was trained on {', '.join(trained.facts['tasks'])}, and not on {config.task!r}")
        row = measure(trained, config.task, config.cell, config.episodes, time_ticks(trained, config.task, config.cell.ratio))
        if config.rows:
            append(config.rows, row)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(describe_row(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
