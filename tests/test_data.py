"""Problems: JSONL rows, the seekable stream, the codebook, reasoning-gym, and verdicts."""

import collections
import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
import wants
from hypothesis import given
from hypothesis import strategies as st

from mopd_jax import codebook, verifiers
from mopd_jax.config import DataConfig
from mopd_jax.data import sources
from mopd_jax.errors import ConfigError
from mopd_jax.records import Problem, Verdict

needs_gym = wants.module("reasoning_gym")


def jsonl(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    cfg = DataConfig(source="jsonl", train_path=str(path), eval_path=str(path))
    return sources.load(cfg, "train", seed=0)


def problems(count):
    return [
        Problem(str(i), ({"role": "user", "content": "q"},), "a", "exact") for i in range(count)
    ]


def test_the_record_of_a_file_is_its_content(tmp_path):
    path = tmp_path / "rows.jsonl"
    jsonl(path, '{"prompt": "q", "answer": "a"}', "")
    cfg = DataConfig(source="jsonl", train_path=str(path), eval_path=str(path))
    said = sources.record(cfg)[f"eval: {path}"]
    assert (said["problems"], said["checked"], said["ceiling"]) == (1, False, None)
    assert len(sources.unchecked(sources.record(cfg))) == 2
    jsonl(path, '{"prompt": "q", "answer": "b"}')
    assert sources.record(cfg)[f"eval: {path}"]["reads"] != said["reads"]
    path.unlink()
    with pytest.raises(sources.DataError, match=r"rows.jsonl does not exist"):
        sources.record(cfg)


def test_jsonl_rows(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    first, second = jsonl(
        tmp_path / "rows.jsonl",
        json.dumps({"prompt": "2 + 2?", "answer": "4"}),
        "",
        json.dumps({"id": 7, "messages": turns, "answer": "yes"}),
    )
    assert first.messages == ({"role": "user", "content": "2 + 2?"},)
    assert (first.id, first.answer, first.verifier) == ("rows.jsonl:1", "4", "exact")
    assert (second.id, second.messages) == ("7", tuple(turns))


def test_a_row_may_name_its_verifier(tmp_path):
    row = {"prompt": "halve 1", "answer": "1/2", "verifier": "math", "solution": "by hand"}
    row["meta"] = {"percent": True}
    (problem,) = jsonl(tmp_path / "rows.jsonl", json.dumps(row))
    assert (problem.verifier, problem.meta) == ("math", {"percent": True})
    assert problem.solution == "by hand"
    assert verifiers.verify(problem, "\\boxed{0.5}").reward == 1


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "é", "日本"])
def test_a_row_ends_at_a_newline_only(tmp_path, mark):
    """JSON may hold these as they are; `str.splitlines` would cut the row at some."""
    row = {"prompt": f"one{mark}two", "answer": "4"}
    (problem,) = jsonl(tmp_path / "rows.jsonl", json.dumps(row, ensure_ascii=False))
    assert problem.messages[0]["content"] == f"one{mark}two"


GOOD = '{"prompt": "q", "answer": "a"}'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "a list, not an object"),
        ('{"prompt": "q"}', "no 'answer'"),
        ('{"prompt": "q", "answer": 4}', "'answer' is 4, of type int; .* non-empty string"),
        ('{"prompt": "q", "answer": ["x"]}', r"'answer' is \['x'\], of type list"),
        ('{"prompt": "q", "answer": "  "}', "'answer' is '  ', of type str"),
        ('{"answer": "a"}', "no 'prompt' string"),
        ('{"prompt": "q", "answer": "a", "solution": 3}', "'solution' is a int"),
        ('{"prompt": "q", "answer": "a", "verifier": 3}', "'verifier' is the name of one"),
        ('{"prompt": "q", "answer": "a", "meta": []}', "'meta' an object"),
        ('{"prompt": 3, "answer": "a"}', "no 'prompt' string"),
        ('{"messages": [], "answer": "a"}', "'messages' list"),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "answer": "a"}',
            "ends with the user",
        ),
        ('{"messages": "q", "answer": "a"}', "'messages' list"),
        ('{"messages": ["q"], "answer": "a"}', "'messages' list"),
        ('{"messages": {"role": "user", "content": "q"}, "answer": "a"}', "'messages' list"),
        ('{"messages": [{"role": "user"}], "answer": "a"}', "messages"),
        ('{"prompt": "q", "answer": "a", "verifer": "math"}', "'verifer'.*verifier"),
        ('{"prompt": "q", "answer": "a", "verifier": "maths"}', "'maths'.*math"),
        ('{"prompt": "q", "answer": "a", "id": null}', "'id' is None"),
        ('{"prompt": "q", "answer": "a", "id": true}', "'id' is True"),
        ('{"prompt": "q", "answer": "AB", "verifier": "choice"}', "'AB' is no letter"),
        ('{"prompt": "q", "answer": "{", "verifier": "tools"}', "gold answer is no JSON"),
        ('{"prompt": "q", "verifier": "code"}', "has no tests"),
        ('{"prompt": "q", "answer": null, "verifier": "code"}', "no 'answer'"),
        ('{"prompt": "q", "messages": [], "answer": "a"}', "both 'prompt' and 'messages'"),
        ('{"prompt": 5, "messages": "x", "answer": "a"}', "both 'prompt' and 'messages'"),
        ('{"prompt": "", "answer": "a"}', "the message of the user is empty"),
        ('{"prompt": " \\n", "answer": "a"}', "the message of the user is empty"),
        (
            '{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "q"}]'
            ', "answer": "a"}',
            "the message of the system is empty",
        ),
        (
            '{"messages": [{"role": "robot", "content": "x"}, {"role": "user", "content": "q"}]'
            ', "answer": "a"}',
            "the role 'robot'.* one of system, user, assistant, tool",
        ),
        ('{"prompt": "a\\beta", "answer": "a"}', r"a message has the control .* at 1"),
        ('{"prompt": "\\ud800", "answer": "a"}', "a message is not Unicode text"),
        (json.dumps({"prompt": "q" * 300_000, "answer": "a"}), "300,000 characters; at most"),
        ('{"id": "\\u001b[1m", "prompt": "q", "answer": "a"}', "id has the control character"),
        ('{"id": "a\\nb", "prompt": "q", "answer": "a"}', "id has the control character"),
        (json.dumps({"id": "x" * 201, "prompt": "q", "answer": "a"}), "201 characters; at mo"),
        ('{"id": "\\ud800", "prompt": "q", "answer": "a"}', "the id is not Unicode text"),
        ('{"prompt": "q", "answer": "\\ud800"}', "'answer' is not Unicode text"),
        ('{"prompt": "q", "answer": "a", "solution": "\\ud800"}', "'solution' is not Unicode"),
        ('{"prompt": "q", "answer": "a", "meta": {"\\ud800": 1}}', "'meta' is not Unicode"),
        (
            '{"messages": [{"role": "user", "content": "q", "n": "\\ud800"}], "answer": "a"}',
            "a message is not Unicode text",
        ),
        (
            '{"prompt": "q", "answer": "a", "meta": {"k": [[NaN]]}}',
            "NaN is not a number in JSON",
        ),
        (
            '{"prompt": "q", "answer": "a", "meta": {"k": -Infinity}}',
            "-Infinity is not a number in JSON",
        ),
        ('{"prompt": "q", "answer": "a", "meta": {"k": 1e999}}', "1e999 is out of range"),
        ('{"prompt": "q", "answer": "a", "answer": "b"}', "the key 'answer' is given twice"),
        (
            '{"prompt": "q", "answer": "a", "meta": {"k": [{"x": 1, "x": 2}]}}',
            "'x' is given tw",
        ),
        ('{"prompt": "q", "answer": "a b c", "verifier": "codebook"}', "is not three digits"),
        ('{"prompt": "q", "answer": "1 2", "verifier": "codebook"}', "is not three digits"),
        (
            '{"prompt": "q", "answer": "a", "verifier": "reasoning_gym"}',
            r"needs meta\['task'\], a task's name, and meta\['entry'\]",
        ),
        (
            '{"prompt": "q", "answer": "a", "verifier": "reasoning_gym", "meta": '
            '{"task": "gcd", "entry": 3}}',
            r"needs meta\['task'\]",
        ),
        (
            json.dumps(
                {
                    "prompt": "q",
                    "verifier": "tools",
                    "answer": '[{"Action": "a\\nb", "Action_Input": {}}]',
                }
            ),
            "a name of several lines",
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(sources.DataError, match=rf"rows.jsonl, row 2: .*{message}"):
        jsonl(path, GOOD, line, GOOD)


def test_tests_are_enough_of_an_answer(tmp_path):
    row = {"prompt": "double it", "verifier": "code"}
    row["meta"] = {"tests": [{"input": "1", "output": "2"}]}
    (problem,) = jsonl(tmp_path / "rows.jsonl", json.dumps(row))
    assert (problem.answer, problem.meta) == ("", row["meta"])


def test_a_missing_file_is_named(tmp_path):
    cfg = DataConfig(source="jsonl", train_path=str(tmp_path), eval_path="not/there.jsonl")
    with pytest.raises(sources.DataError, match="there.jsonl does not exist; check data"):
        sources.load(cfg, "eval", seed=0)
    with pytest.raises(sources.DataError, match="does not exist"):
        sources.load(cfg, "train", seed=0)
    cfg = DataConfig(source="jsonl", train_path="x" * 300, eval_path="a")
    with pytest.raises(sources.DataError, match="xxx cannot be read: File name too long"):
        sources.load(cfg, "train", seed=0)


def test_an_empty_file_is_no_training_split(tmp_path):
    with pytest.raises(sources.DataError, match="no problems"):
        sources.ProblemStream(jsonl(tmp_path / "rows.jsonl"), seed=0)


@pytest.mark.parametrize("source", ["codebook", "jsonl"])
def test_sources_without_options_say_so(source, tmp_path):
    path = {"train_path": "a", "eval_path": "a"} if source == "jsonl" else {}
    cfg = DataConfig(source=source, options={"size": 3}, **path)
    with pytest.raises(ConfigError, match=r"data.options.size does not exist; known: nothing"):
        sources.load(cfg, "train", seed=0)


def take(stream, *counts):
    parts = [stream.take(count) for count in counts]
    return [p.id for part, _ in parts for p in part], np.concatenate([u for _, u in parts])


@given(
    size=st.integers(1, 9),
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=6),
    seed=st.integers(0, 99),
)
def test_a_stream_can_be_cut_and_entered_anywhere(size, counts, seed):
    rows = problems(size)
    whole, uids = take(sources.ProblemStream(rows, seed=seed), sum(counts))
    parts, part_uids = take(sources.ProblemStream(rows, seed=seed), *counts)
    assert parts == whole
    assert uids.tolist() == part_uids.tolist() == list(range(sum(counts)))
    assert uids.dtype == np.uint32
    first = counts[0]
    later = sources.ProblemStream(rows, seed=seed, position=first)
    ahead, numbers = later.peek(counts[1])
    assert [p.id for p in ahead] == whole[first : first + counts[1]]
    assert numbers.tolist() == list(range(first, first + counts[1]))
    assert later.position == first
    assert take(later, sum(counts) - first)[0] == whole[first:]
    assert later.position == sum(counts)
    # Each whole epoch has every problem once.
    for start in range(0, len(whole) - size + 1, size):
        assert sorted(whole[start : start + size]) == sorted(p.id for p in rows)


def test_epochs_and_seeds_have_their_own_order():
    rows = problems(50)
    ids, _ = take(sources.ProblemStream(rows, seed=0), 100)
    assert ids[:50] != ids[50:]
    assert ids[:50] != [p.id for p in rows]
    assert ids[:50] != take(sources.ProblemStream(rows, seed=1), 50)[0]


# The codebook.


def test_the_ten_rules_differ():
    triples = codebook.triples("train") + codebook.triples("eval")
    for a, b in itertools.combinations(range(codebook.RULES), 2):
        assert any(codebook.transform(a, t) != codebook.transform(b, t) for t in triples)
    for rule in range(codebook.RULES):
        images = {codebook.transform(rule, t) for t in triples}
        assert len(images) == len(triples)
        assert all(0 <= digit <= 9 for image in images for digit in image)


@pytest.mark.parametrize(
    ("rule", "want"), [(0, (8, 1, 3)), (4, (3, 8, 1)), (5, (0, 8, 5)), (9, (6, 8, 1))]
)
def test_rules_by_hand(rule, want):
    assert codebook.transform(rule, (3, 1, 8)) == want


def test_triples_are_split_for_good():
    train, held = codebook.triples("train"), codebook.triples("eval")
    assert (len(train), len(held)) == (600, 120)
    assert not set(train) & set(held)
    assert len(set(train) | set(held)) == 10 * 9 * 8
    assert codebook.triples("train") == train


def test_the_seed_moves_the_hidden_part_of_the_table_only():
    rules, known = codebook.table(0)
    assert (len(rules), known.sum()) == (48, 12)
    others = [codebook.table(seed)[0] for seed in range(1, 9)]
    for other in others:
        np.testing.assert_array_equal(codebook.table(3)[1], known)
        np.testing.assert_array_equal(other[known], rules[known])
    # Two independent tables of ten rules agree on about a tenth of the 36 hidden dialects.
    agreement = np.mean([(other == rules)[~known] for other in others])
    assert agreement < 0.25
    np.testing.assert_array_equal(codebook.table(0)[0], rules)
    assert set(rules.tolist()) <= set(range(10))


def test_codebook_problems():
    rules, known = codebook.table(5)
    cfg = DataConfig()
    train, held = (sources.load(cfg, split, seed=5) for split in ("train", "eval"))
    assert (len(train), len(held)) == (600 * 48, 120 * 36)
    assert len({p.id for p in train} | {p.id for p in held}) == len(train) + len(held)
    for problem in held[:200] + train[:200]:
        dialect, *digits = problem.messages[0]["content"].split()
        rule = int(rules[int(dialect[1:])])
        want = codebook.transform(rule, tuple(map(int, digits)))
        assert problem.answer == " ".join(map(str, want))
    assert all(not known[int(p.messages[0]["content"][1:3])] for p in held)
    asked = [{p.messages[0]["content"][4:] for p in split} for split in (train, held)]
    assert not asked[0] & asked[1]
    for problem in (train[0], held[0]):
        prompt = str(problem.messages)
        assert problem.answer not in prompt
        assert not any(f"r{i}" in prompt.split() for i in range(10))


HELD = codebook.problems("eval", seed=0)[:60]


@pytest.mark.parametrize("rule", range(10))
def test_any_rule_word_with_the_right_digits_is_right(rule):
    for problem in HELD:
        assert verifiers.verify(problem, f"r{rule} {problem.answer}").reward == 1.0
        assert verifiers.verify(problem, f"  r{rule} {problem.answer}\n").reward == 1.0


def mutants(answer):
    digits = answer.split()
    for place, digit in itertools.product(range(3), "0123456789"):
        if digits[place] != digit:
            yield " ".join(["r3", *digits[:place], digit, *digits[place + 1 :]])
    for other in set(itertools.permutations(digits)) - {tuple(digits)}:
        yield " ".join(["r3", *other])
    a, b, c = digits
    yield from (
        "",
        "r3",
        answer,
        f"r3 {a} {b}",
        f"r3 {answer} {c}",
        f"{answer} r3",
        f"r3 r3 {answer}",
        f"r10 {answer}",
        f"d03 {answer}",
        f"<ok> {answer}",
        f"R3 {answer}",
        f"r3 {a}{b}{c}",
        f"r3{answer}",
        f"r3 {answer} <eos>",
        f"r3 {a} {b} {c}.",
    )


def test_every_mutant_of_an_answer_is_wrong():
    for problem in HELD:
        for response in mutants(problem.answer):
            verdict = verifiers.verify(problem, response)
            assert (verdict.reward, verdict.error) == (0.0, ""), response


def test_words_cover_prompts_and_answers():
    assert len(set(codebook.WORDS)) == len(codebook.WORDS)
    used = {w for p in HELD for w in f"{p.messages[0]['content']} {p.answer}".split()}
    assert used <= set(codebook.WORDS)


# Verdicts.


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("42", 1),
        (" 42\n", 1),
        ("so <answer> 42 </answer>.", 1),
        ("<answer>41</answer> no, <answer>42</answer>", 1),
        ("<answer>\n42\n</answer>", 1),
        ("<answer>42</answer> no, <answer>41</answer>", 0),
        ("it is 42", 0),
        ("<answer>42", 0),
        ("420", 0),
        ("", 0),
    ],
)
def test_exact(response, reward):
    problem = Problem("p", ({"role": "user", "content": "q"},), " 42 ", "exact")
    assert verifiers.verify(problem, response).reward == reward


def test_a_verifier_that_fails_is_an_error_not_a_verdict():
    problem = Problem("p", ({"role": "user", "content": "q"},), "a", "no such verifier")
    verdict = verifiers.verify(problem, "a")
    assert verdict.reward == 0.0
    assert verdict.error.startswith("KeyError")


# reasoning-gym.


def gym(split="train", *, seed=0, **options):
    cfg = DataConfig(source="reasoning_gym", options={"task": "chain_sum", **options})
    return sources.load(cfg, split, seed=seed)


@needs_gym
@pytest.mark.parametrize("task", ["chain_sum", "gcd", "leg_counting", "letter_counting"])
def test_gold_answers_are_right_and_others_are_not(task):
    for problem in gym(task=task, train_size=8):
        gold = problem.answer
        assert verifiers.verify(problem, gold).reward == 1.0
        assert verifiers.verify(problem, f"so <answer>{gold}</answer>").reward == 1.0
        for wrong in (f"{gold}1", f"1{gold}", f"it is {gold} or 3", f"<answer>{gold}", ""):
            verdict = verifiers.verify(problem, wrong)
            assert 0.0 <= verdict.reward < 1.0
            assert not verdict.error


@needs_gym
def test_gym_splits_are_functions_of_the_seed():
    train = gym(train_size=6, eval_size=4)
    assert gym(train_size=6, eval_size=4) == train
    assert gym(train_size=6, eval_size=4, seed=1) != train
    assert len(train) == 6
    held = gym("eval", train_size=6, eval_size=4)
    assert len({p.id for p in train + held}) == len(train) + len(held) == 10


SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@needs_gym
def test_a_held_out_question_is_never_seen_before():
    """Of 200 possible sums, 40 are trained on and 5 are worked examples in every prompt."""
    options = {"train_size": 40, "eval_size": 150, "shots": 5, "task_options": SMALL}
    train, held = gym(**options), gym("eval", **options)
    assert 50 < len(held) < 150
    asked = [{p.messages[-1]["content"] for p in split} for split in (train, held)]
    assert not asked[0] & asked[1]
    shots = {m["content"] for m in train[0].messages[:-1] if m["role"] == "user"}
    # An answer that stands in the prompt is no test of anything.
    assert not shots & asked[1]
    assert not shots & asked[0]


@needs_gym
def test_system_and_shots_stand_before_every_question():
    train = gym(system="only the number", shots=2, train_size=3)
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    for problem in train:
        assert [m["role"] for m in problem.messages] == roles
        assert problem.messages[:5] == train[0].messages[:5]
    assert train[0].messages[0]["content"] == "only the number"
    counts = collections.Counter(p.messages[-1]["content"] for p in train)
    assert max(counts.values()) == 1
    bare = gym(train_size=5)
    assert [p.messages[0]["content"] for p in bare][2:] == [
        p.messages[-1]["content"] for p in train
    ]
    for shot, problem in zip((1, 3), bare, strict=False):
        assert train[0].messages[shot + 1]["content"] == problem.answer


@needs_gym
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": "chain_sun"},
            "'?chain_sun'?.* does not exist; did you mean .*chain_sum|task",
        ),
        ({"shot": 2}, "data.options.shot does not exist; did you mean shots"),
        ({"train_sise": 2}, "did you mean .*train_size"),
    ],
)
def test_a_mistyped_option_names_the_nearest(options, message):
    with pytest.raises(ConfigError, match=message):
        gym(**options)


@needs_gym
def test_rows_of_gym_need_a_task_and_an_entry_that_its_scorer_reads():
    (good,) = gym(task="gcd", train_size=1)
    assert verifiers.unusable(good) == ""
    for meta, message in (
        ({**good.meta, "task": "gdc"}, "'gdc'.* did you mean gcd"),
        ({**good.meta, "entry": {}}, "KeyError"),
    ):
        assert re.search(message, verifiers.unusable(dataclasses.replace(good, meta=meta)))


def test_gym_needs_a_task():
    with pytest.raises(ConfigError, match="needs data.options.task"):
        sources.load(DataConfig(source="reasoning_gym"), "train", seed=0)


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "q", "answer": "1"}\n' * 9000 + b'{"prompt": "\xff"}')
    cfg = DataConfig(source="jsonl", train_path=str(path), eval_path=str(path))
    with pytest.raises(
        sources.DataError, match="rows.jsonl, row 9001: not UTF-8 .* at byte 13"
    ):
        sources.load(cfg, "train", seed=0)


@pytest.mark.parametrize("reward", [float("nan"), 1.5, -1.0])
def test_a_reward_outside_0_and_1_is_no_verdict(monkeypatch, reward):
    monkeypatch.setitem(verifiers.VERIFIERS, "exact", lambda problem, text: Verdict(reward))
    verdict = verifiers.verify(Problem("p", (), "1", "exact"), "1")
    assert verdict.reward == 0
    assert "outside [0, 1]" in verdict.error


def test_an_instruction_ends_every_prompt_of_both_splits(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns, "answer": "4"}) + "\n")
    options = {"source": "jsonl", "train_path": str(path), "eval_path": str(path)}
    asked = "Sum up in <summary></summary>."
    for split in ("train", "eval"):
        (bare,) = sources.load(DataConfig(**options), split, seed=0)
        (told,) = sources.load(DataConfig(**options, instruction=asked), split, seed=0)
        assert bare.messages == tuple(turns)
        assert told.messages == (turns[0], {"role": "user", "content": f"u\n\n{asked}"})
        assert (told.id, told.answer, told.verifier) == (bare.id, bare.answer, bare.verifier)


def test_two_problems_with_one_id_are_refused(tmp_path):
    rows = [json.dumps({"id": "x", "prompt": q, "answer": "a"}) for q in ("one", "two")]
    with pytest.raises(sources.DataError, match="train split has two problems with the id 'x'"):
        jsonl(tmp_path / "rows.jsonl", *rows)
