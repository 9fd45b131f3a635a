"""Settings of what a teacher is shown: which peers (`peers`), in which form (`context`)."""

import dataclasses
import re
from typing import Literal

from mopd_jax.errors import at_least, require

Rule = Literal["first", "uniform", "shortest", "longest", "most_similar", "least_similar"]
TruncatedPeers = Literal["exclude", "outcome"]
SummarySource = Literal["success", "failure", "all"]
Targets = Literal["all", "failed"]
Exclude = Literal["rollout", "text"]
NoSuccess = Literal["failures", "mask", "plain_prompt"]
AllSuccess = Literal["successes", "mask", "plain_prompt"]
Control = Literal[
    "off", "random", "shuffled", "unrelated", "cross_failures", "success_only", "shell"
]
Match = Literal["block", "token"]
Feedback = Literal["off", "no_success", "always"]
Gold = Literal["off", "answer", "solution"]

# Settings of `peers` by which a run chooses its rows; without a teacher nothing reads them.
ROW_POLICIES = ("targets", "no_success", "all_success", "control")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeerConfig:
    """Which rollouts of the same prompt the teacher is shown (method of arXiv 2605.12652).

    successes: the most successful peers that a context shows in full.
    failures: the most failed peers that a context shows in full.
    slots: the most peers in full of both kinds; successes take their places first. None: no
        joint limit.
    rule: which of the candidates are taken. `uniform` draws by (seed, step, prompt, rollout);
        the others order them by index, by response length in tokens, or by the likeness of
        their text to the target's (`peers.similarity`).
    failure_rule: the rule for failures; None: the same as for successes.
    summaries: the most further peers that a context shows by their summary only; a peer that is
        shown in full is not summarised as well.
    summary_source: the outcome of the peers that are summarised.
    truncated: whether a response cut at T may be a peer: never (`exclude`), or under the
        heading of its verified outcome like any other (`outcome`).
    exclude: what the context of a target may not show, in a run and in its controls alike: the
        target's own `rollout`, or also any peer of the same `text`, as it is shown, which the
        teacher could copy.
    threshold: a reward of at least this is a success.
    targets: which rows are distilled at all: those of `all` targets, or of `failed` ones only.
    no_success: what becomes of groups in which no rollout succeeded: trained with failed peers
        (`failures`), not trained (`mask`), or held to the teacher on the plain prompt
        (`plain_prompt`).
    all_success: the same of groups in which every rollout succeeded. With both at `mask`, only
        groups with both outcomes are trained.
    control: the same run with one thing taken away (`contexts/controls.py`).
    control_match: what a control has in common with the run it controls: the number of blocks
        (`block`), or also their tokens, to 2 % where its candidates allow that (`token`).
    """

    successes: int = 2
    failures: int = 1
    slots: int | None = None
    rule: Rule = "uniform"
    failure_rule: Rule | None = None
    summaries: int = 0
    summary_source: SummarySource = "success"
    truncated: TruncatedPeers = "exclude"
    exclude: Exclude = "rollout"
    threshold: float = 1.0
    targets: Targets = "all"
    no_success: NoSuccess = "failures"
    all_success: AllSuccess = "successes"
    control: Control = "off"
    control_match: Match = "block"

    def __post_init__(self) -> None:
        at_least(self, 0, "successes", "failures", "summaries")
        at_least(self, 1, "slots")
        require(
            0.0 < self.threshold <= 1.0,
            f"PeerConfig.threshold is {self.threshold}; rewards lie in [0, 1], so set "
            "peers.threshold in (0, 1]",
        )
        self._check_control()

    def _check_control(self) -> None:
        """A control has something to fill and to change."""
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
            self.control != "shuffled" or both,
            "PeerConfig.control 'shuffled' permutes headings of successes and failures, and "
            f"successes={self.successes}, failures={self.failures}, slots={self.slots} never "
            "show both, so it would be the run itself; show both, or set another peers.control",
        )
        require(
            self.control_match == "block" or self.control not in ("off", "shuffled", "shell"),
            f"PeerConfig.control_match 'token' chooses peers by length, and control "
            f"{self.control!r} chooses none; set peers.control_match='block'",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """How the chosen peers become the teacher's prompt: the same templates for every method.

    The last user message becomes question, gold, success blocks, summaries, failure blocks,
    feedback, closing line, joined by `separator`; earlier turns stay. `{text}` in a template is
    the text of the block. The headings of summaries and of feedback, and the mark where tokens
    were cut, are constants in `mopd_jax/contexts`.
    teacher_prompt_length: Q in tokens, the assistant header included. None is
        `rollout.prompt_length`, which suffices where no context is shown.
    peer_tokens: the most tokens of one peer; a longer one loses its middle, never its head or
        tail. None: no limit.
    success: heading of the first successful peer in full.
    another_success: heading of every further one.
    failure: heading of a failed peer in full.
    neutral: heading of a peer whose outcome is hidden (control `random`).
    closing: the last line wherever a block is shown; "" for none.
    separator: the text between two blocks.
    strip_thinking: remove `<think>` spans, unclosed ones included, from every peer.
    summary_tag: a summary is the first closed span of this tag in the response.
    summary_chars: a response without a summary is summarised by this many characters of its
        head; `summary_fallbacks` counts these.
    feedback: whether the teacher reads the verifier's feedback on a target that failed: `off`,
        where no success is shown in full (`no_success`, as SDPO), or `always`.
    feedback_tokens: the most tokens of the feedback. None: no limit.
    feedback_with_gold: also show feedback that its verifier declares to contain gold answers
        or hidden tests; else such feedback is withheld, and counted.
    gold: shows the teacher the problem's gold `answer`, or its worked `solution`, before all
        peers (OPSD, arXiv 2601.18734). The student never sees either.
    gold_block: heading of the gold text.
    """

    teacher_prompt_length: int | None = 10240
    peer_tokens: int | None = None
    success: str = "A correct solution to this problem:\n\n{text}"
    another_success: str = "Another correct solution:\n\n{text}"
    failure: str = "A failed attempt at this problem; do not repeat its mistake:\n\n{text}"
    neutral: str = "An attempt at this problem:\n\n{text}"
    closing: str = "Now solve the original problem correctly."
    separator: str = "\n\n"
    strip_thinking: bool = True
    summary_tag: str = "summary"
    summary_chars: int = 300
    feedback: Feedback = "off"
    feedback_tokens: int | None = None
    feedback_with_gold: bool = False
    gold: Gold = "off"
    gold_block: str = "The reference solution of this problem:\n\n{text}"

    def __post_init__(self) -> None:
        at_least(self, 1, "teacher_prompt_length", "summary_chars")
        at_least(self, 2, "peer_tokens", "feedback_tokens")
        for name in ("success", "another_success", "failure", "neutral", "gold_block"):
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
    """Checks what the two sections need of each other and of the rest of a config.

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
    sections: list[tuple[str, PeerConfig | ContextConfig, tuple[str, ...]]] = [
        ("peers", peers, (*ROW_POLICIES, "summaries")),
        ("context", context, ("gold", "feedback")),
    ]
    changed = [
        f"{section}.{name}={getattr(cfg, name)!r}"
        for section, cfg, names in sections
        for name in names
        if getattr(cfg, name) != getattr(type(cfg), name)
    ]
    require(
        distills or not changed,
        f"{', '.join(changed)}: only a distillation has contexts and chooses its rows by them; "
        "leave these settings as they are by default, or set loss.method='distill'",
    )
    crosses = ("unrelated", "cross_failures", "success_only")
    require(
        prompts > 1 or peers.control not in crosses,
        f"peers.control={peers.control!r} takes peers of other prompts of the step, and "
        f"rollout.prompts={prompts} has none; set rollout.prompts to 2 or more",
    )
    require(
        peers.control == "off" or not feedback,
        f"peers.control={peers.control!r} replaces peers only, and context.feedback="
        f"{context.feedback!r} would show more than peers; set context.feedback='off'",
    )
    require(
        peers.control == "off" or context.gold == "off",
        f"peers.control={peers.control!r} replaces peers only, and context.gold="
        f"{context.gold!r} would show more than peers; set context.gold='off'",
    )
    require(
        peers.summaries == 0 or f"<{context.summary_tag}>" in instruction,
        f"peers.summaries={peers.summaries}, but data.instruction does not ask the student for "
        f"one: let it say what to write inside <{context.summary_tag}> (in training and "
        "evaluation and for every method alike), or set peers.summaries=0",
    )
