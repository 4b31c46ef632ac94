"""Whether teacher and student read token ids the same way."""

import hashlib
import json
from typing import Any

from axolotl_distill.errors import StoreError, TokenizerMismatchError
from axolotl_distill.store.manifest import Manifest


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 over every (token, id) of a Hugging Face tokenizer, added tokens included.

    The chat template is not part of it: records belong to token ids, however these were made.
    """
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return hashlib.sha256(json.dumps(vocabulary, ensure_ascii=True).encode()).hexdigest()


def check_compatible(manifest: Manifest, *, tokenizer: Any, student_vocab_size: int) -> None:
    """Raises TokenizerMismatchError when the student's tokenizer is not the teacher's, and
    StoreError when its output head is too small for the stored ids.

    A head larger than the vocabulary, padded for speed, is fine.
    """
    seen = tokenizer_fingerprint(tokenizer)
    expected = manifest.tokenizer["fingerprint"]
    if seen != expected:
        raise TokenizerMismatchError(
            f"The student's tokenizer ({getattr(tokenizer, 'name_or_path', '?')}, {len(tokenizer)} "
            f"tokens, fingerprint {seen[:12]}) is not the one the store was captured with "
            f"({manifest.tokenizer.get('name', '?')}, {manifest.vocab_size} tokens, "
            f"fingerprint {expected[:12]}). Its token ids would mean other tokens. Use a student "
            "with the teacher's tokenizer; teachers with another tokenizer are what "
            "`distill.cross_tokenizer` is for, which this release does not have yet."
        )
    if student_vocab_size < manifest.vocab_size:
        raise StoreError(
            f"The student's output head has {student_vocab_size} rows (`vocab_size` of its "
            f"config), but the store holds token ids up to {manifest.vocab_size - 1}. Resize the "
            "student's embeddings to its tokenizer first."
        )
