"""Networks of diffusers as models here, and solvers of this package as schedulers of diffusers' pipelines."""
