"""The verifier of tool use: calls compared one by one, with typed arguments."""

import json

import pytest

from mopd_jax import verifiers
from mopd_jax.records import Problem
from mopd_jax.verifiers import tools

TURN = ({"role": "user", "content": "Do it."},)
NESTED = {"a": 1, "n": {"x": [1, {"y": "} Action: no"}]}}
GOLD = [
    {"Action": "f", "Action_Input": json.dumps(NESTED)},
    {"Action": "g", "Action_Input": {}},
]
TWICE = [
    {"Action": "f", "Action_Input": '{"to": 1, "from": 2}'},
    {"Action": "f", "Action_Input": '{"to": 3, "from": 4}'},
]
RIGHT = (
    f"Thought: so.\nAction: f\nAction Input: {json.dumps(NESTED)}\n"
    "Action: g\nAction Input: {}"
)


def judge(response, gold=GOLD, **meta):
    answer = gold if isinstance(gold, str) else json.dumps(gold)
    return verifiers.verify(Problem("p", TURN, answer, "tools", meta), response)


def calls_text(*calls):
    return "\n".join(f"Action: {name}\nAction Input: {value}" for name, value in calls)


# (case, gold, response): right, and refused by graders with the shortest brace span.
WRONGLY_REFUSED_ELSEWHERE = [
    ("nested arguments", GOLD, RIGHT),
    (
        "name that begins with a bracket",
        [{"Action": "[f", "Action_Input": "{}"}],
        calls_text(("[f", "{}")),
    ),
    ("number written otherwise", TWICE[:1], calls_text(("f", '{"from": 2.0, "to": 1e0}'))),
]
# (case, gold, response): wrong, and accepted by graders that merge all arguments.
WRONGLY_ACCEPTED_ELSEWHERE = [
    (
        "arguments swapped between calls",
        TWICE,
        calls_text(("f", '{"to": 1, "from": 4}'), ("f", '{"to": 3, "from": 2}')),
    ),
    (
        "wrong argument hidden by a later call",
        TWICE,
        calls_text(("f", '{"to": 9, "from": 9}'), ("f", '{"to": 3, "from": 4}')),
    ),
    (
        "wrong argument hidden by a later key",
        TWICE[:1],
        calls_text(("f", '{"to": 9, "to": 1, "from": 2}')),
    ),
    ("garbage where nothing is asked", GOLD[1:], calls_text(("g", "{garbage}"))),
    ("an argument where nothing is asked", GOLD[1:], calls_text(("g", '{"a": 1}'))),
    ("no input at all", GOLD[1:], "Action: g"),
    ("calls in one name", TWICE[:1], calls_text(("f", '{"to": 1}'), ("f", '{"from": 2}'))),
]


@pytest.mark.parametrize(("case", "gold", "response"), WRONGLY_REFUSED_ELSEWHERE)
def test_right_calls_that_other_graders_refuse(case, gold, response):
    del case
    verdict = judge(response, gold)
    assert (verdict.reward, verdict.format_ok, verdict.error) == (1.0, True, "")


@pytest.mark.parametrize(("case", "gold", "response"), WRONGLY_ACCEPTED_ELSEWHERE)
def test_wrong_calls_that_other_graders_accept(case, gold, response):
    del case
    verdict = judge(response, gold)
    assert (verdict.reward, verdict.error) == (0.0, "")


@pytest.mark.parametrize(
    "response",
    [
        RIGHT.replace('{"a"', '```json\n{"a"').replace("}]}}", "}]}}\n```"),
        RIGHT.replace("{}", "`{}`"),
        RIGHT.replace("Action: f", "**Action:** `f`").replace(
            "Action Input:", "**Action Input:**"
        ),
        RIGHT.replace("\nAction Input", " Action Input"),
        RIGHT.replace("Input: ", "Input:\n"),
        RIGHT.replace("\nAction", "\nACTION"),
        RIGHT + "\nObservation: done\nFinal Answer: 5",
        "<think>\nAction: h\nAction Input: {}\n</think>\n" + RIGHT,
        RIGHT + "\n<think>\nAction: h\nAction Input: {}",
        calls_text(("g", "{}"), ("f", json.dumps(NESTED, indent=2))),
        RIGHT.replace("Action: f", 'Action: "f"'),
        RIGHT.replace("Action: f", "Action:\nf"),
        RIGHT.replace("\nAction: ", "\n1. Action: "),
        RIGHT.replace("\nAction: ", "\n**2) Action:** "),
        RIGHT.replace("Action: f", "Action 1: f").replace("Action Input: ", "Action Input 1: "),
        "Plan:\n1. Action: call f\n2) action: call g\n\n" + RIGHT,
        RIGHT + '\nObservation: {"ok": true}',
    ],
)
def test_ways_to_write_the_same_calls(response):
    verdict = judge(response)
    assert (verdict.reward, verdict.format_ok) == (1.0, True)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ('"1"', "1"),
        ("true", "1"),
        ("1", "true"),
        ("null", "0"),
        ("[1, 2]", "[2, 1]"),
        ('"a "', '"a"'),
        ('{"b": {}}', '{"b": []}'),
        ("0.1", "0.10000000000000001"),
    ],
)
def test_types_and_values_are_exact(given, wanted):
    gold = [{"Action": "f", "Action_Input": f'{{"a": {wanted}}}'}]
    assert judge(calls_text(("f", f'{{"a": {wanted}}}')), gold).reward == 1.0
    assert judge(calls_text(("f", f'{{"a": {given}}}')), gold).reward == 0.0


@pytest.mark.parametrize(
    "guess",
    [
        "\nAction Input: {}",
        "\nor\nAction Input: {}",
        '\nAction Input: {"a": ',
        "\n{}",
        "\n```\n{}",
        "\n```json\n{}\n```",
        "\nAction 2: h\nAction Input 2: {}",
    ],
)
def test_a_second_guess_is_not_free(guess):
    verdict = judge(RIGHT + guess)
    assert (verdict.reward, verdict.error) == (0.0, "")
    assert judge(guess.lstrip() + "\n" + RIGHT).reward == 0.0 or "Action" not in guess


def test_equal_calls_have_one_text():
    gold = [{"Action": "f", "Action_Input": {"a": 1}}]
    texts = {
        judge(calls_text(("f", arguments)), gold).answer
        for arguments in ('{"n": 10, "m": {"x": true, "y": [0.5]}}',
                          '{"m": {"y": [5e-1], "x": true}, "n": 1e1}')
    }  # fmt: skip
    assert texts == {'f {"m": {"x": true, "y": [5e-1]}, "n": 1e1}'}
    text, number = (
        judge(calls_text(("f", f'{{"n": {n}}}')), gold).answer for n in ('"10"', "10")
    )
    assert (text, number) == ('f {"n": "10"}', 'f {"n": 1e1}')


def test_the_answer_is_of_the_response_whatever_the_gold():
    one, two = calls_text(("f", '{"a": 1}')), calls_text(("g", "{}"))
    for gold in (GOLD, TWICE, "f(1)"):  # The last is an error.
        answers = [judge(text, gold).answer for text in (f"{one}\n{two}", f"{two}\n{one}")]
        assert answers == ['f {"a": 1e0}\ng {}'] * 2
        assert judge(f"{two}\n{one}", gold, order="exact").answer == 'g {}\nf {"a": 1e0}'
        for text in ("", "Action: f", f"{one}\nAction: g"):
            assert judge(text, gold).answer is None


def test_a_null_is_not_a_missing_key():
    gold = [{"Action": "f", "Action_Input": "{}"}]
    assert judge(calls_text(("f", '{"a": null}')), gold).reward == 0.0


def test_order():
    swapped = calls_text(("f", '{"to": 3, "from": 4}'), ("f", '{"to": 1, "from": 2}'))
    assert judge(swapped, TWICE).reward == 1.0
    assert judge(swapped, TWICE, order="exact").reward == 0.0
    once = calls_text(("f", '{"to": 3, "from": 4}'))
    assert judge(once, TWICE).reward == 0.0
    assert judge(f"{swapped}\n{once}", TWICE).reward == 0.0
    assert judge(calls_text(("F", "{}")), [{"Action": "f", "Action_Input": {}}]).reward == 0.0


@pytest.mark.parametrize(
    ("response", "count", "why"),
    [
        ("I would rather not.", 0, "No call was found"),
        ("Action: f", 1, "it has no Action Input"),
        ("Action: f\nAction Input:", 1, "no JSON object"),
        ("Action: f\nAction Input: [1]", 1, "no JSON object"),
        ('Action: f\nAction Input: "{}"', 1, "no JSON object"),
        ('Action: f\nAction Input: {"a": }', 1, "not readable JSON"),
        ('Action: f\nAction Input: {"a": NaN}', 1, "NaN is no JSON"),
        ('Action: f\nAction Input: {"a": 1e99999999999999999999}', 1, "out of range"),
        ('Action: f\nAction Input: {"a": 1, "a": 1}', 1, "twice"),
        ("Action: f\nAction Input: {} or so", 1, "behind the JSON"),
        ('Action: f\nAction Input: {"a": ' + "[" * 70 + "]" * 70 + "}", 1, "more than 64 deep"),
        ('Action: f\nAction Input: {"a": ' + "[" * 100_000, 1, "too deeply"),
        ("Action:\nAction Input: {}", 1, "no name"),
        ("Action: f\nAction: g\nAction Input: {}", 2, "Call 1 cannot be read"),
    ],
)
def test_what_cannot_be_read_is_said_without_gold(response, count, why):
    verdict = judge(response)
    assert (verdict.reward, verdict.format_ok, verdict.error) == (0.0, False, "")
    assert why in verdict.feedback
    assert len(tools.calls(response)) == count
    assert not verdict.feedback_has_gold


def test_feedback_has_gold_only_where_it_is_asked_for_and_says_so():
    wrong = calls_text(("f", '{"a": 2}'))
    hidden = judge(wrong, TWICE)
    assert hidden.feedback == "Calls that were found: 1."
    assert not hidden.feedback_has_gold
    open_ = judge(wrong, TWICE, feedback="gold")
    assert '\\"from\\": 4' in open_.feedback
    assert open_.feedback_has_gold
    right = calls_text(*((c["Action"], c["Action_Input"]) for c in TWICE))
    verdict = judge(right, TWICE, feedback="gold")
    assert (verdict.reward, verdict.feedback, verdict.feedback_has_gold) == (1.0, "", False)


@pytest.mark.parametrize(
    ("gold", "meta", "message"),
    [
        ("f(1)", {}, "not JSON"),
        ("[]", {}, "not a list"),
        ('{"Action": "f"}', {}, "not a list"),
        ('[{"Action": "f"}]', {}, "call 1"),
        ('[{"Action": "", "Action_Input": "{}"}]', {}, "no name"),
        ('[{"Action": "f", "Action_Input": "[]"}]', {}, "unreadable arguments"),
        ('[{"Action": "f", "Action_Input": "{"}]', {}, "unreadable arguments"),
        ('[{"Action": "f", "Action_Input": 5}]', {}, "unreadable arguments"),
        (json.dumps(GOLD), {"order": "some"}, "one of any, exact"),
        (json.dumps(GOLD), {"feedback": "all"}, "one of format, gold"),
    ],
)
def test_items_that_cannot_be_judged(gold, meta, message):
    assert message in judge(RIGHT, gold, **meta).error


def test_many_broken_calls_take_no_time_and_little_feedback():
    verdict = judge("Action: f\nAction Input: {\n" * 20_000)
    assert "19992 more calls" in verdict.feedback
    assert len(verdict.feedback) < 2000
