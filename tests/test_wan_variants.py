"""Checkpoints of Wan's relatives: those that are the same network load and sample, the others say what they are."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import SkyReelsV2Pipeline, SkyReelsV2Transformer3DModel, WanPipeline

from factories import Fixed
from vader.errors import UserError
from vader.models import load_model
from vader.nouns import Prompt, VideoSize
from vader.sampling.videos import make_sampler, solver_of
from vader.sampling.walk import Walk
from wan_factories import make_tiny_wan

SIZE = VideoSize(frames=5, height=16, width=32, fps=24)
PROMPT = Prompt("a red ball", negative="dull")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VADER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def fast(tmp_path_factory) -> Path:
    """In FastWan's layout: Wan's, under the name of a pipeline that diffusers does not have."""
    folder = make_tiny_wan(tmp_path_factory.mktemp("wan") / "fast")
    rewritten(folder / "model_index.json", _class_name="WanDMDPipeline")
    return folder


@pytest.fixture(scope="module")
def skyreels(fast, tmp_path_factory) -> Path:
    """A `SkyReelsV2Pipeline` folder, whose transformer has Wan's weights: they are of the same names and shapes."""
    parts = WanPipeline.from_pretrained(fast).components
    parts = {name: part for name, part in parts.items() if name != "transformer_2"}
    known, settings = inspect.signature(SkyReelsV2Transformer3DModel.__init__).parameters, parts["transformer"].config
    network = SkyReelsV2Transformer3DModel(**{name: value for name, value in settings.items() if name in known})
    network.load_state_dict(parts["transformer"].state_dict())
    folder = tmp_path_factory.mktemp("wan") / "skyreels"
    SkyReelsV2Pipeline(**parts | {"transformer": network}).save_pretrained(folder)
    return folder


def rewritten(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def ours(model, latents, steps: int, scale: float):
    sampler = make_sampler(model, SIZE, steps, scale)
    return Walk(sampler, model.encode([PROMPT], SIZE), Fixed(latents)).frozen(steps).latents


@torch.no_grad()
@pytest.mark.parametrize(
    ("folder", "pipeline", "steps", "scale"),
    [("skyreels", SkyReelsV2Pipeline, 3, 6.0), ("skyreels", SkyReelsV2Pipeline, 8, 6.0), ("fast", WanPipeline, 3, 1.0)],
)
def test_they_sample_as_diffusers_pipeline_does(request, folder, pipeline, steps, scale):
    source = request.getfixturevalue(folder)
    pipe, model = pipeline.from_pretrained(source), load_model("wan", str(source))
    pipe.set_progress_bar_config(disable=True)
    latents = torch.randn(1, *model.noise_shape(SIZE), generator=torch.Generator().manual_seed(1))
    found = ours(model, latents, steps, scale)

    def theirs(output: str):
        return pipe(
            PROMPT.text, PROMPT.negative, SIZE.height, SIZE.width, SIZE.frames, steps, guidance_scale=scale,
            latents=latents, output_type=output,
        ).frames  # fmt: skip

    torch.testing.assert_close(found, theirs("latent"), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.decode(found), theirs("pt"), atol=1e-4, rtol=1e-4)


def test_the_pipeline_of_skyreels_is_its_own(skyreels, tmp_path):
    model = load_model("wan", str(skyreels))
    assert isinstance(model.denoiser, SkyReelsV2Transformer3DModel)
    model.exporter()(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "model_index.json").read_text())["_class_name"] == "SkyReelsV2Pipeline"
    assert isinstance(load_model("wan", str(tmp_path / "out")).denoiser, SkyReelsV2Transformer3DModel)


def test_fastwan_s_levels_and_what_is_fresh_of_their_noise(fast):
    levels = [1.0, 0.757, 0.522]
    solver = solver_of(load_model("wan", str(fast)), levels, eta=1.0, kind="euler_flow", shift=1.0)
    first, second, last = solver.levels(3, SIZE).starts
    assert [level.time for level in (first, second, last)] == pytest.approx([1000.0, 757.0, 522.0])
    assert solver.rule.std(first, second) == pytest.approx(0.757)
    assert 1 - (solver.rule.std(second, last) / 0.522) ** 2 == pytest.approx(1 / 8, abs=0.003)


REFUSED = [  # settings of the transformer, and of the index; what is said
    ({"_class_name": "WanVACETransformer3DModel"}, {}, "is VACE, which edits a video that it is shown"),
    ({"_class_name": "WanAnimateTransformer3DModel"}, {}, "is Wan-Animate, which follows the motion of another video"),
    ({"pos_embed_seq_len": 514, "in_channels": 36}, {}, "of the kind FLF2V, which goes from a first picture to a last"),
    ({"_class_name": "SkyReelsV2Transformer3DModel", "inject_sample_info": True}, {}, "with diffusion forcing"),
    (
        {"_class_name": "SkyReelsV2Transformer3DModel"},
        {"_class_name": "SkyReelsV2DiffusionForcingPipeline"},
        "is a SkyReels-V2 with diffusion forcing, where each frame has a noise level of its own",
    ),
    ({"_class_name": "SkyReelsV2Transformer3DModel", "in_channels": 36}, {}, "a SkyReels-V2 that starts from pictures"),
]


@pytest.mark.parametrize(("settings", "index", "said"), REFUSED)
@pytest.mark.parametrize("family", ["wan", "wan-i2v"])
def test_other_relatives_say_what_they_are(fast, tmp_path, family, settings, index, said):
    shutil.copytree(fast, tmp_path / "other")
    rewritten(tmp_path / "other" / "transformer" / "config.json", **settings)
    rewritten(tmp_path / "other" / "model_index.json", **index)
    with pytest.raises(UserError, match=rf"^checkpoint '.*other' .*{said}.*: that is not supported$"):
        load_model(family, str(tmp_path / "other"))
