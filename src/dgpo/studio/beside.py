"""The studio beside a training: a process of its own, so that neither waits for the other, which ends with its parent.

    python -m dgpo.studio.beside RUN '{"host": "127.0.0.1", "port": 8300, "no_browser": false}'

Its standard input is a pipe from the training. The pipe closes however that ends.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

from dgpo.errors import UserError
from dgpo.studio.options import Options
from dgpo.utils.parent import end_with_parent


@contextmanager
def beside(run: Path, options: Options) -> Iterator[None]:
    """Show a run, at the page for teaching, for as long as the block lasts."""
    command = [sys.executable, "-m", "dgpo.studio.beside", str(run), json.dumps(asdict(options))]
    # a session of its own: Ctrl-C is for the training, which then saves while the page still shows that
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        try:
            yield
        finally:
            process.stdin.close()


def main() -> int:
    """Serve until the pipe closes."""
    run, options = Path(sys.argv[1]), Options(**json.loads(sys.argv[2]))
    end_with_parent(signal.SIGINT)
    try:
        from dgpo.studio.serve import serve

        serve(
            run,
            options,
            page=f"teach/{quote(run.name, safe='')}",
            said="Pick pictures here: LINK\nCtrl-C saves and ends.",
        )
    except UserError as error:
        print(
            f"dgpo: no page for picking: {error}. The training waits; in another terminal: dgpo studio {run}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:  # the training ended before there was a page
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
