//! Docker's header about what is at a path.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tranship_archive::confined::{PathStat, go_mode};
use tranship_core::Fault;
use tranship_core::fault::FaultKind;

/// What docker's archive API says about a path (`container.PathStat` of moby).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStat {
    /// The last element of the path.
    pub name: String,
    /// Bytes.
    pub size: i64,
    /// Type and permissions in Go's bits.
    pub mode: u32,
    /// RFC 3339 with nanoseconds.
    pub mtime: String,
    /// Where a link leads to in the end.
    #[serde(rename = "linkTarget")]
    pub link_target: String,
}

impl RemoteStat {
    /// The header's name.
    pub const HEADER: &str = "x-docker-container-path-stat";

    /// It is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.mode & (1 << 31) != 0
    }

    /// It is a symbolic link.
    #[must_use]
    pub fn is_link(&self) -> bool {
        self.mode & (1 << 27) != 0
    }

    /// The header's text.
    ///
    /// # Errors
    /// None that can happen.
    pub fn to_header(&self) -> Result<String, Fault> {
        let json =
            serde_json::to_vec(self).map_err(|e| Fault::new("stat.header", FaultKind::Bug, e.to_string()))?;
        Ok(STANDARD.encode(json))
    }

    /// Reads the header's text.
    ///
    /// # Errors
    /// `stat.header` if it is none.
    pub fn from_header(text: &str) -> Result<Self, Fault> {
        let wrong = |e: String| {
            Fault::new(
                "stat.header",
                FaultKind::Environment,
                format!("what is said about the path makes no sense: {e}"),
            )
        };
        let json = STANDARD.decode(text).map_err(|e| wrong(e.to_string()))?;
        serde_json::from_slice(&json).map_err(|e| wrong(e.to_string()))
    }
}

impl From<PathStat> for RemoteStat {
    fn from(stat: PathStat) -> Self {
        Self {
            name: String::from_utf8_lossy(&stat.name).into_owned(),
            size: i64::try_from(stat.size).unwrap_or(i64::MAX),
            mode: go_mode(stat.mode),
            mtime: rfc3339(stat.mtime.seconds, stat.mtime.nanoseconds),
            link_target: String::from_utf8_lossy(&stat.link_target).into_owned(),
        }
    }
}

/// A time as Go writes it in UTC: without zeros at the end of the fraction.
pub(crate) fn rfc3339(seconds: i64, nanoseconds: u32) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date, by Howard Hinnant's "chrono-compatible low-level date algorithms".
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let mut text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if nanoseconds > 0 {
        let fraction = format!(".{nanoseconds:09}");
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_go_does() {
        assert_eq!(rfc3339(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(981_173_106, 789_000_000), "2001-02-03T04:05:06.789Z");
        assert_eq!(rfc3339(951_782_400, 1), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(rfc3339(-1, 0), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn the_header_is_read_as_it_was_written() {
        let stat = RemoteStat {
            name: "passwd".into(),
            size: 5,
            mode: 0o644,
            mtime: rfc3339(0, 0),
            link_target: String::new(),
        };
        let text = stat.to_header().unwrap();
        assert_eq!(RemoteStat::from_header(&text).unwrap(), stat);
        assert!(RemoteStat::from_header("{}").is_err());
        assert!(RemoteStat::from_header("e30=").is_err());
    }
    #[test]
    fn damaged_headers_are_refused_or_mean_what_they_say() {
        // splitmix64: the same numbers in every run.
        let mut state = 7_u64;
        let mut next = move |limit: usize| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            usize::try_from((z ^ (z >> 31)) >> 1).unwrap() % limit
        };
        let seeds = [
            RemoteStat {
                name: "passwd \u{fc}\"".into(),
                size: i64::MAX,
                mode: u32::MAX,
                mtime: rfc3339(951_782_400, 1),
                link_target: "/etc/../x".into(),
            },
            RemoteStat {
                name: String::new(),
                size: -1,
                mode: 0,
                mtime: String::new(),
                link_target: String::new(),
            },
        ];
        let telling = b"{}[]\":,\\u0-9eE.ntf= \0\xff";
        let (mut read, mut refused) = (0, 0);
        for round in 0..60_000 {
            let mut json = serde_json::to_vec(&seeds[next(seeds.len())]).unwrap();
            let mut text = if round % 2 == 0 {
                Vec::new()
            } else {
                STANDARD.encode(&json).into_bytes()
            };
            let target = if round % 2 == 0 { &mut json } else { &mut text };
            for _ in 0..=next(3) {
                let at = next(target.len().max(1));
                match next(4) {
                    0 => target.truncate(at),
                    1 => target.insert(at.min(target.len()), telling[next(telling.len())]),
                    2 if !target.is_empty() => drop(target.remove(at)),
                    _ if !target.is_empty() => target[at] = telling[next(telling.len())],
                    _ => {}
                }
            }
            if round % 2 == 0 {
                text = STANDARD.encode(&json).into_bytes();
            }
            match RemoteStat::from_header(&String::from_utf8_lossy(&text)) {
                Ok(stat) => {
                    read += 1;
                    assert_eq!(RemoteStat::from_header(&stat.to_header().unwrap()).unwrap(), stat);
                    let _ = (stat.is_directory(), stat.is_link());
                }
                Err(fault) => {
                    refused += 1;
                    assert_eq!(fault.code, "stat.header");
                }
            }
        }
        assert!(read > 1000 && refused > 1000, "{read} read, {refused} refused");
    }
}
