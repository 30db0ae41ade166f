"""Are digits still read when they come as pictures? MNIST's test set as a user would send it.

    python -m fastdigit.bench.prepared_pictures [--images 10000] [--json FILE]

Every test image is inverted (dark ink on white), enlarged to 200×200, placed off-centre on a larger
white canvas and saved as JPEG; then it goes through ``prepare_image`` to a network trained on
MNIST as it is. The figure is the difference in accuracy. The thresholds of ``prepare_image`` were
tuned on samples of these very test images, so a small part of it may be flattery.
"""

import argparse
import io
import time
from pathlib import Path

import numpy as np

import fastdigit as fd

from . import machine

CANVAS = (400, 320)  # width, height


def as_jpeg(image, random, quality, enlarge):
    """The bytes of a JPEG file with the digit somewhere on a white canvas."""
    from PIL import Image

    digit = Image.fromarray(255 - image).resize((200, 200), enlarge)
    canvas = Image.new("L", CANVAS, 255)
    canvas.paste(digit, (int(random.integers(0, CANVAS[0] - 199)), int(random.integers(0, CANVAS[1] - 199))))
    file = io.BytesIO()
    canvas.save(file, "JPEG", quality=quality)
    return file.getvalue()


def trained_network(data):
    """784-128-10, the command's defaults for MNIST."""
    net = fd.Network([784, 128, 10], backend="numpy", seed=0)
    fd.fit(net, data.train, optimizer=fd.SGD(0.2, momentum=0.9, nesterov=True), epochs=6, batch_size=128)
    return net


def measure(data, count):
    """Accuracy on the first ``count`` test images and on the pictures made from them."""
    from PIL.Image import Resampling

    net = trained_network(data)
    test = data.test.take(np.arange(count))
    plain = fd.evaluate(net, test).accuracy
    rows = []
    for quality, enlarge in ((90, Resampling.BICUBIC), (75, Resampling.BICUBIC), (75, Resampling.LANCZOS)):
        random = np.random.default_rng(0)
        pictures = [as_jpeg(image, random, quality, enlarge) for image in test.images]
        begun = time.perf_counter()
        prepared = np.stack([fd.prepare_image(picture) for picture in pictures])
        seconds = time.perf_counter() - begun
        accuracy = fd.evaluate(net, (prepared, test.labels)).accuracy
        rows.append(
            {
                "jpeg_quality": quality,
                "enlarged_by": enlarge.name.lower(),
                "images": count,
                "accuracy_as_they_are": plain,
                "accuracy_as_pictures": accuracy,
                "points_lost": 100 * (plain - accuracy),
                "milliseconds_an_image": 1000 * seconds / count,
            }
        )
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", help="folder of the MNIST files (default: as fastdigit.load_mnist)")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = measure(fd.load_mnist(options.data), options.images)
    for row in rows:
        print(
            f"JPEG quality {row['jpeg_quality']}, {row['enlarged_by']}: "
            f"{row['accuracy_as_they_are']:.2%} as they are, {row['accuracy_as_pictures']:.2%} as pictures, "
            f"{row['points_lost']:+.2f} points lost, {row['milliseconds_an_image']:.1f} ms an image"
        )
    if options.json:
        machine.write(options.json, rows=rows)
    return rows


if __name__ == "__main__":
    main()
