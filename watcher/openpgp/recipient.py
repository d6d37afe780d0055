"""Which public key `gpg_receiver` names, and to whom a wrapped key is encrypted: from what gpg lists and writes.

`FINGERPRINT!` names one subkey (or primary key) exactly, as for gpg itself. A fingerprint without `!` names the whole
key, of which gpg takes the newest encryption subkey. So gpg's own choice may differ from the subkey that was named.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parseaddr
from typing import Any

from watcher.errors import RecipientUnusable, WrapFailed

_DIGITS = re.compile(r"(?:0x)?0?([0-9A-F]{8}|[0-9A-F]{16}|[0-9A-F]{32}|[0-9A-F]{40}|[0-9A-F]{64})", re.IGNORECASE)
"""What gpg takes for a key id or a fingerprint and not for a part of a user id."""

_SPACED = re.compile(r"(?:[0-9A-F]{4} {1,2}){9}[0-9A-F]{4}", re.IGNORECASE)
"""A fingerprint as gpg shows it to people."""

_FAULTS = {"e": "has expired", "r": "is revoked", "i": "is invalid"}
"""GnuPG's doc/DETAILS, field 2."""

_SESSION_KEY, _ENCRYPTED_DATA = 1, 18
"""Packet tags of RFC 4880: a session key for one public key, and the data with integrity protection."""

_SYMMETRIC = "packet 3"
"""How `_key_ids` shows a session key for a passphrase."""

_LENGTH_BYTES = (1, 2, 4, 0)
_ONE_BYTE, _TWO_BYTES, _FOUR_BYTES = 192, 224, 255


@dataclass(frozen=True)
class Recipient:
    """The public key that may unwrap file keys. `expires` is None for one that never does.

    `fingerprint` is the primary key's; with `is_exact` it is that of the one key that was named with `!`.
    `key_ids` are all that a wrapped key may be encrypted to, `required` one of them that must be among these.
    """

    fingerprint: str
    user: str
    expires: datetime | None
    key_ids: frozenset[str] = frozenset()
    required: str = ""
    is_exact: bool = False

    @property
    def for_gpg(self) -> str:
        """The name to give to gpg."""
        return f"{self.fingerprint}!" if self.is_exact else self.fingerprint

    def require(self, message: bytes, has_passphrase: bool = False) -> None:
        """Raise RecipientUnusable unless a message is encrypted to this recipient and to no other key.

        `has_passphrase`: one passphrase opens it too. The beginning of the message is enough. Raises WrapFailed.
        """
        used = _key_ids(message) - ({_SYMMETRIC} if has_passphrase else set())
        shown = " and ".join(sorted(used)) or "a passphrase alone"
        if not used or not used <= self.key_ids:
            raise RecipientUnusable(
                f"gpg_receiver: gpg encrypts to {shown}, and not to '{self.for_gpg}' alone; "
                "remove recipients from /etc/gnupg/gpg.conf, or additional decryption subkeys (ADSK) from the key"
            )
        if self.required and self.required not in used:
            raise RecipientUnusable(
                f"gpg_receiver: subkey {self.required} is named without '!', and gpg encrypts to {shown}; "
                f"set it to '0x{self.required}!' for exactly this subkey, or to '{self.fingerprint}' for gpg's choice"
            )


@dataclass(frozen=True)
class _Part:
    """A primary key or subkey: `info` is its own line of gpg's listing, `key` the whole key."""

    key: dict[str, Any]
    info: dict[str, Any]
    key_id: str
    fingerprint: str

    def is_named(self, digits: str) -> bool:
        is_key_id = 0 < len(digits) <= len(self.key_id)
        return digits == self.fingerprint or (is_key_id and self.key_id.endswith(digits))

    @property
    def can_encrypt(self) -> bool:
        return "e" in self.info["cap"]

    @property
    def fault(self) -> str | None:
        """Why nothing can be encrypted to exactly this part now; None if it can."""
        whole = "is disabled" if "D" in self.key["cap"] else _FAULTS.get(self.key["trust"])
        if whole and self.info is not self.key:
            whole = f"belongs to key {self.key['fingerprint']}, and this {whole}"
        return whole or (_FAULTS.get(self.info["trust"]) if self.can_encrypt else "is not made for encryption")


def search_words(receiver: str) -> str:
    """Return what gpg lists to find `receiver`: that, or the digits of an exact name."""
    return _exact_digits(receiver) or receiver


def choose(receiver: str, keys: Sequence[dict[str, Any]]) -> Recipient:
    """Return the one usable key that `receiver` names, of those that gpg has listed for its `search_words`.

    Raises RecipientUnusable when no key, or more than one, is meant, naming each with its fault.
    """
    if digits := _exact_digits(receiver):
        return _choose_exact(receiver, digits, keys)
    exact = [key for key in keys if any(parseaddr(user)[1] == receiver for user in key["uids"])]
    candidates = exact or keys
    usable = [key for key in candidates if _fault(key) is None]
    if len(usable) == 1:
        return _whole(usable[0], _digits(receiver))
    if usable:
        raise _ambiguous(receiver, [key["fingerprint"] for key in usable])
    if not candidates:
        raise _unknown(receiver)
    faults = "; ".join(f"{key['fingerprint']} {_fault(key)}" for key in candidates)
    raise RecipientUnusable(f"gpg_receiver: no key of '{receiver}' can encrypt: {faults}; import a usable one")


def _choose_exact(receiver: str, digits: str, keys: Sequence[dict[str, Any]]) -> Recipient:
    named = [part for key in keys for part in _parts(key) if part.is_named(digits)]
    if not named:
        raise _unknown(receiver)
    if len(fingerprints := {part.fingerprint for part in named}) > 1:
        raise _ambiguous(receiver, [f"{fingerprint}!" for fingerprint in sorted(fingerprints)])
    # Another key may have the same subkey: as an additional decryption subkey, which is none to encrypt to.
    part = next((part for part in named if part.fault is None), named[0])
    if fault := part.fault:
        usable = [f"{other.fingerprint}!" for other in _parts(part.key) if other.fault is None]
        remedy = f"set it to {' or '.join(usable)}" if usable else "import a usable one: gpg --import FILE"
        raise RecipientUnusable(f"gpg_receiver: '{receiver}' names {part.fingerprint}, which {fault}; {remedy}")
    expires = _first(part.key["expires"], part.info["expires"])
    return Recipient(part.fingerprint, _user(part.key), expires, frozenset({part.key_id}), part.key_id, is_exact=True)


def _whole(key: dict[str, Any], digits: str) -> Recipient:
    """Return the recipient that is a whole key. If `digits` name an encryption subkey of it, gpg must choose that."""
    subkeys = [part for part in _parts(key) if part.info is not key and part.can_encrypt]
    required = next((part.key_id for part in subkeys if part.is_named(digits)), "")
    ids = frozenset(part.key_id for part in _parts(key))
    expires = _first(key["expires"], *_encryption_expiries(key)[-1:])
    return Recipient(key["fingerprint"], _user(key), expires, ids, required)


def ids(fingerprint: str, keys: Sequence[dict[str, Any]]) -> frozenset[str]:
    """Return the key ids of the recorded recipient, of the keys that gpg has listed for it: a whole key's, or one's.

    It may have expired meanwhile. Empty if it is not among them.
    """
    parts = [part for key in keys for part in _parts(key)]
    exact = {part.key_id for part in parts if part.fingerprint == fingerprint and part.info is not part.key}
    return frozenset(exact or {part.key_id for part in parts})


def openers(message: bytes) -> frozenset[str]:
    """Return the ids of the keys that open a message of gpg. Raises WrapFailed if it is none."""
    return _key_ids(message)


def _parts(key: dict[str, Any]) -> Iterator[_Part]:
    yield _Part(key, key, key["keyid"], key["fingerprint"])
    for key_id, info in key.get("subkey_info", {}).items():
        yield _Part(key, info, key_id, info["fingerprint"])


def _exact_digits(receiver: str) -> str:
    before, mark, after = receiver.strip().rpartition("!")
    return _digits(before) if mark and not after else ""


def _digits(text: str) -> str:
    """Return the digits of a key id or fingerprint, none for any other text."""
    text = text.strip()
    found = _DIGITS.fullmatch(text.replace(" ", "") if _SPACED.fullmatch(text) else text)
    return found[1].upper() if found else ""


def _unknown(receiver: str) -> RecipientUnusable:
    misplaced = receiver.rstrip().endswith("!") and not _exact_digits(receiver)
    remedy = "write '!' only after a fingerprint or key id" if misplaced else "import it: gpg --import FILE"
    return RecipientUnusable(f"gpg_receiver: no public key matches '{receiver}' in this user's keyring; {remedy}")


def _ambiguous(receiver: str, fingerprints: Sequence[str]) -> RecipientUnusable:
    return RecipientUnusable(
        f"gpg_receiver: '{receiver}' matches {len(fingerprints)} keys; "
        f"set it to one fingerprint: {', '.join(fingerprints)}"
    )


def _user(key: dict[str, Any]) -> str:
    return str((key["uids"] or ["(no user id)"])[0])


def _first(*expiries: str) -> datetime | None:
    ends = [int(value) for value in expiries if value]
    return datetime.fromtimestamp(min(ends), UTC) if ends else None


def _encryption_expiries(key: dict[str, Any]) -> list[str]:
    """Return when the usable encryption subkeys expire, the one that lasts longest at the end."""
    infos = key.get("subkey_info", {}).values()
    ends = [info["expires"] for info in infos if "e" in info["cap"] and info["trust"] not in _FAULTS]
    return sorted(ends, key=lambda value: int(value) if value else 1 << 62)


def _fault(key: dict[str, Any]) -> str | None:
    """Say why a key cannot encrypt now; None if it can.

    GnuPG's doc/DETAILS, field 12: a capital `E` says that the key as a whole can encrypt now, a `D`
    that it is disabled; field 2 says why not.
    """
    if "D" in key["cap"]:
        return "is disabled"
    if "E" in key["cap"]:
        return None
    subkeys = [info["trust"] for info in key.get("subkey_info", {}).values() if "e" in info["cap"]]
    part = {"e": "its encryption subkey has expired", "r": "its encryption subkey is revoked"}
    return _FAULTS.get(key["trust"]) or (part.get(subkeys[-1]) if subkeys else None) or "has no encryption subkey"


def _key_ids(message: bytes) -> frozenset[str]:
    """Return the key ids that an OpenPGP message is encrypted to (RFC 4880, 5.1).

    A hidden recipient has the key id 0, and a passphrase none: it is shown as its packet. Raises WrapFailed.
    """
    stream = io.BytesIO(message)
    found: set[str] = set()
    while (packet := _next_packet(stream)) is not None:
        tag, length = packet
        if tag == _ENCRYPTED_DATA and found:
            return frozenset(found)
        version, *key_id = stream.read(length)[:9] or (0,)
        found.add(bytes(key_id).hex().upper() if (tag, version) == (_SESSION_KEY, 3) else f"packet {tag}")
    raise WrapFailed("what gpg gave for a wrapped key names no recipient; is gpg really GnuPG?")


def _next_packet(stream: io.BytesIO) -> tuple[int, int] | None:
    """Read a packet's header (RFC 4880, 4.2); return its tag and length, 0 for one that is not given at once."""
    head = stream.read(1)
    if not head:
        return None
    if not head[0] & 0x40:
        return head[0] >> 2 & 0xF, int.from_bytes(stream.read(_LENGTH_BYTES[head[0] & 3]))
    tag, first = head[0] & 0x3F, int.from_bytes(stream.read(1))
    if first < _ONE_BYTE:
        return tag, first
    if first < _TWO_BYTES:
        return tag, (first - _ONE_BYTE << 8) + int.from_bytes(stream.read(1)) + _ONE_BYTE
    return tag, int.from_bytes(stream.read(4)) if first == _FOUR_BYTES else 0
