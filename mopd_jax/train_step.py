"""One update of the student, as a pure function: teacher forward, student forward, loss, step.

Rows are split into micro-batches inside the jitted step; the token weights are made from the
whole batch first, so the split cannot change the result. An update is skipped, and counted,
when a gradient is not finite or when no token is trained on: not even weight decay acts then.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mopd_jax import losses, metrics, preferences, scoring, sharding, teacher
from mopd_jax.config import Config, LossConfig, OptimizerConfig
from mopd_jax.kernels import Support, TopK, linear_divergence_loss, linear_logprob
from mopd_jax.metrics import Ratio
from mopd_jax.models import decoder
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, Params, TrainState


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
    """Rate of update `count` (from 0): (count + 1) / warmup_steps of it, so none is wasted."""
    return cfg.learning_rate * jnp.minimum((count + 1) / max(cfg.warmup_steps, 1), 1.0)


# They keep a copy of the student: as the teacher, or as the reference, which never moves.
_WITH_COPY = ("distill", "dpo")


def init_state(params: Params, key: jax.Array, *, cfg: Config) -> TrainState:
    """State before the first step; teacher or reference start as a copy of the student."""
    copy = jax.tree.map(jnp.copy, params) if cfg.loss.method in _WITH_COPY else {}
    moments = make_optimizer(cfg.optimizer).init(params)
    # Two zeros, not one twice: the state is donated, and a buffer can be given away only once.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(params, copy, moments, step=step, skipped=skipped, key=key)


def state_shardings(cfg: Config, model: DecoderConfig, mesh: jax.sharding.Mesh) -> TrainState:
    """Shardings of every leaf of the state: moments and teacher lie as the parameters do."""
    abstract, axes = decoder.abstract(model)
    weights = sharding.shardings(abstract, axes, mesh)
    everywhere = sharding.replicated(mesh)
    tx = make_optimizer(cfg.optimizer)
    moments = optax.tree_utils.tree_map_params(
        tx,
        lambda _, s: s,
        jax.eval_shape(tx.init, abstract),
        weights,
        transform_non_params=lambda _: everywhere,
    )
    copy = weights if cfg.loss.method in _WITH_COPY else {}
    return TrainState(weights, copy, moments, everywhere, everywhere, everywhere)


def make_train_step(cfg: Config, model: DecoderConfig, mesh: jax.sharding.Mesh):
    """`train_step` jitted for a mesh, its state donated: (state, batch) -> (state, metrics)."""
    state = state_shardings(cfg, model, mesh)
    return jax.jit(
        functools.partial(train_step, cfg=cfg, model=model),
        in_shardings=(state, sharding.rows(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def train_step(
    state: TrainState, batch: Batch, *, cfg: Config, model: DecoderConfig
) -> tuple[TrainState, dict[str, Ratio]]:
    """One update on N scored rows; metrics in nats per trained token unless named otherwise."""
    trained, extra = batch.mask, {}
    if cfg.loss.method in ("dpo", "simpo"):
        weights, extra = _preference_weights(state, batch, cfg, model)
        trained = batch.mask & (weights != 0)
    else:
        weights = token_weights(batch, cfg.loss)
    if cfg.loss.method == "grpo":
        # Tokens without advantage stay in the denominator, but do not count as training.
        trained = batch.mask & (batch.advantage != 0)[:, None]
    grads, logged = _gradients(state, batch, weights, cfg, model)
    logged |= extra

    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    applied = finite & jnp.any(trained)
    tx = make_optimizer(cfg.optimizer)
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
    updates, optimizer = tx.update(safe, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    new_teacher = state.teacher
    if cfg.loss.method == "distill":
        new_teacher = teacher.update(state.teacher, params, cfg.teacher)

    def keep(new, old):
        return jax.tree.map(lambda a, b: jnp.where(applied, a, b), new, old)

    one = jnp.ones(())
    logged |= {
        "loss": Ratio(logged["loss"].total, one),
        "grad_norm": Ratio(norm, one),
        "update_applied": Ratio(applied.astype(jnp.float32), one),
        "gradient_finite": Ratio(finite.astype(jnp.float32), one),
        "trained_tokens": Ratio(jnp.sum(trained, dtype=jnp.float32), one),
        "active": metrics.masked(jnp.any(trained, axis=1), jnp.ones(len(trained), bool)),
        "updates_skipped": Ratio((state.skipped + ~applied).astype(jnp.float32), one),
    }
    new = TrainState(
        params=keep(params, state.params),
        teacher=keep(new_teacher, state.teacher),
        optimizer=keep(optimizer, state.optimizer),
        step=state.step + 1,
        skipped=state.skipped + (~applied).astype(jnp.int32),
        key=state.key,
    )
    return new, logged


def token_weights(batch: Batch, cfg: LossConfig) -> jax.Array:
    """Weights f32[N, T] of the whole batch, for the losses that are sums over tokens."""
    totals = losses.batch_totals(batch.mask, every_row=cfg.every_row)
    return losses.token_weights(batch.mask, aggregation=cfg.aggregation, totals=totals)


def _gradients(state, batch, weights, cfg, model):
    """Gradients of the whole batch, summed over micro-batches: (f32 tree, dict of Ratio)."""
    loss = _LOSSES[cfg.loss.method]

    def micro(batch, weights):
        def total(params):
            return loss(params, state.teacher, batch, weights, cfg, model)

        return jax.grad(total, has_aux=True)(state.params)

    if cfg.optimizer.micro_batches == 1:
        return micro(batch, weights)
    parts = _split((batch, weights), cfg)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro, *first))

    def body(sums, part):
        return jax.tree.map(jnp.add, sums, micro(*part)), None

    return jax.lax.scan(body, zeros, parts)[0]


def _split(rows, cfg):
    """Micro-batch i takes rows i, i + count, ...: rows keep their devices."""
    count = cfg.optimizer.micro_batches
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), rows)


def _preference_weights(state, batch, cfg, model):
    """Token weights f32[N, T] whose sum with the log-probs has the preference loss's gradient.

    Also the metrics that only the whole batch can give.
    """
    dpo = cfg.loss.method == "dpo"

    def scores(part):
        logp = _row_logp(state.params, part, cfg, model)
        if dpo:
            return logp - _row_logp(state.teacher, part, cfg, model)
        return logp / jnp.maximum(jnp.sum(part.mask, axis=1), 1)

    if cfg.optimizer.micro_batches == 1:
        score = scores(batch)
    else:
        score = jax.lax.map(scores, _split(batch, cfg)).swapaxes(0, 1).reshape(-1)
    usable = jnp.any(batch.mask, axis=1)
    better = preferences.pairs(batch.advantage, usable, group=cfg.rollout.group)
    loss, slopes = jax.value_and_grad(preferences.preference_loss)(
        score,
        better,
        beta=_or(cfg.loss.beta, 0.1 if dpo else 2.0),
        margin=_or(cfg.loss.margin, 0.0 if dpo else 1.0),
        smoothing=cfg.loss.label_smoothing,
    )
    weights = jnp.where(batch.mask, slopes[:, None], 0.0)
    if not dpo:
        weights = weights / jnp.maximum(jnp.sum(batch.mask, axis=1, keepdims=True), 1)
    right, count = preferences.accuracy(score, better)
    one = jnp.ones(())
    logged = {
        "loss": Ratio(loss, one),
        "pairs": Ratio(count, one),
        "pairs_ordered": Ratio(right, count),
    }
    return weights, logged


def _or(value, default):
    return default if value is None else value


def _row_logp(params, batch, cfg, model):
    """Log-prob f32[N] in nats of each whole response."""
    return jnp.sum(_student_logp(params, batch, cfg, model).logp, axis=1)


def _student_logp(params, batch, cfg, model):
    """Log-prob and entropy f32[N, T] of each response token after the plain prompt."""
    hidden = _student_states(params, batch, model)
    return linear_logprob(
        hidden,
        decoder.head(params).astype(hidden.dtype),
        batch.response,
        batch.mask,
        temperature=cfg.rollout.temperature,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
    )


def _likelihood(sign, params, teacher_params, batch, weights, cfg, model):
    """sign * sum(weights * logp): SFT, and the gradient of a preference loss."""
    del teacher_params
    hidden = _student_states(params, batch, model)
    loss, stats = linear_divergence_loss(
        _logp,
        hidden,
        decoder.head(params).astype(hidden.dtype),
        None,
        batch.response,
        batch.mask,
        sign * weights,
        temperature=cfg.rollout.temperature,
        chunk_tokens=cfg.model.head_chunk,
        sharding=sharding.head_sharding(),
    )
    return loss, _common_metrics(loss, stats, batch)


def _logp(stats, aux):
    del aux
    return stats.logp


def _distill(params, teacher_params, batch, weights, cfg, model):
    student = _student_states(params, batch, model)
    taught = jax.lax.stop_gradient(
        scoring.response_states(
            teacher_params,
            batch.teacher_prompt,
            batch.teacher_prompt_mask,
            batch.response,
            batch.mask,
            cfg=model,
        )
    )
    capped = cfg.loss.importance_cap is not None
    loss, stats = losses.distill_loss(
        student,
        decoder.head(params).astype(student.dtype),
        taught,
        decoder.head(teacher_params).astype(taught.dtype),
        batch.response,
        batch.mask,
        weights=weights,
        behaviour_logp=batch.behaviour_logp if capped else None,
        sharding=sharding.head_sharding(),
        **distill_options(cfg),
    )
    logged = _common_metrics(loss, stats, batch)
    logged["divergence"] = metrics.masked(stats.divergence, batch.mask)
    logged["teacher_minus_student_logp"] = metrics.masked(
        stats.teacher_logp - stats.logp, batch.mask
    )
    if capped:
        ratio = losses.importance_ratio(stats.logp, batch.behaviour_logp)
        logged["importance_capped"] = metrics.masked(
            ratio > cfg.loss.importance_cap, batch.mask
        )
    return loss, logged


def distill_options(cfg: Config) -> dict[str, Any]:
    """What `losses.distill_loss` takes from the settings of a run."""
    return {
        "divergence": cfg.loss.divergence,
        "alpha": cfg.loss.alpha,
        "continuous": cfg.loss.continuous,
        "support": _support(cfg.loss),
        "temperature": cfg.rollout.temperature,
        "importance_cap": cfg.loss.importance_cap,
        "chunk_tokens": cfg.model.head_chunk,
    }


def _support(cfg: LossConfig) -> Support:
    if cfg.support in ("full", "sampled"):
        return cfg.support
    return TopK(cfg.top_k, cfg.support, cfg.tail)


def _grpo(params, teacher_params, batch, weights, cfg, model):
    del teacher_params
    stats = _student_logp(params, batch, cfg, model)
    loss, clipped = losses.grpo_loss(
        stats.logp,
        batch.behaviour_logp,
        batch.advantage,
        weights,
        clip_low=cfg.loss.clip_low,
        clip_high=cfg.loss.clip_high,
        dual_clip=cfg.loss.dual_clip,
    )
    logged = _common_metrics(loss, stats, batch)
    logged["ratio_clipped"] = metrics.masked(clipped, batch.mask)
    return loss, logged


_LOSSES = {
    "distill": _distill,
    "grpo": _grpo,
    "dpo": functools.partial(_likelihood, 1.0),
    "simpo": functools.partial(_likelihood, 1.0),
    "sft": functools.partial(_likelihood, -1.0),
}


def _student_states(params, batch, model):
    return scoring.response_states(
        params, batch.prompt, batch.prompt_mask, batch.response, batch.mask, cfg=model
    )


def _common_metrics(loss, stats, batch) -> dict[str, Any]:
    gap = jnp.abs(stats.logp - batch.behaviour_logp)
    return {
        # The weights already normalise the loss: parts of it add up, and `train_step` counts
        # the sum as one.
        "loss": Ratio(loss, jnp.zeros(())),
        "entropy": metrics.masked(stats.entropy, batch.mask),
        "sampler_scorer_gap": metrics.masked(gap, batch.mask),
    }
