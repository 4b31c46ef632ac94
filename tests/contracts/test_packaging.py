"""What an installation puts on the path, and the plugin's bare name."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.axolotl_run import environment

from axolotl_distill.commands.docs import documents, run
from axolotl_distill.errors import ConfigError

pytestmark = pytest.mark.axolotl

ROOT = Path(__file__).resolve().parents[2]


def python(code, cwd, *flags):
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)),
        ],
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_two_packages_and_the_hook(wheel):
    names = {name.split("/")[0] for name in wheel.namelist()}
    assert {name for name in names if not name.endswith((".dist-info", ".data"))} == {
        "axolotl_distill",
        "distill_kernels",
        "axolotl_distill_startup.py",
        "axolotl_distill_startup.pth",
    }
    assert {"axolotl_distill/py.typed", "distill_kernels/py.typed"} <= set(wheel.namelist())


def test_a_wheels_user_reaches_what_the_documents_name(wheel):
    """No link of the long description leads into a repository that its reader does not have, and
    the documents themselves are inside."""
    (metadata,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    description = wheel.read(metadata).decode()
    links = re.findall(r"\]\(([^)]+)\)", description)
    assert links
    assert all(link.startswith(("https://", "#")) for link in links), links
    inside = {name.partition("/share/axolotl-distill/")[2] for name in wheel.namelist()}
    for document in documents():
        assert f"docs/{document}.md" in inside
    for example in (ROOT / "example_configs").rglob("*.yml"):
        assert str(example.relative_to(ROOT)) in inside


def test_the_documents_are_listed_and_printed(capsys):
    run(None)
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} == set(documents())
    run("guide")
    assert capsys.readouterr().out.startswith("# Guide")
    with pytest.raises(ConfigError, match="Known: adr/0001"):
        run("nonsense")


def test_editable_install_hides_the_repository(tmp_path):
    """vLLM and SGLang probe for `triton_kernels`, which is OpenAI's and must not be our folder."""
    code = (
        "import importlib.util as u, sys; print(u.find_spec('triton_kernels'), "
        f"{str(ROOT)!r} in sys.path, u.find_spec('distill_kernels') is not None)"
    )
    assert python(code, tmp_path) == ["None False True"]


def test_importing_the_package_is_light(tmp_path):
    code = (
        "import sys, axolotl_distill, axolotl_distill.config.distill, axolotl_distill.errors; "
        "print([m for m in ('torch', 'axolotl', 'transformers') if m in sys.modules])"
    )
    assert python(code, tmp_path) == ["[]"]


def test_the_hook_imports_nothing_heavy(tmp_path):
    code = (
        "import sys; print('axolotl_distill_startup' in sys.modules, "
        "[m for m in ('torch', 'axolotl', 'axolotl_distill') if m in sys.modules])"
    )
    assert python(code, tmp_path) == ["True []"]


@pytest.mark.parametrize("name", ["axolotl_distill", "axolotl_distill.DistillPlugin"])
def test_plugin_loads_by_either_name(tmp_path, name):
    code = (
        "from axolotl.integrations.base import load_plugin; "
        f"print(type(load_plugin({name!r})).__name__)"
    )
    assert python(code, tmp_path)[-1] == "DistillPlugin"


def test_other_bare_names_stay_axolotls_business(tmp_path):
    code = (
        "from axolotl.integrations.base import load_plugin\n"
        "try: load_plugin('nonsense')\n"
        "except ValueError as error: print('ValueError')"
    )
    assert python(code, tmp_path)[-1] == "ValueError"


@pytest.mark.parametrize("plugins", ["", "plugins: [axolotl.integrations.liger.LigerPlugin]"])
def test_a_block_whose_plugin_is_not_on(tmp_path, plugins):
    """Axolotl by itself would drop the block and fine-tune."""
    (tmp_path / "config.yml").write_text(f"base_model: x\ndistill: {{alpha: 0.5}}\n{plugins}\n")
    code = (
        "from axolotl.cli.config import load_cfg\n"
        "try: load_cfg('config.yml')\n"
        "except ValueError as error: print(type(error).__name__, error)"
    )
    said = python(code, tmp_path)[-1]
    assert re.match(r"ConfigError config\.yml.*plugins.*plugins: \[axolotl_distill\]", said)


def test_the_class_name_works_without_the_hook(tmp_path):
    """`python -S` reads no .pth file; the path is given by hand."""
    code = (
        f"import sys; sys.path[:0] = {[p for p in sys.path if p]!r}; "
        "assert 'axolotl_distill_startup' not in sys.modules; "
        f"sys.path.insert(0, {str(ROOT)!r}); import axolotl_distill; "
        "print(axolotl_distill.DistillPlugin.__name__)"
    )
    assert python(code, tmp_path, "-S")[-1] == "DistillPlugin"
