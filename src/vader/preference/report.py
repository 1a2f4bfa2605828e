"""The page that shows what a study has found, for whoever runs it: it names systems and raters.

In go results, out comes one self-contained page of HTML. Each section is a function from `Results` to HTML.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from vader.evaluation.formats import NONE, counted, duration
from vader.evaluation.pieces import note, section
from vader.evaluation.report import html_page
from vader.files.atomic import atomic_write
from vader.preference.results import PAPER, PAPER_ANSWERS, Comparison, Rater, Results
from vader.preference.statistics import Interval, wilson
from vader.preference.study import QUESTIONS
from vader.version import __version__

CITED = "Prabhudesai et al., Video Diffusion Alignment via Reward Gradients, arXiv 2407.08737, table 2"


def write_report(results: Results, path: Path) -> Path:
    with atomic_write(path) as temporary:
        temporary.write_text(report_page(results), encoding="utf-8")
    return path


def report_page(results: Results, live: bool = False) -> str:
    """The whole page; `live` is one that a server shows while answers come in."""
    parts = (_header, _shares, _strengths, _paper, _raters, _methods)
    foot = f"<footer>{'Live, as of now' if live else 'Written'} by vader {__version__}; study {results.study}.</footer>"
    return html_page("Preference study · VADER", "".join(part(results) for part in parts) + foot)


def _header(results: Results) -> str:
    valid = [rater for rater in results.raters if rater.fault is None]
    lead = (
        f"{counted(results.pairs, 'pair')} of {len(results.systems)} systems, side by side and blind, in random order. "
        f"{counted(len(valid), 'rater')} counted, {len(results.raters) - len(valid)} left out."
    )
    return (
        '<header><p class="eyebrow">VADER · preference study</p>'
        f"<h1>{escape(' against '.join(reversed(results.systems)))}</h1>"
        f'<p class="lead">{lead}</p>{"".join(map(note, _cautions(results)))}</header>'
    )


def _cautions(results: Results) -> Iterator[str]:
    if not results.comparisons:
        yield "No answer counts yet."
    elif any(math.isnan(one.bootstrap[0]) for one in results.comparisons):
        yield "There are too few prompts for an interval over prompts: what is seen may be these prompts' alone."


def _shares(results: Results) -> str:
    cards = "".join(_question(name, results) for name in QUESTIONS)
    return section("Win shares", cards) if cards else ""


def _question(name: str, results: Results) -> str:
    found = [one for one in results.comparisons if one.question == name]
    if not found:
        return ""
    heads = ("", "preferred", "over prompts, 95 %", "Wilson, 95 %", "wins", "ties", "losses", "p", "agreement")
    head = "".join(f"<th>{text}</th>" for text in heads)
    rows = "".join(map(_row, found))
    bars = "".join(map(_bar, found))
    return (
        f'<h3>{escape(QUESTIONS[name])}</h3><div class="card">{bars}<div class="scroll"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{rows}</tbody></table></div></div>"
    )


def _row(one: Comparison) -> str:
    cells = (
        f"<b>{_percent(one.share)}</b>", _between(one.bootstrap), _between(one.wilson), one.wins, one.ties, one.losses,
        _p_value(one.p), _alpha(one.alpha),
    )  # fmt: skip
    label = f"{escape(one.first)} over {escape(one.second)}"
    count = f"{counted(one.answers, 'answer')}, {counted(one.prompts, 'prompt')}, {counted(one.raters, 'rater')}"
    return f'<tr><td>{label}<br><span class="soft">{count}</span></td>{"".join(f"<td>{c}</td>" for c in cells)}</tr>'


def _bar(one: Comparison) -> str:
    """From 0 to 100 %: the share as a dot, the interval over prompts (else Wilson's) as a band, one half as a line."""
    low, high = one.wilson if math.isnan(one.bootstrap[0]) else one.bootstrap
    title = f"{one.first} is preferred to {one.second} by {_percent(one.share)}, {_between((low, high))}"
    return (
        f'<p>{escape(one.first)} <span class="soft">over {escape(one.second)}</span></p>'
        f'<svg role="img" aria-label="{escape(title)}" width="100%" height="34" style="display:block;overflow:visible">'
        '<line x1="0" x2="100%" y1="17" y2="17" stroke="var(--rule)" stroke-width="2"/>'
        '<line x1="50%" x2="50%" y1="4" y2="30" stroke="var(--soft)" stroke-dasharray="3 3"/>'
        f'<rect x="{low:.2%}" width="{high - low:.2%}" y="10" height="14" rx="7" fill="var(--accent)" opacity=".25"/>'
        f'<circle cx="{one.share:.2%}" cy="17" r="7" fill="var(--accent)"/></svg>'
    )


def _strengths(results: Results) -> str:
    if not results.strengths:
        return ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in results.systems)
    rows = "".join(_strength_row(name, results) for name in QUESTIONS)
    lead = "Bradley-Terry strengths, which sum to 1: one is preferred to another by s / (s + t)."
    table = f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return section("All systems at once", f'<p class="soft">{lead}</p><div class="card scroll">{table}</div>')


def _strength_row(question: str, results: Results) -> str:
    found = results.strengths[question]
    cells = [f"{found[name]:.3f}" if found else NONE for name in results.systems]
    return f'<tr><th scope="row">{escape(question)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _paper(results: Results) -> str:
    """The paper's own study, and beside it this one where it is of two systems, too."""
    found = {one.question: one for one in results.comparisons} if len(results.systems) == 2 else {}
    rows = "".join(_paper_row(name, share, found) for name, share in PAPER.items())
    lead = (
        f"The paper asked the same on Amazon Mechanical Turk, of VADER (HPS reward) against ModelScope, "
        f"{PAPER_ANSWERS} answers a question; Wilson intervals are ours. {CITED}."
    )
    heads = ("", "paper: VADER", "Wilson, 95 %", *(("here", "over prompts, 95 %") if found else ()))
    head = "".join(f"<th>{text}</th>" for text in heads)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return section("Beside the paper", f'<p class="soft">{lead}</p><div class="card scroll">{table}</div>')


def _paper_row(question: str, share: float, found: Mapping[str, Comparison]) -> str:
    cells = [_percent(share), _between(wilson(share, PAPER_ANSWERS))]
    if here := found.get(question):
        cells += [f"{escape(here.first)}: {_percent(here.share)}", _between(here.bootstrap)]
    return f'<tr><th scope="row">{escape(question)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _raters(results: Results) -> str:
    if not results.raters:
        return ""
    rows = "".join(map(_rater_row, results.raters))
    head = "<thead><tr><th>rater</th><th>pairs</th><th>checks right</th><th>time a pair</th><th></th></tr></thead>"
    return section("Raters", f'<div class="card scroll"><table>{head}<tbody>{rows}</tbody></table></div>')


def _rater_row(rater: Rater) -> str:
    fate = f"left out: {rater.fault}" if rater.fault else "counted"
    return (
        f"<tr><td>{escape(called(rater))}</td><td>{rater.pairs}</td><td>{rater.right} of {rater.checks}</td>"
        f"<td>{duration(rater.seconds) if rater.seconds else NONE}</td>"
        f"<td>{fate}</td></tr>"
    )


def called(rater: Rater) -> str:
    """A rater by name, and by the start of the number that tells namesakes apart."""
    return f"{rater.name} ({rater.id[:8]})" if rater.name else rater.id[:16]


def _methods(results: Results) -> str:
    text = (
        "A tie counts half for each. Over prompts: all answers to a prompt are drawn together (bootstrap, expanded "
        "percentiles), so that the interval is about other prompts too; Wilson's takes answers as independent and is "
        "too short where raters agree on a prompt. p: exact two-sided binomial test, ties left out, answers taken as "
        "independent, not corrected for the number of questions. Agreement: Krippendorff's alpha, nominal; 1 is all "
        "the same, 0 chance. Raters count who have met an attention check (a video against the same one destroyed) "
        "and got four of five right by quality."
    )
    return section("How it was counted", f'<p class="soft">{text}</p>')


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _between(interval: Interval) -> str:
    low, high = interval
    return NONE if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f} %"


def _p_value(p: float) -> str:
    return "&lt; 0.001" if p < 0.001 else f"{p:.3f}"


def _alpha(alpha: float) -> str:
    return NONE if math.isnan(alpha) else f"{alpha:.2f}".replace("-", "\N{MINUS SIGN}")
