"""How every command line starts and fails: a person's mistake is one clear line, a fault of ours a traceback.

And two kinds of flag that absl has not.
"""

import errno
import logging as standard_logging
import re
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from segjax.training import MISTAKES, ConfigError, Terminated
from segjax.training.config import RENAMED, check_known

flags.disclaim_key_flags()  # `--help` shows those of the command, and not of this module

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Of the paths that a person names.
_NO_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP)


def run(main: Callable[[list[str]], None], required: Sequence[str]) -> None:
    """Parses the flags and calls `main(argv)`; a mistake of the user ends the process with its message and status 1.

    Args:
      main: takes what is left of the command line after the flags, the program's name first.
      required: names of the flags that must be given.
    """
    flags.mark_flags_as_required(list(required))

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:  # orbax and TFDS tell every rename, and warn of reading read-only
            logging.set_verbosity(logging.ERROR)
            # Of a failed save asyncio logs every array; it is said once, below.
            standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
        try:
            main(argv)
        except Terminated as end:  # asked for and done: no failure
            print(end, flush=True)
        except MISTAKES as mistake:
            sys.exit(f"error: {mistake}")
        except OSError as error:
            if error.errno in _NO_PATH and error.filename:
                sys.exit(f"error: {error}")
            if error.errno not in _NO_ROOM:
                raise
            sys.exit(f"error: {error}. With room again, the same command carries on")

    app.run(guarded, flags_parser=_parsed)


def _parsed(argv: list[str]) -> list[str]:
    """What is left of the command line after the flags."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:  # ml_collections: the config has no such field
        # In a config file: the field that it assigned.
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
    syntactic_help = "HEIGHT,WIDTH in pixels"

    def parse(self, argument: str | tuple[int, int]) -> tuple[int, int]:
        if isinstance(argument, tuple):
            return argument
        sides = argument.split(",")
        if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
            raise ValueError("expected HEIGHT,WIDTH in pixels")
        return int(sides[0]), int(sides[1])


class _BareOrOneOf(flags.ArgumentParser):
    def __init__(self, values: Sequence[str]):
        super().__init__()
        self._values, self.syntactic_help = values, f"<{'|'.join(values)}>; bare, the first"

    def parse(self, argument: str) -> str | None:
        if argument in ("true", "false"):
            return self._values[0] if argument == "true" else None
        if argument not in self._values:
            raise ValueError(f"expected one of {', '.join(self._values)}")
        return argument


def define_size(
    name: str, help_text: str, default: tuple[int, int] | None = None, *, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """A flag `--name=HEIGHT,WIDTH`, a tuple of two positive integers."""
    flags.DEFINE(_Size(), name, default, help_text, flag_values)


def define_bare_or_one_of(
    name: str, values: Sequence[str], help_text: str, *, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """A flag `--name`, which is the first of `values`, or `--name=VALUE`; default None."""
    flags.DEFINE(_BareOrOneOf(values), name, None, help_text, flag_values, boolean=True)
