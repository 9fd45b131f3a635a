"""The updates of a step as a pure function: weights, gradients, AdamW, and then the teacher.

A step makes one update, or several over its rollouts. The rows of an update are split into
micro-batches inside the jitted step; the token weights are made from all its rows first, so the
split cannot change the result. An update is skipped, and counted, when a gradient is not finite
or when no token is trained on: not even weight decay acts then.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax

from mopd_jax.config import Config, LossConfig, OptimizerConfig
from mopd_jax.models import decoder, sharding
from mopd_jax.models.decoder import DecoderConfig
from mopd_jax.records import Batch, Params, TrainState
from mopd_jax.update import means, objectives, preferences, teacher
from mopd_jax.update.means import Ratio
from mopd_jax.update.objectives import OBJECTIVES, Models, Rows


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


def init_state(
    params: Params, key: jax.Array, *, cfg: Config, external: Params | None = None
) -> TrainState:
    """State before the first step; see `teacher.kept` for what stands beside the student.

    Args:
        external: weights of an external teacher, where there is one.
    """
    beside = {
        "nothing": lambda: {},
        "copy": lambda: jax.tree.map(jnp.copy, params),
        "external": lambda: external,
    }[teacher.kept(cfg)]()
    moments = make_optimizer(cfg.optimizer).init(params)
    # Two zeros, not one twice: the state is donated, and a buffer can be given away only once.
    step, skipped = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return TrainState(params, beside, moments, step=step, skipped=skipped, key=key)


def state_shardings(
    cfg: Config,
    model: DecoderConfig,
    mesh: jax.sharding.Mesh,
    teacher_model: DecoderConfig | None = None,
) -> TrainState:
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
    beside = {
        "nothing": lambda: {},
        "copy": lambda: weights,
        "external": lambda: sharding.shardings(*decoder.abstract(teacher_model), mesh),
    }[teacher.kept(cfg)]()
    return TrainState(weights, beside, moments, everywhere, everywhere, everywhere)


def make_train_step(
    cfg: Config,
    model: DecoderConfig,
    mesh: jax.sharding.Mesh,
    teacher_model: DecoderConfig | None = None,
):
    """`train_step` jitted for a mesh, its state donated: (state, batch) -> (state, metrics)."""
    state = state_shardings(cfg, model, mesh, teacher_model)
    return jax.jit(
        functools.partial(train_step, cfg=cfg, model=model, teacher_model=teacher_model),
        in_shardings=(state, sharding.rows(mesh)),
        out_shardings=(state, sharding.replicated(mesh)),
        donate_argnums=0,
    )


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    cfg: Config,
    model: DecoderConfig,
    teacher_model: DecoderConfig | None = None,
) -> tuple[TrainState, dict[str, Ratio]]:
    """The updates of a step on N scored rows, then the teacher's own.

    Args:
        teacher_model: of the weights beside the student, where theirs is another.

    Returns:
        The state, and metrics over all updates: in nats per trained token unless named
        otherwise.
    """
    models = Models(model, model if teacher_model is None else teacher_model)
    rows = _prepared(state, batch, cfg, models)
    carry = (state.params, state.optimizer)
    if cfg.optimizer.updates == 1:
        carry, (applied, logged) = _update(carry, state, rows, cfg, models)
    else:
        parts = _mini_batches(rows, cfg)

        def one(carry, k):
            part = jax.tree.map(lambda x: x[k], parts)
            return _update(carry, state, part, cfg, models)

        order = jnp.tile(jnp.arange(cfg.optimizer.mini_batches), cfg.optimizer.epochs)
        carry, (applied, logged) = jax.lax.scan(one, carry, order)
        logged = jax.tree.map(functools.partial(jnp.sum, axis=0), logged)
    params, optimizer = carry
    count = jnp.sum(~applied, dtype=jnp.int32)
    skipped = state.skipped + count
    logged["updates_skipped"] = Ratio(skipped.astype(jnp.float32), jnp.ones(()))
    beside = state.teacher
    if cfg.loss.method == "distill" and teacher.kept(cfg) == "copy":
        moved = teacher.update(beside, params, cfg.teacher, state.step + 1)
        # A copy that is due is made whether or not this step moved the student.
        follows = jnp.any(applied) | (cfg.teacher.kind == "periodic")
        beside = _choose(follows, moved, beside)
    new = TrainState(
        params=params,
        teacher=beside,
        optimizer=optimizer,
        step=state.step + 1,
        skipped=skipped,
        key=state.key,
    )
    return new, logged


def _prepared(state, batch, cfg, models) -> Rows:
    """What is made once per step, before its first update, with the student as it was."""
    base, stored = None, None
    if cfg.loss.method in ("distill", "grpo"):
        if cfg.loss.ratio_base == "sampler":
            base = jnp.where(batch.mask, batch.behaviour_logp, 0.0)
        elif cfg.optimizer.updates > 1:

            def logp(part):
                return objectives.student_logp(state.params, part, cfg, models.student).logp

            base = _by_parts(logp, batch, cfg.optimizer.mini_batches, cfg)
    if cfg.teacher.cache:

        def kept(part):
            return objectives.stored_teacher(state.teacher, state.params, part, cfg, models)

        stored = _by_parts(kept, batch, cfg.optimizer.mini_batches, cfg)
    return Rows(batch, None, base, stored)


def _by_parts(make, rows, mini_batches, cfg):
    """`make` of all rows, a micro-batch at a time; rows in their order."""
    count = mini_batches * cfg.optimizer.micro_batches
    if count == 1:
        return make(rows)
    made = jax.lax.map(make, split(rows, count))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), made)


def split(rows, count):
    """Parts [count, N / count, ...]: part i takes rows i, i + count, ...; they keep devices."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), rows)


def _mini_batches(rows, cfg):
    """Mini-batch i takes prompts i, i + count, ..., with all rows of their groups."""
    count, group = cfg.optimizer.mini_batches, cfg.rollout.group
    by_prompt = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), rows)
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[3:]), split(by_prompt, count))


def _update(carry, state, rows, cfg, models):
    """One update: ((params, optimizer), (was it applied, metrics))."""
    params, optimizer = carry
    batch = rows.batch
    rows, trained, extra = _weighed(params, state.teacher, rows, cfg, models)
    grads, logged = _gradients(params, state.teacher, rows, cfg, models)
    logged |= extra
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(norm)
    applied = finite & jnp.any(trained)
    safe = jax.tree.map(lambda g: jnp.where(finite, g, 0.0), grads)
    updates, moved = make_optimizer(cfg.optimizer).update(safe, optimizer, params)
    one, counted = jnp.ones(()), finite.astype(jnp.float32)
    logged |= {
        # Of the updates with a finite gradient.
        "loss": Ratio(jnp.where(finite, logged["loss"].total, 0.0), counted),
        "grad_norm": Ratio(jnp.where(finite, norm, 0.0), counted),
        "update_applied": Ratio(applied.astype(jnp.float32), one),
        "gradient_finite": Ratio(finite.astype(jnp.float32), one),
        "trained_tokens": Ratio(jnp.sum(trained, dtype=jnp.float32), one),
        "active": means.masked(jnp.any(trained, axis=1), jnp.ones(len(batch.mask), bool)),
    }
    new = _choose(applied, (optax.apply_updates(params, updates), moved), carry)
    return new, (applied, logged)


def _choose(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _weighed(params, state_teacher, rows, cfg, models):
    """(rows with the weights of their tokens, which tokens train bool[N, T], metrics)."""
    batch, extra = rows.batch, {}
    if cfg.loss.method in ("dpo", "simpo"):
        weights, extra = _preference_weights(params, state_teacher, batch, cfg, models)
    else:
        weights = objectives.token_weights(batch, cfg.loss)
    trained = batch.mask & (weights != 0)
    if cfg.loss.method == "grpo" and not cfg.loss.kl_coef:
        # Tokens without advantage stay in the denominator, but do not count as training.
        trained = trained & (batch.advantage != 0)[:, None]
    return rows._replace(weights=weights), trained, extra


def _gradients(params, state_teacher, rows, cfg, models):
    """Gradients of all rows, summed over micro-batches: (f32 tree, dict of Ratio)."""
    objective = OBJECTIVES[cfg.loss.method]

    def micro(rows):
        def total(params):
            return objective(params, state_teacher, rows, cfg, models)

        return jax.grad(total, has_aux=True)(params)

    if cfg.optimizer.micro_batches == 1:
        return micro(rows)
    parts = split(rows, cfg.optimizer.micro_batches)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro, first))

    def body(sums, part):
        return jax.tree.map(jnp.add, sums, micro(part)), None

    return jax.lax.scan(body, zeros, parts)[0]


def _preference_weights(params, reference, batch, cfg, models):
    """Token weights f32[N, T] whose sum with the log-probs has the preference loss's gradient.

    Also the metrics that only all rows together can give.
    """
    dpo = cfg.loss.method == "dpo"

    def scores(part):
        def total(params):
            found = objectives.student_logp(params, part, cfg, models.student)
            return jnp.sum(found.logp, axis=1)

        if dpo:
            return total(params) - total(reference)
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
    logged = {
        "loss": Ratio(loss, one),
        "pairs": Ratio(count, one),
        "pairs_ordered": Ratio(right, count),
    }
    return weights, logged


def preference_options(cfg: LossConfig) -> tuple[float, float]:
    """(beta, margin) of DPO or SimPO, each its own where the config has None."""
    beta, margin = (0.1, 0.0) if cfg.method == "dpo" else (2.0, 1.0)
    return (
        beta if cfg.beta is None else cfg.beta,
        margin if cfg.margin is None else cfg.margin,
    )
