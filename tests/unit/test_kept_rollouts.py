"""Graded completions on disk: what was written, what the teacher said of it, after any kill."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq
from support.live import another, attach, live, padded, texts
from support.model_types import VOCAB, tiny

from axolotl_distill.capture.records import make_records
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.errors import TrajectoryError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.rollout.conversation import Conversations
from axolotl_distill.rollout.gather import gather, gather_inside, survey
from axolotl_distill.rollout.keeper import Keeper
from axolotl_distill.rollout.kept import Part, begin, graded_rows, parts, records_file
from axolotl_distill.rollout.records import record_args
from axolotl_distill.rollout.step import OnPolicy
from axolotl_distill.rollout.writer import Completion, Writer
from axolotl_distill.store import describe_tokenizer, open_store, verify_store
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.teachers.itself import evaluating
from axolotl_distill.trajectories import read_trajectories

TEXTS = texts([17, 9, 24, 5])
BATCHES = [padded(TEXTS[:2]), padded(TEXTS[2:])]
SETTINGS = {"student": "s"}


def header(tokenizer, args):
    payload = distribution_of(args)
    return {
        "vocab_size": VOCAB,
        "payloads": [payload.model_dump()],
        "temperatures": args.temperatures if "tail" in payload.columns else [],
        "tail_estimated": [],
        "sequence_len": 60,
        "tokenizer": describe_tokenizer(tokenizer, VOCAB, []),
        "teacher": {"name": "T"},
        "terms": {},
    }


class Run:
    """A training of `steps` steps that keeps what the student writes, from the one after
    `since` on. No optimizer steps: what is written follows from the step alone."""

    def __init__(self, folder, tokenizer, *, since=0, rank=0, **loss):
        given = {"divergence": "reverse_kl", "temperature": 2.0, "alpha": 1.0, **loss}
        self.args = record_args(DistillArgs(teacher="T", **given), str(folder))
        self.args.k = 8
        if rank == 0:
            self.aside = begin(folder, SETTINGS, header(tokenizer, self.args), since)
        self.student, self.source = tiny("llama"), live(another(), given["temperature"])
        attach(self.student, self.source, **{k: v for k, v in given.items() if k != "temperature"})
        self.student.train()
        self.part = Part(folder, rank)
        said = []
        self.keeper = Keeper(
            part=self.part,
            conversations=Conversations(tokenizer),
            args=self.args,
            vocab_size=VOCAB,
            seed=4,
            rank=rank,
            about={"written by": "s", "graded by": "T"},
            warn=said.append,
        )
        self.said, self.source.heard = said, self.keeper.heard
        self.on_policy = self._on_policy(tokenizer, rank)
        self.next = since + 1

    def _on_policy(self, tokenizer, rank):
        args = OnPolicyArgs(lmbda=1.0, max_new_tokens=12)

        @contextmanager
        def as_author() -> Iterator[None]:
            with evaluating(self.student):
                yield

        collate = TeacherCollator(
            tokenizer, base_cls=DataCollatorForSeq2Seq, packed=False, stores=[], temperature=1.0,
            return_tensors="pt",
        )  # fmt: skip
        writer = Writer(self.student, as_author, args, (2,), 2, 60, lambda token: True)
        return OnPolicy(
            args=args, student=writer, teacher=None, collate=collate, packed=False, sequence_len=60,
            seed=4, rank=rank, decode=tokenizer.decode, warn=print, device=torch.device("cpu"),
            keeper=self.keeper,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.part.close()

    def steps(self, count, micro_batches=2):
        for _ in range(count):
            made = self.on_policy.replace(BATCHES, self.next)
            # Not in the order in which they were written.
            for batch in made[::-1][:micro_batches]:
                self.student(**batch, num_items_in_batch=torch.tensor(9)).loss.backward()
            self.next += 1


def content(folder):
    """Every row of every part, as it can be compared."""
    rows = [row for part in parts(folder) for row in graded_rows(part)]
    return [
        (
            r.trajectory,
            r.ids.tolist(),
            r.prompt_tokens,
            {name: values.tolist() for name, values in sorted(r.records.columns.items())},
        )
        for r in rows
    ]


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_a_row_is_what_was_written_and_what_the_teacher_said(tmp_path, tokenizer, divergence):
    with Run(tmp_path / "r", tokenizer, divergence=divergence) as run:
        run.steps(2)
        written = [
            run.on_policy.student.write(
                [t["input_ids"][: len(t["input_ids"]) // 3] for t in TEXTS], run.on_policy._seed(n)
            )
            for n in (1, 2)
        ]
    rows = list(graded_rows(tmp_path / "r" / "part-00000.jsonl"))
    assert [r.ids[r.prompt_tokens :].tolist() for r in rows] == [
        completion.ids for step in written for completion in step
    ]
    teacher = another()
    for row in rows:
        with torch.no_grad():
            logits = teacher(input_ids=torch.tensor(row.ids)[None], use_cache=False).logits[0]
        at = logits[row.prompt_tokens - 1 : -1].float()
        assert len(row.records) == len(at)
        if divergence == "reverse_kl":
            expected = make_records(at, run.args, 0)
            assert np.array_equal(row.records.lengths, expected.lengths)
            # The last bits of a log-probability differ with what it was padded to.
            ids = [found.view(np.uint32) >> 25 for found in (row.records.entries, expected.entries)]
            assert np.array_equal(*ids)
            assert np.abs(row.records.tail.astype(int) - expected.tail).max() <= 1
        else:
            entropy = torch.special.entr((at / 2.0).softmax(-1)).sum(-1)
            seen = row.records.entropy.astype(float)
            assert np.corrcoef(seen, entropy.numpy())[0, 1] > 0.999
        trajectory = row.trajectory
        assert trajectory["finish_reason"] == ("stop" if row.ids[-1] == 2 else "length")
        assert trajectory["usage"]["completion_tokens"] == len(at)
    assert survey(tmp_path / "r")["rows"] == 8 and len(run.said) == 1


def test_prompts_are_messages_where_the_template_makes_their_tokens(tokenizer):
    reads = Conversations(tokenizer)
    question, answer = {"role": "user"}, {"role": "assistant"}
    for messages in (
        [{**question, "content": "One?"}],
        [{"role": "system", "content": "Be brief."}, {**question, "content": "Two\n\nlines"}],
        [{**question, "content": "a"}, {**answer, "content": "b"}, {**question, "content": "c"}],
        [{"role": "system", "content": "s"}, {**question, "content": "a"},
         {**answer, "content": "b"}, {**question, "content": "<|im_end|>?"}],
    ):  # fmt: skip
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert reads.messages(ids) == messages
        assert reads.messages([*ids, 9]) is None
    assert reads.messages(tokenizer("A poem:")["input_ids"]) is None
    # The same text in other tokens is not what the template would make.
    at = ids.index(tokenizer("user")["input_ids"][0])
    apart = [token for letter in "user" for token in tokenizer(letter)["input_ids"]]
    other = [*ids[:at], *apart, *ids[at + 1 :]]
    assert tokenizer.decode(other) == text and reads.messages(other) is None


def test_thinking_is_told_from_the_answer(tokenizer):
    reads = Conversations(tokenizer)
    ids = tokenizer("<think>\nHm.\n</think>\n\nFour.")["input_ids"]
    done = Completion([*ids, tokenizer.eos_token_id], True)
    assert reads.answer([5, 6], done)[:2] == ("Hm.", "Four.")
    opened = tokenizer("<|im_start|>assistant\n<think>\n")["input_ids"]
    rest = Completion(tokenizer("Hm.\n</think>\n\nFour.")["input_ids"], False)
    assert reads.answer(opened, rest)[:2] == ("Hm.", "Four.")


def test_a_run_that_is_gone_on_with_has_no_row_twice(tmp_path, tokenizer):
    with Run(tmp_path / "whole", tokenizer) as run:
        run.steps(5)
    with Run(tmp_path / "r", tokenizer) as run:
        run.steps(4)
    # Killed with a checkpoint of step 2: steps 3 and 4 are taken again.
    with Run(tmp_path / "r", tokenizer, since=2) as run:
        assert run.aside == 8
        run.steps(3)
    assert content(tmp_path / "r") == content(tmp_path / "whole")
    assert len(list(read_trajectories(tmp_path / "r" / "aside"))) == 8


def test_a_kill_between_records_and_rows(tmp_path, tokenizer):
    with Run(tmp_path / "r", tokenizer) as run:
        run.steps(2)
        whole = content(tmp_path / "r")
        run.steps(1, micro_batches=1)
    assert content(tmp_path / "r") == whole, "a step is kept when all of it is graded"
    part = tmp_path / "r" / "part-00000.jsonl"
    data, records = part.read_bytes(), records_file(part).read_bytes()
    lines = data.splitlines(keepends=True)
    for cut in (b"".join(lines[:6]), data[:-30]):
        part.write_bytes(cut)
        records_file(part).write_bytes(records + b"torn")
        kept = len(cut.splitlines()) - (not cut.endswith(b"\n"))
        with Run(tmp_path / "r", tokenizer, since=2):
            assert content(tmp_path / "r") == whole[:kept]
        assert records_file(part).stat().st_size < len(records)


def test_damage_is_found(tmp_path, tokenizer):
    folder = tmp_path / "r"
    with Run(folder, tokenizer) as run:
        run.steps(2)
    part = folder / "part-00000.jsonl"
    lines, records = part.read_bytes(), records_file(part).read_bytes()
    flipped = bytearray(records)
    flipped[-20] ^= 1
    for file, data, said in (
        (part, lines.replace(b'"row":1', b'"row":2', 1), "its `seal` differs"),
        (records_file(part), bytes(flipped), "has not the records"),
        (records_file(part), records[:-1], "has not the records"),
        (part, b"".join(sorted(lines.splitlines(keepends=True))), "has not the records"),
    ):
        before = file.read_bytes()
        file.write_bytes(data)
        with pytest.raises(TrajectoryError, match=said):
            survey(folder)
        file.write_bytes(before)
    with part.open("ab") as file:
        file.write(lines.splitlines(keepends=True)[0])
    with records_file(part).open("ab") as file:
        file.write(records[: len(records)])
    with pytest.raises(TrajectoryError, match="twice"):
        survey(folder)


def test_the_folder_of_another_run_is_refused(tmp_path, tokenizer):
    folder = tmp_path / "r"
    with Run(folder, tokenizer) as run, pytest.raises(TrajectoryError, match="another process"):
        run.steps(1)
        Part(folder, 0)
    with pytest.raises(TrajectoryError, match="begins anew"):
        Run(folder, tokenizer)
    with pytest.raises(TrajectoryError, match=r"temperatures: \[1.0, 2.0\] before, \[1.0\] now"):
        Run(folder, tokenizer, since=1, temperature=1.0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(TrajectoryError, match="something else"):
        Run(tmp_path / "mine", tokenizer)
    (folder / "rollouts.json").write_text(json.dumps({"format": "x"}))
    with pytest.raises(TrajectoryError, match="not what this release writes"):
        Run(folder, tokenizer, since=1)


def test_ranks_write_parts_of_one_folder(tmp_path, tokenizer):
    folder = tmp_path / "r"
    with Run(folder, tokenizer) as one, Run(folder, tokenizer, rank=1) as other:
        one.steps(2)
        other.steps(2)
    assert survey(folder)["rows"] == 16 and len(parts(folder)) == 2
    with Run(folder, tokenizer, since=1) as run:
        assert run.aside == 8, "of both"


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_a_teacher_store_of_all_rows_or_of_some(tmp_path, tokenizer, divergence):
    folder = tmp_path / "r"
    with Run(folder, tokenizer, divergence=divergence) as run:
        assert gather_inside(folder, tokenizer.decode) is None
        run.steps(2)
        store = gather_inside(folder, tokenizer.decode)
        run.steps(1)
        assert gather_inside(folder, tokenizer.decode) == store == folder / "store"
    rows = [r for part in parts(folder) for r in graded_rows(part)]
    found = verify_store(store)
    assert found.manifest.num_rows == 12
    assert found.num_records == sum(len(r.records) for r in rows)
    some = {rows[3].trajectory["id"], rows[7].trajectory["id"]}
    manifest = gather(folder, tmp_path / "some", tokenizer.decode, some)
    assert manifest.num_rows == 2
    few = open_store(tmp_path / "some")
    entries = few.read(np.arange(few.num_records)).entries
    lengths = np.concatenate([rows[3].records.lengths, rows[7].records.lengths])
    assert (entries != np.uint32(0xFFFFFFFF)).sum() == lengths.sum()
    first = rows[3].records.entries[: rows[3].records.lengths[0]]
    assert np.array_equal(entries[0][: len(first)], first)
    with pytest.raises(TrajectoryError, match="no row with one of the 1 ids"):
        gather(folder, tmp_path / "none", tokenizer.decode, {"x"})
