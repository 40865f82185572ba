"""What the text experiments share (C.6): texts, encoding, pretrained language model, and runs of retraining.

Rewards are `-|L - T_i|` for the word count L. The model is pretrained once on sentences of WikiText-2, each ended by
end-of-text, and kept in the cache in the layout that other libraries read; all runs start from it. Runs of one seed have the same
pool of real sentences and the same random numbers. Several runs can share a device as one batch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import Partial

from plural_jax import Process, data, metrics, models, retraining, rewards, run
from plural_jax.experiments import arms
from plural_jax.experiments.axis import Axis
from plural_jax.experiments.text_presets import PRESETS, Preset
from plural_jax.process import Meter

#: Texts of every round that are kept, and bytes of each.
NUM_SHOWN, BYTES_SHOWN = 6, 480


@dataclass(frozen=True)
class Config:
    """A language model retrained on its own texts under two preferences for their length (C.6)."""

    preset: Literal["tiny", "cpu", "paper"] = "cpu"
    """Sizes: seconds on made-up texts, the paper's model on a few cores, or more of everything on a GPU."""
    distance: Axis = (5.0, 10.0, 20.0)
    """Distances between the two target lengths, in words."""
    target: float | None = None
    """The shorter target, in words; default: 10, and 3 for made-up texts."""
    single: bool = True
    """Whether a single preference for the shorter target is run too."""
    phi: float = 0.5
    """Weight of the preference for the shorter target."""
    temperature: float = 0.5
    """Temperature of the choice rule, in words."""
    pool_size: int | None = None
    """Candidates that each draw looks at; default: the whole pool."""
    num_seeds: int = 2
    """Runs of each arm."""
    num_steps: int | None = None
    """Rounds of retraining; default: the preset's."""
    num_candidates: int | None = None
    """Texts generated in a round; default: the preset's."""
    num_curated: int | None = None
    """Curated draws of a round; default: the preset's."""
    sampling_temperature: float = 0.8
    """Temperature of the model's own sampling."""
    top_p: float = 0.95
    """Mass of the nucleus that tokens are drawn from."""
    width: float = 2.0
    """Words around a target that count as its bin."""
    together: int = 1
    """Runs that share the device as one batch; more need more memory, and pay on a GPU."""
    data: Path | None = None
    """Folder or archive of WikiText-2; default: where PLURAL_JAX_DATA points, the cache, or a download."""
    encoding: Path | None = None
    """Folder of GPT-2's byte pairs; default: gpt2_bpe in the folder of the texts, or found as they are."""
    model: Path | None = None
    """A pretrained GPT-2 in the Hugging Face layout; default: one that is pretrained here and kept in the cache."""
    cache: Path | None = None
    """Folder for pretrained models; default: the user's cache folder."""
    seed: int = 0
    """Seed of everything."""


class Setup(NamedTuple):
    """Everything that runs have in common.

    Attributes:
        preset: sizes, with what the configuration overrides.
        decoder: the network.
        params: pretrained.
        codes: the encoding.
        counter: words of a text.
        initial: real texts, int32 [n, length].
        held_out: real texts of the test split, int32 [k, length].
        share: of texts of the pretrained model with 0, 1, ... words, [length + 1].
        losses: on the held-out texts, before and after pretraining, in nats a token; and of what the model was pretrained on.
    """

    preset: Preset
    decoder: models.Decoder
    params: Any
    codes: data.BytePairs
    counter: Any
    initial: Array
    held_out: Array
    share: np.ndarray
    losses: dict[str, float]


def sized(config: Config) -> Preset:
    """The preset with what the configuration overrides."""
    own = {name: getattr(config, name) for name in ("num_steps", "num_candidates", "num_curated", "target")}
    for name in ("num_steps", "num_candidates", "num_curated", "num_seeds", "together"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not 0 < config.phi < 1:
        raise ValueError(f"phi must be above 0 and below 1, got {config.phi:g}; single= runs one preference alone.")
    if not config.distance and not config.single:
        raise ValueError("distance must hold at least one distance where single is False, got none.")
    preset = dataclasses.replace(PRESETS[config.preset], **{k: v for k, v in own.items() if v is not None})
    for distance in config.distance:
        if not (distance > 0 and preset.target + distance <= preset.length):
            raise ValueError(
                f"distance must be positive and end at most at the {preset.length} tokens of a text, got {distance:g} from "
                f"target={preset.target:g}."
            )
    return preset


def prepare(config: Config, meter: Meter) -> Setup:
    """Load and encode the texts, and pretrain the model or take it from the cache."""
    preset = sized(config)
    if preset.synthetic:
        rng = np.random.default_rng(config.seed)
        train, test = made_up(rng, 4096), made_up(rng, 256)
        codes = data.small_byte_pairs(train, models.GPT2S[preset.network].num_tokens)
    else:
        train, test = (data.sentences(data.wikitext2(config.data, split=s).lines) for s in ("train", "test"))
        beside = None if config.data is None else Path(config.data) / "gpt2_bpe"
        codes = data.byte_pairs(beside if config.encoding is None and beside and beside.is_dir() else config.encoding)
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(train))
    held_out = jnp.asarray(
        codes.encode([test[i] for i in rng.permutation(len(test))[: preset.num_held_out]], preset.length)
    )
    initial = jnp.asarray(codes.encode([train[i] for i in order[: preset.num_initial]], preset.length))
    if config.model is not None:
        decoder, params = models.load_gpt2(config.model)
        losses = {"after": float(_loss(decoder, params, held_out))}
    else:
        decoder = models.gpt2(preset.network)
        params, losses = pretrained(decoder, preset, codes, [train[i] for i in order], held_out, config, meter)
    counter = rewards.word_counter(codes)
    model = model_of(config, preset, decoder, params)
    reference = jax.jit(model.sample, static_argnums=2)(jax.random.key(config.seed), params, preset.num_reference)
    share = np.bincount(np.asarray(counter(reference)), minlength=preset.length + 1) / preset.num_reference
    return Setup(preset, decoder, params, codes, counter, initial, held_out, share, losses)


def pretrained(
    decoder: models.Decoder, preset: Preset, codes: data.BytePairs, texts: list[str], held_out: Array, config: Config,
    meter: Meter,
) -> tuple[Any, dict[str, float]]:  # fmt: skip
    """Parameters of the model pretrained on real texts, and its losses: from the cache, or trained now and kept there."""
    training = preset.pretraining
    said = json.dumps(
        [
            dataclasses.asdict(decoder.config),
            preset.length,
            preset.pretraining_rounds,
            preset.num_texts,
            {f.name: _plain(getattr(training, f.name)) for f in dataclasses.fields(training)},
            config.seed,
        ]
    ).encode()
    name = hashlib.sha256(said + "\n".join(texts).encode()).hexdigest()[:16]
    folder = Path(config.cache or data.cache_folder() / "texts") / f"{preset.network}-{name}"
    if not (folder / "losses.json").exists():
        encoded = codes.encode(texts, preset.length)
        process = models.text_pretraining(decoder, training, encoded, num_texts=min(preset.num_texts, len(texts)))
        start, going = jax.random.split(jax.random.key(config.seed))
        first = process.init(start)
        before = float(_loss(decoder, first.params, held_out))
        final, trace = run(
            process,
            first,
            preset.pretraining_rounds,
            key=going,
            checkpoint=folder / "run",
            checkpoint_every=1,
            progress=arms.NamedMeter(meter, "pretraining"),
        )
        models.save_gpt2(folder / "model", decoder, final.params)
        np.savetxt(folder / "loss.csv", np.stack([trace.step, trace.loss], 1), delimiter=",", header="step,loss")
        losses = {"before": before, "after": float(_loss(decoder, final.params, held_out))}
        (folder / "losses.json").write_text(json.dumps(losses))
    return models.load_gpt2(folder / "model", decoder.config)[1], json.loads((folder / "losses.json").read_text())


_loss = jax.jit(models.mean_loss)


def model_of(config: Config, preset: Preset, decoder: models.Decoder, params: Any) -> models.Model:
    """The pretrained language model as a model that is refit."""
    return models.language_model(
        decoder,
        preset.refit,
        length=preset.length,
        pretrained=params,
        temperature=config.sampling_temperature,
        top_p=config.top_p,
    )


class Runs(NamedTuple):
    """Runs that share the device: phi and targets [g, m], and seeds [g]."""

    phi: Array
    targets: Array
    seed: Array


def process_of(config: Config, setup: Setup, runs: Runs) -> Process:
    """Runs as one process, whose state and info have a leading axis over them; equal sizes share a compiled round."""
    preset = setup.preset
    sizes = _Sizes(preset.num_candidates, preset.num_curated, config.pool_size, preset.num_steps, preset.length)
    model = model_of(config, preset, setup.decoder, setup.params)
    measure = measuring(setup)
    numbers = jnp.float32(config.temperature), jnp.float32(config.width)
    shared = (model, setup.counter, setup.initial, measure, numbers)
    return Process(init=Partial(_Init(sizes), shared, runs), step=Partial(_Step(sizes), shared, runs))


class Measured(NamedTuple):
    """What is looked at beside the rewards, of the texts of a round.

    Attributes:
        length_entropy: of the word counts, in nats, [].
        length_share: of texts with 0, 1, ... words, [length + 1].
        words: mean word count, [].
        held_out_loss: of the model on real texts, in nats a token, [].
        shown: some texts, int32 [k, length].
    """

    length_entropy: Array
    length_share: Array
    words: Array
    held_out_loss: Array
    shown: Array


def measuring(setup: Setup) -> Partial:
    """`(params, texts) -> Measured`."""
    return Partial(_Measure(setup.preset.length), setup.decoder, setup.counter, setup.held_out)


@dataclass(frozen=True)
class _Measure:
    length: int

    def __call__(self, decoder: Any, counter: Any, held_out: Array, params: Any, texts: Array) -> Measured:
        words = counter(texts)
        return Measured(
            length_entropy=metrics.length_entropy(words, self.length),
            length_share=metrics.length_shares(words, self.length),
            words=jnp.mean(words.astype(jnp.float32)),
            held_out_loss=models.mean_loss(decoder, params, held_out),
            shown=texts[:NUM_SHOWN],
        )


@dataclass(frozen=True)
class _Sizes:
    num_candidates: int
    num_curated: int
    pool_size: int | None
    num_steps: int
    length: int


@dataclass(frozen=True)
class _Init:
    sizes: _Sizes

    def loop(self, shared: Any, phi: Array, targets: Array) -> Process:
        model, counter, initial, measure, (temperature, width) = shared
        return retraining.loop(
            model,
            rewards.length_reward(counter, targets),
            phi,
            num_candidates=self.sizes.num_candidates,
            num_curated=self.sizes.num_curated,
            pool_size=self.sizes.pool_size,
            temperature=temperature,
            grow=self.sizes.num_steps,
            seeds=initial,
            basin=rewards.nearest_target(counter, targets, width),
            measure=measure,
        )

    def __call__(self, shared: Any, runs: Runs, key: Array) -> Any:
        def one(phi: Array, targets: Array, seed: Array) -> Any:
            return self.loop(shared, phi, targets).init(jax.random.fold_in(key, seed))

        return _each(one, *runs)


@dataclass(frozen=True)
class _Step(_Init):
    def __call__(self, shared: Any, runs: Runs, key: Array, state: Any) -> Any:  # type: ignore[override]
        def one(phi: Array, targets: Array, seed: Array, state: Any) -> Any:
            return self.loop(shared, phi, targets).step(jax.random.fold_in(key, seed), state)

        return _each(one, *runs, state)


def _each(function: Any, *given: Any) -> Any:
    """`vmap`, but one run alone as it is: mapped over, a conditional computes all of its branches."""
    if jax.tree.leaves(given[0])[0].shape[0] == 1:
        found = function(*jax.tree.map(lambda x: x[0], given))
        return jax.tree.map(lambda x: x[None], found)
    return jax.vmap(function)(*given)


def made_up(rng: np.random.Generator, num: int) -> list[str]:
    """Sentences of made-up words of one or two syllables, with 1 to 20 words, each length as likely."""
    syllables = ["ba", "de", "fi", "go", "lu", "ma", "ne", "ri", "so", "tu"]
    words = syllables + [a + b for a in syllables[:4] for b in syllables]
    return [" ".join(rng.choice(words, rng.integers(1, 21))) for _ in range(num)]


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, str, tuple)) else float(value)
