"""The teacher store: a teacher's distribution of every supervised token, on disk.

Needs numpy, pyarrow and safetensors; neither torch nor axolotl. docs/store-format.md describes
the format, which can be read without this package.
"""

from axolotl_distill.store.manifest import Manifest, new_manifest
from axolotl_distill.store.opening import open_store
from axolotl_distill.store.payloads import Payload, RecordBatch, Records
from axolotl_distill.store.reader import TeacherStore, pointer_record, pointer_tag
from axolotl_distill.store.remote import CachePlace, RemoteStore
from axolotl_distill.store.schema import Shard
from axolotl_distill.store.tokenizer import (
    added_ids,
    check_compatible,
    describe_tokenizer,
    tokenizer_fingerprint,
    tokens_of,
)
from axolotl_distill.store.verify import verify_store
from axolotl_distill.store.writer import StoreWriter
from axolotl_distill.unplugged import needs_plugin

load = needs_plugin("axolotl_distill.store")

__all__ = [
    "CachePlace",
    "Manifest",
    "Payload",
    "RecordBatch",
    "Records",
    "RemoteStore",
    "Shard",
    "StoreWriter",
    "TeacherStore",
    "added_ids",
    "check_compatible",
    "describe_tokenizer",
    "load",
    "new_manifest",
    "open_store",
    "pointer_record",
    "pointer_tag",
    "tokenizer_fingerprint",
    "tokens_of",
    "verify_store",
]
