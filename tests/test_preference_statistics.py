"""The statistics of preference studies: against reference implementations, closed forms, and simulated raters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vader.preference.statistics import (
    bradley_terry,
    clustered_bootstrap,
    krippendorff_alpha,
    sign_test,
    t_quantile,
    wilson,
)
from vader.preference.study import PASSED

# ---------------------------------------------------------------- references


def test_wilson_and_the_sign_test_are_scipys() -> None:
    """scipy 1.17: binomtest(79, 100) and (61, 100), their p-values and Wilson intervals."""
    assert wilson(0.79, 100) == pytest.approx((0.7002003116591013, 0.858343459380847), abs=1e-12)
    assert sign_test(79, 21) == pytest.approx(4.3373666334216375e-09, rel=1e-9)
    assert sign_test(61, 39) == pytest.approx(0.035200200217704855, rel=1e-9)
    assert [sign_test(3, 0), sign_test(5, 5), sign_test(0, 0)] == [0.25, 1.0, 1.0]
    assert sign_test(5200, 4800) == pytest.approx(6.65e-5, rel=0.01)  # thousands are no trouble


def test_wilson_stays_within_0_and_1() -> None:
    assert wilson(1.0, 10) == pytest.approx((0.7224672001371107, 1.0))
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775327998628893))
    assert all(map(math.isnan, wilson(0.5, 0)))


@pytest.mark.parametrize(("freedom", "expected"), [(4, 2.7764451), (7, 2.3646243), (15, 2.1314495), (31, 2.0395134)])
def test_students_t(freedom: int, expected: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=2e-3)


def test_bradley_terry_is_choixs() -> None:
    """choix 0.4.1, mm_pairwise, of the same wins; and for two systems the share itself."""
    wins = np.array([[0, 7, 9, 4], [3, 0, 6, 5], [1, 4, 0, 8], [6, 2, 3, 0]], dtype=float)
    assert bradley_terry(wins) == pytest.approx([0.39709393, 0.25527307, 0.180876, 0.16675701], abs=1e-8)
    assert bradley_terry(np.array([[0, 79.0], [21, 0]])) == pytest.approx([0.79, 0.21])


def test_bradley_terry_finds_the_strengths_that_wins_were_made_of() -> None:
    strengths = np.array([0.5, 0.3, 0.15, 0.05])
    wins = 1000 * strengths[:, None] / (strengths[:, None] + strengths)
    np.fill_diagonal(wins, 0)
    assert bradley_terry(wins) == pytest.approx(strengths, abs=1e-9)


@pytest.mark.parametrize("wins", [[[0, 3], [0, 0]], [[0, 1, 9], [2, 0, 7], [0, 0, 0]], [[0, 0], [0, 0]]])
def test_bradley_terry_has_no_answer_where_somebody_never_wins(wins: list[list[float]]) -> None:
    assert bradley_terry(np.array(wins, dtype=float)) is None


def _counts(table: np.ndarray, values: int) -> np.ndarray:
    """Answers `[raters, units]`, NaN for none, as how often each unit was given each value."""
    return np.array([[np.sum(unit == value) for value in range(values)] for unit in table.T], dtype=float)


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    """Computing Krippendorff's Alpha-Reliability (2011), section C: four observers, twelve units, alpha = 0.743."""
    data = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    table = np.array([[math.nan if v == "." else int(v) - 1 for v in row.split()] for row in data])
    assert krippendorff_alpha(_counts(table, 5)) == pytest.approx(0.743, abs=5e-4)


@pytest.mark.parametrize("seed", range(20))
def test_alpha_is_that_of_the_package(seed: int) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    random = np.random.default_rng(seed)
    truth = random.integers(3, size=30)
    table = np.where(random.random((6, 30)) < 0.6, truth, random.integers(3, size=(6, 30))).astype(float)
    table[random.random(table.shape) < 0.3] = math.nan
    expected = krippendorff.alpha(reliability_data=table, level_of_measurement="nominal")
    assert krippendorff_alpha(_counts(table, 3)) == pytest.approx(expected, abs=1e-12)


def test_alpha_is_none_where_there_is_nothing_to_agree_on() -> None:
    assert math.isnan(krippendorff_alpha(np.array([[1.0, 0], [0, 1]])))
    assert math.isnan(krippendorff_alpha(np.array([[3.0, 0], [4, 0]])))


# ---------------------------------------------------------------- simulated raters

PROMPTS, RATERS, TIES, CARELESS, SPREAD = 32, 8, 0.1, 0.15, 6.0


def _simulated(truth: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and prompts of one study. Prompts differ in how far one system is preferred (a beta distribution with this
    mean), a tenth of answers are ties, some raters leave early, and some answer by throwing dice: these go when they
    fail their five attention checks, as they do but for one in twenty."""
    random = np.random.default_rng(seed)
    decided = (truth - TIES / 2) / (1 - TIES)
    by_prompt = random.beta(decided * SPREAD, (1 - decided) * SPREAD, PROMPTS)
    careless = random.random(RATERS) < CARELESS
    right = random.binomial(5, np.where(careless, 1 / 3, 0.98))
    draws = random.random((RATERS, PROMPTS))
    scores = np.where(draws < np.where(careless[:, None], 1 / 2, by_prompt), 1.0, 0.0)
    scores[random.random(scores.shape) < np.where(careless[:, None], 1 / 3, TIES)] = 0.5
    answered = random.random(scores.shape) < random.uniform(0.5, 1.0, (RATERS, 1))
    answered &= (right >= PASSED * 5)[:, None]
    return scores[answered], np.unique(np.nonzero(answered)[1], return_inverse=True)[1]


@pytest.mark.parametrize("studies", [300, pytest.param(1000, marks=pytest.mark.rare)])
@pytest.mark.parametrize("truth", [0.79, 0.61])
def test_the_interval_over_prompts_covers_the_truth_in_95_percent_of_studies(truth: float, studies: int) -> None:
    """Studies at the paper's two shares: between 93 and 97 %, where Wilson's, which takes answers as
    independent, is too sure of itself."""
    covered = independent = 0
    for seed in range(studies):
        scores, prompts = _simulated(truth, seed)
        low, high = clustered_bootstrap(scores, prompts, seed=seed)
        covered += low <= truth <= high
        low, high = wilson(scores.mean(), len(scores))
        independent += low <= truth <= high
    assert 0.93 * studies <= covered <= 0.97 * studies
    assert independent < covered


def test_the_bootstrap_is_the_same_again_and_says_nothing_of_few_prompts() -> None:
    scores, prompts = _simulated(0.79, 0)
    assert clustered_bootstrap(scores, prompts) == clustered_bootstrap(scores, prompts)
    assert all(map(math.isnan, clustered_bootstrap(np.ones(4), np.arange(4))))
    assert clustered_bootstrap(np.ones(8), np.arange(8)) == (1.0, 1.0)
