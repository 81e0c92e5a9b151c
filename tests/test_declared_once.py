"""Every option is declared once: help, default and bounds in one place, read from the source.

`tests/test_option_tables.py` shows what a declaration is good for; this shows that there is no
second one.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import vllm_kprune
from vllm_kprune.cli.reference import all_option_rows
from vllm_kprune.guard.policy import GuardPolicy
from vllm_kprune.options import Option, options_of
from vllm_kprune.profile import CorpusOptions, Profile
from vllm_kprune.prompt.options import prune_options
from vllm_kprune.serving.options import (
    GuardOptions,
    UsageOptions,
    VocabularyOptions,
    flag,
    server_options,
)
from vllm_kprune.serving.pruning.options import PrunerOptions

PACKAGE = Path(vllm_kprune.__file__).parent
# What makes an option for one consumer alone; `option()` makes it for all.
ONE_CONSUMER = ("typer.Option", "typer.Argument", "Field", "group.add_argument")
SHARED: dict[str, Option] = {
    one.name: one
    for one in (
        *options_of(Profile),
        *options_of(CorpusOptions),
        *options_of(VocabularyOptions),
        *options_of(GuardPolicy),
        *options_of(GuardOptions),
        *options_of(UsageOptions),
        *options_of(PrunerOptions),
        *prune_options(),
    )
}


@cache
def trees() -> dict[Path, ast.Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return {file: ast.parse(file.read_text(encoding="utf-8")) for file in files}


@cache
def all_calls() -> list[tuple[str, Path, ast.Call]]:
    nodes = ((file, node) for file, tree in trees().items() for node in ast.walk(tree))
    return [(ast.unparse(n.func), file, n) for file, n in nodes if isinstance(n, ast.Call)]


def calls(*names: str) -> Iterator[tuple[Path, ast.Call]]:
    yield from ((file, call) for name, file, call in all_calls() if name in names)


def texts(node: ast.AST) -> set[str]:
    return {
        one.value
        for one in ast.walk(node)
        if isinstance(one, ast.Constant) and isinstance(one.value, str)
    }


@cache
def files_of_texts() -> Counter[str]:
    """In how many files each text stands."""
    return Counter(text for tree in trees().values() for text in texts(tree))


@cache
def declarations() -> dict[str, list[Path]]:
    """Where a class has a field of each name that is an `option()`, or one with a default."""
    found: dict[str, list[Path]] = {}
    for file, tree in trees().items():
        for node in ast.walk(tree):
            for field in node.body if isinstance(node, ast.ClassDef) else ():
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(field.value, ast.Call)
                    and ast.unparse(field.value.func) == "option"
                ):
                    found.setdefault(field.target.id, []).append(file)
    return found


# Other options of the same name: a command may mean another profile or corpus, the hanja of the
# guard are not those of a vocabulary, and a reference model has a name, as a profile has.
# The command `prompt` takes one question for a file. A server's heads are files, too; a request
# names one of them.
OWN = {
    "hanja",
    "profile",
    "corpus",
    "usage",
    "languages",
    "base",
    "keep",
    "scorer",
    "name",
    "head",
    "query",
}


@pytest.mark.parametrize("name", sorted(SHARED))
def test_an_option_of_several_consumers_is_declared_in_one_place(name: str) -> None:
    assert len(declarations()[name]) == 1 or name in OWN, declarations()[name]


@pytest.mark.parametrize("name", sorted(SHARED))
def test_no_consumer_declares_an_option_again(name: str) -> None:
    """No Typer option, argparse argument or pydantic field beside the table, and no flag of one."""
    flags = {f"--{name.replace('_', '-')}", flag(name)}
    again = [file for file, call in calls(*ONE_CONSUMER) if texts(call) & flags]
    assert not again or name in OWN


def test_the_help_of_every_option_stands_in_one_file() -> None:
    helps = [
        text
        for _, call in calls("option")
        for text in texts(call.args[1] if len(call.args) > 1 else call)
    ]
    assert len(helps) > 60
    assert {text for text in helps if len(text) > 12 and files_of_texts()[text] != 1} == set()


def test_no_two_options_have_one_help() -> None:
    helps = [ast.unparse(call.args[1]) for _, call in calls("option") if len(call.args) > 1]
    assert [text for text, count in Counter(helps).items() if count > 1] == []


@pytest.mark.parametrize("name", sorted(SHARED))
def test_every_consumer_knows_the_options_of_its_form(name: str) -> None:
    one, rows = SHARED[name], all_option_rows()
    pages = {"request": "vllm_xargs", "server": "vllm serve", "profile": "profile"}
    for form, page in pages.items():
        known = {row.name: row for row in rows[page]}
        here = one.name_in(form) if one.forms or page == "profile" else None
        if page == "profile" and one not in options_of(Profile):
            continue
        if here:
            assert known[here].help.startswith(one.help)
            assert known[here].bounds == one.expected
    commands = [row for page, rows in rows.items() if page.startswith("kprune ") for row in rows]
    if one.forms and (here := one.name_in("command")):
        assert one.help in {row.help for row in commands if row.name == here}


def test_the_tables_of_a_server_have_no_name_twice() -> None:
    names = [one.name_in("server") for one in server_options()]
    assert len(names) == len(set(names)) == 35
