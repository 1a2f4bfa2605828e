"""The study's server: many raters at once, `kill -9` amid writes, and whoever means harm."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from study_factories import SYSTEMS, answered, attentive, by_system, make_study
from vader.cli import main
from vader.preference.answers import Sheet
from vader.preference.store import Store, stored_sheets
from vader.preference.study import Study, read_study

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make_study(tmp_path)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder: Path, token: str | None = None) -> Iterator[int]:
    """The server in a thread of this process; its port."""
    from vader.preference.server import build_app

    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(build_app(folder, token), port=port, log_level="warning", proxy_headers=False)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    _until(lambda: server.started)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(20)


def _until(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """One request as it is written: a path is not made tidy on its way."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST" if body is not None else "GET", path, body, given)
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def send(port: int, sheet: Sheet, path: str = "/answers") -> int:
    return ask(port, path, sheet.model_dump_json().encode())[0]


def one_by_one(study: Study, rater: str) -> list[Sheet]:
    """A sheet a pair, as the page sends them."""
    prefers = attentive(by_system(study.systems[1]))
    return [answered(study, rater, prefers, f"Rater {rater}", [item]) for item in study.items()]


def taken(sheets: list[Sheet]) -> set[tuple[str, str, str, str]]:
    return {(sheet.rater, a.item, a.question, a.choice) for sheet in sheets for a in sheet.answers}


# ---------------------------------------------------------------- no answer is lost


def test_fifty_raters_at_once_lose_no_answer(made: Path) -> None:
    study = read_study(made)
    by_rater = [one_by_one(study, f"rater-{i}") for i in range(50)]
    with serving(made) as port, ThreadPoolExecutor(50) as raters:
        done = list(raters.map(lambda sheets: [send(port, sheet) for sheet in sheets], by_rater))
        status, page = ask(port, "/overview")
    assert all(status == 200 for statuses in done for status in statuses)
    assert taken(stored_sheets(made, study)) == taken([sheet for sheets in by_rater for sheet in sheets])
    assert status == 200
    assert b"50 raters counted" in page
    assert main(["study", "report", str(made)]) == 0
    results = json.loads((made / "report.json").read_text())
    assert [one["wins"] for one in results["comparisons"]] == [300, 300, 300]


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vader", "study", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _until(lambda: process.poll() is None and _answers(port), 120)
    return process


def _answers(port: int) -> bool:
    try:
        return ask(port, "/")[0] == 200
    except OSError:
        return False


@pytest.mark.rare  # most of its time is that of starting programs
def test_kill_9_amid_writes_loses_no_acknowledged_answer(made: Path) -> None:
    """Twice, and then the third server takes what the others did not."""
    study, port = read_study(made), free_port()
    everyone = [one_by_one(study, f"rater-{i}") for i in range(60)]
    acknowledged: list[Sheet] = []

    def rate(sheets: list[Sheet]) -> None:
        for sheet in sheets:
            try:
                if send(port, sheet) == 200:
                    acknowledged.append(sheet)
            except (OSError, http.client.HTTPException):
                return

    for some in (everyone[:30], everyone[30:]):
        process, before = start(made, port), len(acknowledged)
        with ThreadPoolExecutor(10) as raters:
            futures = [raters.submit(rate, sheets) for sheets in some]
            _until(lambda before=before: len(acknowledged) > before + 20)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            for future in futures:
                future.result()
        there = taken(stored_sheets(made, study))
        assert taken(acknowledged) <= there
        assert len(acknowledged) < sum(map(len, everyone))
    with serving(made) as port:
        for sheets in everyone:
            rate(sheets)
    assert taken(stored_sheets(made, study)) == taken([sheet for sheets in everyone for sheet in sheets])


def test_the_disk_has_an_answer_before_it_is_acknowledged(made: Path) -> None:
    store = Store(made, read_study(made))
    pragma = {
        name: store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")
    }
    store.close()
    assert pragma == {"journal_mode": "wal", "synchronous": 2}


# ---------------------------------------------------------------- what raters see


def test_raters_see_no_system_and_nothing_else_of_the_folder(made: Path) -> None:
    study = read_study(made)
    with serving(made) as port:
        for path in ("/", *(f"/videos/{video}.mp4" for video in study.videos)):
            status, content = ask(port, path)
            assert status == 200
            assert not any(name.encode() in content for name in SYSTEMS)
        for path in (
            "/study.json", "/answers.sqlite", "/videos/../study.json", "/videos/..%2fstudy.json",
            "/videos/%2e%2e/study.json", "/videos/..%2f..%2f..%2fetc%2fpasswd", "/videos/x.mp4", "/videos/%00.mp4",
            "/videos/..%5cstudy.json", "/videos/" + "a" * 5000 + ".mp4", "//etc/passwd", "/docs", "/openapi.json",
        ):  # fmt: skip
            status, content = ask(port, path)
            assert status == 404, path
            assert b"zebra" not in content


def test_videos_can_be_sought(made: Path) -> None:
    """Browsers, phones above all, ask for parts of a video."""
    video = next(iter(read_study(made).videos))
    with serving(made) as port:
        whole = ask(port, f"/videos/{video}.mp4")[1]
        assert ask(port, f"/videos/{video}.mp4", Range="bytes=10-19") == (206, whole[10:20])


# ---------------------------------------------------------------- who means harm


def test_what_does_not_belong_is_refused(made: Path) -> None:
    study = read_study(made)
    good = one_by_one(study, "r")[0].model_dump(mode="json")
    answer = good["answers"][0]
    with serving(made) as port:
        for body in (
            b"", b"null", b"{", b"\xff\xfe", b"[" * 100_000,
            json.dumps(good | {"study": "0" * 12}).encode(),
            json.dumps(good | {"rater": "'; DROP TABLE answers; --"}).encode(),
            json.dumps(good | {"answers": [answer | {"item": "0" * 12}]}).encode(),
            json.dumps(good | {"answers": [answer | {"left": "0" * 12}]}).encode(),
            json.dumps(good | {"answers": [answer | {"question": "x' OR 1=1"}]}).encode(),
        ):  # fmt: skip
            status, content = ask(port, "/answers", body)
            assert status == 400, body[:80]
            assert not any(name.encode() in content for name in SYSTEMS)
        assert ask(port, "/answers")[0] == 405
    assert not stored_sheets(made, study)


def test_a_body_that_is_too_long_is_refused_before_it_is_read(made: Path) -> None:
    with serving(made) as port:
        assert _refused(port, b"x" * 300_000)
        with socket.create_connection(("127.0.0.1", port), 30) as line:  # in chunks, whose sum no header tells
            line.sendall(b"POST /answers HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(40):
                try:
                    line.sendall(b"2000\r\n" + b"x" * 0x2000 + b"\r\n")
                except OSError:
                    break
            assert b" 413 " in line.recv(200)
        assert ask(port, "/")[0] == 200


def _refused(port: int, body: bytes) -> bool:
    try:
        return ask(port, "/answers", body)[0] == 413
    except OSError:  # it hung up while the rest was still being sent
        return True


def test_prompts_are_shown_as_text(made: Path) -> None:
    with serving(made) as port:
        page = ask(port, "/")[1].decode()
        assert page.count("<script") == page.count("</script>") == 2
        assert "<img" not in page
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/")
        policy = connection.getresponse().headers["Content-Security-Policy"]
        connection.close()
    assert "default-src 'none'" in policy
    assert "script-src 'nonce-" in policy


def test_without_a_token_only_this_machine_is_answered(made: Path) -> None:
    """A page elsewhere may have a name that leads here, and a proxy asks for others."""
    with serving(made) as port:
        for path in ("/", "/overview"):
            assert ask(port, path, Host="localhost")[0] == 200
            assert ask(port, path, Host="evil.example")[0] == 403
            assert ask(port, path, Host=f"evil.example:{port}")[0] == 403
            assert ask(port, path, X_Forwarded_For="10.0.0.1")[0] == 403
        assert ask(port, "/answers", b"{}", Host="evil.example")[0] == 403


def test_with_a_token_raters_have_a_key_that_opens_no_overview(made: Path) -> None:
    from vader.preference.server import rater_key

    key, sheet = rater_key(TOKEN), one_by_one(read_study(made), "r")[0]
    assert TOKEN not in key
    with serving(made, TOKEN) as port:
        assert [ask(port, path)[0] for path in ("/", "/overview", "/overview?token=", "/?key=")] == [403] * 4
        assert send(port, sheet) == 403
        status, page = ask(port, f"/?key={key}", Host="example.org")
        assert status == 200
        assert TOKEN.encode() not in page
        assert ask(port, f"/overview?token={key}")[0] == 403
        assert ask(port, f"/overview?token={TOKEN}", Host="example.org")[0] == 200
        assert send(port, sheet, f"/answers?key={key}") == 200


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--host", "0.0.0.0"], "give --token"),
        (["--host", "example.org"], "give --token"),
        (["--host", "::"], "give --token"),
        (["--token", "short"], "can be guessed"),
    ],
)
def test_no_server_is_open_to_others_by_accident(made: Path, capsys, arguments: list[str], expected: str) -> None:
    assert main(["study", "serve", str(made), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_what_cannot_be_served_is_one_line(tmp_path: Path, made: Path, capsys, monkeypatch) -> None:
    assert main(["study", "serve", str(tmp_path)]) == 2
    assert "is no study's folder" in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as taken_port:
        assert main(["study", "serve", str(made), "--port", str(taken_port.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err
    for path in made.glob("answers.sqlite*"):
        path.unlink()
    (made / "answers.sqlite").write_bytes(b"no database" * 100)
    assert main(["study", "serve", str(made)]) == 2
    assert "answers cannot be kept" in capsys.readouterr().err
    assert main(["study", "report", str(made)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    monkeypatch.setattr("vader.cli.study.find_spec", lambda name: None)
    assert main(["study", "serve", str(made)]) == 2
    assert "pip install fastapi uvicorn" in capsys.readouterr().err
