"""The certificate that a server shows, read before anything listens."""

from __future__ import annotations

import logging
import ssl
import stat
from pathlib import Path

from deepinfer.errors import ConfigError

logger = logging.getLogger(__name__)


class _EncryptedKey(Exception):
    pass


def open_tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """None without a certificate: plain HTTP. Raises ConfigError for files that do not do."""
    if certificate is None:
        if key is not None:
            raise ConfigError(
                "`server.tls_key` is set without a certificate",
                hint="add `--tls-certificate`, or leave out `--tls-key` to serve plain HTTP",
            )
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _check_readable("certificate", certificate)
    if key is not None:
        _check_readable("key", key)
    _warn_of_readers(key or certificate)
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _EncryptedKey:
        raise ConfigError(
            f"the key for the certificate `{certificate}` is encrypted",
            hint="decrypt it, with `openssl pkey` for instance; nobody is there to type the word",
        ) from None
    except ssl.SSLError as error:
        keys = f" and the key `{key}`" if key is not None else ""
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise ConfigError(
            f"the certificate `{certificate}`{keys} cannot be used: {reason}",
            hint="both must be PEM files and belong together",
        ) from error
    return context


def _check_readable(what: str, file: Path) -> None:
    """The library names neither of its two files when it cannot read one."""
    try:
        file.open("rb").close()
    except OSError as error:
        raise ConfigError(f"cannot read the TLS {what} `{file}`: {error.strerror}") from None


def _warn_of_readers(key_file: Path) -> None:
    if key_file.stat().st_mode & stat.S_IROTH:
        logger.warning(
            "every user of this machine can read the private key in `%s`; `chmod o-r` takes that "
            "away",
            key_file,
        )


def _refuse_password() -> str:
    raise _EncryptedKey
