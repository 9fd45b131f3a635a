"""What is said of a step: shares of rows by what their contexts, as rendered, hold."""

import dataclasses
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from mopd_jax import config, experience, files, saved_rollouts, step_metrics
from mopd_jax import flags as flags_of
from mopd_jax.config import (
    Config,
    ContextConfig,
    LossConfig,
    MeshConfig,
    PeerConfig,
    TeacherConfig,
    methods,
)
from mopd_jax.contexts import controls, peers
from mopd_jax.contexts.render import ContextRecord, ShownPeer
from mopd_jax.models import sharding, tokenizer
from mopd_jax.records import Outcomes, Sampled, Verdict
from mopd_jax.rollouts import schema


def record(shown, succeeded, *, p=0, tokens=0, cut=0, **fields):
    """Of a row that is shown rollouts of prompt p; `tokens` and `cut` are of each."""
    pairs = zip(shown, succeeded, strict=True)
    seen = tuple(
        ShownPeer(p, i, ok, "success" if ok else "failure", tokens, cut) for i, ok in pairs
    )
    fields = {"dropped": 0, "length": 10, "reason": "", "informed": bool(seen)} | fields
    return ContextRecord(seen, **fields)


def rollouts(record):
    return tuple(peer.rollout for peer in record.peers)


def test_shares_by_hand():
    contexts = [
        record((1, 2), (True, False)),
        record((2,), (False,)),
        record((), ()),
        record((), ()),
        record((2,), (True,), p=1),
        record((0,), (False,), p=1),
    ]
    got = step_metrics._shares(contexts)
    assert got == {
        "informed": 4 / 6,
        "shows_success": 2 / 6,
        "shows_failure": 3 / 6,
        "shows_failures_only": 2 / 6,
        "peers_per_row": 5 / 6,
    }


def test_what_verifiers_say_beside_the_reward():
    slow = Verdict(0.0, test_fraction=0.5, format_ok=True, tests_skipped=3)
    verdicts = [
        [slow, Verdict(1.0, test_fraction=1.0)],
        [Verdict(0.0, error="crashed"), Verdict(0.0, format_ok=False)],
    ]
    got = step_metrics.verdict_metrics(verdicts)
    assert got == {"test_fraction": 0.75, "format_ok": 0.5, "tests_skipped": 3}
    assert step_metrics.verdict_metrics([[Verdict(1.0)]]) == {}


def test_groups_without_a_verdict_are_neither_mixed_nor_failed():
    valid = np.array([[True, True], [True, False], [False, False]])
    success = np.array([[True, False], [True, False], [False, False]])
    sampled = Sampled(
        problems=[],
        uids=np.arange(3),
        prompt=None,
        prompt_mask=None,
        response=None,
        mask=np.ones((3, 2, 4), bool),
        sampled_logp=None,
        stopped=np.ones((3, 2), bool),
        texts=[["a", "b"]] * 3,
    )
    contexts = [record((), ())] * 4
    contexts += [record((), (), dropped=1), record((0,), (True,), cut=3)]
    got = step_metrics.group_metrics(sampled, Outcomes(success * 1.0, valid, success), contexts)
    assert got["contexts_clipped"] == 2 / 6
    assert (got["peer_tokens_cut"], got["peers_dropped"]) == (3, 1)
    assert got["mixed_groups"] == 1 / 3
    assert got["all_failed_groups"] == 0
    assert got["all_solved_groups"] == 1 / 3
    assert got["one_success_groups"] == 2 / 3
    assert got["one_failure_groups"] == 1 / 3
    assert got["verifier_errors"] == 3


# Three prompts of four rollouts: mixed, all failed, all succeeded. One response is cut at T.
SUCCESS = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
VALID = np.ones((3, 4), bool)
VALID[0, 3] = False
STOPPED = np.ones((3, 4), bool)
STOPPED[2, 3] = False
TEXTS = [[f"r{p} {g} {g} {p}" for g in range(4)] for p in range(3)]


@pytest.fixture(scope="module")
def words():
    return tokenizer.load("builtin:codebook")


def made(
    words,
    *,
    feedback="r7",
    gold=False,
    teacher="mask",
    texts=TEXTS,
    context=None,
    loss=None,
    **choice,
):
    """(gathered, batch) of one step, without a device's model.

    The problems have no answer, so that whatever reads one fails.
    """
    cfg = Config(
        peers=PeerConfig(**choice),
        context=ContextConfig(
            **{"teacher_prompt_length": 60, "closing": "r0", **(context or {})}
        ),
        rollout=dataclasses.replace(Config().rollout, prompts=3, group=4, prompt_length=6),
        teacher=TeacherConfig(no_context=teacher),
        loss=LossConfig(**(loss or {})),
    )
    run = types.SimpleNamespace(
        cfg=cfg, tokenizer=words, mesh=sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    )
    problems = [
        types.SimpleNamespace(id=f"p{p}", messages=({"role": "user", "content": f"d0{p}"},))
        for p in range(3)
    ]
    sampled = Sampled(
        problems=problems,
        uids=np.array([70, 5, 33], np.uint32),
        prompt=np.zeros((3, 6), np.int32),
        prompt_mask=np.ones((3, 6), bool),
        response=np.ones((3, 4, 5), np.int32),
        mask=np.ones((3, 4, 5), bool),
        sampled_logp=np.zeros((3, 4, 5), np.float32),
        stopped=STOPPED,
        texts=texts,
    )
    verdicts = [
        [
            Verdict(
                float(ok),
                feedback=feedback,
                error="" if judged else "crashed",
                feedback_has_gold=gold,
            )
            for ok, judged in zip(*rows, strict=True)
        ]
        for rows in zip(SUCCESS, VALID, strict=True)
    ]
    gathered = experience.add_contexts(run, sampled, verdicts, 1)
    return gathered, experience.make_batch(run, gathered)


def trained(step):
    """bool[P, G]: rows of which every token is trained on."""
    mask = np.asarray(step[-1].mask).reshape(3, 4, 5)
    assert (mask.all(axis=2) == mask.any(axis=2)).all()
    return mask.all(axis=2)


@pytest.mark.parametrize("teacher", ["mask", "plain_prompt"])
@pytest.mark.parametrize(
    ("peers", "rows"),
    [
        ({}, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]),
        ({"targets": "failed"}, [[0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]),
        (
            {"no_success": "mask", "all_success": "mask"},
            [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]],
        ),
        ({"no_success": "mask"}, [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]]),
        ({"all_success": "mask"}, [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]),
        ({"all_success": "plain_prompt"}, [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_rows_that_are_trained(words, peers, rows, teacher):
    step = made(words, teacher=teacher, **peers)
    assert trained(step).tolist() == np.array(rows, bool).tolist()
    chosen, rendered = step[0].chosen, step[0].contexts
    left_out = (chosen.usage.left_out != "").reshape(-1)
    for record, out, reason in zip(
        rendered.records, left_out, chosen.usage.reasons.reshape(-1), strict=True
    ):
        assert not (out and record.informed)
        assert not reason or record.reason == reason
    got = step_metrics.choice_metrics(chosen, rendered)
    assert got["rows_left_out"] == left_out.mean() == np.mean(np.array(rows) == 0)
    assert got["rows_plain"] == (1 / 3 if peers.get("all_success") == "plain_prompt" else 0)


def test_a_plain_row_is_trained_though_it_is_not_informed(words):
    step = made(words, all_success="plain_prompt", failures=0)
    informed = step[0].contexts.inputs.informed.reshape(3, 4)
    assert not informed[1:].any()
    # The failed group has no context either, and there the teacher's policy masks.
    assert trained(step).tolist() == [[True] * 4, [False] * 4, [True] * 4]


@pytest.mark.parametrize("truncated", ["exclude", "outcome"])
def test_a_truncated_success_is_a_success_or_no_peer(words, truncated):
    """Rollout 3 of the last group is cut at T, and its answer is right all the same."""
    headings = {"success": "<ok> {text}", "another_success": "<ok> {text}"}
    headings["failure"] = "<bad> {text}"
    step = made(words, truncated=truncated, successes=3, context=headings)
    for record, chat in zip(
        step[0].contexts.records[8:11], step[0].contexts.chats[8:11], strict=True
    ):
        content = chat[-1]["content"]
        assert (3 in rollouts(record)) == (truncated == "outcome")
        assert (f"<ok> {TEXTS[2][3]}" in content) == (truncated == "outcome")
        assert {peer.kind for peer in record.peers} == {"success"}
        assert "<bad>" not in content


@pytest.mark.parametrize("control", ["off", *controls.CONTROLS])
def test_peers_are_chosen_by_the_text_that_is_shown(words, control):
    """The last group has four successes; two say the same, and one has only thought."""
    texts = [*TEXTS[:2], ["<think> r1 </think> r4", "<think> r2 </think> r4", "<think> r3", ""]]
    texts[2][3] = "r5"
    step = made(words, texts=texts, truncated="outcome", rule="first", control=control)
    chosen, rendered = step[0].chosen, step[0].contexts
    assert chosen.texts[2] == ["r4", "r4", "", "r5"]
    assert step_metrics.choice_metrics(chosen, rendered)["peers_without_text"] == 1
    for record in rendered.records:
        shown = [(peer.prompt, peer.rollout) for peer in record.peers]
        assert len({chosen.texts[q][i] for q, i in shown}) == len(shown)
        assert record.dropped == 0
        assert (2, 2) not in shown
    # What takes a slot is read.
    if control == "off":
        assert [*map(rollouts, rendered.records[8:])] == [(1, 3), (0, 3), (0, 3), (0,)]
        kept = made(words, texts=texts, context={"strip_thinking": False})
        assert kept[0].chosen.without_text == 0


@pytest.mark.parametrize("exclude", ["rollout", "text"])
def test_the_targets_text_as_it_is_shown_is_counted_or_not_shown(words, exclude):
    """Rollouts 0 and 1 of the last group think otherwise and say the same."""
    texts = [*TEXTS[:2], ["<think> r1 </think> r4", "<think> r2 </think> r4", "r5", "r6"]]
    step = made(words, texts=texts, successes=3, exclude=exclude)
    shown = [sorted(rollouts(record)) for record in step[0].contexts.records[8:10]]
    assert shown == ([[1, 2], [0, 2]] if exclude == "rollout" else [[2], [2]])
    got = step_metrics.choice_metrics(step[0].chosen, step[0].contexts)["own_text_shown"]
    assert got == (2 / 12 if exclude == "rollout" else 0)


@pytest.mark.parametrize("rule", ["most_similar", "least_similar"])
def test_likeness_is_of_the_text_that_is_shown(words, rule):
    """Rollout 1 shares the target's thoughts, rollout 2 its answer."""
    thought = "<think> " + "r9 r8 " * 9 + "</think> "
    texts = [*TEXTS[:2], [thought + "r1 r2", thought + "r3 r4", "r1 r2 r5", "r6"]]
    step = made(words, texts=texts, rule=rule, successes=1)
    seen = rollouts(step[0].contexts.records[8])
    assert seen == ((2,) if rule == "most_similar" else (1,))


def test_feedback_is_of_the_own_failed_attempt(words):
    shown = {}
    for mode in ("off", "no_success", "always"):
        step = made(words, failures=0, context={"feedback": mode})
        records = step[0].contexts.records
        shown[mode] = np.array([r.feedback is not None for r in records]).reshape(3, 4)
        texts = [chat[-1]["content"] for chat in step[0].contexts.chats]
        assert ["r7" in text for text in texts] == shown[mode].reshape(-1).tolist()
        # Rows that read nothing but feedback are trained on.
        assert (trained(step) == step[0].contexts.inputs.informed.reshape(3, 4)).all()
        values = step_metrics.choice_metrics(step[0].chosen, step[0].contexts)
        assert values["shows_feedback"] == shown[mode].mean()
    assert not shown["off"].any()
    failed = VALID & ~SUCCESS  # Not a row without a verdict either.
    assert (shown["always"] == failed).all()
    # Prompt 0's failure is shown a success; the failed group has none to show.
    assert (shown["no_success"] == (failed & (np.arange(3) == 1)[:, None])).all()


def test_feedback_with_gold_is_withheld_and_counted(words):
    options = {"feedback": "always"}
    step = made(words, gold=True, context=options)
    assert step[0].contexts.withheld == 5
    assert (
        step_metrics.choice_metrics(step[0].chosen, step[0].contexts)["feedback_withheld"] == 5
    )
    assert not any("r7" in chat[-1]["content"] for chat in step[0].contexts.chats)
    step = made(words, gold=True, context={**options, "feedback_with_gold": True})
    assert step[0].contexts.withheld == 0
    assert sum("r7" in chat[-1]["content"] for chat in step[0].contexts.chats) == 5
    # Nothing is withheld where there is nothing, or nobody to read it.
    assert made(words, gold=True, feedback=" ", context=options)[0].contexts.withheld == 0
    masks = {"no_success": "mask", "all_success": "mask"}
    assert made(words, gold=True, context=options, **masks)[0].contexts.withheld == 1
    assert made(words, gold=True)[0].contexts.withheld == 0
    # Nor where a success is shown in its place: prompt 0's failure, but not the failed group.
    assert made(words, gold=True, context={"feedback": "no_success"})[0].contexts.withheld == 4
    options = {"feedback": "no_success"}
    assert made(words, gold=True, successes=0, context=options)[0].contexts.withheld == 5


@pytest.mark.parametrize("control", controls.CONTROLS)
def test_a_control_trains_the_rows_of_its_run(words, control):
    step, real = made(words, control=control), made(words)
    gathered, _ = step
    chosen, rendered = gathered.chosen, gathered.contexts
    if control not in ("unrelated", "success_only"):
        assert (trained(step) == trained(real)).all()
    values = step_metrics.choice_metrics(chosen, rendered)
    assert values["control_same_blocks"] == chosen.match.same.sum()
    assert values["control_tokens_cut"] == 0
    assert values["control_empty_slots"] == chosen.match.empty.sum()
    assert np.isnan(values["control_matched"]) == (control == "shell")
    assert (values["control_relabelled"] > 0) == (control == "shuffled")
    wanted = sum(r.peer_tokens for r in real[0].contexts.records)
    assert chosen.match.wanted.sum() == wanted
    assert chosen.match.given.sum() == sum(r.peer_tokens for r in rendered.records)
    rows = list(saved_rollouts.rows(gathered))
    for n, row in enumerate(rows):
        row = json.loads(files.dumps(schema.row_fields(row)))
        seen, p = row["context"], n // 4
        assert set(seen) == CONTEXT_FIELDS | {"control"}
        for name in ("shown", "shown_uids", "succeeded", "kinds", "tokens", "cut"):
            assert len(seen[name]) == len(rendered.records[n].peers)
        assert (row["uid"], row["rollout"]) not in zip(
            seen["shown_uids"], seen["shown"], strict=True
        )
        for uid, i, ok in zip(
            seen["shown_uids"], seen["shown"], seen["succeeded"], strict=True
        ):
            q = {70: 0, 5: 1, 33: 2}[uid]
            assert q == p or control in ("unrelated", "cross_failures", "success_only")
            assert TEXTS[q][i] in row["teacher_message"]
            assert STOPPED[q, i]
            assert ok == SUCCESS[q, i]
        # The own text is nowhere in what the teacher reads before it scores that text.
        assert row["response"] not in (row["teacher_message"] or "")
        assert seen["control"]["wanted"] == chosen.match.wanted[p, n % 4]


def test_the_fields_of_a_context_in_a_file(words):
    """Format 2 has of the shown peers one list a field; nothing else may change it."""
    options = {"feedback": "always", "peer_tokens": 3, "feedback_tokens": 2}
    gathered, _ = made(words, feedback="r7 r8 r9", rule="first", context=options)
    row = list(saved_rollouts.rows(gathered))[1]
    assert row.context == {
        "shown": [0, 2],
        "shown_uids": [70, 70],
        "succeeded": [True, True],
        "kinds": ["success", "success"],
        "tokens": [3, 3],
        "cut": [1, 1],
        "dropped": 0,
        "length": gathered.contexts.records[1].length,
        "reason": "",
        "fallbacks": 0,
        "feedback": 2,
        "feedback_cut": 1,
        "feedback_dropped": False,
        "gold": None,
        "gold_cut": 0,
        "informed": True,
    }
    assert set(row.context) == CONTEXT_FIELDS


CONTEXT_FIELDS = {
    *("shown", "shown_uids", "succeeded", "kinds", "tokens", "cut", "dropped", "length"),
    *("reason", "fallbacks", "feedback", "feedback_cut", "feedback_dropped"),
    *("gold", "gold_cut", "informed"),
}


def test_what_the_limit_takes_of_a_control_is_counted(words):
    step = made(words, control="random", context={"teacher_prompt_length": 20})
    taken = step_metrics.choice_metrics(step[0].chosen, step[0].contexts)["control_tokens_cut"]
    assert taken > 0
    assert taken == step[0].chosen.match.given.sum() - sum(
        r.peer_tokens for r in step[0].contexts.records
    )


def test_metrics_of_a_match_by_hand():
    rows = np.array([[100, 100, 0, 50]])
    match = controls.Match(
        wanted=rows,
        given=np.array([[100, 97, 0, 51]]),
        slots=np.array([[3, 1, 0, 2]]),
        topped_up=np.array([[0, 1, 0, 0]]),
        empty=np.array([[2, 0, 0, 0]]),
        same=np.array([[1, 1, 0, 0]]),
        relabelled=np.array([[0, 0, 0, 3]]),
    )
    usage = peers.Usage(np.full((1, 4), "", object), np.zeros((1, 4), bool))
    seen = [record((1,), (True,), tokens=n) for n in (100, 90, 0, 51)]
    rendered = experience.Rendered(None, seen, [], 0)
    chosen = experience.Chosen(None, usage, match, [[""] * 4], 0)
    got = step_metrics.choice_metrics(chosen, rendered)
    assert got["control_match_error"] == pytest.approx((0 + 0.03 + 0.02) / 3)
    assert got["control_match_error_max"] == pytest.approx(0.03)
    assert got["control_matched"] == pytest.approx(2 / 3)
    assert got["control_tokens_cut"] == 7
    assert got["control_topped_up"] == 1
    assert got["control_empty_slots"] == 2
    assert got["control_same_blocks"] == 2
    assert got["control_relabelled"] == 3
    assert match.row(0, 3) == {
        "wanted": 50,
        "given": 51,
        "slots": 2,
        "topped_up": 0,
        "empty": 0,
        "same": 0,
        "relabelled": 3,
        "error": pytest.approx(0.02),
    }
    nothing = controls.Match(*[np.zeros((1, 2), int)] * 7).metrics()
    assert np.isnan(nothing["control_match_error"])
    assert np.isnan(nothing["control_matched"])
    assert nothing["control_empty_slots"] == 0


def test_the_students_prompt_is_the_same_for_every_method():
    """Data, prompts and sampling of a config file do not depend on the variant.

    Who writes the responses of one does, to the same prompts.
    """
    root = pathlib.Path(__file__).parents[1]
    for name in ("quickstart", "smollm2"):
        made = [
            config.from_config_dict(Config, flags_of.load(root / f"configs/{name}.py", v))
            for v in methods.METHODS
        ]
        read = [
            (cfg.data, dataclasses.replace(cfg.rollout, policy="student"), cfg.eval)
            for cfg in made
        ]
        assert all(each == read[0] for each in read)


def test_gold_that_a_teacher_read_is_not_in_the_file(words):
    """Whoever trains from the file later must not find it there."""
    step = made(words)
    gathered, _ = step
    rendered = gathered.contexts

    def messages(records):
        made_of = dataclasses.replace(
            gathered, contexts=dataclasses.replace(rendered, records=records)
        )
        return [r.teacher_message for r in saved_rollouts.rows(made_of)]

    plain = messages(rendered.records)
    assert any(message is not None for message in plain)
    told = [dataclasses.replace(r, gold=3, informed=True) for r in rendered.records]
    assert messages(told) == [None] * len(told)


def test_rows_are_weighed_by_their_groups_solve_rate(words):
    assert made(words)[-1].row_weight is None
    got = made(words, loss={"row_weight": "solve_variance"})[-1].row_weight
    # Of the first group one rollout has no verdict: 2 of 3.
    want = np.repeat([2 / 9, 0, 0], 4)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_supervised_rows(words):
    step = made(words, loss={"method": "sft"})
    assert (trained(step) == SUCCESS).all()
    step = made(words, loss={"method": "sft", "sft_rows": "all"})
    assert trained(step).all()


def test_steps_are_found_where_the_aggregation_reads_them(words):
    assert made(words)[-1].steps is None
    assert made(words, loss={"aggregation": "seq-mean-step-mean"})[-1].steps.shape == (12, 5)
