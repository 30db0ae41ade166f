"""One pass over the flat parameter buffer for each optimizer."""
