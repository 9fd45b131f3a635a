"""The wheel, built from this checkout and installed away from it: contents, types, and use."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile

import pytest
import setuptools
import small_notebook
import user_code
import wants

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        int(setuptools.__version__.split(".")[0]) < 77, reason=wants.reason("the test extra")
    ),
]
ROOT = pathlib.Path(__file__).parents[1]
# What a build reads. A copy of it is built, since a build leaves folders behind.
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md")
FOLDERS = ("mopd_jax", "kernels", "configs", "examples", "colab", "tests")
EXAMPLES = {
    "nnx": ("flax", "the test extra"),
    "equinox": ("equinox", "the test extra"),
    "tunix": ("tunix", "Tunix"),
}
IMPORTS = """
import importlib, pathlib, pkgutil, sys
import mopd_jax
from mopd_jax import distill_loss
home = pathlib.Path(mopd_jax.__file__).parent
names = [found.name for found in pkgutil.walk_packages([str(home)], "mopd_jax.")]
for name in names:
    importlib.import_module(name)
print(home, len(names))
"""
SDIST = "from setuptools import build_meta; print(build_meta.build_sdist({!r}))"


def run(*words, cwd, env=None):
    """What a program writes to stdout; its failure is the test's, with what it said."""
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def copy(folder):
    """The sources in a new folder, symbolic links as links."""
    folder.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "golden")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    return folder


def build(source, folder):
    """The wheel that a source folder makes."""
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    run(sys.executable, "-m", "pip", "wheel", *options, "-w", folder, source, cwd=folder.parent)
    (wheel,) = folder.glob("*.whl")
    return wheel


class Elsewhere:
    """A virtual environment that sees this one's packages but not its `mopd_jax`.

    The packages come by a path file, and path files in that folder (such as the one of an
    editable `mopd_jax`) are not read from there.
    """

    def __init__(self, folder, *installed):
        self.folder = folder / "empty"
        self.folder.mkdir(parents=True)
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv/bin/python"
        hidden = {"PYTHONPATH", "PYTHONHOME", "XLA_FLAGS", "JAX_NUMPY_RANK_PROMOTION"}
        self.env = {k: v for k, v in os.environ.items() if k not in hidden}
        pip = [sys.executable, "-m", "pip", "--python", self.python, "install", "-q"]
        options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        (self.packages,) = (folder / "venv").glob("lib/python*/site-packages")
        outer = [path for path in sys.path if path.endswith("site-packages")]
        (self.packages / "outer.pth").write_text("\n".join(outer) + "\n")
        run(*pip, *options, *installed, cwd=self.folder, env=self.env)

    def __call__(self, *words, cwd=None):
        return run(self.python, *words, cwd=cwd or self.folder, env=self.env)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build(copy(folder / "source"), folder / "wheel")


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    return Elsewhere(tmp_path_factory.mktemp("elsewhere"), wheel)


def test_it_holds_all_modules_and_data_and_no_more(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    kept = {n for n in names if not n.split("/")[0].endswith(".dist-info")}
    files = {"mopd_jax/py.typed"}
    folders = {"mopd_jax": "**/*.py", "mopd_jax/assets/codebook": "*"}
    folders |= {"mopd_jax/kernels": "**/*.py", "mopd_jax/assets/configs": "*.py"}
    for name, pattern in folders.items():
        found = (ROOT / name).resolve().glob(pattern)
        inside = {path.relative_to((ROOT / name).resolve()).as_posix() for path in found}
        files |= {f"{name}/{path}" for path in inside if "__pycache__" not in path}
    assert kept == files
    assert {"mopd_jax/assets/configs/quickstart.py", "mopd_jax/kernels/__init__.py"} < files


def test_its_metadata_is_complete(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    head, _, text = archive.read(name).decode().partition("\n\n")
    for line in ("License-Expression: Apache-2.0", "Classifier: Typing :: Typed"):
        assert line in head.splitlines()
    assert "Description-Content-Type: text/markdown" in head.splitlines()
    assert text.strip() == (ROOT / "README.md").read_text().strip()
    needs = {line.split(">")[0] for line in head.splitlines() if "extra ==" not in line}
    for name in ("jax", "flax", "optax", "orbax-checkpoint", "transformers"):
        assert f"Requires-Dist: {name}" in needs
    for name in ("tensorflow-datasets", "ml-collections"):
        assert f"Requires-Dist: {name}" in needs


def test_the_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    source = copy(tmp_path / "source")
    name = run(sys.executable, "-c", SDIST.format(str(tmp_path)), cwd=source).split()[-1]
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Not in 3.11.2.
    with tarfile.open(tmp_path / name) as archive:
        archive.extractall(tmp_path / "unpacked", **safe)
    again = build(tmp_path / "unpacked" / name.removesuffix(".tar.gz"), tmp_path / "wheel")
    sums = [{i.filename: i.CRC for i in zipfile.ZipFile(w).infolist()} for w in (wheel, again)]
    for kept in sums:  # It lists the others with their sizes.
        kept.pop(next(n for n in kept if n.endswith("/RECORD")))
    assert sums[0] == sums[1]


def test_every_module_is_imported_from_it(elsewhere):
    home, count = elsewhere("-c", IMPORTS).split()[-2:]
    assert pathlib.Path(home) == elsewhere.packages / "mopd_jax"
    assert int(count) > 80


def test_the_command_trains_a_shipped_config_from_any_folder(elsewhere):
    words = [f"--config.{name}={value}" for name, value in small_notebook.SMALL.items()]
    mopd = elsewhere.python.with_name("mopd")
    out = elsewhere(mopd, "train", "--config=quickstart:grpo", "--workdir=run", *words)
    assert "after 2 steps" in out
    assert (elsewhere.folder / "run/metrics.jsonl").is_file()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(elsewhere, name):
    wants.importing(*EXAMPLES[name])
    shutil.copy(ROOT / f"examples/distill_{name}.py", elsewhere.folder)
    assert "divergence to the teacher fell" in elsewhere(f"distill_{name}.py")


def test_the_notebook_runs(elsewhere):
    notebook = ROOT / "colab/quickstart.ipynb"
    elsewhere(small_notebook.__file__, notebook, elsewhere.folder)
    assert (elsewhere.folder / "runs/notebook/metrics.jsonl").is_file()


def test_a_users_code_runs_and_its_types_are_checked(elsewhere, tmp_path):
    text = pathlib.Path(user_code.__file__).read_text()
    (tmp_path / "right.py").write_text(text)
    (tmp_path / "wrong.py").write_text(text.replace("distill_loss(", "distill_loss('', "))
    assert float(elsewhere("right.py", cwd=tmp_path)) == 0.0
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--python-executable"]
    run(*mypy, elsewhere.python, "right.py", cwd=tmp_path, env=elsewhere.env)
    done = subprocess.run(
        [*mypy, elsewhere.python, "wrong.py"],
        cwd=tmp_path,
        env=elsewhere.env,
        capture_output=True,
        text=True,
    )
    assert "distill_loss" in done.stdout
    assert "[arg-type]" in done.stdout or "[call-arg]" in done.stdout


def test_the_parent_of_a_clone_imports_the_package(tmp_path):
    """Where an editable install is a path file, the clone's own folder is not a package."""
    clone = copy(tmp_path / "mopd_jax")
    environment = Elsewhere(tmp_path / "environment", "-e", clone)
    home = environment("-c", IMPORTS, cwd=tmp_path).split()[-2]
    assert pathlib.Path(home) == clone / "mopd_jax"
    files = {path.name for path in environment.packages.iterdir()}
    assert not any("finder" in name for name in files)
    shown = environment("-m", "mopd_jax.cli", "config", "--config=math:sdpo", cwd=tmp_path)
    assert json.loads(shown)["name"] == "sdpo"
