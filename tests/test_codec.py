"""Codes and what they stand for: quantiser, grids and places, the image codec, the lattice of vectors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_worlds import CAMERA

from pan_hf import ImageSense, VectorSense
from pan_hf.modeling.codecs_pan import VectorCodec, build_codec
from pan_hf.modeling.image_codec_pan import PARKED, Codebook, ImageCodec, fold_grid, unfold_grid
from pan_hf.modeling.layout_pan import group_by_token, ungroup_tokens


def codebook(size, capacity=8, dim=2, seed=0):
    torch.manual_seed(seed)
    found = Codebook(size, capacity, dim)
    found.reset_pan_parameters(1.0)
    return found


def image_codec(seed=0, **changes):
    """A random codec whose codebooks already stand where the encoder's outputs are."""
    torch.manual_seed(seed)
    codec = ImageCodec(ImageSense(**(CAMERA | changes)))
    for module in codec.modules():
        if hasattr(module, "reset_pan_parameters"):
            module.reset_pan_parameters(0.02)
    codec.train()
    frames = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8)
    codec.losses(frames, frames.flip(0), None, 0.0, 0.0)
    return codec.eval()


def pictures(count, seed=0):
    """Frames `(count, 3, 16, 16)` of a coloured cell on a board of 4x4."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.zeros(count, 16, dtype=torch.long)
    cells[torch.arange(count), torch.randint(0, 16, (count,), generator=generator)] = 1
    cells[torch.arange(count), torch.randint(0, 16, (count,), generator=generator)] = 2
    colours = torch.tensor([[10, 10, 10], [250, 200, 30], [20, 90, 240]], dtype=torch.uint8)
    board = colours[cells].view(count, 4, 4, 3).permute(0, 3, 1, 2)
    return board.repeat_interleave(4, -1).repeat_interleave(4, -2)


# the quantiser


def test_the_nearest_live_code_is_chosen_and_never_a_dead_one():
    book = codebook(3)
    inputs = torch.randn(200, 2) * 3
    codes, vectors, _ = book(inputs)
    expected = torch.cdist(inputs, book.vectors[:3]).argmin(-1)
    assert torch.equal(codes, expected)
    assert torch.equal(vectors, inputs + (book.vectors[codes] - inputs))
    book.vectors[5] = inputs[0]  # a dead row, though nearer than any
    assert int(book(inputs)[0].max()) < 3


def test_a_row_made_live_can_be_chosen_at_once():
    book = codebook(3)
    book.vectors[5] = torch.tensor([50.0, 50.0])
    book.live[5] = True
    assert int(book(torch.tensor([[49.0, 50.0]]))[0]) == 5


def test_gradients_pass_straight_through():
    book, inputs = codebook(3), torch.randn(5, 2, requires_grad=True)
    _, vectors, commitment = book(inputs)
    vectors.sum().backward(retain_graph=True)
    assert torch.equal(inputs.grad, torch.ones(5, 2))
    inputs.grad = None
    commitment.backward()
    expected = 2 * (inputs - book.vectors[book(inputs)[0]]) / inputs.numel()
    torch.testing.assert_close(inputs.grad, expected.detach())


def test_codes_move_to_the_mean_of_what_they_code():
    book, centres = codebook(2), torch.tensor([[5.0, 5.0], [-5.0, 0.0]])
    for _ in range(200):
        inputs = centres[torch.randint(0, 2, (64,))] + 0.1 * torch.randn(64, 2)
        book(inputs, update=True)
    found = book.vectors[:2][book.vectors[:2, 0].argsort(descending=True)]
    torch.testing.assert_close(found, centres, atol=0.1, rtol=0)


def test_without_update_nothing_moves():
    book = codebook(3)
    before = {name: buffer.clone() for name, buffer in book.named_buffers()}
    book(torch.randn(20, 2))
    assert all(torch.equal(before[name], buffer) for name, buffer in book.named_buffers())


def test_a_dead_code_is_revived_where_the_codebook_describes_badly():
    book, old, new = codebook(2), torch.zeros(64, 2), torch.tensor([30.0, 0.0])
    book(old + 0.01 * torch.randn(64, 2), update=True)
    for _ in range(120):  # the second cluster appears after the codebook was placed
        inputs = torch.cat([old, new.expand(16, 2)]) + 0.01 * torch.randn(80, 2)
        codes, vectors, _ = book(inputs, update=True)
    assert (book(inputs)[1] - inputs).abs().max() < 0.5
    assert len(set(codes.tolist())) == 2


def test_rows_with_nothing_to_describe_wait_far_away_and_stay_unused():
    book = codebook(6)
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])[torch.randint(0, 2, (64,))]
    for _ in range(30):
        codes, vectors, _ = book(two, update=True)
    assert len(set(codes.tolist())) == 2 and torch.allclose(vectors, two)
    waiting = (book.vectors[:6] == PARKED).all(-1)
    assert int(waiting.sum()) == 4


def test_a_waiting_row_takes_up_a_thing_that_was_never_seen():
    book = codebook(6)
    two = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])[torch.randint(0, 2, (64,))]
    for _ in range(30):
        book(two, update=True)
    three = torch.cat([two, torch.tensor([[0.0, 4.0]]).expand(8, 2)])
    for _ in range(10):
        codes, vectors, _ = book(three, update=True)
    assert len(set(codes.tolist())) == 3 and torch.allclose(vectors, three, atol=1e-3)


A, B, C, D = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [-9.0, -9.0]]).split(1)


def watch(book, *things, batches):
    """Codes of `things` after the codebook has followed that many batches of them."""
    for _ in range(batches):
        codes, _, _ = book(torch.cat(things).repeat(32, 1), update=True)
    return codes[: len(things)].tolist()


def test_a_rare_thing_has_its_own_code_when_it_comes_back():
    book = codebook(6)
    watch(book, A, B, batches=20)
    *_, code = watch(book, A, B, C, batches=5)
    watch(book, A, B, batches=150)
    assert book(C)[0].item() == code and torch.allclose(book(C)[1], C, atol=1e-3)


@pytest.mark.slow
def test_what_was_not_seen_for_long_is_forgotten():
    book = codebook(6)
    *_, code = watch(book, A, B, C, batches=5)
    watch(book, A, B, batches=400)
    assert (book.vectors[code] == PARKED).all() and not book.describes()[code]


def test_a_new_thing_takes_the_code_used_least_and_others_keep_theirs():
    book = codebook(3)
    _, *others = watch(book, A, B, C, batches=5)
    kept, moved = sorted(others)  # two are hardly used, and the one used least is not the first of them
    thing = (B, C)[others.index(kept)]
    watch(book, A, thing, batches=40)
    watch(book, A, batches=150)
    assert int((book.usage[:3] < book.revive_below).sum()) == 2
    watch(book, A, D, batches=1)
    assert torch.equal(book.vectors[[moved]], D) and torch.allclose(book.vectors[[kept]], thing, atol=1e-3)


def test_rows_that_come_to_describe_the_same_thing_become_one():
    book = codebook(3)
    three = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]])[torch.arange(90) % 3]
    book(three, update=True)
    # the first two things have become one that trembles about the middle between their rows
    book.vectors[:3] *= torch.tensor([0.02, 1.0])
    book.sums[:3] *= torch.tensor([0.02, 1.0])
    trembling = three * torch.tensor([0.02, 1.0])
    assert len(set(book(trembling)[0].tolist())) == 3
    for _ in range(2):
        codes, _, _ = book(trembling, update=True)
    assert codes[0] == codes[1] != codes[2]
    assert int((book.vectors[:3] == PARKED).all(-1).sum()) == 1


# grids and places


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_unfolding_a_grid_undoes_folding_it(factor):
    grid = torch.randn(2, 8, 4, 3)
    folded = fold_grid(grid, factor)
    assert folded.shape == (2, 8 // factor, 4 // factor, 3 * factor**2)
    assert torch.equal(unfold_grid(folded, factor), grid)


def test_a_folded_cell_holds_its_own_pixels():
    grid = torch.arange(16.0).view(1, 4, 4, 1)
    assert fold_grid(grid, 2)[0, 0, 1].tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("rest", [(), (5,)])
def test_unfolding_places_undoes_folding_them(level, rest):
    sense = ImageSense(
        **(CAMERA | {"size": [16, 32], "level_strides": [4, 2, 1], "spatial_merge_size": 4} | _books(3))
    )
    codes = torch.randn(2, sense.num_state_tokens * sense.codes_per_token[level], *rest)
    folded = group_by_token(codes, sense, level)
    assert folded.shape == (2, sense.num_state_tokens, sense.codes_per_token[level], *rest)
    assert torch.equal(ungroup_tokens(folded, sense, level), codes)


def _books(levels):
    return {"codebook_size": [4] * levels, "codebook_capacity": [8] * levels}


def test_a_place_holds_the_codes_of_its_own_block():
    sense = ImageSense(**CAMERA)
    codes = torch.arange(16).view(1, 16)  # raster order on 4x4
    assert group_by_token(codes, sense, 1)[0, 1].tolist() == [2, 3, 6, 7]


def test_vector_places_group_coordinates():
    sense = VectorSense(dim=11)
    assert (sense.group, sense.num_state_tokens, sense.codes_per_token) == (2, 6, [2, 2])
    codes = torch.arange(12).view(1, 12)
    assert torch.equal(ungroup_tokens(group_by_token(codes, sense, 0), sense, 0), codes)


# the image codec


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize(
    "places, levels", [(1, [1]), (2, [1, 1]), (2, [2, 1]), (2, [2, 1, 1]), (4, [2, 1]), (4, [4, 2, 1])]
)
def test_shapes_follow_the_levels(kernel_size, places, levels):
    codec = image_codec(
        kernel_size=kernel_size, level_strides=levels, spatial_merge_size=places, **_books(len(levels))
    )
    frames = pictures(5)
    codes, latents = codec.encode(frames)
    assert [level.shape for level in codes] == [(5, (4 // stride) ** 2) for stride in levels]
    assert latents.shape == (5, (4 // places) ** 2, 3)
    for count in range(1, len(levels) + 1):
        assert codec.decode(codes[:count]).shape == frames.shape
    assert codec.decode(codes, latents).shape == frames.shape


@pytest.mark.parametrize("decoder_kernel_size", [None, 3])
def test_one_changed_patch_changes_codes_at_its_place_only(decoder_kernel_size):
    codec = image_codec(kernel_size=1, decoder_kernel_size=decoder_kernel_size)
    before = pictures(1, seed=3)
    after = before.clone()
    after[..., 8:12, 4:8] = torch.tensor([90, 250, 10], dtype=torch.uint8).view(3, 1, 1)
    (coarse, fine), latents = codec.encode(before)
    (coarse_after, fine_after), latents_after = codec.encode(after)
    place = 2  # of 2x2, raster order: rows 8 to 15, columns 0 to 7
    elsewhere = torch.arange(4) != place
    assert torch.equal(coarse[:, elsewhere], coarse_after[:, elsewhere])
    assert torch.equal(latents[:, elsewhere], latents_after[:, elsewhere])
    fine, fine_after = (group_by_token(level, codec.sense, 1) for level in (fine, fine_after))
    assert torch.equal(fine[:, elsewhere], fine_after[:, elsewhere])
    assert not torch.equal(latents[:, place], latents_after[:, place])


def test_a_decoder_may_look_around_where_the_encoder_does_not():
    reach = {}
    for size in (1, 3):
        codec = image_codec(kernel_size=1, decoder_kernel_size=size, num_blocks=1, latent_dim=0)
        codes = [torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 16, dtype=torch.long)]
        other = [codes[0], codes[1].clone()]
        other[1][0, 5] = 1  # the cell of rows 4 to 7 and columns 4 to 7
        changed = (codec.decode(codes) != codec.decode(other)).any(1)[0].nonzero()
        reach[size] = changed.min().item(), changed.max().item()
    assert reach == {1: (4, 7), 3: (0, 11)}


def test_equal_patches_have_equal_codes_wherever_they_are():
    codec = image_codec(kernel_size=1)
    tile = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    (coarse, fine), latents = codec.encode(tile.repeat(1, 1, 2, 2))
    assert len(set(coarse.flatten().tolist())) == 1
    assert (group_by_token(fine, codec.sense, 1)[0] == group_by_token(fine, codec.sense, 1)[0, :1]).all()
    torch.testing.assert_close(latents[0], latents[0, :1].expand(4, -1))


def test_frames_encode_one_by_one_as_in_a_batch():
    codec, frames = image_codec(kernel_size=3), pictures(6)
    together, _ = codec.encode(frames)
    for index in range(6):
        alone, _ = codec.encode(frames[index : index + 1])
        assert all(torch.equal(one[0], many[index]) for one, many in zip(alone, together, strict=True))


def test_bytes_and_floats_of_a_frame_are_the_same_frame():
    codec, frames = image_codec(), pictures(3)
    by_bytes, by_floats = codec.encode(frames)[0], codec.encode(frames.float() / 127.5 - 1)[0]
    assert all(torch.equal(one, other) for one, other in zip(by_bytes, by_floats, strict=True))


def test_certain_probabilities_decode_as_the_codes_they_are_certain_of():
    codec = image_codec()
    codes, latents = codec.encode(pictures(3))
    certain = [torch.nn.functional.one_hot(level, size).float() for level, size in zip(codes, (8, 12), strict=True)]
    torch.testing.assert_close(codec.decode_probabilities(certain, latents), codec.decode(codes, latents))


def test_pixels_that_move_or_are_rare_weigh_more():
    codec = image_codec()
    before, after = torch.zeros(2, 1, 3, 16, 16, dtype=torch.uint8)
    after[..., :4, :4] = 200
    weight = codec.weight(after, before, before, motion=15.0, rarity=9.0)
    assert weight.shape == (1, 1, 16, 16) and weight.mean().item() == pytest.approx(1.0)
    assert float(weight[..., 0, 0] / weight[..., 15, 15]) == pytest.approx(1 + 15 + 9)


def test_a_sense_without_latents_has_none():
    codec = image_codec(latent_dim=0)
    codes, latents = codec.encode(pictures(2))
    assert latents is None and codec.decode(codes).shape == (2, 3, 16, 16)
    assert torch.isfinite(codec.losses(pictures(2), pictures(2), None, 1.0, 1.0)["reconstruction"])


def test_no_codec_for_an_unknown_kind():
    class Smell:
        kind = "smell"

    with pytest.raises(ValueError, match="No codec for senses of kind 'smell'; known kinds are"):
        build_codec(Smell())


@pytest.mark.slow
@pytest.mark.parametrize("levels", [[2, 1], [2, 1, 1]])
def test_the_codec_learns_a_board(levels):
    codec = image_codec(level_strides=levels, hidden_size=32, **_books(len(levels))).train()
    optimizer = torch.optim.Adam(codec.parameters(), 4e-3)
    frames, errors = pictures(32), []
    for _ in range(150):
        loss = codec.losses(frames, frames.roll(1, 0), None, 1.0, 0.0)
        optimizer.zero_grad()
        (loss["reconstruction"] + 0.25 * loss["commitment"]).backward()
        optimizer.step()
        errors.append(loss["reconstruction"].item())
    assert errors[-1] < errors[0] - 2  # in nats of squared error: eight times less
    codec.eval()
    codes, _ = codec.encode(frames)
    error = (codec.decode(codes).clamp(-1, 1) - codec.to_float(frames)).square().mean()
    assert error < 0.02


@pytest.mark.slow
def test_each_block_makes_the_decoded_frame_better():
    torch.manual_seed(0)
    codec = image_codec(level_strides=[2, 1, 1], hidden_size=32, latent_dim=8, **_books(3)).train()
    optimizer = torch.optim.Adam(codec.parameters(), 4e-3)
    shades = torch.nn.functional.interpolate(torch.rand(32, 3, 8, 8), scale_factor=2)
    frames = (255 * shades).to(torch.uint8)  # more than twelve codes can tell
    for _ in range(150):
        loss = codec.losses(frames, frames.roll(1, 0), None, 1.0, 0.0)
        optimizer.zero_grad()
        (loss["reconstruction"] + 0.25 * loss["commitment"]).backward()
        optimizer.step()
    codec.eval()
    codes, latents = codec.encode(frames)
    prefixes = [(codes[:count], None) for count in range(1, 4)] + [(codes, latents)]
    errors = [float((codec.decode(*blocks) - codec.to_float(frames)).square().mean()) for blocks in prefixes]
    assert all(better < 0.95 * worse for worse, better in itertools.pairwise(errors)), errors
    assert codec.error_scale(latents=True) < codec.error_scale()


def test_errors_without_and_with_latents_are_tracked_apart():
    codec = image_codec().train()
    alone, with_latents = torch.ones(4, 3), torch.full((4, 3), 4.0)
    for _ in range(200):
        codec._track_scales(alone, with_latents)
    torch.testing.assert_close(codec.error_scale(), torch.tensor(1.0), atol=0.02, rtol=0)
    torch.testing.assert_close(codec.error_scale(latents=True), with_latents[0, 0].sqrt(), atol=0.02, rtol=0)
    codec._track_scales(alone, with_latents[:0])  # a batch in which no frame was told with latents says nothing of it
    torch.testing.assert_close(codec.error_scale(latents=True), with_latents[0, 0].sqrt(), atol=0.02, rtol=0)


@pytest.mark.slow
def test_latents_mend_the_codes_of_the_frame_before():
    torch.manual_seed(0)
    codec = image_codec(level_strides=[1, 1], hidden_size=32, latent_dim=24, **_books(2)).train()
    optimizer = torch.optim.Adam(codec.parameters(), 4e-3)
    shades = torch.nn.functional.interpolate(torch.rand(32, 3, 8, 8), scale_factor=2)
    frames = (255 * shades).to(torch.uint8)
    before = frames.roll(1, 0)
    for _ in range(200):
        loss = codec.losses(frames, before, None, 1.0, 0.0)
        optimizer.zero_grad()
        (loss["reconstruction"] + 0.25 * loss["commitment"]).backward()
        optimizer.step()
    codec.eval()
    codes, latents = codec.encode(frames)
    torch.testing.assert_close(codec.latents_given(frames, codes), latents, atol=1e-4, rtol=1e-4)
    old, _ = codec.encode(before)

    def error(latents):
        return float((codec.decode(old, latents) - codec.to_float(frames)).square().mean())

    assert error(codec.latents_given(frames, old)) < 0.3 * error(None)
    assert error(latents) > error(codec.latents_given(frames, old))  # what other codes lack is another thing


@pytest.mark.parametrize("strides", [[1, 1], [2, 1]])
def test_the_usual_refinement_is_the_code_that_most_often_stands_under_a_code(strides):
    codec = image_codec(level_strides=strides, **_books(2))
    codec.codebooks[1].live.fill_(True)
    factor = strides[0] // strides[1]
    rows, columns = codec.sense.level_grid(0)
    coarse = torch.randint(0, 4, (200, rows, columns))
    slot = torch.arange(factor).view(-1, 1) * factor + torch.arange(factor)
    slot = slot.repeat(rows, columns)  # where under its code each finer one stands
    usual = coarse.repeat_interleave(factor, 1).repeat_interleave(factor, 2) + slot
    fine = torch.where(torch.rand(usual.shape) < 0.3, torch.randint_like(usual, 8), usual)
    assert (codec.usual_refinements(coarse.flatten(1), 1) == -1).all()
    codec.note_refinements([coarse.flatten(1).short(), fine.flatten(1).short()])
    assert torch.equal(codec.usual_refinements(coarse.flatten(1), 1), usual.flatten(1))
    absent = torch.full((1, rows * columns), -1)
    assert (codec.usual_refinements(absent, 1) == -1).all()
    codec.note_refinements([torch.ones_like(coarse).flatten(1), torch.zeros_like(fine).flatten(1)])
    expected = torch.where(usual - slot == 1, 0, usual)  # the others keep what was known of them
    assert torch.equal(codec.usual_refinements(coarse.flatten(1), 1), expected.flatten(1))
    codec.codebooks[1].live[0] = False
    assert torch.equal(codec.usual_refinements(coarse.flatten(1), 1) == -1, (expected == 0).flatten(1))


def test_a_new_code_has_no_usual_refinement():
    book = Codebook(4, 8, 2, refined_by=4)
    book.refinements.fill_(3)
    book.add(range(4, 6), torch.randn(2, 2))
    assert (book.refinements[4:6] == 0).all() and (book.refinements[:4] == 3).all()
    book.reserve(2)
    assert (book.refinements[8:] == 0).all()


# the lattice


@given(
    st.integers(1, 12),
    st.integers(2, 9),
    st.integers(1, 4),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_digits_and_remainder_are_the_vector_and_digits_alone_are_near(dim, base, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    low = -10 * torch.rand(dim, generator=generator)
    high = low + 0.1 + 20 * torch.rand(dim, generator=generator)
    sense = VectorSense(dim=dim, low=low.tolist(), high=high.tolist(), base=base, num_levels=levels)
    lattice, span = VectorCodec(sense), high - low
    vectors = low + span * torch.rand(7, dim, generator=generator)
    vectors[0], vectors[1] = low, high
    digits, remainder = lattice.encode(vectors)
    assert all(0 <= int(digit.min()) and int(digit.max()) < base for digit in digits)
    assert digits[0].shape == (7, sense.num_state_tokens * sense.group)
    rounding = 1e-5 * (span + low.abs() + high.abs())
    assert ((lattice.decode(digits, remainder) - vectors).abs() <= rounding).all()
    for count in range(1, levels + 1):
        error = (lattice.decode(digits[:count]) - vectors).abs()
        assert (error <= span / base**count / 2 + rounding).all()


def test_vectors_farther_apart_than_a_cell_have_different_digits():
    lattice = VectorCodec(VectorSense(dim=1, low=0, high=1, base=4, num_levels=3))
    values = torch.arange(0, 1, 1 / 64 + 1e-4).unsqueeze(-1)
    codes = torch.cat(lattice.encode(values)[0], -1)
    assert len({tuple(row) for row in codes.tolist()}) == len(values)


def test_the_nearest_remainder_brings_any_digits_as_near_as_they_come():
    lattice = VectorCodec(VectorSense(dim=3, low=0, high=1, base=10, num_levels=2))
    vectors = torch.tensor([[0.123, 0.5, 0.987]])
    digits, remainder = lattice.encode(vectors)
    torch.testing.assert_close(lattice.latents_given(vectors, digits), remainder, atol=1e-4, rtol=0)
    others, _ = lattice.encode(torch.tensor([[0.135, 0.495, 0.9]]))
    found = lattice.decode(others, lattice.latents_given(vectors, others))
    torch.testing.assert_close(found, torch.tensor([[0.13, 0.5, 0.91]]), atol=1e-4, rtol=0)


def test_every_lattice_code_encodes_to_itself():
    lattice = VectorCodec(VectorSense(dim=2, low=-1, high=1, base=5, num_levels=2))
    grid = torch.cartesian_prod(*[torch.arange(5)] * 4)
    digits = [grid[:, :2], grid[:, 2:]]
    again, remainder = lattice.encode(lattice.decode(digits))
    assert all(torch.equal(one, other) for one, other in zip(digits, again, strict=True))
    assert remainder.abs().max() < 1e-4
