"""Which backends run on a GPU here, and whether their operations pass the checks of every backend."""

import fastdigit as fd

from . import checks

BACKENDS = ("cuda", "cupy")


def check_all(backend, most=None):
    """{operation: {"checks": how many passed, "worst": error over bound}, or {"rejected": why}}.

    ``most``: of the cases of each check, evenly chosen.
    """
    found = {}
    for operation, of_operation in checks.CHECKS.items():
        function = getattr(backend, operation, None)
        if function is None:
            continue
        passed, worst = 0, 0.0
        try:
            for check, cases in of_operation:
                for case in cases if most is None else cases[:: -(-len(cases) // most)]:
                    worst = max(worst, check(function, backend, case) or 0.0)
                    passed += 1
            found[operation] = {"checks": passed, "worst": worst}
        except checks.Rejected as error:
            found[operation] = {"rejected": f"{check.__name__}, {case}: {error}"}
    return found


def measure():
    """For each backend that runs on a GPU its device and :func:`check_all`; {"no_time": why} if none does."""
    states = fd.backends()
    usable = [name for name in BACKENDS if states.get(name) == "ok"]
    if not usable:
        return {"no_time": "; ".join(f"{name}: {states.get(name, 'unknown')}" for name in BACKENDS)}
    return {
        name: {"device": fd.get_backend(name).device, "operations": check_all(fd.get_backend(name))}
        for name in usable
    }
