"""A process tells why it fails before it has ended."""

import os
import subprocess
import sys

import pytest

from fulmen.fabric.launchers.failures import Weight
from fulmen.fabric.launchers.reports import Reports, is_expected, remember_time, time_of

# After its error, the process does not end: a handler of its own waits until the pipe of its input is closed.
_FAILS = """
import atexit, sys
from fulmen.fabric.launchers.reports import is_expected, report_errors
assert is_expected()
report_errors()
assert not is_expected()  # what it starts itself is not listened to
atexit.register(sys.stdin.read)
raise ValueError("x" * int(sys.argv[1]))
"""
_ENDS_WELL = "pass"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not inherited there")


def _start(reports, rank, *program):
    variables, inherited = reports.expect()
    return subprocess.Popen(
        [sys.executable, "-c", *program],
        env={**os.environ, **variables, "RANK": str(rank)},
        pass_fds=inherited,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_report_is_heard_while_its_process_still_runs_and_is_not_printed():
    reports = Reports()
    good = _start(reports, 1, _ENDS_WELL)
    bad = _start(reports, 2, _FAILS, "300000")  # more than a pipe holds
    reports.all_started()
    assert reports.wait()
    assert bad.poll() is None
    said = reports.read(1, rank=2)
    assert (said.rank, said.weight, said.exit_code) == (2, Weight.CAUSE, 1)
    assert said.text.rstrip().endswith("ValueError: " + "x" * 300_000)
    assert reports.read(0, rank=1) is None
    _, err = bad.communicate(b"", timeout=100)
    assert (bad.returncode, err) == (1, b"")
    _, err = good.communicate(b"", timeout=100)
    assert (good.returncode, err) == (0, b"")
    # Nobody is left who could report.
    assert not reports.wait()


def test_nobody_listens_to_this_process():
    assert not is_expected()
    assert not Reports().wait()


def test_an_error_keeps_the_time_of_its_first_notice():
    error = ValueError()
    remember_time(error)
    first = time_of(error)
    remember_time(error)
    assert time_of(error) == first
