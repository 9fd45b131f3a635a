"""The package's shape, read from its sources: layers, sizes, and what no module may use."""

import ast
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# The order of the house, from the ground up: a room imports only from rows above its own here.
# A room is a package of mopd_jax, or a module at its root; `kernels` is all of kernels/ops.
ORDER = (
    ("bars", "choices", "errors", "files", "overlap", "records", "shapes", "thinking"),
    ("codebook", "kernels"),
    ("config", "losses"),
    ("contexts", "models", "sandbox"),
    ("rollouts", "update", "verifiers"),
    ("data",),
    ("run",),
    ("experience",),
    ("evaluation", "saved_rollouts", "selfcheck", "step_metrics"),
    ("collect", "export", "flags", "testing", "train"),
    ("cli",),
)
# They touch files, run code of others, or drive what does. No other module imports one of them.
IO = {
    "bars",
    "cli",
    "collect",
    "data",
    "evaluation",
    "experience",
    "export",
    "files",
    "flags",
    "run",
    "sandbox",
    "saved_rollouts",
    "selfcheck",
    "step_metrics",
    "train",
    "verifiers",
    "models.export",
    "models.tokenizer",
    "models.weights",
    "rollouts.storage",
    "update.external_teacher",
}
# Modules of these packages that are pure all the same, and stay so.
PURE = {
    "data.on_demand",
    "evaluation.diversity",
    "evaluation.estimates",
    "evaluation.scores",
    "evaluation.tables",
    "run.alarms",
    "run.solved",
    "selfcheck.loss",
    "selfcheck.result",
    "verifiers.choice",
    "verifiers.choice_letter",
    "verifiers.mathematics.numerals",
    "verifiers.mathematics.parsing",
    "verifiers.mathematics.spelling",
    "verifiers.mathematics.units",
    "verifiers.mathematics.word_answers",
    "verifiers.programs",
    "verifiers.tools",
}
# Sent into the sandbox as text and run there: the one place where model text is executed.
GUEST = {"sandbox.program"}


def sources():
    """{dotted name below mopd_jax: file}; "" is the package itself, "models" its folder."""
    found = {}
    for folder, prefix in ((ROOT / "mopd_jax", ()), (ROOT / "kernels/ops", ("kernels",))):
        for path in sorted(folder.rglob("*.py")):
            below = path.relative_to(folder).with_suffix("").parts
            if below[0] not in LINKS:
                parts = (*prefix, *below)
                found[".".join(p for p in parts if p != "__init__")] = path
    return found


# Symbolic links in the package: their files are listed under their own folder.
LINKS = {path.name for path in (ROOT / "mopd_jax").iterdir() if path.is_symlink()}
SOURCES = sources()
TREES = {name: ast.parse(path.read_text()) for name, path in SOURCES.items()}
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}


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
    wanted = {w for w in wanted if w in SOURCES and w} - {name}
    # `from mopd_jax.verifiers import exact` is an import of exact, not of the dict around it.
    return {w for w in wanted if not any(o.startswith(f"{w}.") for o in wanted)}


def room(name):
    return name.split(".")[0]


def does_io(name):
    return (name in IO or room(name) in IO) and name not in PURE


MODULES = sorted(set(SOURCES) - {""})


def test_every_room_has_its_place_in_the_order():
    missing = {room(name) for name in MODULES} - set(LEVEL)
    gone = set(LEVEL) - {room(name) for name in MODULES}
    assert not missing, f"give {sorted(missing)} a row in ORDER: above all that imports it"
    assert not gone, f"remove {sorted(gone)} from ORDER: no such package or module"
    unknown = {name for name in IO | PURE if name not in SOURCES}
    assert not unknown, f"IO or PURE name modules that do not exist: {sorted(unknown)}"


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    for other in own_imports(name, TREES[name]):
        below = room(other) == room(name) or LEVEL[room(other)] < LEVEL[room(name)]
        assert below, (
            f"{name} imports {other}, but {room(other)} is not below {room(name)}. Pass what it"
            " needs as an argument, or move that into a room below both (records, shapes and"
            " errors hold what many share). Move a room in ORDER only if its purpose changed"
        )


@pytest.mark.parametrize("name", [m for m in MODULES if room(m) == "kernels"])
def test_kernels_import_jax_and_shapes_only(name):
    for other in own_imports(name, TREES[name]):
        assert room(other) == "kernels" or other == "shapes", f"{name} imports {other}"
    standard = {"__future__", "collections", "dataclasses", "functools", "math", "typing"}
    roots = {wanted.split(".")[0] for wanted in imports(TREES[name])}
    assert roots <= standard | {"jax", "mopd_jax"}


def test_no_cycle():
    graph = {name: own_imports(name, tree) for name, tree in TREES.items()}
    while graph:
        free = {name for name, wanted in graph.items() if not wanted & graph.keys()}
        assert free, f"a cycle among {sorted(graph)}: move what they share into one below them"
        graph = {name: wanted for name, wanted in graph.items() if name not in free}


@pytest.mark.parametrize("name", [m for m in MODULES if not does_io(m)])
def test_pure_modules_import_no_io(name):
    for other in own_imports(name, TREES[name]):
        assert not does_io(other), (
            f"{name} is pure and imports {other}, which touches files, processes or devices. "
            "Take the loaded value as an argument, or list the module in IO if it is an edge"
        )


def test_the_package_itself_imports_only_pure_modules():
    assert own_imports("", TREES[""]) == {"kernels", "losses"}


@pytest.mark.parametrize("name", MODULES)
def test_no_module_has_the_name_of_a_standard_one(name):
    last = name.split(".")[-1]
    assert last not in sys.stdlib_module_names, (
        f"{SOURCES[name].name} has the name of a standard module, which a program that is run "
        "from its folder would import instead; choose another"
    )


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
            assert size < 60, f"{node.name} has more than 60 lines of code: split it"


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
