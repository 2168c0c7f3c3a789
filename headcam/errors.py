"""Errors that a person can act on: what was wrong, the value, and the fix, on one line.

The command line prints them as `headcam: <message>` and exits with 2, without a traceback. Anything else that is
raised is a bug of ours and keeps its traceback.
"""


class HeadcamError(Exception):
    """Base of all errors that the user can mend.

    `problem` names the thing and its value; `fix` says what to do. Both are sentences without a full stop.
    """

    def __init__(self, problem: str, fix: str):
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return " ".join(f"{self.problem}. Fix: {self.fix}".split())


class InputError(HeadcamError, ValueError):
    """A file, folder, option or table that cannot be used as it is."""


class DecodeError(InputError):
    """A recording, or a stretch of it, that no picture can be read from."""


class MissingPackage(HeadcamError, ImportError):
    """An optional package that the wanted feature needs is not installed."""


class StorageError(HeadcamError, OSError):
    """The disk is full, read-only or gone."""
