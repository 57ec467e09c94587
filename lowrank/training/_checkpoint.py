"""Checkpoints of what trains: asynchronous, sharded, whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from lowrank import _tree
from lowrank._base import PyTree, is_array, is_operator
from lowrank.training._fingerprint import fingerprint

_TREE, _META = "tree", "meta"


class Checkpoint:
    """Saves and restores what trains; the base is kept by its hash alone.

    A checkpoint holds one tree: an adapter's state, the optimizer's, a random key, the
    position in the data, whatever a step needs. The base is not written: its
    `fingerprint` is, and a checkpoint made over another base is refused.

    Args:
        directory: Where checkpoints go, one folder for each step; made if need be. With
            several processes it must be one folder that all of them see.
        base: The frozen parameters, or their `fingerprint` if it is known.
        keep: How many of the latest checkpoints are kept, at least 1.

    Raises:
        ValueError: If `keep < 1`, or `base` is a string that is no fingerprint.

    Example:
        >>> import tempfile
        >>> from lowrank import training
        >>> params = {"w": jnp.ones((4, 3))}
        >>> tx, key = lrk.lora(2), jax.random.key(0)
        >>> state, folder = tx.init(key, params), tempfile.mkdtemp()
        >>> with training.Checkpoint(folder, params) as checkpoint:
        ...     checkpoint.save(10, {"state": state, "key": key, "position": 320})
        >>> like = {"state": jax.eval_shape(tx.init, key, params)}
        >>> like |= {"key": key, "position": 0}
        >>> with training.Checkpoint(folder, params) as checkpoint:
        ...     step, tree = checkpoint.restore(like)
        >>> step, tree["position"], bool((tree["state"].trainable["w"]["a"]
        ...     == state.trainable["w"]["a"]).all())
        (10, 320, True)

    Notes:
        Writing is Orbax's: a folder gets its name when all of it is written, each
        process writes its shards, and at most one write is under way: `save` waits for
        the one before. So a process that is killed at any moment loses the steps since
        the last `save`, and that one too if it was still being written.
    """

    def __init__(
        self, directory: str | os.PathLike[str], base: PyTree, *, keep: int = 3
    ) -> None:
        """Opens the folder; what an earlier process left half-written is removed."""
        if keep < 1:
            raise ValueError(f"Checkpoint: keep must be at least 1, got {keep}.")
        known = isinstance(base, str)
        if known and (len(base) != 64 or set(base) - set("0123456789abcdef")):
            raise ValueError(
                f"Checkpoint: {base!r} is no fingerprint. Pass the parameters, or what "
                "training.fingerprint returned; the folder comes first."
            )
        self.base: str = base if known else fingerprint(base)
        self.directory = Path(directory).resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoint":
        """The checkpoint itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes it."""
        self.close()

    def close(self) -> None:
        """Wait until the last write is done, and let go of the folder."""
        self._manager.close()

    def wait(self) -> None:
        """Wait until the last write is done."""
        self._manager.wait_until_finished()

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps that can be restored, in order."""
        self.wait()
        return tuple(sorted(self._manager.all_steps()))

    def save(self, step: int, tree: PyTree) -> None:
        """Write a tree in the background.

        Arrays are copied before this returns, so they may be donated at once. A step
        that is held already is left as it is.

        Args:
            step: Number of the step, not below that of an earlier checkpoint.
            tree: Arrays, random keys, NumPy arrays, and Python numbers, in any tree.

        Raises:
            TypeError: If a leaf is something else; all are named.
            ValueError: If there is no leaf, or the step is below the latest.
        """
        leaves = dict(_tree.flatten("Checkpoint", tree)[0])
        _check_kinds(leaves)
        latest = self._manager.latest_step()
        if step == latest or step in self._manager.all_steps():
            return
        if latest is not None and step < latest:
            raise ValueError(
                f"Checkpoint: step {step} is behind step {latest} in "
                f"'{self.directory}'. Restore first, or take another folder."
            )
        meta = {
            "base": self.base,
            "leaves": {path: _describe(leaf) for path, leaf in leaves.items()},
        }
        content = {p: _storable(x) for p, x in leaves.items() if np.size(x)}
        args = {_TREE: ocp.args.PyTreeSave(content), _META: ocp.args.JsonSave(meta)}
        self._manager.save(step, args=ocp.args.Composite(**args), force=True)

    def restore(
        self, tree_like: PyTree, *, step: int | None = None
    ) -> tuple[int, PyTree] | None:
        """Read the latest checkpoint back.

        Args:
            tree_like: A tree of the same structure: arrays, or their shapes as
                `jax.eval_shape` returns them. A leaf with a sharding (an array put on
                devices, a shape with `sharding=`) comes back with that one, whatever
                mesh it was saved from; others come back as `jnp.asarray` would make
                them, so that they go with parameters on any mesh.
            step: Which checkpoint; None for the latest.

        Returns:
            `(step, tree)` with the numbers that were saved, bit for bit; None if the
            folder holds no checkpoint.

        Raises:
            ValueError: If the checkpoint was made over another base, or its leaves are
                not those of `tree_like`: every missing, unexpected or mis-shaped one is
                named. If `step` is not there.
        """
        leaves, treedef = _tree.flatten("Checkpoint", tree_like)
        held = self.steps
        if not held and step is None:
            return None
        step = held[-1] if step is None else step
        if step not in held:
            raise ValueError(f"Checkpoint: no step {step} among {list(held)}.")
        args = ocp.args.Composite(**{_META: ocp.args.JsonRestore()})
        meta = self._manager.restore(step, args=args)[_META]
        self._check(step, meta, dict(leaves))
        stored = {path: leaf for path, leaf in leaves if np.prod(leaf_shape(leaf))}
        how = {path: _restore_args(leaf) for path, leaf in stored.items()}
        wanted = ocp.args.PyTreeRestore(dict.fromkeys(stored, 0), restore_args=how)
        args = ocp.args.Composite(**{_TREE: wanted})
        found = self._manager.restore(step, args=args)[_TREE]
        return step, treedef.unflatten(
            [_rebuilt(leaf, found.get(path)) for path, leaf in leaves]
        )

    def _check(self, step: int, meta: Mapping[str, Any], like: dict[str, Any]) -> None:
        """Refuse another base, and leaves that are not those that were saved."""
        if meta["base"] != self.base:
            raise ValueError(
                f"Checkpoint: step {step} in '{self.directory}' was made over another "
                f"base: expected SHA-256 {meta['base']}, got {self.base}. Load the "
                "base that it was trained on."
            )
        saved = meta["leaves"]
        given = {path: _describe(leaf) for path, leaf in like.items()}
        bad = [f"no '{path}' in the checkpoint" for path in given if path not in saved]
        bad += [f"'{path}' is not asked for" for path in saved if path not in given]
        bad += [
            f"'{path}': expected {kind}, got {saved[path]}"
            for path, kind in given.items()
            if saved.get(path, kind) != kind
        ]
        if bad:
            raise ValueError(
                f"Checkpoint: step {step} in '{self.directory}' does not fit: "
                f"{'; '.join(bad)}. Pass a tree like the one that was saved."
            )


def leaf_shape(leaf: Any) -> tuple[int, ...]:
    """The shape of an array, abstract or not, or of a number."""
    return tuple(leaf.shape) if is_array(leaf) else ()


def _is_key(leaf: Any) -> bool:
    return is_array(leaf) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _check_kinds(leaves: Mapping[str, Any]) -> None:
    """Refuse trees without leaves, and leaves that are neither array nor number."""
    wrong = [
        f"'{path}' ({type(leaf).__name__})"
        for path, leaf in leaves.items()
        if is_operator(leaf)
        or isinstance(leaf, jax.ShapeDtypeStruct)
        or not (is_array(leaf) or isinstance(leaf, bool | int | float))
    ]
    if wrong:
        raise TypeError(
            f"Checkpoint: cannot save {', '.join(wrong)}: expected arrays and numbers. "
            "Save the state, not the adapted tree."
        )
    if not leaves:
        raise ValueError("Checkpoint: the tree holds no leaves. Pass what trains.")


def _describe(leaf: Any) -> str:
    """Dtype and shape of a leaf, or the kind of a Python number."""
    if not is_array(leaf):
        return type(leaf).__name__
    return f"{leaf.dtype}{list(leaf.shape)}"


def _storable(leaf: Any) -> Any:
    """A leaf as Orbax takes it: what one process alone holds is written by one."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array) and (
        jax.process_count() == 1 or not leaf.is_fully_addressable
    ):
        return leaf
    return np.array(leaf)


def _sharding(leaf: Any) -> Any:
    """Where a leaf is wanted, or None."""
    if isinstance(leaf, jax.Array):
        return leaf.sharding if leaf.committed else None
    return getattr(leaf, "sharding", None)


def _restore_args(leaf: Any) -> Any:
    """How Orbax reads a leaf: onto its devices, or into memory."""
    where = _sharding(leaf)
    if where is None or _is_key(leaf):
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=where, global_shape=tuple(leaf.shape))


def _rebuilt(like: Any, found: Any) -> Any:
    """A leaf of the kind that was asked for."""
    if not is_array(like):
        return type(like)(found.item())
    if isinstance(like, np.ndarray | np.generic):
        return like.dtype.type(found) if isinstance(like, np.generic) else found
    where = _sharding(like)
    if _is_key(like):
        return _placed(_key(like, found), where)
    if found is None:
        return _placed(jnp.zeros(like.shape, like.dtype), where)
    return jnp.asarray(found, like.dtype) if where is None else found


def _placed(array: jax.Array, where: Any) -> jax.Array:
    return array if where is None else jax.device_put(array, where)


def _key(like: Any, data: Any) -> jax.Array:
    """A typed key of the implementation of another one."""
    kind: list[Any] = []
    jax.eval_shape(lambda key: kind.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(jnp.asarray(data), impl=kind[0])
