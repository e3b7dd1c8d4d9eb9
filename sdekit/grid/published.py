"""Published noise levels that were optimised for a network (Sabour et al. 2024, Align Your Steps, table 3)."""

from __future__ import annotations

import math
from typing import Annotated

from sdekit.names import OneOf
from sdekit.process import Process

# σ/α at the 11 knots of 10 steps
AYS_TABLES: dict[str, tuple[float, ...]] = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "deepfloyd": (160.41, 8.081, 3.315, 1.885, 1.207, 0.785, 0.553, 0.293, 0.186, 0.030, 0.006),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def ays(process: Process, fraction: float, *, table: Annotated[str, OneOf(*AYS_TABLES)] = "sd15") -> float:
    """The published AYS noise levels of one network, linear in log(σ/α) between the table's knots.

    10 steps have the table's own inner knots; the ends are the process's, exactly. A grid is optimal for the network
    and the data it was made with: for others see ``sdekit.fitting.fit_ays``.

    Raises ValueError where an inner noise level lies outside the process's range.

    >>> from sdekit.process import VP
    >>> round(math.exp(-VP().half_log_snr(ays(VP(), 0.5))), 3)
    1.396
    """
    levels = AYS_TABLES[table]
    place = fraction * (len(levels) - 1)
    low = min(int(place), len(levels) - 2)
    first, last = math.log(levels[low]), math.log(levels[low + 1])
    half_log_snr = -(first + (place - low) * (last - first))
    ends = process.half_log_snr(process.t_max), process.half_log_snr(process.t_min)
    if 0 < fraction < 1 and not ends[0] < half_log_snr < ends[1]:
        most, least = (math.exp(-end) for end in ends)
        raise ValueError(
            f"ays: table={table!r} has a step at σ/α = {math.exp(-half_log_snr):.4g}, the process allows those between"
            f" {least:.4g} and {most:.4g}"
        )
    return process.t_of_half_log_snr(half_log_snr)
