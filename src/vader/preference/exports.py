"""A study for other people's platforms: Label Studio, and Amazon Mechanical Turk.

In goes a study's folder and the address at which its blind videos will be, out come that platform's files beside a copy
of the videos. No file names a system. What the platforms give back is read by `collected`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
import re
import shutil
from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from vader.errors import UserError, nearest
from vader.preference.page import in_script, shown_blocks
from vader.preference.study import QUESTIONS, VIDEOS, Item, Study

Files = dict[str, str]  # contents by name


def export_study(study: Study, folder: Path, out: Path, form: str, url: str) -> list[Path]:
    """Writes into an empty folder.

    Args:
        form: `labelstudio` or `mturk`.
        url: where the exported `videos` will be, as in https://example.org/videos.

    Raises:
        UserError: there is no such form, the address is none, or a file cannot be written.
    """
    check_export(form, url)
    shutil.copytree(folder / VIDEOS, out / VIDEOS, copy_function=shutil.copyfile)
    written = []
    for name, content in FORMS[form](study, url.rstrip("/")).items():
        written.append(out / name)
        written[-1].write_text(content, encoding="utf-8", newline="")
    return [*written, out / VIDEOS]


def check_export(form: str, url: str) -> None:
    """Raises `UserError` as `export_study`."""
    if form not in FORMS:
        raise UserError(f"no format {form!r}: {nearest(form, FORMS)}")
    if not re.fullmatch(r"https?://[^\s\"'<>${}]+", url):
        raise UserError(f"--url {url!r} is no address: give where the videos will be, as in https://example.org/videos")


# ---- Label Studio ----


def _label_studio(study: Study, url: str) -> Files:
    tasks = [_task(study, item, url) for item in study.items()]
    return {"config.xml": _config(), "tasks.json": json.dumps(tasks, indent=1) + "\n"}


def _task(study: Study, item: Item, url: str) -> dict[str, dict[str, Any]]:
    """One pair. Its sides are drawn here: all who annotate a task see it in the same order."""
    left, right = random.SystemRandom().sample(item.videos, 2)
    shown = {"prompt": item.prompt, "left": f"{url}/{left}.mp4", "right": f"{url}/{right}.mp4"}
    return {"data": {"study": study.id, "item": item.id, "left_id": left, **shown}}


def _config() -> str:
    """The labelling interface (labelstud.io/tags): two videos, and a choice a question."""
    choices = "".join(
        f'  <Header value="{escape(text)}"/>\n'
        f'  <Choices name="{name}" toName="left" choice="single-radio" required="true" showInline="true">\n'
        '    <Choice value="left"/><Choice value="tie"/><Choice value="right"/>\n'
        "  </Choices>\n"
        for name, text in QUESTIONS.items()
    )
    return (
        '<View>\n  <Text name="prompt" value="$prompt"/>\n  <View style="display: flex">\n'
        '    <View style="width: 50%"><Header value="left"/><Video name="left" value="$left" muted="true"/></View>\n'
        '    <View style="width: 50%"><Header value="right"/><Video name="right" value="$right" muted="true"/></View>\n'
        f"  </View>\n{choices}</View>\n"
    )


# ---- Amazon Mechanical Turk ----


def _mturk(study: Study, url: str) -> Files:
    """A template with `${block}`, a column of the table: the platform makes a task of each line.

    A task is a block, so that every worker meets an attention check. It is in base64, which no platform changes.
    """
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["study", "block"])
    for block in shown_blocks(study):
        writer.writerow([study.id, base64.b64encode(json.dumps(block).encode()).decode()])
    frame = (files("vader.preference") / "page" / "mturk.html").read_text(encoding="utf-8")
    page = frame.replace("$url", url).replace("$questions", in_script(QUESTIONS))
    return {"template.html": page, "blocks.csv": table.getvalue()}


FORMS: dict[str, Callable[[Study, str], Files]] = {"labelstudio": _label_studio, "mturk": _mturk}
