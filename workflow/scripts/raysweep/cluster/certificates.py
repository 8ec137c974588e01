"""This module makes the certificates with which the processes of Ray recognise each other (TLS).

Each run has a certificate authority of its own, which signs a certificate for each node of the run. A process of Ray encrypts each connection, and accepts only
processes with a certificate of the authority. The controller's Python runs this module.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from raysweep.cluster.channel import Authority
from raysweep.cluster.private_folder import write_secret

# The certificates do not expire during a run, and the clocks of the nodes may differ. After the run no process accepts the authority any more.
VALID_FROM, VALID_UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31, 23, 59, 59)
AUTHORITY_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raysweep")])
# The uses of a key, apart from signing certificates.
OTHER_USES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)
LOOPBACK_NAMES = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


def new_authority() -> Authority:
    """Return a certificate authority with a new key."""
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = (x509.BasicConstraints(ca=True, path_length=0), x509.KeyUsage(key_cert_sign=True, **dict.fromkeys(OTHER_USES, False)))
    return Authority(_certificate(AUTHORITY_NAME, extensions, key, key), _pem_of_key(key))


def write_certificate(authority: Authority, address: str, folder: Path) -> dict[str, str]:
    """Write a new key and a certificate for the node with the IP address `address` to `folder`, in files that only this user can read.

    Returns the environment variables with which the processes of Ray on this node use these files.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    authority_key = serialization.load_pem_private_key(authority.key.encode(), None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    addresses = x509.SubjectAlternativeName({x509.IPAddress(ipaddress.ip_address(address)), *LOOPBACK_NAMES})
    texts = {
        "RAY_TLS_CA_CERT": authority.certificate,
        "RAY_TLS_SERVER_CERT": _certificate(name, (addresses,), key, authority_key),
        "RAY_TLS_SERVER_KEY": _pem_of_key(key),
    }
    paths = {variable: folder / f"{variable.removeprefix('RAY_').lower()}.pem" for variable in texts}
    for variable, text in texts.items():
        write_secret(paths[variable], text)
    return {"RAY_USE_TLS": "1"} | {variable: str(path) for variable, path in paths.items()}


def _certificate(
    name: x509.Name, extensions: Iterable[x509.ExtensionType], key: ec.EllipticCurvePrivateKey, authority_key: ec.EllipticCurvePrivateKey
) -> str:
    """Return a certificate for the owner of `key`, signed with the key of the authority, in the format PEM."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(AUTHORITY_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(VALID_FROM)
        .not_valid_after(VALID_UNTIL)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=not isinstance(extension, x509.SubjectAlternativeName))
    return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def _pem_of_key(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
