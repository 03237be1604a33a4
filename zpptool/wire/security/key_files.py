# SPDX-License-Identifier: Apache-2.0
"""The key files of a pipeline: one for each stage, with its own secret keys and the public keys of its neighbours only.

The invariant: a secret key is written only into files of mode 0600 in a directory of mode 0700, is read only from files
that only their owner can read, and is never shown (`repr` leaves it out). Files that were generated together
have the same `pipeline`, which distinguishes a left-over file from a wrong one. Keys are Curve25519 pairs in Z85, as
ZeroMQ's CURVE takes them (RFC 26, RFC 32).
"""

from __future__ import annotations

import os
import secrets
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from zpptool.errors import ZppError, invalid_error, usage_error
from zpptool.ownership import refuse_unguarded
from zpptool.partition import MAX_STAGES
from zpptool.places import HEAD, place_name
from zpptool.regular_file import open_regular, read_up_to

KEYS_VERSION = 1
SUFFIX = ".keys"
MAX_FILE_BYTES = 1 << 16
_Z85_CHARACTERS = 40
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


class KeyPair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One place's keys, in Z85."""

    place: str
    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(place={self.place!r}, public={self.public!r})"


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The keys of one host.

    Attributes:
        schema_version: of the file.
        pipeline: the same in all files that were generated together.
        created: when, in UTC.
        stage: whose file it is. Stage 0's also holds the keys of the head, which runs on the same host.
        num_stages: the number of stages.
        own: the keys of the places on this host.
        peers: the public key of each place at the other end of a link of these, by name.
    """

    schema_version: int
    pipeline: str
    created: str
    stage: int
    num_stages: int
    own: tuple[KeyPair, ...]
    peers: dict[str, str]


@dataclass(frozen=True)
class LinkKeys:
    """What one end of one link needs: its own keys, and the public key of its peer. Keys in Z85.

    Attributes:
        place: the place of this end, by name.
        public: its public key.
        secret: its secret key.
        peer: the place of the other end, by name.
        peer_public: its public key.
        known: the owner of each other public key that this host knows, by name.
    """

    place: str
    public: bytes
    secret: bytes = field(repr=False)
    peer: str
    peer_public: bytes
    known: Mapping[bytes, str] = field(default_factory=dict)


def file_name(stage: int) -> str:
    """The name of a stage's key file."""
    return f"stage_{stage}{SUFFIX}"


def generate(num_stages: int) -> tuple[KeyFile, ...]:
    """New keys for a pipeline of that many stages: each stage's file, in order.

    Raises:
        ZppError: (USAGE) fewer than one stage; (FAILURE) this ZeroMQ was built without CURVE.
    """
    if num_stages < 1:
        raise usage_error(f"a pipeline has at least one stage, not {num_stages}")
    if num_stages > MAX_STAGES:
        raise usage_error(f"a pipeline has at most {MAX_STAGES} stages, not {num_stages}")
    if not zmq.has("curve"):
        raise ZppError("this pyzmq was built without CURVE", "Install pyzmq from its wheels on PyPI.")
    pipeline = secrets.token_hex(8)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    places = [HEAD, *range(num_stages)]
    pairs = {place: new_pair(place) for place in places}
    publics = {place: pair.public for place, pair in pairs.items()}
    return tuple(
        KeyFile(
            schema_version=KEYS_VERSION,
            pipeline=pipeline,
            created=created,
            stage=stage,
            num_stages=num_stages,
            own=tuple(pairs[place] for place in own_places(stage)),
            peers=peers_of(stage, publics, num_stages),
        )
        for stage in range(num_stages)
    )


def new_pair(place: int) -> KeyPair:
    """New keys for a place of the ring."""
    public, secret = zmq.curve_keypair()
    return KeyPair(place_name(place), public.decode(), secret.decode())


def own_places(stage: int) -> tuple[int, ...]:
    """The places whose keys a stage's file holds: the head runs beside stage 0."""
    return (HEAD, 0) if stage == 0 else (stage,)


def peers_of(stage: int, publics: Mapping[int, str], num_stages: int) -> dict[str, str]:
    """The public keys at the other ends of a stage's links, by name, in the order of places.

    Args:
        stage: whose links.
        publics: the public key of every place.
        num_stages: how many stages there are.
    """
    near = {place for mine in own_places(stage) for place in _neighbours(mine, num_stages)}
    return {place_name(place): publics[place] for place in sorted(near)}


def write_key_files(files: tuple[KeyFile, ...], directory: Path, *, force: bool = False) -> list[Path]:
    """Write the files into the directory, which is created if it does not exist; their paths, in order.

    Args:
        files: as `generate` returned them.
        directory: of this user, with mode 0700.
        force: replace existing key files, and remove those of stages that do not exist any more.

    Raises:
        ZppError: (INVALID) there are key files already, others can enter the directory, or it cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(directory.stat().st_mode)
        if mode & _OTHERS:
            raise invalid_error(f"others can enter {directory} (mode {mode:04o})", f"chmod 700 {directory}")
        old = sorted(directory.glob(f"stage_*{SUFFIX}"))
        if old and not force:
            raise invalid_error(
                f"{directory} holds key files already ({old[0].name} and {len(old) - 1} more)",
                "Another directory, or --force to replace them: then hand the new ones to every host.",
            )
        written = [_write(file, directory / file_name(file.stage)) for file in files]
        for left_over in set(old) - set(written):
            left_over.unlink()
    except OSError as cause:
        raise invalid_error(f"{directory} cannot be written: {cause.strerror}") from cause
    return written


def read_key_file(path: Path) -> KeyFile:
    """The keys in a file.

    Raises:
        ZppError: (INVALID) it cannot be read, others can read it, or it is not a valid key file.
    """
    try:
        with open_regular(path) as opened:
            refuse_unguarded(path, os.fstat(opened.fileno()), "key file")
            content = read_up_to(opened, MAX_FILE_BYTES, path, "key file")
    except OSError as cause:
        raise invalid_error(
            f"the key file {path} cannot be read: {cause.strerror}", "zpptool keys generate makes key files."
        ) from cause
    try:
        keys = msgspec.json.decode(content, type=KeyFile)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:  # names the position, never the content
        raise invalid_error(f"{path} is not a key file: {cause}", "zpptool keys generate makes key files.") from None
    fault = _fault(keys)
    if fault is not None:
        raise invalid_error(f"{path} is not a valid key file: {fault}", "Generate the keys again, for every stage.")
    return keys


def key_path(given: Path, stage: int) -> Path:
    """The key file of a stage: `given` itself, or the stage's file in it when it is a directory."""
    return given / file_name(stage) if given.is_dir() else given


def link_keys(keys: KeyFile, place: int, peer: int) -> LinkKeys:
    """The keys for the link between two neighbours.

    Raises:
        ZppError: (INVALID) the file is another stage's, or for another number of stages.
    """
    own = next((pair for pair in keys.own if pair.place == place_name(place)), None)
    other = keys.peers.get(place_name(peer))
    if own is None or other is None:
        missing = f"no keys of {place_name(place)}" if own is None else f"no public key of {place_name(peer)}"
        raise invalid_error(
            f"the key file of stage {keys.stage} of {keys.num_stages} has {missing}",
            "Each stage has a key file of its own, made for the same number of stages.",
        )
    return LinkKeys(
        own.place,
        own.public.encode(),
        own.secret.encode(),
        place_name(peer),
        other.encode(),
        {key.encode(): name for name, key in [*keys.peers.items(), *((pair.place, pair.public) for pair in keys.own)]},
    )


def public_view(keys: KeyFile) -> Mapping[str, object]:
    """The content of a key file without the secrets."""
    return {
        "pipeline": keys.pipeline,
        "created": keys.created,
        "stage": keys.stage,
        "num_stages": keys.num_stages,
        "places": [{"place": pair.place, "public": pair.public} for pair in keys.own],
        "peers": keys.peers,
    }


def _neighbours(place: int, num_stages: int) -> tuple[int, ...]:
    """The places that a place has a tcp link with. Head and stage 0 are linked too, but by ipc within one host."""
    last = num_stages - 1
    if place == HEAD:
        return (last,)
    after = HEAD if place == last else place + 1
    return (after,) if place == 0 else (place - 1, after)


def _write(keys: KeyFile, path: Path) -> Path:
    """Write a key file atomically, readable by its owner only from its first byte on."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(handle, "wb") as out:
            os.fchmod(handle, 0o600)  # whatever the umask
            out.write(msgspec.json.format(msgspec.json.encode(keys), indent=2) + b"\n")
            out.flush()
            os.fsync(handle)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def _fault(keys: KeyFile) -> str | None:
    """What is wrong with a key file's content; None for nothing."""
    if keys.schema_version != KEYS_VERSION:
        return f"it has schema version {keys.schema_version}, this zpptool reads {KEYS_VERSION}"
    if not 0 <= keys.stage < keys.num_stages:
        return f"there is no stage {keys.stage} of {keys.num_stages}"
    for name, key in [*((pair.place, pair.public) for pair in keys.own), *keys.peers.items()]:
        if not _is_key(key):
            return f"the public key of {name} is not a key"
    for pair in keys.own:
        if not _is_key(pair.secret) or zmq.curve_public(pair.secret.encode()) != pair.public.encode():
            return f"the secret key of {pair.place} does not belong to its public key"
    return None


def _is_key(text: str) -> bool:
    try:
        return len(text) == _Z85_CHARACTERS and len(z85.decode(text.encode("ascii"))) == 32
    except (ValueError, KeyError, struct.error):  # struct.error: five characters that mean more than 32 bits
        return False
