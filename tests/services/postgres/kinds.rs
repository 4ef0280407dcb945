// SPDX-License-Identifier: Apache-2.0
//! Records of very many kinds, which the server makes itself: a kind is a port.

use uuid::Uuid;
use zt_agent::audit::query::HOUR;
use zt_tests::postgres::Server;

const DAY: i64 = 24 * HOUR;

/// Shapes of a day, one for each of these ports (a part of a `FROM` clause) from `a` to `b`.
pub(super) fn shapes(day: i64, decision: &str, ports: &str) -> String {
    shapes_between(day, ("a", "b"), decision, ports)
}

/// The same from somebody to somebody.
fn shapes_between(day: i64, (from, to): (&str, &str), decision: &str, ports: &str) -> String {
    format!(
        "INSERT INTO zt_audit.shape (day, id, type, source, destination, protocol, port, cluster, decision, enforced,
             mode, observer, hook, reason, proof, part, login)
         SELECT {day}, zt_audit.shape_id('decision', '{from}', '{to}', NULL, NULL, NULL, 'c', '{decision}', 'observe', 'source',
                'connect', 'rule', 'none', 6::smallint, port, false, 0::smallint),
                'decision', '{from}', '{to}', 6, port, 'c', '{decision}', false, 'observe', 'source', 'connect', 'rule', 'none',
                0, 'node'
         FROM {ports} port;"
    )
}

/// A record of each of a day's shapes with a decision, at a time (an expression in which `port` is the shape's).
pub(super) fn one_of_each(day: i64, decision: &str, time: &str) -> String {
    format!(
        "INSERT INTO zt_audit.record (time, id, shape, writer, seq, revision, latency, count, login)
         SELECT {time}, gen_random_uuid(), id, '{writer}', port, 1, 1, 1, login
         FROM zt_audit.shape WHERE day = {day} AND decision = '{decision}';",
        writer = Uuid::from_u128(7),
    )
}

/// A day with a kind of connection for each port up to a number, each recorded once, at some time of its first `hours`.
pub(super) fn day_of(server: &Server, start: i64, kinds: u64, hours: i64) {
    day_between(server, ("a", "b"), start, kinds, hours);
}

/// The same from somebody to somebody.
pub(super) fn day_between(server: &Server, ends: (&str, &str), start: i64, kinds: u64, hours: i64) {
    let day = start / DAY;
    let time = format!("{start} + port::bigint % {hours} * {HOUR} + port");
    let ports = format!("generate_series(1, {kinds})");
    let sql = shapes_between(day, ends, "ALLOW", &ports) + &one_of_each(day, "ALLOW", &time);
    server.sql(&sql).expect("inserted");
}
