"""The ledger's tables.

JSON lies in text columns, so that what was stored comes back to the byte on either database. Times
are seconds since the epoch by the clock of the process that wrote them.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

#: Of a longer position the end is kept.
POSITION_CHARACTERS = 512

#: Of the name of a source's column.
COLUMN_CHARACTERS = 256

#: Of the name of a destination, with its place.
DESTINATION_CHARACTERS = 512

metadata = MetaData()

# SQLite numbers rows by itself only in a column that is called INTEGER.
_LARGE = BigInteger().with_variant(Integer, "sqlite")

runs = Table(
    "runs",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("hash", String(64), nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("source_position", Text, nullable=False, default="{}"),
    Column("source_schema", Text),
    Column("created_at", Float, nullable=False),
    Column("paused_at", Float),
    # The pair policy by which its pairs were made.
    Column("pairs", Text),
)

prompts = Table(
    "prompts",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    # Counts the run's prompts in the order of their source, with gaps.
    Column("ordinal", _LARGE, nullable=False, server_default="0"),
    Column("input", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(64)),
    Column("detail", Text),
    Column("attempt", Integer, nullable=False, default=0),
    Column("batch", String(64)),
    Column("begun", Boolean, nullable=False, default=False, server_default=false()),
    # The process that last died on this prompt's batch.
    Column("dead_worker", String(64)),
    Column("accepted_at", Float, nullable=False),
    Column("published_at", Float),
    Column("finished_at", Float),
    Column("generations", Text),
    Column("judgements", Text),
    # The recipe by which it was generated and judged.
    Column("recipe_hash", String(64)),
    # By which rules its replies were, or will be, read (`workers.reply.RULES`).
    Column("replies", Integer, nullable=False, server_default="0"),
    # Covers the count by state and reason: 0.15 s over a million prompts instead of 6 s.
    Index("prompts_by_state", "run", "state", "reason"),
    Index("prompts_by_batch", "run", "batch"),
    Index("prompts_by_ordinal", "run", "ordinal", "key"),
    # Failed prompts alone: the others pay nothing for it.
    Index(
        "prompts_failed",
        *("run", "finished_at", "key"),
        sqlite_where=text("state = 'failed'"),
        postgresql_where=text("state = 'failed'"),
    ),
)

pairs = Table(
    "pairs",
    metadata,
    Column("sequence", _LARGE, primary_key=True, autoincrement=True),
    Column("run", String(64), nullable=False),
    Column("key", String(64), nullable=False),
    Column("index", Integer, nullable=False),
    Column("row", Text, nullable=False),
    # Kept under its label, for `full` alone.
    Column("tie", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("run", "key", "index"),
    # Covers the count of rows: 0.1 s over 200,000 pairs instead of 2.
    Index("pairs_by_tie", "run", "tie"),
)

calls = Table(
    "calls",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    *(
        Column(name, _LARGE, nullable=False, server_default="0")
        for name in ("ok", "retried", "failed", "cached", "input_tokens", "output_tokens")
    ),
    # Of a judge: replies that did not keep the contract, pairs of texts that it compared in both
    # orders, and those of them where its preference flipped.
    *(
        Column(name, _LARGE, nullable=False, server_default="0")
        for name in ("unparsable", "compared", "flipped")
    ),
)

skipped = Table(
    "skipped",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("position", String(POSITION_CHARACTERS), primary_key=True),
    Column("reason", String(64), nullable=False),
    Column("detail", Text),
    Index("skipped_by_reason", "run", "reason"),
)

left_out = Table(
    "left_out",
    metadata,
    Column("run", String(64), primary_key=True),
    # Of the source, as it is called there.
    Column("column", String(COLUMN_CHARACTERS), primary_key=True),
    # Of accepted prompts, that did not fit.
    Column("values", _LARGE, nullable=False),
)

curated = Table(
    "curated",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("key", String(64), primary_key=True),
    # What people said of the prompt's generations, and the pairs that follow from it.
    Column("people", Text, nullable=False),
    Column("pairs", Text, nullable=False),
    # Where they said it: what is asked elsewhere takes nothing back.
    Column("place", String(64), nullable=False, server_default=""),
    Column("pulled_at", Float, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("sequence", _LARGE, primary_key=True, autoincrement=True),
    Column("run", String(64), nullable=False),
    Column("destination", String(DESTINATION_CHARACTERS), nullable=False),
    # `record` of a judged prompt, its `pairs`, or its `human` pairs.
    Column("kind", String(16), nullable=False),
    Column("key", String(64), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("detail", Text),
    # Grows when what is to be delivered changes.
    Column("revision", Integer, nullable=False, server_default="0"),
    Column("shard", Integer),
    # What a compaction that is under way will make of it, as of which revision.
    Column("next_shard", Integer),
    Column("next_sealed", Integer),
    Column("next_rows", Integer),
    Column("queued_at", Float, nullable=False),
    Column("delivered_at", Float),
    UniqueConstraint("run", "destination", "kind", "key"),
    Index("outbox_by_state", "run", "destination", "state", "rows"),
    Index("outbox_in_order", "run", "destination", "state", "sequence"),
    Index("outbox_by_shard", "run", "destination", "shard"),
    Index("outbox_by_key", "run", "key"),
)

shards = Table(
    "shards",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("destination", String(DESTINATION_CHARACTERS), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("configuration", String(16), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("rows", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    # SHA-256 of the Arrow schema.
    Column("columns", String(64), nullable=False),
    # The file, until it is delivered: a retry sends the same bytes, from any host.
    Column("content", LargeBinary),
)

destinations = Table(
    "destinations",
    metadata,
    Column("run", String(64), primary_key=True),
    Column("destination", String(DESTINATION_CHARACTERS), primary_key=True),
    # Why nothing is delivered.
    Column("trouble", Text),
)
