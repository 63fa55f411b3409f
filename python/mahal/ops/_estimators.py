"""Arguments and warnings of the covariance estimators that several ops share."""

from __future__ import annotations

import operator
import warnings
from typing import Any, TypeAlias

from mahal._arrays import (
    Array,
    ConvergenceWarning,
    check_choice,
    on_device,
    report_singular,
    to_host,
)

Estimation: TypeAlias = tuple[str, float, float, float, int]
"""Name, loading, nu, tolerance and cap of the iterations, as the kernels take them."""

ESTIMATORS = ("scm", "loading", "ledoit_wolf", "oas", "tyler", "student_t")
ITERATIVE = ("tyler", "student_t")

SINGULAR = 2
NOT_CONVERGED = 5


def _number(op: str, argument: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{op}: {argument}: must be a number, got {value!r}")
    return float(value)


def as_estimation(
    op: str, estimator: Any, loading: Any, nu: Any, tolerance: Any, max_iterations: Any
) -> Estimation:
    """The arguments of an estimator; their ranges are checked by the kernels."""
    check_choice(op, "estimator", estimator, ESTIMATORS)
    try:
        steps = operator.index(max_iterations)
    except TypeError:
        raise TypeError(
            f"{op}: max_iterations: must be a whole number, got {max_iterations!r}"
        ) from None
    return (
        estimator,
        _number(op, "loading", loading),
        _number(op, "nu", nu),
        _number(op, "tolerance", tolerance),
        steps,
    )


def warn_not_converged(op: str, count: int, total: int, *, depth: int = 3) -> None:
    """Say how many estimates stopped at the cap; ``depth`` counts the frames to the user's."""
    warnings.warn(
        f"{op}: {count} of {total} estimates have not converged, raise max_iterations or tolerance",
        ConvergenceWarning,
        stacklevel=depth,
    )


def report_estimates(
    op: str,
    status: Array,
    estimator: str,
    singular: str,
    *,
    what: str = "a singular covariance",
    loads: bool = True,
    depth: int = 4,
) -> None:
    """Warn of the pixels of a score map whose estimate is singular or not converged, or raise.

    ``loads``: whether a singular sample covariance can be loaded by the global one. ``depth``
    counts the frames to the user's.
    """
    # Loading by the global covariance stands in for a sample covariance only.
    rule = "nan" if singular == "load" and not (loads and estimator == "scm") else singular
    report_singular(op, status, rule, what=what, depth=depth)
    report_not_converged(op, status, depth=depth + 1)


def report_not_converged(op: str, status: Array, *, depth: int) -> None:
    """Warn of the estimates that stopped at the cap, unless the states are on a device."""
    if on_device(status):
        return
    states = to_host(status)
    count = int((states == NOT_CONVERGED).sum())
    if count:
        warn_not_converged(op, count, states.size, depth=depth)
