// SPDX-License-Identifier: Apache-2.0
//! How the trail's places are judged.

use super::super::finding::Status;
use super::*;
use crate::audit::postgres::PgError;

const SECOND: i64 = 1_000_000_000;

fn examined(refused: &[&str], ahead: Option<i64>, tables: bool) -> Examined {
    let role = |name: &'static str| {
        let outcome = if refused.contains(&name) {
            Err(PgError::Clocks { seconds: 1 })
        } else {
            Ok(())
        };
        (name, outcome)
    };
    Examined {
        roles: ["zt_audit_writer", "zt_audit_reader", "zt_audit_maintainer"]
            .map(role)
            .into(),
        ahead,
        tables,
        off: Vec::new(),
        more: ahead.map(|_| Vec::new()),
        elsewhere: Vec::new(),
    }
}

fn judge(examined: &Examined) -> Vec<Status> {
    server("db:5432, database zt", Logins::default(), examined)
        .iter()
        .map(|finding| finding.status)
        .collect()
}

#[test]
fn a_login_has_to_write_and_should_read() {
    use Status::{Failed, NotApplicable, Ok, Warning};
    let nobody = ["zt_audit_writer", "zt_audit_reader", "zt_audit_maintainer"];
    for (found, wanted) in [
        (examined(&[], Some(0), true), [Ok, Ok, Ok, Ok, Ok]),
        (
            examined(&["zt_audit_maintainer"], Some(0), true),
            [Ok, Ok, Ok, Ok, Ok],
        ),
        (
            examined(&["zt_audit_reader"], Some(0), true),
            [Ok, Warning, Ok, Ok, Ok],
        ),
        (
            examined(&["zt_audit_writer"], Some(0), true),
            [Ok, Failed, Ok, Ok, Ok],
        ),
        (examined(&[], Some(0), false), [Warning, Ok, Ok, Ok, Ok]),
        (
            examined(&nobody, None, false),
            [Failed, Failed, NotApplicable, NotApplicable, NotApplicable],
        ),
    ] {
        assert_eq!(judge(&found), wanted, "{found:?}");
    }
    let mut slow = examined(&[], None, false);
    slow.roles = vec![("zt_audit_writer", Err(PgError::Slow { seconds: 10 }))];
    assert_eq!(
        judge(&slow),
        [Failed, NotApplicable, NotApplicable, NotApplicable, NotApplicable]
    );
}

#[test]
fn a_login_that_is_named_for_a_role_has_to_have_it() {
    let three = Logins {
        read: true,
        maintain: true,
    };
    let told = |refused: &[&str], logins| roles(logins, &examined(refused, Some(0), true));
    assert_eq!(told(&[], three).status, Status::Ok);
    for (role, key) in [
        ("zt_audit_writer", "audit.dsn"),
        ("zt_audit_reader", "audit.readDsn"),
        ("zt_audit_maintainer", "audit.maintainDsn"),
    ] {
        let found = told(&[role], three);
        assert_eq!(found.status, Status::Failed, "{role}");
        let remedy = found.remedy.expect("a remedy");
        assert!(
            remedy.contains(&format!("GRANT {role} TO` the login of `{key}`")),
            "{remedy}"
        );
    }
    // Its server is another one, and is not there.
    let mut away = examined(&[], Some(0), true);
    away.roles[1].1 = Err(PgError::Slow { seconds: 10 });
    let remedy = roles(three, &away).remedy.expect("a remedy");
    assert!(
        remedy.contains("start that server") && remedy.contains("audit.readDsn"),
        "{remedy}"
    );
}

#[test]
fn a_login_that_comes_to_another_database_is_told_of() {
    let mut found = examined(&[], Some(0), true);
    found.elsewhere = vec!["zt_audit_reader"];
    let told = roles(Logins::default(), &found);
    assert_eq!(told.status, Status::Warning);
    assert!(told.found.contains("zt_audit_reader"), "{}", told.found);
}

#[test]
fn a_login_that_may_more_than_insert_is_told_of() {
    let mut found = examined(&[], Some(0), true);
    assert_eq!(writer_only(&found).status, Status::Ok);
    found.more = Some(vec!["SELECT".to_owned(), "DELETE".to_owned()]);
    let told = writer_only(&found);
    assert_eq!(told.status, Status::Warning);
    assert!(
        told.found.contains("SELECT, DELETE besides INSERT"),
        "{}",
        told.found
    );
    assert_eq!(judge(&found)[2], Status::Warning);
}

#[test]
fn a_server_that_may_lose_what_it_confirms_is_told_of() {
    let mut hasty = examined(&[], Some(0), true);
    assert_eq!(durable(&hasty).status, Status::Ok);
    hasty.off = vec!["fsync".to_owned(), "full_page_writes".to_owned()];
    let told = durable(&hasty);
    assert_eq!(told.status, Status::Warning);
    assert!(
        told.found.contains("fsync = off, full_page_writes = off"),
        "{}",
        told.found
    );
    assert_eq!(judge(&hasty)[3], Status::Warning);
}

#[test]
fn clocks_that_are_apart_are_told_of() {
    let found = [0, -4 * SECOND, 30 * SECOND, -400 * SECOND].map(|ahead| clocks(Some(ahead)).status);
    assert_eq!(found, [Status::Ok, Status::Ok, Status::Warning, Status::Failed]);
    assert_eq!(
        clocks(Some(-30 * SECOND)).found,
        "the server's clock is -30.0 s from this machine's"
    );
}

#[test]
fn keys_are_for_root_alone() {
    let directory = Path::new("/var/lib/zt/keys");
    let key = |mode| vec![(directory.join("a.key"), mode)];
    assert_eq!(keys(directory, &key(0o600)).status, Status::Ok);
    assert_eq!(keys(directory, &key(0o640)).status, Status::Failed);
    assert_eq!(keys(directory, &[]).status, Status::NotApplicable);
}

#[tokio::test]
async fn a_file_that_is_no_trail_is_told_of_and_left_alone() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("audit.db");
    let mut config = Config::default();
    config.audit.dsn = format!("sqlite://{}", path.display());
    let found = look(&config, 0).await;
    assert_eq!(found[0].status, Status::NotApplicable, "{found:?}");
    assert!(!path.exists());
    fs::write(&path, "not a database").expect("write");
    let found = look(&config, 0).await;
    assert_eq!(
        (found[0].check, found[0].status),
        ("audit.file", Status::Failed),
        "{found:?}"
    );
    assert_eq!(fs::read_to_string(&path).expect("read"), "not a database");
}

#[test]
fn records_of_times_to_come_and_long_waits_are_told_of() {
    let held = |last: i64, waiting| {
        Ok(Held {
            entries: 9,
            last: Some(Timestamp(last * SECOND)),
            waiting,
        })
    };
    let judge = |held: &Result<Held, StoreError>| local(Path::new("/a.db"), Some(held), 1000 * SECOND).status;
    assert_eq!(judge(&held(999, None)), Status::Ok);
    assert_eq!(judge(&held(1100, None)), Status::Warning);
    assert_eq!(judge(&held(999, Some(5))), Status::Ok);
    assert_eq!(judge(&held(999, Some(MANY + 1))), Status::Warning);
}

#[test]
fn damaged_files_are_told_of_until_they_are_gone() {
    let path = Path::new("/var/lib/zt/audit.db");
    let aside = PathBuf::from("/var/lib/zt/audit.db.damaged-20260223T143000Z");
    let told = damaged(path, Ok(vec![aside.clone()]));
    assert_eq!(told.status, Status::Warning);
    assert!(
        told.found.contains(&aside.display().to_string()),
        "{}",
        told.found
    );
    assert_eq!(damaged(path, Ok(Vec::new())).status, Status::Ok);
    let failed = |kind: io::ErrorKind| damaged(path, Err(kind.into())).status;
    assert_eq!(failed(io::ErrorKind::NotFound), Status::NotApplicable);
    assert_eq!(failed(io::ErrorKind::PermissionDenied), Status::Warning);
    let torn = StoreError::Emptied {
        path: path.to_owned(),
    };
    let told = local(path, Some(&Err(torn)), 0);
    assert_eq!(told.status, Status::Failed);
    assert!(told.remedy.is_some_and(|remedy| remedy.contains("puts it aside")));
}
