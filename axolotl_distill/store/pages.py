"""What the pages of a Parquet file say of themselves, read before any of them is unpacked.

The footer's sizes are only a summary; a reader allocates what the header of each page asks for.
"""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import pyarrow.parquet as pq

DICTIONARY_PAGE = 2
PLAIN = 0
MAX_HEADER = 1 << 16
DEEPEST = 8

Struct = dict[int, "int | Struct"]


class Page(NamedTuple):
    """kind: Parquet's PageType; sizes in bytes, unpacked with its header; values: how many."""

    kind: int
    unpacked: int
    values: int
    encoding: int


def check_pages(file: BinaryIO, size: int, column: pq.ColumnChunkMetaData, is_text: bool) -> None:
    """Raises ValueError unless the pages of a column are together what its footer says: bytes
    packed and unpacked, and values.

    is_text   also refuses what repeats a text without having it twice: a dictionary, or an
              encoding other than PLAIN; then the unpacked bytes bound the texts
    """
    name = column.path_in_schema
    unpacked = values = 0
    for page in _pages(file, size, column):
        unpacked += page.unpacked
        if is_text and (page.kind == DICTIONARY_PAGE or page.encoding != PLAIN):
            raise ValueError(f"the texts of its column {name} are not plain")
        values += page.values if page.kind != DICTIONARY_PAGE else 0
    if (unpacked, values) != (column.total_uncompressed_size, column.num_values):
        raise ValueError(
            f"the pages of its column {name} unpack to {unpacked} bytes and {values} values, and "
            f"its footer says {column.total_uncompressed_size} and {column.num_values}"
        )


def _pages(file: BinaryIO, size: int, column: pq.ColumnChunkMetaData) -> Iterator[Page]:
    """In order. Raises ValueError for a header that is none, or leads out of its column."""
    at, dictionary = column.data_page_offset, column.dictionary_page_offset
    if column.has_dictionary_page and dictionary is not None and 0 < dictionary < at:
        at = dictionary
    end = at + column.total_compressed_size
    if not 0 < at < end <= size:
        raise ValueError(f"its column {column.path_in_schema} lies outside the file")
    while at < end:
        file.seek(at)
        header = _Thrift(file.read(min(MAX_HEADER, end - at)))
        fields = header.struct()
        kind, unpacked, packed = (_number(fields, key) for key in (1, 2, 3))
        # One of these, by the kind of page: data, dictionary, data of the second version.
        about = fields.get(5) or fields.get(7) or fields.get(8)
        if not isinstance(about, dict) or min(unpacked, packed) < 0:
            raise ValueError(f"a page of its column {column.path_in_schema} has no header")
        encoding = _number(about, 4 if 8 in fields else 2)
        yield Page(kind, header.at + unpacked, _number(about, 1), encoding)
        at += header.at + packed
    if at != end:
        raise ValueError(f"a page of its column {column.path_in_schema} is longer than the column")


def _number(fields: Struct, key: int) -> int:
    value = fields.get(key)
    if not isinstance(value, int) or value < 0:
        raise ValueError("the header of a page is damaged")
    return value


class _Thrift:
    """Thrift's compact protocol, as far as headers need it: numbers and structs; the rest is
    passed over. `at`: the bytes read so far."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def struct(self, depth: int = 0) -> Struct:
        """field -> value, None where it is passed over. Raises ValueError."""
        found: Struct = {}
        field = 0
        while head := self._byte():
            field = field + (head >> 4) if head >> 4 else self._signed()
            value = self._value(head & 15, depth)
            if value is not None:
                found[field] = value
        return found

    def _value(self, kind: int, depth: int) -> "int | Struct | None":
        if depth > DEEPEST:
            raise ValueError("the header of a page is nested too deeply")
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                self.at += 8
            case 8:
                length = self._unsigned()
                self.at += length
            case 12:
                return self.struct(depth + 1)
            case _:
                raise ValueError("the header of a page holds what no header has")
        return None

    def _byte(self) -> int:
        if self.at >= len(self.data):
            raise ValueError("the header of a page is cut off, or too long")
        self.at += 1
        return self.data[self.at - 1]

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("the header of a page has a number without an end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
