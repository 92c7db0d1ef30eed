"""The pages: the site builds without a warning, and the README's links lead somewhere."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-E", str(ROOT / "docs"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in tmp_path.glob("*.html")}


def anchors(page: pathlib.Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def test_links_of_the_readme_lead_somewhere():
    readme, lost = ROOT / "README.md", []
    for link in LINK.findall(readme.read_text()):
        path, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        page = ROOT / path if path else readme
        if not page.is_file() or (anchor and anchor not in anchors(page)):
            lost.append(link)
    assert not lost
