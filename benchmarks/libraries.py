"""What other libraries run by default, by its name here, and how far the two agree.

    python benchmarks/libraries.py FOLDER    # writes docs/libraries.md; 20 s of one core

diffusers and k-diffusion are to be installed. FOLDER holds what no package installs, the authors' own
``dpm_solver_pytorch.py`` and ``uni_pc.py``.
"""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

from library_runs import (
    LATENT_TABLE,
    TO_ZERO,
    Case,
    Run,
    by_sigma,
    ipndm,
    k_diffusion,
    preconditioned,
    released,
    scheduled,
    unscaled,
)

from sdekit.process import EDM, VP

PAGE = Path(__file__).parents[1] / "docs" / "libraries.md"
PLAIN, SCALED = scheduled(), scheduled(in_sigma=True)
AT_SIGMA, SCALED_AT_SIGMA = scheduled(by_sigma), scheduled(by_sigma, in_sigma=True)
UNSCALED = scheduled(unscaled, in_sigma=True)
DPM_TIMES = 'table_times(process, "linspace", N + 1)[:-1]'
EULER_TIMES = 'table_times(process, "linspace", N)'
LEADING = 'table_times(process, "leading", N)'
LATENT: dict[str, Any] = {"process": LATENT_TABLE, "evaluations": "2N − 1"}
LAST_ENTRY: dict[str, Any] = {"final_sigmas_type": "sigma_min"}
SA = "sa-solver(predictor=2, corrector=1, s_min=0.72, s_max=25.8, slope='published', lower_order_below=inf)"


def diffusers(name: str, run: Run, solver: str, grid: str, final: str = "denoise", **rest: Any) -> Case:
    return Case("diffusers", name, run, solver, grid, final, **rest)


def k(name: str, solver: str, grid: str = "karras", final: str = "denoise", **rest: Any) -> Case:
    return Case("k-diffusion", name, k_diffusion, solver, grid, final, **{"process": EDM(), **rest})


CASES = [
    diffusers("DPMSolverMultistepScheduler", PLAIN, "dpmpp-2m(lower_order_below=0)", DPM_TIMES),
    diffusers(
        "DPMSolverMultistepScheduler",
        AT_SIGMA,
        "dpmpp-2m(lower_order_below=0)",
        "karras",
        options={"use_karras_sigmas": True},
    ),
    diffusers(
        "DPMSolverMultistepScheduler",
        PLAIN,
        "dpmpp-2m(lower_order_below=15)",
        "linspace",
        "none",
        options=LAST_ENTRY,
        n=(14, 15),
    ),
    diffusers(
        "DPMSolverMultistepScheduler",
        PLAIN,
        "dpmpp-2m(lower_order_below=inf)",
        "linspace",
        "none",
        options=LAST_ENTRY | {"euler_at_final": True},
        n=(14, 15),
    ),
    diffusers(
        "DPMSolverMultistepScheduler",
        PLAIN,
        "dpmpp-3m(lower_order_below=15)",
        "linspace",
        "none",
        options=LAST_ENTRY | {"solver_order": 3},
        n=(14, 15),
    ),
    diffusers(
        "DPMSolverMultistepScheduler",
        PLAIN,
        "dpmpp-2m-sde(lower_order_below=0)",
        DPM_TIMES,
        options={"algorithm_type": "sde-dpmsolver++"},
    ),
    diffusers(
        "DPMSolverSinglestepScheduler",
        AT_SIGMA,
        "dpmpp-2s",
        "logsnr_times[::2]",
        options={"use_exponential_sigmas": True},
    ),
    diffusers("UniPCMultistepScheduler", PLAIN, "unipc-2(lower_order_below=0)", DPM_TIMES),
    diffusers(
        "UniPCMultistepScheduler",
        PLAIN,
        "unipc-3(lower_order_below=inf)",
        "linspace",
        "none",
        options=LAST_ENTRY | {"solver_order": 3},
    ),
    diffusers(
        "DEISMultistepScheduler",
        PLAIN,
        "adams-eps(order=2, start='lower-order', lower_order_below=15)",
        "linspace",
        "none",
        n=(14, 15),
    ),
    diffusers("SASolverScheduler", PLAIN, SA, "linspace", "none"),
    diffusers("DDIMScheduler", PLAIN, "ddim", LEADING),
    diffusers("DDPMScheduler", PLAIN, "ddpm", LEADING),
    diffusers("PNDMScheduler", PLAIN, "pndm", LEADING, "none", evaluations="N + 8", n=(10, 20)),
    diffusers("IPNDMScheduler", ipndm, "ipndm-4", "linspace", "none"),
    diffusers("EulerDiscreteScheduler", SCALED, "ddim", EULER_TIMES),
    diffusers("EulerAncestralDiscreteScheduler", SCALED, "ddim(eta=1.0)", EULER_TIMES),
    diffusers("HeunDiscreteScheduler", SCALED, "heun", EULER_TIMES, **LATENT),
    diffusers("KDPM2DiscreteScheduler", SCALED_AT_SIGMA, "dpm-2", EULER_TIMES, **LATENT),
    diffusers("DPMSolverSDEScheduler", SCALED_AT_SIGMA, "dpmpp-sde", EULER_TIMES, **LATENT),
    diffusers(
        "LMSDiscreteScheduler", scheduled(unscaled, True), "lms", "[*table_sigmas, 1e-12]", "none", process=TO_ZERO
    ),
    diffusers("EDMEulerScheduler", preconditioned, "ddim", "karras", process=EDM()),
    diffusers(
        "EDMDPMSolverMultistepScheduler", preconditioned, "dpmpp-2m(lower_order_below=0)", "karras", process=EDM()
    ),
    k("sample_euler", "ddim"),
    k("sample_euler_ancestral", "ddim(eta=1.0)"),
    k("sample_heun", "heun", evaluations="2N − 1"),
    k("sample_dpm_2", "dpm-2", evaluations="2N − 1"),
    k("sample_lms", "lms", "[*karras_sigmas, 1e-12]", "none", process=TO_ZERO),
    k("sample_dpm_fast", "dpm-solver-fast", "logsnr", "none", n=(9, 10, 11)),
    k("sample_dpmpp_2m", "dpmpp-2m(lower_order_below=0)"),
    k("sample_dpmpp_2m_sde", "dpmpp-2m-sde(lower_order_below=0)"),
    k("sample_dpmpp_3m_sde", "dpmpp-3m-sde(lower_order_below=0)"),
    k("sample_dpmpp_sde", "dpmpp-sde", evaluations="2N − 1"),
    k("sample_dpmpp_2s_ancestral", "dpmpp-2s", evaluations="2N − 1", options={"eta": 0.0}),
]

FILES = [
    ("dpm-solver", "dpm_solver_pytorch", "DPM_Solver", "dpmpp-2m(lower_order_below=10)"),
    ("UniPC", "uni_pc", "UniPC", "unipc-2(variant='bh1', lower_order_below=inf)"),
]
"""Library, file, class and solver of those that are one file each."""


def single_files(folder: Path) -> list[Case]:
    """The two whose ``sample(x, steps=N)`` runs on VP(), all else its default."""
    return [
        Case(library, name, released(folder / f"{file}.py", name), solver, "time", "none", VP(), n=(9, 10, 20))
        for library, file, name, solver in FILES
    ]


INTRODUCTION = """# Coming from another library

What diffusers, k-diffusion and the authors' code of DPM-Solver and UniPC run when they are called as in the second
column, by its name here. N is the library's number of steps; `nfe=` takes what stands under evaluations.

```python
import torch

import sdekit as sk
from sdekit.grid import table_times

process = sk.DiscreteVP()  # diffusers' default table; of another scheduler: DiscreteVP(scheduler.betas.tolist())
model = sk.ScoreModel(lambda x, t: x, process, predicts="eps", time="entry")  # a network of theirs
N = 10

# DPMSolverMultistepScheduler(), the first row
times = table_times(process, "linspace", N + 1)[:-1]
start = torch.randn(4, 2)
out = sk.sample(
    model, start.shape, solver="dpmpp-2m(lower_order_below=0)", grid=times, final="denoise", nfe=N, start=start
)
print(out.nfe)
```

```text
10
```

A scheduler that steps to σ = 0 by a step of order 1 returns the x_0 that is predicted at its last time: that is
`final="denoise"`. Lowering the order over the last step (`lower_order_final`, `euler_at_final`) then changes nothing
in a method of order 2, and `lower_order_below=0` is theirs. Where the last σ is the table's first entry
(`final_sigmas_type="sigma_min"`, DEIS, SA-Solver), `final="none"` ends there, and the rule for the order shows: below
15 steps in diffusers, below 10 in dpm-solver, always in UniPC, never in k-diffusion. The defaults here are others,
those that measure best: `dpmpp-2m` alone lowers the order in runs of fewer than 25 steps.

"""
HEADER = """| library | its call | solver | grid | final | evaluations | float64 | as shipped |
|---|---|---|---|---|---|---|---|
"""
NOTES = """
**float64** is the largest difference of a coordinate between the library's result and ours, with each `float32` in
the library's code replaced by `float64`: what is left is rounding. **As shipped** is the same with the code as it is,
whose tables, and often states, are float32; stochastic steps subtract nearly equal numbers there. The network is the
exact ε of three modes of width 0.1 in two dimensions. 16 starts, two or three N, among them those on both sides of a
rule; the largest is shown. Stochastic samplers are given the same noise. Made by `python benchmarks/libraries.py
FOLDER`, with VERSIONS.

- The process is `DiscreteVP()` for diffusers, with the entries 0.00085 to 0.012 that `HeunDiscreteScheduler`,
  `KDPM2DiscreteScheduler` and `DPMSolverSDEScheduler` have by default; `EDM()` for its EDM schedulers and
  k-diffusion, whose `karras` is `get_sigmas_karras(N, 0.002, 80)`; `VP()` for dpm-solver and UniPC.
- `[*table_sigmas, 1e-12]` are σ/α at `table_times(process, "linspace", N)`, as times of `EDM(t_min=1e-12)`: linear
  multistep reaches σ = 0 by its own weights, where λ is infinite, and 1e-12 leaves nothing of the difference.
- `logsnr_times[::2]` is every second time of the `logsnr` grid of N knots, and its last. On other times, its default
  among them, `DPMSolverSinglestepScheduler` puts the middle evaluation at the next knot, wherever in λ that lies: no
  solver here does.
- Steps of `sample_dpmpp_2s_ancestral` and `sample_dpm_2_ancestral` with η > 0 have no counterpart here; `dpmpp-sde`
  is the method of two evaluations whose middle carries its share of the noise.
- Methods of order 3 that step to σ = 0 in fewer than 15 steps (UniPC: in any number) take their last but one step
  with order 2. A run here that denoises falls to 1 or not at all; with `final_sigmas_type="sigma_min"` both agree.

What differs for other reasons, in the versions above:

- `use_karras_sigmas=True` asks the network at times rounded to whole numbers, while the step uses the exact σ:
  results differ by 2e-3. The row compares with a network that is asked at that σ. So do those of
  `use_exponential_sigmas`, `KDPM2DiscreteScheduler` and `DPMSolverSDEScheduler`, whose times between entries are
  interpolated in log σ, or cut off.
- The Euler, Heun and linear multistep schedulers give the network fractional times where (T − 1)/(N − 1) is no whole
  number, and interpolate σ linearly; `table_times` rounds to entries. The rows have N = 10 and 28, where it is whole.
- `DDIMScheduler` and `DDPMScheduler` clip x_0 to [−1, 1] unless told `clip_sample=False`. Nothing is clipped here;
  the data compared lie inside.
- `IPNDMScheduler` starts at α = 0, which no process here does: it is given our σ (`trained_betas`), and v to predict.
- `PNDMScheduler` calls the network N + 9 times and makes a step of length 0 with the last call.
- `sde-dpmsolver++` with `solver_order=3` has the half of its last coefficient with the wrong sign: results differ by
  4.0 and 3.5 from `dpmpp-3m-sde`, which is k-diffusion's, at N = 20 and 40; with the sign mended, by 6e-7.
  DPM-Solver++ 3M weighs D_2 by half in every library; `dpmpp-3m` does, too, and `dpmpp-3m-corrected` does not.
"""


def declared(case: Case) -> list[str]:
    """A row's cells that are known without a run."""
    return [case.library, *(f"`{cell}`" for cell in (case.call, case.solver, case.grid, case.final)), case.evaluations]


def row(case: Case) -> str:
    measured = [max(case.difference(n, wide) for n in case.n) for wide in (True, False)]
    return "| " + " | ".join([*declared(case), *(f"{value:.0e}" for value in measured)]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("code", type=Path, help="the folder of dpm_solver_pytorch.py and uni_pc.py")
    cases = [*CASES, *single_files(parser.parse_args().code)]
    versions = " and ".join(f"{name} {metadata.version(name)}" for name in ("diffusers", "k-diffusion"))
    rows = "".join(f"{row(case)}\n" for case in cases)
    PAGE.write_text(INTRODUCTION + HEADER + rows + NOTES.replace("VERSIONS", versions), encoding="utf-8")


if __name__ == "__main__":
    main()
