"""How a pass over whole streams is computed: its precision, what the backward pass keeps, its kernel, and over which devices.

None of this is part of a model: parameters have the same names and shapes under every choice, in float32, and acting over a cache
takes none of it. So it is not handed down through the model but stands around the tracing of a pass (`computing`), as JAX's own
precision of products does.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, get_args

import haiku as hk
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modules.stacking import ANY, LAYERS

Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class Compute:
    """precision: of what layers and heads of text multiply, and pass on; sums, norms, logits, losses and parameters stay float32.
    scan: layers run as one compiled body in a loop, so that compiling does not take longer with more of them; where layers are
        gone through in several rounds they do not.
    remat: what a layer's backward pass computes anew: nothing ("none"), all but products with weights and what kernels make
        ("dots"), or all ("full").
    attention: "einsum", or a "flash" kernel that never holds a whole matrix of scores; it runs where attention is rotary and has
    no prefix, and einsum elsewhere. Off a TPU it is interpreted, slowly.
    text_chunk: targets of text whose logits exist at one time, in every row; 0 for all of them. A multiple that divides them.
    expert_capacity: room of each expert for the tokens of a row, in even shares of them; what comes when it is full is left out,
    and the share of it is a metric. 0 for every token ("dropless"), as evaluating and acting have it: as many operations as all
    experts take together.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    scan: bool = False
    remat: Remat = "none"
    attention: Literal["einsum", "flash"] = "einsum"
    text_chunk: int = 0
    expert_capacity: float = 0.0

    def __post_init__(self) -> None:
        for name, kind in {
            "precision": ("float32", "bfloat16"),
            "remat": get_args(Remat),
            "attention": ("einsum", "flash"),
        }.items():
            if getattr(self, name) not in kind:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it is one of {', '.join(kind)}")
        if self.text_chunk < 0:
            raise ValueError(f"text_chunk is {self.text_chunk}: at least 0")
        if self.expert_capacity < 0:
            raise ValueError(f"expert_capacity is {self.expert_capacity}: at least 0")

    @property
    def dtype(self) -> jnp.dtype:
        """The type of what layers pass on."""
        return jnp.dtype(self.precision)


KERNEL_MADE = "kernel_made"
"""The name of what a kernel makes and its backward pass needs, for what is kept of a layer."""

Dimensions = tuple[str | None, ...]
"""Names of an array's dimensions; None for those that are never divided."""


class Spread(NamedTuple):
    """Devices, and what is spread over them. axes: from the name of a dimension to the mesh axes that divide it, in order.
    parameters: from the end of a parameter's path to the names of its dimensions, the first that matches; None for those that
    stay whole.

    Dimensions of activations: "rows" of a batch, "heads" of attention (or what is made of them, in their order), "hidden" of the
    feed-forward, "experts" of it, "classes" of text. "width" is a parameter's dimension that no activation shares.
    """

    mesh: Mesh
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    parameters: tuple[tuple[str, Dimensions | None], ...] = ((r"", None),)

    def over(self, dimension: str | None) -> tuple[str, ...]:
        """Returns the mesh axes that divide a dimension of this name; none for a name that is not there."""
        return dict(self.axes).get(dimension, ())

    def dimensions(self, path: str, rank: int) -> Dimensions:
        """Returns the names of a parameter's dimensions."""
        if LAYERS in path:
            return None, *self.dimensions(path.replace(ANY, "_0"), rank - 1)
        names = next(names for pattern, names in self.parameters if re.search(pattern + "$", path))
        return names if names is not None and len(names) == rank else (None,) * rank


_CURRENT: contextvars.ContextVar[tuple[Compute, Spread | None]] = contextvars.ContextVar("computing", default=(Compute(), None))


@contextlib.contextmanager
def computing(compute: Compute, spread: Spread | None = None) -> Iterator[None]:
    """Passes that are traced inside are computed so, and over these devices."""
    token = _CURRENT.set((compute, spread))
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> tuple[Compute, Spread | None]:
    """Returns how a pass is to be computed that is traced here."""
    return _CURRENT.get()


def partition(spread: Spread, names: Dimensions, shape: tuple[int, ...]) -> PartitionSpec:
    """Returns how an array with dimensions of these names and sizes is divided.

    A mesh axis divides the first dimension that claims it, and only where the size is a multiple; else the dimension stays whole.
    """
    used: set[str] = set()
    parts: list[tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=True):
        wanted = [axis for axis in spread.over(name) if axis not in used]
        while wanted and size % math.prod(spread.mesh.shape[axis] for axis in wanted):
            wanted.pop()
        used.update(wanted)
        parts.append(tuple(wanted) or None)
    return PartitionSpec(*parts)


def laid(x: jax.Array, *names: str | None) -> jax.Array:
    """Returns x, its dimensions of these names divided among the devices; x itself where nothing is spread."""
    _, spread = current()
    if spread is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(spread.mesh, partition(spread, names, x.shape)))


def gathered(x: jax.Array, names: Dimensions) -> jax.Array:
    """Returns x whole along the dimensions, of these names, that are divided over the same devices as rows: each device needs all
    of a parameter for its own rows. What comes back for it as a gradient is summed and divided again. x itself where nothing is
    spread."""
    _, spread = current()
    if spread is None:
        return x
    rows = set(spread.over("rows"))
    kept = tuple(None if rows & set(spread.over(name)) else name for name in names)
    whole, held = (NamedSharding(spread.mesh, partition(spread, each, x.shape)) for each in (kept, names))
    return x if whole == held else _resharded(x, whole, held)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resharded(x: jax.Array, there: NamedSharding, back: NamedSharding) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, there)


_resharded.defvjp(
    lambda x, there, back: (_resharded(x, there, back), None),
    lambda there, back, _, slope: (jax.lax.with_sharding_constraint(slope, back),),
)


@contextlib.contextmanager
def gathering() -> Iterator[None]:
    """Parameters that modules ask for inside are gathered there, where they are used, and not before."""
    _, spread = current()
    if spread is None:
        yield
        return

    def getter(next_getter, value: jax.Array, context: hk.GetterContext) -> jax.Array:
        return gathered(next_getter(value), spread.dimensions(context.full_name, value.ndim))

    with hk.custom_getter(getter):
        yield


_IN_ROWS: contextvars.ContextVar[bool] = contextvars.ContextVar("in_rows", default=False)


def over_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function of one row, for all rows of a batch at once: `jax.vmap`, the rows divided among the devices."""
    _, spread = current()
    if spread is not None:
        return jax.vmap(function, spmd_axis_name=spread.over("rows"))

    def run(*arguments: Any) -> Any:
        token = _IN_ROWS.set(True)
        try:
            return jax.vmap(function)(*arguments)
        finally:
            _IN_ROWS.reset(token)

    return run


def product(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns x [..., C] times weights [C, D]. The tokens of all rows are multiplied as those of one long row.

    The gradient of weights is then a product of two matrices. Of rows [B, N, C] XLA would first turn the slopes around in memory,
    and multiply as it does slowly: on a CPU that takes twice as long.
    """
    if not _IN_ROWS.get() or x.ndim != 2:
        return jnp.matmul(x, weights)
    # Not for reverse-mode differentiation by itself, for which there is a rule only once rows are one: `over_rows` stands inside.
    multiply = jax.custom_batching.custom_vmap(jnp.matmul)

    @multiply.def_vmap
    def multiply_rows(size: int, batched: list[bool], x: jax.Array, weights: jax.Array) -> tuple[jax.Array, bool]:
        if batched != [True, False]:
            return jax.vmap(jnp.matmul, in_axes=[0 if each else None for each in batched])(x, weights), True
        return jnp.matmul(x.reshape(-1, x.shape[-1]), weights).reshape(*x.shape[:-1], -1), True

    return multiply(x, weights)


def each_device(function: Callable[..., jax.Array], *names: tuple[str | None, ...]) -> Callable[..., jax.Array]:
    """Returns the function of arrays, run by every device on its own part of them. names: the dimensions of each argument; what
    it returns has those of the first."""
    _, spread = current()
    if spread is None:
        return function

    def run(*arrays: jax.Array) -> jax.Array:
        specs = tuple(partition(spread, name, array.shape) for name, array in zip(names, arrays, strict=True))
        return jax.shard_map(function, mesh=spread.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)

    return run


def rematerialised(layer: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Returns the layer, its backward pass computing anew what `remat` says."""
    if remat == "none":
        return layer
    policies = jax.checkpoint_policies
    kept = policies.save_from_both_policies(
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KERNEL_MADE)
    )
    return hk.remat(layer, policy=kept if remat == "dots" else None)


def lowered(params: hk.Params) -> hk.Params:
    """Returns parameters as a pass reads them: matrices inside layers in the precision of the computation, to be gathered there;
    all others whole, but for tables, of which few rows are read."""
    compute, spread = current()
    if compute.precision == "float32" and spread is None:
        return params

    def lower(module: str, name: str, leaf: jax.Array) -> jax.Array:
        if "/layer_" in module:
            return leaf.astype(compute.dtype) if leaf.ndim > 1 + (LAYERS in module) else leaf
        table = spread is None or name == "names"
        return leaf if table else gathered(leaf, spread.dimensions(f"{module}/{name}", leaf.ndim))

    return {module: {name: lower(module, name, leaf) for name, leaf in leaves.items()} for module, leaves in params.items()}


class LayerNames:
    """From names of a layer's modules to those of layer 0 with the layer's number, and back: parts may be numbered like it."""

    def stacked_to_flat(self, stacked_module_name: str, scan_idx: int) -> str:
        """Returns the name in layer `scan_idx` of what is so named in layer 0."""
        return re.sub(r"_0(?=/|$)", f"_{scan_idx}", stacked_module_name)

    def flat_to_stacked(self, unstacked_module_name: str) -> tuple[str, int] | None:
        """Returns the name in layer 0 and the layer's number; None for what stands in no layer."""
        found = re.match(r"layer_(\d+)(?=/|$)", unstacked_module_name)
        if found is None:
            return None
        return re.sub(rf"_{found[1]}(?=/|$)", "_0", unstacked_module_name), int(found[1])
