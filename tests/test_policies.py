"""Each policy draws the steps that its paper has, evenly, and its gradient is that of the paper's construction.

Drawing is tried on a chain of numbers; gradients are compared in float64 with loops written out by hand, on a flow
model and on one that predicts noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from toy_runs import toy_recipe
from toy_walks import FLOW, ByHand, cfg, gradient, make_walk, pinned, reward, scaled
from toys import DDIM
from vader import randomness
from vader.algorithms import load_algorithm
from vader.errors import UserError
from vader.networks.adapter import parameters_of
from vader.nouns import Condition
from vader.sampling import POLICIES, Noise, Policy, Sampler, View, Walk, load_policy
from vader.sampling.policies import late_biased
from vader.sampling.rehearsal import NOBODY, _Still, rehearse
from vader.solvers.scheduler_config import solver_from_config

STEPS, DRAWS = 20, 1500

# ---- which steps are drawn ----


def drawn(name: str, chain: int = STEPS, draws: int = DRAWS, **options: Any) -> list[tuple[int, ...]]:
    """The steps with gradient in many draws, drawn as a run draws them: from one seed, step by step."""
    policy, solver = load_policy(name, options), solver_from_config(FLOW)
    sampler = Sampler(NOBODY, solver, solver.schedule(chain), _Still())
    found = []
    for draw in range(draws):
        active: list[int] = []
        noise, told = Noise((1,), 0, "test", draw, [0]), lambda _, i, *__, active=active: active.append(i)
        walk = Walk(sampler, Condition({"": torch.zeros(1)}, {}), noise, on_gradient=told)
        list(policy(walk, randomness.generator(0, "policy", draw)))
        found.append(tuple(active))
    return found


def only(name: str, **options: Any) -> tuple[int, ...]:
    """The steps of a policy that leaves nothing to chance."""
    (steps,) = set(drawn(name, draws=20, **options))
    return steps


def assert_uniform(values: list[int], expected: Iterable[int]) -> None:
    """Every value occurs, and each within five standard deviations of its share."""
    expected = set(expected)
    counts, share = Counter(values), 1 / len(expected)
    assert set(counts) == expected
    spread = (len(values) * share * (1 - share)) ** 0.5
    assert all(abs(count - len(values) * share) <= 5 * spread for count in counts.values())


@pytest.mark.parametrize("k", [1, 3, STEPS])
def test_last_k(k):
    assert only("last", k=k) == tuple(range(STEPS - k, STEPS))


def test_full_is_every_step():
    assert only("full") == tuple(range(STEPS))


@pytest.mark.parametrize("steps", [(0,), (19,), (3, 7, 19), (7, 3)])
def test_explicit_steps(steps):
    assert only("steps", steps=steps) == tuple(sorted(steps))


def test_random_tail_starts_anywhere_and_runs_to_the_end():
    found = drawn("random_tail")
    assert all(steps == tuple(range(steps[0], STEPS)) for steps in found)
    assert_uniform([steps[0] for steps in found], range(STEPS))


@pytest.mark.parametrize("k", [1, 4, 30])
def test_draft_lv_is_the_last_step_from_k_noises(k):
    assert only("draft_lv", k=k) == (STEPS - 1,) * k


@pytest.mark.parametrize(("k", "stride", "offsets"), [(1, 20, 20), (3, 6, 8), (4, 5, 5), (7, 2, 8), (20, 1, 1)])
def test_drtune_steps_are_evenly_spaced_from_a_random_offset(k, stride, offsets):
    found = drawn("drtune", k=k, stop=0.0)
    assert set(found) == {tuple(offset + stride * i for i in range(k)) for offset in range(offsets)}
    assert_uniform([steps[0] for steps in found], range(offsets))


def test_drtune_stops_at_a_step_of_the_last_share():
    """Of 20 steps 0.4 are 8: the chain has 13 to 20, and the gradient's steps are spread over those."""
    found = drawn("drtune", k=4, stop=0.4)
    ends = {steps: {end for end in range(13, 21) if steps[1] - steps[0] == end // 4} for steps in found}
    assert all(ends.values())
    assert {steps[1] - steps[0] for steps in found} == {3, 4, 5}
    assert max(steps[-1] for steps in found) == STEPS - 1
    shares = Counter(steps[1] - steps[0] for steps in found)
    assert shares[3] == pytest.approx(DRAWS * 3 / 8, rel=0.1)  # 13, 14, 15
    assert shares[5] == pytest.approx(DRAWS * 1 / 8, rel=0.2)  # 20


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
@pytest.mark.parametrize("name", ["refl", "direct_align"])
def test_one_step_of_a_window(name, window, steps, expected):
    found = drawn(name, steps, window=window)
    assert {len(active) for active in found} == {1}
    assert_uniform([active[0] for active in found], expected)


def test_leap_draws_two_steps_evenly():
    found = drawn("leap", 6)
    assert_uniform(found, [(k, j) for j in range(6) for k in range(j)])


@pytest.mark.parametrize("name", ["sparse", "bridge"])
def test_sparse_steps_are_distinct_and_late_ones_commoner(name):
    found = drawn(name, k=3)
    assert all(len(set(steps)) == 3 and list(steps) == sorted(steps) for steps in found)
    counts = Counter(step for steps in found for step in steps)
    assert set(counts) == set(range(STEPS)) if name == "sparse" else counts[19] > 0
    assert sum(counts[step] for step in range(10, 20)) > 2 * sum(counts[step] for step in range(10))


@pytest.mark.parametrize("bias", [0.0, 1.0, 2.0])
def test_one_late_step_has_the_paper_s_probability(bias):
    generator, draws = torch.Generator().manual_seed(0), 5000
    counts = Counter(late_biased(5, 1, bias, generator)[0] for _ in range(draws))
    weights = [(i + 1) ** bias for i in range(5)]
    for i, weight in enumerate(weights):
        share = weight / sum(weights)
        assert abs(counts[i] - draws * share) <= 5 * (draws * share * (1 - share)) ** 0.5


WITH_K = {"last", "draft_lv", "drtune", "sparse", "bridge"}


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"steps"}))
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_no_policy_leaves_a_short_chain(name, steps):
    if name in ("leap", "bridge") and steps == 1:
        pytest.skip("needs two steps")
    for k in range(2 if name == "bridge" else 1, steps + 1) if name in WITH_K else (0,):
        for active in drawn(name, steps, draws=50, **({"k": k} if k else {})):
            assert set(active) <= set(range(steps))
            assert active


@pytest.mark.parametrize("name", ["random_tail", "drtune", "refl", "leap", "sparse", "bridge", "direct_align"])
def test_one_seed_gives_one_draw(name):
    assert drawn(name, draws=20) == drawn(name, draws=20)
    assert len(set(drawn(name, draws=20))) > 3


# ---- what a policy can reach, before there is a model ----


@pytest.mark.parametrize(
    ("name", "options", "steps", "expected"),
    [
        ("last", {"k": 2}, 6, {4, 5}),
        ("full", {}, 6, set(range(6))),
        ("steps", {"steps": (1, 3)}, 6, {1, 3}),
        ("random_tail", {}, 6, set(range(6))),
        ("draft_lv", {"k": 3}, 6, {5}),
        ("drtune", {"k": 2, "stop": 0.0}, 6, set(range(6))),
        ("drtune", {"k": 3, "stop": 0.5}, 6, set(range(6))),
        ("refl", {"window": (0.5, 1.0)}, 6, {3, 4, 5}),
        ("leap", {}, 6, set(range(6))),
        ("sparse", {"k": 2}, 6, set(range(6))),
        ("bridge", {"k": 3}, 6, set(range(6))),
        ("direct_align", {"window": (0.0, 0.5)}, 6, {0, 1, 2}),
    ],
)
def test_a_rehearsal_finds_exactly_the_steps_within_reach(name, options, steps, expected):
    assert frozenset().union(*rehearse(load_policy(name, options), steps)) == expected


@pytest.mark.parametrize(("name", "times"), [("last", 1), ("random_tail", 20)])
def test_a_policy_without_choices_is_rehearsed_once(name, times):
    whole, calls = load_policy(name, {}), []

    def counted(walk, generator):
        calls.append(1)
        yield from whole(walk, generator)

    found = rehearse(counted, 6, draws=20)
    assert (len(found), len(calls)) == (20, times)
    assert len(set(found)) == 1 if times == 1 else len(set(found)) > 1


def without_gradient(walk, generator):
    yield View(walk.frozen(len(walk)).latents)


def half_without(walk, generator):
    yield View(walk.step(walk.frozen(len(walk) - 1)).latents)
    yield View(walk.frozen(len(walk)).latents)


@pytest.mark.parametrize("policy", [without_gradient, half_without])
def test_a_policy_that_shows_latents_without_gradient_is_refused(policy):
    with pytest.raises(UserError, match="shows the reward latents without gradient: make a step with grad=True"):
        rehearse(policy, 4)


def test_a_run_with_such_a_policy_is_refused():
    recipe = toy_recipe("algorithm.policy={name: 'test_policies:without_gradient'}")
    with pytest.raises(UserError, match="without gradient"):
        load_algorithm(recipe)


# ---- gradients of the first edition: its loop, written out ----

FAMILIES = {"ddim": (DDIM, {}), "ddim, eta": (DDIM, {"eta": 0.7}), "flow": (FLOW, {}), "dpm": (DDIM, {"solver": "dpm"})}


def old_views(walk: Walk, active: set[int], detach: bool = False, sees: str = "final", views: int = 1) -> list[Tensor]:
    """The first edition's loop: the active steps have a graph, and what is between them is constant."""
    solver, schedule = walk.sampler.solver, walk.sampler.schedule
    noises = {i: walk.noise.draw(f"step{i}") if solver.stochastic else None for i in range(len(walk))}
    latents, memory, found = walk.noise.draw("start") * schedule.init_scale, None, []

    def advance(i: int, x: Tensor, v: Tensor, memory: Any) -> Any:
        return solver.step(x, v, schedule.starts[i], schedule.ends[i], noises[i], memory)

    for i in range(len(walk)):
        with torch.set_grad_enabled(i in active):
            prediction = walk.predict(i, latents.detach() if detach else latents)
        step = advance(i, latents, prediction, memory)
        if sees == "clean" and i == max(active):
            return [step.clean]
        latents, memory = step.next, step.memory
    found.append(latents)
    last = len(walk) - 1
    for view in range(1, views):
        again = solver.renoise(latents.detach(), walk.noise.draw(f"view{view}"), schedule.starts[last])
        found.append(advance(last, again, walk.predict(last, again), None).next)
    return found


def taken(policy: Policy, walk: Walk, seed: int) -> tuple[list[View], list[int]]:
    """A policy's views, and the steps in which it made gradient."""
    active: list[int] = []
    told = Walk(walk.sampler, walk.condition, walk.noise, on_gradient=lambda _, i, *__: active.append(i))
    return list(policy(told, torch.Generator().manual_seed(seed))), active


OLD = {
    "last": ("last", {"k": 1}, {}),
    "last 3": ("last", {"k": 3}, {}),
    "full": ("full", {}, {}),
    "random_tail": ("random_tail", {}, {}),
    "steps": ("steps", {"steps": (1, 3)}, {}),
    "draft_lv": ("draft_lv", {"k": 3}, {"views": 3}),
    "drtune": ("drtune", {"k": 2, "stop": 0.0}, {"detach": True}),
    "refl": ("refl", {"window": (0.2, 1.0)}, {"sees": "clean"}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("old", OLD)
def test_the_gradient_is_bit_for_bit_that_of_the_first_edition(family, old):
    (config, options), (name, settings, form) = FAMILIES[family], OLD[old]
    for seed in (0, 1):
        walk = make_walk(config, steps=6, **options)
        views, active = taken(load_policy(name, settings), walk, seed)
        found = gradient(walk, views)
        by_hand = old_views(walk, set(active), **form)
        assert all(map(torch.equal, (view.latents for view in views), by_hand))
        expected = gradient(walk, [View(latents, 1 / len(by_hand)) for latents in by_hand])
        assert torch.equal(found, expected)
        assert found.abs().max() > 0


# ---- gradients of the published surrogates: cached chains, pinned values ----

SURROGATES = {"flow": FLOW, "ddim": DDIM}


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def compared(config: dict, name: str, surrogate: Any, steps: int = 9, **options: Any) -> None:
    """A policy's values are the chain's own and its gradient is the surrogate's, for several draws."""
    walk = make_walk(config, steps=steps)
    by_hand = ByHand(walk)
    xs, vs = by_hand.rolled()
    for seed in range(4):
        (view,), active = taken(load_policy(name, options), walk, seed)
        found = gradient(walk, [view])
        expected, value = surrogate(walk, by_hand, xs, vs, active)
        torch.testing.assert_close(view.latents, value, rtol=1e-12, atol=1e-12)
        assert relative(found, gradient(walk, [expected])) < 1e-10


def leap_surrogate(discount, tolerance, walk, by_hand, xs, vs, active):
    """LeapAlign, arXiv 2604.15311: two one-step leaps, their ends pinned to the chain's own latents."""
    (k, j), end = active, len(walk)
    led = by_hand.moved(xs[k], walk.predict(k, xs[k]), k, j)
    middle = pinned(led, xs[j])
    finish = by_hand.moved(middle, walk.predict(j, scaled(middle, discount)), j, end)
    distances = [(one - other).detach().flatten(1).abs().mean(dim=1) for one, other in ((led, xs[j]), (finish, xs[-1]))]
    weight = 1 / (distances[0].clamp(min=tolerance) + distances[1].clamp(min=tolerance))
    return View(pinned(finish, xs[-1]), weight), xs[-1]


@pytest.mark.parametrize("config", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize(("discount", "tolerance"), [(0.3, 0.1), (0.3, 1e-6), (0.0, 10.0), (1.0, 0.02)])
def test_leap(config, discount, tolerance):
    surrogate = partial(leap_surrogate, discount, tolerance)
    compared(config, "leap", surrogate, discount=discount, tolerance=tolerance)


def test_leap_weighs_each_video_by_how_far_its_leaps_go_astray():
    """Where the tolerance does not bind, the two videos of a batch have weights of their own."""
    walk = make_walk(FLOW, steps=9)
    (view,), _ = taken(load_policy("leap", {"tolerance": 1e-9}), walk, 1)
    assert view.weight.shape == (2,)
    assert view.weight[0] != view.weight[1]
    (bound,), _ = taken(load_policy("leap", {"tolerance": 100.0}), walk, 1)
    assert bound.weight.tolist() == pytest.approx([1 / 200] * 2, rel=1e-12)


def reach(by_hand: ByHand, i: int, count: int) -> float:
    """How much a unit of step i's prediction moves the end, by DDIM's or Euler's own numbers."""
    one, zero = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    moved = by_hand.moved(zero, one, i, i + 1)
    for j in range(i + 1, count):
        moved = by_hand.moved(moved, zero, j, j + 1)
    return abs(moved.item())


def gain(by_hand: ByHand, active: list[int], count: int, rescale: float) -> float:
    """FlowBP, arXiv 2606.11075: `1 + rho (sum h / sum over A of h - 1)`."""
    whole = [reach(by_hand, i, count) for i in range(count)]
    return 1 + rescale * (sum(whole) / sum(whole[i] for i in active) - 1)


def sparse_surrogate(rescale, walk, by_hand, xs, vs, active):
    g, x = gain(by_hand, active, len(walk), rescale), xs[0]
    for i in range(len(walk)):
        x = by_hand.moved(x, scaled(walk.predict(i, xs[i]), g) if i in active else vs[i], i, i + 1)
    return View(pinned(x, xs[-1])), xs[-1]


@pytest.mark.parametrize("config", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("rescale", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 4, 9])
def test_sparse(config, rescale, k):
    compared(config, "sparse", partial(sparse_surrogate, rescale), k=k, rescale=rescale)


def test_a_flow_s_reach_is_the_length_of_its_step():
    walk = make_walk(FLOW, steps=9)
    sigmas = [level.sigma for level in walk.sampler.schedule.starts] + [0.0]
    lengths = [sigma - following for sigma, following in pairwise(sigmas)]
    assert [-counts for counts in walk.reaches()] == pytest.approx(lengths, rel=1e-10)


def bridge_surrogate(discount, rescale, walk, by_hand, xs, vs, active):
    g, x, middle = gain(by_hand, active, len(walk), rescale), xs[0], active[len(active) // 2]
    for i in range(len(walk)):
        if i == middle:
            x = pinned(x, xs[i])  # the bridge: where the gradient goes on through the denoiser
        seen = scaled(x, discount) if i == middle else xs[i]
        x = by_hand.moved(x, scaled(walk.predict(i, seen), g) if i in active else vs[i], i, i + 1)
    return View(pinned(x, xs[-1])), xs[-1]


@pytest.mark.parametrize("config", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize(("discount", "rescale", "k"), [(0.1, 1.0, 5), (0.0, 0.5, 2), (1.0, 0.0, 3)])
def test_bridge(config, discount, rescale, k):
    surrogate = partial(bridge_surrogate, discount, rescale)
    compared(config, "bridge", surrogate, k=k, discount=discount, rescale=rescale)


def test_without_discount_a_bridge_is_sparse():
    walk = make_walk(FLOW, steps=9)
    options = {"k": 4, "bias": 2.0, "rescale": 1.0}
    (bridge, _), (sparse, _) = (
        taken(load_policy(name, options | more), walk, 3)
        for name, more in (("bridge", {"discount": 0.0}), ("sparse", {}))
    )
    assert torch.equal(gradient(walk, bridge), gradient(walk, sparse))


@pytest.mark.parametrize("config", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize(("k", "stop"), [(1, 0.4), (2, 0.4), (3, 1.0), (2, 0.0)])
def test_drtune_with_a_stop(config, k, stop):
    """DRTune, arXiv 2405.00760: inputs are constants, the reward sees the clean estimate where the chain stops."""
    walk = make_walk(config, steps=9)
    by_hand = ByHand(walk)
    xs, vs = by_hand.rolled()
    stopped = set()
    for seed in range(6):
        (view,), active = taken(load_policy("drtune", {"k": k, "stop": stop}), walk, seed)
        found, x, matches = gradient(walk, [view]), xs[0], {}
        for i in range(9):
            v = walk.predict(i, xs[i]) if i in active else vs[i]
            if i >= max(active):
                matches[i + 1] = by_hand.clean(x, v, i)
            x = by_hand.moved(x, v, i, i + 1)
        matches[9] = x  # a chain that is not stopped ends in its latents
        (end,) = (end for end, value in matches.items() if torch.allclose(value, view.latents, rtol=0, atol=1e-9))
        stopped.add(end)
        assert relative(found, gradient(walk, [View(matches[end])])) < 1e-10
    assert all(end > 9 - round(stop * 9) or end == 9 for end in stopped)
    assert len(stopped) > 1 or stop == 0.0


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("config", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("gap", [0.1, 0.4, 1.0])
def test_direct_align(config, gap, eta):
    """SRPO, arXiv 2509.06942, eq. 4-8: noised with known noise, one leap, and the known noise taken out again."""
    walk = make_walk(config, steps=9, eta=eta)
    by_hand, noise = ByHand(walk), walk.noise.draw("start")
    clean = walk.frozen(9).latents
    for seed in range(4):
        (view,), (i,) = taken(load_policy("direct_align", {"gap": gap}), walk, seed)
        found = gradient(walk, [view])
        j = min(9, i + max(1, round(gap * 9)))
        (a, s), (b, t) = by_hand.alpha_sigma(i), by_hand.alpha_sigma(j)
        x = a * clean + s * noise
        led = by_hand.moved(x, walk.predict(i, x), i, j)
        expected = (led - t * noise) / b
        torch.testing.assert_close(view.latents, expected, rtol=1e-10, atol=1e-12)
        assert relative(found, gradient(walk, [View(expected)])) < 1e-10


def test_a_leap_to_the_next_step_is_a_step():
    walk = make_walk(FLOW, steps=9)
    at = walk.frozen(4)
    torch.testing.assert_close(walk.leap(at, 5).latents, walk.step(at).latents, rtol=1e-12, atol=1e-14)


# ---- all of them ----


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"steps"}))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_policy_has_gradient_on_every_solver(name, family):
    config, options = FAMILIES[family]
    walk = make_walk(config, steps=6, guidance=cfg(2.0), **options)
    found = gradient(walk, load_policy(name, {})(walk, torch.Generator().manual_seed(0)), reward)
    assert found.isfinite().all()
    assert found.abs().max() > 0
    assert all(parameter.grad is not None for parameter in parameters_of(walk.sampler.model.denoisers))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{name: last, k: 5}", "the policy's k is 5 but sampling.steps is 4: it can be at most that"),
        ("{name: drtune, k: 5}", "it can be at most that"),
        ("{name: bridge, k: 5}", "it can be at most that"),
        ("{name: bridge, k: 1}", "policy 'bridge': k is 1"),
        ("{name: last, k: 0}", "policy 'last': k is 0: "),
        ("{name: steps}", "policy 'steps' needs the option 'steps'"),
        ("{name: steps, steps: []}", "name at least one, and each once"),
        ("{name: steps, steps: [4]}", "names step 4, but sampling.steps is 4"),
        ("{name: steps, steps: [1, 1]}", "name at least one, and each once"),
        ("{name: steps, steps: [-1]}", "policy 'steps': steps is [-1]"),
        ("{name: last, steps: [3]}", "policy 'last' has no option 'steps'"),
        ("{name: refl, k: 2}", "policy 'refl' has no option 'k'"),
        ("{name: refl, window: [0.5, 0.5]}", "its first share must be below its second"),
        ("{name: refl, window: [0.5, 1.5]}", "policy 'refl': window is [0.5, 1.5]"),
        ("{name: lsat}", "unknown policy 'lsat': did you mean 'last'?"),
        ("{name: 'toys:none'}", "policy 'toys:none': toys has no none"),
        ("{name: sparse, bias: 10000}", "policy 'sparse': bias is 10000"),
        ("{name: 'test_policies:no_views'}", "the policy returns 3: it must yield View(latents)"),
        ("{name: 'test_policies:numbers'}", "the policy yields 3: it must yield View(latents)"),
        ("{name: 'test_policies:silent'}", "the policy shows the reward nothing: yield View(latents)"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_before_anything_is_loaded(policy, message):
    with pytest.raises(UserError) as error:
        load_algorithm(toy_recipe(f"algorithm.policy={policy}"))
    assert message in str(error.value)


def no_views(walk, generator):
    return 3


def numbers(walk, generator):
    yield 3


def silent(walk, generator):
    yield from ()


def test_a_leap_needs_two_steps():
    with pytest.raises(UserError, match="policy 'leap' needs at least two steps"):
        load_algorithm(toy_recipe("sampling.steps=1", "algorithm.policy={name: leap}"))
