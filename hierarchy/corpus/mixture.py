"""Sources of episodes with weights, and their batches: batch number n is a function of (seed, n) and nothing else."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from hierarchy.batch import Batch
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import pack
from hierarchy.corpus.prompts import NO_PROMPTS, Prompts, draw_excerpt
from hierarchy.corpus.reading import Encoded, Pieces
from hierarchy.corpus.segment import encode_episode
from hierarchy.episode import Episode
from hierarchy.layout import Piece, Schema

# grain wants an end to a range; nothing trains for this many steps.
LAST_STEP = 2**31

Transform = Callable[[Episode, np.random.Generator], Episode]


@dataclasses.dataclass(frozen=True)
class Part:
    """One source in a mixture.

    episodes: anything with `len` and `[index]`, such as a `Source`. layout: name of the layout that reads them.
    weight: how often an episode is drawn from here, against the other parts. transform: augmentation, drawn anew every time.
    """

    episodes: Sequence[Episode]
    layout: str
    weight: float = 1.0
    transform: Transform | None = None


class Mixture:
    """Batches from several sources. Episodes are drawn with replacement, uniformly within a part; `cache` of them are kept.

    prompts: which share of them is preceded by a stretch of another episode of their part. What says text never is.
    """

    def __init__(
        self,
        schema: Schema,
        packing: Packing,
        parts: Sequence[Part],
        tokenizer: Pieces | None = None,
        cache: int = 4096,
        prompts: Prompts = NO_PROMPTS,
    ) -> None:
        weights = np.array([part.weight for part in parts], np.float64)
        if not len(parts) or weights.min() < 0 or weights.sum() <= 0:
            raise ValueError(f"a mixture has parts, with weights of at least 0 and not all 0: {weights.tolist()}")
        for part in parts:
            if not len(part.episodes):
                raise ValueError(f"layout {part.layout!r}: its part of the mixture has no episodes")
            says = isinstance(schema[part.layout].action.codec, Piece)
            if prompts.share and len(part.episodes) < 2 and not says:
                raise ValueError(f"layout {part.layout!r}: a prompt is of another episode, and its part has one: record more")
        self.prompts = prompts
        self.schema, self.packing, self.parts, self.tokenizer = schema, packing, tuple(parts), tokenizer
        self._shares = np.cumsum(weights / weights.sum())
        self._episode = functools.lru_cache(cache)(lambda part, index: self.parts[part].episodes[index])
        self._encoded = functools.lru_cache(cache)(lambda part, index: self._encode(part, self.parts[part].episodes[index]))

    def batch(self, seed: int, step: int) -> tuple[Batch, dict[str, float]]:
        """Returns batch number `step` and its figures (see `pack`), the same whatever was drawn before."""
        return pack(np.random.default_rng([seed, step]), self.draw, self.schema, self.packing)

    def rows(self, seed: int, step: int, own: range, shards: int) -> tuple[Batch, dict[str, float]]:
        """Returns the rows that shards `own` of `shards` give to batch number `step`, and their figures.

        Shard s fills its equal part of the rows from its own stretch of every part's episodes, in the order of writing, so that
        whoever makes it reads no other; the batch is the same whoever makes which.
        """
        packing = dataclasses.replace(self.packing, rows=self.packing.rows // shards)
        made = []
        for shard in own:
            draw = functools.partial(self.draw, shard=shard, shards=shards)
            made.append(pack(np.random.default_rng([seed, step, shard]), draw, self.schema, packing))
        batches, figures = zip(*made, strict=True)
        batch = joined(batches)
        return batch, {name: total(name)([each[name] for each in figures]) for name in figures[0]}

    def check_shards(self, shards: int) -> None:
        """Raises ValueError where the rows or a part's episodes do not go round."""
        fewest, each = min(len(part.episodes) for part in self.parts), 2 if self.prompts.share else 1
        if self.packing.rows % shards or fewest < each * shards:
            raise ValueError(
                f"{shards} shards of {self.packing.rows} rows and of sources with {fewest} episodes or more: rows are a multiple "
                f"of the shards, and every source has {each} for each"
            )

    def draw(self, rng: np.random.Generator, shard: int = 0, shards: int = 1) -> Encoded:
        """Returns an episode in ids, of the shard's stretch, transformed where its part says so, with the prompt before it."""
        part = min(int(np.searchsorted(self._shares, rng.random(), side="right")), len(self.parts) - 1)
        count = len(self.parts[part].episodes)
        own = range(count * shard // shards, count * (shard + 1) // shards)
        index = own[int(rng.integers(len(own)))]
        transform = self.parts[part].transform
        if transform is None:
            encoded = self._encoded(part, index)
        else:
            encoded = self._encode(part, transform(self._episode(part, index), rng))
        says = isinstance(self.schema[self.parts[part].layout].action.codec, Piece)
        # Without prompts nothing is drawn for them: batches are what they were before there were any.
        if says or not self.prompts.share or rng.random() >= self.prompts.share:
            return encoded
        return dataclasses.replace(encoded, prompt=self._prompt(rng, part, index, own))

    def _prompt(self, rng: np.random.Generator, part: int, index: int, own: range) -> Encoded:
        """A stretch of any of a part's episodes `own` but `index`."""
        other = own[int(rng.integers(len(own) - 1))]
        episode, transform = self._episode(part, other + (other >= index)), self.parts[part].transform
        if transform is not None:
            episode = transform(episode, rng)
        return self._encode(part, draw_excerpt(rng, episode, self.prompts.ticks))

    def _encode(self, part: int, episode: Episode) -> Encoded:
        return encode_episode(self.schema, self.parts[part].layout, episode, self.tokenizer)


def total(figure: str) -> Callable[[Sequence[float]], float]:
    """Returns how a figure of a batch follows from those of its parts, of equally many rows: counts add up, shares do not."""
    return sum if figure in ("episodes", "loss_ticks") else np.mean


def joined(batches: Sequence[Any]) -> Any:
    """Returns the rows of several batches, or of parts of them, as one."""
    if isinstance(batches[0], np.ndarray):
        return np.concatenate(batches)
    parts = [joined(each) for each in zip(*batches, strict=True)]
    return type(batches[0])(*parts) if hasattr(batches[0], "_fields") else tuple(parts)


class Loader:
    """Iterates over (batch, figures) from `first_step` on, made ahead by threads.

    own, shards: whose rows of the batches (see `Mixture.rows`); all of them by default.
    wait_s: seconds that the consumer has waited.
    """

    def __init__(
        self,
        mixture: Mixture,
        seed: int,
        first_step: int = 0,
        *,
        threads: int = 1,
        ahead: int = 4,
        own: range = range(1),
        shards: int = 1,
    ) -> None:
        steps = grain.MapDataset.range(first_step, LAST_STEP)
        make = functools.partial(mixture.batch, seed)
        if shards > 1:
            mixture.check_shards(shards)
            make = functools.partial(mixture.rows, seed, own=own, shards=shards)
        batches = steps.map(make)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        self._batches = iter(batches.to_iter_dataset(options))
        self.wait_s = 0.0

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, float]]]:
        return self

    def __next__(self) -> tuple[Batch, dict[str, float]]:
        began = time.perf_counter()
        batch = next(self._batches)
        self.wait_s += time.perf_counter() - began
        return batch

    def close(self) -> None:
        """Stops the threads."""
        self._batches.close()
