"""Types of arguments."""

from collections.abc import Sequence
from typing import Any

import jax.typing

#: What a public function takes as numbers: JAX and NumPy arrays, scalars, tracers, and (nested) lists of them.
ArrayLike = jax.typing.ArrayLike | Sequence[Any]
