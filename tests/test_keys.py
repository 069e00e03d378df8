"""Keys of a deployment: what TLS and Flower make of them, and what a second call leaves alone."""

import ssl
import stat
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from sim.__main__ import main
from sim.keys import KeyFolder, KeysError, configuration, make_keys

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> KeyFolder:
    return KeyFolder(tmp_path / "keys")


def contents(folder: KeyFolder) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.path.rglob("*") if file.is_file()}


def shake_hands(folder: KeyFolder, name: str, authority: Path) -> None:
    """A TLS handshake in memory, the certificate checked as strictly as OpenSSL can."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder.server_certificate, folder.server_key)
    client_side = ssl.create_default_context(cafile=str(authority))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up, server_hostname=name)
    server = server_side.wrap_bio(up, down, server_side=True)
    for side in (client, server, client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert client.version() and server.version()


@pytest.mark.parametrize("name", ["fleet.example", "10.1.2.3", "::1", "localhost", "127.0.0.1"])
def test_the_server_is_trusted_under_each_of_its_names(folder: KeyFolder, name: str) -> None:
    make_keys(folder, ["fleet.example", "10.1.2.3", "::1"], 0)
    shake_hands(folder, name, folder.ca_certificate)


def test_no_other_name_and_no_other_authority_is_trusted(folder: KeyFolder, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    make_keys(folder, ["fleet.example"], 0)
    make_keys(other, ["fleet.example"], 0)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(folder, "other.example", folder.ca_certificate)
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        shake_hands(folder, "fleet.example", other.ca_certificate)


def test_device_keys_are_pairs_that_flower_reads(folder: KeyFolder) -> None:
    make_keys(folder, (), 3)
    assert [file.name for file in folder.public_keys()] == [f"device-{n}.pub" for n in range(3)]
    numbers = set()
    for device in range(3):
        private = load_ssh_private_key(folder.device(device).read_bytes(), None)
        public = load_ssh_public_key(folder.public_key(device).read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert isinstance(private.curve, ec.SECP384R1)
        assert isinstance(public, ec.EllipticCurvePublicKey)
        assert private.public_key().public_numbers() == public.public_numbers()
        numbers.add(public.public_numbers())
    assert len(numbers) == 3


def test_private_files_are_for_their_owner_alone(folder: KeyFolder) -> None:
    make_keys(folder, (), 2)
    public = {"ca.crt", "server.pem", "config.toml", "README.md", "device-0.pub", "device-1.pub"}
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.path.rglob("*")}
    assert {name for name, mode in modes.items() if mode == 0o644} == public
    private = {"ca.key", "server.key", "device-0", "device-1"}
    assert {name for name, mode in modes.items() if mode == 0o600} == private
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_second_call_adds_devices_and_leaves_the_rest(folder: KeyFolder) -> None:
    make_keys(folder, ["fleet.example"], 1, connection="mine", port=9000)
    before = contents(folder)
    assert make_keys(folder, (), 3) == ["keys of device-1", "keys of device-2"]
    after = contents(folder)
    assert before.items() <= after.items()
    assert make_keys(folder, (), 0) == [] and contents(folder) == after


def test_new_names_renew_the_certificate_under_the_same_key(folder: KeyFolder) -> None:
    make_keys(folder, ["fleet.example"], 1)
    before = contents(folder)
    [told] = make_keys(folder, ["10.0.0.7"], 1)
    assert told.startswith("the server's certificate, for 10.0.0.7, localhost, 127.0.0.1, valid ")
    changed = {name for name, content in contents(folder).items() if before[name] != content}
    assert {Path(name).name for name in changed} == {"server.pem", "config.toml", "README.md"}
    shake_hands(folder, "10.0.0.7", folder.ca_certificate)


@pytest.mark.parametrize(("day", "renewed"), [(300, False), (340, True)])
def test_a_certificate_is_renewed_before_its_time_is_over(
    folder: KeyFolder, day: int, renewed: bool
) -> None:
    make_keys(folder, ["fleet.example"], 0, now=NOW)
    later = NOW + timedelta(days=day)
    assert bool(make_keys(folder, (), 0, now=later)) == renewed
    certificate = x509.load_pem_x509_certificate(folder.server_certificate.read_bytes())
    assert certificate.not_valid_after_utc == (later if renewed else NOW) + timedelta(days=365)


def test_the_connection_block_names_address_and_authority(folder: KeyFolder) -> None:
    make_keys(folder, ["fe80::1"], 0, connection="home", port=8443)
    block = tomllib.loads(folder.connection.read_text())
    root = str(folder.ca_certificate)
    assert block == {
        "superlink": {"home": {"address": "[fe80::1]:8443", "root-certificates": root}}
    }


@pytest.mark.parametrize("host", ["https://a.example", "a.example:8000", "", "-a", "a..b", "*"])
def test_a_host_that_is_no_name_is_refused(folder: KeyFolder, host: str) -> None:
    with pytest.raises(KeysError, match=r"--host '.*' must be a DNS name or an IP address"):
        make_keys(folder, [host], 0)


@pytest.mark.parametrize("name", ["ca.key", "ca.crt", "server.key", "server.pem", "config.toml"])
def test_a_damaged_file_is_named_and_not_replaced(folder: KeyFolder, name: str) -> None:
    make_keys(folder, ["a.example"], 1)
    (folder.path / name).write_text("nonsense")
    before = contents(folder)
    with pytest.raises(KeysError, match=f"cannot read .*{name}"):
        make_keys(folder, ["b.example"], 2)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["ca.key", "ca.crt"])
def test_half_an_authority_is_not_completed(folder: KeyFolder, name: str) -> None:
    make_keys(folder, (), 0)
    (folder.path / name).unlink()
    with pytest.raises(KeysError, match=f"cannot read .*{name}: .* restore it"):
        make_keys(folder, (), 0)


def test_the_command_takes_several_hosts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = f"keys --out {tmp_path / 'k'} --host a.example 10.0.0.1 --devices 2"
    assert main(line.split()) == 0
    told = capsys.readouterr().out
    assert "for a.example, 10.0.0.1, localhost, 127.0.0.1, valid until" in told
    assert told.endswith(f"what to do with them: {tmp_path / 'k' / 'README.md'}\n")


def test_a_connection_is_the_user_s_own_before_the_folder_s(
    folder: KeyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("FLWR_HOME", str(home))
    make_keys(folder, ["fleet.example"], 1, connection="fleet", port=8443)

    def told(connection: str) -> str:
        with configuration(folder, connection) as env:
            place = Path(env["FLWR_HOME"]) / "config.toml"
            return place.read_text() if place.exists() else ""

    assert "fleet.example:8443" in told("fleet")
    own = '[superlink.fleet]\naddress = "localhost:8000"\n'
    (home / "config.toml").write_text(own)
    assert told("fleet") == own
    assert told("other") == own  # Flower says that it is not there


def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["keys", "--out", str(tmp_path / "file" / "k")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
