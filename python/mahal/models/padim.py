"""PaDiM and PaDiM-ACE: one Gaussian per location of a feature map, from normal images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from tqdm import tqdm

import mahal
from mahal.models._detector import ModelError, check_choice, check_number, host_array
from mahal.models._images import ImageDetector, Picture, Pictures, check_size
from mahal.models._training import generator
from mahal.models.backbones import Backbone, build, prepare, rebuild

Array = Any
CHUNK = 1 << 24
"""Entries of factors that are worked on at a time, where a copy of them is made."""
FUNCTION = "function"
"""What the file of a model has for a backbone that is a function."""
LEAST = 16
"""Rows and columns of the smallest image."""


class LocationStatistics:
    """Count, mean and covariance of every location of feature maps, from batch after batch.

    Takes (locations, d, d) numbers of memory whatever the number of images. Sums are taken around
    the mean of the first batch, which keeps them accurate in float32. Statistics of several parts
    of the images are merged (Chan, Golub and LeVeque, 1983).

    Attributes
    ----------
    count : (locations,) tensor
        How many images each location has been seen in; None before the first batch.
    """

    def __init__(self) -> None:
        self.count: torch.Tensor | None = None

    def update(self, features: torch.Tensor, used: torch.Tensor | None = None) -> None:
        """Take in a batch.

        Parameters
        ----------
        features : (images, d, rows, cols) tensor
        used : (images, rows, cols) bool tensor, optional
            Which locations of which image count.
        """
        images, d = features.shape[:2]
        x = features.permute(2, 3, 0, 1).reshape(-1, images, d)
        weight = x.new_ones(x.shape[:2])
        if used is not None:
            weight = used.permute(1, 2, 0).reshape(-1, images).to(x.dtype)
        if self.count is None:
            counts = weight.sum(dim=1)
            self.offset = (x * weight[..., None]).sum(dim=1) / counts.clamp_min(1)[:, None]
            # A location that comes later only is summed around the mean of the others.
            self.offset[counts == 0] = x.mean(dim=(0, 1))
            self.count = torch.zeros_like(counts)
            self.total = torch.zeros_like(self.offset)
            self.scatter = x.new_zeros(len(x), d, d)
        elif x.shape[::2] != self.offset.shape:
            raise ValueError(
                "LocationStatistics: features: must have the locations and channels of the batches "
                f"before, {tuple(self.offset.shape)}, got {tuple(x.shape[::2])}"
            )
        z = (x - self.offset[:, None]) * weight[..., None]
        self.count += weight.sum(dim=1)
        self.total += z.sum(dim=1)
        self.scatter.baddbmm_(z.mT, z)

    def merge(self, other: LocationStatistics) -> None:
        """Take in what another one has seen, which is left unchanged.

        Parameters
        ----------
        other : LocationStatistics
            Of the same locations and channels.
        """
        if other.count is None:
            return
        if self.count is None:
            self.count, self.offset = other.count.clone(), other.offset.clone()
            self.total, self.scatter = other.total.clone(), other.scatter.clone()
            return
        if other.offset.shape != self.offset.shape:
            raise ValueError(
                "LocationStatistics: other: must have as many locations and channels, "
                f"{tuple(self.offset.shape)}, got {tuple(other.offset.shape)}"
            )
        n = self.count + other.count
        delta = other.mean() - self.mean()
        share = (other.count / n.clamp_min(1))[:, None]
        mean = self.mean() + delta * share
        apart = delta * (self.count[:, None] * share).sqrt()
        self._centre()
        self.scatter += other.scatter
        rest = other.total / other.count.clamp_min(1).sqrt()[:, None]
        self.scatter.baddbmm_(rest[:, :, None], rest[:, None], alpha=-1)
        self.scatter.baddbmm_(apart[:, :, None], apart[:, None])
        self.count, self.offset = n, mean

    def mean(self) -> torch.Tensor:
        """(locations, d) tensor."""
        count = self._counted()
        return self.offset + self.total / count.clamp_min(1)[:, None]

    def covariance(self) -> torch.Tensor:
        """(locations, d, d) tensor, with divisor n - 1."""
        once = LocationStatistics()
        once.merge(self)
        return once._take_covariance()

    def _counted(self) -> torch.Tensor:
        if self.count is None:
            raise ValueError("LocationStatistics: there has been no batch yet")
        return self.count

    def _centre(self) -> None:
        """Move the sums to the mean."""
        mean = self.mean()
        rest = self.total / self._counted().clamp_min(1).sqrt()[:, None]
        self.scatter.baddbmm_(rest[:, :, None], rest[:, None], alpha=-1)
        self.offset = mean
        self.total = torch.zeros_like(self.total)

    def _take_covariance(self) -> torch.Tensor:
        """The covariance in the memory of the sums, which are lost."""
        count = self._counted()
        few = int((count < 2).sum())
        if few:
            raise ValueError(
                f"PadimACE.fit: images: {few} of {len(count)} locations are used in fewer than two "
                "images, a covariance needs two"
            )
        self._centre()
        scatter = self.scatter
        del self.scatter
        return scatter.div_((count - 1)[:, None, None])


class LocationScores(NamedTuple):
    """Scores of the locations of one image."""

    mahalanobis: npt.NDArray[np.float32]
    """(rows, cols), 0 and up."""
    ace: npt.NDArray[np.float32] | None
    """(rows, cols) in [-1, 1]; None where the model has no signature."""


class PadimACE(ImageDetector):
    """PaDiM, and PaDiM with the adaptive cosine estimator (ACE), for sets of images of one view.

    A frozen network gives feature maps; every location has the mean m and the covariance S of what
    normal images have there. PaDiM scores ``|L^-1 (x - m)|`` with ``S = L L^T``, the Mahalanobis
    distance; ACE the cosine between ``L^-1 (x - m)`` and ``L^-1 s``, for a signature s of what is
    looked for. Nothing is trained, and memory does not grow with the number of images.

    Parameters
    ----------
    backbone : str, dict or function
        "resnet18"; a folder that transformers has saved a model in; the configuration of a model of
        transformers with its ``model_type``; or a function or module that takes (images, channels,
        rows, cols) tensors and gives a list or mapping of feature maps, channels second or last.
    weights : path, optional
        .safetensors file, or .pth file of tensors alone, with weights for a named backbone; those
        of torchvision for "resnet18". Not given: random weights.
    layers : tuple of int, optional
        Which feature maps are used, from 1; the first three of a named backbone, all of a function.
    dimensions : int, optional
        How many channels are kept, drawn at random; None: all.
    size : (int, int), optional
        Rows and columns that images are resized to; where not given, all images have one size.
    normalization : {"imagenet", "none"}
        Values between 0 and 1, or unsigned integers, by mean and deviation of ImageNet; or as they
        are.
    ridge : float
        Added to the diagonal of every covariance.
    ridge_kind : {"absolute", "relative"}
        Ridge in squared units of the features, or as a share of the mean variance of the location.
    signature : {"per_location", "global"}
        Mean feature of the anomalous images at every location, or over all of them; taken by `fit`
        and `set_signature`.
    center_signature : bool
        Take the signature relative to m, as ACE in spectroscopy does; the paper does not.
    covariance : {"full", "diagonal", "isotropic"}
        S itself, its diagonal, or one number c times the identity.
    aggregation : {"mean_diagonal", "mean_full", "determinant", "trace"}
        What c is of S. Without any effect on ACE, which then is a plain cosine.
    score_kind : {"ace", "mahalanobis"}
    compat : {"padim-ace-2025"}, optional
        The score of the published code, which colours where it should whiten: the cosine between
        ``L^T (x - m)`` and ``L^T s``; "diagonal" then is the inverse of the diagonal of S^-1.
    smoothing : float
        Standard deviation in pixels of the Gaussian that the map is blurred with; 0: none.
    batch_size : int
        Images at a time.
    seed : int
        Of the channels, and of random weights.

    Attributes
    ----------
    dimensions_ : tensor of int (d,)
        Channels that were kept, counted through all maps from the largest on.
    grid_ : (int, int)
        Rows and columns of locations.
    mean_ : (locations, d) tensor
    factor_ : (locations, d, d) tensor
        L, lower triangular.
    signature_ : (locations, d) tensor or None

    References
    ----------
    T. Defard, A. Setkov, A. Loesch and R. Audigier, "PaDiM: a patch distribution modeling framework
    for anomaly detection and localization", ICPR workshops 2020, arXiv 2011.08785. A. Ibarra and J.
    Peeples, "Patch distribution modeling framework adaptive cosine estimator (PaDiM-ACE) for
    anomaly detection and localization in synthetic aperture radar imagery", arXiv 2504.08049, 2025.
    """

    scoring_params = (
        "signature",
        "center_signature",
        "covariance",
        "aggregation",
        "score_kind",
        "compat",
        "smoothing",
    )

    def __init__(
        self,
        *,
        backbone: Any = "resnet18",
        weights: str | Path | None = None,
        layers: tuple[int, ...] | None = None,
        dimensions: int | None = 100,
        size: tuple[int, int] | None = None,
        normalization: str = "imagenet",
        ridge: float = 0.01,
        ridge_kind: str = "absolute",
        signature: str = "per_location",
        center_signature: bool = False,
        covariance: str = "full",
        aggregation: str = "mean_diagonal",
        score_kind: str = "ace",
        compat: str | None = None,
        smoothing: float = 4.0,
        batch_size: int = 32,
        seed: int = 0,
    ) -> None:
        op = "PadimACE"
        if not isinstance(backbone, (str, dict)) and not callable(backbone):
            raise TypeError(
                f"{op}: backbone: must be a name, a configuration or a function, got "
                f"{type(backbone).__name__}"
            )
        for layer in layers or ():
            check_number(op, "layers", layer, 1, whole=True)
        if size is not None:
            if len(size) != 2:
                raise ValueError(f"{op}: size: must be two numbers, rows and columns, got {size}")
            for side in size:
                check_number(op, "size", side, LEAST, whole=True)
        if dimensions is not None:
            check_number(op, "dimensions", dimensions, 1, whole=True)
        check_choice(op, "normalization", normalization, ("imagenet", "none"))
        check_number(op, "ridge", ridge, 0, whole=False)
        check_choice(op, "ridge_kind", ridge_kind, ("absolute", "relative"))
        check_choice(op, "signature", signature, ("per_location", "global"))
        check_choice(op, "covariance", covariance, ("full", "diagonal", "isotropic"))
        kinds = ("mean_diagonal", "mean_full", "determinant", "trace")
        check_choice(op, "aggregation", aggregation, kinds)
        check_choice(op, "score_kind", score_kind, ("ace", "mahalanobis"))
        if compat is not None:
            check_choice(op, "compat", compat, ("padim-ace-2025",))
        check_number(op, "smoothing", smoothing, 0, whole=False)
        check_number(op, "batch_size", batch_size, 1, whole=True)
        check_number(op, "seed", seed, 0, whole=True)
        self.backbone = backbone
        self.weights = None if weights is None else str(weights)
        self.layers = None if layers is None else tuple(layers)
        self.dimensions = dimensions
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.normalization = normalization
        self.ridge = ridge
        self.ridge_kind = ridge_kind
        self.signature = signature
        self.center_signature = center_signature
        self.covariance = covariance
        self.aggregation = aggregation
        self.score_kind = score_kind
        self.compat = compat
        self.smoothing = smoothing
        self.batch_size = batch_size
        self.seed = seed

    # -- learning

    def fit(
        self,
        images: Any,
        *,
        masks: Any | None = None,
        anomalous: Any | None = None,
        areas: Any | None = None,
        target: Array | None = None,
        progress: bool = False,
        checkpoint: str | Path | None = None,
        trainer: Mapping[str, Any] | None = None,
    ) -> PadimACE:
        """Take mean and covariance of every location from normal images, and a signature.

        Parameters
        ----------
        images : sequence of (rows, cols) or (rows, cols, bands) arrays
            Normal images, two at least, of one size unless ``size`` is set.
        masks : sequence of (rows, cols) bool arrays, optional
            True where a pixel is used. A location counts where all pixels of its cell are used.
        anomalous, areas, target
            What the signature comes from, see `set_signature`. Needed for ACE.
        progress : bool
            Show a progress bar.
        checkpoint, trainer
            Must be None: there is no training.

        Returns
        -------
        PadimACE
            The model itself.

        Raises
        ------
        ValueError
            Fewer than two images at a location, images of several sizes, more dimensions than the
            backbone has channels, no signature for ACE, or wrong shapes and values.
        """
        op = "PadimACE.fit"
        for name, value in (("checkpoint", checkpoint), ("trainer", trainer)):
            if value is not None:
                raise ValueError(f"{op}: {name}: must be None, nothing is trained, got {value!r}")
        given = anomalous is not None or target is not None
        if self.score_kind == "ace" and not given:
            raise ValueError(
                f"{op}: anomalous: ACE needs images with anomalies, or a target; "
                "score_kind='mahalanobis' needs none"
            )
        pictures = self._read_many("fit", images, masks)
        with self._unchanged_on_failure():
            self._fit(pictures, progress, None, {})
            if given:
                self.set_signature(anomalous, areas=areas, target=target)
            self._calibrate(pictures)
        return self

    def _fit(
        self,
        pictures: Pictures,
        progress: bool,
        checkpoint: Path | None,
        trainer: Mapping[str, Any],
    ) -> None:
        self.device_ = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        network = build("PadimACE.fit", self.backbone, self.layers, self.weights, self.seed)
        self.backbone_: Backbone | None = network.to(self.device_)
        self.bands_ = pictures.bands
        self.shape_: tuple[int, int] | None = None
        self.signature_: torch.Tensor | None = None
        statistics = LocationStatistics()
        for batch, maps in self._batches(pictures, progress):
            if statistics.count is None:
                self._draw(maps)
            whole = torch.stack([self._shares(p.used) for p in batch]) == 1
            statistics.update(self._embed(maps), None if whole.all() else whole)
        self.mean_ = statistics.mean()
        self.factor_ = self._factor(statistics._take_covariance())
        self._cache: dict[Any, torch.Tensor] = {}

    def _batches(
        self, pictures: Pictures, progress: bool = False
    ) -> Iterator[tuple[list[Picture], list[torch.Tensor]]]:
        """Images and their feature maps, some at a time."""
        starts = range(0, len(pictures), self.batch_size)
        for start in tqdm(starts, "features", leave=False, disable=not progress):
            batch = pictures[start : start + self.batch_size]
            yield batch, self._maps(batch)

    def _maps(self, batch: list[Picture]) -> list[torch.Tensor]:
        """Feature maps of images, largest first."""
        network = self.backbone_
        if network is None:
            raise ModelError(
                "PadimACE: backbone: was a function, which a file does not hold; load it with "
                "PadimACE.load(path, backbone=...)"
            )
        prepared = []
        for picture in batch:
            check_size(picture, LEAST)
            x = prepare(picture, network.channels, self.size, self.normalization)
            shape = (int(x.shape[1]), int(x.shape[2]))
            self.shape_ = self.shape_ or shape
            if shape != self.shape_:
                raise ModelError(
                    f"{picture.op}: {picture.name}: must have the size of the images of fit, "
                    f"{self.shape_}, got {shape}; size= resizes them"
                )
            prepared.append(x)
        maps: list[torch.Tensor] = network(torch.stack(prepared).to(self.device_))
        for index, picture in enumerate(batch):
            if not all(torch.isfinite(m[index]).all() for m in maps):
                raise ModelError(
                    f"{picture.op}: {picture.name}: the backbone gives values that are not finite"
                )
        return maps

    def _draw(self, maps: list[torch.Tensor]) -> None:
        """Grid and channels, once the maps are known."""
        self.grid_ = (int(maps[0].shape[2]), int(maps[0].shape[3]))
        self.channels_ = [int(m.shape[1]) for m in maps]
        total = sum(self.channels_)
        d = self.dimensions or total
        if d > total:
            raise ModelError(
                f"PadimACE.fit: dimensions: must be at most {total}, the channels of the backbone, "
                f"got {d}"
            )
        order = torch.randperm(total, generator=generator(self.seed, "dimensions"))
        # In their order, so that those of one map can be taken before it is enlarged.
        self.dimensions_ = order[:d].sort().values

    def _embed(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """The drawn channels at every location, (images, d, rows, cols)."""
        if [m.shape[1] for m in maps] != self.channels_:
            raise ModelError(
                f"PadimACE: backbone: must give maps of {self.channels_} channels, as for fit, "
                f"gave {[m.shape[1] for m in maps]}"
            )
        parts, first = [], 0
        for features in maps:
            last = first + features.shape[1]
            here = self.dimensions_[(self.dimensions_ >= first) & (self.dimensions_ < last)]
            chosen = features[:, (here - first).to(features.device)]
            parts.append(functional.interpolate(chosen, self.grid_, mode="nearest"))
            first = last
        return torch.cat(parts, dim=1)

    def _shares(self, marked: npt.NDArray[np.bool_]) -> torch.Tensor:
        """Share of the pixels of every location that are marked, (rows, cols)."""
        pixels = torch.from_numpy(np.ascontiguousarray(marked, np.float32))[None, None]
        return functional.adaptive_avg_pool2d(pixels, self.grid_)[0, 0].to(self.device_)

    def _factor(self, covariance: torch.Tensor) -> torch.Tensor:
        """Cholesky factors in the memory of the covariances."""
        loading = self.ridge
        if self.ridge_kind == "absolute":
            covariance.diagonal(dim1=1, dim2=2).add_(self.ridge)
            loading = 0.0
        for part in _parts(covariance):
            try:
                covariance[part] = mahal.cholesky(covariance[part], loading=loading)
            except mahal.SingularError as error:
                raise ModelError(
                    f"PadimACE.fit: ridge: {self.ridge} leaves covariances that are not positive "
                    f"definite ({error})"
                ) from error
        return covariance

    def set_signature(
        self,
        anomalous: Any | None = None,
        *,
        areas: Any | None = None,
        target: Array | None = None,
    ) -> PadimACE:
        """Set what ACE looks for, of a fitted model.

        Parameters
        ----------
        anomalous : (rows, cols) or (rows, cols, bands) array, or sequence of them
            Images with anomalies, prepared as those of `fit` are.
        areas : sequence, optional
            Where the anomalies are, one for each image: a (rows, cols) bool array, or boxes as a
            (boxes, 4) array of whole numbers, the first row and column and those after the last.
            Features count by the share of their cell that is marked. A location without any takes
            the mean of all. Not given: the whole images, as in the paper.
        target : (d,), (locations, d) or (rows, cols, d) array, optional
            The signature itself, in the channels of `dimensions_`; instead of images.

        Returns
        -------
        PadimACE
            The model itself; `predict` asks for another `calibrate`.

        Raises
        ------
        ValueError
            Both or none of images and target, wrong shapes, no marked pixel, or a signature that
            vanishes at a location once whitened.
        """
        op = "PadimACE.set_signature"
        self._check_fitted("set_signature")
        if (anomalous is None) == (target is None):
            raise ValueError(f"{op}: anomalous: needs either images or a target")
        if target is not None:
            found = self._given(op, target)
        else:
            found = self._learnt(op, anomalous, areas)
        with self._unchanged_on_failure():
            self.signature_ = found.to(self.mean_.dtype)
            self._cache = {}
            self._direction()
            vars(self).pop("calibration_", None)
        return self

    def _given(self, op: str, target: Array) -> torch.Tensor:
        values = torch.as_tensor(host_array(op, "target", target)).to(self.mean_)
        locations, d = self.mean_.shape
        if tuple(values.shape) == (*self.grid_, d):
            values = values.reshape(locations, d)
        if tuple(values.shape) not in ((d,), (locations, d)) or not values.isfinite().all():
            raise ValueError(
                f"{op}: target: must be finite, of shape {(d,)}, {(locations, d)} or "
                f"{(*self.grid_, d)}, got {tuple(values.shape)}"
            )
        return values.expand(locations, d).contiguous()

    def _learnt(self, op: str, anomalous: Any, areas: Any | None) -> torch.Tensor:
        pictures = Pictures(op, anomalous, None, complex_images=False, name="anomalous")
        self._check_bands(op, pictures.bands)
        if areas is not None and pictures.images is not anomalous:
            areas = [areas]
        if areas is not None and len(areas) != len(pictures):
            raise ValueError(
                f"{op}: areas: must be as many as the images, {len(pictures)}, got {len(areas)}"
            )
        total = torch.zeros_like(self.mean_, dtype=torch.float64)
        weight = total.new_zeros(len(total))
        index = 0
        for batch, maps in self._batches(pictures):
            for picture, features in zip(batch, self._embed(maps), strict=True):
                marked = picture.used
                if areas is not None:
                    marked = marked & _marked(op, areas[index], marked.shape, index)
                share = self._shares(marked).reshape(-1).double()
                total += share[:, None] * features.flatten(1).T
                weight += share
                index += 1
        if not weight.sum():
            raise ValueError(f"{op}: areas: no pixel is marked in any image")
        everywhere = (total.sum(dim=0) / weight.sum()).expand_as(total)
        if self.signature == "global":
            return everywhere.contiguous()
        seen = weight[:, None] > 0
        return torch.where(seen, total / weight.clamp_min(1e-12)[:, None], everywhere)

    # -- scoring

    def _scores_are_cosines(self) -> bool:
        return self.score_kind == "ace"

    def _score(self, picture: Picture) -> npt.NDArray[np.float32]:
        scores = self._locations(picture, self.score_kind == "ace").reshape(1, 1, *self.grid_)
        assert self.shape_ is not None
        full = functional.interpolate(scores, self.shape_, mode="bilinear")
        full = blur(full, self.smoothing)
        if tuple(picture.used.shape) != self.shape_:
            full = functional.interpolate(full, picture.used.shape, mode="bilinear")
        return picture.map(full[0, 0].cpu().numpy())

    def image_score(self, image: Array, *, mask: Array | None = None) -> float:
        """Score of an image as a whole: the highest of its map.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used.

        Returns
        -------
        float
        """
        self._check_fitted("image_score")
        return float(np.nanmax(self._score(self._read("image_score", image, mask))))

    def location_scores(self, image: Array, *, mask: Array | None = None) -> LocationScores:
        """Both scores of every location of an image, neither enlarged nor blurred.

        Parameters
        ----------
        image : (rows, cols) or (rows, cols, bands) array
        mask : (rows, cols) bool array, optional
            True where a pixel is used; others have the mean of the image for the backbone.

        Returns
        -------
        LocationScores
            `mahalanobis` and, where there is a signature, `ace`.
        """
        self._check_fitted("location_scores")
        picture = self._read("location_scores", image, mask)
        features = self._features(picture)
        ace = self._scored(features, True) if self.signature_ is not None else None
        return LocationScores(
            self._scored(features, False).reshape(self.grid_).cpu().numpy(),
            None if ace is None else ace.reshape(self.grid_).cpu().numpy(),
        )

    def _features(self, picture: Picture) -> torch.Tensor:
        """(locations, d, 1) features of an image."""
        return self._embed(self._maps([picture]))[0].flatten(1).T[:, :, None]

    def _locations(self, picture: Picture, ace: bool) -> torch.Tensor:
        return self._scored(self._features(picture), ace)[:, 0]

    def _scored(self, features: torch.Tensor, ace: bool) -> torch.Tensor:
        """Scores (locations, images) of features (locations, d, images)."""
        y = self._whitened(features - self.mean_[:, :, None], ace)
        length = torch.linalg.vector_norm(y, dim=1)
        if not ace:
            return length
        along = torch.bmm(self._direction()[:, None], y)[:, 0]
        return torch.where(length > 0, along / length, 0).clamp(-1, 1)

    def _direction(self) -> torch.Tensor:
        """The whitened signature of length one, (locations, d)."""
        if self.signature_ is None:
            raise ModelError(
                "PadimACE: score: ACE needs a signature, call set_signature or set "
                "score_kind='mahalanobis'"
            )

        def find() -> torch.Tensor:
            assert self.signature_ is not None
            relative = self.signature_ - self.mean_ if self.center_signature else self.signature_
            y = self._whitened(relative[:, :, None], True)[:, :, 0]
            length = torch.linalg.vector_norm(y, dim=1, keepdim=True)
            lost = int((length == 0).sum())
            if lost:
                raise ValueError(
                    f"PadimACE: signature: must have a direction, vanishes at {lost} of "
                    f"{len(length)} locations"
                )
            return y / length

        key = ("direction", self.covariance, self.compat, self.center_signature)
        return self._cached(key, find)

    def _cached(self, key: tuple[Any, ...], find: Callable[[], torch.Tensor]) -> torch.Tensor:
        if key not in self._cache:
            self._cache[key] = find()
        return self._cache[key]

    def _whitened(self, delta: torch.Tensor, ace: bool) -> torch.Tensor:
        """(locations, d, images) differences in units of the background."""
        published = ace and self.compat is not None
        if self.covariance == "full":
            if published:
                return torch.bmm(self.factor_.mT, delta)
            parts = [
                torch.linalg.solve_triangular(self.factor_[part], delta[part], upper=False)
                for part in _parts(self.factor_)
            ]
            return torch.cat(parts)
        if self.covariance == "diagonal":
            key = ("diagonal", published)
            find = _inverse_diagonal if published else _diagonal
            variance = self._cached(key, lambda: find(self.factor_))
            return delta / variance.sqrt()[:, :, None]
        if ace:
            # Whatever c is, it cancels.
            return delta
        c = self._cached(("isotropic", self.aggregation), self._isotropic)
        return delta / c.sqrt()[:, None, None]

    def _isotropic(self) -> torch.Tensor:
        """The number c of every location."""
        d = self.factor_.shape[1]
        if self.aggregation == "determinant":
            logs = 2 * self.factor_.diagonal(dim1=1, dim2=2).double().log().sum(dim=1)
            c = logs.exp().to(self.factor_.dtype)
        elif self.aggregation == "mean_full":
            c = self.factor_.sum(dim=1).square().sum(dim=1) / d**2
        else:
            c = _diagonal(self.factor_).sum(dim=1)
            if self.aggregation == "mean_diagonal":
                c = c / d
        bad = int((~((c > 0) & torch.isfinite(c))).sum())
        if bad:
            raise ModelError(
                f"PadimACE: aggregation: {self.aggregation} is no positive number in "
                f"{self.factor_.dtype} at {bad} of {len(c)} locations"
            )
        return c

    # -- files

    def _saved_params(self) -> dict[str, Any]:
        params = self.get_params()
        if callable(self.backbone):
            params["backbone"] = FUNCTION
        return params

    def _tensors(self) -> dict[str, torch.Tensor]:
        # Not packed: another half of the factors would not fit where they just do.
        tensors = {
            "dimensions": self.dimensions_,
            "mean": self.mean_,
            "factor": self.factor_,
        }
        if self.signature_ is not None:
            tensors["signature"] = self.signature_
        if not callable(self.backbone) and self.backbone_ is not None:
            weights = self.backbone_.network.state_dict()
            tensors |= {f"backbone.{name}": tensor for name, tensor in weights.items()}
        return tensors

    def _facts(self) -> dict[str, Any]:
        return {
            "grid": self.grid_,
            "shape": self.shape_,
            "channels": self.channels_,
            "config": None if self.backbone_ is None else self.backbone_.config,
        }

    def _restore(self, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        self.grid_ = (facts["grid"][0], facts["grid"][1])
        self.shape_ = (facts["shape"][0], facts["shape"][1])
        self.channels_ = list(facts["channels"])
        self.dimensions_ = tensors["dimensions"]
        self.mean_ = tensors["mean"]
        # A copy of its own lies where solvers round as they did before, tensors of a file do not.
        self.factor_ = tensors["factor"].clone()
        self.signature_ = tensors.get("signature")
        self._cache = {}
        self.backbone_ = None
        self.device_ = torch.device("cpu")
        if self.backbone != FUNCTION:
            start = len("backbone.")
            weights = {n[start:]: t for n, t in tensors.items() if n.startswith("backbone.")}
            self.backbone_ = rebuild("PadimACE.load", self.backbone, self.layers, facts, weights)

    @classmethod
    def load(cls, path: str | Path, *, backbone: Any | None = None) -> PadimACE:
        """Read a model that `save` wrote.

        Parameters
        ----------
        path : path
        backbone : function, optional
            That of the model, where it was a function; the file does not hold it.

        Returns
        -------
        PadimACE
            Fitted, on the CPU.

        Raises
        ------
        ModelError
            The file is no model of this class, or has a backbone of its own.
        """
        model = super().load(path)
        if backbone is not None:
            if model.backbone != FUNCTION:
                raise ModelError(f"{path}: backbone: must be None, the file has one")
            model.backbone = backbone
            model.backbone_ = build("PadimACE.load", backbone, model.layers, None, 0)
        return model

    def to(self, device: str | torch.device) -> PadimACE:
        """Move a fitted model to a device.

        Parameters
        ----------
        device : str or torch.device

        Returns
        -------
        PadimACE
            The model itself.
        """
        self._check_fitted("to")
        self.device_ = torch.device(device)
        self.mean_, self.factor_ = self.mean_.to(device), self.factor_.to(device)
        if self.signature_ is not None:
            self.signature_ = self.signature_.to(device)
        if self.backbone_ is not None:
            self.backbone_.to(device)
        self._cache = {}
        return self


def blur(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of (images, 1, rows, cols) maps along rows and then along columns.

    The kernel ends at four deviations, or at the opposite edge of a smaller map, and the maps are
    mirrored at their edges.
    """
    for axis, side in ((2, maps.shape[2]), (3, maps.shape[3])):
        radius = min(int(4 * sigma + 0.5), side - 1)
        if not radius:
            continue
        places = torch.arange(-radius, radius + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (places / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(maps)
        shape = [1, 1, 1, 1]
        shape[axis] = -1
        pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = functional.pad(maps, pad, mode="reflect")
        maps = functional.conv2d(padded, kernel.reshape(shape))
    return maps


def _parts(factors: torch.Tensor) -> Iterator[slice]:
    """Locations in parts of bounded memory."""
    step = max(1, CHUNK // (factors.shape[1] * factors.shape[2]))
    for start in range(0, len(factors), step):
        yield slice(start, start + step)


def _diagonal(factors: torch.Tensor) -> torch.Tensor:
    """Diagonal of L L^T, (locations, d)."""
    return torch.cat([factors[part].square().sum(dim=2) for part in _parts(factors)])


def _inverse_diagonal(factors: torch.Tensor) -> torch.Tensor:
    """One over the diagonal of (L L^T)^-1, (locations, d)."""
    one = torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)
    found = []
    for part in _parts(factors):
        inverse = torch.linalg.solve_triangular(factors[part], one, upper=False)
        found.append(1 / inverse.square().sum(dim=1))
    return torch.cat(found)


def _marked(op: str, area: Any, shape: tuple[int, ...], index: int) -> npt.NDArray[np.bool_]:
    """What a mask or a list of boxes marks."""
    values = host_array(op, f"areas[{index}]", area)
    if values.dtype == np.bool_ and values.shape == shape:
        return values
    boxes = values.dtype.kind in "iu" and values.ndim == 2 and values.shape[1] == 4
    if not boxes:
        raise ValueError(
            f"{op}: areas[{index}]: must be bool of shape {shape} or whole numbers of shape "
            f"(boxes, 4), got {values.dtype} of shape {values.shape}"
        )
    found = np.zeros(shape, np.bool_)
    for top, left, bottom, right in values.tolist():
        if not (0 <= top < bottom <= shape[0] and 0 <= left < right <= shape[1]):
            raise ValueError(
                f"{op}: areas[{index}]: a box must lie in the image of {shape[0]} x {shape[1]}, "
                f"got rows {top} to {bottom}, columns {left} to {right}"
            )
        found[top:bottom, left:right] = True
    return found
