"""How all tests run: eight virtual CPU devices, set before jax is imported; no broadcast
between ranks; the same examples every time. The last line counts what was skipped."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time of a test is compilation, so half of the compiler's effort is saved too.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    ]
).strip()

# A broadcast between ranks is written out, so that a wrong shape cannot pass as one.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Modules, and processes that tests start, compile many programs that another has compiled. The
# workers of pytest-xdist have the folder of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="mopd-programs-")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import wants  # noqa: E402

try:
    import mopd_jax.kernels  # noqa: F401
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("mopd_jax"):
        raise
    pytest.exit(f"{error}. Run `pip install -e .` in the repository first.", returncode=4)

# Files of `pytest -m smoke`, the inner loop: strong for the seconds they take.
SMOKE = {
    "test_cli",
    "test_config",
    "test_render",
    "test_controls",
    "test_scores",
    "test_experience",
    "test_advantages",
    "test_layers",
    "test_losses",
    "test_peers",
    "test_responses",
    "test_storage",
    "test_estimates",
    "test_tables",
    "test_verify_choice",
    "test_verify_tools",
}
# Tests in these files that take too long for it.
NOT_SMOKE = {
    "test_a_constant_may_have_few_bits",
    "test_a_second_derivative_agrees_with_the_reference",
    "test_parts_of_a_batch_may_be_shorter",
}
# Key of pytest's cache: ids of tests that skipped for want of something.
WANTED = "mopd_jax/wanted"

hypothesis.settings.register_profile("same", derandomize=True, max_examples=50, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_module():
    """Lets compiled programs go after their module: each holds memory maps, of which a process
    may have 65,530, and thousands of programs are compiled here."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


def pytest_addoption(parser):
    parser.addoption(
        "--wanted",
        action="store_true",
        help="run the tests that the last run skipped because something was not installed",
    )


def pytest_configure(config):
    files = {path.stem for path in pathlib.Path(__file__).parent.rglob("test_*.py")}
    if SMOKE - files:
        raise pytest.UsageError(
            f"SMOKE of tests/conftest.py names {', '.join(sorted(SMOKE - files))}: no file of "
            "tests/ has that name; put the new name there"
        )


def pytest_ignore_collect(collection_path, config):
    """Files that have no smoke test are not imported for `-m smoke`."""
    if config.option.markexpr == "smoke" and collection_path.name.startswith("test_"):
        return True if collection_path.stem not in SMOKE else None
    return None


@pytest.hookimpl(tryfirst=True)  # Before tests are chosen by their marks.
def pytest_collection_modifyitems(config, items):
    for item in items:
        minutes = any(item.get_closest_marker(name) for name in ("slow", "long"))
        short = item.path.stem in SMOKE and item.originalname not in NOT_SMOKE
        if short and not minutes:
            item.add_marker("smoke")
    if config.option.wanted:
        wanted = set(config.cache.get(WANTED, []))  # Of tests, and of files that skip whole.
        chosen = [i for i in items if {i.nodeid, i.nodeid.partition("::")[0]} & wanted]
        config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
        items[:] = chosen


# Around the reporter's own, to write after its last line.
@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    result = yield
    config = session.config
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:  # Workers have no reporter.
        return result
    # By id, since every worker reports a file that skips as a whole.
    skipped = {report.nodeid: report for report in reporter.stats.get("skipped", ())}
    reasons = {name: str(report.longrepr[-1]) for name, report in skipped.items()}
    line = wants.closing_line(reasons.values())
    if line:
        reporter.write_line(line)
    if config.pluginmanager.hasplugin("cacheprovider"):
        wanted = [name for name, why in reasons.items() if wants.REASON.search(why)]
        config.cache.set(WANTED, wanted)
    return result
