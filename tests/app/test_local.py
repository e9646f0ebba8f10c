from __future__ import annotations

import asyncio

import pytest

from custom_components.app.local import LocalOnly


def answer(path="/", host="127.0.0.1:7860", kind="http"):
    """Messages that a connection gets from an application behind the middleware."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})

    async def send(message):
        sent.append(message)

    headers = [] if host is None else [(b"host", host.encode())]
    asyncio.run(LocalOnly(app)({"type": kind, "path": path, "headers": headers}, None, send))
    return sent


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "127.0.0.1", "localhost:80"])
def test_this_machine_gets_the_page_and_what_it_may_load(host):
    (message,) = answer(host=host)
    headers = dict(message["headers"])
    assert (message["status"], headers[b"x"]) == (200, b"y")
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy and "*" not in policy


@pytest.mark.parametrize("host", ["evil.example:7860", "127.0.0.1.evil.example", "", None])
def test_a_page_under_another_name_is_refused(host):
    assert [m.get("status") for m in answer(host=host)] == [403, None]
    assert answer(host=host, kind="websocket") == [{"type": "websocket.close", "code": 1008}]


@pytest.mark.parametrize("path", ["/gradio_api/file=https://evil.example/a", "/gradio_api/proxy=https://evil.example/"])
def test_the_server_fetches_nothing_from_elsewhere(path):
    assert answer(path=path)[0]["status"] == 403
    assert answer(path="/gradio_api/file=/tmp/a.png")[0]["status"] == 200


def test_other_messages_pass():
    assert answer(kind="lifespan")[0]["headers"] == [(b"x", b"y")]
