"""Assumption 1, clause by clause, on the evidence of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from plural_jax.theory.evidence import Evidence
from plural_jax.theory.report import (
    FAILS,
    HOLDS,
    NOT_CHECKED,
    Statement,
    holds_until,
    number,
    numbers,
    power,
    weakest,
)


class Case(NamedTuple):
    """What is audited, on the host.

    Attributes:
        evidence: of the run.
        phi: weights, [m].
        eps, temperature: in units of reward.
        num_steps: T.
        rounding: logarithms of multipliers within this of zero are not told from zero.
    """

    evidence: Evidence
    phi: np.ndarray
    eps: float
    temperature: float
    num_steps: int
    rounding: float

    @property
    def m(self) -> int:
        """Number of preferences."""
        return len(self.phi)

    def kappa(self, gaps: Any) -> np.ndarray:
        """Leakages that belong to these gaps, [m, m], with zeros on the diagonal."""
        with np.errstate(over="ignore"):
            kappa = np.exp(-(np.asarray(gaps) - 2 * self.eps) / self.temperature)
        return np.where(np.eye(self.m, dtype=bool), 0.0, kappa)


def assumptions(case: Case) -> tuple[Statement, ...]:
    """All clauses."""
    return (
        _bounded(case),
        _disjoint(case),
        _initial_mass(case),
        outside_domination(case),
        _separation(case),
    )


def _bounded(case: Case) -> Statement:
    low, high = case.evidence.lowest, case.evidence.best
    note = f"r_i from {numbers(low)} to {numbers(high)}."
    return Statement(
        "bounded rewards", "(i)", "Rewards are bounded on the domain", HOLDS, {"lower": low, "upper": high}, note
    )


def _disjoint(case: Case) -> Statement:
    e = case.evidence
    atoms = int(e.overlap[0])
    start, end = np.exp(e.overlap[1:])
    pairs = [(i, j) for i in range(case.m) for j in range(i) if e.shared[i, j] > 0]
    found = {
        "atoms_of_each": np.diag(e.shared).astype(int),
        "overlapping_atoms": atoms,
        "overlap_initial_mass": start,
        "overlap_final_mass": end,
        "overlapping_pairs": sorted((j, i) for i, j in pairs),
    }
    sizes = f"Basins of {numbers(np.diag(e.shared))} atoms"
    if atoms:
        some = ", ".join(f"S_{j + 1} and S_{i + 1}" for i, j in sorted(pairs, key=lambda p: p[::-1])[:3])
        note = (
            f"{sizes}; {atoms} lie in several ({some}{', ...' if len(pairs) > 3 else ''}), with mass {number(start)} at the "
            f"start and {number(end)} at the end."
        )
    else:
        note = f"{sizes}, none in two of them."
    return Statement("disjoint basins", "(ii)", "The basins S_i are disjoint", FAILS if atoms else HOLDS, found, note)


def _initial_mass(case: Case) -> Statement:
    mass = np.exp(case.evidence.log_basin_start)
    empty = np.flatnonzero(np.isneginf(case.evidence.log_basin_start))
    note = f"p_0(S_i) = {numbers(mass)}."
    if empty.size:
        names = ", ".join(f"S_{i + 1}" for i in empty[:6])
        note += f" No mass in {names}{', ...' if empty.size > 6 else ''}: no round can ever reach it."
    found = {"initial_mass": mass, "final_mass": np.exp(case.evidence.log_basin_end), "without_mass": empty}
    return Statement(
        "initial mass", "(ii)", "The start gives mass to every basin", FAILS if empty.size else HOLDS, found, note
    )


def outside_domination(case: Case) -> Statement:
    """Clause (iii), with the rounds in which it fails and the bound on the rounds to come."""
    e = case.evidence
    text = "Outside the basins W_t is below 1 in every round"
    if not e.any_outside:
        found: dict[str, Any] = {"rho": 0.0, "rho_over_run": 0.0, "failing_rounds": [], "settled_after": 0}
        return Statement("outside domination", "(iii)", text, HOLDS, found, "No mass lies outside the basins.")
    sup, tail = np.asarray(e.rounds.log_sup_outside), float(e.log_ceiling_outside)
    failing = np.flatnonzero(sup >= -case.rounding)
    proved = tail < -case.rounding
    # After the last failure, and for ever where the rounds after T are covered.
    after = int(failing[-1]) + 1 if failing.size else 0
    settled = proved and after <= case.num_steps
    log_rho_after = max(float(sup[after:].max()), tail) if settled else np.inf
    with np.errstate(over="ignore"):
        found = {
            "rho_over_run": float(np.exp(sup.max())),
            "log_rho_over_run": float(sup.max()),
            "round_of_sup": int(sup.argmax()),
            "last_multiplier": float(np.exp(sup[-1])),
            "ceiling_after_run": float(np.exp(tail)),
            "failing_rounds": failing,
            "settled_after": after if settled else None,
            "rho": float(np.exp(log_rho_after)) if settled and not after else None,
            "rho_once_settled": float(np.exp(log_rho_after)) if settled else None,
        }
    rho = power(float(sup.max()))
    if failing.size:
        verdict = FAILS
        note = (
            f"sup W = {rho} in round {int(sup.argmax())}; W reaches 1 in {failing.size} of the rounds 0 to {case.num_steps}, "
            f"from {failing[0]} to {failing[-1]}."
        )
        if settled:
            note += f" From round {after} on W stays below {power(log_rho_after)} for ever."
    elif proved:
        verdict = HOLDS
        note = f"rho = {power(log_rho_after)} (over the run {rho}, in round {int(sup.argmax())}; then at most {power(tail)})."
    else:
        verdict = holds_until(case.num_steps)
        note = f"rho = {rho} over the run, in round {int(sup.argmax())}; later rounds are only known to stay below {power(tail)}."
    return Statement("outside domination", "(iii)", text, verdict, found, note)


def _separation(case: Case) -> Statement:
    e = case.evidence
    kappa = case.kappa(e.gaps)
    gaps = [[float(g) if i != j else None for j, g in enumerate(row)] for i, row in enumerate(np.asarray(e.gaps))]
    found: dict[str, Any] = {"gaps": gaps, "kappa": kappa, "largest_kappa": float(kappa.max())}
    text = "Gaps exceed 2 eps, that is every leakage kappa_ij is below 1"
    if case.m == 1:
        return Statement("separation", "(iv)", text, HOLDS, found, "One preference has nothing to be separated from.")
    i, j = np.unravel_index(int(kappa.argmax()), kappa.shape)
    if case.m == 2:
        note = (
            f"Delta = {numbers([e.gaps[0, 1], e.gaps[1, 0]])}, 2 eps = {number(2 * case.eps)}; "
            f"kappa = {numbers([kappa[0, 1], kappa[1, 0]])}."
        )
    else:
        note = f"Largest: kappa = {number(kappa[i, j])}, with which r_{i + 1} likes S_{j + 1} (Delta = {number(e.gaps[i, j])})."
    return Statement("separation", "(iv)", text, HOLDS if kappa.max() < 1 else FAILS, found, note)


def decay(case: Case) -> Statement:
    """Whether the outside mass goes to zero: the conclusion of Lemma 3, and what the later results assume."""
    e = case.evidence
    log_m = np.asarray(e.rounds.log_outside)
    last = float(np.exp(log_m[-1]))
    low, high = float(e.outside_lower), float(e.outside_upper)
    found = {"outside_mass": last, "later_lower": low, "later_upper": high}
    seen = f"m_0 = {number(np.exp(log_m[0]))}, m_T = {number(last)}"
    if not e.any_outside:
        verdict, note = HOLDS, f"{seen}: no atom outside has mass."
    elif low > 0:
        verdict, note = FAILS, f"{seen}; in every later round at least {number(low)} lies outside."
    elif float(e.log_ceiling_outside) < -case.rounding:
        verdict = HOLDS
        note = f"{seen}; in every later round it shrinks, by {power(float(e.log_ceiling_outside))} or faster."
    elif np.asarray(e.rounds.log_sup_outside).max() < -case.rounding:
        verdict, note = (
            holds_until(case.num_steps),
            f"{seen}; it shrank in every round. More rounds may prove the rest.",
        )
    else:
        sup = np.asarray(e.rounds.log_sup_outside)
        since = int(np.flatnonzero(sup >= -case.rounding)[-1]) + 1
        trend = f"it has shrunk in every round since {since}, but " if since <= case.num_steps else ""
        verdict = NOT_CHECKED
        note = f"{seen}; {trend}{case.num_steps} rounds do not decide its limit. More rounds, or a reference, may."
    return Statement("decay", "", "m_t -> 0, which the results below assume", verdict, found, note)


def why_not(statements: list[Statement]) -> str:
    """Names of the assumptions that make a result's verdict what it is."""
    verdict = weakest(s.verdict for s in statements)
    if verdict == HOLDS:
        return ""
    names = ", ".join(
        f"{s.source} {s.name}" if s.source.startswith("(") else s.name for s in statements if s.verdict == verdict
    )
    return f"{'Broken' if verdict == FAILS else 'Open'}: {names}. " if verdict in (FAILS, NOT_CHECKED) else ""
