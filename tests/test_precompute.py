"""`pan precompute` and `pan cache`, on the recorded board with an untrained model."""

import json
import os
import shutil
import signal
import socket
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from forked import is_gone, run_forked
from PIL import Image
from test_imagine import policy_of
from tiny_worlds import board_world

from pan_hf import cli
from pan_hf.agents.cache import Answer, SimulationCache
from pan_hf.agents.cache_scope import scope_of
from pan_hf.agents.cache_store import CacheStore, OutcomeRow, StateRow
from pan_hf.agents.critics import RewardCritic
from pan_hf.checkpoints import load, save_checkpoint
from pan_hf.evaluation import imaginers
from pan_hf.evaluation import precompute as precomputing
from pan_hf.evaluation.cache_dataset import _check_files, export_cache, import_cache
from pan_hf.evaluation.cache_summary import cache_summary, coverage_growth, describe_cache
from pan_hf.evaluation.imaginers import Imaginer
from pan_hf.evaluation.precompute import _Filler, precompute

# an untrained model imagines rewards around nothing, so that some steps are goals
GOAL = {"critic": RewardCritic(threshold=0.1)}


@pytest.fixture(scope="module")
def board(tmp_path_factory):
    """A run folder with a recording and an untrained checkpoint, and a cache of a few of its states."""
    folder = tmp_path_factory.mktemp("board")
    world = board_world(folder)
    world.cache = folder / "cache"
    world.told = precompute(world.model, world.data, cache=world.cache, frames=8, depth=1, progress=False, **GOAL)
    return world


def content(folder):
    """What is in a cache, in a form that does not depend on the order of writing."""
    rows = CacheStore(folder).query(
        "SELECT s.raw, o.action, n.raw, o.count, o.reward, o.continue_prob, o.duration FROM outcomes o "
        "JOIN states s ON s.node=o.state JOIN states n ON n.node=o.next"
    )
    return {(*row[:4], round(row[4], 3), round(row[5], 3), row[6]) for row in rows}


def test_every_action_is_imagined_once_from_every_state_that_is_met(board):
    store = CacheStore(board.cache)
    done = store.query("SELECT node FROM states WHERE is_expanded=1")
    for (node,) in done:
        actions = store.query("SELECT COUNT(DISTINCT action), COUNT(*) FROM outcomes WHERE state=?", (node,))
        assert actions == [(5, 5)]
    assert board.told["entries"] == 5 * len(done) == board.told["new_entries"] == len(content(board.cache))


@pytest.mark.slow
def test_states_are_found_again_as_an_agent_perceives_them(board):
    told = describe_cache(board.model, board.data, cache=board.cache, split="train", samples=1000, **GOAL)
    answered = told["coverage"]
    assert 0 < answered <= 1 and set(told["covered"]) <= {"exact", "present", "levels=1", "neighbours"}
    assert told["stale"] == 0.0 and told["entries"] == board.told["entries"] and told["bytes"] > 10_000


@pytest.mark.slow
def test_a_second_run_has_nothing_left_to_do_and_a_deeper_one_goes_on(board, monkeypatch, tmp_path):
    asked, imagine = [], Imaginer.imagine
    monkeypatch.setattr(Imaginer, "imagine", lambda self, states: asked.extend(states) or imagine(self, states))
    shutil.copytree(board.cache, tmp_path / "cache")
    where = {"cache": tmp_path / "cache", "frames": 8, "progress": False, **GOAL}
    again = precompute(board.model, board.data, depth=1, **where)
    assert not asked and again["new_entries"] == 0 and again["entries"] == board.told["entries"]
    precompute(board.model, board.data, depth=2, **where)
    done = {node for (node,) in CacheStore(board.cache).query("SELECT node FROM states WHERE is_expanded=1")}
    nodes = [node for node, _ in asked]
    assert nodes and len(set(nodes)) == len(nodes) and not done & set(nodes)


@pytest.mark.slow
def test_it_ends_at_its_bound_and_says_so(board, tmp_path, capsys):
    told = precompute(board.model, board.data, cache=tmp_path, frames=8, depth=5, max_entries=20, **GOAL)
    assert told["entries"] >= 20 and told["states"] < 100
    assert "the limit is reached" in capsys.readouterr().err


def test_entries_of_other_weights_do_not_count_for_the_bound(board, tmp_path):
    store, node = CacheStore(tmp_path), b"n" * 16
    space, _ = store.add_space(scope_of(None, "before it was trained again"))
    entries = [OutcomeRow(node, bytes([index]), node, 1, 0.0, 1.0, 0.0, 1) for index in range(50)]
    store.write(space, 0, [StateRow([node], b"raw", 3, b"", None)], entries)
    told = precompute(board.model, board.data, cache=tmp_path, frames=4, depth=1, max_entries=20, **GOAL)
    assert told["new_entries"] > 0 and told["entries"] == 50 + told["new_entries"]


@pytest.mark.slow
def test_where_there_is_no_goal_a_planner_plans_from_the_recorded_states(board, tmp_path):
    settings = {"planner": "cem?num_samples=4&horizon=3&num_iterations=1", "reward_threshold": 1e9}
    told = precompute(board.model, board.data, cache=tmp_path, frames=2, progress=False, **settings)
    assert 2 <= told["states"]
    with pytest.raises(ValueError, match="Unknown planner 'astar'"):
        precompute(board.model, board.data, cache=tmp_path / "no", planner="astar", progress=False)
    assert not (tmp_path / "no").exists()


def test_whether_there_is_a_goal_is_asked_of_the_chosen_environments(board, tmp_path, monkeypatch):
    def begin(*given):
        raise RuntimeError(f"the planner is {given[5]}")

    goals = {"Goal-v0": 0.5, "Endless-v0": float("inf")}
    monkeypatch.setattr(precomputing, "load_trajectories", lambda *_: SimpleNamespace(environments=list(goals)))
    monkeypatch.setattr(precomputing, "recorded_facts", lambda _: goals)
    monkeypatch.setattr(precomputing, "reward_critic", lambda goal, _: RewardCritic(threshold=goal))
    monkeypatch.setattr(precomputing, "_Filler", begin)
    for chosen, planner in ((["Goal-v0"], None), (None, "cem")):
        with pytest.raises(RuntimeError, match=f"the planner is {planner}"):
            precompute(board.model, board.data, cache=tmp_path, environments=chosen)


@pytest.mark.slow
def test_two_workers_give_the_same_content_as_one(board, tmp_path):
    precompute(board.model, board.data, cache=tmp_path, frames=8, depth=1, workers=2, progress=False, **GOAL)
    assert content(tmp_path) == content(board.cache)


@pytest.mark.slow
def test_what_was_killed_goes_on_where_it_was(board, tmp_path):
    def kill_within():
        keep = _Filler._keep

        def keep_and_be_killed(self, done):
            keep(self, done)
            if self.entries > 15:
                os.kill(os.getpid(), signal.SIGKILL)

        _Filler._keep, precomputing._STATES = keep_and_be_killed, 2
        precompute(board.model, board.data, cache=tmp_path / "cache", frames=8, depth=1, progress=False, **GOAL)

    assert run_forked(kill_within, tmp_path).returncode == -signal.SIGKILL
    kept = CacheStore(tmp_path / "cache")
    assert kept.counters()["entries"] >= 10
    kept.check()
    told = precompute(board.model, board.data, cache=tmp_path / "cache", frames=8, depth=1, progress=False, **GOAL)
    assert content(tmp_path / "cache") == content(board.cache) and told["new_entries"] < board.told["entries"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are not listed in /proc")
def test_workers_end_with_what_was_killed(board, tmp_path):
    def kill_within():
        def kill(submit, *_):
            pool = submit.func.__self__
            pool.submit(int).result()  # a worker has begun
            (tmp_path / "processes").write_text(" ".join(map(str, pool._processes)))
            os.kill(os.getpid(), signal.SIGKILL)

        imaginers._in_turn = kill
        precompute(board.model, board.data, cache=tmp_path / "cache", workers=2, progress=False, **GOAL)

    assert run_forked(kill_within, tmp_path).returncode == -signal.SIGKILL
    assert all([is_gone(int(process)) for process in (tmp_path / "processes").read_text().split()])


class FakeRay(ModuleType):
    """Ray as far as `pan precompute` asks it; its workers are in this process."""

    exceptions = SimpleNamespace(RayTaskError=type("RayTaskError", (Exception,), {}), RayError=OSError)

    def __init__(self):
        super().__init__("ray")
        self.addresses, self.killed, self.shut = [], [], []

    def is_initialized(self):
        return False

    def init(self, address, **_):
        if address == "auto":
            raise ConnectionError("Could not find any running Ray instance.")
        self.addresses.append(address)

    def remote(self, num_cpus):
        return lambda kind: SimpleNamespace(remote=lambda *given: _FakeWorker(kind(*given)))

    def kill(self, worker):
        self.killed.append(worker)

    def shutdown(self):
        self.shut.append(True)


class _FakeWorker:
    def __init__(self, worker):
        self.worker = worker
        self.imagine = SimpleNamespace(remote=lambda states: SimpleNamespace(future=lambda: self._future(states)))

    def _future(self, states):
        future = Future()
        try:
            future.set_result(self.worker.imagine(states))
        except ValueError as cause:
            error = FakeRay.exceptions.RayTaskError()
            error.cause = cause
            future.set_exception(error)
        return future


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_workers_of_a_cluster_give_the_same_content_and_do_no_work_twice(board, tmp_path, ray, monkeypatch):
    asked, imagine = [], Imaginer.imagine
    monkeypatch.setattr(Imaginer, "imagine", lambda self, states: asked.extend(states) or imagine(self, states))
    where = {"cache": tmp_path, "frames": 8, "depth": 1, "workers": 2, "ray": True, "progress": False}
    told = precompute(board.model, board.data, **where, **GOAL)
    assert content(tmp_path) == content(board.cache) and told["entries"] == board.told["entries"]
    assert len({node for node, _ in asked}) == len(asked)
    assert (ray.addresses, len(ray.killed), ray.shut) == ([None], 2, [True])


def test_what_a_worker_of_a_cluster_raises_is_told(board, tmp_path, ray, monkeypatch):
    def fail(self, states):
        raise ValueError("too dark to imagine")

    monkeypatch.setattr(Imaginer, "imagine", fail)
    with pytest.raises(ValueError, match="too dark"):
        precompute(board.model, board.data, cache=tmp_path, frames=4, ray="local", progress=False, **GOAL)
    assert ray.shut


def test_a_cluster_that_is_not_there_is_told_at_once(board, tmp_path, ray):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        places = ["auto", f"127.0.0.1:{free.getsockname()[1]}", f"ray://127.0.0.1:{free.getsockname()[1]}"]
        for place in places:
            with pytest.raises(OSError, match=f"no Ray cluster at {place}.*ray start --head"):
                precompute(board.model, board.data, cache=tmp_path, frames=4, ray=place, progress=False, **GOAL)
    assert not ray.addresses


def test_without_ray_the_line_that_installs_it_is_told(board, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'pan_hf\[ray\]'"):
        precompute(board.model, board.data, cache=tmp_path, frames=4, ray=True, progress=False, **GOAL)


def test_steps_that_take_seconds_keep_the_time_limit_and_show_progress(board, tmp_path, monkeypatch, capsys):
    now, imagine = [0.0], Imaginer.imagine
    clock = SimpleNamespace(perf_counter=lambda: now[0])

    def slowly(self, states):
        now[0] += 3.0 * len(states)
        return replace(imagine(self, states), seconds=3.0 * len(states))

    for module in (precomputing, imaginers):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Imaginer, "imagine", slowly)
    monkeypatch.setattr("pan_hf.console.ELSEWHERE", 0.0)
    told = precompute(board.model, board.data, cache=tmp_path, frames=60, depth=9, time_limit=40, **GOAL)
    assert told["entries"] > 0 and 40 <= told["seconds"] <= 44
    said = capsys.readouterr().err
    assert "recorded states" in said and said.count("round 1 of 9") >= 10


# --- Along a policy


@pytest.fixture(scope="module")
def policy(board, tmp_path_factory):
    """The folder of an untrained policy, and the policy."""
    model, _ = load(board.model)
    policy = policy_of(SimpleNamespace(model=model))
    policy.save(folder := tmp_path_factory.mktemp("policy") / "policy")
    return SimpleNamespace(folder=folder, policy=policy, model=model)


def visited(policy, keys, raws, steps, critic):
    """The whole keys of the states that a policy goes through, its likeliest way, by the model itself."""
    met = set(raws)
    for raw in raws:
        for _ in range(steps):
            belief = keys.belief([raw])
            futures = policy.model.simulate(belief, policy.policy.act(belief)[:, None], temperature=0.0)
            is_goal = critic.reached(futures, critic.score(futures))
            if is_goal[0, 0] or futures.continue_prob[0, 0] < 0.5:
                break
            raw = futures.keys()[0][0]
            met.add(raw)
    return met


def test_every_action_is_imagined_from_what_a_policy_visits(board, policy, tmp_path, monkeypatch):
    where = {"cache": tmp_path, "frames": 8, "depth": 1, "policy": policy.folder, "policy_steps": 4}
    told = precompute(board.model, board.data, progress=False, **where, **GOAL)
    cache = SimulationCache(tmp_path)
    keys = cache.bind(policy.model, GOAL["critic"]).keys
    expanded = "SELECT raw FROM states WHERE is_expanded=1"
    roots = [raw for (raw,) in CacheStore(board.cache).query(expanded)]
    assert (
        {raw for (raw,) in cache.store.query(expanded)} == visited(policy, keys, roots, 3, GOAL["critic"]) > set(roots)
    )
    monkeypatch.setattr(Imaginer, "imagine", lambda *_: pytest.fail("nothing is left to do"))
    again = precompute(board.model, board.data, progress=False, **where, **GOAL)
    assert again["new_entries"] == 0 and again["entries"] == told["entries"]


def test_where_a_planner_plans_what_a_policy_does_is_kept_and_planned_from(board, policy, tmp_path):
    where = {"cache": tmp_path, "frames": 6, "policy": policy.folder, "policy_steps": 2, "progress": False}
    critic = RewardCritic(threshold=1e9)
    planner = "cem?num_samples=4&horizon=2&num_iterations=1"
    precompute(board.model, board.data, planner=planner, critic=critic, **where)
    cache = SimulationCache(tmp_path)
    keys, ask = cache.bind(policy.model, critic).keys, cache.store.query
    planned = {raw for (raw,) in ask("SELECT raw FROM states WHERE is_expanded=1")}
    roots = [raw for (raw,) in ask("SELECT raw FROM states ORDER BY id LIMIT 6")]
    assert planned == visited(policy, keys, roots, 1, critic)
    for raw in roots:
        action = keys.of_actions(policy.policy.act(keys.belief([raw])))[0]
        assert ask("SELECT 1 FROM outcomes o JOIN states s ON s.node=o.state WHERE raw=? AND action=?", (raw, action))


def test_a_policy_of_another_model_or_none_is_refused_before_anything_is_made(board, policy, tmp_path):
    (tmp_path / "policy").mkdir()
    for folder, error in ((tmp_path, FileNotFoundError), (tmp_path / "policy", FileNotFoundError)):
        with pytest.raises(error, match="No policy in"):
            precompute(board.model, board.data, cache=tmp_path / "cache", policy=folder, progress=False, **GOAL)
    described = json.loads((policy.folder / "policy.json").read_text())
    policy.policy.save(tmp_path / "policy")
    (tmp_path / "policy" / "policy.json").write_text(json.dumps(described | {"num_outputs": 3}))
    with pytest.raises(ValueError, match="Take the model that it was trained in"):
        where = {"cache": tmp_path / "cache", "policy": tmp_path / "policy"}
        precompute(board.model, board.data, progress=False, **where, **GOAL)
    assert not (tmp_path / "cache").exists()


def test_a_critic_that_no_worker_can_be_handed_is_refused(board, tmp_path):
    wanted = lambda futures: futures.reward  # noqa: E731  a function without a name that another process could import
    with pytest.raises(ValueError, match="use one worker"):
        precompute(board.model, board.data, cache=tmp_path, critic=wanted, workers=2, progress=False)


@pytest.mark.slow
def test_the_graph_of_abstract_states_is_drawn_for_the_report(board, tmp_path):
    told = describe_cache(board.model, board.data, cache=board.cache, samples=3, pictures=tmp_path, **GOAL)
    with Image.open(told["picture"]) as picture:
        assert picture.size[0] > 400 and picture.convert("L").getextrema()[0] < 200
    about = json.loads((tmp_path / "cache.json").read_text())
    assert "finer codes, and the earlier steps" in about["caption"]


def test_coverage_grows_with_entries_to_what_it_is_now(board, tmp_path):
    told = describe_cache(
        board.model, board.data, cache=board.cache, split="train", samples=30, pictures=tmp_path, **GOAL
    )
    growth = told["growth"]
    curves = np.array(list(growth["levels"].values()))
    assert growth["entries"][0] == 0 and growth["entries"][-1] == told["entries"]
    assert (curves[:, 0] == 0).all() and (np.diff(curves) >= 0).all() and (np.diff(curves) > 0).any()
    assert curves[:, -1].sum() == pytest.approx(told["coverage"]) and told["coverage"] > 0
    assert dict(zip(growth["levels"], curves[:, -1], strict=True)) == pytest.approx(told["covered"])
    with Image.open(tmp_path / "cache_growth.png") as picture:
        assert picture.size[0] > 400
    assert "with the older half of the entries" in cache_summary(told)


def test_an_answer_whose_entries_were_evicted_counts_from_the_beginning(board):
    answer = Answer("levels=1", b"", 1.0, 1.0, 0.0, None, b"forgotten")
    told = coverage_growth(SimulationCache(board.cache), [answer, None])
    assert told["coverage"] == 0.5 and told["growth"]["levels"]["levels=1"][:2] == [0.0, 0.5]


# --- As a data set


def test_a_data_set_whose_metadata_is_nested_without_end_is_damaged(tmp_path):
    paths = [tmp_path / name for name in ("outcomes.parquet", "planned.parquet")]
    for path in paths:
        pq.write_table(pa.table({"state": [b""]}).replace_schema_metadata({"pan": "[" * 100_000}), path)
    with pytest.raises(ValueError, match="is damaged"):
        _check_files(paths, None)


@pytest.mark.slow
def test_what_is_exported_and_imported_is_the_same_and_once(board, tmp_path):
    export_cache(board.model, tmp_path / "set", cache=board.cache)
    assert pq.read_table(tmp_path / "set" / "outcomes.parquet").num_rows == board.told["entries"]
    assert import_cache(board.model, tmp_path / "set", cache=tmp_path / "cache") == board.told["entries"]
    assert content(tmp_path / "cache") == content(board.cache)
    assert import_cache(board.model, tmp_path / "set", cache=tmp_path / "cache") == 0
    assert content(tmp_path / "cache") == content(board.cache)
    expanded = "SELECT COUNT(*) FROM states WHERE is_expanded=1"
    assert CacheStore(tmp_path / "cache").query(expanded) == CacheStore(board.cache).query(expanded)
    model, _ = load(board.model)
    taken, own = (SimulationCache(folder) for folder in (tmp_path / "cache", board.cache))
    assert taken.back_up(model, GOAL["critic"]) == own.back_up(model, GOAL["critic"])
    values = "SELECT value, reach FROM worth WHERE value IS NOT NULL ORDER BY value, reach"
    both = [torch.tensor(each.store.query(values)) for each in (taken, own)]
    torch.testing.assert_close(*both)


@pytest.mark.slow
def test_a_data_set_of_other_weights_or_damaged_is_refused_and_changes_nothing(board, tmp_path):
    export_cache(board.model, tmp_path / "set", cache=board.cache)
    model, processor = load(board.model)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    save_checkpoint(tmp_path / "other", model, processor)
    with pytest.raises(ValueError, match="holds for other weights"):
        import_cache(tmp_path / "other", tmp_path / "set", cache=tmp_path / "cache")
    with pytest.raises(ValueError, match="nothing to export"):
        export_cache(tmp_path / "other", tmp_path / "none", cache=board.cache)
    path = tmp_path / "set" / "planned.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged"):
        import_cache(board.model, tmp_path / "set", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists() and not (tmp_path / "none").exists()
    told = describe_cache(tmp_path / "other", board.data, cache=board.cache, samples=5)
    assert told["stale"] == 1.0 and "coverage" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("reward", [float("nan")]),
        ("reward", [0.0, 0.0]),
        ("reward", None),
        ("continue_prob", 1.5),
        ("duration", 0),
        ("action", b"\0\0\0\1"),
        ("action", b""),
        ("state", b"\0\0\0\1" * 30),
    ],
)
def test_rows_of_a_data_set_that_no_cache_wrote_are_refused(board, tmp_path, column, value):
    export_cache(board.model, tmp_path / "set", cache=board.cache)
    path = tmp_path / "set" / "outcomes.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[3][column] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    with pytest.raises(ValueError, match="is damaged|not of this world"):
        import_cache(board.model, tmp_path / "set", cache=tmp_path / "cache")
    assert CacheStore(tmp_path / "cache").counters().get("entries", 0) == 0


@pytest.mark.slow
@pytest.mark.parametrize("about", [[], {"rows": [[3]]}, {"digest": None}, {"version": 2}])
def test_a_data_set_that_says_nonsense_of_itself_is_refused(board, tmp_path, about):
    export_cache(board.model, tmp_path / "set", cache=board.cache)
    for path in (tmp_path / "set").iterdir():
        table = pq.read_table(path)
        told = json.loads(table.schema.metadata[b"pan"]) | about if isinstance(about, dict) else about
        pq.write_table(table.replace_schema_metadata({"pan": json.dumps(told)}), path)
    with pytest.raises(ValueError, match="expected"):
        import_cache(board.model, tmp_path / "set", cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_after_growth_the_share_of_outcomes_that_differ_is_measured(board, tmp_path):
    model, processor = load(board.model)
    model.grow("action.0", ["jump"])
    save_checkpoint(tmp_path / "grown", model, processor)
    told = describe_cache(tmp_path / "grown", board.data, cache=board.cache, samples=0, check=20)
    assert told["stale"] == 0.0 and told["differing"] == 0.0  # a new action changes no outcome of the old ones


# --- From a shell


@pytest.mark.slow
def test_pan_cache_says_what_is_there(board, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(board.model), "--data", str(board.data), "--cache", str(board.cache)]
    cli.app(["cache", *words, "--samples", "5", "--check", "5", "--reward-threshold", "0.3"])
    said = capsys.readouterr().out
    assert f"{board.told['entries']} entries" in said and "stale: 0 entries (0%)" in said
    assert "of recorded states" in said and "0.0% of the checked outcomes differ" in said
    cli.app(["cache", *words, "--export", str(tmp_path / "set")])
    assert sorted(path.name for path in Path(tmp_path / "set").iterdir()) == ["outcomes.parquet", "planned.parquet"]
    with pytest.raises(FileNotFoundError, match="No simulation cache"):
        cli.app(["cache", *words[:-1], str(tmp_path / "none")])


def test_a_summary_says_when_nobody_has_looked_yet():
    told = {"entries": 0, "states": 0, "bytes": 0, "stale_entries": 0, "stale": 0.0, "hit_rate": None, "hits": {}}
    assert "no look-up yet" in cache_summary(told)


def test_bad_arguments_are_told_before_anything_is_made(board, tmp_path):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="frames: expected at least 1"):
        precompute(board.model, board.data, cache=tmp_path / "cache", frames=0)
    with pytest.raises(ValueError, match="not in the recording's train split"):
        precompute(board.model, board.data, cache=tmp_path / "cache", environments=["Other-v0"], progress=False)
    assert not (tmp_path / "cache").exists() and time.perf_counter() - start < 60
