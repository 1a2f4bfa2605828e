"""The page of a study in a real browser: by mouse, keys and fingers, offline, on a phone, with a reload amid it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chromium import Page, open_page
from study_factories import make_study
from vader.cli import main
from vader.preference.answers import parse_sheet
from vader.preference.study import Item, Study, read_study

SHOWN = "document.querySelector('#pair:not([hidden])') && document.querySelector('#place').textContent"
DONE = "!document.querySelector('#done').hidden"
PLAYING = "[...document.querySelectorAll('.two video')].every(v => v.readyState > 2 && !v.paused)"
# The ids of both videos that are shown, from the left: the page has them by where they are.
SIDES = (
    "[...document.querySelectorAll('.two video')].map(v => "
    "Object.entries(JSON.parse(document.getElementById('data').textContent).videos)"
    ".find(([id, source]) => source === v.getAttribute('src'))[0])"
)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with open_page(tmp_path / "browser") as opened:
        yield opened
        assert not opened.errors


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def begin(page: Page, folder: Path) -> Study:
    page.goto((folder / "study.html").as_uri())
    return read_study(folder)


def shown_pair(page: Page, study: Study) -> tuple[Item, str]:
    """The pair that is shown, and which of its videos is on the left."""
    sides = page.run(SIDES)
    item = next(item for item in study.items() if set(item.videos) == set(sides))
    assert page.run("document.querySelector('#prompt').textContent") == item.prompt
    return item, sides[0]


def questions_on(page: Page) -> list[str]:
    return page.run("[...document.querySelectorAll('.question')].map(q => q.dataset.question)")


def file_of(page: Page) -> dict:
    page.click("#download")
    return json.loads(page.downloaded().read_text())


def counted(folder: Path, *files: Path) -> dict:
    assert main(["study", "report", str(folder), *map(str, files)]) == 0
    return json.loads((folder / "report.json").read_text())


def test_a_whole_study_by_mouse_offline_with_a_reload(page: Page, made: Path) -> None:
    page.offline()
    study = begin(page, made)
    page.click("#name")
    page.type("Ann <b>")
    page.click("#start button")
    wanted, count = {}, len(list(study.items()))
    for place in range(count):
        assert page.wait(SHOWN) == f"{place + 1} of {count}"
        assert page.run("document.querySelector('#next').disabled")
        item, left = shown_pair(page, study)
        choices = ["left" if item.right in (left, None) else "right", "tie", "right"]
        for question, choice in zip(questions_on(page), choices, strict=True):
            page.click(f"[data-question={question}] [data-choice={choice}]")
        wanted[item.id] = (left, *choices)
        if place == 3:  # in the middle of a pair that is answered, before the next
            page.reload()
            assert page.wait(SHOWN) == f"{place + 1} of {count}"
            assert shown_pair(page, study) == (item, left)
            assert page.run("document.querySelectorAll('[aria-pressed=true]').length") == 3
        if place == 4:
            page.click("#back")
            assert page.wait(SHOWN) == f"{place} of {count}"
            assert not page.run("document.querySelector('#next').disabled")
            page.click("#next")
            assert page.wait(SHOWN) == f"{place + 1} of {count}"
        page.click("#next")
    page.wait(DONE)
    sheet = file_of(page)
    assert sheet["name"] == "Ann <b>"
    choices = {item: [a["choice"] for a in sheet["answers"] if a["item"] == item] for item in wanted}
    assert {a["item"]: (a["left"], *choices[a["item"]]) for a in sheet["answers"]} == wanted
    results = counted(made, page.downloaded())
    (rater,) = results["raters"]
    assert (rater["pairs"], rater["checks"], rater["right"], rater["fault"]) == (6, 3, 3, None)
    assert [one["ties"] for one in results["comparisons"]] == [0, 6, 0]
    assert all(request.startswith(("file:", "data:", "blob:")) for request in page.requests)


def test_a_whole_study_by_keys_with_corrections(page: Page, made: Path) -> None:
    study = begin(page, made)
    page.click("#start button")
    count = len(list(study.items()))
    for place in range(count):
        assert page.wait(SHOWN) == f"{place + 1} of {count}"
        page.press("Enter")  # nothing is answered: stays
        assert page.run(SHOWN) == f"{place + 1} of {count}"
        item, left = shown_pair(page, study)
        page.press("2")
        page.press("ArrowUp")  # the tie was a slip
        page.press("1" if item.right in (left, None) else "ArrowRight")
        page.press("ArrowDown")
        page.press("3")
        page.press("Enter")
    page.wait(DONE)
    sheet = file_of(page)
    assert len(sheet["answers"]) == 3 * count
    by_question = {
        name: {a["choice"] for a in sheet["answers"] if a["question"] == name} for name in ("alignment", "motion")
    }
    assert by_question == {"alignment": {"tie"}, "motion": {"right"}}
    (rater,) = counted(made, page.downloaded())["raters"]
    assert rater["fault"] is None


@pytest.mark.parametrize("width", [32, 64], ids=["square", "wide"])
def test_on_a_phone_all_of_a_pair_is_on_the_screen(page: Page, tmp_path: Path, width: int) -> None:
    """390 x 844: nothing sticks out, everything is large enough for a finger, and fingers answer."""
    made = make_study(tmp_path, width=width)
    page.phone()
    page.offline()
    study = begin(page, made)
    assert page.run("document.documentElement.scrollWidth") <= 390
    page.tap("#start button")
    page.wait(SHOWN)
    page.wait(PLAYING)
    assert page.run("document.documentElement.scrollWidth") <= 390
    assert page.run("document.querySelector('#next').getBoundingClientRect().bottom") <= 844
    buttons = "[...document.querySelectorAll('#pair button')].map(b => b.getBoundingClientRect())"
    assert page.run(f"Math.min(...{buttons}.flatMap(r => [r.width, r.height]))") >= 44
    assert page.run("document.querySelector('.two video').getBoundingClientRect().width") > (300 if width > 32 else 160)
    page.screenshot(tmp_path / "phone.png")
    for question in questions_on(page):
        page.tap(f"[data-question={question}] [data-choice=right]")
    page.tap("#next")
    assert page.wait(f"{SHOWN} === '2 of {len(list(study.items()))}'")


def test_both_videos_loop_in_step(page: Page, made: Path) -> None:
    begin(page, made)
    page.click("#start button")
    page.wait(PLAYING)
    page.run(
        "window.seen = [], window.starts = 0;"
        "document.querySelector('.two video').addEventListener('play', () => { window.starts += 1; });"
        "setInterval(() => { const [a, b] = document.querySelectorAll('.two video');"
        "if (!a.paused && !b.paused) seen.push(Math.abs(a.currentTime - b.currentTime)); }, 30)"
    )
    page.wait("window.starts >= 3")
    apart = sorted(page.run("seen"))
    assert len(apart) > 5
    assert apart[len(apart) // 2] < 0.125  # less than a frame


def test_two_raters_see_other_orders_and_sides(tmp_path: Path, made: Path) -> None:
    seen = []
    for name in ("one", "two"):
        with open_page(tmp_path / name) as page:
            study = begin(page, made)
            page.click("#start button")
            order = []
            for _ in study.items():
                page.wait(SHOWN)
                order.append(page.run(SIDES)[0])
                for _ in questions_on(page):
                    page.press("1")
                page.press("Enter")
            seen.append(order)
    assert seen[0] != seen[1]
    first = {min(item.videos) for item in study.items()}  # not all on one side, but once in 2 ** 17
    assert 0 < sum(left in first for order in seen for left in order) < 18


@pytest.mark.slow
def test_a_served_study_sends_answers_and_sends_again_what_was_not_taken(page: Page, made: Path) -> None:
    pytest.importorskip("fastapi")
    from test_preference_server import serving
    from vader.preference.store import stored_sheets

    study = read_study(made)
    count = len(list(study.items()))
    with serving(made) as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.click("#start button")
        for place in range(count):
            page.wait(f"({SHOWN}) === '{place + 1} of {count}'")
            page.wait(PLAYING)
            if place == 4:
                page.offline()
            for _ in questions_on(page):
                page.press("2")
            if place == 4:  # the page tries every three seconds
                page.wait("!document.querySelector('#trouble').hidden")
                page.offline(False)
            page.press("Enter")
        page.wait(DONE)
        page.wait("document.querySelector('#thanks').textContent.includes('have arrived')")
        page.errors.clear()  # the browser's own words on a network that was gone
    (sheet,) = stored_sheets(made, study)
    assert len(sheet.answers) == 3 * count
    assert all(answer.choice == "tie" for answer in sheet.answers)


def test_the_template_for_mechanical_turk_collects_answers(page: Page, made: Path, tmp_path: Path) -> None:
    """The platform's own script is not here: what it would send is what the hidden fields hold."""
    out = tmp_path / "mturk"
    arguments = ["--format", "mturk", "--url", (made / "videos").as_uri().replace("file://", "http://x.invalid")]
    assert main(["study", "export", str(made), *arguments, "--out", str(out)]) == 0
    study = read_study(made)
    (row, *_) = csv.DictReader((out / "blocks.csv").open(newline="", encoding="utf-8"))
    html = (out / "template.html").read_text().replace("${block}", row["block"])
    (out / "filled.html").write_text("<!doctype html><meta charset=utf-8>" + html, encoding="utf-8")
    page.goto((out / "filled.html").as_uri())
    names = page.run("[...new Set([...document.querySelectorAll('[type=radio]')].map(b => b.name))]")
    assert len(names) == 3 * len(study.blocks[0])
    submitted = "document.querySelector('crowd-form').dispatchEvent(new Event('submit', {cancelable: true}))"
    for name in names:
        assert not page.run(submitted)
        page.click(f"[name={name}][value=tie]")
    assert page.run(submitted)
    answers = json.loads(page.run("document.querySelector('[name=answers]').value"))
    sheet = parse_sheet(study, json.dumps({"study": row["study"], "rater": "A1", "answers": answers}), "it")
    assert {answer.choice for answer in sheet.answers} == {"tie"}
    assert page.run("document.title") == ""
    page.errors.clear()  # neither the platform's script nor the videos are on any network
