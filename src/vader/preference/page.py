"""The page on which people answer: one file that works from a disk, or what the server shows.

In goes a study, out comes HTML that names no system and does not tell checks from pairs. What it shows of prompts is
text in JSON, out of which nothing can break, and the page puts it in place as text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vader.evaluation.report import page_style
from vader.files.atomic import atomic_write
from vader.files.foreign import reading
from vader.preference.study import PAGE, QUESTIONS, VIDEOS, Study, questions_of


def write_page(study: Study, folder: Path) -> Path:
    """Writes `study.html` beside the videos, which are embedded.

    Raises:
        UserError: a video is missing, or the page cannot be written.
    """
    with atomic_write(folder / PAGE) as temporary:
        temporary.write_text(study_page(study, _embedded(study, folder)), encoding="utf-8")
    return folder / PAGE


def _embedded(study: Study, folder: Path) -> dict[str, str]:
    """Every video as a data URI, by id."""
    found = {}
    for video in sorted(study.videos):
        with reading(f"video {video} of the study cannot be read"):
            data = (folder / VIDEOS / f"{video}.mp4").read_bytes()
        found[video] = f"data:video/mp4;base64,{base64.b64encode(data).decode()}"
    return found


def study_page(study: Study, sources: Mapping[str, str], send: str = "", nonce: str = "") -> str:
    """The page as HTML.

    Args:
        sources: where each video is, by id.
        send: where answers are sent as they are given; empty: they are downloaded at the end.
        nonce: of a server's content security policy; empty: the page has a policy of its own.
    """
    shown = {"study": study.id, "questions": QUESTIONS, "blocks": shown_blocks(study), "videos": sources, "send": send}
    style, script, frame = (
        (files("vader.preference") / "page" / f"study.{kind}").read_text(encoding="utf-8")
        for kind in ("css", "js", "html")
    )
    policy = "" if nonce else POLICY
    return Template(frame).substitute(
        policy=policy, nonce=nonce, style=page_style() + style, script=script, data=in_script(shown)
    )


POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; media-src data:; img-src data:; '
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)


def shown_blocks(study: Study) -> list[list[dict[str, Any]]]:
    """What raters are shown, in the order of ids: their own order is drawn by the page."""
    return [
        [
            {"id": item.id, "prompt": item.prompt, "videos": sorted(item.videos), "asked": questions_of(item)}
            for item in sorted(block, key=lambda item: item.id)
        ]
        for block in study.blocks
    ]


def in_script(value: Any) -> str:
    """JSON that may stand inside `<script>`: no letter in it ends the element or opens another."""
    return json.dumps(value).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
