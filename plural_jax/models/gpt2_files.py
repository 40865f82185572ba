"""GPT-2 from and to folders in the layout of Hugging Face: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from plural_jax.models.classifiers.state_dict import read_state_dict
from plural_jax.models.gpt2 import Decoder, GPT2Config, gpt2
from plural_jax.models.network import Params

_PREFIX = "transformer."
#: Where an array of ours lies in such a file; blocks have a number.
_WHOLE = {
    ("tokens",): "wte.weight",
    ("positions",): "wpe.weight",
    ("last", "scale"): "ln_f.weight",
    ("last", "bias"): "ln_f.bias",
}
_IN_BLOCK = {
    ("before_attention", "scale"): "ln_1.weight",
    ("before_attention", "bias"): "ln_1.bias",
    ("attention_in", "kernel"): "attn.c_attn.weight",
    ("attention_in", "bias"): "attn.c_attn.bias",
    ("attention_out", "kernel"): "attn.c_proj.weight",
    ("attention_out", "bias"): "attn.c_proj.bias",
    ("before_wide", "scale"): "ln_2.weight",
    ("before_wide", "bias"): "ln_2.bias",
    ("wide_in", "kernel"): "mlp.c_fc.weight",
    ("wide_in", "bias"): "mlp.c_fc.bias",
    ("wide_out", "kernel"): "mlp.c_proj.weight",
    ("wide_out", "bias"): "mlp.c_proj.bias",
}
#: Settings under which a network has other formulas, with the values that ours stand for.
_FORMULAS: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # one function under two names
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
_DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def load_gpt2(path: str | Path, config: GPT2Config | None = None) -> tuple[Decoder, Params]:
    """A GPT-2 from a folder that Hugging Face's `save_pretrained` or our `save_gpt2` wrote.

    Names of arrays may have the prefix `transformer.` or not, the output head may be there again, and masks of the attention,
    which old files hold, are passed over. Numbers become float32.

    Args:
        path: of the folder, with `config.json` and `model.safetensors` (or `pytorch_model.bin`, of which only tensors are read).
        config: what must be in it, which also decides about `dropout` and `dtype`; default: what `config.json` says, and
            float32.

    Returns:
        The model and its parameters.

    Raises:
        ValueError: a file or an array is missing; an array has another shape; the network has formulas other than GPT-2's; it is
            another one than `config`.

    Source: C.6 of the paper.
    """
    folder = Path(path)
    found = _read_config(folder, config)
    weights = next(
        (folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()), None
    )
    if weights is None:
        raise ValueError(f"path={str(path)!r} must be a folder with model.safetensors in one file, and has none.")
    arrays = {name.removeprefix(_PREFIX): array for name, array in read_state_dict(weights).items()}
    wanted = jax.eval_shape(gpt2(found).init, jax.random.key(0))
    params: dict[str, Any] = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), wanted)
    for name, place in _places(params):
        array = arrays.pop(name, None)
        if array is None:
            raise ValueError(f"path={str(path)!r} has no array {name!r}, which {found} needs.")
        if array.shape != place.shape:
            raise ValueError(
                f"path={str(path)!r} has {name!r} of shape {array.shape}, but {found} needs {place.shape}."
            )
        place[...] = array
    head = arrays.pop("lm_head.weight", None)
    if head is not None and not np.array_equal(head.astype(np.float32), params["tokens"]):
        raise ValueError(f"path={str(path)!r} has an output head of its own, and GPT-2's is the table of its tokens.")
    left = [name for name in arrays if not name.endswith((".attn.bias", ".attn.masked_bias"))]
    if left:
        raise ValueError(f"path={str(path)!r} has arrays that {found} has not: {', '.join(left[:3])}.")
    return gpt2(found), jax.tree.map(jnp.asarray, params)


def save_gpt2(path: str | Path, model: Decoder | GPT2Config, params: Params) -> None:
    """Write a GPT-2 as a folder that `load_gpt2` and `transformers.GPT2LMHeadModel.from_pretrained` read.

    Each file appears whole or not at all.

    Args:
        path: of the folder; it is made where needed and files of the same name are overwritten.
        model: the model, or its configuration.
        params: its parameters.

    Raises:
        ValueError: parameters of another model.

    Example:
        >>> import jax, os, tempfile
        >>> from plural_jax.models.gpt2 import gpt2
        >>> model = gpt2("tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_gpt2(folder, model, model.init(jax.random.key(0)))
        ...     print(sorted(os.listdir(folder)), load_gpt2(folder)[0].config == model.config)
        ['config.json', 'model.safetensors'] True
    """
    from safetensors.numpy import save_file

    config, folder = model if isinstance(model, GPT2Config) else model.config, Path(path)
    wanted = jax.eval_shape(gpt2(config).init, jax.random.key(0))
    described = jax.tree.map(lambda leaf: (np.shape(leaf), str(leaf.dtype)), params)
    if described != jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), wanted):
        raise ValueError(f"params must be those of {config}, and have other names, shapes or types.")
    arrays = {_PREFIX + name: np.ascontiguousarray(place) for name, place in _places(jax.tree.map(np.asarray, params))}
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "model.safetensors.partial"
    save_file(arrays, partial, metadata={"format": "pt"})  # without which transformers refuses the file
    os.replace(partial, folder / "model.safetensors")
    partial = folder / "config.json.partial"
    partial.write_text(json.dumps(_written(config), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, folder / "config.json")


def _places(params: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Views of all arrays, as the file has them, by the file's names."""
    for (first, *rest), name in _WHOLE.items():
        yield name, params[first][rest[0]] if rest else params[first]
    layers = len(params["blocks"]["attention_in"]["bias"])
    for layer in range(layers):
        for (part, kind), name in _IN_BLOCK.items():
            yield f"h.{layer}.{name}", params["blocks"][part][kind][layer]


def _read_config(folder: Path, config: GPT2Config | None) -> GPT2Config:
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"path={str(folder)!r} must be a folder with config.json, and has none.")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        kind = given.get("model_type", "gpt2")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"path={str(path)!r} is no configuration in JSON ({error}).") from None
    if kind != "gpt2":
        raise ValueError(f"path={str(path)!r} describes a model of type {kind!r}, not 'gpt2'.")
    for name, known in _FORMULAS.items():
        if given.get(name, known[0]) not in known:
            raise ValueError(f"path={str(path)!r} has {name}={given[name]!r}, and only {known[0]!r} is known here.")
    width = given.get("n_embd", 768)
    if given.get("n_inner") not in (None, 4 * width):
        raise ValueError(
            f"path={str(path)!r} has n_inner={given['n_inner']!r}, and only 4 n_embd = {4 * width} is known here."
        )
    # What is left out has Hugging Face's default.
    shape: dict[str, Any] = {
        "num_layers": given.get("n_layer", 12),
        "num_heads": given.get("n_head", 12),
        "width": width,
        "num_tokens": given.get("vocab_size", 50257),
        "context": given.get("n_positions", 1024),
    }
    if config is not None:
        other = {name: value for name, value in shape.items() if getattr(config, name) != value}
        if other:
            differs = ", ".join(f"{name}={value}" for name, value in other.items())
            raise ValueError(f"path={str(path)!r} describes a model with {differs}, but config={config}.")
        return config
    dropouts = [given.get(name, 0.1) for name in _DROPOUTS]
    if len(set(dropouts)) > 1:
        raise ValueError(
            f"path={str(path)!r} has different {', '.join(_DROPOUTS)}: say with config which one is meant."
        )
    end = given.get("eos_token_id", 50256)
    if not isinstance(end, int):
        raise ValueError(f"path={str(path)!r} has eos_token_id={end!r}: say with config which token ends a text.")
    return GPT2Config(**shape, end_of_text=end, dropout=float(dropouts[0]))


def _written(config: GPT2Config) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_embd": config.width,
        "n_inner": None,
        "n_positions": config.context,
        "n_ctx": config.context,
        "vocab_size": config.num_tokens,
        "bos_token_id": config.end_of_text,
        "eos_token_id": config.end_of_text,
        **dict.fromkeys(_DROPOUTS, config.dropout),
        **{name: known[0] for name, known in _FORMULAS.items()},
        "initializer_range": 0.02,
        "torch_dtype": "float32",
    }
