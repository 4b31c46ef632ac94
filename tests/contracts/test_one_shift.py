"""That token t + 1 belongs to position t is worked out in signal/batch.py and nowhere else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWNER = ROOT / "axolotl_distill/signal/batch.py"
# Calls Axolotl's own KD loss, which shifts, and undoes that first.
PEER = ROOT / "benchmarks/students/records.py"
FILES = [
    path
    for folder in ("axolotl_distill", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path not in (OWNER, PEER)
]
PER_TOKEN = ("values", "label", "target", "weight", "expected", "pointer", "input_ids", "logits")
MOVES = ("pad", "roll", "shift")


def is_per_token(node: ast.expr) -> bool:
    return any(word in ast.unparse(node) for word in PER_TOKEN)


def cuts_one_off(index: ast.expr) -> bool:
    """`1:` or `:-1`, alone or for one of several dimensions."""
    parts = index.elts if isinstance(index, ast.Tuple) else [index]
    slices = [ast.unparse(part) for part in parts if isinstance(part, ast.Slice)]
    return any(text in ("1:", ":-1") for text in slices)


def shifts(source: str) -> list[str]:
    """Lines that move values of a token to its neighbour, or mask the first label of a row."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and cuts_one_off(node.slice):
            wrong = is_per_token(node.value)
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            moved = [*node.args[:1], *([node.func.value] if name else ())]
            own = "tokenizer" not in ast.unparse(node.func)
            wrong = own and name in MOVES and any(map(is_per_token, moved))
        elif isinstance(node, ast.Assign):
            wrong = any(
                isinstance(to, ast.Subscript)
                and "label" in ast.unparse(to.value)
                and (isinstance(to.slice, ast.Slice) or "position_ids" in ast.unparse(to.slice))
                for to in node.targets
            )
        else:
            wrong = False
        if wrong:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def test_nobody_else_shifts():
    found = {path: shifts(path.read_text(encoding="utf-8")) for path in FILES}
    assert {str(path.relative_to(ROOT)): lines for path, lines in found.items() if lines} == {}
    assert shifts(OWNER.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "line",
    [
        "count = (labels[1:] != IGNORE).sum()",
        "positions = np.flatnonzero(np.asarray(row['labels'][1:]) != IGNORE)",
        "targets = F.pad(labels_BS, (0, 1), value=IGNORE)[:, 1:]",
        "weights = batch['loss_weight'].roll(-1, 1)",
        "logits = outputs.logits[..., :-1, :]",
        "labels_S[:1] = IGNORE",
        "batch['labels'][batch['position_ids'] == 0] = IGNORE",
        "expected = [found for found in example.expected[1:] if found]",
    ],
)
def test_what_a_shift_looks_like(line):
    assert shifts(line)
