//! Throw-away keys, what is told about them, and how they are verified.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ring::rand::{SecureRandom, SystemRandom};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    ServerConfig, SignatureScheme,
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::TlsError;
use crate::hex;
use crate::identity::Fingerprint;

/// The name in every certificate; nobody looks at it.
const NAME: &str = "tranship.invalid";

/// A key and a certificate for one migration. Cheap to clone, gone when dropped.
#[derive(Clone)]
pub struct PeerKey {
    certificate: CertificateDer<'static>,
    key: Arc<PrivateKeyDer<'static>>,
    fingerprint: Fingerprint,
}

/// A secret that shows that one was sent by the right people. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token([u8; Token::LENGTH]);

/// Where an agent listens and how to know it. Holds a secret: it travels over trusted connections only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PeerOffer {
    /// The port, the same for all addresses.
    pub port: u16,
    /// Addresses to try, the best first.
    pub addresses: Vec<IpAddr>,
    /// The certificate of the listening side.
    pub fingerprint: Fingerprint,
    /// What the dialling side has to say.
    pub token: Token,
}

/// A text is not a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a token is 64 lower-case hexadecimal digits")]
pub struct NotAToken;

impl Token {
    pub(super) const LENGTH: usize = 32;

    pub(super) fn generate() -> Result<Self, TlsError> {
        let mut token = [0; Self::LENGTH];
        SystemRandom::new()
            .fill(&mut token)
            .map_err(|_| TlsError::Random)?;
        Ok(Self(token))
    }

    pub(super) fn bytes(&self) -> &[u8; Self::LENGTH] {
        &self.0
    }

    /// Compares in constant time.
    pub(super) fn matches(&self, said: &[u8; Self::LENGTH]) -> bool {
        self.0.ct_eq(said).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(not shown)")
    }
}

impl TryFrom<String> for Token {
    type Error = NotAToken;
    fn try_from(text: String) -> Result<Self, NotAToken> {
        hex::decode(&text).map(Self).ok_or(NotAToken)
    }
}

impl From<Token> for String {
    fn from(token: Token) -> Self {
        hex::encode(&token.0)
    }
}

impl fmt::Debug for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerKey")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl PeerKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub fn generate() -> Result<Self, TlsError> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let certificate = made.cert.der().clone();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let fingerprint = Fingerprint::of(&certificate);
        Ok(Self {
            certificate,
            key: Arc::new(key.into()),
            fingerprint,
        })
    }

    /// What the other side has to know to recognise this one.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Key and certificate as bytes, for a file that nobody else can read: an agent that is restarted in the middle of a
    /// migration has to be the one that it was.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let key = self.key.secret_der();
        let length = u32::try_from(self.certificate.len()).unwrap_or(u32::MAX);
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend_from_slice(&self.certificate);
        bytes.extend_from_slice(key);
        bytes
    }

    /// What [`PeerKey::to_bytes`] gave; `None` if it is something else.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let length = u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?);
        let rest = bytes.get(4..)?;
        let length = usize::try_from(length).ok()?;
        let certificate = CertificateDer::from(rest.get(..length)?.to_vec());
        let key = rest.get(length..).filter(|k| !k.is_empty())?.to_vec();
        let made = Self {
            fingerprint: Fingerprint::of(&certificate),
            certificate,
            key: Arc::new(PrivatePkcs8KeyDer::from(key).into()),
        };
        // A key that does not fit its certificate is found here, not in the middle of a migration.
        made.server(made.fingerprint).ok()?;
        Some(made)
    }

    pub(super) fn client(&self, expected: Fingerprint) -> Result<Arc<ClientConfig>, TlsError> {
        let provider = Arc::new(suites());
        let verifier = Arc::new(Only {
            expected,
            provider: Arc::clone(&provider),
        });
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    pub(super) fn server(&self, expected: Fingerprint) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(suites());
        let verifier = Arc::new(Only {
            expected,
            provider: Arc::clone(&provider),
        });
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())?;
        config.send_tls13_tickets = 0;
        // The end that is slow without the other cipher decides; else they agree anyway.
        config.ignore_client_order = !aes_is_fast();
        Ok(Arc::new(config))
    }
}

/// The cipher suites of TLS 1.3, the fastest of this machine first: with AES in hardware AES-128-GCM, which is as far out
/// of reach as AES-256 for the hours that a migration takes, else ChaCha20-Poly1305.
fn suites() -> CryptoProvider {
    use provider::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];
    let place = if aes_is_fast() { cipher_suites.len() } else { 0 };
    cipher_suites.insert(place, TLS13_CHACHA20_POLY1305_SHA256);
    CryptoProvider {
        cipher_suites,
        ..provider::default_provider()
    }
}

/// Whether the processor has instructions for AES.
fn aes_is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    let fast = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let fast = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let fast = false;
    fast
}

pub(super) fn server_name() -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(NAME).map_err(|_| rustls::Error::General("no name".into()).into())
}

/// Accepts one certificate and no other, in either role.
#[derive(Debug)]
struct Only {
    expected: Fingerprint,
    provider: Arc<CryptoProvider>,
}

/// The certificate that was shown instead of the expected one.
#[derive(Debug, thiserror::Error)]
#[error("the certificate there is {found}, not the announced {expected}")]
pub(super) struct Mismatch {
    pub(super) expected: Fingerprint,
    pub(super) found: Fingerprint,
}

impl Only {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let found = Fingerprint::of(certificate);
        if found.matches(&self.expected) {
            return Ok(());
        }
        let mismatch = Arc::new(Mismatch {
            expected: self.expected,
            found,
        });
        Err(CertificateError::Other(OtherError(mismatch)).into())
    }

    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn only_tls13() -> rustls::Error {
    PeerIncompatible::Tls12NotOffered.into()
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Only {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// Whether a handshake failed because of the certificate that was shown.
pub(super) fn mismatch(error: &std::io::Error) -> Option<&Mismatch> {
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match tls {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<Mismatch>()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_read_back_and_never_shows_its_token() {
        let offer = PeerOffer {
            port: 7,
            addresses: vec![[127, 0, 0, 1].into()],
            fingerprint: PeerKey::generate().unwrap().fingerprint(),
            token: Token::generate().unwrap(),
        };
        let json = serde_json::to_string(&offer).unwrap();
        assert_eq!(serde_json::from_str::<PeerOffer>(&json).unwrap(), offer);
        let secret = String::from(offer.token.clone());
        assert!(json.contains(&secret));
        assert!(!format!("{offer:?} {offer:#?}").contains(&secret));
        assert!(serde_json::from_str::<PeerOffer>(&json.replace(&secret, "ff")).is_err());
    }
}
