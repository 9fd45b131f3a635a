"""Signals become stops at safe places, with the right status."""

import signal
import subprocess
import sys

import pytest

from mopd_jax import cli
from mopd_jax.run.stops import Stopped, Stops

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.mark.parametrize(("number", "status"), SIGNALS.items())
def test_a_signal_raises_at_once(number, status):
    with pytest.raises(Stopped) as caught, Stops():
        signal.raise_signal(number)
    assert caught.value.status == status


@pytest.mark.parametrize(("number", "status"), SIGNALS.items())
def test_a_held_block_runs_to_its_end(number, status):
    done = []
    with pytest.raises(Stopped) as caught, Stops() as stops, stops.hold():
        with stops.hold():
            signal.raise_signal(number)
            done.append("inner")
        done.append("outer")
    assert caught.value.status == status
    assert done == ["inner", "outer"]


def test_an_error_of_a_held_block_is_not_lost():
    with pytest.raises(ZeroDivisionError), Stops() as stops, stops.hold():
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with Stops():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_no_handler_of_errors_takes_a_stop():
    assert not issubclass(Stopped, Exception)


TWICE = """
import signal
from mopd_jax.run.stops import Stops
with Stops() as stops, stops.hold():
    signal.raise_signal(signal.SIGTERM)
    print("held", flush=True)
    signal.raise_signal(signal.SIGINT)
    print("never")
"""


def test_the_second_signal_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "held\n")


def test_any_command_is_stopped_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(cli, "_show", lambda args: signal.raise_signal(signal.SIGINT))
    assert cli.main(["config"]) == 130
    assert capsys.readouterr().err == "mopd: stopped by SIGINT\n"
