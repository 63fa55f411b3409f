"""Checks that every op of mahal passes, open to the ops of others.

`run_op_checks` runs one op, described by an `OpSpec`, over instruction sets, backends, array
libraries, dtypes, memory layouts and thread counts and compares it with a float64 reference.
`reference` holds the references of mahal's own ops.

Examples
--------
A function of your own needs its reference, some cases and a constant:

>>> import numpy as np
>>> from mahal.testing import Case, OpSpec, run_op_checks
>>> def column_sums(x):
...     return x.sum(axis=0)
>>> def cases(rng):
...     yield Case("tall", (rng.standard_normal((40, 3)),), terms=40)
>>> spec = OpSpec(
...     name="column_sums",
...     function=column_sums,
...     reference=lambda x: np.asarray(x, np.float64).sum(axis=0),
...     cases=cases,
... )
>>> run_op_checks(spec, libraries=["numpy"], isas=[], backends=["cpu"]).failures
0
"""

from mahal.testing import (
    reference,
    reference_estimators,
    reference_gradients,
    reference_grf,
    reference_matched,
)
from mahal.testing.harness import (
    LAYOUTS,
    Case,
    CheckError,
    OpSpec,
    Summary,
    backend,
    backends,
    isa,
    isas,
    layouts,
    libraries,
    random_scene,
    random_spd,
    run_op_checks,
    threads,
    to_library,
    to_numpy,
    tolerance,
)

__all__ = [
    "LAYOUTS",
    "Case",
    "CheckError",
    "OpSpec",
    "Summary",
    "backend",
    "backends",
    "isa",
    "isas",
    "layouts",
    "libraries",
    "random_scene",
    "random_spd",
    "reference",
    "reference_estimators",
    "reference_gradients",
    "reference_grf",
    "reference_matched",
    "run_op_checks",
    "threads",
    "to_library",
    "to_numpy",
    "tolerance",
]
