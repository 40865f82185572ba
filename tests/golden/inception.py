"""Inception-v3 features of random images with random weights, computed with PyTorch: `inception.npz`, and how it was made.

    python -m tests.golden.inception

No weights may be committed (they are 90 MB), and none are needed: random ones test every layer as well. They are drawn from the
raw bits of PCG64, whose stream is fixed, so that the test finds them again without PyTorch.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

FILE = Path(__file__).with_name("inception.npz")
NUM_IMAGES = 4
#: Every eighth feature is kept.
STEP = 8


def uniform(name: str, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    """Numbers that depend on nothing but the name."""
    numbers = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).random(shape, np.float32)
    return low + np.float32(high - low) * numbers


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Kernels that keep the size of what passes through rectifiers; batch normalizations that all differ."""
    weights = {}
    for name, shape in shapes.items():
        if name.endswith("conv.weight"):
            bound = float(np.sqrt(6 / np.prod(shape[1:])))
            weights[name] = uniform(name, shape, -bound, bound)
        elif name.endswith("running_var"):
            weights[name] = uniform(name, shape, 0.6, 1.4)
        elif name.endswith("bn.weight"):
            weights[name] = uniform(name, shape, 0.8, 1.2)
        else:
            weights[name] = uniform(name, shape, -0.2, 0.2)
    return weights


def random_images() -> np.ndarray:
    """[4, 32, 32, 3] in [-1, 1], with 8 bits."""
    noise = uniform("images", (NUM_IMAGES, 32, 32, 3), 0, 255)
    brightness = uniform("brightness", (NUM_IMAGES, 1, 1, 3), 0, 1)
    return (np.rint(noise * brightness) / 127.5 - 1).astype(np.float32)


def torch_features(weights: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """The network of FID, layer by layer, for images [n, height, width, 3] in [-1, 1]."""
    import torch
    import torch.nn.functional as F

    state = {name: torch.from_numpy(np.array(value)) for name, value in weights.items()}

    def layer(x: Any, name: str, stride: int = 1, padding: int | tuple[int, int] = 0) -> Any:
        x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean, variance = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(x, mean, variance, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], eps=0.001))

    def average(x: Any) -> Any:
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def a(x: Any, at: str) -> Any:
        five = layer(layer(x, f"{at}.branch5x5_1"), f"{at}.branch5x5_2", padding=2)
        three = layer(layer(x, f"{at}.branch3x3dbl_1"), f"{at}.branch3x3dbl_2", padding=1)
        three = layer(three, f"{at}.branch3x3dbl_3", padding=1)
        return torch.cat([layer(x, f"{at}.branch1x1"), five, three, layer(average(x), f"{at}.branch_pool")], 1)

    def b(x: Any, at: str) -> Any:
        three = layer(layer(x, f"{at}.branch3x3dbl_1"), f"{at}.branch3x3dbl_2", padding=1)
        three = layer(three, f"{at}.branch3x3dbl_3", stride=2)
        return torch.cat([layer(x, f"{at}.branch3x3", stride=2), three, F.max_pool2d(x, 3, 2)], 1)

    def c(x: Any, at: str) -> Any:
        once = layer(layer(x, f"{at}.branch7x7_1"), f"{at}.branch7x7_2", padding=(0, 3))
        once = layer(once, f"{at}.branch7x7_3", padding=(3, 0))
        twice = layer(x, f"{at}.branch7x7dbl_1")
        for number, padding in enumerate([(3, 0), (0, 3), (3, 0), (0, 3)], start=2):
            twice = layer(twice, f"{at}.branch7x7dbl_{number}", padding=padding)
        return torch.cat([layer(x, f"{at}.branch1x1"), once, twice, layer(average(x), f"{at}.branch_pool")], 1)

    def d(x: Any, at: str) -> Any:
        three = layer(layer(x, f"{at}.branch3x3_1"), f"{at}.branch3x3_2", stride=2)
        seven = layer(layer(x, f"{at}.branch7x7x3_1"), f"{at}.branch7x7x3_2", padding=(0, 3))
        seven = layer(layer(seven, f"{at}.branch7x7x3_3", padding=(3, 0)), f"{at}.branch7x7x3_4", stride=2)
        return torch.cat([three, seven, F.max_pool2d(x, 3, 2)], 1)

    def e(x: Any, at: str, pooled: Any) -> Any:
        def both(y: Any, name: str) -> list[Any]:
            return [layer(y, f"{name}a", padding=(0, 1)), layer(y, f"{name}b", padding=(1, 0))]

        once = both(layer(x, f"{at}.branch3x3_1"), f"{at}.branch3x3_2")
        twice = layer(layer(x, f"{at}.branch3x3dbl_1"), f"{at}.branch3x3dbl_2", padding=1)
        twice = both(twice, f"{at}.branch3x3dbl_3")
        return torch.cat([layer(x, f"{at}.branch1x1"), *once, *twice, layer(pooled, f"{at}.branch_pool")], 1)

    with torch.no_grad():
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        x = layer(layer(x, "Conv2d_1a_3x3", stride=2), "Conv2d_2a_3x3")
        x = F.max_pool2d(layer(x, "Conv2d_2b_3x3", padding=1), 3, 2)
        x = F.max_pool2d(layer(layer(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = a(x, name)
        x = b(x, "Mixed_6a")
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = c(x, name)
        x = d(x, "Mixed_7a")
        x = e(x, "Mixed_7b", average(x))
        x = e(x, "Mixed_7c", F.max_pool2d(x, 3, stride=1, padding=1))
        return x.mean(dim=(2, 3)).numpy()


if __name__ == "__main__":
    from plural_jax.models.inception import weight_shapes

    np.savez(FILE, features=torch_features(random_weights(weight_shapes()), random_images())[:, ::STEP])
