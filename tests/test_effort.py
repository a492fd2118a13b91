"""Part of a next state: any prefix of blocks is a belief, few places are looked at, and what is left out costs
nothing."""

import itertools

import pytest
import torch
from tiny_worlds import acts, observe, world_model

from pan_hf import Belief, Effort, ImageSense
from pan_hf.modeling.augmentation_pan import nested_dropout
from pan_hf.modeling.backbone_pan import BackboneRun, embed_queries, embed_step
from pan_hf.modeling.blocks_pan import may_follow
from pan_hf.modeling.effort_pan import ChangePredictor, as_effort, changed_tokens, likely_changes
from pan_hf.modeling.layout_pan import TokenSelection, group_by_token, spread_codes
from pan_hf.modeling.objectives_pan import _teacher_forced
from pan_hf.modeling.state_pan import ABSENT, State

EVERYTHING = ("camera", "touch", "heard", "mission")
CLOSE = {"atol": 2e-5, "rtol": 2e-5}
LAYOUTS = [
    pytest.param("qwen3", {"context_steps": 1}, id="markov"),
    pytest.param("qwen3", {"context_steps": 1, "fold_levels": False}, id="markov-a-pass-a-level"),
    pytest.param("llama", {"context_steps": 3, "fold_levels": False}, id="llama-a-pass-a-level"),
    pytest.param("gpt2", {"context_steps": 2}, id="gpt2"),
]


def beginning(model, batch=3, steps=1):
    return model.perceive(observe(model, batch, steps), acts(model, batch, steps - 1) if steps > 1 else None)


def discrete(model):
    return tuple(block.name for block in model.blocks if block.is_discrete)


def same_state(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


def with_absent(model, state, level=1):
    """A state of which a level of the camera, and all behind it, is absent."""
    codes = dict(state.codes)
    codes["camera"] = [c if n < level else torch.full_like(c, ABSENT) for n, c in enumerate(codes["camera"])]
    return type(state)(codes, {}, state.text)


# any prefix of blocks is a belief


def test_what_is_absent_decodes_as_the_prefix_that_is_there():
    model = world_model(EVERYTHING)
    state = beginning(model).state
    coarse = with_absent(model, state)
    expected = model.decode(state, "camera", num_levels=1, latents=False)
    assert torch.equal(model.decode(coarse, "camera"), expected)
    mixed = state.map(torch.clone).without_latents()
    mixed.codes["camera"][1][:, :8] = ABSENT  # the upper half
    decoded, whole = model.decode(mixed, "camera"), model.decode(state, "camera", latents=False)
    assert torch.equal(decoded[:, :, :8], expected[:, :, :8]) and torch.equal(decoded[:, :, 8:], whole[:, :, 8:])


def test_digits_that_are_absent_count_as_the_middle_of_their_cell():
    model = world_model(EVERYTHING)
    state = beginning(model).state.without_latents()
    expected = model.decode(state, "touch", num_levels=1)
    state.codes["touch"] = [state.codes["touch"][0], *[torch.full_like(c, ABSENT) for c in state.codes["touch"][1:]]]
    torch.testing.assert_close(model.decode(state, "touch"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_latents_that_are_absent_decode_and_embed_as_none():
    model = world_model(EVERYTHING)
    state = beginning(model).state
    absent = type(state)(state.codes, {n: torch.full_like(v, torch.nan) for n, v in state.latents.items()}, state.text)
    assert torch.equal(model.decode(absent, "camera"), model.decode(state, "camera", latents=False))
    assert torch.equal(model.embed_state(absent), model.embed_state(state.without_latents()))


@pytest.mark.slow
@pytest.mark.parametrize("architecture, config", LAYOUTS)
def test_a_belief_of_coarse_codes_goes_on_is_scored_and_has_a_key_of_its_own(architecture, config):
    model = world_model(EVERYTHING, architecture=architecture, **config)
    belief = beginning(model)
    coarse = Belief(with_absent(model, belief.state), belief.history, belief.prefix, belief.cache, model)
    assert not set(coarse.keys()) & set(belief.keys())
    futures = model.simulate(coarse, acts(model, 3, 2), temperature=0.0)
    assert all((codes >= 0).all() for levels in futures.codes.values() for codes in levels)  # all of it is predicted
    later = {name: v for name, v in observe(model, 3, 2, seed=5).items() if name != "mission"}
    assert model.log_prob(coarse, acts(model, 3, 2), later).codes.isfinite().all()


def test_an_absent_code_cannot_stay():
    model = world_model(("camera", "mission"), copy_bias=60.0)  # what can stay does
    belief = beginning(model)
    known = model.simulate(belief, acts(model, 3, 1), temperature=0.0).codes["camera"][1][:, 0]
    assert torch.equal(known, belief.codes["camera"][1])
    coarse = Belief(with_absent(model, belief.state), [], belief.prefix, belief.cache, model)
    found = model.simulate(coarse, acts(model, 3, 1), temperature=0.0).codes["camera"][1][:, 0]
    assert not torch.equal(found, known) and (found >= 0).all()


def test_dropped_blocks_are_the_finer_levels_of_images_and_nothing_else():
    model = world_model(EVERYTHING, block_dropout=0.5)
    state = beginning(model, batch=200).state
    torch.manual_seed(0)
    dropped = nested_dropout(state, model.config)
    assert torch.equal(dropped.codes["camera"][0], state.codes["camera"][0])
    assert all(torch.equal(a, b) for a, b in zip(dropped.codes["touch"], state.codes["touch"], strict=True))
    gone = dropped.codes["camera"][1] == ABSENT
    assert torch.equal(dropped.codes["camera"][1][~gone], state.codes["camera"][1][~gone])
    assert 0.4 < gone.any(1).float().mean() < 0.6
    assert gone.all(1).any() and (gone.any(1) & ~gone.all(1)).any()  # everywhere, and at some places


# an effort


@pytest.mark.slow
@pytest.mark.parametrize("architecture, config", LAYOUTS)
@pytest.mark.parametrize("least_change", [None, 0.0])
def test_every_block_everywhere_is_what_simulate_does_anyway(architecture, config, least_change):
    model = world_model(EVERYTHING, architecture=architecture, **config)
    belief, actions = beginning(model), acts(model, 3, 3)
    plain = model.simulate(belief, actions, seed=1)
    effort = Effort(discrete(model), least_change=least_change)  # 0: every place is picked, one by one
    futures = model.simulate(belief, actions, seed=1, effort=effort)
    assert same_state(futures.state, plain.state)
    torch.testing.assert_close(futures.log_prob, plain.log_prob, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(futures.reward, plain.reward, atol=1e-4, rtol=1e-4)
    assert futures.focus.all() and futures.switch.float().mean() == len(discrete(model)) / len(model.blocks)
    assert plain.switch is None and plain.cost is None


@pytest.mark.slow
def test_latents_that_begin_at_the_expected_image_cost_a_decoded_and_an_encoded_frame():
    hedged = world_model(("camera",))
    plain = world_model(("camera",), level0_sampling="autoregressive")
    codec, sense = hedged.senses["camera"], hedged.config.senses["camera"]
    wider, narrower = (model.latent_heads["camera"].condition.weight.numel() for model in (hedged, plain))
    more = hedged.compute_model.blocks["camera.latents"] - plain.compute_model.blocks["camera.latents"]
    cells = (sense.height // sense.patch_size) * (sense.width // sense.patch_size)
    once = sum(p.numel() for part in (codec.encoder, codec.decoder) for p in part.parameters())
    assert more - 2 * sense.num_state_tokens * (wider - narrower) > 2 * cells * once


def test_a_step_of_all_blocks_costs_one_and_draws_the_latents():
    model = world_model(EVERYTHING)
    belief = beginning(model)
    futures = model.simulate(belief, acts(model, 3, 2), seed=0, effort="all")
    torch.testing.assert_close(futures.cost.compute, torch.ones(3, 2))
    assert (futures.cost.tokens == model.layout.step_length).all()
    assert (futures.cost.denoiser_calls == len(model.latent_heads)).all() and futures.cost.seconds > 0
    assert futures.state.latents["camera"].isfinite().all()
    assert not torch.equal(futures.decode("camera"), futures.decode("camera", latents=False))


@pytest.mark.slow
def test_latents_that_do_not_help_are_used_where_they_are_asked_for_alone():
    model = world_model(EVERYTHING)
    model.senses["camera"].latents_help.fill_(False)
    belief, actions = beginning(model), acts(model, 3, 2)
    futures = model.simulate(belief, actions, seed=0)
    by_codes = futures.decode("camera")
    assert "camera" not in futures.state.latents
    assert torch.equal(by_codes, futures.decode("camera", latents=False))
    assert not torch.equal(by_codes, futures.decode("camera", latents=True))
    assert torch.equal(by_codes, futures.decode("camera"))
    whole = model.simulate(belief, actions, seed=0, effort="all")
    assert not torch.equal(whole.decode("camera"), whole.decode("camera", latents=False))
    assert torch.equal(belief.decode("camera"), belief.decode("camera", latents=False))
    later = {name: values for name, values in observe(model, 3, 2, seed=5).items() if name != "mission"}
    found, forced = (model.log_prob(belief, actions, later, latents=given) for given in (None, True))
    assert torch.equal(found.codes, forced.codes) and (forced.latents < found.latents).all()
    model.senses["camera"].latents_help.fill_(True)
    assert torch.equal(futures.decode("camera"), futures.decode("camera", latents=True))


@pytest.mark.slow
@pytest.mark.parametrize("architecture, config", LAYOUTS)
def test_what_is_not_predicted_stays_or_is_absent_where_something_coarser_changed(architecture, config):
    model = world_model(EVERYTHING, architecture=architecture, **config)
    belief = beginning(model)
    futures = model.simulate(belief, acts(model, 3, 1), seed=3, effort=Effort(("camera.0",), least_change=None))
    now, after = belief.codes, {name: [c[:, 0] for c in levels] for name, levels in futures.codes.items()}
    changed = now["camera"][0] != after["camera"][0]
    assert changed.any() and not changed.all()
    gone = spread_codes(changed, model.config.senses["camera"], 0, 1)
    assert torch.equal(after["camera"][1], now["camera"][1].masked_fill(gone, ABSENT))
    assert all(torch.equal(a, b) for a, b in zip(after["touch"], now["touch"], strict=True))
    assert torch.equal(futures.state.text["heard"][:, 0], belief.state.text["heard"])
    assert "camera" not in futures.state.latents
    again = model.simulate(futures.belief, acts(model, 3, 2), effort="all")  # and it goes on from there
    assert (again.codes["camera"][1] >= 0).all()


def test_what_is_not_predicted_is_what_usually_refines_the_coarser_code():
    model = world_model(EVERYTHING)
    codec, belief = model.senses["camera"], beginning(model)
    coarsest = Effort(("camera.0",), least_change=None)
    unknown = model.simulate(belief, acts(model, 3, 1), seed=3, effort=coarsest).codes["camera"]
    codec.note_refinements([level[:, 0] for level in model.encode(observe(model, 64)).codes["camera"]])
    found = model.simulate(belief, acts(model, 3, 1), seed=3, effort=coarsest).codes["camera"]
    assert torch.equal(found[0], unknown[0])
    usual = codec.usual_refinements(found[0][:, 0], 1)
    gone = unknown[1] == ABSENT
    assert gone.any() and torch.equal(found[1][gone], usual[gone[:, 0]])
    assert torch.equal(found[1][~gone], unknown[1][~gone])


@pytest.mark.slow
@pytest.mark.parametrize("architecture, config", LAYOUTS)
def test_places_out_of_focus_stay_as_they_are(architecture, config, monkeypatch):
    model = world_model(EVERYTHING, architecture=architecture, **config)
    first = next(iter(model.glances.values()))
    picked = lambda places, codes, table, action: (_row_by_row(len(places)), 0.0 * action)  # noqa: E731
    monkeypatch.setattr(first, "forward", picked)
    belief = beginning(model)
    futures = model.simulate(belief, acts(model, 3, 1), seed=2, effort=Effort(discrete(model), least_change=0.5))
    camera = futures.focus[:, 0, : model.config.senses["camera"].num_state_tokens]
    assert torch.equal(camera, _row_by_row(3) > 0) and futures.focus[:, 0, 4:].all()  # vectors are always seen
    now, after = belief.codes["camera"], [codes[:, 0] for codes in futures.codes["camera"]]
    changed = changed_tokens(model.config.senses["camera"], now, after)
    assert changed.any() and not (changed & ~camera).any()
    tokens = futures.cost.tokens[:, 0]
    assert (tokens.diff() == (camera.sum(1).diff() * _tokens_a_place(model))).all()


def test_the_action_is_told_which_codes_stand_anywhere_and_not_where():
    model = world_model(("camera", "mission"))
    (glance,) = model.glances.values()
    torch.nn.init.eye_(glance.inventory.weight)
    torch.nn.init.zeros_(glance.gist.weight)
    state = model.perceive(observe(model)).state
    embedded, action = model.embed_state(state), model.embed_action(acts(model)[:, 0])

    def told(codes):
        shown = State({"camera": [codes, state.codes["camera"][1]]}, state.latents, state.text)
        return embed_step(model, shown, embedded, action)[0][:, -1]

    codes = torch.tensor([[0, 1, 1, 2], [3, 3, 3, 3]])
    torch.testing.assert_close(told(codes), told(codes[:, [3, 1, 0, 0]]))
    assert (told(codes) != told(torch.tensor([[0, 1, 1, 1], [3, 3, 3, -1]]))).any(1).tolist() == [True, False]


@pytest.mark.slow
def test_a_glance_knows_at_any_cell_what_it_has_learned_at_some():
    torch.manual_seed(0)
    books = {"codebook_size": [4], "codebook_capacity": [4]}
    sense = ImageSense(size=32, patch_size=4, level_strides=[1], spatial_merge_size=2, **books)
    glance, rows = ChangePredictor(sense, 16, 16), torch.randn(4, 16)
    torch.nn.init.zeros_(glance.place.weight)  # cells alone
    optimizer, action = torch.optim.Adam(glance.parameters(), 1e-2), torch.zeros(64, 16)

    def logits(codes):
        return glance(torch.zeros(len(codes), 16, 16), codes, glance.tables(rows), action)[0]

    def movers(columns):
        """A mover (1) among blocks (2), which goes right unless one is in its way, and the places that then change."""
        codes, row = torch.where(torch.rand(64, 8, 8) < 0.5, 2, 0), torch.randint(8, (64,))
        column, number = columns[torch.randint(len(columns), (64,))], torch.arange(64)
        codes[number, row, column] = 1
        goes, changed = codes[number, row, column + 1] == 0, torch.zeros(64, 8, 8, dtype=torch.bool)
        changed[number, row, column] = changed[number, row, column + 1] = goes
        return codes.flatten(1), group_by_token(changed.flatten(1), sense, 0).any(-1)

    for _ in range(400):
        codes, changed = movers(torch.tensor([0, 3, 4, 6]))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits(codes), changed.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    codes, changed = movers(torch.tensor([1, 2, 5]))
    assert torch.equal(logits(codes) > 0, changed)


def _row_by_row(rows):
    """Logits of a change at four places: none in row 0, the first in row 1, the first two in row 2."""
    return torch.where(torch.arange(4) < torch.arange(rows).unsqueeze(1), 9.0, -9.0)


def _tokens_a_place(model):
    """Positions that one more place of the camera costs: in the trunk, where that may be looked at in part, and one a
    pass."""
    passes = [each for each in model.layout.passes if each.levels and each.levels[0] < 2]
    return model.layout.focuses_trunk + len(passes)


def test_a_focus_on_every_place_of_a_window_is_the_window():
    model = world_model(EVERYTHING, context_steps=2, focus_share=1.0)
    observation, action = observe(model, 2, 3), acts(model, 2, 2)
    state = model.encode(observation)
    for glance in model.glances.values():
        torch.nn.init.constant_(glance.change.bias, 50.0)
    with torch.no_grad():
        whole = _teacher_forced(model, state, action, observation["mission"])
        focused = _teacher_forced(model, state, action, observation["mission"], may_focus=True)
    assert whole.seen is None and focused.seen.all()
    for name, hidden in whole.hidden.items():
        torch.testing.assert_close(focused.hidden[name], hidden, **CLOSE)


def test_a_focused_window_equals_a_focused_step():
    model = world_model(("camera", "mission"), context_steps=1, focus_share=1.0)
    observation, action = observe(model, 16, 2), acts(model, 16, 1)
    state = model.encode(observation)
    torch.manual_seed(0)
    with torch.no_grad():
        model.glances["camera"].change.weight.mul_(20)  # else all places are about as likely to change
        window = _teacher_forced(model, state, action, observation["mission"], may_focus=True)
    assert window.seen.any() and not window.seen.all()
    wanted = TokenSelection.of(window.seen)
    belief = model.perceive({name: v if name == "mission" else v[:, :1] for name, v in observation.items()})
    with torch.no_grad():
        trunk, _ = embed_step(model, belief.state, model.embed_state(belief.state), model.embed_action(action[:, 0]))
        run = BackboneRun(model, belief, trunk, wanted)
        each = model.layout.passes[0]
        run.queries(each, embed_queries(model, each, model.embed_state(belief.state), {}, model.table.code_tables()))
    torch.testing.assert_close(run.hidden[each.name], window.hidden[each.name], **CLOSE)
    torch.testing.assert_close(run.hidden["action"], window.hidden["action"], **CLOSE)
    assert (run.hidden[each.name][~window.seen] == 0).all()


@pytest.mark.parametrize("effort", ["all", "auto", (), ("heard",)])
def test_a_world_of_words_alone_is_imagined_at_any_effort(effort):
    model = world_model(("heard", "mission"))
    futures = model.simulate(beginning(model), acts(model, 3, 2), effort=effort, seed=0)
    plain = model.simulate(beginning(model), acts(model, 3, 2), seed=0)
    if effort in ("all", ("heard",)):
        assert torch.equal(futures.state.text["heard"], plain.state.text["heard"])
    if effort == ():
        assert torch.equal(futures.state.text["heard"][:, 1], beginning(model).state.text["heard"])


def test_a_focus_holds_the_places_that_are_likely_to_change():
    model = world_model(EVERYTHING)
    logits = torch.tensor([[-9.0, 9.0, 0.0, -1.0], [-9.0, -9.0, -9.0, -9.0]])
    mask = likely_changes(model.config, {"camera": logits}, 0.4).mask(model.layout.num_state_tokens)
    assert mask[:, :4].tolist() == [[False, True, True, False], [False] * 4] and mask[:, 4:].all()


@pytest.mark.slow
def test_a_cap_takes_blocks_in_their_order_while_they_fit():
    model = world_model(EVERYTHING)
    belief, found = beginning(model), []
    for cap in (0.3, 0.5, 0.9, 1.0):
        futures = model.simulate(belief, acts(model, 3, 1), effort=Effort(cap=cap, least_change=None))
        assert (futures.cost.compute <= cap + 1e-5).all()
        found.append(int(futures.switch[0, 0].sum()))
        assert futures.switch[0, 0, : found[-1]].all()
    assert found == sorted(found) and found[0] < found[-1] == len(model.blocks)


def test_blocks_keep_their_order_and_stand_on_coarser_ones():
    model = world_model(("camera", "touch"))
    names = [block.name for block in model.blocks]
    assert names == [
        *("touch.0", "touch.1", "touch.2", "camera.0", "camera.1", "touch.latents", "camera.latents"),
    ]
    allowed = may_follow(model.blocks)
    rows, columns = ["begin", *names], [*names, "end"]
    pairs = itertools.product(enumerate(rows), enumerate(columns))
    can = {(row, column) for (i, row), (j, column) in pairs if allowed[i][j]}
    assert ("begin", "camera.0") in can and ("touch.0", "camera.0") in can and ("touch.1", "end") in can
    assert ("begin", "camera.1") not in can  # needs camera.0
    assert ("touch.0", "touch.2") not in can and ("camera.0", "touch.0") not in can
    assert ("touch.2", "touch.latents") in can and ("touch.1", "touch.latents") not in can
    assert ("begin", "end") in can and len([pair for pair in can if pair[1] == "end"]) == 8


@pytest.mark.slow
def test_latents_alone_leave_the_codes_as_they_were():
    model = world_model(EVERYTHING)
    belief = beginning(model)
    effort = Effort(("touch.0", "touch.1", "touch.2", "camera.latents"), least_change=None)
    futures = model.simulate(belief, acts(model, 3, 2), seed=0, effort=effort)
    for now, then in zip(belief.codes["camera"], futures.codes["camera"], strict=True):
        assert torch.equal(then[:, 0], now) and torch.equal(then[:, 1], now)
    assert futures.state.latents["camera"].isfinite().all()


def test_compute_is_counted_while_the_model_runs():
    model, random_state = world_model(EVERYTHING), torch.get_rng_state()
    compute = model.compute_model
    assert torch.equal(torch.get_rng_state(), random_state)
    weights = sum(p.numel() for n, p in model.language_model.model.named_parameters() if "embed_tokens" not in n)
    # two operations a weight, and attention over some sixty positions; norms are not counted
    assert 1.0 < compute.token / (2 * weights) < 2.0
    assert compute.whole > compute.fixed + compute.token * model.layout.step_length > compute.token
    readout = model.readouts["camera"][1]
    weights = sum(p.numel() for p in readout.blocks.parameters())
    codes = model.config.senses["camera"].num_state_tokens * 4
    assert compute.blocks["camera.1"] > 1.8 * codes * weights  # the local blocks are most of it


@pytest.mark.slow
def test_growth_changes_nothing_in_what_compute_is_counted():
    model, grown = world_model(("camera", "mission")), world_model(("camera", "mission"))
    new = grown.table.segment_rows("camera", 0)[~grown.table.active_codes("camera", 0)][:1]
    grown.live_rows[new] = grown.born_rows[new] = True
    assert model.compute_model == grown.compute_model


@pytest.mark.parametrize(
    "effort, message",
    [
        (("camera.7",), r"no blocks \['camera.7'\]; it has \['touch.0'"),
        (("camera.1",), r"'camera.1' needs \['camera.0'\] too"),
        (("camera.0", "camera.latents"), "needs .*camera.1"),
        ("most", "must be one of"),
        (Effort(cap=1e-6), "less than the first block, 'touch.0', costs"),
    ],
)
def test_an_effort_that_a_model_cannot_make_is_refused(effort, message):
    model = world_model(EVERYTHING)
    with pytest.raises(ValueError, match=message):
        model.simulate(beginning(model), acts(model, 3, 1), effort=effort)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"price": -0.1}, "`price` must be at least 0, a number; got -0.1"),
        ({"price": float("nan")}, "at least 0, a number; got nan"),
        ({"cap": 0}, "above 0"),
        ({"task": "chess"}, "must be one of .*pixels"),
        ({"least_change": 1.5}, "probability"),
        ({"blocks": ["camera.0"], "price": 1.0}, r"one of them; got \['blocks', 'price'\]"),
    ],
)
def test_a_wrong_effort_is_refused_when_it_is_made(given, message):
    with pytest.raises(ValueError, match=message):
        Effort(**given)


def test_named_efforts_say_what_they_predict():
    model = world_model(EVERYTHING)
    assert as_effort("coarsest", model).blocks == ("touch.0", "camera.0")
    assert as_effort("focused", model).blocks == ("touch.0", "touch.1", "touch.2", "camera.0", "camera.1")
    assert as_effort("all", model).blocks == tuple(block.name for block in model.blocks)
    assert as_effort("auto", model).blocks is None
    assert as_effort(["touch.0"], model).blocks == ("touch.0",)


@pytest.mark.parametrize("name", ["focus_share", "block_dropout"])
def test_a_share_beyond_one_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` is a share, from 0 to 1; got 1.5"):
        world_model(("camera",), **{name: 1.5})
