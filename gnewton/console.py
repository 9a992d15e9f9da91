"""What every command of the package does alike: it prints any text, and ends in one line whatever stops it."""

import io
import os
import sys
from collections.abc import Callable

INTERRUPTED = 130  # as shells say of a program that Ctrl-C ended


def run(name: str, command: Callable[[], int]) -> int:
    """A command's exit status; 130 after Ctrl-C, 1 where the disk refuses, a package is missing, or nobody reads any more."""
    print_anything()
    try:
        status = command()
        sys.stdout.flush()  # here, and not when Python ends, where nobody could answer
        return status
    except KeyboardInterrupt:
        sys.stderr.write(f"{name}: interrupted; nothing is half written, the same command can be repeated\n")
        return INTERRUPTED
    except BrokenPipeError:  # as in: gnewton check | head -1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer is written there
        return 1
    except (OSError, ModuleNotFoundError) as error:  # of the disk: no such folder, no right to write, no room
        sys.stderr.write(f"{name}: {error}\n")
        return 1


def print_anything() -> None:
    """A Windows console may know 256 characters (cp1252): a folder's name or a learner's must not end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
