"""The public names: each listed one is there, and the command's help needs no torch."""

import inspect
import pkgutil
import subprocess
import sys

import pytest

import sdekit as sk


def test_every_public_name_is_there_and_no_other():
    assert len(sk.__all__) == len(set(sk.__all__))
    assert set(sk._HOMES) <= set(sk.__all__) <= {*sk._HOMES, *sk._MODULES}
    for name in sk.__all__:
        assert getattr(sk, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        sk.smaple  # noqa: B018


def test_a_function_keeps_its_name_when_its_module_is_imported():
    import sdekit.comparison
    import sdekit.sampling

    assert sk.compare is sdekit.comparison.compare
    assert sk.sample is sdekit.sampling.sample


def test_every_module_is_reachable_after_one_import():
    for module in pkgutil.iter_modules(sk.__path__):
        # by the package's own hook: an attribute may be there only because another test imported it
        assert sk.__getattr__(module.name) is sys.modules[f"sdekit.{module.name}"]


def test_solvers_gives_what_fits_them_too():
    from sdekit.model_statistics import fit_dpm_v3, fit_statistics

    assert sk.solvers.fit_dpm_v3 is fit_dpm_v3
    assert sk.solvers.fit_statistics is fit_statistics
    assert {"fit_dpm_v3", "fit_statistics"} <= set(dir(sk.solvers))
    with pytest.raises(AttributeError, match=r"'sdekit.solvers' has no attribute 'fit_dpm'"):
        sk.solvers.fit_dpm  # noqa: B018


def test_help_does_not_import_torch():
    code = "import sys, sdekit.cli; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


SHOWN_ELSEWHERE = {  # decorators, in docs/extending.md; what needs a network of diffusers, in docs/diffusers.md
    "solvers.register", "inverse.register", "interop.diffusers.load", "interop.diffusers.load_pipeline",
    "interop.diffusers.wrap",
}  # fmt: skip


def functions(module, prefix=""):
    for name in module.__all__:
        thing = getattr(module, name)
        if inspect.ismodule(thing) and hasattr(thing, "__all__"):
            yield from functions(thing, f"{prefix}{name}.")
        elif inspect.isfunction(thing):
            yield f"{prefix}{name}", thing


def test_every_public_function_says_what_it_does_and_shows_it():
    found = dict(functions(sk))
    assert len(found) > 100
    undescribed = [name for name, thing in found.items() if len(inspect.getdoc(thing) or "") < 30]
    assert undescribed == []
    without = {name for name, thing in found.items() if ">>> " not in inspect.getdoc(thing)}
    assert without == SHOWN_ELSEWHERE
