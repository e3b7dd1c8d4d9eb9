"""How multistep methods start, what that does to their order, and the laws for the ODE solvers' options."""

import pytest

import sdekit as sk
from sdekit.solvers import get
from sdekit.testing import laws

LATE = sk.VP(t_min=0.02, t_max=0.6)  # where predictions change from the first step on


@pytest.mark.parametrize("name", ["unipc-3", "deis-3", "deis-4", "lms", "dpmpp-3m-corrected", "adams-eps", "adams-x0"])
def test_a_single_step_start_keeps_the_order(name):
    lower, kept = (get(f"{name}(start={start!r})") for start in ("lower-order", "single-step"))
    assert laws.order_of(kept, LATE) == pytest.approx(kept.order, abs=0.3)
    few = 12
    assert laws.flow_error(kept, 256, process=LATE) < laws.flow_error(lower, 256, process=LATE)
    assert kept.plan(LATE, steps=few).nfe > lower.plan(LATE, steps=few).nfe == few + 1


@pytest.mark.parametrize("name", ["deis-4", "lms", "dpmpp-3m-corrected", "adams-x0(start='lower-order')"])
def test_a_lower_order_start_caps_the_order_at_2(name):
    assert laws.measured_order(lambda n: laws.flow_error(name, n, process=LATE), (256, 512)) == pytest.approx(
        2, abs=0.3
    )


@pytest.mark.parametrize(
    ("spec", "nfe", "evaluations"),
    [
        ("lms(start='single-step')", 13, [3, 3, 3, 1, 1, 1, 1]),
        ("lms(start='single-step')", 5, [3, 2]),
        ("deis-3(start='single-step')", 7, [2, 2, 1, 1, 1]),
        ("unipc-3(start='single-step')", 8, [3, 3, 1, 1]),
        ("pndm", 15, [4, 4, 4, 1, 1, 1]),
        ("pndm", 7, [4, 3]),
        ("adams-x0(order=1, start='single-step')", 3, [1, 1, 1]),
    ],
)
def test_the_split_states_the_evaluations_of_the_start(spec, nfe, evaluations):
    assert list(get(spec).split(nfe)) == evaluations
    plan = get(spec).plan(LATE, nfe=nfe, final="none")
    assert plan.nfe == nfe
    assert sum(row.commit for row in plan.rows) >= len(evaluations)


VARIANTS = [
    *(f"unipc-{order}(variant='bh1')" for order in (1, 3, 4)),
    *(f"{name}(start='single-step')" for name in ("unipc-3", "unipc-4", "deis-3", "deis-4", "dpmpp-3m-corrected")),
    *(f"adams-{kind}(order={order}, start='single-step')" for kind in ("eps", "x0") for order in (4, 5)),
    "adams-x0(start='lower-order')",
    "lms(order=3)",
    *(f"deis-rho-rk(order={order})" for order in (2, 4)),
    "lms(start='single-step')",
    "dpm-solver-2(r1=0.3)",
]


@pytest.mark.parametrize("law", laws.LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("spec", VARIANTS)
def test_law(spec, law):
    law(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("adams-eps(order=7)", "order=7 is not one of 1, 2, 3, 4, 5, 6"),
        ("adams-eps(order=4, start='lower-order')", "order=4 needs start='single-step'"),
        ("adams-x0(start='euler')", "start='euler' is not one of 'lower-order', 'single-step'"),
        ("unipc-5", "did you mean 'unipc-"),
        ("dpm-solver-2(r1=0)", "r1=0 is not a number from 0.01 to 1"),
        ("deis-rho-rk(order=1)", "order=1 is not one of 2, 3, 4"),
    ],
)
def test_orders_that_do_not_exist_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        get(spec)


def test_pndm_names_its_smallest_budget():
    with pytest.raises(ValueError, match="at least 2"):
        get("pndm").plan(sk.VP(), nfe=1, final="denoise")
