"""How long `make verify` takes, from nothing, three times: seconds of the whole command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time


def main() -> None:
    """Prints the seconds of each run."""
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "karat.proofs.verify", "--no-lock", "--out", folder]
            code = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
            print(f"verify: {time.perf_counter() - start:.1f} s, exit code {code}")


if __name__ == "__main__":
    main()
