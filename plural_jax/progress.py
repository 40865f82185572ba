"""Progress meters. The library is silent by default; a meter is told what happened between compiled pieces."""

from __future__ import annotations

from typing import Any

from plural_jax.process import Meter, NoMeter


class RichMeter:
    """A progress bar with the time left, on standard error.

    Example:
        >>> import plural_jax as pj
        >>> meter = pj.progress.RichMeter()
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def describe(self, text: str) -> None:
        """Say what is going on before the amount of work is known."""
        self._show(text, None)

    def start(self, total: int, description: str) -> None:
        """Show an empty bar."""
        self._show(description, total)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        self._bar.advance(self._task, amount)

    def stop(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show(self, description: str, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is not None:  # the time left counts from now, without the compilation
            self._bar.remove_task(self._task)
        else:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
        self._task = self._bar.add_task(description, total=total)


def meter(progress: bool | Meter) -> Meter:
    """The meter that an argument `progress` asks for: True is a bar, False nothing, a meter itself."""
    if progress is True:
        return RichMeter()
    return NoMeter() if progress is False else progress
