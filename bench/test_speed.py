"""The cases of ``fastdigit bench`` for pytest-benchmark.

    pytest bench --benchmark-enable [-k "medium and cpu"] [--benchmark-autosave] [--benchmark-compare]

Without ``--benchmark-enable`` each case is checked and called once. pytest-benchmark calls one case after
the other in one process: good for a look at one backend. Backends and libraries are compared by the command,
where they take turns in processes of their own.
"""

import numpy as np
import pytest

import fastdigit as fd
from fastdigit.bench import cases, kernels, train

CHOSEN = ("small-128", "medium-128")
BACKENDS = [name for name, state in fd.backends().items() if state == "ok"]
KERNELS = {str(case): case for name in CHOSEN for case in kernels.cases_of(train.NETWORKS[name]).values()}
STEPS = 50


@pytest.fixture(params=BACKENDS)
def backend(request):
    return fd.get_backend(request.param)


@pytest.mark.parametrize("case", KERNELS.values(), ids=str)
def test_kernel(case, backend, benchmark):
    kernels.check(case, backend)
    benchmark.group = str(case)
    benchmark(kernels.call_of(case, backend))


@pytest.fixture(scope="module")
def digits():
    """1,797 embedded digits: training and predicting cost the same on any others with as much ink."""
    return fd.load_digits().train


@pytest.mark.parametrize("name", CHOSEN)
def test_training(name, backend, benchmark, digits):
    network = train.NETWORKS[name]
    net = fd.Network(network.layer_sizes, backend=backend, seed=0)
    count = STEPS * network.batch
    images, labels = (np.resize(a, (count, *a.shape[1:])) for a in (digits.images, digits.labels))
    optimizer, schedule = fd.SGD(train.RATE), fd.Constant()
    losses = []

    def epoch():
        log = fd.fit(
            net,
            (images, labels),
            optimizer=optimizer,
            schedule=schedule,
            epochs=1,
            batch_size=network.batch,
        )
        losses.append(log.loss)

    benchmark.group = f"{STEPS} steps of {network}"
    benchmark(epoch)
    assert losses[-1] < np.log(10)  # better than a guess


@pytest.mark.parametrize("count", [1, 1000])
def test_predicting(count, backend, benchmark, digits):
    net = fd.Network(cases.SMALL, backend=backend, seed=0)
    images = digits.images[:count]
    benchmark.group = f"predict {count} of {cases.SMALL}"
    assert benchmark(net.predict, images).shape == (count,)
