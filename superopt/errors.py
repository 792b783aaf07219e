"""Errors that users see. Each names what is wrong, where, and what to do."""

from __future__ import annotations


class SuperoptError(Exception):
    """The base of all errors that superopt raises on purpose; `exit_code` is the command's."""

    exit_code = 2


class SpecError(SuperoptError):
    """The spec file, or a spec in it, is wrong."""


class UnsupportedOperator(SpecError):
    """A traced operator has no row in the lowering table."""

    def __init__(self, operator: str, where: str, instead: str) -> None:
        self.operator = operator
        super().__init__(f"{where}: operator {operator} is not supported; {instead}")


class UsageError(SuperoptError):
    """The command line or an API argument is wrong."""


class CheckFailed(SuperoptError):
    """A kernel does not do what its spec does, or nothing that verifies was found."""

    exit_code = 1


class IllFormed(ValueError):
    """An expression, program or µGraph breaks a rule of the representation: a defect of ours."""


class JournalError(SuperoptError):
    """The journal of a search cannot be read or written."""

    def __init__(self, path: object, why: str, kept: int) -> None:
        super().__init__(
            f"{path}: cannot keep the journal: {why}; the {kept} finished tasks in it are whole: "
            "make room, then go on with --resume"
        )


class TaskFailed(SuperoptError):
    """A task of the search raised what it should not: a defect of ours, with its traceback."""


class RayUnavailable(SuperoptError):
    """Ray is not installed, not to be reached, or has no room for a worker."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}; or search on this machine, without Ray, with --jobs N")
