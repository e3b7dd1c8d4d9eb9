"""Every test runs with sdekit's signatures checked (jaxtyping, beartype), on one thread, with fixed examples on CI."""

import os
import sys

import torch
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

assert "sdekit" not in sys.modules, "sdekit was imported before its signatures could be checked"
# an int is accepted where a float is annotated, as in PEP 484
install_import_hook("sdekit", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

torch.set_num_threads(1)

from sdekit.testing import simgpu  # noqa: E402 - after the hook that checks its signatures

simgpu.register()  # before any test's backward pass: autograd counts the devices at the first

_common = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("local", _common)
settings.register_profile("ci", _common, derandomize=True, print_blob=True)
settings.register_profile("thorough", _common, max_examples=500)  # pytest --hypothesis-profile=thorough
settings.load_profile("ci" if os.environ.get("CI") else "local")
