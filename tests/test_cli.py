"""Kinds of flag that the commands share, the line of an error, and streams that nobody reads."""

import errno
import os

import pytest
from absl import flags

from segjax import cli
from segjax.training import CheckpointError, ConfigError


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


@pytest.mark.parametrize(
    ("number", "way_out", "wrong"),
    [
        (errno.ENOSPC, "Free space", "ulimit"),
        (errno.EDQUOT, "Free space", "ulimit"),
        (errno.EROFS, "choose a folder", "space"),
        (errno.EMFILE, "ulimit -n", "space"),
        (errno.EADDRINUSE, "another port", "space"),
        (errno.ENAMETOOLONG, "R/x", "space"),
    ],
)
def test_error_line_of_the_system_has_the_file_and_the_way_out(number, way_out, wrong):
    line = cli.error_line(OSError(number, os.strerror(number), "R/x"))
    assert "R/x" in line
    assert way_out in line
    assert wrong not in line
    assert "\n" not in line


def test_error_line_of_a_mistake_has_the_way_out_of_its_cause():
    error = CheckpointError("checkpoint 3 could not be written")
    error.__cause__ = OSError(errno.EMFILE, "Too many open files")
    assert "checkpoint 3" in cli.error_line(error)
    assert "ulimit -n" in cli.error_line(error)
    assert cli.error_line(ConfigError("config.x: 1")) == "error: config.x: 1"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nfor 8 bytes")])
def test_error_line_of_exhausted_memory_names_what_takes_less(error):
    line = cli.error_line(error)
    assert "config.training.global_batch" in line
    assert "--tile" in line
    assert "\n" not in line


def test_error_line_of_a_bug_is_none():
    assert cli.error_line(TypeError("no")) is None


def test_output_that_nobody_reads_is_dropped():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        output = cli._Output(stream)
        for _ in range(2):
            output.write("x" * 100_000)
            output.flush()
