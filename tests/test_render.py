"""The teacher's prompt: its parts, their order, and what gives way when it is too long."""

import re
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mopd_jax.config import ContextConfig, PeerConfig
from mopd_jax.contexts import blocks, peers, render
from mopd_jax.contexts.peers import Entry, PeerPlan
from mopd_jax.records import Problem
from mopd_jax.thinking import without_thinking

CFG = ContextConfig(
    teacher_prompt_length=200,
    success="right: {text}",
    another_success="also right: {text}",
    failure="wrong: {text}",
    neutral="try: {text}",
    closing="solve it now",
    separator=" | ",
)
# Short, so that the tests below can count words.
SHORT = {
    "CUT_MARK": " <{n} cut> ",
    "FEEDBACK": "note: {text}",
    "SUMMARY_SUCCESS": "good: {text}",
    "SUMMARY_FAILURE": "bad: {text}",
}
PROBLEM = Problem("p", ({"role": "user", "content": "what is it"},), "GOLD", "exact")


@pytest.fixture(autouse=True, scope="module")
def texts_as_shipped():
    """Replaces the constant texts by SHORT ones, and gives those that the package ships."""
    with pytest.MonkeyPatch.context() as patch:
        shipped = {}
        for name, text in SHORT.items():
            module = blocks if name == "CUT_MARK" else render
            shipped[name] = getattr(module, name)
            patch.setattr(module, name, text)
        yield shipped


def planned(*rows, group, bare=()):
    """The plan of one prompt: blocks [(rollout, succeeded, kind)] of its first rows."""
    entries = [tuple(Entry(0, *block) for block in row) for row in rows]
    entries += [()] * (group - len(rows))
    alone = np.zeros((1, group), bool)
    alone[0, list(bare)] = True
    return PeerPlan((tuple(entries),), alone)


class Words:
    """A tokenizer of one id a word; messages are <role> words <end>, then <assistant>."""

    pad_id, stop_ids, vocab_size = 0, (1,), 1 << 20
    specials, fingerprint = ("<|end|>",), "fake"

    def __init__(self):
        self._words = ["<pad>", "<end>"]

    def encode(self, text):
        for word in text.split():
            if word not in self._words:
                self._words.append(word)
        return [self._words.index(word) for word in text.split()]

    def decode(self, ids):
        return " ".join(self._words[i] for i in ids)

    def chat(self, messages):
        turns = [f"<{m['role']}> {m['content']} <end>" for m in messages]
        return self.encode(" ".join([*turns, "<assistant>"]))


def show(texts, shown, problem=PROBLEM, **changes):
    """One row that is shown `shown` [(index in texts, succeeded)]: (text, record, chat).

    `text` is the teacher's whole prompt, read back from the ids.
    """
    cfg = ContextConfig(**{**CFG.__dict__, **changes})
    row = [(i, ok, "success" if ok else "failure") for i, ok in shown]
    plan = planned(row, group=len(texts))
    words = Words()
    inputs, records, chats = render.teacher_inputs(
        [problem], blocks.shown_texts([texts], words, cfg), plan, words, cfg=cfg
    )
    assert inputs.prompt.shape == (len(texts), cfg.teacher_prompt_length)
    assert inputs.informed.tolist() == [bool(record.peers) for record in records]
    mask, record = inputs.prompt_mask[0], records[0]
    assert mask.sum() == record.length
    assert mask[len(mask) - record.length :].all()  # Pads are on the left.
    assert (inputs.prompt[0][~mask] == words.pad_id).all()
    return words.decode(inputs.prompt[0][mask]), record, chats[0]


def peers_of(record, name):
    """One field of all peers of a record, in order."""
    return tuple(getattr(peer, name) for peer in record.peers)


def rollouts(record):
    return peers_of(record, "rollout")


def cuts(record):
    return peers_of(record, "cut")


def words(prefix, count):
    return " ".join(f"{prefix}{i}" for i in range(count))


def test_blocks_stand_in_order():
    texts = ["target", "one", "two", "three"]
    text, record, chat = show(texts, [(3, True), (1, True), (2, False)])
    content = "what is it | right: three | also right: one | wrong: two | solve it now"
    assert chat == [{"role": "user", "content": content}]
    assert text == f"<user> {content} <end> <assistant>"
    assert rollouts(record) == (3, 1, 2)
    assert peers_of(record, "succeeded") == (True, True, False)
    assert (cuts(record), record.dropped, record.reason) == ((0, 0, 0), 0, "")


def test_failures_alone():
    text, record, _ = show(["target", "one", "two"], [(1, False), (2, False)])
    assert text == (
        "<user> what is it | wrong: one | wrong: two | solve it now <end> <assistant>"
    )
    assert peers_of(record, "succeeded") == (False, False)


def test_no_peer_no_closing_line():
    text, record, chat = show(["target"], [])
    assert text == "<user> what is it <end> <assistant>"
    assert chat == list(PROBLEM.messages)
    assert (rollouts(record), cuts(record), record.dropped) == ((), (), 0)
    assert record.reason == "no peer to show"


def test_without_a_closing_line():
    text, _, _ = show(["target", "one"], [(1, True)], closing="")
    assert text == "<user> what is it | right: one <end> <assistant>"


def test_system_and_earlier_turns_stay():
    turns = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "reply"},
        {"role": "user", "content": "second", "name": "kept"},
    )
    problem = Problem("p", turns, "GOLD", "exact")
    text, _, chat = show(["target", "one"], [(1, True)], problem=problem)
    assert tuple(chat[:3]) == turns[:3]
    last = "second | right: one | solve it now"
    assert chat[3] == {"role": "user", "content": last, "name": "kept"}
    assert text.startswith("<system> be brief <end> <user> first <end> <assistant> reply")
    assert turns[3]["content"] == "second"


@pytest.mark.parametrize(
    ("budget", "want", "cut"),
    [
        (4, "w0 w1 <6 cut> w8 w9", 6),
        (5, "w0 w1 w2 <5 cut> w8 w9", 5),
        (2, "w0 <8 cut> w9", 8),
        (9, "w0 w1 w2 w3 w4 <1 cut> w6 w7 w8 w9", 1),
        (10, words("w", 10), 0),
        (11, words("w", 10), 0),
        (None, words("w", 10), 0),
    ],
)
def test_a_long_peer_loses_its_middle(budget, want, cut):
    text, record, _ = show(
        ["target", words("w", 10), "short"], [(1, True), (2, False)], peer_tokens=budget
    )
    assert f"right: {want} | wrong: short |" in text
    assert cuts(record) == (cut, 0)


def test_the_limit_cuts_before_it_drops():
    peers = ["target", words("a", 40), words("b", 40), words("c", 3)]
    shown = [(1, True), (2, True), (3, False)]
    text, record, _ = show(peers, shown, teacher_prompt_length=60)
    assert rollouts(record) == (1, 2, 3)
    assert record.dropped == 0
    assert record.length <= 60
    first, second, third = cuts(record)
    assert abs(first - second) <= 1  # Cut alike.
    assert third == 0
    assert first + second >= 83 + 14 - 60
    assert "| wrong: c0 c1 c2 | solve it now <end> <assistant>" in text
    for word in ("a0", "a39", "b0", "b39"):
        assert word in text.split()


def test_the_limit_cuts_no_more_than_it_must():
    peers = ["target", words("a", 60), words("b", 30)]
    for limit in range(30, 110):
        _, record, _ = show(peers, [(1, True), (2, False)], teacher_prompt_length=limit)
        assert rollouts(record) == (1, 2)
        # One token more of each block, and the 2 of a mark gone, would not have fitted.
        assert record.peer_tokens_cut == 0 or limit - record.length <= 4, f"{limit}: {record}"


def test_failures_are_dropped_before_successes():
    peers = ["target", words("a", 9), words("b", 9), words("c", 9)]
    shown = [(1, True), (2, True), (3, False)]
    seen = []
    for limit in range(60, 5, -1):
        text, record, _ = show(peers, shown, teacher_prompt_length=limit)
        assert rollouts(record) == (1, 2, 3)[: len(record.peers)]
        assert record.dropped == 3 - len(record.peers)
        assert text.endswith("<end> <assistant>")
        assert text.startswith("<user> what is it")
        if record.peers:
            assert text.endswith("| solve it now <end> <assistant>")
            assert record.reason == ""
        else:
            assert text == "<user> what is it <end> <assistant>"
            assert record.reason == "no peer fits"
        seen.append(len(record.peers))
    # A smaller limit never shows more, and every number of peers occurs.
    assert seen == sorted(seen, reverse=True)
    assert set(seen) == {0, 1, 2, 3}


@pytest.mark.parametrize("shown", [[], [(1, True)]])
def test_a_question_that_does_not_fit_is_an_error(shown):
    message = "'p' has 6 tokens before any peer is added, more than .*length=5; raise it"
    with pytest.raises(render.PromptTooLong, match=message):
        show(["target", "one"], shown, teacher_prompt_length=5)


def test_a_student_prompt_that_does_not_fit_is_an_error():
    message = "'p' has a prompt of 6 tokens, more than rollout.prompt_length=5; raise it"
    with pytest.raises(render.PromptTooLong, match=message):
        render.student_prompts([PROBLEM], Words(), length=5)


def test_the_student_sees_the_problem_and_nothing_else():
    tokenizer = Words()
    other = Problem("q", (*PROBLEM.messages, {"role": "user", "content": "and"}), "GOLD", "x")
    ids, mask = render.student_prompts([PROBLEM, other], tokenizer, length=12)
    assert ids.shape == mask.shape == (2, 12)
    assert (ids.dtype, mask.dtype) == (np.int32, bool)
    assert tokenizer.decode(ids[0]) == "<pad> " * 6 + "<user> what is it <end> <assistant>"
    for row, live, problem in zip(ids, mask, [PROBLEM, other], strict=True):
        assert row[live].tolist() == tokenizer.chat(problem.messages)
        assert "GOLD" not in tokenizer.decode(row)


def test_the_answer_is_in_no_teacher_prompt():
    text, _, chat = show(["target", "one"], [(1, True)])
    assert "GOLD" not in text + str(chat)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a b</think> c", "c"),
        ("<think>a\nb</think>\n\nc d", "c d"),
        ("x <think>a</think> y <think>b</think> z", "x y z"),
        ("x <think>a b", "x"),
        ("a b</think> c", "c"),
        ("a</think> b <think>c</think> d <think>e", "b d"),
        ("<think></think>c", "c"),
        ("plain", "plain"),
        ("<think>a<think>b</think>c</think> d", "d"),
        ("x</think>y</think> z", "z"),
    ],
)
def test_thinking_is_removed(text, left):
    got, record, _ = show(["target", text], [(1, True)])
    assert got == f"<user> what is it | right: {left} | solve it now <end> <assistant>"
    assert cuts(record) == (0,)
    kept, _, _ = show(["target", text], [(1, False)], strip_thinking=False)
    assert " ".join(text.split()) in kept


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a<think>b</think>c</think>d", "d"),
        ("x</think>y</think>z", "z"),
        ("<think>a</think>b</think>c", "c"),
        ("a<think>b<think>c</think>d", "a"),
        ("a <think>b</think><think>c</think> d", "a  d"),
        ("<th<think>a</think>ink> b", "<th ink> b"),
        ("</thi<think>a</think>nk> b", "</thi nk> b"),
        ("</think>", ""),
        ("<think>" * 3 + "a" + "</think>" * 4, ""),
        ("<thinking>a</thinking>", "<thinking>a</thinking>"),
    ],
)
def test_spans_of_thinking(text, left):
    assert without_thinking(text) == left


PIECES = ["<think>", "</think>", "<th", "ink>", "</", "think>", " ", "a", "b\n", "c"]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_no_thought_and_no_tag_is_left(text):
    """Another way to it: which characters are inside a span, by matching tags with a stack."""
    hidden, opened = np.zeros(len(text), bool), []
    for tag in re.finditer("</?think>", text):
        hidden[slice(*tag.span())] = True
        if tag.group() == "<think>":
            opened.append(tag.start())
        else:
            hidden[opened.pop() if opened else 0 : tag.end()] = True
    if opened:
        hidden[opened[0] :] = True
    got = without_thinking(text)
    assert "<think>" not in got
    assert "</think>" not in got
    outside = "".join(c for c, inside in zip(text, hidden, strict=True) if not inside)
    assert "".join(got.split()) == "".join(outside.split())


def test_spans_are_found_in_linear_time():
    """A million characters: seconds at most, of which a quadratic scan would take hours."""
    for text in ("<think>" * 140_000, "</think>" * 120_000, "<think>a</think>b" * 60_000):
        got = without_thinking(text)
        assert got == "b" * got.count("b")


def test_thinking_is_no_part_of_a_budget():
    peer = f"<think>{words('t', 50)}</think> {words('a', 4)}"
    text, record, _ = show(["target", peer], [(1, True)], peer_tokens=4)
    assert "right: a0 a1 a2 a3 |" in text
    assert cuts(record) == (0,)


@pytest.mark.parametrize("text", ["<think>only", "", "  \n "])
def test_a_peer_without_text_is_dropped_and_counted(text):
    got, record, _ = show(["target", text, "two"], [(1, True), (2, True)])
    assert got == "<user> what is it | right: two | solve it now <end> <assistant>"
    assert (rollouts(record), record.dropped) == ((2,), 1)
    got, record, _ = show(["target", text], [(1, False)])
    assert got == "<user> what is it <end> <assistant>"
    assert (rollouts(record), record.dropped) == ((), 1)
    assert record.reason


@pytest.mark.parametrize("peer", ["{text}", "{n}", "{} {0} {text!r}", "{{text}}", r"\1 \g<0>"])
def test_braces_of_a_peer_are_text(peer):
    long = f"{peer} a b c {peer}"
    text, _, chat = show(["target", peer, long], [(1, True), (2, False)])
    assert f"| right: {peer} | wrong: {long} |" in chat[0]["content"]
    cut, record, _ = show(["target", long], [(1, True)], peer_tokens=2)
    (tokens,) = cuts(record)
    assert cut.count(f"<{tokens} cut>") == 1


def test_braces_of_a_template_are_text():
    _, _, chat = show(["target", "one"], [(1, True)], success="{x} {} {text} {n}")
    assert chat[0]["content"] == "what is it | {x} {} one {n} | solve it now"


def test_braces_of_a_question_are_text():
    problem = Problem("p", ({"role": "user", "content": "say {text} {n}"},), "GOLD", "exact")
    text, _, _ = show(["target", "one"], [(1, True)], problem=problem)
    assert text == "<user> say {text} {n} | right: one | solve it now <end> <assistant>"


def test_rows_of_a_group_and_of_several_problems_keep_their_order():
    entries = ((0, 1), (0, 0)), (None, (1, 0))
    plan = PeerPlan(
        tuple(
            tuple((Entry(*at, True, "success"),) if at else () for at in row) for row in entries
        ),
        np.zeros((2, 2), bool),
    )
    tokenizer = Words()
    second = Problem("q", ({"role": "user", "content": "why"},), "GOLD", "exact")
    inputs, records, _ = render.teacher_inputs(
        [PROBLEM, second], [["a", "b"], ["c", "d"]], plan, tokenizer, cfg=CFG
    )
    prompts = zip(inputs.prompt, inputs.prompt_mask, strict=True)
    texts = [tokenizer.decode(ids[mask]) for ids, mask in prompts]
    assert [re.findall("it|why|right: .", text) for text in texts] == [
        ["it", "right: b", "it"],
        ["it", "right: a", "it"],
        ["why"],
        ["why", "right: c", "it"],
    ]
    assert inputs.informed.tolist() == [True, True, False, True]
    assert [rollouts(record) for record in records] == [(1,), (0,), (), (0,)]


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    successes=st.integers(0, 5),
    limit=st.integers(6, 150),
    peer_tokens=st.none() | st.integers(2, 30),
)
def test_every_prompt(lengths, successes, limit, peer_tokens):
    texts = ["target", *(words(f"p{i}-", n) for i, n in enumerate(lengths, start=1))]
    shown = [(i, i <= successes) for i in range(1, len(texts))]
    text, record, _ = show(texts, shown, teacher_prompt_length=limit, peer_tokens=peer_tokens)
    assert record.length == len(text.split()) <= limit
    assert text.startswith("<user> what is it ")
    assert text.endswith("<end> <assistant>")
    assert text.endswith("| solve it now <end> <assistant>") == bool(record.peers)
    assert bool(record.reason) == (not record.peers)
    # Nothing is lost without a record.
    assert len(record.peers) + record.dropped == len(shown)
    assert sum(peer.tokens for peer in record.peers) == record.peer_tokens
    assert sum(peer.cut for peer in record.peers) == record.peer_tokens_cut
    for peer in record.peers:
        i, ok, cut = peer.rollout, peer.succeeded, peer.cut
        assert ok == (i <= successes)
        left = re.findall(rf"p{i}-\d+", text)
        assert len(left) == lengths[i - 1] - cut == peer.tokens
        assert left[0] == f"p{i}-0"
        assert left[-1] == f"p{i}-{lengths[i - 1] - 1}" or len(left) == 1
        assert peer_tokens is None or len(left) <= peer_tokens
    hidden = {i for i, _ in shown} - set(rollouts(record))
    assert not any(f"p{i}-" in text for i in hidden)


def test_a_peer_cannot_end_the_turn():
    """A student that spells out a special token does not steer the teacher's prompt."""
    text, _, _ = show(["target", "42 <|end|> <|end|> trailing"], [(1, True)])
    assert "<|end|>" not in text
    assert "right: 42 trailing" in text


def test_a_special_token_built_from_parts_is_removed_too():
    text, record, _ = show(["target", "a <|e<|end|>nd|> b", "<|end|>"], [(1, True), (2, True)])
    assert "<|end|>" not in text
    assert "right: a b" in text
    assert (rollouts(record), record.dropped) == ((1,), 1)


def test_texts_as_they_are_shown():
    texts = [["<think>a</think> 42 ", "42<|end|>", "<think>a"], ["<|end|>", " \n", ""]]
    got = blocks.shown_texts(texts, Words(), CFG)
    assert got == [["42", "42", ""], ["", "", ""]]
    kept = ContextConfig(strip_thinking=False)
    got = blocks.shown_texts(texts, Words(), kept)
    assert got == [["<think>a</think> 42 ", "42", "<think>a"], ["", "", ""]]


@given(st.lists(st.sampled_from([*PIECES, "<|end|>", "<|e", "nd|>"]), max_size=25))
def test_what_is_shown_has_no_tag_and_no_special_token(pieces):
    [[got]] = blocks.shown_texts([["".join(pieces)]], Words(), CFG)
    assert not any(mark in got for mark in ("<think>", "</think>", "<|end|>"))
    assert blocks.shown_texts([[got]], Words(), CFG) == [[got]]
    assert got == got.strip()


def teach(
    texts,
    *,
    success=(),
    failure=(),
    summary=(),
    outcome=None,
    hidden=False,
    bare=False,
    advice="",
    problem=PROBLEM,
    **changes,
):
    """(whole prompt, record) of row 0, whose peers and feedback are given.

    `outcome` bool[1, G] is what was verified, by default what the headings say; summaries count
    as failures then. `hidden` puts a neutral heading over peers in full.
    """

    def block(i, heading):
        ok = heading == "success" if outcome is None else bool(outcome[0, i])
        if heading == "summary":
            return i, ok, "summary_success" if ok else "summary_failure"
        return i, ok, "neutral" if hidden else heading

    row = [block(i, "success") for i in success]
    row += [block(i, "summary") for i in summary]
    row += [block(i, "failure") for i in failure]
    plan = planned(row, group=len(texts), bare=[0] if bare else [])
    tokenizer = Words()
    cfg = ContextConfig(**{**CFG.__dict__, **changes})
    inputs, records, _ = render.teacher_inputs(
        [problem],
        blocks.shown_texts([texts], tokenizer, cfg),
        plan,
        tokenizer,
        cfg=cfg,
        feedback=[[advice] + [""] * (len(texts) - 1)],
    )
    assert inputs.informed.tolist() == [record.informed for record in records]
    return tokenizer.decode(inputs.prompt[0][inputs.prompt_mask[0]]), records[0]


def test_golden_text_of_the_worked_example():
    """A worked example: rollout y2 under 2S1F with the default headings, to the byte."""
    question = "How many of 1..60 are divisible by 3 or 5 but not both? Box the answer."
    texts = [
        "20 + 12 - 2*4 = \\boxed{24}",
        "20 + 12 - 4 = \\boxed{28}",
        "<think>blocks of 15</think>3,5,6,9,10,12 in each of 4 blocks: \\boxed{24}",
        "The numbers are 3, 5, 6, 9, 10, 12, 18,",
    ]
    success = np.array([[True, False, True, False]])
    plan = peers.choose(
        peers.Candidates(success, np.ones_like(success), [texts], np.ones((1, 4), int), [0]),
        seed=0,
        step=1,
        cfg=PeerConfig(rule="first", truncated="outcome"),
    )
    problem = Problem("p", ({"role": "user", "content": question},), "24", "exact")
    cfg = ContextConfig(teacher_prompt_length=400)
    shown = blocks.shown_texts([texts], Words(), cfg)
    _, records, chats = render.teacher_inputs([problem], shown, plan, Words(), cfg=cfg)
    assert chats[1] == [
        {
            "role": "user",
            "content": (
                "How many of 1..60 are divisible by 3 or 5 but not both? Box the answer.\n\n"
                "A correct solution to this problem:\n\n"
                "20 + 12 - 2*4 = \\boxed{24}\n\n"
                "Another correct solution:\n\n"
                "3,5,6,9,10,12 in each of 4 blocks: \\boxed{24}\n\n"
                "A failed attempt at this problem; do not repeat its mistake:\n\n"
                "The numbers are 3, 5, 6, 9, 10, 12, 18,\n\n"
                "Now solve the original problem correctly."
            ),
        }
    ]
    assert [rollouts(record) for record in records] == [(2, 1), (0, 2, 3), (0, 1), (0, 2, 1)]
    assert [peers_of(record, "kind")[-1] for record in records] == ["failure"] * 4


@pytest.mark.parametrize("succeeded", [True, False])
def test_thinking_is_removed_from_every_kind_of_peer(succeeded):
    closed, unclosed = "<think>aloud</think> one", "two <think>aloud"
    for options in ({"success": (1, 2)}, {"failure": (1, 2)}, {"summary": (1, 2)}):
        outcome = np.full((1, 3), succeeded)
        text, record = teach(["t", closed, unclosed], outcome=outcome, **options)
        assert rollouts(record) == (1, 2)
        assert "aloud" not in text
        assert "think" not in text
        text, _ = teach(["t", closed], hidden=True, success=(1,), outcome=outcome[:, :2])
        assert "aloud" not in text


# Feedback.


def advised(texts, mode, advice="line 3 fails", **options):
    """`teach` with `context.feedback` set and feedback to show."""
    return teach(texts, advice=advice, feedback=mode, **options)


@pytest.mark.parametrize(
    ("mode", "shown", "told"),
    [
        ("no_success", {}, True),
        ("no_success", {"failure": (1,)}, True),
        ("no_success", {"success": (1,)}, False),
        ("no_success", {"success": (1,), "failure": (2,)}, False),
        ("no_success", {"success": (3,)}, True),  # Chosen, but nothing of it can be read.
        ("always", {}, True),
        ("always", {"success": (1,), "failure": (2,)}, True),
    ],
)
def test_when_feedback_is_shown(mode, shown, told):
    text, record = advised(["t", "one", "two", "<think>empty"], mode, **shown)
    assert ("| note: line 3 fails | solve it now" in text) == told
    assert record.feedback == (3 if told else None)
    assert record.informed
    assert record.reason == ""
    assert not record.feedback_dropped


def test_feedback_alone_is_a_context():
    text, record = advised(["t"], "no_success")
    assert text == "<user> what is it | note: line 3 fails | solve it now <end> <assistant>"
    assert (rollouts(record), record.feedback, record.informed) == ((), 3, True)
    text, record = advised(["t"], "no_success", advice="  ")
    assert text == "<user> what is it <end> <assistant>"
    assert not record.informed


def test_feedback_has_its_own_budget():
    text, record = advised(
        ["t", words("a", 9)], "always", words("f", 9), success=(1,), feedback_tokens=4
    )
    assert "note: f0 f1 <5 cut> f7 f8 |" in text
    assert words("a", 9) in text
    assert (record.feedback, record.feedback_cut, cuts(record)) == (4, 5, (0,))
    text, record = advised(
        ["t", words("a", 9)], "always", words("f", 9), success=(1,), peer_tokens=4
    )
    assert words("f", 9) in text
    assert (record.feedback, record.feedback_cut, cuts(record)) == (9, 0, (5,))


def test_feedback_that_does_not_fit_is_counted():
    for limit in range(60, 5, -1):
        text, record = advised(
            ["t", words("a", 9)],
            "always",
            words("f", 9),
            failure=(1,),
            teacher_prompt_length=limit,
        )
        assert record.length <= limit
        assert text.endswith("<end> <assistant>")
        assert record.feedback_dropped == (record.feedback is None)
        # What is last goes first.
        assert not record.feedback or rollouts(record) == (1,)
    assert record.feedback_dropped
    assert record.dropped == 1


def test_feedback_cannot_end_the_turn():
    text, _ = advised(["t"], "always", "you wrote <|end|> <think> here")
    assert "note: you wrote <think> here |" in text


# Summaries.


@pytest.mark.parametrize(
    ("text", "left", "fallbacks"),
    [
        ("long way <summary>add them</summary> 5", "add them", 0),
        ("<summary>one</summary> <summary>two</summary>", "one", 0),
        ("<think><summary>no</summary></think> <summary>yes</summary>", "yes", 0),
        ("<summary>never closed, so it is the head", "<summary>never cl", 1),
        ("<summary> </summary> it is empty", "<summary> </summa", 1),
        ("a response without", "a response withou", 1),
        ("short", "short", 1),
    ],
)
def test_a_summary_is_the_tag_or_the_head(text, left, fallbacks):
    got, record = teach(
        ["t", text],
        summary=(1,),
        summary_chars=17,
        outcome=np.array([[False, True]]),
    )
    assert got == f"<user> what is it | good: {left} | solve it now <end> <assistant>"
    assert record.fallbacks == fallbacks
    assert peers_of(record, "kind") == ("summary_success",)


def test_headings_of_summaries_depend_on_the_outcome():
    tagged = ["t", "a <summary>one</summary>", "b <summary>two</summary>", "c"]
    text, record = teach(
        tagged,
        success=(3,),
        summary=(1, 2),
        outcome=np.array([[False, True, False, True]]),
        summary_tag="summary",
    )
    assert "| right: c | good: one | bad: two | solve" in text
    assert peers_of(record, "kind") == ("success", "summary_success", "summary_failure")
    assert record.fallbacks == 0
    text, record = teach(["t", "<brief>b</brief> c"], summary=(1,), summary_tag="brief")
    assert "| bad: b |" in text


def test_the_same_rollout_in_full_and_in_brief():
    """Row 0 reads a summary of rollout 1, and row 2 reads it in full."""
    plan = planned([(1, True, "summary_success")], [], [(1, True, "success")], group=3)
    texts = ["t", "all of it <summary>part</summary>", "u"]
    _, _, chats = render.teacher_inputs([PROBLEM], [texts], plan, Words(), cfg=CFG)
    assert chats[0][0]["content"].split(" | ")[1].endswith(": part")
    assert "right: all of it" in chats[2][0]["content"]


# Controls, as they are rendered.


def test_neutral_headings_do_not_tell_the_outcome():
    outcome = np.array([[False, True, False]])
    for row in ((1, 2), (2, 1)):
        text, record = teach(["t", "one", "two"], success=row, outcome=outcome, hidden=True)
        assert peers_of(record, "succeeded") == tuple(bool(outcome[0, i]) for i in row)
        assert peers_of(record, "kind") == ("neutral", "neutral")
        assert text.count("try:") == 2
        assert "right" not in text
        assert "wrong" not in text


def test_a_shell_is_the_closing_line_alone():
    text, record = teach(["t", "one"], bare=True)
    assert text == "<user> what is it | solve it now <end> <assistant>"
    assert (record.informed, rollouts(record), record.reason) == (True, (), "")


def test_a_peer_of_another_prompt():
    row = (Entry(1, 0, True, "success"), Entry(1, 1, True, "success"))
    plan = PeerPlan(((row, ()), ((), ())), np.zeros((2, 2), bool))
    second = Problem("q", ({"role": "user", "content": "why"},), "GOLD", "exact")
    _, records, chats = render.teacher_inputs(
        [PROBLEM, second], [["a", "b"], ["c", "d"]], plan, Words(), cfg=CFG
    )
    want = "what is it | right: c | also right: d | solve it now"
    assert chats[0][0]["content"] == want
    assert (peers_of(records[0], "prompt"), rollouts(records[0])) == ((1, 1), (0, 1))


def test_contexts_never_read_an_answer():
    """A problem that has none is rendered all the same."""
    problem = types.SimpleNamespace(id="p", messages=PROBLEM.messages)
    text, _ = teach(["t", "one"], success=(1,), problem=problem)
    assert "right: one" in text


def test_the_constant_texts(texts_as_shipped):
    assert texts_as_shipped == {
        "CUT_MARK": " [... {n} tokens left out ...] ",
        "FEEDBACK": "Feedback on your own earlier attempt, which failed:\n\n{text}",
        "SUMMARY_SUCCESS": "Summary of another correct solution: {text}",
        "SUMMARY_FAILURE": "Summary of another failed attempt: {text}",
    }
    assert set(SHORT) == {name for m in (blocks, render) for name in vars(m) if name.isupper()}


# Gold, by explicit name.


def with_gold(asked, *, solution="by hand: GOLD", reasons=None, **changes):
    """(prompts as text, records, chats) of a row without a peer and of one with a peer."""
    problem = Problem("p", PROBLEM.messages, "GOLD", "exact", solution=solution)
    plan = planned([], [(0, True, "success")], group=2)
    cfg = ContextConfig(
        **{**CFG.__dict__, "gold": asked, "gold_block": "gold: {text}"} | changes
    )
    words = Words()
    inputs, records, chats = render.teacher_inputs(
        [problem], [["one", "two"]], plan, words, cfg=cfg, reasons=reasons
    )
    pairs = zip(inputs.prompt, inputs.prompt_mask, strict=True)
    return [words.decode(ids[mask]) for ids, mask in pairs], records, chats


@pytest.mark.parametrize(("asked", "text"), [("answer", "GOLD"), ("solution", "by hand: GOLD")])
def test_gold_stands_before_the_peers(asked, text):
    _, records, chats = with_gold(asked)
    contents = [chat[-1]["content"] for chat in chats]
    assert contents[0] == f"what is it | gold: {text} | solve it now"
    assert contents[1] == f"what is it | gold: {text} | right: one | solve it now"
    assert [(r.informed, r.gold, rollouts(r)) for r in records] == [
        (True, len(text.split()), ()),
        (True, len(text.split()), (0,)),
    ]
    assert not any(r.feedback_dropped or r.dropped for r in records)


def test_no_gold_unless_asked_by_name():
    texts, records, _ = with_gold("off")
    assert not any("GOLD" in text for text in texts)
    assert [(r.informed, r.gold) for r in records] == [(False, None), (True, None)]


def test_a_row_that_is_left_out_gets_no_gold():
    texts, records, _ = with_gold("answer", reasons=np.array([["left out", ""]]))
    assert "GOLD" not in texts[0]
    assert [(r.informed, r.gold, r.reason) for r in records] == [
        (False, None, "left out"),
        (True, 1, ""),
    ]


def test_gold_is_cut_like_a_peer_and_counted():
    _, records, chats = with_gold("solution", solution=words("g", 40), teacher_prompt_length=24)
    assert 0 < records[0].gold < 40
    assert records[0].gold + records[0].gold_cut == 40
    assert "g0 " in chats[0][-1]["content"]
    assert "g39" in chats[0][-1]["content"]


def test_missing_gold_names_the_problem():
    with pytest.raises(render.NoGold, match="context.gold='solution', but problem 'p' has no"):
        with_gold("solution", solution=" ")


def test_a_shell_must_fit_behind_every_question():
    long = Problem("q", ({"role": "user", "content": words("w", 9)},), "GOLD", "exact")
    fits = ContextConfig(**{**CFG.__dict__, "teacher_prompt_length": 16})
    render.check_shells([PROBLEM, long], Words(), fits)
    tight = ContextConfig(**{**CFG.__dict__, "teacher_prompt_length": 15})
    with pytest.raises(render.PromptTooLong, match="problem 'q' has 16 tokens"):
        render.check_shells([PROBLEM, long], Words(), tight)
