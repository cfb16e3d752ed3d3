"""The tools of this repository do what they say."""

import runpy
from collections import Counter
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def run_examples():
    return runpy.run_path(str(TOOLS / "run_examples.py"))


@pytest.fixture
def sum_reports():
    return runpy.run_path(str(TOOLS / "sum_reports.py"))


DOCUMENT = """# Title
```python
x = 1
```
```bash
this is not Python
```
<!-- not run -->
```python
raise SystemExit
```
```python
assert x == 1
```
"""


def test_python_blocks_are_found_with_their_lines(run_examples):
    assert list(run_examples["python_blocks"](DOCUMENT)) == [(2, "x = 1\n"), (12, "assert x == 1\n")]


def test_blocks_share_a_namespace_and_failures_name_the_line(run_examples, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "__main__", __import__("sys").modules["__main__"])
    document = tmp_path / "document.md"
    document.write_text(DOCUMENT)
    assert run_examples["run_file"](document) == 2
    document.write_text(DOCUMENT.replace("x == 1", "x == 2"))
    with pytest.raises(AssertionError) as caught:
        run_examples["run_file"](document)
    assert caught.traceback[-1].lineno + 1 == 13


def test_reports_are_summed_and_failures_are_told(sum_reports, tmp_path, capsys):
    suite = '<testsuites><testsuite tests="{}" failures="{}" errors="0" skipped="1" time="1.5"/></testsuites>'
    (tmp_path / "a.xml").write_text(suite.format(4, 0))
    (tmp_path / "b.xml").write_text(suite.format(3, 0))
    assert exit_code(sum_reports, tmp_path) == 0
    assert capsys.readouterr().out == "==== 5 passed, 2 skipped in 3.00s ====\n"
    (tmp_path / "b.xml").write_text(suite.format(3, 1))
    assert exit_code(sum_reports, tmp_path) == 1
    assert "1 failed, 4 passed" in capsys.readouterr().out


def test_no_reports_are_no_success(sum_reports, tmp_path):
    assert exit_code(sum_reports, tmp_path) == 1
    assert sum_reports["closing_line"](Counter(), 0.0) == "==== no tests ran in 0.00s ===="


def exit_code(tool, folder) -> int:
    with pytest.raises(SystemExit) as caught:
        tool["main"]([str(folder)])
    return caught.value.code
