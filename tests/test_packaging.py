"""What is installed, under which names, and what a bare import costs."""

import importlib.metadata
import importlib.util
import pathlib
import subprocess
import sys

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


def test_the_kernels_folder_is_no_top_level_package():
    assert not (ROOT / "kernels/__init__.py").exists()
    spec = importlib.util.find_spec("kernels")
    # Absent, a namespace without a file, or somebody else's distribution.
    assert spec is None or spec.origin is None or ROOT not in pathlib.Path(spec.origin).parents


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
    assert script.value == "mopd_jax.cli:main"
    assert callable(script.load())


def test_the_public_name():
    from mopd_jax import distill_loss, losses

    assert distill_loss is losses.distill_loss
