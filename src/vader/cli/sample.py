"""`vader sample`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import AdapterOption, TrustCode, load_with_adapter, model_section, recipe_of, with_changes
from vader.cli.progress import progress
from vader.cli.root import app
from vader.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from vader.nouns import Prompt, VideoSize
    from vader.recipe import Recipe


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
        str | None,
        typer.Option("--recipe", metavar="RECIPE", help="Of model and sizes; default: the adapter's run's, or tiny."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="FAMILY:CHECKPOINT", help="Another model than the recipe's.")
    ] = None,
    adapter: AdapterOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="A folder that is new or empty; default: samples, samples-2 ..."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the noise: same seed, same videos.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", min=1.0, help="Guidance scale.")] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", metavar="TEXT", help="What guidance leads away from.")
    ] = None,
    frames: Annotated[int | None, typer.Option("--frames", min=1, help="Frames a video.")] = None,
    height: Annotated[int | None, typer.Option("--height", min=1, help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option("--width", min=1, help="Pixels.")] = None,
    fps: Annotated[int | None, typer.Option("--fps", min=1, help="Frames per second; some models are told.")] = None,
    segments: Annotated[
        int | None,
        typer.Option("--segments", min=1, help="Go on so often from the last frame, with models that take pictures."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Videos at once.")] = 4,
    trust_code: TrustCode = False,
) -> None:
    """Generate videos with a base model, or with an adapter on it: an mp4 each, a contact sheet and their prompts."""
    from vader.files.paths import check_out

    if out is not None:
        check_out(out)
    texts = _prompts_to_sample(prompts or [], file, images or [])
    size_asked = {"frames": frames, "height": height, "width": width}
    resolved = with_changes(
        _recipe_to_sample(recipe or recipe_of(adapter), model, size_asked, trust_code), video__fps=fps,
        video__segments=segments, sampling__steps=steps, sampling__guidance=guidance, sampling__negative=negative,
        train__seed=seed,
    )  # fmt: skip
    sampling = resolved.sampling
    from vader.engine.build import build_solver, check_segments, load_recipe_guidance, video_size
    from vader.files.lock import new_folder
    from vader.models.registry import model_class
    from vader.prompts import check_texts, with_negative
    from vader.sampling.guidance import check_negatives
    from vader.sampling.videos import sample_videos

    texts, strategy = with_negative(texts, sampling.negative), load_recipe_guidance(resolved)
    check_texts(texts, "the command line")
    model_class(resolved.model.family).check_prompts(texts)
    check_negatives(strategy, texts)
    check_segments(resolved, chains=True)
    folder = out or _next_free(Path("samples"))
    with new_folder(folder) as temporary:
        loaded = load_with_adapter(resolved.model, adapter)
        solver = build_solver(resolved, loaded)
        with progress("sampled", len(texts)) as advance:
            videos = sample_videos(
                loaded, texts, video_size(resolved), sampling.steps, strategy, solver, seed, batch, advance=advance
            )
        written = _write_videos(videos, texts, resolved.video.size, temporary)
    print(*(folder / path.name for path in written), sep="\n")


def _next_free(path: Path) -> Path:
    """The path, or the first of its name with a number that is not there."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(one for one in chain([path], numbered) if not one.exists())


def _prompts_to_sample(prompts: list[str], file: str | None, images: list[Path]) -> list[Prompt]:
    """Texts, or pictures, or as many of the one as of the other."""
    from vader.nouns import as_prompts
    from vader.prompts import load_prompts
    from vader.prompts.files import read_pictures

    texts = as_prompts([*prompts, *(load_prompts(file) if file else [])])
    pictures = [picture for path in images for picture in read_pictures(path)]
    if not texts and not pictures:
        raise UserError(
            'nothing to sample: give prompts in quotes, as in vader sample "a dog runs", --file FILE or --image PICTURE'
        )
    if not texts or not pictures:
        return pictures or texts
    if len(texts) != len(pictures):
        raise UserError(f"{len(pictures)} images and {len(texts)} prompts: give as many of both, or images alone")
    return [replace(text, image=picture.image) for text, picture in zip(texts, pictures, strict=True)]


def _recipe_to_sample(recipe: str | None, model: str | None, size: dict[str, int | None], trust_code: bool) -> Recipe:
    """A recipe's model, size and sampling, with the command line's own model and size in their places."""
    from vader.recipe import SamplingSection, load_recipe

    base = load_recipe(recipe or "tiny", trust_code=trust_code)
    own_model = model_section(model) if model else base.model
    if model and not recipe:
        if missing := [f"--{name}" for name, value in size.items() if value is None]:
            raise UserError(f"--model alone leaves the size open: give {', '.join(missing)}, or a --recipe that has it")
        base = base.model_copy(update={"sampling": SamplingSection()})
    sized = with_changes(base, **{f"video__{name}": value for name, value in size.items()})
    return sized.model_copy(update={"model": own_model})


def _write_videos(videos: Tensor, prompts: Sequence[Prompt], size: VideoSize, out: Path) -> list[Path]:
    """An mp4 each, a sheet and the list of prompts; a picture's name heads its video, and is no prompt in the list."""
    from vader.files.atomic import atomic_write
    from vader.files.video import contact_sheet, write_mp4

    paths = [
        write_mp4(out / f"{i:03d}-{_slug(prompt.text)}.mp4", video, size.fps, seams=size.seams)
        for i, (video, prompt) in enumerate(zip(videos, prompts, strict=True))
    ]
    seams = {"seams": size.seams} if size.seams else {}
    listed = [
        {"file": path.name, "prompt": prompt.caption, **seams} for path, prompt in zip(paths, prompts, strict=True)
    ]
    with atomic_write(out / "prompts.json") as temporary:
        temporary.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
    sheet = contact_sheet(videos, list(map(str, prompts)), out / "contact-sheet.png", size.seams)
    return [*paths, sheet, out / "prompts.json"]


def _slug(text: str) -> str:
    """A prompt as a part of a file's name, in at most 60 bytes."""
    return re.sub(r"\W+", "-", text.lower()).strip("-").encode()[:60].decode(errors="ignore")
