"""The Python of the README and of the guide runs as it stands, and the README's figures come from result files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pan_hf.readme import check_readme

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
GUIDE = sorted((ROOT / "docs" / "guide").glob("*.md"))


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def run(script: str, folder: Path) -> None:
    """Runs Python in an empty folder, with the budgets that readers get cut to what a test can wait for."""
    (folder / "script.py").write_text(script.replace("seconds=30", "seconds=6"))
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(snippets(README))))
def test_a_readme_snippet_runs(number, tmp_path):
    run(snippets(README)[number], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in GUIDE if snippets(page)], ids=lambda page: page.stem)
def test_a_page_of_the_guide_runs_from_top_to_bottom(page, tmp_path):
    run("\n".join(snippets(page)), tmp_path)


def test_the_readme_has_no_figure_without_a_result_file():
    assert check_readme(README, sorted(path for path in (ROOT / "docs" / "results").iterdir() if path.is_dir())) == []
