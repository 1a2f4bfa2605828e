"""The adapter's moving average: its formula, what it is used for, and that a run with one goes on exactly."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from test_processes import equals_one
from test_resume import stop_after
from toy_runs import adapter, metrics, toy_recipe
from vader.errors import Stopped, UserError
from vader.networks.adapter import adapters_state
from vader.networks.average import Average
from vader.runs.folder import ADAPTER, RunFolder
from vader.training.before import check_recipe
from vader.training.trainer import build_run, next_batch, train, warm_start

SHORT = ("train.steps=4", "evaluation.every=2", "evaluation.videos=2")


def test_the_average_is_a_geometric_sum_of_the_weights():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    average, history = Average([weight], 0.9), [weight.detach().clone()]
    for step in range(5):
        weight.data = weight.data + torch.tensor([1.0, 0.5 * step])
        history.append(weight.detach().clone())
        average.update()
    expected = 0.9**5 * history[0] + sum(0.1 * 0.9 ** (5 - k) * history[k] for k in range(1, 6))
    torch.testing.assert_close(average.values[0], expected)
    with average.applied():
        assert torch.equal(weight.data, average.values[0])
    assert torch.equal(weight.data, history[-1])
    with pytest.raises(UserError, match="its average is of another adapter"):
        average.load_state([torch.zeros(3)])


def test_it_follows_the_steps_that_are_taken_and_trains_none_of_them(tmp_path):
    def stepped(*overrides: str):
        recipe = toy_recipe("rewards.0.sees=4", *overrides)
        run = build_run(check_recipe(recipe), RunFolder(tmp_path / "toy"))
        states = [[p.detach().clone() for p in run.engine.parameters]]
        for step in (1, 2, 3):
            run.algorithm.step(run.engine, next_batch(run, step))
            states.append([p.detach().clone() for p in run.engine.parameters])
        return run.engine, states

    engine, states = stepped("adapter.ema=0.8")
    for i, value in enumerate(engine.average.values):
        expected = states[0][i]
        for state in states[1:]:
            expected = 0.8 * expected + 0.2 * state[i]
        torch.testing.assert_close(value, expected)
    _, plain = stepped()
    torch.testing.assert_close(states, plain, rtol=0, atol=0)
    before = [value.clone() for value in engine.average.values]
    engine.parameters[0].grad = torch.full_like(engine.parameters[0], torch.nan)
    assert not engine.optimise()[1]
    torch.testing.assert_close(engine.average.values, before, rtol=0, atol=0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("average")
    recipe = toy_recipe(*SHORT, "adapter.ema=0.7")
    train(recipe, folder)
    return folder / "toy", recipe


def test_the_average_is_what_is_exported_and_evaluated(finished, tmp_path):
    folder, recipe = finished
    state = torch.load(next(folder.glob("checkpoints/step-000004/state.pt")), weights_only=True)
    run = build_run(check_recipe(recipe), RunFolder(tmp_path / "toy"))
    warm_start(run.engine, str(folder))
    found = [p.detach() for p in run.engine.parameters]
    torch.testing.assert_close(found, state["average"])
    torch.testing.assert_close(run.engine.average.values, found)
    raw = [value for one in state["adapter"].values() for value in one.values()]
    assert max((one - other).abs().max().item() for one, other in zip(raw, found, strict=True)) > 1e-3
    assert adapters_state(run.engine.model.denoisers).keys() == state["adapter"].keys()
    train(toy_recipe(*SHORT, f"adapter.init={folder}", "train.steps=1", "name=again"), tmp_path)
    first, last = metrics(tmp_path / "again")[0], metrics(folder)[-1]
    assert first["reward"] == pytest.approx(last["reward"], abs=1e-6)


def test_the_exported_file_is_that_of_the_last_checkpoint(finished):
    folder, _ = finished
    one, other = (load_file(path) for path in (folder / ADAPTER, folder / "checkpoints/step-000004" / ADAPTER.name))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_stopped_and_continued_equals_uninterrupted(finished, tmp_path):
    folder, recipe = finished
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            train(recipe, tmp_path)
    train(recipe, tmp_path)
    assert metrics(tmp_path / "toy") == metrics(folder)
    assert adapter(tmp_path / "toy") == adapter(folder)


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    equals_one(tmp_path, 2, ["adapter.ema=0.7"], {})
