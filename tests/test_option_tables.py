"""Tables of options: one declaration makes arguments, checks and the rows of the reference."""

import argparse
import subprocess
import sys
from dataclasses import dataclass, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from vllm_kprune.cli.typer_options import with_options
from vllm_kprune.errors import KPruneError
from vllm_kprune.options import (
    REQUIRED,
    add_arguments,
    check_option,
    check_values,
    given_arguments,
    make,
    option,
    options_of,
    reference_rows,
)


@dataclass(frozen=True, kw_only=True)
class Toy:
    """One option of each kind."""

    model: str = option(REQUIRED, "The model.", positional=True, forms=["command"])
    output: Path = option(
        Path("out"), "Where to write.", flags=("--output", "-o"), forms=["command"]
    )
    rounds: int = option(20, "Rounds of 100%.", least=1, most=99, group="Speed")
    keep: float = option(0.8, "Share to keep.", above=0, most=1, words={"off": 1.0})
    least: int | None = option(
        None, "From here.", noun="a number of tokens", least=0, server_words={"auto": None}
    )
    hanja: Literal["none", "all"] = option("none", "Han characters.")
    batches: tuple[int, ...] = option((1, 8), "Sizes.", least=1, most=256)
    texts: tuple[str, ...] = option((), "Texts.", most=4, most_items=2)
    roles: tuple[str, ...] = option(
        ("user",), "Roles.", commas=True, choices=("user", "tool"), least_items=1,
        forms={"server": "prune_roles", "request": "prune_roles", "command": "role"},
    )  # fmt: skip
    strict: bool = option(False, "Fail.", forms={"server": "pruner_strict", "request": "strict"})
    inner: int = 3


def run(table: type, *words: str) -> Any:
    """What a command with these options makes of the words: its value, or the output."""
    values: list[Any] = []
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_options(values.append, table))
    result = CliRunner().invoke(app, list(words), env={"COLUMNS": "200", "TERM": "dumb"})
    if isinstance(result.exception, KPruneError):
        return result.exception
    return values[0] if values else result.output


def parsed(table: type, *words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser, options_of(table), form="server", prefix="--kprune-", dest="kprune_")
    args = parser.parse_args(words)
    return given_arguments(args, options_of(table), form="server", dest="kprune_")


def test_a_command_gets_the_table_with_what_was_given() -> None:
    assert run(Toy, "M") == Toy(model="M")
    words = "M -o d --rounds 3 --keep off --hanja all --batches 4 --batches 2 --texts a --role tool"
    assert run(Toy, *words.split()) == Toy(
        model="M", output=Path("d"), rounds=3, keep=1.0, hanja="all", batches=(4, 2),
        texts=("a",), roles=("tool",),
    )  # fmt: skip


def test_the_help_of_a_command_has_panels_defaults_and_ranges() -> None:
    output = run(Toy, "--help")
    for expected in ("Speed", "Rounds of 100%.", "1<=x<=99", "default: 20", "none|all", "-o"):
        assert expected in output
    assert "--strict" not in output  # no form of it is a command's


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["M", "--keep", "0"], "--keep: got '0', expected a number, above 0 and at most 1, or off"),
        (["M", "--hanja", "some"], "--hanja: got 'some', expected none or all"),
        (["M", "--role", "user,god"], "--role: got 'god', expected user or tool"),
    ],
)
def test_a_command_refuses_what_the_table_refuses(words: list[str], message: str) -> None:
    assert str(run(Toy, *words)) == message


def test_two_options_of_one_name_are_a_mistake_of_ours() -> None:
    other = make_dataclass("Other", [("rounds", int, option(1, "Again."))], frozen=True)
    with pytest.raises(ValueError, match="two options are called --rounds"):
        with_options(print, Toy, other)


def test_a_server_gives_the_values_that_were_given_by_their_names_there() -> None:
    assert parsed(Toy) == {}
    words = (
        "--kprune-rounds 3 --kprune-keep off --kprune-texts a b --kprune-texts c "
        "--kprune-prune-roles user --kprune-pruner-strict"
    )
    assert parsed(Toy, *words.split()) == {
        "rounds": 3, "keep": "off", "texts": ["a", "b", "c"], "prune_roles": "user",
        "pruner_strict": True,
    }  # fmt: skip


def test_values_are_checked_and_come_back_by_field_name() -> None:
    given = {"keep": "off", "least": "auto", "prune_roles": "user, tool", "pruner_strict": True}
    checked = check_values(options_of(Toy), given, form="server", prefix="--kprune-")
    assert checked == {"keep": 1.0, "least": None, "roles": ("user", "tool"), "strict": True}
    asked = {"rounds": "7", "keep": "0.5", "strict": 1, "batches": ["1", 2]}
    assert check_values(options_of(Toy), asked, form="request", text=True) == {
        "rounds": 7, "keep": 0.5, "strict": True, "batches": (1, 2),
    }  # fmt: skip
    assert make(Toy, {"model": "M", "rounds": 7}) == Toy(model="M", rounds=7)
    with pytest.raises(KPruneError, match="model is missing, expected a text"):
        make(Toy, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"round": 1}, "unknown option 'round'; did you mean 'rounds'?"),
        ({7: 1}, "unknown option 7; known: "),
        ({"model": "M"}, "unknown option 'model'"),  # a command's alone
        ({"rounds": 0}, "x_rounds: got 0, expected a whole number from 1 to 99"),
        ({"rounds": 1.5}, "x_rounds: got 1.5, expected a whole number"),
        ({"rounds": True}, "x_rounds: got True"),
        ({"rounds": "1" * 99}, "x_rounds: got '1111"),
        ({"rounds": "nan"}, "x_rounds: got 'nan'"),
        ({"rounds": None}, "x_rounds: got None"),
        (
            {"keep": float("nan")},
            "x_keep: got nan, expected a number, above 0 and at most 1, or off",
        ),
        ({"keep": 10**400}, "x_keep: got "),
        ({"least": "auto"}, "x_least: got 'auto', expected a number of tokens, 0 or more"),
        ({"strict": 1.0}, "x_strict: got 1.0, expected true or false"),
        ({"batches": [1, 300]}, "x_batches: got 300, expected whole numbers from 1 to 256"),
        ({"texts": ["a", "b", "c"]}, "x_texts: got 3 values, expected at most 2"),
        ({"texts": "abcde"}, "x_texts: got 'abcde', expected a text or a list of texts of 1 to 4"),
        ({"texts": [["a"]]}, "x_texts: got ['a'], expected a text"),
        ({"prune_roles": ","}, "x_prune_roles: got none, expected user or tool"),
    ],
)
def test_hostile_values_are_refused_in_a_line(values: Any, message: str) -> None:
    with pytest.raises(KPruneError) as error:
        check_values(options_of(Toy), values, form="request", prefix="x_", text=True)
    assert str(error.value).startswith(message)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", ["7", 7.0, True])
def test_configuration_does_not_take_other_types_for_numbers(value: Any) -> None:
    with pytest.raises(KPruneError, match="expected a whole number"):
        check_values(options_of(Toy), {"rounds": value})
    with pytest.raises(KPruneError, match="expected true or false"):
        check_values(options_of(Toy), {"pruner_strict": 1}, form="server")


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=100),
    lambda inner: st.lists(inner, max_size=70),
    max_leaves=12,
)


@given(st.sampled_from(options_of(Toy)), _ANY, st.booleans())
@settings(max_examples=300)
@pytest.mark.slow
def test_any_value_is_taken_or_refused_in_a_line(one: Any, value: object, text: bool) -> None:
    try:
        checked = check_option(one, value, text=text)
    except KPruneError as error:
        assert len(str(error)) < 400
        assert "\n" not in str(error)
        return
    kinds = {type(item) for item in (checked if one.many else (checked,))}
    assert kinds <= {one.kind, type(None), type(Path())}


def test_the_reference_has_a_row_for_each_option_of_a_form() -> None:
    rows = {row.name: row for row in reference_rows(options_of(Toy), form="server", prefix="--x-")}
    assert list(rows) == [
        "rounds", "keep", "least", "hanja", "batches", "texts", "prune_roles", "pruner_strict",
    ]  # fmt: skip
    assert rows["prune_roles"].flags == ("--x-prune-roles",)
    assert (rows["rounds"].default, rows["rounds"].group) == ("20", "Speed")
    assert rows["keep"].bounds == "a number, above 0 and at most 1, or off"
    assert rows["batches"].type == "list of int"


def test_a_new_field_is_known_to_every_consumer_without_another_edit() -> None:
    """The toy check of issue 14: one declaration, four consumers."""
    new = option(2, "How bold the toy is.", least=1, most=5, metavar="BOLD")
    bold = make_dataclass("Bold", [("boldness", int, new)], bases=(Toy,), frozen=True, kw_only=True)
    assert fields(bold)[-1].name == "boldness"
    assert parsed(bold, "--kprune-boldness", "3") == {"boldness": 3}
    assert run(bold, "M", "--boldness", "4").boldness == 4
    assert "How bold the toy is." in run(bold, "--help")
    asked = check_values(options_of(bold), {"boldness": "5"}, form="request", text=True)
    assert asked == {"boldness": 5}
    with pytest.raises(KPruneError, match="boldness: got 6, expected a whole number from 1 to 5"):
        check_values(options_of(bold), {"boldness": 6})
    row = reference_rows(options_of(bold))[-1]
    assert (row.name, row.default, row.bounds) == ("boldness", "2", "a whole number from 1 to 5")


def test_a_field_of_another_type_cannot_be_an_option() -> None:
    odd = make_dataclass("Odd", [("x", dict, option(None, "Odd."))], frozen=True)
    with pytest.raises(TypeError, match="no option can be of type"):
        options_of(odd)


def test_importing_the_tables_imports_nothing_heavy() -> None:
    code = "import sys, vllm_kprune.options\n"
    code += "print([m for m in ('torch', 'vllm', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
