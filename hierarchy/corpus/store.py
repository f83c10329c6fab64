"""Sources of episodes on disk: ArrayRecord shards, one record an episode, under a manifest that people can read.

FOLDER/manifest.json                          written last, by one rename: it alone says what the source is
FOLDER/episodes-00000-1f2e3d4c.array_record   named by its own hash, so that a new source never overwrites an old one
FOLDER/unfinished.json                        what an interrupted writer had finished
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from hierarchy.corpus.record import Damaged, from_bytes, named_arrays, to_bytes
from hierarchy.episode import Episode, check

FORMAT = 1
OPTIONS = "group_size:1,zstd:3"
RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
MANIFEST, UNFINISHED = "manifest.json", "unfinished.json"


def write_source(
    folder: str | os.PathLike,
    episodes: Iterable[Episode],
    *,
    name: str,
    tick_s: float,
    licence: str,
    expert: str,
    shard_size: int = 256,
    resume: bool = False,
) -> "Source":
    """Writes the episodes one by one and returns the source; whatever stood in the folder stays until the last one is written.

    resume: the first `finished(folder)` episodes are there already, from a writer of the same name that was interrupted, and
        `episodes` are those that follow.

    Raises:
        ValueError: an episode is not as `Episode` says, or differs from the first in its fields or `tick_s`; or there is none.
        OSError: the disk is full, or cannot be written. The old source stands in either case.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"format": FORMAT, "name": name, "tick_s": tick_s, "hz": 1 / tick_s, "licence": licence, "expert": expert}
    manifest = _continued(folder, facts) if resume else facts | {"fields": None, "shards": [], "summary": []}
    for shard in _shards(iter(episodes), shard_size, manifest):
        _write_shard(folder, shard, manifest)
    if not manifest["shards"]:
        raise ValueError(f"source {name!r}: there is no episode to write")
    with _disk(folder):
        _replace(folder / MANIFEST, _summarised(manifest))
    _sweep(folder, {shard["file"] for shard in manifest["shards"]})
    return Source.open(folder)


def finished(folder: str | os.PathLike) -> int:
    """Returns how many episodes an interrupted `write_source` left in whole shards; 0 if none was interrupted."""
    path = pathlib.Path(folder) / UNFINISHED
    return sum(shard["episodes"] for shard in _load(path)["shards"]) if path.exists() else 0


def last_seed(folder: str | os.PathLike) -> int | None:
    """Returns the seed of the last episode that `finished` counts; None if there is none."""
    path = pathlib.Path(folder) / UNFINISHED
    summary = _load(path)["summary"] if path.exists() else []
    return summary[-1][0] if summary else None


@dataclasses.dataclass(frozen=True)
class Source:
    """Episodes by number, in the order of writing. Safe to read from several threads. manifest: as on disk."""

    folder: pathlib.Path
    manifest: dict[str, Any]
    _starts: np.ndarray
    _readers: dict[int, ArrayRecordReader]
    _lock: threading.Lock

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Source":
        """Returns the source in `folder`; ValueError if there is none, or a shard is missing or cut short."""
        folder = pathlib.Path(folder)
        if not (folder / MANIFEST).exists():
            raise ValueError(f"no source in {folder}: it has no {MANIFEST}; record it first")
        manifest = _load(folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"{folder / MANIFEST} has format {manifest.get('format')}, and {FORMAT} is read here: record it again"
            )
        for shard in manifest["shards"]:
            path = folder / shard["file"]
            size = path.stat().st_size if path.exists() else 0
            if size != shard["bytes"]:
                raise ValueError(f"{path} has {size} of {shard['bytes']} bytes: record {manifest['name']!r} again")
        starts = np.cumsum([0] + [shard["episodes"] for shard in manifest["shards"]])
        return cls(folder, manifest, starts, {}, threading.Lock())

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Episode:
        """Returns episode `index`; IndexError beyond the last, `Damaged` (a ValueError) if its bytes are not those written."""
        index = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= index < len(self):
            raise IndexError(f"source {self.manifest['name']!r} has {len(self)} episodes, and no episode {index}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        path = self.folder / self.manifest["shards"][shard]["file"]
        try:
            with self._lock:
                if shard not in self._readers:
                    self._readers[shard] = ArrayRecordReader(str(path), RANDOM_ACCESS)
                (record,) = self._readers[shard].read([index - int(self._starts[shard])])
            return from_bytes(record)
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            why = _one_line(error)
            raise Damaged(f"{path}, episode {index}: {why}; record {self.manifest['name']!r} again") from None

    def verify(self) -> None:
        """Reads every shard whole; raises `Damaged` for the first whose sha256 is not the manifest's."""
        for shard in self.manifest["shards"]:
            if _sha256(self.folder / shard["file"]) != shard["sha256"]:
                raise Damaged(f"{self.folder / shard['file']}: its sha256 differs; record {self.manifest['name']!r} again")


def _shards(episodes: Iterator[Episode], size: int, manifest: dict[str, Any]) -> Iterator[Iterator[Episode]]:
    """Yields the episodes `size` at a time, each checked against the manifest as it is drawn."""
    for first in episodes:

        def one_shard(first: Episode = first) -> Iterator[Episode]:
            yield _agreed(first, manifest)
            for _, episode in zip(range(size - 1), episodes):
                yield _agreed(episode, manifest)

        yield one_shard()


def _agreed(episode: Episode, manifest: dict[str, Any]) -> Episode:
    check(episode)
    fields = {name: f"{array.dtype.name}{list(array.shape[1:])}" for name, array in named_arrays(episode).items()}
    fields |= {f"text/{name}": "text" for name in episode.text}
    manifest["fields"] = manifest["fields"] or fields
    where = f"source {manifest['name']!r}, seed {episode.seed}"
    if episode.tick_s != manifest["tick_s"]:
        raise ValueError(f"{where}: a tick lasts {episode.tick_s} s, and the source's {manifest['tick_s']} s: write two sources")
    for field in sorted(fields.keys() | manifest["fields"].keys()):
        have, want = fields.get(field), manifest["fields"].get(field)
        if have != want:
            raise ValueError(f"{where}: field {field!r} is {have}, and {want} in the first episode: write two sources")
    return episode


def _write_shard(folder: pathlib.Path, episodes: Iterable[Episode], manifest: dict[str, Any]) -> None:
    partial = folder / f"episodes-{len(manifest['shards']):05d}.part"
    writer, summary = None, []
    try:
        with _disk(folder):
            writer = ArrayRecordWriter(str(partial), OPTIONS)
        for episode in episodes:
            record = to_bytes(episode)
            with _disk(folder):
                writer.write(record)
            summary.append([episode.seed, episode.ticks, float(np.sum(episode.reward)), episode.info.get("success")])
        with _disk(folder):
            writer.close()
    except BaseException:
        if writer is not None and writer.is_open():
            _close_quietly(writer)
        partial.unlink(missing_ok=True)
        raise
    digest = _sha256(partial)
    path = folder / f"episodes-{len(manifest['shards']):05d}-{digest[:8]}.array_record"
    _synced(partial)
    partial.replace(path)
    ticks = sum(row[1] for row in summary)
    entry = {"file": path.name, "episodes": len(summary), "ticks": ticks, "bytes": path.stat().st_size, "sha256": digest}
    manifest["shards"].append(entry)
    manifest["summary"] += [[_json(value) for value in row] for row in summary]
    with _disk(folder):
        _replace(folder / UNFINISHED, manifest)


def _summarised(manifest: dict[str, Any]) -> dict[str, Any]:
    seeds, ticks, returns, success = zip(*manifest["summary"])
    known = [value for value in success if value is not None]
    return {key: value for key, value in manifest.items() if key not in ("summary", "shards")} | {
        "episodes": len(seeds),
        "ticks": sum(ticks),
        "mean_return": float(np.mean(returns)),
        "success": float(np.mean(known)) if known else None,
        "seeds": _runs(seeds),
        "shards": manifest["shards"],
    }


def _runs(seeds: Iterable[int]) -> list[str]:
    """Returns "first-last" of every run of seeds that follow one another."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][1] + 1:
            runs[-1][1] = seed
        else:
            runs.append([seed, seed])
    return [f"{first}-{last}" for first, last in runs]


def _continued(folder: pathlib.Path, facts: dict[str, Any]) -> dict[str, Any]:
    if not (folder / UNFINISHED).exists():
        return facts | {"fields": None, "shards": [], "summary": []}
    manifest = _load(folder / UNFINISHED)
    other = [key for key in facts if manifest.get(key) != facts[key]]
    if other:
        raise ValueError(
            f"{folder / UNFINISHED} was begun with another {other[0]}: {manifest.get(other[0])!r}; write without resume"
        )
    for shard in manifest["shards"]:
        if not (folder / shard["file"]).exists():
            raise ValueError(f"{folder / shard['file']} is missing, so the writing cannot go on: write without resume")
    return manifest


def _sweep(folder: pathlib.Path, keep: set[str]) -> None:
    for path in folder.glob("episodes-*"):
        if path.name not in keep:
            path.unlink()
    (folder / UNFINISHED).unlink(missing_ok=True)


def _load(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise ValueError(f"{path} is not JSON: record the source again") from None


def _replace(path: pathlib.Path, values: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        _synced(partial)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _synced(path: pathlib.Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _disk(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise OSError(f"{folder}: {_one_line(error)}. Make room and write again: what stood there still stands") from None


def _close_quietly(writer: ArrayRecordWriter) -> None:
    # The error that stopped the writing is the one to report.
    with contextlib.suppress(RuntimeError):
        writer.close()


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _one_line(error: BaseException) -> str:
    return str(error).split("\n")[0].split(";")[0]
