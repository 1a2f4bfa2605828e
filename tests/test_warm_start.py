"""Adapters by any of their names, and runs that start from one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from toy_runs import TOY, metrics
from vader.cli import main
from vader.errors import UserError
from vader.networks.adapter_files import FILE_NAME, read_metadata
from vader.recipe import load_recipe
from vader.runs.adapters import find_adapter, run_of
from vader.runs.folder import RunFolder, step_name


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A finished run of the toy model that has kept its checkpoints of steps 3 and 6."""
    runs = tmp_path_factory.mktemp("runs")
    assert main(["train", str(TOY), "train.checkpoint_every=3", "--runs", str(runs)]) == 0
    return runs / "toy"


def trained(toy: Path, name: str, *overrides: str) -> Path:
    arguments = ["train", str(TOY), f"name={name}", "train.checkpoint_every=3", *overrides, "--runs", str(toy.parent)]
    assert main(arguments) == 0
    return toy.parent / name


def refused(capsys, toy: Path, *overrides: str) -> str:
    """The one line of a run that has left nothing."""
    capsys.readouterr()
    assert main(["train", str(TOY), "name=refused", *overrides, "--runs", str(toy.parent)]) == 2
    assert not (toy.parent / "refused").exists()
    (line,) = capsys.readouterr().err.splitlines()
    return line


# ---- every name of an adapter ----


def test_an_adapter_is_found_by_each_of_its_names(toy):
    third, folder = toy / "checkpoints" / step_name(3), toy / "adapter"
    names = {
        folder: folder,
        folder / FILE_NAME: folder / FILE_NAME,
        toy: folder,
        f"{toy}/": folder,
        f"{toy}@3": third,
        third: third,
        third / "state.pt": third,
    }
    assert {str(name): find_adapter(name) for name in names} == {str(name): path for name, path in names.items()}


def test_a_name_that_exists_is_taken_as_it_is(toy, tmp_path):
    """A folder may have an @ in its name."""
    own = shutil.copytree(toy / "adapter", tmp_path / "mine@3")
    assert find_adapter(own) == own
    assert run_of(own) is None
    assert run_of(toy) == run_of(f"{toy}@3") == RunFolder(toy)


def test_the_checkpoint_of_the_end_has_the_weights_of_the_end(toy):
    last, end = (load_file(find_adapter(name) / FILE_NAME) for name in (f"{toy}@6", toy))
    assert last.keys() == end.keys()
    assert all(last[name].equal(end[name]) for name in end)
    third = load_file(find_adapter(f"{toy}@3") / FILE_NAME)
    assert not any(third[name].equal(end[name]) for name in end)


@pytest.mark.parametrize("step", ["2", "last", "-3", "03", "\u0663"])
def test_a_step_that_is_not_kept_is_one_line_with_those_that_are(toy, step):
    with pytest.raises(UserError) as error:
        find_adapter(f"{toy}@{step}")
    steps = [kept for kept in (0, 3, 6) if (toy / "checkpoints" / step_name(kept)).is_dir()]
    named = " or ".join(f"{toy}@{kept}" for kept in (*steps, "best"))
    assert str(error.value) == f"{toy} has no adapter of step {step!r}: name {named}"


def test_a_run_that_has_not_finished_names_what_it_has(toy, tmp_path):
    young = shutil.copytree(toy, tmp_path / "young")
    shutil.rmtree(young / "adapter")
    for copy in ("step-000003.bak", "step-000003 (copy)", "step-0000003"):
        shutil.copytree(young / "checkpoints" / step_name(3), young / "checkpoints" / copy)
    steps = " or ".join(f"{young}@{kept}" for kept in (3, 6, "best"))
    with pytest.raises(UserError, match=rf"has not finished, so it has no adapter yet: name .*{steps}$"):
        find_adapter(young)
    shutil.rmtree(young / "checkpoints")
    with pytest.raises(UserError, match=rf"no adapter yet: name {young}@best$"):
        find_adapter(young)
    shutil.rmtree(young / "best")
    with pytest.raises(UserError, match="no adapter yet: name a run that has saved a checkpoint"):
        find_adapter(young)


@pytest.mark.parametrize("name", ["nowhere", "nowhere@3", "@3", "."])
def test_no_adapter_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^no adapter at '{name}': name a {FILE_NAME} or the folder that holds it$"):
        find_adapter(name)


# ---- every command takes them ----


def test_sample_takes_a_checkpoint_and_its_runs_recipe(toy, tmp_path, capsys):
    assert main(["sample", "red", "--trust-code", "--adapter", f"{toy}@3", "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"000-red.mp4", "contact-sheet.png", "prompts.json"}


def test_evaluate_takes_a_checkpoint_and_its_runs_recipe(toy, tmp_path):
    out = tmp_path / "evaluation"
    assert (
        main(["evaluate", "--trust-code", "--adapter", f"{toy}@3", "--videos", "3", "--seeds", "1", "--out", str(out)])
        == 0
    )
    points = json.loads((out / "evaluation.json").read_text())["points"]
    during = {line["step"]: line["reward"] for line in metrics(toy) if line["kind"] == "evaluation"}
    assert [point["reward"] for point in points] == pytest.approx([during[0], during[3]], abs=1e-5)


def test_export_takes_a_checkpoint(toy, tmp_path):
    for name in (toy, f"{toy}@3"):
        out = tmp_path / Path(name).name
        assert main(["export", str(name), "--adapter", "--out", str(out)]) == 0
        assert (out / FILE_NAME).read_bytes() == (find_adapter(name) / FILE_NAME).read_bytes()


def test_export_of_what_is_no_run_says_so(toy, tmp_path, capsys):
    for name in (tmp_path, toy / "adapter", tmp_path / "x@3"):
        capsys.readouterr()
        assert main(["export", str(name), "--adapter", "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err == f"vader: {str(name)!r} is no run's folder: there is no recipe.yaml in it\n"
    assert main(["export", f"{toy}@5", "--adapter", "--out", str(tmp_path / "out")]) == 2
    assert "has no adapter of step '5'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- warm start ----


@pytest.mark.parametrize("scale", [[], ["adapter.alpha=0.5"]], ids=["same scale", "another scale"])
@pytest.mark.parametrize("step", ["", "@3"])
def test_a_warm_start_begins_where_the_other_run_was(toy, step, scale):
    name = f"warm{step.strip('@')}{len(scale)}"
    run = trained(toy, name, f"adapter.init={toy}{step}", "train.steps=2", *scale)
    first = next(line for line in metrics(run) if line["kind"] == "evaluation")
    before = {line["step"]: line["reward"] for line in metrics(toy) if line["kind"] == "evaluation"}
    assert first["step"] == 0
    assert first["reward"] == pytest.approx(before[3 if step else 6], abs=1e-5)
    assert first["reward"] != pytest.approx(before[0], abs=1e-3)


def test_a_run_says_what_it_started_from(toy):
    run = trained(toy, "said", f"adapter.init={toy}@3", "train.steps=1")
    assert load_recipe(str(run / "recipe.yaml"), trust_code=True).adapter.init == f"{toy}@3"
    assert read_metadata(run / "adapter")["init"] == f"{toy}@3"
    assert "init" not in read_metadata(toy / "adapter")


def test_a_run_goes_on_without_what_it_started_from(toy, tmp_path):
    """Its own checkpoints have all of it; the same command again looks for nothing else."""
    source = shutil.copytree(toy / "adapter", tmp_path / "source")
    run = trained(toy, "alone", f"adapter.init={source}", "train.steps=2")
    end = load_file(run / "adapter" / FILE_NAME)
    shutil.rmtree(source)
    shutil.rmtree(run / "adapter")
    trained(toy, "alone", f"adapter.init={source}", "train.steps=2")
    assert all(tensor.equal(end[name]) for name, tensor in load_file(run / "adapter" / FILE_NAME).items())


def test_what_does_not_fit_is_refused(capsys, toy, tmp_path):
    line = refused(capsys, toy, f"adapter.init={toy}", "adapter.rank=4")
    assert line == (
        f"vader: adapter.init '{toy}': adapter '{toy / 'adapter' / FILE_NAME}' (trained on 'none') does not fit: "
        "it has rank 2, and the adapter here 4: set adapter.rank to 2"
    )
    line = refused(capsys, toy, f"adapter.init={toy}", "adapter.targets=[to_out]")
    assert "does not fit: it is of another model: there is no 'to_q.lora_A.weight' here" in line
    assert refused(capsys, toy, f"adapter.init={toy}@4").startswith(f"vader: {toy} has no adapter of step '4': name ")
    assert "no adapter at 'nowhere'" in refused(capsys, toy, "adapter.init=nowhere")


def test_an_adapter_of_another_network_is_refused(capsys, toy, tmp_path):
    weights = load_file(toy / "adapter" / FILE_NAME)
    other = {name.replace("unet.", "transformer.", 1): tensor for name, tensor in weights.items()}
    save_file(other, tmp_path / FILE_NAME)
    assert refused(capsys, toy, f"adapter.init={tmp_path}") == (
        f"vader: adapter.init '{tmp_path}' is for transformer, and this run trains unet: "
        "set adapter.denoisers to fit, or start from another"
    )


def test_a_dry_run_looks_for_it(capsys, toy):
    assert main(["train", str(TOY), "name=x", "adapter.init=nowhere", "--dry-run", "--runs", str(toy.parent)]) == 2
    assert "no adapter at 'nowhere'" in capsys.readouterr().err


def test_the_frozen_base_stays_the_checkpoints(toy):
    """What holds a run to its base holds it to the model without any adapter: at the start it is not near it."""
    distance = "algorithm.base_distance=1"
    cold, warm = (
        next(line for line in metrics(trained(toy, name, distance, "train.steps=1", *init)) if line["kind"] == "train")
        for name, init in (("cold-base", ()), ("warm-base", (f"adapter.init={toy}",)))
    )
    assert cold["base_distance"] == pytest.approx(0.0, abs=1e-9)
    assert warm["base_distance"] > 1e-4
    assert torch.isfinite(torch.tensor(warm["reward"]))
