"""The action reward: the right class, any even number of frames, and a gradient through all of them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import VideoMAEForVideoClassification
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from reward_factories import ACTIONS, make_tiny_videomae, unit_range
from vader.errors import UserError
from vader.nouns import Prompt, as_prompts
from vader.rewards import load_reward
from vader.rewards.action import RESIZERS, Action, sine_table
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize

PROMPTS = ["a man playing piano", "a girl is Playing"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(make_tiny_videomae(tmp_path_factory.mktemp("videomae")))


@pytest.fixture
def action(folder):
    return lambda **more: load_reward("action", checkpoint=folder, **more)


def error_of(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- the classifier ----


@pytest.mark.parametrize("frames", [2, 8, 12])
def test_any_even_number_of_frames_is_as_loaded_for_it(action, folder, frames):
    """The checkpoint was written for 8 frames; transformers itself takes others only at loading."""
    clip = torch.rand(2, frames, 3, 16, 16)
    model = VideoMAEForVideoClassification.from_pretrained(folder, num_frames=frames).eval()
    pixels = normalize(clip.flatten(0, 1), IMAGENET_MEAN, IMAGENET_STD).unflatten(0, (2, frames))
    expected = model(pixel_values=pixels).logits.log_softmax(dim=-1)
    reward = action()
    torch.testing.assert_close(reward.logits(clip).log_softmax(dim=-1), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(reward(clip, PROMPTS), torch.stack([expected[0, 0], expected[1, 1]]), atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_sine_table_is_that_of_the_class_and_its_beginning_a_shorter_ones():
    torch.testing.assert_close(sine_table(24, 16), get_sinusoid_encoding_table(24, 16), atol=1e-6, rtol=0)
    assert torch.equal(sine_table(24, 16)[:, :10], sine_table(10, 16))


def test_probability_is_the_exponential(action):
    clip = torch.rand(2, 4, 3, 16, 16)
    logp, p = action()(clip, PROMPTS), action(output="probability")(clip, PROMPTS)
    torch.testing.assert_close(p, logp.exp())
    assert (action().sensible_range, action(output="probability").sensible_range) == ((-6.0, 0.0), (0.0, 1.0))


def test_videos_do_not_mix(action):
    clip, reward = torch.rand(2, 4, 3, 16, 16), action()
    alone = torch.cat([reward(clip[i : i + 1], PROMPTS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(reward(clip, PROMPTS), alone)


@pytest.mark.parametrize("tail", ["", "_big"])
def test_squash_equals_the_reference(shared, tail):
    data = load_file(shared("parity/rewards/preprocess.safetensors"))
    expected = data[f"videomae_every4{tail}"]
    found = normalize(RESIZERS["squash"](unit_range(data[f"frames{tail}_m1_1"]), 224), IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(found[: len(expected), :, ::4, ::4], expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"resize": "squash", "output": "probability"}, {"frames": 4}])
def test_pixel_gradient_agrees_with_finite_differences(action, options):
    reward = action(**options).double()
    clip = torch.rand(2, 6, 3, 20, 24, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(clip, PROMPTS).sum(), clip)
    direction = torch.randn_like(clip)
    with torch.no_grad():
        up, down = (reward(clip + sign * 1e-5 * direction, PROMPTS).sum() for sign in (1, -1))
    assert (up - down).item() / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-6)
    assert (gradient.flatten(2).norm(dim=2) > 0).sum(dim=1).tolist() == [options.get("frames", 6)] * 2


def test_half_precision_is_close_and_all_is_frozen(action):
    clip = torch.rand(2, 4, 3, 16, 16)
    reward = action()
    exact, score = reward(clip, PROMPTS), action().to_precision(torch.bfloat16)(clip, PROMPTS)
    assert score.dtype == torch.float32
    assert 0 < (score - exact).abs().max() < 0.2
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not any(module.training for module in reward.modules())


# ---- frames ----


def test_an_odd_number_of_frames_is_refused(action):
    reward = action()
    assert not reward.framewise
    assert (reward.needs.least, reward.needs.multiple) == (2, 2)
    message = error_of(lambda: reward(torch.rand(2, 7, 3, 16, 16), PROMPTS))
    assert message.startswith("reward 'action' needs an even number of frames, got 7: set video.frames")
    assert "even number of frames, got the option frames=5" in error_of(lambda: action(frames=5))


def test_frames_are_spread_evenly(action):
    reward = action(frames=4)
    assert (reward.needs.least, reward.needs.multiple) == (4, 1)
    clip = torch.rand(2, 7, 3, 16, 16)
    torch.testing.assert_close(reward(clip, PROMPTS), action()(clip[:, [0, 2, 4, 6]], PROMPTS))
    assert "needs 4 frames or more, got 3" in error_of(lambda: reward(clip[:, :3], PROMPTS))


# ---- labels ----


def test_the_label_is_the_prompts_then_the_options_then_the_longest_name_in_the_text(action):
    reward, fixed = action(), action(label="Playing  Piano")
    assert reward.target(Prompt("a man playing piano")) == ACTIONS.index("playing piano")
    assert reward.target(Prompt("a man Playing_the piano")) == ACTIONS.index("playing")
    assert reward.target(Prompt("she is tying knot (not on a tie), slowly")) == 3
    assert reward.target(Prompt("a man playing piano", label="eating ice cream")) == ACTIONS.index("eating ice cream")
    assert reward.target(Prompt("a man playing piano")) == ACTIONS.index("playing piano")
    assert fixed.target(Prompt("a dog runs")) == fixed.target(Prompt("eating ice cream")) == 0
    assert fixed.target(Prompt("a dog", label="playing")) == ACTIONS.index("playing")


def test_prompts_without_a_label_are_found_before_a_run_starts(action):
    reward = action()
    reward.check_prompts(as_prompts(PROMPTS))
    for text in ("a dog runs", "a man displaying pianos"):
        message = error_of(lambda text=text: reward.check_prompts(as_prompts([*PROMPTS, text])))
        assert message.startswith(
            f"prompt {text!r} names no action that the classifier knows: give the prompts a label"
        )
    unknown = error_of(lambda: reward.check_prompts([Prompt("x", label="playing pian")]))
    assert "knows no 'playing pian': did you mean 'playing piano'?" in unknown
    assert "knows no 'swimming'" in error_of(lambda: action(label="swimming"))


def test_every_kinetics_label_finds_itself_in_a_prompt(shared, action):
    """Whatever name a prompt holds, no shorter one inside it ("eating" in "eating cake") wins."""
    names = json.loads(shared("parity/rewards/labels.json").read_text())["kinetics400_labels"]
    reward = action()
    reward.indices = {name.lower(): index for index, name in enumerate(names)}
    assert [reward.target(Prompt(f"A person is {name} in a park.")) for name in names] == list(range(400))


def test_missing_weights_are_an_error():
    assert "'./nowhere' is no folder here" in error_of(lambda: Action(checkpoint="./nowhere"))
