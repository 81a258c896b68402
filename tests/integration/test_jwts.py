"""Tokens of an app's own sign-in, with real keys from a file and from a URL."""

from __future__ import annotations

import json
import threading
import time
from base64 import urlsafe_b64encode
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from foldlog.domain.access import Right
from foldlog.domain.errors import SignInUnavailable, Unauthenticated
from foldlog.infrastructure import jwts as module
from foldlog.infrastructure.jwts import (
    KEYS_BYTES_MAX,
    KEYS_SECONDS_MAX,
    KEYS_SECONDS_MIN,
    LEEWAY_SECONDS,
    SECONDS_MAX,
    STALE_SECONDS_MAX,
    FileKeys,
    Jwts,
    SignInKeysUnusable,
    UrlKeys,
    keys_at,
    parse_keys,
)
from tests.acceptance.live import until
from tests.helpers import A

AUDIENCE, ISSUER = "foldlog", "https://id.example"
SECRET = bytes(range(48))


def oct_jwk(secret: bytes = SECRET, **members) -> dict:
    return {"kty": "oct", "k": urlsafe_b64encode(secret).rstrip(b"=").decode(), **members}


def public_jwk(key, algorithm: str, **members) -> dict:
    algorithms = jwt.algorithms.get_default_algorithms()
    return json.loads(algorithms[algorithm].to_jwk(key.public_key())) | members


def private_jwk(key, algorithm: str) -> dict:
    algorithms = jwt.algorithms.get_default_algorithms()
    return json.loads(algorithms[algorithm].to_jwk(key)) | {"alg": algorithm}


ED = ed25519.Ed25519PrivateKey.generate()
OTHER_ED = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
#: algorithm -> the signing key, and the published key
SIGNERS = {
    "HS256": (SECRET, oct_jwk(alg="HS256")),
    "HS512": (bytes(range(64)), oct_jwk(bytes(range(64)), alg="HS512")),
    "RS256": (RSA, public_jwk(RSA, "RS256", alg="RS256")),
    "RS512": (RSA, public_jwk(RSA, "RS512", alg="RS512")),
    "ES256": (EC, public_jwk(EC, "ES256", alg="ES256")),
    "EdDSA": (ED, public_jwk(ED, "EdDSA", alg="EdDSA")),
}


def jwks(*keys: dict) -> str:
    return json.dumps({"keys": keys})


def claims(**changed) -> dict:
    usual = {
        "sub": "ada",
        "aud": AUDIENCE,
        "iss": ISSUER,
        "exp": int(time.time()) + 600,
        "space": ["s", "t"],
        "device": A,
        "scope": "read write openid",
    }
    return {name: value for name, value in (usual | changed).items() if value is not None}


def signed(key=ED, algorithm="EdDSA", kid: str | None = None, **changed) -> str:
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode(claims(**changed), key, algorithm, headers=headers)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(jwks(SIGNERS["EdDSA"][1]))
    return path


@pytest.fixture
def jwts(file):
    return Jwts(FileKeys(file), audience=AUDIENCE, issuer=ISSUER)


@pytest.mark.parametrize("algorithm", SIGNERS)
def test_a_signed_token_gives_its_claims(tmp_path, algorithm):
    key, public = SIGNERS[algorithm]
    path = tmp_path / "jwks.json"
    path.write_text(jwks(public))
    read = Jwts(keys_at(str(path)), audience=AUDIENCE, issuer=ISSUER).read(signed(key, algorithm))
    assert read.spaces == {"s", "t"} and read.device == A and read.subject == "ada"
    assert read.rights == {Right.READ, Right.WRITE}
    assert read.expires_at > time.time() * 1000


def test_missing_claims_give_no_rights(jwts):
    read = jwts.read(signed(space=None, device=None, scope=None))
    assert (read.spaces, read.device, read.rights) == (frozenset(), None, frozenset())
    assert jwts.read(signed(space="s")).spaces == {"s"}


def test_claims_may_have_a_prefix(file):
    prefix = "https://app.example/"
    mine = {f"{prefix}space": "mine", f"{prefix}device": A, "space": "s"}
    jwts = Jwts(FileKeys(file), audience=AUDIENCE, prefix=prefix)
    read = jwts.read(jwt.encode(claims() | mine, ED, "EdDSA"))
    assert (read.spaces, read.device) == ({"mine"}, A)


@pytest.mark.parametrize(
    "changed",
    [
        {"exp": int(time.time()) - 60},
        {"exp": None},
        {"exp": "soon"},
        {"nbf": int(time.time()) + 6_000},
        {"aud": "other"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "a\nb"},
        {"space": "UPPER"},
        {"space": [1]},
        {"space": {"s": 1, "..": 2}},
        {"space": {"s": 1}},
        {"space": [["s"]]},
        {"exp": 10**400},
        {"exp": 1e308},
        {"exp": float("inf")},
        {"exp": int(time.time()) + SECONDS_MAX + 6_000},
        {"space": 7},
        {"device": "me"},
        {"device": 7},
        {"scope": ["read"]},
    ],
)
def test_an_invalid_token_is_refused(jwts, changed):
    with pytest.raises(Unauthenticated):
        jwts.read(signed(**changed))


def test_the_longest_lifetime_is_a_setting(file):
    """A long-lived JWT is refused by default, because it cannot be revoked; 0 allows it."""
    end = int(time.time()) + 300
    for seconds_max, is_taken in ((600, True), (200, False), (0, True)):
        jwts = Jwts(FileKeys(file), audience=AUDIENCE, seconds_max=seconds_max)
        if is_taken:
            assert jwts.read(signed(exp=end)).expires_at == (end + LEEWAY_SECONDS) * 1000
        else:
            with pytest.raises(Unauthenticated):
                jwts.read(signed(exp=end))
    with pytest.raises(Unauthenticated):
        Jwts(FileKeys(file), audience=AUDIENCE, seconds_max=0).read(signed(exp=10**400))


def test_with_two_keys_a_token_must_name_its_key(file):
    ours = [public_jwk(key, "EdDSA", kid=kid) for kid, key in (("a", ED), ("b", OTHER_ED))]
    file.write_text(jwks(*ours))
    jwts = Jwts(FileKeys(file), audience=AUDIENCE)
    assert jwts.read(signed(kid="a")).subject == jwts.read(signed(OTHER_ED, kid="b")).subject
    for wrong in (signed(), signed(kid="b"), signed(OTHER_ED, kid="a")):
        with pytest.raises(Unauthenticated):
            jwts.read(wrong)


def test_a_token_never_chooses_its_algorithm(file, jwts):
    """A token is refused with the algorithm `none`, with the public key as a shared secret, and
    with another key's algorithm.
    """
    public = SIGNERS["EdDSA"][1]["x"].encode()
    for text in (
        jwt.encode(claims(), None, "none"),
        jwt.encode(claims(), public.ljust(32, b"="), "HS256"),
        signed(ed25519.Ed25519PrivateKey.generate()),
        signed(RSA, "RS256"),
        signed()[:-4] + "AAAA",
        "a.b.c",
        "..",
        "é.é.é",
    ):
        with pytest.raises(Unauthenticated):
            jwts.read(text)
    file.write_text(jwks(SIGNERS["RS512"][1]))
    with pytest.raises(Unauthenticated):
        Jwts(FileKeys(file), audience=AUDIENCE).read(signed(RSA, "RS256"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": 7}',
        '{"keys": []}',
        '{"keys": [7, null, {}, {"kty": "new"}]}',
        jwks(oct_jwk(b"short", alg="HS256")),
        jwks(oct_jwk(alg="HS256", use="enc")),
        "[" * 100_000,
        *(jwks(private_jwk(SIGNERS[name][0], name)) for name in ("RS256", "ES256", "EdDSA")),
    ],
)
def test_invalid_keys_are_refused_at_the_start(tmp_path, text):
    path = tmp_path / "jwks.json"
    path.write_text(text)
    with pytest.raises(SignInKeysUnusable):
        FileKeys(path)
    with pytest.raises(SignInKeysUnusable):
        FileKeys(tmp_path / "nowhere")


def test_unknown_kinds_of_keys_are_ignored():
    known = SIGNERS["EdDSA"][1]
    assert len(parse_keys(jwks({"kty": "new"}, known, oct_jwk(alg="A128KW")).encode())) == 1


class SignIn:
    """A server that publishes keys, counts requests, and can be down, slow, or redirect."""

    def __init__(self):
        self.keys, self.asked, self.is_down = jwks(), 0, False
        self.elsewhere: str | None = None
        self.seconds_each = 0.0  #: that a byte takes
        self.may_answer = threading.Event()
        self.may_answer.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked += 1
                outer.may_answer.wait(10)
                if outer.elsewhere is not None:
                    self.send_response(302)
                    self.send_header("Location", outer.elsewhere)
                else:
                    self.send_response(503 if outer.is_down else 200)
                self.end_headers()
                with suppress(ConnectionError):
                    self.say(outer.keys.encode())

            def say(self, body):
                if not outer.seconds_each:
                    self.wfile.write(body)
                    return
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(outer.seconds_each)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.may_answer.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def sign_in():
    sign_in = SignIn()
    yield sign_in
    sign_in.close()


def test_keys_of_a_url_are_cached_and_refreshed(sign_in):
    now = 0.0
    jwts = Jwts(UrlKeys(sign_in.url, clock=lambda: now), audience=AUDIENCE)
    sign_in.keys = jwks(public_jwk(ED, "EdDSA", alg="EdDSA", kid="one"))
    for _ in range(5):
        jwts.read(signed(kid="one"))
    assert sign_in.asked == 1

    # A new key works at once, and invented key ids cause only one fetch.
    now += KEYS_SECONDS_MIN
    sign_in.keys = jwks(public_jwk(RSA, "RS256", alg="RS256", kid="two"))
    jwts.read(signed(RSA, "RS256", kid="two"))
    assert sign_in.asked == 2
    for number in range(5):
        with pytest.raises(Unauthenticated):
            jwts.read(signed(kid=f"made-up-{number}"))
    assert sign_in.asked == 2

    # The old key is refused now.
    with pytest.raises(Unauthenticated):
        jwts.read(signed(kid="one"))

    # Cached keys bridge a short outage of the sign-in.
    sign_in.is_down = True
    now += KEYS_SECONDS_MAX
    jwts.read(signed(RSA, "RS256", kid="two"))
    assert sign_in.asked == 3
    now += STALE_SECONDS_MAX
    with pytest.raises(SignInUnavailable):
        jwts.read(signed(RSA, "RS256", kid="two"))
    sign_in.is_down = False
    now += KEYS_SECONDS_MAX
    jwts.read(signed(RSA, "RS256", kid="two"))


def test_an_unreachable_sign_in_is_an_error(sign_in):
    sign_in.is_down = True
    with pytest.raises(SignInUnavailable):
        Jwts(UrlKeys(sign_in.url), audience=AUDIENCE).read(signed())


def refused(sign_in) -> bool:
    """Returns whether the keys are refused that a sign-in answers."""
    try:
        Jwts(UrlKeys(sign_in.url), audience=AUDIENCE).read(signed())
    except SignInUnavailable:
        return True
    return False


def test_a_redirect_is_refused(sign_in):
    """Only the configured URL is trusted."""
    other = SignIn()
    sign_in.elsewhere, other.keys = other.url, jwks(SIGNERS["EdDSA"][1])
    assert refused(sign_in)
    assert (sign_in.asked, other.asked) == (1, 0)
    assert not refused(other)
    other.close()


def test_a_key_set_that_is_too_large_is_refused(sign_in):
    sign_in.keys = jwks(SIGNERS["EdDSA"][1]) + " " * KEYS_BYTES_MAX
    assert refused(sign_in)
    sign_in.keys = jwks(SIGNERS["EdDSA"][1]).ljust(KEYS_BYTES_MAX)
    assert not refused(sign_in)


def test_a_slow_answer_is_refused(sign_in, monkeypatch):
    """The time limit covers the whole answer, even if each byte comes in time."""
    monkeypatch.setattr(module, "FETCH_SECONDS_MAX", 0.3)
    sign_in.keys, sign_in.seconds_each = jwks(SIGNERS["EdDSA"][1]).ljust(500), 0.02
    began = time.monotonic()
    assert refused(sign_in)
    assert time.monotonic() - began < 5


def test_all_requests_wait_for_the_first_fetch(sign_in):
    """After a restart, all requests wait for one first fetch; only one would succeed otherwise."""
    sign_in.keys = jwks(SIGNERS["EdDSA"][1])
    sign_in.may_answer.clear()
    jwts = Jwts(UrlKeys(sign_in.url), audience=AUDIENCE)
    with ThreadPoolExecutor(5) as threads:
        reading = [threads.submit(jwts.read, signed()) for _ in range(5)]
        until(lambda: sign_in.asked)
        assert not wait(reading, timeout=0.2).done
        sign_in.may_answer.set()
        assert {future.result().subject for future in reading} == {"ada"}
    assert sign_in.asked == 1


def test_no_request_waits_for_a_later_fetch(sign_in):
    """During a later fetch, other requests use the cached keys; without cached keys they fail at
    once.
    """
    now = 0.0
    sign_in.keys = jwks(public_jwk(ED, "EdDSA", kid="one"))
    jwts = Jwts(UrlKeys(sign_in.url, clock=lambda: now), audience=AUDIENCE)
    jwts.read(signed(kid="one"))
    now += KEYS_SECONDS_MAX
    sign_in.may_answer.clear()
    with ThreadPoolExecutor(1) as threads:
        fetching = threads.submit(jwts.read, signed(kid="one"))
        until(lambda: sign_in.asked == 2)
        assert jwts.read(signed(kid="one")).subject == "ada"
        with pytest.raises(SignInUnavailable):
            jwts.read(signed(kid="two"))
        assert not fetching.done()
        sign_in.may_answer.set()


def test_keys_of_a_file_are_refreshed(file):
    now = 0.0
    jwts = Jwts(FileKeys(file, clock=lambda: now), audience=AUDIENCE)
    jwts.read(signed())
    file.write_text(jwks(SIGNERS["RS256"][1]))
    now += KEYS_SECONDS_MAX
    with pytest.raises(Unauthenticated):
        jwts.read(signed())
    jwts.read(signed(RSA, "RS256"))
