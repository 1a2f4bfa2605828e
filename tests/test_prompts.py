"""Prompt sets: the built-in ones, files, users' own; and the tiny world's train/test split."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from vader.errors import UserError
from vader.nouns import Prompt
from vader.prompts import load_prompts, prompt_set_names, with_negative
from vader.tinyworld import split
from vader.tinyworld.scenes import ALL_ATTRIBUTES, parse_caption


def error_of(spec: str) -> str:
    with pytest.raises(UserError) as caught:
        load_prompts(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


def texts_of(spec: str) -> list[str]:
    return [prompt.text for prompt in load_prompts(spec)]


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_prompts.py").write_text(
        "from vader import Prompt, prompt_set\n"
        "SOME = ['a', 'b']\n"
        "def _set(prompts):\n    return prompt_set(lambda: prompts)\n"
        "made = _set([f'{n} dogs' for n in (2, 3)])\n"
        "labelled = _set((Prompt('a', label='b'), 'c'))\n"
        "empty, numbers, text = _set([]), _set([1, 2]), _set('a')\n"
        "long, half = _set(['a', 'b' * 10_001]), _set(['\\ud800'])\n"
        "@prompt_set\ndef broken():\n    return 1 / 0\n"
        "def unmarked():\n    raise SystemExit('called')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_prompts", raising=False)


SIZES = {  # train, test
    "actions": (56, 24),
    "activities": (90, 45),
    "book-and-cup": (30, 15),
    "clothes": (60, 28),
    "instruments": (66, 36),
    "kinetics": (60, 24),
    "scenes": (40, 20),
    "tiny": (400, 200),
    "tiny-removal": (80, 40),
    "tiny-action": (100, 50),
    "tiny-pictures": (400, 200),
}


def test_built_in_sets_are_distinct_prompts():
    assert set(prompt_set_names()) == {f"{name}-{half}" for name in SIZES for half in ("train", "test")}
    for name, sizes in SIZES.items():
        train, test = load_prompts(f"{name}-train"), load_prompts(f"{name}-test")
        assert (len(train), len(test)) == sizes
        assert len({*train, *test}) == sum(sizes)


def test_the_tiny_split_shares_no_combination_but_every_word():
    train, test = split.train_attributes(), split.test_attributes()
    assert sorted(train + test) == sorted(ALL_ATTRIBUTES)
    assert not {item[:3] for item in train} & {item[:3] for item in test}
    for side in (train, test):
        for column, whole in zip(zip(*side, strict=True), zip(*ALL_ATTRIBUTES, strict=True), strict=True):
            assert set(column) == set(whole)
    assert all((item.color + item.shape + item.background) % 3 == 0 for item in test)


def test_tiny_prompts_name_their_attributes():
    assert [parse_caption(text) for text in texts_of("tiny-test")] == split.test_attributes()
    assert [parse_caption(text) for text in texts_of("tiny-train")] == split.train_attributes()


def test_the_first_tiny_test_prompts_are_diverse_and_never_change():
    first = split.test_attributes()[:64]
    for column, values in zip(zip(*first, strict=True), (6, 5, 5, 4), strict=True):
        assert min(Counter(column).values()) >= 0.5 * 64 / values
        assert len(Counter(column)) == values
    assert texts_of("tiny-test")[:2] == [
        "a green ring moving down over grass",
        "a green cross moving up over night",
    ]


def test_the_activity_sets_share_no_animal_and_have_every_activity():
    words = {name: [text.split(" ", 2) for text in texts_of(f"activities-{name}")] for name in ("train", "test")}
    animals = {name: {animal for _, animal, _ in rows} for name, rows in words.items()}
    activities = {name: {activity for _, _, activity in rows} for name, rows in words.items()}
    assert (len(animals["train"]), len(animals["test"])) == (30, 15)
    assert not animals["train"] & animals["test"]
    assert activities["train"] == activities["test"] == {"washing the dishes", "riding a bike", "playing chess"}


PLACE = r"(?:,| beside\b| under\b| in\b| by\b| above\b| between\b|$)"
PATTERNS = {  # what a set's prompts look like; the named parts are shared by no two of train and test
    "actions": r"^an? (?P<subject>.+?) \w+ing\b",
    "activities": r"^an? (?P<subject>\w+) ",
    "book-and-cup": r"\bbooks? .*\bcup\b.* on an? (?P<place>.+?)" + PLACE,
    "clothes": r"^an? (?P<subject>.+?) wearing (?P<garment>.+), \w+ing ",
    "instruments": r"^an? (?P<subject>.+?) playing the (?P<instrument>.+?) (?:in|on|at|by|under) ",
    "kinetics": r"^an? (?P<subject>\w+) ",
    "scenes": r"^an? (?P<subject>.+?) (?:in|on|at|under|with|by|of|above|after|full|before|over)\b",
}


@pytest.mark.parametrize("name", PATTERNS)
def test_halves_share_no_subject(name):
    """Nor a garment, an instrument, a place: compared by their last words ("polar bear" is a bear)."""
    seen = []
    for half in ("train", "test"):
        matches = [re.search(PATTERNS[name], text) for text in texts_of(f"{name}-{half}")]
        assert all(matches)
        seen.append([{part: words.split()[-1] for part, words in match.groupdict().items()} for match in matches])
    for part in seen[0][0]:
        train, test = ({parts[part] for parts in half} for half in seen)
        assert not train & test
        assert len(test) >= 3


def test_removal_prompts_of_the_tiny_world_show_what_is_removed():
    train, test = load_prompts("tiny-removal-train"), load_prompts("tiny-removal-test")
    assert all(re.match(r"an? \w+ circle moving \w+ over \w+$", str(prompt)) for prompt in [*train, *test])
    assert set(train) < set(load_prompts("tiny-train"))
    assert set(test) < set(load_prompts("tiny-test"))


def test_kinetics_prompts_have_labels_of_their_own(shared):
    labels = [{prompt.label for prompt in load_prompts(f"kinetics-{half}")} for half in ("train", "test")]
    assert [len(half) for half in labels] == [60, 24]
    assert not labels[0] & labels[1]
    known = json.loads(shared("parity/rewards/labels.json").read_text())["kinetics400_labels"]
    assert labels[0] | labels[1] <= set(known)


def test_a_file_has_a_prompt_a_line(tmp_path):
    (tmp_path / "mine.txt").write_text("# comment\n\n  a dog \na cat #1\n")
    assert load_prompts(str(tmp_path / "mine.txt")) == [Prompt("a dog"), Prompt("a cat #1")]


def test_a_prompt_is_all_that_it_carries():
    prompt = Prompt("a dog runs", label="jogging", image=Path("dog.png"))
    assert prompt == Prompt("a dog runs", label="jogging", image=Path("dog.png"))
    assert prompt not in ("a dog runs", Prompt("a dog runs"))
    assert len({prompt, Prompt("a dog runs"), Prompt("a dog runs", "blurry"), Prompt("a dog runs")}) == 3
    assert f"{prompt}" == "a dog runs"


def test_a_negative_prompt_goes_to_those_that_have_none():
    prompts = [Prompt("a dog", label="jogging"), Prompt("a cat", "grainy")]
    assert with_negative(prompts, "blurry") == [Prompt("a dog", "blurry", "jogging"), Prompt("a cat", "grainy")]
    assert with_negative(prompts, "") == prompts


def companions(spec: Path) -> list[tuple[str, str | None, Path | None]]:
    return [(prompt.text, prompt.label, prompt.image) for prompt in load_prompts(str(spec))]


@pytest.fixture
def pictures(tmp_path):
    """`images/b_small-dog.PNG`, `images/a.jpg`, and something that is no picture."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("b_small-dog.PNG", "a.jpg", "notes.md"):
        (folder / name).touch()
    return folder


def test_tables_carry_labels_and_images(tmp_path, pictures):
    (tmp_path / "t.csv").write_text(
        '\ufeffprompt, label, image\n"a dog, wet", washing, images/a.jpg\na cat,,\n\n,, images/b_small-dog.PNG\n'
    )
    expected = [
        ("a dog, wet", "washing", pictures / "a.jpg"),
        ("a cat", None, None),
        ("b small dog", None, pictures / "b_small-dog.PNG"),
    ]
    assert companions(tmp_path / "t.csv") == expected
    lines = [
        {"prompt": "a dog, wet", "label": "washing", "image": "images/a.jpg"},
        "a cat",
        {"image": "images/b_small-dog.PNG", "label": None},
    ]
    (tmp_path / "t.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert companions(tmp_path / "t.jsonl") == expected


def test_tables_carry_negative_prompts_and_last_pictures(tmp_path, pictures):
    dog, last = pictures / "b_small-dog.PNG", pictures / "a.jpg"
    (tmp_path / "t.csv").write_text(
        'image,negative,last_image\nimages/b_small-dog.PNG,"blurry, dark",images/a.jpg\nimages/a.jpg,,\n'
    )
    expected = [Prompt("b small dog", "blurry, dark", image=dog, last_image=last), Prompt("a", image=last)]
    assert load_prompts(str(tmp_path / "t.csv")) == expected
    (tmp_path / "t.jsonl").write_text('{"prompt": "a dog", "negative": "blurry", "last_image": "images/a.jpg"}')
    assert load_prompts(str(tmp_path / "t.jsonl")) == [Prompt("a dog", "blurry", last_image=last)]


def test_pictures_come_as_folder_list_or_one(tmp_path, pictures):
    first, second = ("a", None, pictures / "a.jpg"), ("b small dog", None, pictures / "b_small-dog.PNG")
    assert companions(pictures) == [first, second]
    (tmp_path / "list.txt").write_text("# mine\nimages/b_small-dog.PNG\nimages/a.jpg\n")
    assert companions(tmp_path / "list.txt") == [second, first]
    assert companions(pictures / "a.jpg") == [first]
    (tmp_path / "text.txt").write_text("a photo as in images/a.jpg\na cat\n")
    assert [image for _, _, image in companions(tmp_path / "text.txt")] == [None, None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "holds no prompts"),
        ("a.csv", "prompt,label\n", "holds no prompts"),
        ("a.csv", "text,label\na,b\n", "has a column 'text': known: image, label, last_image, negative, prompt"),
        ("a.csv", "prompt,lable\na,b\n", "has a column 'lable': did you mean 'label'?"),
        ("a.csv", "label\nb\n", "has no column 'prompt': name the columns prompt, label, image, nega"),
        ("a.csv", "prompt,label\na,b,c\n", "line 2 of prompt file"),
        ("a.csv", "prompt,label\na,b\na, wet dog,b\n", "has more columns than the header: put quotes round"),
        ("a.csv", "prompt,label\na,b\n,c\n", "has no prompt: write a text or name an image"),
        ("a.csv", "prompt,image\na,none.png\n", "none.png', which does not exist"),
        ("a.csv", "prompt,last_image\na,none.png\n", "none.png', which does not exist"),
        ("a.csv", "negative\nb\n", "has no column 'prompt'"),
        ("a.jsonl", '{"negative": "b", "image": ""}', "has no prompt: write a text or name an image"),
        ("a.txt", "none.png\n", "none.png', which does not exist"),
        ("a.jsonl", "{", "is not JSON"),
        ("a.jsonl", "[1]", "is no object of texts"),
        ("a.jsonl", '{"prompt": 1}', "is no object of texts"),
        ("a.jsonl", '"a"\n{"promt": "a"}', "line 2 of prompt file"),
        ("a.jsonl", "\n", "holds no prompts"),
    ],
)
def test_mistakes_in_files_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    assert message in error_of(str(tmp_path / name))


def test_missing_pictures_are_errors(tmp_path):
    assert "missing.png' does not exist" in error_of(str(tmp_path / "missing.png"))
    assert "holds no pictures" in error_of(str(tmp_path))
    gone = error_of(str(tmp_path / "missing"))
    wanted = "give a .txt, .csv or .jsonl file of prompts, or a folder of pictures"
    assert gone == f"'{tmp_path / 'missing'}' does not exist: {wanted}"
    (tmp_path / "a.yaml").touch()
    assert "a.yaml' is of no kind that is read: give a .txt" in error_of(str(tmp_path / "a.yaml"))
    assert "known: actions-test" in error_of("nothing-like-it")


@pytest.mark.parametrize("content", ["", "\n \n", "# only a comment\n"])
def test_an_empty_file_is_an_error(tmp_path, content):
    (tmp_path / "empty.txt").write_text(content)
    assert "empty.txt' holds no prompts: write one a line" in error_of(str(tmp_path / "empty.txt"))


def test_unreadable_files_are_errors(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    (tmp_path / "folder.txt").mkdir()
    assert "does not exist" in error_of(str(tmp_path / "missing.txt"))
    assert "binary.txt' is no UTF-8 text (line 1): save it as UTF-8" in error_of(str(tmp_path / "binary.txt"))
    assert "folder.txt' is a folder: give a file" in error_of(str(tmp_path / "folder.txt"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "a cat\nein M\xe4dchen".encode("latin-1"), "a.txt' is no UTF-8 text (line 2): save it as UTF-8"),
        ("a.txt", b"a cat\n\0 dog", "is no UTF-8 text (line 2): save it as UTF-8"),
        ("a.csv", "prompt\na cat\n".encode("utf-16"), "is no UTF-8 text (line 1): save it as UTF-8"),
        ("a.txt", b"a cat\n" + b"a" * 2**20, "prompt 2 of prompt file"),
        ("a.csv", b'prompt,label\n"' + b"a" * 200_000 + b'",b', "is no line of a table: field larger than field limit"),
        ("a.csv", b"prompt,prompt\na,b\n", "has two columns 'prompt': keep one"),
        ("a.jsonl", b"[" * 100_000, "is not JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5_000 + b"}", "is not JSON: Exceeds the limit"),
        ("a.jsonl", b'"a \\ud800 cat"', "prompt 1 of prompt file"),
        ("a.txt", b"a\n~no_such_user_here/a.png\n", None),
        ("a.txt", b"~no_such_user_here/a.png\n", "there is no user of that name here"),
        ("a.csv", b"image\n" + b"a" * 300 + b".png\n", "cannot be used: File name too long"),
    ],
)
def test_files_that_are_no_prompts_are_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    if message is None:
        assert len(load_prompts(str(tmp_path / name))) == 2
    else:
        assert message in error_of(str(tmp_path / name))


def test_typographic_texts_are_kept_in_one_piece(tmp_path):
    text = "a dog\u2019s \u201cbowl\u201d\u2028and \u00bd cup\x85"
    for name, line in (
        ("a.jsonl", json.dumps(text, ensure_ascii=False)),
        ("a.txt", text),
        ("a.csv", f"prompt\n{text}"),
    ):
        (tmp_path / name).write_text(f"{line}\r\n", encoding="utf-8", newline="")
        assert [prompt.text for prompt in load_prompts(str(tmp_path / name))] == [text.strip()]


def test_a_pipe_is_never_read(tmp_path):
    for name in ("pipe.txt", "pipe.csv", "pipe.png"):
        os.mkfifo(tmp_path / name)
    assert "pipe.txt' is a pipe or a device: give a file" in error_of(str(tmp_path / "pipe.txt"))
    assert "pipe.csv' is a pipe or a device: give a file" in error_of(str(tmp_path / "pipe.csv"))
    assert "holds no pictures" in error_of(str(tmp_path))


def test_unknown_names_get_the_nearest():
    assert error_of("tiny-tset").endswith("did you mean 'tiny-test'?")
    assert "activities-test, activities-train" in error_of("xyz")


def test_own_functions(user_module):
    assert load_prompts("my_prompts:made") == [Prompt("2 dogs"), Prompt("3 dogs")]
    assert load_prompts("my_prompts:labelled") == [Prompt("a", label="b"), Prompt("c")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_prompts:empty", "is empty"),
        ("my_prompts:numbers", "returns no list of prompts"),
        ("my_prompts:text", "returns no list of prompts"),
        ("my_prompts:long", "prompt 2 of prompt set 'my_prompts:long' has 10001 characters: 10000 are the most"),
        ("my_prompts:half", "is no text: it holds what is no character"),
        ("my_prompts:broken", "fails with ZeroDivisionError: division by zero"),
        ("my_prompts:SOME", "is no function: define it by def"),
        ("my_prompts:unmarked", "does not say that it is one: write @vader.prompt_set above its def"),
        ("os:abort", "does not say that it is one: write @vader.prompt_set above its def"),
        ("my_prompts:mad", "my_prompts has no mad: did you mean 'made'?"),
        ("no_such_module:SOME", "no module 'no_such_module'"),
        ("my_prompts.py:made", "write my_prompts:made, the module and not its file"),
    ],
)
def test_what_is_no_set_of_ones_own_is_one_line(user_module, name, message):
    assert message in error_of(name)
