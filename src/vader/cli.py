"""The `vader` command: thin. Each command parses its arguments, calls one room and prints what it returns.

Exit status: 0, 2 with one line on stderr for a user's mistake, 1 for a run that failed, 130 after Ctrl-C.
Torch and everything that needs it is imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from typer.main import get_command

from vader.errors import RunError, Stopped, UserError, nearest

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from vader.check import Check
    from vader.evaluation.scoring import FileScore, PartScore
    from vader.models.base import VideoModel, VideoSize
    from vader.recipe import ModelSection, RewardSection, SamplingSection, VideoSection

UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which recent versions of typer carry inside themselves
INTERRUPTED = 130

app = typer.Typer(add_completion=False, rich_markup_mode="rich", no_args_is_help=False)
check_app = typer.Typer(help="Prove that a reward or a model of your own keeps its contract, before hours are spent.")
tinyworld_app = typer.Typer(help="The tiny world: build its models anew, or look at it.")
app.add_typer(check_app, name="check")
app.add_typer(tinyworld_app, name="tinyworld")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line (the process's own by default) and returns its exit status."""
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")  # its warnings speak of its own insides
    try:
        status = get_command(app).main(arguments, prog_name="vader", standalone_mode=False)
    except UsageError as error:
        where = error.ctx.command_path if error.ctx else "vader"
        return _fail(f"{error.format_message()} See '{where} --help'.", 2)
    except UserError as error:
        return _fail(str(error), 2)
    except Stopped as error:
        return _fail(str(error), INTERRUPTED)
    except RunError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    return _fail("stopped by the keyboard", status) if status == INTERRUPTED else status or 0


def _fail(message: str, status: int) -> int:
    """Says in one line on stderr why the command ends, and returns its status."""
    if _is_main_process():
        print(f"vader: {' '.join(message.split())}", file=sys.stderr)
    return status


def _is_main_process() -> bool:
    """`accelerate launch` and `torchrun` number their processes in RANK; without them there is one."""
    return os.environ.get("RANK", "0") == "0"


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    """Aligns video diffusion models with the gradients of reward models (VADER, arXiv 2407.08737)."""
    if context.invoked_subcommand is None:
        print(context.get_help())


# ---------------------------------------------------------------- train

Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="The folder that holds the folders of runs.")]


@app.command(epilog="Example: vader train tiny optimizer.lr=1e-4 train.steps=80")
def train(
    recipe: Annotated[str, typer.Argument(help="A built-in recipe ('vader list recipes') or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Keys of the recipe, by dotted path.")
    ] = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
) -> None:
    """Align a model after a recipe. The same command again continues a run that was stopped."""
    from vader.recipe import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    from vader.trainer import train as run_training

    result = run_training(resolved, runs, dry_run=dry_run)
    if _is_main_process():
        print(*(result.lines() if result else ["dry run: everything is in place, nothing was trained"]), sep="\n")


# ---------------------------------------------------------------- sample


@app.command(
    epilog='Example: vader sample "a red circle moving left over sea" --adapter runs/tiny/adapter --out videos'
)
def sample(
    prompts: Annotated[list[str] | None, typer.Argument(help="Prompts, each in quotes.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="FILE", help="A .txt file with a prompt a line, or a prompt set.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--image", metavar="PATH", help="A picture to start from, or a folder of them; may be repeated."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", metavar="RECIPE", help="Where model and sizes come from; default: tiny.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="FAMILY:CHECKPOINT", help="Another model than the recipe's.")
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", metavar="PATH", help="A trained adapter: its folder or file.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the videos go.")] = Path("samples"),
    seed: Annotated[int, typer.Option("--seed", help="Of the noise: same seed, same videos.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", min=1.0, help="Guidance scale.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Frames a video.")] = None,
    height: Annotated[int | None, typer.Option("--height", min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Pixels.")] = None,
    fps: Annotated[int | None, typer.Option("--fps", min=1, help="Frames per second; some models are told.")] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Videos at once.")] = 4,
) -> None:
    """Generate videos with a base model, or with an adapter on it: an mp4 each and a contact sheet."""
    texts = _prompts_to_sample(prompts or [], file, images or [])
    size_asked = {"frames": frames, "height": height, "width": width}
    model_section, video, sampling = _sections_to_sample(recipe, model, size_asked)
    video, sampling = _with(video, fps=fps), _with(sampling, steps=steps, guidance=guidance)
    _make_folder(out)
    from vader.models.base import Guidance, VideoSize
    from vader.models.registry import model_class
    from vader.sampling import sample_videos

    model_class(model_section.family).check_prompts(texts)

    loaded = _load(model_section, sampling, adapter)
    size = VideoSize(video.frames, video.height, video.width, video.fps)
    scale = Guidance(sampling.guidance, sampling.guidance_batched)
    videos = sample_videos(loaded, texts, size, sampling.steps, scale, seed, batch)
    for path in _write_videos(videos, texts, size.fps, out):
        print(path)


def _prompts_to_sample(prompts: list[str], file: str | None, images: list[Path]) -> Sequence[str]:
    """Texts, or pictures, or as many of the one as of the other."""
    from vader.prompts import Prompt, load_prompts

    texts = [*prompts, *(load_prompts(file) if file else [])]
    pictures = [picture for path in images for picture in load_prompts(str(path))]
    if not texts and not pictures:
        raise UserError('nothing to sample: give prompts in quotes, as in vader sample "a dog runs", or --file FILE')
    if not texts or not pictures:
        return pictures or texts
    if len(texts) != len(pictures):
        raise UserError(f"{len(pictures)} images and {len(texts)} prompts: give as many of both, or images alone")
    return [Prompt(text, image=picture.image) for text, picture in zip(texts, pictures, strict=True)]


def _sections_to_sample(
    recipe: str | None, model: str | None, size: dict[str, int | None]
) -> tuple[ModelSection, VideoSection, SamplingSection]:
    """What a recipe says of model, size and sampling, with the command line's own model and size in their places."""
    from vader.recipe import SamplingSection, VideoSection, load_recipe

    own_model = _model_section(model) if model else None
    if recipe or not own_model:
        base = load_recipe(recipe or "tiny", [])
        return own_model or base.model, _with(base.video, **size), base.sampling
    if missing := [f"--{name}" for name, value in size.items() if value is None]:
        raise UserError(f"--model alone leaves the size open: give {', '.join(missing)}, or a --recipe that has it")
    return own_model, VideoSection.model_validate(size), SamplingSection()


def _model_section(spec: str) -> ModelSection:
    """`family:checkpoint`; a family of one's own has a colon itself: `module:Class:checkpoint`."""
    from vader.models.registry import model_names
    from vader.recipe import ModelSection

    parts = spec.split(":")
    cut = 1 if parts[0] in model_names() else 2
    family, checkpoint = ":".join(parts[:cut]), ":".join(parts[cut:])
    if not checkpoint:
        hint = nearest(parts[0], model_names())
        raise UserError(
            f"model {spec!r}: write family:checkpoint, as in modelscope:tiny, or module:Class:checkpoint; {hint}"
        )
    return ModelSection(family=family, checkpoint=checkpoint)


def _load(section: ModelSection, sampling: SamplingSection, adapter: Path | None) -> VideoModel:
    from vader.adapters import adapter_file, load_adapter
    from vader.models.registry import load_model

    if adapter is not None:
        adapter_file(adapter)  # before anything large is loaded
    model = load_model(
        section.family,
        section.checkpoint,
        precision=section.precision,
        device=_device(),
        solver=sampling.solver,
        eta=sampling.eta,
        spacing=sampling.spacing,
        options=section.options,
    )
    if adapter is not None:
        load_adapter(model.denoiser, adapter)
    return model


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _with(section: Any, **changes: Any) -> Any:
    """The section with every change that was asked for (is not None)."""
    return section.model_copy(update={key: value for key, value in changes.items() if value is not None})


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {str(path)!r}: {error.strerror}") from None


def _write_videos(videos: Tensor, prompts: Sequence[str], fps: int, out: Path) -> list[Path]:
    from vader.evaluation.video_io import contact_sheet, write_mp4

    paths = [
        write_mp4(out / f"{i:03d}-{_slug(prompt)}.mp4", video, fps)
        for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True))
    ]
    return [*paths, contact_sheet(videos, prompts, out / "contact-sheet.png")]


def _slug(text: str) -> str:
    return re.sub(r"\W+", "-", text.lower()).strip("-")[:60]


# ---------------------------------------------------------------- score


@app.command(
    epilog="Example: vader score videos/*.mp4 --reward aesthetic:checkpoint=tiny --reward hps:checkpoint=tiny,weight=5"
)
def score(
    paths: Annotated[list[Path], typer.Argument(help="Video files, folders of them, or folders of frames.")],
    rewards: Annotated[
        list[str],
        typer.Option("--reward", metavar="NAME[:KEY=VALUE,...]", help="A reward with its options; may be repeated."),
    ],
    prompt: Annotated[str | None, typer.Option("--prompt", help="What all the videos should show.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", metavar="FILE", help="A .txt file with a prompt a line, one for each video."),
    ] = None,
    max_frames: Annotated[
        int | None, typer.Option("--max-frames", min=1, help="Score at most so many frames a video, spread evenly.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Score videos by rewards. Files that cannot be read are reported and the others scored; exit status 1 then."""
    sections = [_reward_section(spec) for spec in rewards]
    from vader.evaluation.scoring import find_videos, score_files
    from vader.rewards.registry import build_mix

    videos = find_videos(paths)
    texts = _prompts_to_score(videos, prompt, prompts)
    mix = build_mix(sections).to(_device())
    with _progress(len(videos)) as advance:
        scores = score_files(videos, mix, texts, max_frames, lambda _: advance())
    print(_scores_as_json(scores)) if as_json else _print_scores(scores)
    if unreadable := [score.error for score in scores if score.error]:
        print(*unreadable, sep="\n", file=sys.stderr)
        raise RunError(f"{len(unreadable)} of {len(scores)} videos could not be scored")


def _prompts_to_score(paths: list[Path], prompt: str | None, file: str | None) -> Sequence[str]:
    from vader.prompts import load_prompts

    if prompt is not None and file is not None:
        raise UserError("--prompt is one prompt for all videos, --prompts one for each: give one of the two")
    return load_prompts(file) if file else [prompt or ""] * len(paths)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[], None]]:
    """On a terminal, a bar on stderr that `advance()` moves; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("videos", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=count)
        yield lambda: bar.advance(task)


def _reward_section(spec: str) -> RewardSection:
    """`name` or `name:key=value,key=value`; a name of one's own has a colon itself: `module:Class`."""
    from pydantic import ValidationError

    from vader.recipe import RewardSection, parse_value

    match = re.fullmatch(r"([^=]+?)(?::([^:=]+=.*))?", spec)
    pairs = [pair.partition("=") for pair in (match[2] or "").split(",") if pair] if match else []
    if not match or not all(equals for _, equals, _ in pairs):
        raise UserError(f"reward {spec!r}: write name or name:key=value,key=value, as in aesthetic:checkpoint=tiny")
    try:
        return RewardSection.model_validate({"name": match[1]} | {key: parse_value(value) for key, _, value in pairs})
    except ValidationError:
        raise UserError(f"reward {spec!r}: its weight must be a number") from None


def _scores_as_json(scores: list[FileScore]) -> str:
    from vader.evaluation.scoring import over_files

    files = [asdict(score) | {"path": str(score.path)} for score in scores]
    overall = over_files(scores)
    mean, std = ({name: getattr(part, kind) for name, part in overall.items()} for kind in ("mean", "std"))
    return json.dumps({"files": files, "mean": mean, "std": std}, indent=2)


def _print_scores(scores: list[FileScore]) -> None:
    """The table: mean ± spread over frames of each video, and over videos below; nothing where no video has a score."""
    from rich.table import Table

    from vader.evaluation.scoring import over_files

    if not (overall := over_files(scores)):
        return
    table = Table("video", "frames", *overall)
    for score in scores:
        if score.total is not None:
            parts = map(_mean_and_spread, score.parts.values())
            table.add_row(escape(str(score.path)), str(score.frames), *parts, f"{score.total:.4f}")
    table.add_section()
    table.add_row("mean", "", *map(_mean_and_spread, overall.values()))
    _print_wide(table)


def _mean_and_spread(part: PartScore) -> str:
    return f"{part.mean:.4f}" if part.std is None else f"{part.mean:.4f} ± {part.std:.4f}"


def _print_wide(table: Table) -> None:
    """On a terminal as it fits; into a file or pipe without breaking a path."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=1000)).print(table)


# ---------------------------------------------------------------- list


@app.command("list", epilog="Example: vader list recipes")
def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="models, rewards, prompts, recipes or algorithms.")],
) -> None:
    """List what is built in and can be named in a recipe."""
    if kind not in LISTINGS:
        raise UserError(f"cannot list {kind!r}: {nearest(kind, LISTINGS)}")
    names = LISTINGS[kind]()
    width = max(map(len, names))
    for name, about in names.items():
        print(f"{name:{width}}  {about}".rstrip())


def _models() -> dict[str, str]:
    from vader.models.registry import model_names

    return dict.fromkeys(model_names(), "")


def _rewards() -> dict[str, str]:
    from vader.rewards.registry import reward_names

    return reward_names()


def _prompt_sets() -> dict[str, str]:
    from vader.prompts import load_prompts, prompt_set_names

    sets = {name: load_prompts(name) for name in prompt_set_names()}
    labelled = {name: " with labels" if prompts[0].label else "" for name, prompts in sets.items()}
    return {name: f'{len(prompts)} prompts{labelled[name]}, as "{prompts[0]}"' for name, prompts in sets.items()}


def _recipes() -> dict[str, str]:
    from vader.recipe import BUILT_IN, recipe_names

    return {name: (BUILT_IN / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ") for name in recipe_names()}


def _algorithms() -> dict[str, str]:
    from vader.algorithms import algorithm_names

    return algorithm_names()


LISTINGS = {
    "models": _models,
    "rewards": _rewards,
    "prompts": _prompt_sets,
    "recipes": _recipes,
    "algorithms": _algorithms,
}


# ---------------------------------------------------------------- check


@check_app.command("reward", epilog="Example: vader check reward my_rewards:Redness:strength=3")
def check_reward(
    spec: Annotated[str, typer.Argument(metavar="NAME[:KEY=VALUE,...]", help="A name or module:Class, with options.")],
) -> None:
    """Check a reward: shapes, batch independence, a gradient that reaches pixels and agrees with finite differences."""
    section = _reward_section(spec)
    from vader import check
    from vader.rewards.registry import load_reward

    _print_checks(check.check_reward(load_reward(section.name, **section.options)))


@check_app.command("model", epilog="Example: vader check model my_models:Mine:path/to/checkpoint --size 16x256x256")
def check_model(
    spec: Annotated[
        str, typer.Argument(metavar="FAMILY:CHECKPOINT", help="A family or module:Class, and what it loads.")
    ],
    size: Annotated[
        str, typer.Option("--size", metavar="FRAMESxHEIGHTxWIDTH", help="The videos to check it on.")
    ] = "4x32x32",
) -> None:
    """Check a model: shapes, ranges, batch independence, frozen weights, a gradient that reaches the adapter."""
    video = _video_size(size)
    section = _model_section(spec)
    from vader import check
    from vader.recipe import SamplingSection

    _print_checks(check.check_model(_load(section, SamplingSection(), adapter=None), video))


def _video_size(text: str) -> VideoSize:
    from vader.models.base import VideoSize

    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){2}", text):
        raise UserError(f"size {text!r}: write FRAMESxHEIGHTxWIDTH, as in 16x256x256")
    return VideoSize(*map(int, text.split("x")))


def _print_checks(checks: list[Check]) -> None:
    """The table of checks; a check that failed is exit status 1."""
    from rich.table import Table

    table = Table("check", "", "what was found")
    for item in checks:
        table.add_row(item.name, "[green]pass[/]" if item.passed else "[red]FAIL[/]", escape(item.detail))
    _print_wide(table)
    if failed := [item.name for item in checks if not item.passed]:
        raise RunError(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")


# ---------------------------------------------------------------- report, export

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder, as in runs/tiny.")]


@app.command(epilog="Example: vader report runs/tiny")
def report(run: RunFolder) -> None:
    """Write a run's report.html anew: curves, videos before and after, settings; one self-contained page."""
    _require_run(run)
    from vader.evaluation.report import write_report

    print(write_report(run))


@app.command(epilog="Example: vader export runs/tiny --merged --out exports/tiny")
def export(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder that is new or empty.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="A whole diffusers pipeline, the adapter in its weights.")
    ] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, in diffusers' LoRA format.")] = False,
) -> None:
    """Export what a run has trained, for use without this package."""
    if merged == adapter:
        raise UserError("export what? give one of --merged and --adapter")
    _require_run(run)
    from vader.export import export_adapter, export_merged

    trained = run / "adapter"
    print(export_merged(_base_model(run), trained, out) if merged else export_adapter(trained, out))


def _require_run(run: Path) -> None:
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{str(run)!r} is no run's folder: there is no recipe.yaml in it")


def _base_model(run: Path) -> VideoModel:
    """The model that a run started from, on the CPU; in float32 unless its recipe wants otherwise."""
    from vader.models.registry import load_model
    from vader.recipe import load_recipe

    section = load_recipe(str(run / "recipe.yaml"), []).model
    precision = "fp32" if section.precision == "auto" else section.precision
    return load_model(section.family, section.checkpoint, precision=precision, options=section.options)


# ---------------------------------------------------------------- the tiny world


@tinyworld_app.command("build", epilog="Example: vader tinyworld build vae --out weights")
def build(
    name: Annotated[str, typer.Argument(help="Which of the tiny world's models.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where its weights go.")] = Path(
        "tinyworld-weights"
    ),
) -> None:
    """Train one of the tiny world's own models from nothing, with its fixed seed."""
    from vader.tinyworld import pretrain

    pretrain.build(name, out)


@tinyworld_app.command("show", epilog="Example: vader tinyworld show --out tinyworld.png")
def show(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The picture to write.")] = Path("tinyworld.png"),
) -> None:
    """Draw some scenes of the tiny world, dull and vivid ones, with their captions."""
    import torch

    from vader.evaluation.video_io import contact_sheet
    from vader.tinyworld.scenes import captions, render, sample_scenes

    scenes = sample_scenes(10, torch.Generator().manual_seed(3))
    print(contact_sheet(render(scenes), captions(scenes), out))
