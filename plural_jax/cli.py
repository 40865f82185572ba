"""The command line: `plural-jax sweep`, `limit`, `audit`, `run NAME`, `reproduce`, `report` and `list`.

Options carry the names of the parameters they set. Input that cannot be used ends in one sentence and a non-zero exit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from plural_jax import hosts

_USAGE = """usage: plural-jax COMMAND ...

commands:
  sweep       sweep the exact dynamics over phi, distance, pool size, ... (the main job)
  limit       where retraining on these preferences ends, exactly, with a certificate
  audit       which of the paper's assumptions and results hold for these preferences
  run NAME    run an experiment of the paper or of ours:
              {names}
  train-classifier
              train the classifier that gives rewards to images
  reproduce   run everything at one size (quick, cpu or paper), and make one page of it
  report RUN...
              one HTML page about finished runs, which opens without a network
  list        say what there is to run

`plural-jax COMMAND --help` and `plural-jax run NAME --help` list all options.
"""
_COMMANDS = ("sweep", "limit", "audit", "run", "train-classifier", "reproduce", "report", "list")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that every command shares."""

    out: Path | None = None
    """Folder for the results; default: runs/NAME."""
    resume: bool = False
    """Continue an interrupted run in the same folder."""
    x64: bool = False
    """Compute in float64 instead of float32."""
    devices: int | None = None
    """CPU devices to spread over; default: one for each core. Ignored on a GPU or TPU."""
    show: bool = True
    """Open the first figure when there is a screen."""
    progress: bool = True
    """Show a progress bar."""
    part: str | None = None
    """Compute one part of a sweep, such as 3/16 for the third of sixteen: for a job array, whose tasks share the folder."""
    animate: bool = False
    """Also write the densities of one configuration, round by round, as animation.gif, and as animation.mp4 where ffmpeg is
    installed: for sweep, c9, e2, e5 and e6."""
    distributed: bool = False
    """Compute one sweep with all processes of a Slurm, MPI, Kubernetes or TPU job, which share the folder."""
    coordinator: str | None = None
    """HOST:PORT of process 0, where no such job says; then also --num-processes and --process-id."""
    num_processes: int | None = None
    """Processes in all."""
    process_id: int | None = None
    """Which of them this one is, from 0."""
    compilation_cache: Path | None = None
    """Folder in which JAX keeps compiled programs, so that the next run of the same shapes need not compile them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except (ValueError, OSError, hosts.MissingPartError) as error:
        print(f"plural-jax: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("plural-jax: interrupted; the same command with --resume continues.", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    from plural_jax import experiments
    from plural_jax._validate import nearest

    known = ", ".join(experiments.EXPERIMENTS)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_USAGE.format(names=known), end="")
        return 0 if words else 2
    command, rest = words[0], words[1:]
    if command in ("-V", "--version", "version"):
        from plural_jax import __version__

        print(__version__)
        return 0
    if command == "list":
        _list()
        return 0
    if command == "sweep":
        return _execute(experiments.SWEEP, rest, "plural-jax sweep")
    if command in ("limit", "audit"):
        _answer(command, rest)
        return 0
    if command == "train-classifier":
        _train(rest)
        return 0
    if command == "report":
        _report(rest)
        return 0
    if command == "reproduce":
        return _reproduce(rest)
    if command == "run":
        if not rest or rest[0] in ("-h", "--help"):
            _list()
            return 0 if rest else 2
        return _execute(experiments.get(rest[0]), rest[1:], f"plural-jax run {rest[0]}")
    meant = f" (did you mean run {command}?)" if command in experiments.EXPERIMENTS else nearest(command, _COMMANDS)
    raise ValueError(f"unknown command {command!r}; choose one of {', '.join(_COMMANDS)}{meant}.")


def _list() -> None:
    from plural_jax import experiments

    print("plural-jax run NAME, with NAME one of:")
    width = max(map(len, experiments.EXPERIMENTS)) + 2
    for name, experiment in experiments.EXPERIMENTS.items():
        print(f"  {name:<{width}}{experiment.title}")
    print("plural-jax sweep:")
    print(f"  {experiments.SWEEP.title}")


def _answer(command: str, words: list[str]) -> None:
    """Answer a question about one landscape, in float64: there is nothing to save."""
    import jax

    from plural_jax import commands

    question: type[Any] = {"limit": commands.Limit, "audit": commands.Audit}[command]
    parse: Callable[..., Any] = tyro.cli
    case = parse(question, prog=f"plural-jax {command}", args=words, description=question.__doc__)
    with jax.enable_x64(True):
        print(commands.answer(case), end="")


def _train(words: list[str]) -> None:
    """Train a classifier; all devices share each batch."""
    from plural_jax import classifier_command

    parse: Callable[..., Any] = tyro.cli
    kind = classifier_command.TrainClassifier
    command = parse(kind, prog="plural-jax train-classifier", args=words, description=kind.__doc__)
    print(classifier_command.train(command), end="")


def _report(words: list[str]) -> None:
    """Make a page about finished runs."""
    from plural_jax import report

    parse: Callable[..., Any] = tyro.cli
    command = parse(report.Report, prog="plural-jax report", args=words, description=report.Report.__doc__)
    print(report.write(command), end="")


def _reproduce(words: list[str]) -> int:
    """Run everything at one size; 1 where something could not run."""
    import jax

    from plural_jax import reproduce

    parse: Callable[..., Any] = tyro.cli
    kind = reproduce.Reproduce
    command = parse(kind, prog="plural-jax reproduce", args=words, description=kind.__doc__)
    with contextlib.suppress(RuntimeError):  # as in `_execute`
        jax.config.update("jax_num_cpu_devices", _num_cores())
    return 1 if reproduce.reproduce(command) else 0


def _execute(experiment: Any, words: list[str], program: str) -> int:
    """Parse the options of one experiment, run it, and say what it left where."""
    import jax

    def command(
        config: Annotated[Any, tyro.conf.arg(name="")], options: Annotated[Any, tyro.conf.arg(name="")]
    ) -> tuple:
        return config, options

    command.__annotations__["config"] = Annotated[experiment.config, tyro.conf.arg(name="")]
    command.__annotations__["options"] = Annotated[Options, tyro.conf.arg(name="")]
    parse: Callable[..., Any] = tyro.cli
    config, options = parse(command, prog=program, args=words, description=experiment.config.__doc__)

    part = _part(options)
    # Chosen here and not in the library: a program that imports plural_jax keeps its own settings.
    if options.x64:
        jax.config.update("jax_enable_x64", True)
    if options.compilation_cache is not None:
        jax.config.update("jax_compilation_cache_dir", str(options.compilation_cache.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs too: there are many
    with contextlib.suppress(RuntimeError):  # a process that already computes with JAX keeps the devices it has
        jax.config.update("jax_num_cpu_devices", options.devices or _num_cores())
    out = options.out or Path("runs") / experiment.name
    if not options.distributed:
        _run(experiment, config, out, options, part)
        return 0
    hosts.join(options.coordinator, options.num_processes, options.process_id)
    try:
        _run(experiment, config, out, options, part)
    except Exception:
        hosts.leave()
        raise
    hosts.leave()
    return 0


def _run(experiment: Any, config: Any, out: Path, options: Options, part: tuple[int, int] | None) -> None:
    """Run one experiment; process 0 says what it left where."""
    import jax

    from plural_jax import experiments
    from plural_jax.experiments.base import render
    from plural_jax.store import SweepStore

    with _compilation() as told:
        shown = options.progress and jax.process_index() == 0
        done = experiments.execute(
            experiment, config, out, resume=options.resume, progress=shown, part=part, animate=options.animate
        )
    if jax.process_index() != 0:
        return
    if part is not None:
        finished = SweepStore(done.folder / "dataset.zarr").finished()
        print(
            f"Part {options.part} is in {done.folder}/dataset.zarr, where {int((~finished).sum())} of {finished.size} batches "
            "are missing now. When every part has run, the same command with --resume and without --part completes the folder."
        )
        return
    print(render(done.tables))
    print(f"Everything is in {done.folder}/: dataset.zarr, config.json, versions.json, table.txt,")
    print("  " + ", ".join(path.name for path in done.figures))
    print(told())
    if options.show and done.figures:
        _open(done.figures[0])


def _part(options: Options) -> tuple[int, int] | None:
    """The options about several processes, checked; `--part 3/16` is (2, 16) in Python, which counts from 0."""
    for name in ("coordinator", "num_processes", "process_id"):
        if getattr(options, name) is not None and not options.distributed:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} needs --distributed, got --{flag} {getattr(options, name)} alone.")
    if options.part is None:
        return None
    if options.distributed:
        raise ValueError(
            f"--part is for processes that know nothing of each other, got --part {options.part} --distributed."
        )
    number, _, count = options.part.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"--part must be K/N with 1 <= K <= N, such as 3/16, got {options.part!r}.")
    return int(number) - 1, int(count)


@contextlib.contextmanager
def _compilation() -> Iterator[Callable[[], str]]:
    """Count what XLA compiles meanwhile, and say it in a sentence."""
    import jax

    seconds: list[float] = []
    hits: list[str] = []

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration_secs)

    def on_event(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    def told() -> str:
        cached = f", {len(hits)} of them from the cache" if hits else ""
        return f"Compiling took {sum(seconds):.1f} s ({len(seconds)} programs{cached})."

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        yield told
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)


def _num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(figure: Path) -> None:
    """Show a figure in the desktop's viewer, where there is a desktop and a person at it."""
    if not sys.stdout.isatty():
        return
    if sys.platform == "darwin":
        opener = ["open"]
    elif sys.platform == "win32":
        opener = ["cmd", "/c", "start", ""]
    elif os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        opener = ["xdg-open"]
    else:
        return
    try:
        subprocess.Popen([*opener, str(figure)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        print(f"(no viewer found; the figure is {figure})")


if __name__ == "__main__":
    sys.exit(main())
