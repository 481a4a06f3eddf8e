"""What a federation's server and sites need before they start: certificates, keys, start scripts.

`prepare` writes a folder:

- `ca/`: the certificate authority. Its key stays on the server.
- `server/`: the server's certificate, the keys that are public, and the SuperLink's database.
- `start_server.sh`: starts the SuperLink.
- `sites/<name>/`: a kit per site, to be copied there whole: the authority's certificate, the site's key, `start.sh`.
- `home/`: FLWR_HOME of the server and of Flower's commands there, with the connection in `config.toml`.
- `runs/`: run directories of jobs that name none.

The same folder prepared again keeps authority and keys, and renews the server's certificate.
"""

import datetime
import ipaddress
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedprox.errors import UserError, one_line

SITE = re.compile(r"[A-Za-z0-9][\w.-]{0,62}")
YEAR = datetime.timedelta(days=365)
SUPERNODE_PORT = 9094  # of a SuperNode's own interface, on the loopback device
_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # a job must not install packages
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",  # seconds; 1 if not set
}


@dataclass(frozen=True)
class Federation:
    """A federation as it is to be prepared.

    Attributes:
        folder: Where.
        host: Name or address of the server as sites reach it.
        port: Its port.
        bind: The address that the server listens on.
        sites: Each site's name, with its node config; `{data}` in one stands for the folder that the site names.
        connection: The name of the server in Flower's config.toml.
    """

    folder: Path
    host: str
    port: int
    sites: Mapping[str, str]
    bind: str = "0.0.0.0"
    connection: str = "federation"

    @property
    def home(self) -> Path:
        """FLWR_HOME on the server."""
        return self.folder / "home"

    def kit(self, site: str) -> Path:
        """Return the folder of a site's kit."""
        return self.folder / "sites" / site


def address(text: str) -> tuple[str, int]:
    """Return host and port of a server's address, such as "fl.example.org:8000".

    Raises:
        UserError: If it is not of this form.
    """
    found = re.fullmatch(r"([A-Za-z0-9.-]+):(\d{1,5})", text)
    if not found or not 0 < int(found[2]) < 2**16:
        raise UserError(f"--server must be host:port with a port below 65536, got {text}; such as fl.example.org:8000")
    return found[1], int(found[2])


def check_sites(names: Sequence[str]) -> None:
    """Raise UserError unless names of sites can be names of folders and differ."""
    for name in names:
        if not SITE.fullmatch(name):
            raise UserError(f"a site's name must have letters, digits, _, - and . only, got {name!r}")
    if len(set(names)) < len(names) or not names:
        raise UserError(f"sites must be one or more different names, got {','.join(names) or 'none'}")


def prepare(federation: Federation) -> None:
    """Write a federation's folder.

    Raises:
        UserError: If a name is wrong, or the folder holds another federation or a damaged authority.
        OSError: If it cannot be written.
    """
    check_sites(list(federation.sites))
    folder = federation.folder.absolute()
    config = folder / "home" / "config.toml"
    if config.exists() and f"[superlink.{federation.connection}]\n" not in config.read_text(encoding="utf-8"):
        raise UserError(
            f"{federation.folder} holds another federation, see {config}; name another folder with --folder"
        )
    for name in ("ca", "server", "sites", "home", "runs"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_private(folder / ".gitignore", b"*\n")  # keys are not to be committed
    authority = _authority(folder / "ca")
    _renew_server(folder, authority, federation.host)
    _write(config, _connection(federation))
    _write_script(folder / "start_server.sh", _server_script(federation))
    for name, node_config in federation.sites.items():
        kit = federation.kit(name)
        kit.mkdir(exist_ok=True)
        (kit / "ca.crt").write_bytes((folder / "ca" / "ca.crt").read_bytes())
        if not (kit / "key").exists():
            _new_site_key(kit)
        _write_script(kit / "start.sh", _site_script(federation, name, node_config))


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the certificate authority, a new one if the folder has none."""
    if (folder / "ca.key").exists():
        return _earlier_authority(folder)
    key, name = ec.generate_private_key(ec.SECP384R1()), _name("fedprox federation")
    usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    certificate = (
        _begun(name, name, key.public_key(), 10 * YEAR)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    _write_private(folder / "ca.key", _pem(key))
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def _earlier_authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the authority that a folder holds."""
    try:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("it is of another kind")
        return x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes()), key
    except (ValueError, TypeError, UnsupportedAlgorithm, FileNotFoundError) as error:
        raise UserError(
            f"{folder} does not hold this federation's authority: {one_line(error)}; restore it, or move "
            f"{folder.parent} away and give every site a new kit"
        ) from error


def _renew_server(folder: Path, authority: tuple[x509.Certificate, ec.EllipticCurvePrivateKey], host: str) -> None:
    """Write a new key and certificate of the server, for its name and for this machine, valid for a year."""
    certificate, signing = authority
    key, loopback = ec.generate_private_key(ec.SECP384R1()), ("localhost", "127.0.0.1")
    names = [_general_name(name) for name in dict.fromkeys((host, *loopback))]
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key())
    made = (
        _begun(_name(host), certificate.subject, key.public_key(), YEAR)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(issuer, critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(signing, hashes.SHA384())
    )
    _write_private(folder / "server" / "server.key", _pem(key))
    (folder / "server" / "server.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clocks of sites may be slow
        .not_valid_after(now + valid)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, pkcs8, plain)


def _new_site_key(kit: Path) -> None:
    """Write the key by which a site is known, as `ssh-keygen -t ecdsa -b 384` does."""
    key = ec.generate_private_key(ec.SECP384R1())
    openssh, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    _write_private(kit / "key", key.private_bytes(serialization.Encoding.PEM, openssh, plain))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    (kit / "key.pub").write_bytes(public + b"\n")


def _connection(federation: Federation) -> str:
    """Return Flower's config.toml, which names the server."""
    certificate = federation.folder.absolute() / "ca" / "ca.crt"
    return (
        f'[superlink]\ndefault = "{federation.connection}"\n\n[superlink.{federation.connection}]\n'
        f'address = "{federation.host}:{federation.port}"\nroot-certificates = {json.dumps(str(certificate))}\n'
    )


_EXPORTS = "\n".join(f"export {name}={value}" for name, value in _ENVIRONMENT.items())

_SERVER = """\
#!/bin/sh
# Starts the SuperLink: the server of the federation, on port {port} of ${{SUPERLINK_HOST:-{bind}}}.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
{exports}
export FLWR_HOME="$here/home" FEDPROX_RUNS="${{FEDPROX_RUNS:-$here/runs}}"
cd "$here/home" # the processes that Flower starts import from this folder first
exec flower-superlink --host "${{SUPERLINK_HOST:-{bind}}}" --port {port} --enable-supernode-auth \\
  --ssl-ca-certfile "$here/ca/ca.crt" --ssl-certfile "$here/server/server.crt" \\
  --ssl-keyfile "$here/server/server.key" --database "$here/server/superlink.db" \\
  --disable-runtime-dependency-installation
"""

_SITE = """\
#!/bin/sh
# Starts the SuperNode of {site}: data=<folder with the site's data> ./start.sh
# share=classes lets the server know how many training examples of each class the site has; without it, it does not.
# It connects to {server} and listens only on this machine, on port ${{SUPERNODE_PORT:-{port}}}.
# What follows on the command line is handed on to flower-supernode, such as --trusted-entities FILE.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
data=${{data:-}} share=${{share:-}}
if [ -n "$data" ]; then data=$(cd "$data" && pwd); fi
{exports}
export FLWR_HOME="$here/home"
mkdir -p "$here/home"
cd "$here/home" # the processes that Flower starts import from this folder first
exec flower-supernode --superlink {server} --root-certificates "$here/ca.crt" \\
  --auth-supernode-private-key "$here/key" --port "${{SUPERNODE_PORT:-{port}}}" \\
  --node-config {config}"${{share:+ share=\\"$share\\"}}" "$@"
"""


def _server_script(federation: Federation) -> str:
    return _SERVER.format(port=federation.port, bind=federation.bind, exports=_EXPORTS)


def _site_script(federation: Federation, site: str, config: str) -> str:
    server = f"{federation.host}:{federation.port}"
    before, has_data, after = config.partition("{data}")
    quoted = f'{shlex.quote(before)}"$data"{shlex.quote(after)}' if has_data else shlex.quote(before)
    return _SITE.format(site=site, server=server, port=SUPERNODE_PORT, exports=_EXPORTS, config=quoted)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


def _write_script(file: Path, text: str) -> None:
    _write(file, text)
    file.chmod(0o755)


def _write_private(file: Path, content: bytes) -> None:
    """Write a file that only its owner can read."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
