"""Nodes on every kind of engine: Sentinel, Cluster, TLS, an ACL user, a Unix socket, Redis 7.0; and what fails in them."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.engine_scene import elapse, scene
from tests.engine_support import HOST, WITHIN, Engine, Node, Sentinels, Shards, redis_program, running_node, until
from tests.fault_proxy import fault_proxy

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
needs_redis = pytest.mark.skipif(redis_program() is None, reason="no redis-server: run scripts/ensure-redis")

MANY = 12
"""Channels: enough to be on every shard of a Cluster."""


# -- Sentinel ------------------------------------------------------------------------------------------------------


@pytest.fixture
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as group:
        yield group


async def promoted(group: Sentinels) -> None:
    """Wait until the replica is the primary."""
    await asyncio.to_thread(until, lambda: group.second.role == "master", "nobody took over")


async def test_sentinel_fails_over(tmp_path: Path, sentinels: Sentinels) -> None:
    async with scene(tmp_path, sentinels.url) as there:
        await there.people.more(200)
        await asyncio.to_thread(sentinels.first.kill)
        await promoted(sentinels)
        await there.judge(kept=False, gaps=None)


async def test_a_primary_that_stood_still_comes_back_as_a_replica(tmp_path: Path, sentinels: Sentinels) -> None:
    async with scene(tmp_path, sentinels.url) as there:
        await there.people.more(200)
        await asyncio.to_thread(sentinels.first.pause)
        await promoted(sentinels)
        sentinels.first.resume()
        await asyncio.to_thread(until, lambda: sentinels.first.role == "slave", "it did not become a replica")
        await there.judge(kept=False, gaps=None)


async def test_sentinel_promotes_a_replica_without_the_last_second(tmp_path: Path, sentinels: Sentinels) -> None:
    async with fault_proxy((HOST, sentinels.first.port)) as lagging, scene(tmp_path, sentinels.url) as there:
        sentinels.second.call("REPLICAOF", HOST, lagging.port)
        await asyncio.to_thread(
            until,
            lambda: sentinels.second.info("replication").get("master_link_status") == "up",
            "the replica did not sync",
        )
        await there.people.more(200)
        lagging.stall()
        await elapse(1.0, there.people)
        await there.people.more(100)
        await asyncio.to_thread(sentinels.first.kill)
        await promoted(sentinels)
        await there.judge(kept=False, gaps=True)


# -- Cluster -------------------------------------------------------------------------------------------------------


async def test_channels_are_spread_over_a_cluster(tmp_path: Path) -> None:
    with Shards() as shards:
        async with scene(tmp_path, shards.url, channels=MANY, publishers=6, spread=6) as there:
            await there.people.more(400)
            for primary in shards.primaries:
                assert primary.call("DBSIZE") > 0
                assert primary.call("PUBSUB", "SHARDCHANNELS") != []
                assert all(channel.startswith(b"__sentinel") for channel in primary.call("PUBSUB", "CHANNELS"))
            await there.nodes[0].kill()
            await there.people.flows()
            await there.nodes[0].start()
            await there.judge()


async def test_a_replica_takes_over_in_a_cluster(tmp_path: Path) -> None:
    with Shards(replicas=1) as shards:
        async with scene(tmp_path, shards.url, channels=MANY, publishers=6, spread=6) as there:
            await there.people.more(400)
            await asyncio.to_thread(shards.primaries[0].kill)
            await asyncio.to_thread(until, lambda: shards.replicas[0].role == "master", "nobody took over")
            await there.judge(kept=False, gaps=None)


async def test_in_a_cluster_replicas_are_waited_for(tmp_path: Path) -> None:
    """Each shard's own."""
    with Shards(replicas=1) as shards:
        async with scene(
            tmp_path, shards.url, channels=MANY, publishers=6, spread=6, settings={"valkey_replicas": 1}
        ) as there:
            await there.people.more(400)
            for primary in shards.primaries:
                assert "cmdstat_wait" in primary.info("commandstats")
            await there.judge()


async def test_a_primary_of_a_cluster_is_restarted(tmp_path: Path) -> None:
    with Shards(appendonly="yes") as shards:
        async with scene(tmp_path, shards.url, channels=MANY, publishers=6, spread=6) as there:
            await there.people.more(400)
            await asyncio.to_thread(shards.primaries[1].kill)
            await elapse(1.0, there.people)
            await asyncio.to_thread(shards.primaries[1].start)
            await there.judge()


async def test_slots_move_while_people_publish(tmp_path: Path) -> None:
    with Shards() as shards:
        async with scene(tmp_path, shards.url, channels=MANY, publishers=6, spread=6) as there:
            await there.people.more(400)
            source, target, _ = shards.primaries
            used = {int(source.call("CLUSTER", "KEYSLOT", key)) for key in source.call("KEYS", "*")}
            assert len(used) > 1
            for slot in used:
                await asyncio.to_thread(shards.move, slot, source, target)
            await there.people.more(400)
            assert {int(target.call("CLUSTER", "KEYSLOT", key)) for key in target.call("KEYS", "*")} >= used
            await there.judge()


# -- ways in -------------------------------------------------------------------------------------------------------


def certificate(directory: Path) -> Path:
    """A certificate for the loopback address that signs itself; its key is beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = directory / "certificate.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


async def test_over_tls(tmp_path: Path, own_valkey: Engine) -> None:
    # the wheel's Valkey has no TLS: the proxy ends it, and resets it
    trusted = certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(trusted, trusted.with_name("key.pem"))
    async with fault_proxy((HOST, own_valkey.port), tls=context) as front:
        async with scene(tmp_path, f"{front.url}?ssl_ca_certs={trusted}") as there:
            await there.people.more(200)
            front.reset()
            await there.judge()
        async with running_node(front.url, tmp_path, "stranger") as stranger:
            await stranger.until_ready(False)
            assert "certificate" in stranger.tail().lower()


async def has_ended(node: Node) -> None:
    async with asyncio.timeout(WITHIN):
        while not node.has_ended():
            await asyncio.sleep(0.05)


async def test_with_a_user_and_a_password(tmp_path: Path) -> None:
    with Engine(user="hub", password="of:the@tests") as engine:
        url = engine.url.replace("of:the@tests", "of%3Athe%40tests")
        async with scene(tmp_path, url) as there:
            await there.people.more(200)
            engine.call("CLIENT", "KILL", "TYPE", "pubsub")
            await there.judge()
        stranger = Node(engine.url.replace("of:the@tests", "wrong"), tmp_path, "stranger")
        await stranger.start()  # the port is there before the app
        try:
            await has_ended(stranger)
            assert "the user or the password is wrong" in stranger.tail()
        finally:
            await stranger.close()


async def test_with_a_user_who_may_only_what_is_needed(tmp_path: Path) -> None:
    with Engine(user="admin", password="secret") as engine:
        rights = "on >few resetkeys ~hubbub:* resetchannels &hubbub:* +@all -@admin -@dangerous +info"
        engine.call("ACL", "SETUSER", "hub", *rights.split())
        async with scene(tmp_path, f"valkey://hub:few@{HOST}:{engine.port}/0") as there:
            await there.people.more(200)
            await there.judge()


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    with Engine(appendonly="yes") as engine:
        async with scene(tmp_path, engine.unix_url) as there:
            await there.people.more(200)
            await asyncio.to_thread(engine.restart)
            await there.judge()


# -- Redis ---------------------------------------------------------------------------------------------------------


@needs_redis
async def test_redis(tmp_path: Path) -> None:
    with Engine(program=redis_program(), appendonly="yes") as engine:
        assert engine.info("server")["redis_version"] >= "7"
        async with scene(tmp_path, engine) as there:
            await there.people.more(200)
            engine.call("SCRIPT", "FLUSH")
            await there.people.more(50)
            await asyncio.to_thread(engine.restart)
            await there.judge()


@needs_redis
async def test_redis_restarted_empty(tmp_path: Path) -> None:
    with Engine(program=redis_program()) as engine:
        async with scene(tmp_path, engine) as there:
            await there.people.more(200)
            await asyncio.to_thread(engine.restart)
            await there.judge(kept=False, gaps=True)


@needs_redis
async def test_redis_cluster(tmp_path: Path) -> None:
    with Shards(program=redis_program(), replicas=1) as shards:
        async with scene(tmp_path, shards.url, channels=MANY, publishers=6, spread=6) as there:
            await there.people.more(400)
            await asyncio.to_thread(shards.primaries[0].kill)
            await asyncio.to_thread(until, lambda: shards.replicas[0].role == "master", "nobody took over")
            await there.judge(kept=False, gaps=None)
