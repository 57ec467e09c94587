"""Base parameters of torch as trees, and adapters that PEFT wrote over them."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lowrank.interop import Loaded, load_peft

GOLDEN = Path(__file__).parent.parent / "golden/peft"
CONV1D = ("c_attn", "c_proj", "c_fc")


def as_tree(tensors):
    """Parameters by torch name as a nested dict in the layout of Flax."""
    tree = {}
    for name, array in tensors.items():
        *parents, last = name.split(".")
        if last == "weight":
            last, array = as_leaf(parents[-1], array)
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = jnp.asarray(array)
    return tree


def as_leaf(module, array):
    """What a torch weight is called in Flax, and its array."""
    if "embed" in module or module in ("wte", "wpe"):
        return "embedding", array
    if array.ndim == 1:
        return "scale", array
    return "kernel", array if module in CONV1D else np.moveaxis(array, (0, 1), (-1, -2))


def arrays(case):
    """The stored arrays of a case, by kind: `base`, `merged`, and the rest."""
    stored = np.load(GOLDEN / case / "arrays.npz")
    kinds = {"base": {}, "merged": {}, "": {}}
    for key in stored:
        kind, _, name = key.rpartition(":")
        kinds[kind][name] = stored[key]
    return kinds


def load(case, directory=None, **options) -> Loaded:
    """A case's adapter, or another directory, over the base of the case."""
    base = as_tree(arrays(case)["base"])
    return load_peft(directory or GOLDEN / case, base, **options)


def flat(tree, prefix=""):
    """Leaves by path."""
    found = {}
    for name, child in tree.items():
        path = f"{prefix}{name}"
        found |= flat(child, f"{path}/") if isinstance(child, dict) else {path: child}
    return found
