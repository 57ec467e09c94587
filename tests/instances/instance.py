"""What a row of the table of instances holds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import lowrank as lrk
from tests import network


@dataclasses.dataclass(frozen=True)
class Instance:
    """A transform and what it claims.

    Attributes:
        name: Name in test reports.
        build: Makes the transform.
        has_dense: Whether `materialize` forms the weights.
        exact_grad: Whether gradients are those of the dense form.
        stochastic: Whether `apply` needs a key.
        identity_at_init: Whether nothing changes before training.
        rank: The largest rank of the change of each weight, if that is claimed.
        random: Names of the state leaves that `init` draws.
        alive: Names of the trainable leaves whose gradients are not zero once trained.
        flops: Largest ratio of compiled FLOPs of the gradient to those of the gradient
            of the plain model with respect to the same weights.
        adds: Whether the tree gets further leaves, beside those that are selected.
        tasks: Makers of transforms whose states are stacked (tasks that differ in what
            they closed over, such as masks); by default `build`, three times.
        tree: Makes the tree that the laws act on.
        members: What it is composed of, each by itself and on all leaves that it can
            act on: pairs are made of these. The laws run for the whole alone.
    """

    name: str
    build: Callable[[], lrk.Transform]
    _: dataclasses.KW_ONLY
    has_dense: bool = True
    exact_grad: bool = True
    stochastic: bool = False
    identity_at_init: bool = True
    rank: int | None = None
    random: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    flops: float = 0.9
    adds: bool = False
    tasks: tuple[Callable[[], lrk.Transform], ...] = ()
    tree: Callable[[], dict[str, Any]] = network.tree
    members: tuple["Instance", ...] = ()
