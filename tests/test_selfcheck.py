"""Every self check passes on a sound run, and stops with its cause when its object breaks."""

import dataclasses
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from mopd_jax import cli, experience, losses, selfcheck, verifiers
from mopd_jax import flags as flags_of
from mopd_jax.config import Config, LossConfig, RolloutConfig, TeacherConfig, methods
from mopd_jax.contexts import render
from mopd_jax.kernels import Divergence
from mopd_jax.models import scoring
from mopd_jax.records import Sampled, Verdict
from mopd_jax.run.opening import open_run
from mopd_jax.selfcheck import SelfCheckError, loss, prompts, rollouts
from mopd_jax.update import objectives, preferences, teacher

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
SMALL = {
    "rollout.prompts": 8,
    "rollout.group": 4,
    "eval.problems": 8,
    "eval.samples": 4,
    "eval.batch": 8,
    "eval.ks": (1,),
}


def parse(folder, variant="mopd", **changes):
    settings = {**SMALL, **{k.replace("__", "."): v for k, v in changes.items()}}
    words = [f"--config={CONFIGS}/quickstart.py:{variant}", f"--workdir={folder}"]
    return flags_of.parse(
        words + [f"--config.{name}={value}" for name, value in settings.items()]
    )


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(run, state, problems) of the quick start, before its first step."""
    cfg, folder = parse(tmp_path_factory.mktemp("run") / "run")
    run, state, stream, _ = open_run(cfg, folder, command="", devices=jax.devices()[:1])
    return run, state, stream.peek(selfcheck.PROBLEMS)[0]


@pytest.fixture(scope="module")
def first(opened):
    """(sampled, batch) of the first step."""
    run, state, _ = opened
    problems = run.eval_problems
    with jax.set_mesh(run.mesh):
        sampled = experience.sample(
            run,
            run.sample,
            state,
            problems,
            np.arange(8, dtype=np.uint32),
            purpose=experience.TRAIN,
            step=1,
        )
        verdicts = experience.verify(run, sampled)
        made = experience.make_batch(run, experience.add_contexts(run, sampled, verdicts, 1))
    return sampled, made


@pytest.fixture
def fails():
    """Calls; returns the one line of its complaint, which names the check."""

    def call(name, check, *args, **options):
        with pytest.raises(SelfCheckError) as error:
            check(*args, **options)
        message = str(error.value)
        assert message.startswith(f"self check '{name}': ")
        assert "\n" not in message
        return message

    return call


def with_context(run, **changes):
    made = dataclasses.replace(run.cfg.context, **changes)
    return dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, context=made))


# The known case.

GOLDEN = {
    "forward_kl": (0.0920328502, (0.2, -0.1, -0.1)),
    "reverse_kl": (0.0851228260, (0.1759445874, -0.0981175868, -0.0778270007)),
    "jsd": (0.0219011790, (0.0459971487, -0.0245873806, -0.0214097681)),
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_the_definitions_are_the_golden_values(kind):
    p, q = loss.STUDENT[0], loss.TEACHER[0]
    value, slopes = GOLDEN[kind]
    assert loss.divergence(p, q, kind) == pytest.approx(value, abs=1e-10)
    for v, moved in enumerate(1e-5 * np.eye(3)):
        up, down = (
            loss.token_loss(np.log(p) + s * moved, 0, Divergence(kind)) for s in (1, -1)
        )
        assert (up - down) / 2e-5 == pytest.approx(slopes[v], abs=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.01, 0.3, 0.9, 1.0])
def test_the_definitions_are_the_oracle(alpha):
    for p, q in zip(loss.STUDENT, loss.TEACHER, strict=True):
        kind = {0.0: "forward_kl", 1.0: "reverse_kl"}.get(alpha, "jsd")
        want = oracles.divergence(np.log(p), np.log(q), kind, alpha)
        assert loss.divergence(p, q, "jsd", alpha=alpha) == pytest.approx(want)


LOSSES = [
    {},
    {"divergence": Divergence(alpha=0.3), "aggregation": "token-mean"},
    {
        "divergence": Divergence("forward_kl", support="student"),
        "aggregation": "seq-mean-token-sum",
    },
    {"divergence": Divergence("reverse_kl", support="sampled"), "every_row": True},
    {"divergence": Divergence(support="union", top_k=1), "importance_cap": None},
    {"divergence": Divergence(clip=0.02), "aggregation": "seq-mean-step-mean"},
    {"divergence": Divergence("reverse_kl", clip=0.1, support="teacher", top_k=2)},
    {
        "divergence": Divergence(alpha=1.0, support="teacher", tail=False),
        "importance_cap": 0.3,
    },
    {"method": "grpo", "aggregation": "seq-mean-token-sum-norm"},
    {"method": "dpo"},
    {"method": "sft"},
]


def of_loss(**fields):
    return Config(loss=LossConfig(**fields), rollout=RolloutConfig(temperature=0.7))


@pytest.mark.parametrize("fields", LOSSES, ids=str)
def test_the_loss_is_what_its_settings_say(fields):
    cfg = of_loss(**fields)
    result = loss.check(cfg)
    assert not result.skipped
    due = {"distill": ("weights", "loss", "slopes"), "grpo": ("weights", "slopes")}
    due |= {"dpo": ("slopes",), "sft": ("weights",)}
    assert tuple(result.numbers) == due[cfg.loss.method]
    assert all(error < 1e-6 for error in result.numbers.values())


@pytest.mark.parametrize(
    ("said", "done"),
    [
        (Divergence(alpha=0.3), Divergence(alpha=0.7)),
        (Divergence("forward_kl"), Divergence("reverse_kl")),
        (Divergence(support="student", top_k=1), Divergence()),
    ],
    ids=str,
)
def test_another_divergence_than_the_settings_say(monkeypatch, fails, said, done):
    whole = losses.distill_loss

    def other(*args, **options):
        return whole(*args, **(options | {"divergence": done}))

    monkeypatch.setattr(losses, "distill_loss", other)
    message = fails("loss", loss.check, of_loss(divergence=said))
    assert "alpha or the direction of the divergence is not what the settings say" in message
    assert str(said) in message


def test_a_teacher_that_is_learnt(monkeypatch, fails):
    whole = losses.distill_loss

    def turned(student, teacher, *args, **options):
        return whole(teacher, student, *args, **options)

    monkeypatch.setattr(losses, "distill_loss", turned)
    # A symmetric divergence has the same value; its gradient goes elsewhere.
    message = fails("loss", loss.check, of_loss(importance_cap=None))
    assert "the gradient does not go where the settings say" in message


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({}, {"every_row": True}),
        ({"aggregation": "token-mean"}, {"aggregation": "seq-mean-token-mean"}),
        ({"method": "sft"}, {"aggregation": "seq-mean-token-sum"}),
        (
            {"method": "grpo", "aggregation": "token-mean"},
            {"aggregation": "seq-mean-token-sum"},
        ),
    ],
    ids=str,
)
def test_another_denominator_than_the_settings_say(monkeypatch, fails, fields, change):
    made = objectives.token_weights
    monkeypatch.setattr(
        objectives, "token_weights", lambda b, cfg: made(b, dataclasses.replace(cfg, **change))
    )
    cfg = of_loss(**fields)
    message = fails("loss", loss.check, cfg)
    assert f"aggregation {cfg.loss.aggregation!r} does not divide by what it should" in message


@pytest.mark.parametrize(
    ("method", "module", "name"),
    [("grpo", losses, "grpo_loss"), ("simpo", preferences, "preference_loss")],
)
def test_a_direction_turned_round(monkeypatch, fails, method, module, name):
    whole = getattr(module, name)

    def turned(*args, **options):
        return jax.tree.map(jnp.negative, whole(*args, **options)[0]), None

    if method == "simpo":

        def turned(score, *args, **options):
            return whole(-score, *args, **options)

    monkeypatch.setattr(module, name, turned)
    assert "the gradient does not go" in fails("loss", loss.check, of_loss(method=method))


def test_what_is_not_a_number_does_not_pass(monkeypatch, fails):
    def nothing(student, *args, **options):
        return jnp.sum(student.states) * jnp.nan, None

    monkeypatch.setattr(losses, "distill_loss", nothing)
    assert "off by nan" in fails("loss", loss.check, of_loss())


# Prompts.


@pytest.fixture(scope="module")
def methods_of(opened):
    """A run of any method with the quick start's tokenizer."""

    def make(variant):
        run = opened[0]
        cfg, _ = parse(run.folder, variant)
        return dataclasses.replace(run, cfg=cfg)

    return make


@pytest.mark.parametrize("variant", methods.METHODS)
def test_prompts_of_every_method_pass(opened, methods_of, variant):
    run, problems = methods_of(variant), opened[2]
    head = prompts.header(run, problems)
    assert head.numbers["header_tokens"] == 1
    shows = run.cfg.peers.successes + run.cfg.peers.failures > 0 or variant == "opsd"
    assert (head.numbers["rows_with_context"] > 0) == shows
    if shows and variant != "control_shell":
        assert head.numbers["rows_cut"] > 0
    found = prompts.gold(run, problems)
    assert (found.numbers["shown"] > 0) == (run.cfg.context.gold != "off")
    assert found.numbers["student_prompts"] == len(problems)
    assert found.numbers["teacher_prompts"] >= len(problems)


def test_a_header_that_is_cut(opened, fails, monkeypatch):
    left_pad = render.left_pad

    def cut(rows, length, pad):
        return left_pad([row[: length - 12] for row in rows], length, pad)

    monkeypatch.setattr(render, "left_pad", cut)
    run, _, problems = opened
    run = with_context(run, teacher_prompt_length=30)
    run = dataclasses.replace(
        run, cfg=dataclasses.replace(run.cfg, rollout=RolloutConfig(prompt_length=20))
    )
    message = fails("header", prompts.header, run, problems)
    assert "the teacher's prompt ends with" in message
    assert "(1 tokens)" in message
    assert "check the model's chat template" in message


def test_a_header_that_only_the_limit_cuts(opened, fails, monkeypatch):
    whole = render.teacher_inputs

    def cut(*args, cfg, **options):
        inputs, records, chats = whole(*args, cfg=cfg, **options)
        if cfg.teacher_prompt_length < 36:
            inputs = dataclasses.replace(inputs, prompt=np.roll(inputs.prompt, 1, axis=1))
        return inputs, records, chats

    monkeypatch.setattr(render, "teacher_inputs", cut)
    message = fails("header", prompts.header, opened[0], opened[2])
    assert "the teacher's prompt, cut to" in message


def test_a_header_for_the_teacher_alone(opened, fails, monkeypatch):
    inner = opened[0].tokenizer

    class Other:
        """Its header changes where peers are shown."""

        def __getattr__(self, name):
            return getattr(inner, name)

        def chat(self, messages):
            ids = inner.chat(messages)
            return [*ids[:-1], inner.stop_ids[0]] if len(ids) > 6 else ids

    run = dataclasses.replace(opened[0], tokenizer=Other())
    assert "12 of 12 rows" in fails("header", prompts.header, run, opened[2])


def test_a_template_without_a_header(opened):
    words = types.SimpleNamespace(header=lambda messages: [])
    run = dataclasses.replace(opened[0], tokenizer=words)
    assert "no assistant header of its own" in prompts.header(run, opened[2]).skipped


def test_gold_in_a_students_prompt(opened, fails, monkeypatch):
    whole = render.student_prompts

    def leaks(problems, tokenizer, **options):
        shown = [
            dataclasses.replace(p, messages=({"role": "user", "content": p.answer},))
            for p in problems
        ]
        return whole(shown, tokenizer, **options)

    monkeypatch.setattr(render, "student_prompts", leaks)
    message = fails("gold", prompts.gold, opened[0], opened[2])
    assert "the student's prompt has the problem's answer" in message


@pytest.mark.parametrize("field", ["answer", "solution", "meta"])
def test_gold_in_a_teachers_prompt(opened, fails, monkeypatch, field):
    whole, show = render.render, True
    run, _, problems = opened
    problems = [
        dataclasses.replace(p, meta={"tests": [{"in": "1", "out": ("2",)}]}) for p in problems
    ]
    kinds = {"meta": lambda p: p.meta["tests"][0]["out"][0]}

    def leaks(problem, blocks, cfg, **options):
        *before, last = whole(problem, blocks, cfg, **options)
        said = kinds.get(field, lambda p: getattr(p, field))(problem)
        return [*before, {**last, "content": f"{last['content']} {said}"}] if show else before

    monkeypatch.setattr(render, "render", leaks)
    message = fails("gold", prompts.gold, run, problems)
    assert f"teacher prompts have the problem's {field} in them" in message
    # Gold that is asked for by name may be shown; it is counted.
    named = with_context(run, gold="answer")
    if field == "answer":
        assert prompts.gold(named, problems).numbers["shown"] > 0
    else:
        assert "does not ask for it" in fails("gold", prompts.gold, named, problems)


@pytest.mark.parametrize("declared", [False, True])
def test_gold_in_feedback(opened, fails, monkeypatch, declared):
    def judge(problem, text):
        said = f"d01 not {problem.answer}"
        return Verdict(0.0, feedback=said, feedback_has_gold=declared)

    monkeypatch.setitem(verifiers.VERIFIERS, "codebook", judge)
    run = with_context(opened[0], feedback="always")
    if declared:
        assert prompts.gold(run, opened[2]).numbers["shown"] == 0
    else:
        message = fails("gold", prompts.gold, run, opened[2])
        assert "verifier 'codebook' writes the gold answer into feedback" in message
    # Asked for by name, it is not looked at.
    named = with_context(opened[0], feedback="always", feedback_with_gold=True)
    assert prompts.gold(named, opened[2]).numbers["shown"] == 0


# Rollouts.


def test_the_first_rollouts_pass(opened, first, tmp_path, caplog):
    run, state, problems = opened
    run = dataclasses.replace(run, folder=tmp_path)
    caplog.set_level("INFO")
    with jax.set_mesh(run.mesh):
        before = selfcheck.before_rollouts(run, problems)
        results = selfcheck.before_update(run, state, *first, before)
    assert not any(r.skipped for r in results)
    mask, sampler, teacher = (r.numbers for r in results[3:])
    assert mask["rows"] == mask["rows_trained"] == 32
    assert mask["tokens"] == first[0].mask.sum()
    assert sampler["max"] < 1e-5
    assert teacher["max"] == 0
    line = "self checks: 6 pass (loss, header, gold, mask, sampler, teacher)"
    assert caplog.messages == [line]
    record = json.loads((tmp_path / "self_checks.json").read_text())
    assert record["before_step"] == 1
    assert [c["name"] for c in record["checks"]] == [r.name for r in results]


def test_what_does_not_apply_is_said(opened, first, tmp_path, caplog):
    run, state, _ = opened
    run = dataclasses.replace(run, folder=tmp_path, saved=types.SimpleNamespace())
    later = dataclasses.replace(state, step=jnp.int32(4))
    caplog.set_level("INFO")
    with jax.set_mesh(run.mesh):
        selfcheck.before_update(run, later, *first, [])
    sampler = "sampler does not apply: the rollouts are not of this student"
    teacher = "teacher does not apply: student and teacher have moved in 4 steps"
    assert caplog.messages == [f"self checks: 1 pass (mask); {sampler}; {teacher}"]
    assert json.loads((tmp_path / "self_checks.json").read_text())["before_step"] == 5


def test_a_teacher_that_need_not_be_the_student(opened, tmp_path):
    run, state, _ = opened
    assert rollouts.other_teacher(run.cfg, state) == ""
    moved = dataclasses.replace(state, step=jnp.int32(4))
    assert "moved in 4 steps" in rollouts.other_teacher(run.cfg, moved)
    grpo, _ = parse(tmp_path, "grpo")
    assert rollouts.other_teacher(grpo, state) == "loss.method 'grpo' has no teacher"
    itself = dataclasses.replace(run.cfg, teacher=TeacherConfig(kind="student"))
    assert rollouts.other_teacher(itself, moved) == ""
    outside = TeacherConfig(kind="external", path="elsewhere")
    outside = dataclasses.replace(run.cfg, teacher=outside)
    assert "weights of its own" in rollouts.other_teacher(outside, state)


@pytest.mark.parametrize("kind", ["student", "trust_region"])
def test_other_kinds_of_teachers_start_as_the_student(opened, first, kind, tmp_path):
    run, state, _ = opened
    cfg = dataclasses.replace(run.cfg, teacher=TeacherConfig(kind=kind))
    run = dataclasses.replace(run, cfg=cfg, folder=tmp_path)
    teacher_params = {} if kind == "student" else state.teacher
    with jax.set_mesh(run.mesh):
        given = dataclasses.replace(state, teacher=teacher_params)
        found = selfcheck.before_update(run, given, *first, [])
    assert {r.name: r.skipped for r in found}["teacher"] == ""


def test_a_teacher_that_reads_the_students_prompt(opened, first, fails, monkeypatch):
    run, state, _ = opened
    real = teacher.teacher_output

    def wrong(teacher_params, student, batch, **options):
        return real(teacher_params, student, batch, **options | {"plain": True})

    monkeypatch.setattr(teacher, "teacher_output", wrong)
    with jax.set_mesh(run.mesh):
        message = fails("teacher", selfcheck.before_update, run, state, *first, [])
    assert "or reads another prompt" in message


def test_an_empty_context_shows_no_gold_either(opened, first):
    run, sampled = opened[0], first[0]
    rows = rollouts.spread_rows(run, sampled)
    for given in (run, with_context(run, gold="answer")):
        read = rollouts.with_plain_prompts(given, rows)
        assert (read.prompt[:, -6:] == rows.prompt).all()
        assert read.prompt_mask.sum() == rows.prompt_mask.sum()


def test_a_teacher_with_other_weights(opened, first, fails):
    run, state, _ = opened
    other = jax.tree.map(lambda x: x * 1.001, state.teacher)
    with jax.set_mesh(run.mesh):
        changed = dataclasses.replace(state, teacher=other)
        message = fails("teacher", selfcheck.before_update, run, changed, *first, [])
    assert "a teacher with an empty context differs from the student by" in message


def test_a_teacher_that_reads_another_prompt(opened, first, fails, monkeypatch):
    whole = render.render

    def another(problem, blocks, cfg, **options):
        *before, last = whole(problem, blocks, cfg, **options)
        return [*before, {**last, "content": f"{last['content']} r0"}]

    monkeypatch.setattr(render, "render", another)
    run, state, _ = opened
    with jax.set_mesh(run.mesh):
        message = fails("teacher", selfcheck.before_update, run, state, *first, [])
    assert "an empty context renders the problem's own messages" in message


@pytest.mark.parametrize("cause", ["temperature", "positions", "shift"])
def test_a_sampler_that_disagrees(opened, first, fails, monkeypatch, cause):
    run, state, _ = opened
    sampled, batch = first
    if cause == "temperature":
        cold = dataclasses.replace(run.cfg.rollout, temperature=0.5)
        run = dataclasses.replace(run, cfg=dataclasses.replace(run.cfg, rollout=cold))
    elif cause == "positions":
        whole = scoring.response_states

        def shifted(params, prompt, mask, *args, **options):
            return whole(
                params,
                prompt,
                mask & (np.arange(mask.shape[1]) % 2 == 0)[None],
                *args,
                **options,
            )

        monkeypatch.setattr(scoring, "response_states", shifted)
    else:
        late = np.roll(sampled.sampled_logp, 1, axis=2)
        sampled = dataclasses.replace(sampled, sampled_logp=late)
    with jax.set_mesh(run.mesh):
        message = fails("sampler", selfcheck.before_update, run, state, sampled, batch, [])
    assert "sampler and scorer differ by" in message
    assert "model.compute_dtype='float32'" in message


def test_limits_depend_on_the_dtype_and_the_temperature(fails):
    cfg = Config()
    rows = rollouts.ScoredRows([], None, None, None, np.ones((1, 4), bool), np.zeros((1, 4)))
    near = np.full((1, 4), 0.05)
    assert "0.05 nats a token" in fails("sampler", rollouts.sampler, rows, near, cfg)
    half = dataclasses.replace(
        cfg, model=dataclasses.replace(cfg.model, compute_dtype="bfloat16")
    )
    assert rollouts.sampler(rows, near, half).numbers["mean"] == pytest.approx(0.05)
    fails("sampler", rollouts.sampler, rows, near * 3, half)
    cold = dataclasses.replace(half, rollout=RolloutConfig(temperature=0.25))
    rollouts.sampler(rows, near * 3, cold)
    fails("sampler", rollouts.sampler, rows, near * np.nan, half)


SAMPLED = {
    "response": np.array(
        [[[5, 6, 1, 0], [1, 0, 0, 0]], [[5, 6, 7, 8], [5, 6, 7, 1]]], np.int32
    ),
    "mask": np.array([[[1, 1, 1, 0], [1, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 1, 1]]], bool),
    "stopped": np.array([[True, True], [False, True]]),
    "prompt_mask": np.array([[0, 1, 1], [1, 1, 1]], bool),
}


def completed(trained=None, **changes):
    """`completions` of two problems with two rollouts; stop id 1, pad id 0."""
    made = {**SAMPLED, **changes}
    logp = changes.get("sampled_logp", np.where(made["mask"], -0.5, 0.0))
    sampled = Sampled(
        problems=[types.SimpleNamespace(id="a"), types.SimpleNamespace(id="b")],
        uids=np.arange(2),
        prompt=np.zeros((2, 3), np.int32),
        prompt_mask=made["prompt_mask"],
        response=made["response"],
        mask=made["mask"],
        sampled_logp=logp,
        stopped=made["stopped"],
        texts=[],
    )
    batch = types.SimpleNamespace(
        mask=made["mask"].reshape(4, 4) if trained is None else trained,
        response=SAMPLED["response"].reshape(4, 4),
        prompt_mask=np.repeat(made["prompt_mask"], 2, axis=0),
    )
    return rollouts.completions(sampled, batch, (1, 3), 0)


def test_masks_that_are_right():
    numbers = {"rows": 4, "rows_trained": 4, "stopped": 3, "tokens": 12}
    assert completed().numbers == numbers
    some = SAMPLED["mask"].reshape(4, 4) & np.array([1, 0, 1, 0], bool)[:, None]
    assert completed(some).numbers == {**numbers, "rows_trained": 2}


def put(name, index, value):
    changed = SAMPLED[name].copy()
    changed[index] = value
    return {name: changed}


@pytest.mark.parametrize(
    ("changes", "cause", "row"),
    [
        (put("mask", (0, 0, 1), False), "has a hole or is empty", "rollout 0 of problem 'a'"),
        (put("mask", (0, 1, 0), False), "has a hole or is empty", "rollout 1 of problem 'a'"),
        (
            put("mask", (0, 0, 3), True),
            "goes on after a stop token",
            "rollout 0 of problem 'a'",
        ),
        (
            put("response", (1, 0, 1), 3),
            "goes on after a stop token",
            "rollout 0 of problem 'b'",
        ),
        (put("mask", (1, 1, 3), False), "ends before a stop token", "rollout 1 of problem 'b'"),
        (put("stopped", (1, 0), True), "'stopped' is not what", "rollout 0 of problem 'b'"),
        (put("response", (0, 1, 2), 9), "follows the mask", "rollout 1 of problem 'a'"),
        (put("prompt_mask", (0, 2), False), "does not end where", "2 of 4 rows"),
        (put("prompt_mask", (1, 1), False), "does not end where", "rollout 0 of problem 'b'"),
        (put("response", (0, 0, 0), 9), "another response is trained on", "1 of 4 rows"),
        ({"trained": np.eye(4, dtype=bool)}, "a part of the response", "4 of 4 rows"),
        ({"trained": np.ones((4, 4), bool)}, "a part of the response", "2 of 4 rows"),
    ],
)
def test_masks_that_are_wrong(fails, changes, cause, row):
    message = fails("mask", completed, **changes)
    assert cause in message
    assert row in message
    assert "stop ids (1, 3) and pad id 0" in message


def test_log_probs_behind_the_mask(fails):
    loud = np.full(SAMPLED["mask"].shape, -0.5)
    assert "follows the mask" in fails("mask", completed, sampled_logp=loud)


def test_positions_that_do_not_go_on(fails, monkeypatch):
    monkeypatch.setattr(
        rollouts.decoder, "positions_of", lambda mask: np.cumsum(mask | True, axis=1) - 1
    )
    message = fails("mask", completed)
    assert "positions do not go on from the prompt: 2 of 4 rows" in message


# The run.


def test_a_run_that_fails_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        losses, "token_weights", lambda mask, **_: jnp.asarray(mask, jnp.float32)
    )
    words = [f"--config={CONFIGS}/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["train", *words, *[f"--config.{k}={v}" for k, v in SMALL.items()]]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mopd: self check 'loss': aggregation")
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "self_checks.json").exists()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""
