"""A planted bug: one exact replacement in one source file, and the test file that must notice it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    """Path of the source file, from the repository's root."""
    old: str
    """Text that occurs in it exactly once."""
    new: str
    test: str
    """The test file that must fail once `old` has become `new`."""
