"""Record an expert, or a collection of documents or captioned pictures, into a source of episodes.

    python -m experiments.record --task patrol --episodes 2000 --out runs/demo/corpus/patrol

About 40 s for 2000 episodes of the patrol on one core; an expert that plans takes 5 to 22 s an episode (experiments/bodies.md
lists them), and the bar says what is left. An episode with less than 80% of the expert's mean return is dropped where the task
knows that mean, and the next seed is taken. Interrupted, the same command goes on where it stopped, and loses about two minutes
at the most; finished, it does nothing. `--clean` is the share of episodes without noise and detours; the labels are clean in all.
`--task text` takes the documents that CPython ships, all of them if there are not as many as asked for; `--task captions`
makes its pictures.
"""

import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import tyro
from rich.progress import track

from envs.recording import record
from experiments.tasks import Collection, Task, find
from hierarchy.corpus.store import MANIFEST, Source, finished, last_seed, write_source
from hierarchy.episode import Episode

LICENCE = "Apache-2.0"
SHARD, SHARD_S = 256, 120.0
"""Episodes of a shard, and the most seconds that one takes: what an interruption may lose."""
PATIENCE = 50
"""Episodes in a row that may fall short of what is kept."""


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """task: name of the task. episodes: how many to keep. out: folder of the source. clean: share of episodes without noise.
    seed: of the first episode; the next ones follow."""

    task: str
    out: Path
    episodes: int = 2000
    clean: float = 0.2
    seed: int = 0


def record_source(config: RecordConfig) -> Source:
    """Returns the source in `config.out`, recorded or taken up as it is."""
    task = find(config.task)
    if isinstance(task, Collection):
        most = (task.count() or config.seed + config.episodes) - config.seed
        if most < 1:
            raise ValueError(f"{config.task!r} has {task.count()} episodes, and the first asked for is number {config.seed}")
        config = dataclasses.replace(config, episodes=min(config.episodes, most))
    if (config.out / MANIFEST).exists():
        return _as_asked(Source.open(config.out), config)
    done, last = finished(config.out), last_seed(config.out)
    if isinstance(task, Collection):
        numbers = track(range(config.seed + done, config.seed + config.episodes), description=f"making {config.task}")
        made, facts = (task.episode(number) for number in numbers), (task.tick_s, task.licence, task.origin(), SHARD)
    else:
        made = _episodes(config, done, 0 if last is None else last + 1 - config.seed)
        facts = (task.make().tick_s, LICENCE, type(task.expert(True)).__name__, shard_size(task))
    tick_s, licence, expert, shard = facts
    return write_source(
        config.out,
        made,
        name=config.task,
        tick_s=tick_s,
        licence=licence,
        expert=expert,
        shard_size=shard,
        resume=done > 0,
    )


def shard_size(task: Task) -> int:
    """Returns how many episodes of a task go into a shard."""
    return max(1, min(SHARD, int(SHARD_S / task.cost_s)))


def _as_asked(source: Source, config: RecordConfig) -> Source:
    if source.manifest["name"] != config.task or len(source) != config.episodes:
        raise ValueError(
            f"{config.out} holds {len(source)} episodes of {source.manifest['name']!r}, and {config.episodes} of {config.task!r} "
            "are asked for: remove that folder or name another"
        )
    return source


def _episodes(config: RecordConfig, done: int, tried: int) -> Iterator[Episode]:
    kept = _kept(config, tried)
    for _ in track(range(done, config.episodes), description=f"recording {config.task}"):
        yield next(kept)


def _kept(config: RecordConfig, tried: int) -> Iterator[Episode]:
    """Yields the episodes worth imitating, from attempt `tried` on: what an attempt becomes follows from its number alone."""
    task = find(config.task)
    environment, short = task.make(), 0
    for i in itertools.count(tried):
        clean = int((i + 1) * config.clean) > int(i * config.clean)
        episode = record(environment, task.expert(not clean), config.seed + i, config.task)
        if episode.info["return"] >= task.kept:
            short = 0
            yield episode
            continue
        short += 1
        if short == PATIENCE:
            raise ValueError(f"{config.task}: {PATIENCE} episodes in a row returned less than {task.kept:.1f}: mend the expert")


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(RecordConfig, description=__doc__)
    try:
        source = record_source(config)
    except (ValueError, OSError, ImportError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("record: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{config.out}: {len(source)} episodes of {config.task}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
