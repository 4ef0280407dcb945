// SPDX-License-Identifier: Apache-2.0
//! The configuration files of both programs.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use super::{DOMAIN, Spire};

impl Spire {
    pub(super) fn server_settings(&self, ttl: Duration) -> String {
        let directory = self.directory.display();
        let mut text = String::new();
        let _ = write!(
            text,
            r#"server {{
  bind_address = "127.0.0.1"
  bind_port = "{port}"
  socket_path = "{directory}/server.sock"
  trust_domain = "{DOMAIN}"
  data_dir = "{directory}/server"
  log_level = "DEBUG"
  ca_ttl = "24h"
  agent_ttl = "1h"
  default_x509_svid_ttl = "{ttl}s"
}}
plugins {{
  DataStore "sql" {{
    plugin_data {{
      database_type = "sqlite3"
      connection_string = "{directory}/server/data.sqlite3"
    }}
  }}
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
  KeyManager "disk" {{
    plugin_data {{ keys_path = "{directory}/server/keys.json" }}
  }}
}}
"#,
            port = self.port,
            ttl = ttl.as_secs(),
        );
        text
    }

    /// Those of an agent with this data directory below ours, and these sockets.
    pub(super) fn agent_settings(&self, who: &str, socket: &Path, admin: &Path) -> String {
        let directory = self.directory.display();
        let kubernetes = self.kubelet.map_or(String::new(), |port| {
            format!(
                "WorkloadAttestor \"k8s\" {{\n    plugin_data {{ kubelet_read_only_port = {port} }}\n  }}"
            )
        });
        format!(
            r#"agent {{
  data_dir = "{directory}/{who}"
  log_level = "DEBUG"
  server_address = "127.0.0.1"
  server_port = "{port}"
  socket_path = "{socket}"
  admin_socket_path = "{admin}"
  insecure_bootstrap = true
  trust_domain = "{DOMAIN}"
  authorized_delegates = ["{delegate}"]
  experimental {{
    sync_interval = "1s"
  }}
}}
plugins {{
  NodeAttestor "join_token" {{
    plugin_data {{}}
  }}
  KeyManager "disk" {{
    plugin_data {{ directory = "{directory}/{who}" }}
  }}
  WorkloadAttestor "unix" {{
    plugin_data {{
      discover_workload_path = true
      # No hash of each program: unoptimized ones are large.
      workload_size_limit = -1
    }}
  }}
  {kubernetes}
}}
"#,
            port = self.port,
            socket = socket.display(),
            admin = admin.display(),
            delegate = Self::delegate(),
        )
    }
}
