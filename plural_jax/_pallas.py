"""Whether kernels of our own can run: Pallas, lowered by Triton, on an NVIDIA GPU.

JAX 0.12 calls that lowering deprecated; where it is gone, plain XLA computes the same.
"""

from __future__ import annotations

import importlib

import jax


def available() -> bool:
    """Whether the default device is one that this can be compiled for."""
    if jax.default_backend() != "gpu":  # before the import, which takes a while
        return False
    try:
        importlib.import_module("jax.experimental.pallas.triton")
    except ImportError:  # a version of JAX that has given it up
        return False
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))  # "9.0" on Hopper, "gfx..." on ROCm
    return capability.replace(".", "").isdigit() and float(capability) >= 8
