"""Settings that refuse what cannot be meant, wherever it comes from: command line, job list, file or Python."""

from functools import cache
from math import inf, isfinite
from numbers import Integral, Real
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from expportrait_cli.errors import UsageError

MANY = 10**9
"""Above any count that means something."""


class Between(NamedTuple):
    """Lowest and highest value of a number, for its annotation."""

    low: float
    high: float


Count = Annotated[int, Between(0, MANY)]
Positive = Annotated[int, Between(1, MANY)]
Share = Annotated[float, Between(0, 1)]
Seed = Annotated[int, Between(0, 2**63 - 1)]
Rate = Annotated[float, Between(0, 1000)]


class Checked:
    """A dataclass whose fields are checked by their annotations: the type, a `Literal`'s choices, `Between`."""

    def __post_init__(self) -> None:
        """Raise UsageError at the first value that does not fit."""
        for name in _forms(type(self)):
            value = getattr(self, name)
            if wanted := expected(type(self), name, value):
                raise UsageError(f"`{name}={str(value)[:60]}`: expected {wanted}.")


def between(cls: type, name: str) -> Between | None:
    """Bounds of a setting, if it has any."""
    return _forms(cls)[name][1]


def expected(cls: type, name: str, value: Any) -> str:
    """What a setting should be, in words; empty if the value fits."""
    kind, limits = _forms(cls)[name]
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in (bool, str):
        return "" if isinstance(value, kind) else {bool: "true or false", str: "a text"}[kind]
    if value is None and type(None) in get_args(kind):
        return ""
    if kind not in (int, float, float | None):
        return ""
    low, high = limits or (-inf, inf)
    is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if is_number and isfinite(number := float(value)) and low <= number <= high:  # pyright: ignore[reportArgumentType]
        return ""
    word = "a whole number" if kind is int else "a number"
    return f"{word} from {low:g} to {high:g}" if limits else word


@cache
def _forms(cls: type) -> dict[str, tuple[Any, Between | None]]:
    """Type and bounds of each field."""
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        kind, *details = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        found[name] = kind, next((each for each in details if isinstance(each, Between)), None)
    return found
