"""Certificates, keys and start scripts, which every federation begins with."""

import os
import ssl
import stat
import subprocess
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedprox.deployment.kits import Federation, address, prepare
from fedprox.errors import UserError


def federation(folder: Path, *sites: str, host: str = "fl.example.org") -> Federation:
    return Federation(folder, host, 8000, {site: f'site="{site}" data="{{data}}"' for site in sites})


@pytest.fixture
def prepared(tmp_path) -> Path:
    prepare(federation(tmp_path / "deployment", "hospital_a", "hospital_b"))
    return tmp_path / "deployment"


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def test_the_servers_certificate_is_the_authoritys_for_its_name_and_this_machine_and_ends_after_a_year(prepared):
    authority, server = certificate(prepared / "ca" / "ca.crt"), certificate(prepared / "server" / "server.crt")
    server.verify_directly_issued_by(authority)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert isinstance(server.public_key(), ec.EllipticCurvePublicKey)
    assert server.public_key().curve.name == "secp384r1"
    left = server.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=364) < left <= timedelta(days=365)


def test_a_client_that_trusts_the_authority_accepts_the_server_and_no_other_does(prepared, tmp_path):
    prepare(federation(tmp_path / "another", "a"))
    assert handshake(prepared, prepared / "ca" / "ca.crt", "fl.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(prepared, tmp_path / "another" / "ca" / "ca.crt", "fl.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(prepared, prepared / "ca" / "ca.crt", "elsewhere.example.org")


def handshake(prepared: Path, authority: Path, name: str) -> bool:
    """Return whether a TLS client and the prepared server agree, in memory."""
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(prepared / "server" / "server.crt", prepared / "server" / "server.key")
    client_context = ssl.create_default_context(cafile=str(authority))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return client.version() is not None


def test_each_site_has_a_key_of_its_own_as_ssh_keygen_makes_it_and_no_other_sites(prepared):
    keys = []
    for site in ("hospital_a", "hospital_b"):
        kit = prepared / "sites" / site
        assert sorted(file.name for file in kit.iterdir()) == ["ca.crt", "key", "key.pub", "start.sh"]
        private = load_ssh_private_key((kit / "key").read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.curve.name == "secp384r1"
        assert private.public_key() == load_ssh_public_key((kit / "key.pub").read_bytes())
        keys.append((kit / "key.pub").read_bytes())
    assert keys[0] != keys[1]


def test_private_keys_can_be_read_by_their_owner_only(prepared):
    private = [prepared / "ca" / "ca.key", prepared / "server" / "server.key", *prepared.glob("sites/*/key")]
    assert [stat.S_IMODE(file.stat().st_mode) for file in private] == [0o600] * 4


def test_preparing_again_keeps_authority_and_keys_adds_sites_and_renews_the_server(prepared):
    kept = [prepared / "ca" / "ca.crt", prepared / "ca" / "ca.key", prepared / "sites" / "hospital_a" / "key"]
    before, server = [file.read_bytes() for file in kept], (prepared / "server" / "server.crt").read_bytes()
    prepare(federation(prepared, "hospital_a", "hospital_c", host="10.0.0.7"))
    assert [file.read_bytes() for file in kept] == before
    assert (prepared / "server" / "server.crt").read_bytes() != server
    assert (prepared / "sites" / "hospital_c" / "key").exists()
    assert handshake(prepared, prepared / "ca" / "ca.crt", "10.0.0.7")


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
@pytest.mark.parametrize("damage", [b"", b"-----BEGIN PRIVATE KEY-----\n", None])
def test_a_damaged_authority_is_refused_in_one_line_and_nothing_is_replaced(prepared, name, damage):
    file = prepared / "ca" / name
    if damage is None and name == "ca.crt":
        file.unlink()
    else:
        file.write_bytes(damage or b"x")
    server = (prepared / "server" / "server.crt").read_bytes()
    with pytest.raises(UserError, match="does not hold this federation's authority") as refused:
        prepare(federation(prepared, "hospital_a"))
    assert "\n" not in str(refused.value)
    assert (prepared / "server" / "server.crt").read_bytes() == server


def test_flowers_config_names_the_server_and_its_authority(prepared):
    config = tomllib.loads((prepared / "home" / "config.toml").read_text())["superlink"]
    assert config["default"] == "federation"
    assert config["federation"] == {
        "address": "fl.example.org:8000",
        "root-certificates": str(prepared / "ca" / "ca.crt"),
    }


@pytest.fixture
def started(tmp_path):
    """Return a function that runs a start script with Flower's programs replaced by one that shows what it got."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("flower-superlink", "flower-supernode"):
        text = '#!/bin/sh\npwd\nenv\nfor each in "$@"; do printf "argument %s\\n" "$each"; done\n'
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def start(script: Path, **more: str) -> tuple[str, list[str], dict[str, str]]:
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", **more}
        shown = subprocess.run([script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        folder, *lines = shown.stdout.splitlines()
        words = [line.removeprefix("argument ") for line in lines if line.startswith("argument ")]
        return folder, words, dict(line.split("=", 1) for line in lines if "=" in line and line[0].isupper())

    return start


def test_a_sites_script_hands_over_key_site_and_data_from_a_neutral_folder(prepared, started, tmp_path):
    data = tmp_path / "x rays $HOME"
    data.mkdir()
    kit = prepared / "sites" / "hospital_a"
    folder, words, variables = started(kit / "start.sh", data=data.name)
    assert Path(folder) == kit / "home"
    assert variables["FLWR_HOME"] == str(kit / "home")
    assert words[words.index("--node-config") + 1] == f'site="hospital_a" data="{data}"'
    assert words[words.index("--superlink") + 1] == "fl.example.org:8000"
    assert words[words.index("--root-certificates") + 1] == str(kit / "ca.crt")
    assert words[words.index("--auth-supernode-private-key") + 1] == str(kit / "key")
    assert "--insecure" not in words


def test_a_site_shares_its_classes_only_if_its_script_is_told(prepared, started, tmp_path):
    script = prepared / "sites" / "hospital_a" / "start.sh"
    for share, expected in (("classes", ' share="classes"'), ("", "")):
        words = started(script, data=str(tmp_path), share=share)[1]
        assert words[words.index("--node-config") + 1] == f'site="hospital_a" data="{tmp_path}"{expected}'


def test_a_sites_script_refuses_data_that_do_not_exist(prepared, started):
    with pytest.raises(subprocess.CalledProcessError):
        started(prepared / "sites" / "hospital_a" / "start.sh", data="nowhere")


def test_scripts_switch_off_telemetry_update_checks_and_the_installation_of_packages(prepared, started):
    for script in (prepared / "start_server.sh", prepared / "sites" / "hospital_a" / "start.sh"):
        variables = started(script)[2]
        assert variables["FLWR_TELEMETRY_ENABLED"] == "0"
        assert variables["FLWR_DISABLE_UPDATE_CHECK"] == "1"
        assert variables["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"


def test_the_servers_script_demands_keys_of_nodes_and_uses_tls(prepared, started):
    folder, words, variables = started(prepared / "start_server.sh")
    assert Path(folder) == prepared / "home"
    assert "--enable-supernode-auth" in words
    assert "--disable-runtime-dependency-installation" in words
    assert "--insecure" not in words
    assert words[words.index("--ssl-certfile") + 1] == str(prepared / "server" / "server.crt")
    assert variables["FEDPROX_RUNS"] == str(prepared / "runs")


@pytest.mark.parametrize("name", ["", "a b", "../a", ".hidden", "a/b", "a;rm", 'a"b', "ä", "x" * 64])
def test_a_sites_name_that_is_no_name_of_a_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="a site's name must have"):
        prepare(federation(tmp_path / "deployment", "ok", name))
    assert not (tmp_path / "deployment").exists()


def test_a_site_that_is_named_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="different names"):
        prepare(Federation(tmp_path, "h", 1, {}))


@pytest.mark.parametrize(
    "text", ["fl.example.org", "fl.example.org:0", "fl.example.org:70000", "a b:1", "$(x):1", ":1"]
)
def test_an_address_without_host_and_port_is_refused(text):
    with pytest.raises(UserError, match="--server must be host:port"):
        address(text)
    assert address("fl.example.org:8000") == ("fl.example.org", 8000)
