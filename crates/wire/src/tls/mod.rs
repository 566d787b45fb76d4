//! The direct path between two agents: TLS 1.3 with throw-away keys.
//!
//! Each agent makes a [`PeerKey`] for one migration. The fingerprints of both certificates and a random token travel
//! over connections that are trusted already (ssh), and nothing else is trusted here: no authority, no name, no clock.
//! The listening side accepts only the certificate that was announced to it, and the token on top; the dialling side
//! accepts only the certificate in the [`PeerOffer`]. Signatures of the handshake are verified as always.
//!
//! ```
//! use tranship_wire::tls::{DialTimes, PeerKey, PeerListener, dial};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tranship_wire::tls::TlsError> {
//! let (listening, dialling) = (PeerKey::generate()?, PeerKey::generate()?);
//! // Over ssh: the dialling side announces its fingerprint, the listening side answers with an offer.
//! let addresses = [([127, 0, 0, 1], 0).into()];
//! let listener = PeerListener::bind(&listening, dialling.fingerprint(), &addresses).await?;
//! let offer = listener.offer(vec![[127, 0, 0, 1].into()]);
//!
//! let times = DialTimes::default();
//! let (dialled, accepted) = tokio::join!(dial(&offer, &dialling, &times), listener.accept());
//! assert_eq!(dialled?.stream.peer(), listening.fingerprint());
//! assert_eq!(accepted?.peer(), dialling.fingerprint());
//! # Ok(())
//! # }
//! ```

mod dial;
mod error;
mod key;
mod listen;
mod stream;

pub use dial::{DialTimes, Dialled, dial};
pub use error::TlsError;
pub use key::{PeerKey, PeerOffer, Token};
pub use listen::PeerListener;
pub use stream::PeerStream;

/// What the listening side says when it knows the token.
const WELCOME: u8 = b'+';
/// What it says when it doesn't.
const REFUSED: u8 = b'-';
