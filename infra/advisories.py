"""Known vulnerabilities of the packages that requirements*.txt pin, by pip-audit and the OSV database: `make audit`.

    python infra/advisories.py .venv-audit/bin/pip-audit requirements.txt ...

Exit codes: 0 if nothing is known, or if no advisory feed can be reached (a line says so); 1 if a vulnerability is
known, or the check itself failed. Files must pin hashes, so nothing is resolved or installed.
"""

import json
import subprocess
import sys
from collections.abc import Sequence

UNREACHABLE = (
    "ConnectionError",
    "Max retries exceeded",
    "ConnectTimeout",
    "ReadTimeout",
    "Failed to connect",
    "ProxyError",
)
NOT_RUN = "not run: no advisory feed reachable"


def main(program: str, files: Sequence[str]) -> int:
    """Checks each file. Prints a line for the file, and a line for each vulnerability."""
    worst = 0
    for name in files:
        command = [program, "-r", name, "--require-hashes", "--disable-pip", "-s", "osv", "-f", "json"]
        done = subprocess.run(
            [*command, "--progress-spinner", "off", "--timeout", "10"], capture_output=True, text=True, check=False
        )
        code, message = judge(done.stdout, done.stderr)
        print(f"{name}: {message}")
        worst = max(worst, code)
    return worst


def judge(stdout: str, stderr: str) -> tuple[int, str]:
    """(exit code, text to print) for one run of pip-audit."""
    try:
        dependencies = json.loads(stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if any(word in stderr for word in UNREACHABLE):
            return 0, NOT_RUN
        return 1, f"the check failed: {stderr.strip()[-2000:]}"
    known = [(entry, flaw) for entry in dependencies for flaw in entry.get("vulns", ())]
    if not known:
        return 0, f"nothing known of {len(dependencies)} packages"
    lines = [
        f"  {entry['name']} {entry['version']}: {flaw['id']}, "
        f"fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for entry, flaw in known
    ]
    return 1, "\n".join([f"{len(known)} known in {len(dependencies)} packages", *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
