// SPDX-License-Identifier: Apache-2.0
//! A server across the network: over TCP, with TLS and passwords (SCRAM), and whoever is not who they say.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use zt_agent::audit::chain::Head;
use zt_agent::audit::postgres::{Maintainer, PgError, Reader, Target, Writer};
use zt_agent::audit::query::Filter;
use zt_tests::ports;
use zt_tests::postgres::Server;

use super::{batches, maker, today};

/// An authority and the certificate of a server for `localhost`, where its user may read them.
fn certificates(directory: &Path, owner: Option<&User>) -> (PathBuf, PathBuf, PathBuf) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("key");
    let authority = params.self_signed(&key).expect("self-signed");
    let issuer = Issuer::new(params, key);
    let own = KeyPair::generate().expect("key");
    let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("name");
    let certificate = params.signed_by(&own, &issuer).expect("signed");
    let place = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        if let Some(user) = owner {
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("chown");
        }
        path
    };
    (
        place("ca.pem", &authority.pem()),
        place("server.pem", &certificate.pem()),
        place("server.key", &own.serialize_pem()),
    )
}

/// Tries what each role does.
async fn all_roles(dsn: impl Fn(&str) -> String) -> Result<usize, PgError> {
    let target = |login: &str| Target::parse(&dsn(login));
    let mut maintainer = Maintainer::open(&target("keeper")?).await?;
    maintainer.keep(None).await?;
    maintainer.close().await?;
    let mut head = Head::new(uuid::Uuid::from_u128(7));
    let records = maker(today(), 1000, 10).kept(0..100, &mut head);
    let mut writer = Writer::new(target("node")?);
    for batch in batches(head.writer, &records, 1000) {
        writer.ship(&batch).await?;
    }
    writer.close().await;
    let reader = Reader::new(target("engine")?);
    let page = reader.query(&Filter::default(), None, 1000).await?;
    Ok(page.records.len())
}

/// An error and what it was caused by.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_across_the_network_proves_itself_and_is_told_a_password() {
    let directory = tempfile::tempdir().expect("directory");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let owner = Uid::effective().is_root().then(|| {
        User::from_name("postgres")
            .expect("users")
            .expect("a user `postgres`")
    });
    let (ca, certificate, key) = certificates(directory.path(), owner.as_ref());
    let other = tempfile::tempdir().expect("directory");
    let (other_ca, _, _) = certificates(other.path(), None);
    let port = ports::two().expect("a free port").0.port();
    let settings = format!(
        "fsync = off\nlisten_addresses = '127.0.0.1'\nssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n\
         password_encryption = 'scram-sha-256'",
        certificate.display(),
        key.display()
    );
    let server = Server::start_on(port, &settings).expect("PostgreSQL starts");
    // Over the network only with TLS and a password.
    let access = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
    fs::write(server.directory().join("data/pg_hba.conf"), access).expect("write");
    server
        .sql(
            "ALTER ROLE keeper PASSWORD 'k p/w@'; ALTER ROLE node PASSWORD 'k p/w@'; ALTER ROLE engine PASSWORD 'k p/w@';
             SELECT pg_reload_conf()",
        )
        .expect("set");
    let scram = server.number("SELECT count(*) FROM pg_authid WHERE rolpassword LIKE 'SCRAM-SHA-256$%'");
    assert_eq!(scram.expect("count"), 3);
    let dsn = |host: &str, password: &str, options: &str| {
        let (host, password, options) = (host.to_owned(), password.to_owned(), options.to_owned());
        move |login: &str| format!("postgres://{login}:{password}@{host}:{port}/zt?{options}")
    };
    let good = "k%20p%2Fw%40";
    let full = |ca: &Path| format!("sslmode=verify-full&sslrootcert={}", ca.display());
    // The settings are taken by the server in a while.
    super::cluster::until("the server to ask for passwords", async || {
        all_roles(dsn("localhost", "wrong", &full(&ca))).await.is_err()
    })
    .await;
    for (what, host, password, options, words) in [
        (
            "a wrong password",
            "localhost",
            "wrong",
            full(&ca),
            "password authentication failed",
        ),
        ("no password", "localhost", "", full(&ca), "password"),
        (
            "another authority",
            "localhost",
            good,
            full(&other_ca),
            "certificate",
        ),
        ("another name", "127.0.0.1", good, full(&ca), "certificate"),
        (
            "no TLS",
            "localhost",
            good,
            "sslmode=disable".to_owned(),
            "no encryption",
        ),
    ] {
        let error = all_roles(dsn(host, password, &options)).await.expect_err(what);
        let text = said(&error);
        assert!(text.to_lowercase().contains(words), "{what}: {text}");
        assert!(
            !text.contains(good) && !text.contains("k p/w@"),
            "the password is told: {text}"
        );
    }
    let tables = server.number("SELECT count(*) FROM pg_class WHERE relname = 'record'");
    assert_eq!(tables.expect("count"), 0, "nobody came in");
    assert_eq!(
        all_roles(dsn("localhost", good, &full(&ca))).await.expect("in"),
        100
    );
    let verified = "sslmode=verify-ca&sslrootcert=";
    let by_authority = dsn("127.0.0.1", good, &format!("{verified}{}", ca.display()));
    assert_eq!(all_roles(by_authority).await.expect("in"), 100);
}
