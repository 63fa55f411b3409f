"""A scene with known truth, drawn from a simple physical model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mahal.scenes._scene import Scene

Floats = npt.NDArray[np.float64]

# Reflectance 1 in the digital numbers of the scene, as surface-reflectance products store it.
SCALE = 10000.0
CELL = 7  # pixels of free space that each implanted object gets along an axis


def simulate(
    rows: int = 100,
    cols: int = 100,
    bands: int = 100,
    *,
    seed: int = 0,
    targets: int = 16,
    fraction: tuple[float, float] = (0.08, 0.5),
    noise: float = 0.004,
) -> Scene:
    """Draw a hyperspectral scene with implanted sub-pixel targets.

    Linear mixing model. A pixel has the reflectance ``(1 - f) b + f t`` with the share ``f`` of the
    target spectrum ``t``. The background is ``b = g (1 + v) sum_k a_k e_k``: five smooth endmember
    spectra ``e_k`` (vegetation, soil, water, asphalt, roof), abundances ``a_k`` that are the
    softmax of spatially smooth Gaussian fields with a road across them, a relative spectral
    variability ``v`` of a few per cent that is smooth over wavelength, and an illumination ``g``
    that varies slowly in space.
    White Gaussian noise follows, strongest at both ends of the spectrum and in the two water vapour
    bands, and stronger in bright pixels. Objects lie on random cells of a coarse grid, cover one to
    four pixels, and fill a share of each of their pixels that is drawn per object.

    Parameters
    ----------
    rows, cols, bands : int
        Size of the image; bands are equally spaced from 400 to 2500 nm.
    seed : int
        Same arguments and seed give the same scene.
    targets : int
        Number of implanted objects.
    fraction : (low, high)
        Range of the target share of a pixel, more than 0 and at most 1.
    noise : float
        Standard deviation of the noise in the quietest band, in reflectance (0 to 1).

    Returns
    -------
    Scene
        uint16 image in reflectance times 10000, truth, and wavelengths. ``metadata`` has
        "fractions" (rows, cols), "abundances" (rows, cols, 5), "endmembers" (5, bands), "target"
        (bands,) and "seed".

    Raises
    ------
    ValueError
        A size below 1, a share out of range, negative noise, or more targets than the image has
        room for.
    """
    for name, value in (("rows", rows), ("cols", cols), ("bands", bands)):
        if value < 1:
            raise ValueError(f"simulate: {name}: must be at least 1, got {value}")
    if not 0 < fraction[0] <= fraction[1] <= 1:
        raise ValueError(f"simulate: fraction: must be 0 < low <= high <= 1, got {fraction}")
    if noise < 0:
        raise ValueError(f"simulate: noise: must not be negative, got {noise}")
    cells = (rows // CELL) * (cols // CELL)
    if not 0 <= targets <= cells:
        raise ValueError(
            f"simulate: targets: must be 0 to {cells} in {rows} x {cols} pixels, got {targets}"
        )
    rng = np.random.default_rng(seed)
    wavelengths = np.linspace(400.0, 2500.0, bands)
    endmembers, target = _spectra(wavelengths)
    abundances = _abundances(rng, rows, cols, len(endmembers))
    background = abundances @ endmembers
    background *= 1.0 + _variability(rng, rows, cols, wavelengths)
    background *= 1.0 + 0.07 * _field(rng, rows, cols, 25.0)[..., None]
    fractions = _implant(rng, rows, cols, targets, fraction)
    share = fractions[..., None]
    reflectance = (1.0 - share) * background + share * target
    level = noise * _noise_profile(wavelengths) * np.sqrt(0.5 + reflectance / 0.4)
    reflectance = reflectance + level * rng.standard_normal(reflectance.shape)
    image = np.clip(np.rint(reflectance * SCALE), 0, np.iinfo(np.uint16).max).astype(np.uint16)
    return Scene(
        image=image,
        name="simulated",
        format="npy",
        truth=fractions > 0,
        wavelengths=wavelengths,
        metadata={
            "fractions": fractions,
            "abundances": abundances,
            "endmembers": endmembers,
            "target": target,
            "seed": seed,
        },
    )


def _peak(w: Floats, centre: float, width: float) -> Floats:
    return np.asarray(np.exp(-0.5 * ((w - centre) / width) ** 2))


def _step(w: Floats, centre: float, width: float) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh((w - centre) / (2.0 * width))))


def _spectra(w: Floats) -> tuple[Floats, Floats]:
    """Five background reflectances (5, bands) and the target (bands,)."""
    leaf_water = (1.0 - 0.55 * _peak(w, 1450, 75)) * (1.0 - 0.75 * _peak(w, 1940, 95))
    leaf_water *= (1.0 - 0.12 * _peak(w, 975, 35)) * (1.0 - 0.15 * _peak(w, 1190, 50))
    vegetation = 0.03 + 0.05 * _peak(w, 550, 38) + 0.43 * _step(w, 715, 14) * leaf_water
    vegetation *= 1.0 - 0.45 * _step(w, 1700, 250)
    soil = 0.05 + 0.34 * (1.0 - np.exp(-(w - 380) / 650)) - 0.05 * _peak(w, 2205, 40)
    soil *= 1.0 - 0.08 * _peak(w, 1420, 50) - 0.14 * _peak(w, 1930, 60)
    water = 0.01 + 0.04 * np.exp(-np.abs(w - 480) / 120)
    asphalt = 0.045 + 0.10 * (1.0 - np.exp(-(w - 380) / 450)) - 0.015 * _peak(w, 2310, 50)
    roof = 0.12 + 0.26 * _step(w, 590, 28) + 0.05 * _step(w, 1100, 180) - 0.04 * _peak(w, 870, 80)
    target = 0.10 + 0.09 * _peak(w, 535, 45) + 0.27 * _step(w, 770, 28)
    target -= 0.11 * _peak(w, 1210, 35) + 0.16 * _peak(w, 1725, 45) + 0.15 * _step(w, 2230, 30)
    return np.stack([vegetation, soil, water, asphalt, roof]), target


def _field(rng: np.random.Generator, rows: int, cols: int, length: float) -> Floats:
    """Gaussian field of zero mean and unit variance with a correlation length in pixels."""
    # The transform is periodic: a frame as wide as the correlation keeps opposite edges apart.
    frame = int(2 * length) + 1
    tall, wide = rows + frame, cols + frame
    ky = 2 * np.pi * np.fft.fftfreq(tall)[:, None]
    kx = 2 * np.pi * np.fft.rfftfreq(wide)[None, :]
    response = (1.0 + (length / 2) ** 2 * (ky**2 + kx**2)) ** -1.5
    white = rng.standard_normal((tall, wide))
    smooth = np.fft.irfft2(np.fft.rfft2(white) * response, s=(tall, wide))
    # Divided by its exact standard deviation rather than the sample's: tiny images stay random.
    impulse = np.fft.irfft2(response, s=(tall, wide))
    return np.asarray(smooth[:rows, :cols] / np.sqrt(np.sum(impulse**2)))


def _abundances(rng: np.random.Generator, rows: int, cols: int, count: int) -> Floats:
    fields = np.stack([_field(rng, rows, cols, 14.0) for _ in range(count)], axis=-1)
    fine = np.stack([_field(rng, rows, cols, 3.0) for _ in range(count)], axis=-1)
    # Vegetation and soil dominate, water and roofs are rarer.
    logits = 4.0 * fields + 0.8 * fine + np.array([1.6, 1.0, -1.0, -0.6, -1.4])
    # An asphalt road about four pixels wide winds through the scene from top to bottom.
    phase = rng.uniform(0, 2 * np.pi)
    middle = cols * (0.45 + 0.2 * np.sin(3.0 * np.arange(rows) / rows + phase))
    logits[..., 3] += 12.0 * np.exp(-(((np.arange(cols) - middle[:, None]) / 2.2) ** 4))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def _variability(rng: np.random.Generator, rows: int, cols: int, w: Floats) -> Floats:
    """Relative deviation of the spectra: smooth over wavelength, different from pixel to pixel."""
    order = np.arange(1, 7)
    shapes = np.cos(np.pi * order[:, None] * (w - 400) / 2100)
    weights = rng.standard_normal((rows, cols, order.size))
    # The broadest shape varies from place to place, as moisture does.
    weights[..., 0] = 0.7 * weights[..., 0] + 0.7 * _field(rng, rows, cols, 4.0)
    return np.asarray((weights * (0.03 / order)) @ shapes)


def _noise_profile(w: Floats) -> Floats:
    ends = 1.0 + 1.2 * ((w - 1300) / 1000) ** 2
    vapour = 1.0 + 1.5 * _peak(w, 1400, 35) + 2.0 * _peak(w, 1880, 45)
    return np.asarray(ends * vapour)


def _implant(
    rng: np.random.Generator, rows: int, cols: int, targets: int, fraction: tuple[float, float]
) -> Floats:
    fractions = np.zeros((rows, cols))
    across = cols // CELL
    chosen = rng.permutation((rows // CELL) * across)[:targets]
    for cell in chosen:
        top = int(cell) // across * CELL + int(rng.integers(1, CELL - 2))
        left = int(cell) % across * CELL + int(rng.integers(1, CELL - 2))
        tall, wide = rng.integers(1, 3, size=2)
        fractions[top : top + tall, left : left + wide] = rng.uniform(*fraction)
    return fractions
