"""Plants a credential like that of `gcloud auth application-default login`, and finds copies of it."""

import json
from collections.abc import Iterator
from pathlib import Path

from data import storage

SENTINEL = "s3ntinel-0f-a-credential"


def plant(folder: Path) -> dict[str, str]:
    """Writes the file, as a person's own; the environment that names it, with a token in two more variables."""
    path = folder / "application_default_credentials.json"
    login = {"type": "authorized_user", "client_id": "us", "client_secret": SENTINEL, "refresh_token": SENTINEL}
    path.write_text(json.dumps(login))
    path.chmod(0o600)
    return {
        "GOOGLE_APPLICATION_CREDENTIALS": str(path),
        "CLOUDSDK_AUTH_ACCESS_TOKEN": SENTINEL,
        "GOOGLE_OAUTH_ACCESS_TOKEN": SENTINEL,
    }


def written_in_bucket(root: str, *secrets: str) -> list[str]:
    """Names of objects below the gs:// root that hold one of the secrets."""
    names = []
    for name, _ in storage.list_files(root):
        content = storage.read_bytes(storage.join(root, name))
        names += [name for secret in secrets if secret.encode() in content]
    return names


def written_in_folder(folder: Path, *secrets: str) -> Iterator[Path]:
    """Files below a local folder (Ray's logs) that hold one of the secrets."""
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            yield from (path for secret in secrets if secret.encode() in content)
