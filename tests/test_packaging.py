"""The four folders are one package, `pan_hf`, wherever it is imported from, and two of them can travel alone."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

import pan_hf

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


def test_a_configuration_reaches_every_file_of_the_model():
    """Transformers keys the code that it has loaded by the files that the configuration reaches. If one were left out,
    the second of two checkpoints that differ in it alone would run the code of the first."""
    reached = {Path(file).name for file in get_relative_import_files(ROOT / "modeling" / "configuration_pan.py")}
    assert reached == {file.name for file in (ROOT / "modeling").glob("*_pan.py")}


def test_travelling_folders_are_flat_and_share_no_file_name():
    for folder in TRAVELLING:
        below = [entry.name for entry in (ROOT / folder).iterdir() if entry.is_dir() and entry.name != "__pycache__"]
        assert below == []
    names = [file.name for file in sources(*TRAVELLING) if file.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.slow
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


# Imports pan_hf from a process that may not speak to anyone; tells CPU-seconds beyond its libraries, and where from.
IMPORT = """
import json, socket, sys, time
def refuse(*_args, **_kwargs): raise AssertionError("importing must not use the network")
socket.socket.connect = socket.getaddrinfo = refuse
import torch, transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
from transformers import BatchFeature, GenerationMixin, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
begun = time.process_time()
import pan_hf
seconds = time.process_time() - begun
read = [name for name, module in sys.modules.items() if name.split(".")[0] == "pan_hf" and hasattr(module, "__file__")]
import importlib.util as util
found = [util.find_spec(f"pan_hf.{name}").origin for name in sys.argv[2:]]
lazy = [name for name in ("datasets", "gymnasium", "matplotlib", "pandas", "peft", "pyarrow") if name in sys.modules]
open(sys.argv[1], "w").write(json.dumps({"seconds": seconds, "read": read, "found": found, "lazy": lazy}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict:
    """What a fresh process tells that imports the checkout, with PYTHONPATH before what an editable install adds."""
    folder = tmp_path_factory.mktemp("imported")
    command = [sys.executable, "-c", IMPORT, str(folder / "told.json"), *sorted(BARE)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "told.json").read_text()) | {"printed": done.stdout + done.stderr}


@pytest.mark.slow
def test_a_checkout_works_uninstalled(imported):
    assert imported["found"] == [str(ROOT / name / "__init__.py") for name in sorted(BARE)]


@pytest.mark.slow
def test_importing_takes_less_than_a_second_beyond_torch_and_transformers(imported):
    """Measured at 0.5 to 0.75 CPU-seconds on a busy core, of which diffusers takes half."""
    assert imported["seconds"] < 1.0
    assert imported["lazy"] == []  # these wait until a command needs them


@pytest.mark.slow
def test_importing_reads_few_files(imported):
    """What travels with a checkpoint, and what registers it; planners and critics are read when they are asked for."""
    assert len(imported["read"]) <= 38, imported["read"]


@pytest.mark.slow
def test_a_name_of_the_package_is_there_when_it_is_asked_for():
    for name in pan_hf.__all__:
        assert getattr(pan_hf, name).__name__ == name


@pytest.mark.slow
def test_importing_prints_nothing_and_asks_nobody(imported):
    assert imported["printed"] == ""


# ---------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a source distribution, and that from a copy of the checkout: what setuptools leaves behind in
    one would end up in the next wheel."""
    copy = tmp_path_factory.mktemp("checkout")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
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
    expected |= {f"pan_hf/training/configs/{file.name}" for file in (ROOT / "training" / "configs").iterdir()}
    expected |= {"pan_hf/py.typed"}
    assert names - information == expected
    (top_level,) = (name for name in information if name.endswith("top_level.txt"))
    assert zipfile.ZipFile(wheel).read(top_level).decode().split() == ["pan_hf"]
    assert any(name.endswith("licenses/LICENSE") for name in information)


# Runs an installed `pan --help`, then makes a report and says where the package is.
RUN = """
import runpy, sys
site, folder, sys.argv = sys.argv[1], sys.argv[2], ["pan", "--help"]
try:
    runpy.run_path(f"{site}/bin/pan", run_name="__main__")
except SystemExit as ended:
    assert not ended.code, ended.code
import pan_hf.data.importing, pan_hf.modeling, pan_hf.reporting.report, pan_hf.tokenization, pan_hf.training
print(pan_hf.reporting.report.write_report(folder), pan_hf.modeling.__file__)
"""


@pytest.mark.slow
def test_the_wheel_installs_and_runs_without_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    done = subprocess.run([*command, str(wheel)], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", RUN, str(site), str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout and "import" in done.stdout
    modeling = site / "pan_hf" / "modeling" / "__init__.py"
    assert done.stdout.split()[-2:] == [str(tmp_path / "report.html"), str(modeling)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "planted", "broken"),
    [
        (None, "", ""),
        ("envs/spaces.py", "def later():\n    from pan_hf.training.pipeline import train\n", "envs.spaces"),
        ("modeling/step_pan.py", "import pan_hf.files\n", "modeling.step_pan"),
        ("data/episodes.py", "from pan_hf.data.trajectories import load_trajectories\n", "circle"),
        ("new_module.py", "", "new_module"),
    ],
)
def test_the_linter_refuses_imports_upwards_and_in_circles(wheel, tmp_path, file, planted, broken):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    if file is not None:
        with (tmp_path / "pan_hf" / file).open("a") as source:
            source.write(f"\n{planted}")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == (file is not None), done.stdout + done.stderr
    assert broken in done.stdout


def test_every_dependency_has_a_lower_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    assert [name for name in project["dependencies"] + extras if ">=" not in name] == [
        "pan_hf[cli,data,envs,report]",
        "pan_hf[all]",
    ]


# ------------------------------------------------------------------------------------------------------- dependencies

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# distributions whose module has another name
MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "gym-pusht": "gym_pusht",
    "faiss-cpu": "faiss",
    "stable-baselines3": "stable_baselines3",
}


def modules_of(requirements: list[str]) -> set[str]:
    names = (re.match(r"[\w.-]+", requirement)[0] for requirement in requirements)
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


CORE = modules_of(PROJECT["dependencies"])
EXTRAS = {name: modules_of(group) - {"pan_hf"} for name, group in PROJECT["optional-dependencies"].items()}


def test_the_core_has_at_most_12_dependencies_and_all_has_the_rest_but_what_few_ask_for():
    assert len(CORE) == len(PROJECT["dependencies"]) <= 12
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == set(EXTRAS) - {
        "agent",
        "all",
        "cache",
        "dev",
        "quantize",
        "ray",
        "rl",
        "tracking",
    }


@pytest.mark.slow
def test_whatever_is_imported_is_declared_and_travels_only_with_the_core():
    for folder in FOLDERS:
        for file in sources(folder):
            known = CORE if folder in TRAVELLING else CORE.union(*(EXTRAS[name] for name in EXTRAS if name != "dev"))
            for line, module, first in imports(file):
                is_known = not first or first in known or first == "pan_hf" or first in sys.stdlib_module_names
                assert is_known, f"{file}:{line} imports {module}, which pyproject.toml does not name"


# With everything but the core blocked: loads a model, imagines and plans; then tells what the uses of extras say.
CORE_ALONE = """
import importlib, json, sys
blocked, uses = json.loads(sys.argv[2]), json.loads(sys.argv[3])
sys.modules |= dict.fromkeys(blocked)
import pan_hf
from transformers import AutoModel, AutoProcessor
from old_data import ask, observation
model, processor = AutoModel.from_pretrained(sys.argv[1]).eval(), AutoProcessor.from_pretrained(sys.argv[1])
assert type(model) is pan_hf.PanModel
processor.attach(model)
assert ask("model", model, processor)["exact"]
belief = model.perceive(**processor(observation=observation(list(model.config.senses), 2), action=[[1]]))
assert len(pan_hf.CEM(num_samples=4, horizon=2, num_iterations=1).plan(model, belief, pan_hf.RewardCritic())) <= 2
told = []
for use in uses:
    try:
        exec(use)
        told.append("nothing")
    except ImportError as error:
        told.append(str(error))
print(json.dumps(told))
"""
USES = {
    "import pan_hf.cli": ("cyclopts", "cli"),
    "sys.modules['rich'] = None; import pan_hf.vocabulary": ("rich", "cli"),
    "from pan_hf.training.arguments import read_config; sys.modules['yaml'] = None; read_config('a.yaml')": (
        "yaml",
        "cli",
    ),
    "import pan_hf.reporting.report": ("jinja2", "report"),
    "[sys.modules.pop(name) for name in ('jinja2', 'markupsafe')]; import pan_hf.reporting.figures": (
        "matplotlib",
        "report",
    ),
    "sys.modules.pop('matplotlib'); sys.modules['psutil'] = None; import pan_hf.reporting.timing": (
        "psutil",
        "report",
    ),
    "from pan_hf.metrics import ssim; ssim(*[pan_hf.metrics.torch.zeros(1, 3, 16, 16)] * 2)": (
        "torchmetrics",
        "report",
    ),
    "from pan_hf import RecordTrajectories": ("gymnasium", "envs"),
    "import pan_hf.envs.minigrid_rooms": ("minigrid", "envs"),
    "from pan_hf.data.importing.frames import frame_rate; frame_rate('a.mp4')": ("av", "data"),
    "from pan_hf.reporting.tracking import check_trackers; check_trackers(['trackio'])": ("trackio", "tracking"),
    "sys.modules.pop('gymnasium'); from pan_hf.agents.stable_baselines import ppo_class; ppo_class()": (
        "stable_baselines3",
        "rl",
    ),
}


@pytest.mark.slow
def test_the_core_alone_imagines_and_plans_and_what_lacks_says_what_to_install():
    """What libraries of the core bring with them (yaml, psutil, rich) is blocked when pan_hf uses it, not before."""
    shared = {"yaml", "psutil", "rich"}
    blocked = set().union(*EXTRAS.values()) - CORE - shared - EXTRAS["dev"]
    command = [sys.executable, "-c", CORE_ALONE, str(ROOT / "tests/data/old/model"), json.dumps(sorted(blocked))]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [*command, json.dumps(list(USES))], env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for (module, extra), told in zip(USES.values(), json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert f"needs {module}: pip install 'pan_hf[{extra}]'" in told
