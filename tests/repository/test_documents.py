"""Documents are true: their Python runs, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PATTERNS = ("*.md", "docs/**/*.md", "packages/*/*.md", "tests/**/*.md", "examples/**/*.md", "benchmarks/*.md")
DOCUMENTS = sorted({path for pattern in PATTERNS for path in REPOSITORY.glob(pattern)})
RUNNABLE = [path for path in DOCUMENTS if "```python" in path.read_text()]
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize(
    "program", [("tools/run_examples.py", str(document)) for document in RUNNABLE], ids=map(name_of, RUNNABLE)
)
def test_the_python_in_a_document_runs(done):
    assert done.returncode == 0, done.stderr[-4000:]


def test_contributing_names_every_session_of_nox():
    defined = set(
        re.findall(r"^@nox\.session.*\n(?:@.*\n)*def (\w+)", (REPOSITORY / "noxfile.py").read_text(), re.MULTILINE)
    )
    commands = re.findall(r"^\| (`nox -s .*?) \|", (REPOSITORY / "docs/contributing.md").read_text(), re.MULTILINE)
    assert len(defined) > 10
    assert defined - set(re.findall(r"[a-z]+", " ".join(commands))) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_the_links_of_a_document_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)
    for link in LINK.findall(text):
        if not link.startswith(("http://", "https://", "mailto:")):
            path, _, anchor = link.partition("#")
            target = (document.parent / path).resolve() if path else document
            assert target.exists(), f"{link} leads nowhere"
            assert not anchor or anchor in anchors(target), f"{link} leads to no heading"


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
