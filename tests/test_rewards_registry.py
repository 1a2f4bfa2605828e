"""Rewards by name: built-in and one's own alike; each mistake is one line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from reward_factories import make_head, make_tiny_clip
from vader.errors import UserError
from vader.recipe.sections import RewardSection
from vader.rewards import FrameReward, RewardMix, build_mix, load_reward, reward_names
from vader.rewards.aesthetic import Aesthetic
from vader.rewards.base import Reward
from vader.rewards.hps import HPS
from vader.rewards.registry import BUILT_IN, MIXES, Named, part_names, reward_class

OWN = """
import torch
from vader.rewards import FrameReward


class Redness(FrameReward):
    sensible_range = (0.0, 2.0)

    def __init__(self, strength: float = 1.0):
        super().__init__()
        self.strength = torch.nn.Parameter(torch.tensor(strength))

    def score_frames(self, images, prompts):
        return self.strength * images[:, 0].mean(dim=(1, 2))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_rewards", raising=False)
    return "own_rewards:Redness"


def test_own_reward_is_loaded_frozen_with_its_options(own):
    reward = load_reward(own, strength=3)
    assert isinstance(reward, FrameReward)
    assert not reward.strength.requires_grad
    assert not reward.training
    frames = torch.rand(2, 3, 3, 4, 4)
    torch.testing.assert_close(reward(frames, ["", ""]), 3 * frames[:, :, 0].mean(dim=(1, 2, 3)))


def test_mix_of_a_recipe(own, tmp_path):
    clip, head = make_tiny_clip(tmp_path / "clip"), make_head(tmp_path / "head.safetensors")
    sections = [
        RewardSection(name="aesthetic", weight=0.5, checkpoint=str(clip), head=str(head)),
        RewardSection(name=own),
        RewardSection(name=own, weight=-2.0, strength=2.0),
    ]
    mix = build_mix(sections)
    assert isinstance(mix, RewardMix)
    assert mix.weights == {"aesthetic": 0.5, "Redness": 1.0, "Redness_2": -2.0}
    frames = torch.rand(2, 1, 3, 16, 16)
    parts = {name: reward(frames, ["", ""]) for name, reward in mix.items()}
    torch.testing.assert_close(parts["Redness_2"], 2 * parts["Redness"])


def test_the_named_mix_has_the_gradient_of_the_papers_loss(tmp_path, monkeypatch):
    clip, head = str(make_tiny_clip(tmp_path / "clip")), str(make_head(tmp_path / "aesthetic_head.safetensors"))
    tensors = load_file(head)
    save_file(tensors | {"layers.4.bias": tensors["layers.4.bias"] - 20}, head)  # below the paper's target of 10
    monkeypatch.setattr("vader.rewards.aesthetic.HEAD", head)
    mix = build_mix([RewardSection(name="hps_aesthetic", checkpoint=clip, weight=2.0)])
    frames, prompts = torch.rand(2, 2, 3, 12, 20, requires_grad=True), ["red", "a blue"]
    hps = HPS(checkpoint=clip, resize="squash").freeze()(frames, prompts)
    aesthetic = Aesthetic(clip, head, resize="squash").freeze()(frames, prompts)
    loss = (1.5 * 0.1 * (aesthetic - 10).abs() + (1 - hps).abs()) / 2
    (expected,) = torch.autograd.grad(-2 * loss.sum(), frames)
    (gradient,) = torch.autograd.grad(mix(frames, prompts).sum(), frames)
    assert aesthetic.max() < 10
    torch.testing.assert_close(gradient, expected, atol=1e-7, rtol=1e-5)
    assert list(mix.rewards) == ["hps", "aesthetic"]
    assert mix.sensible_range == pytest.approx((2 * (0.5 * 0.2 + 0.075), 2 * (0.5 * 0.35 + 0.75)))


def test_a_mix_loads_like_a_reward(own, monkeypatch):
    monkeypatch.setitem(MIXES, "reds", (Named(own, 0.5), Named(own, -2.0)))
    mix = load_reward("reds", strength=3.0)
    assert mix.weights == {"Redness": 0.5, "Redness_2": -2.0}
    assert mix.sensible_range == (-4.0, 1.0)
    assert reward_names()["hps_aesthetic"] == "The mix 0.5 hps + 0.075 aesthetic, as in the paper's code."
    with pytest.raises(UserError, match="did you mean 'hps_aesthetic'"):
        load_reward("hps_aestetic")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_reward_says_where_real_videos_score(name):
    classes = reward_class(name).mro()
    own = classes[: classes.index(Reward)]
    by_option = "sensible_range" in reward_class(name).__init__.__code__.co_names
    assert by_option or any("sensible_range" in vars(cls) for cls in own)
    low, high = reward_class(name).sensible_range
    assert low < high


def test_part_names_are_distinct():
    assert part_names(["hps", "a.b:Own", "hps", "c:Own", "hps"]) == ["hps", "Own", "hps_2", "Own_2", "hps_3"]


def test_every_built_in_reward_has_a_line_of_description():
    names = reward_names()
    assert {"aesthetic", "hps"} <= names.keys()
    assert all(line and "\n" not in line for line in names.values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("estetic", {}, "unknown reward 'estetic': did you mean 'aesthetic'"),
        ("aesthetic", {"targt": 10}, "reward 'aesthetic' has no option 'targt': did you mean 'target'"),
        ("aesthetic", {"target": "ten"}, "reward 'aesthetic': target is 'ten': input should be a valid number"),
        ("aesthetic", {"resize": "stretch"}, "resize is 'stretch': input should be 'crop', 'squash' or 'pad'"),
        ("hps", {"version": "v3"}, "version is 'v3': input should be 'v2.0' or 'v2.1'"),
        ("aesthetic", {"checkpoint": "./nowhere"}, "checkpoint './nowhere' is no folder here"),
    ],
)
def test_mistakes_are_one_line(name, options, message):
    with pytest.raises(UserError) as error:
        load_reward(name, **options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_tiny_weights_are_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr("vader.files.hub.TINY_WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="reward 'aesthetic' has no tiny twin: name a folder or a hub id 'owner/name'"):
        load_reward("aesthetic", checkpoint="tiny")


FILE = "name a file or a hub file 'owner/repo/file', or leave it to the release"
FOLDER = "name a folder or a hub id 'owner/name', or leave it to the release"


@pytest.mark.parametrize(
    ("name", "options", "instead"),
    [
        ("videoreward", {"checkpoint": "tiny"}, FILE),
        ("hpsv3", {"checkpoint": "tiny"}, FILE),
        ("weather", {"checkpoint": "tiny", "head": "tiny"}, FILE),
        ("xclip", {"checkpoint": "tiny"}, FOLDER),
        ("vlm", {"checkpoint": "tiny"}, FOLDER),
    ],
)
def test_a_reward_without_a_tiny_twin_says_so(name, options, instead):
    with pytest.raises(UserError) as error:
        load_reward(name, **options)
    assert str(error.value) == f"reward {name!r} has no tiny twin: {instead}"


# Of every reward that loads a folder of transformers: its options, and what the folder should hold.
FOLDERS = {
    "action": ({}, "VideoMAE classifier"),
    "aesthetic": ({"head": "head.safetensors"}, "CLIP"),
    "consistency": ({}, "image encoder"),
    "hps": ({}, "CLIP"),
    "object_removal": ({"target": "book"}, "detector"),
    "pickscore": ({}, "CLIP"),
    "vjepa": ({}, "V-JEPA 2"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_is_no_model_is_one_line_of_ours(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_head(tmp_path / "head.safetensors")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").touch()
    options, part = FOLDERS[name]
    with pytest.raises(UserError) as error:
        load_reward(name, checkpoint="pics", **options)
    assert str(error.value) == f"checkpoint 'pics' holds no {part}: there is no config.json in it"
    (tmp_path / "pics" / "config.json").write_text("{}")
    with pytest.raises(UserError) as error:
        load_reward(name, checkpoint="pics", **options)
    assert str(error.value) in (
        f"checkpoint 'pics' holds no {part}: its config.json has no model_type",
        f"{part} of checkpoint 'pics' is not whole: it has no weight file",
    )
