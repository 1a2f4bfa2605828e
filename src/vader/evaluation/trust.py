"""The panel of the report that answers whether the gain can be trusted: what the guards say, and the two videos that
show best what the worst of them means.

In goes a run, out comes HTML. All is read from the run's `guards.jsonl`: no guard is built for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from vader.evaluation.formats import counted, decimals, fixed
from vader.evaluation.guards.base import Finding
from vader.evaluation.guards.verdicts import Verdict, best_step, read_verdicts
from vader.evaluation.guards.words import sentence
from vader.evaluation.pieces import is_wide, note, pixel_class, section, video_tile
from vader.runs.reader import Run, Sample

TITLE = "Can this gain be trusted?"
ANSWERS = {"green": "Yes, as far as guards see", "yellow": "Perhaps not", "red": "No", "not learning": "There is none"}
SHOWN = 12  # evaluations, the latest


def trust(run: Run) -> str:
    """The panel; a word where nothing has been judged, and nothing at all where guards are off."""
    if run.recipe.guards.mode == "off":
        return ""
    verdicts = [verdict for verdict in _verdicts(run) if verdict.step > 0]
    if not verdicts:
        return section(TITLE, note("No evaluation after the base's has been judged yet."))
    last = verdicts[-1]
    shown = verdicts[-SHOWN:]
    card = f'<div class="card">{_answer(last, verdicts)}{_table(shown)}</div>'
    lead = (
        "Each guard measures the videos against the base's, of the same prompts and noise. One that objects twice in a "
        "row says that the reward is bought with something else."
    )
    return section(TITLE, f'<p class="soft">{lead}</p><div class="trusted">{card}{_pair(run, last)}</div>')


def _verdicts(run: Run) -> list[Verdict]:
    path = run.folder.guards
    return read_verdicts(path) if path.resolve().is_relative_to(run.path.resolve()) else []


def _answer(last: Verdict, verdicts: Sequence[Verdict]) -> str:
    said = sentence(last)
    best = best_step(verdicts)
    kept = (
        f"The best adapter to which no guard objected is of step {best}: it lies in <code>best/</code>." if best else ""
    )
    none = "No evaluation has been above the base's reward without an objection, so there is no <code>best/</code>."
    return (
        f'<p class="answer {_class(last.colour)}">{ANSWERS[last.colour]}</p>'
        f"<p>After {counted(last.step, 'step')}: {escape(said)}.</p>"
        f'<p class="soft">{kept if best else none}</p>'
    )


def _table(verdicts: Sequence[Verdict]) -> str:
    """A row a guard: what it says of the latest evaluation, and a dot an evaluation."""
    last = verdicts[-1]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="said">{escape(_said(finding))}</td>'
        f"<td>{''.join(_dot(verdict, name) for verdict in verdicts)}</td></tr>"
        for name, finding in last.findings.items()
    )
    steps = f"steps {verdicts[0].step} to {last.step}" if len(verdicts) > 1 else f"step {last.step}"
    head = f'<thead><tr><th>guard</th><th class="said">now, against the base</th><th>{steps}</th></tr></thead>'
    return f'<div class="scroll"><table>{head}<tbody>{rows}</tbody></table></div>' if rows else ""


def _said(finding: Finding) -> str:
    return f"{finding.wrong}: {finding.said}" if finding.objects else finding.said


def _dot(verdict: Verdict, name: str) -> str:
    finding = verdict.findings.get(name)
    if finding is None or (math.isnan(finding.mean) and not finding.objects):
        kind, words = "none", "cannot say"
    elif not finding.objects:
        kind, words = "green", "no objection"
    else:
        heavy = finding.at_once or name in verdict.again
        kind, words = ("red", "objects, and not for the first time") if heavy else ("yellow", "objects")
        words = "objects at once" if finding.at_once else words
    return f'<span class="light {kind}" title="step {verdict.step}: {words}"><i>{words}</i></span>'


def _class(colour: str) -> str:
    return colour.replace(" ", "-") if colour in ANSWERS else "none"


def _pair(run: Run, verdict: Verdict) -> str:
    """Of the videos that are kept, base and aligned, the pair that the worst guard minds most."""
    name = verdict.guard or _nearest_to_objecting(verdict)
    if name is None:
        return ""
    before, after = (_by_index(run.samples.get(step, [])) for step in (0, verdict.step))
    both = before.keys() & after.keys()
    minded = {index: value for index, value in verdict.findings[name].by_video.items() if index in both}
    if not minded:
        return ""
    index = min(minded, key=lambda one: (not math.isnan(minded[one]), minded[one]))
    pair = (before[index], after[index])
    places = decimals([sample.reward for sample in pair])
    tiles = "".join(
        video_tile(sample, label, fixed(sample.reward, places))
        for sample, label in zip(pair, ("base", "aligned"), strict=True)
    )
    kind = f"card pair {'wide' if is_wide(run.recipe) else ''} {pixel_class([run.recipe])}"
    what = "objects most" if verdict.guard else "comes nearest to objecting"
    return (
        f'<figure class="{kind}"><figcaption>Where <b>{escape(name)}</b> {what}, '
        f"of the videos kept, with their rewards: {escape(pair[0].prompt)}</figcaption>"
        f'<div class="videos">{tiles}</div></figure>'
    )


def _nearest_to_objecting(verdict: Verdict) -> str | None:
    known = {name: one.mean for name, one in verdict.findings.items() if one.by_video and math.isfinite(one.mean)}
    return min(known, key=lambda name: known[name]) if known else None


def _by_index(samples: Sequence[Sample]) -> dict[int, Sample]:
    """Samples by the number of their video, which their file is named after."""
    return {int(sample.file.stem): sample for sample in samples if sample.file.stem.isdecimal()}
