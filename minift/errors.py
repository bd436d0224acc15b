"""The two errors that mean "not our bug": what was asked for cannot be done, and what was begun cannot go on.

The command line prints their text and exits with status 2 or 1; a library caller can catch them. The text names what was found
(file, row, tensor, value), what was wanted, and the way out."""


class InputError(ValueError):
    """Bad arguments, files or data. The message is written for the person who can mend them."""


class RunError(RuntimeError):
    """Something outside failed while a run was under way: a reward function, a judge. What the run had done so far is kept."""
