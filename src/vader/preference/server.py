"""One study for many raters at once: the page, its videos, and where answers go.

In goes a study's folder, out comes an application that `uvicorn` runs. Raters get the page and may send answers;
whoever runs the study has an overview, which names systems. Without a token both are for this machine alone. With one,
the overview wants the token, and the page a key that is made from it and does not lead back to it.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import sqlite3
from pathlib import Path
from secrets import compare_digest, token_urlsafe

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from vader.errors import UserError
from vader.preference.answers import parse_sheet
from vader.preference.page import study_page
from vader.preference.report import report_page
from vader.preference.results import results_of
from vader.preference.store import Store
from vader.preference.study import VIDEOS, Study, read_study

MOST_BYTES = 256 * 2**10  # of a request: fifty pairs' answers are a tenth of it
LEAST_TOKEN = 16  # characters
LOCAL = ("localhost", "127.0.0.1", "[::1]", "::1")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}


def check_exposure(host: str, token: str | None) -> None:
    """Raises `UserError` if other machines could reach a server that asks for no token, or for one that is guessed."""
    if token is None and not _is_loopback(host):
        raise UserError(
            f"on --host {host} others could read who made which video: give --token, as in --token {token_urlsafe(16)}"
        )
    if token is not None and len(token) < LEAST_TOKEN:
        raise UserError(f"a token of {len(token)} characters can be guessed: take {LEAST_TOKEN} or more")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(app: FastAPI, host: str, port: int) -> None:
    """Serves until the process is asked to stop. Raises `UserError` if nobody can listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        line = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    # no log of requests, in which tokens would stand; no trust in what a proxy says of who asks
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, proxy_headers=False)).run([line])


def rater_key(token: str | None) -> str:
    """What a rater's link has in place of the token; empty where there is none."""
    return hmac.new(token.encode(), b"rater", hashlib.sha256).hexdigest()[:32] if token else ""


def build_app(folder: Path, token: str | None = None) -> FastAPI:
    """The application of a study's folder.

    Raises:
        UserError: the folder is no study's, or answers cannot be kept in it.
    """
    study = read_study(folder)
    store, key = Store(folder, study), rater_key(token)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def admit(request: Request, name: str, secret: str) -> None:
        if token is None:
            if not _is_from_here(request):
                raise HTTPException(403, "without a token this server answers this machine alone")
        elif not compare_digest(request.query_params.get(name, "").encode(), secret.encode()):
            raise HTTPException(403, "this link is not whole: ask for it again")

    @app.middleware("http")
    async def guarded(request: Request, answer):  # type: ignore[no-untyped-def]
        response = await answer(request)
        for header, value in HEADERS.items():
            response.headers.setdefault(header, value)
        return response

    @app.get("/")
    def page(request: Request) -> Response:
        admit(request, "key", key)
        return _page(study, key)

    @app.get("/videos/{video}.mp4")
    def video(request: Request, video: str) -> Response:
        admit(request, "key", key)
        if video not in study.videos:  # nothing else of the folder is ever served
            raise HTTPException(404, "there is no such video")
        path = folder / VIDEOS / f"{video}.mp4"
        return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "private, max-age=86400"})

    @app.post("/answers")
    async def answers(request: Request) -> Response:
        admit(request, "key", key)
        try:
            sheet = parse_sheet(study, await _body(request), "these answers")
            await run_in_threadpool(store.add, sheet)
        except UserError as error:
            raise HTTPException(400, str(error)) from None
        except OverflowError:
            raise HTTPException(413, f"a request has at most {MOST_BYTES} bytes") from None
        except sqlite3.Error:
            raise HTTPException(503, "the answers could not be written") from None
        return JSONResponse({"taken": len(sheet.answers)})

    @app.get("/overview")
    def overview(request: Request) -> Response:
        admit(request, "token", token or "")
        return HTMLResponse(report_page(results_of(study, store.sheets()), live=True))

    return app


def _is_from_here(request: Request) -> bool:
    """Whether this machine asks, by its own name and through no proxy: a page elsewhere may have a name that leads
    here, and a proxy asks for others."""
    host = request.headers.get("host", "")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    forwarded = {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"} & set(request.headers.keys())
    return name in LOCAL and not forwarded


def _page(study: Study, key: str) -> Response:
    tail, nonce = f"?key={key}" if key else "", token_urlsafe(16)
    sources = {video: f"videos/{video}.mp4{tail}" for video in sorted(study.videos)}
    policy = (
        "default-src 'none'; media-src 'self'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'nonce-{nonce}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    content = study_page(study, sources, f"answers{tail}", nonce)
    return HTMLResponse(content, headers={"Content-Security-Policy": policy})


async def _body(request: Request) -> bytes:
    """The body of a request. Raises `OverflowError` as soon as it is too long, whatever its header says."""
    found = bytearray()
    async for some in request.stream():
        found += some
        if len(found) > MOST_BYTES:
            raise OverflowError
    return bytes(found)
