"""Holding JSON from a file to a closed schema."""

import math


def mismatch(value, schema, where):
    """The first place where a JSON value departs from a schema, or None.

    A schema is a type, a tuple of types, [schema of all items], {name: schema} for exactly these
    names, or {str: schema} for any names.
    """
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{where} is not an object"
        if str in schema:
            schema = dict.fromkeys(value, schema[str])
        if value.keys() != schema.keys():
            return f"{where} has the fields {sorted(value)}, expected {sorted(schema)}"
        parts = ((value[name], schema[name], f"{where}.{name}") for name in schema)
    elif isinstance(schema, list):
        if not isinstance(value, list):
            return f"{where} is not a list"
        parts = ((item, schema[0], f"{where}[{i}]") for i, item in enumerate(value))
    else:
        types = schema if isinstance(schema, tuple) else (schema,)
        # type(), not isinstance(): True must not pass for the integer 1.
        if type(value) not in types or (isinstance(value, float) and not math.isfinite(value)):
            return f"{where} is {value!r:.40}, expected {' or '.join(t.__name__ for t in types)}"
        return None
    return next(filter(None, (mismatch(*part) for part in parts)), None)
