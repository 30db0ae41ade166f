"""Modules of which something is wrong, to see that the checks find it.

What is not affected is the module's own: most device functions are compiled once for all faults.
"""

import ast
import importlib.util

from fastdigit.kernels.common import cuda


def with_fault(module, old, new):
    """The module again, with ``new`` in place of the first ``old`` of its source."""
    source = _source_of(module)
    if old not in source:  # no AssertionError: that would pass for the fault having been found
        raise ValueError(f"{old!r} is not in {module.__name__}")
    before = set(map(ast.dump, ast.parse(source).body))
    after = ast.parse(source.replace(old, new, 1)).body
    return _again(module, after, [ast.dump(statement) not in before for statement in after], {})


def using(module, **others):
    """The module again, with others in place of what it has by these names."""
    statements = ast.parse(_source_of(module)).body
    return _again(module, statements, [False] * len(statements), others)


def _source_of(module):
    return importlib.util.find_spec(module.__name__).loader.get_source(module.__name__)


def _again(module, statements, differs, others):
    """The module, in which some statements differ and ``others`` have names: these statements, and all that
    use what has changed, are executed anew."""
    used = [{node.id for node in ast.walk(each) if isinstance(node, ast.Name)} for each in statements]
    while True:
        changed = set(others).union(
            *(_bound(each) for each, so in zip(statements, differs, strict=True) if so)
        )
        more = [so or not names.isdisjoint(changed) for so, names in zip(differs, used, strict=True)]
        if more == differs:
            break
        differs = more
    spec = importlib.util.spec_from_loader(module.__name__ + "_with_fault", loader=None)
    faulty = importlib.util.module_from_spec(spec)
    faulty.__dict__.update({name: value for name, value in vars(module).items() if name[:2] != "__"})
    faulty.__dict__.update(others, __package__=module.__package__)
    known, anew = len(cuda.KERNELS), [each for each, so in zip(statements, differs, strict=True) if so]
    exec(compile(ast.Module(anew, []), "faulty.py", "exec"), faulty.__dict__)
    del cuda.KERNELS[known:]
    return faulty


def _bound(statement):
    """The names that a statement of a module gives something to."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return {statement.name}
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
