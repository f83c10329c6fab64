"""One mesh of devices, and one table of what is divided along its axes, for planner and controller alike.

A batch's rows are divided over `data` and `fsdp`. Parameters, and what the optimiser keeps of each, are divided over `fsdp`, and
gathered layer by layer where they are used (ZeRO, arXiv 1910.02054, stage 3). Over `tensor` heads and hidden units are divided,
with their parameters, and the classes of text (Megatron-LM, arXiv 1909.08053, section 3). Over `expert` a planner's experts are
divided: each device gathers the tokens that its own experts were chosen for, and what they make of them is summed over the axis.
Where there are no experts the axis goes on where `tensor` ends, so that no device does what another does. Nothing that is divided
changes what is computed.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from modules.compute import Spread, partition

AXES = {
    "rows": ("data", "fsdp"),
    "heads": ("tensor", "expert"),
    "hidden": ("tensor", "expert"),
    "classes": ("tensor", "expert"),
    "experts": ("expert",),
    "width": ("fsdp",),
}
"""From the dimensions of parameters and activations to the mesh axes that divide them."""

PARAMETERS = (
    (r"layer_\d+/(query_key_value|plan_query_\d+)/w", ("width", "heads")),
    (r"layer_\d+/(attention_out|plan_out_\d+)/w", ("heads", "width")),
    (r"layer_\d+/distance", ("width", "heads")),
    (r"layer_\d+/experts/gate_up", ("experts", "width", "hidden")),
    (r"layer_\d+/experts/down", ("experts", "hidden", "width")),
    (r"layer_\d+/gate_up/w", ("width", "hidden")),
    (r"layer_\d+/down/w", ("hidden", "width")),
    (r"embedding/names", (None, "width")),
    (r"embedding/bias", ("classes",)),
    (r"embedding/fields", (None, None, "width")),
    (r"plan_(key_value|film)_\d+/w", (None, "width")),
    (r"/w", ("width", None)),
    (r"", None),
)
"""From the end of a parameter's path to the names of its dimensions, see `Spread`."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many parts each axis has: of rows alone (data), of rows and parameters (fsdp), of heads and hidden units (tensor), of
    experts (expert)."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        return math.prod(dataclasses.astuple(self))


def spread_over(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Spread:
    """Returns the mesh of these devices, or of all there are, with what is divided along its axes.

    The axes follow the links between TPUs; elsewhere neighbours in the devices' order share the innermost axis, `tensor`, which
    communicates most.

    Raises:
        ValueError: the mesh has another number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if config.devices != len(devices):
        raise ValueError(f"the mesh {dataclasses.astuple(config)} has {config.devices} devices and there are {len(devices)}")
    names = tuple(field.name for field in dataclasses.fields(config))
    arranged = mesh_utils.create_device_mesh(dataclasses.astuple(config), devices, allow_split_physical_axes=True)
    return Spread(Mesh(arranged, names), tuple(AXES.items()), PARAMETERS)


def state_shardings(spread: Spread, state: Any) -> Any:
    """Returns the sharding of every leaf of a training state (or of its shapes). What the optimiser keeps of a parameter is
    divided as that is; counts stay whole."""

    def one(path: tuple, leaf: Any) -> NamedSharding:
        keys = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        names = spread.dimensions("/".join(keys[-2:]), len(leaf.shape)) if len(keys) >= 2 else (None,) * len(leaf.shape)
        return NamedSharding(spread.mesh, partition(spread, names, leaf.shape))

    return jax.tree_util.tree_map_with_path(one, state)


def batch_sharding(spread: Spread) -> NamedSharding:
    """Returns the sharding of all of a batch's arrays: by rows."""
    return NamedSharding(spread.mesh, PartitionSpec(AXES["rows"]))


def whole(spread: Spread) -> NamedSharding:
    """Returns the sharding of what every device has whole."""
    return NamedSharding(spread.mesh, PartitionSpec())


def bytes_a_device(shardings: Any, shapes: Any) -> int:
    """Returns how many bytes of these arrays one device holds."""
    sizes = jax.tree.map(lambda how, leaf: math.prod(how.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shardings, shapes)
    return sum(jax.tree.leaves(sizes))
