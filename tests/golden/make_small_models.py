"""Write `small_models.npz`: a GRU, an LSTM and M5 as PyTorch runs them.

Keys are `gru/...` and so on: tensors under PyTorch's keys, `in` and `out`. Needs torch
2.13.0, which the tests do without. Run from the root of the repository:
`python tests/golden/make_small_models.py`.
"""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WIDTHS, FIRST, STRIDE, WINDOW, POOL = (3, 4), 7, 2, 3, 2


def recurrent(net: nn.Module) -> dict[str, np.ndarray]:
    """States of the last layer after each step."""
    x = torch.randn(2, 5, 3)
    tensors = {key: leaf.detach().numpy() for key, leaf in net.named_parameters()}
    return {**tensors, "in": x.numpy(), "out": net(x)[0].detach().numpy()}


def same(x: torch.Tensor, window: int, stride: int) -> torch.Tensor:
    """Zeros at both ends, as TensorFlow's "SAME" has them."""
    size = x.shape[-1]
    short = max((-(-size // stride) - 1) * stride + window - size, 0)
    return F.pad(x, (short // 2, short - short // 2))


def waves() -> dict[str, np.ndarray]:
    """Logits of two waves; norms are a scale and a bias."""
    sizes = ((FIRST, STRIDE), (WINDOW, 1))
    x, width, tensors = torch.randn(2, 1, 32), 1, {}
    found = {"in": x.numpy().transpose(0, 2, 1)}
    for i, (m, (window, stride)) in enumerate(zip(WIDTHS, sizes, strict=True)):
        kernel, scale, bias = (
            torch.randn(m, width, window),
            torch.randn(m),
            torch.randn(m),
        )
        tensors |= {f"conv{i}": kernel, f"scale{i}": scale, f"bias{i}": bias}
        x = F.conv1d(same(x, window, stride), kernel, stride=stride)
        x = F.max_pool1d(F.relu(x * scale[:, None] + bias[:, None]), POOL)
        width = m
    tensors |= {"fc": torch.randn(2, width), "fc_bias": torch.randn(2)}
    out = F.linear(x.mean(-1), tensors["fc"], tensors["fc_bias"])
    return found | {k: x.numpy() for k, x in tensors.items()} | {"out": out.numpy()}


def main() -> None:
    """Run and store each model."""
    torch.manual_seed(0)
    models = {
        "gru": recurrent(nn.GRU(3, 4, 2, batch_first=True)),
        "lstm": recurrent(nn.LSTM(3, 4, 2, batch_first=True)),
        "m5": waves(),
    }
    np.savez_compressed(
        Path(__file__).with_name("small_models.npz"),
        provenance=f"torch {torch.__version__}, make_small_models.py, seed 0",
        **{f"{name}/{k}": x for name, own in models.items() for k, x in own.items()},
    )


if __name__ == "__main__":
    main()
