"""Back up MongoDB, and restore it: mongodb-backup create | list | pack NAME | unpack FILE | restore NAME.

A backup is a directory in the format of ``mongodump --gzip``, so ``mongorestore --gzip --dir`` reads it as well: of each
collection ``<database>/<collection>.bson.gz`` and ``.metadata.json.gz``, which has options and indexes. Of a replica set it is
what the set held at one moment; a mongod on its own has no such moment, and each collection is as it was when it was read.

It is a program of its own because it runs by a timer, with Debian's python3 and python3-pymongo alone.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gzip
import os
import re
import resource
import shutil
import sys
import tarfile
import time
import urllib.parse
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import bson
from bson.codec_options import CodecOptions
from bson.json_util import CANONICAL_JSON_OPTIONS, dumps, loads
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError
from pymongo.write_concern import WriteConcern

if TYPE_CHECKING:
    from pymongo.database import Database

    Document = dict[str, Any]
    Client = MongoClient[Document]

DIRECTORY = Path("/var/backups/mongodb")
PASSWORD_FILE = Path("/etc/mongodb/admin.password")

#: Of the databases that MongoDB has for itself only users and roles are kept, for mongorestore; here they are the inventory's.
INTERNAL = frozenset({"admin", "config", "local"})
ACCOUNTS = ("system.users", "system.roles", "system.version")

#: Collections that MongoDB makes itself, out of what else there is.
DERIVED = frozenset({"system.views", "system.profile"})

#: Where a collection is restored before it takes its place.
BESIDE = "restoring."

#: MongoDB's error codes: the catalogue has just changed, and the moment is longer ago than the set remembers.
SNAPSHOT_UNAVAILABLE, SNAPSHOT_TOO_OLD = 246, 239

#: Collections with a name of MongoDB's own that are an app's to write; all others say who may do what, or are made of others.
SYSTEM = re.compile(r"system\.(js|buckets\..+)")

RAW: Any = CodecOptions(document_class=RawBSONDocument)

#: How many documents, and bytes of them, are sent at a time.
BATCH, BATCH_BYTES = 1000, 32 << 20

#: Bytes of a document at most (BSONObjMaxInternalSize of MongoDB), and of what describes a collection.
DOCUMENT_BYTES = (16 << 20) + (16 << 10)
METADATA_BYTES = 16 << 20

#: The members of a packed backup: its directory, one for each database, and two files for each collection.
MEMBER = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ)(/[^/.\0][^/.\0]*(/[^/\0]+\.(bson|metadata\.json)\.gz)?)?")

#: Bytes of memory that unpacking gets, as the headers of a tar file may claim to be of any size.
UNPACK_BYTES = 1 << 30


class BackupError(Exception):
    """The backup or the restoring did not come about; the message says why, and what there is."""


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="mongodb-backup", description="Back up MongoDB of this host, and restore it.")
    parser.add_argument("--port", type=int, default=27017, help="port of mongod")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="where the backups are")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a backup now")
    create.add_argument("--keep", type=int, default=0, help="then remove all but so many; 0 keeps all")
    commands.add_parser("list", help="list the backups, the newest last")
    pack = commands.add_parser("pack", help="make a tar file of a backup, and print its path")
    pack.add_argument("name", help="which one")
    unpack = commands.add_parser("unpack", help="make a backup of a tar file, and print its name")
    unpack.add_argument("file", type=Path, help="the tar file")
    restore = commands.add_parser("restore", help="put back what a backup has; collections it does not have are left alone")
    restore.add_argument("name", help="which one, or `latest`")
    restore.add_argument("--force", action="store_true", help="also into databases that have data")
    given = parser.parse_args()
    backups = Backups(given.directory)
    try:
        if given.command == "list":
            say("\n".join(backups.names()))
            return 0
        if given.command in {"pack", "unpack"}:
            with backups.locked():
                say(str(backups.pack(given.name)) if given.command == "pack" else backups.unpack(given.file))
            return 0
        with backups.locked(), contextlib.closing(connect(given.port, to_write=given.command == "restore")) as client:
            if given.command == "create":
                say(backups.create(client, given.keep))
            else:
                say(backups.restore(client, given.name, force=given.force))
    except (BackupError, OSError, PyMongoError, EOFError, zlib.error, bson.errors.BSONError) as error:
        sys.stderr.write(f"mongodb-backup: {str(error).partition(', full error:')[0]}\n")
        return 1
    return 0


def say(text: str) -> None:
    """Print what was done."""
    sys.stdout.write(f"{text}\n")


def connect(port: int, *, to_write: bool) -> Client:
    """Return a client of this host's mongod, which need not be the primary of its set; ``to_write`` to the one that is."""
    password = PASSWORD_FILE.read_text()
    options: Any = {"username": "admin", "password": password, "serverSelectionTimeoutMS": 10_000}
    client: Client = MongoClient("127.0.0.1", port, directConnection=True, **options)
    name = client.admin.command("hello").get("setName") if to_write else None
    return MongoClient("127.0.0.1", port, replicaSet=name, **options, w="majority") if name else client


class Backups:
    """The backups below a directory, named after the moment of each (UTC)."""

    def __init__(self, directory: Path) -> None:
        """Look at nothing yet."""
        self.directory = directory

    def names(self) -> list[str]:
        """Return the names of the backups that are complete, the newest last."""
        if not self.directory.is_dir():
            return []
        found = (path for path in self.directory.iterdir() if path.is_dir() and not path.is_symlink())
        return sorted(path.name for path in found if not path.name.startswith("."))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one; the lock ends with the process.

        :raises BackupError: when another one is at it.
        """
        os.umask(0o077)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = self.directory.stat()
        if (state.st_uid, state.st_gid) != (0, 0):  # the timer's unit may not change owners, and need not
            os.chown(self.directory, 0, 0)
        self.directory.chmod(0o700)
        with os.fdopen(os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BackupError("another backup, or a restoring, is at work; try again when it has ended") from error
            yield

    def create(self, client: Client, keep: int = 0) -> str:
        """Make a backup and return its name; then remove the oldest, so that ``keep`` are left.

        :raises BackupError: when it cannot be made; the ones of before are all there then.
        """
        for leftover in self.directory.glob(".*.new"):
            shutil.rmtree(leftover)
        name = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        new = self.directory / f".{name}.new"
        try:
            for left in (2, 1, 0):
                shutil.rmtree(new, ignore_errors=True)
                try:
                    dump(client, new)
                    break
                except OperationFailure as error:
                    if error.code == SNAPSHOT_TOO_OLD:
                        raise BackupError(
                            "the backup took longer than the set remembers the moment it began; raise mongodb_settings."
                            f"setParameter.minSnapshotHistoryWindowInSeconds: {error}"
                        ) from error
                    if error.code != SNAPSHOT_UNAVAILABLE or not left:
                        raise
                    time.sleep(1)
            os.sync()
            new.rename(self.directory / name)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        for old in self.names()[:-keep] if keep else []:
            shutil.rmtree(self.directory / old)
        return name

    def pack(self, name: str) -> Path:
        """Make a tar file of a backup, for root alone to read, and return its path.

        :raises BackupError: when there is no such backup.
        """
        self._require(name)
        file = self.directory / ".fetch.tar"
        file.unlink(missing_ok=True)
        with tarfile.open(file, "w") as archive:
            archive.add(self.directory / name, name)
        return file

    def unpack(self, file: Path) -> str:
        """Make a backup of what `pack` has made, whoever had it since, and return its name; one of that name is replaced.

        Nothing but directories and files with the names of a backup is made, each new and root's.

        :raises BackupError: when there is anything else in it, or it is damaged; nothing is changed then.
        """
        resource.setrlimit(resource.RLIMIT_AS, (UNPACK_BYTES, UNPACK_BYTES))
        new = self.directory / ".unpacked.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            with tarfile.open(file, "r:") as archive:
                names = {_unpack_member(archive, member, new) for member in archive}
            if len(names) != 1:
                raise BackupError(f"{file} has to hold one backup; it has {', '.join(sorted(names)) or 'none'}")
            os.sync()
            name = names.pop()
            if (self.directory / name).exists():
                (self.directory / name).rename(new / ".old")
            (new / name).rename(self.directory / name)
        except (tarfile.TarError, MemoryError, RecursionError, ValueError) as error:
            raise BackupError(f"{file} is no tar file of a backup, or damaged: {error!r}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return name

    def _require(self, name: str) -> None:
        names = self.names()
        if name not in names:
            raise BackupError(f"{self.directory} has no backup {name}; it has {', '.join(names) or 'none'}")

    def restore(self, client: Client, name: str, *, force: bool) -> str:
        """Put back what a backup has, and return what that is.

        Each collection is filled beside the one that is there, all of them before the first takes its place: a backup that turns
        out to be damaged changes nothing.

        :raises BackupError: when there is no such backup, or its databases have data and ``force`` was not asked for.
        """
        names = self.names()
        if name == "latest" and names:
            name = names[-1]
        self._require(name)
        databases = [path for path in sorted((self.directory / name).iterdir()) if path.name.lower() not in INTERNAL]
        filled = [path.name for path in databases if client[path.name].list_collection_names()]
        if filled and not force:
            raise BackupError(f"there are data in {', '.join(filled)}; ask for it by force to replace them")
        restored = [restoring for path in databases for restoring in Restoring.of_database(client, path)]
        try:
            for one in restored:
                one.prepare()
            for one in restored:
                one.finish()
        finally:
            for one in restored:
                one.clear()
        return "\n".join([f"restored {name}", *(f"{one.database.name}.{one.name}: {one.count} documents" for one in restored)])


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> str:
    """Make a directory or file of a packed backup, and return the backup's name."""
    matched = MEMBER.fullmatch(member.name)
    is_file = bool(matched and matched[3])
    # A sparse file may be larger than the archive, which is all that its unpacking may take.
    if not matched or member.issparse() or not (member.isreg() if is_file else member.isdir()):
        raise BackupError(f"the tar file has {ascii(member.name)[:200]}, which is no part of a backup; nothing was unpacked")
    target = directory / member.name
    if not is_file:
        target.mkdir()
        return matched[1]
    content = archive.extractfile(member)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        shutil.copyfileobj(cast(IO[bytes], content), file)
    return matched[1]


def dump(client: Client, directory: Path) -> None:
    """Write all that ``client`` has to ``directory``."""
    moment = client.admin.command("ping").get("operationTime")  # only a replica set knows one
    concern = {"readConcern": {"level": "snapshot", "atClusterTime": moment}} if moment else {}
    directory.mkdir()
    for name in client.list_database_names():
        if name in INTERNAL:
            continue
        database = client[name]
        (directory / name).mkdir()
        for collection in database.list_collections():
            if collection["name"] not in DERIVED:
                dump_collection(client, database, collection, directory / name, concern)
    (directory / "admin").mkdir()
    for name in ACCOUNTS:
        described = {"name": name, "type": "collection", "options": {}}
        dump_collection(client, client.admin, described, directory / "admin", {})


def dump_collection(
    client: Client, database: Database[Document], described: Mapping[str, Any], directory: Path, concern: Mapping[str, Any]
) -> None:
    """Write one collection: what it is like, and its documents, of which a view and a time series have none of their own."""
    name, kind = described["name"], described["type"]
    file = urllib.parse.quote(name, safe=" $")
    metadata: Document = {"options": described["options"], "collectionName": name, "type": kind, "indexes": []}
    if kind != "view":
        metadata["indexes"] = [dict(index) for index in database[name].list_indexes()]
    with gzip.open(directory / f"{file}.metadata.json.gz", "wt") as stream:
        stream.write(dumps(metadata, json_options=CANONICAL_JSON_OPTIONS))
    if kind != "collection":
        return
    with (
        gzip.open(directory / f"{file}.bson.gz", "wb", compresslevel=1) as documents,
        client.start_session(causal_consistency=False) as session,
    ):
        batch, command = "firstBatch", {"find": name, "batchSize": BATCH, **concern}
        while True:
            cursor = database.command(command, codec_options=RAW, session=session)["cursor"]
            for document in cursor[batch]:
                documents.write(document.raw)
            if not cursor["id"]:
                return
            batch, command = "nextBatch", {"getMore": cursor["id"], "collection": name, "batchSize": BATCH}


class Restoring:
    """A collection of a backup on its way back."""

    def __init__(self, database: Database[Document], documents: Path, metadata: Mapping[str, Any]) -> None:
        """Change nothing yet."""
        self.database = database
        self.name = str(metadata["collectionName"])
        self.count = 0
        self._documents = documents
        self._options = dict(metadata["options"])
        if "create" in self._options or (self.name.startswith("system.") and not SYSTEM.fullmatch(self.name)):
            raise ValueError(f"{self.name} is not an app's to write")
        self._indexes = [one for one in metadata["indexes"] if one["name"] != "_id_" and not one.get("clustered")]
        # MongoDB cannot rename time series, and views have nothing to fill: both are made at the end.
        self._renamed = metadata["type"] == "collection" and not self.name.startswith("system.")

    @classmethod
    def of_database(cls, client: Client, directory: Path) -> list[Restoring]:
        """Return the collections that a backup has of a database; what others are made of comes first."""
        found = []
        for path in sorted(directory.glob("*.metadata.json.gz")):
            documents = path.with_name(path.name.replace(".metadata.json.gz", ".bson.gz"))
            try:
                found.append(cls(client[directory.name], documents, _metadata(path)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise BackupError(f"{path} does not describe a collection: {error!r}") from error
        return sorted(found, key=lambda one: (one.name.startswith("system."), not one._renamed, one.name))

    def prepare(self) -> None:
        """Fill a collection beside the one that is there."""
        if self._renamed:
            self._fill(f"{BESIDE}{self.name}")

    def finish(self) -> None:
        """Let it take the place of the one that is there."""
        if self._renamed:
            source = f"{self.database.name}.{BESIDE}{self.name}"
            target = f"{self.database.name}.{self.name}"
            self.database.client.admin.command({"renameCollection": source, "to": target, "dropTarget": True})
        else:
            self._fill(self.name)

    def clear(self) -> None:
        """Remove what did not take its place."""
        if self._renamed:
            self.database.drop_collection(f"{BESIDE}{self.name}")

    def _fill(self, name: str) -> None:
        if not name.startswith("system."):  # a time series makes its buckets itself
            self.database.drop_collection(name)
            self.database.command({"create": name, **self._options})
            if self._indexes:
                self.database.command({"createIndexes": name, "indexes": self._indexes})
        if not self._documents.exists():
            return
        collection = self.database.get_collection(name, write_concern=WriteConcern(w="majority", j=True))
        with gzip.open(self._documents, "rb") as stream:
            for batch in _batches(cast(IO[bytes], stream)):
                collection.insert_many(batch, bypass_document_validation=True)
                self.count += len(batch)


def _metadata(path: Path) -> Mapping[str, Any]:
    """Return what describes a collection, of which a few bytes may become any number."""
    with gzip.open(path, "rb") as stream:
        text = stream.read(METADATA_BYTES + 1)
    if len(text) > METADATA_BYTES:
        raise ValueError(f"it is larger than {METADATA_BYTES} bytes")
    return cast(Mapping[str, Any], loads(text.decode(), json_options=CANONICAL_JSON_OPTIONS))


def _batches(stream: IO[bytes]) -> Iterator[list[RawBSONDocument]]:
    """Yield the documents of a file, as many at a time as are sent together."""
    batch: list[RawBSONDocument] = []
    size = 0
    while head := stream.read(4):
        length = int.from_bytes(head, "little")
        if not 5 <= length <= DOCUMENT_BYTES:
            raise BackupError(f"{stream.name} has a document of {length} bytes, which MongoDB has none of")
        document = head + stream.read(length - 4)
        batch.append(RawBSONDocument(document, RAW))
        size += length
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


if __name__ == "__main__":
    sys.exit(main())
