"""Config records, the way to them from a ConfigDict, and every file in configs/."""

import copy
import dataclasses
import pathlib
import re
import shlex
from typing import get_args

import pytest

from mopd_jax import cli, config
from mopd_jax.config import Config, methods
from mopd_jax.config.update import Method
from mopd_jax.contexts import controls
from mopd_jax.errors import ConfigError
from mopd_jax.kernels import Divergence

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.py"))


def built(**dotted):
    """The defaults with `section__field=value` changes, validated."""
    tree = config.defaults()
    for name, value in dotted.items():
        *path, last = name.split("__")
        node = tree
        for part in path:
            node = node[part]
        node[last] = value
    return config.from_config_dict(Config, tree)


def overridden(dotted, text):
    tree = config.defaults()
    config.override(tree, dotted, text)
    value = config.from_config_dict(Config, tree)
    for part in dotted.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def leaves(record=Config(), path=()):  # noqa: B008  (frozen)
    for field in dataclasses.fields(record):
        value, name = getattr(record, field.name), (*path, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, name)
        else:
            yield name


LEAVES = list(leaves())


def test_the_defaults_go_round():
    assert config.from_config_dict(Config, config.defaults()) == Config()


def test_a_full_config_goes_round():
    cfg = built(
        data__source="reasoning_gym",
        data__options={"task": "gcd", "shots": 2},
        eval__ks=(1, 3),
        peers__slots=4,
    )
    assert config.from_config_dict(Config, config.to_config_dict(cfg)) == cfg


def test_keys_are_locked():
    with pytest.raises(AttributeError, match="successes"):
        config.defaults().peers.sucesses = 1


def test_task_options_may_be_a_mapping():
    """The source takes `task_options` as a mapping, from a config file and the command line."""
    options = {"task": "gcd", "task_options": {"min_numbers": 2}}
    cfg = built(data__source="reasoning_gym", data__options=options)
    assert cfg.data.options == options
    assert '"min_numbers": 2' in config.to_json(cfg)
    assert config.fingerprint(cfg) != config.fingerprint(Config())


@pytest.mark.parametrize(
    ("dotted", "nearest"),
    [
        ("peers.sucesses", "successes"),
        ("pears.successes", "peers"),
        ("optimizer.lerning_rate", "learning_rate"),
        ("step", "steps"),
        ("peers.successes.most", "successes"),
    ],
)
def test_an_unknown_key_names_the_nearest(dotted, nearest):
    with pytest.raises(ConfigError, match=rf"does not exist; did you mean .*{nearest}"):
        config.override(config.defaults(), dotted, "1")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"sed": 1}, "config.sed does not exist; did you mean seed"),
        ({"peers": {"rulle": "first"}}, "config.peers.rulle does not exist; did you mean rule"),
        ({"peers": {"rule": "shortst"}}, "config.peers.rule='shortst'.*did you mean shortest"),
        ({"loss": {"divergence": {"kind": "reverse"}}}, "did you mean reverse_kl"),
        ({"model": {"compute_dtype": "fp8"}}, "known: bfloat16, float32"),
    ],
)
def test_an_unknown_key_or_choice_in_a_mapping(tree, message):
    with pytest.raises(ConfigError, match=message):
        config.from_config_dict(Config, tree)


@pytest.mark.parametrize(
    ("dotted", "text", "answer"),
    [
        ("peers.same_text", "False", "is config.peers.exclude .*'text' for False"),
        (
            "peers.groups",
            "mixed",
            "config.peers.no_success='mask' and config.peers.all_success",
        ),
        ("peers.failures_when", "no_success", "config.peers.slots"),
        ("peers.control_topup", "False", "control_topped_up counts"),
        *[
            (f"context.{name}", "{text} {n}", "a constant in mopd_jax/contexts")
            for name in ("cut_mark", "summary_success", "summary_failure", "feedback_block")
        ],
    ],
)
def test_an_old_setting_is_answered_with_what_holds_now(dotted, text, answer):
    with pytest.raises(ConfigError, match=f"^config.{dotted} .*{answer}"):
        config.override(config.defaults(), dotted, text)
    section, name = dotted.split(".")
    with pytest.raises(ConfigError, match=f"^config.{dotted} .*{answer}"):
        config.from_config_dict(Config, {section: {name: text}})


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"model__path": ""}, "name a folder"),
        ({"model__head_chunk": 0}, "at least 1"),
        ({"data__source": "jsonl"}, "needs data.train_path and data.eval_path"),
        ({"data__train_path": "a"}, "belong to source 'jsonl'"),
        ({"rollout__group": 1}, "set rollout.group to 2 or more"),
        ({"rollout__prompts": 0}, "at least 1"),
        ({"rollout__temperature": 0.0}, "top_k=1"),
        ({"rollout__top_p": 0.0}, "None for off"),
        ({"rollout__top_p": 1.5}, "None for off"),
        ({"rollout__top_k": 0}, "at least 1"),
        ({"eval__temperature": -1.0}, "must be positive"),
        ({"peers__successes": -1}, "at least 0"),
        ({"peers__slots": 0}, "at least 1"),
        ({"peers__threshold": 0.0}, r"set peers.threshold in \(0, 1\]"),
        ({"peers__threshold": 1.5}, r"set peers.threshold in \(0, 1\]"),
        ({"context__peer_tokens": 1}, "at least 2"),
        ({"context__success": "no slot"}, r"no \{text\}"),
        ({"context__failure": "no slot"}, r"no \{text\}"),
        ({"context__neutral": "no slot"}, r"no \{text\}"),
        ({"context__feedback_tokens": 1}, "at least 2"),
        ({"context__summary_chars": 0}, "at least 1"),
        ({"context__summary_tag": "<summary>"}, "a name without brackets"),
        ({"peers__summaries": -1}, "at least 0"),
        ({"peers__summaries": 2}, "data.instruction does not ask"),
        (
            {"peers__summaries": 2, "data__instruction": "in <sum></sum>"},
            "what to write inside <summary>",
        ),
        (
            {"peers__control": "random", "peers__successes": 0, "peers__failures": 0},
            "set peers.successes or peers.failures",
        ),
        (
            {
                "peers__control": "random",
                "peers__summaries": 1,
                "data__instruction": "in <summary></summary>",
            },
            "set peers.summaries=0",
        ),
        (
            {"peers__control": "random", "context__feedback": "always"},
            "set context.feedback='off'",
        ),
        ({"peers__control_match": "token"}, "set peers.control_match='block'"),
        (
            {"peers__control": "shell", "peers__control_match": "token"},
            "set peers.control_match='block'",
        ),
        *[
            (
                {"peers__control": name, "rollout__prompts": 1},
                "set rollout.prompts to 2 or more",
            )
            for name in ("unrelated", "cross_failures", "success_only")
        ],
        *[
            ({"peers__control": name, "peers__failures": 0}, "it would be the run itself")
            for name in ("cross_failures", "success_only", "shuffled")
        ],
        *[
            ({"peers__control": "shuffled", **only}, "never show both")
            for only in (
                {"peers__successes": 0},
                {"peers__slots": 1},
            )
        ],
        (
            {"context__feedback_with_gold": True},
            "set context.feedback, or context.feedback_with_gold=False",
        ),
        *[
            ({"loss__method": method, "context__gold": "answer"}, "context.gold='answer': only")
            for method in ("grpo", "dpo", "simpo", "sft")
        ],
        (
            {"loss__method": "grpo", "context__feedback": "always"},
            "context.feedback='always': only .* set loss.method='distill'",
        ),
        (
            {
                "loss__method": "sft",
                "peers__summaries": 1,
                "data__instruction": "in <summary></summary>",
            },
            "peers.summaries=1: only",
        ),
        *[
            ({"loss__method": "grpo", f"peers__{name}": value}, f"peers.{name}='{value}': only")
            for name, value in [
                ("targets", "failed"),
                ("no_success", "mask"),
                ("all_success", "plain_prompt"),
                ("control", "shuffled"),
            ]
        ],
        ({"context__teacher_prompt_length": 2047}, "not even a plain prompt fits"),
        ({"teacher__rate": 0.0}, "teacher.kind='frozen'"),
        ({"teacher__rate": 1.1}, "lie in"),
        (
            {"loss__divergence__alpha": -0.1},
            "config.loss.divergence: .*kind='jsd' needs 0 <= alpha <= 1",
        ),
        ({"loss__divergence__alpha": 1.1}, "needs 0 <= alpha <= 1"),
        ({"loss__importance_cap": 0.0}, "None is off"),
        ({"loss__rollout_cap": -1.0}, "None is off"),
        ({"loss__divergence__clip": 0.0}, "or None for off, got 0.0"),
        (
            {
                "loss__divergence__clip": 0.1,
                "loss__divergence__support": "sampled",
                "loss__divergence__kind": "reverse_kl",
            },
            "set clip=None, or use another support",
        ),
        ({"loss__step_separator": ""}, "name a text that ends a step"),
        ({"loss__step_separator": "x"}, "leave it as it is by default"),
        ({"loss__divergence__tail": False}, "set tail=True"),
        ({"loss__method": "grpo", "teacher__no_context": "plain_prompt"}, "has no teacher"),
        ({"loss__kl_coef": 0.1}, "set loss.kl_coef=0.0"),
        *[
            ({"loss__method": method, f"loss__{name}": value}, f"set loss.{name}=")
            for method, name, value in [
                ("distill", "clip_low", 0.1),
                ("distill", "scale_by_std", True),
                ("distill", "beta", 1.0),
                ("grpo", "importance_cap", None),
                ("grpo", "label_smoothing", 0.1),
                ("dpo", "aggregation", "token-mean"),
                ("dpo", "rollout_cap", None),
                ("simpo", "every_row", True),
                ("sft", "ratio_base", "sampler"),
            ]
        ],
        (
            {"loss__method": "grpo", "loss__divergence__support": "student"},
            "reads, and the method is 'grpo'; leave all of loss.divergence as it is by default",
        ),
        (
            {"loss__method": "sft", "loss__divergence__kind": "forward_kl"},
            "leave all of loss.divergence as it is by default",
        ),
        (
            {"loss__every_row": True, "loss__aggregation": "token-mean"},
            "set loss.every_row=False",
        ),
        ({"teacher__kind": "frozen", "teacher__rate": 0.1}, "leave it as it is by default"),
        ({"teacher__every": 7}, "leave it as it is by default"),
        ({"loss__kl_coef": -0.1, "loss__method": "grpo"}, "at least 0"),
        (
            {"loss__row_weight": "solve_variance", "loss__method": "dpo"},
            "set loss.row_weight='equal'",
        ),
        ({"loss__sft_rows": "all"}, "set loss.sft_rows='success'"),
        ({"teacher__kind": "external"}, "needs a path"),
        ({"teacher__path": "somewhere"}, "needs a path"),
        (
            {"teacher__kind": "external", "teacher__path": "x", "loss__method": "grpo"},
            "has no teacher, and the settings of teacher",
        ),
        ({"teacher__every": 0}, "at least 1"),
        ({"teacher__drift_every": 0}, "at least 1"),
        (
            {"teacher__drift_every": 5, "loss__method": "sft"},
            "has no teacher, and the settings of teacher",
        ),
        ({"teacher__cache": True}, "set loss.divergence.support='teacher'"),
        ({"rollout__policy": "teacher"}, "set loss.method='sft', or rollout.policy='student'"),
        (
            {"rollout__policy": "teacher", "loss__method": "sft"},
            "set teacher.kind='frozen' or 'external'",
        ),
        ({"optimizer__mini_batches": 3}, "does not divide the 32 prompts"),
        ({"optimizer__epochs": 0}, "at least 1"),
        (
            {"optimizer__mini_batches": 4, "optimizer__micro_batches": 128},
            "does not divide the 64 rows",
        ),
        ({"context__gold_block": "here"}, "has no {text}"),
        (
            {"context__gold": "answer", "peers__control": "random"},
            "set context.gold='off'",
        ),
        (
            {"loss__divergence__support": "sampled"},
            "use kind='reverse_kl', or another support",
        ),
        ({"loss__divergence__top_k": 0}, "top_k must be at least 1"),
        ({"loss__beta": 0.0}, "of beta: the method's own"),
        ({"loss__margin": -1.0}, "at least 0"),
        ({"loss__label_smoothing": 0.5}, r"must lie in \[0, 0.5\)"),
        ({"loss__clip_low": 1.0}, "must lie in"),
        ({"loss__clip_high": -0.1}, "not be negative"),
        ({"loss__dual_clip": 1.0}, "use > 1"),
        ({"optimizer__learning_rate": 0.0}, "must be positive"),
        ({"optimizer__beta2": 1.0}, r"use \[0, 1\)"),
        ({"optimizer__micro_batches": 3}, "does not divide the 256 rows"),
        ({"mesh__fsdp": 0}, "at least 1"),
        ({"eval__ks": (1, 9)}, "eval.samples=8"),
        ({"eval__ks": (0,)}, "1 <= k"),
        ({"checkpoint__keep": 0}, "at least 1"),
        ({"steps": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"peers__successes": 0, "peers__failures": 0}, "no_context='plain_prompt'"),
        ({"loss__divergence__alpha": float("nan")}, "alpha=nan is not a finite number"),
        ({"optimizer__weight_decay": float("nan")}, "weight_decay=nan is not a finite number"),
    ],
)
def test_an_impossible_setting_has_a_remedy(changes, remedy):
    with pytest.raises(ConfigError, match=remedy):
        built(**changes)


def test_one_prompt_is_enough_for_controls_of_its_own_peers():
    for name in ("off", "random", "shuffled", "shell"):
        assert built(rollout__prompts=1, peers__control=name).peers.control == name


RICH = {
    "context.gold": "answer",
    "context.feedback": "always",
    "context.feedback_with_gold": True,
    "peers.summaries": 1,
    "data.instruction": "in <summary></summary>",
    "peers.targets": "failed",
    "peers.no_success": "mask",
    "peers.all_success": "plain_prompt",
}


@pytest.mark.parametrize("variant", [v for v in methods.METHODS if v[:7] != "control"])
def test_a_variant_of_a_config_with_every_context_is_valid(variant):
    tree = config.defaults()
    for dotted, value in RICH.items():
        config.override(tree, dotted, str(value))
    cfg = config.from_config_dict(Config, methods.apply(tree, variant))
    assert cfg.context.gold == ("solution" if variant == "opsd" else "off")
    bare = variant in ("opd", "grpo", "dpo", "simpo", "sft", "gkd")
    if bare or variant == "opsd":
        assert cfg.peers.summaries == 0
        assert (cfg.context.feedback, cfg.context.feedback_with_gold) == ("off", False)
    for name in ("targets", "no_success", "all_success"):
        assert not bare or getattr(cfg.peers, name) == getattr(config.PeerConfig, name)
    assert cfg.data.instruction == RICH["data.instruction"]  # The same for every method.


@pytest.mark.parametrize("variant", ["opd", "opsd", "grpo", "dpo", "simpo", "sft", "gkd"])
def test_a_variant_without_peers_has_no_control(variant):
    tree = config.defaults()
    tree.peers.control, tree.peers.control_match = "random", "token"
    tree.peers.no_success = "mask"
    cfg = config.from_config_dict(Config, methods.apply(tree, variant))
    assert (cfg.peers.control, cfg.peers.control_match) == ("off", "block")
    assert cfg.peers.no_success == ("mask" if variant == "opsd" else "failures")


def test_grpo_needs_no_peers_and_opd_a_plain_prompt():
    off = {"peers__successes": 0, "peers__failures": 0}
    assert built(**off, context__feedback="always").context.feedback == "always"
    assert built(**off, loss__method="grpo").peers.successes == 0
    assert built(**off, teacher__no_context="plain_prompt").peers.failures == 0


@pytest.mark.parametrize(
    ("dotted", "text", "want"),
    [
        ("rollout.group", "4", 4),
        ("loss.divergence.alpha", "0.25", 0.25),
        ("optimizer.learning_rate", "1e-3", 1e-3),
        ("teacher.rate", "1", 1.0),
        ("loss.importance_cap", "None", None),
        ("loss.importance_cap", "3", 3.0),
        ("rollout.top_p", "none", None),
        ("rollout.top_k", "20", 20),
        ("eval.ks", "(1, 2)", (1, 2)),
        ("eval.ks", "[1,4]", (1, 4)),
        ("name", "a run", "a run"),
        ("name", "'7'", "7"),
        ("context.closing", "", ""),
        ("context.closing", "now: solve, it", "now: solve, it"),
        ("model.remat", "true", True),
        ("model.remat", "False", False),
        ("data.options.task", "gcd", "gcd"),
        ("data.options.shots", "2", 2),
        ("data.options.sizes", "[1, 2]", (1, 2)),
    ],
)
def test_override(dotted, text, want):
    got = overridden(dotted, text)
    assert got == want
    assert type(got) is type(want)


@pytest.mark.parametrize(
    ("dotted", "text"),
    [
        ("seed", "0.5"),
        ("seed", "True"),
        ("seed", "None"),
        ("seed", "one"),
        ("seed", "[1]"),
        ("loss.divergence.alpha", "half"),
        ("loss.divergence.top_k", "2.5"),
        ("rollout.top_p", "True"),
        ("model.remat", "1"),
        ("name", "5"),
        ("peers.slots", "2.0"),
        ("peers.rule", "7"),
        ("eval.ks", "4"),
        ("eval.ks", "(1, 2.5)"),
        # A value where a section or a mapping belongs, and a literal that cannot be built.
        ("model", "3"),
        ("peers", "None"),
        ("data.options", "3"),
        ("seed", "{[]: 1}"),
    ],
)
def test_a_wrong_type_names_the_setting(dotted, text):
    with pytest.raises(ConfigError, match=re.escape(f"config.{dotted}")):
        overridden(dotted, text)


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("loss.alpha", 0.3, "config.loss.divergence.alpha now"),
        ("loss.pointwise_clip", 0.1, "config.loss.divergence.clip now"),
        ("loss.support", "student", "config.loss.divergence.support now"),
        ("loss.top_k", 7, "config.loss.divergence.top_k now"),
        ("loss.tail", False, "config.loss.divergence.tail now"),
        ("loss.divergence", "reverse_kl", "config.loss.divergence.kind now"),
        ("loss.continuous", True, "does not exist any more: .*choose the KL itself"),
    ],
)
def test_an_old_setting_is_answered_with_the_new_one(old, value, new):
    with pytest.raises(ConfigError, match=f"config.{old} .*{new}"):
        overridden(old, str(value))
    tree = config.defaults()
    section, name = old.split(".")
    with tree.unlocked():
        tree[section][name] = value
    with pytest.raises(ConfigError, match=f"config.{old} .*{new}"):
        config.from_config_dict(Config, tree)


def test_an_old_setting_in_a_config_file_is_answered_too(tmp_path):
    file = tmp_path / "old.py"
    start = "from mopd_jax import config\ndef get_config():\n    cfg = config.defaults()\n"
    file.write_text(start + "    cfg.loss.support = 'student'\n    return cfg\n")
    with pytest.raises(ConfigError, match="config.loss.support is config.loss.divergence.supp"):
        cli.load(file)
    file.write_text(start + "    cfg.loss.nothing = 1\n    return cfg\n")
    # One that never was is answered with its line.
    with pytest.raises(
        ConfigError, match="old.py, line 4: the setting 'nothing' does not exist"
    ):
        cli.load(file)


@pytest.mark.parametrize("leaf", LEAVES, ids=".".join)
def test_the_fingerprint_sees_every_leaf(leaf):
    # Copied and set past the validation: another value of any type must show.
    *path, last = leaf
    cfg = copy.copy(Config())
    node = cfg
    for part in path:
        inner = copy.copy(getattr(node, part))
        object.__setattr__(node, part, inner)
        node = inner
    object.__setattr__(node, last, "another")
    assert config.fingerprint(cfg) != config.fingerprint(Config())


def test_the_fingerprint_is_a_function_of_the_settings():
    assert config.fingerprint(built(seed=3)) == config.fingerprint(built(seed=3))
    assert re.fullmatch("[0-9a-f]{12}", config.fingerprint(Config()))


@pytest.mark.parametrize("variant", methods.METHODS)
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_config_files(path, variant):
    cfg = config.from_config_dict(Config, cli.load(path, variant))
    assert cfg.name == variant
    methods_of = {"gkd": "sft", **{name: name for name in get_args(Method)}}
    assert cfg.loss.method == methods_of.get(variant, "distill")
    if variant == "mopd":
        assert config.from_config_dict(Config, cli.load(path)) == cfg


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_mistyped_variant_names_the_nearest(path):
    with pytest.raises(ConfigError, match="'positiv' does not exist; did you mean positive"):
        cli.load(path, "positiv")


@pytest.mark.parametrize(
    ("variant", "want"),
    [
        ("sciknoweval:biology/grpo", ("sciknoweval_biology", None, True, "ema", "grpo")),
        ("sciknoweval:sdpo", ("sciknoweval_chemistry", None, True, "ema", "distill")),
        ("livecodebench:tests/paper", ("livecodebench_tests", None, False, "ema", "distill")),
        ("livecodebench:mopd", ("livecodebench", None, True, "ema", "distill")),
        (
            "teacher_student:code/opd",
            ("livecodebench_tests", None, False, "external", "distill"),
        ),
        ("teacher_student:gkd", ("tooluse", None, True, "external", "sft")),
        ("teacher_student:sft", ("tooluse", None, True, "ema", "sft")),
    ],
)
def test_variants_of_the_papers_experiments(variant, want):
    name, _, variant = variant.partition(":")
    tree = cli.load(ROOT / f"configs/{name}.py", variant)
    cfg = config.from_config_dict(Config, tree)
    data = cfg.data
    got = (data.options["name"], cfg.eval.problems, data.held_out, cfg.teacher.kind)
    assert (*got, cfg.loss.method) == want
    assert cfg.name == variant.replace("/", "-")


COMMANDS = re.compile(
    r"^ *(?:pip install [^&]*&& )?(mopd (?:train|eval|rollout) [^#\n]*)", re.MULTILINE
)


def test_the_commands_of_the_documentation_are_understood():
    texts = [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    texts += [path.read_text() for path in (ROOT / "configs").glob("*.py")]
    text = re.sub(r"\\+\n", " ", "\n".join(texts))
    words = {"DOMAIN": "biology", "TASK": "code", "METHOD": "sdpo"}
    words |= {"[:VARIANT]": "", "FILE": "configs/quickstart.py", "=NAME": "=quickstart"}
    for word, setting in words.items():
        text = text.replace(word, setting)
    read = 0
    for command in set(COMMANDS.findall(text)):
        _, verb, *flags = shlex.split(command)
        if verb == "eval" and any(flag.startswith("--from=") for flag in flags):
            continue  # Its settings are those of a run.
        flags = [flag.replace("configs/", f"{ROOT}/configs/") for flag in flags]
        if verb == "rollout":
            flags = [f for f in flags if not f.startswith(("--out=", "--from="))]
        (cli.parse_eval if verb == "eval" else cli.parse)(flags)
        read += 1
    assert read > 20


def test_the_commands_of_the_documentation_exist():
    text = (ROOT / "docs/reproduction.md").read_text() + (ROOT / "docs/data.md").read_text()
    for word, setting in (("DOMAIN", "biology"), ("TASK", "code"), ("METHOD", "sdpo")):
        text = text.replace(word, setting)
    found = set(re.findall(r"(configs/\w+\.py)(?::([\w/]+))?", text))
    assert len(found) > 15
    for file, variant in found:
        config.from_config_dict(Config, cli.load(ROOT / file, variant))


def test_mathematics_has_the_divergence_of_the_paper():
    want = {"mopd": "reverse_kl", "paper": "reverse_kl", "reference_code": "jsd"}
    for variant, divergence in want.items():
        cfg = config.from_config_dict(Config, cli.load(ROOT / "configs/math.py", variant))
        assert cfg.loss.divergence.kind == divergence
        assert cfg.rollout.response_length == 8192


@pytest.mark.parametrize(
    ("name", "variant", "near"),
    [
        ("sciknoweval", "chemistri/grpo", "chemistry"),
        ("sciknoweval", "chemistry/grp", "grpo"),
        ("livecodebench", "test/mopd", "tests"),
    ],
)
def test_a_mistyped_setting_of_an_experiment(name, variant, near):
    with pytest.raises(ConfigError, match=f"did you mean {near}"):
        cli.load(ROOT / f"configs/{name}.py", variant)


def test_variants_differ_in_what_their_names_say():
    got = {}
    for variant in methods.METHODS:
        cfg = config.from_config_dict(Config, methods.apply(config.defaults(), variant))
        got[variant] = (cfg.peers.successes, cfg.peers.failures, cfg.teacher.no_context)
        feedback, control = cfg.context.feedback, cfg.peers.control
        reads = variant in ("sdpo", "reference_code")
        assert feedback == ("no_success" if reads else "off")
        assert (cfg.context.gold != "off") == (variant == "opsd")
        assert cfg.context.feedback_with_gold == (variant == "reference_code")
        as_published = variant in ("paper", "reference_code")
        assert cfg.peers.truncated == ("outcome" if as_published else "exclude")
        assert (cfg.rollout.policy == "teacher") == (variant == "gkd")
        assert control == (variant[8:] if variant.startswith("control_") else "off")
    made = {name for name in got if name.startswith("control_")}
    assert made == {f"control_{name}" for name in controls.CONTROLS}
    assert {got.pop(name) for name in made} == {(2, 1, "mask")}
    assert got == {
        "mopd": (2, 1, "mask"),
        "positive": (2, 0, "mask"),
        "anchored": (2, 0, "plain_prompt"),
        "sdpo": (1, 0, "mask"),
        "opd": (0, 0, "plain_prompt"),
        "paper": (2, 1, "plain_prompt"),
        "reference_code": (2, 1, "mask"),
        **dict.fromkeys(("opsd", "grpo", "dpo", "simpo", "sft", "gkd"), (0, 0, "mask")),
    }


PUBLISHED = {
    "peers.successes": 2,
    "peers.failures": 1,
    "peers.slots": None,
    "peers.rule": "uniform",
    "peers.failure_rule": None,
    "peers.threshold": 1.0,
    "peers.summaries": 0,
    "peers.targets": "all",
    "peers.exclude": "rollout",
    "peers.no_success": "failures",
    "peers.all_success": "successes",
    "context.strip_thinking": True,
    "context.feedback": "off",
    "context.feedback_with_gold": False,
    "context.gold": "off",
    "teacher.kind": "ema",
    "teacher.rate": 0.05,
    "teacher.no_context": "plain_prompt",
    "loss.divergence": Divergence(support="student"),
    "loss.aggregation": "seq-mean-token-sum",
    "loss.every_row": True,
    "loss.row_weight": "equal",
    "loss.importance_cap": None,
    "loss.rollout_cap": None,
    "optimizer.warmup_steps": 10,
    "optimizer.weight_decay": 0.01,
    "optimizer.clip_norm": 1.0,
    "optimizer.mini_batches": 1,
    "optimizer.epochs": 1,
}
REFERENCE = PUBLISHED | {
    "peers.rule": "first",
    "peers.failure_rule": "uniform",
    "peers.threshold": 0.5,
    "context.strip_thinking": False,
    "context.feedback": "no_success",
    "context.feedback_with_gold": True,
    "teacher.no_context": "mask",
    "loss.aggregation": "seq-mean-token-mean",
    "loss.importance_cap": 2.0,
    "loss.rollout_cap": 2.0,
}


def odd():
    """A base that differs from the defaults in all that a preset must set."""
    cfg = config.defaults()
    cfg.peers.update(rule="longest", threshold=0.7, targets="failed", summaries=2)
    cfg.context.update(gold="answer", feedback="always", strip_thinking=False)
    cfg.data.instruction = "<summary></summary>"
    cfg.teacher.update(no_context="plain_prompt", kind="frozen")
    cfg.loss.update(row_weight="solve_variance")
    cfg.loss.divergence.update(kind="reverse_kl", support="student", top_k=7)
    cfg.optimizer.update(epochs=3, mini_batches=2, warmup_steps=0)
    return cfg


def file(name):
    return lambda: cli.load(ROOT / f"configs/{name}.py", "mopd")


@pytest.mark.parametrize("base", [config.defaults, odd, file("quickstart"), file("smollm2")])
@pytest.mark.parametrize(
    ("variant", "want"), [("paper", PUBLISHED), ("reference_code", REFERENCE)]
)
def test_presets_set_the_method_whatever_the_base(base, variant, want):
    cfg = config.from_config_dict(Config, methods.apply(base(), variant))
    got = {name: getattr(getattr(cfg, name.split(".")[0]), name.split(".")[1]) for name in want}
    assert got == want
    assert (cfg.loss.divergence.chosen, cfg.optimizer.learning_rate) == (100, 1e-5)


@pytest.mark.parametrize("variant", methods.METHODS)
def test_every_variant_is_valid_on_any_base(variant):
    """What a variant does not read goes back to its default."""
    base = odd()
    if variant.startswith("control_"):
        base.peers.summaries, base.context.gold = 0, "off"
        base.context.feedback = "off"
    cfg = config.from_config_dict(Config, methods.apply(base, variant))
    assert cfg.name == variant


def test_an_external_teacher_stays_where_a_teacher_is_read():
    for variant in methods.METHODS:
        cfg = config.defaults()
        cfg.teacher.kind, cfg.teacher.path = "external", "elsewhere"
        made = config.from_config_dict(Config, methods.apply(cfg, variant))
        reads = made.loss.method == "distill" or variant == "gkd"
        assert (made.teacher.kind == "external") == reads


def test_new_options_of_a_source_may_be_nested():
    cfg = config.defaults()
    config.override(cfg, "data.options.task_options.min_words", "3")
    made = config.from_config_dict(config.Config, cfg)
    assert made.data.options == {"task_options": {"min_words": 3}}
