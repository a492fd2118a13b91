"""The README's Python runs as it stands, and its figures come from result files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pan_hf.readme import check_readme

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_readme_snippet_runs(number, tmp_path):
    snippet = SNIPPETS[number].replace("seconds=30", "seconds=6")
    script = tmp_path / "snippet.py"
    script.write_text(snippet)
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_readme_has_no_figure_without_a_result_file():
    assert check_readme(README, sorted(path for path in (ROOT / "docs" / "results").iterdir() if path.is_dir())) == []
