"""Close the loop with a trained run: any task it was trained on, any ratio and latency.

    python -m experiments.evaluate --run runs/demo/two_rate --task patrol --ratio 8 --latency 4

Prints the cell's return with its interval (0 random, 100 expert) and, with --rows, appends it as a row. About 5 s for 128 episodes
of the patrol, after some seconds of compilation.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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
from experiments.tasks import find, schema_of
from experiments.train import TOKENIZER, cache_compilations
from hierarchy.control.agent import Acting, Agent, compile_acting
from hierarchy.corpus.text import Tokenizer
from hierarchy.layout import Schema, describe
from hierarchy.model.config import ModelConfig
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
    """A run's newest weights, ready to act. Functions are compiled once a task and decoding."""

    name: str
    network: Network
    schema: Schema
    tokenizer: Tokenizer | None
    params: dict
    facts: dict

    @functools.lru_cache(64)  # noqa: B019 (a run lives as long as its process)
    def acting(self, task: str, decoding: Decoding) -> Acting:
        """Returns the compiled acting functions of one task."""
        return compile_acting(self.network, self.schema, task, decoding)

    def agent(
        self, task: str, timeline: Timeline, horizon: int, decoding: Decoding = "mean", control: Control = "none"
    ) -> Agent:
        """Returns an agent on a timeline."""
        changed = intervention(control)
        return Agent(
            self.acting(task, decoding), self.params, timeline, horizon=horizon, tokenizer=self.tokenizer, intervention=changed
        )

    def __hash__(self) -> int:
        return id(self)


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
    schema = schema_of(tuple(facts["tasks"]), tokenizer.pieces if tokenizer else 0, facts["agent"])
    if difference := first_difference(facts["schema"], describe(schema)):
        raise CheckpointError(f"{folder} is a checkpoint of another layout: {difference}; train it again, or use its own code")
    network = build(config_from(facts["model"]), schema)
    manager = open_manager(folder / "checkpoints")
    state = restore(manager, jax.eval_shape(lambda: initial_state(network, LearnerConfig())))
    if state is None:
        raise CheckpointError(f"{folder} has no checkpoint yet: train it first")
    return Trained(facts["agent"], network, schema, tokenizer, state.params, facts)


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


def policy_of(
    trained: Trained, agent: str, task: str, ratio: int, latency: int, control: Control, decoding: Decoding
) -> Policy:
    """Returns the policy of a cell: the run's own agent, or `held_action` and `late_action` made from it at (1, 0)."""
    horizon = find(task).ticks
    if agent == "held_action":
        return HeldAction(trained.agent(task, periodic(horizon, 1), horizon, decoding), ratio)
    if agent == "late_action":
        return LateAction(trained.agent(task, periodic(horizon, 1), horizon, decoding), latency)
    return trained.agent(task, periodic(horizon, ratio, latency), horizon, decoding, control)


def measure(
    trained: Trained,
    task: str,
    ratio: int,
    latency: int,
    episodes: int,
    *,
    agent: str | None = None,
    control: Control = "none",
    decoding: Decoding = "mean",
    tick_ms: tuple[float, float] | None = None,
) -> Row:
    """Returns the row of one cell; all its episodes are stepped together.

    agent: None for the run's own; "held_action" (an action every `ratio` ticks) or "late_action" (by `latency` ticks).
    """
    began = time.perf_counter()
    plain = agent is None
    policy = policy_of(trained, agent or trained.name, task, ratio, latency, control, decoding)
    totals = returns(run(environments(task, episodes), policy, seeds_of(episodes)))
    return row_of(trained, task, agent or trained.name, ratio, latency, totals).with_(
        variant="" if plain else trained.name, control=control, wall_s=time.perf_counter() - began, tick_ms=tick_ms
    )
