-- SPDX-License-Identifier: Apache-2.0
-- What is signed about the chains besides checkpoints: which entries are not there, and why. A writer states what it had
-- to give up, the maintainer what it has dropped for its age.
CREATE TABLE zt_audit.gap (
    writer uuid NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    text text COLLATE "C" NOT NULL CONSTRAINT gap_length CHECK (octet_length(text) <= 16384),
    -- Stands for the text in the key: with a second signature that is longer than an entry of an index may be.
    digest uuid GENERATED ALWAYS AS (md5(text)::uuid) STORED,
    -- Who inserted it; not for the one who inserts to say.
    login text COLLATE "C" NOT NULL DEFAULT session_user,
    PRIMARY KEY (writer, first, last, digest, login)
);

GRANT INSERT (writer, first, last, text) ON zt_audit.gap TO zt_audit_writer;
GRANT SELECT ON zt_audit.gap TO zt_audit_reader;
