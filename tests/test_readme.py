"""The Python of the README and of the guide runs as it stands, and the README's figures come from result files."""

import re
from pathlib import Path

import pytest
from forked import run_forked

from pan_hf.reporting.readme import check_readme

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def run(script: str, folder: Path) -> None:
    """Runs Python in an empty folder; budgets that readers get are cut to what a test can wait for."""
    script = script.replace("seconds=30", "seconds=5").replace("frames=2000", "frames=600")
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
    "page", [README, *(page for page in GUIDE if "<!-- results:" in page.read_text())], ids=lambda page: page.stem
)
def test_a_page_has_no_figure_without_a_result_file(page):
    assert check_readme(page, sorted(path for path in (ROOT / "docs" / "results").iterdir() if path.is_dir())) == []
