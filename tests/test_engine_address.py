"""The forms of HUBBUB_VALKEY_URL, and what is said of one that is none."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hubbub.brokers.valkey.address import Address, Target, target_of
from hubbub.errors import ConfigurationError
from tests.support import settings_for


def test_the_forms_of_the_url() -> None:
    assert target_of("unix:///run/v.sock?db=2").seeds[0] == Address("localhost", 6379, "/run/v.sock", db=2)
    plain = target_of("valkey://u:p%40@h:1/3").server
    assert (plain.host, plain.port, plain.username, plain.password, plain.db) == ("h", 1, "u", "p@", 3)
    assert "p@" not in repr(plain), "a password in a log"
    assert target_of("rediss://h").server.tls is not None
    sentinel = target_of("valkey+sentinel://u:pw@a:1,b/my/2?sentinel_password=x")
    assert (sentinel.kind, sentinel.service, sentinel.server.db) == ("sentinel", "my", 2)
    assert (sentinel.server.username, sentinel.server.password) == ("u", "pw")
    assert [(each.host, each.port, each.username, each.password) for each in sentinel.seeds] == [
        ("a", 1, None, "x"), ("b", 26379, None, "x"),
    ]  # fmt: skip
    cluster = target_of("redis+cluster://u:pw@a:1,b:2")
    assert [(str(each), each.password) for each in cluster.seeds] == [("a:1", "pw"), ("b:2", "pw")]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("valkey://", Address("localhost", 6379)),
        ("valkey://:6380", Address("localhost", 6380)),
        ("VALKEY://h", Address("h", 6379)),
        (" valkey://h:6380/1\n", Address("h", 6380, db=1)),
        ("valkey://u:p@", Address("localhost", 6379, username="u", password="p")),
        ("valkey://:p@[::1]:6380/0", Address("::1", 6380, password="p")),
        ("valkey://h?username=u&password=p%26q&db=3", Address("h", 6379, username="u", password="p&q", db=3)),
        ("unix://u:p@/tmp/x%23y.sock", Address("localhost", 6379, "/tmp/x#y.sock", username="u", password="p")),
        ("unix:///tmp/a@b.sock", Address("localhost", 6379, "/tmp/a@b.sock")),
    ],
)
def test_one_server(url: str, address: Address) -> None:
    target = target_of(url)
    assert (target.kind, target.seeds, target.server) == ("standalone", (address,), address)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("foo://h", "scheme is unknown"),
        ("valkey+sentinal://h/m", r"is valkey\+sentinel:// meant"),
        ("unix+cluster:///x", "scheme is unknown"),
        ("redis+more://a", "scheme is unknown"),
        ("localhost:6379", "does not begin with a scheme, as valkey://"),
        ("u:p@h:6379", "does not begin with a scheme"),
        ("unix:/tmp/x.sock", "three slashes"),
        ("unix://tmp/x.sock", "unix:///path/to/socket"),
        ("unix://u:p@tmp/x.sock", "unix:///path/to/socket"),
        ("unix://", "path of the socket"),
        ("unix:///", "path of the socket"),
        ("redis://h/x", "no number of a database"),
        ("redis://u:p@h/x", "no number of a database"),
        ("redis://h/²", "no number of a database"),
        ("redis://h:99999", "up to 65535"),
        ("redis://u:p@h:port", "up to 65535"),
        ("redis://::1:6379", r"\[::1\]:6379"),
        ("redis://h?socket_timeout=1", "option 1 behind the \\? is unknown: there are db, .*ssl_check_hostname"),
        ("redis://u:p@h?db=1&timeout", "option 2 behind"),
        ("redis://h?password=a&b", "option 2 .*%26"),
        ("redis://h?sentinel_password=a", "option 1"),
        ("redis+sentinel://a:1/m?sentinel_pasword=a", "option 1 .*sentinel_password"),
        ("redis+sentinel://a:1", "name of the service"),
        ("redis+sentinel://u:p@a:1/", "name of the service"),
        ("redis+sentinel://a,,b/m", "has no name"),
        ("redis+cluster://", "has no name"),
        ("redis+cluster://a:1/3", "only the database 0"),
        ("redis+cluster://a:1?db=3", "only the database 0"),
        ("redis://a:1,b:2", r"several servers are for valkey\+sentinel"),
        ("redis://h?ssl_ca_certs=/x", "valkeys://"),
        ("redis://u:p@q@h", "percent-encoded"),
        ("redis://u:p?q@h", "percent-encoded"),
        ("redis://u:p[q@h", "percent-encoded"),
        ("redis://u:p#q@h", "percent-encoded"),
        ("redis://u:p\tq@h", "cannot be seen"),
    ],
)
def test_a_wrong_url_is_explained(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^HUBBUB_VALKEY_URL: .*{says}.* Use valkey://"):
        target_of(url)


@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile"])
def test_a_file_that_is_not_there_or_is_no_certificate(option: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"the file of {option} .*No such file"):
        target_of(f"valkeys://h?{option}=/nowhere")
    (tmp_path / "x").write_text("x")
    with pytest.raises(ConfigurationError, match=f"the file of {option} .*cannot be used"):
        target_of(f"valkeys://h?{option}={tmp_path / 'x'}")


# -- what must never be shown

MARK = "Zq"
"""A piece of every password here, and of nothing else."""
SLIPS = [
    "valkey://user:{0}@host:6379/0", "valkeys://:{0}@host", "redis://{0}@host:6379", "VALKEY://user:{0}@host", "{0}",
    "user:{0}@host:6379", "valkey:/user:{0}@host:6379/0", "valkey//user:{0}@host", "valkey:user:{0}@host", "{0}://host",
    "valkey+{0}://host", "valkey+sentinal://user:{0}@host/m", "valkey://user:{0}", "valkey://user:{0}/0", "valkey://{0}",
    "valkey://host:6379:{0}", "valkey://host:{0}@6379/0", "valkey://{0}:user@host:x", "valkey://host:6379/{0}",
    "valkey://host:6379@user:{0}", "valkey://user:{0}@host:99999", "valkey://user:{0}@host/x", "valkey://user:{0}@a,b",
    "valkey://host?password={0}", "valkey://host?pasword={0}", "valkey://host?{0}", "valkey://host?password={0}&x=1",
    "valkey://host?password=x&{0}", "valkeys://host?ssl_ca_certs=/nowhere?password={0}", "valkeys://host?ssl_certfile={0}",
    "valkeys://user:{0}@host?ssl_ca_certs=/nowhere", "valkeys://host?ssl_ca_certs={0}", "valkey://host?db={0}",
    "valkey+sentinel://user:{0}@a:1,b:2/m", "valkey+sentinel://user:{0}@a:1,b:2", "valkey+sentinel://a:1/m/{0}",
    "valkey+sentinel://a:1/m?sentinel_password={0}&sentinel_username={0}", "valkey+sentinel://user:{0}@a:x/m",
    "valkey+sentinel://a:1,b:{0}@c/m", "valkey+cluster://user:{0}@a:1,b:2/1", "valkey+cluster://a:1,user:{0}@b:2",
    "unix://user:{0}@/run/v.sock", "unix://user:{0}@run/v.sock", "unix:/user:{0}@/run/v.sock", "unix:///run/v.sock?{0}",
    "unix://{0}", "unix:///run/v.sock?password={0}&db=x", "unix://user@{0}/run/v.sock", "valkey://[{0}]:6379",
]  # fmt: skip
PIECES = st.integers(0, 99).map(lambda number: f"{MARK}{number}")
BETWEEN = st.sampled_from([*"@:/?#[]%&=+,;.-\\'\"|{}<>^ \t\n\0", "", "://", "%4", "%00", "℀", "é", "\u2028", "\ud800"])
PASSWORDS = st.lists(st.tuples(BETWEEN, PIECES, BETWEEN), min_size=1, max_size=4).map(
    lambda parts: "".join("".join(part) for part in parts)
)
HANDS = st.lists(st.tuples(st.integers(0, 60), st.sampled_from(["", *"@:/?#[&=+, ", "://"]), st.booleans()), max_size=3)


def typed(url: str, slips: list[tuple[int, str, bool]]) -> str:
    """A URL in which a hand has put something in, or in the place of something; but the password is whole."""
    for place, text, instead in slips:
        if MARK not in url[max(0, place - 1) : place + 2]:
            url = url[:place] + text + url[place + instead :]
    return url


def read(url: str) -> Target | ConfigurationError:
    try:
        return target_of(url)
    except ConfigurationError as refused:
        return refused


@given(slip=st.sampled_from(SLIPS), password=PASSWORDS, hands=HANDS)
@example("{0}", "hubbub:Zq1@host:6379", [])
@example("redis://:{0}@cache:6379/0", "Zq1/Zq2", [])
@example("redis://:{0}@cache:6379/0", "Zq1#Zq2", [])
@example("redis://{0}cache:6379/0", "℀Zq1", [])
@example("valkeys://host?ssl_ca_certs=/nowhere&password={0}", "Zq1", [(37, "", True), (45, "", True)])
def test_no_part_of_a_password_is_shown(slip: str, password: str, hands: list[tuple[int, str, bool]]) -> None:
    url = typed(slip.replace("{0}", password), hands)
    said = read(url)
    if isinstance(said, ConfigurationError):
        assert said.__cause__ is None
        assert said.__context__ is None, "whoever logs the chain would log the URL"
        assert MARK.lower() not in ("".join(traceback.format_exception(said)) + repr(said)).lower()
    else:
        for each in (*said.seeds, said.server):
            assert repr(each) == repr(replace(each, password=None))
    assert MARK not in repr(settings_for(valkey_url=url))
