"""Measure a trained run on held-out text and captions.

    python -m experiments.evaluate_text --run runs/text

For documents and captions that were held out: nats a piece with the first plan waited for, under the run's own plans, under
another document's (shuffled), under none, and of a smoothed trigram that was fitted on the same training pieces. For captioned
pictures also the share of attributes that is right when the agent decodes the caption, under its own plans and shuffled ones.
Held-out documents that repeat what was trained on are left out, and how many are not is said; a picture was never seen.
Intervals are 95% bootstrap intervals over documents or pictures. About a minute for a small model on one core.
"""

import collections
import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from envs import captions
from experiments.evaluate import Trained, load
from experiments.statistics import Interval, mean_interval
from experiments.tasks import COLLECTIONS
from experiments.train import cache_compilations, first_held_out
from hierarchy.batch import Batch
from hierarchy.corpus.budgets import Packing
from hierarchy.corpus.packing import fill
from hierarchy.corpus.reading import Encoded
from hierarchy.corpus.segment import cut, encode_episode
from hierarchy.corpus.store import Source
from hierarchy.episode import Episode
from hierarchy.layout import EMPTY, tokens_per_reading, tokens_per_update
from hierarchy.model.parallel import act, think
from hierarchy.timeline import periodic
from hierarchy.training.checkpoint import CheckpointError
from hierarchy.training.losses import cross_entropy, under_others_plans

RUN = 13
"""Words in a row that a document has in common only with what it repeats (Brown et al. 2020, arXiv 2005.14165, appendix C)."""


@dataclasses.dataclass(frozen=True)
class EvaluateTextConfig:
    """run: folder of a training run. ratio, latency: of the timeline; the first plan is waited for. ticks: read of each document,
    from its start. documents, pictures: how many at most. rows: computed together. json: file for the figures."""

    run: Path
    ratio: int = 8
    latency: int = 0
    ticks: int = 512
    documents: int = 64
    pictures: int = 128
    rows: int = 8
    json: Path | None = None


class Trigram:
    """Piece probabilities given the two before, Witten-Bell interpolated down to uniform (Witten and Bell 1991): a context with n
    different successors gives the shorter context n votes beside its own counts."""

    def __init__(self, documents: Sequence[Sequence[int]], pieces: int):
        self._pieces = pieces
        self._count = [collections.Counter() for _ in range(3)]
        for document in documents:
            padded = [EMPTY, EMPTY, *document]
            for order, counts in enumerate(self._count):
                counts.update(zip(*(padded[2 - order + i :] for i in range(order + 1))))
        self._total = [collections.Counter() for _ in range(3)]
        self._kinds = [collections.Counter() for _ in range(3)]
        for counts, total, kinds in zip(self._count, self._total, self._kinds):
            for gram, count in counts.items():
                total[gram[:-1]] += count
                kinds[gram[:-1]] += 1

    def probability(self, before: tuple[int, int], piece: int) -> float:
        """Returns the probability of a piece after two others (EMPTY before the start)."""
        probability = 1 / self._pieces
        for order in range(3):
            context = before[2 - order :]
            if total := self._total[order][context]:
                kinds = self._kinds[order][context]
                probability = (self._count[order][(*context, piece)] + kinds * probability) / (total + kinds)
        return probability

    def nats(self, document: Sequence[int]) -> float:
        """Returns the mean nats a piece of a document."""
        padded = [EMPTY, EMPTY, *document]
        triples = zip(padded, padded[1:], document)
        return float(np.mean([-np.log(self.probability((a, b), piece)) for a, b, piece in triples]))


def pieces_of(encoded: Encoded, ticks: int | None = None) -> list[int]:
    """Returns the pieces that a document says, in order, of its first ticks."""
    said = encoded.label[:ticks].ravel()
    return said[said != EMPTY].tolist()


def runs_of_words(document: Episode) -> Iterator[tuple[str, ...]]:
    """Yields every run of `RUN` words of a document, whatever their case and punctuation."""
    words = [word for said in document.text.values() for _, part in said for word in re.findall(r"\w+", part.lower())]
    return zip(*(itertools.islice(words, first, None) for first in range(RUN)))


def unseen(held_out: Sequence[Episode], training: Sequence[Episode]) -> np.ndarray:
    """Returns [N] bool: which held-out documents have no run of `RUN` words in common with any training document.

    A manual says the same in several places. What is said again is known by heart and not foreseen, best of all by counts.
    """
    known = {run for document in training for run in runs_of_words(document)}
    return np.array([known.isdisjoint(runs_of_words(document)) for document in held_out], bool)


def documents_to_measure(source: Source, task: str) -> np.ndarray:
    """Returns [N] int: the numbers of a collection's held-out documents that are `unseen`, and of captions all.

    Captions of different pictures may well say the same. Raises ValueError where there are fewer than 2: a shuffled plan is
    another document's.
    """
    split = first_held_out(source)
    held_out = np.arange(split, len(source))
    if task != "captions":
        held_out = held_out[unseen([source[i] for i in held_out], [source[i] for i in range(split)])]
    if len(held_out) < 2:
        raise ValueError(
            f"{len(held_out)} of the {len(source) - split} held-out documents of {task!r} can be measured, and 2 are needed "
            f"(what repeats {RUN} words in a row of the others is not): record more than {len(source)}"
        )
    return held_out


def encode(trained: Trained, task: str, episodes: Sequence[Episode]) -> list[Encoded]:
    """Returns documents in the run's pieces."""
    return [encode_episode(trained.schema, task, episode, trained.tokenizer) for episode in episodes]


def losses(trained: Trained, task: str, documents: Sequence[Encoded], config: EvaluateTextConfig) -> dict[str, np.ndarray]:
    """Returns "own", "shuffled" and "none" to [N] nats a piece of each document under those plans; without a planner "own"."""

    @jax.jit
    def measured(params, batch: Batch) -> dict[str, jax.Array]:
        def nats(batch, plan):
            loss, _, weight = jax.vmap(lambda logits, targets: cross_entropy(logits, targets, 0))(
                act(trained.network, params, batch, plan).text, batch.text
            )
            return loss / weight

        plan = think(trained.network, params, batch).plan
        if plan is None:
            return {"own": nats(batch, None)}
        without = batch._replace(plan=jnp.full_like(batch.plan, -1), age=jnp.full_like(batch.age, -1))
        shuffled = nats(under_others_plans(batch), jnp.roll(plan, -1, axis=0))
        return {"own": nats(batch, plan), "shuffled": shuffled, "none": nats(without, plan)}

    packing, found = packing_of(trained, task, config), collections.defaultdict(list)
    for first in range(0, len(documents), config.rows):
        own = [documents[i % len(documents)] for i in range(first, first + config.rows)]
        rows = [[segment_of(document, config, packing)] for document in own]
        for name, values in measured(trained.params, fill(rows, trained.schema, packing)).items():
            found[name] += np.asarray(values).tolist()
    return {name: np.array(values[: len(documents)]) for name, values in found.items()}


def packing_of(trained: Trained, task: str, config: EvaluateTextConfig) -> Packing:
    """Returns rows that hold one document each."""
    layout, model = trained.schema[task], trained.network.config
    reading = tokens_per_reading(layout) + layout.action.size - 1
    # Words and pictures are read again before they leave the window of what reads them.
    again = (model.planner or model.controller).window // 2
    shown = model.text_slots * (config.ticks // again + 1)
    slow = tokens_per_update(layout) * config.ticks + shown
    return Packing(
        rows=config.rows,
        controller_tokens=(reading * config.ticks if model.planner else reading * config.ticks + slow),
        planner_tokens=slow if model.planner else 1,
        plans=config.ticks,
        text_targets=max(slow, layout.action.size * config.ticks),
        patches=shown,
        lead_in=0,
        planner_lead_in=0,
        draw_places=False,
        planner_reread=again,
        controller_reread=model.controller.window // 2,
    )


def segment_of(document: Encoded, config: EvaluateTextConfig, packing: Packing):
    """Returns a document from its start, the first plan waited for."""
    timeline = periodic(document.ticks, config.ratio, config.latency, wait_for_first=True)
    return cut(np.random.default_rng(0), document, timeline, (0, min(document.ticks, config.ticks)), packing)


def decode(trained: Trained, episodes: Sequence[Episode], ratio: int, latency: int, control: str, ticks: int) -> list[str]:
    """Returns the captions that the agent says of the episodes' pictures, likeliest piece by likeliest piece."""
    timeline = periodic(ticks, ratio, latency, wait_for_first=True)
    agent = trained.agent("captions", timeline, ticks, "argmax", control)
    pictures = {"picture": np.stack([episode.observation["picture"][0] for episode in episodes])}
    size = trained.schema["captions"].action.size
    state, said = agent.begin([episode.seed for episode in episodes]), []
    for tick in range(ticks):
        # Nothing is said while the picture is seen; the words begin at tick 1.
        action, state = agent.step(state, pictures, np.full((len(episodes), size), EMPTY) if tick == 1 else None)
        said.append(action.reshape(len(episodes), size))
    return [trained.tokenizer.decode(until(row, trained.tokenizer.end)) for row in np.concatenate(said[1:], axis=1)]


def until(pieces: np.ndarray, end: int) -> np.ndarray:
    """Returns the pieces before the first that ends a text."""
    ends = np.flatnonzero(pieces == end)
    return pieces[: ends[0]] if len(ends) else pieces


def attributes_right(episodes: Sequence[Episode], said: Sequence[str]) -> np.ndarray:
    """Returns [N]: the share of each picture's stated attributes that its decoded caption names rightly."""
    shares = []
    for episode, words in zip(episodes, said, strict=True):
        found = captions.attributes(words)
        names = captions.slots(episode.info["template"])
        shares.append(np.mean([found.get(name) == episode.info[name] for name in names]))
    return np.array(shares)


def measure(trained: Trained, config: EvaluateTextConfig) -> dict[str, dict[str, Interval]]:
    """Returns task to figure to mean and interval, for the collections that the run was trained on.

    nats_saved: by its own plan against a shuffled one. nats_below_trigram: one document by one. share_unseen: of the held-out
    documents, see `documents_to_measure`; the others are left out. attributes_chance: of another picture's true caption.
    """
    if trained.lookahead:
        raise ValueError(f"{config.run} is a {trained.name} run: it decodes other ticks than the one it reads")
    if config.rows < 2:
        raise ValueError(f"rows is {config.rows}: a shuffled plan is another row's, so there are at least 2")
    figures = {}
    for task in (task for task in trained.facts["tasks"] if task in COLLECTIONS):
        source = Source.open(Path(trained.facts["corpus"]) / task)
        split, measured = first_held_out(source), documents_to_measure(source, task)
        held_out = [source[i] for i in measured[: config.pictures if task == "captions" else config.documents]]
        documents = encode(trained, task, held_out)
        fitted_on = encode(trained, task, [source[i] for i in range(split)])
        model = Trigram([pieces_of(document) for document in fitted_on], trained.schema.text_pieces)
        nats = losses(trained, task, documents, config)
        nats["trigram"] = np.array([model.nats(pieces_of(document, config.ticks)) for document in documents])
        figures[task] = {f"nats_{name}": mean_interval(values) for name, values in nats.items()}
        if task != "captions":
            figures[task]["share_unseen"] = mean_interval(np.isin(np.arange(split, len(source)), measured))
        figures[task]["nats_below_trigram"] = mean_interval(nats["trigram"] - nats["own"])
        if "shuffled" in nats:
            figures[task]["nats_saved"] = mean_interval(nats["shuffled"] - nats["own"])
        if task == "captions":
            longest = max(document.ticks for document in documents)
            said = [captions.caption(dict(episode.info)) for episode in held_out]
            figures[task]["attributes_chance"] = mean_interval(attributes_right(held_out, [*said[1:], *said[:1]]))
            controls = {"own": "none"} | ({"shuffled": "shuffled"} if trained.network.config.planner else {})
            for name, control in controls.items():
                right = attributes_right(held_out, decode(trained, held_out, config.ratio, config.latency, control, longest))
                figures[task][f"attributes_{name}"] = mean_interval(right)
    if not figures:
        raise ValueError(f"{config.run} was trained on {', '.join(trained.facts['tasks'])}: there is no text among them")
    return figures


def main() -> int:
    """Runs the command line; returns the exit code."""
    config = tyro.cli(EvaluateTextConfig, description=__doc__)
    cache_compilations(Path("runs/.jax_cache"))
    try:
        figures = measure(load(config.run), config)
        if config.json:
            config.json.write_text(
                json.dumps({task: {k: v._asdict() for k, v in rows.items()} for task, rows in figures.items()})
            )
    except (ValueError, OSError, CheckpointError) as error:
        print(f"evaluate_text: {error}", file=sys.stderr)
        return 1
    for task, rows in figures.items():
        for name, interval in rows.items():
            print(f"{task} {name}: {interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
