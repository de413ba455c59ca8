"""Numbers as a person reads them."""

import math


def duration(seconds: float) -> str:
    """Seconds with a fitting unit."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 1:
        unit, scale = ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
        return f"{seconds * scale:.3g} {unit}"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def size(nbytes: float) -> str:
    """Bytes with a fitting decimal unit."""
    if not math.isfinite(nbytes):
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"


def energy(joules: float) -> str:
    """Joules with a fitting unit."""
    if not math.isfinite(joules):
        return "not known"
    for unit in ("J", "kJ", "MJ"):
        if joules < 1000:
            return f"{joules:.3g} {unit}"
        joules /= 1000
    return f"{joules:.3g} GJ"


def fraction(sent: float, dense: float) -> str:
    """Bytes sent as a part of dense ones."""
    return f"{sent / dense:.1%}" if dense > 0 else "-"
