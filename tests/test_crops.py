from dataclasses import replace

import pytest
import torch
from tiny_worlds import ACTIONS, SENSES, acts, observe, world_model

from pan_hf import ImageSense, PanConfig
from pan_hf.modeling.augmentation_pan import ReadoutView, crop
from pan_hf.modeling.layout_pan import group_by_token

SENSE = ImageSense(size=48, patch_size=4, level_strides=[2, 1], spatial_merge_size=4, latent_dim=0)  # 3 by 3 places


def view(rows: int, change: bool = True) -> ReadoutView:
    torch.manual_seed(0)
    current = [torch.randint(9, (1, 9 * count)).expand(rows, -1) for count in SENSE.codes_per_token]
    following = [codes.clone() for codes in current]
    if change:
        following[1][:, 3] += 1  # a cell of the first row of cells, in the first place
    places = torch.arange(9.0).view(1, 9, 1).expand(rows, -1, 2)
    return ReadoutView(SENSE, places, current, following)


def test_a_crop_shows_the_same_codes_at_the_same_places():
    whole = view(64)
    part = crop(whole, 2)
    assert part.sense.token_grid == (2, 2)
    number = part.places[:, :, 0].long()  # which place of the frame each place of the square is
    assert (number[:, 1:] - number[:, :1] == torch.tensor([1, 3, 4])).all()
    for level in range(2):
        for cut, full in ((part.current, whole.current), (part.following, whole.following)):
            expected = group_by_token(full[level], SENSE, level)[torch.arange(64).unsqueeze(1), number]
            assert torch.equal(group_by_token(cut[level], part.sense, level), expected)


@pytest.mark.slow
@pytest.mark.parametrize("change", [True, False])
def test_losses_on_crops_are_those_of_whole_frames_on_average(change):
    rows = 40_000
    part = crop(view(rows, change), 2)
    counted = torch.zeros(9).index_add_(0, part.places[:, :, 0].long().flatten(), part.weight.flatten())
    # each place counts 4 / 9 a draw; a corner is seen once in sixteen draws at least, 2% standard error: four of them
    torch.testing.assert_close(counted / rows, torch.full((9,), 4 / 9), rtol=0.08, atol=0)
    assert part.code_weight(1).shape == part.current[1].shape


def test_crops_lie_where_codes_change():
    part = crop(view(1000), 2)
    assert (part.places[:, 0, 0] == 0).float().mean() > 0.7  # all but those drawn without a look
    assert (part.current[1] != part.following[1]).any(1).float().mean() > 0.7


def test_a_square_as_large_as_the_frame_is_the_frame():
    whole = view(2)
    assert crop(whole, 3) is whole


def test_training_on_crops_reaches_every_parameter_that_whole_frames_reach_and_evaluation_is_whole():
    found = {}
    for crop_tokens in (0, 1):
        model = world_model(("camera",), crop_tokens=crop_tokens)
        batch = _encoded(model)
        model.train()
        model(objective="dynamics", **batch).loss.backward()
        found[crop_tokens] = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        model.eval()
        losses = [model(objective="dynamics", **batch).loss.item() for _ in range(2)]
        assert losses[0] == losses[1]
    assert found[0] == found[1]


def _encoded(model):
    seen = observe(model, batch=2, steps=2)
    state = model.encode(seen)
    return {
        "state": {"codes": state.codes, "latents": state.latents},
        "action": acts(model, 2, 1),
        "reward": torch.zeros(2, 1),
        "done": torch.zeros(2, 1),
    }


@pytest.mark.parametrize("wrong", [{"crop_tokens": -1}, {"crop_tokens": 2, "level0_sampling": "autoregressive"}])
def test_crops_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="crop_tokens"):
        PanConfig(senses={"camera": SENSES["camera"]}, action=ACTIONS["discrete"], **wrong)


def test_a_crop_is_told_where_it_lies():
    model = world_model(("camera", "touch"), action="vector")
    readout, numbers = model.readouts["camera"][1], torch.randn(3, model.readouts["camera"][1].drawn.stop)
    sense = SENSES["camera"]  # 2 by 2 places of 2 by 2 cells
    whole = readout.bearings(numbers[:, readout.drawn], *readout._middles(sense, None, "cpu"))
    corner = torch.tensor([[0, 0], [0, 1], [1, 0]])
    part = readout.bearings(numbers[:, readout.drawn], *readout._middles(sense_of(1), corner, "cpu"))
    whole, part = whole.unflatten(1, (4, 4)), part.unflatten(1, (2, 2))
    for row, (down, across) in enumerate(corner.tolist()):
        seen = whole[row, 2 * down : 2 * down + 2, 2 * across : 2 * across + 2]
        torch.testing.assert_close(part[row], seen, rtol=0, atol=1e-5)


def sense_of(places: int) -> ImageSense:
    sense = SENSES["camera"]
    return replace(sense, height=8 * places, width=8 * places)
