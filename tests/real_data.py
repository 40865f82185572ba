"""Real data for tests: where it lies, or why a test is skipped.

`PLURAL_JAX_DATA=/folder pytest ...` names a folder with `cifar10/`, `cifar10_resnet/`, `wikitext2/` and so on. Without it, the
folder `shared/data` beside the repository is used.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from plural_jax.data import DATA_VARIABLE


def find_real_data(*parts: str) -> Path | None:
    """The file or folder at `parts` within the real data, or None."""
    given = os.environ.get(DATA_VARIABLE)
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    place = folder.joinpath(*parts)
    return place if place.exists() else None


def real_data(*parts: str) -> Path:
    """The file or folder at `parts` within the real data; the test is skipped where it is missing."""
    place = find_real_data(*parts)
    if place is None:
        pytest.skip(f"needs the real data {'/'.join(parts)}: set {DATA_VARIABLE} to a folder that holds it")
    return place
