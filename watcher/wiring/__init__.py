"""The parts, made from a Config. The one room that hands the configuration's values to the others.

One file for each size of command: `sites` is all that a command needs to look at runs and documents, `archives` adds
keys and archives, `daemon` everything. Each imports what it needs and no more, so that small commands start at once.
"""
