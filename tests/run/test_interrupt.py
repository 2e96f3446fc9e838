"""Signals: before the loop they end the command with a word, in it they ask for the end of the iteration."""

from __future__ import annotations

import os
import signal
import time

import pytest

from dgpo.commands.main import main
from dgpo.run.interrupt import REQUEUE, STOPPED, Interrupt, Stopped

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # Python handles it between two of its own steps


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_loop_a_signal_stops_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped by {number.name} before the first iteration"), Interrupt():
        send(number)
    assert signal.getsignal(number) == before


def test_until_the_first_iteration_it_stops_at_once_and_another_thread_hears_it() -> None:
    with Interrupt() as interrupt:
        interrupt.listen(" in its first evaluation")
        with pytest.raises(Stopped, match="stopped by SIGTERM in its first evaluation") as stop:
            send(signal.SIGTERM)
        assert stop.value.code == REQUEUE
        assert interrupt.heard(1.0) == "SIGTERM"
        interrupt.defer()
        send(signal.SIGINT)
        assert interrupt.requested() == STOPPED


@pytest.mark.parametrize("number", SIGNALS)
def test_in_the_loop_it_is_noted_once(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """A scheduler may warn by one signal and end by another: only a second Ctrl-C stops at once."""
    with Interrupt() as interrupt:
        interrupt.defer()
        assert not interrupt.requested()
        for other in (number, signal.SIGTERM, signal.SIGUSR1):
            send(other)
        assert interrupt.requested()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert capfd.readouterr().err.count("Stopping after this iteration") == 1


def test_what_is_ignored_stays_ignored() -> None:
    """Under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            send(signal.SIGHUP)
            assert not interrupt.requested()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_gone_does_not_break_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(handle: int, text: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    with Interrupt() as interrupt:
        interrupt.defer()
        send(signal.SIGHUP)
        assert interrupt.requested()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_command_that_is_stopped_while_it_starts_says_so(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dgpo.commands.configs.recipe_config", lambda *_: send(number))
    assert main(["train"]) == (75 if number in (signal.SIGTERM, signal.SIGUSR1) else 130)
    assert capsys.readouterr().err.startswith(f"dgpo: stopped by {number.name} before the first iteration")
