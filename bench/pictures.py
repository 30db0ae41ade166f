"""Draw the README's pictures: what a network that tells 0 from 1 looks at, and what is misread.

python -m fastdigit.bench.pictures [--out bench/results]
"""

import argparse
from pathlib import Path

import fastdigit as fd
from fastdigit import plots


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the MNIST files (default: as fastdigit.load_mnist)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    data = fd.load_mnist(options.data)
    options.out.mkdir(parents=True, exist_ok=True)
    weights_of_zero_or_one(data.subset([0, 1]), options.out / "first_layer_0_or_1.png")
    misread(data, options.out / "misread.png")


def weights_of_zero_or_one(data, file):
    net = fd.Network([784, 10, 2], backend="numpy", seed=0, classes=(0, 1))
    # A strong decay clears away what the random start left on pixels that tell nothing.
    optimizer = fd.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-3)
    fd.fit(net, data.train, optimizer=optimizer, epochs=20)
    plots.first_layer_weights(net, file, count=10)
    print(f"{file}: {fd.evaluate(net, data.test).accuracy:.2%} of {len(data.test):,} test images right")


def misread(data, file):
    net = fd.Network([784, 128, 10], backend="numpy", seed=0)
    fd.fit(net, data.train, optimizer=fd.SGD(0.2, momentum=0.9, nesterov=True), epochs=6)
    evaluation = fd.evaluate(net, data.test)
    plots.confusion_and_mistakes(evaluation, data.test.images, file)
    print(f"{file}: {evaluation.accuracy:.2%} of {evaluation.count:,} test images right")


if __name__ == "__main__":
    main()
