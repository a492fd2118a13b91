"""One thread a process: pytest-xdist already fills the cores, and OpenMP teams that share them wait for each other."""

import gc
import os
from pathlib import Path

import pytest

for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish():
    """What was imported stays: each stage of training collects garbage, and would look through all of it."""
    gc.freeze()


@pytest.fixture
def few_examples(monkeypatch):
    """Latent heads and switch get fewer examples than in a run that is to teach them anything."""
    from pan_hf.training import pretrain_latent_head, reinforce, rollouts

    monkeypatch.setattr(pretrain_latent_head, "MOST_CONDITIONS", 32)
    monkeypatch.setattr(reinforce, "MOST_BEGINNINGS", 8)
    monkeypatch.setattr(rollouts, "CALIBRATION_WINDOWS", 8)


@pytest.fixture(scope="session")
def miniature(tmp_path_factory) -> Path:
    """The run folder of a quickstart in miniature, made once for all test processes: read it, or copy it."""
    from filelock import FileLock
    from forked import run_pan

    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "miniature"
    run = shared / "runs" / "quickstart"
    with FileLock(f"{shared}.lock"):
        if not (run / "report.html").exists():
            shared.mkdir(exist_ok=True)
            done = run_pan("quickstart", "--miniature", "--backbone", "debug", cwd=shared)
            assert done.returncode == 0, done.said[-3000:]
    return run


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub that huggingface_hub is told of as `HF_ENDPOINT` and the like would, and no waiting between attempts."""
    import huggingface_hub
    from hub_server import hub

    with hub(tmp_path / "hub") as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # made once a process, for the Hub of that time
        address = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "any")
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server
        huggingface_hub.close_session()
