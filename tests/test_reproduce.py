"""Studies: what is run and what is shared, that finished runs are reused and stopped ones go on, and the numbers."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from run_factories import write_run
from toy_runs import TOY, lines_of, toy_recipe, wait_until
from vader.cli import main
from vader.errors import RunError, Stopped, UserError
from vader.recipe import dump_recipe, load_recipe
from vader.rewards.registry import check_rewards
from vader.runs.folder import RunFolder
from vader.runs.reader import read_run
from vader.studies import STUDIES, ablation, figure4, figure7, reproduce, run_study, table1, write_result
from vader.studies.pages import WORDS, write_page
from vader.studies.processes import Job, run_jobs
from vader.studies.study import (
    Arm,
    Options,
    RunStore,
    Study,
    Trained,
    changed,
    reaches,
    same_run,
    summary_of,
    with_seed,
)
from vader.studies.tasks import TASKS, task_recipe

SCALES = ("tiny", "full")


class InProcess:
    """A command that has run to its end in this process when it is asked for the first time."""

    def __init__(self, status: int) -> None:
        self.status = status

    def poll(self) -> int:
        return self.status

    def wait(self) -> int:
        return self.status

    def send_signal(self, number: int) -> None:
        raise AssertionError("nothing is left to stop")


def start_here(job, log, threads):
    return InProcess(main(job.arguments))


# ---------------------------------------------------------------- what is run


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_every_recipe_is_whole_and_its_name_its_own(study, scale):
    arms = study.arms(Options(scale))
    recipes = [recipe for arm in arms for recipe in arm.seeded(3)]
    assert len({recipe.name for recipe in recipes}) == len(recipes)
    for recipe in recipes:
        assert changed(recipe) == recipe  # which checks it as a whole
        check_rewards(recipe.rewards)


def test_figure7_has_each_task_by_each_method():
    arms = figure7.arms(Options())
    methods = ("VADER", "DDPO", "DPO", "GRPO", "NFT")
    assert [tuple(arm.labels.values()) for arm in arms] == [(t, m) for t in TASKS for m in methods]
    assert [arm.recipe.algorithm.name for arm in arms[:5]] == [
        "reward_gradient",
        "ddpo",
        "diffusion_dpo",
        "ddpo",
        "nft",
    ]
    full = figure7.arms(Options("full"))  # there the paper's methods alone have recipes
    assert [tuple(arm.labels.values()) for arm in full] == [(t, m) for t in TASKS for m in methods[:3]]
    alone = figure7.arms(Options(only="aesthetic"))
    assert [arm.recipe for arm in alone] == [arm.recipe for arm in arms[:5]]
    with pytest.raises(UserError, match="did you mean 'aesthetic'"):
        figure7.arms(Options(only="aesthetics"))


@pytest.mark.parametrize("task", TASKS)
def test_methods_differ_in_nothing_but_themselves(task):
    recipes = [task_recipe(task, method, "tiny") for method in ("VADER", "DDPO", "DPO", "GRPO", "NFT")]
    for section in ("model", "video", "sampling", "rewards", "prompts", "adapter", "memory"):
        assert len({repr(getattr(recipe, section)) for recipe in recipes}) == 1, section
    assert {recipe.evaluation.videos for recipe in recipes} == {32}
    assert {recipe.train.seed for recipe in recipes} == {0}


def test_a_method_s_settings_are_those_of_its_recipe():
    ddpo, own = task_recipe("aesthetic", "DDPO", "tiny"), load_recipe("tiny-ddpo")
    assert (ddpo.algorithm, ddpo.optimizer, ddpo.train.batch) == (own.algorithm, own.optimizer, own.train.batch)
    action = task_recipe("action", "DDPO", "tiny")
    assert action.rewards == load_recipe("tiny-action").rewards  # and so is what they see
    grpo = load_recipe("tiny-grpo").optimizer.lr
    rates = [task_recipe(task, "GRPO", "tiny").optimizer.lr for task in ("text", "action", "aesthetic")]
    assert rates == [grpo, 3 * grpo, 3 * grpo]  # by text it falls at the higher rate
    full = task_recipe("aesthetic", "DDPO", "full")
    assert (full.sampling.solver, full.sampling.eta, full.optimizer.lr) == ("ddim", 1.0, 1e-4)


def test_the_action_is_shown_as_a_probability():
    recipe = task_recipe("action", "VADER", "tiny")
    shown = recipe.evaluation.metrics[-1]
    assert (shown.name, shown.options) == ("action", {"checkpoint": "tiny", "output": "probability"})
    assert [part.name for part in recipe.evaluation.metrics] == ["judge", "gold", "action"]
    assert TASKS["action"].measure == "action"


def test_studies_share_runs():
    options = Options()
    vader = figure7.arms(options)[0].recipe
    assert sum(same_run(arm.recipe, vader) for arm in ablation.arms(options)) == 1
    papers = [arm for arm in figure7.arms(options) if arm.labels["method"] not in ("GRPO", "NFT")]
    assert [same_run(a.recipe, b.recipe) for a, b in zip(papers, table1.arms(options), strict=False)] == ([True] * 9)
    assert not any(same_run(arm.recipe, vader) for arm in figure4.arms(options))  # fewer steps


def test_the_ablation_changes_one_thing_at_a_time():
    policies = [(arm.labels["policy"], arm.labels["frames"]) for arm in ablation.arms(Options())]
    assert policies == [
        ("last 1", "all"),
        ("last 2", "all"),
        ("last 5", "all"),
        ("last 10", "all"),
        ("random to end", "all"),
        ("last 5", "1"),
        ("last 5", "4"),
    ]


def test_figure4_scales_the_video_alone():
    arms = figure4.arms(Options())
    sizes = [(arm.recipe.video.height, arm.recipe.video.width) for arm in arms[::2]]
    assert sizes == 2 * [(s, s) for s in (24, 32, 48)]
    assert [arm.labels["task"] for arm in arms] == 6 * ["aesthetic"] + 6 * ["text"]
    assert len({arm.recipe.train.steps for arm in arms}) == 1
    assert figure4.arms(Options(only="text")) == arms[6:]
    with pytest.raises(UserError, match="no part 'action'"):
        figure4.arms(Options(only="action"))


# ---------------------------------------------------------------- running and reusing


def toy_study(**overrides) -> Study:
    recipe = changed(toy_recipe("name=toy-arm"), **overrides)

    def arms(options: Options) -> list[Arm]:
        return [Arm({"task": "aesthetic", "method": method}, recipe) for method in ("VADER",)]

    def summarise(trained):
        return {"arms": [summary_of(one) for one in trained]}

    return Study("toy", "A toy", arms, summarise, toy_table, toy_plot)


def toy_table(result) -> str:
    return "| mean |\n| --- |\n" + "\n".join(f"| {arm['curve'][-1]['mean']:.3f} |" for arm in result["arms"])


def toy_plot(result, path):
    path.touch()
    return path


def run_toy(out, study=None, seeds=2):
    study, options = study or toy_study(), Options(seeds=seeds)
    return run_study(study, study.arms(options), options, out, start=start_here)


def test_a_study_trains_once_and_then_nothing(tmp_path, monkeypatch, capsys):
    written = run_toy(tmp_path)
    assert [path.name for path in written] == ["toy.json", "toy.md", "toy.png"]
    assert sorted(path.name for path in (tmp_path / "recipes").iterdir()) == [
        "toy-arm-seed3.yaml",
        "toy-arm-seed4.yaml",
    ]
    assert "2 runs, 0 of them finished" in capsys.readouterr().out
    content = json.loads(written[0].read_text())
    (arm,) = content["arms"]
    runs = [read_run(tmp_path / "runs" / name) for name in ("toy-arm-seed3", "toy-arm-seed4")]
    last = [run.evaluations[-1].reward for run in runs]
    assert arm["curve"][-1]["mean"] == pytest.approx(sum(last) / 2)
    assert arm["curve"][-1]["spread"] == pytest.approx(abs(last[0] - last[1]) / math.sqrt(2))
    assert [point["queries"] for point in arm["curve"]] == [0, 12, 24]

    before = written[0].read_text()
    monkeypatch.setattr("vader.training.trainer.build_run", lambda *_: pytest.fail("trained again"))
    run_toy(tmp_path)
    assert "2 runs, 2 of them finished" in capsys.readouterr().out
    assert written[0].read_text() == before


def test_more_seeds_train_only_what_is_missing(tmp_path, capsys):
    run_toy(tmp_path, seeds=1)
    capsys.readouterr()
    run_toy(tmp_path, seeds=2)
    out = capsys.readouterr().out
    assert "2 runs, 1 of them finished" in out
    assert "[1/1] toy-arm-seed4" in out


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    import vader.training.trainer

    step, count = vader.training.trainer._step, 0

    def stop_in_the_second_run(run, display) -> None:
        nonlocal count
        count += 1
        step(run, display)
        if count == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("vader.training.trainer._step", stop_in_the_second_run)
    with pytest.raises(Stopped, match="toy-arm-seed4 was asked to stop"):
        run_toy(tmp_path)
    assert count == 9
    run_toy(tmp_path)
    assert count == 12  # six steps of each run in all

    run_toy(tmp_path / "whole", seeds=2)
    interrupted, whole = (json.loads((folder / "toy.json").read_text()) for folder in (tmp_path, tmp_path / "whole"))
    values = [[point["values"] for point in found["arms"][0]["curve"]] for found in (interrupted, whole)]
    assert values[0] == values[1]


def test_a_run_is_known_by_its_recipe_not_by_its_name(tmp_path):
    run_toy(tmp_path, seeds=1)
    store = RunStore(tmp_path / "runs")
    same = with_seed(changed(toy_recipe(), name="another"), 3)
    assert store.place(same).name == "toy-arm-seed3"
    other = changed(toy_recipe(), name="toy-arm-seed3", optimizer={"lr": 0.5})
    assert store.place(other).name == "toy-arm-seed3-2"
    assert store.place(changed(other, name="x")).name == "toy-arm-seed3-2"


def test_a_failed_run_says_why_and_where(tmp_path):
    with pytest.raises(RunError, match=r"toy-arm-seed3 failed .*its log is .*toy-arm-seed3\.log"):
        run_toy(tmp_path, toy_study(prompts={"train": "no-such-set"}), seeds=1)


# ---------------------------------------------------------------- processes


class Slow:
    """Stands for a process that ends after it was polled so often, or when it gets a signal."""

    alive = peak = 0

    def __init__(self, job: Job) -> None:
        self.job, self.left, self.signals = job, 3, []
        Slow.alive += 1
        Slow.peak = max(Slow.peak, Slow.alive)

    def poll(self):
        self.left -= 1
        if self.left > 0:
            return None
        if not self.job.done:
            self.job.result.touch()
            Slow.alive -= 1
        return 0

    def wait(self) -> int:
        return 0

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


def test_jobs_run_side_by_side_and_no_more_than_asked(tmp_path):
    jobs = [Job(str(i), (), tmp_path / str(i)) for i in range(5)]
    jobs[0].result.touch()
    threads = []

    def start(job, log, count):
        threads.append(count)
        return Slow(job)

    run_jobs(jobs, tmp_path, at_once=2, start=start)
    assert (Slow.peak, len(threads)) == (2, 4)
    assert set(threads) == {max(1, os.cpu_count() // 2)}


def test_what_runs_beside_a_failure_is_asked_to_stop(tmp_path):
    started = []

    def start(job, log, count):
        started.append(Slow(job) if job.name == "long" else InProcess(1))
        started[-1].left = 1000
        return started[-1]

    with pytest.raises(RunError, match="bad failed"):
        run_jobs([Job(n, (), tmp_path / n) for n in ("long", "bad", "never")], tmp_path, at_once=2, start=start)
    assert len(started) == 2
    assert started[0].signals == [signal.SIGTERM]


def test_a_process_is_a_vader_command_with_a_log_and_its_threads(tmp_path):
    job = Job("names", ("list", "algorithms"), tmp_path / "names.log")
    run_jobs([job], tmp_path)
    assert "diffusion_dpo" in job.result.read_text()
    with pytest.raises(RunError, match=r"bad failed \(vader: cannot list 'algorithm'"):
        run_jobs([Job("bad", ("list", "algorithm"), tmp_path / "none")], tmp_path)


@pytest.mark.parametrize("saves", [True, False], ids=["training", "loading"])
def test_a_terminated_command_takes_its_processes_along(tmp_path, saves):
    script = f"""
from pathlib import Path
from vader.studies import processes
import signal, subprocess, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell has it for what runs in its background
out = Path({str(tmp_path)!r})
code = ("import time, pathlib, signal\\n"
        "def stop(*_): pathlib.Path({str(tmp_path / "saved")!r}).touch(); raise SystemExit(130)\\n"
        "if {saves}: signal.signal(signal.SIGTERM, stop)\\n"
        "pathlib.Path({str(tmp_path / "begun")!r}).touch()\\n"
        "time.sleep(60)")
start = lambda job, log, threads: subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
processes.run_jobs([processes.Job("sleeper", (), out / "never")], out, start=start)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) != 0
    assert (tmp_path / "saved").exists() == saves


DEAF = """
import ctypes, types
whole = ctypes.CDLL
deaf = types.SimpleNamespace(prctl=lambda *_: 0)
ctypes.CDLL = lambda name, *rest, **options: deaf if name is None else whole(name, *rest, **options)
"""


@pytest.mark.parametrize("system", ["linux", pytest.param("another", marks=pytest.mark.rare)])
def test_a_killed_command_takes_its_processes_along(tmp_path, system):
    """`kill -9` leaves no time to ask them: they end by themselves, on Linux and, by the pipe alone, elsewhere."""
    script = f"""
import os, sys
from pathlib import Path
from vader.studies import processes
out = Path({str(tmp_path)!r})
if {system!r} != "linux":  # the child asks the system in vain
    (out / "sitecustomize.py").write_text({DEAF!r})
    os.environ["PYTHONPATH"] = os.pathsep.join([str(out), os.environ.get("PYTHONPATH", "")])
command = ("train", {str(TOY)!r}, "train.steps=100000", "--runs", str(out / "runs"))
processes.run_jobs([processes.Job("long", command, out / "never")], out / "logs")
"""
    here = os.pathsep.join([str(TOY.parent), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": here})
    wait_until(lambda: lines_of(tmp_path / "runs/toy") > 3)
    child = json.loads((tmp_path / "runs/toy/.lock.holder").read_text())["pid"]
    process.kill()
    process.wait()
    wait_until(lambda: not _alive(child))
    with RunFolder(tmp_path / "runs/toy").held():
        pass


def _alive(pid: int) -> bool:
    """A process that has ended and is not yet waited for is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---------------------------------------------------------------- numbers


CURVE = [{"mean": m, "queries": q, "seconds": 2.0 * q} for m, q in ((4.0, 0), (4.0, 8), (6.0, 16), (5.0, 24))]


def test_where_a_curve_reaches_a_level():
    assert reaches(CURVE, 3.0, "queries") == 0
    assert reaches(CURVE, 5.0, "queries") == 12
    assert reaches(CURVE, 6.0, "seconds") == 32
    assert reaches(CURVE, 6.1, "queries") == math.inf


def trained_arms(study: Study, folder, rewards, only=None) -> list[Trained]:
    """Fake runs of every arm: `rewards(labels)` are the first seed's held-out rewards, the second's are 0.2 more."""
    found = []
    for arm in study.arms(Options(only=only)):
        runs = []
        for number in range(2):
            path = folder / f"{arm.recipe.name}-{number}"
            values = [reward + 0.2 * number for reward in rewards(arm.labels)]
            write_run(path, values, seconds=3.0 if arm.labels.get("method") == "VADER" else 30.0)
            runs.append(read_run(path))
        found.append(Trained(Arm(arm.labels, arm.recipe), runs))
    return found


def fast_and_slow(labels) -> list[float]:
    curves = {"VADER": [4.0, 6.0, 7.0], "DDPO": [4.0, 4.2, 4.4], "DPO": [4.0, 3.9, 3.8]}
    return (curves | {"GRPO": [4.0, 4.5, 5.0], "NFT": [4.0, 5.0, 8.0]})[labels["method"]]


def test_figure7_says_how_soon_vader_is_as_good(tmp_path):
    result = figure7.summarise(trained_arms(figure7.STUDY, tmp_path, fast_and_slow, only="aesthetic"))
    ddpo, dpo, grpo, nft = result["efficiency"]
    assert ddpo["best"] == pytest.approx(4.5)
    assert ddpo["gain"] == pytest.approx(0.4)
    assert ddpo["vader_at"] == pytest.approx({"queries": 0.2 * 8, "seconds": 0.2 * 6})
    assert figure7.share(ddpo, "queries") == pytest.approx(1.6 / 16)
    assert figure7.share(ddpo, "seconds") == pytest.approx(1.2 / 120)
    assert figure7.share(dpo, "queries") == 0  # its best is the base model
    assert figure7.share(grpo, "queries") == pytest.approx(4 / 16)
    assert nft["vader_at"] == {"queries": None, "seconds": None}  # as good as it became, VADER never was
    first = result["arms"][0]["curve"]
    assert [point["mean"] for point in first] == pytest.approx([4.1, 6.1, 7.1])
    assert [point["spread"] for point in first] == pytest.approx([0.2 / math.sqrt(2)] * 3)
    rows = figure7.table(result).splitlines()
    assert rows[3].startswith(
        "| aesthetic score | DDPO | 4.10 ± 0.14 | 4.50 ± 0.14 | 4.50 ± 0.14 | 16 | 120 | 2 | 0.1 |"
    )
    assert figure7.draw(result, tmp_path / "figure7.png").stat().st_size > 10_000


def test_figure4_measures_the_gap(tmp_path):
    def rewards(labels) -> list[float]:
        gain = 0.01 * int(labels["size"]) if labels["method"] == "VADER" else 0.1
        return [3.0, 3.0 + gain]

    result = figure4.summarise(trained_arms(figure4.STUDY, tmp_path, rewards))
    assert list(result["tasks"]) == ["aesthetic", "text"]
    for found in result["tasks"].values():
        assert found["sizes"] == [24, 32, 48]
        assert [gap["mean"] for gap in found["gaps"]] == pytest.approx([0.14, 0.22, 0.38])
        assert [gain["values"] for gain in found["gains"]["DDPO"]] == [pytest.approx([0.1, 0.1])] * 3
        assert found["gaps"][0]["spread"] == pytest.approx(0, abs=1e-9)  # seeds gain the same from where they start
    grows, gains, *text = WORDS["figure4"](result)
    assert grows.startswith("aesthetic score: the gain by reward gradient less that by policy gradient is ")
    assert "0.140 ± 0.000 at 24, 0.220 ± 0.000 at 32 and 0.380 ± 0.000 at 48 pixels: it grows with every size" in grows
    assert gains.endswith("the policy gradient 0.100 ± 0.000, 0.100 ± 0.000 and 0.100 ± 0.000 in 8.")
    assert len(text) == 2
    rows = figure4.table(result).splitlines()
    assert rows[2] == "| aesthetic score | 24 | 3.100 ± 0.141 | 3.340 ± 0.141 | 3.200 ± 0.141 | 0.140 ± 0.000 |"
    assert rows[5].startswith("| text alignment (HPS v2) | 24 |")
    assert figure4.draw(result, tmp_path / "figure4.png").stat().st_size > 10_000


def test_the_ablation_shows_gain_time_and_memory(tmp_path):
    trained = trained_arms(ablation.STUDY, tmp_path, lambda labels: [4.0, 5.0 + (labels["policy"] == "last 5")])
    result = ablation.summarise(trained)
    row = ablation.table(result).splitlines()[4]
    assert row == "| last 5 | all | 4.10 ± 0.14 | 6.10 ± 0.14 | +2.00 |  | 30.0 | 1.10 |"
    assert ablation.draw(result, tmp_path / "a.png").stat().st_size > 10_000


def with_train_prompts(trained, gain: float) -> list[Trained]:
    for one in trained:
        for run in one.runs:
            file = run.path / "train-prompts" / "evaluation.json"
            file.parent.mkdir()
            points = [{"reward": 5.0, "figures": {}}, {"reward": 5.0 + gain, "figures": {}}]
            file.write_text(json.dumps({"points": points}))
    return trained


def test_table1_measures_generalisation(tmp_path):
    trained = with_train_prompts(trained_arms(table1.STUDY, tmp_path, fast_and_slow, only="aesthetic"), gain=4.0)
    result = table1.summarise(trained)
    assert result["generalisation"][0]["share"] == pytest.approx(3 / 4)
    lines = table1.table(result).splitlines()
    assert lines[0] == "| method | Aesthetic (T2V), train | Aesthetic (T2V), test |"
    assert lines[2] == "| Base | 5.00 ± 0.00 | 4.10 ± 0.14 |"
    assert lines[5] == "| VADER | 9.00 ± 0.00 | 7.10 ± 0.14 |"
    assert table1.draw(result, tmp_path / "t.png").stat().st_size > 10_000
    job = table1.jobs(trained)[0]
    assert job.done
    assert job.arguments[job.arguments.index("--prompts") + 1] == "tiny-train"


# ---------------------------------------------------------------- the page and the command


@pytest.fixture
def out(tmp_path):
    """A folder of results: figure 7 of one reward."""
    result = figure7.summarise(trained_arms(figure7.STUDY, tmp_path / "runs", fast_and_slow, only="aesthetic"))
    write_result(figure7.STUDY, result, Options(only="aesthetic", seeds=2), tmp_path / "out")
    return tmp_path / "out"


def test_a_page_says_what_the_numbers_are(tmp_path, out):
    page = write_page(out, tmp_path / "docs" / "results.md").read_text()
    words = " ".join(page.split())  # the page breaks its lines
    assert "DDPO's best is 4.5 (+0.4), VADER's 7.1. VADER is as good after 2 queries, 10% of DDPO's" in words
    assert "1% of its time: " in words
    assert "- aesthetic score: DPO is nowhere above the base (4.1); VADER's best is 7.1." in words
    assert all(len(line) <= 120 for line in page.splitlines() if not line.startswith(("|", "!")))
    assert "| aesthetic score | DDPO | 4.10 ± 0.14 |" in page
    assert "![Sample and compute efficiency](assets/results/figure7-aesthetic.png)" in page
    assert (tmp_path / "docs" / "assets" / "results" / "figure7-aesthetic.json").exists()
    assert "Not run yet: `vader reproduce table1`." in page
    assert "![Sample and compute efficiency](figure7-aesthetic.png)" in write_page(out, out / "results.md").read_text()


WRITTEN = """# Mine

<!-- figure7 -->
old numbers
<!-- /figure7 -->

A word on \\1 of it.

<!-- table1 -->
kept, as there is nothing new
<!-- /table1 -->
"""


def test_a_written_page_is_refreshed_between_its_marks(tmp_path, out):
    path = tmp_path / "results.md"
    path.write_text(WRITTEN)
    page = write_page(out, path).read_text()
    assert "old numbers" not in page
    assert "| aesthetic score | DDPO | 4.10 ± 0.14 |" in page
    for kept in ("# Mine\n", "A word on \\1 of it.", "kept, as there is nothing new", "<!-- /figure7 -->\n\nA word"):
        assert kept in page
    assert write_page(out, path).read_text() == page
    path.write_text("<!-- figure7 -->")
    with pytest.raises(UserError, match=r"results\.md has <!-- figure7 --> and no <!-- /figure7 --> after it"):
        write_page(out, path)


def test_a_page_keeps_the_parts_that_were_done_elsewhere(tmp_path, out):
    page = tmp_path / "docs" / "results.md"
    first = write_page(out, page).read_text()
    other = tmp_path / "other"
    result = figure7.summarise(trained_arms(figure7.STUDY, tmp_path / "more", fast_and_slow, only="text"))
    write_result(figure7.STUDY, result, Options(only="text", seeds=2), other)
    both = write_page(other, page).read_text()
    for reward in ("aesthetic", "text"):
        assert f"![Sample and compute efficiency](assets/results/figure7-{reward}.png)" in both
    assert first.count("| DDPO |") == 1
    assert both.count("| DDPO |") == 2


def test_the_results_page_is_what_its_numbers_say(tmp_path):
    docs = Path(__file__).parents[1] / "docs"
    copy = shutil.copytree(docs, tmp_path / "docs")
    assert write_page(copy / "assets" / "results", copy / "results.md").read_text() == (docs / "results.md").read_text()


def test_command_reproduces_without_training_what_is_there(tmp_path, capsys, monkeypatch):
    def started(job, log, threads):
        raise AssertionError(f"{job.name} was started")

    for arm in figure7.arms(Options(only="text")):
        for recipe in arm.seeded(1):
            folder = write_run(tmp_path / "runs" / recipe.name, [0.6, 0.7])
            dump_recipe(recipe, folder / "recipe.yaml", {})
            (folder / "report.html").touch()
    written = reproduce("figure7", Options(only="text", seeds=1), tmp_path, start=started)
    assert [path.name for path in written] == [
        "figure7-text.json",
        "figure7-text.md",
        "figure7-text.png",
        "results.md",
    ]
    assert "5 runs, 5 of them finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure77"], "known: ablation-truncation, all, figure3, figure4"),
        (["figure7", "--only", "beauty"], "no part 'beauty'"),
        (["table2", "--only", "text"], "--only picks one reward of figure4, figure7, table1"),
        (["all", "--scale", "huge"], "no scale 'huge'"),
        (["figure7", "--scale", "full"], "--scale full needs a GPU"),
    ],
    ids=" ".join,
)
def test_mistakes_are_told_before_any_work(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["reproduce", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
