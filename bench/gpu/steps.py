"""Where the time of a step goes that is a graph of launches, and whether launches that begin before the last
has ended (programmatic dependent launch) make it shorter, to the same weights, bit by bit."""

from types import SimpleNamespace

import numpy as np

import fastdigit as fd
from fastdigit.layout import Layout

from .. import train
from .correctness import said
from .timing import quartiles, seconds_on_gpu

# Whether its launches are timed alone, too.
CASES = (
    ("deep-512", "bf16", True),
    ("deep-4096", "bf16", True),
    ("medium-128", "bf16", False),
    ("medium-128", "tf32", False),
)
RATE, MOMENTUM = 0.01, 0.9


def plan_of(xp, network, layout, parameters, precision, optimizer, dropout=0.0, **more):
    """A ``fastdigit.backend.TrainPlan`` of plain steps, as far as it takes to make them ready."""
    return SimpleNamespace(
        layout=layout,
        precision=precision,
        parameters=parameters,
        gradients=xp.zeros_like(parameters),
        state=tuple(xp.zeros_like(parameters) for _ in optimizer.state_names),
        optimizer=optimizer,
        update=0,
        batch_size=network.batch,
        dropout=(dropout,) * (len(network.layer_sizes) - 2),
        input_dropout=0.0,
        label_smoothing=0.0,
        deformation=None,
        seed=0,
        clip_norm=None,
        weight=None,
        **more,
    )


class Prepared:
    """The steps of a training of random images: ``graph()`` makes ``count`` of them, from the first on."""

    def __init__(self, xp, network, precision, capability, zeros, dependent=None):
        from fastdigit.kernels.common import cuda
        from fastdigit.kernels.epoch import cuda_steps
        from fastdigit.kernels.optimizer.cuda import step_numbers

        self.count, random = cuda_steps.MANY, xp.random.default_rng(0)
        layout, images = Layout(network.layer_sizes, 64), self.count * network.batch
        self.parameters = xp.zeros(layout.size, np.float32)
        for w, _ in layout.layers(self.parameters):
            w[...] = random.standard_normal(w.shape, dtype=np.float32) * np.sqrt(2 / len(w))
        rates, optimizer = np.full(self.count, RATE), fd.SGD(RATE, momentum=MOMENTUM)
        plan = plan_of(xp, network, layout, self.parameters, precision, optimizer, learning_rates=rates)
        pixels = random.integers(0, 256, (images, network.layer_sizes[0])).astype(np.uint8)
        labels = random.integers(0, network.layer_sizes[-1], images).astype(np.int32)
        loss, correct = xp.zeros(images, np.float32), xp.zeros(images, np.uint8)
        self.steps = cuda_steps.Steps(plan, pixels, labels, loss, correct, zeros, capability, dependent)
        memory = self.steps.memory
        memory["numbers"][...] = xp.asarray(step_numbers(plan))
        memory["order"][...] = xp.arange(images)
        self.position = memory["position"]
        for launch in self.steps.rounding + self.steps.launches:  # all is compiled
            launch()
        self.position.fill(0)
        self._graph = cuda.graph(self.steps.launches * self.count)

    def graph(self):
        self.position.fill(0)
        self._graph()

    def alone(self):
        """(name, blocks, launch) of each launch of a step but the one that counts on."""
        for launch in self.steps.launches:
            if not launch.kernel.name.endswith("count"):
                yield launch.kernel.name, "×".join(str(n) for n in launch.size[:2] if n > 1) or "1", launch


def steps(xp, backend, capability, cases=CASES, seconds=seconds_on_gpu, save=lambda rows: None):
    """A row for each network and precision; ``save`` gets them all after each."""
    rows = []
    for name, precision, alone in cases:
        row = {"network": name, "precision": precision}
        rows.append(row)
        try:
            about = train.ALL_NETWORKS[name], precision, capability, backend.zeros
            both = [Prepared(xp, *about, dependent) for dependent in (False, True)]
            for one in both:
                one.graph()
            row["same"] = bool((both[0].parameters == both[1].parameters).all())
            if not row["same"]:
                row["rejected"] = "launches that begin early end with other weights"
            after, early = seconds(*(one.graph for one in both))
            for what, found in ("microseconds", after), ("microseconds_early", early):
                row[what] = 1e6 * quartiles(found)[1] / both[0].count
            row["early_share"] = quartiles(np.divide(early, after))
            if alone:
                both[0].position.fill(0)
                names, blocks, launches = zip(*both[0].alone(), strict=True)
                times = [1e6 * quartiles(seconds(launch)[0])[1] for launch in launches]
                row["alone"] = [list(each) for each in zip(names, blocks, times, strict=True)]
        except Exception as error:  # whatever a GPU runs into is the row's result
            row["no_time"] = said(error)
        save(rows)
    return rows
