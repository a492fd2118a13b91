"""A simulation cache on a Hub: pushed as a data set with its card, copied and checked before anything is looked up."""

import json
import shutil

import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import DatasetCard
from test_precompute import GOAL, content
from tiny_worlds import board_world

from pan_hf import cli
from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.world import parse_effort
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.evaluation.cache_dataset import cache_folder, import_cache
from pan_hf.evaluation.cache_summary import describe_cache
from pan_hf.evaluation.control import plan
from pan_hf.evaluation.precompute import precompute
from pan_hf.hub import HubError
from pan_hf.modeling.effort_pan import Effort
from pan_hf.publishing.push_cache import effort_text, push_cache


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a recording, an untrained checkpoint, and a cache of a few of its states."""
    folder = tmp_path_factory.mktemp("board")
    board_world(folder)
    (folder / "model").rename(folder / "checkpoint")
    precompute(folder, folder / "data", frames=8, depth=1, progress=False, **GOAL)
    return folder


@pytest.fixture
def other(run, tmp_path):
    """A run folder with the same checkpoint and no cache."""
    shutil.copytree(run / "checkpoint", tmp_path / "other" / "checkpoint")
    return tmp_path / "other"


def test_a_cache_is_one_commit_of_two_files_and_a_card_that_tells_what_they_hold(run, server):
    commit = push_cache(run, "user/cache", license="mit")
    assert (
        len(server.commits("user/cache", "datasets")) == 2
        and server.commits("user/cache", "datasets")[1] == commit.oid
    )
    files = set(server.files("user/cache", "datasets")) - {".gitattributes"}
    assert files == {"README.md", "outcomes.parquet", "planned.parquet"}
    card = DatasetCard((server.root / "datasets" / "user/cache" / commit.oid / "README.md").read_text())
    about = card.data.to_dict()
    assert about["license"] == "mit" and [each["config_name"] for each in about["configs"]] == ["outcomes", "planned"]
    entries = SimulationCache(run / "cache").store.counters()["entries"]
    assert f"{entries} outcomes" in card.text and "of the model's recording" in card.text
    assert "--cache user/cache" in card.text
    push_cache(run, "user/cache", license="mit")  # nothing new, no commit
    assert len(server.commits("user/cache", "datasets")) == 2


def test_a_cache_of_an_effort_is_pushed_and_taken_for_that_effort(run, other, server, tmp_path):
    shutil.copytree(run / "checkpoint", tmp_path / "run" / "checkpoint")
    told = precompute(tmp_path / "run", run / "data", frames=4, depth=1, effort="focused", progress=False, **GOAL)
    with pytest.raises(ValueError, match="at effort None"):
        push_cache(tmp_path / "run", "user/focused")
    commit = push_cache(tmp_path / "run", "user/focused", effort="focused")
    card = (server.root / "datasets" / "user/focused" / commit.oid / "README.md").read_text()
    assert card.count("--cache user/focused --effort focused") == 2
    with pytest.raises(ValueError, match="another effort"):
        import_cache(other, "user/focused")
    assert import_cache(other, "user/focused", effort="focused") == told["entries"] > 0


@pytest.mark.parametrize("text", ["focused", "camera.0,camera.1", "price=0.1,task=planning", "least_change=none"])
def test_a_card_names_an_effort_as_a_shell_takes_it(text):
    assert parse_effort(effort_text(parse_effort(text))) == parse_effort(text)


def test_a_card_names_an_effort_that_was_made_in_python():
    assert effort_text(Effort()) == "auto" and effort_text(Effort(["camera.0"])) == "camera.0"
    assert effort_text(None) is None


def test_a_hub_id_stands_where_a_cache_folder_does_and_is_copied_once(run, other, server, monkeypatch, capsys):
    commit = push_cache(run, "user/cache")
    model, _ = load(other)
    place = cache_folder(other, "user/cache", None, model)
    assert place == other / "caches" / f"user--cache@{commit.oid[:12]}" and content(place) == content(run / "cache")
    monkeypatch.setattr("pan_hf.evaluation.cache_dataset._import", lambda *_: pytest.fail("it is there"))
    assert cache_folder(other, "user/cache", None, model) == place
    monkeypatch.undo()


@pytest.mark.slow
def test_agents_plan_by_a_cache_of_a_hub_and_leave_what_was_downloaded_as_it_was(run, other, server):
    commit = push_cache(run, "user/cache")
    where = {"episodes": 1, "max_steps": 2, "planners": "cem?num_samples=2&horizon=2&num_iterations=1"}
    plan(other, run / "data", cache="user/cache", progress=False, **where, **GOAL)
    copy = SimulationCache(other / "caches" / f"user--cache@{commit.oid[:12]}")
    model, _ = load(other)
    assert copy.is_valued(model, GOAL["critic"])  # whoever pushed it sent no values
    asked = copy.store.counters()
    assert asked.get("miss", 0) + sum(count for name, count in asked.items() if name.startswith("hit ")) > 0


@pytest.mark.slow
def test_a_cache_of_a_hub_is_described_filled_and_imported(run, other, server, capsys):
    push_cache(run, "user/cache")
    told = describe_cache(other, run / "data", cache="user/cache", samples=5, **GOAL)
    assert told["stale"] == 0.0 and told["entries"] == SimulationCache(run / "cache").store.counters()["entries"]
    more = precompute(
        other,
        run / "data",
        cache="hf://datasets/user/cache",
        frames=8,
        depth=2,
        max_entries=60,
        progress=False,
        **GOAL,
    )
    assert more["entries"] > told["entries"] and content(run / "cache") < content(next((other / "caches").iterdir()))
    assert import_cache(other, "user/cache") == told["entries"]
    assert content(other / "cache") == content(run / "cache")
    cli.app(["cache", "--run", str(other), "--data", str(run / "data"), "--cache", "user/cache", "--samples", "3"])
    assert f"{more['entries']} entries" in capsys.readouterr().out


@pytest.mark.slow
def test_a_cache_of_other_weights_or_a_damaged_one_is_refused_and_nothing_is_kept(run, other, server, tmp_path):
    commit = push_cache(run, "user/cache")
    model, processor = load(other)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    save_checkpoint(tmp_path / "trained" / "checkpoint", model, processor)
    with pytest.raises(ValueError, match="holds for other weights"):
        cache_folder(tmp_path / "trained", "user/cache", None, model)
    path = server.root / "datasets" / "user/cache" / commit.oid / "outcomes.parquet"
    table = pq.read_table(path)
    path.write_bytes(b"")
    pq.write_table(table.replace_schema_metadata({"pan": json.dumps({"format": "another"})}), path)
    shutil.rmtree(tmp_path / "cache")  # what was downloaded
    with pytest.raises(ValueError, match="expected files of one cache"):
        cache_folder(other, "user/cache", None, load(other)[0])
    assert not list((other / "caches").iterdir()) and not list((tmp_path / "trained" / "caches").iterdir())


def test_what_a_hub_does_not_give_is_told(run, other, server, monkeypatch):
    with pytest.raises(HubError, match="There is no such repository"):
        plan(other, run / "data", cache="user/none", progress=False, **GOAL)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push_cache(run, "user/cache")


def test_what_is_wrong_here_is_found_before_anything_is_sent(run, other, server):
    with pytest.raises(FileNotFoundError, match="No simulation cache"):
        push_cache(other, "user/cache")
    with pytest.raises(ValueError, match="push the checkpoint first"):
        push_cache(run, "user/cache", model=str(run))
    with pytest.raises(ValueError, match="one after the other"):
        cli.app(["push", "--run", str(run), "--repo", "user/cache", "--cache", "--data"])
    with pytest.raises(ValueError, match="give --cache with it"):
        cli.app(["push", "--run", str(run), "--repo", "user/cache", "--model", "user/pan"])
    assert not server.commits("user/cache", "datasets")
