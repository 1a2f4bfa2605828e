"""A run goes on beyond its end, from what damage has left, or in place of one that never trained: as if planned so."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from safetensors.torch import load_file

from toy_runs import TOY, adapter, assert_close_metrics, metrics, toy_recipe
from vader.algorithms import resolved
from vader.algorithms.reward_gradient import RewardGradient
from vader.cli import main
from vader.errors import RunError, Stopped
from vader.evaluation.held_out import HeldOut
from vader.networks.adapter_files import FILE_NAME
from vader.recipe import first_difference, load_recipe
from vader.runs.folder import ADAPTER
from vader.training.trainer import train


def content(run: Path) -> dict[str, bytes]:
    """Every file of a run but those that tell how long everything took."""
    files = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name not in ("report.html", "metrics.jsonl")}


def assert_same(run: Path, planned: Path) -> None:
    found, expected = content(run), content(planned)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert metrics(run) == metrics(planned)


# Runs that several tests begin with or compare with are made once; a test changes a copy.


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The toy's run of six steps."""
    return train(toy_recipe(), tmp_path_factory.mktemp("whole")).folder


@pytest.fixture(scope="module")
def longer(tmp_path_factory) -> Path:
    """The same, planned for nine."""
    return train(toy_recipe("train.steps=9"), tmp_path_factory.mktemp("longer")).folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """Stopped at step 5, with all its checkpoints."""
    return stopped_at(5, tmp_path_factory.mktemp("stopped"), KEEP_ALL)


KEEP_ALL = "train.keep_checkpoints=3"


def copied(run: Path, runs: Path) -> Path:
    """A run's copy among other runs."""
    return Path(shutil.copytree(run, runs / run.name))


def stopped_at(step: int, runs: Path, *overrides: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            train(toy_recipe(*overrides), runs)
    return runs / "toy"


def die_at(patch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    whole_step = RewardGradient.step

    def dying(self, engine, batch):
        if batch.step == step:
            action()
        return whole_step(self, engine, batch)

    patch.setattr(RewardGradient, "step", dying)


# ---- beyond the end ----

EXTENDED = {
    "an end that is no checkpoint": ["train.checkpoint_every=4"],
    "an end that is no evaluation": ["evaluation.every=4"],
    "neither": ["train.checkpoint_every=100", "evaluation.every=100"],
    "more videos at the ends": ["evaluation={every: 3, videos: 2, final_videos: 4, shown: 3}"],
    "more videos at the ends, no evaluation": ["evaluation={every: 5, videos: 2, final_videos: 4, shown: 3}"],
    "one checkpoint": ["train.keep_checkpoints=1", "train.checkpoint_every=4"],
    "ddpo": ["algorithm={name: ddpo}", "sampling.eta=1"],
    "diffusion_dpo": ["algorithm={name: diffusion_dpo, pairs: 3, capacity: 6}"],
}


def test_a_finished_run_goes_on_as_if_planned_so(tmp_path, whole, longer):
    run = copied(whole, tmp_path)
    assert not train(toy_recipe("train.steps=9"), tmp_path).finished_before
    assert_same(run, longer)


@pytest.mark.parametrize("overrides", EXTENDED.values(), ids=EXTENDED)
def test_a_finished_run_goes_on_whatever_comes_at_its_end(tmp_path, overrides):
    for steps in (6, 9):
        result = train(toy_recipe(*overrides, f"train.steps={steps}"), tmp_path / "extended")
        assert not result.finished_before
    train(toy_recipe(*overrides, "train.steps=9"), tmp_path / "planned")
    assert_same(tmp_path / "extended/toy", tmp_path / "planned/toy")


def test_a_stopped_run_may_become_longer_too(tmp_path, longer):
    run = stopped_at(5, tmp_path)
    train(toy_recipe("train.steps=9"), tmp_path)
    assert_same(run, longer)


def test_the_longer_run_is_the_run_of_the_folder(tmp_path, capsys, whole):
    copied(whole, tmp_path)
    assert main(["train", str(TOY), "train.steps=7", "--runs", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 2
    assert "is the run of another recipe (train.steps is 7 there and 6 here)" in capsys.readouterr().err
    assert main(["train", str(TOY), "train.steps=7", "--runs", str(tmp_path)]) == 0
    assert "is finished already" in capsys.readouterr().out


def test_a_run_goes_on_though_its_recipe_is_older_than_a_setting(tmp_path, whole):
    """A setting that came later had its default before it came."""
    run = train(toy_recipe("train.steps=3"), tmp_path).folder
    file = run / "recipe.yaml"
    text = file.read_text()
    assert "  segments: last\n" in text
    file.write_text(text.replace("  segments: last\n", ""))
    train(toy_recipe(), tmp_path)
    assert adapter(run) == adapter(whole)


LESS_MEMORY = ("train.micro_batch=1", "scoring.chunk=1", "memory=[{name: recompute}, {name: offload_activations}]")


@pytest.mark.parametrize("override", LESS_MEMORY)
def test_a_run_may_go_on_in_less_memory(tmp_path, whole, override):
    run = stopped_at(4, tmp_path)
    train(toy_recipe(override), tmp_path)
    assert_close_metrics(metrics(run), metrics(whole), relative=1e-4)
    kept = load_recipe(str(run / "recipe.yaml"), trust_code=True)
    assert first_difference(kept, resolved(toy_recipe(override))) is None  # it says what it goes on with


def test_a_dry_run_of_a_finished_run_trains_nothing_and_says_so(tmp_path, capsys, whole):
    copied(whole, tmp_path)
    assert main(["train", str(TOY), "--runs", str(tmp_path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "dry run: everything is in place, nothing was trained" in out
    assert "held-out reward" not in out


# ---- moved and renamed ----


@pytest.fixture(scope="module")
def faster(tmp_path_factory) -> Callable[[int], Path]:
    """Runs of so many steps at a rate of their own, each made once."""

    @cache
    def trained(steps: int) -> Path:
        recipe = toy_recipe(f"train.steps={steps}", "optimizer.lr=0.02")
        return train(recipe, tmp_path_factory.mktemp("faster")).folder

    return trained


@pytest.fixture
def moved(tmp_path, faster) -> Path:
    """A run of three steps, elsewhere and under another name; its recipe came with overrides."""
    (tmp_path / "moved").mkdir()
    return copied(faster(3), tmp_path).rename(tmp_path / "moved/toy 9")


@pytest.mark.parametrize("runs", [[], ["--runs", "moved"]])
def test_a_run_goes_on_where_it_lies_by_its_own_recipe(tmp_path, capsys, monkeypatch, moved, faster, runs):
    monkeypatch.chdir(tmp_path)
    planned = faster(4)
    longer = ["train", "moved/toy 9/recipe.yaml", "train.steps=4", "--trust-code", *runs]
    capsys.readouterr()
    assert main(longer) == 0
    assert "report:  moved/toy 9/report.html" in capsys.readouterr().out
    assert_same(moved, planned)
    assert main(longer) == 0
    assert "moved/toy 9 is finished already" in capsys.readouterr().out
    assert list(tmp_path.rglob("recipe.yaml")) == [moved / "recipe.yaml"]


def test_from_within_its_folder_a_run_goes_on_too(monkeypatch, capsys, moved):
    monkeypatch.chdir(moved)
    assert main(["train", "recipe.yaml", "--trust-code"]) == 0
    assert ". is finished already" in capsys.readouterr().out


def test_a_run_s_recipe_under_another_name_is_a_new_run(tmp_path, capsys, moved):
    asked = ["train", str(moved / "recipe.yaml"), "--trust-code", "--runs", str(tmp_path / "new")]
    assert main(asked) == 2
    assert capsys.readouterr().err == (
        f"vader: {moved} is a run, which goes on where it lies: leave out --runs, or give a new run of its recipe a "
        "name=...\n"
    )
    before = content(moved)
    assert main([*asked, "name=again", "train.steps=1"]) == 0
    assert (tmp_path / "new/again/adapter").is_dir()
    assert content(moved) == before


# ---- an adapter and a report at any time ----


def test_each_checkpoint_has_its_adapter_and_a_stopped_run_a_report(tmp_path, capsys):
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 5, lambda: signal.raise_signal(signal.SIGINT))
        assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 130
    run = tmp_path / "toy"
    assert "5 of 6 steps are done" in (run / "report.html").read_text()
    newest = run / "checkpoints/step-000005"
    assert sorted(path.name for path in newest.iterdir()) == ["manifest.json", FILE_NAME, "state.pt"]
    out = tmp_path / "videos"
    assert main(["sample", "red", "--recipe", str(TOY), "--adapter", str(newest), "--out", str(out)]) == 0
    assert main(["report", str(run)]) == 0
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 0
    assert (run / "checkpoints/step-000006" / FILE_NAME).read_bytes() == (run / ADAPTER).read_bytes()


def test_adapters_of_equal_tensors_are_equal_bytes(tmp_path):
    files = [train(toy_recipe("train.steps=1"), tmp_path / name).folder / ADAPTER for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load_file(files[0])


@pytest.mark.parametrize("name", ["{run}@6", "{run}/checkpoints/step-000006", "{run}/checkpoints/step-000006/state.pt"])
def test_a_damaged_adapter_is_refused(tmp_path, capsys, whole, name):
    run = copied(whole, tmp_path)
    file = run / "checkpoints/step-000006" / FILE_NAME
    content = file.read_bytes()
    file.write_bytes(content[:-8] + bytes(b ^ 0xFF for b in content[-8:]))
    assert main(["sample", "red", "--recipe", str(TOY), "--adapter", name.format(run=run), "--out", "none"]) == 2
    said = f"vader: checkpoint {file.parent} cannot be used: its {FILE_NAME} is damaged; name another\n"
    assert capsys.readouterr().err == said


# ---- in place of what never trained ----


def leave(path: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of a run that failed in a step, or, at -1, within its first evaluation."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        if steps < 0:
            patch.setattr(HeldOut, "summary", fail)
        else:
            die_at(patch, steps + 1, fail)
        with pytest.raises(RunError, match="your own code fails with ZeroDivisionError"):
            train(toy_recipe("optimizer.lr=0.5"), path)


@pytest.mark.parametrize("steps", [-1, 0])
def test_a_run_that_never_trained_is_replaced_with_a_word(tmp_path, monkeypatch, capsys, whole, steps):
    leave(tmp_path, steps, monkeypatch)
    thesis = tmp_path / "toy/thesis.tex"
    thesis.write_text("mine")
    train(toy_recipe(), tmp_path)
    said = "left out: a run of another recipe that had not trained a step (optimizer.lr is 0.5 there and 0.01 here)\n"
    assert capsys.readouterr().out.count(said) == 1
    assert thesis.read_text() == "mine"
    thesis.unlink()
    assert_same(tmp_path / "toy", whole)


def test_a_run_that_has_trained_a_step_is_not_replaced(tmp_path, monkeypatch, capsys):
    leave(tmp_path, 1, monkeypatch)
    before = content(tmp_path / "toy")
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 2
    assert "is the run of another recipe (optimizer.lr is 0.5 there and 0.01 here)" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "toy/checkpoints")
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 2  # its log tells what it was
    assert content(tmp_path / "toy") == {name: b for name, b in before.items() if not name.startswith("checkpoints")}


@pytest.mark.parametrize("name", [".recipe.yaml.0a1b2c3d.part", ".adapter.part", ".lock", ".lock.holder"])
def test_what_a_killed_start_left_blocks_nothing(tmp_path, name):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / name).touch()
    train(toy_recipe("train.steps=1"), tmp_path)
    assert not list((tmp_path / "toy").rglob(".*"))


# ---- after damage ----


def damage_line(run: Path, place: int, damage: Callable[[bytes], bytes] = lambda line: bytes(len(line))) -> None:
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    lines[place] = damage(lines[place])
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))


# The lines are: 0 evaluation, 1, 2, 3, 3 evaluation, 4, 5. Checkpoints are at 2 and 4, and where it was stopped.
@pytest.mark.parametrize(
    "damage",
    [lambda line: b"", lambda line: line[:40], lambda line: b"\xff" + line, lambda line: b"[1]", lambda line: b"{}"],
)
@pytest.mark.parametrize("place", [3, 4, 5, 6])
def test_a_damaged_log_goes_on_from_its_last_whole_line(tmp_path, whole, stopped, place, damage):
    damage_line(copied(stopped, tmp_path), place, damage)
    result = train(toy_recipe(KEEP_ALL), tmp_path)
    assert metrics(result.folder) == metrics(whole)
    assert adapter(result.folder) == adapter(whole)


def test_what_went_back_goes_on_from_there(tmp_path, whole, stopped):
    """No newer checkpoint is taken up whose lines are gone by then."""
    damage_line(copied(stopped, tmp_path), 5)
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 4, lambda: {}["killed"])
        with pytest.raises(RunError, match="killed"):
            train(toy_recipe(KEEP_ALL), tmp_path)
    train(toy_recipe(KEEP_ALL), tmp_path)
    assert metrics(tmp_path / "toy") == metrics(whole)


def test_a_damaged_line_before_all_checkpoints_is_left_out(tmp_path, whole, capsys):
    run = stopped_at(5, tmp_path)
    damage_line(run, 1)
    train(toy_recipe(), tmp_path)
    assert metrics(run) == [line for line in metrics(whole) if (line["kind"], line["step"]) != ("train", 1)]
    assert adapter(run) == adapter(whole)


def test_a_damaged_checkpoint_is_left_out_with_a_word(tmp_path, whole, capsys):
    run = stopped_at(5, tmp_path)
    state = run / "checkpoints/step-000005/state.pt"
    state.write_bytes(state.read_bytes()[:-100])
    (run / "checkpoints/step-000006").mkdir()
    shutil.copytree(run / "checkpoints/step-000004", run / "checkpoints/step-000004.bak")
    capsys.readouterr()
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 0
    said = "left out: checkpoints/step-000006 (it is empty); checkpoints/step-000005 (its state.pt is damaged)"
    assert said in capsys.readouterr().out
    assert metrics(run) == metrics(whole)
    assert adapter(run) == adapter(whole)
    assert main(["evaluate", str(run), "--trust-code", "--videos", "1", "--seeds", "1"]) == 0
    assert "left out of" in capsys.readouterr().err


# ---- a full disk ----


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


FULL = {
    "a line of metrics": ("vader.runs.log._json", "cannot write .*metrics.jsonl: No space left on device"),
    "a video": ("vader.files.video._encode", "cannot write .*: No space left on device"),
    "scores": ("vader.runs.log.finite", "cannot write .*: No space left on device"),
    "a checkpoint": ("torch.save", "no checkpoint could be written to .*: cannot write .*step-000004: No space left"),
    "the best adapter": ("vader.networks.adapter_files.save_tensors", "cannot write .*best.*: No space left on device"),
    "a report": ("vader.evaluation.report.report_page", "cannot write .*report.html: No space left on device"),
}


@pytest.mark.parametrize(("target", "message"), FULL.values(), ids=FULL)
def test_a_disk_that_is_full_in_mid_run_is_one_line(tmp_path, whole, capsys, target, message):
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, 3, lambda: patch.setattr(target, full))
        assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not list(tmp_path.rglob("*.part"))
    assert main(["train", str(TOY), "--runs", str(tmp_path)]) == 0
    assert metrics(tmp_path / "toy") == metrics(whole)
    assert adapter(tmp_path / "toy") == adapter(whole)
