"""Evaluates a student on held-out problems, for `mopd eval` and during a training run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mopd_jax import config as configs
from mopd_jax import experience, verifiers
from mopd_jax.bars import bar
from mopd_jax.config import Config
from mopd_jax.data import sources
from mopd_jax.errors import ConfigError
from mopd_jax.evaluation import responses, scores, tables
from mopd_jax.evaluation.diversity import Bleu
from mopd_jax.evaluation.scores import Response
from mopd_jax.models import decoder, sharding, weights
from mopd_jax.records import Params, Problem, TrainState
from mopd_jax.run import checkpoint, opening
from mopd_jax.run.record import Student

log = logging.getLogger("mopd")


def respond(student: Student, state: TrainState) -> list[list[Response]]:
    """Judged responses [P][n] to the held-out problems.

    Random keys are the same at every call, so that results differ by the student alone.
    """
    cfg = student.cfg

    def sample(start: int, stop: int) -> tuple[int, experience.Sampled]:
        numbers = np.arange(start, start + cfg.eval.batch)
        # The last batch is filled up with its last problem, so that shapes stay the same.
        chosen = [student.eval_problems[i] for i in np.minimum(numbers, stop - 1).tolist()]
        return stop - start, experience.sample(
            student,
            student.sample_eval,
            state,
            chosen,
            numbers.astype(np.uint32),
            purpose=experience.EVALUATE,
            step=0,
        )

    def judge(batch: tuple[int, experience.Sampled]) -> list[list[Response]]:
        used, out = batch
        chosen, verdicts = out.problems, experience.verify(student, out)
        lengths = out.mask.sum(axis=2)
        return [
            [
                Response(
                    problem=chosen[p].id,
                    question=question(chosen[p]),
                    sample=i,
                    text=text,
                    tokens=int(lengths[p, i]),
                    reward=verdict.reward,
                    test_fraction=verdict.test_fraction,
                    format_ok=verdict.format_ok,
                    error=verdict.error,
                    stopped=bool(out.stopped[p, i]),
                    tests_skipped=verdict.tests_skipped,
                    answer=verifiers.vote(chosen[p], verdict),
                )
                for i, (text, verdict) in enumerate(zip(out.texts[p], verdicts[p], strict=True))
            ]
            for p in range(used)
        ]

    problems = len(student.eval_problems)
    return scores.evaluate(
        sample,
        judge,
        problems,
        batch=cfg.eval.batch,
        progress=functools.partial(bar, title="evaluate"),
    )


def question(problem: Problem) -> str:
    """Twelve hex digits of a problem's messages and of all that decides a verdict."""
    messages = [dict(message) for message in problem.messages]
    parts = [messages, problem.answer, problem.verifier, dict(problem.meta)]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_eval(
    cfg: Config,
    out: pathlib.Path,
    *,
    source: pathlib.Path | None,
    bleu: Bleu | None,
    budget: int | None = None,
    command: str = "",
    devices: list[jax.Device] | None = None,
) -> tables.Table:
    """Evaluates a student, writes responses and table to the folder `out`, returns the table.

    Args:
        source: a run folder, whose latest checkpoint is evaluated; None: the initial weights.
        bleu, budget: of the diversity measures (`diversity.measure`).

    Raises:
        ConfigError, sources.DataError, checkpoint.CheckpointError, weights and context errors,
        responses.ResponseError: before anything is sampled.
    """
    responses.check_free(out)
    step = None if source is None else _latest_step(source)
    student = opening.open_student(cfg, devices)
    with jax.set_mesh(student.mesh), student.sandbox or contextlib.nullcontext():
        state = TrainState(
            params=_params(student, source, step),
            teacher={},
            optimizer={},
            step=jnp.int32(step or 0),
            skipped=jnp.int32(0),
            key=jax.random.key(cfg.seed),
        )
        responses.make(out)
        judged = respond(student, state)
    opening.write_records(student, out, command)
    header = _header(student, source, step)
    responses.write(out, header, judged)
    table = tables.table(header, judged, bleu=bleu, budget=budget)
    responses.write_table(out, "table", table.markdown(), table.document())
    log.info("%s\n\nfiles: %s", table.markdown(), out)
    return table


def _latest_step(source: pathlib.Path) -> int:
    """The step of a run's latest checkpoint."""
    steps = checkpoint.steps(source / "checkpoints")
    if not steps:
        raise ConfigError(f"{source} has no finished checkpoint; name a run's folder")
    return steps[-1]


def _params(student: Student, source: pathlib.Path | None, step: int | None) -> Params:
    """The student's parameters, of a run's checkpoint or the initial ones."""
    abstract, axes = decoder.abstract(student.model)
    placed = sharding.shardings(abstract, axes, student.mesh)
    if source is None or step is None:
        path = weights.resolve(student.cfg.model.path)
        return weights.load_params(path, student.model, shardings=placed)
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, placed
    )
    return checkpoint.load_params(source / "checkpoints", step, like)


def _header(student: Student, source: pathlib.Path | None, step: int | None) -> dict[str, Any]:
    """The header of an evaluation: all that a comparison with another needs to know."""
    cfg = student.cfg
    return {
        "name": cfg.name,
        "weights": str(cfg.model.path if source is None else source),
        "step": step,
        "problems": len(student.eval_problems),
        "ceilings": {
            name: entry["ceiling"]
            for name, entry in sources.record(cfg.data, ("eval",)).items()
        },
        "samples": cfg.eval.samples,
        "ks": list(cfg.eval.ks),
        "threshold": cfg.peers.threshold,
        "temperature": cfg.eval.temperature,
        "top_p": cfg.eval.top_p,
        "top_k": cfg.eval.top_k,
        "response_length": cfg.rollout.response_length,
        "seed": cfg.seed,
        "data": dataclasses.asdict(cfg.data),
        "tokenizer": student.tokenizer.fingerprint,
        "config": configs.fingerprint(cfg),
    }
