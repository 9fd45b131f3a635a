"""No dead setting: changing a field of the config changes something that is computed.

What a step would compute is read from its jaxpr, in which every static number stands; peers and
contexts are made. Settings of the loop itself are seen in its run folder (`test_train.py`).
"""

import dataclasses

import jax
import numpy as np
import pytest

from mopd_jax import experience
from mopd_jax.config import Config, ContextConfig, DataConfig, MeshConfig, RolloutConfig
from mopd_jax.contexts import blocks, controls, peers, render
from mopd_jax.contexts.peers import Entry, PeerPlan
from mopd_jax.data import sources
from mopd_jax.errors import ConfigError
from mopd_jax.kernels import Divergence
from mopd_jax.models import decoder, sharding, tokenizer
from mopd_jax.records import Outcomes, Verdict
from mopd_jax.rollouts import generate
from mopd_jax.sandbox import worker
from mopd_jax.testing import random_batch, tiny_decoder
from mopd_jax.update import reasoning_steps, train_step
from mopd_jax.update.teacher import Models

BASE = Config(
    rollout=RolloutConfig(prompts=2, group=4, prompt_length=6, response_length=4),
    context=ContextConfig(
        teacher_prompt_length=60,
        success="<ok> {text}",
        closing="r0",
    ),
)


def changed(section, **fields):
    """BASE with other values in one section."""
    made = dataclasses.replace(getattr(BASE, section), **fields)
    # Summaries need an instruction that asks for them; only `instructed` reads it.
    asks = {"data": DataConfig(instruction="<summary>")} if section == "peers" else {}
    return dataclasses.replace(BASE, **{**asks, section: made})


def update(cfg):
    """The jaxpr of an update, as text."""
    model = tiny_decoder(dtype=cfg.model.compute_dtype, remat=cfg.model.remat)
    rows = random_batch(0, rows=8, prompt=6, teacher_prompt=30, response=40, vocab=64)
    if cfg.loss.aggregation == "seq-mean-step-mean":
        rows = dataclasses.replace(rows, steps=np.zeros(rows.mask.shape, np.int32))
    params, _ = decoder.abstract(model)
    options = {"cfg": cfg, "models": Models.of(cfg, model)}
    state = jax.eval_shape(
        lambda p, k: train_step.init_state(p, k, **options), params, jax.random.key(0)
    )
    step = jax.make_jaxpr(lambda s, b: train_step.train_step(s, b, **options))
    return str(step(state, rows))


def sampler(cfg, which):
    """The jaxpr of a rollout, as text."""
    sampling = getattr(cfg, which)
    model, mesh = tiny_decoder(), sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    group = cfg.rollout.group if which == "rollout" else cfg.eval.samples
    run = generate.make_rollout(
        sampling,
        group=group,
        model=model,
        mesh=mesh,
        length=cfg.rollout.response_length,
        stop_ids=(1,),
        pad_id=0,
    )
    prompt = np.zeros((2, cfg.rollout.prompt_length), np.int32)
    params, _ = decoder.abstract(model)
    arrays = (prompt, prompt > 0, jax.random.key(0), np.zeros(2, np.uint32))
    return str(jax.make_jaxpr(run)(params, *arrays, np.zeros(2, np.uint32)))


def plan(cfg):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, (6, 8))
    # Rollout i of prompt p shares i words with its neighbour, so that rules of likeness differ.
    texts = [[f"p{p} r{i} " + "w " * (5 * i % 8) for i in range(8)] for p in range(6)]
    texts[5][:3] = ["said by three"] * 3
    success = np.array([[g < wins for g in range(8)] for wins in (0, 1, 2, 3, 4, 8)])
    outcomes = Outcomes(success * 1.0, success | (lengths > 1), success)
    use = peers.usage(outcomes, cfg.peers)
    everyone = np.ones_like(success)
    candidates = peers.Candidates(success, everyone, texts, lengths, list(range(6)))
    options = {"seed": cfg.seed, "step": 1, "cfg": cfg.peers, "rows": use.has_context}
    match = None
    if cfg.peers.control == "off":
        made = peers.choose(candidates, **options)
    else:
        asked = [f"{p}" for p in range(6)]
        made, match = controls.choose(candidates, **options, tokens=lengths, questions=asked)
    return made.entries, made.bare.tolist(), str(match), use.reasons.tolist()


def contexts(cfg):
    words = tokenizer.load("builtin:codebook")
    (problem, *_) = sources.load(Config().data, "train", seed=0)
    brief = "<sum> r8 </sum> <summary> r9 </summary> r5 1 2 3 4 5"
    texts = [["r1 1 2 3 4 5", "r2 2 3 4 5 6", "<think> r3 </think> r3 4", brief, "r6 7 8 9"]]
    success = "neutral" if cfg.peers.control == "random" else "success"
    failure = "neutral" if cfg.peers.control == "random" else "failure"
    first = (
        Entry(0, 1, True, success),
        Entry(0, 2, True, success),
        Entry(0, 3, True, "summary_success"),
        Entry(0, 4, False, failure),
    )
    second = (Entry(0, 4, False, "summary_failure"),)
    shown = PeerPlan(((first, second, (), (), ()),), np.zeros((1, 5), bool))
    verdicts = [[Verdict(0.0, feedback="r7 6 5 4", feedback_has_gold=i == 4) for i in range(5)]]
    advice, withheld = experience.own_feedback(
        verdicts, np.zeros((1, 5), bool), np.ones((1, 5), bool), cfg.context
    )
    texts = blocks.shown_texts(texts, words, cfg.context)
    inputs, records, chats = render.teacher_inputs(
        [problem], texts, shown, words, cfg=cfg.context, feedback=advice
    )
    return inputs.prompt.tolist(), records, chats, withheld


def neutral_contexts(cfg):
    peers = dataclasses.replace(cfg.peers, control="random")
    return contexts(dataclasses.replace(cfg, peers=peers))


def instructed(cfg):
    return [
        p.messages for s in ("train", "eval") for p in sources.load(cfg.data, s, seed=0)[:3]
    ]


def rollout_and_update(cfg):
    return sampler(cfg, "rollout"), update(cfg)


def sandboxed(cfg):
    return worker.make_job(worker.Program("print(1)"), cfg.sandbox)


def evaluation(cfg):
    return sampler(cfg, "eval")


def stepwise(cfg):
    """The steps of responses, as the host finds them."""
    ids = np.array([[1, 2, 3, 4, 1]])
    return reasoning_steps.step_ids(
        ids, ids > 0, lambda i: "?a0b1"[i[0]], cfg.loss.step_separator
    ).tolist()


def solution(cfg):
    words = tokenizer.load("builtin:codebook")
    (problem, *_) = sources.load(Config().data, "train", seed=0)
    empty = peers.without_peers(1, 2)
    shown = render.teacher_inputs([problem], [["r1", "r2"]], empty, words, cfg=cfg.context)
    return shown[1:]


GRPO = {"method": "grpo"}
CASES = [
    (update, "model", {"compute_dtype": "bfloat16"}, {}),
    (update, "model", {"remat": True}, {}),
    (update, "model", {"head_chunk": 16}, {}),
    *[
        (update, "loss", change, given)
        for change, given in [
            ({"method": "grpo"}, {}),
            ({"divergence": Divergence("reverse_kl")}, {}),
            ({"divergence": Divergence(alpha=0.3)}, {}),
            ({"divergence": Divergence(clip=0.1)}, {}),
            (
                {"divergence": Divergence("reverse_kl", support="sampled")},
                {"divergence": Divergence("reverse_kl")},
            ),
            (
                {"divergence": Divergence(support="student", top_k=3)},
                {"divergence": Divergence(support="student", top_k=5)},
            ),
            (
                {"divergence": Divergence(support="union", top_k=3, tail=False)},
                {"divergence": Divergence(support="union", top_k=3)},
            ),
            ({"aggregation": "token-mean"}, {}),
            ({"every_row": True}, {}),
            ({"aggregation": "seq-mean-step-mean"}, {}),
            ({"rollout_cap": 3.0}, {}),
            ({"ratio_base": "sampler"}, {}),
            ({"importance_cap": 3.0}, {"ratio_base": "sampler"}),
            ({"kl_coef": 0.1}, GRPO),
            ({"clip_low": 0.1}, GRPO),
            ({"clip_high": 0.1}, GRPO),
            ({"dual_clip": 5.0}, GRPO),
            ({"method": "sft"}, {}),
            ({"method": "simpo"}, {"method": "dpo"}),
            ({"beta": 0.3}, {"method": "dpo"}),
            ({"margin": 0.3}, {"method": "simpo"}),
            ({"label_smoothing": 0.1}, {"method": "simpo"}),
        ]
    ],
    (update, "teacher", {"kind": "frozen"}, {}),
    (update, "teacher", {"rate": 0.5}, {}),
    (update, "teacher", {"kind": "student"}, {}),
    (update, "teacher", {"kind": "periodic"}, {}),
    (update, "teacher", {"every": 7}, {"kind": "periodic"}),
    (update, "teacher", {"rate": 0.5}, {"kind": "trust_region"}),
    *[
        (update, "optimizer", change, {})
        for change in [
            {"learning_rate": 1.0},
            {"warmup_steps": 3},
            {"beta1": 0.1},
            {"beta2": 0.2},
            {"epsilon": 0.3},
            {"weight_decay": 0.4},
            {"clip_norm": 5.0},
            {"micro_batches": 2},
            {"mini_batches": 2},
            {"epochs": 2},
        ]
    ],
    (rollout_and_update, "rollout", {"temperature": 0.5}, {}),
    *[
        (make, section, change, {})
        for make, section in [(rollout_and_update, "rollout"), (evaluation, "eval")]
        for change in [{"top_p": 0.5}, {"top_k": 5}]
    ],
    (evaluation, "eval", {"temperature": 0.5}, {}),
    (evaluation, "eval", {"samples": 9}, {}),
    (rollout_and_update, "rollout", {"group": 5}, {}),
    (rollout_and_update, "rollout", {"prompt_length": 7}, {}),
    (rollout_and_update, "rollout", {"response_length": 5}, {}),
    *[
        (plan, "peers", change, {})
        for change in [
            {"successes": 1},
            {"failures": 3},
            {"slots": 2},
            {"rule": "longest"},
            {"failure_rule": "longest"},
            {"rule": "most_similar"},
            {"rule": "least_similar"},
            {"exclude": "text"},
            {"summaries": 1},
            {"targets": "failed"},
            {"no_success": "mask"},
            {"no_success": "plain_prompt"},
            {"all_success": "mask"},
            {"all_success": "plain_prompt"},
            *[{"control": name} for name in controls.CONTROLS],
        ]
    ],
    (plan, "peers", {"summary_source": "failure"}, {"summaries": 2}),
    (plan, "peers", {"control_match": "token"}, {"control": "unrelated"}),
    *[
        (contexts, "context", change, {})
        for change in [
            {"teacher_prompt_length": 35},
            {"peer_tokens": 3},
            {"success": "<bad> {text}"},
            {"another_success": "<ok> {text}"},
            {"failure": "<bad> {text}"},
            {"closing": ""},
            {"separator": " <bad> "},
            {"strip_thinking": False},
            {"summary_tag": "sum"},
            {"summary_chars": 5},
            {"feedback": "no_success"},
            {"feedback": "always"},
        ]
    ],
    *[
        (contexts, "context", change, {"feedback": "always"})
        for change in [
            {"feedback_tokens": 2},
            {"feedback_with_gold": True},
        ]
    ],
    (solution, "context", {"gold": "answer"}, {}),
    (solution, "context", {"gold_block": "<bad> {text}"}, {"gold": "solution"}),
    (
        stepwise,
        "loss",
        {"step_separator": "1"},
        {"step_separator": "0", "aggregation": "seq-mean-step-mean"},
    ),
    (neutral_contexts, "context", {"neutral": "<bad> {text}"}, {}),
    *[
        (sandboxed, "sandbox", change, {})
        for change in [
            {"cpu_seconds": 5.0},
            {"wall_seconds": 99.0},
            {"idle_seconds": 9.0},
            {"memory_mb": 99},
            {"processes": 9},
            {"file_mb": 9},
            {"output_kb": 9},
        ]
    ],
    (instructed, "data", {"instruction": "r0"}, {}),
]


@pytest.mark.parametrize(
    ("make", "section", "change", "given"),
    CASES,
    ids=lambda x: next(iter(x), "") if isinstance(x, dict) else str(getattr(x, "__name__", x)),
)
def test_a_change_changes_something(make, section, change, given):
    assert make(changed(section, **(given | change))) != make(changed(section, **given))


def test_every_field_is_in_the_table_or_the_loop():
    """A new setting needs a case here, or is one of those the loop and its files show."""
    tested = {(section, name) for _, section, change, _ in CASES for name in change}
    loop = {
        "checkpoint": {"every", "keep"},
        "data": {"source", "train_path", "eval_path", "options", "held_out", "long_prompts"},
        "eval": {"every", "problems", "batch", "ks"},
        "log": {"wandb", "trackio"},
        "loss": {"scale_by_std", "row_weight", "sft_rows"},
        "mesh": {"data", "fsdp", "tensor"},
        "model": {"path"},
        "peers": {"truncated", "threshold"},
        "rollout": {"prompts", "batch", "policy", "file"},
        "sandbox": {
            "level",
            "workers",
            "python",
            "slow_tests",
        },  # In `test_sandbox.py`, `test_code_tests.py`.
        "teacher": {"no_context", "path", "drift_every", "cache"},
    }
    for section in dataclasses.fields(Config):
        value = getattr(BASE, section.name)
        if not dataclasses.is_dataclass(value):
            continue
        for field in dataclasses.fields(value):
            known = (section.name, field.name) in tested
            assert known or field.name in loop.get(section.name, ()), (section.name, field.name)
    # Of the one record within a section each field is changed, too.
    made = [change["divergence"] for *_, change, _ in CASES if "divergence" in change]
    for field in dataclasses.fields(Divergence):
        assert any(getattr(x, field.name) != field.default for x in made), field.name


@pytest.mark.parametrize("make", [rollout_and_update, evaluation, plan, contexts])
def test_the_same_config_computes_the_same(make):
    """Or the comparisons above would say nothing."""
    assert make(BASE) == make(dataclasses.replace(BASE))


def test_seed_changes_the_draws():
    assert plan(BASE) != plan(dataclasses.replace(BASE, seed=1))
    assert sources.load(BASE.data, "train", seed=0) != sources.load(BASE.data, "train", seed=1)


def test_meshes_are_checked():
    with pytest.raises(ConfigError, match="fsdp=3"):
        sharding.make_mesh(MeshConfig(fsdp=3))
