"""Plans are right: what is counted without data is what tensors take, and no more is changed than it takes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from toy_runs import assert_close_metrics, metrics, toy_recipe
from vader.cli import main
from vader.engine.device import best_device
from vader.errors import UserError
from vader.networks.park import Park
from vader.planning import measured as measuring
from vader.planning.counter import Counter, Remembered, fused_attention
from vader.planning.measured import Measured, TrainingStep, measured
from vader.planning.search import BESIDE, plan
from vader.planning.step import META, Forecast, PhasesTold, forecast
from vader.planning.switches import SWITCHES, switched
from vader.planning.width import widened, widened_here
from vader.planning.words import measured_line, table
from vader.recipe import Recipe, changed, load_recipe
from vader.training.trainer import train

QUICKLY = ("sampling.steps=2", "algorithm.policy.k=1", "video.frames=2")
CPU = torch.device("cpu")
SMALL = (*QUICKLY, "train.batch=2", "train.micro_batch=1", "model.precision=fp32")
MEMORY = {
    "nothing": "[]",
    "blocks": "[{name: recompute}]",
    "layers": "[{name: recompute, of: layers}]",
    "nested": "[{name: recompute, of: nested}]",
    "offload": "[{name: recompute, of: nested}, {name: offload_activations}]",
    "park": "[{name: recompute, of: layers}, {name: park}]",
    "quantize": "[{name: quantize}, {name: park}]",
}
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


# ---- the counter ----


def test_bytes_count_while_their_storage_lives():
    counter = Counter(META)
    with counter:
        first = torch.empty(1000, device="meta")
        view = first[10:20].view(2, 5)
        assert counter.now == 4000
        second = first.double()
        assert (counter.now, counter.peak) == (12_000, 12_000)
        del first
        assert counter.now == 12_000  # the view holds the storage
        del view, second
        assert (counter.now, counter.peak) == (0, 12_000)


def test_what_backward_keeps_is_counted_and_what_waits_elsewhere_apart():
    counter = Counter(META)
    weight = torch.empty(100, 100, device="meta", requires_grad=True)
    counter.add(weight)
    with counter:
        x = torch.empty(50, 100, device="meta")
        assert counter.now == 40_000 + 20_000
        with counter.offload():
            y = (x @ weight).exp()
        assert counter.host == 20_000 + 20_000  # x for the weight's gradient, and what exp gave
        y.sum().backward()
        assert counter.host_peak == 40_000
        assert weight.grad is not None


def test_values_are_asked_without_data():
    with Counter(META):
        x = torch.empty(3, device="meta")
        assert (x.sum().item(), bool((x > 0).all())) == (1.0, True)
        assert x.cpu().tolist() == [1.0, 1.0, 1.0]


def test_operations_are_torch_s_own():
    counter, reference = Counter(META), FlopCounterMode(display=False)
    layer, x = nn.Conv2d(3, 8, 3, device="meta"), torch.empty(2, 3, 16, 16, device="meta")
    for mode in (counter, reference):
        with mode:
            layer(x).sum().backward()
    assert counter.operations == reference.get_total_flops() > 0


def test_attention_is_counted_as_gpus_do_it():
    """Its operations are two products of matrices, and none as large as all pairs is ever there."""
    shapes = [(2, 4, 128, 16), (2, 4, 256, 16), (2, 4, 256, 16)]
    counter, reference = Counter(META), FlopCounterMode(display=False)
    with reference:
        F.scaled_dot_product_attention(*(torch.empty(shape, device="meta") for shape in shapes))
    query, key, value = (torch.empty(shape, device="meta", requires_grad=True) for shape in shapes)
    with counter, fused_attention(counter):
        result = F.scaled_dot_product_attention(query, key, value)
        assert result.shape == shapes[0]
        assert counter.now == 4 * (result.numel() + 2 * 4 * 128)
        assert counter.operations == reference.get_total_flops()
        result.sum().backward()
    assert counter.operations == 3.5 * reference.get_total_flops()
    assert query.grad.shape == shapes[0]


def test_a_remembered_pass_reaches_as_high_and_works_as_much():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.passes = nn.Linear(64, 64, device="meta"), 0

        def forward(self, x):
            self.passes += 1
            return self.linear(self.linear(x).exp()).mean(dim=1)

    found = []
    for remembered in (False, True):
        counter, network = Counter(META), Network()
        for parameter in network.parameters():
            counter.add(parameter)
        if remembered:
            network.forward = Remembered(network, counter)
        with counter, torch.no_grad():
            kept = [network(torch.empty(32, 64, device="meta")) for _ in range(3)]
        found.append((counter.peak, counter.operations, counter.now, [one.shape for one in kept]))
        assert network.passes == (1 if remembered else 3)
    assert found[0] == found[1]


# ---- a step ----


QUICK = [
    ("tiny", "layers"),
    ("tiny", "quantize"),
    ("tiny-videocrafter", "offload"),
    ("tiny-svd", "nested"),
    ("tiny-opensora", "blocks"),
]
OTHERS = [pair for pair in product(dict.fromkeys(name for name, _ in QUICK), MEMORY) if pair not in QUICK]


@pytest.mark.parametrize(
    ("name", "memory"), [*QUICK, *(pytest.param(*pair, marks=pytest.mark.rare) for pair in OTHERS)]
)
def test_counted_without_data_is_counted_with_it(name, memory):
    batched, frames = memory in ("nothing", "layers"), 1 if name == "tiny-opensora" else 2
    recipe = load_recipe(
        name,
        [*SMALL, f"video.frames={frames}", f"memory={MEMORY[memory]}", f"sampling.guidance_batched={batched}".lower()],
    )
    without, real = forecast(recipe), forecast(recipe, CPU)
    assert without.weights == real.weights
    assert without.adapter == real.adapter
    assert without.peak == pytest.approx(real.peak, rel=0.01)
    assert without.host == pytest.approx(real.host, rel=0.01)
    assert without.peaks.keys() == real.peaks.keys()
    for phase, size in real.peaks.items():
        assert without.peaks[phase] == pytest.approx(size, rel=0.03), phase


def test_quantised_weights_are_planned_with_a_byte_each_and_compilation_as_nothing():
    memory = ("", "{name: quantize}", "{name: compile}")
    whole, codes, compiled = (forecast(load_recipe("tiny", [*SMALL, f"memory=[{one}]"])) for one in memory)
    assert compiled == whole
    assert codes.weights["vae"] == whole.weights["vae"]
    for name in ("unet", "text_encoder", "aesthetic", "hps"):  # of four bytes; scales and what is outside blocks beside
        assert 0.25 < codes.weights[name] / whole.weights[name] < 0.5, name
    assert codes.peak < whole.peak - 0.5 * (sum(whole.weights.values()) - sum(codes.weights.values()))


EXTRA = {"ddpo": ["sampling.eta=1.0"], "diffusion_dpo": [], "nft": ["algorithm.times=2"]}


def test_the_optimiser_s_moments_are_there_from_the_start():
    """While nothing has gradient, a higher rank takes its weights, two moments of each and some activations more."""
    low, high = (forecast(load_recipe("tiny", [*SMALL, "memory=[]", f"adapter.rank={rank}"])) for rank in (4, 64))
    more = high.adapter - low.adapter
    assert more <= high.peaks["sample"] - low.peaks["sample"] < 1.5 * more


def test_copies_of_the_adapter_are_counted():
    """Weights, two moments, and the old policy of NFT; the average that `adapter.ema` asks for is another."""
    nft = ["algorithm={name: nft, group: 2}", "memory=[]", "model.precision=fp32"]
    without, averaged = (forecast(toy_recipe(*nft, f"adapter.ema={decay}"), CPU) for decay in ("null", "0.9"))
    adapter = averaged.adapter - without.adapter
    assert without.adapter == 4 * adapter > 0
    assert averaged.peak == without.peak + adapter
    assert averaged.peaks["sample"] == without.peaks["sample"] + adapter


@pytest.mark.parametrize("algorithm", EXTRA)
def test_baselines_are_counted_too(algorithm):
    recipe = load_recipe(
        "tiny",
        [
            "train.batch=4",
            "train.micro_batch=2",
            "sampling.steps=2",
            "video.frames=2",
            f"algorithm={{name: {algorithm}}}",
            *EXTRA[algorithm],
        ],
    )
    assert forecast(recipe).peak == pytest.approx(forecast(recipe, CPU).peak, rel=0.02)


def test_the_batch_is_counted_whole_though_two_micro_batches_are_walked():
    found = [forecast(load_recipe("tiny", [*SMALL, f"train.batch={batch}"])) for batch in (2, 8)]
    assert found[1].operations == 4 * found[0].operations
    assert found[1].peak == found[0].peak


@pytest.mark.parametrize(("model", "recipe"), [
    ("videocrafter", "videocrafter-hps-aesthetic"),
    pytest.param("svd", "svd-aesthetic", marks=pytest.mark.rare),
])  # fmt: skip
def test_full_sizes_are_what_a_gpu_has_measured(model, recipe):
    result = json.loads((RESULTS / f"full_size_{model}.json").read_text())
    measured = next(one for one in result["cases"] if one["case"] == "as shipped")["peak_memory"]["total"]
    counted = forecast(load_recipe(recipe, ["train.batch=1"])).peak
    assert counted == pytest.approx(measured, rel=0.05)


# ---- a step that is run ----

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="a process's peak memory can be reset on Linux only")


@pytest.mark.parametrize(("name", "memory"), [("tiny", "blocks"), ("tiny", "park"), ("tiny-svd", "blocks")])
def test_the_step_that_is_measured_is_the_one_that_is_planned(name, memory):
    """Its tensors, counted while it runs, reach as high as the forecast says, in every phase: what is parked is away
    before the first."""
    recipe = load_recipe(name, [*SMALL, f"memory={MEMORY[memory]}"])
    step, counter = TrainingStep.drawn(recipe, CPU), Counter(CPU)
    step.engine.clock = PhasesTold(CPU, counter)
    places = {
        network: place for one in step.engine.memory if isinstance(one, Park) for network, place in one.places.items()
    }
    waiting = {network for network, place in places.items() if place.waiting}
    assert len(waiting) == len(places) == (3 if memory == "park" else 0)
    for network in {*step.engine.model.networks().values(), *step.engine.reward.rewards.values()} - waiting:
        for tensor in (*network.parameters(), *network.buffers()):
            counter.add(tensor)
    for moments in step.engine.optimizer.state.values():
        for tensor in moments.values():
            counter.add(tensor)
    with counter:
        step.run()
    planned = forecast(recipe, CPU)
    assert counter.peak == pytest.approx(planned.peak, rel=0.01)
    assert counter.peaks == pytest.approx(planned.peaks, rel=0.01)
    assert counter.operations == planned.operations


def test_releases_are_drawn_and_not_loaded():
    """Full size on the meta device: the same shapes, no hub."""
    step = TrainingStep.drawn(load_recipe("svd-aesthetic", ["train.batch=3", "train.micro_batch=1"]), META)
    assert sum(parameter.numel() for parameter in step.engine.parameters) == 6_639_616
    assert len(step.batch.prompts) == 2  # two micro-batches show all there is to see


@LINUX
def test_what_is_measured_has_the_forecast_s_phases():
    recipe = load_recipe("tiny", [*SMALL, "train.batch=6"])
    found, planned = measured(recipe, CPU), forecast(recipe)
    assert found.peaks.keys() == planned.peaks.keys()
    assert found.peak == max(found.peaks.values()) > planned.peak  # of the process: weights, libraries and all
    assert found.videos == 2
    assert found.seconds > 0


def test_seconds_are_of_the_whole_batch_and_directions_of_a_phase_are_one(monkeypatch):
    peaks = {"other": 1, "sample": 2, "gradient_forward": 3, "gradient_backward": 5, "total": 5}
    monkeypatch.setattr(TrainingStep, "peaks", lambda step: dict(peaks))
    monkeypatch.setattr(TrainingStep, "seconds", lambda step: {"optimise": 1.0, "total": 5.0})
    found = measured(load_recipe("tiny", [*SMALL, "train.batch=6"]), CPU)
    assert found == Measured(5, {"other": 1, "sample": 2, "gradient": 5}, 3 * 4.0 + 1.0, 2)


def test_a_step_that_does_not_fit_is_said_to(monkeypatch):
    def full(step):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TrainingStep, "peaks", full)
    with pytest.raises(UserError, match="the step does not fit this GPU"):
        measured(load_recipe("tiny", SMALL), CPU)


def test_measured_stands_beside_counted():
    counted = Forecast({"unet": 2**30}, 2**29, 3 * 2**30, {"sample": 2**30, "gradient": 3 * 2**30}, 0, 10**13)
    taken = Measured(4 * 2**30, {"sample": 2**31, "gradient": 4 * 2**30}, 2.0, 1)
    assert [list(column.cells) for column in table(counted, taken).columns[1:]] == [
        ["1.00", "0.50", "1.00", "3.00"],
        ["", "", "2.00", "4.00"],
    ]
    assert measured_line(counted, taken) == (
        "measured: peak 4.0 GiB where 3.0 were counted (-25%); 2.0 s a step, 5 TFLOP/s (1 video of it were run, twice)"
    )


# ---- the search ----


@pytest.mark.rare
def test_switches_lower_the_peak_one_after_the_other():
    recipe = load_recipe("tiny", ["train.micro_batch=4", "scoring.chunk=4", *QUICKLY])
    peaks = [forecast(switched(recipe, SWITCHES[:count])[0]).peak for count in range(len(SWITCHES) + 1)]
    assert all(later <= earlier for earlier, later in pairwise(peaks))
    assert peaks[-1] < 0.5 * peaks[0]


def made_up(recipe: Recipe) -> Forecast:
    """Each switch has its part of the peak: micro-batches 8 a video, chunks 1 an image, two branches 16 ..."""
    memory = {part.name: part.options.get("of", "blocks") for part in recipe.memory}
    graph = {None: 64, "blocks": 64, "layers": 32, "nested": 24}[memory.get("recompute")]
    graph -= 8 * ("offload_activations" in memory)
    peak = (
        8 * (recipe.train.micro_batch or recipe.train.batch)
        + recipe.scoring.images
        + 16 * recipe.sampling.guidance_batched
        + graph
    )
    peak += 4 * ("park" not in memory)
    return Forecast({}, 0, peak * 2**20, {}, 0, 103 if memory.get("recompute") == "nested" else 100)


LARGE = (
    "train.batch=8",
    "train.micro_batch=8",
    "scoring.chunk=4",
    "memory=[{name: recompute}]",
)  # 64 + 4 + 16 + 64 + 4
LEFT_OPEN = ("train.micro_batch=null", "scoring.chunk=null")
OF_LAYERS, OF_NESTED = {"name": "recompute", "of": "layers"}, {"name": "recompute", "of": "nested"}
PARK, OFFLOAD = {"name": "park"}, {"name": "offload_activations"}


@pytest.mark.parametrize(("room", "changes", "work"), [
    (152, {}, 1.0),
    (151, {"train.micro_batch": 4}, 1.0),
    (104, {"train.micro_batch": 2}, 1.0),
    (96, {"train.micro_batch": 1}, 1.0),
    (94, {"train.micro_batch": 1, "scoring.chunk": 1}, 1.0),
    (80, {"train.micro_batch": 2, "memory": [OF_LAYERS]}, 1.0),
    (60, {"train.micro_batch": 1, "memory": [OF_LAYERS, PARK]}, 1.0),
    (48, {"train.micro_batch": 1, "memory": [OF_NESTED, OFFLOAD]}, 1.03),
    (36, {"train.micro_batch": 1, "sampling.guidance_batched": False, "memory": [OF_NESTED, PARK]}, 1.03),
    (25, {"train.micro_batch": 1, "scoring.chunk": 1, "sampling.guidance_batched": False,
          "memory": [OF_NESTED, PARK, OFFLOAD]}, 1.03),
])  # fmt: skip
def test_a_plan_changes_no_more_than_it_takes(monkeypatch, room, changes, work):
    monkeypatch.setattr("vader.planning.search.forecast", made_up)
    recipe = load_recipe("tiny", LARGE)
    found = plan(recipe, BESIDE + room * 2**20)
    assert found.fits
    assert found.changes == changes
    assert found.after == made_up(found.recipe)
    assert found.before == made_up(recipe)
    assert found.work == pytest.approx(work)


def test_what_never_fits_is_said_with_the_least(monkeypatch):
    monkeypatch.setattr("vader.planning.search.forecast", made_up)
    least = plan(load_recipe("tiny", LARGE), BESIDE + 24 * 2**20)
    assert not least.fits
    assert least.after.peak == 25 * 2**20


def test_a_plan_tells_each_step_that_it_counts(monkeypatch, capsys):
    def in_gib(recipe: Recipe) -> Forecast:
        return replace(found := made_up(recipe), peak=found.peak * 2**10)

    monkeypatch.setattr("vader.planning.search.forecast", in_gib)
    monkeypatch.setattr("vader.training.progress.PATIENCE", 0.0)
    assert main(["plan", "tiny", *LARGE, "--vram", str(1 + 104)]) == 0
    assert capsys.readouterr().err.replace("counting the memory of a training step: ", "").splitlines() == [
        "as it is: peak 152.0 GiB",
        "train.micro_batch=1: peak 96.0 GiB",
        "train.micro_batch=2: peak 104.0 GiB",
        "train.micro_batch=4: peak 120.0 GiB",
    ]


# ---- what is left open ----

OPEN = tuple(setting for setting in LARGE if not setting.startswith(("train.micro", "scoring")))


@pytest.mark.parametrize(("room", "processes", "micro_batch", "chunk"), [
    (10_000, 1, 8, 64),  # all of it: 8 videos of 8 frames
    (148 + 8, 1, 8, 8),
    (148, 1, 4, 32),  # the whole batch takes 149 with one image at once
    (117, 1, 4, 1),
    (116, 1, 2, 16),
    (10_000, 4, 2, 16),  # a process's share
    (50, 1, 1, 1),  # does not fit
])  # fmt: skip
def test_what_is_left_open_is_the_most_that_fits(monkeypatch, room, processes, micro_batch, chunk):
    monkeypatch.setattr("vader.planning.width.forecast", made_up)
    found = widened(load_recipe("tiny", [*OPEN, *LEFT_OPEN]), BESIDE + room * 2**20, processes)
    assert (found.train.micro_batch, found.scoring.chunk) == (micro_batch, chunk)


@pytest.mark.parametrize(("asked", "at_once"), [("train.micro_batch=2", (2, 16)), ("scoring.chunk=4", (8, 4))])
def test_what_is_set_stays(monkeypatch, asked, at_once):
    monkeypatch.setattr("vader.planning.width.forecast", made_up)
    found = widened(load_recipe("tiny", [*OPEN, *LEFT_OPEN, asked]), 2**40)
    assert (found.train.micro_batch, found.scoring.chunk) == at_once


def test_what_was_chosen_is_said(monkeypatch):
    monkeypatch.setattr("vader.planning.width.forecast", made_up)
    recipe = load_recipe("tiny", [*OPEN, *LEFT_OPEN])
    assert widened_here(recipe, None, 1) == (recipe, [])
    assert widened_here(load_recipe("tiny", LARGE), 2**40, 1)[1] == []
    said = "train.micro_batch=4 scoring.chunk=1: the most that 1 GiB hold; set them to choose otherwise"
    assert widened_here(recipe, BESIDE + 117 * 2**20, 1)[1] == [said]
    said = "train.micro_batch=1 scoring.chunk=1: even so a step takes more than 1 GiB: "
    assert widened_here(recipe, BESIDE + 50 * 2**20, 1)[1] == [f"{said}'vader plan' tells what makes it fit"]

    def unknown(recipe: Recipe) -> Forecast:
        raise UserError("a network asks for values")

    monkeypatch.setattr("vader.planning.width.forecast", unknown)
    found, said = widened_here(recipe, 2**40, 1)
    assert (found.train.micro_batch, found.scoring.chunk) == (1, 1)
    assert said == [
        "train.micro_batch=1 scoring.chunk=1: what a step takes is not known before it (a network asks for values)"
    ]


def test_a_run_takes_as_many_at_once_as_its_card_holds_and_keeps_that_open(tmp_path, capsys, monkeypatch):
    few = (
        "model.precision=fp32",
        "train.steps=1",
        "train.batch=4",
        "evaluation.videos=2",
        "evaluation.every=9",
        "evaluation.shown=1",
    )
    recipe = toy_recipe(*few, *LEFT_OPEN)
    whole, split = (forecast(changed(recipe, {"train.micro_batch": n, "scoring.chunk": 1})).peak for n in (4, 2))
    monkeypatch.setattr("vader.training.trainer.card_bytes", lambda: BESIDE + (whole + split) // 2)
    train(recipe, tmp_path / "fitted")
    assert "train.micro_batch=2 scoring.chunk=" in capsys.readouterr().out
    kept = load_recipe(str(tmp_path / "fitted" / recipe.name / "recipe.yaml"), trust_code=True)
    assert (kept.train.micro_batch, kept.scoring.chunk) == (None, None)
    monkeypatch.undo()
    train(changed(recipe, {"train.micro_batch": 2}), tmp_path / "set")
    fitted, other = (metrics(tmp_path / name / recipe.name) for name in ("fitted", "set"))
    assert_close_metrics(fitted, other, relative=1e-5)


# ---- the command ----


def test_the_command_tells_and_writes(tmp_path, capsys, monkeypatch):
    file = tmp_path / "mine.yaml"
    before = forecast(load_recipe("tiny", QUICKLY))
    monkeypatch.setattr("vader.planning.search.forecast", lambda recipe: replace(before, peak=made_up(recipe).peak))
    assert main(["plan", "tiny", *LARGE, "--vram", "1.1", "--write", str(file)]) == 0
    out = capsys.readouterr().out
    assert "peak 0.1 GiB and about 1 beside tensors: does not fit 1.1 GiB; this does train.micro_batch=1" in out
    assert "then peak 0.1 GiB, operations +0%" in out
    assert "unet, weights" in out
    written = load_recipe(str(file))
    assert (written.name, written.train.micro_batch) == ("mine", 1)
    assert main(["plan", "tiny", "--write", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_what_does_not_fit_is_not_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vader.planning.search.forecast", made_up)
    file = tmp_path / "mine.yaml"
    assert main(["plan", "tiny", *LARGE, "--vram", "1.001", "--write", str(file)]) == 2
    out, err = capsys.readouterr()
    assert "and nothing here does: the least is" in out
    assert err == f"vader: nothing fits 1.001 GiB, so {file} was not written: ask for smaller videos\n"
    assert not file.exists()


@pytest.mark.parametrize(("asked", "said"), [
    (["sampling.prefix.guidance=[0.5, 0.1]"], "its start must not be above its end"),
    (["sampling.prefix.every=4", "algorithm.policy={name: full}"], "'full' has gradient from the first step on"),
    (["video.segments=3"], "take no pictures"),
])  # fmt: skip
def test_a_plan_is_refused_as_the_run_would_be(capsys, asked, said):
    assert main(["plan", "tiny", *asked]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("vram", ["inf", "0", "nan", "1e9"])
def test_a_card_has_so_many_gibibytes(capsys, vram):
    assert main(["plan", "tiny", "--vram", vram]) == 2
    assert "Invalid value for '--vram'" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_measured(capsys, monkeypatch):
    monkeypatch.setattr("vader.engine.device.card_bytes", lambda: None)
    assert main(["plan", "tiny", "--measure"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err == "vader: --measure runs the step on a GPU, and there is none here: leave it out to count instead\n"


def test_with_a_gpu_the_planned_recipe_is_measured(capsys, monkeypatch):
    """What is run is what the plan says at its end, on this machine's device."""
    asked = []
    before = forecast(load_recipe("tiny", QUICKLY))
    monkeypatch.setattr("vader.planning.search.forecast", lambda recipe: replace(before, peak=made_up(recipe).peak))
    monkeypatch.setattr("vader.engine.device.card_bytes", lambda: BESIDE + 96 * 2**20)
    monkeypatch.setattr(measuring, "measured", lambda *args: asked.append(args) or Measured(2**28, {}, 8.0, 2))
    assert main(["plan", "tiny", *LARGE, "--measure"]) == 0
    ((recipe, device),) = asked
    assert recipe.train.micro_batch == 1
    assert device == best_device()
    assert "measured: peak 0.2 GiB where 0.1 were counted (-62%); 8.0 s a step" in capsys.readouterr().out


def test_shares_of_several_cards_are_not_planned():
    with pytest.raises(UserError, match="leave out 'shard'"):
        forecast(load_recipe("tiny", ["memory=[{name: shard}]"]))
