"""What the type checker finds in our classes, with all that they inherit."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLANTED = """
from pan_hf import PanConfig, PanModel, PanProcessor

def read(model: PanModel, config: PanConfig, processor: PanProcessor) -> None:
    model.no_such_part
    model.config.no_such_field
    model.table.no_such_method()
    config.no_such_field
    processor.no_such_reader
    model.simulate(1, 2)
    model.layout.num_levels, model.config.senses, processor.tokenizer, model.device  # these there are
"""
WRONG = {5: "attr-defined", 6: "attr-defined", 7: "attr-defined", 8: "attr-defined", 9: "attr-defined", 10: "arg-type"}


@pytest.mark.slow
def test_the_checker_refuses_attributes_that_no_class_has(tmp_path):
    site = tmp_path / "site" / "pan_hf"
    site.mkdir(parents=True)
    for source in [*(ROOT / "pan_hf").iterdir(), *(ROOT / name for name in ("modeling", "tokenization", "training"))]:
        (site / source.name).symlink_to(source)  # as in the wheel
    (tmp_path / "site" / "planted.py").write_text(PLANTED)
    command = [Path(sys.executable).with_name("mypy"), "--config-file", ROOT / "pyproject.toml"]
    command += ["--cache-dir", ROOT / ".mypy_cache", "--no-pretty", "planted.py"]
    done = subprocess.run(command, cwd=tmp_path / "site", text=True, capture_output=True, check=False)
    lines = [
        line.split(":", 2) for line in done.stdout.splitlines() if line.startswith("planted.py") and "error" in line
    ]
    assert {int(line): text.rsplit("[", 1)[1].rstrip("]") for _, line, text in lines} == WRONG, done.stdout
