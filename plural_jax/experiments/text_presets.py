"""Sizes of the text experiments: seconds on made-up texts, two hours on a laptop, a day on a GPU."""

from __future__ import annotations

from dataclasses import dataclass

from plural_jax.models import TextTraining


@dataclass(frozen=True)
class Preset:
    """Everything that decides what a run costs.

    Attributes:
        network: name of a GPT-2 preset.
        length: of texts in tokens.
        pretraining_rounds: rounds of pretraining before the first run; a checkpoint follows each.
        num_texts: texts of a round of pretraining.
        pretraining: how it trains.
        refit: how a round of a run refits the model.
        num_initial: real texts that the first pool consists of.
        num_candidates: texts generated in a round.
        num_curated: curated draws of a round.
        num_steps: rounds of retraining.
        num_reference: texts of the pretrained model from which the prediction takes its lengths.
        num_held_out: texts of the test split on which the loss is watched.
        target: the shorter target length, in words.
        synthetic: whether texts are made up, in place of WikiText-2.
    """

    network: str
    length: int
    pretraining_rounds: int
    num_texts: int
    pretraining: TextTraining
    refit: TextTraining
    num_initial: int = 1000
    num_candidates: int = 200
    num_curated: int = 200
    num_steps: int = 20
    num_reference: int = 1000
    num_held_out: int = 256
    target: float = 10.0
    synthetic: bool = False


PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        network="tiny",
        length=24,
        pretraining_rounds=6,
        num_texts=1024,
        pretraining=TextTraining(num_epochs=1, batch_size=32, buckets=(), learning_rate=1e-2, warm_up=16, decay=192),
        refit=TextTraining(num_epochs=2, batch_size=8, buckets=(), learning_rate=1e-3),
        num_initial=200,
        num_candidates=64,
        num_curated=64,
        num_steps=4,
        num_reference=256,
        num_held_out=64,
        target=3.0,
        synthetic=True,
    ),
    "cpu": Preset(
        network="paper",
        length=64,
        pretraining_rounds=30,
        num_texts=1536,
        pretraining=TextTraining(num_epochs=1, batch_size=32, learning_rate=1e-3, warm_up=100, decay=1440),
        refit=TextTraining(),
        num_held_out=128,
    ),
    "paper": Preset(
        network="paper",
        length=128,
        pretraining_rounds=200,
        num_texts=8192,
        pretraining=TextTraining(
            num_epochs=1, batch_size=64, buckets=(32, 64), learning_rate=1e-3, warm_up=500, decay=25_600
        ),
        refit=TextTraining(buckets=(32, 64)),
        num_reference=10_000,
        num_held_out=3000,
    ),
}
