"""The training step, a pure function of (state, batch): one or several updates in one jit.

    prepare     once a step: log-probs and teacher outputs of the student as it was before
    weigh       once an update: the weights of its tokens, from all its rows
    accumulate  adds the gradients and metrics of some rows; the split cannot change the sums
    apply       AdamW with these sums
    end_step    once a step: the teacher's own update

An update is skipped, and counted, when a gradient is not finite or when no token is trained on:
not even weight decay acts then.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from mopd_jax.config import Config, LossConfig, OptimizerConfig
from mopd_jax.kernels import Stored
from mopd_jax.models import decoder, sharding
from mopd_jax.records import Batch, Params, TrainState, record
from mopd_jax.update import means, objectives, preferences, teacher
from mopd_jax.update.means import Metrics, Ratio
from mopd_jax.update.objectives import PreparedRows, UpdateInputs, UpdateRows
from mopd_jax.update.teacher import Models

Tree = TypeVar("Tree")  # A pytree of arrays.


def make_optimizer(cfg: OptimizerConfig) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW with linear warm-up to a constant rate."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.adamw(
            functools.partial(learning_rate, cfg=cfg),
            b1=cfg.beta1,
            b2=cfg.beta2,
            eps=cfg.epsilon,
            weight_decay=cfg.weight_decay,
        ),
    )


def learning_rate(count: jax.Array, *, cfg: OptimizerConfig) -> jax.Array:
    """Rate of update `count` (from 0): (count + 1) / warmup_steps of it, never 0."""
    return cfg.learning_rate * jnp.minimum((count + 1) / max(cfg.warmup_steps, 1), 1.0)


def init_state(
    params: Params,
    key: jax.Array,
    *,
    cfg: Config,
    models: Models,
    external: Params | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        params: the student's weights, f32.
        key: the root key of the run.
        external: weights of an external teacher, where `models` has one.
    """
    teacher_params: Params = {}
    if models.teacher_slot == "copy":
        teacher_params = jax.tree.map(jnp.copy, params)
    elif models.teacher_slot == "external":
        teacher_params = external
    moments = make_optimizer(cfg.optimizer).init(params)
    # Two zeros, not one twice: the state is donated, and a buffer can be donated only once.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(params, teacher_params, moments, step=step, skipped=skipped, key=key)


def state_shardings(cfg: Config, models: Models, mesh: jax.sharding.Mesh) -> TrainState:
    """Shardings of every leaf of the state: moments and teacher lie as the parameters do."""
    weights = decoder.shardings(models.student, mesh)
    everywhere: Any = sharding.replicated(mesh)
    tx = make_optimizer(cfg.optimizer)
    moments = optax.tree_utils.tree_map_params(
        tx,
        lambda _, s: s,
        jax.eval_shape(tx.init, decoder.abstract(models.student)[0]),
        weights,
        transform_non_params=lambda _: everywhere,
    )
    teacher_weights: Any = {}
    if models.teacher_slot == "copy":
        teacher_weights = weights
    elif models.teacher_slot == "external":
        teacher_weights = decoder.shardings(models.teacher, mesh)
    return TrainState(weights, teacher_weights, moments, everywhere, everywhere, everywhere)


def make_train_step(
    cfg: Config, models: Models, mesh: jax.sharding.Mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`train_step` jitted for a mesh, its state donated: (state, batch) -> (state, metrics)."""
    state = state_shardings(cfg, models, mesh)
    return jax.jit(
        functools.partial(train_step, cfg=cfg, models=models),
        in_shardings=(state, sharding.rows(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def train_step(
    state: TrainState, batch: Batch, *, cfg: Config, models: Models
) -> tuple[TrainState, Metrics]:
    """The updates of a step on N scored rows, then the teacher's own.

    Returns:
        The state, and metrics over all updates: in nats per trained token unless named
        otherwise.
    """
    inputs = UpdateInputs(cfg, models, state.teacher)
    rows = prepare(state.params, batch, inputs)
    if cfg.optimizer.updates == 1:
        new, logged = _update(state, rows, inputs)
    else:
        parts = _mini_batches(rows, cfg)

        def one(state: TrainState, k: jax.Array) -> tuple[TrainState, Metrics]:
            return _update(state, jax.tree.map(lambda x: x[k], parts), inputs)

        order = jnp.tile(jnp.arange(cfg.optimizer.mini_batches), cfg.optimizer.epochs)
        new, logged = jax.lax.scan(one, state, order)
        logged = jax.tree.map(functools.partial(jnp.sum, axis=0), logged)
    return end_step(new, logged, cfg=cfg, models=models)


def _update(
    state: TrainState, rows: PreparedRows, inputs: UpdateInputs
) -> tuple[TrainState, Metrics]:
    """One update: weights of all its rows, then their gradients, then the optimizer."""
    weighed, known = weigh(state.params, rows, inputs)
    sums = _accumulate_all(state.params, weighed, inputs)
    return apply(state, Sums(sums.gradients, sums.metrics | known), cfg=inputs.cfg)


def prepare(params: Params, batch: Batch, inputs: UpdateInputs) -> PreparedRows:
    """Arrays computed once per step with the student as it is before the first update."""
    cfg = inputs.cfg
    base_logp = stored = None
    if cfg.loss.method in ("distill", "grpo"):
        if cfg.loss.ratio_base == "sampler":
            base_logp = jnp.where(batch.mask, batch.sampled_logp, 0.0)
        elif cfg.optimizer.updates > 1:

            def logp(part: Batch) -> jax.Array:
                return objectives.student_logp(params, part, cfg, inputs.models.student).logp

            base_logp = _by_parts(logp, batch, cfg.optimizer.mini_batches, cfg)
    if cfg.teacher.cache:

        def stored_teacher(part: Batch) -> Stored:
            return objectives.stored_teacher(params, part, inputs)

        stored = _by_parts(stored_teacher, batch, cfg.optimizer.mini_batches, cfg)
    return PreparedRows(batch, base_logp, stored)


def weigh(
    params: Params, rows: PreparedRows, inputs: UpdateInputs
) -> tuple[UpdateRows, Metrics]:
    """The rows of a whole update with the weights of their tokens, before any split.

    Returns:
        the rows, and the metrics that need all rows together.
    """
    known: Metrics = {}
    if inputs.cfg.loss.method in ("dpo", "simpo"):
        weights, known = _preference_weights(params, rows.batch, inputs)
    else:
        weights = objectives.token_weights(rows.batch, inputs.cfg.loss)
    return UpdateRows(rows.batch, weights, rows.base_logp, rows.stored), known


@record
class Sums:
    """Sums over the rows of an update; sums of different rows add."""

    gradients: Params  # f32, a tree like the student's
    metrics: Metrics  # `loss` has the count 0, `trained_tokens` too: `apply` counts updates.


def accumulate(
    sums: Sums | None, rows: UpdateRows, *, params: Params, inputs: UpdateInputs
) -> Sums:
    """`sums` and the gradients and metrics of N more rows.

    The rows of one update may come in several calls, each with its own N and T; their weights
    come from one call of `weigh`.

    Args:
        sums: of the rows before; None for the first.
        params: the student's weights.
    """
    gradient = jax.grad(objectives.objective, has_aux=True)
    gradients, logged = gradient(params, rows, inputs)
    batch, trained = rows.batch, _trained(rows, inputs.cfg)
    logged |= {
        "trained_tokens": Ratio(jnp.sum(trained, dtype=jnp.float32), jnp.zeros(())),
        "active": means.masked(jnp.any(trained, axis=1), jnp.ones(len(batch.mask), bool)),
    }
    more = Sums(gradients, logged)
    return more if sums is None else jax.tree.map(jnp.add, sums, more)


def _trained(rows: UpdateRows, cfg: Config) -> jax.Array:
    """bool[N, T], the tokens that train."""
    trained = rows.batch.mask & (rows.weights != 0)
    if cfg.loss.method == "grpo" and not cfg.loss.kl_coef:
        # Tokens without advantage stay in the denominator, but do not count as training.
        trained = trained & (rows.batch.advantage != 0)[:, None]
    return trained


def apply(state: TrainState, sums: Sums, *, cfg: Config) -> tuple[TrainState, Metrics]:
    """The state after the optimizer's update with the sums of all rows, and their metrics.

    Nothing but `skipped` changes where a gradient is not finite or no token trains.
    """
    norm = optax.tree.norm(sums.gradients)
    finite = jnp.isfinite(norm)
    tokens = sums.metrics["trained_tokens"].total
    applied = finite & (tokens > 0)
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), sums.gradients)
    updates, optimizer = make_optimizer(cfg.optimizer).update(
        safe, state.optimizer, state.params
    )
    moved = (optax.apply_updates(state.params, updates), optimizer)
    params, optimizer = _choose(applied, moved, (state.params, state.optimizer))
    one, counted = jnp.ones(()), finite.astype(jnp.float32)
    logged = sums.metrics | {
        # Of the updates with a finite gradient.
        "loss": Ratio(jnp.where(finite, sums.metrics["loss"].total, 0.0), counted),
        "grad_norm": Ratio(jnp.where(finite, norm, 0.0), counted),
        "update_applied": Ratio(applied.astype(jnp.float32), one),
        "gradient_finite": Ratio(finite.astype(jnp.float32), one),
        "trained_tokens": Ratio(tokens, one),
    }
    skipped = state.skipped + jnp.where(applied, 0, 1)
    new = dataclasses.replace(state, params=params, optimizer=optimizer, skipped=skipped)
    return new, logged


def end_step(
    state: TrainState, logged: Metrics, *, cfg: Config, models: Models
) -> tuple[TrainState, Metrics]:
    """The state after the teacher's own update, which comes once, after all of a step's.

    Args:
        logged: the metrics of the step's updates, added up.
    """
    teacher_params = state.teacher
    if cfg.loss.method == "distill" and models.teacher_slot == "copy":
        moved = teacher.update(teacher_params, state.params, cfg.teacher, state.step + 1)
        # A due copy is taken even if this step did not move the student.
        follows = (logged["update_applied"].total > 0) | (cfg.teacher.kind == "periodic")
        teacher_params = _choose(follows, moved, teacher_params)
    new = dataclasses.replace(state, teacher=teacher_params, step=state.step + 1)
    skipped = Ratio(state.skipped.astype(jnp.float32), jnp.ones(()))
    return new, logged | {"updates_skipped": skipped}


def _choose(condition: jax.Array, new: Tree, old: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _accumulate_all(params: Params, rows: UpdateRows, inputs: UpdateInputs) -> Sums:
    """`Sums` of all rows of an update, a micro-batch at a time."""
    count = inputs.cfg.optimizer.micro_batches
    add = functools.partial(accumulate, params=params, inputs=inputs)
    if count == 1:
        return add(None, rows)
    parts = split(rows, count)
    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(functools.partial(add, None), first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def body(sums: Sums, part: UpdateRows) -> tuple[Sums, None]:
        return add(sums, part), None

    return jax.lax.scan(body, zeros, parts)[0]


def _by_parts(
    make: Callable[[Batch], Tree], batch: Batch, mini_batches: int, cfg: Config
) -> Tree:
    """`make` of all rows, a micro-batch at a time; rows in their order."""
    count = mini_batches * cfg.optimizer.micro_batches
    if count == 1:
        return make(batch)
    made = jax.lax.map(make, split(batch, count))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), made)


def split(rows: Tree, count: int) -> Tree:
    """Parts [count, N / count, ...]: part i takes rows i, i + count, ...; they keep devices."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), rows)


def _mini_batches(rows: PreparedRows, cfg: Config) -> PreparedRows:
    """Mini-batch i takes prompts i, i + count, ..., with all rows of their groups."""
    count, group = cfg.optimizer.mini_batches, cfg.rollout.group
    by_prompt = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), rows)
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[3:]), split(by_prompt, count))


def _preference_weights(
    params: Params, batch: Batch, inputs: UpdateInputs
) -> tuple[jax.Array, Metrics]:
    """Token weights f32[N, T] whose sum with the log-probs has the preference loss's gradient.

    Also returns the metrics that need all rows together.
    """
    cfg = inputs.cfg
    dpo = cfg.loss.method == "dpo"

    def scores(part: Batch) -> jax.Array:
        def total(params: Params) -> jax.Array:
            stats = objectives.student_logp(params, part, cfg, inputs.models.student)
            return jnp.sum(stats.logp, axis=1)

        if dpo:
            return total(params) - total(inputs.teacher)
        return total(params) / jnp.maximum(jnp.sum(part.mask, axis=1), 1)

    beta, margin = preference_options(cfg.loss)
    score = _by_parts(scores, batch, 1, cfg)
    usable = jnp.any(batch.mask, axis=1)
    better = preferences.pairs(batch.advantage, usable, group=cfg.rollout.group)
    loss, slopes = jax.value_and_grad(preferences.preference_loss)(
        score,
        better,
        beta=beta,
        margin=margin,
        smoothing=cfg.loss.label_smoothing,
    )
    weights = jnp.where(batch.mask, slopes[:, None], 0.0)
    if not dpo:
        weights = weights / jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1)
    right, count = preferences.accuracy(score, better)
    one = jnp.ones(())
    known = {
        "loss": Ratio(loss, one),
        "pairs": Ratio(count, one),
        "pairs_ordered": Ratio(right, count),
    }
    return weights, known


def preference_options(cfg: LossConfig) -> tuple[float, float]:
    """(beta, margin) of DPO or SimPO; None in the config means the method's default."""
    beta, margin = (0.1, 0.0) if cfg.method == "dpo" else (2.0, 1.0)
    return (
        beta if cfg.beta is None else cfg.beta,
        margin if cfg.margin is None else cfg.margin,
    )
