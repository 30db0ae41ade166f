"""The benchmark of a GPU without one: what it checks, with the interpreter of PTX in the GPU's place."""

import numpy as np
import pytest

from fastdigit.bench import gpu, peers, tables
from fastdigit.bench.checks import Rejected
from fastdigit.kernels.common import cuda

from ..ptx.emulated import backend, emulated

MICROSECONDS = [f"{what}_microseconds" for what in ("launch_on_host", "launch", "graph_node", "barrier")]
CASES = [((130, 72, 66), turned) for turned in ((False, False), (False, True), (True, False))]


def product(a, b, turned):
    return (a.T if turned[0] else a) @ (b.T if turned[1] else b)


def test_every_technique_is_checked_and_gets_a_time():
    asked = []

    def seconds(call):
        call()
        asked.append(call)
        return [1e-3, 2e-3, 3e-3]

    with emulated(race=False) as emulator:
        rows = gpu.products(np, (9, 0), CASES, seconds)
    assert len(asked) == 2 * len(rows) == 2 * 4 * len(CASES)
    assert {row["technique"] for row in rows} == {"simt", "mma tf32", "mma bf16", "wgmma bf16"}
    assert {row["form"] for row in rows} == {"nn", "nt", "tn"}
    assert all(row["worst"] <= 1 for row in rows)
    assert rows[0]["tflops"] == pytest.approx(2 * 130 * 72 * 66 / 2e-3 / 1e12)
    assert {kernel.name.split(" ")[0] for kernel, _ in emulator.reports} == {
        *("matmul_simt", "matmul_mma", "matmul_wgmma")
    }
    assert set(gpu.techniques((7, 5))) == {"simt"}
    assert "wgmma bf16" not in gpu.techniques((8, 9)) | gpu.techniques((10, 0))


@pytest.mark.parametrize("kind", ["float32", "tf32", "bf16"])
@pytest.mark.parametrize("turned", [turned for _, turned in CASES], ids=["nn", "nt", "tn"])
def test_a_wrong_product_is_refused(kind, turned):
    shape = (37, 48, 21)

    def right(a, b, c, turned):
        if kind == "bf16":
            a, b = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
        if kind == "tf32":
            a, b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in map(np.array, (a, b)))
        c[...] = product(a.astype(np.float64), b.astype(np.float64), turned)

    assert gpu.check_product(np, right, kind, shape, turned) < 1

    def wrong_at_one_place(a, b, c, turned):
        right(a, b, c, turned)
        c[17, 5] += 1e-3

    def one_row_left_out(a, b, c, turned):
        kept = c[3].copy()
        right(a, b, c, turned)
        c[3] = kept

    for wrong in (wrong_at_one_place, one_row_left_out):
        with pytest.raises(Rejected):
            gpu.check_product(np, wrong, kind, shape, turned)


def test_a_wrong_product_gets_no_time(monkeypatch):
    def zero(a, b, c, turned):
        c[...] = 0

    monkeypatch.setattr(gpu, "techniques", lambda capability: {"zero": ("float32", zero)})
    (row,) = gpu.products(np, (9, 0), CASES[:1], lambda call: pytest.fail("it was timed"))
    assert row["no_time"].startswith("refused: error is")
    assert tables.of_gpu({"devices": {"cuda": "a GPU"}, "products": [row]})[1].rows[0][2] == row["no_time"]


def test_the_shapes_are_those_of_the_deep_network_too():
    shapes = gpu.shapes()
    assert ((512, 784, 2500), (False, False)) in shapes
    assert ((784, 512, 2500), (True, False)) in shapes
    assert ((512, 2000, 2500), (False, True)) in shapes
    assert len(shapes) == 3 * 5 + 3 * 5


def test_operations_are_checked_on_the_emulated_gpu():
    with emulated(race=False):
        found = gpu.check_all(backend(), most=1)
    assert {"dense", "softmax_xent", "adam", "gather"} <= set(found)
    assert all(result["checks"] >= 1 for result in found.values())


def test_without_a_gpu_it_says_so(capsys):
    found = gpu.measure()
    assert found["no_time"].startswith("cuda: ")
    gpu.main([])
    assert "cuda:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["speed"])
    assert "there is no part 'speed': choose from checks, products" in capsys.readouterr().err


def test_a_part_that_fails_leaves_the_others(monkeypatch):
    def fails(options):
        raise cuda.CudaError("lost")

    monkeypatch.setattr(gpu.fd, "backends", lambda: {"cuda": "ok"})
    monkeypatch.setattr(gpu.fd, "get_backend", lambda name: backend())
    monkeypatch.setitem(gpu.PARTS, "products", fails)
    monkeypatch.setitem(gpu.PARTS, "checks", lambda options: {"cuda": {"sgd": {"checks": 3, "worst": 0.5}}})
    found = gpu.measure(("products", "checks"))
    assert found["products"] == {"no_time": "CudaError: lost"}
    shown = [table.name for table in tables.of_gpu(found)]
    assert shown == ["gpu", "gpu-checks-cuda", "gpu-products"]


def test_launches_become_a_table():
    found = {"devices": {"cuda": "a GPU"}, "launches": dict.fromkeys(MICROSECONDS, 1.5)}
    assert [row[1] for row in tables.of_gpu(found)[1].rows] == ["1.50"] * 4


def test_the_sides_of_the_training_exist():
    assert set(gpu.SIDES) <= set(peers.SIDES)
    assert set(gpu.NETWORKS) <= set(gpu.train.NETWORKS)


@pytest.mark.parametrize("wanted", [True, False])
def test_tf32_is_set_back(wanted, monkeypatch):
    monkeypatch.delenv("CUPY_TF32", raising=False)
    with gpu.tf32(wanted):
        assert gpu.os.environ["CUPY_TF32"] == str(int(wanted))
    assert "CUPY_TF32" not in gpu.os.environ
