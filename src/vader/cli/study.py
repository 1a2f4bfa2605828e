"""`vader study`: which of two videos do people prefer?"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vader.cli.parts import TrustCode, print_figures
from vader.cli.progress import progress
from vader.cli.root import app
from vader.errors import UserError

if TYPE_CHECKING:
    from vader.preference.results import Comparison, Results

study_app = typer.Typer(help="A blind preference study: make it, serve it, export it, and count what people answered.")
app.add_typer(study_app, name="study")

StudyArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The study's folder.")]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder that is new or empty.")]


@study_app.command("new", epilog="Example: vader study new base runs/tiny --prompts tiny-test --seeds 2 --out study")
def new(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="SYSTEM...", help="Runs (also runs/x@10), base, or folders of mp4s with the same names."
        ),
    ],
    out: OutOption,
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="SET", help="Of runs; default: what the first one holds out.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, max=1000, help="Videos of each prompt, of runs. Default: 1.")
    ] = None,
    videos: Annotated[int, typer.Option("--videos", min=1, help="How many prompts or files, from the first.")] = 16,
    trust_code: TrustCode = False,
) -> None:
    """Make a study: pairs of the same prompt and noise, blind, on one page that works offline."""
    from vader.files.lock import new_folder
    from vader.files.paths import check_out
    from vader.preference.build import build_study
    from vader.preference.study import KEY, PAGE
    from vader.preference.systems import find_scenes, find_systems, left_out

    check_out(out)
    found = find_systems(systems, trust_code)
    scenes = find_scenes(found, prompts, seeds, videos)
    with new_folder(out) as temporary, progress("made", len(found) * len(scenes)) as advance:
        build_study(found, scenes, temporary, advance)
    if stems := left_out(found, scenes):
        shown = stems if len(stems) < 6 else [*stems[:5], f"... ({len(stems)} in all)"]
        print(f"vader: not in the study: {', '.join(shown)}", file=sys.stderr)
    print(out / PAGE, f"{out / KEY} (keep it to yourself: it says who made which video)", sep="\n")


@study_app.command("serve", epilog="Example: vader study serve study --port 8000")
def serve(
    folder: StudyArgument,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; 0.0.0.0 is everywhere, and wants --token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Where to listen.")] = 8000,
    token: Annotated[
        str | None, typer.Option("--token", help="Opens the overview; raters' links have a key made from it.")
    ] = None,
) -> None:
    """Serve a study to many raters at once; answers are on the disk when the page says that they have arrived."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise UserError("a study is served by FastAPI, which is not installed: pip install fastapi uvicorn")
    from vader.preference import server

    server.check_exposure(host, token)
    application = server.build_app(folder, token)
    here = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"for raters:  {here}/{f'?key={server.rater_key(token)}' if token else ''}")
    print(f"for you:     {here}/overview{f'?token={token}' if token else ''}", flush=True)
    server.serve(application, host, port)


@study_app.command(
    "export", epilog="Example: vader study export study --format mturk --url https://example.org/videos --out mturk"
)
def export(
    folder: StudyArgument,
    form: Annotated[str, typer.Option("--format", help="labelstudio or mturk.")],
    url: Annotated[str, typer.Option("--url", help="Where you will put the exported videos.")],
    out: OutOption,
) -> None:
    """Export a study for Label Studio or Amazon Mechanical Turk, with blind videos and without the key."""
    from vader.files.lock import new_folder
    from vader.files.paths import check_out
    from vader.preference.exports import check_export, export_study
    from vader.preference.study import read_study

    check_export(form, url)
    check_out(out)
    study = read_study(folder)
    with new_folder(out) as temporary:
        written = export_study(study, folder, temporary, form, url)
    print(*(out / path.name for path in written), sep="\n")


@study_app.command("report", epilog="Example: vader study report study answers/*.json")
def report(
    folder: StudyArgument,
    answers: Annotated[
        list[Path] | None, typer.Argument(metavar="ANSWERS...", help="Files that raters or platforms gave, if any.")
    ] = None,
) -> None:
    """Count the answers of files and of the server: report.html and report.json in the study's folder."""
    from vader.preference.collected import read_sheets
    from vader.preference.report import called, write_report
    from vader.preference.results import results_of, write_results
    from vader.preference.store import stored_sheets
    from vader.preference.study import read_study

    study = read_study(folder)
    results = results_of(study, [*stored_sheets(folder, study), *read_sheets(study, answers or [])])
    if not results.raters:
        raise UserError("there are no answers: give the files that raters sent, or serve the study")
    written = [write_report(results, folder / "report.html"), write_results(results, folder / "report.json")]
    _print_results(results)
    for rater in results.raters:
        if rater.fault:
            print(f"vader: left out: {called(rater)} {rater.fault}", file=sys.stderr)
    print(*written, sep="\n")


def _print_results(results: Results) -> None:
    if results.comparisons:
        head = ["preferred", "share, %", "over prompts, 95 %", "Wilson, 95 %", "answers", "p", "alpha"]
        print_figures(head, [_cells(one) for one in results.comparisons])


def _cells(one: Comparison) -> list[str]:
    from vader.evaluation.formats import fixed

    def between(interval: tuple[float, float]) -> str:
        return " to ".join(fixed(100 * end, 1) for end in interval)

    return [
        f"{one.question}: {one.first} over {one.second}", fixed(100 * one.share, 1), between(one.bootstrap),
        between(one.wilson), str(one.answers), fixed(one.p, 4), fixed(one.alpha, 2),
    ]  # fmt: skip
