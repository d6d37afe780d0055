"""Whom `gpg_receiver` names, and to whom gpg has encrypted: real keys with two encryption subkeys."""

import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import pytest
from machine import require_namespace
from sites import Site, gpg, keyring

from watcher import openpgp
from watcher.errors import RecipientUnusable, WrapFailed
from watcher.openpgp import FileKey
from watcher.openpgp import recipient as receiver

MADE, OLDER, NEWER, LATER = "20200101T000000", "20200101T120000", "20200102T000000", "20210101T000000"
"""Apart: gpg refuses a subkey that is older than its key, which may take a second to be made."""
UNATTENDED = ("--passphrase", "", "--pinentry-mode", "loopback")
HEAD = re.compile(r":(?:pubkey|symkey) enc packet.*")


@dataclass(frozen=True)
class Key:
    """A key for signing with two encryption subkeys, the `newer` of which gpg takes by itself."""

    home: Path
    primary: str
    older: str
    newer: str

    @property
    def user(self) -> str:
        return "ops@example.org"


def fingerprints(home: Path, user: str) -> list[str]:
    lines = gpg(home, "--with-colons", "--list-keys", user).decode().splitlines()
    return [line.split(":")[9] for line in lines if line.startswith("fpr:")]


def make_key(home: Path, user: str = "ops@example.org", expires: str = "never") -> Key:
    gpg(home, *UNATTENDED, "--faked-system-time", MADE, "--quick-generate-key", user, "ed25519", "sign", "never")
    [primary] = fingerprints(home, user)
    for at in (OLDER, NEWER):
        add = ("--quick-add-key", primary, "cv25519", "encr", expires if at == OLDER else "never")
        gpg(home, *UNATTENDED, "--faked-system-time", at, *add)
    return Key(home, *fingerprints(home, user))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Key]:
    """A key that no test changes."""
    with keyring(tmp_path_factory.mktemp("gpg") / "home") as home:
        yield make_key(home)


@pytest.fixture
def key(tmp_path: Path) -> Iterator[Key]:
    """A key of this test's own."""
    with keyring(tmp_path / "keyring") as home:
        yield make_key(home)


@pytest.fixture
def public(shared: Key, tmp_path: Path) -> Iterator[Path]:
    """A keyring with the public key alone, as a worker has it."""
    with keyring(tmp_path / "worker") as home:
        gpg(home, "--import", data=gpg(shared.home, "--export", shared.primary))
        yield home


def only_secret(key: Key, subkey: str, home: Path) -> None:
    """Import the secret of one subkey and no other."""
    gpg(home, *UNATTENDED, "--import", data=gpg(key.home, *UNATTENDED, "--export-secret-subkeys", f"{subkey}!"))


def recipients(wrapped: bytes, home: Path) -> list[str]:
    """Return the key ids of a message as gpg shows them."""
    command = ["gpg", "--homedir", str(home), "--batch", "--list-packets"]
    shown = subprocess.run(command, input=wrapped, capture_output=True, check=False).stdout.decode()
    return [line.split("keyid ")[-1] for line in shown.splitlines() if HEAD.match(line)]


def wrapped_to(name: str, home: Path) -> list[str]:
    return recipients(openpgp.wrap(FileKey.generate(), openpgp.find_recipient(name, home), home), home)


# an exact name


def spellings(fingerprint: str) -> list[str]:
    spaced = " ".join(re.findall("....", fingerprint))
    return [
        f"{fingerprint}!", f"0x{fingerprint}!", f"{fingerprint.lower()}!", f"  {fingerprint}! ", f"{fingerprint} !",
        f"{fingerprint[-16:]}!", f"0x{fingerprint[-16:]}!", f"0{fingerprint[-16:]}!", f"{fingerprint[-8:]}!",
        f"{spaced}!", f"{spaced[:24]} {spaced[24:]}!",
    ]  # fmt: skip


@pytest.mark.parametrize("which", ["older", "newer"])
def test_a_subkey_that_is_named_exactly_gets_the_file_key_and_is_the_recipient(which: str, shared: Key) -> None:
    named = getattr(shared, which)
    for written in spellings(named):
        found = openpgp.find_recipient(written, shared.home)
        assert (found.fingerprint, found.for_gpg, found.user) == (named, f"{named}!", shared.user)
        assert wrapped_to(written, shared.home) == [named[-16:]]


@pytest.mark.parametrize("which", ["older", "newer"])
def test_who_holds_only_the_named_subkey_unwraps_and_who_holds_only_the_other_does_not(
    which: str, shared: Key, public: Path, tmp_path: Path
) -> None:
    named = getattr(shared, which)
    other = shared.newer if which == "older" else shared.older
    file_key = FileKey.generate()
    wrapped = openpgp.wrap(file_key, openpgp.find_recipient(f"{named}!", public), public)
    with keyring(tmp_path / "holder") as holder, keyring(tmp_path / "other") as stranger:
        only_secret(shared, named, holder)
        only_secret(shared, other, stranger)
        assert openpgp.unwrap(wrapped, holder).reveal() == file_key.reveal()
        with pytest.raises(WrapFailed, match="No secret key"):
            openpgp.unwrap(wrapped, stranger)


def test_a_primary_key_that_encrypts_is_taken_when_it_is_named_exactly(tmp_path: Path) -> None:
    with keyring(tmp_path / "home") as home:
        gpg(home, *UNATTENDED, "--quick-generate-key", "ops@example.org", "rsa2048", "sign,cert,encr", "never")
        [primary] = fingerprints(home, "ops@example.org")
        gpg(home, *UNATTENDED, "--quick-add-key", primary, "cv25519", "encr", "never")
        subkey = fingerprints(home, "ops@example.org")[1]
        assert wrapped_to(f"{primary}!", home) == [primary[-16:]]
        assert wrapped_to(primary, home) == [subkey[-16:]]


def test_an_exact_name_tells_when_this_subkey_expires(tmp_path: Path) -> None:
    with keyring(tmp_path / "home") as home:
        key = make_key(home, expires="20991231T000000")
        assert openpgp.find_recipient(f"{key.older}!", home).expires == datetime(2099, 12, 31, tzinfo=UTC)
        assert openpgp.find_recipient(f"{key.newer}!", home).expires is None


# an exact name that is refused


def unknown(_key: Key) -> str:
    return "0" * 40


def for_signing(key: Key) -> str:
    return key.primary


def expired(key: Key) -> str:
    gpg(key.home, *UNATTENDED, "--faked-system-time", LATER, "--quick-set-expire", key.primary, "1d", key.older)
    return key.older


def of_an_expired_key(key: Key) -> str:
    gpg(key.home, *UNATTENDED, "--faked-system-time", LATER, "--quick-set-expire", key.primary, "1d")
    return key.older


def revoked(key: Key) -> str:
    answers = b"key 1\nrevkey\ny\n0\n\ny\nsave\n"
    gpg(key.home, *UNATTENDED, "--command-fd", "0", "--edit-key", key.primary, data=answers)
    return key.older


def of_a_revoked_key(key: Key) -> str:
    certificate = (key.home / "openpgp-revocs.d" / f"{key.primary}.rev").read_text()
    gpg(key.home, "--import", data=certificate.replace(":-----BEGIN", "-----BEGIN").encode())
    return key.older


def of_a_disabled_key(key: Key) -> str:
    gpg(key.home, "--command-fd", "0", "--edit-key", key.primary, "disable", "save", data=b"")
    return key.older


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unknown, "no public key matches '{receiver}' in this user's keyring; import it: gpg --import FILE"),
        (for_signing, "which is not made for encryption; set it to {older}! or {newer}!"),
        (expired, "which has expired; set it to {newer}!"),
        (of_an_expired_key, "which belongs to key {primary}, and this has expired; import a usable one: gpg --import"),
        (revoked, "which is revoked; set it to {newer}!"),
        (of_a_revoked_key, "which belongs to key {primary}, and this is revoked; import a usable one: gpg --import"),
        (of_a_disabled_key, "which belongs to key {primary}, and this is disabled; import a usable one"),
    ],
)
def test_an_exact_name_that_cannot_be_used_is_refused_with_its_reason_and_remedy(
    spoil: Callable[[Key], str], words: str, key: Key
) -> None:
    name = f"{spoil(key)}!"
    with pytest.raises(RecipientUnusable) as caught:
        openpgp.find_recipient(name, key.home)
    expected = words.format(receiver=name, **vars(key))
    assert f"gpg_receiver: '{name}' names" in str(caught.value) or spoil is unknown
    assert expected in str(caught.value)


def listed(fingerprint: str) -> dict[str, Any]:
    """Return a key as python-gnupg lists it: two real ones of one short key id are not found in a test's time."""
    line = {"cap": "escaESCA", "trust": "-", "expires": ""}
    return {**line, "fingerprint": fingerprint, "keyid": fingerprint[-16:], "uids": ["ops@example.org"]}


def test_a_short_key_id_of_two_keys_is_ambiguous_and_both_are_named() -> None:
    keys = [listed("A" * 32 + "01234567"), listed("B" * 32 + "01234567")]
    with pytest.raises(RecipientUnusable, match=f"'01234567!' matches 2 keys.*: {'A' * 32}01234567!, {'B' * 32}0123"):
        receiver.choose("01234567!", keys)


@pytest.mark.parametrize("written", ["ops@example.org!", "<ops@example.org>!", "ops!", "{older}!!", "={older}!", "!"])
def test_a_mark_after_anything_but_a_key_id_is_no_name(written: str, shared: Key) -> None:
    with pytest.raises(RecipientUnusable, match=r"no public key matches.*write '!' only after a fingerprint or key id"):
        openpgp.find_recipient(written.format(older=shared.older), shared.home)


def test_a_mark_that_belongs_to_a_persons_name_is_a_part_of_it(key: Key) -> None:
    gpg(key.home, *UNATTENDED, "--quick-generate-key", "Archive! <a@example.org>", "rsa2048", "encr", "never")
    assert openpgp.find_recipient("Archive!", key.home).user == "Archive! <a@example.org>"


# a name without the mark


def test_without_the_mark_gpg_chooses_the_subkey_and_the_primary_key_is_the_recipient(shared: Key) -> None:
    for name in (shared.user, shared.primary, shared.newer, f"0x{shared.primary[-16:]}", shared.newer[-8:]):
        assert openpgp.find_recipient(name, shared.home).fingerprint == shared.primary
        assert wrapped_to(name, shared.home) == [shared.newer[-16:]]


def test_a_subkey_named_without_the_mark_that_gpg_does_not_choose_is_refused(shared: Key) -> None:
    for name in (
        shared.older,
        shared.older[-16:],
        f"0x{shared.older[-8:]}",
        " ".join(re.findall("....", shared.older)),
    ):
        with pytest.raises(RecipientUnusable, match=f"named without '!', and gpg encrypts to {shared.newer[-16:]}; "
                           f"set it to '0x{shared.older[-16:]}!' .*, or to '{shared.primary}'"):  # fmt: skip
            wrapped_to(name, shared.home)
    assert wrapped_to(f"0x{shared.older[-16:]}!", shared.home) == [shared.older[-16:]]


# the proof


def message(home: Path, *options: str) -> bytes:
    return gpg(home, "--no-options", "--always-trust", "--rfc4880", *options, "--encrypt", data=b"x")


@pytest.mark.parametrize(
    "options",
    [
        ("--recipient", "{newer}!"),
        ("--recipient", "{older}!", "--recipient", "{newer}!"),
        ("--hidden-recipient", "{older}!"),
        ("--recipient", "{older}!", "--hidden-recipient", "{newer}!"),
        ("--recipient", "{older}!", "--symmetric", *UNATTENDED, "--passphrase", "open"),
    ],
    ids=["another", "one more", "hidden", "one more hidden", "a passphrase"],
)
def test_what_anybody_else_can_open_or_hides_its_reader_is_no_wrapped_key(
    options: tuple[str, ...], shared: Key
) -> None:
    found = openpgp.find_recipient(f"{shared.older}!", shared.home)
    found.require(message(shared.home, "--recipient", f"{shared.older}!"))
    with pytest.raises(RecipientUnusable, match=f"gpg encrypts to .*, and not to '{shared.older}!' alone; remove"):
        found.require(message(shared.home, *(option.format(**vars(shared)) for option in options)))


def test_a_message_for_another_key_is_not_one_for_the_whole_key(key: Key) -> None:
    other = make_key(key.home, "other@example.org")
    found = openpgp.find_recipient(key.primary, key.home)
    for subkey in (key.older, key.newer):
        found.require(message(key.home, "--recipient", f"{subkey}!"))
    for names in ((other.primary,), (key.primary, other.primary)):
        with pytest.raises(RecipientUnusable, match=other.newer[-16:]):
            found.require(message(key.home, *(word for name in names for word in ("--recipient", name))))


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 20])
def test_a_message_that_was_cut_off_is_no_wrapped_key(cut: int, shared: Key) -> None:
    whole = message(shared.home, "--recipient", f"{shared.older}!")
    with pytest.raises((WrapFailed, RecipientUnusable)):
        openpgp.find_recipient(f"{shared.older}!", shared.home).require(whole[:cut])


@pytest.mark.parametrize("bits", [2048, 4096])
def test_long_packets_are_read(bits: int, tmp_path: Path) -> None:
    with keyring(tmp_path / "home") as home:
        gpg(home, *UNATTENDED, "--quick-generate-key", "ops@example.org", f"rsa{bits}", "encr,cert", "never")
        [primary] = fingerprints(home, "ops@example.org")
        assert wrapped_to(f"{primary}!", home) == [primary[-16:]]


# the commands


@pytest.fixture
def at_work(site: Site, public: Path) -> Site:
    """A site with a run that is ready, whose worker has the public key alone."""
    site.configure(gnupg_home=str(public))
    site.complete(site.make_run())
    return site


def test_a_run_is_restored_by_who_holds_only_the_named_subkey_and_by_nobody_else(
    at_work: Site, shared: Key, tmp_path: Path
) -> None:
    at_work.configure(gpg_receiver=f"{shared.older}!")
    checked = at_work.command("check")
    assert f"ok    recipient: {shared.older} {shared.user}" in checked.stdout
    assert at_work.command("once").returncode == 0
    document = at_work.document()
    assert document is not None
    assert document["archive"]["recipient"] == shared.older
    for subkey, code in ((shared.newer, 1), (shared.older, 0)):
        with keyring(tmp_path / f"holder_{code}") as holder:
            only_secret(shared, subkey, holder)
            at_work.configure(gnupg_home=str(holder))
            done = at_work.command("restore", "run_001", "--to", str(tmp_path))
            assert done.returncode == code, done.stderr
            assert (tmp_path / "run_001").exists() == (code == 0)


def test_a_receiver_that_gpg_would_not_use_is_refused_at_the_start_and_nothing_is_archived(
    at_work: Site, shared: Key
) -> None:
    for written, words in (
        (f"{shared.primary}!", "is not made for encryption"),
        (f"{shared.user}!", "write '!' only after a fingerprint or key id"),
        (shared.older, "is named without '!'"),
    ):
        at_work.configure(gpg_receiver=written)
        for command, code in (("check", 1), ("once", 3)):
            done = at_work.command(command)
            assert done.returncode == code
            assert words in done.stdout + done.stderr
    assert at_work.statusdb_is_untouched()
    assert list(at_work.archives.glob("run_*")) == []


SYSTEM_WIDE = """
mkdir -p "$1/gnupg" && cp -a /etc/. "$1" 2> /dev/null
cp "$2" "$1/gnupg/gpg.conf" && mount --bind "$1" /etc && shift 2 && exec "$@"
"""


@pytest.fixture
def system_wide(tmp_path: Path, unavailable: Callable[[str], NoReturn]) -> Callable[[str], tuple[str, ...]]:
    """Return the command that runs a program where /etc/gnupg/gpg.conf has the given lines."""
    require_namespace(unavailable)

    def prefix(lines: str) -> tuple[str, ...]:
        (tmp_path / "gpg.conf").write_text(lines)
        namespace = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-c", SYSTEM_WIDE, "bash")
        return (*namespace, str(tmp_path / "etc"), str(tmp_path / "gpg.conf"))

    return prefix


def test_the_machines_gpg_conf_adds_nobody_and_hides_nobody(
    at_work: Site, shared: Key, public: Path, system_wide: Callable[[str], tuple[str, ...]]
) -> None:
    other = make_key(public, "other@example.org")
    at_work.configure(gpg_receiver=f"{shared.older}!")
    lines = [f"encrypt-to {other.primary}", f"hidden-encrypt-to {other.newer}", "throw-keyids", "armor", "textmode"]
    lines += [f"group {name}={other.primary}" for name in (shared.older, f"{shared.older}!")]
    assert at_work.start("once", prefix=system_wide("\n".join(lines))).wait() == 0
    wrapped = (at_work.keys / "run_001.key.gpg").read_bytes()
    assert recipients(wrapped, public) == [shared.older[-16:]]
    assert not (at_work.archives / "run_001.tar.gpg").read_bytes().startswith(b"-----")


def test_a_recipient_that_the_machines_gpg_conf_adds_is_refused_at_the_start(
    at_work: Site, public: Path, shared: Key, system_wide: Callable[[str], tuple[str, ...]]
) -> None:
    other = make_key(public, "other@example.org")
    for name in (shared.primary, f"{shared.older}!"):
        at_work.configure(gpg_receiver=name)
        daemon = at_work.start("once", prefix=system_wide(f"recipient {other.primary}\n"))
        assert daemon.wait() == 3
        assert other.newer[-16:] in daemon.log
        assert f"and not to '{name}' alone; remove recipients from /etc/gnupg/gpg.conf" in daemon.log
    assert list(at_work.archives.glob("run_*")) == []
