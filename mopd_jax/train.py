"""The training loop: start reading here.

`train` is the algorithm in the paper's order, one verb a line. Everything it calls is a pure
function of arrays (jitted ones are made once in `_open`) or a thin handle on files:

    take problems -> rollout -> verify -> choose peers -> render contexts -> update -> record

Run folder: `config.json`, `command.txt`, `metrics.jsonl`, `tensorboard/`, `rollouts/`,
`checkpoints/`, `evaluations/`. A killed run, started again with the same command, goes on from
its last checkpoint and ends with the same bits as one that was never killed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mopd_jax import (
    checkpoint,
    context,
    data,
    evaluate,
    groups,
    inactive,
    peers,
    rollout,
    sharding,
    tokenizer,
    train_step,
    verifiers,
    weights,
)
from mopd_jax import config as configs
from mopd_jax.config import Config, ConfigError
from mopd_jax.logbook import Logbook, read, write_text
from mopd_jax.models import decoder
from mopd_jax.records import Batch, Problem, Tokenizer, TrainState, Verdict

log = logging.getLogger("mopd")

# Settings that a resumed run may change: they do not touch what is computed up to a step.
_FREE_TO_CHANGE = ("steps", "dump_every", "checkpoint")
# Purposes of random keys, folded into the root key before the step.
_TRAIN, _EVALUATE = 1, 2


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same during a run."""

    cfg: Config
    folder: pathlib.Path
    model: decoder.DecoderConfig
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    eval_problems: list[Problem]
    sample: Callable[..., Any]
    sample_eval: Callable[..., Any]
    update: Callable[[TrainState, Batch], tuple[TrainState, dict]]


@dataclasses.dataclass(frozen=True)
class Sampled:
    """Rollouts of a step on the host, with what was made of them. Lists are [P][G]."""

    problems: list[Problem]
    uids: np.ndarray  # u32[P]
    prompt: np.ndarray  # i32[P, S]
    prompt_mask: np.ndarray  # bool[P, S]
    response: np.ndarray  # i32[P, G, T]
    mask: np.ndarray  # bool[P, G, T]
    behaviour_logp: np.ndarray  # f32[P, G, T]
    stopped: np.ndarray  # bool[P, G]
    texts: list[list[str]]


def train(cfg: Config, workdir: pathlib.Path, *, command: str = "") -> TrainState:
    """Runs, or goes on with, the run in `workdir`; returns the final state.

    Raises:
        ConfigError, data.DataError, weights and context errors: before the first step, each
        with the setting to change.
    """
    run, state, stream = _open(cfg, workdir, command)
    book = Logbook(workdir, step=int(state.step))
    with jax.set_mesh(run.mesh):
        if int(state.step) == 0:
            _evaluate(run, state, book)
        for step in range(int(state.step) + 1, cfg.steps + 1):
            clock = Clock(step, cfg.steps)
            with clock.phase("rollout"):
                sampled = _sample(run, state, *stream.take(cfg.rollout.prompts), step)
            with clock.phase("verify"):
                verdicts = _verify(sampled)
                rewards, valid, success = _outcomes(verdicts, cfg)
            with clock.phase("context"):
                plan = _choose_peers(run, sampled, success, valid, step)
                inputs, contexts, chats = context.teacher_inputs(
                    sampled.problems, sampled.texts, plan, run.tokenizer, cfg=cfg.context
                )
                batch = _batch(run, sampled, inputs, rewards, valid)
            with clock.phase("update"):
                state, logged = run.update(state, batch)
                values = {name: ratio.mean() for name, ratio in jax.device_get(logged).items()}
            values |= _group_metrics(sampled, rewards, valid, success, plan, contexts)
            values |= clock.seconds()
            values["tokens_per_second"] = float(sampled.mask.sum()) / values["seconds"]
            book.scalars(step, "train", values)
            _say(step, cfg, values)
            inactive.warn(step, values, rewards, valid, success, cfg)
            if step % cfg.dump_every == 0:
                book.rollouts(step, _readable(run, sampled, verdicts, contexts, chats))
            if step % cfg.eval.every == 0 or step == cfg.steps:
                _evaluate(run, state, book)
            if step % cfg.checkpoint.every == 0 or step == cfg.steps:
                meta = {"position": stream.position}
                checkpoint.save(workdir / "checkpoints", state, meta, keep=cfg.checkpoint.keep)
    book.close()
    log.info("%s", final_table(workdir))
    return state


def _open(cfg: Config, workdir: pathlib.Path, command: str):
    """Everything before the first step: (run, state, stream). All input errors come from here."""
    begun = time.perf_counter()
    _claim(cfg, workdir, command)
    mesh = sharding.make_mesh(cfg.mesh)
    shards = sharding.row_shards(mesh)
    micro = cfg.rollout.prompts * cfg.rollout.group // cfg.optimizer.micro_batches
    for name, size in (
        ("rollout.prompts", cfg.rollout.prompts),
        ("eval.batch", cfg.eval.batch),
        ("rows of a micro-batch", micro),
    ):
        if size % shards:
            raise ConfigError(f"{name}={size} cannot be split over {shards} row shards")
    source = weights.resolve(cfg.model.path)
    model = weights.load_config(source, dtype=cfg.model.compute_dtype, remat=cfg.model.remat)
    words = tokenizer.load(source)
    tokenizer.check_vocabulary(words, model)
    train_problems = data.load(cfg.data, "train", seed=cfg.seed)
    eval_problems = data.load(cfg.data, "eval", seed=cfg.seed)
    if len(eval_problems) < cfg.eval.problems:
        raise ConfigError(
            f"eval.problems={cfg.eval.problems}, but the eval split has {len(eval_problems)}"
        )
    # A fixed subset that does not depend on the split's order.
    chosen = np.random.default_rng([cfg.seed, _EVALUATE]).permutation(len(eval_problems))
    eval_problems = [eval_problems[i] for i in chosen[: cfg.eval.problems]]
    for problems in (train_problems, eval_problems):
        context.student_prompts(problems, words, length=cfg.rollout.prompt_length)

    sampler = functools.partial(
        rollout.make_rollout,
        model=model,
        mesh=mesh,
        length=cfg.rollout.response_length,
        stop_ids=words.stop_ids,
        pad_id=words.pad_id,
    )
    run = Run(
        cfg=cfg,
        folder=workdir,
        model=model,
        mesh=mesh,
        tokenizer=words,
        eval_problems=eval_problems,
        sample=sampler(sampling=cfg.rollout, group=cfg.rollout.group),
        sample_eval=sampler(sampling=cfg.eval, group=cfg.eval.samples),
        update=train_step.make_train_step(cfg, model, mesh),
    )
    state, position = _state(run, source)
    stream = data.ProblemStream(train_problems, seed=cfg.seed, position=position)
    log.info(
        "%s: %.1f M parameters, %d train and %d eval problems, %d devices, ready in %.1f s",
        cfg.name,
        sum(x.size for x in jax.tree.leaves(state.params)) / 1e6,
        len(train_problems),
        len(eval_problems),
        mesh.size,
        time.perf_counter() - begun,
    )
    return run, state, stream


def _claim(cfg: Config, workdir: pathlib.Path, command: str) -> None:
    """Writes the run's config, or compares it with the one the folder was made with."""
    path = workdir / "config.json"
    new = json.loads(configs.to_json(cfg))
    if path.exists():
        old = json.loads(path.read_text())
        differ = sorted(
            name
            for name in new.keys() | old.keys()
            if name not in _FREE_TO_CHANGE and new.get(name) != old.get(name)
        )
        if differ:
            raise ConfigError(
                f"{workdir} holds a run with another config (different: {', '.join(differ)}); "
                "choose another --workdir, or use the settings of its config.json"
            )
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(path, configs.to_json(cfg) + "\n")
    write_text(workdir / "command.txt", command + "\n")


def _state(run: Run, source: pathlib.Path) -> tuple[TrainState, int]:
    """The newest checkpoint's state and data position, or the state before the first step."""
    cfg = run.cfg
    shardings = train_step.state_shardings(cfg, run.model, run.mesh)
    key = jax.random.key(cfg.seed)
    start = functools.partial(train_step.init_state, cfg=cfg)
    saved = checkpoint.steps(run.folder / "checkpoints")
    if saved:
        params, _ = decoder.abstract(run.model)
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            jax.eval_shape(start, params, key),
            shardings,
        )
        state, meta = checkpoint.load(run.folder / "checkpoints", saved[-1], like)
        log.info("going on from the checkpoint of step %d", saved[-1])
        return state, meta["position"]
    params = weights.load_params(source, run.model, shardings=shardings.params)
    return jax.jit(start, out_shardings=shardings)(params, key), 0


def _sample(run: Run, state: TrainState, problems, uids, step: int) -> Sampled:
    """Rollouts of the student, which sees the problem's own messages and nothing else."""
    return _rollouts(run, run.sample, state, problems, uids, _TRAIN, step)


def _rollouts(run, sample, state, problems, uids, purpose, step) -> Sampled:
    prompt, mask = context.student_prompts(
        problems, run.tokenizer, length=run.cfg.rollout.prompt_length
    )
    folds = np.array([purpose, step], np.uint32)
    out = jax.device_get(sample(state.params, prompt, mask, state.key, folds, uids))
    shape = (len(problems), -1)
    response = out.response.reshape(*shape, out.response.shape[-1])
    live = out.response_mask.reshape(response.shape)
    texts = [
        [run.tokenizer.decode(ids[keep].tolist()) for ids, keep in zip(r, m, strict=True)]
        for r, m in zip(response, live, strict=True)
    ]
    return Sampled(
        problems=problems,
        uids=uids,
        prompt=prompt,
        prompt_mask=mask,
        response=response,
        mask=live,
        behaviour_logp=out.behaviour_logp.reshape(response.shape),
        stopped=out.stopped.reshape(shape),
        texts=texts,
    )


def _verify(sampled: Sampled) -> list[list[Verdict]]:
    """One typed verdict per rollout."""
    rows = tqdm(sampled.problems, desc="verify", leave=False, disable=None)
    return [
        [verifiers.verify(problem, text) for text in texts]
        for problem, texts in zip(rows, sampled.texts, strict=True)
    ]


def _outcomes(verdicts, cfg: Config) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rewards f64[P, G], which rows have a verdict bool[P, G], successes bool[P, G]."""
    rewards = np.array([[v.reward for v in row] for row in verdicts])
    valid = np.array([[not v.error for v in row] for row in verdicts])
    return rewards, valid, valid & groups.successes(rewards, threshold=cfg.peers.threshold)


def _choose_peers(run: Run, sampled: Sampled, success, valid, step: int) -> peers.PeerPlan:
    """Who sees whom. A truncated response is no peer, or a failure where the config says so."""
    whole = sampled.stopped | (run.cfg.peers.truncated == "failure")
    return peers.choose(
        success & sampled.stopped,
        valid & whole,
        sampled.texts,
        sampled.mask.sum(axis=2),
        sampled.uids.tolist(),
        seed=run.cfg.seed,
        step=step,
        cfg=run.cfg.peers,
    )


def _batch(run: Run, sampled: Sampled, inputs, rewards, valid) -> Batch:
    """Rows of the update, laid over the mesh. Masked: pads, and rows that teach nothing."""
    cfg = run.cfg
    prompts, group, length = sampled.response.shape
    rows = prompts * group
    used = np.repeat(valid.reshape(rows)[:, None], length, axis=1)
    if cfg.loss.method == "distill":
        used = np.ones((rows, length), bool)  # The teacher needs no verdict of its target.
        if cfg.teacher.no_context == "mask":
            used &= inputs.informed[:, None]
    mask = sampled.mask.reshape(rows, length) & used
    advantage = groups.advantages(rewards, valid, scale_by_std=cfg.loss.scale_by_std)
    batch = Batch(
        prompt=np.repeat(sampled.prompt, group, axis=0),
        prompt_mask=np.repeat(sampled.prompt_mask, group, axis=0),
        response=sampled.response.reshape(rows, length),
        mask=mask,
        behaviour_logp=np.where(mask, sampled.behaviour_logp.reshape(rows, length), 0.0),
        teacher_prompt=inputs.prompt,
        teacher_prompt_mask=inputs.prompt_mask,
        advantage=advantage.reshape(rows),
    )
    return jax.device_put(batch, sharding.rows(run.mesh))


def _group_metrics(sampled, rewards, valid, success, plan, contexts) -> dict[str, float]:
    wins = success.sum(axis=1)
    lengths = sampled.mask.sum(axis=2)
    prompt_tokens = [record.length for record in contexts]
    return {
        "solve_rate": float(success.mean()),
        "reward": float(rewards[valid].mean()) if valid.any() else float("nan"),
        "mixed_groups": float(((wins > 0) & (wins < valid.sum(axis=1))).mean()),
        "all_failed_groups": float((wins == 0).mean()),
        "verifier_errors": int((~valid).sum()),
        "truncated": float((~sampled.stopped).mean()),
        "response_tokens": float(lengths.mean()),
        "response_tokens_max": int(lengths.max()),
        "teacher_prompt_tokens": float(np.mean(prompt_tokens)),
        "teacher_prompt_tokens_max": int(np.max(prompt_tokens)),
        "peer_tokens_cut": int(sum(sum(record.cut) for record in contexts)),
        "peers_dropped": int(sum(record.dropped for record in contexts)),
        **peers.shares(plan, success, sampled.texts),
    }


def _readable(run, sampled, verdicts, contexts, chats) -> Iterator[dict[str, Any]]:
    """One row a rollout for people and for offline use: what was said, seen and judged."""
    group = sampled.response.shape[1]
    for n, (record, chat) in enumerate(zip(contexts, chats, strict=True)):
        p, g = divmod(n, group)
        keep = sampled.mask[p, g]
        verdict = verdicts[p][g]
        yield {
            "problem": sampled.problems[p].id,
            "uid": int(sampled.uids[p]),
            "rollout": g,
            "messages": list(sampled.problems[p].messages),
            "response": sampled.texts[p][g],
            "reward": verdict.reward,
            "feedback": verdict.feedback,
            "error": verdict.error,
            "stopped": bool(sampled.stopped[p, g]),
            "context": dataclasses.asdict(record),
            "teacher_message": chat[-1]["content"] if record.shown else None,
            "response_ids": sampled.response[p, g][keep].tolist(),
            "behaviour_logp": [round(float(x), 6) for x in sampled.behaviour_logp[p, g][keep]],
        }


def _evaluate(run: Run, state: TrainState, book: Logbook) -> None:
    """Held-out solve rate and pass@k of the student as it is; the outcomes are kept as well."""
    cfg, step = run.cfg, int(state.step)
    begun = time.perf_counter()

    def sample(start: int, stop: int):
        numbers = np.arange(start, start + cfg.eval.batch)
        chosen = [run.eval_problems[i] for i in np.minimum(numbers, stop - 1).tolist()]
        # The same keys at every evaluation: differences are the student's, not the draw's.
        out = _rollouts(
            run, run.sample_eval, state, chosen, numbers.astype(np.uint32), _EVALUATE, 0
        )
        verdicts = [
            [verifiers.verify(problem, text) for text in texts]
            for problem, texts in zip(chosen, out.texts, strict=True)
        ]
        _, valid, success = _outcomes(verdicts, cfg)
        real = slice(0, stop - start)
        lengths = out.mask.sum(axis=2)
        return success[real], lengths[real], out.stopped[real], int((~valid[real]).sum())

    bar = functools.partial(tqdm, desc="evaluate", leave=False, disable=None)
    result = evaluate.evaluate(
        sample, len(run.eval_problems), batch=cfg.eval.batch, progress=bar
    )
    table = result.summary(cfg.eval.ks)
    table["seconds"] = time.perf_counter() - begun
    book.scalars(step, "eval", table)
    (run.folder / "evaluations").mkdir(exist_ok=True)
    success = json.dumps(result.success.astype(int).tolist())
    write_text(run.folder / "evaluations" / f"step_{step:06d}.json", success)
    name = f"mean@{cfg.eval.samples}"
    log.info(
        "eval after step %d: %s %.3f [%.3f, %.3f]",
        step,
        name,
        table[name],
        table[f"{name}_low"],
        table[f"{name}_high"],
    )


def final_table(workdir: pathlib.Path) -> str:
    """The student before and after, from the run folder: Markdown, 95 % prompt intervals."""
    records = [r for r in read(workdir) if r["kind"] == "eval"]
    before, after = records[0], records[-1]
    names = [n for n in before if "@" in n and not n.endswith(("_low", "_high"))]
    lines = [
        f"| held-out | before | after {after['step']} steps | gain (paired) |",
        "|---|---|---|---|",
    ]
    outcome = [
        np.array(
            json.loads((workdir / f"evaluations/step_{r['step']:06d}.json").read_text()), bool
        )
        for r in (before, after)
    ]
    mean, (low, high) = evaluate.gain(*outcome)
    for name in names:
        cells = [
            f"{r[name]:.3f} [{r[name + '_low']:.3f}, {r[name + '_high']:.3f}]"
            for r in (before, after)
        ]
        change = f"{after[name] - before[name]:+.3f}"
        if name.startswith("mean@"):
            change = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(f"| {name} | {cells[0]} | {cells[1]} | {change} |")
    return "\n".join(lines)


def _say(step: int, cfg: Config, values: dict[str, float]) -> None:
    parts = [
        f"step {step}/{cfg.steps}",
        f"solved {values['solve_rate']:.3f}",
        f"mixed {values['mixed_groups']:.2f}",
        f"informed {values['informed']:.2f}",
        f"loss {values['loss']:.4f}",
        *([f"div {values['divergence']:.4f}"] if "divergence" in values else []),
        f"entropy {values['entropy']:.3f}",
        f"resp {values['response_tokens']:.0f}",
        f"teacher {values['teacher_prompt_tokens']:.0f}",
        f"{values['tokens_per_second']:.0f} tok/s",
        f"{values['seconds']:.2f} s (roll {values['seconds_rollout']:.2f}, "
        f"verify {values['seconds_verify']:.2f}, context {values['seconds_context']:.2f}, "
        f"update {values['seconds_update']:.2f})",
    ]
    log.info("%s", "  ".join(parts))


class Clock:
    """Times the phases of one step and shows on a terminal which one is running."""

    def __init__(self, step: int, steps: int):
        self._title = f"step {step}/{steps}"
        self._seconds: dict[str, float] = {}

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)

    def seconds(self) -> dict[str, float]:
        parts = {f"seconds_{name}": value for name, value in self._seconds.items()}
        return {"seconds": sum(self._seconds.values()), **parts}


class _Phase:
    def __init__(self, clock: Clock, name: str):
        self._clock, self._name = clock, name

    def __enter__(self):
        title = f"{self._clock._title} {self._name}"
        self._bar = tqdm(desc=title, bar_format="{desc}: {elapsed}", leave=False, disable=None)
        self._begun = time.perf_counter()

    def __exit__(self, *_):
        self._clock._seconds[self._name] = time.perf_counter() - self._begun
        self._bar.close()


def setup_logging() -> None:
    """Messages of the package on stdout, warnings loud; called by the command line only."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False  # Other libraries give the root logger handlers of their own.
