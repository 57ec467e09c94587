"""What the rows of the fine-tuned language model are made by."""

import dataclasses
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks.runner import Session
from benchmarks.tables._smollm_bases import BASES
from benchmarks.tables._smollm_data import CORPORA, Corpora, Packed
from benchmarks.tables._smollm_net import (
    Net,
    Scores,
    Trained,
    Trainer,
    is_linear,
    scores,
    whole,
)

METHODS = ("lora", "lori-d", "lori-s")
PROMPTS = {
    "austen": (
        "The evening at the assembly rooms had been so very disagreeable, that Miss "
        "Harcourt",
        "It was soon known through all the neighbourhood that the new tenant of the "
        "great house",
    ),
    "dialogue": (
        "where were you last night?",
        "i think we should tell him the truth.",
        "what is the capital of france?",
    ),
}
CHECK = (
    "The old lighthouse keeper climbed the stairs every evening to light the lamp. "
    "In winter, when storms rolled in from the north, he would stay awake all night, "
    "listening to the waves and writing letters to his daughter, who had left the "
    "island in 1984."
)
AT_ONCE = 4  # rows that are scored together


class Chosen(NamedTuple):
    """The run whose rate is best on validation rows.

    Attributes:
        run: What was trained.
        dense: The weights with it.
        rate: Its rate.
        tried: The validation loss by rate.
    """

    run: Trained
    dense: Any
    rate: float
    tried: dict[float, float]


class Work:
    """The model, both corpora, and the trainings of one run of the table."""

    def __init__(self, config: Any, session: Session):
        self.config, self.session = config, session
        self.net = cache(lambda: Net(config.synthetic))
        self.data = cache(self._data)

    def given(self, way: str, corpus: str = "", seed: int = 0) -> dict[str, Any]:
        """The config of a row."""
        c = dataclasses.asdict(self.config)
        names = ["synthetic", "length", "shortest", "longest", "valid", "test"]
        names += ["words", "heat"]
        if way not in ("base", "check"):
            names += ["steps", "rows", "rank", "alpha"]
        if way == "lori-s":
            names.append("density")
        found = {name: c[name] for name in names}
        found |= {"way": way, "corpus": corpus, "seed": seed}
        ways = {"lori-s": ("lori-d", "lori-s"), "qlora": ("lora",)}.get(way, (way,))
        rates = {name: own for name, own in c["rates"].items() if name in ways}
        if rates:
            found |= {"rates": rates, "tuned_on": c["seeds"][0]}
        return found

    def base(self) -> dict[str, Any]:
        """The model as it is: its losses, and what it writes."""
        net = self.net()
        found = {"test": self.test(net.params), "samples": self.samples(net.params)}
        valid = {name: self._valid(name, net.params) for name in CORPORA}
        return found | {"valid": valid, "data": self._facts()}

    def check(self) -> dict[str, Any]:
        """The loss of a short text of which every token but the first counts."""
        net = self.net()
        ids = np.array([net.tokenizer.encode(CHECK).ids], np.int32)
        weight = (np.arange(ids.size) > 0).astype(np.float32)[None]
        packed = Packed(ids, np.zeros_like(ids), weight)
        found = net.score(net.params, packed, 1)
        return {"nll": found.mean, "tokens": ids.size}

    def row(self, way: str, corpus: str, seed: int) -> dict[str, Any]:
        """One training, of as many rates as its seed tries."""
        if way == "lori-s":
            chosen, kept = self._sparse(corpus, seed)
        elif way == "qlora":
            base = BASES["nf4"](self.net())
            trainer = Trainer(self.net(), self.adapter("lora"), base)
            rates = (self._rate("lora", corpus),)
            chosen, kept = self._choose(trainer, corpus, seed, rates), None
        else:
            chosen, kept = self._dense(way, corpus, seed), None
        packed = self.batches(corpus, seed)
        used = np.concatenate([batch.owner for batch in packed]) >= 0
        counted = np.concatenate([batch.weight for batch in packed])
        found: dict[str, Any] = {
            "rate": chosen.rate,
            "rates_tried": {f"{rate:g}": loss for rate, loss in chosen.tried.items()},
            "test": self.test(chosen.dense),
            "cost": chosen.run.cost._asdict(),
            "trained": _numbers(chosen.run.state.trainable),
            "tokens": {
                "all": int(used.size),
                "used": int(used.sum()),
                "counted": int(counted.sum()),
            },
            "losses": chosen.run.losses,
        }
        if kept is not None:
            found["kept"] = kept
        if seed == self.config.seeds[0]:
            found["samples"] = self.samples(chosen.dense)
        return found

    def adapter(self, way: str) -> lrk.Transform:
        """LoRA, or LoRI-D, on all linear maps."""
        make = lrk.lora if way == "lora" else lrk.lori
        return make(self.config.rank, **self._how())

    def test(self, params: Any) -> dict[str, Any]:
        """Losses of the test examples of both corpora, for a record."""
        packs = {name: self.packed(name, "test") for name in CORPORA}
        found = {n: self.net().score(params, p, AT_ONCE) for n, p in packs.items()}
        return {name: as_record(own) for name, own in found.items()}

    def packed(self, corpus: str, split: str) -> Packed:
        """The rows of a split, the same for all."""
        rows = getattr(self.config, split)
        return self.data().packed(corpus, split, rows, self.config.length)

    def batches(self, corpus: str, seed: int) -> list[Packed]:
        """The batches of one training."""
        c = self.config
        count = c.steps * c.rows
        packed = self.data().packed(corpus, "train", count, c.length, seed)
        return [packed.rows(i, i + c.rows) for i in range(0, count, c.rows)]

    def samples(self, params: Any) -> dict[str, Any]:
        """What is written after each prompt, greedily and drawn."""
        c = self.config
        out: dict[str, Any] = {}
        texts = [(name, text) for name, own in PROMPTS.items() for text in own]
        asked = [self.data().prompt(*own) for own in texts]
        for kind, heat in (("greedy", 0.0), ("drawn", c.heat)):
            said = self.net().texts(params, asked, c.words, heat)
            for (name, _), text in zip(texts, said, strict=True):
                out.setdefault(name, {}).setdefault(kind, []).append(text)
        return out

    def _how(self) -> dict[str, Any]:
        return {
            "alpha": self.config.alpha,
            "select": is_linear,
            "axes": self.net().axes,
        }

    def _dense(self, way: str, corpus: str, seed: int) -> Chosen:
        """LoRA, LoRI-D or full fine-tuning; LoRI-D's B is kept for its mask."""
        net = self.net()
        if way == "full":
            trainer = Trainer(net, whole(), net.params)
        else:
            trainer = self._trainer(way)
        chosen = self._choose(trainer, corpus, seed, self._rates(way, corpus, seed))
        if way == "lori-d":
            given = self.given(way, corpus, seed)
            arrays = {"b": {p: v["b"] for p, v in chosen.run.state.trainable.items()}}
            self.session.save_arrays(f"b-{corpus}-s{seed}", arrays, config=given)
        return chosen

    def _sparse(self, corpus: str, seed: int) -> tuple[Chosen, dict[str, float]]:
        """LoRI-S: the mask from the LoRI-D run of this seed, then training anew."""
        net, c = self.net(), self.config
        name, given = f"b-{corpus}-s{seed}", self.given("lori-d", corpus, seed)
        stored = self.session.load_arrays(name, config=given)
        if stored is None:
            self._dense("lori-d", corpus, seed)
            stored = self.session.load_arrays(name, config=given)
        dense: dict[str, Any] = {} if stored is None else stored["b"]
        found: list[Chosen] = []

        def fit(tx: lrk.Transform, state: lrk.State, stage: str) -> lrk.State:
            if stage == "dense":
                return state._replace(
                    trainable={p: {"b": jax.numpy.asarray(b)} for p, b in dense.items()}
                )
            rates = self._rates("lori-s", corpus, seed)
            trainer = Trainer(net, tx, net.params)
            found.append(self._choose(trainer, corpus, seed, rates, state))
            return found[0].run.state

        key = jax.random.key(seed)
        out = lrk.lori_two_stage(
            key, net.params, c.rank, fit, density=c.density, **self._how()
        )
        shares = {path: float(np.mean(mask)) for path, mask in out.mask.items()}
        return found[0], shares

    def _choose(
        self,
        trainer: Trainer,
        corpus: str,
        seed: int,
        rates: Sequence[float],
        start: lrk.State | None = None,
    ) -> Chosen:
        """Trains once for each rate; the best on validation rows."""
        if start is None:
            start = trainer.tx.init(jax.random.key(seed), trainer.base)
        best, tried = None, {}
        for rate in rates:
            run = trainer.train(start, self.batches(corpus, seed), rate)
            dense = trainer.dense(run.state)
            tried[rate] = self._valid(corpus, dense)
            if best is None or tried[rate] < tried[best.rate]:
                best = Chosen(run, dense, rate, tried)
        if best is None:
            raise ValueError("smollm_finetune: no rates: expected at least one.")
        return best

    @cache  # noqa: B019 - one object for a run
    def _trainer(self, way: str) -> Trainer:
        return Trainer(self.net(), self.adapter(way), self.net().params)

    def _rates(self, way: str, corpus: str, seed: int) -> Sequence[float]:
        """All rates on the first seed, and what they gave on the others."""
        if seed == self.config.seeds[0]:
            return self.config.rates[way]
        return (self._rate(way, corpus),)

    def _rate(self, way: str, corpus: str) -> float:
        """The rate that the first seed chose.

        Raises:
            RuntimeError: If that row was not run.
        """
        first = self.config.seeds[0]
        given = self.given(way, corpus, first)
        found = self.session.row(f"{way}-{corpus}-s{first}", **given)
        if found is None:
            raise RuntimeError(f"{way}-{corpus}-s{first} has not run: it comes first.")
        return float(found.metrics["rate"])

    def _valid(self, corpus: str, params: Any) -> float:
        return self.net().score(params, self.packed(corpus, "valid"), AT_ONCE).mean

    def _data(self) -> Corpora:
        c = self.config
        return Corpora(self.net().tokenizer, c.longest, c.shortest, c.synthetic)

    def _facts(self) -> dict[str, Any]:
        """How many examples there are, and how many are scored."""
        facts = {}
        for name in CORPORA:
            packed = self.packed(name, "test")
            facts[name] = {
                "there": {
                    split: len(self.data().examples(name, split))
                    for split in ("train", "valid", "test")
                },
                "scored": int(packed.owner.max()) + 1,
                "counted": int(packed.weight.sum()),
            }
        return facts


def as_record(found: Scores) -> dict[str, list[float]]:
    """Scores as a record keeps them."""
    return {
        "nll": [round(float(x), 5) for x in found.nll],
        "tokens": [int(x) for x in found.tokens],
    }


def through(trainer: Trainer, state: lrk.State, packed: Packed) -> Scores:
    """Scores through the operators, without forming the weights."""
    return scores(trainer.losses(state), packed, AT_ONCE)


def _numbers(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
