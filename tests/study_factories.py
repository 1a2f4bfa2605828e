"""Preference studies for tests: folders of videos drawn by hand, studies of them, and raters who answer by rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vader.cli import main
from vader.files.video import write_mp4
from vader.preference.answers import Answer, Sheet
from vader.preference.study import Item, Study, questions_of, read_study

# Names and prompts that would do harm if a page took them for code.
SYSTEMS = ("zebra-model", "quokka-model")
PROMPTS = (
    "a red circle over sea", "<script>document.title = 'owned'</script>", '</script><img src=x onerror="alert(1)">',
    "“quoted” & 'single' ${left} $prompt", "a dog", "a cat",
)  # fmt: skip

Choose = Callable[[Study, Item, str], str | None]  # the winning video's id; None: a tie


def write_systems(
    folder: Path, names: Sequence[str] = SYSTEMS, prompts: Sequence[str] = PROMPTS, width: int = 32
) -> None:
    """A folder of videos a system, with their prompts beside them."""
    for shade, name in enumerate(names):
        for i in range(len(prompts)):
            frames = torch.full((4, 3, 32, width), (shade + 1) / (len(names) + 1))
            frames[:, i % 3, : 4 * (i + 1)] = torch.linspace(0, 1, 4).reshape(4, 1, 1)
            write_mp4(folder / name / f"clip-{i}.mp4", frames, fps=8)
        (folder / name / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")


def make_study(folder: Path, names: Sequence[str] = SYSTEMS, prompts: Sequence[str] = PROMPTS, width: int = 32) -> Path:
    """The study of such folders, made by the command."""
    write_systems(folder, names, prompts, width)
    assert main(["study", "new", *(str(folder / name) for name in names), "--out", str(folder / "study")]) == 0
    return folder / "study"


def answered(study: Study, rater: str, choose: Choose, name: str = "", items: Sequence[Item] | None = None) -> Sheet:
    """A rater's sheet; who is on the left changes from pair to pair."""
    answers = []
    for place, item in enumerate(study.items() if items is None else items):
        left = item.videos[place % 2]
        for question in questions_of(item):
            winner = choose(study, item, question)
            choice = "tie" if winner is None else "left" if winner == left else "right"
            answers.append(Answer(item=item.id, question=question, choice=choice, left=left, seconds=2.0))
    return Sheet(study=study.id, rater=rater, name=name, answers=tuple(answers))


def attentive(prefers: Choose) -> Choose:
    """Who sees what is destroyed, and else prefers as said."""
    return lambda study, item, question: item.right or prefers(study, item, question)


def by_system(name: str) -> Choose:
    """Who prefers whatever a system has made."""
    return lambda study, item, question: next(v for v in item.videos if study.videos[v].system == name)


__all__ = ["PROMPTS", "SYSTEMS", "answered", "attentive", "by_system", "make_study", "read_study", "write_systems"]
