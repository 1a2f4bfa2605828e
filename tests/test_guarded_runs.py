"""Guards in runs: stopped and resumed alike, the best adapter is the right one, evaluations and the report agree."""

from __future__ import annotations

import json
import shutil
import signal
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from run_factories import evaluation_line, train_line, write_metrics
from test_report import Balanced, write_samples
from test_resume import stop_after
from toy_runs import adapter, metrics, toy_recipe
from vader.cli import main
from vader.errors import Distrusted, Stopped, UserError
from vader.evaluation.evaluate import build_bench, evaluate_sources, sources_of_run
from vader.evaluation.guards.base import Finding, Guard
from vader.evaluation.guards.verdicts import Verdict, read_verdicts, write_verdicts
from vader.evaluation.guards.words import weak_points
from vader.evaluation.report import write_report
from vader.recipe import dump_recipe, load_recipe
from vader.runs.adapters import find_adapter
from vader.runs.folder import RunFolder
from vader.runs.reader import read_run
from vader.training.trainer import train


class Blue(Guard):
    """Mean blue, which the toy's reward trains away: `allowed` lets so much of it go."""

    wrong = "blue goes"

    def __init__(self, allowed: float) -> None:
        self.allowed = allowed

    def per_video(self, clip, prompts):
        return clip.frames[:, :, 2].mean(dim=(1, 2, 3))

    def spread(self, base):
        return 1e-3


class Keeps(Guard):
    """Writes down what is asked of it."""

    heard: list[str] = []  # noqa: RUF012 (a run makes its own guard)

    def prepare(self, device, dtype):
        self.heard.append("prepare")

    def rest(self):
        self.heard.append("rest")

    def per_video(self, clip, prompts):
        self.heard.append("measure")
        return clip.frames.mean(dim=(1, 2, 3, 4))


def test_what_measures_leaves_the_device_to_training(tmp_path):
    """Tried once, and then brought there for each of three evaluations alone."""
    Keeps.heard.clear()
    train(toy_recipe("train.steps=2", "evaluation={every: 1, videos: 2, batch: 2}",
                     "guards.watch=[{name: 'test_guarded_runs:Keeps'}]"), tmp_path)  # fmt: skip
    assert Keeps.heard == ["prepare", "measure", "rest"] * 4


def recipe(allowed: float, *overrides: str):
    watch = f"[{{name: 'test_guarded_runs:Blue', allowed: {allowed}}}]"
    return toy_recipe(
        "train.steps=10", "train.checkpoint_every=1", "train.keep_checkpoints=20", "optimizer.lr=0.02",
        "evaluation={every: 2, videos: 6, shown: 3}", f"guards.watch={watch}", "guards.mode=stop", *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module")
def allowed(tmp_path_factory) -> float:
    """A little more than what is lost of blue by the second evaluation after the base's, and not by the third."""
    found = read_verdicts(train(recipe(1.0), tmp_path_factory.mktemp("free")).folder / "guards.jsonl")
    lost = [1.0 - 1e-3 * verdict.findings["Blue"].mean for verdict in found]
    assert all(later > before for before, later in pairwise(lost)), lost
    assert {verdict.colour for verdict in found} == {"green"}
    return 0.9 * lost[2] + 0.1 * lost[3]


@pytest.fixture(scope="module")
def distrusted(allowed, tmp_path_factory) -> Path:
    """A run that is green at steps 2 and 4, yellow at 6, and stopped at 8."""
    runs = tmp_path_factory.mktemp("whole")
    with pytest.raises(Distrusted) as error:
        train(recipe(allowed), runs)
    assert str(error.value).startswith(
        "stopped by guard 'Blue' at step 8 of 10 and saved: this gain is not to be trusted"
    )
    assert str(error.value).endswith(f"; {runs / 'toy'}@best is the adapter of step 4; guards.mode=warn goes on")
    return runs / "toy"


def left(run: Path) -> dict[str, bytes]:
    """What guards and evaluations have left."""
    kept = [run / "guards.jsonl", *sorted((run / "evaluations").iterdir()), *sorted((run / "samples").rglob("*.mp4"))]
    return {str(path.relative_to(run)): path.read_bytes() for path in kept}


def assert_same(run: Path, other: Path) -> None:
    assert metrics(run) == metrics(other)
    assert left(run) == left(other)
    assert best(run).keys() == best(other).keys()
    assert all(best(run)[name].equal(best(other)[name]) for name in best(other))


def load_average(checkpoint: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The adapter's weights in a checkpoint, and their average."""
    state = torch.load(checkpoint / "state.pt", weights_only=True)
    raw = [weight for of in state["adapter"].values() for weight in of.values()]
    return sorted(raw, key=lambda weight: weight.sum()), sorted(state["average"], key=lambda weight: weight.sum())


def best(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "best" / "pytorch_lora_weights.safetensors")


def test_the_best_is_that_of_the_last_green_evaluation(distrusted):
    colours = {verdict.step: verdict.colour for verdict in read_verdicts(distrusted / "guards.jsonl")}
    assert colours == {0: "green", 2: "green", 4: "green", 6: "yellow", 8: "red"}
    at_4 = load_file(distrusted / "checkpoints/step-000004/pytorch_lora_weights.safetensors")
    assert best(distrusted).keys() == at_4.keys()
    assert all(best(distrusted)[name].equal(weight) for name, weight in at_4.items())
    assert find_adapter(f"{distrusted}@best") == distrusted / "best"
    with pytest.raises(UserError, match=f" or {distrusted}@8 or {distrusted}@best$"):
        find_adapter(f"{distrusted}@bset")
    assert not (distrusted / "adapter").exists()


def test_the_best_is_the_average_where_there_is_one(tmp_path):
    run = train(recipe(1.0, "adapter.ema=0.5", "train.steps=4"), tmp_path).folder
    assert [verdict.colour for verdict in read_verdicts(run / "guards.jsonl")] == ["green"] * 3
    raw, averaged = load_average(run / "checkpoints/step-000004")
    exported = load_file(run / "checkpoints/step-000004/pytorch_lora_weights.safetensors")
    assert any(not one.equal(other) for one, other in zip(raw, averaged, strict=True))
    assert all(best(run)[name].equal(weight) for name, weight in exported.items())
    assert sorted(w.sum().item() for w in exported.values()) == sorted(w.sum().item() for w in averaged)


def test_the_same_command_says_it_again_and_trains_nothing(distrusted, allowed):
    before = left(distrusted)
    with pytest.raises(Distrusted, match="at step 8 of 10"):
        train(recipe(allowed), distrusted.parent)
    assert left(distrusted) == before
    kept = (distrusted / "recipe.yaml").read_bytes()
    with pytest.raises(Distrusted, match="at step 8 of 20"):
        train(recipe(allowed, "train.steps=20"), distrusted.parent)
    assert (distrusted / "recipe.yaml").read_bytes() == kept


class Rule(Guard):
    def __init__(self, sign=1, allowed=0.0, limit=None, floor=None):
        self.sign, self.allowed, self.limit, self.floor = sign, allowed, limit, floor

    def per_video(self, clip, prompts):
        return clip.frames.mean(dim=(1, 2, 3, 4)) * (float("nan") if self.floor == 5 else 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("sign: down", "sign is 'down': 1 where a fall is bad, -1 where a rise is, 0 for both"),
        ("allowed: a lot", "allowed is 'a lot': a number from 0 on"),
        ("allowed: null", "allowed is None: a number from 0 on"),
        ("limit: -3", "limit is -3: a number from 0 on"),
        ("allowed: 0.5, limit: 0.1", "limit 0.1 is below allowed 0.5, which is no objection yet"),
        ("floor: 5", "gives no number for random pixels in [0, 1]: let `per_video` give one a video"),
    ],
)
def test_a_guard_without_a_rule_is_told_before_the_run(tmp_path, options, message):
    rule = f"guards.watch=[{{name: 'test_guarded_runs:Rule', {options}}}]"
    with pytest.raises(UserError) as error:
        train(toy_recipe(rule), tmp_path, dry_run=True)
    assert str(error.value).startswith("guard 'Rule'")
    assert str(error.value).endswith(message)


def test_guards_that_cannot_stop_a_run_are_told(tmp_path, capsys):
    with pytest.raises(UserError, match=r"guards.mode is stop, and there is no guard: name some in guards\.watch"):
        train(toy_recipe("guards={mode: stop, watch: []}"), tmp_path, dry_run=True)
    held = "rewards=[{name: hps, checkpoint: tiny}]"
    words = weak_points(toy_recipe("guards={mode: stop, " + held.replace("=", ": ") + "}", held, "evaluation.every=6"))
    assert words == [
        "guards.rewards has 'hps', which is trained on: held out is another reward, or other weights",
        "guards.mode is stop and evaluation.videos 3: with 32 a run is hardly ever stopped by chance",
        "guards.mode is stop and evaluation.every 6, of 6 steps: none is evaluated before the last, so that nothing "
        "can be stopped",
    ]
    assert weak_points(toy_recipe("evaluation.every=6")) == []


def test_stopped_between_the_two_objections(distrusted, allowed, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 7, signal.SIGTERM)
        with pytest.raises(Stopped):
            train(recipe(allowed), tmp_path)
    assert read_verdicts(tmp_path / "toy/guards.jsonl")[-1].step == 6
    with pytest.raises(Distrusted, match="at step 8 of 10"):
        train(recipe(allowed), tmp_path)
    assert_same(tmp_path / "toy", distrusted)


@pytest.mark.parametrize("back", [3, 7])
def test_killed_and_back_at_an_earlier_checkpoint(distrusted, allowed, tmp_path, back):
    """What the guards said beyond it is said anew, and a best of beyond it makes room for that of before."""
    shutil.copytree(distrusted, tmp_path / "toy")
    for path in (tmp_path / "toy/checkpoints").iterdir():
        if int(path.name[-6:]) > back:
            shutil.rmtree(path)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, back + 1)
        with pytest.raises(Stopped):
            train(recipe(allowed), tmp_path)
    last = max(step for step in (2, 4, 6, 8) if step <= back + 1)
    assert read_verdicts(tmp_path / "toy/guards.jsonl")[-1].step == last
    at_best = load_file(distrusted / f"checkpoints/step-{min(last, 4):06d}/pytorch_lora_weights.safetensors")
    assert all(best(tmp_path / "toy")[name].equal(weight) for name, weight in at_best.items())
    with pytest.raises(Distrusted):
        train(recipe(allowed), tmp_path)
    assert_same(tmp_path / "toy", distrusted)


def test_warned_it_goes_on_and_guards_change_no_number(distrusted, allowed, tmp_path, capsys):
    shutil.copytree(distrusted, tmp_path / "toy")
    result = train(recipe(allowed, "guards.mode=warn"), tmp_path)
    out = capsys.readouterr().out
    assert "guards at step 10: this gain is not to be trusted: blue goes (Blue: -" in out
    guards, named = result.lines()[4:6]
    assert guards.startswith("guards:  this gain is not to be trusted")
    assert named.startswith(
        f"best:    step 4, to which no guard objected: vader export {tmp_path / 'toy'}@best --adapter"
    )
    assert main(["export", f"{tmp_path / 'toy'}@best", "--adapter", "--out", str(tmp_path / "out")]) == 0
    off = train(recipe(allowed, "guards.mode=off"), tmp_path / "off").folder
    assert metrics(off) == metrics(tmp_path / "toy")
    assert adapter(off) == adapter(tmp_path / "toy")
    assert not (off / "guards.jsonl").exists()
    assert not (off / "best").exists()
    with pytest.raises(UserError, match="has no best adapter: no evaluation was above"):
        find_adapter(f"{off}@best")


def test_a_longer_run_forgets_a_best_that_only_its_earlier_end_has_evaluated(allowed, tmp_path):
    ends = ("guards.mode=warn", "train.steps=3")
    short = train(recipe(allowed, *ends), tmp_path / "short").folder
    assert [verdict.step for verdict in read_verdicts(short / "guards.jsonl")] == [0, 2, 3]
    at_3 = load_file(short / "checkpoints/step-000003/pytorch_lora_weights.safetensors")
    assert all(best(short)[name].equal(weight) for name, weight in at_3.items())
    for runs in ("short", "long"):
        train(recipe(allowed, "guards.mode=warn", "train.steps=5"), tmp_path / runs)
    assert_same(short, tmp_path / "long/toy")


def test_evaluating_afterwards_says_the_same(distrusted, allowed, tmp_path, capsys):
    run = read_run(distrusted)
    sources = [source for source in sources_of_run(run) if source.step % 2 == 0]
    points = evaluate_sources(build_bench(run.recipe, 6, 1), sources)
    own = {verdict.step: verdict for verdict in read_verdicts(distrusted / "guards.jsonl")}
    assert [point.verdict.colour for point in points] == [own[point.step].colour for point in points]
    for point in points:
        for name, finding in point.verdict.findings.items():
            assert finding.mean == pytest.approx(own[point.step].findings[name].mean, abs=1e-3)
    out = tmp_path / "evaluation"
    arguments = ["--videos", "6", "--seeds", "2", "--out", str(out), "--trust-code"]
    assert main(["evaluate", "--adapter", f"{distrusted}@8", *arguments]) == 0
    assert f"guards, {distrusted}@8: a guard objects, for the first time: blue goes (Blue: -" in capsys.readouterr().out
    points = json.loads((out / "evaluation.json").read_text())["points"]
    assert (points[1]["guards"]["colour"], points[1]["guards"]["guard"]) == ("yellow", "Blue")
    assert "diversity" in points[1]["guards"]["findings"]


# ---- the report ----


def page_of(run: Path, *verdicts: Verdict) -> str:
    write_verdicts(run / "guards.jsonl", verdicts)
    page = write_report(run).read_text(encoding="utf-8")
    Balanced().check(page)
    return page


@pytest.fixture
def written(tmp_path) -> Path:
    run = tmp_path / "my-run"
    run.mkdir()
    dump_recipe(load_recipe("tiny"), run / "recipe.yaml", {})
    write_metrics(run, evaluation_line(0, 4.7), train_line(1), evaluation_line(4, 6.9))
    for step, vividness in ((0, 0.2), (4, 0.9)):
        write_samples(run, step, vividness)
    return run


MOVES = Finding(-1.9, -1.5, True, False, "0.61 times the base's", {0: -1.0, 1: -2.5, 9: -9.0}, "videos move less")
FINE = Finding(0.3, 0.5, False, False, "1.02 times the base's", {0: 0.4, 1: 0.2}, "contrast is off")


def test_the_panel_says_no_and_shows_the_worst_pair(written):
    page = page_of(
        written,
        Verdict(0, "green", 0.0),
        Verdict(2, "yellow", 1.0, "motion", (), 0, {"motion": MOVES, "contrast": FINE}),
        Verdict(4, "red", 2.0, "motion", ("motion",), 0, {"motion": MOVES, "contrast": FINE}),
    )
    panel = page.partition("Can this gain be trusted?")[2].partition("</section>")[0]
    assert '<p class="answer red">No</p>' in panel
    assert "videos move less (motion: 0.61 times the base&#x27;s), again" in panel
    assert panel.count('class="light yellow"') == panel.count('class="light red"') == 1
    assert panel.count('class="light green"') == 2
    assert "no <code>best/</code>" in panel
    assert panel.count("<video ") == 2
    assert "&lt;script&gt;" in panel.partition("<figcaption>")[2]  # of the second video: it moves least of those kept


def test_the_panel_says_yes_and_names_the_best(written):
    page = page_of(written, Verdict(0, "green", 0.0), Verdict(4, "green", 2.0, findings={"contrast": FINE}))
    assert '<p class="answer green">Yes, as far as guards see</p>' in page
    assert "is of step 4: it lies in <code>best/</code>" in page
    assert "<b>contrast</b> comes nearest to objecting" in page


def test_the_panel_escapes_and_keeps_to_its_folder(written, tmp_path):
    page = page_of(written, Verdict(4, "green", 1.0, findings={"<script>": FINE}))
    assert "&lt;script&gt;</th>" in page
    (tmp_path / "elsewhere.jsonl").write_bytes((written / "guards.jsonl").read_bytes())
    (written / "guards.jsonl").unlink()
    (written / "guards.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    assert "No evaluation after the base&#x27;s has been judged yet" in write_report(written).read_text()


def test_without_guards_there_is_no_panel(written):
    dump_recipe(load_recipe("tiny", ["guards.mode=off"]), written / "recipe.yaml", {})
    assert "trusted?" not in write_report(written).read_text(encoding="utf-8")


def test_folders_of_guards_are_the_run_s(distrusted):
    folder = RunFolder(distrusted)
    assert (folder.best.name, folder.guards.name) == ("best", "guards.jsonl")
