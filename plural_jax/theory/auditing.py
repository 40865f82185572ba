"""The audit: which assumptions of the paper a landscape meets, and what follows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from plural_jax import _validate
from plural_jax._typing import ArrayLike
from plural_jax.density.core import problem
from plural_jax.landscape import Landscape, check_log_mass
from plural_jax.theory.bounds import check_eps
from plural_jax.theory.clauses import Case, assumptions
from plural_jax.theory.evidence import Evidence, cell_of, collect
from plural_jax.theory.report import Audit, Cell
from plural_jax.theory.results import results


def audit(
    landscape: Landscape,
    phi: ArrayLike,
    eps: ArrayLike = 0.1,
    *,
    initial: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    num_steps: int = 100,
    reference: ArrayLike | None = None,
) -> Audit:
    """Check every clause of Assumption 1 on a landscape, and which of the paper's results then apply.

    `rho = sup_t sup_{x outside} W_t(x)`, `Delta_ij = r_i* - max_{S_j} r_i + eps`, `kappa_ij = exp(-(Delta_ij - 2 eps) / tau)`
    (Assumption 1); results by the paper's numbers.

    The large-K dynamics run for T = `num_steps` rounds. What they show is reported for t <= T; the last density also bounds the
    multiplier in all later rounds (`later_rounds`), and where that bound is small enough, a statement about every round is
    proved. With the temperature, rewards, eps and gaps all count in units of tau.

    Args:
        landscape: rewards [m, n].
        phi: weights of the preferences, [m], non-negative, summing to one.
        eps: width of the basins, in units of reward, not negative.
        initial: log-masses p_0, [n]; default: the uniform density. It may leave a basin without mass: that is reported.
        temperature: tau, positive, in units of reward.
        num_steps: T, rounds to run.
        reference: log-masses of a density near the maximum of `sum_i phi_i log E_p[exp(r_i / tau)]`, [n], such as an exact
            limit; used beside p_T, it sharpens what is proved about later rounds.

    Returns:
        An `Audit`: `print(audit)` is a table, `audit["Lemma 4"]` one statement, `audit.to_dict()` plain Python. It was
        computed in the landscape's floating type.

    Raises:
        ValueError: traced arguments (an audit reads numbers on the host); a phi that is no set of weights; a negative eps;
            a temperature that is not positive; log-masses of the wrong length, NaN or without any mass; rounds that are
            not a whole number from 1 on.

    Example:
        >>> import plural_jax as pj
        >>> land = pj.Landscape(rewards=[[4.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
        >>> found = pj.theory.audit(land, phi=[0.4, 0.6])
        >>> found["outside domination"].verdict, found["Lemma 4"].verdict
        ('holds', 'holds')
        >>> print(f"{found['Lemma 4'].numbers['lower']:.3f} {found['Lemma 4'].numbers['seen']:.3f}")
        0.388 0.396

    Source: Assumption 1 and Sec. 3 of the paper, with Appendix B.
    """
    if _validate.is_traced((landscape, phi, eps, initial, temperature, reference)):
        raise ValueError("audit reads its arguments on the host, so it cannot be called inside jit, vmap or grad.")
    num_steps = _validate.positive_integer(num_steps, "num_steps")
    check_eps(eps)
    shared = problem(landscape, phi, temperature, eps)
    for name, value in (("initial", initial), ("reference", reference)):
        if value is not None:
            check_log_mass(value, landscape.num_atoms, name)
    # On the host, where it compiles nothing.
    start = inside = np.asarray(shared.log_uniform)
    if initial is not None:
        start = np.where(inside > -np.inf, np.asarray(initial, landscape.dtype), inside)
    if not (start > -np.inf).any():
        raise ValueError("initial gives no mass to the domain of the landscape.")
    other = None if reference is None else jnp.asarray(reference, landscape.dtype)
    e = collect(landscape, shared, jnp.asarray(start), jnp.asarray(eps, landscape.dtype), other, num_steps)
    largest_z = float(np.abs(np.asarray(e.rounds.log_z)[:, np.asarray(phi) > 0]).max())
    case = Case(
        evidence=e,
        phi=np.asarray(shared.phi, np.float64),
        eps=float(np.asarray(eps)),
        temperature=float(np.asarray(temperature)),
        num_steps=num_steps,
        rounding=float(np.finfo(landscape.dtype).eps) * (64 + 4 * largest_z),
    )
    clauses = assumptions(case)
    return Audit(
        phi=tuple(np.asarray(phi, np.float64).tolist()),
        eps=case.eps,
        temperature=case.temperature,
        num_steps=num_steps,
        num_preferences=landscape.num_preferences,
        num_atoms=landscape.num_atoms,
        dtype=str(landscape.dtype),
        assumptions=clauses,
        results=results(case, clauses),
        worst_cell=_worst(landscape, case, e),
        winner=_winner(landscape, case, e, shared.outside),
    )


def _worst(landscape: Landscape, case: Case, e: Evidence) -> Cell | None:
    """Where the sup of clause (iii) is attained."""
    if not e.any_outside:
        return None
    t = int(np.asarray(e.rounds.log_sup_outside).argmax())
    return cell_of(landscape, case.phi, case.temperature, e, int(e.rounds.cell[t]), t, case.rounding)


def _winner(landscape: Landscape, case: Case, e: Evidence, outside: ArrayLike) -> Cell | None:
    """The outside atom that holds most mass at the end, if it has more than at the start."""
    if not e.any_outside:
        return None
    mass = np.where(np.asarray(outside) > 0, np.asarray(e.log_end), -np.inf)
    index = int(mass.argmax())
    if not np.asarray(e.log_end)[index] > np.asarray(e.log_start)[index]:
        return None
    return cell_of(landscape, case.phi, case.temperature, e, index, case.num_steps, case.rounding)
