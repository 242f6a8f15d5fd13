"""The service's signature: Ed25519 (RFC 8032) under a key derived from the pepper (HKDF, RFC 5869)."""

import base64
import hashlib
import hmac
import json
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from service.config import get_settings
from service.erasures.schemas import Signature, SigningKey

PURPOSE = b"palimpsest: signatures of erasure receipts"


def canonical(document: dict[str, Any]) -> bytes:
    """Returns the bytes that are signed: JSON with sorted keys and without spaces, in UTF-8."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sign(document: dict[str, Any]) -> Signature:
    """Signs a JSON document."""
    value = _private_key(_pepper()).sign(canonical(document))
    return Signature(key_id=signing_key().kid, value=_base64url(value))


def signing_key() -> SigningKey:
    """The public half, for whoever verifies. It changes with the pepper."""
    public = _private_key(_pepper()).public_key().public_bytes_raw()
    return SigningKey(kid=hashlib.sha256(public).hexdigest()[:16], x=_base64url(public))


def digest_of_subject(subject: str, *, tenant: str, model_id: str) -> str:
    """A name for the subject that only who holds the pepper can make, and nobody can turn back."""
    named = "\0".join((tenant, model_id, subject)).encode()
    return hmac.new(_pepper(), named, hashlib.sha256).hexdigest()


@lru_cache(maxsize=1)
def _private_key(pepper: bytes) -> Ed25519PrivateKey:
    seed = HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE).derive(pepper)
    return Ed25519PrivateKey.from_private_bytes(seed)


def _pepper() -> bytes:
    return get_settings().key_pepper.get_secret_value().encode()


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
