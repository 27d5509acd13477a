//! The secret half of a token: what a client presents, and what the relay keeps of it.

use std::fmt;

use aws_lc_rs::{digest, rand};
use thiserror::Error;

/// What every token begins with, so that a person and a secret scanner know it for one.
const PREFIX: &str = "rly_";
/// 62 symbols that survive a double click, a shell and a URL.
const BASE62: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// 62^43 is just above 2^256: the width that holds any 32 bytes.
const BODY_SYMBOLS: usize = 43;
/// 62^6 is above 2^32: the width that holds any CRC-32.
const CHECKSUM_SYMBOLS: usize = 6;
/// Of the whole text, in bytes.
const SECRET_BYTES: usize = PREFIX.len() + BODY_SYMBOLS + CHECKSUM_SYMBOLS;

/// A token as its owner knows it: `rly_`, then 32 random bytes as 43 base62 digits, then the CRC-32
/// of those digits as 6 more.
///
/// It prints as `rly_[redacted]` everywhere; [`Secret::expose`] is the one way to the text. The
/// relay stores only [`Secret::sha256`]: 256 random bits need no slow hash. Two of them cannot be compared, because `==`
/// takes the longer the more of them is equal:
///
/// ```compile_fail,E0369
/// let [one, other] = [(); 2].map(|()| relay_server::store::Secret::generate());
/// assert!(one == other);
/// ```
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A new secret from the system's randomness.
    #[must_use]
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        fill_random(&mut bytes);
        let body = base62(&bytes, BODY_SYMBOLS);
        let checksum = checksum(&body);
        Self(format!("{PREFIX}{body}{checksum}"))
    }

    /// Takes what a client presented, surrounding white space aside.
    ///
    /// # Errors
    ///
    /// [`SecretError`] where it cannot be one of our tokens; most often it was cut off in copying.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        let text = text.trim();
        let digits = text.strip_prefix(PREFIX).ok_or(SecretError::Prefix)?;
        if !digits.bytes().all(|digit| BASE62.contains(&digit)) {
            return Err(SecretError::Character);
        }
        if text.len() != SECRET_BYTES {
            return Err(SecretError::Length { length: text.len() });
        }
        let (body, sum) = digits.split_at(BODY_SYMBOLS);
        if checksum(body) != sum {
            return Err(SecretError::Checksum);
        }
        Ok(Self(text.to_owned()))
    }

    /// The text itself, to be shown to its owner once or sent to the relay.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The SHA-256 of the text: what the relay stores and looks up.
    #[must_use]
    pub fn sha256(&self) -> [u8; 32] {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest::digest(&digest::SHA256, self.0.as_bytes()).as_ref());
        hash
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}[redacted]")
    }
}

/// Why a text is not a token. None of these repeats any of it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SecretError {
    /// It begins differently.
    #[error("this is not a relay token: those begin with \"{PREFIX}\"")]
    Prefix,
    /// It holds something else than letters and digits.
    #[error("this relay token has a character that no token has; copy it again, without quotes")]
    Character,
    /// It was cut off, or something was added.
    #[error("a relay token has {SECRET_BYTES} characters, this one has {length}; copy it again, whole")]
    Length {
        /// How many it has.
        length: usize,
    },
    /// A character differs from what was issued.
    #[error("this relay token's checksum does not fit: it was mistyped or altered; copy it again")]
    Checksum,
}

/// `count` symbols, each drawn evenly from `alphabet` (at most 256 of them).
pub(super) fn random_symbols(alphabet: &[u8], count: usize) -> String {
    // Bytes at or above the last whole multiple of the alphabet's size would favour its beginning.
    let fair = 256 - 256 % alphabet.len().max(1);
    let mut text = String::with_capacity(count);
    let mut bytes = [0; 64];
    while text.len() < count {
        fill_random(&mut bytes);
        let drawn = bytes.iter().map(|&byte| usize::from(byte)).filter(|&byte| byte < fair);
        let symbols = drawn.filter_map(|byte| alphabet.get(byte % alphabet.len()));
        text.extend(symbols.map(|&symbol| char::from(symbol)).take(count - text.len()));
    }
    text
}

fn fill_random(bytes: &mut [u8]) {
    #[expect(
        clippy::expect_used,
        reason = "without randomness neither tokens nor TLS can be had; the library itself aborts \
                  rather than return this error"
    )]
    rand::fill(bytes).expect("the system gives random bytes");
}

fn checksum(body: &str) -> String {
    base62(&crc32(body.as_bytes()).to_be_bytes(), CHECKSUM_SYMBOLS)
}

/// The big-endian `number` in base 62, with leading zeroes up to `width`.
fn base62(number: &[u8], width: usize) -> String {
    let mut number = number.to_vec();
    let mut digits: Vec<char> = (0..width)
        .map(|_| {
            // One long division by 62; the quotient stays in `number`, the remainder is the digit.
            let remainder = number.iter_mut().fold(0, |carry, byte| {
                let dividend = carry * 256 + usize::from(*byte);
                *byte = u8::try_from(dividend / 62).unwrap_or(u8::MAX);
                dividend % 62
            });
            BASE62.get(remainder).map_or('0', |&digit| char::from(digit))
        })
        .collect();
    digits.reverse();
    digits.into_iter().collect()
}

/// CRC-32 as in Ethernet, gzip and PNG (ISO/IEC 3309), bit by bit: 43 bytes deserve no table.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { (crc >> 1) ^ 0xEDB8_8320 })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_issued_is_accepted_and_has_one_width() {
        for _ in 0..200 {
            let secret = Secret::generate();
            assert_eq!(secret.expose().len(), SECRET_BYTES);
            let again = Secret::parse(&format!(" {}\n", secret.expose())).unwrap();
            assert_eq!(again.sha256(), secret.sha256());
        }
        assert_ne!(Secret::generate().expose(), Secret::generate().expose());
    }

    #[test]
    fn known_answers() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926, "the check value of this CRC");
        assert_eq!(base62(&[0; 32], BODY_SYMBOLS), "0".repeat(43));
        assert_eq!(base62(&[0, 61], 3), "00z");
        assert_eq!(base62(&[1, 0], 3), "048", "256 = 4 * 62 + 8");
        assert_eq!(base62(&u32::MAX.to_be_bytes(), CHECKSUM_SYMBOLS), "4gfFC3");
    }

    #[test]
    fn the_widest_number_fits() {
        // The first digit is not zero, so one symbol less would not do; the last carry is gone.
        let widest = base62(&[0xFF; 32], BODY_SYMBOLS);
        assert!(!widest.starts_with('0'), "{widest}");
        assert!(base62(&[0xFF; 32], BODY_SYMBOLS + 1).ends_with(&widest));
        assert!(base62(&[0xFF; 32], BODY_SYMBOLS + 1).starts_with('0'));
    }

    #[test]
    fn each_fault_is_named() {
        let good = Secret::generate();
        let good = good.expose();
        assert_eq!(Secret::parse("ghp_abc").unwrap_err(), SecretError::Prefix);
        assert_eq!(Secret::parse("rly_ab-c").unwrap_err(), SecretError::Character);
        assert_eq!(Secret::parse(&good[..50]).unwrap_err(), SecretError::Length { length: 50 });
        assert_eq!(Secret::parse(&format!("{good}0")).unwrap_err(), SecretError::Length { length: 54 });
    }

    #[test]
    fn nothing_prints_a_secret() {
        let secret = Secret::generate();
        let body = &secret.expose()[4..12];
        for printed in
            [format!("{secret}"), format!("{secret:?}"), format!("{secret:#?}"), format!("{:?}", Some(&secret))]
        {
            assert!(!printed.contains(body), "{printed}");
        }
    }

    proptest! {
        #[test]
        fn one_wrong_character_is_noticed(at in 4..SECRET_BYTES, digit in 0..62usize) {
            let good = Secret::generate();
            let mut altered = good.expose().as_bytes().to_vec();
            altered[at] = BASE62[digit];
            let altered = String::from_utf8(altered).unwrap();
            prop_assert_eq!(Secret::parse(&altered).is_ok(), altered == good.expose());
        }

        #[test]
        fn any_text_is_judged_without_a_panic(text in ".{0,80}") {
            prop_assert!(Secret::parse(&text).is_err());
            let prefixed = format!("{PREFIX}{text}");
            prop_assert!(Secret::parse(&prefixed).is_err());
        }
    }
}
