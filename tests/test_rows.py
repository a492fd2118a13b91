"""Rows of the one vocabulary: whose they are, and that they start from what their codes stand for."""

import copy

import torch
from tiny_worlds import world_model

from pan_hf import VectorAction
from pan_hf.modeling.codecs_pan import describe_digits
from pan_hf.modeling.embedding_pan import EmbeddingTable, start_rows
from pan_hf.modeling.growth_pan import VocabularyGrowth
from pan_hf.modeling.latent_head_pan import SenseLatents
from pan_hf.modeling.learning_pan import CodeLearning
from pan_hf.modeling.merging_pan import TokenMerging
from pan_hf.training import pretrain_senses


def _rows(model, part, level=0):
    offset, capacity = model.config.segments[f"{part}.{level}"]
    return model.get_input_embeddings().weight.detach()[offset : offset + capacity].clone()


def _start_codebook(model):
    book = model.senses["camera"].codebooks[0]
    book.started.fill_(True)
    with torch.no_grad():
        book.vectors[1] = book.vectors[0] + 0.01
    return book


def test_a_table_reads_and_marks_the_rows_of_the_model_it_is_asked_of():
    model = world_model(("camera",))
    deep, shallow = copy.deepcopy(model), copy.copy(model)
    row = int((~model.table.active).nonzero()[0])
    deep.table.activate([row])
    assert deep.table.active[row] and deep.table.ever_active[row] and not model.table.active[row]
    assert shallow.table.model is shallow
    deep.table.deactivate([row])
    assert not deep.table.active[row] and deep.table.ever_active[row]


def test_checkpoints_name_the_masks_at_the_top_level():
    state = world_model(("camera",)).state_dict()
    assert state["live_rows"].dtype == state["born_rows"].dtype == torch.bool


def test_what_holds_a_model_keeps_no_module_of_it():
    """Adapters and quantisers replace modules, so one that was kept would be passed over."""
    model = world_model(("camera",))
    holders = [kind(model) for kind in (EmbeddingTable, VocabularyGrowth, CodeLearning, TokenMerging)]
    for holder in [*holders, SenseLatents(model, "camera")]:
        kept = [value for value in vars(holder).values() if isinstance(value, torch.nn.Module)]
        assert kept == [model]


def test_codes_that_look_alike_start_with_rows_that_are_alike():
    model = world_model(("camera",))
    book = _start_codebook(model)
    model.table.start_code_rows(["camera"])
    rows = _rows(model, "camera")[book.live]
    distance = torch.cdist(rows, rows)
    others = distance[~torch.eye(len(rows), dtype=torch.bool)]
    assert distance[0, 1] < 0.75 * others.median()
    assert distance[0, 1] > 0  # chance keeps them apart
    assert 0.5 < rows.std() / model.config.initializer_range < 1.5


def test_rows_of_codes_that_stand_for_nothing_are_left_as_they_are():
    model = world_model(("camera",))
    before = model.get_input_embeddings().weight.detach().clone()
    model.table.start_code_rows(["camera"])  # no codebook has started
    assert torch.equal(before, model.get_input_embeddings().weight)
    book = _start_codebook(model)
    model.table.start_code_rows(["camera"])
    offset, capacity = model.config.segments["camera.0"]
    changed = (before != model.get_input_embeddings().weight).any(1)
    assert changed[offset : offset + capacity].tolist() == book.live.tolist()
    assert not changed[:offset].any()
    assert not changed[offset + capacity :].any()


def test_digits_close_to_one_another_start_alike_in_senses_and_actions():
    model = world_model(("camera", "touch"), action=VectorAction(dim=2))
    for part in ("touch", "action"):
        rows = _rows(model, part)
        distance = torch.cdist(rows, rows)
        assert distance.diagonal(1).mean() < 0.8 * distance.diagonal(len(rows) // 2).mean()


def test_rows_start_the_same_every_time_and_leave_the_chance_of_others_alone():
    rows = torch.zeros(8, 16), torch.zeros(8, 16)
    state = torch.get_rng_state()
    for table in rows:
        start_rows(table, describe_digits(8), torch.ones(8, dtype=torch.bool), 0.02, seed=3)
    assert torch.equal(*rows)
    assert rows[0].any()
    assert torch.equal(state, torch.get_rng_state())


def test_the_senses_stage_starts_rows_once_and_never_those_a_backbone_was_trained_on():
    model = world_model(("camera",))
    finish = pretrain_senses.prepare(model, None)
    _start_codebook(model)
    before = _rows(model, "camera")
    again = pretrain_senses.prepare(model, None)
    again(model, None)
    assert torch.equal(before, _rows(model, "camera"))
    finish(model, None)
    assert not torch.equal(before, _rows(model, "camera"))
