"""What `evaluate` measures, in a world where every number is known."""

import functools
import json
import pkgutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from dot_world import DotModel, DotProcessor, record_dots

from pan_hf.checkpoints import find_checkpoint, results_folder
from pan_hf.cli import app
from pan_hf.data.windows import check_held_out, choose_windows
from pan_hf.evaluation.evaluate import across_seeds, evaluate_model, pool
from pan_hf.evaluation.evaluate import evaluate as evaluate_checkpoint
from pan_hf.features import feature_of
from pan_hf.modeling import DiscreteAction, TextAction, VectorAction
from pan_hf.reporting.results import read_records, write_records
from pan_hf.reporting.strips import pick_by_rank
from pan_hf.reporting.tables import select

CAP = pytest.approx(10 * np.log10(12 * 255**2))  # dB, of rounding to 8 bits
SETTINGS = {"horizons": (1, 3, 5), "num_windows": 40, "batch_size": 16, "progress": False}


def evaluate(mistake=None, trajectories=None, **settings):
    trajectories = record_dots() if trajectories is None else trajectories
    return evaluate_model(DotModel(mistake), DotProcessor(), trajectories, **(SETTINGS | settings))


def value(records, metric, **where):
    where = {"model": "pan", "environment": "all"} | where
    (entry,) = select(records, metric=metric, **where)
    return entry.value


@pytest.fixture(scope="module")
def oracle():
    return evaluate()


@pytest.mark.parametrize("prefix", ["", "teacher_forced_"])
@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_an_oracle_is_perfect_at_every_horizon_in_both_modes(oracle, horizon, prefix):
    perfect = {"psnr": CAP, "psnr_moving": CAP, "ssim": 1, "rmse": 0, "rmse_normalised": 0, "reward_mae": 0}
    perfect |= dict.fromkeys(["exact_frame", "exact_state", "exact_state_changed", "code_accuracy"], 1)
    perfect |= dict.fromkeys(["camera.0_code_accuracy", "camera.1_code_accuracy", "reward_f1", "done_f1"], 1)
    for metric, expected in perfect.items():
        assert value(oracle, prefix + metric, horizon=horizon) == pytest.approx(expected, abs=1e-5), metric


@pytest.mark.slow
def test_a_frozen_model_is_copy_last(oracle):
    """Copying is measured with the true frame's codes, and a model that always predicts them scores the same."""
    frozen = evaluate("frozen")
    for entry in select(frozen, model="pan"):
        copies = select(frozen, metric=entry.metric, horizon=entry.horizon, environment=entry.environment)
        if len(copies) == 2 and "f1" not in entry.metric and "reward" not in entry.metric:
            assert entry.value == pytest.approx(copies[1].value), (entry.metric, entry.horizon)
    assert value(frozen, "exact_state_changed", horizon=1) == 0
    assert select(frozen, model="copy_last") == select(oracle, model="copy_last")


def test_every_prediction_stands_beside_copy_last(oracle):
    alone = {"bits_per_observation", "codes_bits", "latents_bits", "observation_bits"}
    for entry in select(oracle, model="pan"):
        if entry.horizon is not None and entry.metric not in alone:
            where = {"horizon": entry.horizon, "environment": entry.environment}
            assert select(oracle, model="copy_last", metric=entry.metric, **where), entry.metric


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, None])
def test_copy_last_is_right_exactly_where_nothing_changed(context):
    trajectories = record_dots()
    records = evaluate(trajectories=trajectories, num_windows=10_000, context=context)
    lead = 0 if context else 1  # the model looks back on two frames
    for horizon in (1, 3, 5):
        rows = trajectories.windows(lead + horizon) + lead
        places = trajectories.observations["place"]
        unchanged = (places[rows] == places[rows + horizon]).all(1).mean()
        assert value(records, "exact_state", model="copy_last", horizon=horizon) == pytest.approx(unchanged)
        before = places[rows + horizon - 1]
        unchanged = (before == places[rows + horizon]).all(1).mean()
        forced = value(records, "teacher_forced_exact_state", model="copy_last", horizon=horizon)
        assert forced == pytest.approx(unchanged)


@pytest.mark.slow
def test_exact_states_are_also_told_action_by_action():
    trajectories = record_dots()
    records = evaluate(trajectories=trajectories, num_windows=10_000, context=1)
    rows = trajectories.windows(1)
    places, taken = trajectories.observations["place"], trajectories.actions[rows]
    unchanged = (places[rows] == places[rows + 1]).all(1)
    for action, name in enumerate(["stay", "right", "left", "down", "up"]):
        found = value(records, f"exact_state_after:{name}", model="copy_last", horizon=1)
        assert found == pytest.approx(unchanged[taken == action].mean())
        assert value(records, f"exact_state_after:{name}", horizon=1) == 1  # the oracle's


def test_moving_psnr_of_copying_is_that_of_swapped_cells(oracle):
    """Wherever the dot moved, the copy is wrong by 255 in every pixel of the two cells that changed: 0 dB."""
    assert value(oracle, "psnr_moving", model="copy_last", horizon=1) == pytest.approx(0)


@pytest.mark.slow
def test_a_dim_dot_is_an_exact_state_but_not_an_exact_frame():
    records = evaluate("dim")
    assert value(records, "exact_state", horizon=5) == 1
    assert value(records, "exact_frame", horizon=5) == 0
    error = (100 / 255) ** 2 / 9
    assert value(records, "psnr", horizon=5) == pytest.approx(-10 * np.log10(error), abs=1e-4)
    assert value(records, "reconstruction_exact_frame") == 0


@pytest.mark.slow
def test_actions_matter_to_the_oracle_and_not_to_a_deaf_model(oracle):
    deaf = evaluate("deaf")
    for metric in ("action_sensitivity_exact_state", "action_sensitivity_psnr_moving"):
        assert value(oracle, metric, horizon=1) > 0.3
        assert value(deaf, metric, horizon=1) == 0
        assert value(oracle, metric, horizon=1, model="copy_last") == 0


@pytest.mark.slow
def test_missing_every_reward_is_an_f1_of_zero():
    late = evaluate("late")
    assert value(late, "reward_f1", horizon=1) == value(late, "done_f1", horizon=1) == 0


def test_without_a_reward_there_is_no_f1():
    trajectories = record_dots(length=3)  # too short to reach the corner
    records = evaluate(trajectories=trajectories, horizons=(1,))
    assert not select(records, metric=["reward_f1", "done_f1"])
    assert value(records, "reward_mae", horizon=1) == 0


def test_bits_add_up(oracle):
    parts = {"codes_bits": 1, "latents_bits": 0, "observation_bits": 2, "bits_per_observation": 3}
    for metric, bits in parts.items():
        assert value(oracle, metric, horizon=5) == pytest.approx(bits)


def test_reconstruction_is_measured_for_every_prefix_of_levels(oracle):
    assert value(oracle, "reconstruction_psnr") == value(oracle, "levels_2_reconstruction_psnr") == CAP
    assert value(oracle, "levels_1_reconstruction_psnr") < 20
    assert 0 < value(oracle, "levels_1_reconstruction_exact_frame") < 1
    assert not select(oracle, metric="latents_reconstruction_psnr")  # this model has no latents


def test_records_are_finite_and_say_where_they_come_from(oracle):
    assert {entry.environment for entry in oracle} == {"dots", "more-dots", "all"}
    assert all(np.isfinite(entry.value) and (entry.stderr is None or entry.stderr >= 0) for entry in oracle)
    assert {(entry.split, tuple(entry.seeds)) for entry in oracle} == {("test", (0,))}


def test_one_environment_is_not_reported_twice():
    records = evaluate(environments=["dots"], seeds=[7, 8])
    assert {entry.environment for entry in records} == {"dots"}
    assert records[0].seeds == [7, 8]


@pytest.mark.slow
def test_sampled_futures_have_names_of_their_own():
    assert all(entry.metric.startswith("sampled_") for entry in evaluate(temperature=1.0))


@pytest.mark.slow
def test_the_batch_size_does_not_change_the_numbers(oracle):
    """Only the partners of the shuffled actions change."""
    for entry, other in zip(oracle, evaluate(batch_size=1000), strict=True):
        if not entry.metric.startswith("action_sensitivity"):
            assert (entry.metric, entry.horizon) == (other.metric, other.horizon)
            assert entry.value == pytest.approx(other.value) and entry.stderr == pytest.approx(other.stderr, abs=1e-9)


@pytest.mark.slow
def test_windows_of_all_horizons_share_simulations():
    """At most the longest simulations, one more step for each teacher-forced horizon, and one for shuffled actions."""
    model = DotModel()
    trajectories = record_dots(num_episodes=40, environments=("dots",))
    evaluate_model(model, DotProcessor(), trajectories, **(SETTINGS | {"num_windows": 50}))
    assert model.simulated < 1.6 * 50 * (5 + 3)


def test_windows_are_long_enough_uniform_and_nested():
    trajectories = record_dots(num_episodes=40)
    chosen = choose_windows(trajectories, "dots", (1, 5), num_windows=30, seed=3)
    for horizon, rows in chosen.items():
        assert len(rows) == 30 and set(rows) <= set(trajectories.windows(horizon, "dots"))
        assert (trajectories.episode[rows] == trajectories.episode[rows + horizon]).all()
    assert len(set(chosen[1]) & set(chosen[5])) > 10


def test_a_horizon_no_episode_reaches_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="Horizon 500 is left out for dots.*longest"):
        chosen = choose_windows(record_dots(), "dots", (1, 500), num_windows=4, seed=0)
    assert list(chosen) == [1]
    with pytest.raises(ValueError, match="No episode has 500 transitions"):
        choose_windows(record_dots(), "dots", (500,), num_windows=4, seed=0)


def test_a_trained_episode_is_refused_by_name():
    trajectories = record_dots()
    with pytest.raises(ValueError, match=r"2 of 6 .* episode 101 \(more-dots, 0{15}1\), 104"):
        check_held_out(trajectories, [trajectories.fingerprints[1], trajectories.fingerprints[4], "f" * 16])


def test_a_trained_episode_can_be_skipped_but_not_all_of_them():
    trajectories = record_dots()
    with pytest.warns(UserWarning, match="left out"):
        assert check_held_out(trajectories, trajectories.fingerprints[:1], skip_trained=True) == [0]
    chosen = choose_windows(trajectories, "dots", (1,), num_windows=1000, seed=0, skip=[0])
    assert 0 not in trajectories.episode[chosen[1]]
    with pytest.raises(ValueError, match="6 of 6"):
        check_held_out(trajectories, trajectories.fingerprints, skip_trained=True)


def test_an_unknown_environment_and_a_missing_sense_are_named():
    with pytest.raises(ValueError, match=r"'swimming'.*'dots', 'more-dots'"):
        evaluate(environments=["swimming"])
    trajectories = record_dots()
    del trajectories.observations["place"]
    with pytest.raises(ValueError, match=r"\['place'\] are not in the recording.*camera"):
        evaluate(trajectories=trajectories)


@pytest.mark.slow
def test_strips_are_the_median_and_the_worst_window(tmp_path):
    evaluate("deaf", strips=tmp_path)
    stems = [f"{environment}-{rank}" for environment in ("dots", "more-dots") for rank in ("median", "worst")]
    assert {path.name for path in tmp_path.iterdir()} == {stem + kind for stem in stems for kind in (".json", ".npz")}
    about = json.loads((tmp_path / "dots-worst.json").read_text())
    assert about["environment"] == "dots" and about["horizon"] == 5 and len(about["actions"]) == 5
    assert set(about["actions"]) <= {"stay", "right", "left", "down", "up"} and "worst of" in about["title"]
    with np.load(tmp_path / "dots-worst.npz") as strip:
        assert strip["real"].shape == strip["imagined"].shape == (6, 24, 24, 3) and "codes_only" not in strip
        assert strip["real"].dtype == np.uint8
        assert (strip["real"][0] == strip["imagined"][0]).all() and (strip["real"][-1] != strip["imagined"][-1]).any()


def test_ranks_do_not_depend_on_the_order_of_windows():
    assert pick_by_rank({5: 0.2, 1: 0.1, 9: 0.9}) == {"median": 5, "worst": 9}
    assert pick_by_rank({9: 0.9, 1: 0.1, 5: 0.2}) == {"median": 5, "worst": 9}
    assert pick_by_rank({4: 0.0}) == {"worst": 4}


def test_actions_are_labelled_as_people_read_them():
    assert feature_of(DiscreteAction(4)).label(np.int64(3)) == "3"
    assert feature_of(DiscreteAction(2, names=["stay", "go"])).label(np.int64(1)) == "go"
    numbers = np.array([0.12345, 2.0], dtype=np.float32)
    assert feature_of(VectorAction(2, low=-1, high=3)).label(numbers) == "(0.123, 2)"
    assert feature_of(TextAction()).label(np.str_("open the door")) == "open the door"


@pytest.mark.slow
def test_seeds_are_pooled_with_their_spread():
    runs = [evaluate(seeds=[seed]) for seed in (1, 2)]
    (pooled,) = select(across_seeds(runs), metric="psnr", horizon=1, model="pan", environment="dots")
    assert pooled.value == CAP and pooled.stderr == 0 and pooled.seeds == [1, 2]


@pytest.mark.slow
def test_runs_are_pooled_only_if_their_seeds_differ(tmp_path):
    for seed in (1, 2):
        write_records(tmp_path / f"run{seed}" / "evaluation.json", evaluate(seeds=[seed]))
    pooled = pool([tmp_path / "run1", tmp_path / "run2"], tmp_path / "both")
    assert read_records(tmp_path / "both" / "evaluation.json") == pooled
    assert {tuple(entry.seeds) for entry in pooled} == {(1, 2)}
    with pytest.raises(ValueError, match="different seeds, got .*run1: \\[1\\]"):
        pool([tmp_path / "run1", tmp_path / "run1"], tmp_path / "none")
    with pytest.raises(ValueError, match="different seeds"):
        pool([tmp_path / "run1"], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        find_checkpoint(tmp_path)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="training_data.json does not say"):
        evaluate_checkpoint(tmp_path, tmp_path / "recording")


@pytest.mark.parametrize("trained, given, told", [(3, None, (3,)), (None, None, (0,)), (3, [7, 8], (7, 8))])
def test_records_tell_the_seed_of_the_training(trained, given, told, tmp_path, monkeypatch):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    if trained is not None:
        (tmp_path / "stages").mkdir()
        (tmp_path / "stages" / "settings.json").write_text(json.dumps({"seed": trained}))
    loaded = (DotModel(), DotProcessor(), record_dots(), [])
    monkeypatch.setattr("pan_hf.evaluation.evaluate.load_for_evaluation", lambda *_: loaded)
    records = evaluate_checkpoint(tmp_path, tmp_path / "data", seeds=given, **SETTINGS | {"horizons": (1,)})
    assert {tuple(entry.seeds) for entry in records} == {told}


@pytest.mark.slow
def test_evaluate_writes_records_plot_and_strips(tmp_path, monkeypatch):
    """Everything but the loading of a checkpoint, which `test_a_real_checkpoint_is_evaluated` does."""
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    loaded = (DotModel("deaf"), DotProcessor(), record_dots(), [])
    monkeypatch.setattr("pan_hf.evaluation.evaluate.load_for_evaluation", lambda *_: loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        records = evaluate_checkpoint(tmp_path, tmp_path / "data", **SETTINGS)
    assert read_records(tmp_path / "evaluation.json") == records
    assert (tmp_path / "horizon.png").stat().st_size > 1000
    assert len(list((tmp_path / "report" / "strips").glob("*.npz"))) == 4
    assert not torch.is_inference_mode_enabled()


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A recorded stochastic world and an untrained checkpoint that says it was trained on the training split."""
    pytest.importorskip("minigrid")
    from pan_hf.build import build
    from pan_hf.checkpoints import save_checkpoint
    from pan_hf.data.record import record
    from pan_hf.data.trajectories import load_trajectories

    root = tmp_path_factory.mktemp("real")
    record(
        "MiniGrid-Dynamic-Obstacles-8x8-v0",
        root / "recording",
        episodes=12,
        wrappers=["minigrid.wrappers:RGBImgObsWrapper?tile_size=8"],
        keep=["image", "mission"],
        rename=["image=camera"],
        test_fraction=0.5,
        progress=False,
    )
    trained = load_trajectories(root / "recording", "train")
    model, processor = build(trained, "debug", context_steps=2)
    save_checkpoint(root / "run" / "checkpoint", model, processor)
    about = {"fingerprints": trained.fingerprints, "environments": trained.environments}
    (root / "run" / "checkpoint" / "training_data.json").write_text(json.dumps(about))
    return root


REAL = {"horizons": (1, 2), "num_windows": 6, "batch_size": 4, "context": 1, "skip_trained": True, "progress": False}


@pytest.mark.slow
def test_a_real_checkpoint_is_evaluated(real_run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two short episodes may well be equal
        records = evaluate_checkpoint(real_run / "run", real_run / "recording", **REAL)
    assert read_records(real_run / "run" / "evaluation.json") == records
    measured = {entry.metric for entry in records if entry.model == "pan"}
    names = ["psnr", "psnr_moving", "ssim", "exact_frame", "exact_state", "camera.1_code_accuracy", "reward_mae"]
    names += ["bits_per_observation", "teacher_forced_psnr", "action_sensitivity_exact_state"]
    names += ["reconstruction_psnr", "levels_1_reconstruction_psnr", "latents_reconstruction_exact_frame"]
    assert measured >= set(names)
    assert (real_run / "run" / "horizon.png").exists()
    assert list((real_run / "run" / "report" / "strips").glob("*-worst.npz"))


def test_a_real_checkpoint_refuses_the_episodes_it_was_trained_on(real_run):
    from pan_hf.data.trajectories import load_trajectories

    path = real_run / "run" / "checkpoint" / "training_data.json"
    before = path.read_text()
    held_out = load_trajectories(real_run / "recording", "test").fingerprints
    path.write_text(json.dumps({"fingerprints": held_out[:1]}))
    try:
        with pytest.raises(ValueError, match=f"were trained on: episode .*{held_out[0]}"):
            evaluate_checkpoint(real_run / "run", real_run / "recording", **(REAL | {"skip_trained": False}))
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_sampled_futures_of_a_real_checkpoint_are_checked(real_run):
    """Untrained: it must be found incoherent, where the simulator in its place is coherent."""
    from benchmarks.moving_obstacles import evaluate_futures

    settings = {"num_states": 4, "num_samples": 16, "num_true": 100, "skip_trained": True, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = evaluate_futures(real_run / "run", real_run / "recording", **settings)
    assert read_records(real_run / "run" / "futures.json") == records
    where = {"environment": "MiniGrid-Dynamic-Obstacles-8x8-v0", "horizon": 1}
    assert value(records, "coherent_futures", **where) < 0.5
    assert value(records, "coherent_futures", **(where | {"model": "simulator"})) == 1
    both = evaluate_futures(real_run / "run", real_run / "recording", seeds=(0, 1), **settings)
    assert [entry for entry in both if entry.seeds == [0]] == records, "each seed is tested by itself"
    frequencies = [
        [entry.value for entry in both if entry.seeds == [seed] and entry.metric.startswith("outcome:")]
        for seed in (0, 1)
    ]
    assert frequencies[0] != frequencies[1], "from states of its own"
    with pytest.raises(ValueError, match="No recording of .*Nowhere"):
        evaluate_futures(real_run / "run", real_run / "recording", environments=["Nowhere"], **settings)


@pytest.mark.parametrize(
    "command, function, file",
    [
        ("evaluate", "evaluation.evaluate.evaluate", "evaluation.json"),
        ("plan", "evaluation.control.plan", "planning.json"),
    ],
)
def test_a_command_on_a_stage_s_checkpoint_names_the_file_it_wrote(
    command, function, file, tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "refined" / "final"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")

    @functools.wraps(pkgutil.resolve_name(f"pan_hf.{function}"))
    def write(*_args, output=None, **_kwargs):
        (results_folder(folder, output) / file).write_text("[]")

    monkeypatch.setattr(f"pan_hf.{function}", write)
    app([command, "--run", str(folder)])
    named = Path("".join(capsys.readouterr().out.split(" are in ")[1].split("\nNext: ")[0].split()))
    assert named.read_text() == "[]" and named == tmp_path / "refined" / file
