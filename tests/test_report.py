"""The report and the card show what lies in a run folder, all of it, and nothing else."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from docs.film import strip_picture, write_film
from pan_hf.publishing.card import write_card
from pan_hf.reporting.figures import (
    Film,
    Strip,
    calibration_pairs,
    curves,
    horizon_plot,
    load_film,
    load_strip,
    row_png,
)
from pan_hf.reporting.report import success_interval, tidy_tables, write_report
from pan_hf.reporting.results import read_records, record, wilson, write_records
from pan_hf.reporting.tables import format_value
from pan_hf.reporting.timing import stage_timer

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ("MiniGrid-Empty-8x8-v0", "pan_hf/FourRooms-8x8-v0")
EXACT = {"1 step": 0.98, "10 steps": 0.817}  # what `evaluation` says of both environments, rounded
ORIGIN = {"command": "pan quickstart", "commit": "abc1234", "hardware": "a machine, 2 cores"}


def frames(steps: int, seed: int = 0, size: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (steps, size, size, 3), dtype=np.uint8)


def evaluation() -> list:
    records = []
    for environment in ENVIRONMENTS:
        for horizon in (1, 5, 10):
            where = {"environment": environment, "split": "test", "seeds": [0, 1], "horizon": horizon} | ORIGIN
            for model, factor in (("pan", 1.0), ("copy_last", 0.25)):
                where["model"] = model
                records.append(record("exact_state", 0.98**horizon * factor, stderr=0.0123, **where))
                records.append(record("teacher_forced_exact_state", 0.98 * factor, stderr=0.01, **where))
                records.append(record("psnr_moving", (41.3 - horizon) * (2 - factor), stderr=0.4, **where))
        where = {"environment": environment, "split": "test", "seeds": [0, 1]} | ORIGIN
        records.append(record("reconstruction_psnr", 53.7, **where))
    return records


def futures(seed: int = 0) -> list:
    records = []
    for model, shift in (("pan", 0.01), ("simulator", 0.0)):
        where = {"environment": ENVIRONMENTS[0], "split": "test", "horizon": 1} | ORIGIN
        where |= {"model": model, "seeds": [seed]}
        records += [record(f"outcome:{i}", i / 10 + shift, stderr=0.02, **where) for i in range(5)]
        records += [record("coherent_futures", 0.993, **where), record("calibration_max_z", 1.7, **where)]
    return records


def planning() -> list:
    records = []
    for model, solved in (("graph_search", 19), ("random_policy", 3)):
        where = {"environment": ENVIRONMENTS[0], "split": "unseen", "seeds": range(100, 120), "model": model} | ORIGIN
        records += [record("success", solved / 20, **where), record("episodes", 20, **where)]
        records.append(record("seconds_per_decision", 0.37, stderr=0.02, **where))
    return records


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder with everything in it."""
    run = tmp_path / "quickstart"
    write_records(run / "evaluation.json", evaluation())
    write_records(run / "futures.json", futures())
    write_records(run / "planning.json", planning())
    with stage_timer(run / "timing.json", "train senses", seeds=[0]):
        pass
    for kind in ("strips", "films", "codes"):
        (run / "report" / kind).mkdir(parents=True)
    about = {"title": "the worst of 9", "environment": ENVIRONMENTS[0], "actions": ["left", "right", "<forward>"]}
    np.savez(run / "report/strips/a.npz", real=frames(4), imagined=frames(4, seed=1))
    (run / "report/strips/a.json").write_text(json.dumps(about | {"horizon": 3}))
    np.savez(run / "report/films/b.npz", imagined=frames(4), carried_out=frames(3))
    (run / "report/films/b.json").write_text(json.dumps(about | {"title": "seed 100", "success": True}))
    Image.fromarray(frames(1)[0]).save(run / "report/codes/level_0.png")
    checkpoint = run / "checkpoint"
    checkpoint.mkdir()
    senses = {"camera": {"kind": "image", "height": 64, "width": 64, "channels": 3}, "mission": {"kind": "text"}}
    action = {"kind": "discrete", "num_actions": 7}
    (checkpoint / "config.json").write_text(json.dumps({"senses": senses, "action": action}))
    trained = {"fingerprints": ["0" * 16] * 421, "environments": list(ENVIRONMENTS), "root": "data"}
    (checkpoint / "training_data.json").write_text(json.dumps(trained))
    return run


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], "", []
        self.feed(content)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "poster")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


# ------------------------------------------------------------------------------------------------------------- report


@pytest.mark.slow
def test_the_report_is_one_well_formed_file_without_script_or_link(run):
    path = write_report(run)
    page = Page(path.read_text())
    assert path == run / "report.html" and page.open == []
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert page.addresses and all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "@import" not in path.read_text() and not re.search(r"url\((?!#)", path.read_text())


@pytest.mark.slow
def test_the_report_shows_every_record_of_the_run(run):
    text = Page(write_report(run).read_text()).text
    for name in ("evaluation", "futures", "planning", "timing"):
        for entry in read_records(run / f"{name}.json"):
            assert format_value(entry) in text
            assert entry.environment in text or name == "timing"
            assert entry.command in text and entry.commit in text and entry.hardware in text
    assert "seeds 0, 1" in text and "20 seeds from 100 to 119" in text


@pytest.mark.slow
def test_the_report_puts_headlines_beside_the_baselines(run):
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert "98.0 ± 1.2% exact state, 1 step ahead copy last frame: 24.5 ± 1.2%" in text
    assert "95.0% of unseen starts solved by graph search random policy: 15.0%" in text


@pytest.mark.slow
def test_the_report_names_actions_safely(run):
    assert "&lt;forward&gt;" in write_report(run).read_text()


def test_the_report_of_an_empty_run_says_what_to_run(tmp_path):
    text = Page(write_report(tmp_path).read_text()).text
    for command in ("evaluate", "plan", "train"):
        assert f"pan {command} --run {tmp_path}" in text


def test_a_report_of_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(NotADirectoryError, match="is not a run folder"):
        write_report(tmp_path / "nowhere")


@pytest.mark.slow
def test_files_still_being_written_are_left_out(run):
    (run / "report/strips/.a.1.tmp.npz").write_bytes(b"half")
    write_report(run)


@pytest.mark.slow
def test_the_pictures_in_the_report_are_the_frames(run):
    image = r'<span class="label">imagined</span><img src="data:image/png;base64,([^"]+)"'
    source = re.search(image, write_report(run).read_text())[1]
    row = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))))
    assert np.array_equal(row[:, 18 + 1 : 18 + 17, :3], frames(4, seed=1)[1])  # cells of 16 + 2 transparent columns
    assert (row[:, 17:19, 3] == 0).all()


# ----------------------------------------------------------------------------------------------------------- pictures


def test_a_strip_numbers_its_steps_from_the_observed_frame():
    given = Strip(frames(3), frames(3), actions=["left", "right"])
    assert given.steps() == [("0", "start"), ("1", "left"), ("2", "right")]
    assert given.verdicts() == ["", "exact", "exact"]
    imagined_only = Strip(frames(2), frames(2), actions=["left", "right"])
    assert imagined_only.steps() == [("1", "left"), ("2", "right")]


def test_a_wrong_frame_is_not_called_exact():
    wrong = frames(2).copy()
    wrong[1, 0, 0, 0] ^= 128
    assert Strip(frames(2), wrong, actions=["a", "b"]).verdicts() == ["exact", "34.8 dB"]  # 10 log10(768 (255/128)^2)


def test_the_difference_row_is_white_only_where_nothing_differs():
    wrong = frames(2).copy()
    wrong[1, 3, 4, 2] ^= 255
    label, difference = Strip(frames(2), wrong).rows()[-1]
    assert label == "difference"
    assert np.argwhere((difference < 255).any(-1)).tolist() == [[1, 3, 4]]


def test_a_difference_that_is_nil_is_said_and_not_drawn(tmp_path):
    same = Strip(frames(2), frames(2))
    assert [label for label, _ in same.rows()] == ["real", "imagined"]
    folder = tmp_path / "report" / "strips"
    folder.mkdir(parents=True)
    np.savez(folder / "same.npz", real=frames(2), imagined=frames(2))
    page = write_report(tmp_path).read_text()
    assert "no pixel differs" in page and 'alt="difference' not in page


def test_a_film_shows_both_sides_and_waits_for_the_longer_one():
    film = Film(frames(4), frames(2, seed=1))
    picture = Image.open(io.BytesIO(film.webp()))
    assert picture.n_frames == 4 and picture.size == (2 * 16 + 2, 16 + 3)
    picture.seek(3)
    last = np.asarray(picture.convert("RGB"))
    assert np.array_equal(last[:16, :16], frames(4)[3]) and np.array_equal(last[:16, 18:], frames(2, seed=1)[1])


def test_the_strip_of_a_film_has_the_steps_that_both_have():
    strip = Film(frames(4), frames(3), actions=["a", "b", "c"]).strip()
    assert len(strip) == 3 and strip.steps() == [("0", "start"), ("1", "a"), ("2", "b")]
    assert [label for label, _ in strip.rows()][:2] == ["carried out", "imagined"]


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"real": frames(2)}, "has no \\['imagined'\\]"),
        ({"real": frames(2), "imagined": frames(3)}, "different lengths"),
        ({"real": frames(2), "imagined": frames(2).astype(np.float32)}, "float32 .* expected uint8"),
    ],
)
def test_a_malformed_strip_is_named(tmp_path, arrays, said):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=f"a.npz.*{said}"):
        load_strip(tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_strip_is_named(tmp_path, save):
    save(tmp_path / "a.npz", real=frames(2), imagined=frames(2))
    whole = (tmp_path / "a.npz").read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 255]) + whole[301:]
    for damaged in (whole[:-40], flipped, b""):
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match="a.npz is no .npz of frames, or damaged"):
            load_strip(tmp_path / "a.npz")


def test_frames_stored_as_pickled_objects_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", imagined=np.array([{"a": 1}], dtype=object), carried_out=frames(1))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_film(tmp_path / "a.npz")


def test_a_strip_can_be_kept_as_one_picture(tmp_path):
    path = strip_picture(Strip(frames(5), frames(5, seed=1), codes_only=frames(5)), tmp_path / "strip.png")
    assert Image.open(path).size == (92 + 5 * (96 + 4), 3 * 16 + 4 * (96 + 4))
    assert len(row_png(frames(5))) > 0


@pytest.mark.slow
def test_curves_are_drawn_for_what_was_measured_at_several_horizons(tmp_path):
    assert curves(evaluation()) == [(m, e) for m in ("exact_state", "psnr_moving") for e in ENVIRONMENTS]
    with Image.open(horizon_plot(evaluation(), tmp_path / "horizon.png")) as picture:
        assert picture.width > 600
    with pytest.raises(ValueError, match="two horizons or more"):
        horizon_plot(planning(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


@pytest.mark.slow
def test_a_curve_runs_through_the_measured_values(run):
    """The line's vertices in the SVG are an affine image of (horizon, value)."""
    svg = re.search(r"<svg.*?</svg>", write_report(run).read_text(), re.DOTALL)[0]
    line = re.search(r'<path d="(M [^"]*?)"[^>]*style="fill: none; stroke: #3b82f6', svg)[1]
    drawn = np.array([point.split() for point in re.split(r"[ML]", line) if point.strip()], float)
    true = np.array([[h, 0.98**h] for h in (1, 5, 10)])
    for axis in (0, 1):
        assert abs(np.corrcoef(drawn[:, axis], true[:, axis])[0, 1]) == pytest.approx(1, abs=1e-6)


# ------------------------------------------------------------------------------------------------------------- tables


def test_a_success_interval_is_the_one_measured_else_wilsons_else_the_standard_errors():
    success, episodes, _ = planning()[:3]
    assert success_interval(success, planning()) == wilson(19, 20)
    where = {"environment": success.environment, "split": "unseen", "seeds": [], "model": "graph_search"}
    bounds = [record("success_low", 0.7, **where), record("success_high", 0.99, **where)]
    assert success_interval(success, [success, episodes, *bounds]) == (0.7, 0.99)
    assert success_interval(record("success", 0.5, stderr=0.1, **where), []) == pytest.approx((0.304, 0.696))
    assert success_interval(success, []) is None


def test_seeds_become_columns_only_where_they_tell_records_apart():
    where = {"environment": "E", "split": "test"}
    one = [record("psnr", 1, seeds=[0], **where), record("ssim", 1, seeds=[1], **where)]
    assert tidy_tables(one)[0][0] == ["", "PAN"]
    two = [record("psnr", 1, seeds=[0], **where), record("psnr", 1, seeds=[1], **where)]
    assert len(tidy_tables(two)[0][0]) == 3


# --------------------------------------------------------------------------------------------------------------- card


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])", text))


def test_every_number_of_a_card_comes_from_the_run(run):
    text = write_card(run, model_id="me/pan").read_text()
    body = re.sub(r"```.*?```", "", text.split("\n---\n", 1)[1], flags=re.DOTALL)
    known = {"421"}  # episodes, from training_data.json
    for name in ("evaluation", "futures", "planning", "timing"):
        for entry in read_records(run / f"{name}.json"):
            shown = (format_value(entry), entry.horizon, entry.seeds, entry.command, entry.commit, entry.hardware)
            known |= numbers(" ".join(map(str, shown)))
    known |= numbers(" ".join(f"{100 * bound:.1f}" for bound in wilson(19, 20)))
    known |= {"0.0"}  # minutes of all stages together
    for constant in ("64x64 image", "one of 7 actions", "95% interval", "20 seeds", *ENVIRONMENTS):
        assert constant in body
        body = body.replace(constant, "")
    assert numbers(body) - known == set()


def test_a_card_carries_the_evaluation_as_hub_metadata(run):
    card = ModelCard.load(write_card(run, model_id="me/pan", base_model="a/b"))
    assert card.data.library_name == "transformers" and card.data.base_model == "a/b"
    values = {(r.dataset_name, r.metric_name): r.metric_value for r in card.data.eval_results}
    coherent = {(ENVIRONMENTS[0], "coherent futures, 1 step ahead"): 0.993}
    exact = {(name, f"exact state, {when} ahead"): value for when, value in EXACT.items() for name in ENVIRONMENTS}
    assert values == {(ENVIRONMENTS[0], "success, graph search"): 0.95} | coherent | exact
    assert card.data.pipeline_tag == "reinforcement-learning" and "world-model" in card.data.tags


@pytest.mark.slow
def test_futures_of_several_seeds_are_told_apart(run):
    write_records(run / "futures.json", [*futures(0), *futures(1)])
    card = ModelCard.load(write_card(run, model_id="me/pan"))
    names = [result.metric_name for result in card.data.eval_results if result.metric_type == "coherent_futures"]
    assert names == [f"coherent futures, 1 step ahead, seed {seed}" for seed in (0, 1)]
    page = write_report(run).read_text()
    assert page.count("calibration max z, seed 0") == page.count("calibration max z, seed 1") == 1
    pairs = calibration_pairs([*futures(0), *futures(1)])
    assert len(pairs) == 10 and all(true.seeds == ours.seeds and true.metric == ours.metric for true, ours in pairs)


def test_a_card_says_how_the_model_was_made_and_how_to_load_it(run):
    text = write_card(run, model_id="me/pan").read_text()
    assert 'AutoModel.from_pretrained("me/pan", trust_remote_code=True)' in text
    assert "421 recorded episodes of MiniGrid-Empty-8x8-v0, pan_hf/FourRooms-8x8-v0" in text
    snippet = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    compile(snippet, "card", "exec")
    assert '"camera": np.zeros((64, 64, 3), np.uint8)' in snippet


def test_a_card_names_where_the_model_does_not_beat_copying(run):
    text = write_card(run).read_text()
    assert "copying the last frame in PSNR moving: at horizon 1 40.3 ± 0.4 dB against 70.5 ± 0.4 dB; at" in text
    assert "copying the last frame in exact state" not in text
    assert "the best planner (graph search) solves 95.0% of unseen starts" in text


@pytest.mark.slow
def test_where_no_goal_is_defined_a_card_tells_the_return_beside_random_play_and_no_success(run):
    played = []
    for model, reward, steps in (("pan/cem", 21.5, 22), ("random_policy", 23.0, 23)):
        where = {"environment": "CartPole-v1", "split": "unseen", "seeds": [100], "model": model} | ORIGIN
        played += [record("return", reward, **where), record("steps", steps, **where), record("episodes", 1, **where)]
    write_records(run / "planning.json", [*planning(), *played])
    text = write_card(run, model_id="me/pan").read_text()
    assert "| environment | model | return | steps | episodes |" in text
    assert "| CartPole-v1 | pan/cem | 21.5 | 22.0 | 1 |" in text
    assert "CartPole-v1: the best planner (pan/cem) is no better than random play in return: 21.5 against 23." in text
    assert not re.search(r"CartPole-v1: the best planner \(pan/cem\) solves", text)
    told = {(r.dataset_name, r.metric_type): r.metric_value for r in ModelCard(text).data.eval_results}
    assert told["CartPole-v1", "return"] == 21.5 and ("CartPole-v1", "success") not in told
    page = " ".join(Page(write_report(run).read_text()).text.split())
    assert "21.5 mean return of pan/cem random policy: 23" in page and "solved by pan/cem" not in page


def test_a_card_of_an_unmeasured_run_says_so(tmp_path):
    text = write_card(tmp_path, tmp_path / "card.md").read_text()
    assert text.count("Not measured.") == 2 and "kept no record of its training" in text


# --------------------------------------------------------------------------------------------------------------- film


def test_the_film_of_the_readme_shows_world_and_dream_step_by_step(tmp_path):
    real, imagined = frames(3, size=64), frames(3, seed=1, size=64)
    with Image.open(write_film(Strip(real, imagined, actions=["left", "right"]), tmp_path / "dream.webp")) as film:
        assert (film.format, film.n_frames, film.info["loop"]) == ("WEBP", 3, 0)
        for step in range(3):
            film.seek(step)
            shown = np.asarray(film.convert("RGB"))[36:356]
            for start, side in ((16, real), (352, imagined)):
                assert np.array_equal(shown[:, start : start + 320], side[step].repeat(5, 0).repeat(5, 1))
