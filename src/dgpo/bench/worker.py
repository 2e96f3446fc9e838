"""One run of the benchmark as a process: `python -m dgpo.bench.worker JSON`, started by `parallel.py`.

Exit code 0: it has its result; 130: it was stopped and saved; 1 or 2: it failed, and said why.
"""

from __future__ import annotations

import json
import signal
import sys

from dgpo.bench.run import Job, run_job
from dgpo.errors import RunFailed, UserError
from dgpo.utils.parent import end_with_parent


def main(words: str) -> int:
    """Run or continue the job that `words` describe."""
    end_with_parent(signal.SIGTERM)
    given = json.loads(words)
    try:
        return 0 if run_job(Job(**given["job"]), given["out"], given["device"]) else 130
    except (UserError, RunFailed) as error:
        print(f"dgpo: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt as stop:
        print(f"dgpo: {stop}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
