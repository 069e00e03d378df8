"""Certificates and keys of a deployment: one authority, one server, and a key pair per device.

Made with the `cryptography` library, as Flower itself reads them. Nothing that exists is replaced
but the server's certificate, when its names change or its time runs out.
"""

import ipaddress
import os
import re
import subprocess
import sysconfig
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CONNECTION, PORT = "fleet", 8000  # the port is Flower's own default
# Always among the server's names: its own processes call it by them.
LOOPBACK = ("localhost", "127.0.0.1")

_CA_DAYS = 3650
_SLACK = timedelta(hours=1)  # for clocks that are behind
_RENEWED_BEFORE = timedelta(days=30)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_FRAME = re.compile(r"[\u2500-\u257f]")  # of a box around a message
_REGISTERED, _KNOWN = "registered successfully", "already in use"


class KeysError(RuntimeError):
    """Keys that cannot be made, read or registered; names the file and what to do."""


@dataclass(frozen=True)
class KeyFolder:
    """Where everything is.

    Attributes
    ----------
    path : Path
    """

    path: Path

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the authority; public, for every device and every user."""
        return self.path / "ca.crt"

    @property
    def ca_key(self) -> Path:
        """Private key of the authority; needed here alone."""
        return self.path / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """Certificate of the server."""
        return self.path / "server.pem"

    @property
    def server_key(self) -> Path:
        """Private key of the server."""
        return self.path / "server.key"

    @property
    def connection(self) -> Path:
        """Block for Flower's configuration."""
        return self.path / "config.toml"

    def device(self, number: int) -> Path:
        """Private key of a device."""
        return self.path / "devices" / f"device-{number}"

    def public_key(self, number: int) -> Path:
        """Public key of a device."""
        return self.path / "devices" / f"device-{number}.pub"

    def public_keys(self) -> list[Path]:
        """Return the public keys of all devices, by number."""
        keys = (self.path / "devices").glob("device-*.pub")
        return sorted(keys, key=lambda file: int(file.stem.rpartition("-")[2]))


def make_keys(
    folder: KeyFolder,
    hosts: Sequence[str],
    devices: int,
    *,
    connection: str = "",
    port: int = 0,
    days: int = 365,
    now: datetime | None = None,
) -> list[str]:
    """Make what is not there yet, and write the connection block and what to do next.

    Parameters
    ----------
    folder : KeyFolder
        Made with access for its owner alone, if it is not there.
    hosts : sequence of str
        DNS names and IP addresses by which devices and users reach the server, the first in the
        connection block; those of an earlier call if empty.
    devices : int
        Devices that there are to be in all, at least; those beyond are left as they are.
    connection : str
        Name in Flower's configuration; if empty, that of an earlier call, or "fleet".
    port : int
        Port of the server, for the connection block; if 0, that of an earlier call, or 8000.
    days : int
        Validity of the server's certificate.
    now : datetime, optional
        Time of day, with a zone.

    Returns
    -------
    list of str
        What was made, a line each.

    Raises
    ------
    KeysError
        If a name is not legal, or a file cannot be read or written.
    """
    now = now or datetime.now(UTC)
    before = _read_connection(folder)
    connection, port = connection or before[0], port or before[1]
    if not _NAME.fullmatch(connection):
        raise KeysError(f"connection = {connection!r} must be letters, digits, - and _")
    try:
        (folder.path / "devices").mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.path.chmod(0o700)
        authority, made = _authority(folder, now)
        names, renewed = _server(folder, authority, hosts, days, now)
        made += renewed
        for number in range(devices):
            made += _device(folder.device(number))
        _write(folder.connection, connection_block(connection, names[0], port, folder))
        _write(folder.path / "README.md", _next_steps(folder, names[0], connection, port))
    except OSError as error:
        raise KeysError(
            f"cannot write {error.filename or folder.path}: {error.strerror}; name another --out"
        ) from error
    return made


def _read_connection(folder: KeyFolder) -> tuple[str, int]:
    """Return name and port of an earlier call, or the defaults."""
    try:
        [(name, entry)] = tomllib.loads(folder.connection.read_text())["superlink"].items()
        return name, int(entry["address"].rpartition(":")[2])
    except FileNotFoundError:
        return CONNECTION, PORT
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise KeysError(f"cannot read {folder.connection}: {error}; remove it") from error


def connection_block(name: str, host: str, port: int, folder: KeyFolder) -> str:
    """Return the part of Flower's ``config.toml`` that tells it of the server."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    entry = {"address": address, "root-certificates": str(folder.ca_certificate)}
    return tomli_w.dumps({"superlink": {name: entry}})


def register(
    env: Mapping[str, str],
    public_keys: Sequence[Path],
    connection: str,
    echo: Callable[[str], None] = lambda _: None,
) -> tuple[int, int]:
    """Register devices with a running server, by their public keys.

    Parameters
    ----------
    env : Mapping
        Environment in which ``flwr`` knows the connection, see `configuration`.
    public_keys : sequence of Path
        Files in OpenSSH's format.
    connection : str
        The server's name in Flower's configuration.
    echo : callable
        Called with a line for each device.

    Returns
    -------
    int, int
        Devices registered now, and those that were before.

    Raises
    ------
    KeysError
        In Flower's words, if the server does not take a key.
    """

    def told(key: Path) -> str:
        command = ["flwr", "supernode", "register", str(key), connection, "--name", key.stem]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        return " ".join(_FRAME.sub("", done.stdout + done.stderr).split())

    new = known = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of a call is Python's start
        for key, words in zip(public_keys, pool.map(told, public_keys), strict=True):
            if _REGISTERED in words:
                new += 1
            elif _KNOWN in words:
                known += 1
            else:
                raise KeysError(f"{key.name} is not registered with {connection!r}: {words}")
            echo(f"{key.stem}: {'known' if _KNOWN in words else 'registered'}")
    return new, known


@contextmanager
def configuration(folder: KeyFolder, connection: str) -> Iterator[Mapping[str, str]]:
    """Yield an environment in which ``flwr`` knows a connection.

    By the user's own configuration of Flower, else by the folder's: who reaches the server through
    a tunnel has said so there, where the folder tells what devices reach.
    """
    env = os.environ | {
        "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", os.defpath),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "NO_COLOR": "1",
        "COLUMNS": "500",  # no line breaks within what is told
    }
    text = _text(folder.connection)
    name = f"[superlink.{connection}]"
    own = Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr")
    if name in _text(own / "config.toml") or name not in text:
        yield env
        return
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "config.toml").write_text(text, encoding="utf-8")
        yield env | {"FLWR_HOME": home}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _authority(
    folder: KeyFolder, now: datetime
) -> tuple[tuple[x509.Certificate, ec.EllipticCurvePrivateKey], list[str]]:
    """Return certificate and key of the authority, made at first."""
    if folder.ca_certificate.exists() or folder.ca_key.exists():
        return (_read_certificate(folder.ca_certificate), _read_key(folder.ca_key)), []
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "flwr-quantized-data CA")])
    certificate = (
        _certificate(name, name, key.public_key(), now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write(folder.ca_key, _private_bytes(key), private=True)
    _write(folder.ca_certificate, certificate.public_bytes(Encoding.PEM))
    return (certificate, key), ["an authority: ca.crt for devices and users; ca.key stays here"]


def _server(
    folder: KeyFolder,
    authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey],
    hosts: Sequence[str],
    days: int,
    now: datetime,
) -> tuple[list[str], list[str]]:
    """Return the server's names, and what was made: a certificate, if the old one will not do."""
    old = _read_certificate(folder.server_certificate) if folder.server_key.exists() else None
    names = list(dict.fromkeys([*(hosts or (_names(old) if old else ())), *LOOPBACK]))
    entries = x509.SubjectAlternativeName([_general_name(name) for name in names])
    if old and _names(old) == names and old.not_valid_after_utc - now > _RENEWED_BEFORE:
        return names, []
    signed_by, signing_key = authority
    key = _read_key(folder.server_key) if old else ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    certificate = (
        _certificate(subject, signed_by.subject, key.public_key(), now, days)
        .add_extension(entries, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(certificates=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()),
            critical=False,
        )
        .sign(signing_key, hashes.SHA384())
    )
    if not old:
        _write(folder.server_key, _private_bytes(key), private=True)
    _write(folder.server_certificate, certificate.public_bytes(Encoding.PEM))
    until = certificate.not_valid_after_utc.date()
    return names, [f"the server's certificate, for {', '.join(names)}, valid until {until}"]


def _device(path: Path) -> list[str]:
    """Make a device's key pair, if it is not there."""
    public = path.with_name(path.name + ".pub")
    if path.exists() and public.exists():
        return []
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    text = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    _write(path, private, private=True)
    _write(public, text + f" {path.name}\n".encode())
    return [f"keys of {path.name}"]


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + timedelta(days=days))
    )


def _usage(*, certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificates,
        key_cert_sign=certificates,
        crl_sign=certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    """Return a name of the server as a certificate has it.

    Raises
    ------
    KeysError
        If it is neither an address nor a name, as with a scheme or a port.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise KeysError(
            f"--host {host!r} must be a DNS name or an IP address, without scheme and port"
        )
    return x509.DNSName(host)


def _names(certificate: x509.Certificate) -> list[str]:
    entries = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(entry.value) for entry in entries]


def _private_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable(path, "it is no key of an elliptic curve")
    return key


def _read_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: object) -> KeysError:
    return KeysError(
        f"cannot read {path}: {error}; restore it, or begin a new folder, whose authority all "
        "devices must be given"
    )


def _write(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Write a file whole or not at all, from its first moment readable by whom it is for."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)  # with mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _next_steps(folder: KeyFolder, host: str, connection: str, port: int) -> str:
    place = f"[{host}]" if ":" in host else host
    return f"""# Keys of {connection}

Files with mode 0600 are secrets. `ca.key` is needed to make more keys, and nowhere else: keep it
off the server. Nothing here belongs into a repository.

1. To the server: `ca.crt`, `server.pem`, `server.key`. There:

       flower-superlink --host 0.0.0.0 --port {port} --enable-supernode-auth \\
           --ssl-ca-certfile ca.crt --ssl-certfile server.pem --ssl-keyfile server.key \\
           --database superlink.db --disable-runtime-dependency-installation

2. To Flower's configuration of whoever starts runs (`~/.flwr/config.toml`): the lines of
   `config.toml`.

3. Registered once, from here, when the server runs:

       python -m sim keys --out {folder.path} --register {connection}

4. To device N: `ca.crt` and `devices/device-N`, its private key. There, with a number and a folder
   of its own:

       flower-supernode --superlink {place}:{port} --root-certificates ca.crt \\
           --auth-supernode-private-key device-N --node-config 'partition-id=N data-dir="/data"'

More devices later: the same command with a larger `--devices`, then step 3 again.
"""
