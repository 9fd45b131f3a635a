"""Settings of what a teacher is shown: whom it sees (`peers`) and how it reads (`context`)."""

import dataclasses
import re
from typing import Literal

from mopd_jax.errors import at_least, require

Rule = Literal["first", "uniform", "shortest", "longest", "most_similar", "least_similar"]
FailuresWhen = Literal["always", "no_success"]
TruncatedPeers = Literal["exclude", "outcome"]
SummarySource = Literal["success", "failure", "all"]
Targets = Literal["all", "failed"]
Groups = Literal["all", "mixed"]
NoSuccess = Literal["failures", "mask", "plain_prompt"]
AllSuccess = Literal["successes", "mask", "plain_prompt"]
Control = Literal[
    "off", "random", "shuffled", "unrelated", "cross_failures", "success_only", "shell"
]
Match = Literal["block", "token"]
Feedback = Literal["off", "no_success", "always"]
Gold = Literal["off", "answer", "solution"]

# Settings of `peers` by which a run chooses its rows; without a teacher nothing reads them.
ROW_POLICIES = ("targets", "groups", "no_success", "all_success", "control")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Which rollouts of the same prompt the teacher is shown (method of arXiv 2605.12652).

    successes, failures: the most of each kind that a context shows in full.
    slots: the most full peers in all; successes take their places first. None: no joint limit.
    rule: which of the candidates are taken. `uniform` draws by (seed, step, prompt, rollout);
        the others order them by index, by response length in tokens, or by the likeness of
        their text to the target's (`peers.similarity`).
    failures_when: `no_success` shows failures only where no success can be shown.
    summaries, summary_source: the most further peers that are shown by their summary only, and
        of which outcome; a peer that is shown in full is not summarised as well.
    truncated: a response cut at T is no peer (`exclude`), or is shown under the heading of its
        verified outcome like any other (`outcome`).
    same_text: whether a peer may have just the target's text, as it is shown; the teacher could
        then copy the target. Of a run and of its controls alike.
    failure_rule: the rule for failures, where it is another; None: the same.
    threshold: a reward of at least this is a success.
    targets, groups: which rows are distilled at all: also or only `failed` targets, also or
        only those of groups with both outcomes (`mixed`).
    no_success, all_success: what becomes of groups where no rollout succeeded, or all did:
        trained with the peers there are, not trained (`mask`), or held to the teacher on the
        plain prompt (`plain_prompt`).
    control: the same run with one thing taken away (`controls.py`).
    control_match: a control has as many blocks as the run it controls (`block`), and also as
        many tokens, to 2 % where its candidates allow that (`token`).
    control_topup: slots of `success_only` without a success of the same prompt are filled with
        successes of other prompts, and counted; else they stay empty, and are counted.
    """

    successes: int = 2
    failures: int = 1
    slots: int | None = None
    rule: Rule = "uniform"
    failure_rule: Rule | None = None
    failures_when: FailuresWhen = "always"
    summaries: int = 0
    summary_source: SummarySource = "success"
    truncated: TruncatedPeers = "exclude"
    same_text: bool = True
    threshold: float = 1.0
    targets: Targets = "all"
    groups: Groups = "all"
    no_success: NoSuccess = "failures"
    all_success: AllSuccess = "successes"
    control: Control = "off"
    control_match: Match = "block"
    control_topup: bool = True

    def __post_init__(self):
        at_least(self, 0, "successes", "failures", "summaries")
        at_least(self, 1, "slots")
        require(
            0.0 < self.threshold <= 1.0,
            f"PeerConfig.threshold is {self.threshold}; rewards lie in [0, 1], so set "
            "peers.threshold in (0, 1]",
        )
        kept = (self.no_success, self.all_success)
        require(
            self.groups == "all" or kept == ("failures", "successes"),
            "PeerConfig.groups 'mixed' leaves out the groups that no_success="
            f"{self.no_success!r} and all_success={self.all_success!r} speak of; set "
            "peers.groups='all', or leave those two as they are by default",
        )
        self._check_control()

    def _check_control(self):
        off = self.control == "off"
        require(
            off or self.successes + self.failures > 0,
            f"PeerConfig.control {self.control!r} replaces the peers of a run that shows some; "
            "set peers.successes or peers.failures, or peers.control='off'",
        )
        require(
            off or self.summaries == 0,
            f"PeerConfig.control {self.control!r} fills the slots of full peers only; set "
            "peers.summaries=0",
        )
        require(
            self.failures > 0 or self.control not in ("cross_failures", "success_only"),
            f"PeerConfig.control {self.control!r} replaces failures, and failures is 0, so it "
            "would be the run itself; set peers.failures, or another peers.control",
        )
        both = min(self.successes, self.failures) > 0 and self.slots != 1
        require(
            self.control != "shuffled" or (both and self.failures_when == "always"),
            "PeerConfig.control 'shuffled' permutes headings of successes and failures, and "
            f"successes={self.successes}, failures={self.failures}, slots={self.slots}, "
            f"failures_when={self.failures_when!r} never show both, so it would be the run "
            "itself; show both, or set another peers.control",
        )
        require(
            self.control_match == "block" or self.control not in ("off", "shuffled", "shell"),
            f"PeerConfig.control_match 'token' chooses peers by length, and control "
            f"{self.control!r} chooses none; set peers.control_match='block'",
        )
        require(
            self.control_topup or self.control == "success_only",
            f"PeerConfig.control_topup belongs to control 'success_only', not "
            f"{self.control!r}; leave it True",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """How the chosen peers become the teacher's prompt: one template object for every method.

    The last user message becomes question, success blocks, summaries, failure blocks, feedback,
    closing line, joined by `separator`; earlier turns stay. `{text}` in a template is the
    peer's response, its summary, or the verifier's text.
    teacher_prompt_length: Q in tokens, the assistant header included. None is
        `rollout.prompt_length`, and all there is to fit where no context is shown.
    peer_tokens: budget of one peer; a longer one loses its middle, never its head or tail.
    neutral: heading of a peer whose outcome is hidden (control `random`).
    cut_mark: stands where tokens were cut; `{n}` is their number.
    strip_thinking: remove `<think>` spans, unclosed ones included, from every peer.
    summary_tag, summary_chars: a summary is the first closed span of this tag, else the first
        characters of the response; how often it was the latter is counted.
    feedback: whether the teacher reads the verifier's feedback on the target itself, where that
        failed: `off`, where no success is shown in full (`no_success`, as SDPO), or `always`.
    feedback_tokens: budget of the feedback.
    gold, gold_block: shows the teacher the problem's gold `answer`, or its worked `solution`,
        before all peers (OPSD, arXiv 2601.18734). The student never sees either.
    feedback_with_gold: also show feedback that its verifier declares to contain gold answers
        or hidden tests; else such feedback is withheld, and counted.
    """

    teacher_prompt_length: int | None = 10240
    peer_tokens: int | None = None
    success: str = "A correct solution to this problem:\n\n{text}"
    another_success: str = "Another correct solution:\n\n{text}"
    failure: str = "A failed attempt at this problem; do not repeat its mistake:\n\n{text}"
    neutral: str = "An attempt at this problem:\n\n{text}"
    closing: str = "Now solve the original problem correctly."
    separator: str = "\n\n"
    cut_mark: str = " [... {n} tokens left out ...] "
    strip_thinking: bool = True
    summary_success: str = "Summary of another correct solution: {text}"
    summary_failure: str = "Summary of another failed attempt: {text}"
    summary_tag: str = "summary"
    summary_chars: int = 300
    feedback: Feedback = "off"
    feedback_block: str = "Feedback on your own earlier attempt, which failed:\n\n{text}"
    feedback_tokens: int | None = None
    feedback_with_gold: bool = False
    gold: Gold = "off"
    gold_block: str = "The reference solution of this problem:\n\n{text}"

    def __post_init__(self):
        at_least(self, 1, "teacher_prompt_length", "summary_chars")
        at_least(self, 2, "peer_tokens", "feedback_tokens")
        peers = ("success", "another_success", "failure", "neutral")
        for name in (
            *peers,
            "summary_success",
            "summary_failure",
            "feedback_block",
            "gold_block",
        ):
            require(
                "{text}" in getattr(self, name),
                f"ContextConfig.{name} has no {{text}}, so its text would not be shown",
            )
        require(
            re.fullmatch(r"[A-Za-z][\w-]*", self.summary_tag) is not None,
            f"ContextConfig.summary_tag is {self.summary_tag!r}; give a name without brackets, "
            "such as 'summary'",
        )
        require(
            self.feedback != "off" or not self.feedback_with_gold,
            "ContextConfig.feedback_with_gold is True while feedback is 'off', so it does "
            "nothing; set context.feedback, or context.feedback_with_gold=False",
        )


def check_contexts(
    peers: PeerConfig,
    context: ContextConfig,
    *,
    distills: bool,
    plain_prompt: bool,
    instruction: str,
    prompts: int,
) -> None:
    """What the two sections need of each other and of the rest of a config.

    Args:
        distills: the loss has a teacher.
        plain_prompt: rows without a context are distilled all the same.
        instruction: `data.instruction`.
        prompts: `rollout.prompts`.

    Raises:
        ConfigError: with the remedy.
    """
    feedback = context.feedback != "off"
    shows = peers.successes + peers.failures + peers.summaries > 0
    shows = shows or feedback or context.gold != "off"
    require(
        not distills or shows or plain_prompt,
        "peers.successes, peers.failures and peers.summaries are 0 and context.feedback is "
        "'off', so every context is empty and every row masked: nothing would be trained. For "
        "OPD without peers set teacher.no_context='plain_prompt'",
    )
    read = [("peers", peers, name) for name in (*ROW_POLICIES, "summaries")]
    read += [("context", context, name) for name in ("gold", "feedback")]
    changed = [
        f"{section}.{name}={getattr(cfg, name)!r}"
        for section, cfg, name in read
        if getattr(cfg, name) != getattr(type(cfg), name)
    ]
    require(
        distills or not changed,
        f"{', '.join(changed)}: only a distillation has contexts and chooses its rows by them; "
        "leave these settings as they are by default, or set loss.method='distill'",
    )
    crosses = ("unrelated", "cross_failures", "success_only")
    require(
        prompts > 1 or peers.control not in crosses or not peers.control_topup,
        f"peers.control={peers.control!r} takes peers of other prompts of the step, and "
        f"rollout.prompts={prompts} has none; set rollout.prompts to 2 or more"
        + (", or peers.control_topup=False" if peers.control == "success_only" else ""),
    )
    require(
        peers.control == "off" or not feedback,
        f"peers.control={peers.control!r} controls for peers, and context.feedback="
        f"{context.feedback!r} would stand beside them; set context.feedback='off'",
    )
    require(
        peers.control == "off" or context.gold == "off",
        f"peers.control={peers.control!r} controls for peers, and context.gold="
        f"{context.gold!r} would stand beside them; set context.gold='off'",
    )
    require(
        peers.summaries == 0 or f"<{context.summary_tag}>" in instruction,
        f"peers.summaries={peers.summaries}, but data.instruction does not ask the student for "
        f"one: let it say what to write inside <{context.summary_tag}> (in training and "
        "evaluation and for every method alike), or set peers.summaries=0",
    )
