"""Support for tests of one's own networks, processes and solvers.

``laws``: what every process and solver must satisfy. ``simgpu``: a device that is not the CPU, on any machine.
"""
