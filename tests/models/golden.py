"""Checkpoints as `transformers` writes them, from the arrays of `tests/golden`."""

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent.parent / "golden"


@functools.cache
def arrays(name):
    """All that is stored in one file."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return dict(stored)


def tensors(name):
    """The weights, under the checkpoint's keys."""
    own = ("in_", "out_", "config", "provenance")
    found = arrays(f"models_{name}")
    return {key: array for key, array in found.items() if not key.startswith(own)}


def config(name):
    return json.loads(str(arrays(f"models_{name}")["config"]))


def write(folder, name):
    """Write the checkpoint's directory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(name), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(name)))
    return folder
