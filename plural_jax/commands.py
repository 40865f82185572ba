"""What `plural-jax limit` and `plural-jax audit` answer, as functions: one landscape in, a text and plain Python out."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from plural_jax import Grid, Landscape, density, rewards, theory
from plural_jax.experiments.axis import Axis
from plural_jax.theory.report import as_text, number, numbers


@dataclass(frozen=True)
class Limit:
    """Where retraining ends: the exact limit of the large-pool dynamics, with a certificate."""

    phi: Axis = (0.3, 0.7)
    """Weight of each preference; they sum to one."""
    rewards: Path | None = None
    """Table of rewards measured on samples: a .npy or .csv file with a row for each sample and a column for each
    preference. Without it, rewards of the given shape on a line."""
    reward: Literal["bump", "quadratic"] = "bump"
    """Shape of the rewards: bells of a height and width (C.9), or -gamma (x - mu)^2 (C.4)."""
    centers: Axis = (-2.0, 2.0)
    """Optimum of each preference, in units of x."""
    height: float = 5.0
    """Reward of a bump at its centre."""
    width: float = 1.0
    """Standard deviation of a bump, in units of x."""
    gamma: float = 0.5
    """Sharpness of a quadratic reward."""
    temperature: float = 1.0
    """Temperature tau of the choice rule, in units of reward."""
    low: float = -5.0
    """First grid point."""
    high: float = 5.0
    """Last grid point."""
    num: int = 1001
    """Number of grid points."""
    out: Path | None = None
    """Write the answer to this file as JSON."""


@dataclass(frozen=True)
class Audit(Limit):
    """Which of the paper's assumptions hold here, with their numbers, and which of its results therefore apply."""

    eps: float = 0.1
    """Width of the near-optimal basins, in units of reward."""
    num: int = 100
    """Number of grid points."""
    num_steps: int = 100
    """Rounds to run for what has to be seen."""


def answer(case: Limit) -> str:
    """Answer a case, write its file if it names one, and return the text.

    Raises:
        ValueError: a table that cannot be read, or arguments that the library refuses.
    """
    land = landscape(case)
    text, plain = audit(case, land) if isinstance(case, Audit) else limit(case, land)
    if case.out is not None:
        # The question too, without where its answer goes: `plural-jax report` shows both.
        asked = {name: value for name, value in dataclasses.asdict(case).items() if name != "out"}
        told = {"command": type(case).__name__.lower(), "options": asked, **plain}
        case.out.parent.mkdir(parents=True, exist_ok=True)
        case.out.write_text(json.dumps(told, indent=2, allow_nan=False, default=str) + "\n")
    return text


def landscape(case: Limit) -> Landscape:
    """The landscape of a case: a table from a file, or rewards on a line."""
    if case.rewards is not None:
        return Landscape(rewards=jnp.asarray(_table(case.rewards).T))
    if case.reward == "bump":
        shape: Any = rewards.bump(case.centers, height=case.height, width=case.width)
    else:
        shape = rewards.quadratic(case.centers, gamma=case.gamma)
    return Landscape.on(Grid.uniform(case.low, case.high, case.num), shape)


def _table(path: Path) -> np.ndarray:
    if not path.is_file():
        raise ValueError(f"rewards={str(path)!r} is not a file.")
    try:
        if path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        else:
            with path.open() as lines:
                first = lines.readline()
            header = 0 if _is_numbers(first) else 1
            with warnings.catch_warnings(action="ignore"):  # about a file without rows, which is refused below
                table = np.loadtxt(path, delimiter=",", skiprows=header, ndmin=2)
    except ValueError as error:
        raise ValueError(
            f"rewards={str(path)!r} is not a table of numbers: {str(error).rstrip('.')}; it must have a row for each sample and "
            "a column for each preference, separated by commas."
        ) from error
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"rewards={str(path)!r} must hold a table of samples x preferences, got shape {table.shape}.")
    return table


def _is_numbers(line: str) -> bool:
    try:
        [float(word) for word in line.split(",")]
    except ValueError:
        return False
    return True


def limit(case: Limit, land: Landscape) -> tuple[str, dict[str, Any]]:
    """The exact limit of a case as text and as plain Python; off the grid where the rewards are functions."""
    phi = np.asarray(case.phi)
    found = density.solve_limit(land, phi, temperature=case.temperature)
    mean = np.asarray(land.rewards, np.float64) @ np.exp(np.asarray(found.log_p, np.float64))
    support = np.asarray(found.support)
    at = np.asarray(land.rewards, np.float64)[:, support]
    moved = False
    if land.reward is not None:
        refined = density.solve_limit(land, phi, temperature=case.temperature, refine=True)
        moved = bool(refined.converged)
    if moved:
        found, support = refined, np.asarray(refined.support)
        at = np.asarray(land.reward(refined.points), np.float64).T
        mean = at @ np.asarray(refined.weights, np.float64)
    weights, log_z = np.asarray(found.weights, np.float64), np.asarray(found.log_z, np.float64)
    asked = phi > 0
    atoms = []
    for k in np.flatnonzero(weights > 0):
        share = np.where(asked, phi * np.exp(np.where(asked, at[:, k] / case.temperature - log_z, 0.0)), 0.0)
        where = {} if found.points is None else {"point": np.asarray(found.points[k], float).tolist()}
        own = {"mass": float(weights[k]), "rewards": at[:, k].tolist(), "shares": share.tolist()}
        atoms.append({"atom": int(support[k]), **where, **own})
    plain = {
        "phi": phi.tolist(),
        "temperature": case.temperature,
        "num_atoms": land.num_atoms,
        "off_the_grid": moved,
        "atoms": atoms,
        "reward_mean": mean.tolist(),
        "log_z": log_z.tolist(),
        "objective": float(found.objective),
        "gap": float(found.gap),
        "converged": bool(found.converged),
        "unique": bool(found.unique),
        "num_steps": int(found.num_steps),
        "dtype": str(land.dtype),
    }
    return _limit_text(plain), plain


def _limit_text(plain: dict[str, Any]) -> str:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    has_points = "point" in plain["atoms"][0]
    for name in ("x" if has_points else "sample", "mass", "rewards there", "shares of the preferences"):
        table.add_column(name)
    for a in plain["atoms"]:
        where = numbers([round(v, 9) + 0.0 for v in a["point"]]) if has_points else str(a["atom"])
        table.add_row(*(Text(t) for t in (where, number(a["mass"]), numbers(a["rewards"]), numbers(a["shares"]))))
    kind = "atoms of a grid, limit moved off it" if plain["off_the_grid"] else "atoms"
    lines = [
        f"Exact limit for {len(plain['phi'])} preferences on {plain['num_atoms']} {kind} ({plain['dtype']}), "
        f"temperature {plain['temperature']:g}",
        "",
        as_text(table).rstrip(),
        "",
        f"E[r] = {numbers(plain['reward_mean'])}; F = sum phi_i log E[e^(r_i / tau)] = {plain['objective']:.6g}",
        f"Certificate: no density here has an F that is larger by more than {plain['gap']:.1e}"
        + (f" ({plain['num_steps']} passes)." if plain["converged"] else ": NOT CONVERGED."),
    ]
    if not plain["unique"]:
        lines.append("Not the only limit: others have the same F; the start decides which is reached (here: uniform).")
    lines.append("A share near 1 makes an atom one preference's own; shares near phi make it a compromise of all.")
    return "\n".join(lines) + "\n"


def audit(case: Audit, land: Landscape) -> tuple[str, dict[str, Any]]:
    """The audit of a case as text and as plain Python; the exact limit sharpens what it proves."""
    phi = np.asarray(case.phi)
    exact = density.solve_limit(land, phi, temperature=case.temperature)
    found = theory.audit(
        land, phi, case.eps, temperature=case.temperature, num_steps=case.num_steps, reference=exact.log_p
    )
    return str(found), found.to_dict()
