"""FSDP's other half: weights that lie in parts are gathered where they multiply."""

from typing import Any

from jax.sharding import NamedSharding, PartitionSpec

from lowrank import _tree
from lowrank._base import Array, PyTree, State, Transform, as_struct
from lowrank._select import Select
from lowrank.operators import Gathered
from lowrank.training._shard import Axis, spec_without


def gather(params: PyTree, axis: Axis, *, select: Select | None = None) -> Transform:
    """Gather weights for each product, instead of moving activations.

    Left to itself, the compiler may answer a kernel that is split over the axis of the
    batch by summing activations over devices. With this in front of the chain every
    weight that `shard` split over `axis` is gathered for its product, once forward and
    once backward, and is not kept in between; activations stay where the batch is. The
    model need not know.

    Args:
        params: Parameters as `shard` returned them, abstract or not: where they lie.
        axis: The mesh axis (or axes) of the batch, over which `fsdp` split the base.
        select: Which of the leaves that are split over it; None for all. Leave out what
            the model does not use: `lift` refuses an operator that is ignored.

    Returns:
        A transform without a state, `Gathered` in the place of each such weight: put it
        first, `lrk.chain(gather(params, "data"), lrk.lora(8))`.

    Raises:
        ValueError: If no leaf is split over `axis`; in `apply`, if the tree lacks one.

    Example:
        >>> from jax.sharding import AxisType
        >>> from lowrank import training
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> params = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
        >>> params = training.shard(params, mesh, training.fsdp("data"))
        >>> tx = lrk.chain(training.gather(params, "data"), lrk.lora(2))
        >>> adapted = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> type(lrk.base(adapted)["kernel"]).__name__, type(adapted["bias"]) is (
        ...     type(params["bias"]))
        ('Gathered', True)

    References:
        Rajbhandari et al., ZeRO, 2020, arXiv:1910.02054: section 5.3.
    """
    names = (axis,) if isinstance(axis, str) else axis
    places: dict[str, NamedSharding] = {}
    for path, leaf in _tree.leaves("gather", params).items():
        where = getattr(leaf, "sharding", None)
        wanted = select is None or select(path, as_struct(leaf))
        if wanted and isinstance(where, NamedSharding):
            spec = PartitionSpec(*spec_without(names, where.spec))
            if spec != where.spec:
                places[path] = NamedSharding(where.mesh, spec)
    if not places:
        raise ValueError(
            f"gather: no leaf is split over {axis!r}. Pass what training.shard "
            "returned, and the axis of training.fsdp."
        )

    def init(key: Array, params: PyTree) -> State:
        del key, params
        return State({}, {})

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del state, key
        leaves = _tree.leaves("gather", params)
        if missing := [path for path in places if path not in leaves]:
            raise ValueError(
                f"gather: the tree lacks {_tree.quoted(missing)}. Pass the parameters "
                "that it was made from."
            )
        new: dict[str, Any] = {
            path: Gathered(leaves[path], where) for path, where in places.items()
        }
        return _tree.replace("gather", params, new)

    return Transform(init, apply)
