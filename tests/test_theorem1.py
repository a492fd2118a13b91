"""Theorem 1 holds: what is farther apart than epsilon is told apart, scaled up or out, and decoding errs by less."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.theorem1 import LatticeLanguage
from pan_hf import VectorAction, VectorSense
from pan_hf.modeling.codecs_pan import VectorCodec
from pan_hf.modeling.sense_configuration_pan import cells_within, digits_for

BASES = st.one_of(st.none(), st.integers(2, 40))
LENGTHS, DIMS = st.integers(1, 5), st.integers(1, 4)
BOUNDS, SHARES = st.floats(1e-3, 1e4), st.floats(1e-3, 3.0)  # epsilon as a share of the bound
MANY = settings(max_examples=150, deadline=None)


def language(length, dim, bound, share, base):
    try:
        return LatticeLanguage(length, dim, bound, share * bound, base)
    except ValueError as error:
        assert base is None and "give a `base` to scale out" in str(error)
        assume(False)


def sequences(of, count, seed):
    """Random, near one another, and at the edges."""
    generator = torch.Generator().manual_seed(seed)
    x = (2 * torch.rand(count, of.length, of.dim, generator=generator, dtype=torch.float64) - 1) * of.bound
    near = x + of.epsilon * (2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1)
    edges = torch.stack([torch.full_like(x[0], value) for value in (-of.bound, 0.0, of.bound)])
    on_cells = (x / of.bound * of.num_cells).round() / of.num_cells * of.bound
    return torch.cat([x, near, edges, on_cells]).clamp(-of.bound, of.bound)


@pytest.mark.slow
@given(LENGTHS, DIMS, BOUNDS, SHARES, BASES, st.integers(0, 2**31))
@MANY
def test_sequences_farther_apart_than_epsilon_are_different_sentences(length, dim, bound, share, base, seed):
    lattice = language(length, dim, bound, share, base)
    x = sequences(lattice, 8, seed)
    sentences = lattice.encode(x)
    assert sentences.shape == (len(x), lattice.num_tokens)
    assert 0 <= int(sentences.min()) and int(sentences.max()) < lattice.vocab_size
    distance = torch.cdist(x.flatten(1), x.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    same = (sentences.unsqueeze(0) == sentences.unsqueeze(1)).all(-1)
    assert not (same & (distance > lattice.epsilon)).any()


@pytest.mark.slow
@given(LENGTHS, DIMS, BOUNDS, SHARES, BASES, st.integers(0, 2**31))
@MANY
def test_decoding_errs_by_at_most_half_of_epsilon(length, dim, bound, share, base, seed):
    lattice = language(length, dim, bound, share, base)
    x = sequences(lattice, 8, seed)
    again = lattice.decode(lattice.encode(x))
    assert ((again - x).flatten(1).norm(dim=1) <= lattice.epsilon / 2 * (1 + 1e-6)).all()
    assert torch.equal(lattice.encode(again), lattice.encode(x))


@pytest.mark.slow
@given(LENGTHS, DIMS, BOUNDS, SHARES, st.integers(2, 40))
@MANY
def test_both_ways_tell_the_same_apart_with_the_sizes_of_the_proof(length, dim, bound, share, base):
    up, out = language(length, dim, bound, share, None), language(length, dim, bound, share, base)
    needed = math.sqrt(length * dim) * 2 / share
    assert up.num_cells == out.num_cells and needed <= up.num_cells <= needed + 1 + 1e-6 * needed
    assert (up.num_tokens, up.vocab_size) == (length, up.num_cells**dim)
    assert out.vocab_size == base and out.num_tokens == length * dim * out.num_digits
    assert base**out.num_digits >= out.num_cells > (base ** (out.num_digits - 1) if out.num_digits > 1 else 0)
    x = sequences(up, 4, 0)
    assert torch.equal(up.decode(up.encode(x)), out.decode(out.encode(x)))


@pytest.mark.slow
@given(DIMS, st.floats(0.1, 100.0), SHARES, BASES, st.integers(0, 2**31))
@MANY
def test_a_sense_within_epsilon_keeps_vectors_apart(dim, span, share, base, seed):
    epsilon = share * span
    assume(span * math.sqrt(dim) / epsilon < 2**15)  # vectors are float32
    sense = VectorSense.within(epsilon, dim, -span / 3, 2 * span / 3, base, unit="m")
    lattice, generator = VectorCodec(sense), torch.Generator().manual_seed(seed)
    x = -span / 3 + span * torch.rand(24, dim, generator=generator)
    x = torch.cat([x, (x + epsilon * torch.randn(x.shape, generator=generator)).clamp(-span / 3, 2 * span / 3)])
    digits, _ = lattice.encode(x)
    codes = torch.cat(digits, -1)
    same = (codes.unsqueeze(0) == codes.unsqueeze(1)).all(-1)
    distance = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    rounding = 1e-5 * span * math.sqrt(dim)
    assert not (same & (distance > epsilon + rounding)).any()
    assert ((lattice.decode(digits) - x).norm(dim=1) <= epsilon / 2 + rounding).all()
    assert sense.num_levels == 1 if base is None else sense.base == base


def test_an_action_can_be_as_precise_as_one_likes():
    action = VectorAction.within(0.01, 2, -1.0, 1.0, base=8)
    assert (action.kind, action.base, action.num_levels) == ("vector", 8, 3)  # 283 cells a coordinate


def test_scaling_out_grows_with_the_logarithm_of_precision_and_scaling_up_with_its_power():
    up = [LatticeLanguage(1, 3, 1.0, epsilon).vocab_size for epsilon in (0.2, 0.1, 0.05)]
    out = [LatticeLanguage(1, 3, 1.0, epsilon, 2).num_tokens for epsilon in (0.2, 0.1, 0.05)]
    assert all(7 < larger / smaller < 9.5 for smaller, larger in zip(up, up[1:], strict=False))
    assert all(longer - shorter == 3 for shorter, longer in zip(out, out[1:], strict=False))


@pytest.mark.parametrize("given", [(0, 1, 1.0, 1.0), (1, 1, 0.0, 1.0), (1, 1, 1.0, math.nan), (1, 1, 1.0, -1.0)])
def test_what_is_no_lattice_is_refused(given):
    with pytest.raises(ValueError, match="positive, finite"):
        LatticeLanguage(*given)


def test_what_cannot_be_counted_or_lies_beyond_the_bound_is_refused():
    with pytest.raises(ValueError, match="give a `base`"):
        LatticeLanguage(1, 20, 1.0, 1e-3)
    with pytest.raises(ValueError, match="at least 2"):
        LatticeLanguage(1, 1, 1.0, 0.1, base=1)
    with pytest.raises(ValueError, match="within 1.0 in size"):
        LatticeLanguage(1, 1, 1.0, 0.1).encode(torch.tensor([[1.5]]))
    with pytest.raises(ValueError, match="finer than float64"):
        LatticeLanguage(1, 1, 1.0, 1e-17, base=2)
    with pytest.raises(ValueError, match="finer than float32"):
        VectorSense.within(1e-8, 1, -1, 1)
    with pytest.raises(ValueError, match="`base` must be a whole number from 2"):
        VectorSense.within(0.1, 1, -1, 1, base=1)
    with pytest.raises(ValueError, match="`epsilon` must be above 0"):
        VectorSense.within(0.0, 1, -1, 1)


def test_cells_and_digits_are_exact_where_logarithms_are_not():
    assert cells_within(1.0, 0.1) in (10, 11) and 1.0 / cells_within(1.0, 0.1) <= 0.1
    assert [digits_for(10**power, 10) for power in range(1, 18)] == list(range(1, 18))
    assert digits_for(1000, 10) == 3 and digits_for(1001, 10) == 4
