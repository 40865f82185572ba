"""Axes of a sweep as options: `--phi 0.1:0.9:9`, `--distance 1 2 3 5`, `--pool-size 2 10 inf`."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import tyro


def parse_axis(words: list[str]) -> tuple[float, ...]:
    """Numbers from words: each a number (`inf` included) or `start:stop:num`, evenly spaced with both ends.

    Raises:
        ValueError: a word that is neither.

    Example:
        >>> parse_axis(["0.1:0.5:3", "0.9"])
        (0.1, 0.3, 0.5, 0.9)
    """
    values: list[float] = []
    for word in words:
        parts = word.split(":")
        try:
            if len(parts) == 1:
                values.append(float(parts[0]))
                continue
            start, stop, num = float(parts[0]), float(parts[1]), int(parts[2])
            if len(parts) != 3 or num < 1:
                raise ValueError
        except (ValueError, IndexError):
            raise ValueError(
                f"{word!r} is neither a number nor START:STOP:NUM (such as 0.1:0.9:9, nine values from 0.1 to 0.9); spaces "
                "separate values, as in 0.1 0.3 0.5."
            ) from None
        # Rounding gives 0.3 where linspace gives 0.30000000000000004, so that labels can be typed.
        values.extend(round(float(v), 12) for v in np.linspace(start, stop, num))
    if not values:
        raise ValueError("an axis needs at least one number.")
    return tuple(values)


def _words(values: tuple[float, ...]) -> list[str]:
    return ["inf" if math.isinf(v) else f"{v:g}" for v in values]


#: A tuple of numbers that the command line reads with `parse_axis`.
Axis = Annotated[
    tuple[float, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="X|START:STOP:NUM",
        instance_from_str=parse_axis,
        is_instance=lambda value: isinstance(value, tuple) and all(isinstance(v, (int, float)) for v in value),
        str_from_instance=_words,
    ),
]
