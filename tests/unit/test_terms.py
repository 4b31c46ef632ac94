"""Teachers' terms: which row a name falls under, what is refused, and that the document agrees."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from axolotl_distill.errors import DistillError, TermsError
from axolotl_distill.terms import check_terms
from axolotl_distill.terms.names import own_name
from axolotl_distill.terms.table import STRICTEST_FIRST, Family, as_markdown, rows, rows_of

ROOT = Path(__file__).parents[2]
EXAMPLES = [(name, row) for row in rows() for name in row.examples]
WHY = "contract 17 of 2026 with the maker"


def families(name: str) -> set[str]:
    return {row.family for row in rows_of(own_name(name)).values()}


@pytest.mark.parametrize(("name", "row"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_every_example_falls_to_its_own_row(name: str, row: Family):
    seen = name if name.startswith("licence/") else own_name(name)

    assert rows_of(seen)[row.line] is row


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.family)
def test_every_row_says_what_it_says_it_from(row: Family):
    assert row.family and row.licence and row.examples
    assert row.verdict in STRICTEST_FIRST
    assert row.source.startswith("https://")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d(, as quoted by others)?|not read; .+", row.checked)
    assert bool(row.duties) == (row.verdict != "permitted")
    assert "|" not in row.licence + "".join(row.duties), "would break the document's table"


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("models/Llama-3.1-70B-Instruct", "Llama 3.1"),
        ("./models/Meta-Llama-3-8B/", "Llama 3"),
        ("accounts/fireworks/models/llama-v3p1-405b-instruct", "Llama 3.1"),
        ("meta.llama3-1-70b-instruct-v1:0", "Llama 3.1"),
        ("/data/hub/models--xai-org--grok-1/snapshots/" + "0a" * 20, "Grok-1"),
        ("out/Qwen3-8B/checkpoint-500", "Qwen3"),
        (r"C:\models\gemma-2-9b-it", "Gemma 1 to 3"),
        ("bartowski/x/Llama-3.3-70B-Instruct-Q4_K_M.gguf", "Llama 3.3"),
        ("Mixtral 8x7B", "Mistral's other Apache models"),
    ],
)
def test_names_as_they_come_from_servers_caches_and_folders(name: str, family: str):
    assert families(name) == {family}


@pytest.mark.parametrize(
    ("specific", "general"),
    [
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-32B-Instruct"),
        ("Qwen/Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek-ai/DeepSeek-V3"),
        ("openai/gpt-oss-20b", "gpt-4o"),
        ("mistralai/Ministral-3-8B-Instruct-2512", "mistralai/Ministral-8B-Instruct-2410"),
        ("mistralai/Mistral-Large-Instruct-2411", "mistral-large-2411"),
        ("xai-org/grok-1", "grok-4"),
        ("zai-org/GLM-4.5", "zai-org/GLM-4.5V"),
        ("Qwen/Qwen2-72B", "Qwen/Qwen2-7B"),
        ("qwen3-max", "Qwen/Qwen3-8B"),
    ],
)
def test_the_specific_row_wins_over_the_general(specific: str, general: str):
    assert families(specific) and families(general)
    assert families(specific).isdisjoint(families(general))


@pytest.mark.parametrize(
    "name",
    [
        "gpt2",
        "EleutherAI/gpt-j-6b",
        "openlm-research/open_llama_3b_v2",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
        "moonshotai/Kimi-K3",
        "zai-org/GLM-5.3",
        "Qwen/Qwen3.8-27B",
        "google/medgemma-27b-it",
        "AIDC-AI/Marco-o1",
        "dolphin-2.6",
        "teacher",
    ],
)
def test_versions_that_nobody_read_are_not_guessed(name: str):
    assert families(name) == set()


def test_an_unknown_teacher_goes_on_with_a_note_where_to_look():
    terms = check_terms("acme/Teacher-7B", None)

    assert terms.verdict == "unknown"
    assert terms.source == "https://huggingface.co/acme/Teacher-7B"
    assert "not known here" in terms.summary()
    assert "Read the licence" in terms.summary()
    assert "Source" not in check_terms("teacher", None).summary()


def test_a_permitted_teacher_has_no_duties():
    terms = check_terms("HuggingFaceTB/SmolLM2-135M-Instruct", None)

    assert (terms.verdict, terms.licence, terms.duties) == ("permitted", "Apache-2.0", [])
    assert "not legal advice" in terms.summary()


def test_duties_are_listed_with_their_source():
    terms = check_terms("meta-llama/Llama-3.1-8B-Instruct", None)

    assert terms.verdict == "duties"
    assert any('"Llama"' in duty for duty in terms.duties)
    for line in (*terms.duties, terms.source, terms.checked):
        assert line in terms.summary()


@pytest.mark.parametrize("blank", [None, "", "  \n"])
def test_a_prohibited_teacher_is_refused(blank: str | None):
    with pytest.raises(TermsError) as refusal:
        check_terms("gpt-4o-2024-08-06", blank)

    assert isinstance(refusal.value, DistillError) and isinstance(refusal.value, PermissionError)
    for part in (
        "gpt-4o-2024-08-06",
        "OpenAI Services Agreement",
        "compete",
        "https://openai.com/policies/services-agreement/",
        "checked: 2026-11-25",
        "`teacher.terms`",
        "`distill.capture.teacher.terms`",
    ):
        assert part in str(refusal.value)


@pytest.mark.parametrize("name", ["claude-sonnet-4", "gemini-2.5-pro", "meta-llama/Llama-2-7b-hf"])
def test_a_prohibited_teacher_goes_on_with_the_users_own_words(name: str):
    terms = check_terms(name, f" {WHY}\n")

    assert (terms.verdict, terms.agreement) == ("prohibited", WHY)
    assert f"Your own statement: {WHY}" in terms.summary()
    assert terms.duties


def test_a_derived_model_carries_both_families():
    terms = check_terms("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", None)

    assert terms.verdict == "duties"
    assert "Llama 3.3" in terms.family and "DeepSeek-R1" in terms.family
    assert "Llama 3.3 Community License" in terms.licence and "MIT" in terms.licence
    assert "meta-llama" in terms.source and "deepseek-ai" in terms.source


def test_the_strictest_of_a_derived_models_terms_holds():
    with pytest.raises(TermsError, match="Meta Llama 3 Community License"):
        check_terms("someone/Llama-3-8B-gemma-2-merge", None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "teacher"
    folder.mkdir()
    return folder


def write_card(folder: Path, **front: object) -> None:
    # JSON is YAML.
    (folder / "README.md").write_text(f"---\n{json.dumps(front)}\n---\n# A model\n")


def test_a_folder_is_known_by_the_base_model_in_its_card(folder: Path):
    write_card(folder, base_model=["meta-llama/Llama-3.2-3B"], license="apache-2.0")

    assert check_terms(str(folder), None).family == "Llama 3.2"


def test_a_folder_is_known_by_the_name_in_its_config(folder: Path):
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "google/gemma-2-2b-it"}))

    assert check_terms(str(folder), None).family == "Gemma 1 to 3"


def test_a_folders_name_does_not_hide_its_base_models_terms(folder: Path):
    named = folder.rename(folder.with_name("smollm2-style-7b"))
    write_card(named, base_model="meta-llama/Llama-2-7b-hf")

    with pytest.raises(TermsError, match="Llama 2"):
        check_terms(str(named), None)


@pytest.mark.parametrize(
    ("front", "verdict"),
    [
        ({"license": "mit"}, "permitted"),
        ({"license": "llama3.1"}, "duties"),
        ({"license": "gemma"}, "duties"),
        ({"license": "other", "license_name": "qwen"}, "duties"),
        ({"license": "other"}, "unknown"),
    ],
)
def test_a_folder_of_no_known_name_is_known_by_its_licence(folder: Path, front, verdict: str):
    write_card(folder, **front)

    assert check_terms(str(folder), None).verdict == verdict


@pytest.mark.parametrize("front", [{"license": "cc-by-nc-4.0"}, {"license_name": "mrl"}])
def test_a_folder_under_a_non_commercial_licence_is_refused(folder: Path, front):
    write_card(folder, **front)

    with pytest.raises(TermsError, match="non-commercial"):
        check_terms(str(folder), None)


@pytest.mark.parametrize("card", ["", "no front matter", "---\n: [\n---\n", "---\n- a\n---\n"])
def test_a_broken_card_or_config_is_no_obstacle(folder: Path, card: str):
    (folder / "README.md").write_text(card)
    (folder / "config.json").write_text("[1")

    assert check_terms(str(folder), None).verdict == "unknown"


def test_the_document_is_the_table():
    document = (ROOT / "docs" / "teacher-terms.md").read_text(encoding="utf-8")

    assert document == as_markdown(), "run: python -m axolotl_distill.terms > docs/teacher-terms.md"
    assert "not legal advice" in document
    assert all(row.source in document for row in rows())


def test_looking_a_teacher_up_imports_nothing_heavy():
    code = (
        "import sys; from axolotl_distill.terms import check_terms; check_terms('gpt-oss', None);"
        "print([m for m in ('torch', 'transformers', 'axolotl', 'openai') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert run.stdout.strip() == "[]"
