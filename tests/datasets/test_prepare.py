"""From any picture to MNIST's format: every kind of input, what must not matter, and how well it works."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from fastdigit.datasets import load_digits, load_mnist, prepare_image, prepare_steps
from fastdigit.datasets.prepare import MAX_MEGAPIXELS
from fastdigit.errors import DataError

STEPS = ["input", "ink", "contrast", "cropped", "scaled", "centred"]


def drawing(width=240, height=300, paper=255, ink=0, mode="L") -> Image.Image:
    """A five with its bar apart from the rest, as many write it."""
    image = Image.new(mode, (width, height), paper)
    draw = ImageDraw.Draw(image)
    draw.line([(90, 60), (150, 60)], ink, 12)
    draw.line([(84, 80), (84, 140)], ink, 12)
    draw.arc([(60, 120), (160, 220)], -110, 130, ink, 12)
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def likeness(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two images: 1 where they are the same."""
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def likeness_nearby(one: np.ndarray, other: np.ndarray) -> float:
    """The same where the centre of mass may have been rounded to the next pixel."""
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    return max(likeness(np.roll(one, shift, (0, 1)), other) for shift in shifts)


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    return prepare_image(drawing())


def test_result_is_like_mnist(expected):
    assert expected.shape == (28, 28)
    assert expected.dtype == np.uint8
    assert expected.max() == 255
    rows, columns = np.nonzero(expected)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    mass = expected.astype(float)
    for axis in (0, 1):
        assert abs(mass.sum(1 - axis) @ np.arange(28) / mass.sum() - 14) <= 0.5
    # The independent reference: the drawing's own box, scaled by Pillow from black on white.
    reference = Image.fromarray(255 - np.asarray(drawing())[54:222, 78:162])
    reference = np.asarray(reference.resize((10, 20), Image.Resampling.BICUBIC))
    box = expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    box = np.asarray(Image.fromarray(box).resize((10, 20)))
    assert likeness(box, reference) > 0.9


def test_steps_are_pictures_and_end_in_the_result(expected):
    steps = prepare_steps(drawing())
    assert list(steps) == STEPS
    for name, step in steps.items():
        assert step.dtype == np.uint8, name
        Image.fromarray(np.squeeze(step)).load()
    np.testing.assert_array_equal(steps["centred"], expected)
    assert steps["contrast"].shape == (300, 240)
    assert max(steps["scaled"].shape) == 20


def sources(tmp_path):
    png = saved(drawing(), "PNG")
    path = tmp_path / "five.png"
    path.write_bytes(png)
    grey = np.asarray(drawing())
    wide = np.zeros((300, 480), np.uint8)
    wide[:, ::2] = grey
    yield "path", path
    yield "str", str(path)
    yield "bytes", png
    yield "bytearray", bytearray(png)
    yield "memoryview", memoryview(png)
    yield "open file", io.BytesIO(png)
    yield "PIL", drawing()
    yield "PIL, lazy", Image.open(io.BytesIO(png))
    yield "uint8", grey
    yield "non-contiguous", wide[:, ::2]
    yield "Fortran order", np.asfortranarray(grey)
    yield "bool", grey > 127
    yield "0/1 mask", (grey > 127).astype(np.uint8)
    yield "int64", grey.astype(np.int64)
    yield "uint16", grey.astype(np.uint16) * 257
    yield "12 bits", grey.astype(np.uint16) * 16
    yield "big endian", grey.astype(">i4")
    yield "float 0..1", grey / 255
    yield "float32 0..255", grey.astype(np.float32)
    yield "float16", grey.astype(np.float16)
    yield "[H,W,1]", grey[:, :, None]
    yield "[H,W,3]", np.repeat(grey[:, :, None], 3, 2)
    yield "[H,W,4]", np.dstack([grey, grey, grey, np.full_like(grey, 255)])


def test_every_kind_of_source(tmp_path, expected):
    for kind, source in sources(tmp_path):
        np.testing.assert_array_equal(prepare_image(source), expected, err_msg=kind)


def test_sources_are_left_as_they_were():
    array = np.asarray(drawing()).copy()
    before = array.copy()
    array.flags.writeable = False
    prepare_image(array)
    np.testing.assert_array_equal(array, before)
    image = drawing(mode="RGB", paper="white", ink="black")
    prepare_image(image)
    assert image == drawing(mode="RGB", paper="white", ink="black")


def cut_out_paper() -> Image.Image:
    """Black ink on white paper with transparent corners: neither a dark nor a bright ground is known."""
    image = drawing(mode="RGBA", paper="white", ink="black")
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 239, 299), 60, fill=255)
    image.putalpha(mask)
    return image


def turned_by_exif(kind: str) -> bytes:
    image, exif = drawing().transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    return saved(image, kind, exif=exif)


FILES = {
    "1-bit PNG": saved(drawing().convert("1"), "PNG"),
    "palette PNG": saved(drawing(mode="RGB", paper="white", ink="black").convert("P"), "PNG"),
    "16-bit PNG": saved(Image.fromarray(np.asarray(drawing()).astype(np.uint16) * 257), "PNG"),
    "float TIFF": saved(Image.fromarray(np.asarray(drawing()).astype(np.float32) / 255), "TIFF"),
    "grey and opacity PNG": saved(drawing().convert("LA"), "PNG"),
    "CMYK JPEG": saved(drawing(mode="CMYK", paper=(0, 0, 0, 0), ink=(0, 0, 0, 255)), "JPEG", quality=90),
    "JPEG": saved(drawing(), "JPEG", quality=75),
    "WebP": saved(drawing(mode="RGB", paper="white", ink="black"), "WEBP"),
    "BMP": saved(drawing(), "BMP"),
    "PPM": saved(drawing(), "PPM"),
    "animated GIF": saved(drawing(), "GIF", save_all=True, append_images=[Image.new("L", (240, 300), 255)]),
    "JPEG turned by EXIF": turned_by_exif("JPEG"),
    "PNG turned by EXIF": turned_by_exif("PNG"),
    "WebP turned by EXIF": turned_by_exif("WEBP"),
    "TIFF turned by EXIF": turned_by_exif("TIFF"),
    "blue on yellow": saved(drawing(mode="RGB", paper=(250, 240, 140), ink=(30, 40, 160)), "PNG"),
    "red on green": saved(drawing(mode="RGB", paper=(0, 130, 0), ink=(250, 50, 0)), "PNG"),
    "white on black": saved(drawing(paper=0, ink=255), "PNG"),
    "black on transparent": saved(drawing(mode="RGBA", paper=(0, 0, 0, 0), ink="black"), "PNG"),
    "white on transparent": saved(drawing(mode="RGBA", paper=(255, 255, 255, 0), ink="white"), "PNG"),
    "cut-out paper": saved(cut_out_paper(), "PNG"),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file(kind, expected):
    assert likeness(prepare_image(FILES[kind]), expected) > 0.98


def test_lighting_noise_and_dust(expected):
    rng = np.random.default_rng(0)
    paper = np.asarray(drawing()) / 255
    light = np.linspace(100, 220, 240) + np.linspace(0, 30, 300)[:, None]
    photo = np.clip(light * (0.2 + 0.8 * paper) + rng.normal(0, 6, paper.shape), 0, 255).astype(np.uint8)
    for y, x in rng.integers(5, 230, (10, 2)):
        photo[y : y + 3, x : x + 3] = 20
    assert likeness_nearby(prepare_image(photo), expected) > 0.95


@pytest.mark.parametrize("box", [(78, 0, 240, 300), (0, 0, 160, 300), (0, 56, 240, 300), (0, 0, 240, 219)])
def test_ink_that_touches_the_border(box, expected):
    assert likeness(prepare_image(drawing().crop(box)), expected) > 0.9


def test_nothing_but_specks():
    paper = np.zeros((200, 200), np.uint8)
    paper[10:190:20, 10:190:20] = 255
    with pytest.raises(DataError, match="specks"):
        prepare_image(paper)


def test_thin_strokes_become_bright():
    image = Image.new("L", (600, 800), 255)
    ImageDraw.Draw(image).line([(200, 200), (400, 200), (250, 600)], 0, 2)
    prepared = prepare_image(image)
    assert prepared.max() == 255
    assert np.median(prepared[prepared > 0]) > 50


def test_a_large_picture_comes_out_as_a_small_one(expected):
    large = drawing().resize((240 * 20, 300 * 20), Image.Resampling.NEAREST)
    for source in [large, saved(large, "JPEG"), saved(large, "PNG", compress_level=1)]:
        assert likeness(prepare_image(source), expected) > 0.95
    assert max(prepare_steps(large)["input"].shape) <= 1024


# What must not matter. Scikit-learn's digits are real handwriting and need no download.
digits = load_digits().test.images
one_digit = st.integers(0, len(digits) - 1).map(lambda index: digits[index])
quick = settings(max_examples=60, deadline=None)


@quick
@given(one_digit, st.integers(0, 30), st.integers(0, 30), st.integers(1, 9))
def test_polarity_place_and_size_do_not_matter(digit, y, x, factor):
    plain = prepare_image(digit)
    canvas = np.zeros((58, 58), np.uint8)
    canvas[y : y + 28, x : x + 28] = digit
    moved = prepare_image(canvas)
    np.testing.assert_array_equal(moved, plain)
    np.testing.assert_array_equal(prepare_image(255 - canvas), moved)
    enlarged = prepare_image(np.kron(canvas, np.ones((factor, factor), np.uint8)))
    assert likeness_nearby(enlarged, plain) > 0.93


@quick
@given(one_digit)
def test_an_image_in_mnists_format_hardly_changes(digit):
    assert likeness_nearby(prepare_image(digit), digit) > 0.96


def test_mnist_itself_hardly_changes(mnist_root):
    images = load_mnist(mnist_root).test.images[::20]
    prepared = np.stack([prepare_image(image) for image in images])
    change = np.abs(prepared.astype(int) - images).mean((1, 2))  # levels out of 255
    assert (change < 1).mean() > 0.99  # a centre of mass exactly between two pixels may go either way


# Errors.


@settings(max_examples=400, deadline=None)
@given(
    hnp.arrays(
        st.sampled_from(["?", "u1", "i2", "u2", "i8", "f2", "f4", "f8"]),
        st.lists(st.integers(0, 6), max_size=3).map(tuple)
        | st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 3, 4])),
    )
)
def test_any_small_array_is_prepared_or_refused(array):
    try:
        prepared = prepare_image(array)
    except DataError:
        return
    assert prepared.shape == (28, 28)
    assert prepared.dtype == np.uint8
    assert prepared.max() == 255


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros(784), r"\[784\]"),
        (np.zeros((10, 28, 28)), r"\[10,28,28\].*one picture at a time"),
        (np.zeros((1, 28, 28, 1)), r"\[1,28,28,1\]"),
        (np.zeros((0, 28)), "empty"),
        (np.where(np.eye(28), np.nan, 0), "NaN or infinity, first at row 0, column 0"),
        (np.where(np.arange(28 * 28).reshape(28, 28) == 59, -np.inf, 0), "row 2, column 3"),
        (np.full((28, 28), -0.5), "-0.5"),
        (np.zeros((28, 28), complex), "complex"),
        (np.full((28, 28), "ink"), "<U3"),
        (np.zeros((28, 28)), "no ink found"),
        (np.full((28, 28, 3), 200, np.uint8), "no ink found"),
        (np.random.default_rng(0).normal(128, 8, (300, 300)).clip(0, 255), "no ink found"),
        (np.broadcast_to(np.uint8(0), (10_000, 10_000)), f"{MAX_MEGAPIXELS} megapixels"),
        (np.zeros((28, 28, 4), np.uint8), "transparent"),
    ],
)
def test_arrays_that_cannot_be_prepared(array, reason):
    with pytest.raises(DataError, match=reason):
        prepare_image(array)


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_100, 10_000, 20_000, 2**31 - 1])
def test_decompression_bombs_are_refused(side):
    with pytest.raises(DataError, match=f"{MAX_MEGAPIXELS} megapixels") as caught:
        prepare_image(png_that_claims(side, side))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", [None, 5, [[0, 1], [1, 0]], object()])
def test_what_is_no_picture_at_all(source):
    with pytest.raises(DataError, match=type(source).__name__):
        prepare_image(source)


def test_files_that_are_not_there_or_no_pictures(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.png.*No such file"):
        prepare_image(tmp_path / "nothing.png")
    with pytest.raises(DataError, match="directory"):
        prepare_image(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png: not a picture"):
        prepare_image(tmp_path / "text.png")
    with pytest.raises(DataError):
        prepare_image(io.StringIO("text"))
    with pytest.raises(DataError, match="not a picture"):  # EPS is a program, and would be run
        prepare_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


@pytest.mark.parametrize("kind", ["JPEG", "16-bit PNG", "float TIFF", "animated GIF", "WebP", "BMP", "PPM"])
def test_truncated_files(kind):
    whole = FILES[kind]
    for length in [*range(0, len(whole) // 2, max(1, len(whole) // 50)), len(whole) // 2]:
        with pytest.raises(DataError) as caught:
            prepare_image(whole[:length])
        assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.data())
def test_corrupt_files_are_prepared_or_refused(kind, data):
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content) - 1, 400)))] = data.draw(st.integers(0, 255))
    try:
        prepared = prepare_image(content)
    except DataError:
        return
    assert prepared.shape == (28, 28)


# The figure that counts: does a classifier still read the digits?


def scan(digit, resampling, quality, rng) -> bytes:
    """A digit of MNIST as dark ink on a white page, somewhere, ten times as large, as a JPEG."""
    page = Image.new("L", (320, 400), 255)
    ink = Image.fromarray(255 - digit).resize((200, 200), resampling)
    page.paste(ink, tuple(int(rng.integers(0, room)) for room in (121, 201)))
    return saved(page, "JPEG", quality=quality)


@pytest.mark.parametrize("resampling", [Image.Resampling.BICUBIC, Image.Resampling.LANCZOS])
@pytest.mark.parametrize("quality", [75, 90])
def test_scanned_mnist_is_still_read(mnist_root, classifier, resampling, quality):
    test = load_mnist(mnist_root).test.take(np.arange(0, 10_000, 20))
    rng = np.random.default_rng(0)
    scanned = np.stack([prepare_image(scan(digit, resampling, quality, rng)) for digit in test.images])
    before = classifier.score(test.images.reshape(-1, 784) / 255, test.labels)
    after = classifier.score(scanned.reshape(-1, 784) / 255, test.labels)
    assert before > 0.94
    assert after >= before - 0.015


@pytest.fixture(scope="module")
def classifier(mnist_root):
    from sklearn.neighbors import KNeighborsClassifier

    train = load_mnist(mnist_root).train.take(np.arange(12_000))
    return KNeighborsClassifier(3).fit(train.images.reshape(-1, 784) / 255, train.labels)
