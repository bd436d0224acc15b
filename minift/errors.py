"""The one error that means "your input, not our bug".

The command line prints its text and exits with status 2; a library caller can catch it. The text names what was found
(file, row, tensor, value), what was wanted, and the way out."""


class InputError(ValueError):
    """Bad arguments, files or data. The message is written for the person who can mend them."""
