"""The replayed answers are those that were recorded, as a client sees them."""

import json

import pytest
import requests
from couchdb_replay import CLUSTER, Exchange, ReplayServer, exchange, recorded

TIMEOUT = 30
CREDENTIALS = ("user", "password")


def ask(server: ReplayServer, about: Exchange) -> requests.Response:
    """Send what was sent when `about` was recorded."""
    body = about.request_body
    return requests.request(
        about.method,
        server.url + about.path,
        data=body if isinstance(body, str | None) else json.dumps(body),
        auth=CREDENTIALS if about.authenticated else None,
        timeout=TIMEOUT,
    )


def shown(answer: requests.Response) -> tuple[int, dict[str, str], str]:
    return answer.status_code, dict(answer.headers), answer.text


@pytest.mark.parametrize("recording", recorded(), ids=lambda recording: recording.name)
def test_an_answer_is_what_was_recorded(recording: Exchange) -> None:
    with ReplayServer.script(recording.name) as server:
        assert shown(ask(server, recording)) == (recording.status, dict(recording.headers), recording.body)
        assert [request.method for request in server.requests] == [recording.method]


@pytest.mark.parametrize("group", ["single_node", CLUSTER])
def test_a_session_asked_in_the_recorded_order_gives_the_recorded_answers(group: str) -> None:
    with ReplayServer.session(recorded(group)) as server:
        for recording in recorded(group):
            assert shown(ask(server, recording))[::2] == (recording.status, recording.body), recording.name


def test_a_session_repeats_the_last_answer() -> None:
    with ReplayServer.session() as server:
        create = exchange("create database")
        assert [ask(server, create).status_code for _ in range(3)] == [201, 412, 412]


def test_a_session_takes_query_parameters_in_any_order() -> None:
    recording = exchange("view with docs")
    path, _, query = recording.path.partition("?")
    with ReplayServer.session() as server:
        turned = f"{server.url}{path}?{'&'.join(reversed(query.split('&')))}"
        assert requests.get(turned, auth=CREDENTIALS, timeout=TIMEOUT).text == recording.body


def test_a_scripted_answer_can_be_changed() -> None:
    accepted = exchange("create document").answering({"ok": True, "id": "a", "rev": "1-b"}, status=202)
    with ReplayServer.script(accepted, "read") as server:
        answer = ask(server, accepted)
        assert (answer.status_code, answer.json()["id"]) == (202, "a")
        assert ask(server, exchange("read")).status_code == 200


def unexpected_request() -> None:
    with ReplayServer.script() as server:
        assert requests.get(f"{server.url}/nowhere", timeout=TIMEOUT).status_code == 501


def test_a_request_that_nobody_expected_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="GET /nowhere"):
        unexpected_request()


def test_requests_that_did_not_come_are_seen_in_the_record() -> None:
    with ReplayServer.script("read", "read") as server:
        ask(server, exchange("read"))
        assert len(server.requests) == 1
