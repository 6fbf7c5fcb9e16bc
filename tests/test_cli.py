"""Kinds of flag that the commands share, config files, the line of an error, and streams that nobody reads."""

import errno
import os
import runpy
import signal
import sys
import time
import warnings

import pytest
from absl import flags

from segjax import cli
from segjax.__main__ import MODULES
from segjax.training import CheckpointError, ConfigError, defaults


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
    stored = CheckpointError("checkpoint 3 could not be written: DATA_LOSS: No space left on device. Step 2 is kept.")
    assert "Step 2 is kept. Free space" in cli.error_line(stored)  # from tensorstore, whose errors have no number
    assert cli.error_line(ConfigError("config.x: 1.")) == "error: config.x: 1."


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


@pytest.fixture(params=MODULES)
def command_flags(request, monkeypatch):
    """Returns the flags that a command defines beside those of absl."""
    before = set(flags.FLAGS)
    monkeypatch.setattr(cli, "run", lambda *unused, **also: None)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'segjax.* found in sys.modules", RuntimeWarning)
            runpy.run_module(MODULES[request.param], run_name="__main__")
        yield [flags.FLAGS[name] for name in set(flags.FLAGS) - before]
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)


def test_every_number_of_a_command_has_a_range_and_refuses_what_is_outside(command_flags):
    assert [one.name for one in command_flags if isinstance(one.parser, flags.IntegerParser | flags.FloatParser)] == []
    for flag in (one for one in command_flags if hasattr(one.parser, "field")):
        low, high = map(float, flag.parser.field.range[1:-1].split(","))
        for value in ("", "x", "nan", "inf", "-inf", "1e400", "9" * 400, f"{low - 1:.0f}", f"{high + 1:.0f}", "1,2"):
            with pytest.raises(flags.IllegalFlagValueError, match=rf"^flag --{flag.name}=.*: expected .* in [\[(]"):
                flag.parse(value)


def test_number_keeps_its_default_and_takes_both_ends(parsed):
    cli.define_number("share", float, "(0, 1]", "of it")
    try:
        assert (flags.FLAGS["share"].value, flags.FLAGS["share"].parser.parse("1")) == (None, 1.0)
    finally:
        del flags.FLAGS.share


@pytest.fixture
def load(tmp_path):
    """Returns `load(text)`, the config that a file of this text defines."""

    def parse(text):
        file = tmp_path / "mine.py"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return cli.ConfigFile("config").parse(str(file))

    return parse


HEAD = "from segjax.training import defaults\ndef get_config():\n  c = defaults()\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"{HEAD}  c.augment.rate = 3\n  return c",
            r"line 4: .*config.augment.rate; did you mean config\.aug",
        ),
        (
            f"{HEAD}  m = c.model\n  m.rate = 3",
            r"line 5: config.model.rate was renamed; .*dropout_rate$",
        ),
        (f"{HEAD}  c.objective.gama = 3", r"mine.py, line 4: .*config.objective.gama; did you mean .*gamma\?$"),
        (f"{HEAD}  c.training.steps = 'ten'", r"mine.py, line 4: TypeError: .*steps"),
        (f"{HEAD}  1 / 0", r"mine.py, line 4: ZeroDivisionError"),
        (f"{HEAD}  raise SystemExit('no')", r"mine.py, line 4: SystemExit: no$"),
        (
            f"{HEAD}  return dict(c)",
            r"mine.py: get_config returned {.*; expected a modified segjax.training.defaults\(\)",
        ),
        (HEAD, r"mine.py: get_config returned None; expected a modified segjax.training.defaults\(\)"),
        ("def get_config(:\n", r"mine.py, line 1: SyntaxError"),
        ("\n\n  x = 1\n", r"mine.py, line 3: IndentationError"),
        ("import nothing_here\n", r"mine.py, line 1: ModuleNotFoundError: No module named 'nothing_here'$"),
        ("get_config = 3\n", r"mine.py: TypeError: 'int' object is not callable$"),
        ("def get_config(argument): pass\n", r"mine.py: TypeError: .*argument"),
        ("", r"mine.py: get_config is missing"),
        (b"\x00\xff\x00", r"mine.py.*: SyntaxError"),
        (b"x = '\xff'", r"mine.py.*: SyntaxError"),
    ],
)
def test_config_file_that_fails_gives_one_line_with_file_and_line(load, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(text)
    assert "\n" not in str(caught.value)


def test_config_file_is_the_one_that_get_config_returns(load):
    assert load(f"{HEAD}  c.seed = 3\n  return c").to_dict() == defaults().to_dict() | {"seed": 3}


def test_interrupt_again_repeats_a_ctrl_c_that_a_callback_has_lost(monkeypatch):
    class Loses:
        def __del__(self):  # Python ignores what is raised here
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", cli._interrupt_again)
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        Loses()
        time.sleep(10)


def test_config_file_with_a_dataclass_of_postponed_annotations_is_read(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom segjax.training import defaults\n"
        "@dataclasses.dataclass\nclass Options:\n  steps: int = 7\n"
        "def get_config():\n  c = defaults()\n  c.training.steps = Options().steps\n  return c\n"
    )
    assert cli.ConfigFile(name="config").parse(str(tmp_path / "mine.py")).training.steps == 7
