"""The fork server ends at once; what it has forked does not."""

import multiprocessing
import os
import subprocess
import sys

import pytest

# Whoever takes its modules apart leaves a mark.
_MARKED = """
import os

class Mark:
    def __del__(self, pid=os.getpid(), open=os.open, flags=os.O_CREAT | os.O_WRONLY):
        open(f"taken-apart-{pid}", flags)

mark = Mark()
"""
_PROGRAM = """
import multiprocessing, os, sys

def work(writer):
    import atexit, fulmen.fabric.launchers.fork_server as ours
    ours._leave(os.getppid())  # what it would do if a forked process came to the server's handlers
    writer.send(os.getppid())

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(sys.argv[1:])
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(writer,))
    process.start()
    print(reader.recv())
    process.join()
    assert process.exitcode == 0
"""


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="there is none")
@pytest.mark.parametrize("is_ours", [True, False])
def test_it_takes_nothing_apart(tmp_path, is_ours):
    (tmp_path / "marked.py").write_text(_MARKED)
    (tmp_path / "program.py").write_text(_PROGRAM)
    preload = [*(["fulmen.fabric.launchers.fork_server"] if is_ours else []), "marked"]
    # Its standard output is the server's, too: when that is at its end, the server is.
    done = subprocess.run(
        [sys.executable, "program.py", *preload],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])),
        },
    )
    assert done.returncode == 0, done.stderr
    server = int(done.stdout)
    # Without ours, Python does: else this test would prove nothing.
    assert (tmp_path / f"taken-apart-{server}").exists() is not is_ours
