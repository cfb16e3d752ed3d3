import json
import os
import sys
import time

import pytest

from fulmen.fabric.launchers import agent
from fulmen.fabric.launchers.agent import tell_agent_of_errors


@pytest.fixture
def shown(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: seen.append(error))
    monkeypatch.setattr(agent._Told, "pid", 0)
    return seen


def _fail(error):
    try:
        raise error
    except BaseException as raised:
        sys.excepthook(type(raised), raised, raised.__traceback__)


def test_without_torchrun_nobody_is_told(shown, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    hook = sys.excepthook
    tell_agent_of_errors()
    assert sys.excepthook is hook


def test_an_error_is_written_where_torchrun_reads_it_and_shown_as_ever(shown, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    tell_agent_of_errors()
    hook = sys.excepthook
    tell_agent_of_errors()
    assert sys.excepthook is hook
    error = ValueError("wrong")
    _fail(error)
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["extraInfo"]["py_callstack"].rstrip().endswith("ValueError: wrong")
    assert shown == [error]
    assert error.__traceback__.tb_frame.f_code.co_name == "_fail"  # as it was


def test_an_error_file_that_cannot_be_written_hides_nothing(shown, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "nowhere" / "error.json"))
    tell_agent_of_errors()
    _fail(ValueError("wrong"))
    _fail(KeyboardInterrupt())
    assert [type(error) for error in shown] == [ValueError, KeyboardInterrupt]


def test_who_only_lost_its_peer_waits_for_the_agent_to_find_the_cause(shown, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    tell_agent_of_errors()
    _fail(ValueError("wrong"))
    assert waited == []
    _fail(RuntimeError("[gloo/transport/tcp] Connection closed by peer"))
    assert waited == [agent._WAIT_S]


def test_a_forked_process_tells_nothing(shown, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    tell_agent_of_errors()
    monkeypatch.setattr(os, "getpid", lambda: 1)
    _fail(ValueError("wrong"))
    assert len(shown) == 1
    assert not (tmp_path / "error.json").exists()
