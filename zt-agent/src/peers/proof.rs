// SPDX-License-Identifier: Apache-2.0
//! That an identity lives on a node: its SVID, and a signature by the SVID's key that is good for one connection only.

use rustls::SignatureScheme;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

use super::keys::{Role, export};
use super::protocol::{Base64, LONGEST_CHAIN, Proof};
use crate::identity::peers::Evidence;
use crate::spiffe_id::SpiffeId;
use crate::tls::{self, As, Mutual, ShownError};

/// Of the exporter (RFC 8446, section 7.5).
const LABEL: &[u8] = b"EXPORTER-zt-holding-1";
/// What every message that is signed begins with: nothing else that an SVID's key signs does.
const CONTEXT: &[u8] = b"zt: this SVID is held by the agent of its node\0";

/// What signatures on one connection are bound to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding([u8; 32]);

impl Binding {
    pub(super) fn of<T>(stream: &tokio_rustls::TlsStream<T>) -> Result<Self, rustls::Error> {
        export(stream, LABEL, &[]).map(Self)
    }

    #[cfg(test)]
    pub(super) fn for_tests() -> Self {
        Self([7; 32])
    }

    /// What the key of a certificate signs for `signer`: what the other end signed is not good to be sent back to it.
    fn message(&self, signer: Role, certificate: &CertificateDer<'_>) -> Vec<u8> {
        let mut message = CONTEXT.to_vec();
        message.push(signer.byte());
        message.extend_from_slice(&self.0);
        message.extend_from_slice(&Sha256::digest(certificate));
        message
    }
}

/// Shows that this end holds an SVID.
pub(super) fn show(binding: &Binding, role: Role, svid: &CertifiedKey) -> Result<Proof, ShownError> {
    let own = svid.cert.first().ok_or(ShownError::Empty)?;
    let (scheme, signature) = tls::sign(svid, &binding.message(role, own))?;
    Ok(Proof {
        chain: svid.cert.iter().map(|der| Base64(der.to_vec())).collect(),
        scheme: scheme.into(),
        signature: Base64(signature),
    })
}

/// Why a proof shows nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProofError {
    /// It is not the identity's.
    #[error("the SVID is that of `{0}`")]
    Another(SpiffeId),
    /// Its chain is too long.
    #[error("its chain has {0} certificates; at most {LONGEST_CHAIN} are looked at")]
    Chain(usize),
    /// It is not believed.
    #[error(transparent)]
    Shown(#[from] ShownError),
}

/// What it is worth that the other end has shown an identity.
pub(super) fn check(
    proof: &Proof,
    id: &SpiffeId,
    binding: &Binding,
    signer: Role,
    certificates: &Mutual,
) -> Result<Evidence, ProofError> {
    if proof.chain.len() > LONGEST_CHAIN {
        return Err(ProofError::Chain(proof.chain.len()));
    }
    let chain: Vec<CertificateDer<'_>> = proof
        .chain
        .iter()
        .map(|der| CertificateDer::from(&der.0[..]))
        .collect();
    let own = chain.first().ok_or(ShownError::Empty)?;
    let shown = certificates.believed(&chain, As::Client)?;
    if shown.id != *id {
        return Err(ProofError::Another(shown.id));
    }
    let message = binding.message(signer, own);
    tls::verify(
        own,
        SignatureScheme::from(proof.scheme),
        &message,
        &proof.signature.0,
    )?;
    Ok(Evidence {
        expires: shown.expires,
        authority: shown.authority,
    })
}
