"""Running a command so that it can touch only what it was given.

The process that was asked to run something starts the sandbox itself, with its
own rights: `run.start` forks, makes namespaces, lets an `AgentMount` show the
agent's files, and turns into bubblewrap, whose command is a launcher that
closes the last doors from inside. Nothing here knows stores or FUSE.
"""
