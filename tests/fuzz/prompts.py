"""Prompt files: texts, tables, objects and pictures, spoiled in what they hold and in what they are."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fuzz.harness import Case
from fuzz.mutations import spoiled, spoiled_node
from fuzz.overrides import VALUES

TEXTS = (
    "a red circle moving left over sea", "a dog runs on the beach", "", " ", "#", "# a", "a\0b", "a\tb", "a\rb",
    "a\x85b", "a\u2028b", "ﬁ — “x” … ½", "日本語", "😀" * 50, "e\u0301" * 100, "a" * 200, "a " * 6_000, "b" * 20_000,
    "\x1b[31m", "\u202e", '"', '""', "'", ",", ",,", ";", "{", "}", "[red]", "<|endoftext|>", "<script>", "%s", "{0}",
    "$HOME", "a.png", "~nouser/a.png", "/dev/zero.png", "none.png", "pic.png", "../pic.png", "a" * 300 + ".png", "\\",
    "\ufeff", "\ufffd", "\uffff",
)  # fmt: skip
COLUMNS = (
    "prompt",
    "prompt",
    "prompt",
    "label",
    "image",
    "negative",
    "last_image",
    "promt",
    "",
    "prompt ",
    "Prompt",
    "\ufeffprompt",
)
RAW: tuple[str, ...] = (
    "null", "true", "1", "9" * 5_000, "1e999", "NaN", "[]", "{}", "[" * 20_000, '{"a":' * 5_000, '"\\ud800"',
    '"\\u0000"', '{"prompt": 1}', '{"prompt": null}', '{"prompt": ["a"]}', '{"prompt": "a", "prompt": "b"}',
    "{'prompt': 'a'}", '{"": "a"}', '"a" "b"', "{", '"',
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252", "cp037")
NAMES = ("p", "p", "p", "p q", "ü", "-p", "a:b", "p.png", "p" * 200, "p" * 250)


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    rng = random.Random(f"prompts {seed}")
    for number in range(count):
        suffix = rng.choice((".txt", ".csv", ".jsonl"))
        name = f"{rng.choice(NAMES) if rng.random() < 0.1 else 'p'}{suffix}"
        spec = (
            rng.choice(VALUES).replace("\0", "")
            if rng.random() < 0.02
            else f"./{name}"
            if name.startswith("-")
            else name
        )
        base = rng.choice(("tiny", "tiny", "tiny", "tiny-svd", "tiny-action", "tiny-removal", "tiny-dpo"))
        key = "algorithm.preferences" if base == "tiny-dpo" else "prompts.train"
        done, make = _made(rng, suffix, name)
        argv = ["train", base, f"{key}={json.dumps(spec)}", f"prompts.test={json.dumps(spec)}", "--dry-run"]
        yield Case(f"{base}: {name}: {done} ({seed} {number})"[:200], argv, make)


def _made(rng: random.Random, suffix: str, name: str) -> tuple[str, Callable[[Path], None]]:
    kind = rng.random()
    if kind < 0.04:
        done, write = spoiled_node(rng)
        return done, lambda place: write(place / name) if len(name.encode()) < 255 else None
    texts = [rng.choice(TEXTS) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
    text = {".txt": _lines, ".csv": _table, ".jsonl": _objects}[suffix](rng, texts)
    encoding = rng.choice(ENCODINGS)
    content, done = text.encode(encoding, errors="replace"), f"{encoding} {texts!r}"
    if kind < 0.25:
        more, content = spoiled(content, rng)
        done = f"{more}; {done}"

    def make(place: Path) -> None:
        (place / "pic.png").write_bytes(b"\x89PNG\r\n")
        if len(name.encode()) < 255:
            (place / name).write_bytes(content)

    return done, make


def _lines(rng: random.Random, texts: list[str]) -> str:
    return rng.choice(("\n", "\r\n", "\r", "\n\n")).join(texts)


def _table(rng: random.Random, texts: list[str]) -> str:
    head = [rng.choice(COLUMNS) for _ in range(rng.choice((1, 1, 2, 3)))]
    if rng.random() < 0.5:
        head = ["prompt", "label", "image", "negative"][: rng.randint(1, 4)]
    stream = io.StringIO()
    writer = csv.writer(stream, quoting=rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)), delimiter=rng.choice(",,,,;\t"))
    writer.writerow(head)
    for text in texts:
        row = [text, *(rng.choice(TEXTS) for _ in head[1:])]
        writer.writerow(row[: rng.choice((len(head), len(head), 1))] + ["more"] * rng.choice((0, 0, 0, 1)))
    return stream.getvalue()


def _objects(rng: random.Random, texts: list[str]) -> str:
    def line(text: str) -> str:
        if rng.random() < 0.2:
            return rng.choice(RAW)
        value: Any = text if rng.random() < 0.3 else {rng.choice(COLUMNS): text, rng.choice(COLUMNS): rng.choice(TEXTS)}
        return json.dumps(value, ensure_ascii=rng.random() < 0.5)

    return "\n".join(map(line, texts))
