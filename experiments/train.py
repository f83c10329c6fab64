"""Train one agent on a corpus of recorded sources.

    python -m experiments.train --agent two_rate --corpus runs/demo/corpus --out runs/demo/two_rate

A corpus is a folder with one source a task (see experiments.record). Interrupt it whenever you like: the same command goes on
from the newest checkpoint, bit for bit. The batches' defaults are the demo's; the demo sets steps and weights itself.

A planner above the planner, with a ratio and a latency of its own, both in ticks:

    --agent three_rate --mix.above-ratios 16 64 --mix.above-latencies 0 4 8

Baselines, with what tells them from the two-rate agent:

    --agent single_rate                          one transformer of as many parameters reads everything at every tick
    --agent controller_only                      no planner, and none of what it reads
    --agent chunked --mix.chunks 2 4 8           one reading, the actions of the next k ticks, none read in between
    --agent late_action --mix.delays 1 2 4       from the observation of tick t the action of tick t + d, which it knows
    --learner.planner detached                   the action's loss does not reach the planner
    --learner.planner frozen                     the planner stays as its warm-up left it
    --mix.ratios 1 --mix.latencies 0             one ratio and latency instead of random ones
    --learner.weights.sub-goal 0 --learner.planner-steps 0        nobody tells the planner what to plan
    --plan-read prefix, --plan-levels 5 5 5 5    another way to read a plan, or plans of a few values
    --rounds 8                                   the planner goes through its layers eight times, with the same weights
    --experts 16 --compute.expert-capacity 1.25  a planner of four to five times the parameters, for the same operations
    --mix.prompts 0.25                           a quarter of the episodes begin after a stretch of another one, as in Gato
    --learner.optimizer muon                     layers' matrices move alike in all directions: many tasks at once learn faster

On several devices, and on several hosts, of which each gives the same command with its own index:

    --mesh.fsdp 8 --compute.precision bfloat16 --compute.scan --compute.remat full
    --mesh.data 2 --mesh.fsdp 4 --mix.shards 2 --hosts.count 2 --hosts.index 0 --hosts.coordinator 10.0.0.1:8476
"""

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

from experiments.tasks import find, layouts_of, schema_of
from hierarchy.batch import Batch
from hierarchy.corpus import text
from hierarchy.corpus.budgets import AbovePacking, Packing
from hierarchy.corpus.mixture import Loader, Mixture, Part
from hierarchy.corpus.prompts import Prompts
from hierarchy.corpus.store import MANIFEST, Source
from hierarchy.layout import Schema, describe
from hierarchy.model.config import PRESETS, ModelConfig, PlanRead
from hierarchy.model.flops import parameters
from hierarchy.model.network import Network, build
from hierarchy.training.checkpoint import CheckpointError, write_facts
from hierarchy.training.hosts import HostLost, HostsConfig, check_rows, connect, in_turn, lost_hosts_named, own_shards
from hierarchy.training.learner import LearnerConfig, TrainState, initial_state, make_step, step_weights
from hierarchy.training.losses import LossWeights
from hierarchy.training.sharding import MeshConfig, spread_over
from hierarchy.training.trainer import Interrupted, NotFinite, TrainerConfig, train
from modules.compute import Compute, Spread

AgentName = Literal["two_rate", "three_rate", "single_rate", "controller_only", "chunked", "late_action"]
TOKENIZER = "tokenizer.model"
HELD_OUT = 0.03


@dataclasses.dataclass(frozen=True)
class Mix:
    """Which sources, and how a batch is filled. Ratios are drawn uniformly from a list, in which one may stand more than once.

    tasks: names of sources in the corpus; empty for all. weights: how often an episode is drawn from each, the first task's
    first; empty for alike. rows, controller_tokens, planner_tokens, plans: budgets of a batch. segment_ticks: ticks with loss
    in a segment of the controller's. wait_for_first: share of the segments whose first plan is waited for. recorded_timelines:
    share of the segments of episodes that tell under which timeline they were recorded which are cut under it. irregular: share
    of the others whose updates come at gaps drawn one by one, with a ratio as their mean. chunks: ticks that the chunked agent
    decodes at once. delays: ticks that the late agent's actions take. Of either, one is drawn uniformly for an episode. prompts:
    share of the episodes that are read after a stretch of another episode of their task, `prompt_ticks` long, where a row has
    room for both. text_targets: pieces that a row has room for, the controller's and the planner's each; None for as many as its
    tokens. Where little is said, fewer make a quicker step.
    above_: the same as of plans, for the planner above the planner of three rates, all in ticks.
    shards: stretches of the corpus that fill equal parts of every batch's rows, a multiple of the hosts; it and not the number
    of hosts says what a batch is.
    """

    tasks: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    rows: int = 4
    controller_tokens: int = 544
    planner_tokens: int = 320
    plans: int = 256
    text_targets: int | None = None
    segment_ticks: int = 96
    ratios: tuple[int, ...] = (1, 4, 4, 4, 16, 16, 16, 16, 32, 32, 32, 32)
    latencies: tuple[int, ...] = tuple(range(9))
    wait_for_first: float = 0.0
    recorded_timelines: float = 0.0
    irregular: float = 0.0
    chunks: tuple[int, ...] = (2, 4, 8, 16)
    delays: tuple[int, ...] = (1, 2, 4, 8)
    above_tokens: int = 192
    above_plans: int = 96
    above_ratios: tuple[int, ...] = (16, 64, 64)
    above_latencies: tuple[int, ...] = tuple(range(9))
    loader_threads: int = 1
    prompts: float = 0.0
    prompt_ticks: int = Prompts.ticks
    shards: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """agent: which model. preset: its size. plan_read: how the controller reads plans, the preset's way by default. plan_levels:
    how many values a plan's channels may take, in turn; none for real numbers. rounds: how often the planner's layers are gone
    through at every update, with the same weights; the preset's number by default. at_once: all elements of an action are decoded
    in one pass, none from another. corpus: folder of sources. out: folder of the run. text_pieces: most pieces of the tokenizer,
    which is trained on the corpus' own words once. experts: of every feed-forward layer of the planner, of which a token goes
    through `chosen`; 0 for none. compute, mesh, hosts: how and where it is computed, which no checkpoint depends on."""

    corpus: Path
    out: Path
    agent: AgentName = "two_rate"
    preset: str = "demo"
    plan_read: PlanRead | None = None
    plan_levels: tuple[int, ...] = ()
    rounds: int | None = None
    at_once: bool = False
    text_pieces: int = 400
    experts: int = 0
    chosen: int = 2
    mix: Mix = Mix()
    learner: LearnerConfig = LearnerConfig()
    trainer: TrainerConfig = TrainerConfig()
    compute: Compute = Compute()
    mesh: MeshConfig = MeshConfig()
    hosts: HostsConfig = HostsConfig()


def sources(config: TrainConfig) -> dict[str, Source]:
    """Returns task name to source, those asked for or all in the corpus, by name."""
    names = config.mix.tasks or tuple(sorted(path.parent.name for path in config.corpus.glob(f"*/{MANIFEST}")))
    if not names:
        raise ValueError(f"no source in {config.corpus}: record one first, `python -m experiments.record --help`")
    return {name: Source.open(config.corpus / name) for name in names}


def tokenizer_of(corpus: Path, among: dict[str, Source], pieces: int) -> text.Tokenizer | None:
    """Returns the corpus' tokenizer, trained at its first use on every wording in its sources' training episodes; None if there
    are no words."""
    path = corpus / TOKENIZER
    if path.exists():
        return text.Tokenizer.load(path)
    trained_on = (source[index] for source in among.values() for index in range(first_held_out(source)))
    said = {words for episode in trained_on for changes in episode.text.values() for _, words in changes}
    return text.train(sorted(said), pieces, path) if said else None


def first_held_out(source: Source) -> int:
    """Returns the number of the first episode of a source that is held out."""
    return max(1, int(len(source) * (1 - HELD_OUT)))


def model_config(config: TrainConfig, schema: Schema, two_rate_schema: Schema) -> ModelConfig:
    """Returns the agent's model: the preset's two-rate one, that with a planner of the same size above its own, its controller
    alone, or one transformer of as many parameters."""
    if config.preset not in PRESETS:
        raise ValueError(f"no preset {config.preset!r}: there are {', '.join(PRESETS)}")
    preset = PRESETS[config.preset]
    model = dataclasses.replace(preset, plan_read=config.plan_read or preset.plan_read, plan_levels=config.plan_levels)
    if config.rounds is not None:
        model = in_rounds(model, config.rounds)
    planner = dataclasses.replace(model.planner, experts=config.experts, chosen=config.chosen)
    if config.agent == "two_rate":
        return dataclasses.replace(model, planner=planner)
    if config.agent == "three_rate":
        return dataclasses.replace(model, planner=planner, above=(model.planner,))
    if config.agent == "controller_only":
        return dataclasses.replace(model, planner=None)
    return single_rate_config(model, parameters(build(model, two_rate_schema)), schema)


def in_rounds(model: ModelConfig, rounds: int) -> ModelConfig:
    """Returns the model whose planner goes through its layers so many times. Its parameters are the same. Raises ValueError for
    one without a planner."""
    if model.planner is None:
        raise ValueError(f"rounds {rounds} are of a planner, and this model has none")
    return dataclasses.replace(model, planner=dataclasses.replace(model.planner, rounds=rounds))


def lookahead(agent: AgentName, mix: dict) -> tuple[int, ...]:
    """Returns the ticks that an agent looks ahead, from its mix in plain form: of chunks, of delays, or none."""
    return tuple({"chunked": mix.get("chunks"), "late_action": mix.get("delays")}.get(agent) or ())


def single_rate_config(config: ModelConfig, wanted: int, schema: Schema) -> ModelConfig:
    """Returns one transformer at every tick: the planner's width, heads and window, a layer more, and the feed-forward size that
    brings its non-embedding parameters closest to `wanted`."""

    def at(feed_forward: int) -> ModelConfig:
        one = dataclasses.replace(config.planner, layers=config.planner.layers + 1, feed_forward=feed_forward, windows=())
        return dataclasses.replace(config, planner=None, controller=one)

    low, high = (parameters(build(at(size), schema)) for size in (2, 4))
    return at(max(2, 2 * round((wanted - low) / (high - low) + 1)))


def packing_of(config: TrainConfig, model: ModelConfig) -> Packing:
    """Returns the packing of a run: the lead-ins and rereads follow from the model's windows.

    Planners have none: they read an episode from its start, and their budgets must hold it.
    """
    mix, fast = config.mix, model.controller
    drawn = ("ratios", "latencies", "rows", "wait_for_first", "recorded_timelines", "irregular")
    common = {name: getattr(mix, name) for name in drawn}
    if config.agent not in ("two_rate", "three_rate", "controller_only"):
        return Packing(
            controller_tokens=mix.planner_tokens,
            planner_tokens=1,
            plans=1,
            action_targets=2 * mix.planner_tokens,
            sub_goal_targets=2 * mix.planner_tokens,
            text_targets=mix.text_targets or mix.planner_tokens,
            patches=mix.planner_tokens // 2,
            segment_ticks=None,
            lead_in=0,
            controller_reread=fast.window // 2,
            **common,
        )
    slow = model.planner
    return Packing(
        controller_tokens=mix.controller_tokens,
        planner_tokens=mix.planner_tokens if slow else 1,
        plans=mix.plans if slow else 1,
        action_targets=mix.controller_tokens,
        sub_goal_targets=2 * mix.planner_tokens,
        text_targets=mix.text_targets or max(mix.controller_tokens, mix.planner_tokens),
        patches=mix.planner_tokens // 2,
        segment_ticks=mix.segment_ticks,
        lead_in=fast.lead_in,
        planner_lead_in=0,
        planner_reread=slow.window // 2 if slow else 1,
        above=tuple(
            AbovePacking(mix.above_tokens, mix.above_plans, 0, own.window // 2, mix.above_ratios, mix.above_latencies)
            for own in model.above
        ),
        **common,
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a training run is made of."""

    network: Network
    schema: Schema
    tokenizer: text.Tokenizer | None
    mixture: Mixture
    held_out: list[Batch]


def assemble(config: TrainConfig) -> Run:
    """Returns the run's parts. The last episodes of every source are held out."""
    among = sources(config)
    tokenizer = tokenizer_of(config.corpus, among, config.text_pieces)
    pieces = tokenizer.pieces if tokenizer else 0
    ticks = lookahead(config.agent, dataclasses.asdict(config.mix))
    schema = schema_of(tuple(among), pieces, config.agent, ticks, config.at_once)
    network = build(model_config(config, schema, schema_of(tuple(among), pieces, "two_rate")), schema)
    packing = packing_of(config, network.config)
    check_warm_up(config, network)
    weights = config.mix.weights or (1.0,) * len(among)
    if len(weights) != len(among):
        raise ValueError(f"{len(weights)} weights for the tasks {', '.join(among)}: give one each, in this order")
    parts, later = [], []
    for (name, source), weight in zip(among.items(), weights, strict=True):
        split = first_held_out(source)
        for layout in layouts_of(name, config.agent, ticks).values():
            parts.append(Part(Stretch(source, 0, split), layout.name, weight, find(name).augment))
            later.append(Part(Stretch(source, min(split, len(source) - 1), len(source)), layout.name, weight))
    held_out = Mixture(schema, dataclasses.replace(packing, draw_places=False), later, tokenizer)
    batches = [held_out.batch(config.learner.seed + 1_000_003, i)[0] for i in range(4)]
    prompts = Prompts(config.mix.prompts, config.mix.prompt_ticks)
    return Run(network, schema, tokenizer, Mixture(schema, packing, parts, tokenizer, prompts=prompts), batches)


def check_warm_up(config: TrainConfig, network: Network) -> None:
    """Raises ValueError for a warm-up that would train nothing, and for what only an agent with a planner has."""
    learner, plain = config.learner, PRESETS[config.preset]
    table, weights = network.table, learner.weights
    own = (table.goals and weights.sub_goal) or (table.pieces and weights.planner_text) or (table.lives and weights.lifetime)
    if learner.planner_steps and not own:
        raise ValueError(
            f"planner_steps {learner.planner_steps} would train nothing, the planner has no loss of its own here: set "
            "learner.planner-steps to 0"
        )
    asked = {
        "learner.planner": learner.planner != "joint",
        "plan-read": config.plan_read not in (None, plain.plan_read),
        "plan-levels": bool(config.plan_levels),
        "rounds": config.rounds not in (None, plain.planner.rounds),
        "experts": config.experts > 0,
    }
    wrong = [name for name, there in asked.items() if there]
    if wrong and config.agent not in ("two_rate", "three_rate"):
        raise ValueError(f"{' and '.join(wrong)} is about planners, and {config.agent} has none: leave it out, or train two_rate")
    above = [name for name in ABOVE if getattr(config.mix, name) != getattr(Mix, name)]
    if above and config.agent != "three_rate":
        told = " and ".join(f"mix.{name.replace('_', '-')}" for name in above)
        raise ValueError(f"{told} is about a planner above the planner, and {config.agent} has none: train three_rate")


class Stretch:
    """The episodes [first, last) of a source."""

    def __init__(self, source: Source, first: int, last: int):
        self._source, self._first, self._last = source, first, last

    def __len__(self) -> int:
        return self._last - self._first

    def __getitem__(self, index: int):
        return self._source[self._first + index]


def facts_of(config: TrainConfig, run: Run) -> dict:
    """Returns what a checkpoint of this run is of."""
    above = run.network.config.above
    return {
        "agent": config.agent,
        "preset": config.preset,
        "tasks": list(sources(config)),
        "corpus": str(config.corpus),
        "schema": describe(run.schema),
        "tokenizer": run.tokenizer.hash if run.tokenizer else None,
        "model": said(dataclasses.asdict(run.network.config)),
        "learner": said(dataclasses.asdict(config.learner)),
        "mix": said(dataclasses.asdict(config.mix)) | ({name: getattr(config.mix, name) for name in ABOVE} if above else {}),
        # Said only where it is so: runs from before there was such a thing go on.
        **({"at_once": True} if config.at_once else {}),
    }


ABOVE = ("above_tokens", "above_plans", "above_ratios", "above_latencies")
"""What a mixture says of the planner above the planner."""
NEWER = {
    "prompts": 0.0,
    "prompt_ticks": Prompts.ticks,
    "recorded_timelines": 0.0,
    "irregular": 0.0,
    "following": 0.0,
    "lifetime": 0.0,
    "above": (),
    "shards": 1,
    "accumulate": 1,
    "names_rate": 1.0,
    "optimizer": "adamw",
    "text_targets": None,
    "rounds": 1,
    "windows": (),
    "slowest": None,
    "least_ratio": 1,
    "told_tick": True,
    "experts": 0,
    "chosen": 2,
    "balance": LossWeights.balance,
    "router_z": LossWeights.router_z,
    **{name: getattr(Mix, name) for name in ABOVE},
}
"""What models, mixtures and losses had no word for at first, and what it was."""


def said(facts: dict) -> dict:
    """Returns facts without what is newer than they were and as it always was: runs from before there was such a thing go on."""
    kept = {name: value for name, value in facts.items() if name not in NEWER or value != NEWER[name]}
    return {name: said(value) if isinstance(value, dict) else value for name, value in kept.items()}


def train_run(config: TrainConfig) -> TrainState:
    """Returns the trained state, resuming what is in `config.out`."""
    connect(config.hosts)
    spread, own = devices_of(config), own_shards(config.mix.shards)
    with lost_hosts_named(), in_turn():
        # The first host makes what is on disk, the others find it there.
        run = assemble(config)
        write_facts(config.out, facts_of(config, run))

    def loader(step: int) -> Iterator[tuple[Batch, dict[str, float]]]:
        mix = config.mix
        return Loader(run.mixture, config.learner.seed, step, threads=mix.loader_threads, own=own, shards=mix.shards)

    title = f"training {config.agent}"
    parts = run.network, config.learner, config.trainer, loader, run.held_out, config.out
    return train(*parts, title, config.compute, spread)


def devices_of(config: TrainConfig) -> Spread | None:
    """Returns the devices that a run is spread over; None for a mesh of one. Raises ValueError where rows do not go round."""
    mesh = config.mesh
    if mesh.devices == config.hosts.count == 1:
        return None
    parts = mesh.data * mesh.fsdp
    if config.mix.rows % (parts * config.learner.accumulate):
        raise ValueError(
            f"{config.mix.rows} rows over data x fsdp = {parts} devices in {config.learner.accumulate} parts: give mix.rows a "
            "multiple"
        )
    spread = spread_over(mesh)
    check_rows(spread)
    return spread


def pace_s(config: TrainConfig, steps: int = 30) -> tuple[float, float]:
    """Returns the median seconds of a step in the warm-up and in joint training, compilation left out.

    The first third is left out too: its batches were made while the step was compiled, and from then on a step shares the cores
    with the making of its batches.
    """
    run = assemble(config)
    state, paces = initial_state(run.network, config.learner), []
    batches = Loader(run.mixture, config.learner.seed, 0, threads=config.mix.loader_threads)
    for weights in (step_weights(config.learner, 0), config.learner.weights):
        step, took = make_step(run.network, config.learner, weights, config.compute, None), []
        for _ in range(steps):
            began = time.perf_counter()
            state, metrics = step(state, next(batches)[0])
            jax.block_until_ready(metrics)
            took.append(time.perf_counter() - began)
        paces.append(float(np.median(took[steps // 3 :])))
    batches.close()
    return paces[0], paces[1]


def cache_compilations(folder: Path) -> None:
    """Keeps compiled programs in a folder, so that a second start is fast."""
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(TrainConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        state = train_run(config)
    except (ValueError, OSError, CheckpointError, NotFinite) as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    except HostLost as error:
        print(f"train: {error}", file=sys.stderr, flush=True)
        # Leaving in order would wait for the lost host.
        os._exit(1)
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"train: {error or 'stopped'}", file=sys.stderr)
        return 130
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(state.params))
    print(f"{config.out}: {int(state.step)} steps, {count} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
