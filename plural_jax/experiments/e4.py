"""E4: a GPT-2 retrained on its own texts under conflicting length preferences (C.6, Figure 5), beside what the densities predict.

The entropy of the lengths stays the higher the further the two target lengths lie apart; with one preference it falls to that of
one length. Leakage is the share of a preference's draws that lie in the other's length bin (E8, C.7).
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import figures, labels
from plural_jax import run as run_process
from plural_jax.experiments import arms, text_theory, texts
from plural_jax.experiments.base import Experiment, config_of, entropy, study, titled
from plural_jax.process import Meter
from plural_jax.progress import meter

Config = texts.Config


class Arm(NamedTuple):
    """One way of retraining: its name, its title, weights of the preferences and their targets in words."""

    name: str
    title: str
    phi: tuple[float, float]
    targets: tuple[float, float]


def arms_of(config: Config, target: float) -> list[Arm]:
    """The arms of a configuration: a single preference for the shorter target, then the distances as given.

    Example:
        >>> [arm.name for arm in arms_of(Config(distance=(5.0, 20.0)), 10.0)]
        ['single', 'distance-5', 'distance-20']
    """
    found = []
    if config.single:
        found.append(Arm("single", f"single, {target:g} words", (1.0, 0.0), (target, target)))
    for d in config.distance:
        title = f"distance {d:g}"
        found.append(Arm(f"distance-{d:g}", title, (config.phi, 1 - config.phi), (target, target + d)))
    return found


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """All arms and seeds; those that are finished, and rounds of those that were interrupted, are not run again."""
    shown = meter(progress)
    preset = texts.sized(config)
    chosen = arms_of(config, preset.target)
    setup = texts.prepare(config, shown)
    told = {"arms": [arm.name for arm in chosen], "titles": [arm.title for arm in chosen], "losses": setup.losses}
    attrs = labels.plain_attrs({**study("e4", _plain(config, preset)), **told})
    runs = [(arm, seed) for arm in chosen for seed in range(config.num_seeds)]
    found = []
    for first in range(0, len(runs), config.together):
        group = runs[first : first + config.together]
        names = [f"{arm.name}-seed-{seed}" for arm, seed in group]
        title = f"{group[0][0].title}, seed {group[0][1]}" + (f" and {len(group) - 1} more" if group[1:] else "")
        compute = partial(_group, config, setup, group, arms.NamedMeter(shown, title))
        name = names[0] if len(names) == 1 else f"{names[0]}-to-{names[-1]}"
        found.append(arms.kept(store, name, attrs, compute))
    whole = xr.concat(found, dim="run", combine_attrs="drop")
    shape = {"arm": len(chosen), "seed": config.num_seeds}
    index = pd.MultiIndex.from_product([range(n) for n in shape.values()], names=list(shape))
    dataset = whole.assign_coords(xr.Coordinates.from_pandas_multiindex(index, "run")).unstack("run")
    return arms.together(store, dataset.transpose("arm", "seed", ...).assign_attrs(attrs))


def _plain(config: Config, preset: Any) -> Config:
    """The configuration without where its files lie and how its runs share a device, but with the sizes of its preset."""
    own = {name: getattr(preset, name) for name in ("num_steps", "num_candidates", "num_curated", "target")}
    return dataclasses.replace(config, data=None, encoding=None, model=None, cache=None, together=1, **own)


def _group(
    config: Config, setup: texts.Setup, group: list[tuple[Arm, int]], shown: Meter, folder: Path | None
) -> xr.Dataset:
    """Runs that share the device, rounds 0 to T, along a dimension `run`."""
    num_steps = setup.preset.num_steps
    runs = texts.Runs(
        jnp.asarray([arm.phi for arm, _ in group], jnp.float32),
        jnp.asarray([arm.targets for arm, _ in group], jnp.float32),
        jnp.asarray([seed for _, seed in group], jnp.int32),
    )
    process = texts.process_of(config, setup, runs)
    first, going = jax.random.split(jax.random.key(config.seed + 1))
    state = arms.first_state(process, first)
    measure = texts.measuring(setup)
    before = _measured(measure, state.params, state.candidates)
    rewards = np.asarray(state.rewards, np.float64)
    start = {"reward_mean": rewards.mean(-1), "reward_variance": rewards.var(-1), **before._asdict()}
    _, trace = run_process(
        process,
        state,
        num_steps,
        key=going,
        checkpoint=folder,
        checkpoint_every=None if folder is None else 1,
        progress=shown,
    )
    names = ("reward_mean", "reward_variance", "allocation", "drawn", "leakage", "num_distinct", "num_joined")
    values = {name: getattr(trace, name) for name in names} | trace.measured._asdict()
    dims: dict[str, tuple[str, ...]] = {
        name: ("preference",) for name in ("reward_mean", "reward_variance", "allocation", "drawn", "leakage")
    }
    dims |= {"length_share": ("words",), "shown": ("text", "byte")}
    arrays: dict[str, Any] = {}
    for name, value in values.items():
        later = np.moveaxis(np.asarray(value), 1, 0)  # [run, step, ...]
        zero = np.asarray(start.get(name, np.full((len(group), *later.shape[2:]), np.nan)))[:, None]
        kind = later.dtype if name in start else np.float32
        whole = np.concatenate([zero.astype(kind), later.astype(kind)], axis=1)
        if name == "shown":
            whole = _as_bytes(setup.codes, whole)
        arrays[name if name != "words" else "mean_words"] = (("run", "step", *dims.get(name, ())), whole)
    predicted = [
        text_theory.predict(
            setup.share, np.asarray(arm.phi), np.asarray(arm.targets), config.temperature, config.pool_size, num_steps
        )
        for arm, _ in group
    ]
    arrays["predicted_share"] = (("run", "step", "words"), np.stack(predicted).astype(np.float32))
    arrays["phi"] = (("run", "preference"), np.asarray(runs.phi))
    arrays["target"] = (("run", "preference"), np.asarray(runs.targets))
    coords = {"step": np.arange(num_steps + 1), "words": np.arange(setup.preset.length + 1)}
    return xr.Dataset(arrays, coords=coords)


@jax.jit
def _measured(measure: Any, params: Any, candidates: jax.Array) -> Any:
    """What is measured of each run, one after another."""
    return jax.lax.map(lambda given: measure(*given), (params, candidates))


def _as_bytes(codes: Any, shown: np.ndarray) -> np.ndarray:
    """Texts as UTF-8, uint8 [..., text, byte], filled up with zeros: every store can hold them."""
    flat = shown.reshape(-1, shown.shape[-1])
    found = np.zeros((len(flat), texts.BYTES_SHOWN), np.uint8)
    for row, text in zip(found, codes.decode(flat), strict=True):
        content = np.frombuffer(text.encode()[: texts.BYTES_SHOWN], np.uint8)
        row[: len(content)] = content
    return found.reshape(*shown.shape[:-1], texts.BYTES_SHOWN)


def text_of(shown: np.ndarray | xr.DataArray) -> str:
    """A text from its bytes, [byte].

    Example:
        >>> text_of(np.frombuffer(b"it rains" + bytes(2), np.uint8))
        'it rains'
    """
    return np.asarray(shown, np.uint8).tobytes().rstrip(b"\0").decode(errors="ignore")


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Lengths after the last round beside the prediction, leakage (E8), and texts by round."""
    config, titles = config_of(ds), json.loads(ds.attrs["titles"])
    rows, samples = [], []
    for number, title in enumerate(titles):
        at = ds.isel(arm=number)
        last, first = at.isel(step=-1), at.isel(step=0)
        row: dict[str, Any] = {
            "arm": title,
            "entropy before": float(first.length_entropy.mean()),
            "after": float(last.length_entropy.mean()),
            "sd": float(last.length_entropy.std()),
            "predicted": float(entropy(last.predicted_share.isel(seed=0))),
            "words before": float(first.mean_words.mean()),
            "after ": float(last.mean_words.mean()),
        }
        for i in range(ds.sizes["preference"]):
            own = float(at.phi.isel(seed=0, preference=i)) > 0
            row[f"in bin {i + 1}"] = float(last.allocation.isel(preference=i).mean()) if own else np.nan
            row[f"leakage {i + 1}"] = float(last.leakage.isel(preference=i).mean()) if own else np.nan
        row["held-out loss"] = float(last.held_out_loss.mean())
        rows.append(row)
        for step in sorted({0, ds.sizes["step"] // 2, ds.sizes["step"] - 1}):
            for shown in at.shown.isel(seed=0, step=step, text=slice(0, 3)):
                text = text_of(shown)
                samples.append({"arm": title, "round": step, "words": len(text.split()), "text": text})
    losses = json.loads(ds.attrs["losses"])
    told = f" (before pretraining {losses['before']:.2f})" if "before" in losses else ""
    title = (
        f"E4. Lengths of {config['num_candidates']} texts after {config['num_steps']} rounds of {config['num_curated']} curated, "
        f"shorter target {config['target']:g}\n(preset {config['preset']}, {config['num_seeds']} seeds, seed {config['seed']}, "
        f"temperature {config['temperature']:g}). Entropy in nats; predicted: of the exact density;\na bin is a target "
        f"± {config['width']:g} words. Pretrained model: {losses['after']:.3f} nats a token on held-out texts{told}."
    )
    return {
        "lengths": titled(pd.DataFrame(rows), title),
        "samples": titled(pd.DataFrame(samples), "Texts by round, first seed."),
    }


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Figure 5 beside the prediction, and the lengths before and after."""
    with figures.style():
        return {"figure5": _figure5(ds), "lengths": _lengths(ds)}


def _colors(ds: xr.Dataset) -> list[Any]:
    names = json.loads(ds.attrs["arms"])
    apart = iter(figures.sequence_colors(sum(name != "single" for name in names)))
    return ["black" if name == "single" else next(apart) for name in names]


def _figure5(ds: xr.Dataset) -> Figure:
    figure, axes = figures.panels(3, width=3.5, height=3.1)
    for number, (title, color) in enumerate(zip(json.loads(ds.attrs["titles"]), _colors(ds), strict=True)):
        at = ds.isel(arm=number)
        style = {"color": color, "ls": "--" if color == "black" else "-"}
        seen = at.length_entropy
        axes[0, 0].plot(ds.step, seen.mean("seed"), **style, label=title)
        axes[0, 0].fill_between(ds.step, seen.min("seed"), seen.max("seed"), color=color, alpha=0.2, lw=0)
        axes[0, 1].plot(ds.step, entropy(at.predicted_share.isel(seed=0)), **style)
        axes[0, 2].plot(ds.step, at.mean_words.mean("seed"), **style)
        for target in np.unique(at.target.isel(seed=0)):
            axes[0, 2].axhline(target, color=color, lw=0.6, ls=":")
    for ax, text in zip(
        axes[0],
        ("experiment: entropy of lengths (nats)", "exact density: entropy (nats)", "mean words (dotted: targets)"),
        strict=True,
    ):
        ax.set_title(text)
        ax.set_xlabel("round")
        ax.set_ylim(bottom=0)
    highest = max(ax.get_ylim()[1] for ax in axes[0, :2])
    for ax in axes[0, :2]:
        ax.set_ylim(0, highest)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    figures.caption(figure, f"Bands: least and greatest of {ds.sizes['seed']} seeds; {_parameters(ds)}")
    return figure


def _lengths(ds: xr.Dataset) -> Figure:
    titles, colors = json.loads(ds.attrs["titles"]), _colors(ds)
    figure, axes = figures.panels(len(titles), width=2.9, height=2.8, sharex=True, sharey=True)
    for number, (ax, title, color) in enumerate(zip(axes[0], titles, colors, strict=True)):
        at = ds.isel(arm=number)
        share = at.length_share.mean("seed")
        ax.step(ds.words, share.isel(step=0), where="mid", color="0.6", label="before")
        ax.step(ds.words, share.isel(step=-1), where="mid", color=color, label=f"round {int(ds.step[-1])}")
        for target in np.unique(at.target.isel(seed=0)):
            ax.axvline(target, color="0.3", lw=0.8, ls=":")
        ax.set_title(title)
        ax.set_xlabel("words")
        ax.legend()
    axes[0, 0].set_ylabel("share of texts")
    figures.caption(figure, f"Dotted: targets; {_parameters(ds)}")
    return figure


def _parameters(ds: xr.Dataset) -> str:
    config = config_of(ds)
    pool = "whole pool" if config["pool_size"] is None else f"K = {config['pool_size']}"
    return (
        f"φ = {config['phi']:g}, temperature {config['temperature']:g} words, {pool}; {config['num_curated']} curated and "
        f"{config['num_candidates']} generated in a round; preset {config['preset']}, seed {config['seed']}"
    )


EXPERIMENT = Experiment(
    "e4", "GPT-2 under two length preferences (Figure 5), beside the prediction", Config, run, tables, plot
)
