"""The command line: reads arguments, calls a verb, prints what it returns.

One module a verb, imported when its verb is used, so that a command pays only
for what it needs.
"""
