"""Layers held one by one, or all together: what every layer has as one array [layers, ...].

Parameters are made, kept and acted with by layer, under the names that modules give them. A step that runs its layers in a loop
holds them stacked instead: a loop over arrays that lie together, an optimiser with one update for all layers. Hundreds of small
arrays, brought together and taken apart in every step, take most of the time that compiling such a step takes.
"""

import re
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

ANY = "_*"
LAYERS = "layer" + ANY
"""What stands for a layer's number in the name of what all layers have."""


def kind_of(module: str) -> tuple[str, int]:
    """Returns a module's name with the number of its layer left out, and that number; 0 where it stands in no layer."""
    found = re.search(r"/layer_(\d+)", module)
    if found is None:
        return module, 0
    return f"{module[: found.start()]}/{LAYERS}" + re.sub(rf"_{found[1]}(?=/|$)", ANY, module[found.end() :]), int(found[1])


def stacked(tree: Any) -> Any:
    """Returns trees of parameters, or of what an optimiser keeps of each, what all layers have as one array [layers, ...]."""
    return jax.tree.map(lambda each: _stack(each) if _of_params(each) else each, tree, is_leaf=_of_params)


def by_layer(tree: Any) -> Any:
    """Returns what `stacked` was given; what is not stacked stays as it is."""

    def one(each: Any) -> Any:
        return _unstack(each) if _of_params(each) and any(LAYERS in name for name in each) else each

    return jax.tree.map(one, tree, is_leaf=_of_params)


def _of_params(node: Any) -> bool:
    """Whether a node is parameters by module and name, and not a dict of an optimiser's own."""
    return isinstance(node, dict) and all(isinstance(leaves, dict) for leaves in node.values())


def _stack(params: hk.Params) -> hk.Params:
    kinds: dict[str, list[str]] = {}
    for module in sorted(params, key=lambda name: kind_of(name)[1]):
        kinds.setdefault(kind_of(module)[0], []).append(module)
    return {
        kind: jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[module] for module in modules))
        if LAYERS in kind
        else params[kind]
        for kind, modules in kinds.items()
    }


@jax.custom_vjp
def _unstack(params: hk.Params) -> hk.Params:
    found, counts = {}, {}
    for kind, leaves in params.items():
        counts |= {kind.split(LAYERS)[0]: len(leaf) for leaf in jax.tree.leaves(leaves)[:1] if LAYERS in kind}
    for kind, leaves in params.items():
        # An optimiser may keep nothing of a module's own parameters: the layers beside it say how many there are.
        layers = counts[kind.split(LAYERS)[0]] if LAYERS in kind else 0
        found |= {kind.replace(ANY, f"_{n}"): jax.tree.map(lambda leaf, n=n: leaf[n], leaves) for n in range(layers)}
        found |= {} if layers else {kind: leaves}
    return found


# By itself each layer's slope would be padded to all layers', and the padded ones added up.
_unstack.defvjp(lambda params: (_unstack(params), None), lambda _, slopes: (_stack(slopes),))
