"""A round of retraining a GPT-2 on its own texts, beside the same round in PyTorch with `transformers`.

    PLURAL_JAX_DATA=FOLDER python -m benchmarks.text [--quick] [--repeats N] [--out FILE]

Both have the paper's network with the same weights, the same pool of 1,000 sentences of WikiText-2 and a key-value cache. A
round counts the words of the pool, curates 200 texts under two preferences for their length, takes two epochs of AdamW in batches
of 8 on them (the peer's padded to the longest of each batch, padding masked), and writes 200 texts of at most 64 tokens from the
nucleus of mass 0.95 at temperature 0.8. The weights are random, so that hardly a text ends before its 64 tokens and both write as
much. Its parts are measured alone too. Unit: texts.

The roofline: every token costs two operations for each number of the blocks and of the head forward, and four backward.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import plural_jax as pj
from benchmarks import report, timing
from benchmarks.timing import Comparison
from plural_jax.models.text_training import used_tokens

LIBRARY, PEER = "library", "transformers, PyTorch"
NUM, LENGTH, POOL, BATCH, TARGETS, TEMPERATURE = 200, 64, 1000, 8, (10.0, 20.0), 0.5


class Work:
    """What both compute with."""

    def __init__(self, num: int) -> None:
        rng = np.random.default_rng(0)
        sentences = pj.data.sentences(pj.data.wikitext2(split="test").lines)
        self.num = num
        self.codes = pj.data.byte_pairs()
        self.pool = self.codes.encode([sentences[i] for i in rng.permutation(len(sentences))[:POOL]], LENGTH)
        self.decoder = pj.models.gpt2("paper")
        self.params = jax.jit(self.decoder.init)(jax.random.key(0))
        self.curated = self.pool[rng.choice(POOL, num)]


def library(work: Work) -> dict[str, Callable[[], Any]]:
    """The round and its parts."""
    counter = pj.rewards.word_counter(work.codes)
    training = pj.models.TextTraining(num_epochs=2, batch_size=BATCH)
    model = pj.models.language_model(work.decoder, training, length=LENGTH, pretrained=work.params)
    process = pj.retraining.loop(
        model, pj.rewards.length_reward(counter, TARGETS), [0.5, 0.5], num_candidates=work.num, num_curated=work.num,
        temperature=TEMPERATURE, grow=1, seeds=work.pool,
    )  # fmt: skip
    key, curated = jax.random.key(1), jnp.asarray(work.curated)
    # Parameters are arguments: XLA would fold what it can compute of constants, for a minute.
    state = jax.jit(lambda process: process.init(key))(process)
    step = jax.jit(lambda process, state: process.step(key, state)[1].reward_mean)
    fit = jax.jit(lambda model, params, texts: model.fit(key, params, texts, None)["positions"])
    write = jax.jit(lambda model, params: model.sample(key, params, work.num))
    return {
        "round": lambda: step(process, state),
        "fine-tuning": lambda: fit(model, work.params, curated),
        "writing": lambda: write(model, work.params),
    }


def peer(work: Work) -> dict[str, Callable[[], Any]]:
    """The same with PyTorch."""
    import torch
    from transformers import GPT2LMHeadModel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(timing.cores())
    with tempfile.TemporaryDirectory() as folder:
        pj.models.save_gpt2(folder, work.decoder, work.params)
        network = GPT2LMHeadModel.from_pretrained(folder).to(device)
    first = {name: value.clone() for name, value in network.state_dict().items()}
    end = work.codes.end_of_text
    rng = np.random.default_rng(1)

    def fine_tune(texts: np.ndarray) -> None:
        network.load_state_dict(first)
        network.train()
        used = np.asarray(used_tokens(jnp.asarray(texts), end))
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-5)
        for _ in range(2):
            for rows in rng.permutation(len(texts)).reshape(-1, BATCH):
                longest = min(used[rows].max() + 1, LENGTH)
                own = torch.tensor(texts[rows, :longest].astype(np.int64), device=device)
                given = torch.cat([torch.full_like(own[:, :1], end), own[:, :-1]], 1)
                counts = torch.arange(longest)[None] <= torch.tensor(used[rows])[:, None]
                logits = network(given, use_cache=False).logits
                loss = torch.nn.functional.cross_entropy(logits[counts.to(device)], own[counts.to(device)])
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()

    def write() -> Any:
        network.eval()
        start = torch.full((work.num, 1), end, device=device)
        with torch.no_grad():
            found = network.generate(
                start, attention_mask=torch.ones_like(start), do_sample=True, temperature=0.8, top_p=0.95, top_k=0,
                max_new_tokens=LENGTH, use_cache=True, pad_token_id=end, eos_token_id=end,
            )  # fmt: skip
        return found[:, 1:].cpu().numpy()

    def curate(texts: np.ndarray) -> np.ndarray:
        words = np.array([len(text.split()) for text in work.codes.decode(texts)])
        rewards = -np.abs(words[None] - np.array(TARGETS)[:, None]) / TEMPERATURE
        odds = np.exp(rewards - rewards.max(1, keepdims=True))
        active = rng.integers(0, 2, work.num)
        return np.array([rng.choice(len(texts), p=odds[i] / odds[i].sum()) for i in active])

    def round_() -> Any:
        fine_tune(work.pool[curate(work.pool)])
        texts = write()
        return np.unique(curate(texts))

    return {"round": round_, "fine-tuning": lambda: fine_tune(work.curated), "writing": write}


def operations(work: Work) -> dict[str, float]:
    """Operations of the parts: two for each number that a token meets, three times that with the gradient."""
    numbers = pj.models.num_params(work.params) - work.decoder.config.context * work.decoder.config.width
    used = np.asarray(used_tokens(jnp.asarray(work.curated), work.codes.end_of_text))
    tuning = 2 * 6.0 * numbers * float(np.minimum(used + 1, LENGTH).sum())
    writing = 2.0 * numbers * work.num * LENGTH
    return {"round": tuning + writing, "fine-tuning": tuning, "writing": writing}


def measure(quick: bool, repeats: int | None) -> list[Comparison]:
    """200 texts; quick: 40."""
    work = Work(40 if quick else NUM)
    ours = library(work)
    theirs = peer(work) if timing.optional("transformers") is not None else None
    flops = operations(work)
    found = []
    for name in ("round", "fine-tuning", "writing"):
        contenders: dict[str, Callable[[], Any]] = {LIBRARY: ours[name]}
        if theirs is not None:
            contenders[PEER] = theirs[name]
        found.append(
            Comparison(
                name=f"text, {name}",
                workload=f"{work.num} texts of at most {LENGTH} tokens, GPT-2 of 6 layers and width 384, float32; "
                f"{flops[name] / 1e9:.0f} G operations",
                reference=LIBRARY,
                seconds=timing.turns(contenders, repeats or (2 if quick else 3)),
                unit="texts",
                work=float(work.num),
                notes=[f"{pj.models.num_params(work.params):,} parameters"],
                extra={"operations": flops[name]},
            )
        )
    return found


if __name__ == "__main__":
    report.main("text", __doc__, measure)
