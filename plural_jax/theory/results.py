"""Which of the paper's results apply, their bounds, and what the run measured beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from plural_jax.theory.bargaining import nash_weight_search
from plural_jax.theory.bounds import basin_mass_floor, basin_weight_bounds
from plural_jax.theory.clauses import Case, decay, why_not
from plural_jax.theory.laws import between_basin_variance, mixture_means, plateau_weight, variance_gap_floor
from plural_jax.theory.partition import partition_constant, partition_weight_bounds
from plural_jax.theory.report import FAILS, HOLDS, NOT_CHECKED, Statement, number, numbers, power, weakest


def results(case: Case, clauses: tuple[Statement, ...]) -> tuple[Statement, ...]:
    """Every result, in the paper's order."""
    _, disjoint, start, outside, separated = clauses
    gone = decay(case)
    plateaus = _plateaus(case)
    lemma4 = _lemma4(case, start, separated, gone)
    lemma5 = _lemma5(case, start, separated, gone)
    return (
        _lemma3(case, outside),
        gone,
        lemma4,
        lemma5,
        _corollary2(case, lemma5),
        _theorem3(case, disjoint, gone),
        plateaus,
        _theorem5(case, disjoint, gone),
        _theorem6(case, disjoint, separated, gone),
        _theorem7(case),
        _corollary8(case, start, separated, gone, plateaus, lemma4),
        _many(case, gone),
        *([_merged(case, gone)] if disjoint.verdict == FAILS else []),
        _fair_share(case),
    )


def _statement(
    name: str, text: str, needs: list[Statement], numbers: dict[str, Any], note: str, extra: str = ""
) -> Statement:
    verdict = FAILS if extra else weakest(s.verdict for s in needs)
    return Statement(name, name, text, verdict, numbers, f"{extra or why_not(needs)}{note}")


def _for_two(name: str, text: str) -> Statement:
    return Statement(name, name, text, NOT_CHECKED, {}, "Stated for two preferences; see B.4.")


def _share(case: Case) -> np.ndarray:
    """Weights of the parts within the basins at the end, w_i / (1 - m_T); NaN where nothing is left in them."""
    weights = np.asarray(case.evidence.rounds.weights[-1])
    total = weights.sum()
    return weights / total if total > 0 else np.full(case.m, np.nan)


def _within(case: Case, lower: float, seen: float, upper: float) -> bool:
    """Up to rounding: with no leakage the interval is the point phi."""
    tolerance = max(case.rounding, 1e-6)
    return bool(lower - tolerance <= seen <= upper + tolerance)


def _kappas(case: Case) -> np.ndarray:
    kappa = case.kappa(case.evidence.gaps)
    return np.array([kappa[0, 1], kappa[1, 0]])


def _lemma3(case: Case, outside: Statement) -> Statement:
    log_m = np.asarray(case.evidence.rounds.log_outside)
    text = "m_t <= rho^t m_0"
    if np.isneginf(log_m[0]):
        return _statement("Lemma 3", text, [outside], {"bound": 0.0, "seen": 0.0}, "m_t = 0 throughout.")
    steps = np.diff(log_m)
    log_rho = float(outside.numbers["log_rho_over_run"])
    with np.errstate(over="ignore"):
        found = {
            "bound": float(np.exp(min(log_rho * case.num_steps + log_m[0], 0.0))),
            "seen": float(np.exp(log_m[-1])),
            "slowest_contraction": float(np.exp(steps.max())),
            "last_contraction": float(np.exp(steps[-1])),
        }
    note = (
        f"At T = {case.num_steps}: m_T = {number(found['seen'])}, bound {number(found['bound'])}; m_(t+1) / m_t at most "
        f"{power(float(steps.max()))}, in the last round {power(float(steps[-1]))}."
    )
    return _statement("Lemma 3", text, [outside], found, note)


def _lemma4(case: Case, start: Statement, separated: Statement, gone: Statement) -> Statement:
    text = "The limit of a_t lies in [(phi - kappa_1)_+ / (1 - kappa_1), min(1, phi / (1 - kappa_2))]"
    if case.m != 2:
        return _for_two("Lemma 4", text)
    lower, upper = (float(v) for v in basin_weight_bounds(case.phi[0], _kappas(case)))
    seen = float(_share(case)[0])
    found = {"lower": lower, "upper": upper, "seen": seen, "within": _within(case, lower, seen, upper)}
    note = f"[{number(lower)}, {number(upper)}]; at T, a / (a + b) = {number(seen)}."
    return _statement("Lemma 4", text, [start, separated, gone], found, note)


def _lemma5(case: Case, start: Statement, separated: Statement, gone: Statement) -> Statement:
    text = "The same interval holds liminf a_t and limsup a_t if kappa_1 < phi < 1 - kappa_2"
    if case.m != 2:
        return _for_two("Lemma 5", text)
    kappa, phi = _kappas(case), case.phi
    first, last = np.asarray(case.evidence.rounds.weights)[[0, -1]]
    outside = np.exp(np.asarray(case.evidence.rounds.log_outside))[:-1].clip(0, 1)
    floors = [
        float(basin_mass_floor(phi[i], kappa[i], min(first[i], 1.0), outside)[-1]) if np.isfinite(kappa[i]) else 0.0
        for i in range(2)
    ]
    found = {"floor_now": floors, "seen": last}
    note = f"Its recursion, from the start and m_t, gives a_T >= {number(floors[0])} and b_T >= {number(floors[1])}; "
    note += f"a_T = {number(last[0])}, b_T = {number(last[1])}."
    extra = ""
    for i, name in ((0, "phi"), (1, "1 - phi")):
        if not extra and not kappa[i] < phi[i]:
            extra = f"Broken: kappa_{i + 1} = {number(kappa[i])} is not below {name} = {number(phi[i])}. "
    return _statement("Lemma 5", text, [start, separated, gone], found, note, extra)


def _corollary2(case: Case, lemma5: Statement) -> Statement:
    text = "Every limit has a strictly between 0 and 1"
    if case.m != 2:
        return _for_two("Cor. 2", text)
    seen = float(_share(case)[0])
    needs = "" if lemma5.verdict == HOLDS else f"As Lemma 5: {lemma5.verdict}. "
    note = f"{needs}At T, a / (a + b) = {number(seen)}."
    return Statement("Cor. 2", "Cor. 2", text, lemma5.verdict, {"seen": seen}, note)


def _theorem3(case: Case, disjoint: Statement, gone: Statement) -> Statement:
    text = "Every limit is a mixture of densities on the basins" + (", a P_1 + (1 - a) P_2" if case.m == 2 else "")
    weights = np.asarray(case.evidence.rounds.weights[-1])
    outside = float(np.exp(case.evidence.rounds.log_outside[-1]))
    note = f"At T, weights {numbers(weights)} and {number(outside)} outside."
    return _statement("Thm. 3", text, [disjoint, gone], {"weights": weights, "outside_mass": outside}, note)


def _plateaus(case: Case) -> Statement:
    e = case.evidence
    spread = np.asarray(e.spread)[case.phi > 0]
    largest = float(spread.max())
    drift = np.asarray(e.drift)
    found = {
        "spread": np.asarray(e.spread),
        "drift": drift,
        "log_ratio_bound": case.num_steps * largest / case.temperature,
    }
    note = f"Between rounds 0 and T they moved by {numbers(drift)} in total variation."
    extra = "" if largest == 0 else f"Broken: rewards vary by up to {number(largest)} on a basin. "
    text = "On plateaus the densities within basins never change"
    return _statement("Prop. 4", text, [], found, note, extra)


def _theorem5(case: Case, disjoint: Statement, gone: Statement) -> Statement:
    e, share = case.evidence, _share(case)
    value = (
        np.asarray(mixture_means(share, _finite_means(e.means)))
        if np.isfinite(share).all()
        else np.full(case.m, np.nan)
    )
    seen = np.asarray(e.reward_mean)
    # E_p[r] - E_{p within the basins}[r] is the outside mass times a difference of means.
    bound = float(np.exp(e.rounds.log_outside[-1])) * (np.asarray(e.best) - np.asarray(e.lowest))
    found = {"mixture": value, "seen": seen, "outside_bound": bound, "basin_means": np.asarray(e.means)}
    note = f"Of the mixture at T {numbers(value)}, of p_T {numbers(seen)}."
    return _statement("Thm. 5", "E[r_i] is the mixture of the basins' means", [disjoint, gone], found, note)


def _theorem6(case: Case, disjoint: Statement, separated: Statement, gone: Statement) -> Statement:
    e, share = case.evidence, _share(case)
    seen = np.asarray(e.reward_variance)
    text = "Var[r_i] is at least its inter-basin part"
    if not np.isfinite(share).all():
        return _statement("Thm. 6", text, [disjoint, gone], {"seen": seen}, "Nothing is left in the basins.")
    floor = np.asarray(between_basin_variance(share, _finite_means(e.means)))
    found: dict[str, Any] = {"inter_basin": floor, "seen": seen}
    note = f"Inter-basin {numbers(floor)}, in all {numbers(seen)}"
    if case.m == 2:
        text += ", a (1 - a) (mu_i1 - mu_i2)^2"
        gaps = np.array([e.gaps[0, 1], e.gaps[1, 0]])
        found["from_gaps"] = np.asarray(variance_gap_floor(share[0], gaps, eps=case.eps))
        note += f"; from the gaps alone {numbers(found['from_gaps'])}"
    needs = [disjoint, gone] + ([separated] if case.m == 2 else [])
    return _statement("Thm. 6", text, needs, found, note + ".")


def _theorem7(case: Case) -> Statement:
    text = "Among mixtures of P_1 and P_2, the weighted Nash product is largest at weight phi"
    if case.m != 2:
        return _for_two("Thm. 7", text)
    mu = np.asarray(case.evidence.means)
    gains = np.array([mu[0, 0] - mu[0, 1], mu[1, 1] - mu[1, 0]])
    if not np.isfinite(gains).all():
        return Statement("Thm. 7", "Thm. 7", text, FAILS, {"gains": gains}, "A basin is without mass at T.")
    found: dict[str, Any] = {"gains": gains, "phi": float(case.phi[0]), "seen": float(_share(case)[0])}
    if not (gains > 0).all():
        extra = f"Broken: the gains from one's own basin are {numbers(gains)}. "
        return _statement("Thm. 7", text, [], found, "With the P_j of round T.", extra)
    best = float(nash_weight_search(case.phi[0], mu))
    found["maximizer"] = best
    note = f"With the P_j of round T: gains {numbers(gains)}, maximizer {number(best)}, phi = {number(case.phi[0])}."
    return _statement("Thm. 7", text, [], found, note)


def _corollary8(
    case: Case, start: Statement, separated: Statement, gone: Statement, plateaus: Statement, lemma4: Statement
) -> Statement:
    text = "On plateaus the limit nears the Nash point as leakage vanishes"
    if case.m != 2:
        return _for_two("Cor. 8", text)
    seen = float(_share(case)[0])
    bound = max(case.phi[0] - lemma4.numbers["lower"], lemma4.numbers["upper"] - case.phi[0])
    found: dict[str, Any] = {"bound": float(bound), "seen": seen - float(case.phi[0])}
    note = f"|a - phi| <= {number(bound)}; at T, a / (a + b) - phi = {number(found['seen'])}."
    needs = [start, separated, gone, plateaus]
    if plateaus.verdict == HOLDS and separated.verdict == HOLDS:
        mu = np.asarray(case.evidence.gaps) - case.eps  # r_i* - max over the other basin, where r_i is constant
        exact = float(plateau_weight(case.phi[0], np.exp(-np.array([mu[0, 1], mu[1, 0]]) / case.temperature)))
        found["exact_weight"] = exact
        note += f" Exact for plateaus: a = {number(exact)}."
    return _statement("Cor. 8", text, needs, found, note)


def _many(case: Case, gone: Statement) -> Statement:
    e, share = case.evidence, _share(case)
    kappa = np.minimum(case.kappa(e.part_gaps), 1e300)
    text = "The limit's weights obey |w_i - phi_i| <= C max kappa_ij"
    lower, upper = (np.asarray(v) for v in partition_weight_bounds(case.phi, kappa))
    largest, constant = float(kappa.max()), float(partition_constant(case.phi, kappa))
    off = float(np.abs(share - case.phi).max())
    found = {
        "constant": constant,
        "largest_kappa": largest,
        "bound": constant * largest,
        "lower": lower,
        "upper": upper,
        "seen": share,
        "seen_deviation": off,
    }
    start = np.asarray(e.log_part_start)
    extra = ""
    if largest >= 1:
        extra = f"Broken: kappa = {number(largest)} between parts of the partition. "
    elif np.isneginf(start).any():
        extra = f"Broken: no initial mass in part {int(np.isneginf(start).argmax()) + 1}. "
    note = f"Bound {number(found['bound'])}, " if np.isfinite(constant) else ""
    note = f"{note}w in [{numbers(lower)}, {numbers(upper)}]; at T {numbers(share)}, off phi by {number(off)}."
    return _statement("B.4", text, [gone], found, note, extra)


def _merged(case: Case, gone: Statement) -> Statement:
    e = case.evidence
    groups, first = np.asarray(e.groups), np.unique(np.asarray(e.groups))
    phi = np.array([case.phi[groups == g].sum() for g in first])
    total = float(np.asarray(e.rounds.weights[-1]).sum())
    seen = np.asarray(e.group_end)[first] / total if total > 0 else np.full(first.size, np.nan)
    lower, upper = (np.asarray(v)[first] for v in (e.group_lower, e.group_upper))
    found = {
        "groups": [np.flatnonzero(groups == g) for g in first],
        "phi": phi,
        "lower": lower,
        "upper": upper,
        "seen": seen,
    }
    empty = np.isneginf(np.asarray(e.log_group_start)[first])
    extra = "Broken: a group has no initial mass. " if empty.any() else ""
    names = "; ".join(", ".join(f"S_{i + 1}" for i in np.flatnonzero(groups == g)[:4]) for g in first[:4])
    note = f"Groups {names}, with phi {numbers(phi)}: weights in [{numbers(lower)}, {numbers(upper)}]; at T {numbers(seen)}."
    return _statement("B.4 merged", "Basins that overlap, taken together", [gone], found, note, extra)


def _fair_share(case: Case) -> Statement:
    e = case.evidence
    seen = np.asarray(e.rounds.log_z[-1])
    # Relative to the best reward: Z_i / max e^r_i is a share.
    shares = np.exp(seen - np.asarray(e.log_best_with_mass))
    found = {"floor": case.phi, "seen": shares}
    note = f"Z_i / max exp(r_i / tau) at T: {numbers(shares)}; in the limit at least phi_i."
    return Statement(
        "fair share", "", "In the limit Z_i >= phi_i max exp(r_i / tau), for any rewards", HOLDS, found, note
    )


def _finite_means(means: Any) -> np.ndarray:
    """Means with zeros where a basin has no mass: its weight is zero there."""
    return np.nan_to_num(np.asarray(means), nan=0.0)
