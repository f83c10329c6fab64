"""Sources of episodes with weights, and their batches: batch number n is a function of (seed, n) and nothing else."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from hierarchy.batch import Batch
from hierarchy.corpus.packing import Packing, pack
from hierarchy.corpus.prompts import NO_PROMPTS, Prompts, draw_excerpt
from hierarchy.corpus.reading import Pieces
from hierarchy.corpus.segment import Encoded, encode_episode
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

    def draw(self, rng: np.random.Generator) -> Encoded:
        """Returns an episode in ids, transformed where its part says so, with the prompt that it is to be read after."""
        part = min(int(np.searchsorted(self._shares, rng.random(), side="right")), len(self.parts) - 1)
        index = int(rng.integers(len(self.parts[part].episodes)))
        transform = self.parts[part].transform
        if transform is None:
            encoded = self._encoded(part, index)
        else:
            encoded = self._encode(part, transform(self._episode(part, index), rng))
        says = isinstance(self.schema[self.parts[part].layout].action.codec, Piece)
        # Without prompts nothing is drawn for them: batches are what they were before there were any.
        if says or not self.prompts.share or rng.random() >= self.prompts.share:
            return encoded
        return dataclasses.replace(encoded, prompt=self._prompt(rng, part, index))

    def _prompt(self, rng: np.random.Generator, part: int, index: int) -> Encoded:
        """A stretch of any episode of the part but `index`."""
        other = int(rng.integers(len(self.parts[part].episodes) - 1))
        episode, transform = self._episode(part, other + (other >= index)), self.parts[part].transform
        if transform is not None:
            episode = transform(episode, rng)
        return self._encode(part, draw_excerpt(rng, episode, self.prompts.ticks))

    def _encode(self, part: int, episode: Episode) -> Encoded:
        return encode_episode(self.schema, self.parts[part].layout, episode, self.tokenizer)


class Loader:
    """Iterates over (batch, figures) from `first_step` on, made ahead by threads.

    wait_s: seconds that the consumer has waited.
    """

    def __init__(self, mixture: Mixture, seed: int, first_step: int = 0, *, threads: int = 1, ahead: int = 4) -> None:
        steps = grain.MapDataset.range(first_step, LAST_STEP)
        batches = steps.map(functools.partial(mixture.batch, seed))
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
