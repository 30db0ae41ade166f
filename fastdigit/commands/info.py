"""``fastdigit info``."""

import json
from typing import Annotated

import typer

from .common import Debug, say


def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: Debug = False,
):
    """Show what this machine offers.

    Versions, processor, backends, data: also what a bug report needs.

    [bold]Examples[/bold]
      fastdigit info
      fastdigit info --json > machine.json
    """
    from ..info import gather

    facts = gather()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    cpu, mnist = facts["cpu"], facts["mnist"]
    say("fastdigit", f"{facts['fastdigit']}, Python {facts['python']}, {facts['system']}")
    say("packages", ", ".join(f"{name} {version}" for name, version in facts["packages"].items()))
    say("processor", f"{cpu['name']} ({cpu['llvm_name']}), {cpu['cores']} cores, {cpu['threads']} threads")
    say("simd", " ".join(cpu["simd"]) or "none known")
    for name, state in facts["backends"].items():
        say(name, f"ok, {state['device']}" if state["usable"] else f"no: {state['reason']}")
    named = facts["FASTDIGIT_BACKEND"]
    source = "" if named is None else f", named by FASTDIGIT_BACKEND={named}"
    say("auto", facts["auto"].get("backend", facts["auto"].get("error")) + source)
    absent = "downloaded when needed" if mnist["downloadable"] else "which FASTDIGIT_DATA names"
    say("mnist", mnist["folder"] if mnist["found"] else f"not in {mnist['folder']}, {absent}")
