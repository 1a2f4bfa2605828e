"""Making a study, what may not be seen of it, what its answers say, and its exports."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from run_factories import write_run
from study_factories import PROMPTS, SYSTEMS, answered, attentive, by_system, make_study, write_systems
from vader.cli import main
from vader.errors import UserError
from vader.files.video import read_video, write_mp4, write_png
from vader.preference.answers import parse_sheet
from vader.preference.build import destroyed
from vader.preference.report import report_page
from vader.preference.results import results_of
from vader.preference.study import read_study
from vader.preference.systems import Sampled, find_scenes, find_systems


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("three"), ("one", "two", "three"), [f"prompt {i}" for i in range(10)])


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a command which the user got wrong says."""
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("vader: ")
    assert error.count("\n") == 1
    return error


# ---------------------------------------------------------------- what is in it


def test_a_study_has_every_pair_once_and_a_check_in_every_block(made: Path, of_three: Path) -> None:
    study = read_study(made)
    pairs = [item for item in study.items() if item.right is None]
    assert sorted(item.prompt for item in pairs) == sorted(PROMPTS)
    for item in pairs:
        sources = {study.videos[video].source for video in item.videos}
        assert len(sources) == 1
        assert {study.system_of(video) for video in item.videos} == set(study.systems)
    assert [sum(item.right is not None for item in block) for block in study.blocks] == [1, 1, 1]
    three = read_study(of_three)
    met = Counter(frozenset(map(three.system_of, item.videos)) for item in three.items() if item.right is None)
    assert list(met.values()) == [10, 10, 10]
    assert all(sum(item.right is not None for item in block) == 1 for block in three.blocks)
    assert max(map(len, three.blocks)) <= 9


def test_a_check_is_a_video_and_the_same_destroyed(made: Path) -> None:
    study = read_study(made)
    for item in study.items():
        if item.right:
            (broken,) = set(item.videos) - {item.right}
            assert study.videos[broken].system is None
            frames, good = (read_video(made / "videos" / f"{video}.mp4") for video in (broken, item.right))
            assert frames.shape == good.shape
            assert (frames[0] - frames[-1]).abs().max() < 0.05  # frozen
            assert (frames - good).square().mean().sqrt() > 0.1


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (320, 512)])
def test_any_size_can_be_destroyed(size: tuple[int, int]) -> None:
    frames = torch.rand(3, 3, *size)
    broken = destroyed(frames, 1)
    assert broken.shape == frames.shape
    assert 0 <= broken.min() <= broken.max() <= 1
    assert broken.equal(destroyed(frames, 1))


def test_the_videos_are_those_that_were_given(made: Path) -> None:
    study = read_study(made)
    for video, origin in study.videos.items():
        if origin.system:
            given = read_video(Path(origin.system) / f"{origin.source}.mp4")
            assert (read_video(made / "videos" / f"{video}.mp4") - given).abs().mean() < 0.02


# ---------------------------------------------------------------- blind


def test_nothing_that_raters_see_names_a_system_or_tells_a_check(made: Path) -> None:
    page = (made / "study.html").read_bytes()
    study = read_study(made)
    for word in (b"zebra", b"quokka", b"clip-0", b"clip-1", str(made.parent).encode(), b'right":'):
        assert word not in page
    for path in (made / "videos").iterdir():
        assert re.fullmatch(r"[0-9a-f]{12}\.mp4", path.name)
        with av.open(str(path)) as video:
            assert video.metadata["comment"] == "vader: 32x32 pixels enlarged by 8"
            assert not {"title", "creation_time", "artist"} & video.metadata.keys()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', page.decode())[1])
    assert {frozenset(item) for block in shown["blocks"] for item in block} == {
        frozenset(["id", "prompt", "videos", "asked"])
    }
    assert shown["videos"].keys() == study.videos.keys()
    ids = [item["videos"] for block in shown["blocks"] for item in block]
    assert all(videos == sorted(videos) for videos in ids)


def test_prompts_cannot_break_out_of_the_page(made: Path) -> None:
    page = (made / "study.html").read_text()
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "default-src 'none'" in page


def test_two_studies_of_the_same_videos_share_no_id_and_no_order(made: Path) -> None:
    assert (
        main(["study", "new", *(str(made.parent / name) for name in SYSTEMS), "--out", str(made.parent / "again")]) == 0
    )
    first, second = read_study(made), read_study(made.parent / "again")
    assert first.id != second.id
    assert not first.videos.keys() & second.videos.keys()


# ---------------------------------------------------------------- systems, scenes, captions


def test_runs_are_sampled_under_the_noise_of_their_own_evaluations(tmp_path: Path, monkeypatch) -> None:
    run = write_run(tmp_path / "run", [4.0, 5.0])
    asked: list[tuple] = []

    def sample(model, prompts, size, steps, guidance, solver, seed, batch):
        asked.append((model, [prompt.text for prompt in prompts], seed))
        return torch.full((len(prompts), 4, 3, 16, 16), 0.3 if model == "adapter" else 0.6)

    room = "vader.preference.systems"
    monkeypatch.setattr(f"{room}.load_model", lambda *a, **k: Model())
    monkeypatch.setattr(f"{room}.load_adapters", lambda denoisers, path, family: denoisers.append(path))
    monkeypatch.setattr(f"{room}.build_solver", lambda recipe, model: None)
    monkeypatch.setattr(
        f"{room}.sample_videos", lambda model, *rest, **told: sample("adapter" if model.denoisers else "base", *rest)
    )
    arguments = ["base", str(run), "--prompts", "tiny-test", "--seeds", "2", "--videos", "3"]
    assert main(["study", "new", *arguments, "--out", str(tmp_path / "study")]) == 0
    study = read_study(tmp_path / "study")
    assert study.systems == ("base", str(run))
    assert [(model, seed) for model, _, seed in asked] == [("base", 0), ("base", 1), ("adapter", 0), ("adapter", 1)]
    assert len({tuple(prompts) for _, prompts, _ in asked}) == 1
    assert sum(item.right is None for item in study.items()) == 6
    for video, origin in study.videos.items():
        if origin.system:
            shade = 0.6 if origin.system == "base" else 0.3
            assert read_video(tmp_path / "study" / "videos" / f"{video}.mp4").mean().item() == pytest.approx(
                shade, abs=0.02
            )


def test_of_a_picture_raters_see_its_caption_or_nothing_and_never_its_name(tmp_path: Path, monkeypatch) -> None:
    run = write_run(tmp_path / "run", [4.0, 5.0], "model.family=svd")
    for name in ("mallard.png", "heron.png"):
        write_png(tmp_path / name, Image.new("RGB", (16, 16)))
    (tmp_path / "set.csv").write_text("prompt,image\n,mallard.png\na grey heron,heron.png\n")
    asked: list[str] = []

    def videos(system, scenes, advance):
        asked.extend(scene.prompt.text for scene in scenes)
        return ((torch.rand(2, 3, 16, 16), 8.0) for _ in scenes)

    monkeypatch.setattr(Sampled, "videos", videos)
    out = tmp_path / "study"
    arguments = ["base", str(run), "--prompts", str(tmp_path / "set.csv"), "--seeds", "2", "--out", str(out)]
    assert main(["study", "new", *arguments]) == 0
    assert set(asked) == {"mallard", "a grey heron"}  # what the model is told stays
    study, page = read_study(out), (out / "study.html").read_text()
    assert "a grey heron" in page
    assert "mallard" not in page
    sheet = answered(study, "r", attentive(by_system("base")))
    results = results_of(study, [sheet])
    assert [(one.question, one.prompts) for one in results.comparisons] == [
        ("fidelity", 2), ("alignment", 1), ("motion", 2),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_study_shows_what_the_run_itself_evaluated(tmp_path: Path) -> None:
    """The same prompts under the same noise: the base model's videos are those before training, and the run's those at
    its end."""
    quick = [
        "train.steps=1", "train.batch=1", "sampling.steps=2", "algorithm.policy.k=1", "sampling.guidance=1",
        "optimizer.lr=0.01", "evaluation={every: 1, videos: 2, shown: 2, batch: 2}",
    ]  # fmt: skip
    assert main(["train", "tiny", *quick, "--runs", str(tmp_path)]) == 0
    run, out = tmp_path / "tiny", tmp_path / "study"
    assert main(["study", "new", "base", str(run), "--videos", "2", "--out", str(out)]) == 0
    study = read_study(out)
    listed = json.loads((run / "samples" / "step-000000" / "prompts.json").read_text())
    files = {one["prompt"]: one["file"] for one in listed}
    difference = 0.0
    for item in study.items():
        if item.right is None:
            shown = {study.system_of(video): read_video(out / "videos" / f"{video}.mp4") for video in item.videos}
            for system, step in (("base", 0), (str(run), 1)):
                own = read_video(run / "samples" / f"step-{step:06d}" / files[item.prompt])
                assert (shown[system] - own).abs().max() < 0.02
            difference = max(difference, (shown["base"] - shown[str(run)]).abs().max().item())
    assert difference > 0.05  # the run has learned something


class Model:
    """Only what carries an adapter, or not."""

    family = "toy"

    def __init__(self) -> None:
        self.denoisers: list[Path] = []


def test_beside_a_folder_a_run_is_sampled_from_its_prompts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [4.0, 5.0], 'sampling.negative="dull"')
    write_systems(tmp_path, ["else"], ["a dog", "a cat"])
    systems = find_systems([str(run), str(tmp_path / "else")])
    assert isinstance(systems[0], Sampled)
    scenes = find_scenes(systems, None, None, 16)
    assert [(scene.prompt.text, scene.prompt.negative, scene.stem) for scene in scenes] == [
        ("a dog", "dull", "clip-0"), ("a cat", "dull", "clip-1")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("prompts.json", '[{"file": "one.mp4", "prompt": "a dog"}, {"file": "two.mp4", "prompt": "a cat"}]'),
        ("prompts.csv", 'file,prompt\ntwo.mp4,"a cat"\none.mp4,a dog\n'),
        ("prompts.txt", "a dog\na cat\n"),
    ],
)
def test_prompts_lie_beside_the_videos(tmp_path: Path, name: str, content: str) -> None:
    for folder in ("a", "b"):
        for stem in ("one", "two"):
            write_mp4(tmp_path / folder / f"{stem}.mp4", torch.rand(2, 3, 8, 8), 8)
    (tmp_path / "a" / name).write_text(content)
    scenes = find_scenes(find_systems([str(tmp_path / "a"), str(tmp_path / "b")]), None, None, 16)
    assert [scene.prompt.text for scene in scenes] == ["a dog", "a cat"]


def test_without_prompts_no_file_name_is_shown(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        for stem in ("003-a-red_circle", "0007", "7 dogs"):
            write_mp4(tmp_path / folder / f"{stem}.mp4", torch.rand(2, 3, 8, 8), 8)
    write_mp4(tmp_path / "b" / "more.mp4", torch.rand(2, 3, 8, 8), 8)
    assert main(["study", "new", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "study")]) == 0
    study = read_study(tmp_path / "study")
    assert {item.prompt for item in study.items()} == {""}
    page = (tmp_path / "study" / "study.html").read_text()
    assert '"prompt": "", ' in page
    assert not re.search("circle|dogs", page)
    assert '"asked": ["fidelity", "motion"]' in page  # nothing about a text that it has not


def test_files_that_not_every_folder_has_are_named(tmp_path: Path, capsys) -> None:
    write_systems(tmp_path, ["a", "b"], ["a dog", "a cat"])
    (tmp_path / "b" / "clip-1.mp4").rename(tmp_path / "b" / "other.mp4")
    assert main(["study", "new", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "study")]) == 0
    assert capsys.readouterr().err == "vader: not in the study: clip-1, other\n"


def test_mistakes_are_one_line_before_any_work(tmp_path: Path, capsys, made: Path) -> None:
    write_systems(tmp_path, ["a", "b"], ["a dog", "a cat"])
    a, b, out = tmp_path / "a", tmp_path / "b", ("--out", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "two systems or more" in said(capsys, "study", "new", a, *out)
    assert "named twice" in said(capsys, "study", "new", a, f"{a}/", *out)
    assert "name a run beside it" in said(capsys, "study", "new", a, "base", *out)
    assert "no run and no folder" in said(capsys, "study", "new", a, tmp_path / "c", *out)
    assert "no .mp4 or .webm" in said(capsys, "study", "new", a, tmp_path / "empty", *out)
    assert "--prompts and --seeds are for runs" in said(capsys, "study", "new", a, b, "--seeds", 2, *out)
    assert "is not empty" in said(capsys, "study", "new", a, b, "--out", a)
    write_mp4(tmp_path / "d" / "x.mp4", torch.rand(2, 3, 8, 8), 8)
    assert "no file of the same name" in said(capsys, "study", "new", a, tmp_path / "d", *out)
    (b / "prompts.txt").write_text("a dog\na wolf\n")
    assert "'a cat'" in said(capsys, "study", "new", a, b, *out)
    (b / "prompts.txt").write_text("a dog\n")
    assert "has 1 prompts for 2 videos" in said(capsys, "study", "new", a, b, *out)
    (b / "prompts.json").write_text("{")
    assert "prompts.json is no list" in said(capsys, "study", "new", a, b, *out)
    assert not (tmp_path / "out").exists()
    assert "is no study's folder" in said(capsys, "study", "report", tmp_path)
    assert "there are no answers" in said(capsys, "study", "report", made)
    assert "did you mean 'mturk'" in said(
        capsys, "study", "export", made, "--format", "mturc", "--url", "https://x.org/v", *out
    )
    assert "is no address" in said(capsys, "study", "export", made, "--format", "mturk", "--url", "x.org", *out)


def test_runs_that_size_would_tell_apart_are_not_compared(tmp_path: Path, capsys) -> None:
    one, other = write_run(tmp_path / "one", [4.0]), write_run(tmp_path / "other", [4.0], "video.frames=4")
    third = write_run(
        tmp_path / "third",
        [4.0],
        "model={family: svd, checkpoint: tiny}",
        "prompts={train: tiny-pictures-train, test: tiny-pictures-test}",
    )
    out = ("--out", tmp_path / "out")
    assert "differ in size" in said(capsys, "study", "new", one, other, *out)
    assert "different base models" in said(capsys, "study", "new", one, third, *out)


def test_a_damaged_key_is_one_line(tmp_path: Path, capsys, made: Path) -> None:
    shutil.copytree(made, tmp_path / "study")
    key = tmp_path / "study" / "study.json"
    content = json.loads(key.read_text())
    for damage in ({"videos": {}}, {"version": 2}, {"blocks": [[{"id": "x"}]]}):
        key.write_text(json.dumps(content | damage))
        assert "is damaged" in said(capsys, "study", "report", tmp_path / "study")
    key.write_text("{")
    assert "is damaged" in said(capsys, "study", "report", tmp_path / "study")


# ---------------------------------------------------------------- answers and what they say


def test_answers_that_do_not_belong_to_the_study_are_refused(made: Path) -> None:
    study = read_study(made)
    sheet = answered(study, "r1", attentive(by_system(study.systems[0]))).model_dump(mode="json")
    assert parse_sheet(study, json.dumps(sheet), "it").rater == "r1"
    one = sheet["answers"][0]
    forged = [
        {"study": "0" * 12}, {"rater": ""}, {"rater": "../../x"}, {"rater": "x" * 65}, {"name": "x" * 41}, {"more": 1},
        *({"answers": [one | change]} for change in (
            {"item": "0" * 12}, {"item": "../study.json"}, {"left": "0" * 12}, {"question": "beauty"},
            {"choice": "both"}, {"seconds": -1}, {"seconds": "nan"}, {"system": "x"},
        )),
        {"answers": [one] * 10_001},
    ]  # fmt: skip
    for change in forged:
        with pytest.raises(UserError, match=r"^it: ") as error:
            parse_sheet(study, json.dumps(sheet | change), "it")
        assert "\n" not in str(error.value)
    for nothing in ("", "[]", "null", "{", "\x00"):
        with pytest.raises(UserError, match=r"^it: "):
            parse_sheet(study, nothing, "it")


def test_shares_are_counted_by_who_made_the_preferred_video(made: Path) -> None:
    study = read_study(made)
    first, second = reversed(study.systems)
    sheets = [answered(study, f"r{i}", attentive(by_system(first))) for i in range(3)]
    sheets.append(answered(study, "r3", attentive(by_system(second))))
    sheets.append(answered(study, "r4", attentive(lambda study, item, question: None)))
    results = results_of(study, sheets)
    assert [one.question for one in results.comparisons] == ["fidelity", "alignment", "motion"]
    for one in results.comparisons:
        assert (one.first, one.second) == (first, second)
        assert (one.wins, one.losses, one.ties, one.answers) == (18, 6, 6, 30)
        assert one.share == pytest.approx(0.7)
        assert (one.prompts, one.raters) == (6, 5)
    assert not results.strengths


def test_a_second_sheet_of_a_rater_corrects_the_first(made: Path) -> None:
    study = read_study(made)
    first, second = reversed(study.systems)
    before, after = (answered(study, "r", attentive(by_system(name))) for name in (second, first))
    assert results_of(study, [before, after, after]).comparisons[0].share == 1.0
    assert results_of(study, [before, after, after]).comparisons[0].answers == 6


def test_raters_that_fail_attention_checks_are_named_and_left_out(made: Path) -> None:
    study = read_study(made)
    first, second = reversed(study.systems)
    good = answered(study, "good", attentive(by_system(first)), "Ann")

    def blind(study, item, question):
        return (
            next(v for v in item.videos if v != item.right) if item.right else by_system(second)(study, item, question)
        )

    bad = answered(study, "bad", blind, "Bob <b>")
    early = answered(study, "early", by_system(second), "Cy", [i for i in study.items() if not i.right][:2])
    results = results_of(study, [good, bad, early])
    assert [(r.name, r.checks, r.right, r.fault) for r in results.raters] == [
        ("Ann", 3, 3, None), ("Bob <b>", 3, 0, "failed 3 of 3 attention checks"),
        ("Cy", 0, 0, "has met no attention check yet"),
    ]  # fmt: skip
    assert results.comparisons[0].share == 1.0
    page = report_page(results)
    assert "left out: failed 3 of 3 attention checks" in page
    assert "Bob &lt;b&gt;" in page


def test_a_study_of_simulated_raters_finds_what_they_prefer(of_three: Path) -> None:
    """Raters as Bradley and Terry have them, of known strengths: shares and strengths are found again."""
    study = read_study(of_three)
    strength = dict(zip(study.systems, (1.0, 2.0, 6.0), strict=True))
    random = np.random.default_rng(0)

    def choose(study, item, question):
        one, other = item.videos
        s, t = strength[study.system_of(one)], strength[study.system_of(other)]
        return one if random.random() < s / (s + t) else other

    results = results_of(study, [answered(study, f"r{i}", attentive(choose)) for i in range(40)])
    for one in results.comparisons:
        truth = strength[one.first] / (strength[one.first] + strength[one.second])
        assert one.share == pytest.approx(truth, abs=0.12)
        assert one.wilson[0] < one.share < one.wilson[1]
        assert abs(one.alpha) < 0.2
    for found in results.strengths.values():
        assert found is not None
        assert list(found.values()) == pytest.approx([1 / 9, 2 / 9, 6 / 9], abs=0.12)


def test_the_report_is_written_from_files(tmp_path: Path, made: Path, capsys) -> None:
    folder = tmp_path / "study"
    shutil.copytree(made, folder)
    study = read_study(folder)
    files = []
    for i in range(3):
        sheet = answered(study, f"rater{i}", attentive(by_system(study.systems[1])), f"Rater {i}")
        files.append(tmp_path / f"answers-{i}.json")
        files[-1].write_text(sheet.model_dump_json())
    assert main(["study", "report", str(folder), *map(str, files)]) == 0
    assert "100.0" in capsys.readouterr().out
    results = json.loads((folder / "report.json").read_text())
    assert [one["share"] for one in results["comparisons"]] == [1.0, 1.0, 1.0]
    assert results["comparisons"][0]["alpha"] is None  # all answers are the same
    page = (folder / "report.html").read_text()
    assert "79.0 %" in page
    assert "2407.08737, table 2" in page
    assert "default-src 'none'" in page
    files[0].write_text(files[0].read_text().replace(study.id, "0" * 12))
    assert "answers another study" in said(capsys, "study", "report", folder, *files)
    assert "does not exist" in said(capsys, "study", "report", folder, tmp_path / "none.json")


# ---------------------------------------------------------------- exports


@pytest.mark.parametrize("form", ["labelstudio", "mturk"])
def test_an_export_has_every_pair_blind(tmp_path: Path, made: Path, form: str) -> None:
    out, url = tmp_path / form, "https://example.org/v"
    assert main(["study", "export", str(made), "--format", form, "--url", f"{url}/", "--out", str(out)]) == 0
    study = read_study(made)
    items = {item.id: item for item in study.items()}
    if form == "mturk":
        rows = list(csv.DictReader((out / "blocks.csv").open(newline="", encoding="utf-8")))
        blocks = [json.loads(base64.b64decode(row["block"])) for row in rows]
        shown = {item["id"]: set(item["videos"]) for block in blocks for item in block}
        assert len(blocks) == len(study.blocks)
        template = (out / "template.html").read_text()
        assert set(re.findall(r"\$\{(\w+)\}", template)) == {"block"}
        assert f'"{url}/" + id' in template
    else:
        tasks = [task["data"] for task in json.loads((out / "tasks.json").read_text())]
        shown = {
            task["item"]: {task[side].removeprefix(f"{url}/")[:-4] for side in ("left", "right")} for task in tasks
        }
        assert all(task["left"] == f"{url}/{task['left_id']}.mp4" for task in tasks)
        names = set(re.findall(r'value="\$(\w+)"', (out / "config.xml").read_text()))
        assert names == {"prompt", "left", "right"}
    assert shown == {item.id: set(item.videos) for item in items.values()}
    assert {path.stem for path in (out / "videos").iterdir()} == study.videos.keys()
    everything = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"zebra" not in everything
    assert b"quokka" not in everything
    assert not (out / "study.json").exists()


def test_answers_come_back_from_mechanical_turk(tmp_path: Path, made: Path, capsys) -> None:
    """A table of results as the platform gives it: a line a worker and block."""
    study = read_study(made)
    shutil.copytree(made, tmp_path / "study")
    table = tmp_path / "results.csv"

    def write(**changes: str) -> None:
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["HITId", "WorkerId", "AssignmentStatus", "Input.study", "Answer.answers"])
            writer.writeheader()
            for worker, status, system in (("A1", "Approved", 1), ("A2", "Submitted", 1), ("A3", "Rejected", 0)):
                for block in study.blocks:
                    sheet = answered(study, worker, attentive(by_system(study.systems[system])), items=block)
                    given = json.dumps([answer.model_dump(exclude={"seconds"}) for answer in sheet.answers])
                    row = {"WorkerId": worker, "AssignmentStatus": status, "Input.study": study.id}
                    writer.writerow(row | {"HITId": "x", "Answer.answers": given} | changes)

    write()
    assert main(["study", "report", str(tmp_path / "study"), str(table)]) == 0
    results = json.loads((tmp_path / "study" / "report.json").read_text())
    assert [(one["wins"], one["losses"]) for one in results["comparisons"]] == [(12, 0)] * 3
    assert [rater["id"] for rater in results["raters"]] == ["A1", "A2"]
    for damage in ({"Answer.answers": "[{}]"}, {"Answer.answers": ""}, {"Input.study": "0" * 12}):
        write(**damage)
        assert str(table) in said(capsys, "study", "report", tmp_path / "study", table)
    table.write_text("a,b\n1,2\n")
    assert "no results of a batch of Mechanical Turk" in said(capsys, "study", "report", tmp_path / "study", table)


def test_answers_come_back_from_label_studio(tmp_path: Path, made: Path, capsys) -> None:
    study, out, export = read_study(made), tmp_path / "out", tmp_path / "export.json"
    shutil.copytree(made, tmp_path / "study")
    arguments = ["--format", "labelstudio", "--url", "https://example.org/v", "--out", str(out)]
    assert main(["study", "export", str(made), *arguments]) == 0
    tasks = json.loads((out / "tasks.json").read_text())
    items = {item.id: item for item in study.items()}
    prefers = attentive(by_system(study.systems[1]))
    for task in tasks:
        item, left = items[task["data"]["item"]], task["data"]["left_id"]
        choice = "left" if prefers(study, item, "") == left else "right"
        result = [{"from_name": q, "value": {"choices": [choice]}} for q in ("fidelity", "alignment", "motion")]
        task["annotations"] = [
            {"completed_by": 1, "result": result}, {"completed_by": {"id": 2}, "result": result},
            {"completed_by": 3, "result": [], "was_cancelled": True},
        ]  # fmt: skip
    export.write_text(json.dumps(tasks))
    assert main(["study", "report", str(tmp_path / "study"), str(export)]) == 0
    results = json.loads((tmp_path / "study" / "report.json").read_text())
    assert [(one["wins"], one["losses"], one["raters"]) for one in results["comparisons"]] == [(12, 0, 2)] * 3
    export.write_text('[{"data": {}}]')
    assert "no JSON export of Label Studio" in said(capsys, "study", "report", tmp_path / "study", export)
