// SPDX-License-Identifier: Apache-2.0
//! What the client shows to an agent elsewhere, and whom it believes.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rustls::ClientConfig;

use super::ClientError;
use crate::tls::{self, ClientFiles};

/// `--tls-…` of every command that asks an agent.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsArgs {
    /// With https: our certificate, PEM
    #[arg(long, env = "ZT_TLS_CERT", value_name = "FILE", help_heading = "TLS")]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, PEM
    #[arg(long, env = "ZT_TLS_KEY", value_name = "FILE", help_heading = "TLS")]
    pub tls_key: Option<PathBuf>,
    /// Who issues the agent's certificate, PEM
    #[arg(long, env = "ZT_TLS_CA", value_name = "FILE", help_heading = "TLS")]
    pub tls_ca: Option<PathBuf>,
}

impl TlsArgs {
    pub(super) fn config(&self) -> Result<Arc<ClientConfig>, ClientError> {
        let (Some(cert), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.tls_ca) else {
            let message =
                "https takes --tls-cert, --tls-key and --tls-ca: the API knows callers by their certificates";
            return Err(ClientError::Tls(message.to_owned()));
        };
        let files = ClientFiles { cert, key, ca };
        let config = tls::client_config(&files).map_err(|error| ClientError::Tls(error.to_string()))?;
        Ok(Arc::new(config))
    }
}
