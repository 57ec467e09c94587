"""Read off how a function uses the axes of its parameters."""

from collections.abc import Callable
from typing import Any

from lowrank import _tree
from lowrank._axes import Axes
from lowrank._base import Path, PyTree, is_floating
from lowrank.lifting._frame import Session
from lowrank.lifting._lift import evaluated
from lowrank.operators._probe import Probe, Usage


def trace_axes(
    fn: Callable[..., PyTree], params: PyTree, *args: Any, **kwargs: Any
) -> dict[Path, Axes]:
    """Read off the inputs, outputs and stacks of every weight of a model.

    An axis that a product sums over is an input, as is one that a convolution slides
    over or an embedding looks up; an axis that a scan slices, that a batched product
    shares or that is cut to a single index is a stack; all other axes are outputs.
    The model runs abstractly: nothing is computed.

    Args:
        fn: The model, called as `fn(params, *args, **kwargs)`.
        params: Its parameters, plain arrays or shapes.
        *args: Further arguments, as for `lift`.
        **kwargs: Keyword arguments, as for `lift`.

    Returns:
        Axes by path, for the leaves that are used as weights of products in one
        consistent way: pass it as `axes=` to a factory. A leaf whose uses disagree (a
        tied embedding that is looked up and multiplied) is told by its first use.

    Example:
        >>> params = {"out": jnp.ones((2, 3, 5))}
        >>> def fn(p, x):
        ...     return jnp.einsum("bhd,hdo->bo", x, p["out"])
        >>> lrk.trace_axes(fn, params, jnp.ones((7, 2, 3)))["out"]
        Axes(stack=(), inputs=(0, 1), outputs=(2,))
    """
    usages: dict[Path, Usage] = {}

    def probe(path: Path, leaf: Any) -> Any:
        if not is_floating(leaf) or len(leaf.shape) < 2:
            return leaf
        usages[path] = Usage()
        origins = tuple(frozenset([d]) for d in range(len(leaf.shape)))
        return Probe._make(w=leaf, origins=origins, usage=usages[path], path=path)

    def run(params: PyTree, args: Any, kwargs: Any) -> None:
        probed = _tree.map_operators("trace_axes", params, probe)
        evaluated(fn, (probed, *args), kwargs, Session())

    _tree.abstractly(run, params, args, kwargs)
    found = {path: _axes(usage) for path, usage in usages.items()}
    return {path: axes for path, axes in found.items() if axes is not None}


def _axes(usage: Usage) -> Axes | None:
    """The roles of the axes by their first use; None if no factors can follow."""
    kinds: dict[str, list[int]] = {"stack": [], "input": [], "output": []}
    for axis, roles in sorted(usage.roles.items()):
        split = len(set(roles)) > 1
        if "formed" in roles or (split and "stack" in roles):
            return None
        kinds[roles[0]].append(axis)
    axes = Axes(*(tuple(dims) for dims in kinds.values()))
    return axes if axes.inputs and axes.outputs else None
