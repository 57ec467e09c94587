"""What one does with an adapted tree: take it apart, or form its weights."""

from typing import Any, NamedTuple

from lowrank import _show, _tree
from lowrank._base import Operator, Path, PyTree, is_operator


def split(leaf: Any) -> tuple[Any, tuple[Operator, ...]]:
    """Take the additive terms off a leaf.

    Args:
        leaf: An array or an operator.

    Returns:
        `(base, terms)`: what the terms were added to, and the terms, outermost first,
        as operators whose `w` is None; `term.delta()` is the array that a term adds.

    Example:
        >>> op = lrk.LowRank(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((2, 3)))
        >>> base, terms = lrk.split(op)
        >>> base.shape, len(terms)
        ((4, 3), 1)
    """
    terms = []
    while is_operator(leaf) and leaf.additive:
        terms.append(leaf.replace(w=None))
        leaf = leaf.w
    return leaf, tuple(terms)


def base(adapted: PyTree) -> PyTree:
    """The tree that additive transforms were applied to.

    Args:
        adapted: A tree of arrays and operators.

    Returns:
        The same tree with every additive term taken off; the arrays are the same
        objects.

    Example:
        >>> params = {"w": jnp.ones((4, 3))}
        >>> tx = lrk.lora(2)
        >>> adapted = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> lrk.base(adapted)["w"] is params["w"]
        True
    """
    return _tree.map_operators("base", adapted, lambda _, leaf: split(leaf)[0])


def materialize(tree: PyTree) -> PyTree:
    """Form every weight: plain arrays, no inference overhead.

    Args:
        tree: A tree of arrays and operators.

    Returns:
        The same tree with arrays of each operator's shape and dtype; other leaves are
        the same objects.

    Raises:
        ValueError: If an operator has no dense form; all of them are named.

    Example:
        >>> op = lrk.LowRank(jnp.zeros((2, 2)), jnp.ones((2, 1)), jnp.ones((1, 2)))
        >>> lrk.materialize({"w": op})["w"].tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    pairs, _ = _tree.flatten("materialize", tree)
    stuck = [
        f"'{path}' ({type(leaf).__name__})"
        for path, leaf in pairs
        if is_operator(leaf) and not leaf.has_dense
    ]
    if stuck:
        raise ValueError(
            f"materialize: no dense form at {', '.join(stuck)}. Evaluate with "
            "lrk.lift(fn)(adapted, ...), or leave out what acts inside the product."
        )

    def form(path: Path, leaf: Any) -> Any:
        del path
        return leaf.dense() if is_operator(leaf) else leaf

    return _tree.map_operators("materialize", tree, form)


class Summary(NamedTuple):
    """A table of a parameter tree; prints as text and as HTML, without numbers.

    Attributes:
        rows: One entry for each leaf: path, what it is, role, count, bytes.
    """

    rows: tuple[_show.Row, ...]

    def __repr__(self) -> str:
        """One line per leaf, with totals."""
        return _show.table_text("Parameters", list(self.rows))

    def _repr_html_(self) -> str:
        return _show.table_html("Parameters", list(self.rows))


def summary(tree: PyTree) -> Summary:
    """Show a tree of arrays and operators, one line for each leaf.

    Args:
        tree: Parameters, adapted or not, or their shapes.

    Returns:
        A table that prints in a terminal and in a notebook: path, dtype and shape (for
        an operator, of each part), count and bytes, with totals. An array that sits at
        two paths counts twice.

    Example:
        >>> op = lrk.LowRank(jnp.ones((4, 3)), jnp.ones((4, 1)), jnp.ones((1, 3)))
        >>> [row.path for row in lrk.summary({"w": op, "bias": jnp.ones(3)}).rows]
        ['bias', 'w']
    """
    pairs, _ = _tree.flatten("summary", tree)
    return Summary(tuple(_show.leaf_row(path, leaf) for path, leaf in pairs))
