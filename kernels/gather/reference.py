"""Gathering a mini-batch, written once for any array module ``xp`` (NumPy, CuPy)."""


def gather(xp, images, order, start, out):
    """out[i] = images[order[start + i]], uint8 pixels scaled from 0 … 255 to 0 … 1.

    Images stay uint8 wherever they are stored; they become floating point only here.

    Shapes: images [N, I], order [N], out [B, I] with start + B ≤ N.
    Dtypes: images uint8 (scaled by 1/255) or float32 (as they are), order int64, out float32 (the
    reference also writes float64).
    Writes: out.
    Cost: one multiplication an element; reads B·I bytes (or floats), writes B·I floats.
    """
    batch = images[order[start : start + len(out)]]
    if images.dtype == xp.uint8:
        xp.multiply(batch, out.dtype.type(1 / 255), out=out)
    else:
        xp.copyto(out, batch)


def gather_values(xp, values, order, start, out):
    """out[i] = values[order[start + i]]: the labels or the weights of a mini-batch.

    Shapes: values [N], order [N], out [B] with start + B ≤ N. Dtypes: values and out alike, order
    int64. Writes: out.
    """
    xp.copyto(out, values[order[start : start + len(out)]])
