"""Command lines: a user's mistake ends with one clear line, a bug with a traceback; and two kinds of flag."""

import errno
import logging as standard_logging
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from segjax.training import MISTAKES, ConfigError, Terminated
from segjax.training.config import RENAMED, check_known

flags.disclaim_key_flags()  # `--help` lists the flags of the command and not those of this module

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_PATH_ERRORS = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)


def run(main: Callable[[list[str]], None], required: Sequence[str]) -> None:
    """Parses the flags and calls `main(argv)`; a mistake of the user ends the process with its message and status 1.

    Args:
      main: takes the program's name and the arguments that are not flags.
      required: names of the flags that must be given.
    """
    flags.mark_flags_as_required(list(required))

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:  # orbax and TFDS log every rename and every read-only open
            logging.set_verbosity(logging.ERROR)
            # asyncio logs all arrays of a failed save; its error is printed once, below.
            standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
        try:
            main(argv)
        except Terminated as end:  # stopped on request, not a failure
            print(end, flush=True)
        except MISTAKES as mistake:
            sys.exit(f"error: {mistake}")
        except OSError as error:
            if error.errno in _PATH_ERRORS and error.filename:
                sys.exit(f"error: {error}")
            if error.errno not in _DISK_ERRORS:
                raise
            sys.exit(
                f"error: {error}. Run the same command again when the disk is writable and has free space; it resumes"
            )

    app.run(guarded, flags_parser=_parsed)


def refuse_arguments(argv: Sequence[str]) -> None:
    """Raises UsageError if the command line has arguments that are not flags."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")


def _parsed(argv: list[str]) -> list[str]:
    """Returns what is left of the command line after the flags."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:  # ml_collections: the config has no such field
        # A config file assigned it.
        found = re.search(r'Key "(\w+)" does not exist', str(error))
        for old, new in RENAMED.items() if found else ():
            if old.endswith(f".{found[1]}"):
                sys.exit(f"error: config.{old} was renamed; use config.{new}")
        for argument in argv:
            name, _, value = argument.partition("=")
            if name.startswith("--config."):
                try:
                    check_known(name.removeprefix("--config."), value)
                except ConfigError as mistake:
                    sys.exit(f"error: {mistake}")
        raise


class _Size(flags.ArgumentParser):
    """A height and a width."""

    syntactic_help = "HEIGHT,WIDTH in pixels"

    def parse(self, argument: str | tuple[int, int]) -> tuple[int, int]:
        """Returns the two sides."""
        if isinstance(argument, tuple):
            return argument
        sides = argument.split(",")
        if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
            raise ValueError("expected HEIGHT,WIDTH in pixels")
        return int(sides[0]), int(sides[1])


class _BareOrOneOf(flags.ArgumentParser):
    """One of some values, the first of them for a flag without a value."""

    def __init__(self, values: Sequence[str]):
        super().__init__()
        self._values, self.syntactic_help = values, f"<{'|'.join(values)}>; without a value: {values[0]}"

    def parse(self, argument: str) -> str | None:
        """Returns the value; None for `--noNAME`."""
        if argument in ("true", "false"):
            return self._values[0] if argument == "true" else None
        if argument not in self._values:
            raise ValueError(f"expected one of {', '.join(self._values)}")
        return argument


def define_size(
    name: str, help_text: str, default: tuple[int, int] | None = None, *, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines a flag `--name=HEIGHT,WIDTH`, a tuple of two positive integers."""
    flags.DEFINE(_Size(), name, default, help_text, flag_values)


def define_bare_or_one_of(
    name: str, values: Sequence[str], help_text: str, *, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines a flag `--name`, which is the first of `values`, or `--name=VALUE`; default None."""
    flags.DEFINE(_BareOrOneOf(values), name, None, help_text, flag_values, boolean=True)
