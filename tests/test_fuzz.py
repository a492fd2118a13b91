"""Every public function, given what users give it: a right result, or a sentence; see `fuzzing`.

A hundred thousand cases on demand: `python benchmarks/fuzz.py`.
"""

import pytest
import torch
from fuzzing import outcomes
from fuzzing.cases import cases, run
from hypothesis import HealthCheck, given, settings

CASES = 1000


@pytest.mark.slow
@settings(max_examples=CASES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_whatever_is_given_a_result_is_right_or_a_sentence_says_what_is_wrong(case):
    outcome = run(case)
    assert outcome.is_good, str(outcome)


# what the harness itself holds for a sentence, a difference and a change


def test_an_error_of_our_own_lines_without_a_raise_is_no_sentence():
    from pan_hf.specs import parse_spec

    with pytest.raises(AttributeError) as found:
        parse_spec(3)
    assert not outcomes.is_sentence(found.value)
    with pytest.raises(ValueError) as found:
        parse_spec("cem?horizon")
    assert outcomes.is_sentence(found.value) and "specs.py" in outcomes.place_of(found.value)


def test_a_refusal_that_left_a_trace_counts_as_a_change():
    seen: list[int] = []

    def call():
        seen.append(1)
        raise ValueError("`seen` must be a list of nothing at all, got [].")

    change = outcomes.Change("seen = []", outcomes.WRONG, seen, ("seen",))
    judged = outcomes.judge("call", call, [change], list, str, (lambda: seen,), True)
    assert judged.kind == outcomes.CHANGED


def test_results_are_equal_but_for_rounding():
    one = {"frames": torch.tensor([1.0, 2.0]), "names": ["a"]}
    assert outcomes.difference(one, {"frames": torch.tensor([1.0, 2.0 + 1e-7]), "names": ["a"]}) == ""
    assert "frames" in outcomes.difference(one, {"frames": torch.tensor([1.0, 2.1]), "names": ["a"]})
    assert "names" in outcomes.difference(one, {"frames": torch.tensor([1.0, 2.0]), "names": ["b"]})
