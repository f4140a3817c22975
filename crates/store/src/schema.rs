//! The tables of `forge.db`.
//!
//! Digests are text (`sha256:<hex>`), times seconds since the epoch, descriptors JSON. `boot_id` of a blob or a layer is
//! the boot in which its bytes were written, and NULL once a `syncfs` has made them durable. After a boot that is not
//! the recorded one the bytes are verified before they are used.

/// Made at once when a store is made.
pub(crate) const SCHEMA: &str = "
CREATE TABLE owners (
    id         TEXT PRIMARY KEY,
    pid        INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    boot_id    TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE leases (
    id      INTEGER PRIMARY KEY,
    owner   TEXT NOT NULL REFERENCES owners (id) ON DELETE CASCADE,
    purpose TEXT NOT NULL,
    created INTEGER NOT NULL
);
CREATE INDEX leases_by_owner ON leases (owner);

CREATE TABLE lease_layers (
    lease INTEGER NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    layer TEXT NOT NULL,
    PRIMARY KEY (lease, layer)
) WITHOUT ROWID;

CREATE TABLE lease_blobs (
    lease INTEGER NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
    blob  TEXT NOT NULL,
    PRIMARY KEY (lease, blob)
) WITHOUT ROWID;

CREATE TABLE blobs (
    serial  INTEGER PRIMARY KEY AUTOINCREMENT,
    digest  TEXT NOT NULL UNIQUE,
    size    INTEGER NOT NULL,
    stored  INTEGER NOT NULL,
    boot_id TEXT
);
CREATE INDEX blobs_not_durable ON blobs (boot_id) WHERE boot_id IS NOT NULL;

CREATE TABLE layers (
    serial         INTEGER PRIMARY KEY AUTOINCREMENT,
    id             TEXT NOT NULL UNIQUE,
    content        TEXT NOT NULL,
    bytes          INTEGER NOT NULL,
    entries        INTEGER NOT NULL,
    diff_id        TEXT,
    is_foreign     INTEGER NOT NULL,
    index_checksum TEXT NOT NULL,
    stored         INTEGER NOT NULL,
    boot_id        TEXT,
    times_from     INTEGER,
    times_until    INTEGER
);
CREATE INDEX layers_not_durable ON layers (boot_id) WHERE boot_id IS NOT NULL;

CREATE TABLE chains (
    chain TEXT PRIMARY KEY,
    layer TEXT NOT NULL REFERENCES layers (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX chains_by_layer ON chains (layer);

CREATE TABLE layer_diff_ids (
    layer   TEXT NOT NULL REFERENCES layers (id) ON DELETE CASCADE,
    clamp   INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    PRIMARY KEY (layer, clamp)
) WITHOUT ROWID;

CREATE TABLE layer_blobs (
    layer       TEXT NOT NULL REFERENCES layers (id) ON DELETE CASCADE,
    blob        TEXT NOT NULL,
    descriptor  TEXT NOT NULL,
    diff_id     TEXT NOT NULL,
    compression TEXT NOT NULL,
    clamp       INTEGER,
    is_foreign  INTEGER NOT NULL,
    PRIMARY KEY (layer, blob, compression)
) WITHOUT ROWID;

CREATE TABLE images (
    id              TEXT PRIMARY KEY,
    platform        TEXT NOT NULL,
    manifest        TEXT,
    manifest_digest TEXT,
    created         TEXT,
    stored          INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE image_layers (
    image    TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    layer    TEXT NOT NULL REFERENCES layers (id),
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE INDEX image_layers_by_layer ON image_layers (layer);

CREATE TABLE names (
    name         TEXT PRIMARY KEY,
    repository   TEXT NOT NULL,
    digest       TEXT,
    target_index TEXT,
    index_digest TEXT
) WITHOUT ROWID;
CREATE INDEX names_by_repository ON names (repository);

CREATE TABLE name_images (
    name     TEXT NOT NULL REFERENCES names (name) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    image    TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    PRIMARY KEY (name, position)
) WITHOUT ROWID;
CREATE INDEX name_images_by_image ON name_images (image);

CREATE TABLE syncs (
    id    INTEGER PRIMARY KEY CHECK (id = 0),
    count INTEGER NOT NULL
);
INSERT INTO syncs VALUES (0, 0);

CREATE TABLE trash (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
";

/// What stores of format 2 have beyond those of format 1, which get it when they are opened. `key` of a cache mount is
/// the digest of its first content (or nothing), a space and its id.
pub(crate) const SCHEMA_2: &str = "
CREATE TABLE IF NOT EXISTS cache_mounts (
    serial    INTEGER PRIMARY KEY AUTOINCREMENT,
    name      TEXT NOT NULL UNIQUE,
    key       TEXT NOT NULL,
    origin    TEXT NOT NULL,
    bytes     INTEGER NOT NULL,
    created   INTEGER NOT NULL,
    last_used INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS cache_mounts_by_key ON cache_mounts (key);

CREATE TABLE IF NOT EXISTS selections (
    content TEXT PRIMARY KEY,
    layer   TEXT NOT NULL REFERENCES layers (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS selections_by_layer ON selections (layer);
";

/// The columns of `layers` that stores of format 3 have beyond those of format 2: the time, in nanoseconds since the
/// epoch, within which a modification time is not part of the content; NULL where all are.
pub(crate) const COLUMNS_3: [&str; 2] = ["times_from", "times_until"];
