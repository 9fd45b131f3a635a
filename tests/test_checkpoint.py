"""What a kill or a full disk may leave of checkpoints is cleaned, and never taken for one."""

import errno
import logging
import resource
import shutil

import jax
import numpy as np
import pytest
from absl import logging as absl_logging
from orbax.checkpoint import v1 as ocp

from mopd_jax.records import TrainState
from mopd_jax.run import checkpoint, console


def state_of(*, floats=8):
    params = {"w": jax.numpy.asarray(np.random.default_rng(0).normal(size=floats), np.float32)}
    zero = jax.numpy.int32(0)
    return TrainState(params, {}, {}, jax.numpy.int32(3), zero, jax.random.key(0))


def test_pruning(tmp_path):
    for name in ("2", "4", "6", "3.removed", "8.orbax-checkpoint-tmp-1", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data").write_text("x")
    assert checkpoint.steps(tmp_path) == [2, 4, 6]
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "6", "notes"]
    checkpoint.prune(tmp_path, keep=2)
    assert checkpoint.steps(tmp_path) == [4, 6]
    assert checkpoint.steps(tmp_path / "none") == []


def save_fails(folder, **options):
    """The error of a save, which leaves nothing that looks like a checkpoint."""
    with pytest.raises(OSError) as caught:
        checkpoint.save(folder, state_of(**options), {"position": 7}, keep=1)
    assert caught.value.filename == str(folder / "3")
    assert checkpoint.steps(folder) == []
    return caught.value


def test_a_save_without_room_is_not_begun(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4 * 99))
    error = save_fails(tmp_path / "run", floats=100)
    assert (error.errno, error.strerror) == (errno.ENOSPC, "No space left on device")
    assert list((tmp_path / "run").iterdir()) == []
    checkpoint.save(tmp_path / "run", state_of(), {}, keep=1)
    assert checkpoint.steps(tmp_path / "run") == [3]


def test_the_system_error_is_read_from_the_text_of_tensorstore(tmp_path, monkeypatch):
    def full(path, tree):
        path.with_name("3.orbax-checkpoint-tmp").mkdir()
        raise ValueError("RESOURCE_EXHAUSTED: Failed to write [os_error_code='28']")

    monkeypatch.setattr(ocp, "save_checkpointables", full)
    assert save_fails(tmp_path).errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_error_of_the_system_is_a_defect(tmp_path, monkeypatch):
    def broken(path, tree):
        raise ValueError("shape")

    monkeypatch.setattr(ocp, "save_checkpointables", broken)
    with pytest.raises(ValueError, match="shape"):
        checkpoint.save(tmp_path, state_of(), {}, keep=1)


def test_a_file_that_the_system_refuses(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        error = save_fails(tmp_path, floats=500_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.errno == errno.EFBIG


def test_threads_of_a_save_do_not_report_what_it_raises(monkeypatch):
    logger = absl_logging.get_absl_logger()
    monkeypatch.setattr(logger, "filters", [])
    mopd = logging.getLogger("mopd")
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(mopd, name, getattr(mopd, name))
    console.setup_logging()
    (hide,) = logger.filters

    def record(text):
        return logging.LogRecord("absl", logging.ERROR, "f.py", 1, text, ("x",), None)

    assert not hide(record("[%s] _SignalingThread.run() raised an exception: ..."))
    assert hide(record("another error of %s"))
