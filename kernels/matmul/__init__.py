"""Matrix products and the dense layer built on them."""
