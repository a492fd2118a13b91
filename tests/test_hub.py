"""What is pushed to a Hub and loaded again is the very same, and a Hub that stumbles leaves everything as it was."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import FIRST, hub
from huggingface_hub import DatasetCard, ModelCard
from tiny_worlds import build_board, record_board

from pan_hf import PanModel, PanProcessor
from pan_hf.checkpoints import find_recording, save_checkpoint
from pan_hf.data.episodes import read_info
from pan_hf.data.trajectories import load_trajectories
from pan_hf.evaluation.evaluate import evaluate
from pan_hf.hub import HubError, address, hub_id, on_disk
from pan_hf.publishing.card import FACTS, check_card
from pan_hf.publishing.push import push_adapter, push_checkpoint, push_recording
from pan_hf.reporting.results import record, write_records
from pan_hf.training.run_folder import publish

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys, pathlib, torch
from pan_hf import PanModel, PanProcessor
from pan_hf.cli import app

run = sys.argv[1]
def pan(*arguments):
    app(list(arguments))

pan("push", "--run", run, "--repo", "user/board", "--data", "--license", "cc0-1.0")
pan("push", "--run", run, "--repo", "user/pan", "--dataset", "user/board", "--private")

from transformers import AutoModel, AutoProcessor
folder = f"{run}/checkpoint"
model, processor = PanModel.from_pretrained(folder).eval(), PanProcessor.from_pretrained(folder)
def same(loaded, again):
    again.check_model(loaded)
    again.attach(loaded)
    assert again.vocabulary_digest == processor.vocabulary_digest
    assert again.tokenizer.merges.pairs == processor.tokenizer.merges.pairs
    before = dict(model.state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())

for trust in ({}, {"trust_remote_code": True}):
    same(AutoModel.from_pretrained("user/pan", **trust), AutoProcessor.from_pretrained("user/pan", **trust))

# the model alone is enough to measure it: it names the commit of the recording it was trained on
pan("evaluate", "--model", "user/pan", "--run", f"{run}/theirs", "--horizon", "1", "--windows", "4")
pan("vocabulary", "--model", "user/pan", "--run", f"{run}/theirs")
assert {"evaluation.json", "vocabulary.png"} <= {path.name for path in (pathlib.Path(run) / "theirs").iterdir()}

from datasets import load_dataset
from pan_hf import load_trajectories
rows, ours = load_dataset("user/board"), load_trajectories(f"{run}/data", "train")
assert rows["train"].num_rows == len(ours) and set(rows) == {"train", "test"}
assert rows["train"]["action"][:] == ours.actions.tolist()
frame = torch.tensor(list(rows["train"][3]["observation.camera"].getdata()))
assert torch.equal(frame, torch.tensor(ours.observations["camera"][3]).flatten(1).T)

# the same where more episodes would stand in one folder than a Hub takes
from pan_hf import data_card, push
data_card.MAX_FILES = 2
push.push_recording(run, "user/many")
assert load_dataset("user/many", split="train")["action"][:] == ours.actions.tolist()

# it grows, and goes there and back the way any model of Transformers does
processor.attach(model)
word, = model.grow("text", names=["icepick"])
model.grow("action.0", names=["jump"])
place = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [2.0, 3.0], [2.0, 2.0]]]).repeat(16, 1, 1)
assert model.merge("place", place, count=2)[-1].accepted
model.push_to_hub("user/pan")
processor.push_to_hub("user/pan")
loaded, again = PanModel.from_pretrained("user/pan").eval(), PanProcessor.from_pretrained("user/pan")
same(loaded, again)
prompt = torch.tensor([[5, word, 70, *processor.tokenizer.merges.pairs[0]]])
assert torch.equal(loaded(prompt).logits, model(prompt).logits)

# an adapter of what is on the Hub, with a word that its base has not
from peft import LoraConfig, get_peft_model
from pan_hf.adapters import load_adapter, save_adapter
loaded.grow("text", names=["crampon"])
torch.manual_seed(0)
targets = r"language_model\\..*\\.(q|v)_proj"
adapted = get_peft_model(loaded, LoraConfig(r=2, target_modules=targets, init_lora_weights=False)).eval()
save_adapter(adapted, f"{run}/adapter")
pan("push", "--run", run, "--repo", "user/pan-adapter", "--adapter")
base, its = PanModel.from_pretrained("user/pan"), PanProcessor.from_pretrained("user/pan")
its.attach(base)
theirs = load_adapter(base, "user/pan-adapter").eval()
assert its.tokenizer.has_word("crampon") and not processor.tokenizer.has_word("crampon")
assert torch.equal(theirs(input_ids=prompt).logits, adapted(input_ids=prompt).logits)
assert not torch.equal(theirs(input_ids=prompt).logits, model(prompt).logits)
print("the same")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a recording, an untrained checkpoint of it, and a result."""
    run = tmp_path_factory.mktemp("runs") / "board"
    trajectories = load_trajectories(record_board(run / "data", episodes=6), "train")
    trained = {"fingerprints": trajectories.fingerprints, "environments": ["TestPanBoard-v0"], "root": "../data"}
    save_checkpoint(run / "checkpoint", *build_board(trajectories), {"training_data.json": json.dumps(trained)})
    where = {"environment": "TestPanBoard-v0", "split": "test", "seeds": [0], "horizon": 1}
    measured = [record("exact_state", 0.875, stderr=0.0123, **where), record("psnr", 31.25, **where)]
    write_records(run / "evaluation.json", measured)
    return run


@pytest.fixture(scope="module")
def short(run, tmp_path_factory):
    """The same without the files of code, which are many: what a Hub does to one file it does to any."""
    short = tmp_path_factory.mktemp("short") / "board"
    shutil.copytree(run, short, ignore=shutil.ignore_patterns("*_pan.py"))
    return short


@pytest.mark.slow
def test_model_processor_adapter_and_recording_go_to_a_hub_and_come_back_the_same(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with hub(tmp_path / "hub") as server:
        home = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.endpoint}
        home |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0", "OMP_NUM_THREADS": "1", "HF_TOKEN": "any"}
        home |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run")]
        done = subprocess.run(command, env=os.environ | home, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.strip().endswith("the same")
        first = server.commits("user/pan")[1]
        assert {"model.safetensors", "processor_config.json", "README.md"} <= set(server.files("user/pan", at=first))


# Below, pushes and downloads run in this process, against a Hub told to stumble


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its hash."""
    files = (path for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_checkpoint_is_one_commit_of_model_processor_results_and_a_card_that_tells_them(run, server):
    before = contents(run)
    commit = push_checkpoint(run, "user/pan", license="mit")
    assert server.commits("user/pan") == [FIRST, commit.oid] and contents(run) == before
    there = on_disk("user/pan")
    ours = contents(run / "checkpoint")
    theirs = contents(there)
    assert {name for name, mark in ours.items() if theirs.get(name) != mark} == {"training_data.json"}
    known = json.loads((there / "training_data.json").read_text())
    assert known == {"fingerprints": load_trajectories(run / "data", "train").fingerprints,
                     "environments": ["TestPanBoard-v0"]}  # and no path of this machine  # fmt: skip
    assert check_card(there / "README.md", there / "results") == []
    card = ModelCard.load(there / "README.md").data
    assert (card.license, card.library_name, card.pipeline_tag) == ("mit", "transformers", "reinforcement-learning")
    assert {"world-model", "pan", "gymnasium"} <= set(card.tags)
    told = {result.metric_type: (result.metric_value, result.metric_args) for result in card.eval_results}
    assert told == {"exact_state": (0.875, {"horizon": 1}), "psnr": (31.2, {"horizon": 1})}
    (there / "README.md").write_text((there / "README.md").read_text().replace("87.5 ±", "97.5 ±"))
    assert len(check_card(there / "README.md", there / "results")) == 1


@pytest.mark.slow
def test_a_model_that_is_saved_and_pushed_goes_with_its_processor_in_one_commit(short, server, tmp_path):
    model, processor = (
        PanModel.from_pretrained(short / "checkpoint"),
        PanProcessor.from_pretrained(short / "checkpoint"),
    )
    processor.attach(model)
    model.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="user/both", private=True)
    assert {"model.safetensors", "processor_config.json", "config.json"} <= set(server.files("user/both"))
    assert len(server.commits("user/both")) == 2  # the first one makes the repository
    assert PanProcessor.from_pretrained(tmp_path / "saved").vocabulary_digest == processor.vocabulary_digest


@pytest.mark.slow
def test_weights_that_a_new_checkpoint_lacks_go_with_its_commit_and_files_of_the_user_stay(short, server, tmp_path):
    shutil.copytree(short / "checkpoint", tmp_path / "old")
    shutil.copy(tmp_path / "old" / "model.safetensors", tmp_path / "old" / "model-00001-of-00002.safetensors")
    push_checkpoint(tmp_path / "old", "user/pan")
    huggingface_hub.HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="film.webp", repo_id="user/pan")
    assert {"film.webp", "model-00001-of-00002.safetensors"} <= set(server.files("user/pan"))
    push_checkpoint(short, "user/pan")
    assert "film.webp" in server.files("user/pan")
    assert "model-00001-of-00002.safetensors" not in server.files("user/pan")
    assert len(server.commits("user/pan")) == 4
    push_checkpoint(short, "user/pan")  # nothing new, no commit
    assert len(server.commits("user/pan")) == 4


@pytest.mark.slow
def test_a_recording_is_a_data_set_with_its_card_read_at_any_commit(short, server, tmp_path, monkeypatch):
    first = push_recording(short, "user/board", license="cc0-1.0")
    theirs, ours = load_trajectories("user/board", "test"), load_trajectories(short / "data", "test")
    assert theirs.fingerprints == ours.fingerprints and theirs.seeds == ours.seeds
    there = on_disk("user/board", "dataset")
    kept = {name: mark for name, mark in contents(there).items() if name not in ("README.md", ".gitattributes")}
    assert kept == contents(short / "data")
    card = DatasetCard.load(there / "README.md")
    about, info = card.data.to_dict(), read_info(short / "data")
    assert (about["license"], about["size_categories"], about["configs"][0]["data_files"]) == (
        "cc0-1.0", ["n<1K"], [{"split": split, "path": f"data/{split}/*.parquet"} for split in ("train", "test")]
    )  # fmt: skip
    frames = {split["name"]: split["num_examples"] for split in about["dataset_info"]["splits"]}
    assert frames == {split: len(load_trajectories(short / "data", split)) for split in ("train", "test")}
    features = {feature["name"] for feature in about["dataset_info"]["features"]}
    assert {"observation.camera", "observation.place", "action", "next.reward"} <= features
    for split in ("train", "test"):
        assert f"| TestPanBoard-v0 | {split} | {info['episodes'][split]} | {frames[split]} |" in card.text
    for fact in ("Policy: `random`", "16x16x3 image", "from (0, 0) to (3, 3)", "one of 5 actions"):
        assert fact in card.text
    other = record_board(tmp_path / "other", episodes=4, seed=1)
    monkeypatch.setattr("pan_hf.publishing.data_card.MAX_FILES", 2)  # more would stand in one folder than a Hub takes
    push_recording(other, "user/board")
    assert set(server.files("user/board", "datasets")) > {"data/train/001/episode_000003.parquet", "meta/info.json"}
    assert load_trajectories("user/board", "train").seeds == load_trajectories(other, "train").seeds
    assert load_trajectories("user/board", "test", revision=first.oid).seeds == ours.seeds
    assert load_trajectories(f"hf://datasets/user/board@{first.oid}", "test").seeds == ours.seeds
    assert not [name for name in server.files("user/board", "datasets") if "episode_000005" in name]


PUSH_FAILURES = [
    ("repos/create", 401, "log in with `hf auth login`"),
    ("repos/create", 403, "HF_TOKEN to a token that may"),
    ("preupload", 404, "no such repository"),
    ("validate-yaml", 400, "It was refused"),
    ("PUT /lfs", 500, "failed 3 times"),
    ("commit/main", 409, "Someone else was writing"),
    ("commit/main", 500, "failed 3 times"),
    ("commit/main", "drop", "The connection broke off"),
]


@pytest.mark.slow
def test_a_push_that_fails_says_what_to_do_changes_nothing_and_goes_through_later(short, server):
    before = contents(short)
    for where, how, said in PUSH_FAILURES:
        server.fail(where, how, times=10**6)
        with pytest.raises(HubError, match=f"Could not push the model user/pan .*{said}"):
            push_checkpoint(short, "user/pan")
        assert server.commits("user/pan") in ([], [FIRST]) and contents(short) == before
        server.failures.clear()
    push_checkpoint(short, "user/pan")
    assert len(server.commits("user/pan")) == 2


@pytest.mark.slow
def test_a_hub_that_stumbles_once_gets_the_commit_once(short, server):
    for how in (409, 412, 500, "drop", "lose"):
        server.fail("commit/main", how)
        push_checkpoint(short, f"user/pan-{how}")
        assert not any(failure.times for failure in server.failures)
        assert len(server.commits(f"user/pan-{how}")) == 2  # also where it was made and only its answer was lost
        assert set(server.files(f"user/pan-{how}")) > {"model.safetensors", "README.md", "results/evaluation.json"}


@pytest.mark.slow
def test_a_commit_of_someone_else_in_between_is_built_upon_and_not_overwritten(short, server, monkeypatch):
    push_checkpoint(short, "user/pan")
    create = huggingface_hub.HfApi.create_commit
    theirs = [huggingface_hub.CommitOperationAdd("theirs.txt", b"hello")]

    def late(api, repo_id, operations, **settings):
        if theirs:
            create(api, repo_id, [theirs.pop()], commit_message="theirs")
        return create(api, repo_id, operations, **settings)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", late)
    push_checkpoint(short, "user/pan", license="mit")
    assert "theirs.txt" in server.files("user/pan") and len(server.commits("user/pan")) == 4


@pytest.mark.slow
def test_a_recording_that_breaks_off_is_no_recording_yet_and_goes_on_where_it_was(short, server):
    before = contents(short)
    server.fail("commit/main", 500, times=10**6)
    with pytest.raises(HubError, match="Could not push the data set user/board .*failed 3 times"):
        push_recording(short, "user/board")
    server.failures.clear()
    server.fail("validate-yaml", 403, times=10**6)  # the second commit's first question
    with pytest.raises(HubError, match="hf auth login"):
        push_recording(short, "user/board")
    assert len(server.commits("user/board", "datasets")) == 2
    with pytest.raises(FileNotFoundError, match="user/board@.* is no recording, or is still being pushed"):
        load_trajectories("user/board", "test")
    server.failures.clear()
    sent = len([request for request in server.asked if request.startswith("PUT")])
    push_recording(short, "user/board")
    assert len(load_trajectories("user/board", "test")) and contents(short) == before
    assert len([request for request in server.asked if request.startswith("PUT")]) == sent


LOAD_FAILURES = [
    ("api/models", 401, "log in with `hf auth login`"),
    ("api/models", 404, "There is no such repository"),
    ("api/models", 500, "failed 3 times"),
    ("api/models", "drop", "The connection broke off"),
    ("HEAD /user/pan/resolve", 401, "log in with"),
    ("GET /user/pan/resolve", 500, "failed 3 times"),
    ("GET /user/pan/resolve.*model.safetensors", "drop", "The connection broke off"),
]


@pytest.mark.slow
def test_a_load_that_fails_says_what_to_do_and_goes_through_later(short, server):
    push_checkpoint(short, "user/pan")
    for where, how, said in LOAD_FAILURES:
        server.fail(where, how, times=10**6)
        with pytest.raises(HubError, match=f"Could not download the model user/pan .*{said}"):
            on_disk("user/pan")
        server.failures.clear()
    assert contents(on_disk("user/pan"))["model.safetensors"] == contents(short / "checkpoint")["model.safetensors"]


@pytest.mark.slow
def test_a_download_cut_half_way_goes_on_in_the_middle(short, server):
    push_checkpoint(short, "user/pan")
    server.fail("GET /user/pan/resolve.*model.safetensors", "drop")
    there = on_disk("user/pan")
    assert contents(there)["model.safetensors"] == contents(short / "checkpoint")["model.safetensors"]


@pytest.mark.slow
def test_what_is_wrong_here_is_found_before_anything_is_sent(short, server, tmp_path):
    def of_another(path):
        path.write_text(path.read_text().replace('"vocabulary_digest": "', '"vocabulary_digest": "x'))

    for name, harm, said in (
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:9999]), "cut short or damaged"),
        ("vocabulary.json", Path.unlink, "no whole checkpoint: .*vocabulary.json"),
        ("config.json", of_another, "belongs to the vocabulary x"),
    ):
        shutil.copytree(short / "checkpoint", tmp_path / "harmed" / name)
        harm(tmp_path / "harmed" / name / name)
        with pytest.raises(ValueError, match=said):
            push_checkpoint(tmp_path / "harmed" / name, "user/pan")
    with pytest.raises(FileNotFoundError, match="No adapter at"):
        push_adapter(short, "user/adapter")
    shutil.copytree(short / "data", tmp_path / "stopped")
    info = read_info(short / "data") | {"complete": False}
    (tmp_path / "stopped" / "meta" / "info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="stopped before its end"):
        push_recording(tmp_path / "stopped", "user/board")
    with pytest.raises(ValueError, match="is no Hub id"):
        push_checkpoint(short, "user/pan", dataset=str(short / "data"))
    with pytest.raises(ValueError, match="license: expected a name, got ''"):
        push_checkpoint(short, "user/pan", license="")
    assert server.asked == []
    push_checkpoint(short, "user/pan")
    with pytest.raises(ValueError, match="user/pan is public already"):
        push_checkpoint(short, "user/pan", private=True)


def test_an_id_is_not_a_folder_and_a_folder_is_not_an_id(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_id("user/pan@v1").revision == "v1" and hub_id("hf://datasets/user/board", "dataset").id == "user/board"
    for path in ("runs/mine", "/a/b", "./a/b", "../a", "one", "a/b/c", Path("user/pan")):
        assert hub_id(path) is None
    assert hub_id("hf://runs/mine").id == "runs/mine"
    with pytest.raises(ValueError, match="not the address of a dataset"):
        hub_id("hf://user/pan", "dataset")
    with pytest.raises(ValueError, match="a folder, which has no revision"):
        on_disk(tmp_path, revision="main")
    with pytest.raises(HubError, match="no such repository"):
        on_disk("nobody/nothing")
    with pytest.raises(ValueError, match="results need a folder"):
        evaluate("user/pan")
    assert address("/x/datasets--user--a-b/snapshots/" + FIRST) == f"hf://datasets/user/a-b@{FIRST}"
    assert address(tmp_path) is None
    with pytest.raises(FileNotFoundError, match="does not name a recording"):
        find_recording(tmp_path, None)


@pytest.mark.slow
def test_a_model_names_what_it_began_as_and_the_commit_it_was_trained_on(short, server, tmp_path):
    data = push_recording(short, "user/board")
    shutil.copytree(short, tmp_path / "run")
    (tmp_path / "run" / "stages").mkdir()
    (tmp_path / "run" / "stages" / "settings.json").write_text(json.dumps({"backbone": "someone/lm"}))
    commit = push_checkpoint(tmp_path / "run", "user/pan", dataset="user/board", revision="trial")
    assert FIRST == server.commits("user/pan")[0] and not {"README.md"} & set(server.files("user/pan"))
    there = on_disk("user/pan@trial")
    assert there.name == commit.oid
    card = ModelCard.load(there / "README.md")
    assert (card.data.base_model, card.data.datasets, card.data.license) == ("someone/lm", ["user/board"], None)
    assert "`someone/lm`, whose license holds on" in card.text
    assert json.loads((there / "results" / FACTS).read_text())["base_model"] == "someone/lm"
    assert find_recording(there, None).name == data.oid
    stage = tmp_path / "stage"  # trained on the published data set, a checkpoint names its commit as well
    shutil.copytree(short / "checkpoint", stage)
    publish(stage, tmp_path / "again" / "checkpoint", on_disk("user/board", "dataset"))
    assert find_recording(tmp_path / "again" / "checkpoint", None).name == data.oid
    push_checkpoint(tmp_path / "again", "user/again")
    assert f"@{data.oid}" in json.loads((on_disk("user/again") / "training_data.json").read_text())["root"]
