"""Writes Hugging Face model folders, a leaf of the parameters at a time.

Weights are safetensors, in several files with an index above a size. What they were read from
keeps its say: every field of a source's config.json, its tokenizer's files and its generation
config go into the new folder as they are.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np

from mopd_jax.bars import bar
from mopd_jax.errors import ConfigError, unknown
from mopd_jax.files import write_text
from mopd_jax.models import decoder, families, weights
from mopd_jax.models import tokenizer as tokenizers
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.models.families import Entry
from mopd_jax.models.weights import CONFIG, INDEX, WEIGHTS
from mopd_jax.records import Params

SHARD_BYTES = 4_000_000_000
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # In safetensors.
# Of a source folder, besides its weights and config.json: what a tokenizer is made of.
_TOKENIZER = (
    "tokenizer*",
    "*.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
    "LICENSE*",
)

Leaf = tuple[Entry, Callable[[], Any]]


def export_hf(
    params: Params,
    cfg: DecoderConfig,
    folder: str | os.PathLike,
    *,
    dtype: str = "float32",
    tokenizer_source: tokenizers.ChatTokenizer | None = None,
) -> None:
    """Writes parameters that are in memory to a new Hugging Face folder.

    Args:
        dtype: of the file: float32 (exact), bfloat16 or float16.
        tokenizer_source: saved with the weights; config.json gets its end and pad tokens. None
            leaves the tokenizer out.

    Raises:
        ConfigError: the folder holds a model already, no family has such a config, or a value
            is not finite in that dtype.
    """
    config = families.to_hf_config(cfg)
    folder = pathlib.Path(folder)
    present = [name for name in (CONFIG, WEIGHTS, INDEX) if (folder / name).exists()]
    if present:
        raise ConfigError(
            f"{folder} holds {', '.join(present)} already; remove them or name a new folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    leaves = [(entry, lambda leaf=leaf: leaf) for entry, leaf in families.entries(params)]
    write_weights(leaves, cfg, folder, dtype=dtype)
    if tokenizer_source is not None:
        tokenizer_source.save(folder)
        ends = list(tokenizer_source.stop_ids)
        config["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        config["pad_token_id"] = tokenizer_source.pad_id
    # Last, so that a folder of an unfinished export does not load.
    write_text(folder / CONFIG, json.dumps(config | {"dtype": dtype}, indent=2) + "\n")


def write_weights(
    leaves: Iterable[Leaf],
    cfg: DecoderConfig,
    folder: pathlib.Path,
    *,
    dtype: str,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the weights, in several files with an index where they exceed `shard_bytes`.

    Memory holds one leaf and one tensor at a time: safetensors' own writer takes a whole file's
    tensors, and copies them.

    Args:
        leaves: (entry, a function that reads the leaf), f32, of every leaf of the model in the
            order of `families.TABLE`.

    Raises:
        ConfigError: an unknown dtype, or a value that is not finite in it, with its tensor.
    """
    if dtype not in DTYPES:
        raise ConfigError(unknown(f"export dtype {dtype!r}", dtype, list(DTYPES)))
    files = _files(cfg, dtype, shard_bytes)
    values = _tensors(leaves, dtype)
    for file, tensors in files.items():
        with (folder / file).open("wb") as out:
            out.write(_header(tensors, dtype))
            for name in tensors:
                found, value = next(values)
                assert (found, value.shape) == (name, tensors[name])
                out.write(value.tobytes())
                del value  # It may be a view of the leaf, and the next one is read now.
    if len(files) > 1:
        names = {name: file for file, tensors in files.items() for name in tensors}
        size = sum(_size(shape, dtype) for part in files.values() for shape in part.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(names.items()))}
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _header(tensors: dict[str, tuple[int, ...]], dtype: str) -> bytes:
    """The head of a safetensors file: its length, and where each tensor lies, as JSON."""
    record: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors.items():
        begin, end = end, end + _size(shape, dtype)
        record[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(record).encode()
    text += b" " * (-len(text) % 8)  # So that the tensors begin at a multiple of 8 bytes.
    return struct.pack("<Q", len(text)) + text


def _size(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize


def _files(
    cfg: DecoderConfig, dtype: str, shard_bytes: int
) -> dict[str, dict[str, tuple[int, ...]]]:
    """{file: {tensor: shape}}, in the order in which they are written."""
    parts: list[dict[str, tuple[int, ...]]] = []
    room = 0
    for entry, leaf in families.entries(decoder.abstract(cfg)[0]):
        stacked = entry.path[0] == "layers"
        shape = families.source_shape(entry, leaf.shape[1:] if stacked else leaf.shape)
        for y in range(cfg.layers if stacked else 1):
            if not parts or _size(shape, dtype) > room:
                parts.append({})
                room = shard_bytes
            parts[-1][entry.hf.format(y=y)] = shape
            room -= _size(shape, dtype)
    if len(parts) == 1:
        return {WEIGHTS: parts[0]}
    stem = WEIGHTS.removesuffix(".safetensors")
    return {
        f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors": part
        for i, part in enumerate(parts, start=1)
    }


def _tensors(leaves: Iterable[Leaf], dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of every tensor, as a checkpoint has it."""
    for entry, read in bar(list(leaves), "export"):
        leaf = jax.device_get(read())
        layers = leaf if entry.path[0] == "layers" else leaf[None]
        for y, layer in enumerate(layers):
            value = families.to_source(entry, layer)
            with np.errstate(over="ignore"):  # Refused below, with the tensor's name.
                value = value.astype(DTYPES[dtype], copy=False)
            if not np.all(np.isfinite(value)):
                raise ConfigError(
                    f"{entry.hf.format(y=y)} is not finite as {dtype}; use dtype='float32', "
                    "and if it is not finite there either, an earlier checkpoint"
                )
            yield entry.hf.format(y=y), value
        del leaf, layers, layer, value


@dataclasses.dataclass(frozen=True)
class Source:
    """The model that a run started from, whose config and tokenizer an export keeps."""

    path: pathlib.Path
    model: DecoderConfig
    tokenizer: tokenizers.ChatTokenizer

    @classmethod
    def open(cls, path: str) -> Source:
        """Raises ConfigError as `weights.load_config` and `tokenizer.load` do."""
        resolved = weights.resolve(path)
        return cls(resolved, weights.load_config(resolved), tokenizers.load(resolved))

    def config(self, dtype: str) -> dict[str, Any]:
        """config.json: the source's own with all its fields, or one made from a GGUF file."""
        if self.path.is_dir():
            config = weights.read_json(self.path / CONFIG)
            config.pop("torch_dtype", None)  # The name of transformers 4 for `dtype`.
            return config | {"dtype": dtype}
        ends = list(self.tokenizer.stop_ids)
        fields = weights.gguf_fields(weights.open_gguf(self.path))
        length = int(fields[f"{fields['general.architecture']}.context_length"])
        return families.to_hf_config(self.model, max_length=length) | {
            "eos_token_id": ends[0] if len(ends) == 1 else ends,
            "pad_token_id": self.tokenizer.pad_id,
            "dtype": dtype,
        }

    def write_tokenizer(self, folder: pathlib.Path) -> None:
        """Copies the tokenizer's files, or saves the one that was read from a GGUF file."""
        if not self.path.is_dir():
            self.tokenizer.save(folder)
            return
        for pattern in _TOKENIZER:
            for file in self.path.glob(pattern):
                if file.is_file():
                    shutil.copyfile(file, folder / file.name)
        if not (folder / "generation_config.json").exists():
            self.tokenizer.save_generation(folder)
