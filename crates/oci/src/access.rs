//! Who may use the registry: names and passwords in a file of `htpasswd`, hashed with bcrypt, over HTTP's Basic scheme (RFC 7617).
//!
//! bcrypt is slow on purpose, so that guessing is; what was right once is remembered as a keyed hash until the process ends. At most two
//! passwords are tried at once, and a wrong one costs a second more.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use tokio::sync::Semaphore;

use crate::error::OciError;

/// What bcrypt may cost, as a power of two: from what `htpasswd` takes without a word. More would let a few requests keep the processor
/// busy for minutes.
const COSTS: std::ops::RangeInclusive<u32> = 5..=14;

/// How many passwords are tried at once.
const AT_ONCE: usize = 2;

/// What a wrong password costs beyond its bcrypt.
const PENALTY: Duration = Duration::from_secs(1);

/// How many right ones are remembered.
const REMEMBERED: usize = 256;

/// Who may use the registry.
pub struct Credentials {
    users: BTreeMap<String, String>,
    /// The dearest of the hashes, which is tried for users who do not exist: that must not show in the time.
    decoy: String,
    right: Mutex<Vec<[u8; 32]>>,
    key: [u8; 32],
    places: Semaphore,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("users", &self.users.len())
            .finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads lines `USER:BCRYPT`, as `htpasswd -B` writes them. Empty lines and those after `#` do not count.
    ///
    /// # Errors
    /// [`OciError::Credentials`] for other hashes, a user who is there twice, and where there is none.
    pub fn parse(text: &str) -> Result<Self, OciError> {
        let refuse = |message: String| OciError::Credentials { message };
        let mut users = BTreeMap::new();
        let mut decoy = (0, String::new());
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // The line itself is a secret.
            let at = format!("has a line {} that", index + 1);
            let (user, hash) = line
                .split_once(':')
                .ok_or_else(|| refuse(format!("{at} is not USER:HASH")))?;
            let kind = ["$2a$", "$2b$", "$2y$"]
                .iter()
                .any(|prefix| hash.starts_with(prefix));
            let cost = hash.parse::<bcrypt::HashParts>().map(|parts| parts.get_cost());
            match cost {
                Ok(cost) if kind && COSTS.contains(&cost) => decoy = decoy.max((cost, hash.to_owned())),
                Ok(_) if kind => {
                    return Err(refuse(format!(
                        "{at} has a cost outside {} to {}",
                        COSTS.start(),
                        COSTS.end()
                    )));
                }
                _ => return Err(refuse(format!("{at} is not hashed with bcrypt"))),
            }
            if user.is_empty() || users.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(refuse(format!("{at} names no user, or one a second time")));
            }
        }
        if users.is_empty() {
            return Err(refuse("names nobody".into()));
        }
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).map_err(|error| {
            OciError::Spool {
                action: "random numbers",
                source: error.into(),
            }
        })?;
        Ok(Self {
            users,
            decoy: decoy.1,
            right: Mutex::default(),
            key,
            places: Semaphore::new(AT_ONCE),
        })
    }

    /// Whether the `Authorization` header of a request lets it in.
    pub async fn allow(&self, header: Option<&str>) -> bool {
        let Some((user, password)) = header.and_then(basic) else {
            return false;
        };
        let mark = self.mark(&user, &password);
        if self.remembers(&mark) {
            return true;
        }
        let hash = self.users.get(&user).unwrap_or(&self.decoy).clone();
        let known = self.users.contains_key(&user);
        let tried = {
            let Ok(_place) = self.places.acquire().await else {
                return false;
            };
            tokio::task::spawn_blocking(move || bcrypt::verify(&password, &hash).unwrap_or(false)).await
        };
        if known && tried.unwrap_or(false) {
            let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
            if right.len() >= REMEMBERED {
                right.remove(0);
            }
            right.push(mark);
            return true;
        }
        tokio::time::sleep(PENALTY).await;
        false
    }

    fn mark(&self, user: &str, password: &[u8]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(self.key);
        hasher.update((user.len() as u64).to_le_bytes());
        hasher.update(user);
        hasher.update(password);
        // Once more with the key, so that nothing can be appended to what is known.
        let inner = hasher.finalize();
        let mut hasher = Sha256::new();
        hasher.update(self.key);
        hasher.update(inner);
        hasher.finalize().into()
    }

    fn remembers(&self, mark: &[u8; 32]) -> bool {
        let right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        let found = right
            .iter()
            .fold(Choice::from(0), |found, one| found | one[..].ct_eq(&mark[..]));
        found.into()
    }
}

/// User and password of a `Basic` header.
fn basic(header: &str) -> Option<(String, Vec<u8>)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|b| *b == b':')?;
    let user = String::from_utf8(decoded.get(..colon)?.to_vec()).ok()?;
    Some((user, decoded.get(colon + 1..)?.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    #[tokio::test]
    async fn only_the_right_password_comes_in() {
        let hash = bcrypt::hash("wölf:1", 8).unwrap();
        let credentials = Credentials::parse(&format!("# who\n\nme:{hash}\n")).unwrap();
        for _ in 0..2 {
            assert!(credentials.allow(Some(&header("me:wölf:1"))).await);
        }
        assert_eq!(credentials.right.lock().unwrap().len(), 1);
        for bad in ["me:wolf", "me:", "you:wölf:1", "me", ":wölf:1", "mew:ölf:1"] {
            assert!(!credentials.allow(Some(&header(bad))).await, "{bad}");
        }
        assert!(!credentials.allow(None).await);
        assert!(!credentials.allow(Some("Bearer x")).await);
        assert!(!credentials.allow(Some("Basic !!!")).await);
    }

    #[test]
    fn weak_files_are_refused() {
        let hash = bcrypt::hash("x", 8).unwrap();
        for bad in [
            String::new(),
            "# nobody".into(),
            "me:secret".into(),
            "me:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=".into(),
            format!("me:{}", hash.replacen("$08$", "$04$", 1)),
            format!("me:{}", hash.replacen("$08$", "$31$", 1)),
            format!("me:{hash}\nme:{hash}"),
            format!(":{hash}"),
            "me".into(),
        ] {
            let error = Credentials::parse(&bad).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
