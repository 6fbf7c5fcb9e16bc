"""Kinds of flag that the commands share."""

import pytest
from absl import flags

from segjax import cli


@pytest.fixture
def parsed():
    """Returns `parsed(*arguments)`, the values of `--size` and `--measure`, which only this test defines."""

    def parse(*arguments):
        values = flags.FlagValues()
        cli.define_size("size", "of it", flag_values=values)
        cli.define_bare_or_one_of("measure", ("entropy", "variance"), "of it", flag_values=values)
        rest = values(["program", *arguments])[1:]
        return values.size, values.measure, rest

    return parse


def test_flag_without_a_value_leaves_the_next_argument(parsed):
    assert parsed("--measure", "street.jpg") == (None, "entropy", ["street.jpg"])
    assert parsed("--measure=variance", "street.jpg") == (None, "variance", ["street.jpg"])
    assert parsed("--nomeasure")[1] is parsed()[1] is None


def test_size_is_two_positive_integers(parsed):
    assert parsed("--size=32,48")[0] == (32, 48)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--size=32", "flag --size=32: expected HEIGHT,WIDTH in pixels"),
        ("--size=0,4", "flag --size=0,4: expected HEIGHT,WIDTH in pixels"),
        ("--measure=entropie", "flag --measure=entropie: expected one of entropy, variance"),
    ],
)
def test_invalid_value_names_what_is_expected(parsed, argument, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        parsed(argument)
