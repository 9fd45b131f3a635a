"""One process at a time holds a run folder."""

import dataclasses
import errno
import json
import logging
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from mopd_jax.errors import ConfigError, RunError
from mopd_jax.run import lease
from mopd_jax.run.lease import Holder, Times

FAST = Times(renew=0.05, expire=0.4, look=0.02)


def write(folder, renewed=0, **changes):
    """A lock as another process would leave it."""
    folder.mkdir(exist_ok=True)
    holder = dataclasses.replace(Holder.own(), **changes)
    record = {**dataclasses.asdict(holder), "renewed": renewed}
    (folder / lease.FILE).write_text(json.dumps(record))
    return holder


def hold(folder, times=FAST):
    with lease.held(folder, times=times) as held:
        held.check()


def ended():
    """The pid of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_is_held_once_and_free_again(tmp_path):
    folder = tmp_path / "run"
    with lease.held(folder, times=FAST):
        with pytest.raises(
            ConfigError, match=f"in use by process {os.getpid()} on .*--workdir"
        ):
            hold(folder)
        (folder / "config.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    hold(folder)


def test_a_run_that_could_not_start_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), lease.held(tmp_path / "run", times=FAST):
        raise ZeroDivisionError
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()  # But one that was there stays.
    hold(tmp_path / "run")
    assert (tmp_path / "run").exists()


@pytest.mark.parametrize("changes", [{"pid": None}, {"start": 1}], ids=["ended", "pid reused"])
def test_a_process_of_this_host_that_is_gone_holds_nothing(tmp_path, changes):
    changes = {"pid": ended()} if changes == {"pid": None} else changes
    write(tmp_path, **changes)
    hold(tmp_path)


def test_a_zombie_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write(tmp_path, pid=process.pid, start=lease._start(process.pid))
    with pytest.raises(ConfigError, match=f"in use by process {process.pid}"):
        hold(tmp_path)
    process.kill()
    while lease._start(process.pid) is not None:
        time.sleep(0.01)
    hold(tmp_path)
    process.wait()


def test_another_hosts_lease_expires(tmp_path, caplog):
    write(tmp_path, host="far boot")
    begun = time.monotonic()
    with caplog.at_level(logging.INFO, logger="mopd"):
        hold(tmp_path)
    assert FAST.expire <= time.monotonic() - begun < 20 * FAST.expire
    (message,) = caplog.messages
    assert "was in use by process" in message and "on far: waiting at most" in message


def test_another_hosts_lease_that_is_renewed_is_refused(tmp_path):
    holder = write(tmp_path, host="far boot")
    ending = threading.Event()

    def renew():
        count = 0
        while not ending.wait(FAST.renew):
            count += 1
            lease._write(tmp_path, holder, count)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="in use by process .* on far"):
            hold(tmp_path)
    finally:
        ending.set()
        thread.join()
    assert json.loads((tmp_path / lease.FILE).read_text())["host"] == "far boot"


def test_a_holder_renews_and_finds_its_lease_taken(tmp_path):
    with lease.held(tmp_path, times=FAST) as held:
        counts = set()
        while len(counts) < 3:
            counts.add(json.loads((tmp_path / lease.FILE).read_text())["renewed"])
            time.sleep(0.01)
        held.check()
        write(tmp_path, host="far boot", token="other")
        with pytest.raises(RunError, match="was taken by process .* on far"):
            while True:
                held.check()
                time.sleep(0.01)
    # What another holds is not removed.
    assert json.loads((tmp_path / lease.FILE).read_text())["token"] == "other"


def test_a_holder_whose_lock_was_removed_stops(tmp_path):
    with lease.held(tmp_path, times=FAST) as held:
        (tmp_path / lease.FILE).unlink()
        with pytest.raises(RunError, match="its lock was removed"):
            while True:
                held.check()
                time.sleep(0.01)


def test_a_full_disk_is_not_a_wrong_folder(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lease, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        hold(tmp_path)


def test_a_holder_whose_renewals_fail_goes_on_renewing(tmp_path, monkeypatch):
    write_text, failed = lease.write_text, []

    def sometimes(path, text):
        if '"renewed": 1}' in text and not failed:
            failed.append(text)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_text(path, text)

    monkeypatch.setattr(lease, "write_text", sometimes)
    with lease.held(tmp_path, times=FAST) as held:
        while json.loads((tmp_path / lease.FILE).read_text())["renewed"] < 3:
            time.sleep(0.01)
        held.check()
    assert failed


def _contend(folder, barrier, results):
    barrier.wait()
    try:
        with lease.held(folder):
            time.sleep(0.5)
        results.put("held")
    except ConfigError:
        results.put("refused")


def test_of_many_starts_at_once_one_goes_on(tmp_path):
    write(tmp_path, pid=ended())  # And all of them find the lock of a process that is gone.
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    arguments = (tmp_path, barrier, results)
    processes = [context.Process(target=_contend, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    found = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert found == ["held", "refused", "refused", "refused"]


def test_other_processes_of_a_run_do_not_ask(tmp_path):
    with lease.held(tmp_path, times=FAST), lease.held(tmp_path, first=False) as held:
        held.check()


@pytest.mark.parametrize("text", ["", "[]", '{"host": "a"}', '{"renewed": 1}', "\udcff"])
def test_a_damaged_lock_is_named(tmp_path, text):
    (tmp_path / lease.FILE).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="run.lock is damaged .*remove the file"):
        hold(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--workdir .*file is a file; name a folder"):
        hold(tmp_path / "file")
    with pytest.raises(ConfigError, match="--workdir .* cannot be written .*choose another"):
        hold(tmp_path / "file/run")
    with pytest.raises(ConfigError, match="--workdir /proc/x cannot be written"):
        hold(pathlib.Path("/proc/x"))
