"""What the long demo trains: the sources, what each agent is trained on and how; `experiments/demo_long.py` runs it."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

from experiments import train
from experiments.train import Mix, TrainConfig
from hierarchy.training.learner import LearnerConfig, Optimizer
from hierarchy.training.losses import LossWeights
from hierarchy.training.trainer import TrainerConfig

SCRIPTED = {
    "ball_in_cup_catch": 0.065,
    "cartpole_balance": 0.01,
    "cartpole_balance_sparse": 0.01,
    "cartpole_swingup": 0.12,
    "cartpole_swingup_sparse": 0.04,
    "pendulum_swingup": 0.065,
    "point_mass_easy": 0.02,
    "reacher_easy": 0.09,
    "reacher_hard": 0.09,
}
"""Bodies whose experts are scripted, and how often an episode is drawn from each, beside the patrol's and all others."""

PLANNED = {"walker_walk": 0.005, "finger_turn_easy": 0.015, "finger_turn_hard": 0.015, "fish_upright": 0.01}
"""The same of bodies whose experts plan, the longest to record first."""

SAID = {"text": 0.41, "captions": 1.66}
"""The same of what is said."""

BASELINES = ("two_rate", "chunked", "late_action", "detached", "frozen", "fixed")
WITHOUT = "_no_sub_goal"


@dataclasses.dataclass(frozen=True)
class DemoLongConfig:
    """What the long demo does, and how much of it.

    out: folder. minutes: for everything, on the cores that are there. preset: size of the models. patrol_episodes,
    scripted_episodes (of each body with a scripted expert), planned_episodes (of each whose expert plans), documents, captions:
    recorded, documents at most as many as CPython has. seeds: of two_rate and single_rate on the patrol alone; all else has the
    first. baselines: what else is trained on the patrol alone. warm_up, baseline_warm_up: share of the steps in which a planner
    learns its own tasks alone. patrol_share: how often an episode is the patrol's, beside what is listed of all others. rows,
    baseline_rows: of a batch. peak_rate, controller_rate, names_rate, optimizer: of the learner. most_steps: of any training, for
    a short try. episodes, scripted_evaluations, planned_evaluations, documents_read, pictures: a cell.
    """

    out: Path = Path("runs/demo_long")
    minutes: float = 86.0
    preset: str = "demo_wide"
    patrol_episodes: int = 2000
    scripted: tuple[str, ...] = tuple(SCRIPTED)
    scripted_episodes: int = 1000
    planned: tuple[str, ...] = tuple(PLANNED)
    planned_episodes: int = 24
    documents: int = 100_000
    captions: int = 20_000
    text_pieces: int = 800
    seeds: tuple[int, ...] = (0, 1, 2)
    baselines: tuple[str, ...] = (
        *(name + how for name in BASELINES for how in ("", WITHOUT)),
        "controller_only",
    )
    warm_up: float = 0.15
    baseline_warm_up: float = 0.15
    patrol_share: float = 0.44
    rows: int = 3
    baseline_rows: int = 1
    peak_rate: float = 1.5e-3
    controller_rate: float = 3.0
    names_rate: float = 8.0
    optimizer: Optimizer = "muon"
    most_steps: int = 100_000
    episodes: int = 256
    scripted_evaluations: int = 32
    planned_evaluations: int = 8
    documents_read: int = 64
    pictures: int = 128
    ratios: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    latencies: tuple[int, ...] = (0, 2, 4, 8)
    checkpoint_every_s: float = 60.0


def corpus(config: DemoLongConfig) -> Path:
    """Returns the folder of sources."""
    return config.out / "corpus"


def sources(config: DemoLongConfig) -> dict[str, int]:
    """Returns how many episodes of each task are recorded, the longest to record first."""
    counts = dict.fromkeys(config.planned, config.planned_episodes) | {"patrol": config.patrol_episodes}
    counts |= dict.fromkeys(config.scripted, config.scripted_episodes)
    return counts | {"text": config.documents, "captions": config.captions}


def whole_mix(config: DemoLongConfig) -> Mix:
    """Returns the mixture of the whole corpus, each task's share as listed above."""
    among = SCRIPTED | PLANNED | SAID | {"patrol": config.patrol_share}
    shares = {task: share for task, share in among.items() if task in sources(config)}
    names = tuple(sorted(shares))
    weights = tuple(shares[name] / sum(shares.values()) for name in names)
    # Half wait for their first plan: a caption is over before a late one would be there.
    own = {"controller_tokens": 632, "planner_tokens": 344, "text_targets": 344, "segment_ticks": 112, "wait_for_first": 0.5}
    return Mix(names, weights, config.rows, **own)


def learner(config: DemoLongConfig, agent: train.AgentName, steps: int, **own) -> LearnerConfig:
    """Returns how an agent of either group learns; own: what this one does in its own way."""
    # What reads everything at every tick is one large transformer, and has the rate of one.
    faster = config.controller_rate if agent in ("two_rate", "controller_only") else 1.0
    rates = {"peak_rate": config.peak_rate, "controller_rate": faster, "names_rate": config.names_rate}
    return LearnerConfig(steps, optimizer=config.optimizer, **rates, **own)


def whole(config: DemoLongConfig, agent: train.AgentName, steps: int) -> TrainConfig:
    """Returns how one agent is trained on the whole corpus."""
    return TrainConfig(
        corpus=corpus(config),
        out=config.out / agent,
        agent=agent,
        preset=config.preset,
        text_pieces=config.text_pieces,
        mix=whole_mix(config),
        learner=learner(config, agent, steps, planner_steps=round(steps * config.warm_up), seed=config.seeds[0]),
        trainer=TrainerConfig(checkpoint_every_s=config.checkpoint_every_s),
    )


class Alone(NamedTuple):
    """One training on the patrol alone: a name of `BASELINES`, controller_only or single_rate, and at its end whether without a
    sub-goal; and a seed."""

    name: str
    seed: int

    @property
    def kind(self) -> str:
        """Its name, whether with or without a sub-goal."""
        return self.name.removesuffix(WITHOUT)

    @property
    def agent(self) -> train.AgentName:
        """The agent that is trained."""
        return "two_rate" if self.kind in ("detached", "frozen", "fixed") else self.kind


def alone(config: DemoLongConfig) -> dict[str, Alone]:
    """Returns folder to training of all on the patrol alone: the first seed of each, and other seeds of the two main ones."""
    first, *others = config.seeds
    found = {name: Alone(name, first) for name in (*config.baselines, "single_rate")}
    return found | {f"{name}_{seed}": Alone(name, seed) for seed in others for name in ("two_rate", "single_rate")}


def baseline(config: DemoLongConfig, folder: str, steps: int) -> TrainConfig:
    """Returns how one of `alone` is trained with so many steps."""
    name, seed = each = alone(config)[folder]
    # Long segments: a planner reads an episode from its start, however little of it the controller is trained on.
    # At ratio 1 the planner reads as often as the controller acts, and an episode from its start: it needs the longer row.
    tokens = (256, 704) if each.kind == "fixed" else (608, 384)
    mix = Mix(("patrol",), rows=config.baseline_rows, controller_tokens=tokens[0], planner_tokens=tokens[1], segment_ticks=144)
    return TrainConfig(
        corpus=corpus(config),
        out=config.out / "baselines" / folder,
        agent=each.agent,
        preset=config.preset,
        text_pieces=config.text_pieces,
        mix=dataclasses.replace(mix, ratios=(1,), latencies=(0,)) if each.kind == "fixed" else mix,
        learner=learner(
            config,
            each.agent,
            steps,
            planner_steps=round(steps * warm_up_of(config, name)),
            weights=LossWeights() if each.kind == name else LossWeights(sub_goal=0.0),
            planner=each.kind if each.kind in ("detached", "frozen") else "joint",
            seed=seed,
        ),
        trainer=TrainerConfig(checkpoint_every_s=config.checkpoint_every_s),
    )


def warm_up_of(config: DemoLongConfig, name: str) -> float:
    """Returns the share of a training's steps in which it learns its own tasks alone: none without a planner or a sub-goal."""
    return config.baseline_warm_up if name in ("two_rate", "single_rate", "detached", "frozen", "fixed") else 0.0


def probes(config: DemoLongConfig) -> dict[str, TrainConfig]:
    """Returns the trainings whose pace is measured; all others have that of one of these, see `pace_of`."""
    many = min(2000, config.most_steps)
    found = {agent: whole(config, agent, many) for agent in ("two_rate", "single_rate")}
    like = {pace_of(each): folder for folder, each in reversed(alone(config).items())}
    return found | {f"baseline_{kind}": baseline(config, folder, many) for kind, folder in like.items()}


def pace_of(each: Alone) -> str:
    """Returns the kind of training that takes as long a step as this one. A frozen planner has no gradient, and a fixed ratio has
    rows of its own; the loss of a sub-goal makes no difference to speak of."""
    return each.kind if each.kind in ("frozen", "fixed") else each.agent
