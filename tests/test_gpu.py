"""Streams, graphs, several devices, failed launches and memory on CUDA devices; and their bench."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mahal
import numpy as np
import pytest
from mahal import _core
from mahal.testing import random_scene

ROOT = Path(__file__).resolve().parents[1]
IMAGE = random_scene((40, 37, 5), np.random.default_rng(0))
OPS: dict[str, Callable[[Any], Any]] = {
    "local_covariance": lambda x: mahal.local_covariance(x, (1, 5))[1],
    "student_t": lambda x: mahal.local_covariance(x, 5, estimator="student_t")[1],
    "cholesky": lambda x: mahal.cholesky(mahal.local_covariance(x, 7)[1], singular="nan"),
    "mean_covariance": lambda x: mahal.mean_covariance(x)[1],
    "multiscale_covariance": lambda x: mahal.multiscale_covariance(x, [5, (1, 7)], form="log"),
    "rx": lambda x: mahal.rx(x),
}


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("torch without CUDA")
    return module


@pytest.fixture
def cupy() -> Any:
    return pytest.importorskip("cupy")


def same(found: Any, want: Any) -> None:
    np.testing.assert_array_equal(np.asarray(found.cpu()), np.asarray(want.cpu()))


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPS)
def test_torch_streams(torch: Any, name: str) -> None:
    good = torch.from_numpy(IMAGE).cuda()
    want = OPS[name](good)
    image = torch.zeros_like(good)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        # A kernel on any other stream would see the zeros.
        torch.cuda._sleep(50_000_000)
        image.copy_(good)
        found = OPS[name](image)
    side.synchronize()
    same(found, want)


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPS)
def test_cupy_streams(cupy: Any, name: str) -> None:
    good = cupy.asarray(IMAGE)
    want = OPS[name](good)
    image = cupy.zeros_like(good)
    cupy.cuda.runtime.deviceSynchronize()
    wait = cupy.RawKernel(
        'extern "C" __global__ void wait() { const long long t = clock64();'
        " while (clock64() - t < 50000000) {} }",
        "wait",
    )
    wait((1,), (1,), ())  # compiled before the stream is used
    side = cupy.cuda.Stream(non_blocking=True)
    with side:
        wait((1,), (1,), ())
        image[...] = good
        found = OPS[name](image)
    side.synchronize()
    cupy.testing.assert_array_equal(found, want)


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPS)
def test_graph_capture(torch: Any, name: str) -> None:
    first = torch.from_numpy(IMAGE).cuda()
    second = torch.from_numpy(IMAGE[::-1].copy()).cuda()
    image = first.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        OPS[name](image)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = OPS[name](image)
    for source in (second, first):
        image.copy_(source)
        graph.replay()
        same(found, OPS[name](source))


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPS)
def test_the_same_bits_beside_other_work(torch: Any, name: str) -> None:
    image = torch.from_numpy(IMAGE).cuda()
    want = OPS[name](image)
    side = torch.cuda.Stream()
    noise = torch.ones(2048, 2048, device="cuda")
    for _ in range(10):
        with torch.cuda.stream(side):
            noise @ noise
        same(OPS[name](image), want)


@pytest.mark.cuda
@pytest.mark.parametrize("name", OPS)
def test_another_device_than_the_current_one(torch: Any, name: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one device")
    image = torch.from_numpy(IMAGE)
    with torch.cuda.device(0):
        found = OPS[name](image.cuda(1))
        assert torch.cuda.current_device() == 0
    assert found.device.index == 1
    same(found, OPS[name](image.cuda(0)))


@pytest.mark.cuda
def test_another_device_of_cupy(cupy: Any) -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    with cupy.cuda.Device(1):
        image = cupy.asarray(IMAGE)
    with cupy.cuda.Device(0):
        _, found = mahal.local_covariance(image, 5)
        assert cupy.cuda.runtime.getDevice() == 0
    assert found.device.id == 1


@pytest.mark.cuda
def test_arrays_on_two_devices_are_refused(torch: Any) -> None:
    image = torch.from_numpy(IMAGE).cuda()
    with pytest.raises(ValueError, match=r"^rx: covariance: must be on the device of .*, got cpu$"):
        mahal.rx(image, covariance=torch.eye(5, dtype=torch.float64))
    out = torch.empty(40, 37, 5), torch.empty(40, 37, 5, 5)
    with pytest.raises(ValueError, match=r"^local_covariance: out\[0\]: .*device"):
        mahal.local_covariance(image.float(), 5, out=out)


@pytest.mark.cuda
def test_calls_work_after_a_failed_launch(torch: Any) -> None:
    a = torch.eye(4, device="cuda", dtype=torch.float64).repeat(100, 1, 1)
    factor, status = torch.empty_like(a), torch.empty(100, device="cuda", dtype=torch.uint8)
    memory = torch.empty(_core.cholesky_workspace(a, 0) + 64, device="cuda", dtype=torch.uint8)
    torch.cuda.synchronize()
    # A launch on the legacy default stream is illegal while another stream is captured, and makes
    # that capture invalid.
    message = ""
    with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        try:
            _core.cholesky(a, factor, status, memory, 0.0, 0, 0)
        except RuntimeError as error:
            message = str(error)
    assert "cholesky: cudaLaunchKernelEx failed with code " in message
    torch.cuda.synchronize()
    torch.testing.assert_close(mahal.cholesky(a), a)


@pytest.mark.cuda
def test_memory_is_that_of_the_allocator_of_the_caller(torch: Any) -> None:
    image = torch.zeros(1500, 1500, 8, device="cuda")
    small = torch.from_numpy(IMAGE).cuda()
    want = OPS["local_covariance"](small)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (64 << 20)) / total)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            mahal.local_covariance(image, 5)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    same(OPS["local_covariance"](small), want)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(5):
        OPS["local_covariance"](small)
    torch.cuda.synchronize()
    assert torch.cuda.mem_get_info()[0] == before


@pytest.mark.cuda
def test_nothing_waits_in_order_to_warn(torch: Any) -> None:
    flat = torch.ones(20, 21, 4, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, _, status = mahal.local_covariance(flat, 5, estimator="tyler", return_status=True)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (status == 2).all()


def test_the_bench_runs(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    output = tmp_path / "gpu.json"
    script = ROOT / "bench" / "gpu.py"
    shown = subprocess.run(
        [sys.executable, script, "--dry-run", "--output", output],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "left out" not in shown, shown
    content = json.loads(output.read_text())
    ours = [row for row in content["rows"] if row["name"] == "mahal"]
    assert {"local_covariance", "cholesky", "rx", "ace", "grf_kl"} <= {
        row["case"].split(",")[0] for row in ours
    }
    # The condition numbers of the small inputs are below 1000.
    limit = 1000 * float(np.finfo(np.float32).eps)
    assert all(row["seconds"] > 0 and row["facts"]["error"] < limit for row in ours)
    code = "import json, sys, render; print(render.table(json.load(open(sys.argv[1])), None))"
    table = subprocess.run(
        [sys.executable, "-c", code, output],
        cwd=ROOT / "bench",
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert "torch cholesky_ex" in table
