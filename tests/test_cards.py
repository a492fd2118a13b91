"""A published card says what the result files say, its metadata included, and nothing else."""

import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from docs.measured import check_page
from pan_hf.publishing.card import FACTS, MAX_HEADLINES, check_card, rounded
from pan_hf.reporting.report import RESULT_FILES, timing_table
from pan_hf.reporting.results import MISSING, read_records
from pan_hf.reporting.tables import format_value

ROOT = Path(__file__).resolve().parent.parent
CARDS = sorted(path for path in (ROOT / "model_cards").glob("*.md") if path.name != "README.md")


def results_of(card: Path) -> Path:
    """The folder of results that a card was made from."""
    folders = [facts.parent for facts in ROOT.glob(f"docs/results/*/{FACTS}")]
    return {f"pan-{folder.name.replace('_', '-')}": folder for folder in folders}[card.stem]


def records_of(card: Path) -> list:
    files = [results_of(card) / f"{name}.json" for name in RESULT_FILES]
    return [entry for file in files if file.exists() for entry in read_records(file)]


def test_every_published_model_has_a_card_and_every_card_its_results():
    assert len(CARDS) == len(list(ROOT.glob(f"docs/results/*/{FACTS}"))) > 0
    assert all(results_of(card).is_dir() for card in CARDS)


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_has_no_figure_that_is_not_in_a_result_file(card):
    assert check_card(card, results_of(card)) == []


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_every_cell_and_every_evaluation_of_a_card_is_a_record(card):
    """The same without the code that makes cards: each is looked up among the records."""
    records = records_of(card)
    shown = {format_value(entry) for entry in records} | {MISSING, ""}
    shown |= set(timing_table([entry for entry in records if entry.split == "run"])[1][-1])  # the sum of all stages
    lines = [line for line in card.read_text().splitlines() if line.startswith("| ")]
    cells = {cell.strip() for line in lines for cell in line.split("|")[2:] if re.match(r" [–\d]+[^|a-z]*( |$)", cell)}
    cells = {cell for cell in cells if not re.match(r"\d+ steps?,", cell)}
    assert len(cells) > 10 and cells - shown == set()
    told = ModelCard.load(card).data.eval_results
    where = {(e.environment, e.split, e.metric, e.horizon, rounded(e.value, e.metric)) for e in records}
    for result in told:
        key = (result.dataset_name, result.dataset_split, result.metric_type)
        assert (*key, (result.metric_args or {}).get("horizon"), result.metric_value) in where
    assert 3 < len(told) <= MAX_HEADLINES


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_a_card_can_be_read_in_two_minutes_and_links_what_it_leaves_out(card):
    text = card.read_text()
    assert len(text.splitlines()) <= 120
    links = re.findall(r"\]\((?!http)([^)]+)\)", text)
    assert links and all((card.parent / link).exists() for link in links)


WITH_FUTURES = next(card for card in CARDS if (results_of(card) / "futures.json").exists())


@pytest.mark.parametrize(
    ("true", "edited"),
    [
        (r"\| \d\d\.\d ± \d\.\d% \|", "| 12.3 ± 4.5% |"),
        (r"      value: 0\.\d+", "      value: 0.9999"),
        (r"\n\d+ recorded episodes", "\n9999 recorded episodes"),
        (r"- Commit: \w+", "- Commit: 0000000"),
        ("## Limits", "It reaches 61.2 dB.\n\n## Limits"),
        (r"\n- A planner looks[^\n]*", ""),
    ],
)
def test_an_edited_card_is_caught(true, edited, tmp_path):
    text, changes = re.subn(true, edited, WITH_FUTURES.read_text(), count=1)
    assert changes == 1
    (tmp_path / "card.md").write_text(text)
    problems = check_card(tmp_path / "card.md", results_of(WITH_FUTURES))
    assert problems and all(problem.startswith("line ") for problem in problems)


def test_a_changed_result_file_is_caught(tmp_path):
    results = shutil.copytree(results_of(WITH_FUTURES), tmp_path / "results")
    path = results / "futures.json"
    path.write_text(re.sub(r'"value": 0\.9\d+', '"value": 0.1234', path.read_text(), count=1))
    assert check_card(WITH_FUTURES, results)


@pytest.mark.parametrize("name", ["model_card", "adapter_card", "dataset_card", "cache_card"])
def test_a_template_holds_no_figure_of_its_own(name):
    assert check_page(ROOT / "pan_hf" / "templates" / f"{name}.md.jinja", []) == []
