"""Tiny decoders against the release's network written down as one function of the whole clip, and where they work."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_decoders import RELEASED, make_file, make_weights
from toys import Stillness, ToyModel, Warmth
from vader.cli import main
from vader.engine.build import check_decoder
from vader.errors import UserError
from vader.models.cogvideox import CogVideoX
from vader.models.hunyuan import HunyuanVideo
from vader.models.tiny_decoder import RELEASES, TinyDecoder, TinyVideos, load_tiny_decoder
from vader.models.wan import Wan
from vader.networks.recompute import checkpoint_blocks
from vader.nouns import Prompt, VideoSize
from vader.planning.models import load_tiny_shape
from vader.planning.step import forecast
from vader.recipe import changed, load_recipe
from vader.rewards import RewardMix
from vader.runs.reader import read_run
from vader.scoring.choice import Group
from vader.scoring.scorer import Scorer

LAYOUTS = {
    "of Wan 2.1": {"channels": 16, "grows": (1, 2, 2), "patch": 1},
    "of TI2V-5B": {"channels": 6, "grows": (1, 2, 2), "patch": 2},
    "of LTX-2": {"channels": 5, "grows": (2, 2, 2), "patch": 4},
}


def whole(weights: dict[str, Tensor], latents: Tensor) -> Tensor:
    """All frames of `[T, C, h, w]`: every layer over the whole clip, with nothing before its first frame."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = weights[f"decoder.{name}.weight"]
        return F.conv2d(x, weight, weights.get(f"decoder.{name}.bias"), padding=weight.shape[-1] // 2)

    x, dropped = conv(torch.tanh(latents / 3) * 3, "1").relu(), 1
    for at in (3, 9, 15):
        for block in range(at, at + 3):
            hidden = torch.cat([x, F.pad(x, (0, 0, 0, 0, 0, 0, 1, 0))[: len(x)]], dim=1)
            for place in (0, 2):
                hidden = conv(hidden, f"{block}.conv.{place}").relu()
            x = (conv(hidden, f"{block}.conv.4") + x).relu()
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        grown = conv(x, f"{at + 4}.conv")
        dropped *= grown.shape[1] // x.shape[1]
        x = conv(grown.reshape(-1, *x.shape[1:]), f"{at + 5}")
    x = conv(x.relu(), "22")
    patch = round((x.shape[1] / 3) ** 0.5)
    return F.pixel_shuffle(x, patch)[dropped - 1 :]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loaded(tmp_path, **layout) -> tuple[TinyDecoder, dict[str, Tensor]]:
    weights = make_weights(**layout)
    save_file(weights, tmp_path / "tiny.safetensors")
    return load_tiny_decoder(str(tmp_path / "tiny.safetensors"), torch.float64), {
        name: weight.double() for name, weight in weights.items()
    }


# ---- the network ----


@pytest.mark.parametrize("name", LAYOUTS)
def test_chosen_frames_and_their_gradient_are_those_of_the_whole_decode(tmp_path, name):
    network, weights = loaded(tmp_path, **LAYOUTS[name])
    latents = drawn(11, LAYOUTS[name]["channels"], 1, 2).requires_grad_()
    expected = whole(weights, latents)
    assert len(expected) == (network.dropped + 1) * 10 + 1
    torch.testing.assert_close(network(latents, range(len(expected))), expected, atol=1e-9, rtol=1e-9)
    last = len(expected)
    for frames in (range(1), range(1, 2), range(2, 7), range(last - 2, last)):
        found, part = network(latents, frames), expected[frames.start : frames.stop]
        torch.testing.assert_close(found, part, atol=1e-9, rtol=1e-9)
        ours, theirs = (torch.autograd.grad(one.cos().sum(), latents, retain_graph=True)[0] for one in (found, part))
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
        assert theirs.abs().sum() > 1e-3
    reached = (theirs.abs().amax(dim=(1, 2, 3)) > 0).tolist()
    assert reached == [False] * reached.index(True) + [True] * (11 - reached.index(True))
    assert reached.index(True) > 0, "the clip is longer than what a frame hangs on"


def test_only_what_chosen_frames_hang_on_is_computed(tmp_path):
    network, _ = loaded(tmp_path)
    latents, seen = drawn(40, 16, 1, 1), []
    network.decoder[1].register_forward_hook(lambda layer, given, made: seen.append(len(made)))
    network.decoder[22].register_forward_hook(lambda layer, given, made: seen.append(len(made)))
    network(latents, range(100, 101))
    assert seen == [8, 1]
    broken = latents.clone()
    broken[[17, 26]] = torch.nan  # frame 100 is of latent 25
    torch.testing.assert_close(network(broken, range(100, 101)), network(latents, range(100, 101)))
    broken[18] = torch.nan
    assert not network(broken, range(100, 101)).isfinite().all()


def test_recomputed_it_is_the_same_to_the_last_bit(tmp_path):
    network, _ = loaded(tmp_path)
    latents = drawn(4, 16, 2, 2).requires_grad_()
    plain = network(latents, range(3, 9))
    assert checkpoint_blocks(network) == 23
    again = network(latents, range(3, 9))
    assert torch.equal(again, plain)
    assert torch.equal(*(torch.autograd.grad(one.sin().sum(), latents)[0] for one in (again, plain)))


def test_the_released_shapes_are_drawn_by_name_and_others_from_the_file(tmp_path):
    meta = torch.device("meta")
    decoder = load_tiny_shape("somewhere/taew2_1.pth", torch.bfloat16, meta)
    assert round(sum(weight.numel() for weight in decoder.parameters()) / 1e6, 1) == 9.8
    assert decoder.decoder[1].weight.dtype == torch.bfloat16
    expected = {
        name: weight.shape for name, weight in make_weights(widths=RELEASED).items() if name.startswith("decoder.")
    }
    assert {name: weight.shape for name, weight in decoder.state_dict().items()} == expected
    own = load_tiny_shape(str(make_file(tmp_path / "own.pth", channels=48, patch=2)), torch.float32, meta)
    assert own.layout == replace(RELEASES["taew2_2"], widths=(8, 6, 4, 4))
    assert own.decoder[1].weight.is_meta


# ---- files that will not do ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("decoder.9.conv.2.bias"), r"is not whole: it lacks 1 weights \(decoder\.9\.conv\.2\.bias"),
        (lambda w: w.update(more=torch.ones(1)), r"is of another kind: it has 1 unknown weights \(more"),
        (lambda w: w.update({"decoder.8.weight": torch.ones(6, 9, 3, 3)}), r"another architecture: decoder\.8\.wei"),
        (lambda w: w.pop("decoder.22.weight"), r"is no tiny decoder of videos: it has no layers of TAEHV's names"),
    ],
)
def test_a_file_is_taken_to_the_last_name(tmp_path, change, message):
    weights = make_weights(channels=4)
    change(weights)
    torch.save(weights, tmp_path / "tiny.pth")
    with pytest.raises(UserError, match=message):
        load_tiny_decoder(str(tmp_path / "tiny.pth"))


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^tiny decoder '.*taew9\.pth' is no file here: name one of https://"):
        load_tiny_decoder(str(tmp_path / "taew9.pth"))


# ---- in a model's place ----


class CausalToy(ToyModel):
    """Of 4n + 1 frames n + 1 latents `[B, 4, T, H / 8, W / 8]`; the VAE shows each one's pixels four times."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(dtype)
        self.vae = nn.ConvTranspose2d(4, 3, 8, stride=8).to(dtype).requires_grad_(False)

    @property
    def check_size(self) -> VideoSize:
        return VideoSize(5, 8, 8)

    def noise_shape(self, size: VideoSize) -> tuple[int, ...]:
        return (4, (size.frames - 1) // 4 + 1, size.height // 8, size.width // 8)

    def tiny_latents(self, latents: Tensor) -> Tensor:
        return latents.movedim(2, 1)

    def decode_unclamped(self, latents: Tensor, frames: Tensor | None = None) -> Tensor:
        if frames is None:
            frames = torch.arange(4 * latents.shape[2] - 3).expand(len(latents), -1)
        return super().decode_unclamped(latents, (frames + 3) // 4)


SIZE = VideoSize(9, 8, 16, fps=4)
PROMPTS = [Prompt("a red ball"), Prompt("blue")]


def test_each_video_has_its_own_frames(tmp_path):
    network, weights = loaded(tmp_path, channels=4)
    videos = TinyVideos(CausalToy(torch.float64), network)
    assert [list(window) for window in videos.windows(VideoSize(13, 8, 16))] == [list(range(9)), list(range(9, 13))]
    latents = drawn(2, 4, 4, 1, 2)
    expected = torch.stack([whole(weights, video.movedim(1, 0)) for video in latents])
    torch.testing.assert_close(videos.decode_unclamped(latents), expected)
    frames = torch.tensor([[0, 7, 12], [11, 3, 10]])
    found = videos.decode_unclamped(latents, frames)
    torch.testing.assert_close(found, expected[torch.arange(2)[:, None], frames])


def make_scorer(network: TinyDecoder | None) -> Scorer:
    model = CausalToy(torch.float64)
    mix = RewardMix({"warmth": Warmth(), "still": Stillness()}, {"warmth": 1.0, "still": 0.3})
    return Scorer(model, mix, SIZE, 2, None if network is None else TinyVideos(model, network))


def test_gradient_comes_through_it_and_all_else_through_the_vae(tmp_path):
    network, weights = loaded(tmp_path, channels=4)
    scorer, plain, latents = make_scorer(network), make_scorer(None), drawn(2, 4, 3, 1, 2)
    frames = torch.tensor([[1, 5, 8], [0, 2, 7]])
    group = Group(frames, frames / SIZE.fps, {"warmth": Warmth()}, {"still": Stillness()})
    scale = torch.tensor([1.0, 0.5], dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        pixels = torch.stack([whole(weights, video.movedim(1, 0))[rows] for video, rows in zip(x, frames, strict=True)])
        clip = SimpleNamespace(frames=pixels.clamp(0, 1))
        warmth = torch.stack([Warmth().score_frames(video, []).mean() for video in clip.frames])
        return -(scale * (warmth + 0.3 * Stillness().score(clip, []))).sum()

    gradient, scored = scorer.pull(latents, PROMPTS, [group], scale)
    leaf = latents.clone().requires_grad_()
    expected = torch.autograd.grad(objective(leaf), leaf)[0]
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-9)
    step = 1e-6 * drawn(*latents.shape, seed=2)
    slope = (objective(latents + step) - objective(latents - step)) / 2
    torch.testing.assert_close((gradient * step).sum(), slope, atol=1e-12, rtol=1e-4)
    one, _ = scorer.graph(leaf, PROMPTS, [group], scale)
    torch.testing.assert_close(torch.autograd.grad(one, leaf)[0], expected, atol=1e-9, rtol=1e-9)

    assert torch.equal(scorer.decode(latents).frames, plain.decode(latents).frames)
    by_vae = [one.score(latents, PROMPTS, [group]).total for one in (scorer, plain)]
    assert torch.equal(*by_vae)
    assert (scored.total - by_vae[0]).abs().min() > 1e-4


def test_files_for_other_latents_are_refused(tmp_path):
    model = CausalToy()
    with pytest.raises(UserError, match=r"^model\.decoder is for latents of 48 channels, and this model's have 4: "):
        TinyVideos(model, loaded(tmp_path, channels=48, patch=2)[0])
    with pytest.raises(UserError, match="makes 5 frames of 16 rows where this model makes 5 of 8: name the file"):
        TinyVideos(model, loaded(tmp_path, channels=4, patch=2)[0])
    with pytest.raises(UserError, match="makes 9 frames of 8 rows where this model makes 5 of 8"):
        TinyVideos(model, loaded(tmp_path, channels=4, grows=(2, 2, 2))[0])
    with pytest.raises(UserError, match=r"no tiny decoder is known for models of ToyModel: leave model\.decoder out"):
        TinyVideos(ToyModel(), loaded(tmp_path, channels=4)[0])


def test_families_give_the_latents_that_are_decoded_frames_first():
    for family in (Wan, HunyuanVideo):
        latents = drawn(1, 4, 3, 1, 1)
        assert torch.equal(family.tiny_latents(family.__new__(family), latents), latents.transpose(1, 2))
    latents = torch.arange(4.0).view(1, 4, 1, 1, 1)
    for patch, decoded in ((None, [0, 1, 2, 3]), (2, [1, 2, 3])):  # of 1.5 the first is sampled, and never decoded
        model = CogVideoX.__new__(CogVideoX)
        model.denoisers = {"transformer": SimpleNamespace(config=SimpleNamespace(patch_size_t=patch))}
        assert model.tiny_latents(latents).flatten().tolist() == decoded


# ---- in a recipe ----


def test_a_run_trains_by_it_and_is_evaluated_by_the_vae(tmp_path):
    def run(name: str, *more: str):
        recipe = ["tests/toy.yaml", "model.family=test_tiny_decoder:CausalToy", "video.frames=5", "train.steps=1"]
        sizes = ["train.batch=2", "evaluation.videos=2", "evaluation.every=1", "model.precision=fp32"]
        assert main(["train", *recipe, *sizes, f"name={name}", *more, "--runs", str(tmp_path)]) == 0
        return read_run(tmp_path / name)

    plain = run("plain")
    tiny = run("tiny", f"model.decoder={make_file(tmp_path / 'tiny.pth', channels=4)}")
    assert tiny.evaluations[0].reward == plain.evaluations[0].reward
    assert abs(tiny.train[0].reward - plain.train[0].reward) > 1e-4
    assert tiny.evaluations[1].reward != plain.evaluations[1].reward


def test_an_algorithm_without_gradient_has_no_use_for_it():
    recipe = changed(load_recipe("tiny"), {"model.decoder": "taew2_1.pth"})
    check_decoder(recipe, True)
    ddpo = changed(recipe, {"algorithm": {"name": "ddpo"}})
    with pytest.raises(UserError, match=r"^model\.decoder shows the frames .* 'ddpo' takes none: leave it out$"):
        check_decoder(ddpo, False)


@pytest.mark.rare
def test_a_plan_counts_it():
    small = ["video.frames=9", "video.height=64", "video.width=64", "sampling.steps=2", "train.batch=1"]
    recipe = load_recipe("wan-1.3b-hps", [*small, "algorithm.policy.k=1", "model.decoder=taew2_1.pth"])
    found = forecast(recipe)
    assert found.weights["tiny_decoder"] == 2 * sum(
        weight.numel() for weight in TinyDecoder(RELEASES["taew2_1"]).parameters()
    )
    assert found.operations < forecast(changed(recipe, {"model.decoder": None})).operations
