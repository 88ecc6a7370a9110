"""The one exception that speaks to the user: bad input, told in one line."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydantic import ValidationError


CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {ord(c): " " for c in "\t\n\v\f\r"}
CONTROLS |= {code: f"\\u{code:04x}" for code in (0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""What a terminal would obey, or what would make two lines of one, as it is shown instead: it may come from a file."""


LONGEST = 1200
"""Characters of a message; of one that quotes more from a file the middle is left out."""


MANY = 20
"""Known words that nobody reads to find the one that was misspelt."""


class _ToldError(Exception):
    def __init__(self, message: str) -> None:
        text = message.translate(CONTROLS)
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}")


class InputError(_ToldError):
    """What was given cannot be used. The message is one line: what, where, what to do instead.

    The command line prints it and exits with status 2; nothing has been written.
    """


class RunError(_ToldError):
    """The work was begun and could not be finished. The message is one line; the command line exits with status 1."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean 'ddim'? known: ddim, plms)``: the end of a message about an unknown word.

    Of many words only the one that is meant is named.
    """
    known = sorted(known)
    close = get_close_matches(word, known, n=1) or [name for name in known if name.lower() == word.lower()]
    if close and len(known) > MANY:
        return f"(did you mean '{close[0]}'?)"
    guess = f"did you mean '{close[0]}'? " if close else ""
    return f"({guess}known: {', '.join(known)})"


def one_line(error: ValidationError, where: str, known: Iterable[str] = ()) -> InputError:
    """The first fault that pydantic found, as an :class:`InputError`: ``plan.json: steps[2].t: ...``."""
    faults = error.errors(include_url=False, include_context=False)
    # a misspelt key is also a missing one: the key that is there says more
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    place = ""
    for part in first["loc"]:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key {nearest(place.rpartition('.')[2], known)}" if known else "unknown key"
    elif first["type"] == "missing":
        message = "is missing; give it"
    elif first["type"] == "json_invalid":
        message = f"is not a complete JSON file ({message}); write it again"
    else:
        message = with_input(message, first["input"])
    return InputError(": ".join(part for part in (where, short(place), short(message)) if part))


def with_input(message: str, given: object) -> str:
    """What pydantic says of an input, with the input where that is a word or a number: ``1 should be at least 2``."""
    if not isinstance(given, str | int | float):
        return message
    return message.replace("Input should be", f"{short(repr(given), 60)} should be").replace(
        "greater than or equal to", "at least"
    )


def short(text: str, most: int = 300) -> str:
    """On one line, with the middle left out of what is too long to be read."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
