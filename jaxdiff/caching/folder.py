"""The folder of a cache: ``cache.json``, which says what made it, and shards of records as array_record files."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxdiff.data.text_files import read_json, read_text
from jaxdiff.errors import RunFailure, UserError, expect

FILE = "cache.json"
FORMAT = 1
OPTIONS = "group_size:1,uncompressed"
"""Of the files: each record is read alone, and floats would hardly become smaller."""


@dataclasses.dataclass(frozen=True)
class Description:
    """What ``cache.json`` says.

    Attributes:
      made_by: see `key.Key`.
      fields: the encoded ones.
      dtype: of their floats.
      length: number of examples.
      shards: number of files.
      format: of the records.
    """

    made_by: Any
    fields: tuple[str, ...]
    dtype: str
    length: int
    shards: int
    format: int = FORMAT

    def rows(self, shard: int) -> range:
        """The examples of a shard; sizes of shards differ by at most one."""
        return range(shard * self.length // self.shards, (shard + 1) * self.length // self.shards)


@dataclasses.dataclass(frozen=True)
class Folder:
    """A cache on this machine.

    Attributes:
      path: the folder.
      flag: where the user named it, for errors.
    """

    path: str
    flag: str

    def __post_init__(self):
        local = "://" not in self.path
        expect(local, self.flag, self.path, "a folder on this machine", "give one, and copy it there")

    @property
    def root(self) -> pathlib.Path:
        return pathlib.Path(self.path).expanduser()

    def describe(self) -> Description | None:
        """What ``cache.json`` says; None without this file.

        Raises:
          UserError: it is damaged, or of another version.
        """
        if not (self.root / FILE).exists():
            return None
        where, fix = (
            f"{self.flag}={self.path}: {FILE}",
            "restore the file, or make the cache again in another folder",
        )
        found = read_json(read_text(self.root / FILE, where), where, fix)
        names = {field.name for field in dataclasses.fields(Description)}
        known = isinstance(found, dict) and found.keys() == names and found["format"] == FORMAT
        expect(known, self.flag, self.path, f"a cache of format {FORMAT}", fix, "other values")
        return Description(**{**found, "fields": tuple(found["fields"])})

    def begun(self) -> Description | None:
        """What ``cache.json`` says, if there is a shard."""
        description = self.describe()
        return (
            description if description and any(file.exists() for file in self.shards(description)) else None
        )

    def begin(self, description: Description) -> None:
        """Write ``cache.json`` of a new cache, and remove what an earlier attempt has left."""
        for draft in self.root.glob(".*.partial"):
            draft.unlink()
        with self._place(FILE) as partial:
            partial.write_text(json.dumps(dataclasses.asdict(description), indent=1) + "\n")

    def shards(self, description: Description) -> list[pathlib.Path]:
        """The files of all shards, whether they exist or not."""
        count = description.shards
        return [self.root / f"examples-{shard:05d}-of-{count:05d}.array_record" for shard in range(count)]

    @contextlib.contextmanager
    def writer(self, shard: pathlib.Path) -> Iterator[Any]:
        """A writer of a shard's records. The file gets its name when it is complete."""
        from array_record.python.array_record_module import ArrayRecordWriter

        with self._place(shard.name) as partial:
            writer = ArrayRecordWriter(str(partial), OPTIONS)
            try:
                yield writer
            finally:
                writer.close()

    def records(self, shards: list[pathlib.Path]) -> "Records":
        """Random access to the records of complete shards."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        with _damage(self.path):
            source = ArrayRecordDataSource(list(map(str, shards)))
            return Records(self.path, source, len(source))

    def complete(self) -> Description:
        """The description of a complete cache.

        Raises:
          UserError: there is none, or shards are missing.
        """
        description = self.describe()
        fix = "run python -m jaxdiff.cache with this config, and --out with this folder"
        if description is None:
            raise UserError(f"{self.flag}={self.path}: expected a cache, got no {FILE} there. Fix: {fix}")
        found, count = sum(file.exists() for file in self.shards(description)), description.shards
        expect(found == count, self.flag, self.path, f"all {count} shards", fix, f"{found} of them")
        return description

    @contextlib.contextmanager
    def _place(self, name: str) -> Iterator[pathlib.Path]:
        """A draft beside a file, which gets the file's name unless there is an error."""
        partial = self.root / f".{name}.partial"
        try:
            yield partial
            partial.replace(self.root / name)
        finally:
            partial.unlink(missing_ok=True)


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to records, whose checksums are compared; a damaged one is a `RunFailure`."""

    path: str
    source: Any
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> bytes:
        with _damage(self.path):
            return self.source[index]


@contextlib.contextmanager
def _damage(path: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunFailure(
            f"{path}: expected records as they were written, got damaged ones. "
            "Fix: remove the damaged file, and run python -m jaxdiff.cache again"
        ) from error
