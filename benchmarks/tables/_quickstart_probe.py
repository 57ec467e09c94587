"""The baseline: multinomial logistic regression on frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from benchmarks.tables._quickstart_tasks import CLASSES, Head, nll

STRENGTHS = tuple(10.0**power for power in np.arange(-4.0, 0.51, 0.5))


class Probe(NamedTuple):
    """A fitted probe.

    Attributes:
        head: Its weights, for features as they are: standardising is folded in.
        strength: The penalty that was chosen.
        loss: Its negative log-likelihood on validation data.
    """

    head: Head
    strength: float
    loss: float


def fit_probe(
    train: tuple[np.ndarray, np.ndarray],
    valid: tuple[np.ndarray, np.ndarray],
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    outputs: int = CLASSES,
) -> Probe:
    """Logistic regression on standardised features, its penalty tuned.

    Minimises `mean NLL + strength / 2 |W|^2`, the bias free, for each strength from the
    strongest on, each started where the last ended; the one with the least negative
    log-likelihood on the validation data is kept.

    Args:
        train: Features `[n, width]` and class numbers `[n]`.
        valid: The same of the validation split.
        classes: How many classes there are.
        strengths: Penalties to try.
        outputs: The head is padded to so many.

    Returns:
        The probe.
    """
    x, y = train[0].astype(np.float64), train[1]
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
    x = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    weights, best = np.zeros((x.shape[1], classes)), None
    for strength in sorted(strengths, reverse=True):
        weights = _minimise(x, y, weights, strength)
        kernel = weights[:-1] / scale[:, None]
        head = Head(
            _padded(kernel.astype(np.float32), outputs),
            _padded((weights[-1] - mean @ kernel).astype(np.float32), outputs),
        )
        loss = nll(head.logits(valid[0], classes), valid[1])
        if best is None or loss < best.loss:
            best = Probe(head, float(strength), loss)
    if best is None:
        raise ValueError("fit_probe: no strengths given. Pass at least one.")
    return best


def _minimise(
    x: np.ndarray, y: np.ndarray, start: np.ndarray, strength: float
) -> np.ndarray:
    """The weights `[width + 1, classes]` of least penalised loss; the last is bias."""
    hot = np.eye(start.shape[1])[y]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(start.shape)
        logits = x @ weights
        top = logits.max(axis=1, keepdims=True)
        odds = np.exp(logits - top)
        total = odds.sum(axis=1, keepdims=True)
        loss = np.mean(np.log(total) + top - (hot * logits).sum(axis=1, keepdims=True))
        penalised = np.concatenate([weights[:-1], np.zeros((1, start.shape[1]))])
        slope = x.T @ (odds / total - hot) / len(x) + strength * penalised
        return loss + strength / 2 * np.sum(penalised**2), slope.ravel()

    found = minimize(
        objective, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300}
    )
    return found.x.reshape(start.shape)


def _padded(array: np.ndarray, outputs: int) -> np.ndarray:
    """Zeros for the classes that the task lacks."""
    extra = [(0, 0)] * (array.ndim - 1) + [(0, outputs - array.shape[-1])]
    return np.pad(array, extra)
