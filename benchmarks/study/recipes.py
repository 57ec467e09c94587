"""Ways to train that are more than Adam on a gradient: LoRA+, LoRA-FA, AdaLoRA."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import lowrank as lrk
from benchmarks.study.train import Recipe

RATIO = 16.0  # of the rates of B and A in LoRA+
ORTHOGONAL = 0.1  # weight of AdaLoRA's penalty
KEPT = 2 / 3  # share of AdaLoRA's triplets that stay
WARMUP, COOLDOWN = 0.1, 0.3  # shares of the steps in which AdaLoRA prunes nothing more


def _faster_b(update: Any) -> Any:
    """Multiplies the steps of every `B`."""
    rule = lrk.training.lora_plus(RATIO)
    return rule.update(update, rule.init(update))[0]


def _corrected(slope: Any, trainable: Any, fixed: Any) -> Any:
    """LoRA-FA's gradient of `B`, and none of `A`."""
    rule = lrk.training.lora_fa(optax.identity())
    return rule.update(slope, rule.init(slope), trainable, fixed=fixed)[0]


def _penalty(trainable: Any) -> Any:
    return ORTHOGONAL * lrk.adapters.adalora_penalty(trainable)


def _memory(trainable: Any) -> Any:
    """Importances of zero, and a place for every triplet."""
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    places = {path: jnp.ones(x["lambda"].shape, bool) for path, x in trainable.items()}
    return lrk.adapters.Importance(zeros, zeros), places


def _pruned(
    trainable: Any, slope: Any, memory: Any, number: Any, steps: int
) -> tuple[Any, Any]:
    """Takes the place of the least important triplets; at the end all stay."""
    importance, places = memory
    importance = lrk.adapters.adalora_importance(trainable, slope, importance)
    total = sum(x.size for x in places.values())
    cooldown = round(COOLDOWN * steps)
    budget = lrk.adapters.adalora_budget(
        number,
        start=total,
        end=round(KEPT * total),
        total=steps,
        warmup=round(WARMUP * steps),
        cooldown=cooldown,
    )
    new = lrk.adapters.adalora_mask(importance, budget)
    settled = number > steps - cooldown
    places = {path: jnp.where(settled, x, new[path]) for path, x in places.items()}
    state = lrk.adapters.adalora_prune(lrk.State(trainable, {}), places)
    return state.trainable, (importance, places)


LORA_PLUS = Recipe(update=_faster_b)
LORA_FA = Recipe(gradient=_corrected)
ADALORA = Recipe(penalty=_penalty, memory=_memory, after=_pruned)
