"""What a CouchDB server answers, as our errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from pycouchdb.exceptions import Conflict as CouchConflict
from pycouchdb.exceptions import Error as CouchError
from pycouchdb.exceptions import NotFound

from watcher.errors import StatusDBRefused, StatusDBUnavailable
from watcher.statusdb.login import Login
from watcher.statusdb.store import Conflict

UNAUTHORIZED = 401

LOCKED_OUT = "temporarily locked"
"""What CouchDB 3.5 says, with 403, after too many failed logins."""

RIGHTS_MISSING = "You are not"
"""A 401 begins with this when name and password are right, but the rights are missing."""


class Absent(StatusDBUnavailable):
    """404: the document or view is not there."""


class DatabaseMissing(StatusDBUnavailable):
    """404: the database itself is not there."""


class Forbidden(StatusDBRefused):
    """403, or a 401 that says so: the credentials are right, the rights are missing."""


class LoginRefused(StatusDBRefused):
    """401, or a 403 that says so: the server does not take these credentials, now or at all."""


class BadRequest(StatusDBUnavailable):
    """400: the server does not understand the request."""


class TimedOut(StatusDBUnavailable):
    """The server took the request and did not answer in time."""


class _Unauthorized(CouchError):
    """401, raised before pycouchdb sees the answer. It hides the status, and takes a 401 without JSON for a success."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def look_for_refusal(response: requests.Response, **_options: Any) -> None:
    """Raise at once for a 401, with the server's reason. A hook of a requests session."""
    if response.status_code != UNAUTHORIZED:
        return
    try:
        reason = response.json()["reason"]
    except (ValueError, KeyError, TypeError):
        reason = response.reason
    raise _Unauthorized(str(reason))


@contextmanager
def translated(login: Login, method: str, path: str) -> Iterator[None]:
    """Turn what is raised within into one of our errors: Conflict, one of this file, or StatusDBUnavailable."""
    try:
        yield
    except CouchConflict as error:
        raise Conflict(f"{method} '{path}': {error}") from error
    except NotFound as error:
        missing = DatabaseMissing if str(error) not in ("missing", "deleted", "missing_named_view") else Absent
        raise missing(f"'{login.url}' has no '{login.database}/{path}': {error}") from error
    except CouchError as error:
        raise _refusal_or_trouble(login, method, path, error) from error
    except (requests.RequestException, OSError, ValueError, KeyError) as error:
        kind = TimedOut if _is_read_timeout(error) else StatusDBUnavailable
        raise kind(f"no good answer from '{login.url}': {_short(error)}") from error


def part(answer: Any, name: str) -> Any:
    """Return an answer's part. Raises StatusDBUnavailable if there is none: another kind of server answers."""
    try:
        return answer[name]
    except (KeyError, TypeError, IndexError) as error:
        raise StatusDBUnavailable(f"the server's answer has no '{name}': is it a CouchDB?") from error


def _refusal_or_trouble(login: Login, method: str, path: str, error: CouchError) -> Exception:
    name, reason = _named(error)
    is_forbidden = name == "forbidden" or (name == "unauthorized" and reason.startswith(RIGHTS_MISSING))
    if is_forbidden and LOCKED_OUT not in reason:
        what = f"'{login.database}/{path}'".replace("/'", "'")
        return Forbidden(
            f"statusdb: {login.who} may not {method} {what}: {reason} "
            "An administrator gives the user the right to it, as a member of the database"
        )
    if is_forbidden or name == "unauthorized":
        return LoginRefused(f"statusdb: {login.who} is refused: {reason}; check statusdb.username and the password")
    if name in ("bad_request", "BadRequest"):
        return BadRequest(f"{method} '{path}': {reason}")
    return StatusDBUnavailable(f"'{login.url}' answers {method} '{path}' with {name or 'an error'}: {reason}")


def _named(error: CouchError) -> tuple[str, str]:
    """Return CouchDB's name for an error, and its reason."""
    if isinstance(error, _Unauthorized):
        return "unauthorized", error.reason
    answer = error.args[0] if error.args else None
    if isinstance(answer, dict):
        return answer.get("error", ""), answer.get("reason", "")
    return type(error).__name__, str(answer or "")


def _is_read_timeout(error: Exception) -> bool:
    return isinstance(_innermost(error), TimeoutError) and not isinstance(error, requests.ConnectTimeout)


def _short(error: Exception) -> str:
    inner = _innermost(error)
    return f"{type(inner).__name__}: {inner}"


def _innermost(error: BaseException) -> BaseException:
    # requests nests the cause three deep and prints object addresses; the innermost says what happened.
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return error
