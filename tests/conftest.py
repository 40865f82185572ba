"""What every test shares: float64, strict promotion, and random inputs that are new in each run.

`PLURAL_JAX_TEST_SEED=123 pytest ...` repeats the random inputs of a run; every failure reports the seed it had, and
`pytest -v` the seed at the start. Doctests run as a reader would type them: in default float32, with `jnp` at hand.

Compiling takes most of the time. So XLA generates plain code here (its passes over the program run as always), and the processes
of a run share what they compiled, in a folder that is removed at its end. `XLA_FLAGS="" pytest ...` tests the code that users
run; `.ci/run` does so for the conformance tests of every process. What is left is Python that traces programs, a
tenth of which went into looking for garbage among objects that live on.
"""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

SEED_VARIABLE = "PLURAL_JAX_TEST_SEED"
CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_PLAIN_CODE = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    # Compiled in one piece, not in several by as many threads, which is more work in all: every core has a process of its own.
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",
)
_own_cache: list[str] = []


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator of its own for each test, so that running one test alone gives it the same numbers."""
    return np.random.default_rng([_seed(), zlib.crc32(request.node.nodeid.encode())])


def pytest_configure(config: pytest.Config) -> None:
    # In the environment, where the worker processes of pytest-xdist find the same seed.
    os.environ.setdefault(SEED_VARIABLE, str(secrets.randbelow(2**32)))
    _seed()
    _compile_quickly()
    # A plugin rather than hooks of this file, which would not see the doctests in `plural_jax/`.
    config.pluginmanager.register(_Doctests(), "plural_jax_doctests")


def _compile_quickly() -> None:
    """In the environment, where worker processes and commands that tests start find it, before anything is compiled."""
    if "XLA_FLAGS" not in os.environ:
        os.environ["XLA_FLAGS"] = " ".join(_PLAIN_CODE)
        # XLA refuses to start with a flag that it does not know, and flags come and go with its versions.
        probe = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
        if subprocess.run(probe, capture_output=True, check=False).returncode:
            os.environ["XLA_FLAGS"] = ""
    if CACHE_VARIABLE not in os.environ:
        _own_cache.append(tempfile.mkdtemp(prefix="plural_jax_tests_"))
        os.environ[CACHE_VARIABLE] = _own_cache[0]
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE_VARIABLE])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_unconfigure() -> None:
    for folder in _own_cache:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first, and doctests last, so that no worker is left alone with a long file at the end."""
    items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)


def pytest_collection_finish() -> None:
    """Modules and collected tests are no garbage, and traced programs make too many objects to look so often for some."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


def pytest_report_header() -> str:
    return f"random inputs: {SEED_VARIABLE}={_seed()}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and "rng" in getattr(item, "fixturenames", ()):
        report.sections.append(("random inputs", f"To repeat them: {SEED_VARIABLE}={_seed()}"))
    return report


class _Doctests:
    @pytest.fixture(autouse=True)
    def _reader_environment(self, request: pytest.FixtureRequest) -> Iterator[None]:
        if not isinstance(request.node, pytest.DoctestItem):
            yield
            return
        request.getfixturevalue("doctest_namespace")["jnp"] = jnp
        with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
            yield


def _seed() -> int:
    text = os.environ[SEED_VARIABLE]
    if not text.isdecimal():
        raise pytest.UsageError(f"{SEED_VARIABLE} must be a whole number, got {text!r}.")
    return int(text)
