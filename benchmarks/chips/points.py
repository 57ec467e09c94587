"""Faults of a chip: polarities, the rates that break a net, what the error is like."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.chips.methods import kernels, leaf_at, sides
from benchmarks.chips.nets import Net
from lowrank import rram

G_MIN, G_MAX, LEVELS = 10.0, 100.0, 64
SHARES = {"lrs": 5 / 6, "hrs": 1 / 6, "equal": 1 / 2}
"""Share of the stuck cells that are stuck at low resistance, by polarity."""
TITLES = {
    "lrs": "mostly LRS",
    "hrs": "mostly HRS",
    "equal": "LRS = HRS",
    "clean": "clean chip",
}
LOWEST, HIGHEST = 0.10, 0.30  # points lost that a fault point should cost


class Fault(NamedTuple):
    """The faults of a point.

    Attributes:
        lrs: Share of cells stuck at low resistance.
        hrs: Share of cells stuck at high resistance.
        length: Cells over which faults cluster; 0: they are independent.
        share: Share of the field that clusters.
    """

    lrs: Any = 0.0
    hrs: Any = 0.0
    length: float = 0.0
    share: float = 0.8

    @classmethod
    def of(cls, polarity: str, total: float, **more: Any) -> "Fault":
        """Faults of a polarity at a total rate."""
        lrs = SHARES[polarity] * total
        return cls(lrs, total - lrs, **more)

    def device(self) -> rram.Device:
        """The device; rates may be traced, clustering is not."""
        clusters = rram.Clusters(self.length, self.share) if self.length else None
        return rram.Device(
            g_min=G_MIN,
            g_max=G_MAX,
            levels=LEVELS,
            p_lrs=self.lrs,
            p_hrs=self.hrs,
            clusters=clusters,
        )

    def given(self) -> dict[str, float]:
        """What a row says of it: rates, and the conductances of stuck cells in uS."""
        return {
            "p_lrs": round(float(self.lrs), 6),
            "p_hrs": round(float(self.hrs), 6),
            "g_lrs": G_MAX,
            "g_hrs": G_MIN,
            "levels": LEVELS,
            "cluster_length": self.length,
            "cluster_share": self.share if self.length else 0.0,
        }


def nearest(
    totals: Sequence[float], losses: Sequence[float], target: float
) -> tuple[float, bool]:
    """The total rate whose loss is nearest to a target, and whether it is in the band.

    Args:
        totals: Rates that were tried.
        losses: What the deployed net lost at each, as a share.
        target: The loss that is wanted.
    """
    best = int(np.argmin(np.abs(np.asarray(losses) - target)))
    return float(totals[best]), bool(LOWEST <= losses[best] <= HIGHEST)


def spectrum(net: Net, params: Any, deployed: Any) -> dict[str, jax.Array]:
    """What the error is like: means over kernels, weighted by their shorter side.

    Returns:
        `effective_rank`, the exponential of the entropy of the singular values;
        `stable_rank`, the energy over the largest one's; `full`, the effective rank
        over the shorter side; `norm`, the Frobenius norm over that of the weights, of
        all kernels together.
    """
    found: dict[str, list[jax.Array]] = {"effective_rank": [], "stable_rank": []}
    smaller, wrong, right = [], [], []
    for path, size in sides(net).items():
        w = leaf_at(params, path).reshape(size)
        e = w - leaf_at(deployed, path).reshape(size)
        e = e if size[0] >= size[1] else e.T
        values = jnp.linalg.eigvalsh(e.T @ e)[::-1]
        s = jnp.sqrt(jnp.maximum(values, 0))
        p = s / jnp.maximum(jnp.sum(s), 1e-30)
        entropy = -jnp.sum(p * jnp.log(jnp.maximum(p, 1e-30)))
        found["effective_rank"].append(jnp.exp(entropy))
        energy = jnp.sum(jnp.square(s))
        found["stable_rank"].append(energy / jnp.maximum(s[0] ** 2, 1e-30))
        smaller.append(float(min(size)))
        wrong.append(energy)
        right.append(jnp.sum(jnp.square(w)))
    weight = jnp.asarray(smaller) / sum(smaller)
    means = {name: jnp.stack(own) @ weight for name, own in found.items()}
    full = jnp.stack(found["effective_rank"]) / jnp.asarray(smaller)
    norm = jnp.sqrt(sum(wrong[1:], wrong[0]) / sum(right[1:], right[0]))
    return {**means, "full": full @ weight, "norm": norm}


def energies(grams: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The energy of every input of a kernel, from its Gram matrix."""
    return {path: jnp.diagonal(gram) for path, gram in grams.items()}


def grams(net: Net, count: int) -> dict[str, jax.Array]:
    """`X^T X` of what meets each kernel of the clean net, over unlabelled images.

    Of a convolution, the rows of `X` are the patches of all positions.
    """
    x = jnp.asarray(net.train[0][:count])
    return {
        path: rows.T @ rows
        for path, rows in jax.jit(lambda x: _inputs(net, x))(x).items()
    }


def _inputs(net: Net, x: jax.Array) -> dict[str, jax.Array]:
    """The rows that meet each kernel, layer by layer."""
    found, hidden = {}, x
    for path in sorted(sides(net)):
        layer = path.rpartition("/")[0]
        kernel = jnp.asarray(leaf_at(net.params, path))
        bias = jnp.asarray(leaf_at(net.params, layer + "/bias"))
        if kernel.ndim == 4:
            seen = _patches(hidden, kernel.shape[0])
        else:
            hidden = hidden.reshape(len(x), -1)
            seen = hidden
        rows = seen.reshape(-1, seen.shape[-1])
        found[path] = rows
        out = rows @ kernel.reshape(rows.shape[-1], -1) + bias[None]
        hidden = jax.nn.relu(out).reshape(*seen.shape[:-1], -1)
        if kernel.ndim == 4:
            hidden = _pooled(hidden)
    return found


def _patches(x: jax.Array, size: int) -> jax.Array:
    """All patches of images, `[n, h, w, size * size * channels]`."""
    n, m = x.shape[1] - size + 1, x.shape[2] - size + 1
    cut = [x[:, i : i + n, j : j + m] for i in range(size) for j in range(size)]
    return jnp.concatenate(cut, axis=-1)


def _pooled(x: jax.Array) -> jax.Array:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def chip(net: Net, fault: Fault, key: jax.Array) -> tuple[Any, Any]:
    """`(transform, state)` of one chip for a net."""
    tx = rram.crossbar(fault.device(), select=kernels, axes=net.axes)
    return tx, tx.init(key, net.params)
