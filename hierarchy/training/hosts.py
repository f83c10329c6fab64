"""Several hosts that train one model: `jax.distributed` connects them, each makes the rows of its own devices."""

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from hierarchy.batch import Batch
from hierarchy.training.sharding import batch_sharding
from modules.compute import Spread


class HostLost(Exception):
    """Another host of the run has ended; what was saved last is whole."""


@dataclasses.dataclass(frozen=True)
class HostsConfig:
    """count: hosts of the run, one process each; every host gives the same command but for its index, in [0, count).
    coordinator: address and port of host 0, as the others reach it; empty where the machines say it themselves (a TPU slice).
    silent_s: seconds after which a host that says nothing counts as lost."""

    count: int = 1
    index: int = 0
    coordinator: str = ""
    silent_s: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(f"host index {self.index} lies in [0, {self.count}): give hosts.index and hosts.count")


def connect(config: HostsConfig) -> None:
    """Connects the hosts, before anything is computed; nothing for one host. Raises ConnectionError where one is missing."""
    if config.count == 1:
        return
    where = {"coordinator_address": config.coordinator, "num_processes": config.count, "process_id": config.index}
    try:
        jax.distributed.initialize(
            **(where if config.coordinator else {}),
            initialization_timeout=config.silent_s,
            heartbeat_timeout_seconds=config.silent_s,
            shutdown_timeout_seconds=config.silent_s,
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"host {config.index} of {config.count} found no run at {config.coordinator or 'the address of the slice'}: start "
            f"all hosts within {config.silent_s} s, host 0 where that address leads ({str(error).splitlines()[0]})"
        ) from error


def check_rows(spread: Spread) -> None:
    """Raises ValueError where two hosts would have to make the same rows."""
    by_rows = spread.mesh.devices.reshape(-1, spread.mesh.shape["tensor"])
    if any(len({device.process_index for device in devices}) > 1 for devices in by_rows):
        raise ValueError(
            f"mesh.tensor {spread.mesh.shape['tensor']} divides heads over hosts of {jax.local_device_count()} devices, and each "
            "host makes rows of its own: give mesh.tensor a divisor of these"
        )


def own_shards(shards: int) -> range:
    """Returns which of so many equal parts of a batch's rows this host makes. Raises ValueError where they do not go round."""
    count = jax.process_count()
    if shards % count:
        raise ValueError(f"{shards} shards of the corpus for {count} hosts: give mix.shards a multiple of {count}")
    each = shards // count
    return range(jax.process_index() * each, (jax.process_index() + 1) * each)


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Lets the first host through, and the others after it."""
    first = jax.process_index() == 0
    if not first:
        multihost_utils.sync_global_devices("the first host has been here")
    yield
    if first and jax.process_count() > 1:
        multihost_utils.sync_global_devices("the first host has been here")


def placed(batch: Batch, spread: Spread | None) -> Batch:
    """Returns a batch on its devices, from the rows of this host; as it is where there is one host."""
    if jax.process_count() == 1:
        return batch
    how = batch_sharding(spread)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(how, np.asarray(rows)), batch)


def divided(batch: Batch, spread: Spread | None) -> Batch:
    """Returns a batch on its devices, of which every host has all rows; as it is where there is one host."""
    if jax.process_count() == 1:
        return batch
    how = batch_sharding(spread)
    return jax.tree.map(lambda rows: jax.make_array_from_callback(np.shape(rows), how, np.asarray(rows).__getitem__), batch)


def anyone(flags: dict[str, bool]) -> dict[str, bool]:
    """Returns which flags are set on any host; all hosts call this at the same time."""
    if jax.process_count() == 1:
        return flags
    everywhere = multihost_utils.process_allgather(np.array(list(flags.values())))
    return dict(zip(flags, np.asarray(everywhere).any(axis=0).tolist(), strict=True))


@contextlib.contextmanager
def lost_hosts_named() -> Iterator[None]:
    """Turns what JAX says when another host is gone into HostLost."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise HostLost(
            f"host {jax.process_index()} of {jax.process_count()} lost another one, whose own output says why "
            f"({str(error).splitlines()[0][:120]}); start all hosts again, training resumes from the newest checkpoint"
        ) from error
