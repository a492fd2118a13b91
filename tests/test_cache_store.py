"""The file of a simulation cache: bounds, damage, strangers, a full disk, and several processes at once."""

import multiprocessing
import sqlite3
import warnings
from contextlib import closing

import pytest
from mazes import MAZE, GridWorld
from test_cache import CRITIC, fill, follow

from pan_hf.agents.cache import SimulationCache
from pan_hf.agents.cache_recorder import Recorded
from pan_hf.agents.cache_scope import scope_of
from pan_hf.agents.cache_store import FILE, CacheStore, OutcomeRow, StateRow
from pan_hf.agents.graph_search import GraphSearch


def test_a_bound_on_entries_forgets_what_was_of_no_use_for_longest(tmp_path):
    world = GridWorld(MAZE.replace("G", "."))
    cache = SimulationCache(tmp_path, scope="maze", max_entries=60)
    fill(cache, world, planner=GraphSearch(max_states=5, batch_size=1, sampled_searches=0))
    first = cache.store.counters()["entries"]
    fill(cache, world, planner=GraphSearch(sampled_searches=0))
    counts = cache.store.counters()
    assert first < 60 and 50 <= counts["entries"] <= 60
    assert counts["entries"] == cache.store.query("SELECT COUNT(*) FROM outcomes")[0][0]
    assert counts["states"] == cache.store.query("SELECT COUNT(*) FROM states")[0][0]
    lost = "SELECT COUNT(*) FROM outcomes WHERE state NOT IN (SELECT node FROM states)"
    lost += " OR next NOT IN (SELECT node FROM states)"
    assert cache.store.query(lost)[0][0] == 0


def test_a_state_is_noted_as_done_when_the_plan_from_it_is_there(tmp_path, monkeypatch):
    def kill(*_):
        raise OSError("killed")

    world, cache = GridWorld("S.G"), SimulationCache(tmp_path, scope="maze")
    recorded = Recorded(world, cache.bind(world, CRITIC).keys, CRITIC)
    recorded.keep_plan(world.root(), GraphSearch().plan(recorded, world.root(), CRITIC))
    monkeypatch.setattr(CacheStore, "write_planned", kill)
    with pytest.raises(OSError, match="killed"):
        cache.write(world, CRITIC, recorded, expanded=list(recorded.states))
    assert cache.store.query("SELECT COUNT(*) FROM states WHERE is_expanded=1") == [(0,)]


def test_those_of_other_weights_go_first_and_the_oldest_are_found_by_an_index(tmp_path):
    world = GridWorld()
    for name in ("one", "two"):
        fill(SimulationCache(tmp_path, scope=name, on_stale="keep"), world)
    cache = SimulationCache(tmp_path, scope="two")
    (two, _, _), (one, _, _) = cache.store.spaces()
    assert cache.store.evict([one, two], 95) >= 95
    assert (cache.store.entries_of(one), cache.store.entries_of(two)) == (0, cache.store.counters()["entries"])
    asked = []
    cache.store.connection.set_trace_callback(asked.append)
    cache.store._oldest(two, 5)
    assert "TEMP B-TREE" not in str(cache.store.query(f"EXPLAIN QUERY PLAN {asked[0]}"))


def test_the_same_outcome_counts_once_where_it_is_likely_and_each_time_where_it_is_drawn(tmp_path):
    store = CacheStore(tmp_path)
    space, _ = store.add_space(scope_of(None, "counts"))
    node = bytes(16)
    states = [StateRow([node], b"0", 1, b"", None)]
    for drawn in (0, 0, 3, 2, 0):
        store.write(space, 0, states, [OutcomeRow(node, b"a", node, drawn, 0.0, 1.0, 0.0, 1)])
    assert store.query("SELECT count FROM outcomes") == [(6,)]


@pytest.mark.parametrize("content", [b"not a database at all", b"SQLite format 3\0" + b"\7" * 4096])
def test_a_damaged_file_is_refused_and_left_as_it_is(tmp_path, content):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ValueError, match="is damaged, or no simulation cache"):
        SimulationCache(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize("number", [0, 7])
def test_a_file_of_somebody_else_is_refused_and_left_as_it_is(tmp_path, number):
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("CREATE TABLE mine (value)")
    connection.execute(f"PRAGMA application_id={number}")
    connection.close()
    content = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match="another's database"):
        SimulationCache(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def test_a_cache_with_a_trigger_of_a_stranger_is_refused(tmp_path):
    CacheStore(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / FILE)) as connection:
        connection.execute("CREATE TRIGGER mine AFTER INSERT ON states BEGIN DELETE FROM outcomes; END")
    with pytest.raises(ValueError, match="other tables than pan_hf makes"):
        CacheStore(tmp_path)


def test_a_cache_opens_and_answers_while_another_process_writes(tmp_path):
    world, cache = GridWorld(), SimulationCache(tmp_path, scope="maze")
    fill(cache, world)
    with cache.store.transaction() as connection:
        connection.execute("UPDATE states SET used=0")
        reader = SimulationCache(tmp_path, scope="maze", writes=False)
        reader.store.connection.execute("PRAGMA busy_timeout=0")
        assert reader.lookup(world, world.root(), CRITIC) is not None


def test_no_look_up_waits_for_another_writer_and_all_are_counted_in_the_end(tmp_path):
    world, cache = GridWorld(), SimulationCache(tmp_path, scope="maze")
    fill(cache, world)
    with closing(sqlite3.connect(cache.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for _ in range(600):
            assert cache.lookup(world, world.root(), CRITIC) is not None
        assert not cache.store.counters().get("hit exact")
        other.execute("ROLLBACK")
    cache.close()
    assert cache.store.counters()["hit exact"] == 600


def test_damage_within_the_file_is_found_by_reading_all_of_it(tmp_path):
    cache = SimulationCache(tmp_path, scope="maze")
    fill(cache, GridWorld())
    cache.store.check()
    cache.close()
    path = tmp_path / FILE
    content = bytearray(path.read_bytes())
    content[3 * 4096 :] = b"\xff" * len(content[3 * 4096 :])
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        CacheStore(tmp_path).check()


def test_a_full_disk_is_named_and_nothing_of_the_write_is_there(tmp_path):
    cache, world = SimulationCache(tmp_path, scope="maze"), GridWorld()
    cache.bind(world, CRITIC)
    pages = cache.store.query("PRAGMA page_count")[0][0]
    cache.store.connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(OSError, match="the disk is full"):
        fill(cache, world)
    assert cache.store.query("SELECT COUNT(*) FROM outcomes")[0][0] == 0
    cache.store.connection.execute("PRAGMA max_page_count=1000000")
    fill(cache, world)
    assert follow(cache, world)[-1] == (0, 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_entries": 0}, "`max_entries` must be a whole number of at least 1"),
        ({"radius": -1.0}, "`radius` must be at least 0"),
        ({"least_reach": 2.0}, "`least_reach` must be"),
        ({"on_stale": "ignore"}, "`on_stale` must be one of"),
        ({"scope": ""}, "`scope` must be a name"),
    ],
)
def test_nonsense_is_refused_before_a_file_is_made(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        SimulationCache(tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_a_world_without_weights_needs_a_name(tmp_path):
    with pytest.raises(ValueError, match="give it a `scope`"):
        SimulationCache(tmp_path).bind(GridWorld(), CRITIC)
    with pytest.raises(FileNotFoundError, match="pan precompute"):
        SimulationCache(tmp_path / "none", create=False)


# --- Several processes


def _write_many(folder, first, count):
    store = CacheStore(folder)
    space, _ = store.add_space(scope_of(None, "many"))
    for index in range(first, first + count):
        name = index.to_bytes(16, "big")
        store.write(
            space, 0, [StateRow([name], name, 16, b"", None)], [OutcomeRow(name, b"a", name, 0, 0.0, 1.0, 0.0, 1)]
        )


def test_two_processes_that_make_and_fill_a_cache_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_write_many, args=(tmp_path, first, 60)) for first in (0, 50)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    store = CacheStore(tmp_path)
    assert store.counters()["entries"] == 110 == store.query("SELECT COUNT(*) FROM outcomes")[0][0]
    assert len(store.spaces()) == 1


def test_a_connection_is_not_carried_over_a_fork(tmp_path):
    store = CacheStore(tmp_path)
    ours = store.connection
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = multiprocessing.get_context("fork").Process(target=_own_connection, args=(store, ours))
        process.start()
        process.join()
    assert process.exitcode == 0 and store.connection is ours


def _own_connection(store, other):
    assert store.connection is not other
    store.query("SELECT 1")
