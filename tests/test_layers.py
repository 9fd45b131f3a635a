"""The package's shape, read from its sources: layers, sizes, and what no module may use."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A module imports only from lower levels. `kernels` stands for everything under kernels/ops.
LEVELS = {
    "choices": 0,
    "config_dict": 0,
    "groups": 0,
    "logbook": 0,
    "models.attention": 0,
    "records": 0,
    "sampling": 0,
    "shapes": 0,
    "solved": 0,
    "checkpoint": 1,
    "codebook": 1,
    "config_contexts": 1,
    "config_sandbox": 1,
    "config_update": 1.5,  # The divergence is the kernels' own record.
    "selfcheck.result": 1,
    "evaluate": 2,
    "overlap": 0,
    "lazy": 1,
    "statistics": 1,
    "kernels": 1,
    "metrics": 1,
    "rollout_rows": 1,
    "sandbox.confine": 1,
    "sandbox.program": 1,
    "sandbox.watch": 1,
    "verifiers.choice": 2,
    "verifiers.choice_letter": 1,
    "verifiers.exact": 1,
    "verifiers.math_pool": 1,
    "verifiers.math_text": 2,
    "verifiers.math_spelling": 1,
    "verifiers.math_words": 2,
    "verifiers.math_units": 0,
    "verifiers.math_forms": 0,
    "verifiers.math_worker": 1,
    "verifiers.programs": 1,
    "verifiers.tools": 1,
    "config": 2,
    "datasets": 0,
    "datasets.rows": 1,
    "datasets.evalplus": 3,
    "datasets.files": 2,
    "datasets.gpqa": 4,
    "datasets.hub": 2,
    "datasets.jsonl": 3,
    "datasets.livecodebench": 3,
    "datasets.maths": 3,
    "datasets.programs": 2,
    "datasets.sciknoweval": 3,
    "datasets.splits": 2,
    "datasets.store": 2,
    "datasets.tooluse": 3,
    "datasets.catalogue": 5,
    "datasets.usable": 7,
    "datasets.check": 8,
    "datasets.prepare": 9,
    "datasets.commands": 10,
    "sandbox.guest": 2,
    "sandbox.layout": 2,
    "verifiers.gym": 2,
    "verifiers.math": 3,
    "console": 3,
    "data": 8,
    "inactive": 3,
    "recipes": 4,
    "losses": 3,
    "methods": 3,
    "peers": 3,
    "preferences": 3,
    "rollout_file": 3,
    "sandbox.worker": 3,
    "sharding": 3,
    "steps": 0,
    "thinking": 0,
    "teacher": 6,
    "objectives": 7,
    "verifiers": 6,
    "verifiers.selftest": 7,
    "context": 4,
    "controls": 4,
    "sandbox": 4,
    "models.decoder": 4,
    "models.families": 5,
    "rollout": 5,
    "scoring": 5,
    "verifiers.code": 5,
    "testing": 5,
    "train_step": 8,
    "weights": 6,
    "tokenizer": 7,
    "drift": 9,
    "external": 8,
    "selfcheck.loss": 9,
    "diversity": 4,
    "responses": 3,
    "tables": 5,
    "verifiers.answers": 4,
    "run": 10,
    "experience": 11,
    "offline": 12,
    "selfcheck.prompts": 12,
    "selfcheck.rollouts": 12,
    "collect": 13,
    "heldout": 12,
    "prompt_lengths": 5,
    "run_folder": 9,
    "selfcheck": 13,
    "train": 14,
    "cli": 15,
}
# They touch files, run code of others, or drive what does. A pure module imports none of them.
IO = {
    "checkpoint",
    "cli",
    "collect",
    "console",
    "data",
    "datasets.check",
    "datasets.commands",
    "datasets.files",
    "datasets.hub",
    "datasets.prepare",
    "datasets.store",
    "datasets.usable",
    "experience",
    "external",
    "heldout",
    "logbook",
    "offline",
    "rollout_file",
    "responses",
    "run",
    "run_folder",
    "selfcheck",
    "selfcheck.prompts",
    "selfcheck.rollouts",
    "verifiers.answers",
    "sandbox",
    "sandbox.confine",
    "sandbox.guest",
    "sandbox.layout",
    "sandbox.program",
    "sandbox.watch",
    "sandbox.worker",
    "tokenizer",
    "train",
    "verifiers",
    "verifiers.code",
    "verifiers.exact",
    "verifiers.gym",
    "verifiers.math",
    "verifiers.math_pool",
    "verifiers.math_worker",
    "verifiers.selftest",
    "weights",
}
# Sent into the sandbox as text and run there: the one place where model text is executed.
GUEST = {"sandbox.program"}


def sources():
    """{dotted name below mopd_jax: file}; "" is the package itself, "models" its folder."""
    found = {}
    for folder, prefix in ((ROOT / "mopd_jax", ()), (ROOT / "kernels/ops", ("kernels",))):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            found[".".join(p for p in parts if p != "__init__")] = path
    return found


SOURCES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}


def imports(tree):
    """Absolute dotted names of what a tree imports: `from a import b` gives a and a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name, tree):
    """The modules of this package that `tree` imports, without the packages above them."""
    wanted = {w.removeprefix("mopd_jax.") for w in imports(tree) if w.startswith("mopd_jax.")}
    wanted = {w for w in wanted if w in SOURCES and w not in ("", "models")} - {name}
    # `from mopd_jax.verifiers import exact` is an import of exact, not of the dict around it.
    return {w for w in wanted if not any(o.startswith(f"{w}.") for o in wanted)}


def layer(name):
    return "kernels" if name.split(".")[0] == "kernels" else name


MODULES = sorted(set(SOURCES) - {"", "models"})


def test_every_module_has_a_level_and_every_level_a_module():
    assert {layer(name) for name in MODULES} == set(LEVELS)


@pytest.mark.parametrize("name", [m for m in MODULES if layer(m) != "kernels"])
def test_imports_go_down(name):
    for other in own_imports(name, TREES[name]):
        assert LEVELS[layer(other)] < LEVELS[name], f"{name} imports {other}"


@pytest.mark.parametrize("name", [m for m in MODULES if layer(m) == "kernels"])
def test_kernels_import_jax_and_shapes_only(name):
    for other in own_imports(name, TREES[name]):
        assert layer(other) == "kernels" or other == "shapes", f"{name} imports {other}"
    standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
    roots = {wanted.split(".")[0] for wanted in imports(TREES[name])}
    assert roots <= standard | {"jax", "mopd_jax"}


def test_no_cycle():
    graph = {name: own_imports(name, tree) for name, tree in TREES.items()}
    while graph:
        free = {name for name, wanted in graph.items() if not wanted & graph.keys()}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {name: wanted for name, wanted in graph.items() if name not in free}


@pytest.mark.parametrize("name", [m for m in MODULES if m not in IO])
def test_pure_modules_import_no_io(name):
    assert not own_imports(name, TREES[name]) & IO


def test_the_package_itself_imports_only_pure_modules():
    assert own_imports("", TREES[""]) == {"kernels", "losses"}
    assert not own_imports("models", TREES["models"])


@pytest.mark.parametrize("name", SOURCES)
def test_sizes(name):
    lines = len(SOURCES[name].read_text().splitlines())
    assert lines <= 450, f"{SOURCES[name].name} has {lines} lines"
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.FunctionDef):
            # What a docstring explains is not what makes a function long.
            documented = ast.get_docstring(node) is not None
            text = node.body[0].end_lineno - node.body[0].lineno if documented else 0
            size = node.end_lineno - node.lineno - text
            assert size < 80, f"{node.name} is longer than 80 lines"


@pytest.mark.parametrize("name", SOURCES)
def test_forbidden(name):
    roots = {wanted.split(".")[0] for wanted in imports(TREES[name])}
    assert not roots & {"random", "pickle", "dill", "marshal", "shelve"}
    for node in ast.walk(TREES[name]):
        assert not isinstance(node, ast.Global | ast.Nonlocal)
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "bare except"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if name not in GUEST:
                assert node.func.id not in ("eval", "exec", "compile", "__import__")
            assert node.func.id != "print" or name == "cli"


@pytest.mark.parametrize("name", SOURCES)
def test_numpy_draws_come_from_seeded_generators(name):
    text = SOURCES[name].read_text()
    assert not re.search(r"np\.random\.(?!default_rng|Generator)", text)
    assert "default_rng()" not in text
