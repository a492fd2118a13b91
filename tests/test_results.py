"""Result files keep what was measured, and what is published is what they hold."""

import json
import math
import re
import time
from pathlib import Path

import pytest

from docs.measured import check_page, update_page
from pan_hf.reporting import results
from pan_hf.reporting.results import mean_stderr, read_records, record, wilson, write_records
from pan_hf.reporting.tables import distinct_origins, format_value, metric_label, select, table
from pan_hf.reporting.timing import stage_timer

ORIGIN = {"command": "pan evaluate --run runs/x", "commit": "abc1234", "hardware": "a machine"}


def measured(metric="exact_state", value=0.9, **fields):
    where = {"environment": "Env-v0", "split": "test", "seeds": [0, 1, 2], "horizon": 1}
    return record(metric, value, **(where | ORIGIN | fields))


# -------------------------------------------------------------------------------------------------------------- files


def test_records_come_back_as_they_were_written(tmp_path):
    records = [measured(stderr=0.01), measured("psnr", 31.25, model="copy_last", horizon=None)]
    assert read_records(write_records(tmp_path / "runs" / "evaluation.json", records)) == records


def test_a_result_file_is_standard_json_of_one_flat_dict_a_record(tmp_path):
    path = write_records(tmp_path / "a.json", [measured(value=math.nan, stderr=math.inf)])
    (row,) = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row["value"] is None and row["stderr"] is None
    assert list(row) == sorted(row) and len(row) == 11
    assert math.isnan(read_records(path)[0].value)


def test_no_records_make_an_empty_list(tmp_path):
    assert read_records(write_records(tmp_path / "a.json", [])) == []


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = write_records(tmp_path / "a.json", [measured()])
    before = path.read_text()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pan_hf.files.os.replace", full)
    with pytest.raises(OSError, match="the disk is full"):
        write_records(path, [])
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("{oops", "is not JSON"), ('{"metric": 1}', "expected a list"), ('[{"metric": "psnr"}]', "entry 0 has")],
)
def test_a_file_that_holds_no_records_is_named(tmp_path, text, said):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"evaluation.json.*{said}"):
        read_records(path)


def test_records_say_where_they_come_from():
    entry = record("psnr", 30, environment="Env-v0", split="test", seeds=range(2))
    assert entry.seeds == [0, 1]
    assert entry.command.startswith("python ")  # pytest, or the worker of pytest-xdist that runs this test
    assert entry.commit and " core" in entry.hardware and "GiB" in entry.hardware


def test_a_misspelt_origin_is_refused():
    with pytest.raises(TypeError, match="horizn"):
        measured(horizn=3)


@pytest.mark.parametrize(
    ("arguments", "original", "command"),
    [
        (["/x/.venv/bin/pan", "plan", "--run", "a b"], ["python", "/x/pan"], "pan plan --run 'a b'"),
        (["/x/benchmarks/simulate.py"], ["python", "/x/benchmarks/simulate.py"], "python simulate.py"),
        (
            [str(Path(results.__file__).parents[2] / "benchmarks" / "train.py"), "--quick"],
            ["python", "benchmarks/train.py"],
            "python benchmarks/train.py --quick",
        ),
        (["/x/pan_hf/cli.py", "plan"], ["python", "-m", "pan_hf.cli", "plan"], "python -m pan_hf.cli plan"),
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, arguments, original, command):
    monkeypatch.setattr(results.sys, "argv", arguments)
    monkeypatch.setattr(results.sys, "orig_argv", original)
    assert results._command() == command


# ------------------------------------------------------------------------------------------------------------ numbers


def test_the_standard_error_is_that_of_the_mean():
    mean, stderr = mean_stderr([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert stderr == pytest.approx(math.sqrt(5 / 3) / 2)  # sample variance 5/3, four values
    assert mean_stderr([7.0]) == (7.0, None)
    with pytest.raises(ValueError, match="no values"):
        mean_stderr([])


@pytest.mark.parametrize(("successes", "n"), [(8, 10), (1, 3), (499, 500), (0, 20), (20, 20)])
def test_the_wilson_bounds_solve_the_score_equation(successes, n):
    low, high = wilson(successes, n)
    p = successes / n
    for bound in (low, high):
        # each bound is a proportion from which p lies 1.96 of *its* standard errors away, or the end of the range
        assert bound in (0.0, 1.0) or abs(p - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n))
    assert 0 <= low <= p <= high <= 1 and low < high


def test_the_wilson_interval_agrees_with_a_published_value():
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)  # scipy.stats.binomtest(8, 10), "wilson"
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 successes of 3"):
        wilson(5, 3)


@pytest.mark.parametrize(
    ("metric", "value", "stderr", "text"),
    [
        ("exact_state", 0.983, 0.0021, "98.3 ± 0.2%"),
        ("left_psnr_moving", 31.24, None, "31.2 dB"),
        ("seconds_per_decision", 0.613, None, "0.61 s"),
        ("peak_memory_gib", 1.5, None, "1.50 GiB"),
        ("steps_per_second", 2413.4, None, "2413/s"),
        ("rmse", 12.3456, None, "12.35"),
        ("psnr", math.nan, None, "–"),
    ],
)
def test_values_are_shown_with_unit_and_spread(metric, value, stderr, text):
    assert format_value(measured(metric, value, stderr=stderr)) == text


def test_metrics_read_as_words():
    assert metric_label("psnr_moving") == "PSNR moving"
    assert metric_label("peak_memory_gib") == "peak memory"


# --------------------------------------------------------------------------------------------------- choosing, tables


def test_select_takes_one_value_or_any_of_several():
    records = [measured(horizon=h, model=m) for h in (1, 10, None) for m in ("pan", "copy_last")]
    assert len(select(records, model="pan")) == 3
    assert len(select(records, model="pan", horizon=[1, None])) == 2
    assert select(records, seeds=[0, 1, 2]) == records
    with pytest.raises(TypeError, match="modle"):
        select(records, modle="pan")


def test_a_table_has_a_row_and_a_column_for_each_combination():
    records = [
        measured("psnr", 30, horizon=1),
        measured("psnr", 25, horizon=10),
        measured("exact_state", 0.5, horizon=10),
    ]
    assert table(records, "metric", "horizon").splitlines() == [
        "| metric | 1 step | 10 steps |",
        "| --- | ---: | ---: |",
        "| PSNR | 30.0 dB | 25.0 dB |",
        "| exact state | – | 50.0% |",
    ]
    assert table([], "metric", "horizon") == ""
    drawn = [measured("exact_state", value, seeds=[seed]) for seed, value in ((0, 0.5), (1, 0.25))]
    assert table(drawn, "seeds", "metric").splitlines()[2:] == ["| seed 0 | 50.0% |", "| seed 1 | 25.0% |"]


def test_an_origin_joins_seeds_that_one_command_measured_by_themselves():
    many = [measured(seeds=[seed]) for seed in (2, 0, 1, 0)] + [measured(seeds=range(10, 20)), measured(seeds=[0, 1])]
    assert [seeds for *_, seeds in distinct_origins(many)] == ["10 seeds from 10 to 19", "seeds 0, 1", "seeds 0, 1, 2"]
    assert len(distinct_origins([measured(), measured(commit="def5678")])) == 2


def test_two_records_in_one_cell_are_an_error_and_not_a_choice():
    with pytest.raises(ValueError, match="two records fall into the cell"):
        table([measured(model="pan"), measured(model="copy_last")], "metric", "horizon")


# ------------------------------------------------------------------------------------------------------------- timing


def test_a_stage_leaves_its_seconds_and_peak_memory(tmp_path):
    path = tmp_path / "timing.json"
    with stage_timer(path, "record", seeds=[3]):
        time.sleep(0.05)
    with stage_timer(path, "train"):
        pass
    seconds, memory = select(read_records(path), model="record")
    assert (seconds.metric, memory.metric) == ("seconds", "peak_memory_gib")
    assert 0.05 <= seconds.value < 5 and seconds.seeds == [3]
    assert 0.01 < memory.value < 64
    assert {entry.model for entry in read_records(path)} == {"record", "train"}


@pytest.mark.slow
def test_peak_memory_sees_what_was_freed_again(tmp_path):
    with stage_timer(tmp_path / "timing.json", "big"):
        block = bytearray(b"x") * 300_000_000
        time.sleep(0.6)  # two samples
        del block
    with stage_timer(tmp_path / "timing.json", "small"):
        pass
    peaks = {e.model: e.value for e in read_records(tmp_path / "timing.json") if e.metric == "peak_memory_gib"}
    assert peaks["big"] - peaks["small"] > 0.2


def test_a_resumed_stage_adds_up_and_a_repeated_one_starts_again(tmp_path):
    path = tmp_path / "timing.json"

    def seconds(resume):
        with stage_timer(path, "train", resume=resume):
            time.sleep(0.05)
        (entry,) = select(read_records(path), metric="seconds")
        return entry.value

    first = seconds(resume=False)
    assert seconds(resume=True) > first + 0.04
    assert len(read_records(path)) == 2
    before = select(read_records(path), metric="seconds")[0].value
    assert seconds(resume=False) < before


def test_a_stage_that_is_stopped_is_timed_too(tmp_path):
    with pytest.raises(KeyboardInterrupt), stage_timer(tmp_path / "timing.json", "train"):
        raise KeyboardInterrupt
    assert len(read_records(tmp_path / "timing.json")) == 2


# ------------------------------------------------------------------------------------------------------------- README


@pytest.fixture
def run(tmp_path) -> Path:
    where = {"stderr": 0.004, "horizon": 1}
    records = [measured(value=0.983, **where), measured(value=0.27, model="copy_last", **where), measured("psnr", 50)]
    write_records(tmp_path / "quickstart" / "evaluation.json", records)
    return tmp_path / "quickstart"


README = """# Title
One step is right <!-- results:quickstart/evaluation metric=exact_state model=pan -->?<!-- /results --> of the time.

<!-- results:quickstart/evaluation metric=exact_state rows=environment columns=model -->
old
<!-- /results -->
"""


def write_readme(run: Path, text: str) -> Path:
    path = run.parent / "README.md"
    path.write_text(text)
    return path


def test_readme_numbers_are_written_from_the_result_files(run):
    path = write_readme(run, README)
    assert update_page(path, [run])
    text = path.read_text()
    assert "-->98.3 ± 0.4%<!-- /results --> of the time" in text
    assert "| environment | pan | copy_last |" in text and "| Env-v0 | 98.3 ± 0.4% | 27.0 ± 0.4% |" in text
    assert "`pan evaluate --run runs/x` at abc1234 on a machine; seeds 0, 1, 2." in text
    assert check_page(path, [run]) == []


def test_a_sentence_can_say_the_minutes_and_the_hardware_of_a_run(run):
    records = [measured("seconds", seconds, model=stage) for stage, seconds in (("senses", 61.2), ("plan", 130.8))]
    write_records(run / "timing.json", records)
    spec = "<!-- results:quickstart/timing metric=seconds show={} -->?<!-- /results -->"
    path = write_readme(run, " on ".join(spec.format(show) for show in ("minutes", "hardware")))
    update_page(path, [run])
    assert re.findall("-->([^<]+)<", path.read_text()) == ["3.2 min", " on ", "a machine"]


def test_updating_a_readme_twice_changes_nothing(run):
    path = write_readme(run, README)
    update_page(path, [run])
    once = path.read_text()
    assert not update_page(path, [run])
    assert path.read_text() == once


@pytest.mark.parametrize(("true", "edited"), [("98.3 ± 0.4%<", "99.9 ± 0.1%<"), ("| 27.0 ± 0.4% |", "| 7.0 ± 0.4% |")])
def test_a_readme_number_that_is_in_no_result_file_is_caught(run, true, edited):
    path = write_readme(run, README)
    update_page(path, [run])
    path.write_text(path.read_text().replace(true, edited))
    (problem,) = check_page(path, [run])
    assert "not what its result file says" in problem


def test_a_measurement_outside_of_the_markers_is_caught_with_its_line(run):
    path = write_readme(run, "# Title\n\nIt reaches 52.1 dB.\n\n```\n99% in code is not a claim\n```\nVersion 5.23.\n")
    (problem,) = check_page(path, [run])
    assert problem.startswith("line 3: '52.1 dB'")


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("other/evaluation", FileNotFoundError, "expected <run>/<file>"),
        ("quickstart/planning", FileNotFoundError, "Run the command that writes it"),
        ("quickstart/evaluation metric=ssim", ValueError, "no record"),
        ("quickstart/evaluation metrik=ssim", ValueError, "metrik"),
        ("quickstart/evaluation show=hours", ValueError, "hours is none of minutes"),
        ("quickstart/evaluation", ValueError, "selects 3 records, expected one"),
    ],
)
def test_a_marker_that_cannot_be_filled_is_named(run, spec, error, said):
    path = write_readme(run, f"<!-- results:{spec} -->?<!-- /results -->")
    with pytest.raises(error, match=said):
        update_page(path, [run])
    assert "?" in path.read_text()
