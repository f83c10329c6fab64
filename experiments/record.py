"""Record an expert, or a collection of documents or captioned pictures, into a source of episodes.

    python -m experiments.record --task patrol --episodes 2000 --out runs/demo/corpus/patrol

About 40 s for 2000 episodes of the patrol on one core. Interrupted, the same command goes on where it stopped; finished, it does
nothing. `--clean` is the share of episodes without noise and detours; the labels are clean in all of them. `--task text` takes
the documents that CPython ships, all of them if there are not as many as asked for; `--task captions` makes its pictures.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import tyro
from rich.progress import track

from envs.recording import record
from experiments.tasks import Collection, find
from hierarchy.corpus.store import MANIFEST, Source, finished, write_source
from hierarchy.episode import Episode

LICENCE = "Apache-2.0"


@dataclasses.dataclass(frozen=True)
class RecordConfig:
    """task: name of the task. episodes: how many. out: folder of the source. clean: share of episodes without noise.
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
        config = dataclasses.replace(config, episodes=min(config.episodes, task.count() or config.episodes))
    if (config.out / MANIFEST).exists():
        return _as_asked(Source.open(config.out), config)
    done = finished(config.out)
    if isinstance(task, Collection):
        numbers = track(range(config.seed + done, config.seed + config.episodes), description=f"making {config.task}")
        made, facts = (task.episode(number) for number in numbers), (task.tick_s, task.licence, task.origin())
    else:
        made, facts = _episodes(config, done), (task.make().tick_s, LICENCE, type(task.expert(True)).__name__)
    tick_s, licence, expert = facts
    return write_source(
        config.out,
        made,
        name=config.task,
        tick_s=tick_s,
        licence=licence,
        expert=expert,
        resume=done > 0,
    )


def _as_asked(source: Source, config: RecordConfig) -> Source:
    if source.manifest["name"] != config.task or len(source) != config.episodes:
        raise ValueError(
            f"{config.out} holds {len(source)} episodes of {source.manifest['name']!r}, and {config.episodes} of {config.task!r} "
            "are asked for: remove that folder or name another"
        )
    return source


def _episodes(config: RecordConfig, done: int) -> Iterator[Episode]:
    task = find(config.task)
    environment = task.make()
    for i in track(range(done, config.episodes), description=f"recording {config.task}"):
        clean = int((i + 1) * config.clean) > int(i * config.clean)
        yield record(environment, task.expert(not clean), config.seed + i, config.task)


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(RecordConfig, description=__doc__)
    try:
        source = record_source(config)
    except (ValueError, OSError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("record: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{config.out}: {len(source)} episodes of {config.task}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
