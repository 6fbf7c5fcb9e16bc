"""How every command line starts and fails: a person's mistake is one clear line, a fault of ours a traceback."""

import errno
import logging as standard_logging
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from segjax.training import MISTAKES, Terminated

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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
            if error.errno not in _NO_ROOM:
                raise
            sys.exit(f"error: {error}. With room again, the same command carries on")

    app.run(guarded)
