"""What is installed, under which names, and what a bare import costs."""

import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

EVERYTHING = """
import collections, importlib, os, pkgutil, sys
import mopd_jax, mopd_jax.kernels
for package in (mopd_jax, mopd_jax.kernels):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
files = collections.defaultdict(list)
for name, module in list(sys.modules.items()):
    if name.split(".")[0] in ("mopd_jax", "kernels") and getattr(module, "__file__", None):
        files[os.path.realpath(module.__file__)].append(name)
print(len(files), [names for names in files.values() if len(names) > 1])
"""
BARE = """
import sys, time
begun = time.perf_counter()
import mopd_jax
seconds = time.perf_counter() - begun
heavy = {"torch", "tensorflow", "transformers", "flax"} & sys.modules.keys()
print(seconds, *heavy)
"""


def python(code, cwd):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=True
    )
    return done.stdout.split(maxsplit=1)


FOLDERS = sorted(
    path.name
    for path in ROOT.iterdir()
    if path.is_dir() and path.name.isidentifier() and path.name != "mopd_jax"
)


@pytest.mark.parametrize("name", FOLDERS)
def test_only_the_package_is_a_top_level_import_name(name):
    """An editable install puts the checkout on the path; `kernels` is also a distribution."""
    assert not (ROOT / name / "__init__.py").exists(), f"remove {name}/__init__.py"
    spec = importlib.util.find_spec(name)
    # Absent, a namespace without a file, or somebody else's distribution.
    assert spec is None or spec.origin is None or ROOT not in pathlib.Path(spec.origin).parents


def test_links_serve_the_checkout_and_the_wheel():
    assert (ROOT / "mopd_jax/kernels").resolve() == ROOT / "kernels/ops"
    assert (ROOT / "mopd_jax/assets/configs").resolve() == ROOT / "configs"


def test_no_file_is_loaded_as_two_modules(tmp_path):
    count, twice = python(EVERYTHING, tmp_path)
    assert int(count) > 30
    assert twice.strip() == "[]"


def test_a_bare_import_is_quick_and_light(tmp_path):
    seconds = []
    for _ in range(3):  # Machines are noisy: the best of three.
        taken, *heavy = python(BARE, tmp_path)
        assert not heavy
        seconds.append(float(taken))
        if seconds[-1] < 3.0:
            break
    assert min(seconds) < 3.0


def test_the_console_script():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="mopd")
    assert script.value == "mopd_jax.cli:entry"
    assert callable(script.load())


def test_the_public_name():
    from mopd_jax import distill_loss, losses

    assert distill_loss is losses.distill_loss
