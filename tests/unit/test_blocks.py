"""What a key says of itself: who reads it, by presence, and what a teacher is in every YAML."""

import pytest

from axolotl_distill.commands.recipe import Recipe
from axolotl_distill.config.block import parse_block
from axolotl_distill.config.distill import DistillArgs, DistillConfig, parse_distill
from axolotl_distill.config.reading import capture_args
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.steps.deduplicate import DeduplicateArgs
from axolotl_distill.filter.steps.reward import RewardArgs
from axolotl_distill.filter.steps.verify import VerifyArgs

SERVER = {"base_url": "http://h:1/v1", "engine": "vllm"}
SERVED = {"model": "m", "server": SERVER}
STORE = {"path": "./s", "type": "axolotl_distill.store"}
CHATS = {"path": "./c.jsonl", "type": "chat_template"}


def capture(teacher="m", **keys):
    return {"capture": {"teacher": teacher, "output": "o", **keys}}


def recipe(teacher, **generate):
    return {"teacher": teacher, "generate": {"prompts": ["p"], "output": "o", **generate}}


# Every value is the default's: what counts is that the key is there.
UNREAD = [
    (DistillArgs, {"beta": 0.5}, "`beta: 0.5` is read by `divergence: jsd` only, and `divergence`"),
    (DistillArgs, {"skew": 0.1}, "skew_forward_kl` and `divergence: skew_reverse_kl` only"),
    (DistillArgs, {"divergence": "jsd", "akl_mu": 0.5}, "`divergence` is jsd"),
    (DistillArgs, {"teacher": "text", "alpha": 0.7}, "`alpha: 0.7` is not read with `teacher: t"),
    (DistillArgs, {"teacher": "text", "temperature": 1.0}, "`temperature: 1` is not read with"),
    (DistillArgs, {"teacher": "text", "divergence": "forward_kl"}, "`divergence: forward_kl` is n"),
    (DistillArgs, {"teacher": "text", "support": None}, "`support` is not read with"),
    (DistillArgs, capture(method="nucleus", k=64), "`k: 64` is read by `method: topk` only"),
    (DistillArgs, capture(method="topk", p=0.98), "`p: 0.98` is read by `method: nucleus` only"),
    (DistillArgs, capture(method="topk", max_k=256), "`max_k: 256`"),
    (
        DistillArgs,
        capture(method="topk", draws=50),
        "`draws: 50` is read by `method: sampled` only",
    ),
    (DistillArgs, capture(method="topk", sampling_temperature=1.0), "`sampling_temperature: 1`"),
    (
        DistillArgs,
        capture(method="topk", seed=0),
        "`seed: 0` is read by `method: sampled` only, and",
    ),
    (DistillArgs, capture(SERVED, batch_tokens=None), "`batch_tokens` is read without `teacher.se"),
    (TeacherArgs, {**SERVED, "dtype": "auto"}, "`dtype: auto` is read without `server` only"),
    (TeacherArgs, {**SERVED, "device": "auto"}, "`device: auto`"),
    (TeacherArgs, {**SERVED, "device_map": "auto"}, "`device_map: auto`"),
    (TeacherArgs, {**SERVED, "quantization": "4bit"}, "`quantization: 4bit`"),
    (TeacherArgs, {**SERVED, "adapter": "a"}, "`adapter: a`"),
    (TeacherArgs, {**SERVED, "revision": "r"}, "`revision: r`"),
    (TeacherArgs, {**SERVED, "trust_remote_code": False}, "`trust_remote_code: false`"),
    (TeacherArgs, {"model": "m", "device": "auto", "device_map": {"": 0}}, "`device_map` is set"),
    (TeacherArgs, {"model": "m", "context": "c"}, "`context: c` is read by `self: true` only"),
    (TeacherArgs, {"self": True, "model": "m"}, "`model: m` is not read with `self: true`"),
    (TeacherArgs, {"self": True, "server": SERVER}, "`server` is not read with `self: true`"),
    (TeacherArgs, {"self": True, "terms": "t"}, "`terms: t` is not read with `self: true`"),
    (Recipe, recipe(SERVED, batch_size=16), "`generate.batch_size: 16` is read without `teacher"),
    (RewardArgs, {**SERVED, "batch_size": 8}, "`batch_size: 8` is read without `server` only"),
    (RewardArgs, {**SERVED, "dtype": "auto"}, "`dtype: auto`"),
    (DeduplicateArgs, {"threshold": 0.8}, "`threshold: 0.8` is read by `method: near` only"),
    (DeduplicateArgs, {"of": "prompt", "within": "prompt"}, "`within: prompt` is not read with"),
    (VerifyArgs, {"method": "math", "tolerance": 1e-6}, "`tolerance: 1e-06` is read by `method: n"),
    (VerifyArgs, {"method": "exact", "allow": False}, "`allow: false` is read by `method: code`"),
    (VerifyArgs, {"method": "code", "allow": True, "extract": None}, "`extract` is read by"),
]


@pytest.mark.parametrize(("block", "values", "said"), UNREAD)
def test_what_nothing_reads_is_refused_by_presence(block, values, said):
    with pytest.raises(ConfigError) as refused:
        parse_block(block, values)
    assert said in str(refused.value) and "Remove it" in str(refused.value)


@pytest.mark.parametrize(
    ("block", "values"),
    [
        (DistillArgs, {"divergence": "jsd", "beta": 0.5}),
        (DistillArgs, capture(method="nucleus", p=0.98, max_k=256)),
        (DistillArgs, capture(SERVED, k=64)),
        (DistillArgs, {"teacher": "text", "label_smoothing": 0.1, "backend": "torch"}),
        (TeacherArgs, {"model": "m", "device_map": {"": 0}, "quantization": "8bit"}),
        (TeacherArgs, {"model": "m", "adapter": "a", "revision": "r", "dtype": "bfloat16"}),
        (TeacherArgs, {"self": True, "context": "the answer"}),
        (Recipe, recipe("m", batch_size=16)),
        (RewardArgs, {**SERVED, "trust_remote_code": True}),
        (DeduplicateArgs, {"method": "near", "threshold": 0.8, "within": "dataset"}),
        (VerifyArgs, {"method": "numeric", "tolerance": 1e-6, "answer_extract": "whole"}),
    ],
)
def test_what_is_read_is_taken(block, values):
    assert parse_block(block, values).model_dump(exclude_unset=True).keys() == values.keys()


@pytest.mark.parametrize("where", ["capture", "recipe"])
@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ({"name": "m"}, "unknown key `name`; did you mean `model`?"),
        ({"path": "m"}, "unknown key `path`; did you mean `model`?"),
        ({"type": "model", "model": "m"}, "`type` is no key of a teacher"),
        ({"model": "m", "load_in_4bit": True}, "did you mean `quantization: 4bit`?"),
        ({"model": "m", "quantization": "int8"}, "must be one of 4bit, 8bit"),
        ({"model": "m", "device_map": "cuda"}, "for one device set `device`"),
        ({"model": "m", "device_map": {}}, "maps no module"),
        ({"model": "m", "device_map": {"": True}}, "device_map"),
        ({"model": " "}, "no `model`"),
        ({"model": "/", "revision": "main"}, "read for a model on the hub only"),
        ({"self": True}, "is the student while it is trained"),
        ({"model": "m", "sharded": True}, "spreads a teacher over the processes that train"),
    ],
)
def test_a_teacher_that_is_refused_everywhere(where, teacher, said):
    with pytest.raises(ConfigError) as refused:
        if where == "capture":
            parse_distill(capture(teacher))
        else:
            parse_block(Recipe, recipe(teacher))
    assert said in str(refused.value)


def test_a_bare_name_is_a_model():
    assert parse_distill(capture("m")).capture.teacher == TeacherArgs(model="m")
    assert parse_block(Recipe, recipe("m")).teacher == TeacherArgs(model="m")


def test_the_datasets_settle_what_the_teacher_is():
    assert parse_distill({}, [CHATS, STORE]).teacher == "store"
    assert parse_distill({"alpha": 0.3}, [STORE]).alpha == 0.3
    text = parse_distill({"label_smoothing": 0.1}, [CHATS])
    assert (text.teacher, text.alpha) == ("text", 0.0)
    with pytest.raises(ConfigError, match=r"`alpha: 0.3` is not read.*\n.*axolotl distill capture"):
        parse_distill({"alpha": 0.3}, [CHATS])
    # Such a config captures first; training then asks for the store.
    assert parse_distill(capture(), [CHATS]).teacher == "store"
    with pytest.raises(ConfigError, match="did you mean `text`"):
        parse_distill({"teacher": "txt"})


def test_a_block_is_handed_on_as_it_was_written():
    """Axolotl dumps what it validated, and a default must not look as if it had been written."""
    written = {"divergence": "jsd", "beta": 0.5, **capture(SERVED)}
    dumped = DistillConfig(distill=written).model_dump(exclude_none=True)
    assert dumped == {"distill": written}
    assert parse_distill(dumped["distill"]) == parse_distill(written)


def test_the_command_line_names_another_teacher():
    given = parse_distill(capture({"model": "m", "dtype": "float32"}, k=8))
    other = capture_args(given, "n", "elsewhere")
    assert other.teacher == TeacherArgs(model="n", dtype="float32")
    assert (other.output, other.k) == ("elsewhere", 8)


@pytest.mark.parametrize(
    ("block", "method", "at"),
    [
        ({}, "sampled", 1.0),
        ({"temperature": 2.0}, "sampled", 2.0),
        ({"support": "sampled", "temperature": 3}, "sampled", 3.0),
        ({"divergence": "jsd"}, "topk", None),
        ({"support": "renormalize"}, "topk", None),
        ({"capture": {"teacher": SERVED}}, "topk", None),
        ({"capture": {"k": 8}}, "topk", None),
        ({"capture": {"max_k": 8}}, "nucleus", None),
        ({"capture": {"draws": 8}}, "sampled", 1.0),
        ({"capture": {"sampling_temperature": 1.0}, "temperature": 1.0}, "sampled", 1.0),
    ],
)
def test_a_store_nothing_is_said_of_is_one_that_the_loss_can_be_had_from(block, method, at):
    keys = {"teacher": "m", "output": "o", **block.get("capture", {})}
    args = parse_distill({**block, "capture": keys})
    assert args.capture.method == method
    if at is not None:
        assert args.capture.sampling_temperature == at
    # What Axolotl dumps and hands on is read alike.
    assert parse_distill(args.model_dump(exclude_unset=True)) == args
    again = capture_args(args, None, "elsewhere")
    assert again.method == method and again.output == "elsewhere"
    if at is not None:
        assert again.sampling_temperature == at


def test_a_teacher_of_the_command_line_decides_too():
    """`--teacher` comes after the block was read."""
    given = parse_distill({"temperature": 1.0})
    assert capture_args(given, "m", "o").method == "sampled"
    assert capture_args(given, "m", "o").sampling_temperature == 1.0
