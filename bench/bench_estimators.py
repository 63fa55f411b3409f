"""Covariance estimators of many windows, against pyRiemann and scikit-learn.

    python bench/bench_estimators.py

10^4 windows of 11 x 11 pixels with 4 complex and with 6 real channels. The rivals get the windows
cut out beforehand and ready in memory; mahal cuts them out of the image itself. The fixed points
stop at the same relative step in all libraries. The scores are those of local RX.
"""

from __future__ import annotations

import warnings

import mahal
import numpy as np
from _harness import Candidate, Row, add_ratios, compare, finish, optional, parser

WINDOW = 11
# Names here, in pyRiemann and in scikit-learn.
ESTIMATORS = (
    ("scm", "scm", ""),
    ("ledoit_wolf", "lwf", "LedoitWolf"),
    ("oas", "oas", "OAS"),
    ("tyler", "tyl", ""),
    ("student_t", "stu", ""),
)
TOLERANCES = {"tyler": (1e-2, 1e-6), "student_t": (1e-2, 1e-6)}


def scene(side: int, dtype: str) -> np.ndarray:
    """Correlated K-distributed clutter: Gaussian speckle with a gamma texture."""
    rng = np.random.default_rng(1)
    bands = 4 if np.dtype(dtype).kind == "c" else 6
    shape = (side, side, bands)
    noise = rng.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        noise = noise + 1j * rng.standard_normal(shape)
    texture = np.sqrt(rng.gamma(2.0, 0.5, (side, side, 1)))
    mixing = np.linalg.cholesky(0.6 ** np.abs(np.subtract.outer(range(bands), range(bands))))
    return np.ascontiguousarray(texture * (noise @ mixing.T)).astype(dtype)


def cut(image: np.ndarray) -> np.ndarray:
    """All windows inside the image as (windows, bands, samples)."""
    views = np.lib.stride_tricks.sliding_window_view(image, (WINDOW, WINDOW), axis=(0, 1))
    count = views.shape[0] * views.shape[1]
    return np.ascontiguousarray(views.reshape(count, image.shape[2], WINDOW * WINDOW))


def batched_tyler(windows: np.ndarray, tolerance: float, most: int) -> np.ndarray:
    """Tyler's fixed point of all windows at once with batched numpy operations."""
    centred = windows - windows.mean(axis=2, keepdims=True)
    bands = windows.shape[1]
    adjoint = np.ascontiguousarray(np.conj(np.swapaxes(centred, 1, 2)))
    current = np.broadcast_to(np.eye(bands, dtype=windows.dtype), (len(windows), bands, bands))
    active = np.arange(len(windows))
    result = np.array(current)
    for _ in range(most):
        solved = np.linalg.solve(result[active], centred[active])
        power = np.einsum("kpn,kpn->kn", centred[active].conj(), solved).real
        products = (centred[active] / power[:, None]) @ adjoint[active]
        products *= bands / np.trace(products, axis1=1, axis2=2).real[:, None, None]
        change = np.linalg.norm(products - result[active], axis=(1, 2))
        size = np.linalg.norm(result[active], axis=(1, 2))
        result[active] = products
        active = active[change > tolerance * size]
        if not len(active):
            break
    return result


def estimator_rows(
    image: np.ndarray, windows: np.ndarray, names: tuple[str, str, str], threads: int, repeats: int
) -> list[Row]:
    """One estimator in all libraries."""
    name, theirs, model = names
    riemann = optional("pyriemann.geometry.covariance")
    sklearn = optional("sklearn.covariance") if model and image.dtype.kind == "f" else None
    estimate = None if sklearn is None else getattr(sklearn, model)
    some = windows[: len(windows) // 10]
    share = {"scale": len(windows) / len(some), "measured": f"{len(some)} windows"}
    rows = []
    for tolerance in TOLERANCES.get(name, (None,)):
        steps = {} if tolerance is None else {"tolerance": tolerance, "max_iterations": 100}
        candidates = [
            Candidate(
                "mahal",
                lambda steps=steps: mahal.local_covariance(
                    image, WINDOW, estimator=name, border="valid", **steps
                ),
            ),
            Candidate(
                "mahal, scores",
                lambda steps=steps: mahal.rx(
                    image, window=WINDOW, estimator=name, border="valid", **steps
                ),
            ),
        ]
        if riemann is not None:
            their_steps = {} if tolerance is None else {"tol": tolerance, "n_iter_max": 100}
            candidates.append(
                Candidate(
                    "pyRiemann",
                    lambda steps=their_steps: riemann.covariances(some, estimator=theirs, **steps),
                    **share,
                )
            )
        if tolerance is not None and name == "tyler":
            candidates.append(
                Candidate(
                    "numpy, batched",
                    lambda least=tolerance: batched_tyler(some, least, 100),
                    **share,
                )
            )
        if estimate is not None:
            candidates.append(
                Candidate(
                    "scikit-learn",
                    lambda: [estimate().fit(w.T).covariance_ for w in some],
                    **share,
                )
            )
        case = f"{name} {image.shape[2]} x {image.dtype}"
        case += "" if tolerance is None else f" to {tolerance:g}"
        found = compare(case, candidates, threads=threads, repeats=repeats, budget=20.0)
        add_ratios(found)
        for row in found:
            row.facts["us per window"] = row.seconds / len(windows) * 1e6
        rows += found
    return rows


def main() -> None:
    args = parser(__doc__).parse_args()
    warnings.simplefilter("ignore")  # windows at the cap, and deprecations in the rivals
    side = (30 if args.quick else 100) + WINDOW - 1
    rows = []
    for dtype in ("complex64", "complex128", "float64"):
        image = scene(side, dtype)
        windows = cut(image)
        for names in ESTIMATORS:
            for threads in args.threads:
                rows += estimator_rows(image, windows, names, threads, args.repeats)
    finish("estimators", rows, {})


if __name__ == "__main__":
    main()
