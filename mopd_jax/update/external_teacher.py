"""An external teacher: another model that has the student's vocabulary."""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import jax

from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.models import decoder, sharding, tokenizer, weights
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.models.tokenizer import ChatTokenizer
from mopd_jax.records import Params

log = logging.getLogger("mopd")

_END = 1 << 20  # Bytes read at each end of a file for its fingerprint.


def check(cfg: Config, student: DecoderConfig, words: ChatTokenizer) -> DecoderConfig:
    """The architecture of the teacher at `teacher.path`, once it is sure to fit the student.

    Its width, depth and family are its own. Padding of its vocabulary beyond the student's is
    cut off at loading.

    Args:
        words: the student's tokenizer, which makes every prompt, the teacher's too.

    Raises:
        ConfigError: where a token id means something else to the two models.
    """
    path = cfg.teacher.path
    model = weights.load_config(path, dtype=cfg.model.compute_dtype)
    own = tokenizer.load(path)
    if own.vocabulary != words.vocabulary:
        raise ConfigError(
            f"teacher.path={path}: its vocabulary (hash {own.vocabulary}, {own.vocab_size} "
            f"ids) is not the student's ({words.vocabulary}, {words.vocab_size}), so its "
            "log-probs are of other tokens; use a teacher of the student's family"
        )
    if own.fingerprint != words.fingerprint:
        log.warning(
            "WARNING the external teacher has another chat template than the student "
            "(tokenizer hash %s and %s); it reads prompts in the student's",
            own.fingerprint,
            words.fingerprint,
        )
    if model.vocab_size < student.vocab_size:
        raise ConfigError(
            f"teacher.path={path}: its head has {model.vocab_size} rows, the student's "
            f"{student.vocab_size}; pad the teacher's embedding and head to the student's size"
        )
    return dataclasses.replace(model, vocab_size=student.vocab_size)


def fingerprint(cfg: Config) -> str:
    """Twelve hex digits of the files at `teacher.path`: names, sizes, and both ends of each.

    Not of every byte, since a large model has many; a checkpoint notes it, since it does not
    hold the weights.
    """
    source = weights.resolve(cfg.teacher.path)
    files = [source] if source.is_file() else sorted(source.iterdir())
    digest = hashlib.sha256()
    for path in files:
        if path.suffix not in (".safetensors", ".gguf", ".json"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            digest.update(file.read(_END))
            file.seek(max(0, size - _END))
            digest.update(file.read(_END))
    return digest.hexdigest()[:12]


def load(cfg: Config, model: DecoderConfig, mesh: jax.sharding.Mesh) -> Params:
    """Weights of the teacher that `check` found, in the compute dtype, laid over the mesh."""
    source = weights.resolve(cfg.teacher.path)
    whole = weights.load_config(source, dtype=cfg.model.compute_dtype)
    abstract, axes = decoder.abstract(model)
    placed = sharding.shardings(abstract, axes, mesh)
    if whole.vocab_size == model.vocab_size:
        return weights.load_params(source, model, shardings=placed, dtype=model.dtype)
    params = weights.load_params(source, whole, dtype=model.dtype)

    def cut(x, like):
        return x[tuple(slice(size) for size in like.shape)]

    return jax.device_put(jax.tree.map(cut, params, abstract), placed)
