"""Documents with what no honest program writes: marks in a document become bytes in what a store is answered."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import requests
from fault_proxy import Client, Close, RecordingServer, Request, head
from sites import PATIENCE_SECONDS

DEEP, HUGE, INFINITE, SURROGATE = "<deep>", "<huge>", "<infinite>", "<surrogate>"
MARKS = {
    DEEP: "[" * 2000 + "]" * 2000,
    HUGE: "1" * 5000,
    INFINITE: "1e999",
    SURROGATE: '"\\ud800"',
}

HELD_SECONDS = 1.0
"""A question for changes is cut off after so long."""


class ForgingProxy(RecordingServer):
    """Stands before a real server; each mark in an answer becomes what it stands for. A context manager."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream.rstrip("/")
        super().__init__()

    def answer(self, client: Client, request: Request) -> None:
        """Send the server's answer, with what the marks stand for."""
        try:
            answer = requests.request(
                request.method, self._upstream + request.path, data=request.body,
                headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
                timeout=HELD_SECONDS if "longpoll" in request.path else PATIENCE_SECONDS,
            )  # fmt: skip
        except requests.ReadTimeout:
            raise Close from None  # pouchdb-server holds a long poll for ever
        body = answer.content
        for mark, forged in MARKS.items():
            body = body.replace(f'"{mark}"'.encode(), forged.encode())
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        client.send(head(answer.status_code, headers) + (b"" if request.method == "HEAD" else body))


def forge(path: Path) -> None:
    """Put into the rows of an SQLite file what the marks stand for, as someone with sqlite3 could."""
    with sqlite3.connect(path) as connection:
        for mark, forged in MARKS.items():
            connection.execute("update documents set body = replace(body, ?, ?)", (f'"{mark}"', forged))
    connection.close()
