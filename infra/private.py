"""Fresh secrets, and the commit of the code, with nothing but Python: before anything is installed."""

import base64
import secrets
import subprocess

from pipeline.settings import REPOSITORY


def make_secret(name: str) -> str:
    """A fresh secret of the kind that its user expects."""
    if name == "fernet":
        return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    return secrets.token_hex({"admin": 8, "jwt": 32}.get(name, 24))


def read_code_sha() -> str:
    """The commit of the checkout that this code is, marked when files differ from it."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unversioned"
