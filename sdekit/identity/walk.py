"""The walk through all that a thing consists of."""

from __future__ import annotations

import hashlib

from sdekit.identity.code import Attributes
from sdekit.identity.networks import bare
from sdekit.identity.parts import PLAIN, UnidentifiedError, parts


def identify(thing: object) -> str:
    """16 hexadecimal digits of all that decides what ``thing`` computes, the same in every process.

    Raises ``UnidentifiedError`` (a ValueError) for what has a state that cannot be read; then no stored result is known
    to be of it.

    >>> def scaled(scale):
    ...     return lambda x, t: scale * x
    >>> identify(scaled(1.0)) == identify(scaled(1.0)) != identify(scaled(6.0))
    True
    >>> identify({"values": iter([])})
    Traceback (most recent call last):
    sdekit.identity.parts.UnidentifiedError: values is a list_iterator, whose state cannot be read
    """
    try:
        return hashlib.sha256(_Walk()(thing)).hexdigest()[:16]
    except RecursionError:
        raise UnidentifiedError(f"a {type(thing).__name__} nested too deeply") from None


class _Walk:
    """The digest of each thing met, from the digests of its parts."""

    def __init__(self) -> None:
        self.done: dict[object, tuple[bytes, object]] = {}  # the thing too: while it lives, its id is its own
        self.open: dict[object, int] = {}

    def __call__(self, thing: object) -> bytes:
        if type(thing) in PLAIN:
            return repr(thing).encode()
        thing = bare(thing)
        key = key_of(thing)
        if key in self.open:
            return b"above: %d" % self.open[key]
        if key not in self.done:
            self.open[key] = len(self.open)
            self.done[key] = self._of_parts(thing), thing
            del self.open[key]
        return self.done[key][0]

    def _of_parts(self, thing: object) -> bytes:
        if isinstance(thing, bytes):
            return hashlib.sha256(thing).digest()
        found = [self._part(label, part) for label, part in parts_of(thing)]
        whole = hashlib.sha256(repr(type(thing).__name__).encode())
        for part in sorted(found) if isinstance(thing, (set, frozenset)) else found:
            whole.update(part)
        return whole.digest()

    def _part(self, label: str, part: object) -> bytes:
        try:
            found = self(part)
        except UnidentifiedError as error:
            raise UnidentifiedError(error.what, *filter(None, (label, *error.path))) from None
        name = label.encode("utf-8", "surrogatepass")
        return b"%d %d " % (len(name), len(found)) + name + found


def key_of(thing: object) -> object:
    """What tells a thing from others while it lives."""
    return thing if isinstance(thing, Attributes) else id(thing)


def parts_of(thing: object) -> list[tuple[str, object]]:
    """``parts``; what fails to be taken apart, whatever its classes do, is not identified."""
    try:
        return list(parts(thing))
    except (UnidentifiedError, RecursionError):
        raise
    except Exception as error:
        raise UnidentifiedError(f"a {type(thing).__name__}") from error
