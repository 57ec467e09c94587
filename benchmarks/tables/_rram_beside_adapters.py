"""Adapters of several tasks over one base, each with a head of its own."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import methods, nets
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_plan import Base, best


class Head(NamedTuple):
    """The last layer of a task, whole."""

    kernel: Any
    bias: Any


class Adapter(NamedTuple):
    """An adapter of the first layer with a head: arrays, or stacks of them.

    Attributes:
        a: `[in, r]`.
        b: `[r, out]`.
        head: The head that was trained with it.
    """

    a: Any
    b: Any
    head: Head


class Adapters:
    """Trains LoRA, LoRI-D and LoRI-S as one program: gradients times zeros and ones.

    LoRI's `A` gets no gradient, and LoRI-S's `B` only where its mask is one. All start
    from LoRA's own draw of `A`, with `B` at zero and the head of the base.
    """

    def __init__(self, base: Base) -> None:
        """Compiles nothing yet."""
        self.base, self.config = base, base.config
        self.path, self.head = min(base.net.axes), methods.head_of(base.net)
        self.tx = lrk.lora(
            self.config.merged_rank, select=lrk.matching(f"^{self.path}$")
        )
        self._train, self._score = jax.jit(self._trained), jax.jit(self._scored)

    def given(self) -> dict[str, Any]:
        """What every row that rests on these says."""
        names = ("merged_rank", "density", "adapter_steps")
        own = {name: getattr(self.config, name) for name in names}
        return {
            **self.base.shared(),
            "part": "merged",
            "tasks": list(plan.TASKS),
            **own,
        }

    def tree(self, base: Any, own: Adapter, *, head: bool = True) -> Any:
        """The adapter over some base; with its head, or with the base's."""
        fixed = self.tx.init(jax.random.key(0), self.base.params).fixed
        state = lrk.State({self.path: {"a": own.a, "b": own.b}}, fixed)
        found = self.tx.apply(base, state)
        return self.headed(found, own.head) if head else found

    def headed(self, tree: Any, own: Head) -> Any:
        """A tree with the head of a task."""
        found = plan.replaced(tree, f"{self.head}kernel", own.kernel)
        return plan.replaced(found, f"{self.head}bias", own.bias)

    def of(self, method: str, seed: int) -> dict[str, Adapter]:
        """The adapters of all tasks; trained the first time, and then read."""
        rates = self.rates()
        given = {**self.given(), "rates_used": rates, "seed": seed}
        file, session = f"adapters-s{seed}", self.base.session
        found = session.load_arrays(file, config=given)
        if found is None:
            start = time.perf_counter()
            found = {name: {} for name in plan.METHODS}
            for task in plan.TASKS:
                own = self._all(task, {m: (r[task],) for m, r in rates.items()}, seed)
                for name, stack in own.items():
                    one = jax.tree.map(lambda leaf: np.asarray(leaf[0]), stack)
                    head = one.head._asdict()
                    found[name][task] = {"a": one.a, "b": one.b, "head": head}
            session.save_arrays(file, found, config=given)
            took = time.perf_counter() - start
            session.log(f"rram_beside: adapters of seed {seed}, {took:.0f} s")
        return {
            task: Adapter(own["a"], own["b"], Head(**own["head"]))
            for task, own in found[method].items()
        }

    def rates(self) -> dict[str, dict[str, float]]:
        """The rate of every method and task that is best on validation."""
        session, grid = self.base.session, self.config.rates
        given = {**self.given(), "kind": "rates"}
        record = session.row("rates-adapters", **given)
        if record is None:
            start = time.perf_counter()
            trials: dict[str, dict[str, Any]] = {name: {} for name in plan.METHODS}
            for task in plan.TASKS:
                tried = dict.fromkeys(plan.METHODS, grid)
                for name, own in self._all(task, tried, plan.TUNING).items():
                    valid = self.base.tasks[task]["valid"]
                    scores = self._score(self.base.params, own, valid)
                    trials[name][task] = np.asarray(scores)
            rates = {
                name: {task: best(grid, scores) for task, scores in own.items()}
                for name, own in trials.items()
            }
            record = session.save(
                "rates-adapters",
                {"rates": rates, "trials": trials},
                config=given,
                seconds=time.perf_counter() - start,
                seed=plan.TUNING,
            )
        return dict(record.metrics["rates"])

    def _all(
        self, task: str, rates: Mapping[str, tuple[float, ...]], seed: int
    ) -> dict[str, Adapter]:
        """All methods on one task, at every rate of each: LoRI-S takes its mask last.

        Its mask is of the LoRI-D that scores best on validation; one rate leaves no
        choice.
        """
        counts = [len(rates[name]) for name in ("lora", "lori-d")]
        free = np.repeat([1.0, 0.0], counts)
        first = (*rates["lora"], *rates["lori-d"])
        own = self.train(task, free, None, first, seed)
        lora = jax.tree.map(lambda leaf: leaf[: counts[0]], own)
        dense = jax.tree.map(lambda leaf: leaf[counts[0] :], own)
        scores = self._score(self.base.params, dense, self.base.tasks[task]["valid"])
        number = rates["lori-d"].index(best(rates["lori-d"], scores))
        state = lrk.State({self.path: {"b": dense.b[number]}}, {})
        mask = lrk.lori_mask(state, density=self.config.density)[self.path]
        none = np.zeros(len(rates["lori-s"]))
        sparse = self.train(task, none, mask, rates["lori-s"], seed)
        return {"lora": lora, "lori-d": dense, "lori-s": sparse}

    def train(self, task: str, free: Any, mask: Any, rates: Any, seed: int) -> Adapter:
        """A stack of adapters, one for each rate.

        Args:
            task: What to learn.
            free: One where `A` is trained, zero where it is not.
            mask: Of `B`; None keeps all.
            rates: Learning rates.
            seed: Of `A` and of the batches; another `A` for each task.
        """
        if mask is None:
            out = methods.leaf_at(self.base.params, self.path).shape[-1]
            mask = np.ones((self.config.merged_rank, out), np.float32)
        key = jax.random.fold_in(jax.random.key(seed), list(plan.TASKS).index(task))
        return self._train(
            self.base.params,
            self.base.tasks[task]["train"],
            np.asarray(free, np.float32),
            jnp.asarray(mask, jnp.float32),
            np.asarray(rates, np.float32),
            key,
        )

    def _trained(
        self, params: Any, data: Any, free: Any, mask: Any, rates: Any, key: Any
    ) -> Adapter:
        """Adam with a falling rate; the product with the base is one for all."""
        config, apply = self.config, lrk.lift(self.base.net.apply)
        adam, steps = optax.scale_by_adam(), config.adapter_steps
        of_start, of_data = jax.random.split(key)
        own = self.tx.init(of_start, params).trainable[self.path]
        head = (methods.leaf_at(params, f"{self.head}{n}") for n in Head._fields)
        start = Adapter(own["a"], own["b"], Head(*head))
        x, y = data
        chosen = jax.random.randint(of_data, (steps, config.batch), 0, len(y))

        def loss(own: Adapter, batch: Any) -> jax.Array:
            return nets.loss(apply, self.tree(params, own), *batch)

        def one(carry: Any, free: Any, rate: Any, batch: Any) -> Any:
            own, memory = carry
            grads = jax.grad(loss)(own, batch)
            grads = grads._replace(a=free * grads.a, b=mask * grads.b)
            updates, memory = adam.update(grads, memory)
            return jax.tree.map(lambda w, u: w - rate * u, own, updates), memory

        every = jax.vmap(one, in_axes=(0, 0, 0, None))

        def step(carry: Any, item: Any) -> tuple[Any, None]:
            number, index = item
            left = 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
            return every(carry, free, left * rates, (x[index], y[index])), None

        first = (start, adam.init(start))
        count = len(rates)
        first = jax.tree.map(lambda v: jnp.broadcast_to(v, (count, *v.shape)), first)
        return jax.lax.scan(step, first, (jnp.arange(steps), chosen))[0][0]

    def _scored(self, params: Any, stack: Adapter, scored: Any) -> jax.Array:
        """The accuracy of each of a stack, with no chip."""
        apply = lrk.lift(self.base.net.apply)

        def one(own: Adapter) -> jax.Array:
            tree = self.tree(params, own)
            return nets.accuracy(apply, tree, *scored, batch=plan.SCORED)

        return jax.vmap(one)(stack)
