// SPDX-License-Identifier: Apache-2.0
//! A rule comes, and goes again under what it allowed.

use super::super::super::cast::Who;
use super::super::super::error::DemoError;
use super::super::super::order::{Order, Outcome, now};
use super::super::super::screen::duration;
use super::super::super::story::{reached, refused, words};
use super::super::report::Row;
use super::Trial;
use super::flows::Protocol;

/// How long anything may take here, in ms. Less than it is waited for a report.
const DEADLINE: u64 = 15_000;

/// What is allowed for a while.
const POLICY: &str = "\
apiVersion: zt.hanzo.ai/v1
kind: ServiceAccessPolicy
metadata:
  name: chat-cache
spec:
  rules:
    - from:
        spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/chat\"
      to:
        - spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/redis\"
          ports: [6379]
        - spiffe: \"spiffe://hanzo.ai/hanzo-k8s/hanzo/redis\"
          protocol: UDP
          ports: [6379]
";

impl Trial {
    pub(super) fn revoke(&mut self) -> Result<(), DemoError> {
        for ipv6 in [false, true] {
            self.revoke_over(ipv6)?;
        }
        Ok(())
    }

    fn revoke_over(&mut self, ipv6: bool) -> Result<(), DemoError> {
        const CHECK: &str = "revocation";
        const TCP: &str = "the connection dies, a new one is refused";
        const UDP: &str = "answered before, refused after";
        const WHO: (Who, Who) = (Who::Chat, Who::Redis);
        if self.skips(CHECK, TCP, (Protocol::Tcp, ipv6)) {
            self.skips(CHECK, UDP, (Protocol::Udp, ipv6));
            return Ok(());
        }
        let (to, speak) = Self::place(Who::Redis, ipv6)?;
        let chat = self.world.actor(Who::Chat)?;
        chat.order(Order::UntilReached {
            to,
            speak,
            deadline: DEADLINE,
        })?;
        chat.begun()?;
        self.agent.files.add_policy(POLICY)?;
        let allowed = self.world.actor(Who::Chat)?.report()?;
        let before = self.reach(WHO, (Protocol::Udp, ipv6), DEADLINE)?;
        let kept = self.world.actor(Who::Chat)?.call(Order::Keep { to, speak })?;
        if !reached(&allowed) || !reached(&kept) {
            let found = format!("not allowed by a new rule: {}", words(&kept.outcome));
            self.note(Row::new(CHECK, TCP, false, found).over(ipv6, "TCP"));
            let found = format!("before: {}; after: not tried", words(&before.outcome));
            self.note(Row::new(CHECK, UDP, false, found).over(ipv6, "UDP"));
            return self.agent.files.remove_rule();
        }
        let chat = self.world.actor(Who::Chat)?;
        chat.order(Order::Hold { deadline: DEADLINE })?;
        chat.begun()?;
        let begin = now();
        self.agent.files.remove_rule()?;
        let died = self.world.actor(Who::Chat)?.report()?;
        let again = self.reach(WHO, (Protocol::Tcp, ipv6), DEADLINE)?;
        let after = self.reach(WHO, (Protocol::Udp, ipv6), DEADLINE)?;
        let dead = matches!(died.outcome, Outcome::Broken { .. });
        let ended = if dead {
            format!(
                "dead {} after the rule went",
                duration(died.at.saturating_sub(begin))
            )
        } else {
            words(&died.outcome)
        };
        let found = format!("{ended}; then {}", words(&again.outcome));
        self.note(Row::new(CHECK, TCP, dead && refused(&again), found).over(ipv6, "TCP"));
        let found = format!(
            "before: {}; after: {}",
            words(&before.outcome),
            words(&after.outcome)
        );
        let holds = reached(&before) && refused(&after);
        self.note(Row::new(CHECK, UDP, holds, found).over(ipv6, "UDP"));
        Ok(())
    }
}
