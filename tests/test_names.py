"""Names that people type."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdekit.names import Between, OneOf, check_options, lookup, options_of, parse

words = st.from_regex(r"[a-z][a-z0-9-]{0,12}", fullmatch=True)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
literals = numbers | st.booleans() | st.text("ab c", max_size=5) | st.none()


@given(words, st.dictionaries(st.sampled_from(["eta", "rho", "order", "s_noise"]), literals))
def test_what_is_written_is_read_back(name: str, options: dict[str, Any]) -> None:
    text = f" {name}({', '.join(f'{key}={value!r}' for key, value in options.items())}) "
    assert parse(text) == (name, options)


@given(words)
def test_a_bare_name_has_no_options(name: str) -> None:
    assert parse(name) == (name, {})
    assert parse(f"{name}()") == (name, {})


@pytest.mark.parametrize(
    "text",
    [
        "ddim(0.5)",
        "ddim(eta=0.5",
        "ddim(eta=)",
        "ddim(eta=x)",
        "ddim(eta=1)(rho=2)",
        "ddim(eta=1) + 1",
        "ddim(**{'eta': 1})",
        "ddim(eta=1, eta=2)",
        "ddim(eta={[]: 1})",
        "ddim(eta=" + "-" * 100_000 + "1)",
        "ddim(eta=__import__('os').getcwd())",
    ],
)
def test_other_forms_are_refused_and_never_evaluated(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot read .*: write it as name\(option=value, \.\.\.\)"):
        parse(text)


def test_lookup_suggests_and_lists() -> None:
    table = {"ddim": 1, "heun": 2}
    assert lookup("solver", "heun", table) == 2
    with pytest.raises(ValueError, match=r"^unknown solver 'huen': did you mean 'heun'\? known: ddim, heun$"):
        lookup("solver", "huen", table)
    with pytest.raises(ValueError, match=r"^unknown solver 'zzzz': known: ddim, heun$"):
        lookup("solver", "zzzz", table)


def test_options_are_checked_against_their_rules() -> None:
    def solver(
        *,
        eta: Annotated[float, Between(0, 1)] = 0.0,
        variance: Annotated[str, OneOf("small", "large")] = "small",
    ) -> None: ...

    known = options_of(solver)
    assert {name: option.default for name, option in known.items()} == {"eta": 0.0, "variance": "small"}
    check_options("solver", known, {"eta": 1, "variance": "large"})
    for given_options, message in [
        ({"eta": 1.5}, "solver: eta=1.5 is not a number from 0 to 1"),
        ({"eta": True}, "solver: eta=True is not a number"),
        ({"eta": "1"}, "solver: eta='1' is not a number"),
        ({"eta": float("nan")}, "solver: eta=nan is not a number"),
        ({"variance": "huge"}, "solver: variance='huge' is not one of 'small', 'large'"),
        ({"etta": 0.5}, "unknown option of solver 'etta': did you mean 'eta'"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_options("solver", known, given_options)


def test_an_option_without_a_rule_is_refused_where_it_is_declared() -> None:
    def solver(*, eta: float = 0.0) -> None: ...

    with pytest.raises(ValueError, match=r"option 'eta' of solver needs a default and Annotated"):
        options_of(solver)
