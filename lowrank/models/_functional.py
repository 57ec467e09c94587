"""From an nnx module to a pure function of a plain parameter tree."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

from lowrank.models._optional import fill, optional_places

Params = dict[str, Any]


def functional(
    model: Any, method: Callable[..., Any] | None = None
) -> tuple[Callable[..., Any], Params]:
    """Split a model into a pure function and a plain tree of its parameters.

    The tree is a nested dict with string keys: module attribute names, the index
    for a list of modules (`params["encoder"]["layer"]["0"]`), and at the leaves
    plain arrays. The module itself is never changed. Optional parameters (soft prompts,
    prefixes) are not in the tree, but `apply` takes a tree that holds them.

    Args:
        model: Any nnx module whose only state is `nnx.Param`.
        method: What to run, as `method(model, *args, **kwargs)`; None: the model's
            own `__call__`. A method (`Bert.pooled`) or any function of the module.

    Returns:
        `(apply, params)` with `apply(params, *args, **kwargs)` equal to
        `method(model, *args, **kwargs)`. `apply` holds no arrays: it can be
        jitted, differentiated, mapped, and staged on abstract values.

    Raises:
        TypeError: If `model` is no nnx module.
        ValueError: If the model holds state that is no `nnx.Param` (batch
            statistics, random streams). `apply` itself raises it when the tree it
            is given lacks a parameter or has one too many; all are listed.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import MLP, functional
        >>> apply, params = functional(MLP((3, 4, 2), rngs=nnx.Rngs(0)))
        >>> params["layers"]["0"]["kernel"].shape
        (3, 4)
        >>> jax.jit(apply)(params, jnp.ones((5, 3))).shape
        (5, 2)

    Notes:
        A parameter shared by two modules is one leaf, under its first path. A module
        of your own takes further leaves if its class has
        `optional_params = ("prefix",)` and `prefix = None`: where the tree holds one,
        the attribute is an `nnx.Param`.

    References:
        Flax nnx, functional API: `nnx.split` and `nnx.merge`.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"functional: cannot split a {type(model).__name__}: expected an "
            "nnx.Module. For other frameworks use their own apply function."
        )
    graphdef, state, rest = nnx.split(model, nnx.Param, ...)
    extra = [to_path(parts) for parts, _ in nnx.to_flat_state(rest)]
    if extra:
        raise ValueError(
            f"functional: state that is no nnx.Param at {_quote(extra)}: expected "
            "parameters only. Split the model with nnx.split and close over the rest."
        )
    flat = {parts: leaf.get_value() for parts, leaf in nnx.to_flat_state(state)}
    places = {to_path(parts): parts for parts in flat}
    further = optional_places(model).items()
    optional = {path: parts for path, parts in further if path not in places}
    run = type(model).__call__ if method is None else method

    def apply(params: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        leaves = flatten(params)
        more = {path: leaves.pop(path) for path in optional if path in leaves}
        _check_paths(places, leaves)
        filled = nest({places[path]: leaf for path, leaf in leaves.items()})
        module = nnx.merge(graphdef, nnx.State(filled))
        for path, leaf in more.items():
            fill(module, optional[path], leaf)
        return run(module, *args, **kwargs)

    return apply, nest({tuple(p.split("/")): flat[k] for p, k in places.items()})


def to_path(parts: Iterable[Any]) -> str:
    """Join the parts of a path: `encoder/layer/0/kernel`."""
    return "/".join(str(part) for part in parts)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Map each path of a nested dict to what stands there, which is no dict."""
    out: dict[str, Any] = {}
    for name, child in tree.items():
        path = f"{prefix}{name}"
        if isinstance(child, Mapping):
            out.update(flatten(child, f"{path}/"))
        else:
            out[path] = child
    return out


def nest(flat: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """Build the nested dict with these leaves; the inverse of flattening."""
    out: dict[Any, Any] = {}
    for parts, leaf in flat.items():
        node = out
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = leaf
    return out


def _check_paths(expected: Iterable[str], got: Iterable[str]) -> None:
    """Refuse a tree whose paths are not the model's, naming every one."""
    expected, got = set(expected), set(got)
    wrong = [
        f"{what} {_quote(sorted(paths))}"
        for what, paths in (("missing", expected - got), ("unexpected", got - expected))
        if paths
    ]
    if wrong:
        raise ValueError(
            f"apply: parameters do not fit the model: {'; '.join(wrong)}. "
            "Pass a tree with the structure that functional returned."
        )


def _quote(names: Iterable[str]) -> str:
    """List names in quotes."""
    return ", ".join(f"'{name}'" for name in names)
