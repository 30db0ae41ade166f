"""From logits to probabilities on the host, with a temperature."""

import numpy as np

from .errors import check_number


def log_softmax(logits, temperature=1.0):
    """log softmax(logits / T), with the row maximum subtracted first.

    Shapes: logits [N, C]; returns [N, C]. Dtypes: any floats; returns float64. A temperature so small that
    the quotients overflow gives -inf: probability 0.
    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017), section 4.2.
    """
    z = np.asarray(logits, np.float64)
    with np.errstate(over="ignore"):
        z = (z - z.max(axis=1, keepdims=True)) / temperature
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def checked_temperature(value):
    """``value`` as a float. Errors: ConfigError unless it is a finite number above 0."""
    check_number("temperature", value, "(0, inf)")
    return float(value)
