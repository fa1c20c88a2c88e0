"""Backup and restore of MongoDB: mongodb-backup create | list | pack NAME | unpack FILE | restore NAME.

A backup is a directory in the format of ``mongodump --gzip``, which ``mongorestore --gzip --dir`` can also restore: for each
collection ``<database>/<collection>.bson.gz``, and ``.metadata.json.gz`` with options and indexes. A backup of a replica set is a
consistent snapshot; a standalone mongod has no snapshots, so each collection is as it was when it was read.

This is a separate program because a timer runs it with Debian's python3 and python3-pymongo only.
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

#: Databases of MongoDB itself. Only users and roles are backed up, for mongorestore; a restore here ignores them.
INTERNAL = frozenset({"admin", "config", "local"})
ACCOUNTS = ("system.users", "system.roles", "system.version")

#: Collections that MongoDB derives from others.
DERIVED = frozenset({"system.views", "system.profile"})

#: Prefix of a collection while it is restored, before it is renamed.
TEMPORARY_PREFIX = "restoring."

#: Error codes of MongoDB: the catalog has changed since the snapshot, and the snapshot is older than the history window.
SNAPSHOT_UNAVAILABLE, SNAPSHOT_TOO_OLD = 246, 239

#: System collections that apps may write; the others hold permissions or are derived.
WRITABLE_SYSTEM = re.compile(r"system\.(js|buckets\..+)")

RAW: Any = CodecOptions(document_class=RawBSONDocument)

#: Maximum number of documents in a batch, and the size in bytes beyond which a batch takes no further document.
MAX_BATCH, FULL_BATCH_BYTES = 1000, 32 << 20

#: Maximum size of a document (BSONObjMaxInternalSize of MongoDB), and of the metadata of a collection.
MAX_DOCUMENT_BYTES = (16 << 20) + (16 << 10)
MAX_METADATA_BYTES = 16 << 20

#: Paths in a packed backup: its directory, one directory per database, and two files per collection.
MEMBER = re.compile(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ)(/[^/.\0][^/.\0]*(/[^/\0]+\.(bson|metadata\.json)\.gz)?)?")

#: Memory limit for unpacking, because headers of a tar file can claim any size.
MAX_UNPACK_MEMORY = 1 << 30


class BackupError(Exception):
    """The backup or restore failed; the message holds the reason and the available backups."""


def main() -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(prog="mongodb-backup", description="Back up and restore MongoDB of this host.")
    parser.add_argument("--port", type=int, default=27017, help="port of mongod")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="directory of the backups")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="create a backup")
    create.add_argument("--keep", type=int, default=0, help="number of backups to keep; 0 keeps all")
    commands.add_parser("list", help="list the backups, newest last")
    pack = commands.add_parser("pack", help="pack a backup into a tar file, and print its path")
    pack.add_argument("name", help="name of the backup")
    unpack = commands.add_parser("unpack", help="unpack a backup from a tar file, and print its name")
    unpack.add_argument("file", type=Path, help="the tar file")
    restore = commands.add_parser("restore", help="restore a backup; collections that it does not contain are not changed")
    restore.add_argument("name", help="name of the backup, or `latest`")
    restore.add_argument("--force", action="store_true", help="replace existing data")
    arguments = parser.parse_args()
    backups = Backups(arguments.directory)
    try:
        if arguments.command == "list":
            print_result("\n".join(backups.names()))
            return 0
        if arguments.command in {"pack", "unpack"}:
            with backups.locked():
                print_result(str(backups.pack(arguments.name)) if arguments.command == "pack" else backups.unpack(arguments.file))
            return 0
        with backups.locked(), contextlib.closing(connect(arguments.port, to_write=arguments.command == "restore")) as client:
            if arguments.command == "create":
                print_result(backups.create(client, arguments.keep))
            else:
                print_result(backups.restore(client, arguments.name, force=arguments.force))
    except (BackupError, OSError, PyMongoError, EOFError, zlib.error, bson.errors.BSONError) as error:
        sys.stderr.write(f"mongodb-backup: {str(error).partition(', full error:')[0]}\n")
        return 1
    return 0


def print_result(text: str) -> None:
    """Write the result to stdout."""
    sys.stdout.write(f"{text}\n")


def connect(port: int, *, to_write: bool) -> Client:
    """Return a client of mongod on this host, or, with ``to_write``, of the primary of its replica set."""
    password = PASSWORD_FILE.read_text(encoding="utf-8")
    options: Any = {"username": "admin", "password": password, "serverSelectionTimeoutMS": 10_000}
    client: Client = MongoClient("127.0.0.1", port, directConnection=True, **options)
    name = client.admin.command("hello").get("setName") if to_write else None
    return MongoClient("127.0.0.1", port, replicaSet=name, **options, w="majority") if name else client


class Backups:
    """The backups in a directory, named after their time (UTC)."""

    def __init__(self, directory: Path) -> None:
        """Store the directory without accessing it."""
        self.directory = directory

    def names(self) -> list[str]:
        """Return the names of complete backups, newest last."""
        if not self.directory.is_dir():
            return []
        found = (path for path in self.directory.iterdir() if path.is_dir() and not path.is_symlink())
        return sorted(path.name for path in found if not path.name.startswith("."))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold an exclusive lock, which also ends with the process.

        :raises BackupError: if another process holds it.
        """
        os.umask(0o077)
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = self.directory.stat()
        if (state.st_uid, state.st_gid) != (0, 0):  # chown is not permitted in the unit of the timer, nor needed
            os.chown(self.directory, 0, 0)
        self.directory.chmod(0o700)
        with os.fdopen(os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BackupError("another backup or restore is in progress; try again when it has finished") from error
            yield

    def create(self, client: Client, keep: int = 0) -> str:
        """Create a backup and return its name; then remove the oldest ones so that ``keep`` remain.

        :raises BackupError: if it cannot be created; no backup is removed then.
        """
        for leftover in self.directory.glob(".*.new"):
            shutil.rmtree(leftover)
        name = time.strftime("%Y-%m-%dT%H-%M-%SZ", time.gmtime())
        new = self.directory / f".{name}.new"
        try:
            for retries in (2, 1, 0):
                shutil.rmtree(new, ignore_errors=True)
                try:
                    dump(client, new)
                    break
                except OperationFailure as error:
                    if error.code == SNAPSHOT_TOO_OLD:
                        raise BackupError(
                            "the backup took longer than the snapshot history window of the replica set; raise mongodb_settings."
                            f"setParameter.minSnapshotHistoryWindowInSeconds: {error}"
                        ) from error
                    if error.code != SNAPSHOT_UNAVAILABLE or not retries:
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
        """Pack a backup into a tar file that only root can read, and return its path.

        :raises BackupError: if the backup does not exist.
        """
        self._require(name)
        file = self.directory / ".fetch.tar"
        file.unlink(missing_ok=True)
        with tarfile.open(file, "w") as archive:
            archive.add(self.directory / name, name)
        return file

    def unpack(self, file: Path) -> str:
        """Unpack an untrusted tar file of `pack` and return the name of the backup, which replaces one of the same name.

        Only directories and files with valid names are created, all of them new and owned by root.

        :raises BackupError: if the file is damaged or contains anything else; nothing is changed then.
        """
        resource.setrlimit(resource.RLIMIT_AS, (MAX_UNPACK_MEMORY, MAX_UNPACK_MEMORY))
        new = self.directory / ".unpacked.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            with tarfile.open(file, "r:") as archive:
                names = {_unpack_member(archive, member, new) for member in archive}
            if len(names) != 1:
                raise BackupError(f"{file} must contain one backup; it contains {', '.join(sorted(names)) or 'none'}")
            os.sync()
            name = names.pop()
            if (self.directory / name).exists():
                (self.directory / name).rename(new / ".old")
            (new / name).rename(self.directory / name)
        except (tarfile.TarError, MemoryError, RecursionError, ValueError) as error:
            raise BackupError(f"{file} is not a tar file of a backup, or is damaged: {error!r}") from error
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return name

    def _require(self, name: str) -> None:
        names = self.names()
        if name not in names:
            raise BackupError(f"{self.directory} has no backup {name}; it has {', '.join(names) or 'none'}")

    def restore(self, client: Client, name: str, *, force: bool) -> str:
        """Restore a backup, and return a summary.

        All collections are restored under temporary names before the first one is renamed, so a damaged backup changes nothing.

        :raises BackupError: if the backup does not exist, or its databases have data and ``force`` is not set.
        """
        names = self.names()
        if name == "latest" and names:
            name = names[-1]
        self._require(name)
        databases = [path for path in sorted((self.directory / name).iterdir()) if path.name.lower() not in INTERNAL]
        filled = [path.name for path in databases if client[path.name].list_collection_names()]
        if filled and not force:
            raise BackupError(f"there is data in {', '.join(filled)}; to replace it, restore with force")
        collections = [collection for path in databases for collection in CollectionRestore.of_database(client, path)]
        try:
            for collection in collections:
                collection.prepare()
            for collection in collections:
                collection.finish()
        finally:
            for collection in collections:
                collection.clear()
        counts = (f"{restored.database.name}.{restored.name}: {restored.count} documents" for restored in collections)
        return "\n".join([f"restored {name}", *counts])


def _unpack_member(archive: tarfile.TarFile, member: tarfile.TarInfo, directory: Path) -> str:
    """Unpack a directory or file, and return the name of the backup."""
    matched = MEMBER.fullmatch(member.name)
    is_file = bool(matched and matched[3])
    # A sparse file may be larger than the archive, so it could fill the disk.
    if not matched or member.issparse() or not (member.isreg() if is_file else member.isdir()):
        raise BackupError(f"the tar file has {ascii(member.name)[:200]}, which is not part of a backup; nothing was unpacked")
    target = directory / member.name
    if not is_file:
        target.mkdir()
        return matched[1]
    content = archive.extractfile(member)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        shutil.copyfileobj(cast(IO[bytes], content), file)
    return matched[1]


def dump(client: Client, directory: Path) -> None:
    """Write all databases of ``client`` to ``directory``."""
    snapshot_time = client.admin.command("ping").get("operationTime")  # replica sets only
    concern = {"readConcern": {"level": "snapshot", "atClusterTime": snapshot_time}} if snapshot_time else {}
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
        description = {"name": name, "type": "collection", "options": {}}
        dump_collection(client, client.admin, description, directory / "admin", {})


def dump_collection(
    client: Client, database: Database[Document], description: Mapping[str, Any], directory: Path, concern: Mapping[str, Any]
) -> None:
    """Write the metadata of a collection and its documents; views and time series have no documents of their own."""
    name, kind = description["name"], description["type"]
    file = urllib.parse.quote(name, safe=" $")
    metadata: Document = {"options": description["options"], "collectionName": name, "type": kind, "indexes": []}
    if kind != "view":
        metadata["indexes"] = [dict(index) for index in database[name].list_indexes()]
    with gzip.open(directory / f"{file}.metadata.json.gz", "wt", encoding="utf-8") as stream:
        stream.write(dumps(metadata, json_options=CANONICAL_JSON_OPTIONS))
    if kind != "collection":
        return
    with (
        gzip.open(directory / f"{file}.bson.gz", "wb", compresslevel=1) as documents,
        client.start_session(causal_consistency=False) as session,
    ):
        batch, command = "firstBatch", {"find": name, "batchSize": MAX_BATCH, **concern}
        while True:
            cursor = database.command(command, codec_options=RAW, session=session)["cursor"]
            for document in cursor[batch]:
                documents.write(document.raw)
            if not cursor["id"]:
                return
            batch, command = "nextBatch", {"getMore": cursor["id"], "collection": name, "batchSize": MAX_BATCH}


class CollectionRestore:
    """The restore of a collection."""

    def __init__(self, database: Database[Document], documents: Path, metadata: Mapping[str, Any]) -> None:
        """Validate the metadata without changing anything."""
        self.database = database
        self.name = str(metadata["collectionName"])
        self.count = 0
        self._documents = documents
        self._options = dict(metadata["options"])
        if "create" in self._options or (self.name.startswith("system.") and not WRITABLE_SYSTEM.fullmatch(self.name)):
            raise ValueError(f"{self.name} is a reserved system collection")
        self._indexes = [index for index in metadata["indexes"] if index["name"] != "_id_" and not index.get("clustered")]
        # MongoDB cannot rename time series, and views have no documents: both are created at the end.
        self._renamed = metadata["type"] == "collection" and not self.name.startswith("system.")

    @classmethod
    def of_database(cls, client: Client, directory: Path) -> list[CollectionRestore]:
        """Return the collections of a database in a backup, in the order of their dependencies."""
        found = []
        for path in sorted(directory.glob("*.metadata.json.gz")):
            documents = path.with_name(path.name.replace(".metadata.json.gz", ".bson.gz"))
            try:
                found.append(cls(client[directory.name], documents, _metadata(path)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise BackupError(f"{path} is not valid metadata of a collection: {error!r}") from error
        return sorted(found, key=lambda restore: (restore.name.startswith("system."), not restore._renamed, restore.name))

    def prepare(self) -> None:
        """Restore the collection under a temporary name."""
        if self._renamed:
            self._fill(f"{TEMPORARY_PREFIX}{self.name}")

    def finish(self) -> None:
        """Replace the existing collection."""
        if self._renamed:
            source = f"{self.database.name}.{TEMPORARY_PREFIX}{self.name}"
            target = f"{self.database.name}.{self.name}"
            self.database.client.admin.command({"renameCollection": source, "to": target, "dropTarget": True})
        else:
            self._fill(self.name)

    def clear(self) -> None:
        """Remove the temporary collection if it was not renamed."""
        if self._renamed:
            self.database.drop_collection(f"{TEMPORARY_PREFIX}{self.name}")

    def _fill(self, name: str) -> None:
        if not name.startswith("system."):  # MongoDB creates the buckets of a time series
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
    """Return the metadata of a collection, limited in size because a compressed file can expand to any size."""
    with gzip.open(path, "rb") as stream:
        text = stream.read(MAX_METADATA_BYTES + 1)
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError(f"it is larger than {MAX_METADATA_BYTES} bytes")
    return cast(Mapping[str, Any], loads(text.decode(), json_options=CANONICAL_JSON_OPTIONS))


def _batches(stream: IO[bytes]) -> Iterator[list[RawBSONDocument]]:
    """Yield the documents of a file in batches."""
    batch: list[RawBSONDocument] = []
    size = 0
    while head := stream.read(4):
        length = int.from_bytes(head, "little")
        if not 5 <= length <= MAX_DOCUMENT_BYTES:
            raise BackupError(f"{stream.name} has a document of {length} bytes, which is not a valid size in MongoDB")
        document = head + stream.read(length - 4)
        batch.append(RawBSONDocument(document, RAW))
        size += length
        if len(batch) == MAX_BATCH or size > FULL_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


if __name__ == "__main__":
    sys.exit(main())
