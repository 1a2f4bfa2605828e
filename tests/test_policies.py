"""Each gradient policy draws the steps that its paper has, from the right range, evenly, and the same for one seed."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
import torch

from toy_runs import toy_recipe
from vader import randomness
from vader.errors import UserError
from vader.recipe import PolicySection
from vader.sampling.policies import PRESETS, Plan, draw_plan

STEPS, DRAWS = 20, 2000


def plans(chain: int = STEPS, draws: int = DRAWS, **policy: object) -> list[Plan]:
    """Many plans of one policy, drawn as a run draws them: from one seed, step by step."""
    section = PolicySection(**policy)
    return [draw_plan(section, chain, randomness.generator(0, "policy", step)) for step in range(draws)]


def only_plan(**policy: object) -> Plan:
    """The plan of a policy that leaves nothing to chance."""
    (plan,) = set(plans(draws=50, **policy))
    return plan


def assert_uniform(values: list[int], expected: range) -> None:
    """Every value of the range occurs, and each within five standard deviations of its share."""
    counts, share = Counter(values), 1 / len(expected)
    assert set(counts) == set(expected)
    spread = (len(values) * share * (1 - share)) ** 0.5
    assert all(abs(count - len(values) * share) <= 5 * spread for count in counts.values())


def test_every_policy_of_a_recipe_has_its_preset():
    assert set(PRESETS) == set(get_args(PolicySection.model_fields["name"].annotation))


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_last_k(k):
    assert only_plan(name="last", k=k) == Plan(frozenset(range(STEPS - k, STEPS)))


def test_full_is_every_step():
    assert only_plan(name="full") == Plan(frozenset(range(STEPS))) == only_plan(name="last", k=STEPS)


@pytest.mark.parametrize("steps", [(0,), (19,), (3, 7, 19), (7, 3)])
def test_explicit_steps(steps):
    plan = only_plan(name="steps", steps=steps)
    assert plan == Plan(frozenset(steps))
    assert (plan.first, plan.last) == (min(steps), max(steps))


def test_random_tail_starts_anywhere_and_runs_to_the_end():
    drawn = plans(name="random_tail")
    assert all(plan == Plan(frozenset(range(plan.first, STEPS))) for plan in drawn)
    assert_uniform([plan.first for plan in drawn], range(STEPS))


def test_draft_lv_is_the_last_step_from_k_noises():
    assert only_plan(name="draft_lv", k=4) == Plan(frozenset({STEPS - 1}), views=4)
    assert only_plan(name="draft_lv", k=30).views == 30


@pytest.mark.parametrize(("k", "stride", "offsets"), [(1, 20, 20), (3, 6, 8), (4, 5, 5), (7, 2, 8), (20, 1, 1)])
def test_drtune_steps_are_evenly_spaced_from_a_random_offset(k, stride, offsets):
    drawn = plans(name="drtune", k=k)
    assert all(plan == Plan(plan.active, detach_input=True) for plan in drawn)
    assert {tuple(sorted(plan.active)) for plan in drawn} == {
        tuple(offset + stride * i for i in range(k)) for offset in range(offsets)
    }
    assert_uniform([plan.first for plan in drawn], range(offsets))
    assert max(plan.last for plan in drawn) == STEPS - 1


@pytest.mark.parametrize(
    ("window", "steps", "expected"),
    [
        ((0.6, 1.0), 20, range(12, 20)),
        ((0.0, 1.0), 20, range(20)),
        ((0.25, 0.5), 20, range(5, 10)),
        ((0.5, 0.51), 20, range(10, 11)),  # narrower than a step
        ((0.9, 1.0), 4, range(3, 4)),  # its beginning rounds to the end
        ((0.99, 1.0), 20, range(19, 20)),
        ((0.6, 1.0), 1, range(1)),
    ],
)
def test_refl_sees_the_clean_estimate_at_a_step_of_its_window(window, steps, expected):
    drawn = plans(steps, name="refl", window=window)
    assert all(plan == Plan(plan.active, sees="clean") and len(plan.active) == 1 for plan in drawn)
    assert_uniform([plan.first for plan in drawn], expected)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"steps"}))
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_plan_leaves_a_short_chain(name, steps):
    for k in range(1, steps + 1):
        for plan in plans(steps, draws=50, name=name, k=k):
            assert plan.active <= set(range(steps))
            assert plan.active


def test_one_seed_gives_one_plan():
    def draw() -> Plan:
        return draw_plan(PolicySection(name="random_tail"), 1000, torch.Generator().manual_seed(5))

    assert draw() == draw()


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{name: last, k: 5}", "algorithm.policy.k is 5 but sampling.steps is 4: k can be at most 4"),
        ("{name: drtune, k: 5}", "k can be at most 4"),
        ("{name: last, k: 0}", "'algorithm.policy.k' is 0: expected an integer above 0"),
        ("{name: steps}", "policy 'steps' needs a list of steps"),
        ("{name: steps, steps: [4]}", "algorithm.policy.steps holds 4 but sampling.steps is 4"),
        ("{name: steps, steps: [1, 1]}", "name each index once"),
        ("{name: steps, steps: [-1]}", "expected"),
        ("{name: last, steps: [3]}", "is for policy 'steps'"),
        ("{name: refl, window: [0.5, 0.5]}", "its first share must be below its second"),
        ("{name: refl, window: [0.5, 1.5]}", "expected"),
        ("{name: lsat}", "expected one of last"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_recipe(policy, message):
    with pytest.raises(UserError) as error:
        toy_recipe(f"algorithm.policy={policy}")
    assert message in str(error.value)
