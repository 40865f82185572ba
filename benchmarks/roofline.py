"""Operations and bytes of one cell-step, and how far from the machine's ceilings the library's rounds are.

A cell-step is one cell of one configuration through one round, in float32. A bound is the rate of a round that one ceiling alone
limits; the gap is the lowest bound / what was measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from benchmarks.ceilings import best


class Cost(NamedTuple):
    """Of one cell-step.

    Attributes:
        operations: multiply-adds counted as two operations, and a multiplication alone as two as well, since it takes the same
            instruction.
        bytes: moved between a core and its L2, or memory.
        compute: the ceiling of the operations, the beginning of its name in `ceilings`.
        memory: the ceiling of the bytes.
    """

    operations: float
    bytes: float
    compute: str
    memory: str


def tilt(m: int, configurations: int, together: int = 1) -> Cost:
    """One round, or two from one reading of the masses (`linear_blocks_strides`); shared tables are read twice.

    One: `q W` with `W = sum_i u_i e_i`, and m sums, 2 m + 1 instructions; q is read twice and written once. Two: the factor has
    `m (m + 1) / 2` terms, and there are as many sums besides the m.
    """
    if together == 1:
        return Cost(2.0 * (2 * m + 1), 12.0 + 2 * 4 * m / configurations, "multiply-adds", "in place, L2")
    terms = m * (m + 1) // 2
    return Cost(m + 2.0 * terms + 1, 6.0 + 2 * (m + 2 * terms) / configurations, "multiply-adds", "in place, L2")


def finite_pool(m: int, nodes: int, configurations: int) -> Cost:
    """Two products with a table of m J numbers for each cell, read twice and shared by configurations, and q once more."""
    return Cost(4.0 * m * nodes, 12.0 + 2 * 4 * m * nodes / configurations, "matrix product", "in place, L2")


def roofline(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each workload that was measured beside the ceilings; none without them."""
    if "ceilings" not in results:
        return []
    rates = results["ceilings"]["all cores"]
    rows = []
    for found in results.values():
        for comparison in found.get("comparisons", []):
            shape = comparison["extra"].get("roofline")
            if shape is None:
                continue
            cost = {"tilt": tilt, "finite_pool": finite_pool}[shape["rule"]](**shape["arguments"])
            measured = comparison["work"] / comparison["timings"][shape["contender"]]["median"]
            by_operations = best(rates, cost.compute) * 1e9 / cost.operations
            by_bytes = best(rates, cost.memory) * 1e9 / cost.bytes
            rows.append(
                {
                    "workload": f"{comparison['name']}: {shape['contender']}",
                    **cost._asdict(),
                    "bound by operations": by_operations,
                    "bound by bytes": by_bytes,
                    "measured": measured,
                    "gap": min(by_operations, by_bytes) / measured,
                }
            )
    return rows
