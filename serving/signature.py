"""Signatures of what the control plane says: serving obeys nothing that was not signed with the installation's key."""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Final

import msgspec

from feature_repo.errors import BadInputError, LarderError
from feature_repo.settings import Settings

ENVIRONMENT: Final = "LARDER_SIGNING_KEY"
#: Shorter keys can be guessed.
MIN_KEY_LENGTH: Final = 32


class SigningKeyError(LarderError):
    """There is no key to sign or check with (or no other secret), or one too short to be worth anything."""

    code = "signing_key"


class _Signed(msgspec.Struct, frozen=True):
    """Content as its exact bytes: a signature holds for bytes, not for what they may be parsed to."""

    content: msgspec.Raw
    signature: str


def key_path(settings: Settings) -> Path:
    """File of the key that an embedded installation made for itself."""
    return settings.home / "signing.key"


def signing_key(settings: Settings) -> bytes:
    """Return the key: of the environment (`LARDER_SIGNING_KEY`), else of the embedded installation's file.

    Raises
    ------
    SigningKeyError
        If there is none, or it is shorter than `MIN_KEY_LENGTH`.
    """
    return read_secret(key_path(settings), ENVIRONMENT, "signing key")


def read_secret(path: Path, environment: str, what: str) -> bytes:
    """Return a secret: of the environment, else of a file that `larder keys create` made.

    Raises
    ------
    SigningKeyError
        If there is none, or it is shorter than `MIN_KEY_LENGTH`; there is never a default.
    """
    text = os.environ.get(environment)
    where = environment if text is not None else str(path)
    if text is None:
        try:
            text = path.read_text("ascii").strip()
        except FileNotFoundError:
            raise SigningKeyError(
                f"there is no {what}: set {environment} to a secret of at least {MIN_KEY_LENGTH} characters, or let "
                f"`larder keys create` make one in {path}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SigningKeyError(f"the {what} in {path} cannot be read: {error}") from None
    if len(text) < MIN_KEY_LENGTH:
        raise SigningKeyError(f"the {what} in {where} has {len(text)} characters; it needs at least {MIN_KEY_LENGTH}")
    return text.encode()


def create_key(settings: Settings) -> bool:
    """Make a random key in the home directory, readable by its owner only, unless there is a key already.

    Returns
    -------
    bool
        Whether a key was made.
    """
    return create_secret(key_path(settings), ENVIRONMENT)


def create_secret(path: Path, environment: str) -> bool:
    """Make a random secret in a file that its owner only can read, unless file or environment has one.

    Returns
    -------
    bool
        Whether one was made.
    """
    if environment in os.environ:
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent)) from None
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(file, "w", encoding="ascii") as out:
        out.write(secrets.token_hex(32) + "\n")
    return True


def sign(content: bytes, key: bytes) -> str:
    """Return the HMAC-SHA256 of some bytes, hexadecimal."""
    return hmac.new(key, content, hashlib.sha256).hexdigest()


def seal(content: bytes, key: bytes) -> bytes:
    """Wrap a JSON document with its signature."""
    return msgspec.json.encode(_Signed(msgspec.Raw(content), sign(content, key)))


def unseal(data: bytes, key: bytes, what: str) -> bytes:
    """Return the document inside, if its signature holds.

    Raises
    ------
    BadInputError
        If the data are not a sealed document, or were not signed with this key; `what` is named in the message.
    """
    try:
        signed = msgspec.json.decode(data, type=_Signed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"not a {what}: {error}") from None
    content = bytes(signed.content)
    if not hmac.compare_digest(sign(content, key).encode(), signed.signature.encode("utf-8", "replace")):
        raise BadInputError(f"the {what} does not carry a signature of this installation's key")
    return content
