from typing import Any, TypeAlias, TypedDict

class _BuildInfo(TypedDict):
    version: str
    compiler: str
    cuda: bool
    cuda_toolkit: str
    cuda_architectures: str
    emulator: bool

class _Device(TypedDict):
    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int

def build_info() -> _BuildInfo: ...
def devices() -> list[_Device]: ...
def device_count() -> int: ...
def emulator_built() -> bool: ...
def supported_isas() -> list[str]: ...
def active_isa() -> str: ...
def set_isa(name: str) -> None: ...
def active_backend() -> str: ...
def set_backend(name: str) -> None: ...
def default_threads() -> int: ...
def set_default_threads(threads: int) -> None: ...

# Name, loading, nu, tolerance and cap of the iterations.
_Estimation: TypeAlias = tuple[str, float, float, float, int]

def mean_covariance_workspace(x: Any, estimation: _Estimation, threads: int) -> int: ...
def mean_covariance(
    x: Any,
    mask: Any,
    mean: Any,
    covariance: Any,
    workspace: Any,
    ddof: float,
    center: bool,
    estimation: _Estimation,
    threads: int,
    stream: int,
) -> int: ...
def grf_workspace(field: Any, slope: Any, field_gradient: Any, threads: int) -> int: ...

_Terms: TypeAlias = tuple[float, float, float]

def grf(
    field: Any,
    log_variance: Any,
    precision: Any,
    slope: Any,
    weight: Any,
    value: Any,
    range_slope: Any,
    variance_slope: Any,
    field_gradient: Any,
    log_variance_gradient: Any,
    workspace: Any,
    centered: bool,
    shift: float,
    value_terms: _Terms,
    range_terms: _Terms,
    variance_terms: _Terms,
    field_scale: float,
    threads: int,
    stream: int,
) -> None: ...
def mean_covariance_backward_workspace(x: Any, threads: int) -> int: ...
def mean_covariance_backward(
    x: Any,
    mask: Any,
    grad_mean: Any,
    grad_covariance: Any,
    grad_x: Any,
    workspace: Any,
    ddof: float,
    center: bool,
    threads: int,
    stream: int,
) -> None: ...
def local_covariance_workspace(
    image: Any, windows: list[tuple[int, int]], border: str, ddof: int, center: bool, threads: int
) -> int: ...
def local_covariance(
    image: Any,
    mask: Any,
    mean: Any,
    covariance: Any,
    workspace: Any,
    windows: list[tuple[int, int]],
    border: str,
    ddof: int,
    center: bool,
    threads: int,
    stream: int,
) -> None: ...
def local_covariance_backward_workspace(
    image: Any, windows: list[tuple[int, int]], border: str, ddof: int, center: bool, threads: int
) -> int: ...
def local_covariance_backward(
    image: Any,
    mask: Any,
    mean_gradient: Any,
    covariance_gradient: Any,
    gradient: Any,
    workspace: Any,
    windows: list[tuple[int, int]],
    border: str,
    ddof: int,
    center: bool,
    threads: int,
    stream: int,
) -> None: ...
def change_map_workspace(
    first: Any,
    second: Any,
    metric: str,
    window: int,
    border: str,
    squared: bool,
    center: bool,
    ddof: int,
    channel_divisor: bool,
    threads: int,
) -> int: ...
def change_map(
    first: Any,
    second: Any,
    mask: Any,
    score: Any,
    status: Any,
    workspace: Any,
    metric: str,
    window: int,
    border: str,
    squared: bool,
    center: bool,
    ddof: int,
    channel_divisor: bool,
    threads: int,
    stream: int,
) -> None: ...
def cholesky_workspace(a: Any, threads: int) -> int: ...
def cholesky(
    a: Any, factor: Any, status: Any, workspace: Any, loading: float, threads: int, stream: int
) -> None: ...
def cholesky_backward_workspace(factor: Any, threads: int) -> int: ...
def cholesky_backward(
    factor: Any,
    grad: Any,
    grad_a: Any,
    workspace: Any,
    loading: float,
    threads: int,
    stream: int,
) -> None: ...
def covariance_distance_workspace(
    a: Any, b: Any, metric: str, looks_a: float, looks_b: float, threads: int
) -> int: ...
def covariance_distance(
    a: Any,
    b: Any,
    score: Any,
    status: Any,
    workspace: Any,
    metric: str,
    squared: bool,
    looks_a: float,
    looks_b: float,
    threads: int,
    stream: int,
) -> None: ...
def covariance_distance_backward_workspace(
    a: Any, b: Any, metric: str, looks_a: float, looks_b: float, threads: int
) -> int: ...
def covariance_distance_backward(
    a: Any,
    b: Any,
    score: Any,
    status: Any,
    grad: Any,
    grad_a: Any | None,
    grad_b: Any | None,
    workspace: Any,
    metric: str,
    squared: bool,
    looks_a: float,
    looks_b: float,
    threads: int,
    stream: int,
) -> None: ...
def covariance_log_workspace(a: Any, threads: int) -> int: ...
def covariance_log(
    a: Any, logarithm: Any, status: Any, workspace: Any, loading: float, threads: int, stream: int
) -> None: ...
def covariance_log_backward_workspace(a: Any, threads: int) -> int: ...
def covariance_log_backward(
    a: Any,
    status: Any,
    grad: Any,
    grad_a: Any,
    workspace: Any,
    loading: float,
    threads: int,
    stream: int,
) -> None: ...
def detector_backward_workspace(
    caller: str,
    score: str,
    grad: Any,
    image: Any,
    target: Any,
    mean: Any,
    background: Any,
    covariance: Any,
    mask: Any,
    center: bool,
    estimate: bool,
    threads: int,
) -> int: ...
def detector_backward(
    caller: str,
    score: str,
    grad: Any,
    image: Any,
    target: Any,
    mean: Any,
    background: Any,
    covariance: Any,
    mask: Any,
    grad_image: Any,
    grad_target: Any,
    grad_mean: Any,
    grad_background: Any,
    grad_covariance: Any,
    workspace: Any,
    center: bool,
    estimate: bool,
    threads: int,
    stream: int,
) -> None: ...
def structural_similarity_workspace(
    first: Any,
    second: Any,
    window: int,
    sigma: float,
    data_range: float,
    k1: float,
    k2: float,
    ddof: int,
    border: str,
    threads: int,
) -> int: ...
def structural_similarity(
    first: Any,
    second: Any,
    score: Any,
    workspace: Any,
    window: int,
    sigma: float,
    data_range: float,
    k1: float,
    k2: float,
    ddof: int,
    border: str,
    threads: int,
    stream: int,
) -> None: ...
def structural_similarity_backward_workspace(
    first: Any,
    second: Any,
    window: int,
    sigma: float,
    data_range: float,
    k1: float,
    k2: float,
    ddof: int,
    border: str,
    threads: int,
) -> int: ...
def structural_similarity_backward(
    first: Any,
    second: Any,
    grad: Any,
    grad_first: Any | None,
    grad_second: Any | None,
    workspace: Any,
    window: int,
    sigma: float,
    data_range: float,
    k1: float,
    k2: float,
    ddof: int,
    border: str,
    threads: int,
    stream: int,
) -> None: ...
def whiten_workspace(x: Any, threads: int) -> int: ...
def whiten(
    x: Any, mean: Any, covariance: Any, y: Any, workspace: Any, threads: int, stream: int
) -> None: ...
def whiten_backward_workspace(y: Any, threads: int) -> int: ...
def whiten_backward(
    grad: Any,
    y: Any,
    covariance: Any,
    grad_x: Any,
    grad_mean: Any,
    grad_covariance: Any,
    workspace: Any,
    threads: int,
    stream: int,
) -> None: ...
def mahalanobis_workspace(x: Any, threads: int) -> int: ...
def mahalanobis(
    x: Any, mean: Any, covariance: Any, score: Any, workspace: Any, threads: int, stream: int
) -> None: ...
def mahalanobis_locations_workspace(x: Any, threads: int) -> int: ...
def mahalanobis_locations(
    x: Any, mean: Any, covariance: Any, score: Any, workspace: Any, threads: int, stream: int
) -> None: ...
def matched_workspace(
    image: Any,
    target: Any,
    background: Any,
    covariance: Any,
    score: str,
    window: tuple[int, int],
    border: str,
    center: bool,
    estimation: _Estimation,
    threads: int,
) -> int: ...
def matched(
    image: Any,
    target: Any,
    background: Any,
    covariance: Any,
    mask: Any,
    scores: Any,
    status: Any,
    workspace: Any,
    score: str,
    window: tuple[int, int],
    border: str,
    center: bool,
    load: bool,
    estimation: _Estimation,
    threads: int,
    stream: int,
    progress: Any,
) -> None: ...
def rx_workspace(
    image: Any,
    background: Any,
    covariance: Any,
    window: tuple[int, int],
    border: str,
    center: bool,
    estimation: _Estimation,
    threads: int,
) -> int: ...
def rx(
    image: Any,
    background: Any,
    covariance: Any,
    mask: Any,
    score: Any,
    status: Any,
    workspace: Any,
    window: tuple[int, int],
    border: str,
    load: bool,
    center: bool,
    estimation: _Estimation,
    threads: int,
    stream: int,
    progress: Any,
    ticks: Any,
) -> None: ...
def spectral_angle_workspace(image: Any, target: Any, threads: int) -> int: ...
def spectral_angle(
    image: Any, target: Any, angle: Any, workspace: Any, threads: int, stream: int
) -> None: ...
def window_estimators_workspace(
    caller: str,
    image: Any,
    windows: list[tuple[int, int]],
    border: str,
    estimation: _Estimation,
    ddof: int,
    center: bool,
    threads: int,
) -> int: ...
def window_estimators(
    caller: str,
    image: Any,
    mask: Any,
    mean: Any,
    covariance: Any,
    score: Any,
    status: Any,
    workspace: Any,
    windows: list[tuple[int, int]],
    border: str,
    estimation: _Estimation,
    ddof: int,
    center: bool,
    threads: int,
    stream: int,
    progress: Any,
) -> None: ...
def window_scores_backward_workspace(
    image: Any,
    target: Any,
    covariance: Any,
    score: str,
    window: tuple[int, int],
    border: str,
    center: bool,
    threads: int,
) -> int: ...
def window_scores_backward(
    image: Any,
    target: Any,
    covariance: Any,
    mask: Any,
    status: Any,
    score_gradient: Any,
    gradient: Any,
    target_gradient: Any,
    covariance_gradient: Any,
    workspace: Any,
    score: str,
    window: tuple[int, int],
    border: str,
    center: bool,
    threads: int,
    stream: int,
) -> None: ...
def _describe(
    array: Any,
) -> tuple[tuple[int, ...], tuple[int, ...], str, str, bool, str] | None: ...
def _count_tasks(threads: int, tasks: int) -> list[int]: ...
