"""The BERT encoder in NumPy float64, from the equations of the paper.

Tensors are those of a checkpoint: `[out, in]` weights under dotted names.
"""

from math import erf

import numpy as np


def linear(w, name, x):
    """`x W^T + b`."""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x, eps):
    """`(x - mean) / sqrt(var + eps) * scale + bias` over the last axis."""
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    unit = (x - mean) / np.sqrt(variance + eps)
    return unit * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    """`x Phi(x)` with the exact normal distribution function."""
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def attention(w, name, x, mask, heads):
    """Heads one by one: `softmax(q k^T / sqrt(d)) v`, over kept tokens only."""
    q, k, v = (linear(w, f"{name}.{part}", x) for part in ("query", "key", "value"))
    size = x.shape[-1] // heads
    out = np.zeros_like(x)
    for row in range(x.shape[0]):
        keep = mask[row].astype(bool)
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[row, :, part] @ k[row, keep, part].T / np.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights = weights / weights.sum(-1, keepdims=True)
            out[row, :, part] = weights @ v[row, keep, part]
    return out


def forward(tensors, ids, mask, types, *, layers, heads, eps):
    """Hidden states `[batch, length, width]` after the last layer."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + w["embeddings.token_type_embeddings.weight"][types]
    x = layer_norm(w, "embeddings.LayerNorm", x, eps)
    for i in range(layers):
        at = f"encoder.layer.{i}"
        context = attention(w, f"{at}.attention.self", x, mask, heads)
        context = linear(w, f"{at}.attention.output.dense", context)
        u = layer_norm(w, f"{at}.attention.output.LayerNorm", context + x, eps)
        inner = gelu(linear(w, f"{at}.intermediate.dense", u))
        inner = linear(w, f"{at}.output.dense", inner)
        x = layer_norm(w, f"{at}.output.LayerNorm", inner + u, eps)
    return x


def pooled(tensors, hidden):
    """`tanh` of a dense layer on the first token."""
    w = {name: np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    return np.tanh(linear(w, "pooler.dense", hidden[:, 0]))
