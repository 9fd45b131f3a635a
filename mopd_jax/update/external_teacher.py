"""An external teacher, another model with the student's vocabulary: its checks and weights."""

from __future__ import annotations

import dataclasses
import hashlib
import logging

import jax

from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.models import decoder, tokenizer, weights
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Params, Tokenizer

log = logging.getLogger("mopd")

_END = 1 << 20  # Bytes read at each end of a file for its fingerprint.


def check(cfg: Config, student: DecoderConfig, student_tokenizer: Tokenizer) -> DecoderConfig:
    """The architecture of the teacher at `teacher.path`, checked to fit the student.

    Its width, depth and family may differ from the student's. Padding of its vocabulary beyond
    the student's is cut off at loading.

    Args:
        student_tokenizer: makes every prompt, the teacher's too.

    Raises:
        ConfigError: a token id means something else to the two models.
    """
    path = _path(cfg)
    model = weights.load_config(path, dtype=cfg.model.compute_dtype)
    own = tokenizer.load(path)
    if own.vocabulary != student_tokenizer.vocabulary:
        raise ConfigError(
            f"teacher.path={path}: its vocabulary (hash {own.vocabulary}, {own.vocab_size} "
            f"ids) is not the student's ({student_tokenizer.vocabulary}, "
            f"{student_tokenizer.vocab_size}), so its log-probs are of other tokens; use a "
            "teacher of the student's family"
        )
    if own.fingerprint != student_tokenizer.fingerprint:
        log.warning(
            "WARNING the external teacher has another chat template than the student "
            "(tokenizer hash %s and %s); it reads prompts in the student's",
            own.fingerprint,
            student_tokenizer.fingerprint,
        )
    if model.vocab_size < student.vocab_size:
        raise ConfigError(
            f"teacher.path={path}: its head has {model.vocab_size} rows, the student's "
            f"{student.vocab_size}; pad the teacher's embedding and head to the student's size"
        )
    return dataclasses.replace(model, vocab_size=student.vocab_size)


def fingerprint(cfg: Config) -> str:
    """Twelve hex digits of the files at `teacher.path`: names, sizes, and both ends of each.

    It does not read every byte, because a model may be large. A checkpoint holds it in place
    of the weights.
    """
    source = weights.resolve(_path(cfg))
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
    """Weights of the teacher at `teacher.path`, in the compute dtype, laid over the mesh.

    Args:
        model: of `check`.
    """
    source = weights.resolve(_path(cfg))
    whole = weights.load_config(source, dtype=cfg.model.compute_dtype)
    placed = decoder.shardings(model, mesh)
    if whole.vocab_size == model.vocab_size:
        return weights.load_params(source, model, shardings=placed, dtype=model.dtype)
    params = weights.load_params(source, whole, dtype=model.dtype)

    def cut(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        return x[tuple(slice(size) for size in like.shape)]

    return jax.device_put(jax.tree.map(cut, params, decoder.abstract(model)[0]), placed)


def _path(cfg: Config) -> str:
    """`teacher.path`, which `TeacherConfig` requires for an external teacher."""
    if cfg.teacher.path is None:
        raise ConfigError(
            f"teacher.kind is {cfg.teacher.kind!r}, and an external teacher is asked for; set "
            "teacher.kind='external' and teacher.path=FOLDER"
        )
    return cfg.teacher.path
