"""Sum what several runs of pytest reported, in the form of pytest's own closing line.

    python tools/sum_reports.py build/reports

Reads the JUnit files in that folder; ends with code 1 if any test failed or if there is nothing to sum.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def sum_reports(files: Sequence[Path]) -> tuple[Counter[str], float]:
    """How many tests ended how, and their seconds together."""
    counts: Counter[str] = Counter()
    seconds = 0.0
    for file in files:
        for suite in ElementTree.parse(file).getroot().iter("testsuite"):
            failed, errors, skipped = (int(suite.get(key, 0)) for key in ("failures", "errors", "skipped"))
            counts.update(failed=failed, skipped=skipped, errors=errors)
            counts["passed"] += int(suite.get("tests", 0)) - failed - errors - skipped
            seconds += float(suite.get("time", 0))
    return counts, seconds


def closing_line(counts: Counter[str], seconds: float) -> str:
    """
    >>> closing_line(Counter(passed=3, skipped=1), 2.5)
    '==== 3 passed, 1 skipped in 2.50s ===='
    """
    words = [f"{counts[word]} {word}" for word in ("failed", "passed", "skipped", "errors") if counts[word]]
    return f"==== {', '.join(words) or 'no tests ran'} in {seconds:.2f}s ===="


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    counts, seconds = sum_reports(sorted(parser.parse_args(arguments).folder.glob("*.xml")))
    print(closing_line(counts, seconds))
    sys.exit(1 if counts["failed"] or counts["errors"] or not counts.total() else 0)


if __name__ == "__main__":
    main()
