"""Look-ups on the hub: asked once and for seconds, in silence; what is missing is named at once, with what to do."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch

from vader.cli import main
from vader.errors import UserError
from vader.files import hub, quiet

COMMIT = "0" * 40


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No hub, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub._on_hub.cache_clear()
    yield
    hub._on_hub.cache_clear()


def cached(folder: Path, hub_id: str) -> Path:
    """The folder of a repository in the cache."""
    repository = folder / "cache" / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def test_what_the_hub_cannot_give_is_read_from_its_cache_by_folder(tmp_path):
    """A hub id would be asked for again by transformers, file by file and for half a minute."""
    folder = cached(tmp_path, "vader-tests/cached")
    assert hub.resolve("vader-tests/cached", "clip") == str(folder)


def test_a_hub_that_answers_is_asked_once(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "model_info", lambda hub_id, timeout: asked.append((hub_id, timeout)))
    assert [hub.resolve("vader-tests/there", "clip") for _ in range(2)] == ["vader-tests/there"] * 2
    assert asked == [("vader-tests/there", 5)]


def test_one_that_is_missing_says_how_to_get_it():
    with pytest.raises(UserError) as caught:
        hub.find_file("owner/name/sub/file.pt", "clip")
    pattern = (
        r"'owner/name/sub/file\.pt' is not here and not to be had from the hub \(.*\): where there is a network, "
        r"'hf download owner/name sub/file\.pt --local-dir FOLDER', and name what is in FOLDER in its place"
    )
    assert re.fullmatch(pattern, str(caught.value))


def test_all_that_is_missing_is_named_at_once():
    finds = [partial(hub.resolve, f"owner/{name}", "clip") for name in ("one", "two", "one")]
    with pytest.raises(UserError, match=r"^'owner/one', 'owner/two' are not here and not to be had from the hub \("):
        hub.together(*finds)
    assert hub.together(lambda: 1, lambda: 2) == [1, 2]


def test_another_mistake_is_told_as_it_is():
    with pytest.raises(UserError, match="no hub id"):
        hub.together(partial(hub.resolve, "owner/one", "clip"), partial(hub.resolve, "./x", "clip"))


def test_a_recipe_names_its_model_first_and_all_that_its_rewards_lack(tmp_path, capsys):
    rewards = "rewards=[{name: hps}, {name: aesthetic}]"
    asked = ["train", "modelscope-aesthetic", rewards, "--runs", str(tmp_path / "runs")]
    began = time.monotonic()
    assert main(asked) == 2
    assert time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith(
        "vader: 'ali-vilab/text-to-video-ms-1.7b', 'xswu/HPSv2/HPS_v2.1_compressed.pt', "
        "'laion/CLIP-ViT-H-14-laion2B-s32B-b79K', 'openai/clip-vit-large-patch14', "
        "'trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth' are not here and not to be had from the hub ("
    )


def test_all_missing_files_of_a_folder_are_named(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").touch()
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler/scheduler_config.json").touch()
    missing = "vae/config.json, tokenizer_2/tokenizer_config.json, image_processor/preprocessor_config.json are missing"
    with pytest.raises(UserError, match=re.escape(f"is not whole: {missing}")):
        hub.check_components(str(tmp_path), ("unet", "vae", "tokenizer_2", "scheduler", "image_processor"))


def test_nothing_to_score_is_said_before_rewards_are_looked_up(capsys):
    assert main(["score", "nofile.mp4", "--reward", "hps"]) == 2
    told = "vader: no video at nofile.mp4: give video files, folders of them, or folders of frames\n"
    assert capsys.readouterr().err == told


LOADING = """
import sys
from vader.cli import main
sys.exit(any(main(["train", recipe, "--dry-run", "--runs", sys.argv[1]]) for recipe in ("tiny-svd", "tiny-hps")))
"""


@pytest.mark.slow
def test_loading_says_nothing_on_stderr(tmp_path):
    """In a process of its own: libraries warn once, some of them when they are imported."""
    done = subprocess.run([sys.executable, "-c", LOADING, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_what_the_tiny_world_lacks_is_told_with_what_it_has_of_the_kind():
    with pytest.raises(UserError, match=r"^the tiny world has no 'cogvideox': name a folder or a hub id 'owner/name'$"):
        hub.resolve("tiny", "cogvideox")
    with pytest.raises(UserError, match=r"^the tiny world has no weights .*: did you mean 'modelscope-sizes'\?$"):
        hub.resolve("tiny/modelscope-size", "modelscope")


def test_norms_of_mixed_precision_are_silent():
    """torch says of each once, on the console, that it has no fused kernel."""
    x, weight = torch.ones(2, 4, dtype=torch.bfloat16), torch.ones(4)
    torch.set_warn_always(True)
    try:
        with pytest.warns(UserWarning, match="Mismatch dtype between input and weight"):
            torch.rms_norm(x, (4,), weight)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            quiet._hush()
            torch.rms_norm(x, (4,), weight)
    finally:
        torch.set_warn_always(False)
    assert not said
