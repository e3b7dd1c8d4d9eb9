"""Time grids: the named ones, the knots of a run, and a trained table's timesteps as other libraries list them.

A named grid is one function in ``GRIDS``; explicit times are passed as a sequence. Grids that are fitted to a model of
one's own are in ``sdekit.fitting``.
"""

from sdekit.grid.knots import Grid, GridSpec, identified, without_data
from sdekit.grid.named import GRIDS
from sdekit.grid.table import table_times

__all__ = ["GRIDS", "Grid", "GridSpec", "identified", "table_times", "without_data"]
