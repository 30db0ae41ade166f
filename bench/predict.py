"""Prediction with 784-128-10 from Python, beside onnxruntime, torch and NumPy.

    python -m fastdigit.bench.predict [--rounds 5] [--data DIR] [--backend auto] [--python INTERPRETER]
        [--json FILE]

The latency of one image, for its label and for its probabilities: the median of many calls; and how many
images per second go through when 10,000 come at once. Each side runs in a process of its own, and they take
turns (``bench.turns``). A side is timed only if its probabilities of all 10,000 images are within 1e-5 of a
float64 formula's and its labels are the same.

Peers are handed float32 in 0 … 1, ours is handed the uint8 image and converts and checks it within the time.
For one image torch and onnxruntime compute with one thread, which is quicker there; 10,000 go through all
cores, at once or in batches of 1,000, whichever is quicker.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import cases, machine, turns
from .peers import cores

TOLERANCE = 1e-5
CHILD = ("-m", "fastdigit.bench.predict", "--child")
CALLS = 1000  # of one image, in each turn
WARM = 200
REPEAT = 7  # of all images
SPLITS = (1_000, 10_000)


def fastdigit(weights, backend):
    net = fd.Network(cases.SMALL, backend=backend)
    net.set_parameters(weights)
    return {1: (net.predict, net.predict_proba), "all": net.predict_proba}, f"backend {net.backend.name}"


def numpy(weights, backend):
    w1, b1, w2, b2 = (weights[name] for name in ("w1", "b1", "w2", "b2"))

    def logits(x):
        hidden = x @ w1
        hidden += b1
        np.maximum(hidden, 0, out=hidden)
        return hidden @ w2 + b2

    def probabilities(x):
        z = logits(x)
        z -= z.max(axis=1, keepdims=True)
        np.exp(z, out=z)
        z /= z.sum(axis=1, keepdims=True)
        return z

    return {1: (lambda x: logits(x).argmax(axis=1), probabilities), "all": probabilities}, np.__version__


def torch(weights, backend):
    import torch
    from torch.nn import functional

    w1, w2 = (torch.from_numpy(np.ascontiguousarray(weights[name].T)) for name in ("w1", "w2"))
    b1, b2 = (torch.from_numpy(weights[name]) for name in ("b1", "b2"))

    def logits(x):
        return functional.linear(functional.relu(functional.linear(torch.from_numpy(x), w1, b1)), w2, b2)

    def label(x):
        with torch.inference_mode():
            return logits(x).argmax(1).numpy()

    def probabilities(x):
        with torch.inference_mode():
            return functional.softmax(logits(x), 1).numpy()

    def of_all(x):
        torch.set_num_threads(cores())
        return probabilities(x)

    torch.set_num_threads(1)
    return {1: (label, probabilities), "all": of_all}, torch.__version__


def onnxruntime(weights, backend):
    import onnxruntime

    def session(last, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        model = as_onnx(weights, last)
        found = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return lambda x: found.run(None, {"x": x})[0]

    calls = {1: (session("ArgMax", 1), session("Softmax", 1)), "all": session("Softmax", cores())}
    return calls, onnxruntime.__version__


def as_onnx(weights, last):
    """The network as the bytes of an ONNX file that ends in ``last``: ArgMax or Softmax."""
    from onnx import TensorProto, checker, helper, numpy_helper

    argmax = last == "ArgMax"
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["y1"]),
        helper.make_node("Relu", ["y1"], ["x2"]),
        helper.make_node("Gemm", ["x2", "w2", "b2"], ["y2"]),
        helper.make_node(last, ["y2"], ["y"], axis=1, **({"keepdims": 0} if argmax else {})),
    ]
    inputs, classes = cases.SMALL[0], cases.SMALL[-1]
    kind, shape = (TensorProto.INT64, ["B"]) if argmax else (TensorProto.FLOAT, ["B", classes])
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", inputs])],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return model.SerializeToString()


SIDES = {"numpy": numpy, "torch": torch, "onnxruntime": onnxruntime, "fastdigit": fastdigit}

# --- in the processes of the sides ------------------------------------------------------------


class Answers:
    """Of one side: to "check" what it is made with, to "time" its latencies and throughput."""

    def __init__(self, name, folder, backend):
        self.name, self.backend, self.calls, self.x = name, backend, None, None
        with np.load(Path(folder) / "task.npz") as file:
            self.weights = dict(file)
        self.images, self.expected = self.weights.pop("images"), self.weights.pop("expected")

    def __call__(self, question):
        return self.check() if question == "check" else self.time()

    def check(self):
        try:
            calls, version = SIDES[self.name](self.weights, self.backend)
        except ModuleNotFoundError as error:
            how = "pip install -r bench/requirements-peers.txt"
            return {"no_time": f"{error.name} is not installed: {how}"}
        x, expected = self.images, self.expected
        if self.name != "fastdigit":
            x = x.astype(np.float32) * np.float32(1 / 255)
        (label, probabilities), of_all = calls[1], calls["all"]
        # One by one, as they are timed; all that is wrong with a few would be wrong with 200.
        single = np.concatenate([probabilities(x[i : i + 1]) for i in range(200)])
        difference = float(max(abs(of_all(x) - expected).max(), abs(single - expected[:200]).max()))
        labels = np.concatenate([label(x[i : i + 1]) for i in range(200)])
        if not difference <= TOLERANCE or (labels != expected[:200].argmax(axis=1)).any():
            return {
                "used": version,
                "no_time": f"refused: probabilities differ by {difference:.2g}, or labels do",
            }
        self.x = x
        return {"used": version, "difference": difference}

    def time(self):
        # Made anew: the throughput of all sets the number of threads.
        calls, _ = SIDES[self.name](self.weights, self.backend)
        (label, probabilities), of_all = calls[1], calls["all"]
        return {
            "label": latency(label, self.x),
            "probabilities": latency(probabilities, self.x),
            "all": throughput(of_all, self.x),
        }


def latency(call, x):
    """Microseconds of one call: [lower quartile, median, upper quartile]."""
    single = [x[i : i + 1] for i in range(64)]
    for i in range(WARM):
        call(single[i % 64])
    seconds = []
    for i in range(CALLS):
        image = single[i % 64]
        begun = time.perf_counter()
        call(image)
        seconds.append(time.perf_counter() - begun)
    return (1e6 * np.percentile(seconds, [25, 50, 75])).tolist()


def throughput(call, x):
    """Images per second, in the batches that are quickest."""
    best = 0.0
    for split in SPLITS:
        seconds = []
        for _ in range(REPEAT + 1):  # the first is the warm-up
            begun = time.perf_counter()
            for start in range(0, len(x), split):
                call(x[start : start + split])
            seconds.append(time.perf_counter() - begun)
        best = max(best, len(x) / float(np.median(seconds[1:])))
    return best


SOME = 4  # turns

# --- in the process that compares -------------------------------------------------------------


def measure(data, sides, rounds, backend="auto", python=sys.executable):
    """A row for each side: medians over the rounds."""
    net = fd.Network(cases.SMALL, backend="numpy", seed=0)
    fd.fit(net, data.train, epochs=1)
    weights, images = net.get_parameters(), data.test.images.reshape(len(data.test), -1)
    x = images / 255
    hidden = np.maximum(x @ weights["w1"].astype(np.float64) + weights["b1"], 0)
    z = hidden @ weights["w2"].astype(np.float64) + weights["b2"]
    expected = np.exp(z - z.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder, turns.Turns() as running:
        np.savez(Path(folder) / "task.npz", images=images, expected=expected, **weights)
        facts = {}
        for name in sides:
            command = [sys.executable if name == "fastdigit" else python, *CHILD, name]
            running.start(name, [*command, "--task", folder, "--backend", backend])
            facts[name] = running.ask(name, "check")
        checked = [name for name in sides if "no_time" not in facts[name]]
        answers = running.ask_all("time", rounds, checked)
    return [row_of(name, facts[name], answers.get(name, ())) for name in sides]


def row_of(name, facts, results):
    row = {"side": name, "used": facts.get("used")}
    failed = [found["no_time"] for found in (facts, *results) if "no_time" in found]
    if failed:
        return {**row, "no_time": failed[0]}
    label, probabilities = (
        _over_turns(np.array([result[what] for result in results])) for what in ("label", "probabilities")
    )
    return {
        **row,
        "noisy": any(high - low > turns.NOISY * middle for low, middle, high in (label, probabilities)),
        "microseconds_label": label[1],
        "microseconds_label_quartiles": label[::2],
        "microseconds_probabilities": probabilities[1],
        "microseconds_probabilities_quartiles": probabilities[::2],
        "images_per_second": float(np.median([result["all"] for result in results])),
        "largest_difference": facts["difference"],
    }


def _over_turns(quartiles):
    """Of a latency, from those of the calls of each turn: medians of them, or if there are some turns, the
    quartiles of their medians."""
    low, middle, high = np.median(quartiles, axis=0).tolist()
    if len(quartiles) >= SOME:
        low, high = np.percentile(quartiles[:, 1], [25, 75]).tolist()
    return [low, middle, high]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", help="folder of the MNIST files (default: as fastdigit.load_mnist)")
    parser.add_argument("--backend", default="auto", help="of fastdigit")
    parser.add_argument("--python", default=sys.executable, help="interpreter for the peers")
    parser.add_argument("--json", type=Path, help="write the rows and the machine to this file")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--task", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        turns.answer_all(Answers(options.child, options.task, options.backend))
        return None
    data = fd.load_mnist(options.data)
    rows = measure(data, options.sides, options.rounds, options.backend, options.python)
    for row in rows:
        if "no_time" in row:
            print(f"{row['side']:>12}  {row['no_time']}")
        else:
            print(
                f"{row['side']:>12} {row['microseconds_label']:7.1f} µs for a label, "
                f"{row['microseconds_probabilities']:7.1f} µs for probabilities, "
                f"{row['images_per_second']:>11,.0f} images/s of {len(data.test):,} ({row['used']})"
            )
    if options.json:
        machine.write(options.json, rounds=options.rounds, rows=rows)
    return rows


if __name__ == "__main__":
    main()
