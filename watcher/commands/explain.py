"""`explain`: why a run does not move, and what to do."""

from __future__ import annotations

import argparse
import json

from watcher.commands import shared
from watcher.commands.exit_codes import FAILED, OK
from watcher.commands.history import show_steps
from watcher.commands.shared import load
from watcher.model import history
from watcher.overview import Cause, explain, look_for
from watcher.text import printable
from watcher.wiring import sites


def run(options: argparse.Namespace) -> int:
    """Print why the run stands as it does; return the exit code, 1 if it is not known. Raises as `load` does."""
    config = load(options)
    facts = look_for(sites.place(config, shared.statusdb(config)), options.run)
    explanations, document = explain(facts), facts.document or {}
    if options.json:
        told = [vars(each) for each in explanations]
        print(json.dumps({"run": facts.name, "explanations": told, "document": facts.document}, indent=2))
    else:
        for each in explanations:
            print(f"{printable(facts.name)}: {each.cause}")
            print(f"  why:  {printable(each.why)}")
            if each.remedy:
                print(f"  do:   {printable(each.remedy)}")
        show_steps([{"run": facts.name, **step} for step in history(document)])
    return FAILED if explanations[0].cause is Cause.UNKNOWN else OK
