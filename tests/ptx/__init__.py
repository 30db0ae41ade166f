"""PTX without a GPU: an interpreter that checks what it runs, and what uses it."""
