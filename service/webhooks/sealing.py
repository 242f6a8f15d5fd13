"""Webhook secrets at rest: AES-256-GCM under a key derived from the pepper (HKDF, RFC 5869)."""

import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.config import get_settings

PURPOSE = b"palimpsest: webhook secrets"
NONCE_BYTES = 12


def seal(secret: str, *, owner: str) -> bytes:
    """Returns the secret as it is stored; it can be opened for the same `owner`, the webhook's id, alone."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + _cipher(_pepper()).encrypt(nonce, secret.encode(), owner.encode())


def open_sealed(sealed: bytes, *, owner: str) -> str | None:
    """Returns the secret; None where it was sealed under another pepper or for another webhook."""
    try:
        opened = _cipher(_pepper()).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], owner.encode())
    except InvalidTag:
        return None
    return opened.decode()


@lru_cache(maxsize=1)
def _cipher(pepper: bytes) -> AESGCM:
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE).derive(pepper))


def _pepper() -> bytes:
    return get_settings().key_pepper.get_secret_value().encode()
