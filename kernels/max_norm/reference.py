"""Max-norm, written once for any array module ``xp`` (NumPy, CuPy).

A network that fits noise needs large weights: none of its units gets more than a given length of them.
Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout", JMLR 15 (2014), section 5.1;
Srebro, Shraibman, COLT 2005.
"""


def max_norm(xp, w, limit):
    """w_o ← w_o · min(1, limit / |w_o|) for each column w_o: what comes in to one unit.

    Shapes: w [I, O]. Dtypes: float32 (the reference also runs in float64); limit is a number > 0.
    Writes: w; a column that is short enough keeps its bits, one that is not finite becomes NaN.
    Cost: 2·I·O flops to measure, I·O to shorten; reads 2·I·O numbers, writes I·O.
    """
    # In float64, where no square of a float32 overflows or vanishes.
    norms = xp.sqrt(xp.sum(xp.square(w, dtype="float64"), axis=0))
    xp.multiply(w, limit / xp.maximum(norms, limit), out=w)
