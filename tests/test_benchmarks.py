"""The benchmarks run in miniature and write records that a table can be made of; no time is asserted."""

import json
import multiprocessing
import shutil
import subprocess
import sys

import pytest
import torch

from benchmarks import (
    cache_growth,
    common,
    drift,
    growth,
    kept,
    latents,
    loader,
    merges,
    novelty,
    optimizers,
    simulate,
    switch,
    theorem1,
    train,
    words,
)
from pan_hf import PanTokenizer
from pan_hf.checkpoints import load
from pan_hf.data.record import record as record_episodes
from pan_hf.reporting.results import read_records, record, write_records
from pan_hf.reporting.tables import select, table
from pan_hf.training.pipeline import SHARES
from pan_hf.training.pipeline import train as train_run


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def with_miniature(miniature, tmp_path):
    """A folder in which the benchmarks find the run that they would make."""
    shutil.copytree(miniature, tmp_path / "run")
    return tmp_path


@pytest.fixture
def no_subprocess(monkeypatch):
    """Peak memory of this process instead of a fresh one, whose imports take seconds."""

    def call_here(function, *arguments, threads):
        function(*arguments)
        return common._peak_of_this_process()

    monkeypatch.setattr(common, "peak_memory_gib", call_here)


@pytest.mark.slow
def test_simulate_records_both_ways_and_their_ratio(tmp_path, no_subprocess, monkeypatch, capsys):
    modes = ("folded, 64 + 64 codes", "coherent, 16 + 64 codes, a pass a level")
    monkeypatch.setattr(simulate, "MODES", {name: simulate.MODES[name] for name in modes})
    path = tmp_path / "simulate.json"
    simulate.main(horizon=2, seconds=0, repeats=1, quick=True, output=path)
    records = read_records(path)
    for mode in simulate.MODES:
        for batch in ("batch 1", "batch 4"):
            fast, slow, ratio = (
                select(records, metric=metric, model=model, split=batch)[0].value
                for metric, model in (
                    ("steps_per_second", mode),
                    ("steps_per_second", f"token by token, {mode}"),
                    ("speedup", mode),
                )
            )
            assert ratio == pytest.approx(fast / slow)
    shares = select(records, metric="matmul_share")
    assert len(shares) == len(simulate.sweep_settings(quick=True))
    assert all(entry.value > 0 for entry in shares)
    assert "| folded, 64 + 64 codes |" in capsys.readouterr().out


@pytest.mark.slow
def test_train_records_every_step_beside_the_bare_backbone(tmp_path, no_subprocess, capsys):
    path = tmp_path / "train.json"
    train.main(seconds=0, repeats=1, quick=True, output=path)
    records = read_records(path)
    for step in train.STEPS:
        assert select(records, metric="tokens_per_second", model=step)[0].value > 0
        assert 0.05 < select(records, metric="peak_memory_gib", model=step)[0].value < 16
    assert len(select(records, metric="bare_share")) == 2
    assert table(select(records, metric="tokens_per_second"), "model", "split")
    assert "bare share" in capsys.readouterr().out


def test_words_reads_a_text_with_the_backbone_and_with_a_world_made_of_it(tmp_path, capsys):
    lines = [f"the keeper of lamp {number} went down to the harbour at dawn with oil" for number in range(12)]
    (tmp_path / "text.txt").write_text("\n".join([*lines, "too short"]))
    tokenizer = PanTokenizer.train(lines, vocab_size=common.NUM_WORDS)
    common.language_model("debug").save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    given = {"text": tmp_path / "text.txt", "output": tmp_path / "words.json", "batch": 5}
    records = words.main(str(tmp_path / "backbone"), **given, dtype="float32", sentences=1000, threads=1)
    found = {entry.model: entry.value for entry in select(records, metric="perplexity")}
    assert found["world model"] == found["backbone"] < found["world model, codes possible"]
    alike = {entry.model: entry.value for entry in select(records, metric="continued_alike")}
    assert alike["world model"] == 1 and records[0].environment.startswith("12 sentences, text.txt")
    assert "| world model |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="pip install --no-deps gensim, or give --text"):
        words.lee_corpus()


@pytest.mark.slow
def test_token_by_token_writes_every_code_of_a_state_and_only_live_rows():
    model = common.world_model("debug")
    ids = simulate.token_by_token(model, batch=2)()
    assert ids.shape == (2, 64 + 64)
    assert model.live_rows[ids].all()


@pytest.mark.parametrize(("num_levels", "codes"), [(1, [64]), (2, [64, 64]), (3, [16, 64, 64])])
@pytest.mark.parametrize(("spatial_merge_size", "places"), [(2, 16), (4, 4)])
def test_levels_and_places_vary_apart(num_levels, codes, spatial_merge_size, places):
    model = common.world_model("debug", common.LEVEL_STRIDES[num_levels], spatial_merge_size)
    belief = model.perceive(common.observe(1))
    assert [level.shape[1] for level in belief.codes["camera"]] == codes
    assert model.layout.num_state_tokens == places


def test_half_precision_leaves_senses_in_float32():
    model = common.world_model("debug", dtype="bfloat16")
    assert model.dtype == torch.bfloat16 or next(model.language_model.parameters()).dtype == torch.bfloat16
    assert {p.dtype for p in model.senses.parameters()} == {torch.float32}
    futures = model.simulate(model.perceive(common.observe(1)), torch.zeros(1, 2, dtype=torch.long), seed=0)
    assert futures.log_prob.isfinite().all()


@pytest.mark.slow
def test_loader_sets_a_batch_beside_its_step_and_counts_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "in_fresh_process", lambda function, *arguments, threads: function(*arguments))
    monkeypatch.setattr(loader, "STAGES", {"dynamics": loader.STAGES["dynamics"]})
    monkeypatch.setattr(loader, "HELD", {"mapped": 0})
    records = loader.main(seconds=0, repeats=1, quick=True, output=tmp_path / "loader.json")
    batch, step, share = (select(records, metric=name)[0].value for name in ("batch_ms", "step_ms", "loader_share"))
    assert 0 < batch < step and share == pytest.approx(batch / step)
    assert select(records, metric="frames_gib")[0].value == 200 * 64 * 64 * 3 / 2**30
    assert "| mapped | dynamics |" in capsys.readouterr().out


def test_the_bare_backbone_reads_as_many_positions_as_the_aligned_step():
    model = common.world_model("debug", context_steps=3).train()
    lengths = []
    model.language_model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    model(**train.transitions(model, "dynamics", batch=2, steps=3))
    assert lengths == [train.positions_of_a_window(3)]


def test_flops_of_a_product_and_of_attention_are_counted():
    left, right = torch.zeros(3, 5), torch.zeros(5, 7)
    assert common.count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    query = torch.zeros(1, 2, 6, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    assert common.count_flops(lambda: attend(query, query, query)) == 2 * 2 * (2 * 6 * 6 * 8)


def test_one_interrupted_round_moves_neither_the_median_nor_its_error_far():
    median, error = common.median_stderr([1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99, 50.0])
    assert median == pytest.approx(1.0, abs=0.02)
    assert error < 0.02
    assert common.median_stderr([2.0, 4.0]) == (3.0, None)


def test_rounds_are_taken_in_turn():
    order = []
    times = common.side_by_side({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0, repeats=3)
    assert order == ["a", "b"] * 4  # one round to warm up
    assert [len(each) for each in times.values()] == [3, 3]


def _allocate(mebibytes):
    torch.ones(mebibytes * 2**18).sum()


def _fail():
    raise MemoryError("too much")


@pytest.mark.slow
def test_peak_memory_is_that_of_the_fresh_process_alone(monkeypatch):
    ballast = torch.ones(2**28)  # 1 GiB here, which must not count there
    assert 0.6 < common.peak_memory_gib(_allocate, 512, threads=1) < 1.0
    del ballast
    forked = multiprocessing.get_context("fork")  # has imported what a fresh one needs seconds for
    monkeypatch.setattr(common.multiprocessing, "get_context", lambda method: forked)
    with pytest.raises(RuntimeError, match="_fail"):
        common.peak_memory_gib(_fail, threads=1)


@pytest.mark.slow
def test_a_script_runs_from_a_shell_in_any_folder(tmp_path):
    output = tmp_path / "records.json"
    command = [sys.executable, growth.__file__, "--quick", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "| --- |" in done.stdout and json.loads(output.read_text())


@pytest.mark.slow
def test_growth_is_timed_without_a_reallocation(tmp_path, capsys):
    records = growth.main(quick=True, output=tmp_path / "growth.json")
    assert select(records, metric="reallocations")[0].value == 0
    assert select(records, metric="grow_1000_ms")[0].value > 0
    assert "readout ratio" in capsys.readouterr().out


def test_bits_are_cut_into_tokens_and_none_is_lost():
    bits = torch.randint(0, 2, (5, 7, 12), generator=torch.Generator().manual_seed(0))
    for count in theorem1.TOKENS:
        ids, size = theorem1.tokens_of(bits, count), 2 ** (12 // count)
        assert ids.shape == (5, 7, count)
        values = ids - size * torch.arange(count)
        back = values.unsqueeze(-1) // 2 ** torch.arange(12 // count).flip(0) % 2
        assert torch.equal(back.flatten(-2), bits)


@pytest.mark.slow
def test_scaling_up_and_out_are_compared_at_equal_distortion(tmp_path):
    records = theorem1.main(threads=1, quick=True, output=tmp_path / "theorem1.json")
    assert len(select(records, metric="distortion_rmse")) == 1
    assert len(select(records, metric="bits_per_vector")) == len(theorem1.TOKENS)
    assert (tmp_path / "theorem1.png").exists()


@pytest.mark.slow
def test_novelty_is_measured_without_growth_grown_and_trained_with_it(tmp_path):
    records = novelty.main(run=tmp_path / "run", threads=1, quick=True, output=tmp_path / "novelty.json")
    models = {entry.model for entry in records}
    assert {"without growth", "grown, 1 observations", "grown in training", "trained with it"} <= models
    assert (tmp_path / "novelty.png").exists()
    share = select(records, metric="new_places")[0].value
    assert 0 < share < 0.3


@pytest.mark.slow
def test_sentences_get_shorter_at_equal_distortion(tmp_path):
    records = merges.main(run=tmp_path / "run", threads=1, quick=True, output=tmp_path / "merges.json")
    for task, (environment, *_) in merges.TASKS.items():
        where = {"environment": f"{task}, {environment}"}
        tokens = {found.model: found.value for found in select(records, metric="tokens", **where)}
        assert tokens["with merges"] <= tokens["without merges"]
        assert len({record.value for record in select(records, metric="distortion", **where)}) == 1
    frames = {found.model: found.value for found in select(records, metric="tokens") if "frames" in found.environment}
    assert frames["with merges"] < 0.5 * frames["without merges"]
    assert (tmp_path / "merges.png").exists()


@pytest.mark.slow
def test_a_cache_is_filled_and_measured_after_each_growth(with_miniature, capsys):
    cache_growth.main(with_miniature / "run", quick=True, output=with_miniature / "growth.json")
    records = read_records(with_miniature / "growth.json")
    for world in (cache_growth.EMPTY, cache_growth.DOOR_KEY):
        entries, answered = (
            [entry.value for entry in select(records, metric=metric, environment=world)]
            for metric in ("entries", "answered_share")
        )
        assert len(entries) == 4 and entries == sorted(entries) and answered == sorted(answered) and entries[-1] >= 60
    stale = {entry.model: entry.value for entry in select(records, metric="stale_share")}
    assert list(stale) == ["as it was", "100 words", "an action", "codes of new things", "merged tokens"]
    differing = {entry.model: entry.value for entry in select(records, metric="differing_share")}
    assert set(stale.values()) == {0.0} and differing["as it was"] == differing["100 words"] == 0.0
    assert "answered share" in capsys.readouterr().out


@pytest.mark.slow
def test_kept_grows_the_quickstart_s_vocabulary_and_measures_each_result_alike(tmp_path, monkeypatch, capsys):
    run, into = tmp_path / "quickstart", tmp_path / "kept"
    record_episodes([kept.ROOMS], run / "data", frames=60, progress=False, **kept.RECORDING)
    skip = tuple(name for name in SHARES if name not in ("senses", "sentences"))
    train_run(run, backbone="debug", overrides={"senses": {"max_steps": 3}}, skip=skip, progress=False)

    def measure(folder, *_args, **_kwargs):
        known = {"environment": "all", "split": "test", "seeds": [0]}
        write_records(folder / "evaluation.json", [record("exact_state", 1.0, horizon=1, **known)])
        write_records(folder / "planning.json", [record("success", 1.0, model="pan/graph", **known)])

    measure(run)
    for name in ("train", "grow", "plan_each"):
        monkeypatch.setattr(kept, name, lambda folder, *_args, **_kwargs: folder.mkdir(parents=True, exist_ok=True))
    monkeypatch.setattr(kept, "evaluate", measure)
    records = kept.main(run=run, into=into, quick=True, output=tmp_path / "kept.json")
    models = ["quickstart", "grown", "grown in training", "merged before dynamics"]
    assert [(entry.model, entry.metric) for entry in records] == [
        (model, metric) for model in models for metric in ("exact_state", "success")
    ]
    before, after = load(run)[1].vocabulary, load(into / "grown")[1].vocabulary
    assert before.is_ancestor_of(after) and after.live("text") == before.live("text") + 100
    assert after.live("action.0") == before.live("action.0") + 1
    assert after.live("camera.merges") > 0


@pytest.mark.slow
def test_drift_goes_on_from_what_was_imagined_and_from_what_was_encoded_anew(with_miniature, capsys):
    drift.main(quick=True, output=with_miniature)
    records = read_records(with_miniature / "minigrid.json")
    models = {entry.model for entry in select(records, metric="psnr")}
    assert {"noise", "noise, encoded anew", "noise, in focus", "copy_last"} <= models
    assert {entry.horizon for entry in select(records, metric="exact_state", model="noise")} == {1, 5}
    assert {entry.value for entry in select(records, metric="steps_above_copy_last")} <= {0.0, 1.0, 5.0}
    assert (with_miniature / "minigrid.png").exists() and "psnr_moving" in capsys.readouterr().out


def test_drift_counts_the_steps_before_it_is_worse_than_the_last_frame_seen():
    where = {"environment": "world", "split": "test", "seeds": [0]}
    curves = {"good": [20.0, 15.0, 12.0], "bad": [20.0, 9.0, 12.0], "copy_last": [14.0, 10.0, 10.0]}
    records = [
        record("psnr_moving", value, model=model, horizon=horizon, **where)
        for model, values in curves.items()
        for horizon, value in zip((1, 10, 100), values, strict=True)
    ]
    assert {entry.model: entry.value for entry in drift.crossings(records)} == {"good": 100.0, "bad": 1.0}


@pytest.mark.slow
def test_latents_are_drawn_by_several_steps_and_schedulers_for_the_same_codes(with_miniature, capsys):
    latents.main(quick=True, output=with_miniature)
    records = read_records(with_miniature / "latents.json")
    models = {entry.model for entry in select(records, metric="psnr")}
    kinds = {f"codes and latents, 4 steps of {kind}" for kind in latents.OTHERS}
    assert kinds | {"codes", "copy_last", "codes and latents, 8 steps", "latents alone, 1 steps"} <= models
    assert "psnr_moving" in capsys.readouterr().out


@pytest.mark.slow
def test_optimizers_start_from_the_same_checkpoint_and_are_told_apart(with_miniature, capsys):
    assert optimizers.before(with_miniature / "run", "dynamics").parent.name == "2-backbone"
    assert optimizers.before(with_miniature / "run", "senses").name == "0-init"
    optimizers.main(quick=True, output=with_miniature)
    records = read_records(with_miniature / "dynamics.json")
    for name in ("adamw_torch", "muon"):
        assert select(records, metric="steps", model=name)[0].value == 2
        assert len(select(records, metric="exact_state", model=name)) == 4  # three environments, and all of them
    bits = [select(records, metric="codes_bits", model=name)[0].value for name in ("adamw_torch", "muon")]
    assert bits[0] != bits[1]
    assert "muon" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no stage `dynamics`"):
        optimizers.before(with_miniature / "empty", "dynamics")
    optimizers.main(quick=True, stage="senses", output=with_miniature)
    records = read_records(with_miniature / "senses.json")
    decibels = [select(records, metric="reconstruction_psnr", model=name)[0].value for name in ("adamw_torch", "muon")]
    assert decibels[0] != decibels[1]
    with pytest.raises(ValueError, match="got 'joint'"):
        optimizers.main(quick=True, stage="joint", output=with_miniature)


@pytest.mark.slow
def test_switch_sets_quality_against_compute(with_miniature, monkeypatch, capsys):
    monkeypatch.setattr(switch, "PRICES", (0.1,))
    monkeypatch.setattr(switch, "BATCHES", (1, 2))
    switch.main(quick=True, output=with_miniature)
    records = [entry for part in switch.PARTS for entry in read_records(with_miniature / f"{part}.json")]
    for task in switch.TASKS:
        cost = {entry.model: entry.value for entry in select(records, metric="compute", environment=task)}
        assert cost["all"] == pytest.approx(1.0)
        assert cost["coarsest"] <= cost["focused"] <= 1.0
        assert cost["random at 0.1"] == pytest.approx(cost["learned at 0.1"], abs=0.02)
        assert len(select(records, metric="distortion", environment=task)) == len(cost) == 6
        assert len(select(records, metric="psnr_moving", environment=task)) == 6
    assert select(records, metric="speedup_over_all", model="all")[0].value == 1.0
    assert {entry.model for entry in select(records, metric="success")} == {
        "all",
        "focused",
        "coarsest",
        "learned at 0.1",
    }
    assert (with_miniature / "quality.png").stat().st_size > 5000
    assert "Distortion and compute of one step" in capsys.readouterr().out
