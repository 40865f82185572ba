"""Sizes of the image experiments: seconds on synthetic images, an hour or two on a laptop, minutes or a day on a large GPU."""

from __future__ import annotations

from dataclasses import dataclass

from plural_jax.data import CLASSES
from plural_jax.models import FlowTraining, Integrator


@dataclass(frozen=True)
class Preset:
    """Everything that decides what an arm costs.

    Attributes:
        network: name of a U-Net preset.
        coarse: height and width of the images that the flow models, their lowest frequencies; None for all of them.
        dtype: in which the network computes.
        pretraining_rounds: rounds of `pretraining` before the first arm; a checkpoint follows each.
        pretraining: how one of these rounds trains.
        refit: how a round of an arm refits the flow.
        integrator: how samples are made.
        batch_size: samples that are made or looked at together.
        num_candidates: generated in a round.
        num_curated: curated draws of a round.
        num_steps: rounds of retraining.
        classes: what the preferences prefer, by name. A basin needs mass from the start (Assumption 1): a small flow makes hardly
            any airplanes or cars, so its preset takes classes that it does make.
        synthetic: height and width of synthetic images, in place of CIFAR-10.
    """

    network: str
    pretraining_rounds: int
    pretraining: FlowTraining
    refit: FlowTraining
    integrator: Integrator
    batch_size: int
    num_candidates: int
    num_curated: int
    num_steps: int
    classes: tuple[str, ...] = CLASSES[:5]
    coarse: int | None = None
    dtype: str = "float32"
    synthetic: int | None = None


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        network="tiny",
        pretraining_rounds=4,
        pretraining=FlowTraining(num_steps=160, batch_size=64, learning_rate=4e-3, decay=640, average=0.95, flip=False),
        refit=FlowTraining(num_steps=64, batch_size=32, learning_rate=1e-3, warm_up=16, average=0.9, flip=False),
        integrator=Integrator("euler", num_steps=8),
        batch_size=64,
        num_candidates=256,
        num_curated=64,
        num_steps=4,
        synthetic=8,
    ),
    "cpu": Preset(
        network="3M",
        coarse=24,
        classes=("deer", "dog", "cat", "frog", "ship"),
        pretraining_rounds=70,
        pretraining=FlowTraining(
            num_steps=100, batch_size=64, learning_rate=1e-3, warm_up=100, decay=7000, average=0.998
        ),
        refit=FlowTraining(num_steps=64, batch_size=64, learning_rate=3e-4, warm_up=10, average=0.95),
        integrator=Integrator("midpoint", num_steps=8),
        batch_size=250,
        num_candidates=1000,
        num_curated=250,
        num_steps=10,
    ),
    "gpu": Preset(
        network="19M",
        pretraining_rounds=10,
        pretraining=FlowTraining(
            num_steps=500, batch_size=128, learning_rate=4e-4, warm_up=300, decay=5000, average=0.998
        ),
        refit=FlowTraining(num_steps=64, batch_size=128, learning_rate=2e-4, warm_up=10, average=0.95),
        integrator=Integrator("midpoint", num_steps=8),
        batch_size=500,
        num_candidates=2000,
        num_curated=500,
        num_steps=10,
        dtype="bfloat16",
    ),
    "paper": Preset(
        network="paper",
        pretraining_rounds=300,
        pretraining=FlowTraining(num_steps=1000, batch_size=128, learning_rate=2e-4, warm_up=5000, average=0.9999),
        refit=FlowTraining(num_steps=400, batch_size=128, learning_rate=1e-4, warm_up=50, average=0.99),
        integrator=Integrator("dopri5", rtol=1e-5, atol=1e-5),
        batch_size=1000,
        num_candidates=50_000,
        num_curated=2500,
        num_steps=25,
        dtype="bfloat16",
    ),
}
