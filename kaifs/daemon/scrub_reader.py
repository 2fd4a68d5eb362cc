"""The process that reads segments for a scrub in the background: it yields to everybody.

It has nothing of the store open, and changes nothing. One JSON array a line each
way: the path of a segment, start and stop; and what was seen there. When the daemon
ends, its input does, and it goes.
"""

import json
import sys
from pathlib import Path

from kaifs.blocks.patrol import patrol
from kaifs.linux.priority import yield_to_others


def main() -> None:
    """Answer until nothing more is asked."""
    yield_to_others()
    for line in sys.stdin:
        path, start, stop = json.loads(line)
        print(json.dumps(patrol(Path(path), start, stop)), flush=True)
