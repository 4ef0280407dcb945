// SPDX-License-Identifier: Apache-2.0
//! The agent's own SVID is what it shows to PostgreSQL: a real server that takes client certificates of SPIRE alone, and
//! certificates that are renewed while records come.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::Path;

use zt_tests::postgres::Server;
use zt_tests::{Engine, eventually, spiffe};

use super::*;

/// Takes what `spire-agent` is given as the server's certificate, and clients by the name in theirs. Trust on the Unix
/// socket is for the test itself.
fn use_certificates(server: &Server, from: &Path) -> Result<()> {
    let owner = fs::metadata(server.directory().join("data"))?;
    for (file, name) in [
        ("svid.0.pem", "ssl_cert_file"),
        ("svid.0.key", "ssl_key_file"),
        ("bundle.0.pem", "ssl_ca_file"),
    ] {
        let to = server.directory().join(file);
        fs::copy(from.join(file), &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o600))?;
        chown(&to, Some(owner.uid()), Some(owner.gid()))?;
        server.sql(&format!("ALTER SYSTEM SET {name} = '{}'", to.display()))?;
    }
    server.sql("ALTER SYSTEM SET ssl = on")?;
    let rules = "local all all trust\nhostssl zt engine 127.0.0.1/32 cert\n";
    fs::write(server.directory().join("data/pg_hba.conf"), rules)?;
    server.sql("SELECT pg_reload_conf()")?;
    eventually("the server to use certificates", LATER, || {
        Ok(server.sql("SHOW ssl")? == "on")
    })
}

/// Asks over the socket of the machine's operator.
fn evaluate(socket: &Path) -> Result<()> {
    let question = json!({
        "source": { "spiffe_id": spiffe("client") },
        "destination": { "spiffe_id": spiffe("server"), "port": 80, "protocol": "TCP" },
    })
    .to_string();
    let mut stream = UnixStream::connect(socket)?;
    write!(
        stream,
        "POST /v1/evaluate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{question}",
        question.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

#[test]
fn the_way_to_postgresql_shows_the_svid_and_no_record_is_lost_when_it_is_renewed() -> Result<()> {
    let spire = Spire::start(Duration::from_secs(12))?;
    let sandbox = Sandbox::new("spire-database")?;
    let port = zt_tests::ports::free()?;
    let server = Server::start_on(port.port(), "fsync = off\nlisten_addresses = '127.0.0.1'")?;
    server.sql("GRANT zt_audit_maintainer TO engine")?;
    let fetcher = format!("unix:path:{}", spire.program("spire-agent").display());
    spire.register(
        "spiffe://hanzo.ai/database",
        &[&fetcher],
        &["-dns", "localhost", "-x509SVIDTTL", "3600"],
    )?;
    let certificates = sandbox.directory().join("database");
    fs::create_dir(&certificates)?;
    spire.fetch(&certificates)?;
    use_certificates(&server, &certificates)?;

    // The first DNS name is the common name, which is the login.
    let binary = format!("unix:path:{}", zt_tests::agent::binary()?.display());
    spire.register(&Spire::delegate(), &[&binary], &["-dns", "engine"])?;
    let policy = Policy::new("core").allow("client", "server", TCP, "80");
    let home = sandbox.directory().join("engine");
    let (socket, current) = (home.join("agent.sock"), home.join("svid/current"));
    let plain = format!(
        "postgres://engine@localhost:{}/zt?sslmode=verify-full",
        port.port()
    );
    let root = certificates.join("bundle.0.pem").display().to_string();
    let dsn = format!(
        "{plain}&sslcert={0}/cert.pem&sslkey={0}/key.pem&sslrootcert={0}/bundle.pem",
        current.display()
    );
    let engine = Engine::with_policy(&sandbox, "engine", &policy)?.on_server(&dsn, 365);
    let (api, health) = (engine.api(), engine.health());
    let callers = json!([{ "spiffe": "spiffe://hanzo.ai/ops/*", "role": "read" }]);
    let mut engine = engine
        .config(
            "identity",
            json!({ "file": home.join("workloads.yaml"), "spireSocket": spire.socket() }),
        )
        .config(
            "api",
            json!({
                "listen": api, "health": health, "socket": socket, "tls": "spire", "callers": callers,
            }),
        );
    engine.start()?;

    let number = || -> Result<u64> {
        let link = fs::read_link(&current)?;
        link.to_str()
            .and_then(|name| name.parse().ok())
            .context("a number")
    };
    let mut made = 0_u64;
    let mut record = |engine: &Engine| -> Result<u64> {
        evaluate(&socket).with_context(|| engine.log().unwrap_or_default())?;
        made += 1;
        Ok(made)
    };
    eventually("records to arrive", LATER, || {
        record(&engine)?;
        Ok(engine.metrics()?.sum("zt_audit_shipped_total", &[]) > 0)
    })?;
    let shown = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)
                 WHERE ssl AND usename = 'engine' AND client_dn LIKE '%CN=engine%'";
    eventually("the certificate to be seen", LATER, || {
        Ok(server.number(shown)? > 0)
    })?;
    // Each new connection shows what is valid then.
    let first = number()?;
    eventually("three more certificates", LATER, || {
        record(&engine)?;
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'engine'")?;
        Ok(number()? >= first + 3)
    })?;
    let all = record(&engine)?;
    let mut there = 0;
    let arrived = eventually("all to have arrived", LATER, || {
        there = server.number("SELECT count(*) FROM zt_audit.trail WHERE type = 'decision'")?;
        Ok(there == all)
    });
    arrived.with_context(|| format!("{there} of {all}: {}", engine.log().unwrap_or_default()))?;
    let lost = engine.metrics()?.sum("zt_audit_spool_lost_total", &[]);
    assert_eq!(lost, 0);

    // Who shows nothing gets nothing.
    let refused = Command::new(zt_tests::agent::binary()?)
        .args([
            "audit",
            "export",
            "--store",
            &format!("{plain}&sslrootcert={root}"),
        ])
        .env_clear()
        .output()?;
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("certificate"),
        "{said}"
    );
    Ok(())
}
