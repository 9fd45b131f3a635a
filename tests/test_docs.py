"""docs/settings.md and docs/files.md are what docs/generate.py makes of the sources."""

import ast
import dataclasses
import importlib.util
import pathlib
import re
import sys
from typing import Any, Literal

import jax
import pytest

from mopd_jax.config import Config, EvalConfig, LossConfig, RolloutConfig, SandboxConfig

ROOT = pathlib.Path(__file__).parents[1]


def load():
    """The script as a module; dataclasses need it in sys.modules."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load()


@pytest.mark.parametrize("name", ["files.md", "settings.md"])
def test_the_tables_are_current(name):
    made = generate.documents(ROOT)[name]
    assert (ROOT / "docs" / name).read_text() == made, "run: python docs/generate.py"


def test_every_setting_has_a_line_and_a_reader():
    text = generate.documents(ROOT)["settings.md"]
    lines = [line for line in text.split("\n") if line.startswith("| `")]
    names = [line.split("`")[1] for line in lines]
    assert len(names) == len(set(names))
    for field in dataclasses.fields(Config):
        value = getattr(Config(), field.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                whole = f"{field.name}.{inner.name}"
                assert any(name == whole or name.startswith(f"{whole}.") for name in names)
        else:
            assert field.name in names
    for line in lines:
        kind, default, meaning, used = line.rstrip("|").split(" | ")[1:]
        assert kind and default and meaning, line
        assert used.strip(), f"no module reads this setting; retire it: {line}"


METRIC = re.compile(r"^\| ((?:`[\w@]+`(?:, )?)+) \|", re.M)


def explained():
    text = (ROOT / "docs/metrics.md").read_text()
    tables = text[text.index("## Is it learning?") :]
    return {name for row in METRIC.findall(tables) for name in re.findall(r"`(.+?)`", row)}


# Modules that name metrics, and their dictionary keys that name something else.
NAMING = ["step_metrics", "run.solved", "contexts.controls", "evaluation.scores"]
NAMING += [f"update.{name}" for name in ("objectives", "drift", "train_step")]
OTHER_KEYS = {"distill", "grpo", "dpo", "simpo", "sft", "temperature", "chunk_tokens"}
OTHER_KEYS |= {"sharding", "solved", "unsolved", "random", "shuffled", "unrelated"}
OTHER_KEYS |= {"cross_failures", "success_only", "shell", "error"}


def test_every_metric_is_explained():
    sources = generate.sources(ROOT)
    found = set()
    for node in (n for module in NAMING for n in ast.walk(ast.parse(sources[module]))):
        keys = node.keys if isinstance(node, ast.Dict) else []
        keys = [node.slice] if isinstance(node, ast.Subscript) else keys
        found |= {k.value for k in keys if isinstance(k, ast.Constant)}
    found = {name for name in found if isinstance(name, str)} - OTHER_KEYS
    assert found - explained() == set(), "add a line to docs/metrics.md"


def test_every_metric_that_is_explained_exists():
    sources = "".join(generate.sources(ROOT).values())
    for name in explained():
        bare = name.replace("@N", "@").replace("@K", "@").removeprefix("seconds_")
        assert f'"{bare}' in sources, f"nothing logs {name}; take its line out of metrics.md"


def test_every_row_of_the_metrics_has_all_its_cells():
    lines = (ROOT / "docs/metrics.md").read_text().split("\n")
    width = 0
    for line in lines:
        if line.startswith("|"):
            width = width or line.count("|")
            assert line.count("|") == width, line
        else:
            width = 0


def test_every_module_has_a_line():
    text = generate.documents(ROOT)["files.md"]
    for name in generate.sources(ROOT):
        assert f"| `{name or 'mopd_jax'}` | " in text


SOURCE = """
from mopd_jax.config import Config, EvalConfig, RolloutConfig, SandboxConfig
from mopd_jax.models.decoder import DecoderConfig


def by_name(cfg: Config):
    rollout = cfg.rollout
    batch, weight = rollout.batch, cfg.loss.kl_coef

    def inner(cfg: DecoderConfig):
        return rollout.group, cfg.steps

    return inner


def by_annotation(sampling: RolloutConfig | EvalConfig, run, other):
    return sampling.top_k, run.cfg.seed, other.prompts


class LossConfig:
    @property
    def shown(self):
        return self.beta

    def __post_init__(self):
        assert self.margin


class Box:
    def __init__(self, cfg: SandboxConfig):
        self._cfg = cfg

    def run(self):
        return self._cfg.memory_mb, (lambda: self._cfg.file_mb)
"""


def test_readers_are_found_by_what_a_value_is():
    assert generate.readers_of({"a.b": SOURCE, "config.x": SOURCE}) == {
        (Config, "rollout"): {"a.b"},
        (Config, "loss"): {"a.b"},
        (Config, "seed"): {"a.b"},
        (RolloutConfig, "batch"): {"a.b"},
        (RolloutConfig, "group"): {"a.b"},
        (RolloutConfig, "top_k"): {"a.b"},
        (EvalConfig, "top_k"): {"a.b"},
        (LossConfig, "kl_coef"): {"a.b"},
        (LossConfig, "beta"): {"a.b"},
        (SandboxConfig, "memory_mb"): {"a.b"},
        (SandboxConfig, "file_mb"): {"a.b"},
    }


def test_meanings_are_read_from_docstrings():
    class Made:
        """First line: no field. It goes on here:
        and there.

        one: of one
            line and another.
        two, three: of both.

        Attributes:
            four: deeper,
                and on.

        Raises:
            ValueError: no field.
        """

    assert generate._meanings(Made) == {
        "one": "of one line and another.",
        "two": "of both.",
        "three": "of both.",
        "four": "deeper, and on.",
    }


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "int"),
        (float | jax.Array | None, "float or None"),
        (tuple[int, ...], "list of int"),
        (dict[str, Any], "mapping"),
        (Literal["a", "b"] | None, "`a`, `b` or None"),
    ],
)
def test_types_in_words(hint, words):
    assert generate._type(hint) == words


def test_what_has_no_words_is_named(monkeypatch):
    with pytest.raises(ValueError, match=r"mopd_jax\.a\.b has no docstring"):
        generate.file_map({"a.b": "x = 1"})
    monkeypatch.setattr(EvalConfig, "__doc__", "Evaluation.\n\nevery: steps.")
    with pytest.raises(ValueError, match=r"eval\.problems has no meaning; .* of EvalConfig"):
        generate.settings({})
