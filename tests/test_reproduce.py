"""Everything at one size: the plan, what is finished, what cannot run. The experiments themselves are tested elsewhere."""

import json

import pytest

from plural_jax import cli, experiments, reproduce
from plural_jax.reproduce import Reproduce

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def ran(monkeypatch):
    """Experiments that leave an empty folder instead of running; "e3" finds no data."""
    seen = []

    def execute(experiment, config, folder, *, resume, progress):
        assert resume
        if experiment.name == "e3":
            raise ValueError("path must hold CIFAR-10, got nothing.")
        seen.append((experiment.name, config))
        folder.mkdir(parents=True, exist_ok=True)

    def write(command):
        seen.append(("report", [run.name for run in command.runs]))
        return f"The report is {command.out}\n"

    monkeypatch.setattr(reproduce.experiments, "execute", execute)
    monkeypatch.setattr(reproduce.report, "write", write)
    return seen


@pytest.mark.parametrize("preset", ["quick", "cpu", "paper"])
def test_a_plan_holds_every_experiment_with_options_that_exist(preset, tmp_path):
    plan = reproduce.steps(Reproduce(preset=preset, data=tmp_path))
    assert [step.experiment.name for step in plan] == ["sweep", *experiments.EXPERIMENTS]
    assert set(reproduce.PRESETS[preset]) <= set(experiments.EXPERIMENTS)
    by_name = {step.experiment.name: step.config for step in plan}
    assert by_name["e4"].preset == {"quick": "tiny"}.get(preset, preset) and by_name["e3"].data == tmp_path


def test_the_same_command_goes_on_and_names_what_cannot_run(ran, tmp_path, capsys):
    command = Reproduce(only=("sweep", "e2", "e3"), out=tmp_path, progress=False)
    assert reproduce.reproduce(command) == 1
    assert [name for name, _ in ran] == ["sweep", "e2", "report"] and ran[-1][1] == ["sweep", "e2"]
    said = capsys.readouterr().out
    assert "[3/3] e3: not run: path must hold CIFAR-10, got nothing." in said
    assert "1 of 3 did not run: e3. The same command tries them again." in said
    ran.clear()
    assert reproduce.reproduce(command) == 1
    assert [name for name, _ in ran] == ["report"] and "e2: finished before" in capsys.readouterr().out
    with pytest.raises(ValueError, match="holds runs of other sizes; choose another folder"):
        # An experiment whose options depend on the size.
        (tmp_path / "e5").mkdir()
        (tmp_path / "e5" / "finished.json").write_text(json.dumps({"phi": []}))
        reproduce.reproduce(Reproduce(only=("e5",), out=tmp_path, progress=False))


def test_from_the_command_line(ran, tmp_path, capsys):
    words = ["reproduce", "--only", "e2", "--out", str(tmp_path), "--no-progress"]
    assert cli.main(words) == 0 and "The report is" in capsys.readouterr().out
    assert cli.main([*words[:2], "e99", *words[3:]]) == 2
    assert "only must name experiments among sweep, c9" in capsys.readouterr().err
