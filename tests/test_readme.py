"""The Python of README and guide runs as it stands, their figures come from result files, and their links lead on."""

import re
from pathlib import Path

import pytest
from forked import run_forked

from docs.measured import check_page

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "docs" / "results" / "README.md"
KILLS = ROOT / "docs" / "kills.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def run(script: str, folder: Path) -> None:
    """Runs Python in an empty folder; budgets that readers get are cut to what a test can wait for."""
    script = re.sub(r"\bseconds=\d+", "seconds=2", script)
    script = re.sub(r"\bframes=\d{4,}", "frames=600", script)
    done = run_forked(lambda: exec(compile(script, "snippet.py", "exec"), {"__name__": "__main__"}), folder)
    assert done.returncode == 0, done.said[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(snippets(README))))
def test_a_readme_snippet_runs(number, tmp_path):
    run(snippets(README)[number], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in GUIDE if snippets(page)], ids=lambda page: page.stem)
def test_a_page_of_the_guide_runs_from_top_to_bottom(page, tmp_path):
    run("\n".join(snippets(page)), tmp_path)


@pytest.mark.parametrize(
    "page",
    [README, RESULTS, KILLS, *(page for page in GUIDE if "<!-- results:" in page.read_text())],
    ids=lambda page: f"{page.parent.name}/{page.name}",
)
def test_a_page_has_no_figure_without_a_result_file(page):
    assert check_page(page, sorted(path for path in (ROOT / "docs" / "results").iterdir() if path.is_dir())) == []


def test_the_readme_is_read_in_ten_minutes():
    assert len(README.read_text().splitlines()) <= 160
    assert len((ROOT / "docs" / "architecture.md").read_text().splitlines()) <= 200


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


PAGES = [README, RESULTS, *sorted((ROOT / "docs").glob("*.md")), *GUIDE, *sorted((ROOT / "model_cards").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.name}")
def test_every_link_of_a_page_leads_to_a_file_and_to_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for link in re.findall(r"\]\((?!https?:)([^)\s]*)\)", text):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "experiments"], ids=lambda page: page.stem)
def test_every_file_of_ours_that_a_page_names_is_there(page):
    """A dated log of experiments names what was there then."""
    named = re.findall(
        r"`((?:modeling|tokenization|training|pan_hf|tests|benchmarks|docs)/[\w/.-]+\.\w+)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
