"""The ``sdekit`` command, one file a subcommand: compare, invert, likelihood, report, sample, solvers,
train, tune.

torch is imported by the commands, not here. Whatever is wrong with an argument is one line on stderr and exit code 2.
"""

from sdekit.cli import compare, invert, likelihood, report, sample, solvers, train, tune
from sdekit.cli.shell import app, main
from sdekit.subjects import TARGETS

__all__ = ["TARGETS", "app", "compare", "invert", "likelihood", "main", "report", "sample", "solvers", "train", "tune"]
