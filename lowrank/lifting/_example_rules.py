"""What each operation does with the axes of its operands."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Way(NamedTuple):
    """What an operation does with one axis of one operand.

    Attributes:
        axis: Which axis of the results it becomes; None if it is not there any more.
        apart: Whether each index along it is worked on for itself.
    """

    axis: int | None
    apart: bool = True


Rule = Callable[[Any, int, int], Way]
GONE = Way(None, False)
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


_ELEMENTWISE = """
abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt
ceil clamp clz complex conj convert_element_type copy cos cosh digamma div eq eq_to
erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite
le le_to lgamma log log1p logistic lt lt_to max min mul name ne neg nextafter not or
polygamma population_count pow real reduce_precision regularized_incomplete_beta rem
round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical
sharding_constraint sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
"""

_REDUCTIONS = """
argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
reduce_xor
"""


@_rule(*_ELEMENTWISE.split())
def _elementwise(eqn: Any, operand: int, axis: int) -> Way:
    del eqn, operand
    return Way(axis)


@_rule(*_REDUCTIONS.split())
def _reduce(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    axes = eqn.params["axes"]
    return GONE if axis in axes else Way(axis - sum(d < axis for d in axes))


@_rule("broadcast_in_dim")
def _broadcast(eqn: Any, operand: int, axis: int) -> Way:
    return GONE if operand else Way(eqn.params["broadcast_dimensions"][axis])


@_rule("transpose")
def _transpose(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    return Way(list(eqn.params["permutation"]).index(axis))


@_rule("squeeze")
def _squeeze(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    return Way(axis - sum(d < axis for d in eqn.params["dimensions"]))


@_rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp", "split")
def _along(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    return Way(axis, axis != eqn.params["axis"])


@_rule("sort", "concatenate")
def _along_dimension(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    return Way(axis, axis != eqn.params["dimension"])


@_rule("stack")
def _stack(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    return Way(axis + (axis >= eqn.params["axis"]))


@_rule("unstack")
def _unstack(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    at = eqn.params["axis"]
    return GONE if axis == at else Way(axis - (axis > at))


@_rule("tile")
def _tile(eqn: Any, operand: int, axis: int) -> Way:
    alike = eqn.params["reps"][axis] == 1 or _shape(eqn, operand)[axis] == 1
    return Way(axis, alike)


@_rule("rev")
def _rev(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    return Way(axis, axis not in eqn.params["dimensions"])


@_rule("top_k")
def _top_k(eqn: Any, operand: int, axis: int) -> Way:
    last = len(_shape(eqn, operand)) - 1
    return Way(axis, axis != eqn.params.get("axis", last) % (last + 1))


@_rule("cholesky", "eigh", "lu", "qr", "svd", "triangular_solve")
def _matrices(eqn: Any, operand: int, axis: int) -> Way:
    return Way(axis, axis < len(_shape(eqn, operand)) - 2)


@_rule("fft")
def _fft(eqn: Any, operand: int, axis: int) -> Way:
    ndim = len(_shape(eqn, operand))
    return Way(axis, axis < ndim - len(eqn.params["fft_lengths"]))


@_rule("slice", "dynamic_slice", "dynamic_update_slice")
def _slice(eqn: Any, operand: int, axis: int) -> Way:
    """A part of an axis is examples of which some are left out, or moved."""
    del operand
    strides = eqn.params.get("strides")
    parts = [v.aval.shape for v in (*eqn.invars, *eqn.outvars) if v.aval.shape]
    whole = len({shape[axis] for shape in parts}) == 1
    return Way(axis, whole and (strides is None or strides[axis] == 1))


@_rule("pad")
def _pad(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    return Way(axis, not any(eqn.params["padding_config"][axis]))


@_rule("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum")
def _window(eqn: Any, operand: int, axis: int) -> Way:
    del operand
    params = eqn.params
    names = ["window_dimensions", "window_strides", "base_dilation", "window_dilation"]
    ones = all(params[name][axis] == 1 for name in names)
    return Way(axis, ones and not any(params["padding"][axis]))


@_rule("dot_general")
def _dot(eqn: Any, operand: int, axis: int) -> Way:
    contracted, batch = eqn.params["dimension_numbers"]
    if axis in contracted[operand]:
        return GONE
    if axis in batch[operand]:
        return Way(batch[operand].index(axis))
    taken = [*contracted[operand], *batch[operand]]
    place = len(batch[0]) + axis - sum(d < axis for d in taken)
    if operand:
        place += len(_shape(eqn, 0)) - len(contracted[0]) - len(batch[0])
    return Way(place)


@_rule("conv_general_dilated")
def _conv(eqn: Any, operand: int, axis: int) -> Way:
    numbers = eqn.params["dimension_numbers"]
    spec = (numbers.lhs_spec, numbers.rhs_spec)[operand]
    role, out = spec.index(axis), numbers.out_spec
    apart = eqn.params["batch_group_count"] == 1  # else groups of the batch pair up
    if operand:
        return Way(out[1]) if role == 0 and apart else GONE
    if role == 0:
        return Way(out[0], apart)
    if role == 1 and eqn.params["feature_group_count"] == 1:
        return GONE
    return Way(out[role], False)


@_rule("gather")
def _gather(eqn: Any, operand: int, axis: int) -> Way:
    numbers, out = eqn.params["dimension_numbers"], eqn.outvars[0].aval.ndim
    batch = [d for d in range(out) if d not in numbers.offset_dims]
    if operand:
        return GONE if axis == len(_shape(eqn, 1)) - 1 else Way(batch[axis])
    if axis in numbers.operand_batching_dims:
        pair = numbers.operand_batching_dims.index(axis)
        return Way(batch[numbers.start_indices_batching_dims[pair]])
    gone = [*numbers.collapsed_slice_dims, *numbers.operand_batching_dims]
    if axis in gone:
        return GONE
    place = numbers.offset_dims[axis - sum(d < axis for d in gone)]
    return Way(place, eqn.params["slice_sizes"][axis] == _shape(eqn, 0)[axis])


@_rule(*(f"scatter{kind}" for kind in ("", "-add", "-sub", "-mul", "-min", "-max")))
def _scatter(eqn: Any, operand: int, axis: int) -> Way:
    numbers, shape = eqn.params["dimension_numbers"], _shape(eqn, 0)
    pairs = dict(
        zip(
            numbers.scatter_indices_batching_dims,
            numbers.operand_batching_dims,
            strict=True,
        )
    )
    held = [*numbers.inserted_window_dims, *numbers.operand_batching_dims]
    inside = [d for d in range(len(shape)) if d not in held]
    window = dict(zip(numbers.update_window_dims, inside, strict=True))
    updates = _shape(eqn, 2)
    if operand == 0:
        whole = any(to == axis and updates[d] == shape[d] for d, to in window.items())
        return Way(axis, whole or axis in numbers.operand_batching_dims)
    if operand == 2:
        if axis in window:
            to = window[axis]
            return Way(to, updates[axis] == shape[to])
        axis = [d for d in range(len(updates)) if d not in window].index(axis)
    return Way(pairs[axis]) if axis in pairs else GONE


def _shape(eqn: Any, operand: int) -> tuple[int, ...]:
    return tuple(eqn.invars[operand].aval.shape)


def spans(shape: Sequence[int]) -> list[tuple[int, int]]:
    """For each axis the step between its entries in the flat array, and its extent."""
    found, step = [], 1
    for size in reversed(shape):
        found.append((step, step * size))
        step *= size
    return found[::-1]
