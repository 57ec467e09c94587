"""What each form of the frozen base costs: bytes, memory of a step, speed, losses."""

import time
from typing import Any

import jax

import lowrank as lrk
from benchmarks.tables._smollm_bases import BASES
from benchmarks.tables._smollm_data import CORPORA
from benchmarks.tables._smollm_net import Trainer, is_linear, tree_bytes
from benchmarks.tables._smollm_work import Work, as_record, through

STEPS = 4  # steps that are timed, the first of which warms up


def memory(work: Work, kind: str) -> dict[str, Any]:
    """What a base costs, with a fresh LoRA over it, which changes nothing yet."""
    base = BASES[kind](work.net())
    trainer = Trainer(work.net(), work.adapter("lora"), base)
    start = trainer.tx.init(jax.random.key(0), base)
    batches = work.batches(next(iter(CORPORA)), 0)[:STEPS]
    run = trainer.train(start, batches, 0.0)
    packs = {name: work.packed(name, "test") for name in CORPORA}
    through(trainer, start, packs["austen"].rows(0, 4))
    begin = time.perf_counter()
    test = {name: as_record(through(trainer, start, p)) for name, p in packs.items()}
    seconds = time.perf_counter() - begin
    return {
        "bytes": tree_bytes(base),
        "linear": tree_bytes([x for p, x in _leaves(base) if is_linear(p)]),
        "cost": run.cost._asdict(),
        "forward": sum(p.ids.size for p in packs.values()) / seconds,
        "test": test,
    }


def _leaves(tree: Any) -> list[tuple[str, Any]]:
    flat = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: isinstance(x, lrk.Operator)
    )[0]
    return [("/".join(str(k.key) for k in keys), leaf) for keys, leaf in flat]
