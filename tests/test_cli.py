"""Kinds of flag that the commands share."""

import pytest
from absl import flags

from segjax import cli


@pytest.fixture
def parsed():
    """Returns `parsed(*arguments)`, the values of `--sides` and `--measure`, which only this test defines."""

    def parse(*arguments):
        cli.define_size("sides", "of it")
        cli.define_bare_or_one_of("measure", ("entropy", "variance"), "of it")
        try:
            rest = flags.FLAGS(["program", *arguments])[1:]
            return flags.FLAGS.sides, flags.FLAGS.measure, rest
        finally:
            del flags.FLAGS.sides, flags.FLAGS.measure
            flags.FLAGS.unparse_flags()

    return parse


def test_flag_without_a_value_leaves_the_next_argument(parsed):
    assert parsed("--measure", "street.jpg") == (None, "entropy", ["street.jpg"])
    assert parsed("--measure=variance", "street.jpg") == (None, "variance", ["street.jpg"])
    assert parsed("--nomeasure")[1] is parsed()[1] is None


def test_size_is_two_positive_integers(parsed):
    assert parsed("--sides=32,48")[0] == (32, 48)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--sides=32", "flag --sides=32: expected HEIGHT,WIDTH in pixels"),
        ("--sides=0,4", "flag --sides=0,4: expected HEIGHT,WIDTH in pixels"),
        ("--measure=entropie", "flag --measure=entropie: expected one of entropy, variance"),
    ],
)
def test_invalid_value_names_what_is_expected(parsed, argument, message):
    with pytest.raises(flags.IllegalFlagValueError, match=message):
        parsed(argument)
