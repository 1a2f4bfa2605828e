"""The training run: a recipe in, a run folder out. Read `train` and `_loop`; they are the whole story.

Every process holds the frozen networks and its share of each global batch; adapter gradients are averaged
explicitly, and the main process alone writes. A run is continued from its newest checkpoint, and then gives
the numbers of an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from vader import randomness
from vader.algorithms import resolved
from vader.algorithms.base import Algorithm, Metrics
from vader.engine.batch import Batch
from vader.engine.build import build_engine, processes_started, video_size
from vader.engine.device import card_bytes, frozen_dtype, peak_memory_bytes
from vader.engine.engine import Engine
from vader.errors import Distrusted, RunError, Stopped, UserError
from vader.evaluation.formats import counted, in_console, with_error
from vader.evaluation.guards.base import Guards
from vader.evaluation.guards.registry import suited_guards, tried
from vader.evaluation.guards.verdicts import read_verdicts
from vader.evaluation.guards.words import closing, sentence, stopped_by, weak_points
from vader.evaluation.held_out import HeldOut, evaluate, write_samples, write_scores
from vader.evaluation.metrics.base import HeldOutMetrics
from vader.evaluation.metrics.registry import build_metrics
from vader.evaluation.metrics.trial import try_metrics
from vader.evaluation.report import write_report
from vader.files.atomic import WriteError, atomic_folder, remove
from vader.models.registry import model_class
from vader.networks.adapter import adapters_state, load_adapters_state
from vader.networks.adapter_files import AdapterFile, key_prefix, load_adapters, read_adapters, save_adapters
from vader.nouns import Prompt
from vader.planning.width import widened_here
from vader.recipe import Recipe, dump_recipe, library_versions
from vader.runs.adapters import find_adapter
from vader.runs.checkpoints import Checkpoints, Progress, check_space
from vader.runs.folder import RunFolder
from vader.runs.log import Line, MetricsLog
from vader.runs.reader import read_run
from vader.scoring.trial import try_rewards
from vader.training.before import (
    Checked,
    another_recipe,
    check_folder,
    check_recipe,
    distrusted,
    has_trained,
    is_done,
    occupied,
    same_recipe,
)
from vader.training.failures import (
    CHECK_REWARD,
    failures_told,
    memory_told,
    never_trained,
    skipped_too_often,
    trained_nothing,
)
from vader.training.progress import Display
from vader.training.summary import summary
from vader.training.trackers import show_videos
from vader.training.watch import State, Watch, skipped_by_step


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, and the held-out reward before and after with standard errors."""

    folder: Path
    before: tuple[float, float]
    after: tuple[float, float]
    finished_before: bool = False  # by an earlier command; this one has trained nothing

    def lines(self) -> list[str]:
        """The closing lines, after one that says so where there was nothing left to do."""
        folder = RunFolder(self.folder)
        samples = list(folder.sampled.values())
        already = f"{self.folder} is finished already, nothing was trained: for a new run choose another name=..."
        return [
            *([already] if self.finished_before else []),
            f"held-out reward before: {in_console(with_error(*self.before, 3))}",
            f"held-out reward after:  {in_console(with_error(*self.after, 3))}",
            f"videos:  {samples[0]} (before), {samples[-1]} (after)",
            f"adapter: {', '.join(map(str, folder.adapter_files))}",
            *closing(read_verdicts(folder.guards), self.folder),
            f"report:  {folder.report}",
        ]


@dataclass
class Run:
    """What the loop needs beside the engine: the recipe's prompts, where things go, and how far we are."""

    recipe: Recipe
    folder: RunFolder
    engine: Engine
    algorithm: Algorithm
    metrics: HeldOutMetrics
    watch: Watch
    train_prompts: Sequence[Prompt]
    test_prompts: Sequence[Prompt]
    checkpoints: Checkpoints
    log: MetricsLog
    progress: Progress

    @property
    def accelerator(self) -> Accelerator:
        return self.engine.accelerator


def train(
    recipe: Recipe, runs: Path | str = "runs", dry_run: bool = False, *, folder: Path | str | None = None
) -> TrainResult | None:
    """Aligns a model after a recipe, or continues the run of that recipe.

    Args:
        recipe: see `vader.recipe.load_recipe`.
        runs: the folder of runs; this one's is `runs/<recipe.name>`.
        dry_run: check and load everything, train nothing, write nothing but encoded prompts into the cache; returns
            None.
        folder: this run's own, where it is another one: of a run that was moved or renamed.

    Returns:
        The finished run; of a run that was finished before, what it left.

    Raises:
        UserError: something in the recipe, its files or the run's folder is not right; nothing was started.
        RunError: the run could not go on; its last checkpoint stays. `Stopped` if it was asked to stop, `Distrusted`
            if a guard has stopped it.
    """
    recipe, place = resolved(recipe), RunFolder(Path(runs) / recipe.name if folder is None else Path(folder))
    if not dry_run and is_done(recipe, place):
        with place.held():  # and so rid of what a killed end has left
            return replace(read_result(place), finished_before=True)
    checked = check_recipe(recipe)
    check_folder(place)
    if dry_run:
        run = _built(checked, place)
        _prepare(run)
        _announce(run, occupied(recipe, place))
        return None
    if said := occupied(recipe, place):
        raise UserError(said)
    if said := distrusted(recipe, place):
        raise Distrusted(said)
    with place.held():
        _run(_built(checked, place))
    return read_result(place)


def _built(checked: Checked, folder: RunFolder) -> Run:
    with memory_told(checked.recipe):
        return build_run(checked, folder)


def _run(run: Run) -> None:
    _open_folder(run)
    restored = _restore(run)
    _announce(run)
    _prepare(run)
    recipe = run.recipe
    with (
        _stop_requests() as stop,
        failures_told(recipe, run.checkpoints),
        Display(recipe, run.progress.step, run.accelerator.is_main_process) as display,
    ):
        run.engine.tell = display.inside
        display.left_out(run.checkpoints.left_out)
        _loop(run, display, stop, restored)
    with failures_told(recipe, run.checkpoints):
        _finish(run)


def _prepare(run: Run) -> None:
    """Tells the model its prompts: a large text encoder is loaded here, and so may fail here."""
    with run.accelerator.local_main_process_first():  # so that a cache is filled once
        run.engine.model.prepare([*run.train_prompts, *run.test_prompts])


def _announce(run: Run, word: str | None = None) -> None:
    """Says what the run is and what it runs on, and a word more."""
    if run.accelerator.is_main_process:
        print(*summary(run.engine), *run.algorithm.words(run.engine), *([word] if word else []), sep="\n")


def _loop(run: Run, display: Display, stop: list[int], restored: bool) -> None:
    """Evaluates the base model, then steps, evaluates and saves until the recipe's steps are done."""
    settings, progress = run.recipe.train, run.progress
    if not _evaluated(run):
        _evaluate(run, display)
    if not restored:
        _save(run)
    while progress.step < settings.steps:
        if _distrusted(run):
            raise Distrusted(stopped_by(run.watch.verdicts[-1], run.watch.verdicts, run.folder.path, settings.steps))
        metrics = _step(run, display)
        done = progress.step == settings.steps
        stopping = _any_process(run, bool(stop))
        failing = progress.skipped_in_row >= settings.max_skipped
        if _due(run, progress.step):
            _evaluate(run, display)
        if done or stopping or failing or _distrusted(run) or progress.step % settings.checkpoint_every == 0:
            _save(run)
        if failing or (stopping and not done):
            _write_report(run)
        if failing:
            raise RunError(skipped_too_often(progress, metrics, run.algorithm))
        if stopping and not done:
            raise Stopped(f"stopped at step {progress.step} of {settings.steps} and saved: the same command goes on")
    if progress.skipped == progress.step:
        raise RunError(never_trained(progress))


def _distrusted(run: Run) -> bool:
    """Whether guards are to stop the run, and do."""
    return run.recipe.guards.mode == "stop" and _any_process(run, run.watch.alarmed)


def _step(run: Run, display: Display) -> Metrics:
    """One optimiser step, and its line in the metrics file."""
    began, computed = time.perf_counter(), _compute_clock(run)
    run.engine.clock.reset()
    metrics = run.algorithm.step(run.engine, next_batch(run, run.progress.step + 1))
    run.progress.advance(metrics.queries, metrics.skipped)
    _log_step(run, display, metrics, time.perf_counter() - began, _compute_clock(run) - computed)
    if run.progress.skipped_in_row == 1:
        display.notice(trained_nothing(run.progress, metrics, run.algorithm))
    return metrics


def _compute_clock(run: Run) -> float:
    """Seconds that others on the machine do not stretch: of the processor, over all threads; on a GPU, of the wall."""
    return time.process_time() if run.accelerator.device.type == "cpu" else time.perf_counter()


def next_batch(run: Run, step: int) -> Batch:
    """This process's share of the global batch of a step. Prompts come in random order, each once an epoch.

    An algorithm that compares videos of one prompt gets `videos_per_prompt` of them, one after the other.
    """
    total, prompts = run.recipe.train.batch, run.train_prompts
    share = total // run.accelerator.num_processes
    indices = range(run.accelerator.process_index * share, (run.accelerator.process_index + 1) * share)
    places = [((step - 1) * total + index) // run.algorithm.videos_per_prompt for index in indices]
    chosen = [prompts[_shuffled(len(prompts), run.recipe.train.seed, place)] for place in places]
    return Batch(step, tuple(chosen), tuple(indices), total)


def _shuffled(count: int, seed: int, place: int) -> int:
    """The item at a place of an endless sequence of random permutations of `count` items."""
    epoch, offset = divmod(place, count)
    return int(_permutation(count, seed, epoch)[offset])


@lru_cache(maxsize=2)  # a batch that ends an epoch begins the next
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=randomness.generator(seed, "order", epoch))


# ---- building ----


def build_run(checked: Checked, folder: RunFolder) -> Run:
    """Builds all that a run needs; writes nothing.

    Raises:
        UserError: a part of the recipe cannot be had here, or does not fit the others.
    """
    recipe, algorithm = checked.recipe, checked.algorithm
    train_prompts, test_prompts = checked.train_prompts, checked.test_prompts
    metrics = build_metrics(recipe.evaluation.metrics, recipe.scoring.images)
    metrics, words = metrics.suited(test_prompts, video_size(recipe))
    guards, guard_words = suited_guards(recipe.guards, recipe.scoring.images, test_prompts, video_size(recipe))
    model_class(recipe.model.family).check_sound(metrics.audio or guards.audio)
    trained, chosen = widened_here(recipe, card_bytes(), processes_started())
    engine = build_engine(trained, folder.path)
    engine.reward.check_prompts([*train_prompts, *test_prompts])
    engine.model.noise_shape(engine.size.segment)  # a size that the model cannot make ends the run here
    algorithm.check(engine)
    try_rewards(engine.scorer, train_prompts, algorithm.differentiates)
    place = _place(engine)
    with metrics.at_work(*place), guards.at_work(*place):
        try_metrics(metrics, engine.scorer, test_prompts, min(_held_out_counts(recipe).values()))
        guards = tried(guards, engine.scorer, test_prompts)
    engine.memory.try_out(engine.model.device)
    if engine.accelerator.is_main_process:
        words += guard_words + chosen + held_out_words(recipe, len(test_prompts))
        words += weak_points(recipe)
        print(*words, sep="\n", end="\n" * bool(words))
    check_space(folder.path, _bytes_of_checkpoints(recipe, engine, algorithm))
    checkpoints = Checkpoints(folder.checkpoints, recipe.train.keep_checkpoints, recipe.train.checkpoint_every)
    if recipe.adapter.init is not None and not has_trained(folder):
        warm_start(engine, recipe.adapter.init)
    log, watch = MetricsLog(folder.metrics), _watch(recipe, folder, engine, guards)
    return Run(
        recipe, folder, engine, algorithm, metrics, watch, train_prompts, test_prompts, checkpoints, log, Progress()
    )


def _place(engine: Engine) -> tuple[torch.device, torch.dtype]:
    """Where networks that only measure work, and in what precision."""
    device = engine.model.device
    return device, frozen_dtype(engine.recipe.model.precision, device)


def _watch(recipe: Recipe, folder: RunFolder, engine: Engine, guards: Guards) -> Watch:
    """Who judges each evaluation; nobody where guards are off, nor beside the main process."""

    def save(state: State, place: Path) -> None:
        denoisers = engine.model.denoisers
        now = {name: {key: one.clone() for key, one in of.items()} for name, of in adapters_state(denoisers).items()}
        load_adapters_state(denoisers, state)
        save_adapters(denoisers, place, _metadata(recipe))
        load_adapters_state(denoisers, now)

    return Watch(guards, folder, save, recipe.guards.mode != "off" and engine.accelerator.is_main_process)


def warm_start(engine: Engine, init: str) -> None:
    """Sets the run's adapters to those of a file, folder, run or checkpoint (`find_adapter`).

    Raises:
        UserError: there is none, or it is not for just the denoisers that this run trains, with their layers and rank.
    """
    path = find_adapter(init)
    files, denoisers = read_adapters(path), engine.model.denoisers
    held = {name for file in files for name in file.components}
    if _unsaid(files, engine.adapted):
        denoisers = {key_prefix(engine.adapted[0]): denoisers[engine.adapted[0]]}
    elif held != set(engine.adapted):
        raise UserError(
            f"adapter.init {init!r} is for {', '.join(sorted(held))}, and this run trains "
            f"{', '.join(engine.adapted)}: set adapter.denoisers to fit, or start from another"
        )
    try:
        load_adapters(denoisers, path, engine.model.family)
    except UserError as error:
        raise UserError(f"adapter.init {init!r}: {error}") from error
    if engine.average is not None:
        engine.average.restart()


def _unsaid(files: Sequence[AdapterFile], adapted: Sequence[str]) -> bool:
    """Whether a file does not say which of several experts it is for, and this run trains but one: then for that."""
    return len(files) == len(adapted) == 1 and not files[0].ours and files[0].components == [key_prefix(adapted[0])]


def held_out_words(recipe: Recipe, prompts: int) -> list[str]:
    """A word where not every evaluation has as many videos, and where more is asked for than there is: videos shown
    than sampled, videos than prompts."""
    shown, counts, words = recipe.evaluation.shown, _held_out_counts(recipe), []
    if ends := counts.get("evaluation.final_videos"):
        between = f"the evaluations between on {counts.get('evaluation.videos')} (evaluation.videos)"
        rest = between if len(counts) > 1 else "and no step between"
        videos = counted(ends, "held-out video")
        words.append(f"step 0 and the end are evaluated on {videos} (evaluation.final_videos), {rest}")
    (fewest, few), (most, many) = (one(counts.items(), key=itemgetter(1)) for one in (min, max))
    if shown > few:
        words.append(f"evaluation.shown is {shown} and {fewest} {few}: all of these are shown")
    if many > prompts:
        words.append(f"{most} is {many}, of {counted(prompts, 'prompt')}: some are sampled more than once")
    return words


def _held_out_counts(recipe: Recipe) -> dict[str, int]:
    """How many videos there are in an evaluation, by the key that says so; only keys that count in this run."""
    settings, ends = recipe.evaluation, recipe.evaluation.videos_at_the_ends
    counts = {"evaluation.final_videos": ends} if ends != settings.videos else {}
    only_ends = counts and settings.every >= recipe.train.steps
    return counts if only_ends else counts | {"evaluation.videos": settings.videos}


def _bytes_of_checkpoints(recipe: Recipe, engine: Engine, algorithm: Algorithm) -> int:
    """Adapter and its file, AdamW's two moments, an average, the algorithm's state, the best adapter that guards have
    let pass: in each checkpoint kept and the next one."""
    adapter = sum(p.numel() * p.element_size() for p in engine.parameters)
    copies = 4 if engine.average is None else 5
    best = 0 if recipe.guards.mode == "off" else adapter
    return (copies * adapter + best + algorithm.state_bytes(engine)) * (recipe.train.keep_checkpoints + 1) + best


# ---- the run's folder ----


def _open_folder(run: Run) -> None:
    """Makes the folder's recipe, and starts the trackers; other processes wait until it is there."""
    if run.accelerator.is_main_process:
        _write_recipe(run)
    run.accelerator.wait_for_everyone()
    if run.recipe.train.trackers:
        run.accelerator.init_trackers("vader", init_kwargs={"wandb": {"name": run.recipe.name}})


def _write_recipe(run: Run) -> None:
    """Clears away a run that this one replaces, and the adapter of one that goes on beyond its end."""
    folder = run.folder
    if folder.recipe.is_file():
        if same_recipe(folder, run.recipe):
            return
        if (difference := another_recipe(folder, run.recipe)) is not None:
            run.checkpoints.left_out.append(f"a run of another recipe that had not trained a step ({difference})")
            folder.forget()
        remove(folder.adapter)
    try:
        dump_recipe(run.recipe, folder.recipe, library_versions())
    except WriteError as error:
        raise folder.unwritable() from error


def _restore(run: Run) -> bool:
    """Continues from the newest checkpoint that the log has all lines of; without one, from the start: False."""
    lines = run.log.read()
    saved = run.checkpoints.load_latest(_covered(run, lines))
    if saved is not None:
        run.progress, state = saved
        load_adapters_state(run.engine.model.denoisers, state["adapter"])
        run.engine.optimizer.load_state_dict(state["optimizer"])
        run.engine.scaler.load_state_dict(state["scaler"])
        run.algorithm.load_state_dict(state["algorithm"])
        if run.engine.average is not None:
            run.engine.average.load_state(state["average"])
    run.accelerator.wait_for_everyone()
    if run.accelerator.is_main_process:
        _forget_beyond(run, -1 if saved is None else run.progress.step)
        kept = None if saved is None else state.get("best")
        lines = run.log.read()
        skipped = skipped_by_step(lines)
        with run.engine.averaged():
            now = adapters_state(run.engine.model.denoisers)
        run.watch.restore(run.progress.step, _evaluations(lines), skipped, kept, now)
    run.accelerator.wait_for_everyone()
    return saved is not None


def _covered(run: Run, lines: Sequence[Line | None]) -> Callable[[int], bool]:
    """Whether all lines up to a step stand before the first damaged one; they do where none is."""
    if None not in lines:
        return lambda step: True
    before = [line for line in lines[: lines.index(None)] if line is not None]
    steps = {kind: {line["step"] for line in before if line.get("kind") == kind} for kind in ("train", "evaluation")}
    return lambda step: (step == 0 or step in steps["train"]) and (not _due(run, step) or step in steps["evaluation"])


def _forget_beyond(run: Run, step: int) -> None:
    """Drops what was logged after a step, and an evaluation at it that the recipe has otherwise: as a shorter one
    ended."""
    run.log.keep(lambda line: line["step"] <= step and (line["step"] < step or _as_planned(run, line)))
    run.checkpoints.forget(after=step)  # first: none may stay whose lines are gone
    run.checkpoints.prune(step)
    run.folder.forget_evaluations(after=step if _logged(run) else step - 1)


def _as_planned(run: Run, line: Line) -> bool:
    if line.get("kind") != "evaluation":
        return True
    step = line["step"]
    return _due(run, step) and line.get("videos") == _videos(run, step)


def _evaluated(run: Run) -> bool:
    """Whether the evaluation at this step is done, if it is due."""
    return not _due(run, run.progress.step) or _logged(run)


def _evaluations(lines: Sequence[Line | None]) -> list[int]:
    """The steps of the evaluations in a log."""
    return [line["step"] for line in lines if line is not None and line.get("kind") == "evaluation"]


def _logged(run: Run) -> bool:
    """Whether the log has an evaluation at this step."""
    return run.progress.step in _evaluations(run.log.read())


def _save(run: Run) -> None:
    if run.accelerator.is_main_process:
        engine = run.engine
        state = {
            "adapter": adapters_state(engine.model.denoisers),
            "optimizer": engine.optimizer.state_dict(),
            "scaler": engine.scaler.state_dict(),
            "algorithm": run.algorithm.state_dict(),
            **({} if engine.average is None else {"average": engine.average.state()}),
            "best": run.watch.to_keep(run.progress.step),
        }
        run.log.sync()
        run.checkpoints.save(run.progress, state, beside=lambda folder: _save_adapters(run, folder))
    run.accelerator.wait_for_everyone()


def _save_adapters(run: Run, folder: Path) -> None:
    with run.engine.averaged():
        save_adapters(run.engine.model.denoisers, folder, _metadata(run.recipe))


def _metadata(recipe: Recipe) -> dict[str, str]:
    """What an adapter's file says of where it is from."""
    metadata = {"family": recipe.model.family, "checkpoint": recipe.model.checkpoint, "recipe": recipe.name}
    return metadata | ({"init": recipe.adapter.init} if recipe.adapter.init else {})


def _write_report(run: Run) -> None:
    if run.accelerator.is_main_process:
        write_report(run.folder.path)


def _finish(run: Run) -> None:
    """Writes the report's page and then the adapter, which says that the run is finished."""
    _write_report(run)
    if run.accelerator.is_main_process:
        with atomic_folder(run.folder.adapter) as temporary:
            _save_adapters(run, temporary)
    run.accelerator.wait_for_everyone()
    run.accelerator.end_training()


def read_result(folder: RunFolder) -> TrainResult:
    evaluations = read_run(folder.path).evaluations
    first, last = evaluations[0], evaluations[-1]
    return TrainResult(folder.path, (first.reward, first.stderr), (last.reward, last.stderr))


# ---- evaluation and logging ----


def _due(run: Run, step: int) -> bool:
    """Whether held-out prompts are evaluated at a step: every so often, and at the end."""
    return step % run.recipe.evaluation.every == 0 or step == run.recipe.train.steps


def _videos(run: Run, step: int) -> int:
    """How many videos are evaluated at a step."""
    settings = run.recipe.evaluation
    at_the_ends = step in (0, run.recipe.train.steps)
    return settings.videos_at_the_ends if at_the_ends else settings.videos


def _evaluate(run: Run, display: Display) -> None:
    """Held-out prompts under fixed noise: figures and the scores of each video into files, some videos beside them."""
    settings, step = run.recipe.evaluation, run.progress.step
    count = _videos(run, step)
    display.stage(f"scoring {counted(count, 'held-out video')}")
    began = time.perf_counter()
    place = _place(run.engine)
    with run.engine.averaged(), run.metrics.at_work(*place), run.watch.guards.at_work(*place):
        found = evaluate(
            run.engine, run.test_prompts, count, seed=run.recipe.train.seed, metrics=run.metrics, shown=settings.shown,
            batch=settings.batch, guards=run.watch.guards,
            on_scored=lambda done: display.inside(f"scored {done} of {count} held-out videos"),
        )  # fmt: skip
    if step == 0 and not any(math.isfinite(video.reward) for video in found.videos):
        raise UserError(
            f"the reward is no number on any of {counted(count, 'video')} of the base model: {CHECK_REWARD}"
        )
    line: dict[str, Any] = {"kind": "evaluation", "step": step, "queries": run.progress.queries, **found.summary()}
    line["seconds"] = time.perf_counter() - began
    if run.accelerator.is_main_process:
        write_samples(run.folder.samples(step), found.videos[: settings.shown], run.engine.size)
        write_scores(run.folder.evaluation(step), found.videos)
        _judge(run, found, display)
        run.log.append(line)
        if run.recipe.train.trackers:
            show_videos(
                run.accelerator, found.videos[: settings.shown], run.folder.samples(step), run.recipe.video.fps, step
            )
    _write_report(run)
    display.evaluation(line)
    _track(run, "held_out", {"reward": line["reward"], **line["parts"]})
    _track(run, "figures", line.get("figures", {}))


def _judge(run: Run, found: HeldOut, display: Display) -> None:
    """What the guards say of an evaluation; a word where they object."""
    records = [video.record() for video in found.videos]
    with run.engine.averaged():
        state = adapters_state(run.engine.model.denoisers)
    verdict = run.watch.hear(run.progress.step, records, run.progress.skipped, state)
    if verdict is not None and verdict.colour != "green":
        display.notice(f"guards at step {verdict.step}: {sentence(verdict)}")


def _log_step(run: Run, display: Display, metrics: Metrics, seconds: float, compute_seconds: float) -> None:
    line = {
        "kind": "train",
        "step": run.progress.step,
        "reward": metrics.reward,
        "parts": metrics.parts,
        "queries": run.progress.queries,
        "grad_norm": metrics.grad_norm,
        "clamped": metrics.clamped,
        **metrics.extra,
        "seconds": run.engine.clock.seconds,
        "total_seconds": seconds,
        "compute_seconds": compute_seconds,
        "peak_memory": peak_memory_bytes(run.accelerator.device),
        "skipped": run.progress.skipped,
    }
    if run.accelerator.is_main_process:
        run.log.append(line)
    display.train(line)
    numbers = {
        name: line[name] for name in ("reward", "queries", "grad_norm", "clamped", "total_seconds", "peak_memory")
    }
    _track(run, "train", numbers | metrics.parts | metrics.extra)


def _track(run: Run, group: str, values: dict[str, Any]) -> None:
    if run.recipe.train.trackers and values:
        run.accelerator.log({f"{group}/{name}": value for name, value in values.items()}, step=run.progress.step)


# ---- stopping ----


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Within, Ctrl-C and SIGTERM are noted in a list, to stop after the step; a second one stops at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _any_process(run: Run, flag: bool) -> bool:
    """Whether the flag is set in any process, so that all stop at the same step."""
    return any(gather_object([flag])) if run.accelerator.num_processes > 1 else flag
