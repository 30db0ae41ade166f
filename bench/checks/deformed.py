"""A deformed image one pixel at a time, in Python's whole numbers, from what kernels/augment says of it."""

import math

import numpy as np

LEVELS, ONE, PAPER = 1024, 65536, 16


def _level(word):
    """A 32-bit word as one of the levels from -1 to 1."""
    return -1 + 2 * (word >> 22) / (LEVELS - 1)


def _fixed(value):
    return round(value * ONE)


def _weights(length, smoothness):
    """[length][knots]: Gaussians around knots at most 1.65 deviations apart, 1.5 beyond the ends."""
    reach = length - 1 + 3 * smoothness
    gaps = math.ceil(reach / (1.65 * smoothness))
    knots = [-1.5 * smoothness + reach * k / gaps for k in range(gaps + 1)]
    return [[math.exp(-((i - knot) ** 2) / (2 * smoothness**2)) for knot in knots] for i in range(length)]


def _fields(height, width, elastic, smoothness, random_bytes):
    """[2][height][width] displacements, in 1/65536 of a pixel."""
    down, across = _weights(height, smoothness), _weights(width, smoothness)
    top = max(map(max, down))
    energy = [sum(w * w for row in side for w in row) / len(side) for side in (down, across)]
    deviation = math.sqrt(sum((2 * byte - 255) ** 2 for byte in range(256)) / 256)
    scale = elastic * ONE * 2**14 / (256 / top * math.sqrt(energy[0] * energy[1]) * deviation)
    down = [[round(256 * w / top) for w in row] for row in down]
    across = [[round(scale * w) for w in row] for row in across]
    rows, columns = len(down[0]), len(across[0])
    random = np.array(random_bytes(3, 2 * rows * columns)).reshape(2, rows, columns).tolist()
    fields = []
    for knots in random:
        lines = [
            [sum(w * (2 * knots[k][i] - 255) for k, w in enumerate(row)) >> 6 for i in range(columns)]
            for row in down
        ]
        fields.append(
            [[sum(a * b for a, b in zip(line, w, strict=True)) >> 8 for w in across] for line in lines]
        )
    return fields


def deformed(image, strengths, words):
    """``image`` [H, W] deformed: uint8 [H, W].

    ``strengths``: those of kernels/augment by name; ``words(block)``: four random words of the image.
    """
    height, width = image.shape
    s = {
        **dict.fromkeys(("rotation", "scale", "shear", "shift", "elastic"), 0),
        **dict.fromkeys(("thickness", "noise", "erase", "faint"), 0),
        "smoothness": 4,
        **strengths,
    }

    def random_bytes(block, count):
        found = []
        while len(found) < count:
            found += [word >> shift & 255 for word in words(block) for shift in (0, 8, 16, 24)]
            block += 1
        return found[:count]

    angle, wide, tall, lean, right, down, thick, noisy = map(_level, (*words(0), *words(1)))
    cos, sin = (_fixed(f(math.radians(s["rotation"]) * angle)) for f in (math.cos, math.sin))
    wide, tall = (_fixed(1 / (1 + s["scale"] * level)) for level in (wide, tall))
    lean = _fixed(s["shear"] * lean) * tall >> 16
    xx, xy, yx, yy = (
        cos * wide >> 16,
        cos * lean - sin * tall >> 16,
        sin * wide >> 16,
        sin * lean + cos * tall >> 16,
    )
    strength = _fixed(s["thickness"] * thick / 256)

    def source(x, y):
        return int(image[y, x]) if 0 <= x < width and 0 <= y < height else 0

    def ink(x, y):
        own = source(x, y)
        if not (0 <= x < width and 0 <= y < height):
            return 0
        cross = own, source(x - 1, y), source(x + 1, y), source(x, y - 1), source(x, y + 1)
        change = max(cross) - own if strength >= 0 else own - min(cross)
        return own + (change * strength + 128 >> 8)

    fields = None
    if s["elastic"]:
        fields = _fields(height, width, s["elastic"], s["smoothness"], random_bytes)
    left = top = side = 0
    size, from_left, from_top, faint = words(2)
    if s["erase"]:
        side = round(min(s["erase"], height, width) * (1 + _level(size)) / 2)
        left, top = (width + 1 - side) * from_left >> 32, (height + 1 - side) * from_top >> 32
    strong = _fixed(1 - s["faint"] * (1 + _level(faint)) / 2)
    noise = random_bytes(1 << 16, height * width) if s["noise"] else None
    largest = round(s["noise"] * (1 + noisy) / 2)
    result = np.zeros_like(image)
    for y, x in np.ndindex(height, width):
        u, v = 2 * x - (width - 1), 2 * y - (height - 1)
        at_x = (xx * u + xy * v >> 1) + (width - 1) * ONE // 2 + _fixed(s["shift"] * right)
        at_y = (yx * u + yy * v >> 1) + (height - 1) * ONE // 2 + _fixed(s["shift"] * down)
        if fields:
            at_x, at_y = at_x + fields[0][y][x], at_y + fields[1][y][x]
        at_x, at_y = min(max(at_x, -ONE), width * ONE), min(max(at_y, -ONE), height * ONE)
        (column, part_x), (row, part_y) = divmod(at_x, ONE), divmod(at_y, ONE)
        part_x, part_y = part_x >> 8, part_y >> 8
        value = 0
        for below, share in ((0, 256 - part_y), (1, part_y)):
            pair = ink(column, row + below) * (256 - part_x) + ink(column + 1, row + below) * part_x
            value += pair * share
        value = value + ONE // 2 >> 16
        value = 0 if value < PAPER else value * strong + ONE // 2 >> 16
        if left <= x < left + side and top <= y < top + side:
            value = 0
        if noise:
            value = min(max(value + ((2 * noise[y * width + x] - 255) * largest >> 8), 0), 255)
        result[y, x] = value
    return result
