"""A process ends in time, whatever it is doing."""

import gc
import os
import subprocess
import sys
import threading

import pytest

from fulmen.fabric.ending import frame_of

# In every case Python would go on for a minute. The exit code of a process that was ended is 1.
_CASES = {
    "a wait": "exit_within(0.2); time.sleep(60)",
    "the earliest counts": "exit_within(0.2); exit_within(50); time.sleep(60)",
    "an earlier one later": "exit_within(50); exit_within(0.2); time.sleep(60)",
    "taken back, and asked for again": "exit_within(50); exit_no_more(); exit_within(0.2); time.sleep(60)",
    "taken back, and asked for later": "exit_within(0.1); exit_no_more(); exit_within(0.4); time.sleep(60)",
    "Python's end": "atexit.register(time.sleep, 60); exit_within(0.2)",
    "a lock that is kept": "exit_within(0.2); sum(iter(int, 1))",
    "a fork has its own": (
        "exit_within(50); child = os.fork(); child or (exit_within(0.2), time.sleep(60));"
        " os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    ),
    "an error that nobody catches": (
        "atexit.register(time.sleep, 60); error = ValueError('x'); exit_soon_after(error, 0.2); raise error"
    ),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="one case forks")
def test_a_process_ends_in_time_whatever_it_does():
    head = "import atexit, os, time\nfrom fulmen.fabric.ending import exit_no_more, exit_soon_after, exit_within\n"
    running = {
        what: subprocess.Popen([sys.executable, "-c", head + code], stderr=subprocess.PIPE, text=True)
        for what, code in _CASES.items()
    }
    for what, process in running.items():
        # Far less than a minute, and far more than a busy machine needs.
        _, err = process.communicate(timeout=50)
        assert process.returncode == 1, (what, err)
        assert ("ValueError: x" in err) == what.startswith("an error"), (what, err)


def test_what_is_taken_back_ends_nothing():
    code = "import time\nfrom fulmen.fabric.ending import exit_no_more, exit_within\n"
    code += "exit_no_more(); exit_within(0.3); exit_no_more(); time.sleep(0.6); raise SystemExit(7)\n"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=50).returncode == 7


def test_an_error_that_somebody_catches_ends_nothing():
    code = (
        "import sys, time\nfrom fulmen.fabric.ending import exit_soon_after\n"
        "error = ValueError()\nexit_soon_after(error, 0.0)\n"
        "try:\n    raise error\nexcept ValueError:\n    pass\n"
        "sys.excepthook(KeyError, KeyError(), None)\ntime.sleep(0.3)\nsys.exit(7)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=50).returncode == 7


def test_a_prompt_stays_after_an_error():
    code = (
        "from fulmen.fabric.ending import exit_soon_after\n"
        "import time\nerror = ValueError('x'); exit_soon_after(error, 0.0); raise error\n"
        "time.sleep(0.3)\nprint('still there')\nexit(7)\n"
    )
    done = subprocess.run([sys.executable, "-i", "-q"], input=code, capture_output=True, text=True, timeout=50)
    assert done.returncode == 7, done.stderr
    assert "still there" in done.stdout


# In each case Python would wait for ten minutes, or for ever.
_POOLS = {
    "a process": "process = context.Process(target=time.sleep, args=(600,)); process.start()",
    "an executor": (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "pool = ProcessPoolExecutor(1, mp_context=context); pool.submit(int).result(); pool.submit(time.sleep, 600)"
    ),
    "a pool that lost a process": (
        "import signal\npool = context.Pool(1); pool.apply(int); time.sleep(0.5)\n"
        "os.kill(multiprocessing.active_children()[0].pid, signal.SIGTERM); time.sleep(0.5)"
    ),
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="pools that fork")
def test_who_is_told_to_end_waits_for_no_pool():
    head = "import multiprocessing, os, time\nfrom fulmen.fabric.ending import end_despite_pools\n"
    head += "context = multiprocessing.get_context('fork')\n"
    end = "\nend_despite_pools(143)\nraise SystemExit(143)\n"
    running = {what: subprocess.Popen([sys.executable, "-c", head + code + end]) for what, code in _POOLS.items()}
    ends = {what: process.wait(timeout=100) for what, process in running.items()}
    assert ends == dict.fromkeys(_POOLS, 143)


def test_who_is_told_to_end_does_what_the_program_does_at_its_end():
    code = "import atexit, time\nfrom fulmen.fabric.ending import end_despite_pools\n"
    code += "atexit.register(print, 'said'); atexit.register(time.sleep, 2.5); end_despite_pools(143)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (0, "said\n")


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_it_is_asked_where_a_thread_is(collects, monkeypatch):
    frames, asked = sys._current_frames(), []
    monkeypatch.setattr(sys, "_current_frames", lambda: asked.append(gc.isenabled()) or frames)
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        assert frame_of(threading.main_thread().ident) is frames[threading.get_ident()]
        assert frame_of(None) is None
        assert asked == [False, False]
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
