"""Support for tests of one's own networks, processes and solvers.

``check_solver`` and ``check_process`` hold a solver or a process to every law that the package's own are held to, in
one line. ``laws`` and ``process_laws``: the laws, and the exact truths behind them. ``simgpu``: a device that is not
the CPU, on any machine. ``check_device`` holds a real one to the CPU's numbers.

>>> from sdekit import VP
>>> check_process(VP())
>>> check_solver("ddim")
"""

from sdekit.testing.devices import check_device
from sdekit.testing.laws import check_solver
from sdekit.testing.process_laws import check_process

__all__ = ["check_device", "check_process", "check_solver"]
