"""The joint training step in PyTorch: the same weights, batch, losses and optimiser, written as one would write it there.

For comparison alone; PyTorch is no dependency. Two rates, rotary attention, plans of real numbers that are read by FiLM, bounded
actions and sub-goals.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import haiku as hk
import jax
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from hierarchy.batch import Batch, Stream, Targets
from hierarchy.layout import BINS, CONTINUOUS_START
from hierarchy.model.config import Sizes
from hierarchy.model.network import Network
from hierarchy.training.learner import LearnerConfig, rate
from modules.attention import MASKED
from modules.embedding import POSITIONS, bin_features, head_features
from modules.transformer import TransformerConfig

Leaves = Mapping[str, Mapping[str, np.ndarray]]
RATES = 10_000
"""Steps whose learning rates are worked out beforehand."""


class Told(NamedTuple):
    """A stream as PyTorch is given it: rows of the value table and fields [B, N, K], index in its moment and tick [B, N], and
    which tokens may attend to which [B, N, N]."""

    row: torch.Tensor
    field: torch.Tensor
    index: torch.Tensor
    tick: torch.Tensor
    mask: torch.Tensor


def told(stream: Stream, table: Sizes, window: int) -> Told:
    """Returns a stream [B, N] as PyTorch is given it."""
    tick, segment = stream.tick, stream.segment
    order = np.arange(tick.shape[1])
    new = (np.diff(tick, prepend=-1, axis=1) != 0) | (np.diff(segment, prepend=-1, axis=1) != 0)
    index = order - np.maximum.accumulate(np.where(new, order, 0), axis=1)
    same = (segment[:, :, None] == segment[:, None, :]) & (segment > 0)[:, None, :]
    near = (tick[:, :, None] - tick[:, None, :] < window) & (order[None, :] <= order[:, None])
    present = stream.lasting[:, None, :] | (tick[:, :, None] == tick[:, None, :])
    # A place with no token sees itself: a row of nothing has no softmax.
    mask = (same & near & present) | np.eye(len(order), dtype=bool)
    row = table.row(stream.value)
    return Told(*(torch.tensor(part, dtype=torch.long) for part in (row, stream.field, index, tick)), torch.tensor(mask))


def dense(leaves: Mapping[str, np.ndarray]) -> nn.Linear:
    """Returns haiku's linear layer as PyTorch's."""
    weight = np.asarray(leaves["w"]).T
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias="b" in leaves)
    layer.weight = number(np.ascontiguousarray(weight))
    if "b" in leaves:
        layer.bias = number(leaves["b"])
    return layer


def number(values: np.ndarray) -> nn.Parameter:
    """Returns a parameter."""
    return nn.Parameter(torch.tensor(np.asarray(values)))


def log_features(count: torch.Tensor) -> torch.Tensor:
    """Returns [..., features], as `modules.embedding.log_features`."""
    count = count.float()
    x = (torch.sign(count) * torch.log1p(torch.abs(count)))[..., None]
    waves = x * torch.tensor([0.5, 1.0, 2.0, 4.0])
    return torch.cat([torch.ones_like(x), x, torch.sin(waves), torch.cos(waves)], -1)


def at(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Returns [B, M, ...] from [B, N, ...] by index [B, M]; a negative one gives some entry that has no weight."""
    return x[torch.arange(len(x))[:, None], index.clamp(min=0)]


class Embedding(nn.Module):
    """As `modules.embedding.TokenEmbedding`."""

    def __init__(self, leaves: Mapping[str, np.ndarray], table: Sizes, lookups: int, level: int):
        super().__init__()
        values = bin_features(BINS)
        constant = np.eye(1, values.shape[1], dtype=np.float32)
        rows = np.concatenate([constant.repeat(table.names, 0), values, constant, constant, constant])
        self.register_buffer("features", torch.tensor(rows))
        self.names, self.fields, self.shared, self.positions = (
            number(leaves[name]) for name in ("names", "fields", "shared", "positions")
        )
        self._names, self._lookups = table.names, lookups
        own = torch.tensor(table.own_fields[level])
        self.register_buffer("own", own)
        self.register_buffer("place", torch.zeros(table.fields, dtype=torch.long).index_put((own,), torch.arange(len(own))))

    def forward(self, row: torch.Tensor, field: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        (rows, tokens, atoms), (_, count, size) = row.shape, self.fields.shape
        there = row >= 0
        alone = there.sum(-1) == 1
        features = self.features[row.clamp(min=0)] * there[..., None]
        if atoms == 1:
            x = functional.embedding(field.clamp(min=0)[..., 0], self.fields[:, 0]) * there
        else:
            own = features.clone()
            own[..., 1:] *= ~alone[..., None, None]
            by_field = torch.zeros(rows, tokens, len(self.own), count)
            by_field.scatter_add_(2, self.place[field.clamp(min=0)][..., None].expand(own.shape), own)
            x = by_field.flatten(2) @ self.fields[self.own].view(-1, size)
        x = x + alone[..., None] * (features.sum(2) @ self.shared)
        x = x + (row == self._names + BINS).any(-1, keepdim=True) * self.names[self._names]
        first = row[..., : self._lookups]
        named = (first >= 0) & (first < self._names)
        x = x + (functional.embedding(first * named, self.names) * named[..., None]).sum(2)
        word = named[..., :1] & alone[..., None]
        x = x + functional.embedding(index.clamp(max=POSITIONS - 1), self.positions) * word
        return x * torch.rsqrt(there.sum(-1, keepdim=True).clamp(min=1).float())


class Layer(nn.Module):
    """As `modules.transformer.Block`, with rotary attention and FiLM."""

    def __init__(self, leaves: Leaves, name: str, number_: int, config: TransformerConfig):
        super().__init__()
        own = f"{name}/transformer/layer_{number_}/"
        self._heads = config.heads
        self.query_key_value, self.out, self.gate_up, self.down = (
            dense(leaves[own + part]) for part in ("query_key_value", "attention_out", "gate_up", "down")
        )
        self.norm_attention, self.norm_feed_forward = (
            number(leaves[own + part]["scale"]) for part in ("norm_attention", "norm_feed_forward")
        )
        plan = own + f"norm_plan_{number_}"
        self.norm_plan = number(leaves[plan]["scale"]) if plan in leaves else None

    def forward(self, x: torch.Tensor, turn, mask: torch.Tensor, film=None) -> torch.Tensor:
        parts = self.query_key_value(_normed(x, self.norm_attention)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self._heads, -1)).transpose(1, 2) for part in parts)
        query, key = _turned(query, *turn), _turned(key, *turn)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        if film is not None:
            scale, shift = film
            x = x + _normed(x, self.norm_plan) * scale + shift
        gate, up = self.gate_up(_normed(x, self.norm_feed_forward)).chunk(2, -1)
        return x + self.down(functional.gelu(gate, approximate="tanh") * up)


class Reader(nn.Module):
    """Embedding and layers of one of the two models."""

    def __init__(self, leaves: Leaves, name: str, config: TransformerConfig, table: Sizes, lookups: int, told_of: str):
        super().__init__()
        self.embedding = Embedding(leaves[f"{name}/embedding"], table, lookups, 0 if name == "controller" else 1)
        self.told_of = dense(leaves[f"{name}/{told_of}"])
        self.layers = nn.ModuleList(Layer(leaves, name, i, config) for i in range(config.layers))
        self.norm_out = number(leaves[f"{name}/transformer/norm_out"]["scale"])
        count, longest = max(config.width // config.heads // 4, 1), max(4 * config.window, 4)
        self._periods = torch.tensor(np.geomspace(4, longest, count).round().astype(np.int64))

    def forward(self, stream: Told, told_of: torch.Tensor, films=None) -> torch.Tensor:
        x = self.embedding(stream.row, stream.field, stream.index) + told_of
        angle = 2 * math.pi * (stream.tick[..., None] % self._periods) / self._periods
        turn = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
        for i, layer in enumerate(self.layers):
            x = layer(x, turn, stream.mask, None if films is None else films[i])
        return _normed(x, self.norm_out)


class TorchStep:
    """One training step after another: call it with what `prepared` made of a batch, and have the loss.

    Raises:
        ValueError: the network is not of the kind that this is written for.
    """

    def __init__(self, network: Network, params: hk.Params, config: LearnerConfig):
        model, self._table = network.config, network.table
        kinds = self._table.pieces, self._table.patch_values, self._table.discrete, self._table.predictions, self._table.lives
        if model.planner is None or model.above or model.plan_read != "film" or model.plan_levels or any(kinds):
            raise ValueError("in PyTorch there is the step of two rates with FiLM, real plans and bounded actions alone")
        if not model.told_tick or any(own.windows or own.slowest for own in (model.planner, model.controller)):
            raise ValueError("in PyTorch all layers of a model have its one window, and time enters as it does by default")
        leaves = {name: {part: np.asarray(leaf) for part, leaf in own.items()} for name, own in params.items()}
        self._windows = model.controller.window, model.planner.window
        self._shape = model.plan_vectors, model.plan_width
        self._planner = Reader(leaves, "planner", model.planner, self._table, self._table.planner_names, "time")
        self._controller = Reader(leaves, "controller", model.controller, self._table, self._table.controller_names, "age")
        slow = {"plan": dense(leaves["planner/~plan/vectors"])}
        fast = {f"film_{i}": dense(leaves[f"controller/~read_plan/plan_film_{i}"]) for i in range(model.controller.layers)}
        fast["bins"] = dense(leaves["controller/~continuous/continuous/weights"])
        if self._table.goal_names:
            slow["names"] = dense(leaves["planner/~sub_goal/goal_names"])
        if self._table.goal_bins:
            slow["places"] = dense(leaves["planner/~sub_goal/goal_bins/weights"])
            self._place_bias = number(leaves["planner/~sub_goal/goal_bins"]["bias"])
        self._slow, self._fast = nn.ModuleDict(slow), nn.ModuleDict(fast)
        self._no_plan = number(leaves["controller"]["no_plan"])
        self._bias = number(leaves["controller/~continuous/continuous"]["bias"])
        self._bins, self._places = (torch.tensor(head_features(max(n, 1))) for n in (BINS, self._table.goal_bins))
        own = [*self._planner.parameters(), *self._slow.parameters(), *([self._place_bias] if self._table.goal_bins else [])]
        controllers = [*self._controller.parameters(), *self._fast.parameters(), self._no_plan, self._bias]
        self._clip, self._parameters, self._number = config.clip, own + controllers, 0
        self._rates = np.asarray(jax.vmap(rate(config))(np.arange(RATES)))
        self._speeds = [speed for speed in (1.0, config.controller_rate) for _ in range(2)]
        groups = [
            {"params": [leaf for leaf in some if (leaf.ndim > 1) == matrices], "weight_decay": config.weight_decay * matrices}
            for some in (own, controllers)
            for matrices in (True, False)
        ]
        self._optimizer = torch.optim.AdamW(groups, betas=(config.b1, config.b2))

    def prepared(self, batch: Batch) -> dict:
        """Returns a batch as tensors."""

        def integers(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(np.asarray(values), dtype=torch.long)

        def targets(of: Targets) -> Targets:
            return Targets(integers(of.slot), integers(of.label), integers(of.limit), torch.tensor(of.weight))

        fast, slow = (told(s, self._table, w) for s, w in zip((batch.controller, batch.planner), self._windows))
        plain = {name: integers(getattr(batch, name)) for name in ("plan_slot", "plan", "age")}
        return {"fast": fast, "slow": slow, "action": targets(batch.continuous), "goal": targets(batch.sub_goal)} | plain

    def __call__(self, batch: dict) -> tuple[float, float]:
        """Takes one step; returns the loss before it and the norm of its gradient."""
        for group, speed in zip(self._optimizer.param_groups, self._speeds):
            group["lr"] = float(self._rates[self._number]) * speed
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters, self._clip)
        self._optimizer.step()
        self._number += 1
        return float(loss.detach()), float(norm)

    def loss(self, batch: dict) -> torch.Tensor:
        """Returns the joint loss: of actions, and of the planner's sub-goals."""
        slow, fast, table = batch["slow"], batch["fast"], self._table
        thought = self._planner(slow, self._planner.told_of(log_features(slow.tick)))
        plan = self._slow["plan"](at(thought, batch["plan_slot"])).unflatten(-1, self._shape)
        plan = torch.cat([plan, self._no_plan.expand(len(plan), 1, *self._shape)], 1)
        plan = (plan * torch.rsqrt(plan.square().mean(-1, keepdim=True) + 1e-6)).flatten(2)
        seen = torch.where(batch["plan"] < 0, plan.shape[1] - 1, batch["plan"])
        films = [
            [at(part, seen) for part in self._fast[f"film_{i}"](plan).chunk(2, -1)] for i in range(len(self._controller.layers))
        ]
        age = batch["age"][..., None]
        aged = self._controller.told_of(log_features(batch["age"].clamp(min=0))) * (age >= 0)
        x = self._controller(fast, aged, films)
        action = batch["action"]
        logits = self._fast["bins"](at(x, action.slot)) @ self._bins.T + self._bias
        legal = torch.arange(logits.shape[-1]) < action.limit[..., None]
        total = _cross_entropy(logits, legal, action.label - CONTINUOUS_START, action.weight)
        if not table.goals:
            return total
        goal = batch["goal"]
        outputs = at(thought, goal.slot)
        heads = [self._slow["names"](outputs)] if table.goal_names else []
        if table.goal_bins:
            heads.append(self._slow["places"](outputs) @ self._places.T + self._place_bias)
        logits, bins = torch.cat(heads, -1), goal.label >= CONTINUOUS_START
        first = bins * table.goal_names
        place = torch.arange(logits.shape[-1]) - first[..., None]
        legal = (place >= 0) & (place < goal.limit[..., None])
        return total + _cross_entropy(logits, legal, goal.label + first - bins * CONTINUOUS_START, goal.weight)


def _normed(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, scale.shape, scale, 1e-6)


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    count = cos.shape[-1]
    a, b, rest = x[..., :count], x[..., count : 2 * count], x[..., 2 * count :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


def _cross_entropy(logits: torch.Tensor, legal: torch.Tensor, label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The mean over targets [B, M] of one head's logits [B, M, classes]."""
    logits = logits.masked_fill(~legal, MASKED)
    each = functional.cross_entropy(logits.flatten(0, 1), torch.where(weight > 0, label, 0).flatten(), reduction="none")
    return (torch.where(weight > 0, each.view(weight.shape), 0.0) * weight).sum() / weight.sum().clamp(min=1)
