"""Eight virtual CPU devices, set before jax is imported, and the same examples every time."""

import atexit
import gc
import os
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

# Modules, and processes that tests start, compile many programs that another has compiled. The
# workers of pytest-xdist have the folder of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    CACHE = tempfile.mkdtemp(prefix="mopd-programs-")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import hypothesis  # noqa: E402
import pytest  # noqa: E402

try:
    import mopd_jax.kernels  # noqa: F401
except ModuleNotFoundError as error:
    if not (error.name or "").startswith("mopd_jax"):
        raise
    pytest.exit(f"{error}. Run `pip install -e .` in the repository first.", returncode=4)

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
