"""Detectors as methods of xarray.DataArray: ``scene.mahal.rx(window=(5, 21))``.

Importing this module registers the accessor. Results keep the coordinates and attributes of the
scene that do not belong to its bands. A DataArray over dask gives a lazy result, computed block by
block as in `mahal.blocks`; one in memory gives its result in memory.
"""

from __future__ import annotations

from typing import Any

from mahal import blocks
from mahal.scenes._lazy import big

__all__ = ["MahalAccessor"]


class MahalAccessor:
    """The detectors of `mahal.blocks` on a DataArray (rows, cols, bands).

    The dimensions may be in any order when one of them is called band, bands, wavelength,
    wavelengths, channel or channels; else the last one is that of the bands. The pixels keep
    their dimensions. What the attribute ``nodata`` declares missing is masked.

    Parameters
    ----------
    scene : xarray.DataArray
    """

    def __init__(self, scene: Any) -> None:
        self._scene = scene

    def rx(self, **options: Any) -> Any:
        """RX scores.

        Parameters
        ----------
        **options
            Of `mahal.blocks.rx`.

        Returns
        -------
        DataArray, or two of them with ``return_status``
        """
        return blocks.rx(self._scene, **options)

    def ace(self, target: Any, **options: Any) -> Any:
        """Adaptive cosine estimator.

        Parameters
        ----------
        target : (bands,) or (targets, bands) array
        **options
            Of `mahal.blocks.ace`.

        Returns
        -------
        DataArray, or two of them with ``return_status``
        """
        return blocks.ace(self._scene, target, **options)

    def matched_filter(self, target: Any, **options: Any) -> Any:
        """Matched filter.

        Parameters
        ----------
        target : (bands,) or (targets, bands) array
        **options
            Of `mahal.blocks.matched_filter`.

        Returns
        -------
        DataArray, or two of them with ``return_status``
        """
        return blocks.matched_filter(self._scene, target, **options)

    def cem(self, target: Any, **options: Any) -> Any:
        """Constrained energy minimisation.

        Parameters
        ----------
        target : (bands,) or (targets, bands) array
        **options
            Of `mahal.blocks.cem`.

        Returns
        -------
        DataArray, or two of them with ``return_status``
        """
        return blocks.cem(self._scene, target, **options)

    def spectral_angle(self, target: Any, **options: Any) -> Any:
        """Angle to a target spectrum.

        Parameters
        ----------
        target : (bands,) or (targets, bands) array
        **options
            Of `mahal.blocks.spectral_angle`.

        Returns
        -------
        DataArray
        """
        return blocks.spectral_angle(self._scene, target, **options)

    def fused_rx(self, **options: Any) -> Any:
        """Global and local RX in one score.

        Parameters
        ----------
        **options
            Of `mahal.blocks.fused_rx`.

        Returns
        -------
        DataArray, or two of them with ``return_status``
        """
        return blocks.fused_rx(self._scene, **options)

    def change_map(self, other: Any, window: int, **options: Any) -> Any:
        """Change from this scene to another one.

        Parameters
        ----------
        other : DataArray
            Of the same shape and dtype. It is compared pixel by pixel in the order of its rows and
            columns: coordinates are not aligned.
        window : int
            Odd side in pixels.
        **options
            Of `mahal.blocks.change_map`.

        Returns
        -------
        DataArray, or two of them with ``return_status``
        """
        return blocks.change_map(self._scene, other, window, **options)

    def local_covariance(self, window: Any, **options: Any) -> tuple[Any, ...]:
        """Means and covariances of windows.

        Parameters
        ----------
        window : int, (inner, outer), or a list of these
        **options
            Of `mahal.blocks.local_covariance`.

        Returns
        -------
        tuple of DataArrays
            The covariance has a second dimension of bands, whose name ends with ``_2``.
        """
        return blocks.local_covariance(self._scene, window, **options)


big("xarray").register_dataarray_accessor("mahal")(MahalAccessor)
