"""`mopd export`: a run's model as a folder that Transformers and vLLM load."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mopd_jax import config as configs
from mopd_jax.config import Config
from mopd_jax.errors import ConfigError
from mopd_jax.files import write_text
from mopd_jax.models import decoder, export, families
from mopd_jax.models.weights import CONFIG
from mopd_jax.run import checkpoint, logbook, saved_config
from mopd_jax.update.teacher import teacher_slot

log = logging.getLogger("mopd")


def export_run(
    source: pathlib.Path,
    out: pathlib.Path,
    *,
    step: int | None = None,
    which: str = "student",
    dtype: str = "float32",
    shard_bytes: int = export.SHARD_BYTES,
) -> None:
    """Writes the folder `out` with weights, config, tokenizer and a model card, all or nothing.

    Reads the checkpoint a leaf at a time, so that memory holds at most two leaves and one file.

    Args:
        source: the run's folder.
        step: of the checkpoint; None is the newest.
        which: "student", or "teacher" where the run keeps a teacher of its own.
        dtype: of the weights: float32 (exact), bfloat16 or float16.
        shard_bytes: the most of one file; a tensor that is larger has a file of its own.

    Raises:
        ConfigError: `source` is not a run, has no such checkpoint or teacher, or `out` is not
            empty. CheckpointError: the checkpoint is damaged.
    """
    cfg = saved_config.read(source)
    step = _step(source, step)
    if which == "teacher" and teacher_slot(cfg) != "copy":
        raise ConfigError(
            f"--which=teacher: {source} keeps no teacher of its own (teacher.kind="
            f"{cfg.teacher.kind!r}, teacher.path={cfg.teacher.path!r}); it is the student, or "
            "the model of that path"
        )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--out={out} exists and is not an empty folder; name a new one")
    model = export.Source.open(cfg.model.path)
    part = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        leaves = _leaves(source, step, which, model.model)
        export.write_weights(leaves, model.model, part, dtype=dtype, shard_bytes=shard_bytes)
        model.write_tokenizer(part)
        write_text(part / CONFIG, json.dumps(model.config(dtype), indent=2) + "\n")
        write_text(part / "README.md", card(source, cfg, step=step, which=which))
        if out.exists():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    log.info("%s of step %d in %s, weights in %s", which, step, out, dtype)


def _step(source: pathlib.Path, step: int | None) -> int:
    """The step of the checkpoint that was asked for."""
    steps = checkpoint.steps(source / "checkpoints")
    if not steps:
        raise ConfigError(f"{source} has no finished checkpoint yet; train first")
    if step is not None and step not in steps:
        kept = ", ".join(map(str, steps))
        raise ConfigError(
            f"--step={step}: {source} keeps the checkpoints of steps {kept}; name one of them, "
            "or raise checkpoint.keep for the next run"
        )
    return steps[-1] if step is None else step


def _leaves(
    source: pathlib.Path, step: int, which: str, model: decoder.DecoderConfig
) -> list[export.Leaf]:
    """The checkpoint's leaves as functions that read one, on the host."""
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    part = {"student": "params", "teacher": "teacher"}[which]

    def reader(entry: families.Entry, leaf: Any) -> Callable[[], Any]:
        def read() -> Any:
            like: Any = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=host)
            for name in reversed(entry.path):
                like = {name: like}
            tree = checkpoint.load_part(source / "checkpoints", step, {part: like})[part]
            for name in entry.path:
                tree = tree[name]
            return tree

        return read

    return [
        (entry, reader(entry, leaf))
        for entry, leaf in families.entries(decoder.abstract(model)[0])
    ]


def card(source: pathlib.Path, cfg: Config, *, step: int, which: str) -> str:
    """The model card: where the model comes from, its evaluations, its last metrics."""
    records = [r for r in logbook.read(source) if r["step"] <= step]
    evaluated = [r for r in records if r["kind"] == "eval"]
    trained = [r for r in records if r["kind"] == "train"][-1:]
    version = importlib.metadata.version("mopd_jax")
    lines = [
        f"# {cfg.name}, {which} after {step} steps",
        "",
        f"Trained from `{cfg.model.path}` by mopd_jax {version} (method `{cfg.loss.method}`, "
        f"seed {cfg.seed}); multi-rollout on-policy distillation, arXiv 2605.12652.",
    ]
    if evaluated:
        lines += ["", "## Evaluation of the student", "", *_evaluations(evaluated)]
    for record in trained:
        lines += [
            "",
            f"## Metrics of step {record['step']}",
            "",
            "| metric | value |",
            "|---|---|",
        ]
        lines += [f"| {k} | {_short(v)} |" for k, v in sorted(record.items()) if k != "kind"]
    lines += ["", "## Config", "", "```json", configs.to_json(cfg), "```", ""]
    return "\n".join(lines)


def _evaluations(records: list[dict[str, Any]]) -> list[str]:
    """A table of the held-out scores, with 95 % intervals over problems."""
    names = [n for n in records[0] if "@" in n and not n.endswith(("_low", "_high"))]
    rows = [f"| step | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for record in records:
        cells = [_interval(record, name) for name in names]
        rows.append(f"| {record['step']} | {' | '.join(cells)} |")
    return rows


def _interval(record: Mapping[str, Any], name: str) -> str:
    value, low, high = (_short(record.get(n)) for n in (name, f"{name}_low", f"{name}_high"))
    return f"{value} [{low}, {high}]"


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
