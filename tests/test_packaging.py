"""The four folders are one package, `pan_hf`, wherever it is imported from, and two of them can travel alone."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"pan_hf": "pan_hf", "modeling": "pan_hf/modeling", "tokenization": "pan_hf/tokenization"}
FOLDERS["training"] = "pan_hf/training"
TRAVELLING = ("modeling", "tokenization")
BARE = {"modeling", "tokenization", "training"}


def imports(file: Path) -> list[tuple[int, str, str]]:
    """(line, module as written with its dots, first part of an absolute name or "") of every import in a file."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, alias.name.split(".")[0]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            first = "" if node.level else (node.module or "").split(".")[0]
            found.append((node.lineno, "." * node.level + (node.module or ""), first))
    return found


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).glob("**/*.py"))]


def test_the_code_knows_the_version_it_is_released_as():
    released = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    source = (ROOT / "modeling" / "configuration_pan.py").read_text()
    assert re.findall(r'^VERSION = "(.*?)"', source, re.MULTILINE) == [released]


# -------------------------------------------------------------------------------------------------------- the folders


@pytest.mark.parametrize("file", sources(*TRAVELLING), ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_travelling_file_imports_only_its_neighbours_and_libraries(file):
    for line, module, first in imports(file):
        assert first not in {"pan_hf", *BARE}, f"{file}:{line} imports {module}; a checkpoint travels without it"
        relative = len(module) - len(module.lstrip("."))
        assert relative <= 1 and module != ".", f"{file}:{line}: only `from .file import name` is copied to the Hub"
        if relative:
            assert (file.parent / f"{module[1:]}.py").exists(), f"{file}:{line}: {module} is not a file of this folder"


def test_travelling_folders_are_flat_and_share_no_file_name():
    for folder in TRAVELLING:
        below = [entry.name for entry in (ROOT / folder).iterdir() if entry.is_dir() and entry.name != "__pycache__"]
        assert below == []
    names = [file.name for file in sources(*TRAVELLING) if file.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("folder", ["pan_hf", "training", "tests"])
def test_no_file_knows_a_folder_by_its_bare_name(folder):
    for file in sources(folder):
        for line, module, first in imports(file):
            assert first not in BARE, f"{file}:{line} imports {module}; write pan_hf.{module}"


@pytest.mark.parametrize(
    ("line", "banned"),
    [
        ("import modeling", True),
        ("from tokenization.vocabulary_pan import Ledger", True),
        ("import training.align", True),
        ("from pan_hf.modeling import PanModel", False),
        ("from pan_hf import training", False),
    ],
)
def test_the_linter_bans_the_bare_names(line, banned):
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "pan_hf/any.py", "-"]
    done = subprocess.run(command, input=f"{line}\n", text=True, capture_output=True, cwd=ROOT, check=False)
    assert ("TID251" in done.stdout) == banned == (done.returncode == 1), done.stdout + done.stderr


def test_a_checkout_works_uninstalled(tmp_path):
    """PYTHONPATH comes before what an editable install adds, so the answer is the checkout's own."""
    code = "import pan_hf, importlib.util as u; print(*(u.find_spec(f'pan_hf.{n}').origin for n in %r), sep='\\n')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code % (sorted(BARE),)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.stdout.split() == [str(ROOT / name / "__init__.py") for name in sorted(BARE)], done.stderr


# ---------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy: what setuptools leaves behind in a checkout would end up in the next wheel."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (copy / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_has_every_module_and_claims_only_pan_hf(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    information = {name for name in names if name.split("/")[0].endswith(".dist-info")}
    expected = {f"{FOLDERS[f]}/{file.relative_to(ROOT / f)}" for f in FOLDERS for file in sources(f)}
    expected |= {f"pan_hf/templates/{file.name}" for file in (ROOT / "pan_hf" / "templates").iterdir()}
    expected |= {"pan_hf/py.typed"}
    assert names - information == expected
    (top_level,) = (name for name in information if name.endswith("top_level.txt"))
    assert zipfile.ZipFile(wheel).read(top_level).decode().split() == ["pan_hf"]
    assert any(name.endswith("licenses/LICENSE") for name in information)


@pytest.mark.slow
def test_the_wheel_runs_without_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import pan_hf.report, pan_hf.modeling, pan_hf.tokenization, pan_hf.training, sys;"
        "print(pan_hf.report.write_report(sys.argv[1]), pan_hf.modeling.__file__)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    modeling = tmp_path / "site" / "pan_hf" / "modeling" / "__init__.py"
    assert done.stdout.split() == [str(tmp_path / "report.html"), str(modeling)]


def test_every_dependency_has_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    assert [name for name in project["dependencies"] + extras if ">=" not in name] == ["pan_hf[agent,data,envs]"]
