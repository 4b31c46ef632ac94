"""What a manifest may say: strict types, nothing unknown, and numbers that agree.

The descriptions (`tokenizer`, `teacher`, `source`, `terms`) may say more than is asked for here;
everything that files are read by is closed. Descriptions are TypedDicts and no models: pydantic
checks both, but a model would write a null for what nobody said, and a key that it does not know
would be no ordinary key; the seal is over what was said.
"""

from itertools import pairwise
from typing import Annotated, Literal, Required

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator, with_config
from typing_extensions import TypedDict

from axolotl_distill.store import encoding
from axolotl_distill.store.payloads import Payloads, Shape
from axolotl_distill.store.payloads.base import Temperature

RECORD_BITS = 40
MAX_SHARDS = 100_000
# Entries; what tells where a record lies has 32 bits.
LONGEST_SHARD = 1 << 32

_CLOSED = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

Count = Annotated[int, Field(ge=0, lt=1 << RECORD_BITS)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, Field(min_length=1, max_length=4096)]


@with_config(_OPEN)
class Tokenizer(TypedDict, total=False):
    fingerprint: Required[Line]
    name: Required[Line]
    added: list[list[int]]
    text: dict[str, int]


Share = Annotated[float, Field(ge=0.0, le=1.0)]


@with_config(_OPEN)
class Check(TypedDict, total=False):
    """Of records of another tokenizer's, by a few rows at the start of the capture."""

    rows: Required[Count]
    tokens: Required[Count]
    carried: Required[Share]
    places: Count
    samples: Count
    within: Share
    error: Share
    unnamed: Share


@with_config(_OPEN)
class Teacher(TypedDict, total=False):
    name: Required[Line]
    weights: str
    temperature: Temperature
    cross_tokenizer: str
    tokenizer: str
    tokenizer_fingerprint: str
    check: Check


@with_config(_OPEN)
class Source(TypedDict, total=False):
    fingerprint: Required[Line]
    num_rows: Required[Count]
    supervised: Required[Count]
    datasets: list[str]
    train_on_inputs: bool


@with_config(_CLOSED)
class File(TypedDict):
    bytes: Annotated[int, Field(gt=0, lt=1 << 48)]
    sha256: Sha256


class Shard(BaseModel):
    """One committed shard. Counts, the source rows [start, stop) it covers, and its files."""

    model_config = _CLOSED

    name: Annotated[str, Field(pattern=r"^shard-[0-9]{5}$")]
    rows: Annotated[int, Field(ge=1, lt=1 << 32)]
    records: Annotated[int, Field(ge=0, lt=1 << 32)]
    entries: Annotated[int, Field(ge=0, lt=LONGEST_SHARD)]
    first_record: Count
    source_start: Count
    source_stop: Count
    files: dict[str, File]

    @property
    def rows_file(self) -> str:
        return f"data/{self.name}.parquet"

    @property
    def records_file(self) -> str:
        return f"teacher/{self.name}.safetensors"


class Contents(BaseModel):
    """The keys of manifest.json without its seal; see docs/store-format.md. Those from
    `vocab_size` to `tail_estimated` say what a store is made of; a capture that resumes must agree
    with all of them. Raises pydantic's ValidationError."""

    model_config = _CLOSED

    format: Literal["axolotl-distill-store"]
    version: Annotated[int, Field(ge=1, le=1)]
    uid: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    created: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
    generator: Line
    complete: bool
    vocab_size: int
    id_bits: int
    payloads: Payloads
    temperatures: Annotated[list[Temperature], Field(max_length=64)]
    sequence_len: Annotated[int, Field(ge=0, lt=1 << 32)]
    tokenizer: Tokenizer
    teacher: Teacher
    source: Source
    tail_estimated: list[Temperature]
    terms: dict[str, JsonValue]
    shards: Annotated[list[Shard], Field(max_length=MAX_SHARDS)]

    def shape_of(self, shard: Shard) -> Shape:
        """Of a shard's records."""
        return Shape(self.vocab_size, self.temperatures, shard.records, shard.entries)

    @model_validator(mode="after")
    def _agrees(self) -> "Contents":
        if self.id_bits != encoding.id_bits(self.vocab_size):
            raise ValueError(
                f"`id_bits` is {self.id_bits}, and a vocabulary of {self.vocab_size} has "
                f"{encoding.id_bits(self.vocab_size)}"
            )
        self.payloads.check_vocabulary(self.vocab_size)
        _ascending("temperatures", self.temperatures)
        if "tail" not in self.payloads.columns and self.temperatures:
            raise ValueError(f"`temperatures` are {self.temperatures}, and no tail is stored")
        if "tail" in self.payloads.columns and 1.0 not in self.temperatures:
            raise ValueError(f"`temperatures` are {self.temperatures}, without 1.0")
        _ascending("tail_estimated", self.tail_estimated)
        if not set(self.tail_estimated) <= set(self.temperatures):
            raise ValueError(f"`tail_estimated` {self.tail_estimated} is not among `temperatures`")
        self._shards_follow()
        if self.complete:
            self._is_all_of_its_source()
        return self

    def _shards_follow(self) -> None:
        records = rows = 0
        for number, shard in enumerate(self.shards):
            where = f"`shards.{number}`"
            if shard.name != shard_name(number):
                raise ValueError(f"{where} is named {shard.name}, not {shard_name(number)}")
            if set(shard.files) != {shard.rows_file, shard.records_file}:
                raise ValueError(
                    f"{where}.files are {sorted(shard.files)}, not {shard.rows_file} and "
                    f"{shard.records_file}"
                )
            if shard.first_record != records:
                raise ValueError(
                    f"{where}.first_record is {shard.first_record}, and {records} records are "
                    "before it"
                )
            if shard.source_start != rows:
                raise ValueError(
                    f"{where}.source_start is {shard.source_start}; the shard before it stops at "
                    f"{rows}"
                )
            if shard.rows > shard.source_stop - shard.source_start:
                raise ValueError(
                    f"{where} has {shard.rows} rows of the source's {shard.source_start} to "
                    f"{shard.source_stop}"
                )
            most = self.payloads.most_entries
            if not shard.records * min(1, most) <= shard.entries <= shard.records * most:
                raise ValueError(f"{where} has {shard.entries} entries in {shard.records} records")
            records += shard.records
            rows = shard.source_stop
        if rows > self.source["num_rows"] or records > self.source["supervised"]:
            raise ValueError(
                f"`shards` cover {rows} rows and {records} records of a source that has "
                f"{self.source['num_rows']} and {self.source['supervised']}"
            )

    def _is_all_of_its_source(self) -> None:
        records = sum(shard.records for shard in self.shards)
        rows = self.shards[-1].source_stop if self.shards else self.source["num_rows"]
        if rows != self.source["num_rows"] or records != self.source["supervised"]:
            raise ValueError(
                f"`complete` is true, but `shards` cover {rows} rows and {records} records of a "
                f"source that has {self.source['num_rows']} and {self.source['supervised']}"
            )


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


def _ascending(name: str, values: list[float]) -> None:
    if any(low >= high for low, high in pairwise(values)):
        raise ValueError(f"`{name}` {values} are not in ascending order, each once")
