"""Names that somebody chose are shown as they are, in cards and reports: they format nothing and lead nowhere."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from pan_hf.publishing.card import card_text, write_card
from pan_hf.publishing.data_card import recording_card
from pan_hf.publishing.push import _adapter_card
from pan_hf.reporting.report import write_report
from pan_hf.reporting.results import record, write_records
from pan_hf.reporting.templates import code, escaped, quoted

OLD = Path(__file__).parent / "data" / "old"
NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "end\n\n# A heading\n\n---\nlicense: mit\n---\n",
    "[click](javascript:alert(1))",
    "![seen](https://example.com/pixel.png)",
    "[here]: javascript:alert(1)",
    "`</code><b>bold</b>` ``",
    "a | b | c",
    "<https://example.com>",
    "&lt;b&gt; *bold* __bold__ ~~gone~~ \\",
    '")\n```\n\nimport os  # "',
    "'; import os; '",
    "\u202etxt.exe\u2028next",
    "$x_{$ a_b",
)


def shown(value: str) -> str:
    """A name as a page shows it: in one line."""
    return " ".join(re.sub("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]+", " ", value).split())


def rendered(card: str) -> tuple[list, str]:
    """All tokens of a card's text, and the text that it shows."""
    body = card.split("\n---\n", 1)[1]
    tokens = []
    for token in MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body):
        tokens += [token, *(token.children or ())]
    return tokens, " ".join(
        " ".join(token.content for token in tokens if token.type in ("text", "code_inline")).split()
    )


def check(card: str, headings: int) -> str:
    """Nothing of a card was made by a name; returns the text that it shows."""
    tokens, text = rendered(card)
    kinds = [token.type for token in tokens]
    assert not {"html_block", "html_inline", "image", "strong_open", "em_open", "s_open", "blockquote_open"} & set(
        kinds
    )
    assert {token.attrs["href"] for token in tokens if token.type == "link_open"} <= {"results/evaluation.json"}
    assert kinds.count("heading_open") == headings and kinds.count("fence") == 1 and "code_block" not in kinds
    compile(next(token.content for token in tokens if token.type == "fence"), "card", "exec")
    return text


@pytest.mark.parametrize("name", NAMES)
def test_a_model_card_shows_a_name_and_nothing_comes_of_it(name, tmp_path):
    origin = {"command": name, "commit": name, "hardware": name}
    where = {"environment": name, "split": "test", "seeds": [0]} | origin
    measured = [record("exact_frame", 0.5, horizon=1, model=model, **where) for model in ("pan", "copy_last")]
    write_records(tmp_path / "evaluation.json", measured)
    facts = {"name": name, "model_id": name, "episodes": 1, "environments": [name], "results": "results"}
    facts |= {"base_model": name, "dataset": name, "license": None}
    facts |= {"senses": {name: {"kind": "vector", "dim": 2}}, "action": {"kind": "discrete", "num_actions": 2}}
    card = card_text(facts, tmp_path)
    text = check(card, headings=6)
    assert text.count(shown(name)) >= 6  # title, sense, base, environments, data set, tables
    about = ModelCard(card).data
    assert (about.model_name, about.base_model, about.license) == (name, name, None)


def test_a_card_links_only_to_files_beside_it_and_runs_no_text_of_a_configuration(tmp_path):
    facts = json.loads((OLD.parents[2] / "docs/results/quickstart/checkpoint.json").read_text())
    for address in (
        "javascript:alert(1)",
        "https://example.com",
        "//example.com/x",
        "/x",
        "a/../../x",
        "",
        "a) [b](c",
    ):
        with pytest.raises(ValueError, match="`results` is .*expected the path of a folder beside the card"):
            card_text(facts | {"results": address}, tmp_path)
    senses = {"camera": {"kind": "image", "height": "8)) or exit(1)", "width": 8, "channels": 3}}
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps({"senses": senses}))
    with pytest.raises(ValueError, match="`height` of a 'image' is '8\\)\\).*expected a number or a word"):
        write_card(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_data_card_shows_a_name_and_nothing_comes_of_it(name, tmp_path):
    root = shutil.copytree(OLD / "recording", tmp_path / "recording")
    info = json.loads((root / "meta" / "info.json").read_text())
    for path in root.rglob("*.parquet"):
        path.unlink()
    info["environments"] = [{"id": name, "env_args": {name: name}, "wrappers": [name]}]
    info["features"]["action"]["names"] = [name] * 5
    info["source"] = {"kind": name, "path": name}
    info["recording"] = {"policy": [name, name], "start": name, "max_episode_steps": name, "explore_steps": name}
    (root / "meta" / "info.json").write_text(json.dumps(info | {"seed": name}))
    text = check(recording_card(root, f"me/{name}", license=name), headings=6)
    assert text.count(shown(name)) >= 10


@pytest.mark.parametrize("name", NAMES)
def test_a_card_of_an_adapter_shows_a_name_and_nothing_comes_of_it(name):
    settings = {"peft_type": name, "r": name, "target_modules": name}
    about = {"ids": "[]", "base_digest": name}
    text = check(_adapter_card(f"me/{name}", name, settings, about, OLD / "adapter", None), headings=4)
    assert text.count(shown(name)) >= 4


class Tags(HTMLParser):
    """Tags of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.slow
def test_a_report_shows_names_and_nothing_comes_of_them(tmp_path):
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    for kind in ("strips", "films", "codes"):
        (tmp_path / "report" / kind).mkdir(parents=True)
    records = []
    for number, name in enumerate(NAMES):
        where = {"environment": name, "split": name, "seeds": [0], "command": name, "commit": name, "hardware": name}
        records += [record("psnr", 30, horizon=step, model=name, **where) for step in (1, 5)]
        about = {"title": name, "environment": name, "actions": [name], "success": True}
        np.savez(tmp_path / f"report/strips/{number}.npz", real=frames, imagined=frames)
        np.savez(tmp_path / f"report/films/{number}.npz", imagined=frames, carried_out=frames)
        for kind in ("strips", "films"):
            (tmp_path / f"report/{kind}/{number}.json").write_text(json.dumps(about))
    write_records(tmp_path / "evaluation.json", records)
    found = Tags(write_report(tmp_path).read_text()).found
    assert not {"script", "iframe", "b!", "base", "form", "object", "embed"} & {tag for tag, _ in found}
    attributes = [(name, value or "") for _, each in found for name, value in each.items()]
    assert not [name for name, _ in attributes if name.startswith("on")]
    addresses = [value for name, value in attributes if name in ("src", "href", "xlink:href", "action", "data")]
    assert all(value.startswith(("data:image/", "#")) for value in addresses)


def test_text_is_shown_character_by_character():
    for name in NAMES:
        inline = MarkdownIt("commonmark", {"html": True}).enable("strikethrough").parseInline(f"x {escaped(name)} x")
        assert {child.type for child in inline[0].children} == {"text"}, name
        one_line = re.sub("[\x00-\x1f\u2028\u2029\u202a-\u202e]+", " ", name)
        assert "".join(child.content for child in inline[0].children) == f"x {one_line} x"
        span = MarkdownIt("commonmark").parseInline(code(name))[0].children
        assert [child.type for child in span] == ["code_inline"] and span[0].content == one_line
        assert eval(quoted(name)) == name and "\n" not in quoted(name)
    assert escaped("MiniGrid-DoorKey-8x8-v0, pan_hf/FourRooms") == "MiniGrid-DoorKey-8x8-v0, pan_hf/FourRooms"
