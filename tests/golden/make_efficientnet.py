"""Write `efficientnet_*.npz`: the PyTorch port's logits, of a tiny net and of Lite0.

`efficientnet_tiny.npz` holds tensors under the port's keys, `in_images` (channels
last) and the outputs; `efficientnet_lite0.npz` holds images and outputs only, since the
weights are fetched. Needs torch 2.13.0 and efficientnet-lite-pytorch 0.1.0, which the
tests do without. Run from the root: `python tests/golden/make_efficientnet.py`.
"""

from pathlib import Path

import numpy as np
import torch
from efficientnet_lite_pytorch.model import EfficientNet
from efficientnet_lite_pytorch.utils import BlockDecoder, get_model_params

from benchmarks import data

TINY = ["r1_k3_s11_e1_i32_o8", "r2_k5_s22_e2_i8_o8"]
HERE = Path(__file__).parent
VERSION = "efficientnet-lite-pytorch 0.1.0"


def outputs(model: EfficientNet, images: np.ndarray) -> dict[str, np.ndarray]:
    """Pooled features and logits of images, channels last."""
    x = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        features = model.extract_features(x).mean((2, 3))
        return {"out_features": features.numpy(), "out_logits": model(x).numpy()}


def main() -> None:
    """Move the tiny net off its init, run both nets and store them."""
    torch.manual_seed(0)
    _, params = get_model_params("efficientnet-lite0", {"num_classes": 3})
    tiny = EfficientNet(BlockDecoder.decode(TINY), params._replace(image_size=8)).eval()
    with torch.no_grad():
        for name, leaf in tiny.state_dict().items():
            if "num_batches" not in name:
                leaf += 0.3 * torch.rand_like(leaf)
    tensors = {k: x.numpy() for k, x in tiny.state_dict().items()}
    images = torch.randn(2, 8, 8, 3).numpy()
    provenance = f"{VERSION}, torch {torch.__version__}, make_efficientnet.py"
    np.savez_compressed(
        HERE / "efficientnet_tiny.npz",
        provenance=provenance,
        in_images=images,
        **tensors,
        **outputs(tiny, images),
    )
    whole = EfficientNet.from_name("efficientnet-lite0").eval()
    found = {k: torch.tensor(x) for k, x in data.efficientnet_lite0().items()}
    whole.load_state_dict(found)
    x = torch.nn.functional.interpolate(torch.randn(1, 3, 8, 8), 64, mode="bicubic")
    images = (x.numpy().transpose(0, 2, 3, 1) * 16).round().astype(np.int8)
    np.savez_compressed(
        HERE / "efficientnet_lite0.npz",
        provenance=provenance,
        in_images_16=images,
        **outputs(whole, images.astype(np.float32) / 16),
    )


if __name__ == "__main__":
    main()
