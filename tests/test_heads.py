"""What the agent's heads are told of a transition."""

import torch
from tiny_worlds import SENSES, world_model

from pan_hf.modeling.heads_pan import OutcomeHead, TransitionFeatures


def _states(*where: int) -> torch.Tensor:
    """A state of 16 places of an image and 2 of another sense, with something at some of them: `(1, 18, 8)`."""
    state = torch.zeros(1, 18, 8)
    for number, place in enumerate(where):
        state[:, place] = torch.randn(8, generator=torch.Generator().manual_seed(number))
    return state


def _spread(head: torch.nn.Module) -> torch.nn.Module:
    """With weights large enough for differences to be seen."""
    torch.manual_seed(0)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_an_outcome_is_told_by_places_that_stand_side_by_side():
    seeing, blind = (_spread(OutcomeHead(8, 16, 1.0, grids)) for grids in ({0: (4, 4)}, {}))
    context, after = torch.zeros(1, 8), _states()
    beside, apart = _states(5, 6), _states(5, 15)
    for reward_or_end in range(2):
        near, far = (seeing(state, after, context)[reward_or_end] for state in (beside, apart))
        assert (near - far).abs().max() > 1e-3
        near, far = (blind(state, after, context)[reward_or_end] for state in (beside, apart))
        torch.testing.assert_close(near, far)  # places are pooled, and know nothing of each other


def test_places_of_other_senses_are_compared_one_by_one():
    features = _spread(TransitionFeatures(8, 16, {2: (4, 4)}))
    features.around[0].weight.data.zero_()
    image_alone = features(_states(5), _states())
    features.around[0].weight.data.normal_()
    whole = features(_states(5), _states())
    assert (whole - image_alone).abs().max() > 1e-3
    swapped = _states(5)[:, [1, 0, *range(2, 18)]]  # the two places before the image, in another order
    torch.testing.assert_close(features(swapped, _states()), whole)


def test_the_head_of_a_model_knows_where_the_image_stands_in_a_state():
    model = world_model({"body": SENSES["touch"], "camera": SENSES["camera"]})
    assert model.config.senses["body"].num_state_tokens == 3
    assert model.outcome.features.grids == {3: (2, 2)}
    assert not model.inverse_dynamics.features.grids  # what the agent did shows in where it is
