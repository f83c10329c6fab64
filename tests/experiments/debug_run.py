"""The tiny run that tests share: a few episodes, a few steps, a few cells."""

import sys
from pathlib import Path
from unittest import mock

from experiments import (
    compare_ratios,
    evaluate,
    evaluate_text,
    plan_contents,
    plan_kinds,
    prompts,
    record,
    scripted,
    three_rates,
    train,
)

MAINS = {
    "record": record.main,
    "train": train.main,
    "evaluate": evaluate.main,
    "compare_ratios": compare_ratios.main,
    "scripted": scripted.main,
    "evaluate_text": evaluate_text.main,
    "plan_kinds": plan_kinds.main,
    "plan_contents": plan_contents.main,
    "prompts": prompts.main,
    "three_rates": three_rates.main,
}
EPISODES, STEPS = 12, 6


def command(name: str, *options: object) -> int:
    """Returns the exit code of a command with these options, run in this process."""
    with mock.patch.object(sys, "argv", [name, *map(str, options)]):
        try:
            return MAINS[name]()
        except SystemExit as left:
            return int(left.code or 0)


def recording(folder: Path, episodes: int = EPISODES) -> list[str]:
    """Returns the options that record the tiny corpus."""
    return ["--task", "patrol", "--episodes", str(episodes), "--out", str(folder / "corpus" / "patrol")]


def training(corpus: Path, out: Path, steps: int = STEPS, every_s: float = 60.0) -> list[str]:
    """Returns the options that train the tiny model: two steps of warm-up, and the rest of all losses."""
    options = ["--corpus", str(corpus), "--out", str(out), "--preset", "debug", "--mix.rows", "2"]
    options += ["--learner.steps", str(steps), "--learner.planner-steps", "2", "--learner.rate-warm-up", "2"]
    return [*options, "--trainer.log-every", "1", "--trainer.measure-every", "100", "--trainer.checkpoint-every-s", str(every_s)]


def comparing(folder: Path, rows: Path) -> list[str]:
    """Returns the options that close a few loops with the tiny model."""
    cells = ["--episodes", "3", "--ratios", "1", "8", "--latencies", "0", "4"]
    cells += ["--controls", "zeroed", "--held", "2", "--late", "2"]
    return ["--run", str(folder / "two_rate"), "--rows", str(rows), *cells]


def make(folder: Path) -> None:
    """Records, trains and compares in `folder`; the checkpoints of the last two steps are there."""
    assert command("record", *recording(folder)) == 0
    assert command("train", *training(folder / "corpus", folder / "two_rate", every_s=0.0)) == 0
    assert command("compare_ratios", *comparing(folder, folder / "rows.jsonl")) == 0
