"""Close the loop with a trained run: any task it was trained on, any ratio and latency.

    python -m experiments.evaluate --run runs/demo/two_rate --task patrol --ratio 8 --latency 4

    python -m experiments.evaluate --run runs/three_rate --ratio 8 --above-ratio 64 --above-latency 8

Prints the cell's return with its interval (0 random, 100 expert) and, with --rows, appends it as a row. About 5 s for 64
episodes of the patrol, after some seconds of compilation. With `--prompt patrol` each episode is begun after a demonstration: the
end of one of the patrol's recorded episodes that were held out of the run's training.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import dm_env
import jax
import numpy as np
import tyro

from envs.loop import Policy, returns, run
from envs.recording import record
from envs.suite_experts import RandomExpert
from experiments.interventions import Control, HeldAction, LateAction, Prompted, intervention
from experiments.rows import Row, append
from experiments.statistics import mean_interval, normalise
from experiments.tasks import Collection, Task, find, layouts_of, schema_of
from experiments.train import TOKENIZER, cache_compilations, first_held_out, in_rounds, lookahead
from hierarchy.control.acting import Acting, Precision, compile_acting
from hierarchy.control.agent import Agent, AgentState
from hierarchy.control.prompt import read_prompt
from hierarchy.control.trigger import Trigger, TriggeredAgent
from hierarchy.corpus.prompts import Prompts, excerpt
from hierarchy.corpus.store import Source
from hierarchy.corpus.text import Tokenizer
from hierarchy.episode import Episode
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

    def acting(self, layout: str, decoding: Decoding, precision: Precision = "float32") -> Acting:
        """Returns the compiled acting functions of one layout."""
        return compile_acting(self.network, self.schema, layout, decoding, precision=precision)

    def layout(self, task: str, cell: "Cell") -> Layout:
        """Returns the layout of a task that a cell needs. Raises ValueError for ticks ahead that were not trained."""
        if not self.lookahead:
            return self.schema[find(task).layout.name]
        layouts = layouts_of(task, self.facts["agent"], self.lookahead)
        ticks = cell.ratio if self.name == "chunked" else cell.latency
        if ticks not in layouts:
            raise ValueError(f"{self.name} was trained {', '.join(map(str, layouts))} ticks ahead, and not {ticks}")
        return self.schema[layouts[ticks].name]

    def agent(
        self,
        name: str,
        timeline: Timeline,
        horizon: int,
        decoding: Decoding = "mean",
        control: Control = "none",
        control_at: int = 1,
        above: Sequence[Timeline] = (),
        precision: Precision = "float32",
    ) -> Agent:
        """Returns an agent on a timeline, or one a link. name: of the layout."""
        acting, changed = self.acting(name, decoding, precision), intervention(control)
        how = {"tokenizer": self.tokenizer, "intervention": changed, "intervene_at": control_at, "above": above}
        return Agent(acting, self.params, timeline, horizon=horizon, **how)

    def in_rounds(self, rounds: int) -> "Trained":
        """Returns the same weights with a planner that goes through its layers so many times."""
        return dataclasses.replace(self, network=build(in_rounds(self.network.config, rounds), self.schema))

    def triggered(self, name: str, trigger: Trigger, latency: int = 0, decoding: Decoding = "mean") -> TriggeredAgent:
        """Returns an agent whose updates come by a trigger."""
        return TriggeredAgent(self.acting(name, decoding), self.params, trigger, latency=latency, tokenizer=self.tokenizer)


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
    pieces = tokenizer.pieces if tokenizer else 0
    schema = schema_of(tuple(facts["tasks"]), pieces, facts["agent"], ticks, facts.get("at_once", False))
    if difference := first_difference(facts["schema"], describe(schema)):
        raise CheckpointError(f"{folder} is a checkpoint of another layout: {difference}; train it again, or use its own code")
    network = build(config_from(facts["model"]), schema)
    manager = open_manager(folder / "checkpoints")
    learner = LearnerConfig(optimizer=facts["learner"].get("optimizer", LearnerConfig.optimizer))
    state = restore(manager, jax.eval_shape(lambda: initial_state(network, learner)))
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
        "fixed": model["planner"] is not None and all(len({*each}) == 1 for link in links(facts) for each in link),
        "rounds": model["planner"] is not None and model["planner"].get("rounds", 1) != preset.planner.rounds,
        "at_once": facts.get("at_once", False),
        "experts": model["planner"] is not None and bool(model["planner"].get("experts")),
        "no_sub_goal": not facts["learner"]["weights"]["sub_goal"],
        "prompts": bool(mix.get("prompts")),
    }
    return "+".join(name for name, there in differs.items() if there)


def links(facts: dict) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Returns the ratios and latencies that each link of a run was trained at, that of planner and controller first."""
    mix = facts["mix"]
    above = [(mix["above_ratios"], mix["above_latencies"])] if facts["model"].get("above") else []
    return [(mix["ratios"], mix["latencies"]), *above]


def config_from(facts: dict) -> ModelConfig:
    """Returns the model's config from its plain form."""
    parts = {name: TransformerConfig(**facts[name]) if facts[name] else None for name in ("planner", "controller")}
    above = tuple(TransformerConfig(**each) for each in facts.get("above", ()))
    return ModelConfig(**(facts | parts | {"above": above}))


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
    if trained.network.config.above and (agent != trained.name or cell.prompt):
        raise ValueError(f"held or late actions, and prompts, are for one planner at most, and {trained.name} has more")
    horizon, above, layout = acted(task).ticks, above_of(trained, task, cell), trained.layout(task, cell)
    if above:
        lower = periodic(horizon, cell.ratio, cell.latency)
        return trained.agent(layout.name, lower, horizon, cell.decoding, cell.control, cell.control_at, above, cell.precision)

    def own(timeline: Timeline, control: Control = "none") -> Policy:
        made = trained.agent(layout.name, timeline, horizon, cell.decoding, control, cell.control_at, precision=cell.precision)
        return Prompted(made, functools.partial(prompt, trained, cell, timeline)) if cell.prompt else made

    if trained.lookahead:
        ahead = own(periodic(horizon, cell.ratio))
        return LateAction(ahead, layout.late) if layout.late else ahead
    if agent == "held_action":
        return HeldAction(own(periodic(horizon, 1)), cell.ratio)
    if agent == "late_action":
        return LateAction(own(periodic(horizon, 1)), cell.latency)
    return own(periodic(horizon, cell.ratio, cell.latency), control=cell.control)


def prompt(trained: Trained, cell: "Cell", timeline: Timeline, state: AgentState) -> AgentState:
    """Returns the state whose agents have each read a demonstration of the task `cell.prompt`.

    Raises:
        ValueError: the run was not trained on that task.
    """
    if cell.prompt not in trained.facts["tasks"]:
        raise ValueError(f"a prompt of {cell.prompt!r}: the run was trained on {', '.join(trained.facts['tasks'])}")
    shown = demonstrations(Path(trained.facts["corpus"]) / cell.prompt, tuple(state.seeds.tolist()), cell.prompt_ticks)
    acting = trained.acting(trained.layout(cell.prompt, cell).name, cell.decoding, cell.precision)
    return read_prompt(acting, trained.params, state, shown, timeline, trained.tokenizer)


@functools.lru_cache(8)
def demonstrations(folder: Path, seeds: tuple[int, ...], ticks: int) -> tuple[Episode, ...]:
    """Returns the last ticks of a recorded episode for each of these seeds, of those of a source that training leaves out.

    Raises:
        ValueError: none of them is that long.
    """
    source = Source.open(folder)
    held_out = [source[index] for index in range(first_held_out(source), len(source))]
    long = [episode for episode in held_out if episode.ticks >= ticks]
    if not long:
        raise ValueError(
            f"none of the {len(held_out)} held-out episodes of {folder} has {ticks} ticks: record more, or prompt less"
        )
    chosen = [long[np.random.default_rng(seed).integers(len(long))] for seed in seeds]
    return tuple(excerpt(episode, episode.ticks - ticks, episode.ticks) for episode in chosen)


def above_of(trained: Trained, task: str, cell: "Cell") -> tuple[Timeline, ...]:
    """Returns the timeline of the planner above the planner, where there is one. Raises ValueError for a cell that gives it none,
    or gives one to an agent without such a planner."""
    there = bool(trained.network.config.above)
    if there != (cell.above_ratio is not None):
        lacks = "give --above-ratio, its ticks from one update to the next" if there else "leave --above-ratio out"
        raise ValueError(f"{trained.name} has {'a' if there else 'no'} planner above the planner: {lacks}")
    if cell.above_latency and not there:
        raise ValueError(f"above_latency {cell.above_latency}: {trained.name} has no planner above the planner, leave it out")
    return (periodic(acted(task).ticks, cell.above_ratio, cell.above_latency),) if there else ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """Where a loop is closed. agent: None for the run's own; "held_action" repeats every action for `ratio` ticks, "late_action"
    brings it `latency` ticks late. control: what is done to the plan. decoding: how an action follows from its logits. prompt:
    the task of the demonstration that is read before tick 0, none by default; prompt_ticks: how long it is.

    precision: of the controller's products.

    above_ratio, above_latency: of the planner above the planner, in ticks as well; None for an agent that has none. control_at:
    whose plans `control` is done to, 1 for the planner's, 2 for those of the planner above it."""

    ratio: int = 8
    latency: int = 0
    agent: Literal["held_action", "late_action"] | None = None
    control: Control = "none"
    decoding: Decoding = "mean"
    prompt: str = ""
    prompt_ticks: int = Prompts.ticks
    precision: Precision = "float32"
    above_ratio: int | None = None
    above_latency: int = 0
    control_at: int = 1


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
    trained_at, seen = trained_on(trained, cell)
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
        flops_per_tick=flops_per_tick(
            trained.network.config, trained.schema, trained.layout(task, cell), ratio, above_ratios(cell)
        ),
        tick_ms_p50=tick_ms and tick_ms[0],
        tick_ms_p99=tick_ms and tick_ms[1],
        params=parameters(trained.network),
        wall_s=time.perf_counter() - began,
        seen_in_training=seen,
        returns=tuple(totals),
        **rates(trained, task, cell),
    )


def variant_in_rows(trained: Trained, cell: Cell) -> str:
    """Returns the row's `variant`: the run's own, or which weights an agent made from it runs; what ran above the planner; and
    what it was shown."""
    after = cell.prompt and f"after_{cell.prompt}_{cell.prompt_ticks}"
    above = f"above_k{cell.above_ratio}d{cell.above_latency}" if cell.above_ratio else ""
    at = f"control_at_{cell.control_at}" if cell.control != "none" and cell.control_at > 1 else ""
    precision = "" if cell.precision == "float32" else cell.precision
    return "+".join(filter(None, (cell.agent and trained.name, trained.variant, precision, above, at, after)))


def above_ratios(cell: Cell) -> tuple[int, ...]:
    """Returns the ratios above the planner's."""
    return () if cell.above_ratio is None else (cell.above_ratio,)


def trained_on(trained: Trained, cell: Cell) -> tuple[str, bool]:
    """Returns the row's `trained_at`, and whether the cell's ratios and latencies were drawn in training."""
    if trained.lookahead:
        trained_at = [(trained.lookahead, (0,)) if trained.name == "chunked" else ((1,), trained.lookahead)]
    elif trained.network.config.planner is None:
        return "none", cell.agent is None
    else:
        trained_at = links(trained.facts)
    asked = [(cell.ratio, cell.latency), (cell.above_ratio, cell.above_latency)]
    fixed = all(len({*each}) == 1 for link in trained_at for each in link)
    name = "_".join(f"k{ratios[0]}d{latencies[0]}" for ratios, latencies in trained_at) if fixed else "random"
    drawn = (ratio in ratios and late in latencies for (ratio, late), (ratios, latencies) in zip(asked, trained_at))
    return name, cell.agent is None and all(drawn)


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


def time_ticks(trained: Trained, task: str, cell: Cell, ticks: int = 256) -> tuple[float, float]:
    """Returns milliseconds (p50, p99) of the agent's step in a closed loop with one environment, the planner's updates inside.

    Of a cell its ratios and its precision count, no latency: plans are computed where they are due.
    """
    late = trained.lookahead[0] if trained.name == "late_action" else 0
    own = Cell(cell.ratio, late, precision=cell.precision, above_ratio=cell.above_ratio)
    agent = policy_of(trained, trained.name, task, own)
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
        took = time_ticks(trained, config.task, config.cell)
        row = measure(trained, config.task, config.cell, config.episodes, took)
        if config.rows:
            append(config.rows, row)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    print(describe_row(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
