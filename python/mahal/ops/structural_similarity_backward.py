"""Gradients of structural similarity, by the kernel."""

from __future__ import annotations

from mahal import _core
from mahal._arrays import Array, dtype_name, empty, stream, workspace


def structural_similarity_backward(
    first: Array,
    second: Array,
    grad: Array,
    constants: tuple[int, float, float, float, float, int, str],
    threads: int = 0,
    needs: tuple[bool, bool] = (True, True),
) -> tuple[Array | None, Array | None]:
    """Gradients of the scores of `mahal.structural_similarity` with respect to both images.

    Parameters
    ----------
    first, second : (rows, cols, channels) arrays
        As they were passed there.
    grad : (rows, cols, channels) contiguous array
        Derivative of a number by the score of every channel.
    constants : tuple
        Window, sigma (0: all weights are equal), range of the data, k1, k2, ddof, border.
    threads : int
        CPU threads, 0 for the default.
    needs : (bool, bool)
        Which gradients to compute.

    Returns
    -------
    grad_first, grad_second : (rows, cols, channels) array or None
        A window whose score is NaN gives NaN to its pixels, but nothing where ``grad`` is zero.

    References
    ----------
    Z. Wang and E. P. Simoncelli, J. Vis. 8 (2008), appendix, for the derivative of a window.
    """
    shape = tuple(first.shape)
    grad_first, grad_second = (
        empty(first, shape, dtype_name(first)) if need else None for need in needs
    )
    if any(needs):
        memory = workspace(
            first,
            _core.structural_similarity_backward_workspace(first, second, *constants, threads),
        )
        _core.structural_similarity_backward(
            first,
            second,
            grad,
            grad_first,
            grad_second,
            memory,
            *constants,
            threads,
            stream(first),
        )
    return grad_first, grad_second
