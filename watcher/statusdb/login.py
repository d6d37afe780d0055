"""Who we are at a CouchDB server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Login:
    """Where the server is and who we are there. `password` never shows."""

    url: str
    database: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None

    @property
    def who(self) -> str:
        """Return user and server for people."""
        return f"user '{self.username}' at '{self.url}'" if self.username else f"anonymous at '{self.url}'"
