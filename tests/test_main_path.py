"""How much of the code one has to read to follow one call."""

import ast
import sys
from pathlib import Path

import pytest
from tiny_worlds import acts, observe, world_model
from transformers.dynamic_module_utils import get_relative_import_files

ROOT = Path(__file__).resolve().parent.parent
OURS = ("modeling", "tokenization", "pan_hf", "training")
MOST_READ, MOST_SHIPPED = 22, 30


def files_run(function) -> set[Path]:
    """Our files of which some function is entered during a call."""
    files = set()

    def note(frame, event, _):
        if event == "call":
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    inside = [Path(name) for name in files if Path(name).is_relative_to(ROOT)]
    return {path for path in inside if path.relative_to(ROOT).parts[0] in OURS}


@pytest.mark.slow
@pytest.mark.parametrize("effort", [None, "all", "auto"])
def test_one_simulate_call_is_followed_in_few_files(effort):
    model = world_model(("camera", "touch", "heard", "mission"))
    belief, actions = model.perceive(observe(model, 2)), acts(model, 2, 2)
    files = files_run(lambda: model.simulate(belief, actions, seed=0, effort=effort).decode("camera"))
    assert ROOT / "modeling" / "step_pan.py" in files
    assert len(files) <= MOST_READ, sorted(path.name for path in files)


def test_a_checkpoint_ships_few_files():
    roots = [ROOT / "modeling" / "modeling_pan.py", ROOT / "tokenization" / "processing_pan.py"]
    shipped = {Path(name).name for root in roots for name in [root, *get_relative_import_files(root)]}
    assert "step_pan.py" in shipped and len(shipped) <= MOST_SHIPPED, sorted(shipped)


@pytest.mark.parametrize("file", sorted((ROOT / "modeling").glob("*.py")), ids=lambda file: file.name)
def test_no_function_imports_a_file_of_ours(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef):
            inside = [each for each in ast.walk(node) if isinstance(each, ast.ImportFrom)]
            assert not [each for each in inside if each.level], f"{file.name}: {node.name} imports"
