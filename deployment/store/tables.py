"""Tables of the control plane's store; every one is keyed by project, so that one database serves several."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text

METADATA = MetaData()
#: Of the migrations; named so that the database may be shared with MLflow, which keeps its own.
VERSION_TABLE = "larder_schema"

#: Last entry of each project's ledger. Its row is locked first by whatever writes: projects wait for themselves only.
HEAD = Table(
    "larder_ledger_head",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("entries", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
    Column("signature", String(64), nullable=False),
)

PLAN = Table(
    "larder_plan",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("body", Text, nullable=False),  # signed, as it is published
)

LEDGER = Table(
    "larder_ledger",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("entry", Integer, primary_key=True, autoincrement=False),
    Column("at", String(40), nullable=False),
    Column("who", Text, nullable=False),
    Column("action", String(32), nullable=False),
    Column("why", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("bundle_id", String(64), nullable=False),
    Column("model_version", String(64), nullable=False),
    Column("previous_version", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("signature", String(64), nullable=False),
    Index("larder_ledger_by_bundle", "project", "bundle_id", "action", "entry"),
)

ROLLOUT = Table(
    "larder_rollout",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("rollout_id", String(128), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("state", String(64), nullable=False),
    Column("body", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("signature", String(64), nullable=False),
)

LEASE = Table(
    "larder_lease",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("holder", String(256), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("expires_us", BigInteger, nullable=False),
)

#: What MLflow's aliases were when they were last known to be ours: whoever finds others knows that a hand moved them.
ALIAS = Table(
    "larder_alias",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("aliases", Text, nullable=False),
)

#: What monitoring found. It is no move and needs no signature: whatever acts on it goes through the gate.
SIGNAL = Table(
    "larder_signal",
    METADATA,
    Column("project", String(128), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("subject", String(128), primary_key=True),
    Column("at_us", BigInteger, primary_key=True, autoincrement=False),
    Column("bundle_id", String(64), nullable=False),
    Column("value", Float, nullable=True),  # null: it could not be measured
    Column("threshold", Float, nullable=True),
    Column("p_value", Float, nullable=True),
    Column("effect", Float, nullable=True),
    Column("window_s", Float, nullable=False),
    Column("alarm", Boolean, nullable=False),
    Column("details", Text, nullable=False),
    Index("larder_signal_by_time", "project", "at_us"),
)
