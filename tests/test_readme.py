"""The README's Python runs as written, and its commands are those that the project means."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.end_to_end

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_runs_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
    assert names["ds"].sizes["phi"] == 3 and (tmp_path / "sweep.zarr").is_dir()
    assert np.isfinite(names["ds"].entropy).all()
    assert (names["rounds"].reward_variance[-1] > 10).all() and (tmp_path / "run" / "run.json").is_file()
    assert np.abs(np.asarray(names["trace"].basin_mass[-1]) - np.array([0.3, 0.7])).max() < 0.01


def test_two_commands_each_with_its_own_set_up():
    main_job, tests = blocks("bash")
    assert all("-m venv" in command and "pip install" in command for command in (main_job, tests))
    assert "plural-jax sweep" in main_job and "pytest" in tests
