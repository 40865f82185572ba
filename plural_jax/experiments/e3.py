"""E3: a flow on CIFAR-10 retrained on its own curated images (Table 1, Figure 4), beside what the exact densities predict.

More balanced preferences keep more classes alive; with two, the entropy of the classes falls as phi leaves 1/2. Leakage is the
share of an active preference's draws that the classifier takes for another class (E8).
"""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from plural_jax import figures, labels
from plural_jax import run as run_process
from plural_jax.data import CLASSES
from plural_jax.experiments import arms, image_arms, image_theory, images
from plural_jax.experiments.base import Experiment, config_of, entropy, study, titled
from plural_jax.process import Meter
from plural_jax.progress import meter

Config = images.Config


def run(config: Config, store: Path | None = None, progress: bool | Meter = False) -> xr.Dataset:
    """All arms, one after another; those that are finished, and rounds of the one that was interrupted, are not run again."""
    return run_named("e3", config, store, progress)


def run_named(name: str, config: Config, store: Path | None, progress: bool | Meter) -> xr.Dataset:
    """The arms of a configuration as experiment `name`: rounds 0 (the pretrained flow) to T."""
    chosen = {arm: image_arms.get(arm) for arm in config.arms}
    shown = meter(progress)
    setup = images.prepare(config, shown)
    study_of = study(name, _plain(config))
    told = {"classifier": setup.classifier, "num_images": len(setup.real), "classes": list(CLASSES)}
    attrs = labels.plain_attrs({**study_of, **told, "arms": list(chosen)})
    found = []
    for arm_name, arm in chosen.items():
        compute = partial(_arm, config, setup, arm, arms.NamedMeter(shown, arm.title))
        found.append(arms.kept(store, arm_name, attrs, compute))
    dataset = xr.concat(found, dim="arm", combine_attrs="override").assign_coords(arm=np.arange(len(chosen)))
    return arms.together(store, dataset.drop_attrs(deep=False).assign_attrs(attrs))


def _plain(config: Config) -> Config:
    """The configuration without where its files lie, which is no part of a result, but with the sizes of its preset."""
    sized = images.sized(config)
    own = {name: getattr(sized, name) for name in ("num_steps", "num_candidates", "num_curated", "classes")}
    return dataclasses.replace(config, data=None, classifier=None, inception=None, cache=None, **own)


def _arm(config: Config, setup: images.Setup, arm: image_arms.Arm, shown: Meter, folder: Path | None) -> xr.Dataset:
    process = images.process_of(config, setup, arm)
    first, going = jax.random.split(jax.random.key(config.seed + 1))
    state = arms.first_state(process, first)
    look = jax.jit(images.look_at, static_argnums=2)
    logits, _ = look(setup.look, state.candidates, setup.preset.batch_size)
    before = images.measured(setup, state.candidates)
    _, trace = run_process(
        process,
        state,
        setup.preset.num_steps,
        key=going,
        checkpoint=folder,
        checkpoint_every=None if folder is None else 1,
        progress=shown,
    )
    theory = image_theory.predict(
        np.asarray(jax.nn.softmax(logits, 1), np.float64), images.classes_of(setup.preset), np.asarray(arm.phi), config.gamma,
        config.temperature, config.pool_size, setup.preset.num_steps,
    )  # fmt: skip
    rewards = np.asarray(state.rewards, np.float64)
    start = {
        "reward_mean": rewards.mean(1), "reward_variance": rewards.var(1),
        **{name: np.asarray(value) for name, value in before._asdict().items()},
    }  # fmt: skip
    values = {
        name: getattr(trace, name) for name in ("reward_mean", "reward_variance", "drawn", "leakage", "num_distinct")
    }
    values |= trace.measured._asdict()
    dims = {
        "reward_mean": ("preference",),
        "reward_variance": ("preference",),
        "drawn": ("preference",),
        "leakage": ("preference",),
        "class_shares": ("class",),
        "shown": ("image", "y", "x", "channel"),
    }
    arrays: dict[str, Any] = {}
    for name, value in values.items():
        later = np.asarray(value)
        zero = np.asarray(start.get(name, np.full(later.shape[1:], np.nan)))
        kind = later.dtype if name in start else np.float32
        arrays[name] = (("step", *dims.get(name, ())), np.concatenate([zero[None].astype(kind), later.astype(kind)]))
    for name, share in theory._asdict().items():
        arrays[f"predicted_share_{name}"] = (("step", "class"), share.astype(np.float32))
    arrays["phi"] = (("preference",), np.asarray(arm.phi))
    coords = {"step": np.arange(setup.preset.num_steps + 1), "class": np.arange(len(CLASSES))}
    return xr.Dataset(arrays, coords=coords)


def arms_of(ds: xr.Dataset) -> list[image_arms.Arm]:
    """The arms of a dataset, in the order of its dimension."""
    return [image_arms.get(name) for name in json.loads(ds.attrs["arms"])]


def tables(ds: xr.Dataset) -> dict[str, pd.DataFrame]:
    """Table 1 after the last round beside the paper's, and leakage (E8)."""
    config, rows, leaks = config_of(ds), [], []
    for number, arm in enumerate(arms_of(ds)):
        at = ds.isel(arm=number)
        last, first = at.isel(step=-1), at.isel(step=0)
        printed = arm.printed or (np.nan,) * 5
        rows.append(
            {
                "arm": arm.title,
                "Frechet": float(last.classifier_frechet),
                "entropy": float(last.class_entropy),
                "predicted": float(entropy(last.predicted_share_samples)),
                "KL": float(last.kl_to_uniform),
                "feature var": float(last.feature_variance),
                "intra-class var": float(last.intra_class_variance),
                "paper: FID": printed[0],
                "entropy ": printed[1],
                "KL ": printed[2],
                "feature var ": printed[3],
                "intra-class var ": printed[4],
            }
        )
        for i in np.flatnonzero(np.asarray(arm.phi)):
            later = at.leakage.isel(preference=i, step=slice(1, None))
            number_of = CLASSES.index(config["classes"][i])
            share = at.class_shares.isel({"class": number_of})
            leaks.append(
                {
                    "arm": arm.title,
                    "class": config["classes"][i],
                    "phi": arm.phi[i],
                    "leakage, first round": float(later[0]),
                    "last round": float(later[-1]),
                    "share before": float(share[0]),
                    "share after": float(share[-1]),
                    "predicted": float(last.predicted_share_samples.isel({"class": number_of})),
                }
            )
    start = (
        f"before: entropy {float(first.class_entropy):.3f}, Frechet {float(first.classifier_frechet):.4g}, "
        f"feature var {float(first.feature_variance):.2f}"
    )
    title = (
        f"Table 1 after {config['num_steps']} rounds of {config['num_curated']} from {config['num_candidates']} images "
        f"(preset {config['preset']}, seed {config['seed']}; {start}). FID not computed:\n"
        f"Frechet is a distance in the features of the classifier ({ds.attrs['classifier']}). Variances: real\n"
        "images have 1; predicted = entropy of the exact density on the first candidates."
    )
    leak = "E8. Share of a preference's draws that the classifier takes for another class, and the class's share of all images."
    return {"table1": titled(pd.DataFrame(rows), title), "leakage": titled(pd.DataFrame(leaks), leak)}


def plot(ds: xr.Dataset) -> dict[str, Figure]:
    """Figure 4 beside the predictions, and images of every round and arm."""
    with figures.style():
        return {"figure4": _figure4(ds), "samples": _samples(ds)}


def _figure4(ds: xr.Dataset) -> Figure:
    config, shown = config_of(ds), arms_of(ds)
    looks = _looks(json.loads(ds.attrs["arms"]))
    figure, axes = figures.panels(2, rows=2, width=4.6, height=3.2, sharex=True)
    for number, (arm, look) in enumerate(zip(shown, looks, strict=True)):
        at = ds.isel(arm=number)
        axes[0, 0].plot(ds.step, at.class_entropy, **look, label=arm.title)
        axes[0, 1].plot(ds.step, entropy(at.predicted_share_samples), **look)
        axes[0, 1].plot(ds.step, entropy(at.predicted_share_classes), **{**look, "ls": ":", "lw": 1})
        axes[1, 0].plot(ds.step, at.classifier_frechet, **look)
        axes[1, 1].plot(ds.step, at.feature_variance, **look)
    axes[0, 1].plot([], [], color="0.4", label="on samples")
    axes[0, 1].plot([], [], color="0.4", ls=":", lw=1, label="on classes")
    axes[0, 1].legend(title="exact density")
    for ax, text in zip(
        axes.flat,
        ("experiment: class entropy (nats)", "predicted: class entropy (nats)", "Fréchet distance in classifier features",
         "feature variance (real images = 1)"),
        strict=True,
    ):  # fmt: skip
        ax.set_title(text)
        ax.set_ylim(bottom=0)
    for ax in axes[0]:
        ax.set_ylim(0, 2.4)
    for ax in axes[1]:
        ax.set_xlabel("round")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper")
    figures.caption(figure, _parameters(ds, config))
    return figure


def _looks(names: list[str]) -> list[dict[str, Any]]:
    """A line for each arm: balanced ones in a sequence of colours, polarized ones dashed in another, baselines by themselves."""
    balanced = [n for n in names if n in ("two", "three", "four", "five")]
    polarized = [n for n in names if n in image_arms.TABLE_1 and n not in balanced]
    others = [n for n in names if n not in image_arms.TABLE_1]
    looks: dict[str, dict[str, Any]] = {
        n: {"color": c} for n, c in zip(balanced, figures.sequence_colors(len(balanced)), strict=True)
    }
    warm = figures.sequence_colors(len(polarized), "inferno", last=0.75)
    looks |= {n: {"color": c, "ls": "--"} for n, c in zip(polarized, warm, strict=True)}
    own = (figures.PREFERENCE_COLORS * len(others))[: len(others)]
    looks |= {n: {"color": c, "ls": "-."} for n, c in zip(others, own, strict=True)}
    return [looks[n] for n in names]


def _samples(ds: xr.Dataset) -> Figure:
    """Images by round (rows within an arm); in a round every arm starts from the same noise."""
    config, shown_arms = config_of(ds), arms_of(ds)
    last = ds.sizes["step"] - 1
    rounds = sorted({0, last // 2, last})
    columns = min(ds.sizes["image"], 12)
    figure, axes = figures.panels(1, rows=len(shown_arms), width=0.62 * columns, height=0.62 * len(rounds) + 0.25)
    for number, (ax, arm) in enumerate(zip(axes[:, 0], shown_arms, strict=True)):
        shown = ds.shown.isel(arm=number, step=rounds, image=slice(0, columns)).values.astype(np.uint8)
        framed = np.pad(shown, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        size = framed.shape[2]
        ax.imshow(
            framed.transpose(0, 2, 1, 3, 4).reshape(size * len(rounds), size * columns, 3), interpolation="nearest"
        )
        ax.set_title(arm.title, loc="left")
        ax.set_xticks([])
        ax.set_yticks(size * (0.5 + np.arange(len(rounds))), [f"round {t}" for t in rounds], fontsize=7)
        ax.grid(False)
        ax.tick_params(length=0)
        for side in ax.spines.values():
            side.set_visible(False)
    figures.caption(figure, f"In a round all arms start from the same noise; {_parameters(ds, config)}")
    return figure


def _parameters(ds: xr.Dataset, config: dict[str, Any]) -> str:
    return (
        f"preferences for {', '.join(config['classes'])}; γ = {config['gamma']:g}, temperature {config['temperature']:g}, "
        f"K = {config['pool_size']}; {config['num_curated']} curated of {config['num_candidates']} images a round; "
        f"preset {config['preset']}, seed {config['seed']}; classifier: {ds.attrs['classifier']}"
    )


EXPERIMENT = Experiment(
    "e3", "a flow on CIFAR-10 under one to five preferences (Table 1, Figure 4), beside the prediction", Config, run,
    tables, plot,
)  # fmt: skip
