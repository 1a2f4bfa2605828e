"""The door: what cannot be a path, a text, a size or a place to write is one line, before anything is made."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vader.cli import main
from vader.cli.sample import _slug
from vader.engine.build import video_size
from vader.errors import UserError, nearest
from vader.files.atomic import atomic_write
from vader.files.paths import check_out, read_text, user_path
from vader.recipe import load_recipe
from vader.training.trainer import held_out_words


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that refuses a command; nothing new is left behind."""
    before = sorted(os.listdir())
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sorted(os.listdir()) == before
    return line


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("~no_such_user_here/x", "adapter '~no_such_user_here/x': there is no user of that name here"),
        ("a\0b", r"adapter 'a\x00b' is no path: it holds a NUL character"),
        ("a" * 300, "cannot be used: File name too long"),
        ("loop", "adapter 'loop' cannot be used: Too many levels of symbolic links"),
    ],
)
def test_what_can_be_no_path_is_one_line(written, message):
    Path("loop").symlink_to("loop")
    with pytest.raises(UserError) as caught:
        user_path(written, "adapter")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_path_need_not_exist(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_path("~/x", "adapter") == Path("/home/someone/x")
    assert user_path("no/such", "adapter") == Path("no/such")


def test_texts_are_utf_8_with_newlines():
    Path("a.txt").write_bytes("\ufeffone\r\ntwo\rthrée\n".encode())
    assert read_text(Path("a.txt"), "file") == "one\ntwo\nthrée\n"


def test_a_huge_file_is_no_text():
    with Path("big.txt").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(UserError, match=r"file 'big.txt' has 100 MiB: a text has at most 64"):
        read_text(Path("big.txt"), "file")


def test_what_is_no_regular_file_is_never_replaced():
    os.mkfifo("pipe")
    Path("null").symlink_to("/dev/null")
    for name in ("pipe", "null", ".", "/"):
        with (
            pytest.raises(UserError, match="it is no file but a folder, a pipe or a device"),
            atomic_write(name) as temporary,
        ):
            temporary.write_text("x")
    assert sorted(os.listdir()) == ["null", "pipe"]
    assert not Path("pipe").is_file()


@pytest.mark.parametrize("out", ["file", "file/below", "/dev/null/below"])
def test_a_place_that_cannot_be_written_is_told_before_work(out):
    Path("file").touch()
    with pytest.raises(UserError, match=r"cannot write the folder .*: choose another --out"):
        check_out(Path(out))


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "a red circle"],
        ["evaluate", "--recipe", "tiny"],
        ["compare", "one", "two"],
        ["reproduce", "figure7"],
        ["tinyworld", "build", "vae"],
    ],
    ids=" ".join,
)
def test_every_command_looks_at_its_out_first(capsys, arguments):
    Path("file").touch()
    assert "cannot write the folder 'file/x': choose another --out" in refused(capsys, *arguments, "--out", "file/x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "1001"], "'sampling.steps' is 1001: expected an integer from 1 to 1000"),
        (["--guidance", "nan"], "Invalid value for '--guidance'"),
        (["--frames", "99999"], "'video.frames' is 99999: expected an integer from 1 to 10000 (no machine holds"),
        (["--height", "8192", "--width", "8192", "--frames", "9999"], "takes 7499 GiB, and this machine has"),
        (["--seed", str(2**63)], "'train.seed' is 9223372036854775808"),
        (["x" * 10_001], "prompt 2 of the command line has 10001 characters: 10000 are the most"),
        (["a\udcff"], "prompt 2 of the command line is no text: it holds what is no character"),
        (["--negative", "a\udcff"], "what was asked for: a text holds what is no character"),
    ],
)
def test_samples_that_cannot_be_are_refused_before_a_model_is_loaded(capsys, arguments, message):
    assert message in refused(capsys, "sample", "a red circle", *arguments)


def test_a_video_that_no_machine_holds_is_refused():
    recipe = load_recipe("tiny", ["video.frames=10000", "video.height=8192", "video.width=8192"])
    with pytest.raises(UserError, match=r"takes 7500 GiB, and this machine has \d+: lower video.frames"):
        video_size(recipe)


def test_files_of_videos_have_short_names_in_any_script():
    assert _slug("A red circle!") == "a-red-circle"
    assert len(_slug("画" * 100).encode()) == 60
    assert _slug("画" * 100) == "画" * 20


def test_the_nearest_of_a_word_is_what_has_it_as_a_part():
    assert nearest("dpo", ["ddpo", "diffusion_dpo", "reward_gradient"]) == "did you mean 'diffusion_dpo'?"
    assert nearest("dppo", ["ddpo", "reward_gradient"]) == "did you mean 'ddpo'?"


def test_a_word_where_evaluations_differ_or_more_is_asked_for_than_there_is():
    recipe = load_recipe("tiny", ["evaluation.videos=3"])
    ends = "step 0 and the end are evaluated on 32 held-out videos (evaluation.final_videos), "
    assert held_out_words(recipe, 200) == [
        f"{ends}the evaluations between on 3 (evaluation.videos)",
        "evaluation.shown is 4 and evaluation.videos 3: all of these are shown",
    ]
    short = load_recipe("tiny", ["evaluation.videos=3", "train.steps=10"])
    assert held_out_words(short, 200) == [f"{ends}and no step between"]
    assert held_out_words(short, 1)[1:] == [
        "evaluation.final_videos is 32, of 1 prompt: some are sampled more than once"
    ]
    for one in ("16", "null"):
        assert held_out_words(load_recipe("tiny", [f"evaluation.final_videos={one}"]), 200) == []
    few = load_recipe("tiny", ["evaluation.final_videos=null", "evaluation.videos=3"])
    assert held_out_words(few, 2) == [
        "evaluation.shown is 4 and evaluation.videos 3: all of these are shown",
        "evaluation.videos is 3, of 2 prompts: some are sampled more than once",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.0.wieght=2"], "reward 'aesthetic' has no option 'wieght': did you mean 'weight'?"),
        (["rewards.0.name=my_reward.py:Warmth"], "write my_reward:Warmth, the module and not its file"),
        (["algorithm=dpo"], "algorithm is a part: write algorithm: {name: diffusion_dpo}"),
        (["algorithm.name=dpo"], "unknown algorithm 'dpo': did you mean 'diffusion_dpo'?"),
        (["algorithm={name: ddpo, inner_epochs: 100001}"], "to 100000 (no step has use for more)"),
        (["rewards=[{name: vjepa, checkpoint: tiny, masks: 65}]"], "to 64 (each is a pass of the whole network)"),
        (["prompts.test=os:abort"], "prompt set 'os:abort' does not say that it is one"),
    ],
)
def test_hints(capsys, overrides, message):
    assert message in refused(capsys, "train", "tiny", *overrides)


def test_prompts_of_ones_own_train_where_the_judge_knows_the_tiny_world_alone(capsys):
    Path("p.txt").write_text("a dog runs on the beach\n")
    own = ["prompts.train=p.txt", "prompts.test=p.txt"]
    small = [
        "sampling.steps=2", "algorithm.policy.k=1", "train.steps=1", "train.batch=1", "evaluation.videos=1",
        "evaluation.final_videos=1", "evaluation.shown=1",
    ]  # fmt: skip
    assert main(["train", "tiny", *own, "--dry-run"]) == 0
    assert main(["train", "tiny", *own, *small]) == 0
    words = capsys.readouterr().out
    assert words.count("metric 'judge' steps aside: it knows the tiny world alone") == 2
    assert words.count("metric 'gold' steps aside") == 2
    lines = [json.loads(line) for line in Path("runs/tiny/metrics.jsonl").read_text().splitlines()]
    assert all("figures" not in line for line in lines)

    assert main(["evaluate", "runs/tiny", "--videos", "2", "--seeds", "1"]) == 0
    words = capsys.readouterr().out
    assert "metric 'judge' steps aside" in words
    assert "of 2 prompts there are 1: each is taken once a seed" in words
