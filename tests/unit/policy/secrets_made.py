"""Texts that look like secrets, and texts that do not. All are made here; none has ever opened anything."""

import base64
import json
import random
import string
import uuid
from pathlib import Path

from sidestep.model.inspection import Builtin
from sidestep.policy import data_loss

ALPHANUMERIC = string.ascii_letters + string.digits
BASE64 = ALPHANUMERIC + "+/"
URL_SAFE = ALPHANUMERIC + "-_"


def some(rng, alphabet, count):
    return "".join(rng.choices(alphabet, k=count))


def card(rng, prefix="4", length=16, separator=""):
    digits = prefix + some(rng, string.digits, length - len(prefix) - 1)
    [digits] = [digits + last for last in string.digits if _luhn(digits + last)]
    if not separator:
        return digits
    sizes = (4, 6, len(digits) - 10) if length in {14, 15} else (4, 4, 4, 4, length - 16)
    ends = [sum(sizes[: each + 1]) for each in range(len(sizes))]
    groups = [digits[end - size : end] for end, size in zip(ends, sizes, strict=True) if size]
    return separator.join(groups)


def _luhn(digits):
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(rng, country="DE", separator=""):
    structure = data_loss._BBANS[country]
    alphabets = {"n": string.digits, "a": string.ascii_uppercase, "c": string.digits + string.ascii_uppercase}
    account, count = "", ""
    for each in structure:
        if each.isdigit():
            count += each
        else:
            account, count = account + some(rng, alphabets[each], int(count)), ""
    number = int("".join(str(int(each, 36)) for each in account + country + "00"))
    whole = f"{country}{98 - number % 97:02}{account}"
    return separator.join(whole[at : at + 4] for at in range(0, len(whole), 4)) if separator else whole


def url_safe(value):
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")


def jwt(rng):
    return f"{url_safe({'alg': 'RS256', 'typ': 'JWT'})}.{url_safe({'sub': some(rng, ALPHANUMERIC, 12)})}." + some(
        rng, URL_SAFE, 86
    )


def checked(rng, prefix):
    secret = some(rng, ALPHANUMERIC, 30)
    return prefix + secret + data_loss.checksum62(secret.encode()).decode()


def pem(rng, kind="", end="\n"):
    lines = ["MII" + some(rng, BASE64, 61), *(some(rng, BASE64, 64) for _ in range(4))]
    return end.join([f"-----BEGIN {kind}PRIVATE KEY-----", *lines, f"-----END {kind}PRIVATE KEY-----", ""])


def pypi(rng):
    macaroon = b"\x02\x01\x08pypi.org\x02\x24" + some(rng, "0123456789abcdef-", 36).encode() + rng.randbytes(48)
    return "pypi-" + base64.urlsafe_b64encode(macaroon).decode().rstrip("=")


def true_ones(seed=7):
    """(pattern, text) for every form of every pattern."""
    rng = random.Random(seed)
    cards = [("4", 16), ("4", 13), ("4", 19), ("51", 16), ("2221", 16), ("2720", 16), ("34", 15), ("37", 15)]
    cards += [("6011", 16), ("65", 16), ("62", 16), ("3528", 16), ("36", 14), ("2202", 16)]
    for prefix, length in cards:
        yield Builtin.CARD_NUMBER, card(rng, prefix, length)
    for separator in " -":
        yield Builtin.CARD_NUMBER, card(rng, "4", 16, separator)
        yield Builtin.CARD_NUMBER, card(rng, "37", 15, separator)
        yield Builtin.CARD_NUMBER, card(rng, "4", 19, separator)
    for country in sorted(data_loss._BBANS):
        yield Builtin.IBAN, iban(rng, country)
        yield Builtin.IBAN, iban(rng, country, " ")
    for kind in ("", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "):
        yield Builtin.PRIVATE_KEY, pem(rng, kind)
    yield Builtin.PRIVATE_KEY, pem(rng, "RSA ", "\r\n")
    yield Builtin.PRIVATE_KEY, json.dumps({"key": pem(rng)})
    pgp = f"-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: GnuPG v2\n\n{some(rng, BASE64, 64)}\n"
    yield Builtin.PRIVATE_KEY, pgp
    yield Builtin.JWT, jwt(rng)
    yield Builtin.AWS_CREDENTIAL, "AKIA" + some(rng, string.ascii_uppercase + "234567", 16)
    yield Builtin.AWS_CREDENTIAL, f'aws_secret_access_key = "{some(rng, BASE64, 40)}"'
    yield Builtin.AWS_CREDENTIAL, f'"AwsSecretAccessKey":"{some(rng, BASE64, 40)}"'
    yield Builtin.AZURE_CREDENTIAL, f"AccountName=shop;AccountKey={some(rng, BASE64, 86)}==;EndpointSuffix=x"
    yield Builtin.AZURE_CREDENTIAL, f"{some(rng, ALPHANUMERIC, 3)}8Q~{some(rng, ALPHANUMERIC + '~.-_', 33)}x"
    yield Builtin.GCP_CREDENTIAL, "AIza" + some(rng, URL_SAFE, 35)
    yield Builtin.GCP_CREDENTIAL, "GOCSPX-" + some(rng, URL_SAFE, 28)
    yield Builtin.GCP_CREDENTIAL, "ya29." + some(rng, URL_SAFE, 120)
    for kind in "pousr":
        yield Builtin.GITHUB_TOKEN, checked(rng, f"gh{kind}_")
    yield Builtin.GITHUB_TOKEN, f"github_pat_{some(rng, ALPHANUMERIC, 22)}_{some(rng, ALPHANUMERIC, 59)}"
    yield Builtin.GITLAB_TOKEN, "glpat-" + some(rng, ALPHANUMERIC, 20)
    yield Builtin.GITLAB_TOKEN, f"glrt-{some(rng, ALPHANUMERIC, 27)}.01.{some(rng, '0123456789abc', 9)}"
    yield Builtin.NPM_TOKEN, checked(rng, "npm_")
    yield Builtin.PYPI_TOKEN, pypi(rng)
    number = some(rng, string.digits, 12)
    yield Builtin.SLACK_TOKEN, f"xoxb-{number}-{number}-{some(rng, ALPHANUMERIC, 24)}"
    yield Builtin.SLACK_TOKEN, f"xapp-1-A{number[:10]}-{number}-{some(rng, '0123456789abcdef', 64)}"
    yield (
        Builtin.SLACK_TOKEN,
        f"https://hooks.slack.com/services/T{number[:9]}/B{number[:9]}/{some(rng, ALPHANUMERIC, 24)}",
    )
    yield Builtin.STRIPE_KEY, "sk_live_" + some(rng, ALPHANUMERIC, 24)
    yield Builtin.STRIPE_KEY, "rk_live_" + some(rng, ALPHANUMERIC, 99)


def near_misses(seed=8):
    """(pattern, text) for what its guard is there to tell apart."""
    rng = random.Random(seed)
    number = card(rng)
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    account = iban(rng)
    for text in (
        wrong,
        f"1{number}",
        f"{number}7",
        f"x{number}",
        f"0.{number}",
        f"{number}.5",
        f"0f-{number[:4]}-{wrong[4:]}",
        f"1234-{card(rng, separator='-')}",
        f"{number[:4]} {number[4:8]}-{number[8:12]} {number[12:]}",
        f"id_{number}",
        "0" + card(rng, "7")[1:],
        card(rng, "41", 15),
    ):
        yield Builtin.CARD_NUMBER, text
    wrong_check = account[:2] + f"{(int(account[2:4]) + 1) % 97:02}" + account[4:]
    for text in (wrong_check, account[:-1], account + "0", "XX" + account[2:], account.lower(), f"A{account}"):
        yield Builtin.IBAN, text
    yield Builtin.PRIVATE_KEY, 'if line == "-----BEGIN RSA PRIVATE KEY-----":\n    raise ValueError("a private key")'
    yield Builtin.PRIVATE_KEY, "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----"
    yield Builtin.PRIVATE_KEY, pem(rng).replace("PRIVATE", "PUBLIC")
    yield Builtin.PRIVATE_KEY, f"-----BEGIN PRIVATE KEY-----\n{'A' * 64}\n"
    yield Builtin.JWT, f"{url_safe({'typ': 'JWT'})}.{url_safe({'a': 1})}.abcdefghijkl"
    yield Builtin.JWT, f"{url_safe({'alg': 7})}.{url_safe({'a': 1})}.abcdefghijkl"
    yield Builtin.JWT, f"{url_safe({'cursor': 'abc', 'alg': 'x'})}"
    yield Builtin.JWT, "eyJhbGciOiJSUzI1NiJ9.short"
    yield Builtin.JWT, "eyJ" + "[" * 3 + "AAAAAAAAAAAA.AAAAAAAAAAAAAAA"
    yield Builtin.JWT, "eyJAAAAAAAAAAAAAA.AAAAAAAAAAAAAAA"
    yield Builtin.JWT, "eyJAAAAAAAAAAAAA.AAAAAAAAAAAAAAAA"
    yield Builtin.AWS_CREDENTIAL, "AKIAIOSFODNN7EXAMPLE"
    yield Builtin.AWS_CREDENTIAL, "AKIA" + "A" * 16
    yield (
        Builtin.AWS_CREDENTIAL,
        'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"'.replace("EXAMPLEKEY", "abcEXAMPLE"),
    )
    yield Builtin.AWS_CREDENTIAL, "aws_secret_access_key = ${AWS_SECRET_ACCESS_KEY}"
    yield Builtin.AZURE_CREDENTIAL, "AccountKey=<your key>;EndpointSuffix=core"
    yield Builtin.GCP_CREDENTIAL, "AIza" + "x" * 35
    yield Builtin.GITHUB_TOKEN, "ghp_" + "x" * 36
    yield Builtin.GITHUB_TOKEN, "ghp_" + some(rng, ALPHANUMERIC, 30) + "000000"
    yield Builtin.GITHUB_TOKEN, checked(rng, "ghp_") + "a"
    yield Builtin.GITLAB_TOKEN, "glpat-xxxxxxxxxxxxxxxxxxxx"
    yield Builtin.NPM_TOKEN, "npm_package_config_node_gyp_python_version_a"
    yield Builtin.PYPI_TOKEN, "pypi-AgEIcHlwaS5vcmcxxxx"
    yield Builtin.PYPI_TOKEN, "pypi-AgEI" + some(rng, URL_SAFE, 80)
    yield Builtin.SLACK_TOKEN, "xoxb-your-token"
    yield Builtin.SLACK_TOKEN, "xoxb-000000000000-000000000000-xxxxxxxxxxxxxxxxxxxxxxxx"
    yield Builtin.STRIPE_KEY, "sk_live_xxxxxxxxxxxxxxxxxxxxxxxx"
    yield Builtin.STRIPE_KEY, "sk_test_" + some(rng, ALPHANUMERIC, 24)


def minified(rng):
    """JavaScript as a bundler writes it."""
    names = [some(rng, string.ascii_letters, 1 + number % 2) for number in range(60)]
    parts = []
    for _ in range(400):
        one, two, three = rng.choices(names, k=3)
        number = rng.choice([rng.randrange(100), rng.getrandbits(32), 2**52, 2**53, 2**53 - 1, 2**63 - 1])
        parts.append(
            rng.choice(
                [
                    f"function {one}({two},{three}){{return {two}+{number}*{three}}}",
                    f"var {one}={number}.{rng.getrandbits(50)},{two}=0x{number:x};",
                    f'{one}.{two}=e=>e?"{some(rng, ALPHANUMERIC, 20)}":{three}[{number}];',
                    f"/*! sourceMappingURL=data:{some(rng, BASE64, 40)}=*/",
                ]
            )
        )
    return "".join(parts)


def innocent(seed=9):
    """(name, text): about 1 MiB that holds no secret, of the kinds that give pattern matchers a bad name."""
    rng = random.Random(seed)
    for module in (json, base64, random, uuid, string):
        yield f"source of {module.__name__}", Path(module.__file__).read_bytes()
    yield "UUIDs", "\n".join(str(uuid.UUID(int=rng.getrandbits(128))) for _ in range(3000)).encode()
    yield "hex digests", "\n".join(f"{rng.getrandbits(256):064x}" for _ in range(2000)).encode()
    seconds = [1_700_000_000 + rng.randrange(10**8) for _ in range(2000)]
    yield "seconds", json.dumps(seconds).encode()
    yield "milliseconds", json.dumps([each * 1000 + rng.randrange(1000) for each in seconds]).encode()
    yield "nanoseconds", json.dumps([each * 10**9 + rng.randrange(10**9) for each in seconds]).encode()
    yield "floats", json.dumps([rng.random() * 10 ** rng.randrange(20) for _ in range(3000)]).encode()
    yield "base64", base64.b64encode(rng.randbytes(150_000))
    yield "base64 in lines", base64.encodebytes(rng.randbytes(100_000))
    yield "base64url", base64.urlsafe_b64encode(rng.randbytes(100_000))
    yield "minified JavaScript", minified(rng).encode()
    cursors = [{"cursor": url_safe({"id": rng.getrandbits(40), "after": each})} for each in range(800)]
    yield "cursors of GraphQL", json.dumps(cursors, separators=(",", ":")).encode()
    phones = [f"+49 {rng.randrange(100, 999)} {rng.randrange(10**6, 10**7)}" for _ in range(1000)]
    yield "telephone numbers", "\n".join(phones).encode()
    yield (
        "dates",
        "\n".join(
            f"20{a:02}-{b:02}-{c:02}T10:00:00Z" for a in range(30) for b in range(12) for c in range(28)
        ).encode(),
    )
    yield (
        "capital words",
        " ".join(some(rng, string.ascii_uppercase, rng.randrange(2, 9)) for _ in range(8000)).encode(),
    )
    yield (
        "article numbers",
        "\n".join(
            f"{some(rng, string.ascii_uppercase, 2)}{rng.randrange(100):02}-{some(rng, string.digits, 6)}"
            for _ in range(3000)
        ).encode(),
    )
    yield "binary", rng.randbytes(100_000)
