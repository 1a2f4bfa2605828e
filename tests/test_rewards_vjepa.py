"""V-JEPA equals the reference implementation; its masks, gradients and files are what its pages say."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from vader.errors import UserError
from vader.rewards import load_reward
from vader.rewards.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalize
from vader.rewards.vjepa import VJEPA, checkpoint
from vader.rewards.vjepa.checkpoint import PARTS, build, load_jepa, save_release
from vader.rewards.vjepa.masks import MASK_SETS, Grid, Masks, block_size, draw_masks, future_masks, place_blocks
from vader.rewards.vjepa.networks import VitSize, VJepa1, resample, sine_table, table_grid, take_tokens
from vader.rewards.vjepa.reward import normalized_targets, prediction_loss
from vader.tools.check import check_reward

FIXTURES = "parity/rewards"
PROMPTS = ["a red ring", "a blue cross", "a red ring"]
GRID = Grid(time=2, height=4, width=4)  # of 4 frames of 16x16 pixels


@pytest.fixture
def networks():
    """Small random networks, the target encoder another than the context encoder."""
    torch.manual_seed(3)
    networks = VJepa1(VitSize(2, 24, 2), VitSize(1, 12, 2), GRID, tubelet=2, patch=4)
    for parameter in networks.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return networks.requires_grad_(False)


@pytest.fixture
def file(networks, tmp_path):
    save_release(networks, tmp_path / "small.safetensors")
    return str(tmp_path / "small.safetensors")


@pytest.fixture
def frames():
    return torch.rand(3, 4, 3, 16, 16)


def largest_error(found, expected):
    return (found - expected).abs().max().item()


# ---- equal to the reference ----


@pytest.mark.parametrize("name", ["vjepa_tiny.pth.tar", "vjepa_tiny_weights.safetensors"])
def test_networks_loss_and_gradients_equal_the_reference(shared, name):
    networks = load_jepa(str(shared(f"{FIXTURES}/{name}")), heads=4).requires_grad_(False)
    io = load_file(shared(f"{FIXTURES}/vjepa_tiny_io.safetensors"))
    masks = [Masks(io[f"io.mask_enc.{i}"], io[f"io.mask_pred.{i}"]) for i in (0, 1)]
    clips = normalize(io["io.clip01"].transpose(1, 2), IMAGENET_MEAN, IMAGENET_STD).transpose(1, 2).requires_grad_()
    assert largest_error(clips, io["io.clip"]) < 1e-5
    assert largest_error(networks.targets(clips), io["io.target_full_raw"]) < 1e-5
    targets = normalized_targets(networks, clips)
    assert largest_error(targets, io["io.target_full_layernormed"]) < 1e-5
    for i, each in enumerate(masks):
        assert largest_error(networks.encoder(clips, each.context), io[f"io.encoder_out.{i}"]) < 1e-5
        assert largest_error(networks.predict(clips, each, i), io[f"io.predictor_out.{i}"]) < 1e-5
        assert largest_error(take_tokens(targets, each.target), io[f"io.target.{i}"]) < 1e-5
    for through, name in ((targets.detach(), "stopgrad_target"), (targets, "through_target")):
        loss = prediction_loss(networks, clips, through, [masks]).mean()
        assert loss.item() == pytest.approx(io["io.loss"].item(), abs=1e-6)
        (gradient,) = torch.autograd.grad(loss, clips, retain_graph=True)
        expected = io[f"io.grad_clip_{name}"]
        assert (gradient - expected).norm() < 1e-4 * expected.norm()


def test_masks_equal_the_reference(shared):
    """Block sizes come from the iteration's generator, places from the global one; batches are cut to the shortest."""
    expected = load_file(shared(f"{FIXTURES}/vjepa_masks_224.safetensors"))
    places = torch.Generator().manual_seed(123)
    grid = Grid(8, 14, 14)
    for iteration in range(3):
        for i, blocks in enumerate(MASK_SETS):
            size = block_size(grid, blocks, torch.Generator().manual_seed(iteration))
            assert list(size) == expected["block_sizes_t_h_w"][iteration, i].tolist()
            drawn = [place_blocks(grid, size, blocks.number, places) for _ in range(2)]
            for kind, rows in zip(("enc", "pred"), zip(*drawn, strict=True), strict=True):
                shortest = min(row.shape[1] for row in rows)
                cut = torch.cat([row[:, :shortest] for row in rows])
                assert torch.equal(cut, expected[f"iter{iteration}.{kind}.{i}"])


def test_vjepa2_equals_the_reference(shared, tmp_path):
    transformers = pytest.importorskip("transformers")
    weights = shared(f"{FIXTURES}/vjepa2_tiny_weights.safetensors")
    with safe_open(weights, framework="pt") as file:
        config = transformers.VJEPA2Config(**json.loads(file.metadata()["config"]))
    model = transformers.VJEPA2Model(config)
    model.load_state_dict(load_file(weights))
    model.save_pretrained(tmp_path)
    networks = load_jepa(str(tmp_path)).requires_grad_(False)
    io = load_file(shared(f"{FIXTURES}/vjepa2_tiny_io.safetensors"))
    videos = io["io.video_btchw"].requires_grad_()
    clips, masks = videos.transpose(1, 2), Masks(io["io.mask_ctx"], io["io.mask_tgt"])
    assert largest_error(networks.targets(clips), io["io.encoder_full"]) < 1e-5
    targets = normalized_targets(networks, clips).detach()
    assert largest_error(take_tokens(targets, masks.target), io["io.target_layernormed"]) < 1e-5
    assert largest_error(networks.predict(clips, masks, 0), io["io.predictor_masked"]) < 1e-5
    loss = prediction_loss(networks, clips, targets, [[masks]]).mean()
    assert loss.item() == pytest.approx(io["io.loss_masked"].item(), abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, videos)
    expected = io["io.grad_loss_masked_stopgrad"]
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize(("name", "side"), [("vitl16", 14), ("vith16", 14), ("vith16_384", 24)])
def test_full_size_releases_fit_exactly(shared, name, side):
    manifest = json.loads(shared(f"{FIXTURES}/vjepa_full_manifest.json").read_text())[name]
    content = {
        part: {n: torch.empty(shape, device="meta") for n, shape in manifest[part].items()}
        for part in ("encoder", "predictor")
    }
    table = "module.backbone.pos_embed"  # the one tensor whose values tell a size
    content["encoder"][table] = sine_table(Grid(8, side, side), content["encoder"][table].shape[-1])
    content["target_encoder"] = content["encoder"]
    networks = build({part: checkpoint._part(content, part) for part in PARTS}, heads=16)
    assert networks.size == 16 * side
    assert sum(t.numel() for t in networks.encoder.state_dict().values()) == manifest["params_encoder"]
    assert sum(t.numel() for t in networks.predictor.state_dict().values()) == manifest["params_predictor"]


def test_full_size_vjepa2_fits_exactly(shared):
    transformers = pytest.importorskip("transformers")
    from vader.rewards.vjepa.transformers2 import VJepa2

    manifest = json.loads(shared(f"{FIXTURES}/vjepa2_full_manifest.json").read_text())
    with torch.device("meta"):
        networks = VJepa2(transformers.VJEPA2Model(transformers.VJEPA2Config()))
    shapes = {name: list(tensor.shape) for name, tensor in networks.state_dict().items()}
    assert shapes in manifest.values() or shapes == manifest


# ---- masks ----


@pytest.mark.parametrize("grid", [Grid(8, 14, 14), Grid(4, 4, 4), Grid(2, 2, 2), Grid(1, 3, 9)])
def test_masks_split_the_tokens_and_span_the_whole_time(grid):
    for seed in range(20):
        for masks in draw_masks(grid, torch.Generator().manual_seed(seed)):
            assert torch.equal(torch.cat(masks, dim=1)[0].sort().values, torch.arange(math.prod(grid)))
            seen = torch.zeros(math.prod(grid), dtype=torch.bool).index_fill(0, masks.context[0], True).view(grid)
            assert torch.equal(seen, seen[:1].expand(grid))
            assert min(each.shape[1] for each in masks) > 0
            assert all(torch.equal(each[0], each[0].sort().values) for each in masks)


def test_masks_hide_as_much_as_in_training():
    """Mean share of visible tokens, from the statistics of the reference's sampler: 37.2 % and 18.7 %."""
    grid = Grid(8, 14, 14)
    drawn = [draw_masks(grid, torch.Generator().manual_seed(seed)) for seed in range(300)]
    short, long = (sum(sets[i].context.shape[1] for sets in drawn) / 300 / math.prod(grid) for i in (0, 1))
    assert short == pytest.approx(0.372, abs=0.02)
    assert long == pytest.approx(0.187, abs=0.02)


def test_a_block_as_large_as_the_grid_is_refused():
    with pytest.raises(ValueError, match="nothing to see"):
        place_blocks(Grid(4, 1, 1), Grid(4, 1, 1), 2, torch.Generator())


@pytest.mark.parametrize(("seen", "first"), [(0.01, 1), (0.3, 1), (0.5, 2), (0.8, 3), (0.99, 3)])
def test_future_masks_hide_all_that_follows_and_never_everything(seen, first):
    context, target = future_masks(Grid(4, 3, 5), seen)
    assert torch.equal(context, torch.arange(15 * first)[None])
    assert torch.equal(torch.cat([context, target], dim=1), torch.arange(60)[None])


def test_a_clip_of_one_token_has_no_future():
    with pytest.raises(ValueError, match="no future"):
        future_masks(Grid(1, 3, 5), 0.5)


def test_context_is_foretold_from_the_beginning_alone(file, frames):
    reward = VJEPA(file, context=0.5).freeze()
    clips, (masks,) = reward.clips(frames), reward.draw(GRID, PROMPTS[0])[0]
    assert torch.equal(masks.context, torch.arange(16)[None])
    targets = normalized_targets(reward.network, clips)
    torch.testing.assert_close(reward(frames, PROMPTS), -prediction_loss(reward.network, clips, targets, [[masks]]))
    assert torch.equal(reward(frames, PROMPTS), reward(frames, PROMPTS[::-1]))  # nothing is drawn from the prompt
    later = torch.cat([clips[:, :, :2], torch.rand_like(clips[:, :, 2:])], dim=2)
    predicted = [reward.network.predict(each, masks, 0) for each in (clips, later)]
    assert torch.equal(*predicted)
    assert (reward(frames.flip(1), PROMPTS) - reward(frames, PROMPTS)).abs().min() > 1e-4


def test_masks_depend_on_seed_and_prompt_alone(file, frames):
    reward = VJEPA(file).freeze()
    scores = reward(frames, PROMPTS)
    assert torch.equal(scores, reward(frames, PROMPTS))
    alone = torch.cat([reward(frames[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(scores, alone)
    torch.testing.assert_close(scores.flip(0), reward(frames.flip(0), PROMPTS[::-1]))
    assert (reward(frames, PROMPTS[1:] + PROMPTS[:1]) - scores).abs().max() > 1e-4
    assert (VJEPA(file, seed=1).freeze()(frames, PROMPTS) - scores).abs().max() > 1e-4


def test_several_masks_are_averaged(file, frames):
    reward = VJEPA(file, masks=3).freeze()
    clips = reward.clips(frames)
    targets, draws = normalized_targets(reward.network, clips), reward.draw(GRID, PROMPTS[0])
    single = [prediction_loss(reward.network, clips[:1], targets[:1], [draw]) for draw in draws]
    torch.testing.assert_close(reward(frames[:1], PROMPTS[:1]), -torch.stack(single).mean(dim=0))
    torch.testing.assert_close(VJEPA(file).freeze()(frames[:1], PROMPTS[:1]), -single[0])
    assert torch.stack(single).std() > 1e-4


# ---- networks ----


def test_dropping_tokens_is_masking_their_attention(networks):
    """Two ways to hide tokens agree: leaving them out, and letting nobody attend to them."""
    clips, keep = torch.randn(2, 3, 4, 16, 16), torch.tensor([[0, 3, 7, 21, 30]])
    encoder = networks.encoder
    visible = torch.zeros(32, dtype=torch.bool).index_fill(0, keep[0], True)
    x = encoder.patch_embed(clips).flatten(2).transpose(1, 2) + encoder.pos_embed
    for block in encoder.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).view(2, 32, 3, 2, 12).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(12)).masked_fill(~visible, -torch.inf).softmax(dim=-1)
        x = x + block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(encoder(clips, keep), encoder.norm(x)[:, keep[0]], atol=1e-5, rtol=1e-5)


def test_position_table_tells_its_grid_and_every_place():
    for grid in (Grid(8, 14, 14), Grid(1, 3, 3), Grid(5, 2, 2)):
        table = sine_table(grid, 24)
        assert table_grid(table) == table_grid(table.half()) == grid
        assert len(table[0].unique(dim=0)) == math.prod(grid)
    with pytest.raises(ValueError, match="not of square frames"):
        table_grid(sine_table(Grid(2, 3, 5), 24))


def test_position_table_is_stretched_as_the_reference_stretches_it():
    """By scale factors, in the reference; a table that is linear in the place stays so where it is enlarged."""
    table = sine_table(Grid(4, 6, 6), 12)
    volume = table.unflatten(1, (4, 6, 6)).movedim(-1, 1)
    factors = (2.0, 1.5, 0.5)
    expected = torch.nn.functional.interpolate(volume, scale_factor=factors, mode="trilinear")
    assert expected.shape[2:] == (8, 9, 3)
    torch.testing.assert_close(resample(table, Grid(4, 6, 6), Grid(8, 9, 3)), expected.flatten(2).transpose(1, 2))
    assert resample(table, Grid(4, 6, 6), Grid(4, 6, 6)) is table


def test_other_clip_sizes_are_scored(file):
    frames = torch.rand(1, 6, 3, 20, 28)
    for size in (None, 24):
        assert VJEPA(file, size=size).freeze()(frames, PROMPTS[:1]).isfinite().all()
    assert VJEPA(file, size=24).clips(frames).shape == (1, 3, 6, 24, 24)


# ---- gradients ----


def directional_derivatives(function, point):
    """Of a random direction: by the gradient, and by central differences."""
    direction = torch.randn_like(point)
    point = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point).sum(), point)
    with torch.no_grad():
        up, down = (function(point + sign * 1e-6 * direction).sum() for sign in (1, -1))
    return (gradient * direction).sum().item(), (up - down).item() / 2e-6


def test_gradient_through_targets_agrees_with_finite_differences(file, frames):
    reward = VJEPA(file, masks=2).freeze().double()
    exact, numeric = directional_derivatives(lambda x: reward(x, PROMPTS), frames.double())
    assert exact == pytest.approx(numeric, rel=1e-5)


def test_gradient_agrees_with_finite_differences_of_fixed_targets(file, frames):
    reward = VJEPA(file, target_gradient=False).freeze().double()
    frames = frames[:1].double()
    targets = normalized_targets(reward.network, reward.clips(frames))
    draws = reward.draw(GRID, PROMPTS[0])

    def fixed(x):
        return -prediction_loss(reward.network, reward.clips(x), targets, draws)

    point = frames.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(point, PROMPTS[:1]).sum(), point)
    (expected,) = torch.autograd.grad(fixed(point).sum(), point)
    torch.testing.assert_close(gradient, expected)
    exact, numeric = directional_derivatives(fixed, frames)
    assert exact == pytest.approx(numeric, rel=1e-5)


def test_gradient_reaches_the_visible_pixels_and_no_other(file):
    reward = VJEPA(file, target_gradient=False).freeze()
    frames = torch.rand(1, 4, 3, 16, 16, requires_grad=True)
    (gradient,) = torch.autograd.grad(reward(frames, PROMPTS[:1]).sum(), frames)
    visible = torch.zeros(math.prod(GRID), dtype=torch.bool)
    for masks in reward.draw(GRID, PROMPTS[0])[0]:
        visible[masks.context[0]] = True
    tokens = gradient[0].abs().unfold(0, 2, 2).unfold(2, 4, 4).unfold(3, 4, 4).sum(dim=(1, 4, 5, 6))  # [t, h, w]
    assert not visible.all()
    assert torch.equal(tokens.flatten() > 0, visible)


def test_recomputed_blocks_give_the_same_gradient(file, frames):
    gradients = []
    for checkpointing in (False, True):
        reward = VJEPA(file, checkpointing=checkpointing).freeze()
        point = frames.clone().requires_grad_()
        gradients += torch.autograd.grad(reward(point, PROMPTS).sum(), point)
    assert torch.equal(*gradients)


def test_half_precision_is_close(file, frames):
    exact = VJEPA(file).freeze()(frames, PROMPTS)
    score = VJEPA(file).freeze().to_precision(torch.bfloat16)(frames, PROMPTS)
    assert score.dtype == torch.float32
    assert (score - exact).abs().max() < 0.02


def test_contract_is_kept(file):
    """The checks that users run on their own rewards, with the gradient whole so that differences can see it."""
    failed = [check for check in check_reward(load_reward("vjepa", checkpoint=file)) if not check.passed]
    assert not failed


# ---- files ----


def test_release_by_name_is_downloaded_once(networks, tmp_path, monkeypatch, frames):
    parts = {part: dict(networks.get_submodule(part).state_dict(prefix="module.backbone.")) for part in PARTS}
    torch.save(parts | {"opt": {}, "scaler": None, "epoch": 300, "loss": 0.5}, tmp_path / "release.pth.tar")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(checkpoint.RELEASES, "vitl16", (tmp_path / "release.pth.tar").as_uri())
    scores = [VJEPA(heads=2).freeze()(frames, PROMPTS)]
    (tmp_path / "release.pth.tar").unlink()
    scores += [VJEPA(heads=2).freeze()(frames, PROMPTS)]
    assert torch.equal(*scores)
    save_release(networks, tmp_path / "same.safetensors")
    same = VJEPA(str(tmp_path / "same.safetensors")).freeze()(frames, PROMPTS)
    assert largest_error(scores[0], same) < 5e-3  # the file is in float16


def test_saved_file_holds_the_release_s_names(file):
    names = load_file(file).keys()
    assert "target_encoder.module.backbone.blocks.1.attn.qkv.weight" in names
    assert "predictor.module.backbone.mask_tokens.1" in names


def test_vjepa2_takes_the_size_that_is_asked_for(tmp_path):
    transformers = pytest.importorskip("transformers")
    tower = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
    predictor = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    config = transformers.VJEPA2Config(patch_size=4, crop_size=16, frames_per_clip=4, **tower, **predictor)
    transformers.VJEPA2Model(config).save_pretrained(tmp_path)
    frames = torch.rand(2, 4, 3, 24, 24)
    scores = []
    for size in (None, 24):
        reward = VJEPA(str(tmp_path), size=size, checkpointing=True).freeze()
        point = frames.clone().requires_grad_()
        scores.append(reward(point, PROMPTS[:2]))
        (gradient,) = torch.autograd.grad(scores[-1].sum(), point)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
    assert reward.network.encoder.layer[0].attention.grid_size == 6
    assert (scores[0] - scores[1]).abs().min() > 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 18}, "size 18 is not possible: it must be two or more patches of 4; the nearest is 16"),
        ({"size": 4}, "size 4 is not possible: it must be two or more patches of 4; the nearest is 8"),
        ({"masks": 0}, "masks is 0: input should be greater than or equal to 1"),
        ({"context": 1.0}, "context is 1.0: input should be less than 1"),
        ({"context": 0.5, "masks": 4}, "context is a share of the clip, so there are no masks to draw"),
        ({"heads": 5}, "its 24 and 12 features do not split over 5 heads"),
        ({"checkpoint": "./nowhere.pth.tar"}, "no weight file at './nowhere.pth.tar'"),
        ({"checkpoint": "vitl"}, "'vitl' is no folder here"),
    ],
)
def test_mistakes_are_one_line(file, options, message):
    with pytest.raises(UserError) as error:
        load_reward("vjepa", **{"checkpoint": file} | options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_frames_are_refused(file):
    with pytest.raises(UserError, match=r"frames in groups of 2, got 5: set video\.frames, or what the reward sees"):
        VJEPA(file).freeze()(torch.rand(1, 5, 3, 16, 16), [""])


def test_foreign_and_broken_files_are_named(tmp_path, networks):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other.pt' is not a V-JEPA checkpoint: it has no"):
        load_jepa(str(tmp_path / "other.pt"))
    parts = {part: dict(networks.get_submodule(part).state_dict()) for part in PARTS}
    del parts["predictor"]["mask_tokens.1"]
    torch.save(parts, tmp_path / "broken.pth.tar")
    with pytest.raises(UserError, match=r"is not whole: it lacks 1 weights \(predictor.mask_tokens.1"):
        load_jepa(str(tmp_path / "broken.pth.tar"), heads=2)


def test_failed_download_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(checkpoint.RELEASES, "vith16", (tmp_path / "gone.pth.tar").as_uri())
    with pytest.raises(UserError, match="could not be downloaded"):
        load_jepa("vith16")


def test_loss_is_the_paper_s_formula(networks):
    """Written out for one clip: mean absolute error of standardised features, both kinds of mask counting alike."""
    clips = torch.randn(1, 3, 4, 16, 16)
    sets = draw_masks(GRID, torch.Generator().manual_seed(2))
    features = networks.target_encoder(clips)[0]
    deviation = (features.var(dim=-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    standardised = (features - features.mean(dim=-1, keepdim=True)) / deviation
    losses = []
    for i, (context, target) in enumerate(sets):
        seen = networks.predictor.predictor_embed(networks.encoder(clips, context))[0]
        places = networks.predictor.predictor_pos_embed[0]
        hidden = networks.predictor.mask_tokens[i][0] + places[target[0]]
        x = torch.cat([seen + places[context[0]], hidden])[None]
        for block in networks.predictor.predictor_blocks:
            x = block(x)
        predicted = networks.predictor.predictor_proj(networks.predictor.predictor_norm(x))[0, len(seen) :]
        losses.append((predicted - standardised[target[0]]).abs().mean())
    found = prediction_loss(networks, clips, normalized_targets(networks, clips), [sets])
    torch.testing.assert_close(found, torch.stack(losses).mean()[None])
    assert (losses[0] - losses[1]).abs() > 1e-3


def test_scores_are_what_they_were(file):
    """Golden: a change of masks, sizes, normalisation or formula moves these."""
    frames = torch.rand(2, 4, 3, 16, 24, generator=torch.Generator().manual_seed(5))
    scores = VJEPA(file, masks=2).freeze()(frames, PROMPTS[:2])
    torch.testing.assert_close(scores, torch.tensor([-0.98636, -0.96249]), atol=1e-4, rtol=0)
