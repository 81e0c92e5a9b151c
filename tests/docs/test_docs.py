"""What the documentation says is so: pages are fresh, links lead somewhere, commands parse."""

import ast
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from support.markdown import (
    FILES,
    ROOT,
    anchors,
    blocks,
    first_cells,
    links,
    name_of,
    prose,
    read,
    spans,
)
from test_layers import RANKS

import vllm_kprune
from vllm_kprune.cli.app import app
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.serving.request_options import GUARD_NAMES, PRUNE_NAMES
from vllm_kprune.vocabulary.usage import read_usage

PACKAGE = Path(vllm_kprune.__file__).parent
DOCS = ROOT / "docs"
every_page = pytest.mark.parametrize("page", FILES, ids=name_of)


def test_pages_of_the_reference_are_what_the_code_makes(make_reference: ModuleType) -> None:
    names = [path.name for path in make_reference.stale()]
    assert not names, f"{names} are stale: run packaging/make_reference.py"


def test_every_page_of_the_reference_is_made(make_reference: ModuleType) -> None:
    made = {path for path, _ in make_reference.pages()}
    assert made == set((DOCS / "reference").glob("*.md"))


# ---- links and pages ---------------------------------------------------------------------------


@every_page
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for link in links(read(page)):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{link}: there is no {file}"
        if anchor:
            assert anchor in anchors(read(file), site=False), f"{link}: no such heading"
            assert anchor in anchors(read(file), site=True), f"{link}: another anchor on the site"


@pytest.mark.parametrize("page", [f for f in FILES if DOCS in f.parents], ids=name_of)
def test_pages_of_the_site_link_to_nothing_outside_it(page: Path) -> None:
    for link in links(read(page)):
        if not link.startswith(("http:", "https:", "#")):
            assert DOCS in (page.parent / link.partition("#")[0]).resolve().parents, link


def test_the_site_shows_every_page() -> None:
    project = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
    listed = list(_leaves(project["nav"]))
    assert sorted(listed) == sorted(str(f.relative_to(DOCS)) for f in FILES if DOCS in f.parents)


def _leaves(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for item in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from _leaves(item)


def test_the_readme_is_short() -> None:
    lines = read(ROOT / "README.md").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if line.startswith("|") and len(line) > 200] == []


def test_the_readme_names_its_two_commands() -> None:
    assert {"make demo", "make test"} <= {
        line.partition("#")[0].strip()
        for block in blocks(read(ROOT / "README.md"), "bash", "")
        for line in block.splitlines()
    }


@every_page
def test_words_of_the_first_design_are_gone(page: Path) -> None:
    text = read(page)
    old = ("serving/renderer", "tokenizer mode", "tokenizer_mode", "renderer mode", "evaluate/")
    assert [word for word in old if word in text] == []


@every_page
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", read(ROOT / "Makefile"), re.MULTILINE))
    named = re.findall(
        r"\bmake ([a-z0-9-]+)", "\n".join([*blocks(read(page), "bash", ""), *spans(read(page))])
    )
    assert set(named) <= targets


# ---- what the code has -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def operating() -> str:
    return read(DOCS / "operating.md")


def sources(*folders: str) -> Iterator[tuple[Path, ast.Module]]:
    """The Python files of the package, and of other folders of the checkout."""
    for folder in (PACKAGE, *(ROOT / name for name in folders)):
        for path in sorted(folder.rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


# What `benchmarks/gpu.py` sets for the processes that it starts.
_OF_BENCHMARKS = (
    *("HF_HUB_OFFLINE", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_NO_USAGE_STATS"),
    *("VLLM_USE_FLASHINFER_SAMPLER", "KPRUNE_GPU_OVERLAY", "KPRUNE_GPU_SECONDS"),
)
_VARIABLE = re.compile(r"(?:VLLM|KPRUNE|XDG|HF|OPENAI|PROMETHEUS)_[A-Z][A-Z_]+")


@pytest.mark.slow
def test_every_environment_variable_is_documented(operating: str) -> None:
    found = {
        node.value
        for _, tree in sources("benchmarks", "examples", "packaging")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and _VARIABLE.fullmatch(node.value)
    }
    assert {"VLLM_KPRUNE_DISABLE", "KPRUNE_CACHE"} <= found
    found -= {"VLLM_CONFIG"}  # the name of a seam
    found -= set(_OF_BENCHMARKS)
    assert sorted(found - set(spans(operating))) == []


def test_the_parts_of_the_package_are_shown_in_their_order() -> None:
    cells = re.findall(r"^\| \d+ \| `(\w+)/?`", read(DOCS / "architecture.md"), re.MULTILINE)
    there = [
        rank for rank in RANKS if list(PACKAGE.glob(f"{rank}.py")) or (PACKAGE / rank).is_dir()
    ]
    assert cells == there


def test_every_metric_is_documented(operating: str) -> None:
    found = {
        node.value
        for path, tree in sources()
        if path.name == "metrics.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and re.fullmatch(r"kprune_\w+_\w+", str(node.value))
    } - {"kprune_guard_is_shown"}
    assert len(found) >= 10
    documented = {re.sub(r"_total$", "", span) for span in spans(operating)}
    assert sorted(found - documented) == []


def test_recorded_answers_have_the_keys_of_the_code(make_reference: ModuleType) -> None:
    status = json.loads(read(make_reference.SAMPLES / "status.json"))
    guard, pruner = status["guard"], status["input_pruner"]
    assert guard["default"].keys() == GuardPolicy.__dataclass_fields__.keys()
    assert guard["request_options"] == [f"kprune_{name}" for name in GUARD_NAMES]
    assert pruner["request_options"] == [f"kprune_{name}" for name in PRUNE_NAMES]
    assert status["versions"]["kprune"] == vllm_kprune.__version__
    assert status["usage"].keys() == {"active", "floor"}
    assert read_usage(make_reference.SAMPLES / "usage.json").ids


# ---- messages ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts_in_code() -> list[str]:
    """Every text of the package's code; what is filled in is an ellipsis."""
    found = []
    for _, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "…" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(?:\.\d+)?[dfgs]", "…", node.value))
    return found


def quoted_messages() -> Iterator[tuple[str, str]]:
    """(page, message) of the tables whose first column quotes what kprune says."""
    headings = ("Starting a server", "Building", "Requests", "Comparing")
    for page, wanted in (("troubleshooting.md", headings), ("operating.md", ("Log lines",))):
        for heading in wanted:
            for cell in first_cells(read(DOCS / page), heading):
                yield from ((page, message) for message in spans(cell))


@pytest.mark.parametrize(("page", "message"), list(quoted_messages()))
@pytest.mark.slow
def test_quoted_messages_are_those_of_the_code(
    page: str, message: str, texts_in_code: list[str]
) -> None:
    pattern = re.compile(".*?".join(map(re.escape, message.split("…"))), re.DOTALL)
    assert any(pattern.search(text) for text in texts_in_code), f"{page} quotes what no code says"


# ---- commands ----------------------------------------------------------------------------------

_COMMAND = re.compile(r"(?:\w+=\S* )*(?:\.venv/bin/)?(kprune|vllm serve)(?: |$)")


def commands(text: str) -> Iterator[tuple[list[str], bool]]:
    """(words, whether it is whole) of the commands in a page; those in a sentence may be cut."""
    for block in blocks(text, "bash", "text", ""):
        for line in block.replace("\\\n", " ").splitlines():
            if found := _COMMAND.match(line.removeprefix("$ ")):
                line = re.sub(r"\$\([^)]*\)", "MODEL", line)
                yield shlex.split(line[found.start(1) :], comments=True), "[" not in line
    for span in spans(text):
        words = span.replace("'", "").split()
        if _COMMAND.match(span) and any(word.startswith("-") for word in words):
            yield words, False


@every_page
def test_commands_have_the_options_that_pages_give_them(
    page: Path, make_reference: ModuleType
) -> None:
    serve = make_reference.reference_options.serve_parser()
    for words, whole in commands(read(page)):
        if words[0] == "vllm":
            check_serve(serve, words, whole)
        else:
            check_kprune(words, whole)


def check_serve(parser: Any, words: list[str], whole: bool) -> None:
    known = set(parser._option_string_actions)
    ours = [w.partition("=")[0] for w in words if w.startswith(("--kprune-", "--plugin"))]
    assert [w for w in ours if w not in known] == [], " ".join(words)
    if whole:
        parser.parse_known_args(words[2:])  # exits for a value that cannot be


def check_kprune(words: list[str], whole: bool) -> None:
    group: Any = typer.main.get_command(app)
    if words[1:2] in ([], ["--help"], ["--version"], ["COMMAND"]):
        return
    assert words[1] in group.commands, f"there is no such command: {' '.join(words)}"
    command = group.commands[words[1]]
    if hasattr(command, "commands"):  # `kprune analyze masks`
        assert words[2] in command.commands, f"there is no such command: {' '.join(words)}"
        command, words = command.commands[words[2]], [words[0], *words[2:]]
    arguments = words[2 : min((n for n, w in enumerate(words) if w in "<>|;"), default=None)]
    parameters = command.params
    known = {o for p in parameters for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    unknown = [w for w in arguments if re.match(r"--?[a-z]", w) and w.split("=")[0] not in known]
    assert not unknown, f"{' '.join(words)}: no such option: {unknown}"
    if whole and "[OPTIONS]" not in arguments:
        context = command.context_class(command, info_name=words[1])
        given, left, _ = command.make_parser(context).parse_args(args=list(arguments))
        missing = [p.name for p in parameters if p.required and given.get(p.name) in (None, ())]
        assert not left and not missing, f"{' '.join(words)}: left {left}, missing {missing}"


def test_the_checks_of_commands_find_mistakes() -> None:
    for line in ("kprune biuld M -o D", "kprune build M -o D --profil enko", "kprune build M"):
        with pytest.raises(AssertionError):
            check_kprune(line.split(), True)


def test_pages_have_no_empty_sections() -> None:
    for page in FILES:
        text = prose(read(page))
        assert not re.search(r"^#+ [^\n]+\n\s*\Z", text, re.MULTILINE), page
