"""The controller's tick in PyTorch: the same weights, the same cache, written as one would write it there.

For comparison alone; PyTorch is no dependency. Layouts of one token a scalar with a Bounded action, plans read by attention.
"""

import math

import haiku as hk
import numpy as np
import torch
from torch.nn import functional

from hierarchy.layout import ASKED, BINS, CONTINUOUS_START, Layout, Schema, tokens_per_reading
from hierarchy.model.config import ModelConfig, sizes
from hierarchy.model.network import Reading
from modules.embedding import bin_features, head_features

FAR = -(2**30)


class TorchTick:
    """One episode's controller: call it with the ids of an observation, tick and age, and have the action's means [A] in [-1, 1].

    The plan's keys and values stand in the cache before all others; they are turned to the time of the tick, which is the same
    as not turning the query that meets them (prefix), or are attended over by a query of their own (cross_attention).
    """

    def __init__(
        self, params: hk.Params, config: ModelConfig, schema: Schema, layout: Layout, reading: Reading, compiled: bool = False
    ):
        controller = config.controller
        self._size, self._rest, self._window = tokens_per_reading(layout), layout.action.size - 1, controller.window
        self._heads, self._width, self._layers = controller.heads, controller.width, range(controller.layers)
        self._at_once, self._cross, self._limit = layout.at_once, config.plan_read == "cross_attention", layout.action.codec.bins
        self._table, self._ahead = sizes(schema), 0 if self._cross else config.plan_vectors
        self._field = schema.field_ids(layout.name)["action", layout.action.name] + torch.arange(layout.action.size)
        self._take(params, controller.layers)
        head = controller.width // controller.heads
        lasting = self._window * self._size
        shape = (controller.heads, self._ahead + lasting + self._rest, head)
        self._keys, self._values = ([torch.zeros(shape) for _ in self._layers] for _ in range(2))
        self._plan = [tuple(torch.tensor(np.asarray(part)) for part in layer) for layer in reading]
        self._time = torch.full((lasting,), FAR)
        self._own = torch.full((self._size + self._rest, self._rest), -math.inf).triu(1 - self._size)
        count = max(head // 4, 1)
        self._periods = torch.tensor(np.geomspace(4, max(4 * self._window, 4), count).round().astype(np.int64))
        self._pass = torch.compile(self._through) if compiled else self._through

    def _take(self, params: hk.Params, layers: int) -> None:
        """Lays the parameters out as PyTorch has them: [out, in]; a value's embedding is worked out beforehand."""

        def leaf(name: str, part: str) -> torch.Tensor:
            return torch.tensor(np.asarray(params[f"controller/{name}"][part]))

        def product(name: str) -> torch.Tensor:
            return leaf(name, "w").T.contiguous()

        fields, shared, table = (leaf("embedding", part) for part in ("fields", "shared", "names"))
        alone = torch.zeros(2, shared.shape[0])
        alone[:, 0] = 1
        separator = shared[0] + table[-1]
        bins = torch.tensor(bin_features(BINS)) @ shared
        # Rows as ids count from the first bin: bins, separator, patch, what is asked.
        self._rows = torch.cat([bins, separator[None], alone @ shared])
        self._fields, self._aged = fields[:, 0], product("age")
        self._out = leaf("transformer/norm_out", "scale")
        name = "transformer/layer_{}/{}".format
        self._weights = [
            (
                leaf(name(i, "norm_attention"), "scale"),
                product(name(i, "query_key_value")),
                product(name(i, "attention_out")),
                leaf(name(i, "norm_feed_forward"), "scale"),
                product(name(i, "gate_up")),
                product(name(i, "down")),
            )
            for i in range(layers)
        ]
        if self._cross:
            self._across = [
                (
                    leaf(name(i, f"norm_plan_{i}"), "scale"),
                    product(name(i, f"plan_query_{i}")),
                    product(name(i, f"plan_out_{i}")),
                )
                for i in range(layers)
            ]
        self._head = product("~continuous/continuous/weights"), leaf("~continuous/continuous/weights", "b")
        self._classes, self._bias = torch.tensor(head_features(BINS)), leaf("~continuous/continuous", "bias")
        self._centres = (torch.arange(BINS) + 0.5) * 2 / self._limit - 1

    @torch.inference_mode()
    def __call__(self, ids: np.ndarray, fields: np.ndarray, now: int, age: int) -> np.ndarray:
        """ids, fields: int [tokens], of the observation."""
        size, rest, first = self._size, self._rest, now % self._window * self._size
        angle = 2 * math.pi * (now % self._periods) / self._periods
        turn = torch.cos(angle), torch.sin(angle)
        aged = functional.linear(_log_features(age), self._aged) if age >= 0 else torch.zeros(1, self._width)
        self._time[first : first + size] = now
        there = torch.where(now - self._time < self._window, 0.0, -math.inf)
        mask = torch.zeros(size + rest, self._ahead + self._time.shape[0] + rest)
        mask[:, self._ahead : -rest or None] = there
        mask[:size, self._ahead + first : self._ahead + first + size] = self._causal()
        if rest:
            mask[:, -rest:] = self._own
        if not self._cross:
            for i, (key, value) in enumerate(self._plan):
                self._keys[i][:, : self._ahead], self._values[i][:, : self._ahead] = self._turned(key, turn), value
        asked = [ASKED] * rest if self._at_once else []
        ids = torch.tensor([*ids, *asked]) - CONTINUOUS_START
        fields = torch.cat([torch.tensor(fields), self._field[: len(asked)]])
        x = self._rows[ids] + self._fields[fields] + aged
        runs = [(self._ahead + first, size)] + ([(self._ahead + self._time.shape[0], rest)] if asked else [])
        x = self._pass(x, mask[: len(ids)], runs, turn)[size - 1 :]
        units = [self._decoded(x)]
        for i in range(rest - len(asked)):
            bin_ = torch.clamp(torch.floor((units[-1][-1] + 1) * self._limit / 2), 0, self._limit - 1).long()
            x = (self._rows[bin_] + self._fields[self._field[i]])[None] + aged
            at = self._ahead + self._time.shape[0] + i
            units.append(self._decoded(self._pass(x, mask[size + i : size + i + 1], [(at, 1)], turn)))
        return torch.cat(units).numpy()

    def _causal(self) -> torch.Tensor:
        return torch.full((self._size, self._size), -math.inf).triu(1)

    def _turned(self, x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        (cos, sin), count = turn, turn[0].shape[0]
        a, b = x[..., :count], x[..., count : 2 * count]
        return torch.cat([a * cos - b * sin, a * sin + b * cos, x[..., 2 * count :]], -1)

    def _heads_of(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.shape[0], self._heads, -1).transpose(0, 1)

    def _through(self, x: torch.Tensor, mask: torch.Tensor, runs: list[tuple[int, int]], turn) -> torch.Tensor:
        """Outputs [N, D] of embedded tokens [N, D], written to runs of slots (first, count) of the cache."""
        width = (self._width,)
        for i in self._layers:
            norm, in_, out, norm_wide, wide, down = self._weights[i]
            qkv = functional.linear(functional.rms_norm(x, width, norm, 1e-6), in_)
            query, key, value = (self._heads_of(part) for part in qkv.split(self._width, -1))
            query, key, start = self._turned(query, turn), self._turned(key, turn), 0
            for first, count in runs:
                self._keys[i][:, first : first + count] = key[:, start : start + count]
                self._values[i][:, first : first + count] = value[:, start : start + count]
                start += count
            mixed = functional.scaled_dot_product_attention(
                query[None], self._keys[i][None], self._values[i][None], attn_mask=mask[None, None]
            )
            x = x + functional.linear(mixed[0].transpose(0, 1).reshape(x.shape), out)
            if self._cross:
                norm_plan, query_plan, out_plan = self._across[i]
                asked = self._heads_of(functional.linear(functional.rms_norm(x, width, norm_plan, 1e-6), query_plan))
                read = functional.scaled_dot_product_attention(asked[None], *(part[None] for part in self._plan[i]))
                x = x + functional.linear(read[0].transpose(0, 1).reshape(x.shape), out_plan)
            gate, up = functional.linear(functional.rms_norm(x, width, norm_wide, 1e-6), wide).chunk(2, -1)
            x = x + functional.linear(functional.gelu(gate, approximate="tanh") * up, down)
        return functional.rms_norm(x, width, self._out, 1e-6)

    def _decoded(self, x: torch.Tensor) -> torch.Tensor:
        logits = functional.linear(x, *self._head) @ self._classes.T + self._bias
        return torch.softmax(logits[:, : self._limit], -1) @ self._centres[: self._limit]


def _log_features(count: int) -> torch.Tensor:
    """As `modules.embedding.log_features`, of one count."""
    x = torch.tensor([math.log1p(count)])
    waves = x * torch.tensor([0.5, 1.0, 2.0, 4.0])
    return torch.cat([torch.ones(1), x, torch.sin(waves), torch.cos(waves)])[None]
