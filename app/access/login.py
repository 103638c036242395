"""The pages `/login` and `/logout`, without scripts, and the cookies that they set."""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Annotated, Literal

from fastapi import FastAPI, Form, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse
from starlette.responses import Response

from app.access.auth import (
    LOGIN_COOKIE,
    LOGIN_MAX_AGE_S,
    NEW_OWNER,
    OWNER_COOKIE,
    OWNER_MAX_AGE_S,
    Identity,
    Login,
    Owners,
    Refusal,
)
from app.access.guard import cookies_of
from app.access.visitors import Visitors
from app.paths import LOGIN_PATH, LOGOUT_PATH, beside
from sessions.errors import StoreError

# Relative, so that they hold below the path of a proxy too. The browser takes along the part of its address behind #,
# which names a conversation.
PAGE, LOGIN = beside(LOGIN_PATH, "/"), beside(LOGOUT_PATH, LOGIN_PATH)
ENDED = "ended"  # in the query of an open page that finds its log-in ended: app/page/assets/bridge.js
ENDED_SENTENCE = "You were logged out in another tab, on another device, or after 30 days. This tab keeps its drafts."
Leaving = Literal["keep", "forget", "everywhere"]


def add_login(app: FastAPI, owners: Owners, visitors: Visitors, model_name: str) -> None:
    """Adds both routes. The pages show `model_name`."""
    pages = {name: Template((files("app.page") / "assets" / f"{name}.html").read_text(encoding="utf-8"))
             for name in ("login", "logout", "forgotten")}  # fmt: skip

    def draw_login(request: Request, sentence: str, status: int = 200) -> HTMLResponse:
        identities = owners.identities(cookies_of(request.headers), visitors.of(request.scope).is_https)
        text = pages["login"].substitute(
            model=html.escape(model_name),
            sentence=html.escape(sentence),
            choices=_choices(identities),
            foot=_foot(identities),
        )
        return _page(text, status)

    @app.get(LOGIN_PATH, response_model=None)
    def show_login(request: Request) -> Response:
        if owners.owner_of(cookies_of(request.headers)) is not None:
            return RedirectResponse(PAGE, 303)
        old = owners.upgrade(cookies_of(request.headers), visitors.of(request.scope).is_https)
        if old is not None:
            return _logged_in(old)
        return draw_login(request, ENDED_SENTENCE if ENDED in request.query_params else "")

    @app.post(LOGIN_PATH, response_model=None)
    async def log_in(
        request: Request,
        password: Annotated[str, Form()] = "",
        who: Annotated[str, Form()] = "",
        code: Annotated[str, Form()] = "",
    ) -> Response:
        if not owners.needs_login:
            return RedirectResponse(PAGE, 303)
        if _is_from_elsewhere(request):
            return PlainTextResponse("Requests from other sites are refused.", 403)
        cookies, visitor = cookies_of(request.headers), visitors.of(request.scope)
        permit = await run_in_threadpool(owners.permit, cookies, visitor)
        if permit.refused_s > 0:
            seconds = max(1, round(permit.refused_s))
            page = await run_in_threadpool(
                draw_login, request, f"Too many wrong passwords. Try again in {seconds} s.", 429
            )
            page.headers["Retry-After"] = str(seconds)
            return page
        await asyncio.sleep(permit.wait_s)
        try:
            outcome = await run_in_threadpool(owners.log_in, password, cookies, visitor, permit, who, code)
        except StoreError as error:
            return await run_in_threadpool(draw_login, request, str(error), 503)
        if isinstance(outcome, Refusal):
            return await run_in_threadpool(draw_login, request, outcome.value, 401)
        return _logged_in(outcome)

    @app.get(LOGOUT_PATH, response_model=None)
    def show_logout(request: Request) -> Response:
        if not owners.needs_login:
            return RedirectResponse(PAGE, 303)
        return _page(pages["logout"].substitute(model=html.escape(model_name)))

    @app.post(LOGOUT_PATH, response_model=None)
    def log_out(request: Request, what: Annotated[Leaving, Form()] = "keep") -> Response:
        if not owners.needs_login:
            return RedirectResponse(PAGE, 303)
        if _is_from_elsewhere(request):
            return PlainTextResponse("Requests from other sites are refused.", 403)
        cookies = cookies_of(request.headers)
        try:
            if what == "forget" and (code := owners.forget(cookies)):
                response: Response = _page(pages["forgotten"].substitute(code=code))
            else:
                owners.log_out(cookies, everywhere=what == "everywhere")
                response = RedirectResponse(LOGIN, 303)
        except StoreError as error:  # still logged in: a log-out that is not stored would be undone by a restart
            return PlainTextResponse(f"You are still logged in. {error}", 503)
        _drop(response, LOGIN_COOKIE)
        if not owners.keeps_anything(cookies):
            _drop(response, OWNER_COOKIE)
        return response


def _is_from_elsewhere(request: Request) -> bool:
    """Catches what the Origin check cannot: browsers that state where a request comes from but send no Origin."""
    return request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _logged_in(login: Login) -> Response:
    response = RedirectResponse(PAGE, 303)
    for cookie, value, age_s in (
        (OWNER_COOKIE, login.owner_cookie, OWNER_MAX_AGE_S),
        (LOGIN_COOKIE, login.login_cookie, LOGIN_MAX_AGE_S),
    ):
        response.set_cookie(
            login.name_of(cookie), value, max_age=age_s, path="/", httponly=True, samesite="lax", secure=login.is_secure
        )
        if login.is_secure:
            response.delete_cookie(cookie, path="/")  # from an earlier version, or from before TLS
    response.headers["Cache-Control"] = "no-store"
    return response


def _drop(response: Response, cookie: str) -> None:
    """Deletes the cookie under both names."""
    response.delete_cookie(cookie, path="/", httponly=True, samesite="lax")
    response.delete_cookie(f"__Host-{cookie}", path="/", httponly=True, samesite="lax", secure=True)


def _page(text: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(text, status, {"Cache-Control": "no-store"})


def _choices(identities: Sequence[Identity]) -> str:
    """The choice of owner, if this browser keeps any. Reveals nothing of what is in the conversations."""
    if not identities:
        return ""
    is_default = identities[0].is_default
    rows = [
        _choice(
            one.choice, f"Continue with the conversations kept in this browser{_used(one)}", is_default and not number
        )
        for number, one in enumerate(identities)
    ]
    rows.append(_choice(NEW_OWNER, "I am someone else: start with none", False))
    return f"<fieldset><legend>Whose conversations?</legend>{''.join(rows)}</fieldset>"


def _choice(value: str, label: str, is_checked: bool) -> str:
    checked = " checked" if is_checked else ""
    return (
        f'<label class="choice"><input type="radio" name="who" value="{value}" required{checked}>'
        f"<span>{html.escape(label)}</span></label>"
    )


def _used(identity: Identity) -> str:
    if identity.used_at is None:
        return ""
    return f" (last log-in {time.strftime('%Y-%m-%d %H:%M %Z', time.localtime(identity.used_at))})"


def _foot(identities: Sequence[Identity]) -> str:
    if not identities:
        return "Your conversations stay with this browser; no one else sees them."
    return (
        "This browser keeps earlier conversations. Everyone who knows the password and uses this browser can open "
        "them, until their owner logs out with “Forget this browser”."
    )
